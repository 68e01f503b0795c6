"""Class-conditional generation, scale by scale (arXiv:2404.02905, section 3.2)."""

from dataclasses import dataclass

import numpy as np
from mindspore import Tensor
from var_tokenizer import InputError, LatentCodec

from var_transformer.sampling import draw, filter_logits, gumbel_mixture, softmax
from var_transformer.transformer import Array, Transformer


@dataclass(frozen=True)
class Generation:
    """images: (B, 3, H, W) float32 in [0, 1]. ids: K arrays (B, s_y * s_x) int32."""

    images: np.ndarray
    ids: list[np.ndarray]


def generate(
    model: Transformer,
    tokenizer: LatentCodec,
    labels: Array,
    cfg: float = 1.5,
    top_k: int = 0,
    top_p: float = 0.0,
    seed: int = 0,
    more_smooth: bool = False,
) -> Generation:
    """Generates one image a label.

    labels: (B,) ints in [0, num_classes]. cfg: strength of classifier-free guidance
    (arXiv:2207.12598) at the last scale, growing linearly from 0 at the first; 0 for none.
    top_k, top_p: see ``filter_logits``. seed: image n draws from the random stream (seed, n).
    more_smooth: mixes codes by a Gumbel softmax; the ids are then those drawn beside it.

    Raises InputError for a label, cfg, top_k or top_p out of range, and for a tokenizer whose
    vocabulary, latent channels or schedule differ from the model's.
    """
    labels_b = model.check_labels(labels)
    check_sampler(cfg, top_k, top_p, tokenizer.vocab_size)
    check_pair(model, tokenizer)
    count, scales = labels_b.shape[0], len(tokenizer.schedule)
    streams = [np.random.default_rng((seed, n)) for n in range(count)]
    guided = cfg > 0
    if guided:
        no_class = np.full(count, model.config.num_classes, np.int32)
        labels_b = Tensor(np.concatenate((labels_b.asnumpy(), no_class)))

    class_bc, modulations = model.condition(labels_b)
    inputs, cache, latent, ids = None, None, None, []
    for k in range(scales):
        ratio = k / max(scales - 1, 1)
        logits_tensor, cache = model.extend(k, inputs, class_bc, modulations, cache)
        logits_blv = logits_tensor.asnumpy()
        if guided:
            strength = np.float32(cfg * ratio)
            conditional, free = logits_blv[:count], logits_blv[count:]
            logits_blv = (1 + strength) * conditional - strength * free
        logits_blv = filter_logits(logits_blv, top_k, top_p)
        uniform_bl = np.stack([stream.random(logits_blv.shape[1]) for stream in streams])
        ids.append(draw(softmax(logits_blv), uniform_bl))
        tokens = ids[-1]
        if more_smooth:
            tiny = np.finfo(np.float64).tiny
            uniform_blv = np.stack([s.random(logits_blv.shape[1:]) for s in streams]) + tiny
            tokens = gumbel_mixture(logits_blv, uniform_blv, ratio)
        latent = tokenizer.add_scale(latent, tokens, k)
        if k + 1 < scales:
            inputs_blz = tokenizer.scale_input(latent, k + 1).asnumpy()
            inputs = Tensor(np.concatenate((inputs_blz, inputs_blz)) if guided else inputs_blz)
    images = (tokenizer.decode_latent(latent).asnumpy() + 1) / 2
    return Generation(images, ids)


def check_pair(model: Transformer, tokenizer: LatentCodec) -> None:
    """Raises InputError unless the transformer was made for such a tokenizer's tokens."""
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


def check_sampler(cfg: float, top_k: int, top_p: float, vocab_size: int | None = None) -> None:
    """Raises InputError for a sampler setting out of range."""
    if not cfg >= 0:
        raise InputError(f"cfg is {cfg}; expected at least 0")
    if top_k < 0 or (vocab_size is not None and top_k > vocab_size):
        raise InputError(f"top_k is {top_k}; expected 0 to {vocab_size or 'the vocabulary size'}")
    if not 0 <= top_p <= 1:
        raise InputError(f"top_p is {top_p}; expected 0 to 1")
