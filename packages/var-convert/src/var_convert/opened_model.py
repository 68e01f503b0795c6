"""One model in one file: found, recognized and checked, its tensors under native names."""

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from var_tokenizer import SCALES_256, Scale, ScaleSchedule, TokenizerConfig
from var_tokenizer.common import (
    INT8_NOTE,
    INT8_SCALES,
    InputError,
    check_integer,
    check_tensors,
    noted_checksum,
    parse_config,
    quoted,
    rounded_to_int8,
    row_scales,
    weights_checksum,
)
from var_transformer import TransformerConfig, large_weights, parse_class_names

from var_convert.architecture import (
    Architecture,
    Stated,
    format_scales,
    infer_tokenizer,
    infer_transformer,
    stated,
    transformer_scales,
)
from var_convert.formats.dispatch import read_weights
from var_convert.formats.dtypes import LONG_NAMES, widen
from var_convert.formats.weights import PIECE, Entry, Weights, entry_of
from var_convert.kinds import is_native
from var_convert.published_names import (
    LEVELS,
    PHI,
    Config,
    derived_shapes,
    derived_values,
    dtype_model_of,
    expected_shapes,
    is_derived,
    native_name,
    published_name,
)
from var_convert.scale_count import with_scale_count
from var_convert.wrappers import choose_model

log = logging.getLogger(__name__)

ROUNDED_FROM, TOKENIZER = "rounded_from", "tokenizer"  # checksums in a native file's metadata
CONFIG_TYPES = {"tokenizer": TokenizerConfig, "transformer": TransformerConfig}


@dataclass(frozen=True)
class OpenedModel:
    """source: how messages name it. tensors: learned tensors and statistics, native names.

    stored: every tensor of the file, under the file's own names.
    uniform_phi_names: the original file spells the shared convolutions ``qresi_ls.{k}`` where the
    published spelling for their number differs. notes: what else a native file's metadata says of
    the model: a transformer's class names and its tokenizer's checksum, or the checksum of the
    tokenizer that this one was rounded from.
    held: names of the published code -> those in the file, in its order.
    """

    source: str
    architecture: Architecture
    tensors: Mapping[str, Entry]
    stored: Mapping[str, Entry]
    uniform_phi_names: bool = False
    notes: Mapping[str, str] = field(default_factory=dict)
    held: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.architecture.kind

    @property
    def config(self) -> Config:
        return self.architecture.config

    @property
    def metadata(self) -> dict[str, str]:
        """What a file holds besides the tensors, so that nothing has to be inferred again."""
        note = {"phi_names": "qresi_ls"} if self.uniform_phi_names else {}
        return {
            "format": "var-mindspore",
            "kind": self.kind,
            "config": json.dumps(dataclasses.asdict(self.config)),
            **note,
            **self.notes,
        }

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """A transformer's class names, if the file has them."""
        if isinstance(self.config, TokenizerConfig):
            return None
        return parse_class_names(self.notes, self.source, self.config.num_classes)

    def as_dtype(self, dtype: str | None) -> "OpenedModel":
        """All floating tensors as ``dtype`` (safetensors name); None leaves them unchanged.

        A rounded tokenizer notes its former checksum, by which its transformer recognizes it.
        """
        tensors = {name: entry.as_dtype(dtype) for name, entry in self.tensors.items()}
        model = dataclasses.replace(self, tensors=tensors)
        if self.kind == "tokenizer" and ROUNDED_FROM not in self.notes and dtype is not None:
            before = checksum_of(self.tensors)
            if before != checksum_of(tensors):
                model = dataclasses.replace(model, notes={**self.notes, ROUNDED_FROM: before})
        return model

    def as_int8(self) -> "OpenedModel":
        """A transformer's large weights as int8, with scales; the rest unchanged.

        Raises InputError for a large weight with NaN or infinite values.
        """
        assert isinstance(self.config, TransformerConfig)
        tensors, large = {}, large_weights(self.config)
        for name, entry in self.tensors.items():
            if name in large:
                tensors[name], tensors[name + INT8_SCALES] = _to_int8(self.source, name, entry)
            else:
                tensors[name] = entry
        return dataclasses.replace(self, tensors=tensors, notes={**self.notes, **INT8_NOTE})

    def published(self) -> dict[str, Entry]:
        """The tensors as PyTorch's strict loading expects: published names, derived buffers."""
        config, uniform = self.config, self.uniform_phi_names
        state = {
            name if uniform else published_name(name, config): entry
            for name, entry in self.tensors.items()
        }
        for name in derived_shapes(config):
            values = derived_values(name, config)
            if name == LEVELS:
                state[name] = entry_of(values, "I64")
            else:
                dtype = self.tensors[dtype_model_of(name)].dtype
                state[name] = entry_of(values, "F32").as_dtype(dtype)
        return state


