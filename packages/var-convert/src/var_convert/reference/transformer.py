"""VAR in PyTorch, the measure of parity tests, ``var-convert verify --forward`` and benchmarks.

    tok = TorchTokenizer.from_file("vae.pth")           # or .safetensors, .ckpt
    model = TorchTransformer.from_file("var_d16.pth")
    ids = tok.encode(images)                            # (B,3,H,W) in [-1,1] -> K x (B, s*s)
    x = tok.teacher_inputs(ids)                         # (B, L - s_1^2, z)
    y = model(labels, x)                                # (B, L, V), differentiable
    out = torch_generate(model, tok, labels, top_k=1)   # out.images in [0,1], out.ids

Parameters and buffers carry the published names, so the state dict of a published checkpoint
loads with ``strict=True``. Needs the extra ``[torch]``.

Shape suffixes: b batch, l tokens, c channels, h heads, d head width, y x rows and columns,
z latent channels, v vocabulary.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from var_tokenizer import TokenizerConfig
from var_transformer import TransformerConfig

from var_convert.opened_model import Model, open_model, tell_assumptions

Ids = list[Tensor]  # K tensors (B, tokens of the scale), int64


# ------------------------------------------------------------------------------ autoencoder
class ResidualBlock(nn.Module):
    """(B, c_in, H, W) -> (B, c_out, H, W)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _group_norm(c_in), _conv(c_in, c_out)
        self.norm2, self.conv2 = _group_norm(c_out), _conv(c_out, c_out)
        if c_in != c_out:
            self.nin_shortcut = _conv(c_in, c_out, 1)
        else:
            self.nin_shortcut = nn.Identity()

    def forward(self, x_bcyx: Tensor) -> Tensor:
        h_bcyx = self.conv1(F.silu(self.norm1(x_bcyx)))
        h_bcyx = self.conv2(F.silu(self.norm2(h_bcyx)))
        return h_bcyx + self.nin_shortcut(x_bcyx)


class PixelAttention(nn.Module):
    """One head over all pixels, residual: (B, C, H, W) -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _group_norm(channels)
        self.qkv = _conv(channels, 3 * channels, 1)
        self.proj_out = _conv(channels, channels, 1)

    def forward(self, x_bcyx: Tensor) -> Tensor:
        q_bcl, k_bcl, v_bcl = self.qkv(self.norm(x_bcyx)).flatten(2).chunk(3, dim=1)
        scores_bll = (q_bcl.transpose(1, 2) @ k_bcl) * q_bcl.shape[1] ** -0.5
        mixed_bcl = v_bcl @ scores_bll.softmax(-1).transpose(1, 2)
        return x_bcyx + self.proj_out(mixed_bcl.view_as(x_bcyx))


class Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.attn_1 = PixelAttention(channels)
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, x_bcyx: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x_bcyx)))


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_bcyx: Tensor) -> Tensor:
        return self.conv(F.pad(x_bcyx, (0, 1, 0, 1)))  # right and bottom only, as published


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv(channels, channels)

    def forward(self, x_bcyx: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_bcyx, scale_factor=2, mode="nearest"))


class Level(nn.Module):
    """Residual blocks of one resolution, with attention after each where the map is smallest."""

    def __init__(self, c_in: int, c_out: int, blocks: int, attention: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResidualBlock(c_out if j else c_in, c_out) for j in range(blocks)
        )
        self.attn = nn.ModuleList(PixelAttention(c_out) for _ in range(blocks if attention else 0))

    def forward(self, x_bcyx: Tensor) -> Tensor:
        for j, block in enumerate(self.block):
            x_bcyx = block(x_bcyx)
            if self.attn:
                x_bcyx = self.attn[j](x_bcyx)
        return x_bcyx


class Encoder(nn.Module):
    """(B, 3, H, W) -> (B, z, H / downsampling, W / downsampling)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.channel_multipliers]
        last = len(widths) - 1
        self.conv_in = _conv(3, config.channels)
        self.down = nn.ModuleList()
        for i, (c_in, c_out) in enumerate(zip([config.channels, *widths], widths, strict=False)):
            level = Level(c_in, c_out, config.res_blocks, attention=i == last)
            if i != last:
                level.downsample = Downsample(c_out)
            self.down.append(level)
        self.mid = Middle(widths[-1])
        self.norm_out = _group_norm(widths[-1])
        self.conv_out = _conv(widths[-1], config.latent_channels)

    def forward(self, image_bcyx: Tensor) -> Tensor:
        x_bcyx = self.conv_in(image_bcyx)
        for level in self.down:
            x_bcyx = level(x_bcyx)
            if hasattr(level, "downsample"):
                x_bcyx = level.downsample(x_bcyx)
        return self.conv_out(F.silu(self.norm_out(self.mid(x_bcyx))))


