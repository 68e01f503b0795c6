"""Generation that stays on the device: uniform numbers go up, ids and images come down.

A scale is one graph, from the latent map before it to the ids and the map after it. The settings of
the sampler and the image's kept tokens are data, so that each graph is compiled once.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from var_tokenizer import LatentCodec
from var_tokenizer.common import CompiledPasses, free_memory, on_cpu, one_at_a_time, to_unit_range

from var_transformer.attention import KeysValues
from var_transformer.generation.device_draw import DeviceDraw, draw_settings
from var_transformer.generation.filters import refuse_nan
from var_transformer.generation.refiner import Refiner
from var_transformer.generation.sampler import Sampler, ScaleSettings
from var_transformer.model.prepared import Arrays, Prepared, PreparedModel
from var_transformer.model.transformer import Transformer

if TYPE_CHECKING:
    from var_transformer.generation.generate import KeptTokens


def stays_on_device(sampler: Sampler) -> bool:
    """Whether a generation draws its tokens on the device.

    On a CPU NumPy is faster. To mix codes takes as many random numbers as there are logits, and the
    host chooses the tokens that are not pruned.
    """
    return not on_cpu() and not sampler.more_smooth and not sampler.prunes


class _Scale(nn.Cell):
    """Scale k, in one graph for each scale."""

    def __init__(self, model: Transformer, tokenizer: LatentCodec) -> None:
        super().__init__(auto_prefix=False)
        self.model, self.maps = PreparedModel(model), tokenizer.quantize
        self.draw = DeviceDraw(tokenizer.vocab_size)
        self.most = tokenizer.vocab_size - 1

    @ms.jit
    def construct(
        self,
        k: int,
        position: int | Tensor,
        latent: Tensor | None,
        numbers: Arrays,
        of_images: tuple[Arrays, ...],
        of_model: tuple[Arrays, ...],
        past: KeysValues,
    ) -> tuple[Tensor, Tensor, KeysValues]:
        """Ids (B, l), the latent map, and the cache.

        latent: before this scale; None at scale 0. numbers: uniform (B, l, 1), kept ids (B, l)
        or -1 for tokens that are drawn, and ``draw_settings``.
        """
        uniform_bl1, kept_bl, settings_5 = numbers
        inputs_blz = None if latent is None else self.maps.downsample(latent, k)
        logits_blv, grown = self.model(k, position, inputs_blz, of_images, of_model, past)
        drawn_bl = self.draw(logits_blv, uniform_bl1, settings_5)
        ids_bl = ops.select(kept_bl < 0, drawn_bl, kept_bl)
        # where probabilities are NaN an id is beyond the codebook; the caller refuses those
        added = self.maps.contribution(ops.minimum(ids_bl, self.most), k)
        latent = added if latent is None else latent + added
        return ids_bl, latent, grown


class DeviceGraphs(CompiledPasses):
    """The graphs of a transformer with the tokenizer whose tokens it draws."""

    def __init__(self, model: Transformer, tokenizer: LatentCodec) -> None:
        self.tokenizer = tokenizer
        self.scale, self.prepare = _Scale(model, tokenizer), Prepared(model)
        super().__init__(nn.CellList([self.scale, self.prepare], auto_prefix=False))

    @classmethod
    def of(cls, model: Transformer, tokenizer: LatentCodec) -> "DeviceGraphs":
        """Those of the model's last generation, if it had the same tokenizer."""
        if model.device_graphs is None or model.device_graphs.tokenizer is not tokenizer:
            model.device_graphs = cls(model, tokenizer)
        return model.device_graphs


