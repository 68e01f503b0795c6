"""Class-conditional generation in PyTorch, scale by scale (arXiv:2404.02905, section 3.2)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from var_convert.reference.quantizer import Ids
from var_convert.reference.tokenizer import TorchTokenizer
from var_convert.reference.transformer import Cache, TorchTransformer


@dataclass(frozen=True)
class TorchGenerated:
    """images: (B, 3, H, W) in [0, 1]. ids: K tensors (B, l)."""

    images: Tensor
    ids: Ids


@torch.inference_mode()
def torch_generate(
    model: TorchTransformer,
    tokenizer: TorchTokenizer,
    labels_b: Tensor,
    cfg: float = 1.5,
    top_k: int = 0,
    top_p: float = 0.0,
    generator: torch.Generator | None = None,
) -> TorchGenerated:
    """Images for ``labels_b`` (B,), scale by scale, with a key-value cache.

    cfg: guidance at the last scale; it grows from 0 at the first. top_k, top_p: 0 means off;
    top_k=1 always draws the likeliest. generator: source of randomness, the global one by default.
    """
    count, schedule, quantizer = len(labels_b), model.config.schedule, tokenizer.quantize
    no_class_b = torch.full_like(labels_b, model.config.num_classes)
    condition_bc = model.class_emb(torch.cat((labels_b, no_class_b)))
    shared_b16c = model.shared_modulation(condition_bc)
    place_1lc = model.lvl_embed(model.lvl_1L) + model.pos_1LC
    caches: list[Cache | None] = [None] * len(model.blocks)
    x_blc = condition_bc[:, None] + model.pos_start + place_1lc[:, : schedule.tokens[0]]
    total: Any = 0
    ids: Ids = []
    for k in range(len(schedule)):
        for i, block in enumerate(model.blocks):
            x_blc, caches[i] = block(x_blc, condition_bc, shared_b16c, cache=caches[i])
        with_class, without = model.head(model.head_nm(x_blc, condition_bc)).split(count)
        t = cfg * k / max(len(schedule) - 1, 1)
        logits_blv = keep_likely((1 + t) * with_class - t * without, top_k, top_p)
        chosen_n = torch.multinomial(logits_blv.softmax(-1).flatten(0, 1), 1, generator=generator)
        ids.append(chosen_n.view(count, -1))
        total = total + quantizer.contribution(ids[k], k)
        if k + 1 < len(schedule):
            here = slice(schedule.offsets[k + 1], schedule.offsets[k + 2])
            next_blz = quantizer.next_input(total, k + 1)
            x_blc = (model.word_embed(next_blz) + place_1lc[:, here]).repeat(2, 1, 1)
    return TorchGenerated((tokenizer.decode_latent(total) + 1) / 2, ids)


def keep_likely(logits_blv: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits with -inf for all but the top_k, then all outside the nucleus of mass top_p."""
    if top_k:
        k = min(top_k, logits_blv.shape[-1])
        least = logits_blv.topk(k, dim=-1).values[..., -1:]
        logits_blv = logits_blv.masked_fill(logits_blv < least, -math.inf)
    if top_p:
        ascending, order = logits_blv.sort(dim=-1)
        outside = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        outside[..., -1] = False
        logits_blv = logits_blv.masked_fill(outside.scatter(-1, order, outside), -math.inf)
    return logits_blv