def open_model(
    path: Path,
    only: str | None = None,
    scales: Sequence[Scale] | None = None,
    heads: int | None = None,
    using_znorm: bool = False,
    key: str | None = None,
) -> OpenedModel:
    """The model of a file, or the one of several that ``only`` (its kind) or ``key`` names.

    key: where the model is in the file, such as ``ema`` or ``trainer.var_wo_ddp``. scales, heads,
    using_znorm: replace what the file says or leaves open. Raises InputError if the file is
    unusable, holds no such model or several, or is not exactly what its architecture needs.
    """
    return model_among(path, read_weights(path), only, scales, heads, using_znorm, key)


def model_among(
    path: Path,
    held: Sequence[Weights],
    only: str | None,
    scales: Sequence[Scale] | None,
    heads: int | None,
    using_znorm: bool,
    key: str | None,
) -> OpenedModel:
    """``open_model`` of a file whose state dicts, ``held``, are read already."""
    if heads is not None:
        check_integer("heads", heads, 1)
    if scales is not None:
        scales = ScaleSchedule(tuple(scales)).scales
    shown = quoted(path)
    chosen, models = choose_model(shown, held, only, key)
    kind, weights = chosen.kind, chosen.weights
    if heads and kind == "tokenizer":
        raise InputError(f"{shown}: heads is {heads}; expected none for a tokenizer")
    if using_znorm and kind == "transformer":
        raise InputError(f"{shown}: using_znorm is True; expected False for a transformer")
    if scales is not None and kind == "tokenizer":
        weights = with_scale_count(weights, len(scales))
    said = Stated() if is_native(weights) else stated(weights, kind)
    scales, heads = scales or said.scales, heads or said.heads
    reader = next((other for other in models if other.kind == "transformer"), None)
    if kind == "tokenizer" and scales is None and reader is not None:
        with suppress(InputError):  # of what reads this tokenizer's tokens; or inferred without it
            scales = transformer_scales(reader.weights)
    model = checked_model(weights, kind, scales, heads)
    chosen.tell()
    model = dataclasses.replace(model, stored=chosen.stored(), held=chosen.names)
    if (using_znorm or said.using_znorm) and isinstance(model.config, TokenizerConfig):
        config = dataclasses.replace(model.config, using_znorm=True)
        architecture = Architecture(config, model.architecture.assumed)
        model = dataclasses.replace(model, architecture=architecture)
    return model


def checked_model(
    weights: Weights, kind: str, scales: Sequence[Scale] | None = None, heads: int | None = None
) -> OpenedModel:
    """A model from its tensors; raises InputError unless they are what its architecture needs."""
    architecture = _architecture(weights, kind, scales, heads)
    config = architecture.config
    tensors = _native_tensors(weights)
    # A hostile file may claim any size: a few more names than it holds tensors suffice to say
    # what is missing.
    expected = dict(islice(expected_shapes(config), len(tensors) + 100))
    learned = {name: entry for name, entry in tensors.items() if not is_derived(name)}
    _check_learned(weights.source, expected, learned)
    _check_derived(weights.source, config, tensors)
    return OpenedModel(
        weights.source,
        architecture,
        {name: learned[name] for name in expected},  # in one order for all files
        weights.tensors,
        _has_uniform_phi_names(weights, config),
        _notes(weights, config),
    )


def _notes(weights: Weights, config: Config) -> dict[str, str]:
    """The notes in a native file's metadata; raises InputError if they are malformed."""
    if not is_native(weights):
        return {}
    fields = ["class_names", TOKENIZER]
    if isinstance(config, TokenizerConfig):
        fields = [ROUNDED_FROM]
    else:
        parse_class_names(weights.metadata, weights.source, config.num_classes)
    noted_checksum(weights.metadata, fields[-1], weights.source)
    return {name: weights.metadata[name] for name in fields if name in weights.metadata}