class DevicePasses:
    """Passes over the scales of one batch, guided at the scales that ask for it.

    As ``GuidedPasses``, on the device.
    """

    def __init__(
        self, model: Transformer, tokenizer: LatentCodec, labels_b: Tensor, unconditional: bool
    ) -> None:
        self._model = model
        self._graphs = DeviceGraphs.of(model, tokenizer)
        self._count = labels_b.shape[0]
        self._unconditional = unconditional  # whether that half still runs
        if unconditional:
            no_class = np.full(self._count, model.config.num_classes, np.int32)
            labels_b = Tensor(np.concatenate((labels_b.asnumpy(), no_class)))
        self._cache = model.new_cache(labels_b.shape[0])
        with self._graphs.turn():
            of_images, of_model = self._graphs.prepare(labels_b)
        # plain tuples would be compiled in as constants
        self._of_images, self._of_model = ms.mutable(of_images), ms.mutable(of_model)

    def draw(
        self,
        k: int,
        latent: Tensor | None,
        uniform_bl: np.ndarray,
        kept_bl: np.ndarray,
        settings: ScaleSettings,
    ) -> tuple[Tensor, Tensor]:
        """Ids (B, s_y * s_x) of scale k, V where probabilities are NaN, and the latent map.

        latent: before this scale; None at scale 0. kept_bl: ids, -1 for those to draw.
        """
        if self._unconditional and not settings.unconditional:
            self._drop_unconditional()
        values = draw_settings(settings, self._model.config.vocab_size)
        numbers = (Tensor(uniform_bl[..., None]), Tensor(kept_bl), Tensor(values))
        position = self._model.blocks[0].attn.attend.graph_input(k)
        past = self._cache.tensors
        with self._graphs.turn():
            ids_bl, latent, grown = self._graphs.scale(
                k,
                position,
                latent,
                ms.mutable(numbers),
                self._of_images,
                self._of_model,
                past and ms.mutable(past),
            )
        self._cache = self._cache.after(grown)
        return ids_bl, latent

    def release(self) -> None:
        """Frees the keys and values, and copies of the weights. The device must have finished."""
        self._cache.release()
        if self._graphs.prepare.dtype != ms.float32:  # else they are the weights themselves
            with one_at_a_time:  # a graph keeps its last arguments
                for array in (*chain(*self._of_images), *chain(*self._of_model)):
                    free_memory(array)

    def _drop_unconditional(self) -> None:
        n = self._count
        self._unconditional = False
        with one_at_a_time:
            self._of_images = ms.mutable(
                tuple(tuple(array[:n].copy() for array in arrays) for arrays in self._of_images)
            )
        self._cache = self._cache.first(n)


def draw_scales_on_device(
    model: Transformer,
    tokenizer: LatentCodec,
    labels_b: Tensor,
    sampler: Sampler,
    streams: Sequence[np.random.Generator],
    kept: "KeptTokens | None",
    on_scale: Callable[[int, np.ndarray], None] | None,
    refiner: Refiner | None,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Images (B, 3, H, W) in [0, 1] and ids, as ``draw_scales`` gives them."""
    tokens, b = tokenizer.schedule.tokens, len(streams)
    refined = 0 if refiner is None else refiner.scales
    plan = sampler.plan(len(tokens), refined)
    passes = DevicePasses(model, tokenizer, labels_b, plan[0].unconditional)
    latents: list[Tensor | None] = [None]  # what each scale reads: nothing at the first
    drawn: list[Tensor] = []
    ids: list[np.ndarray] = []
    for k, settings in enumerate(plan):
        if refiner is not None and k == len(tokens) - refined:
            ids += _read(drawn[len(ids) :], tokenizer.vocab_size)
            passes.release()
            passes = DevicePasses(refiner.model, tokenizer, labels_b, settings.unconditional)
            for drafted in range(k):  # to have the keys and values of the draft
                unused_bl = np.zeros((b, tokens[drafted]))
                passes.draw(
                    drafted, latents[drafted], unused_bl, unused_bl.astype(np.int32), settings
                )
        uniform_bl = np.stack([stream.random(tokens[k]) for stream in streams])
        kept_bl = np.full((b, tokens[k]), -1, np.int32)
        if kept is not None:
            kept_bl = np.where(kept.kept[k], kept.ids[k], kept_bl).astype(np.int32)
        ids_bl, latent = passes.draw(k, latents[k], uniform_bl, kept_bl, settings)
        drawn.append(ids_bl)
        latents.append(latent)
        if on_scale is not None or k + 1 == len(tokens):
            ids += _read(drawn[len(ids) :], tokenizer.vocab_size)
            if k + 1 == len(tokens):
                passes.release()
            images_byxc = to_unit_range(tokenizer.decode_own(latent).asnumpy())
            images = np.ascontiguousarray(images_byxc.transpose(0, 3, 1, 2))
            if on_scale is not None:
                on_scale(k, images)
    return images, ids


def _read(drawn: list[Tensor], vocab_size: int) -> list[np.ndarray]:
    """Ids of some scales, which ends the device's work on them. Raises InputError for NaN."""
    ids = [ids_bl.asnumpy() for ids_bl in drawn]
    if any((ids_bl == vocab_size).any() for ids_bl in ids):
        refuse_nan()
    return ids
