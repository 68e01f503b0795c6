"""The content of a published checkpoint of any architecture: names, shapes, derived buffers."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from var_tokenizer import TokenizerConfig, tokenizer_shapes
from var_transformer import TransformerConfig, transformer_shapes

Config = TokenizerConfig | TransformerConfig

HITS = "quantize.ema_vocab_hit_SV"  # statistics, not a parameter
PHI = "quantize.quant_resi."  # the shared residual convolutions
LEVELS = "lvl_1L"
MASK = "attn_bias_for_masking"

# How all names of a published checkpoint begin.
ROOTS = frozenset(
    {
        *("encoder", "decoder", "quantize", "quant_conv", "post_quant_conv"),
        *("word_embed", "class_emb", "pos_start", "pos_1LC", "lvl_embed", LEVELS, MASK),
        *("blocks", "shared_ada_lin", "head_nm", "head"),
    }
)


def expected_shapes(config: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Native name and shape of every learned tensor and statistic, in the model's order."""
    if isinstance(config, TokenizerConfig):
        return tokenizer_shapes(config)
    return transformer_shapes(config)


def derived_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The buffers that a published transformer stores besides its learned tensors: name -> shape.

    lvl_1L int64: the scale index of each token. attn_bias_for_masking: 0 where a query sees a
    key, -inf elsewhere. blocks.*.attn.zero_k_bias: zeros. The published tokenizer has none.
    """
    if isinstance(config, TokenizerConfig):
        return {}
    length = config.schedule.length
    return {
        LEVELS: (1, length),
        MASK: (1, 1, length, length),
        **{f"blocks.{i}.attn.zero_k_bias": (config.width,) for i in range(config.depth)},
    }


def derived_values(name: str, config: Config) -> np.ndarray:
    """The values of a derived buffer: int64 for lvl_1L, else float32."""
    schedule = config.schedule
    if name == LEVELS:
        return schedule.scale_of_token[None].astype(np.int64)
    if name == MASK:
        return np.where(schedule.visible, np.float32(0), np.float32(-np.inf))[None, None]
    return np.zeros(derived_shapes(config)[name], np.float32)


def published_config(config: Config, uniform_phi_names: bool) -> dict[str, Any]:
    """The arguments of the published model's constructor, as a hub folder's config.json has them.

    uniform_phi_names: whether as many shared convolutions as scales are still shared ones.
    """
    scales = list(config.scales)
    if isinstance(config, TransformerConfig):
        return {
            "num_classes": config.num_classes,
            "depth": config.depth,
            "embed_dim": config.width,
            "num_heads": config.heads,
            "shared_aln": config.shared_adaln,
            "attn_l2_norm": config.qk_l2_norm,
            "patch_nums": scales,
        }
    own = config.phi_count == len(scales) > 1 and not uniform_phi_names
    return {
        "vocab_size": config.vocab_size,
        "z_channels": config.latent_channels,
        "ch": config.channels,
        "using_znorm": config.using_znorm,
        "share_quant_resi": 0 if own else config.phi_count,
        "v_patch_nums": scales,
    }


def is_derived(name: str) -> bool:
    """Whether a tensor of that name is a derived buffer, in any architecture."""
    return name in (LEVELS, MASK) or name.endswith(".attn.zero_k_bias")


def dtype_model_of(derived: str) -> str:
    """The learned tensor whose element type a floating derived buffer takes.

    ``model.half()`` converts all floating tensors alike, so the round trip of a uniformly typed
    file is exact.
    """
    return "pos_1LC" if derived == MASK else derived.replace("zero_k_bias", "q_bias")


def native_name(name: str) -> str:
    """The native spelling of the shared convolutions, ``qresi_ls.{k}`` for any count."""
    tail = name.removeprefix(PHI)
    if tail == name:
        return name
    if tail.startswith("qresi."):
        return f"{PHI}qresi_ls.0.{tail.removeprefix('qresi.')}"
    return f"{PHI}qresi_ls.{tail}" if tail[:1].isdigit() else name


def published_name(name: str, config: Config) -> str:
    """The published spelling: ``qresi`` for one convolution, ``{k}`` for K, else ``qresi_ls``."""
    prefix = f"{PHI}qresi_ls."
    if not isinstance(config, TokenizerConfig) or not name.startswith(prefix):
        return name
    if config.phi_count == 1:
        return f"{PHI}qresi.{name.removeprefix(f'{prefix}0.')}"
    if config.phi_count == len(config.scales):
        return f"{PHI}{name.removeprefix(prefix)}"
    return name
