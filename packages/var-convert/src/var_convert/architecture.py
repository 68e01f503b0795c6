"""The architecture of a model, from the names and shapes of its tensors.

A file of published names determines nearly all of its architecture. It may leave two things open,
which are filled in by a published rule and reported as assumed: a tokenizer's scale schedule, and
the number of heads of a transformer without QK-L2 norm.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from var_tokenizer import SCALES_256, SCALES_512, Scale, ScaleSchedule, TokenizerConfig
from var_tokenizer.common import InputError, check_flag, check_integer, quoted
from var_transformer import TransformerConfig

from var_convert.formats.weights import Entry, Weights
from var_convert.published_names import HITS, LEVELS, PHI, Config, native_name


@dataclass(frozen=True)
class Architecture:
    """assumed: the fields of ``config`` that the file leaves open, set by a published rule."""

    config: Config
    assumed: frozenset[str] = frozenset()

    @property
    def kind(self) -> str:
        return "tokenizer" if isinstance(self.config, TokenizerConfig) else "transformer"


class Shaped:
    """Shapes by native name, with errors that say which tensor is missing or misshapen."""

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


def infer_tokenizer(weights: Weights, scales: Sequence[Scale] | None) -> Architecture:
    """Infers the architecture from names and shapes.

    scales: the schedule, if known; the file only holds the number of its scales.
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
    return Architecture(config, frozenset() if scales else frozenset({"scales"}))


def _published_scales(source: str, count: int) -> tuple[Scale, ...]:
    """The first ``count`` scales of the published 256 px schedule."""
    if count > len(SCALES_256):
        raise InputError(
            f"{source}: a tokenizer of {count} scales, and nothing in it says which ones; "
            "give them with --scales, e.g. --scales 1,2,3,4"
        )
    return SCALES_256[:count]


def scales_of_hits(hits: Entry) -> tuple[int, ...] | None:
    """Square scales inferred from the codebook statistics; None if they show none.

    Training counts how often each scale uses each code. Every image adds one hit for each
    token of a scale, so the row sums are in the ratio of the scales' areas.
    """
    if not hits.is_floating:
        return None
    with np.errstate(all="ignore"):  # a hostile file's numbers overflow
        sums_k = hits.as_dtype("F64").array().sum(1)
        areas_k = sums_k / sums_k[0]
    if not np.all(np.isfinite(areas_k)) or np.any(sums_k <= 0):
        return None
    sides_k = np.rint(np.sqrt(areas_k))
    increasing = np.all(np.diff(sides_k) > 0) and len(sides_k) > 1
    exact = np.allclose(areas_k, sides_k**2, rtol=1e-3, atol=0)
    return tuple(int(side) for side in sides_k) if increasing and exact else None


def infer_transformer(
    weights: Weights, scales: Sequence[Scale] | None, heads: int | None
) -> Architecture:
    """Infers the architecture from names and shapes.

    scales, heads: if known. Raises InputError for a file that cannot be a transformer.
    """
    shaped = Shaped(weights)
    width, z = shaped.shape("word_embed.weight", 2)
    depth = shaped.count("blocks.")
    qk_l2_norm = any(name.endswith(".attn.scale_mul_1H11") for name in shaped.tensors)
    assumed: frozenset[str] = frozenset()
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
    return Architecture(config, assumed)


@dataclass(frozen=True)
class Stated:
    """What a config.json beside foreign weights says of what their tensors leave open."""

    scales: tuple[Scale, ...] | None = None
    heads: int | None = None
    using_znorm: bool = False


def stated(weights: Weights, kind: str) -> Stated:
    """What config.json says under the published names; raises InputError if that is unusable."""
    config, tokenizer = weights.config, kind == "tokenizer"
    field = "v_patch_nums" if tokenizer else "patch_nums"
    try:
        scales = config.get(field)
        if scales is not None:
            scales = ScaleSchedule(
                tuple(tuple(s) if isinstance(s, list) else s for s in scales)
            ).scales
        heads = config.get("num_heads")
        if tokenizer or heads is None:
            znorm = check_flag("using_znorm", config.get("using_znorm", False))
            return Stated(scales, None, tokenizer and znorm)
        return Stated(scales, check_integer("num_heads", heads, 1))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{weights.source}: config.json beside it: {quoted(str(error))}"
        ) from error


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
    stored_l = np.zeros(0) if entry.is_floating else entry.array().reshape(-1)
    level_l = stored_l.astype(np.int64)  # stored as int64, or int32 by MindSpore
    if np.any(np.diff(level_l) < 0) or level_l[:1].tolist() != [0]:
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
