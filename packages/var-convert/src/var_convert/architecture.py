"""Names and shapes -> architecture, and back.

A file of published names determines nearly all of its architecture. Two things it may leave open
are filled by a published rule and reported as assumed: a tokenizer's scale schedule, and the
number of heads of a transformer without QK-L2 norm.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from var_tokenizer import (
    SCALES_256,
    SCALES_512,
    Scale,
    ScaleSchedule,
    TokenizerConfig,
    tokenizer_shapes,
)
from var_tokenizer.common import InputError, quoted
from var_transformer import TransformerConfig, transformer_shapes

from var_convert.formats.weights import Entry, Weights

Config = TokenizerConfig | TransformerConfig
Shapes = dict[str, tuple[int, ...]]

KINDS = ("tokenizer", "transformer")
HITS = "quantize.ema_vocab_hit_SV"  # statistics, no parameter
LEVELS = "lvl_1L"
MASK = "attn_bias_for_masking"


# ------------------------------------------------------------------------- config -> shapes
def expected_shapes(config: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Native name and shape of every learned tensor and statistic, in the order of the model."""
    if isinstance(config, TokenizerConfig):
        return tokenizer_shapes(config)
    return transformer_shapes(config)


# ------------------------------------------------------------------------- derived buffers
def derived_shapes(config: Config) -> Shapes:
    """What the published transformer stores besides its learned tensors: name -> shape.

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


def derived_values(name: str, config: TransformerConfig) -> np.ndarray:
    """The values of a derived buffer: int64 for lvl_1L, else float32."""
    schedule = config.schedule
    if name == LEVELS:
        return schedule.scale_of_token[None].astype(np.int64)
    if name == MASK:
        return np.where(schedule.visible, np.float32(0), np.float32(-np.inf))[None, None]
    return np.zeros(config.width, np.float32)


def is_derived(name: str) -> bool:
    """Whether a tensor of that name is a derived buffer, of whatever architecture."""
    return name in (LEVELS, MASK) or name.endswith(".attn.zero_k_bias")


def dtype_model_of(derived: str) -> str:
    """The learned tensor whose element type a floating derived buffer shares.

    ``model.half()`` and its like convert all floating tensors alike, so this makes a round trip
    of any uniformly typed file exact.
    """
    return "pos_1LC" if derived == MASK else derived.replace("zero_k_bias", "q_bias")


# ------------------------------------------------------------------------- names of the phis
PHI = "quantize.quant_resi."


def native_name(name: str) -> str:
    """One native spelling, ``qresi_ls.{k}``, for the shared convolutions of any count."""
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


# ------------------------------------------------------------------------- names -> config
@dataclass(frozen=True)
class Architecture:
    """assumed: the fields of ``config`` that the file leaves open, set by a published rule."""

    config: Config
    assumed: frozenset[str] = frozenset()

    @property
    def kind(self) -> str:
        return "tokenizer" if isinstance(self.config, TokenizerConfig) else "transformer"


def kind_of(weights: Weights) -> str:
    """Which of KINDS the names belong to; raises InputError where they belong to neither."""
    names = weights.tensors
    if any(name.startswith(("blocks.", "word_embed.")) for name in names):
        return "transformer"
    if any(name.startswith(("encoder.", "decoder.", "quantize.")) for name in names):
        return "tokenizer"
    shown = ", ".join(quoted(name) for name in list(names)[:3]) + (
        "" if len(names) <= 3 else ", ..."
    )
    raise InputError(
        f"{weights.source}: not weights of VAR: it holds {shown or 'no tensors'}; "
        "expected the published names, e.g. encoder.conv_in.weight or word_embed.weight"
    )


class Shaped:
    """Shapes by name, with errors that say which tensor is missing or misshapen."""

    def __init__(self, weights: Weights) -> None:
        self.source = weights.source
        self.tensors: Mapping[str, Entry] = {
            native_name(name): entry for name, entry in weights.tensors.items()
        }

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        if name not in self.tensors:
            raise InputError(f"{self.source}: tensor {name} is missing")
        shape = self.tensors[name].shape
        if len(shape) != dimensions or 0 in shape:
            raise InputError(
                f"{self.source}: tensor {name} has shape {shape}; "
                f"expected {dimensions} dimensions, none of them 0"
            )
        return shape

    def count(self, prefix: str) -> int:
        """How many different parts follow ``prefix`` in the names: blocks.0, blocks.1, ..."""
        tails = (n.removeprefix(prefix) for n in self.tensors if n.startswith(prefix))
        return len({tail.split(".")[0] for tail in tails})


def infer_tokenizer(
    weights: Weights, scales: Sequence[Scale] | None
) -> tuple[TokenizerConfig, frozenset[str]]:
    """Configuration from names and shapes, and which of its fields are assumed.

    scales: the schedule, where known from elsewhere; the file only says how many scales it has.
    Raises InputError for a file that cannot be a tokenizer.
    """
    shaped = Shaped(weights)
    channels = shaped.shape("encoder.conv_in.weight", 4)[0]
    multipliers = []
    for i in range(shaped.count("encoder.down.")):
        width = shaped.shape(f"encoder.down.{i}.block.0.conv1.weight", 4)[0]
        if width % channels:
            raise InputError(
                f"{weights.source}: encoder.down.{i} has {width} channels; expected a multiple of "
                f"the {channels} of encoder.conv_in"
            )
        multipliers.append(width // channels)
    vocab_size, z = shaped.shape("quantize.embedding.weight", 2)
    scale_count = shaped.shape(HITS, 2)[0]
    scales = scales or scales_of_hits(shaped.tensors[HITS])
    config = TokenizerConfig(
        vocab_size=vocab_size,
        latent_channels=z,
        channels=channels,
        channel_multipliers=tuple(multipliers),
        res_blocks=shaped.count("encoder.down.0.block."),
        phi_count=shaped.count(f"{PHI}qresi_ls."),
        scales=tuple(scales or _published_scales(shaped.source, scale_count)),
    )
    return config, frozenset() if scales else frozenset({"scales"})


def _published_scales(source: str, count: int) -> tuple[Scale, ...]:
    """The first ``count`` scales of the published 256 px schedule."""
    if count > len(SCALES_256):
        raise InputError(
            f"{source}: a tokenizer of {count} scales, and nothing in it says which; "
            "give them with --scales, e.g. --scales 1,2,3,4"
        )
    return SCALES_256[:count]


def scales_of_hits(hits: Entry) -> tuple[int, ...] | None:
    """Square scales from the codebook statistics, or None where they do not show any.

    Training counts how often each scale uses each code. Every image adds as many hits to a
    scale as that has tokens, so the row sums stand in the ratio of the scales' areas.
    """
    if not hits.is_floating:
        return None
    sums_k = hits.as_dtype("F64").array().sum(1)
    if not np.all(np.isfinite(sums_k)) or np.any(sums_k <= 0):
        return None
    areas_k = sums_k / sums_k[0]
    sides_k = np.rint(np.sqrt(areas_k))
    increasing = np.all(np.diff(sides_k) > 0) and len(sides_k) > 1
    exact = np.allclose(areas_k, sides_k**2, rtol=1e-3, atol=0)
    return tuple(int(side) for side in sides_k) if increasing and exact else None


def infer_transformer(
    weights: Weights, scales: Sequence[Scale] | None, heads: int | None
) -> tuple[TransformerConfig, frozenset[str]]:
    """Configuration from names and shapes, and which of its fields are assumed.

    scales, heads: where known from elsewhere. Raises InputError for a file that cannot be a
    transformer.
    """
    shaped = Shaped(weights)
    width, z = shaped.shape("word_embed.weight", 2)
    depth = shaped.count("blocks.")
    qk_l2_norm = any(name.endswith(".attn.scale_mul_1H11") for name in shaped.tensors)
    assumed = frozenset()
    if qk_l2_norm:
        heads = heads or shaped.shape("blocks.0.attn.scale_mul_1H11", 4)[1]
    elif heads is None:
        heads, assumed = max(width // 64, 1), frozenset({"heads"})
    config = TransformerConfig(
        depth=depth,
        width=width,
        heads=heads,
        num_classes=shaped.shape("class_emb.weight", 2)[0] - 1,
        vocab_size=shaped.shape("head.weight", 2)[0],
        latent_channels=z,
        scales=tuple(scales or transformer_scales(weights)),
        shared_adaln=any(name.startswith("shared_ada_lin.") for name in shaped.tensors),
        qk_l2_norm=qk_l2_norm,
    )
    return config, assumed


def transformer_scales(weights: Weights) -> tuple[Scale, ...]:
    """Square scales from lvl_1L, or the published schedule that fits pos_1LC and lvl_embed."""
    shaped = Shaped(weights)
    if LEVELS in shaped.tensors:
        return _scales_of_levels(shaped)
    length, count = shaped.shape("pos_1LC", 3)[1], shaped.shape("lvl_embed.weight", 2)[0]
    for scales in (SCALES_256, SCALES_512):
        if (ScaleSchedule(scales).length, len(scales)) == (length, count):
            return scales
    raise InputError(
        f"{weights.source}: {count} scales of {length} tokens in all, and no {LEVELS} that says "
        "which; give them with --scales, e.g. --scales 1,2,3,4"
    )


def _scales_of_levels(shaped: Shaped) -> tuple[int, ...]:
    entry = shaped.tensors[LEVELS]
    level_l = entry.array().reshape(-1)
    if entry.is_floating or np.any(np.diff(level_l) < 0) or level_l[:1].tolist() != [0]:
        raise InputError(f"{shaped.source}: tensor {LEVELS} does not count scales from 0 upwards")
    tokens = [int(n) for n in np.unique(level_l, return_counts=True)[1]]
    if any(math.isqrt(n) ** 2 != n for n in tokens):
        raise InputError(
            f"{shaped.source}: scales of {', '.join(map(str, tokens))} tokens are not all square; "
            "give them with --scales, e.g. --scales 1,2x3,4x6"
        )
    return tuple(math.isqrt(n) for n in tokens)


def parse_scales(text: str) -> tuple[Scale, ...]:
    """Sizes such as 1,2,3x4 as (1, 2, (3, 4)); raises InputError for anything else."""
    try:
        pairs = [tuple(int(n) for n in part.split("x")) for part in text.split(",")]
    except ValueError:
        pairs = [()]
    if any(len(pair) not in (1, 2) for pair in pairs):
        raise InputError(f"--scales is {text!r}; expected sizes such as 1,2,3 or 1,2x3,4x6")
    scales = [pair if len(pair) == 2 else pair[0] for pair in pairs]
    return ScaleSchedule(tuple(scales)).scales


def format_scales(scales: Iterable[Scale]) -> str:
    """The inverse of ``parse_scales``."""
    return ",".join(str(s) if isinstance(s, int) else f"{s[0]}x{s[1]}" for s in scales)
