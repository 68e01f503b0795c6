"""One model in one file: found, recognised and checked, its tensors under native names."""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from var_tokenizer import (
    SCALES_256,
    InputError,
    Scale,
    ScaleSchedule,
    TokenizerConfig,
    check_tensors,
)
from var_transformer import TransformerConfig

from var_convert.architecture import (
    KINDS,
    LEVELS,
    PHI,
    Architecture,
    Config,
    derived_shapes,
    derived_values,
    dtype_model_of,
    expected_shapes,
    format_scales,
    infer_tokenizer,
    infer_transformer,
    is_derived,
    kind_of,
    native_name,
    published_name,
    transformer_scales,
)
from var_convert.dtypes import LONG_NAMES, widen
from var_convert.formats import read_weights
from var_convert.weights import Entry, Weights, entry_of

log = logging.getLogger(__name__)

CONFIG_TYPES = {"tokenizer": TokenizerConfig, "transformer": TransformerConfig}


@dataclass(frozen=True)
class Model:
    """source: how messages name it. tensors: learned tensors and statistics, native names.

    stored: every tensor of the file, under the file's own names.
    uniform_phi_names: the file it once came from spells the shared convolutions ``qresi_ls.{k}``
    although the published spelling for their number is another.
    """

    source: str
    architecture: Architecture
    tensors: Mapping[str, Entry]
    stored: Mapping[str, Entry]
    uniform_phi_names: bool = False

    @property
    def kind(self) -> str:
        return self.architecture.kind

    @property
    def config(self) -> Config:
        return self.architecture.config

    @property
    def metadata(self) -> dict[str, str]:
        """What a file carries besides the tensors, so that nothing need be inferred again."""
        note = {"phi_names": "qresi_ls"} if self.uniform_phi_names else {}
        return {
            "format": "var-mindspore",
            "kind": self.kind,
            "config": json.dumps(dataclasses.asdict(self.config)),
            **note,
        }

    def as_dtype(self, dtype: str | None) -> "Model":
        """All floating tensors as ``dtype`` (safetensors name); None leaves each as it is."""
        tensors = {name: entry.as_dtype(dtype) for name, entry in self.tensors.items()}
        return dataclasses.replace(self, tensors=tensors)

    def published(self) -> dict[str, Entry]:
        """The tensors as PyTorch's strict loading expects: published names, derived buffers."""
        state = {}
        for name, entry in self.tensors.items():
            uniform = self.uniform_phi_names
            state[name if uniform else published_name(name, self.config)] = entry
        for name in derived_shapes(self.config):
            values = derived_values(name, self.config)
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
) -> Model:
    """The model of a file, or the one of kind ``only`` of a trainer checkpoint that holds two.

    scales, heads, using_znorm: replace what the file says or leaves open. Raises InputError where
    the file is unusable, holds no model of that kind, or is not exactly what its architecture
    needs.
    """
    if heads is not None and heads < 1:
        raise InputError(f"heads is {heads}; expected at least 1")
    if scales is not None:
        scales = ScaleSchedule(tuple(scales)).scales
    found = {}
    for weights in read_weights(path):
        kind = _noted_kind(weights) or kind_of(weights)
        found[kind] = weights
    if only is None and len(found) > 1:
        raise InputError(
            f"{path}: holds {' and '.join(found)}; choose with --only {' or --only '.join(found)}"
        )
    kind = only or next(iter(found))
    if kind not in found:
        raise InputError(f"{path}: holds a {', '.join(found)}; expected a {kind}")
    if heads and kind == "tokenizer":
        raise InputError(f"{path}: heads is {heads}; expected none for a tokenizer")
    if using_znorm and kind == "transformer":
        raise InputError(f"{path}: using_znorm is True; expected False for a transformer")
    if kind == "tokenizer" and scales is None and "transformer" in found:
        scales = _sibling_scales(found["transformer"])
    model = _checked(found[kind], kind, scales, heads)
    if not using_znorm:
        return model
    config = dataclasses.replace(model.config, using_znorm=True)
    return dataclasses.replace(model, architecture=Architecture(config, model.architecture.assumed))


