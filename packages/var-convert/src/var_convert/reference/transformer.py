"""The next-scale transformer in PyTorch.

Shape suffixes: b batch, l tokens, c channels, h heads, d head width, z latent channels,
v vocabulary.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from var_transformer import TransformerConfig

from var_convert.reference.loading import Reference

Cache = tuple[Tensor, Tensor]  # keys and values (B, h, l, d) of the scales so far


def modulate(x_blc: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return x_blc * (1 + scale) + shift


def _conditioning(width: int, parts: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))


class Attention(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        c, self.heads = config.width, config.heads
        self.scale = 0.25 / math.sqrt(c // self.heads)
        self.qk_l2_norm = config.qk_l2_norm
        if self.qk_l2_norm:
            self.scale = 1.0
            log_scale = torch.full((1, self.heads, 1, 1), math.log(4.0))
            self.scale_mul_1H11 = nn.Parameter(log_scale)
        self.mat_qkv = nn.Linear(c, 3 * c, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(c))
        self.v_bias = nn.Parameter(torch.zeros(c))
        self.register_buffer("zero_k_bias", torch.zeros(c))
        self.proj = nn.Linear(c, c)

    def forward(
        self, x_blc: Tensor, mask_ll: Tensor | None, cache: Cache | None
    ) -> tuple[Tensor, Cache]:
        """(B, l, C) -> (B, l, C), and the keys and values seen so far."""
        bias_c = torch.cat((self.q_bias, self.zero_k_bias, self.v_bias))
        if isinstance(self.mat_qkv, nn.Linear):  # one product with its bias
            qkv_bl3c = F.linear(x_blc, self.mat_qkv.weight, bias_c)
        else:  # wrapped, as peft does
            qkv_bl3c = self.mat_qkv(x_blc) + bias_c
        qkv_bl3hd = qkv_bl3c.unflatten(2, (3, self.heads, -1))
        q_bhld, k_bhld, v_bhld = qkv_bl3hd.permute(2, 0, 3, 1, 4).unbind(0)
        if self.qk_l2_norm:
            sharpness_1h11 = self.scale_mul_1H11.clamp(max=math.log(100)).exp()
            q_bhld = F.normalize(q_bhld, dim=-1) * sharpness_1h11
            k_bhld = F.normalize(k_bhld, dim=-1)
        if cache is not None:
            k_bhld = torch.cat((cache[0], k_bhld), dim=2)
            v_bhld = torch.cat((cache[1], v_bhld), dim=2)
        mixed_bhld = F.scaled_dot_product_attention(
            q_bhld, k_bhld, v_bhld, attn_mask=mask_ll, scale=self.scale
        )
        return self.proj(mixed_bhld.transpose(1, 2).flatten(2)), (k_bhld, v_bhld)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_blc: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_blc), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        c = config.width
        self.norm = nn.LayerNorm(c, eps=1e-6, elementwise_affine=False)
        self.attn, self.ffn = Attention(config), FeedForward(c)
        if config.shared_adaln:
            self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, c) / math.sqrt(c))
        else:
            self.ada_lin = _conditioning(c, 6)

    def forward(
        self,
        x_blc: Tensor,
        condition_bc: Tensor,
        shared_b16c: Tensor | None,
        mask_ll: Tensor | None = None,
        cache: Cache | None = None,
    ) -> tuple[Tensor, Cache]:
        if shared_b16c is None:
            parts_b16c = self.ada_lin(condition_bc).unflatten(1, (1, 6, -1))
        else:
            parts_b16c = self.ada_gss + shared_b16c
        gate_1, gate_2, scale_1, scale_2, shift_1, shift_2 = parts_b16c.unbind(2)
        attended, cache = self.attn(modulate(self.norm(x_blc), scale_1, shift_1), mask_ll, cache)
        x_blc = x_blc + attended * gate_1
        x_blc = x_blc + self.ffn(modulate(self.norm(x_blc), scale_2, shift_2)) * gate_2
        return x_blc, cache


class HeadNorm(nn.Module):
    """Layer norm before the head, with a scale and a shift from the condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.ada_lin = _conditioning(width, 2)

    def forward(self, x_blc: Tensor, condition_bc: Tensor) -> Tensor:
        scale, shift = self.ada_lin(condition_bc).unflatten(1, (1, 2, -1)).unbind(2)
        return modulate(self.norm(x_blc), scale, shift)


class TorchTransformer(Reference):
    """Labels and coarser token maps -> logits of the next."""

    kind = "transformer"
    config: TransformerConfig

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        c, schedule = config.width, config.schedule
        self.word_embed = nn.Linear(config.latent_channels, c)
        self.class_emb = nn.Embedding(config.num_classes + 1, c)
        self.pos_start = nn.Parameter(0.02 * torch.randn(1, schedule.tokens[0], c))
        self.pos_1LC = nn.Parameter(0.02 * torch.randn(1, schedule.length, c))
        self.lvl_embed = nn.Embedding(len(schedule), c)
        if config.shared_adaln:
            self.shared_ada_lin = _conditioning(c, 6)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_nm = HeadNorm(c)
        self.head = nn.Linear(c, config.vocab_size)
        level_l = torch.from_numpy(schedule.scale_of_token).long()
        self.register_buffer("lvl_1L", level_l[None])
        hidden_ll = level_l[:, None] < level_l[None, :]
        mask_ll = torch.zeros_like(hidden_ll, dtype=torch.float32).masked_fill(hidden_ll, -math.inf)
        self.register_buffer("attn_bias_for_masking", mask_ll[None, None])

    def forward(self, labels_b: Tensor, inputs_blz: Tensor) -> Tensor:
        """Teacher-forced logits (B, L, V), without any dropout; differentiable.

        labels_b: (B,) int64; num_classes means "no class". inputs_blz: (B, L - l_1, z).
        """
        condition_bc = self.class_emb(labels_b)
        first_blc = condition_bc[:, None] + self.pos_start
        x_blc = torch.cat((first_blc, self.word_embed(inputs_blz)), dim=1)
        x_blc = x_blc + self.lvl_embed(self.lvl_1L) + self.pos_1LC
        shared_b16c = self.shared_modulation(condition_bc)
        for block in self.blocks:
            x_blc, _ = block(x_blc, condition_bc, shared_b16c, mask_ll=self.attn_bias_for_masking)
        return self.head(self.head_nm(x_blc, condition_bc))

    logits = forward  # the name that the MindSpore model gives it

    def shared_modulation(self, condition_bc: Tensor) -> Tensor | None:
        """(B, 1, 6, C) for all blocks, or None if each block has its own."""
        if not self.config.shared_adaln:
            return None
        return self.shared_ada_lin(condition_bc).unflatten(1, (1, 6, -1))