def _architecture(
    weights: Weights, kind: str, scales: Sequence[Scale] | None, heads: int | None
) -> Architecture:
    try:
        if is_native(weights):
            noted = _noted_config(weights, kind)
            given: dict[str, Any] = {"scales": tuple(scales)} if scales else {}
            if heads:
                given["heads"] = heads
            return Architecture(dataclasses.replace(noted, **given))
        if kind == "tokenizer":
            return infer_tokenizer(weights, scales)
        return infer_transformer(weights, scales, heads)
    except InputError as error:
        message = str(error)
        if not message.startswith(weights.source):
            message = f"{weights.source}: {message}"
        raise InputError(message) from error
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{weights.source}: unusable {kind} configuration: {quoted(str(error))}"
        ) from error


def _noted_config(weights: Weights, kind: str) -> Config:
    try:
        return parse_config(weights.metadata.get("config", "null"), CONFIG_TYPES[kind])
    except InputError as error:
        raise InputError(f"unusable {kind} configuration in its metadata: {error}") from error


def _native_tensors(weights: Weights) -> dict[str, Entry]:
    tensors: dict[str, Entry] = {}
    for name, entry in weights.tensors.items():
        if native_name(name) in tensors:
            raise InputError(f"{weights.source}: tensor {quoted(name)} is there under two names")
        tensors[native_name(name)] = entry
    return tensors


def _check_learned(
    source: str, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Entry]
) -> None:
    check_tensors(source, expected, found)
    for name, entry in found.items():
        if not entry.is_floating:
            raise InputError(
                f"{source}: tensor {name} is {LONG_NAMES[entry.dtype]}; expected floating point"
            )


def _check_derived(source: str, config: Config, tensors: Mapping[str, Entry]) -> None:
    """Raises InputError if a derived buffer differs from what the architecture implies."""
    shapes = derived_shapes(config)
    for name, entry in tensors.items():
        if not is_derived(name):
            continue
        if (
            entry.shape != shapes.get(name)
            or entry.is_floating == (name == LEVELS)
            or not np.array_equal(widen(entry.array(), entry.dtype), derived_values(name, config))
        ):
            raise InputError(
                f"{source}: tensor {quoted(name)} ({LONG_NAMES[entry.dtype]}, {entry.shape}) is "
                "not what the architecture implies; expected the published buffer, unchanged"
            )


def _has_uniform_phi_names(weights: Weights, config: Config) -> bool:
    if "phi_names" in weights.metadata:
        return weights.metadata["phi_names"] == "qresi_ls"
    name = f"{PHI}qresi_ls.0.weight"
    return (
        not is_native(weights) and name in weights.tensors and published_name(name, config) != name
    )


def _to_int8(source: str, name: str, entry: Entry) -> tuple[Entry, Entry]:
    """A matrix as int8, and the scales of its rows."""
    rows, columns = entry.shape
    step = max(PIECE // columns, 1)
    scales = np.empty(rows, np.float32)
    for row in range(0, rows, step):
        end = min(row + step, rows)
        elements = widen(entry.read(row * columns, end * columns), entry.dtype)
        if not np.isfinite(elements).all():
            raise InputError(f"{source}: NaN or infinite values in {name}; int8 has none")
        scales[row:end] = row_scales(elements.reshape(-1, columns))

    def read(start: int, stop: int) -> np.ndarray:
        elements = widen(entry.read(start, stop), entry.dtype)
        return rounded_to_int8(elements, scales[np.arange(start, stop) // columns])

    return Entry("I8", entry.shape, read), entry_of(scales, "F32")


def checksum_of(tensors: Mapping[str, Entry]) -> str:
    """The checksum of weights under native names; see ``weights_checksum``."""
    return weights_checksum((name, e.shape, _numbers(e)) for name, e in tensors.items())


def _numbers(entry: Entry) -> Iterator[np.ndarray]:
    return (widen(piece, entry.dtype) for piece in entry.pieces())


def tell_assumptions(model: OpenedModel) -> None:
    """Logs which fields of the architecture were assumed, and which option overrides them."""
    config = model.config
    if "scales" in model.architecture.assumed:
        published = len(config.scales) == len(SCALES_256)
        log.log(
            logging.INFO if published else logging.WARNING,
            "%s: a tokenizer's file holds its number of scales, not their sizes: assuming %s; "
            "if that is wrong, give --scales",
            model.source,
            format_scales(config.scales),
        )
    if "heads" in model.architecture.assumed and isinstance(config, TransformerConfig):
        log.warning(
            "%s: a transformer without QK-L2 norm does not show its number of heads: assuming %d "
            "from its width of %d; if that is wrong, give --heads",
            model.source,
            config.heads,
            config.width,
        )