class Decoder(nn.Module):
    """(B, z, h, w) -> (B, 3, h * downsampling, w * downsampling); level 0 is the largest map."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.channel_multipliers]
        last = len(widths) - 1
        self.conv_in = _conv(config.latent_channels, widths[-1])
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList()
        for i, c_out in enumerate(widths):
            c_in = widths[min(i + 1, last)]
            level = Level(c_in, c_out, config.res_blocks + 1, attention=i == last)
            if i:
                level.upsample = Upsample(c_out)
            self.up.append(level)
        self.norm_out = _group_norm(widths[0])
        self.conv_out = _conv(widths[0], 3)

    def forward(self, latent_bcyx: Tensor) -> Tensor:
        x_bcyx = self.mid(self.conv_in(latent_bcyx))
        for level in reversed(self.up):
            x_bcyx = level(x_bcyx)
            if hasattr(level, "upsample"):
                x_bcyx = level.upsample(x_bcyx)
        return self.conv_out(F.silu(self.norm_out(x_bcyx)))


# --------------------------------------------------------------------------------- quantizer
class Refinements(nn.Module):
    """The shared 3x3 convolutions (phi); scale k uses the one nearest to its place in [0, 1]."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        z, count, scale_count = config.latent_channels, config.phi_count, len(config.scales)
        self.qresi_ls = nn.ModuleList(_conv(z, z) for _ in range(count))
        # The published code spaces four convolutions by another rule than any other number.
        margin = 1 / (3 * count) if count == 4 else 1 / (2 * count)
        places = torch.linspace(margin, 1 - margin, count, dtype=torch.float64, device="cpu")
        self.choice = [
            int((places - k / max(scale_count - 1, 1)).abs().argmin()) for k in range(scale_count)
        ]
        self.register_load_state_dict_pre_hook(_accept_other_spellings)

    def forward(self, x_bcyx: Tensor, k: int) -> Tensor:
        return 0.5 * x_bcyx + 0.5 * self.qresi_ls[self.choice[k]](x_bcyx)


def _accept_other_spellings(
    module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object
) -> None:
    """The published names are ``qresi.*`` for one shared convolution and ``{k}.*`` for K."""
    for name in [n for n in state if n.startswith(prefix)]:
        tail = name.removeprefix(prefix)
        if tail.startswith("qresi."):
            state[f"{prefix}qresi_ls.0.{tail.removeprefix('qresi.')}"] = state.pop(name)
        elif tail[0].isdigit():
            state[f"{prefix}qresi_ls.{tail}"] = state.pop(name)


