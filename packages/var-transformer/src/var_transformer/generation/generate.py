"""Class-conditional generation, scale by scale (arXiv:2404.02905, section 3.2)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor
from var_tokenizer import LatentCodec
from var_tokenizer.common import (
    Array,
    InputError,
    check_integer,
    one_at_a_time,
    quoted,
    to_unit_range,
)

from var_transformer.attention import Cache
from var_transformer.generation.filters import draw, filter_logits, gumbel_mixture, softmax
from var_transformer.generation.sampler import Guidance, Sampler, ScaleSettings
from var_transformer.model.transformer import Transformer

OnScale = Callable[[int, np.ndarray], None]  # scale, images (B, 3, H, W) in [0, 1]


@dataclass(frozen=True)
class Generation:
    """images: (B, 3, H, W) float32 in [0, 1]. ids: K arrays (B, s_y * s_x) int32."""

    images: np.ndarray
    ids: list[np.ndarray]


@dataclass(frozen=True)
class KeptTokens:
    """Tokens that are not drawn. ids: K int arrays (B, s_y * s_x); kept: K bool (s_y * s_x,)."""

    ids: list[np.ndarray]
    kept: list[np.ndarray]


@dataclass(frozen=True)
class Refiner:
    """A smaller transformer that draws the last ``scales`` scales (collaborative decoding).

    The larger one drafts the coarse scales, where the image is decided; the last ones hold most
    of the tokens and need less of a model (arXiv:2411.17787).
    """

    model: Transformer
    scales: int

    def check(self, model: Transformer, tokenizer: LatentCodec) -> None:
        """Raises InputError unless it can go on where ``model`` stops."""
        check_pair(self.model, tokenizer)
        ours, theirs = self.model.config.num_classes, model.config.num_classes
        if ours != theirs:
            raise InputError(
                f"num_classes is {ours} in the refiner and {theirs} in the transformer; "
                "expected the same"
            )
        names = (self.model.class_names or (), model.class_names or ())
        for n, (a, b) in enumerate(zip(*names, strict=False)):  # published weights have none
            if a != b:
                raise InputError(
                    f"class {n} is {quoted(a)} in the refiner and {quoted(b)} in the transformer; "
                    "expected the same names"
                )
        most = len(tokenizer.schedule) - 1
        check_integer("the refiner's scales", self.scales, 1, most)


def generate(
    model: Transformer,
    tokenizer: LatentCodec,
    labels: Array,
    cfg: float = 1.5,
    top_k: int | tuple[int, ...] = 0,
    top_p: float | tuple[float, ...] = 0.0,
    seed: int = 0,
    more_smooth: bool = False,
    *,
    temperature: float | tuple[float, ...] = 1.0,
    guidance: Guidance = "linear",
    guided_scales: tuple[int, ...] | None = None,
    numbers: Sequence[int] | None = None,
    on_scale: OnScale | None = None,
    refiner: Refiner | None = None,
) -> Generation:
    """Generates one image a label.

    labels: (B,) ints in [0, num_classes]. cfg, guidance, guided_scales, top_k, top_p,
    temperature: see ``Sampler``. more_smooth: mixes codes by a Gumbel softmax; the ids are then
    those drawn beside it. seed: at least 0; image n draws from the random stream (seed, n),
    where n counts the batch from 0 or is what ``numbers``, B ints from 0, says.
    on_scale: called with k and the images so far, (B, 3, H, W) in [0, 1], after every scale; what
    it raises ends the generation. refiner: a smaller model for the last scales.

    Raises InputError for a label, number or sampler setting out of range, and for a tokenizer
    whose vocabulary, latent channels or schedule differ from the model's or the refiner's, and for
    a refiner with other classes.
    """
    sampler = Sampler(cfg, guidance, guided_scales, top_k, top_p, temperature, more_smooth)
    labels_b = model.check_labels(labels)
    check_pair(model, tokenizer)
    if refiner is not None:
        refiner.check(model, tokenizer)
    sampler.check(len(tokenizer.schedule), tokenizer.vocab_size)
    streams = random_streams(seed, range(len(labels_b)) if numbers is None else numbers)
    if len(streams) != len(labels_b):
        raise InputError(f"numbers has {len(streams)} entries; expected one for each label")
    return draw_scales(model, tokenizer, labels_b, sampler, streams, None, on_scale, refiner)


def random_streams(seed: int, numbers: Sequence[int]) -> list[np.random.Generator]:
    """One random stream for each image number; raises InputError for a negative or non-integer."""
    for field, value in (("seed", seed), *(("numbers", n) for n in numbers)):
        check_integer(field, value, 0)
    return [np.random.default_rng((seed, n)) for n in numbers]


def draw_scales(
    model: Transformer,
    tokenizer: LatentCodec,
    labels_b: Tensor,
    sampler: Sampler,
    streams: Sequence[np.random.Generator],
    kept: KeptTokens | None = None,
    on_scale: OnScale | None = None,
    refiner: Refiner | None = None,
) -> Generation:
    """The loop over the scales; arguments are checked already. kept: tokens that are given."""
    scales = len(tokenizer.schedule)
    refined = 0 if refiner is None else refiner.scales
    passes = _Passes(model, labels_b)
    inputs: list[np.ndarray | None] = [None]  # what each scale reads: nothing at the first
    latent, ids, images = None, [], None
    for k, settings in enumerate(sampler.plan(scales, refined)):
        if refined and k == scales - refined:
            passes.release()
            passes = _Passes(refiner.model, labels_b)
            for scale, inputs_blz in enumerate(inputs[:k]):  # for the keys and values of the draft
                passes.guided_logits(scale, inputs_blz, settings)
        logits_blv = _filtered(passes.guided_logits(k, inputs[k], settings), settings)
        if k + 1 == scales:
            passes.release()
        uniform_bl = np.stack([stream.random(logits_blv.shape[1]) for stream in streams])
        tokens = draw(softmax(logits_blv), uniform_bl)
        if kept is not None:
            tokens = np.where(kept.kept[k], kept.ids[k], tokens).astype(np.int32)
        ids.append(tokens)
        if sampler.more_smooth:
            tiny = np.finfo(np.float64).tiny
            uniform_blv = np.stack([s.random(logits_blv.shape[1:]) for s in streams]) + tiny
            mixed = gumbel_mixture(logits_blv, uniform_blv, settings.ratio)
            if kept is not None:
                one_hot = np.eye(tokenizer.vocab_size, dtype=np.float32)[tokens]
                mixed = np.where(kept.kept[k][:, None], one_hot, mixed)
            tokens = mixed
        latent = tokenizer.add_scale(latent, tokens, k)
        if k + 1 < scales:
            inputs.append(tokenizer.scale_input(latent, k + 1).asnumpy())
        if on_scale is not None or k + 1 == scales:
            images = to_unit_range(tokenizer.decode_latent(latent).asnumpy())
        if on_scale is not None:
            on_scale(k, images)
    return Generation(images, ids)


class _Passes:
    """The transformer's passes over the scales, with the unconditional half while it is needed.

    The unconditional half holds its own keys and values, so it can stop only where no later
    scale is guided.
    """

    def __init__(self, model: Transformer, labels_b: Tensor) -> None:
        self._model = model
        self._labels_b = labels_b
        self._count = labels_b.shape[0]
        self._free = False
        self._class_bc: Tensor | None = None
        self._modulations: tuple[Tensor, ...] = ()
        self._cache: Cache | None = None

    def guided_logits(
        self, k: int, inputs_blz: np.ndarray | None, settings: ScaleSettings
    ) -> np.ndarray:
        """(B, s_y * s_x, V): (1 + t) conditional - t unconditional, t the scale's strength."""
        if self._class_bc is None:
            self._begin(settings.free)
        elif self._free and not settings.free:
            self._drop_free()
        if inputs_blz is not None and self._free:
            inputs_blz = np.concatenate((inputs_blz, inputs_blz))
        inputs = None if inputs_blz is None else Tensor(inputs_blz)
        logits, self._cache = self._model.extend(
            k, inputs, self._class_bc, self._modulations, self._cache
        )
        logits_blv = logits.asnumpy()
        conditional, free = logits_blv[: self._count], logits_blv[self._count :]
        strength = np.float32(settings.strength)
        return (1 + strength) * conditional - strength * free if strength else conditional

    def _begin(self, free: bool) -> None:
        labels_b = self._labels_b
        if free:
            no_class = np.full(self._count, self._model.config.num_classes, np.int32)
            labels_b = Tensor(np.concatenate((labels_b.asnumpy(), no_class)))
        self._free = free
        self._class_bc, self._modulations = self._model.condition(labels_b)

    def release(self) -> None:
        """Frees the keys and values."""
        if self._cache is not None:
            self._cache.release()

    def _drop_free(self) -> None:
        n = self._count
        self._free = False
        with one_at_a_time:
            self._class_bc = self._class_bc[:n]
            self._modulations = tuple(m[:n] for m in self._modulations)
        self._cache = self._cache.first(n)


def _filtered(logits_blv: np.ndarray, settings: ScaleSettings) -> np.ndarray:
    if settings.temperature != 1:
        logits_blv = logits_blv / np.float32(settings.temperature)
    return filter_logits(logits_blv, settings.top_k, settings.top_p)


def check_pair(model: Transformer, tokenizer: LatentCodec) -> None:
    """Raises InputError unless the transformer was made for this tokenizer's tokens.

    That it was trained with these very weights is checked where the transformer knows their
    checksum.
    """
    config = model.config
    for field, ours, theirs in (
        ("vocab_size", config.vocab_size, tokenizer.vocab_size),
        ("latent_channels", config.latent_channels, tokenizer.latent_channels),
        ("scales", config.scales, tokenizer.schedule.scales),
    ):
        if ours != theirs:
            raise InputError(
                f"{field} is {ours} in the transformer and {theirs} in the tokenizer; "
                "expected the same"
            )
    known = model.tokenizer_checksum
    if known is not None and not tokenizer.belongs_to(known):
        raise InputError(
            f"the tokenizer's weights are not those of {known}, which the transformer was trained "
            "with; expected the tokenizer that it was trained with"
        )
