"""Class-conditional generation, scale by scale (arXiv:2404.02905, section 3.2)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Tensor
from var_tokenizer import LatentCodec
from var_tokenizer.common import Array, InputError, to_unit_range

from var_transformer.generation.device_scales import draw_scales_on_device, stays_on_device
from var_transformer.generation.filters import draw, filter_logits, gumbel_mixture, softmax
from var_transformer.generation.guidance import GuidedPasses
from var_transformer.generation.random_streams import random_streams
from var_transformer.generation.refiner import Refiner
from var_transformer.generation.sampler import Sampler
from var_transformer.model.checks import check_pair
from var_transformer.model.transformer import Transformer
from var_transformer.stored.stored_transformer import AnyTransformer

OnScale = Callable[[int, np.ndarray], None]  # k, images (B, 3, H, W) in [0, 1]


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


def generate(
    model: AnyTransformer,
    tokenizer: LatentCodec,
    labels: Array,
    *positional: Any,  # noqa: ANN401 (Sampler checks them)
    sampler: Sampler | None = None,
    numbers: Sequence[int] | None = None,
    on_scale: OnScale | None = None,
    refiner: Refiner | None = None,
    **settings: Any,  # noqa: ANN401
) -> Generation:
    """Generates one image for each label.

    labels: (B,) ints in [0, num_classes]; num_classes means "no class". sampler: how tokens are
    drawn. seed: an integer of at least 0, by default 0. Image n draws from the random stream
    (seed, n), where n is the place in the batch, from 0, or the entry of ``numbers``, B ints of
    at least 0. on_scale: called after every scale with k and the images so far, (B, 3, H, W) in
    [0, 1]; an exception from it ends the generation.
    refiner: a smaller model for the last scales.

    Instead of ``sampler``, the fields of a ``Sampler`` may be given as keywords, or cfg, top_k,
    top_p, seed and more_smooth by position: ``generate(model, tokenizer, labels, cfg=1.5)``.

    Raises InputError for a label, number or setting of the sampler out of range; for a tokenizer
    whose vocabulary, latent channels or schedule differ from the model's or the refiner's; and
    for a refiner with other classes.
    """
    names = ("cfg", "top_k", "top_p", "seed", "more_smooth")
    if len(positional) > len(names):
        raise TypeError(f"generate takes 3 to 8 positional arguments; {3 + len(positional)} given")
    by_position = dict(zip(names, positional, strict=False))
    twice = sorted(by_position.keys() & settings.keys())
    if twice:
        raise TypeError(f"generate got multiple values for {', '.join(twice)}")
    settings = by_position | settings
    seed = settings.pop("seed", 0)
    if sampler is None:
        sampler = Sampler(**settings)
    elif settings:
        raise InputError(f"{', '.join(settings)} given beside a sampler; expected one of them")
    elif not isinstance(sampler, Sampler):
        raise InputError(f"sampler is {sampler!r}; expected a Sampler")
    labels_b = model.check_labels(labels)
    check_pair(model, tokenizer)
    if refiner is not None:
        refiner.check(model, tokenizer)
    sampler.check(len(tokenizer.schedule), tokenizer.vocab_size)
    streams = random_streams(seed, range(len(labels_b)) if numbers is None else numbers)
    if len(streams) != len(labels_b):
        raise InputError(f"numbers has {len(streams)} entries; expected one for each label")
    return draw_scales(model, tokenizer, labels_b, sampler, streams, None, on_scale, refiner)


def draw_scales(
    model: AnyTransformer,
    tokenizer: LatentCodec,
    labels_b: Tensor,
    sampler: Sampler,
    streams: Sequence[np.random.Generator],
    kept: KeptTokens | None = None,
    on_scale: OnScale | None = None,
    refiner: Refiner | None = None,
) -> Generation:
    """The loop over the scales; its arguments are already checked."""
    if isinstance(model, Transformer) and stays_on_device(sampler):
        images, ids = draw_scales_on_device(
            model, tokenizer, labels_b, sampler, streams, kept, on_scale, refiner
        )
        return Generation(images, ids)
    scales = len(tokenizer.schedule)
    refined = 0 if refiner is None else refiner.scales
    plan = sampler.plan(scales, refined)
    passes = GuidedPasses(model, labels_b, plan[0].unconditional)
    inputs: list[np.ndarray | None] = [None]  # what each scale reads: nothing at the first
    latent, ids = None, []
    for k, settings in enumerate(plan):
        guided = settings.strength, settings.unconditional
        if refiner is not None and k == scales - refined:
            passes.release()
            passes = GuidedPasses(refiner.model, labels_b, settings.unconditional)
            for drafted in range(k):  # to have the keys and values of the draft
                passes.logits(drafted, inputs[drafted], *guided, plan[drafted].pruned)
        logits_blv = passes.logits(k, inputs[k], *guided, settings.pruned)
        if settings.temperature != 1:
            logits_blv = logits_blv / np.float32(settings.temperature)
        logits_blv = filter_logits(logits_blv, settings.top_k, settings.top_p)
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
            images_byxc = to_unit_range(tokenizer.decode_latent(latent).asnumpy())
            # contiguous, because callers may read the bytes or view them as another shape
            images = np.ascontiguousarray(images_byxc.transpose(0, 3, 1, 2))
            if on_scale is not None:
                on_scale(k, images)
    return Generation(images, ids)