def _noted_kind(weights: Weights) -> str | None:
    if weights.metadata.get("format") != "var-mindspore":
        return None
    kind = weights.metadata.get("kind")
    if kind not in KINDS:
        raise InputError(
            f"{weights.source}: kind is {kind!r} in its metadata; expected {' or '.join(KINDS)}"
        )
    return kind


def _sibling_scales(transformer: Weights) -> Sequence[Scale] | None:
    """The schedule of the transformer that was trained on this very tokenizer's tokens."""
    try:
        return transformer_scales(transformer)
    except InputError:  # then the tokenizer has to do without
        return None


def _checked(
    weights: Weights, kind: str, scales: Sequence[Scale] | None, heads: int | None
) -> Model:
    architecture = _architecture(weights, kind, scales, heads)
    config = architecture.config
    tensors = _native_tensors(weights)
    # However large a configuration a hostile file claims, a few more than it holds will do to
    # say what is missing.
    expected = dict(islice(expected_shapes(config), len(tensors) + 100))
    learned = {name: entry for name, entry in tensors.items() if not is_derived(name)}
    _check_learned(weights.source, expected, learned)
    _check_derived(weights.source, config, tensors)
    return Model(
        weights.source,
        architecture,
        {name: learned[name] for name in expected},  # in one order, whatever the file's
        weights.tensors,
        _has_uniform_phi_names(weights, config),
    )


def _architecture(
    weights: Weights, kind: str, scales: Sequence[Scale] | None, heads: int | None
) -> Architecture:
    try:
        if _noted_kind(weights):
            noted = CONFIG_TYPES[kind](
                **_frozen(json.loads(weights.metadata.get("config", "null")))
            )
            given: dict[str, Any] = {"scales": tuple(scales)} if scales else {}
            if heads:
                given["heads"] = heads
            return Architecture(dataclasses.replace(noted, **given))
        if kind == "tokenizer":
            return Architecture(*infer_tokenizer(weights, scales))
        return Architecture(*infer_transformer(weights, scales, heads))
    except InputError as error:
        message = str(error)
        if not message.startswith(weights.source):
            message = f"{weights.source}: {message}"
        raise InputError(message) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{weights.source}: unusable {kind} configuration in its metadata: {error}"
        ) from error


def _frozen(value: object) -> object:
    """JSON lists as the tuples that frozen configurations hold."""
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _native_tensors(weights: Weights) -> dict[str, Entry]:
    tensors: dict[str, Entry] = {}
    for name, entry in weights.tensors.items():
        if native_name(name) in tensors:
            raise InputError(f"{weights.source}: tensor {name} is there under two names")
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
    """Raises InputError where a derived buffer is not what the architecture makes of it."""
    shapes = derived_shapes(config)
    for name, entry in tensors.items():
        if not is_derived(name):
            continue
        if (
            entry.shape != shapes.get(name)
            or (entry.dtype != "I64" if name == LEVELS else not entry.is_floating)
            or not np.array_equal(widen(entry.array(), entry.dtype), derived_values(name, config))
        ):
            raise InputError(
                f"{source}: tensor {name} ({LONG_NAMES[entry.dtype]}, {entry.shape}) is not what "
                "the architecture makes of it; expected the published buffer, unchanged"
            )


def _has_uniform_phi_names(weights: Weights, config: Config) -> bool:
    if "phi_names" in weights.metadata:
        return weights.metadata["phi_names"] == "qresi_ls"
    name = f"{PHI}qresi_ls.0.weight"
    return (
        not _noted_kind(weights)
        and name in weights.tensors
        and published_name(name, config) != name
    )


def tell_assumptions(model: Model) -> None:
    """Logs what of the architecture the file left open, and how to say otherwise."""
    if "scales" in model.architecture.assumed:
        published = len(model.config.scales) == len(SCALES_256)
        log.log(
            logging.INFO if published else logging.WARNING,
            "%s: a tokenizer's file holds its number of scales, not their sizes: assuming %s; "
            "where that is wrong, give --scales",
            model.source,
            format_scales(model.config.scales),
        )
    if "heads" in model.architecture.assumed:
        log.warning(
            "%s: a transformer without QK-L2 norm does not show its number of heads: assuming %d "
            "from its width of %d; where that is wrong, give --heads",
            model.source,
            model.config.heads,
            model.config.width,
        )