class Quantizer(nn.Module):
    """Residual quantization over K scales (arXiv:2404.02905, Algorithms 1 and 2)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.sizes = config.schedule.sizes
        self.embedding = nn.Embedding(config.vocab_size, config.latent_channels)
        self.using_znorm = config.using_znorm
        self.quant_resi = Refinements(config)
        hits = torch.zeros(len(self.sizes), config.vocab_size)
        self.register_buffer("ema_vocab_hit_SV", hits)

    def contribution(self, ids_bl: Tensor, k: int) -> Tensor:
        """What scale k adds to the latent map: (B, l) -> (B, z, h, w)."""
        codes_bzyx = self.embedding(ids_bl).transpose(1, 2).unflatten(2, self.sizes[k])
        if k != len(self.sizes) - 1:
            codes_bzyx = F.interpolate(codes_bzyx, size=self.sizes[-1], mode="bicubic")
        return self.quant_resi(codes_bzyx, k)

    def distances(self, rest_bzyx: Tensor, k: int) -> Tensor:
        """Squared distances (B*l, V) from what is left of the map, at scale k, to every code."""
        if k != len(self.sizes) - 1:
            rest_bzyx = F.interpolate(rest_bzyx, size=self.sizes[k], mode="area")
        book_vz = self.embedding.weight
        x_nz = rest_bzyx.permute(0, 2, 3, 1).reshape(-1, book_vz.shape[1])
        if self.using_znorm:  # of unit vectors, so that the smallest angle is the nearest
            x_nz, book_vz = F.normalize(x_nz), F.normalize(book_vz)
        square_n1 = x_nz.square().sum(1, keepdim=True)
        return square_n1 + book_vz.square().sum(1) - 2 * x_nz @ book_vz.T

    def accumulated(self, ids: Ids) -> list[Tensor]:
        """K maps (B, z, h, w): the sum of the contributions of the first 1, 2, ... K scales."""
        total: Any = 0
        totals = []
        for k, ids_bl in enumerate(ids):
            total = total + self.contribution(ids_bl, k)
            totals.append(total)
        return totals

    def next_input(self, total_bzyx: Tensor, k: int) -> Tensor:
        """What the transformer reads at scale k: (B, l_k, z)."""
        return F.interpolate(total_bzyx, size=self.sizes[k], mode="area").flatten(2).transpose(1, 2)


class TorchTokenizer(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] <-> token ids of K scales. Random weights until loaded."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        z = config.latent_channels
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantize = Quantizer(config)
        self.quant_conv, self.post_quant_conv = _conv(z, z), _conv(z, z)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> "TorchTokenizer":
        """A tokenizer from .pth, .safetensors or .ckpt, as float32.

        Raises InputError for a file that does not hold exactly one tokenizer.
        """
        return _from_file(path, "tokenizer")

    def latent(self, image_bcyx: Tensor) -> Tensor:
        """Images in [-1, 1] to the latent map (B, z, h, w), not quantized."""
        return self.quant_conv(self.encoder(image_bcyx))

    def to_ids(self, latent_bzyx: Tensor) -> tuple[Ids, Tensor]:
        """Token ids of each scale, and the quantized map (B, z, h, w)."""
        rest_bzyx, ids = latent_bzyx, []
        for k in range(len(self.quantize.sizes)):
            nearest_n = self.quantize.distances(rest_bzyx, k).argmin(1)
            ids.append(nearest_n.view(len(latent_bzyx), -1))
            rest_bzyx = rest_bzyx - self.quantize.contribution(ids[-1], k)
        return ids, latent_bzyx - rest_bzyx

    def runner_up_gaps(self, latent_bzyx: Tensor, ids: Ids) -> list[Tensor]:
        """How clear each choice of ``ids`` was: K tensors (B, l) of d2 / d1 - 1.

        d1 and d2 are the squared distances of the nearest and of the second nearest code. Two
        implementations may differ in a token where the gap is as small as their rounding.
        """
        rest_bzyx, gaps = latent_bzyx, []
        for k, ids_bl in enumerate(ids):
            nearest_n2 = self.quantize.distances(rest_bzyx, k).topk(2, largest=False).values
            gaps.append((nearest_n2[:, 1] / nearest_n2[:, 0] - 1).view_as(ids_bl))
            rest_bzyx = rest_bzyx - self.quantize.contribution(ids_bl, k)
        return gaps

    def encode(self, image_bcyx: Tensor) -> Ids:
        """Images in [-1, 1] to K tensors (B, l) of token ids."""
        return self.to_ids(self.latent(image_bcyx))[0]

    def teacher_inputs(self, ids: Ids) -> Tensor:
        """What the transformer reads at scales 2..K in training: (B, L - l_1, z)."""
        totals = self.quantize.accumulated(ids[:-1])
        parts = [self.quantize.next_input(total, k + 1) for k, total in enumerate(totals)]
        if not parts:
            return self.quantize.embedding.weight.new_zeros(
                len(ids[0]), 0, self.config.latent_channels
            )
        return torch.cat(parts, 1)

    def decode_latent(self, latent_bzyx: Tensor) -> Tensor:
        """A quantized latent map to images in [-1, 1]."""
        return self.decoder(self.post_quant_conv(latent_bzyx)).clamp(-1, 1)

    def decode(self, ids: Ids) -> Tensor:
        """Token ids of all K scales to images in [-1, 1]."""
        return self.decode_latent(self.quantize.accumulated(ids)[-1])

    def decode_progressive(self, ids: Ids) -> list[Tensor]:
        """K image batches in [-1, 1]: after 1, 2, ... K scales."""
        return [self.decode_latent(total) for total in self.quantize.accumulated(ids)]


# ------------------------------------------------------------------------------- transformer
Cache = tuple[Tensor, Tensor]  # keys and values (B, h, l, d) of the scales so far


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
        qkv_bl3hd = F.linear(x_blc, self.mat_qkv.weight, bias_c).unflatten(2, (3, self.heads, -1))
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


class TorchTransformer(nn.Module):
    """Labels and coarser token maps -> logits of the next. Random weights until loaded."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
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

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> "TorchTransformer":
        """A transformer from .pth, .safetensors or .ckpt, as float32.

        Raises InputError for a file that does not hold exactly one transformer.
        """
        return _from_file(path, "transformer")

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
        """(B, 1, 6, C) for all blocks, or None where each block has its own."""
        if not self.config.shared_adaln:
            return None
        return self.shared_ada_lin(condition_bc).unflatten(1, (1, 6, -1))


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
    top_k=1 leaves nothing to chance. generator: source of randomness, the global one by default.
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


# ------------------------------------------------------------------------------------- parts
def modulate(x_blc: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return x_blc * (1 + scale) + shift


def _conditioning(width: int, parts: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))


def _conv(c_in: int, c_out: int, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


def _from_file(path: str | os.PathLike[str], kind: str) -> TorchTokenizer | TorchTransformer:
    model = open_model(Path(path), only=kind)
    tell_assumptions(model)
    return reference_of(model)


def reference_of(model: Model) -> TorchTokenizer | TorchTransformer:
    """The PyTorch model of an opened file, with its weights as float32."""
    config = model.config
    with torch.device("meta"):  # no random weights that would be overwritten at once
        if isinstance(config, TokenizerConfig):
            module = TorchTokenizer(config)
        else:
            module = TorchTransformer(config)
    state = model.as_dtype("F32").published()
    copies = {name: torch.tensor(entry.array()) for name, entry in state.items()}
    module.load_state_dict(copies, strict=True, assign=True)
    return module
