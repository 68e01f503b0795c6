"""Adapters as ``peft`` writes and reads them: ``adapter_model.safetensors``, and its settings.

A folder holds both; the settings are in the metadata of our files, too, so that such a file can
stand alone. The metadata also holds what ``peft`` has no field for: the names of new classes, and
checksums of the base and of the tokenizer. New classes are rows of the grown table of embeddings,
``trainable_token_indices`` in ``peft``, whose rows it calls a delta although they are not one.

Files may come from anyone. What ``peft`` can do and this cannot (DoRA, biases, ...) is
refused by the name of its setting.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from var_tokenizer.common import (
    InputError,
    noted_checksum,
    open_regular,
    quoted,
    read_header,
    read_tensors,
    replacing,
    unique_fields,
    write_tensors,
)

from var_transformer.adapters.adapter import Adapter, Pair
from var_transformer.adapters.merging import WeightedAdapter
from var_transformer.model.checks import check_class_names

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"

_PREFIX = "base_model.model."
_TABLE = "class_emb"
_ROWS = f"{_TABLE}.token_adapter.trainable_tokens_delta"
_LARGEST_SETTINGS = 2**24  # bytes
_LARGEST_RANK = 2**16
_LARGEST_ALPHA = 1e9
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
# settings of peft that say which maps are adapted, or nothing about what was trained
_FREE = {
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "auto_mapping"),
    *("peft_version", "inference_mode", "lora_dropout", "target_modules", "exclude_modules"),
    *("layers_to_transform", "layers_pattern", "rank_pattern", "qalora_group_size"),
    *("megatron_core", "r", "lora_alpha", "use_rslora", "runtime_config", "ensure_weight_tying"),
    *("init_lora_weights", "modules_to_save", "trainable_token_indices"),
}
# how A and B may start: all others change the base, too
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


def read_adapters(texts: tuple[str, ...]) -> list[WeightedAdapter]:
    """Adapters as users name them, FILE[:WEIGHT] each; a file may be its folder, too.

    Raises InputError as ``load_adapter`` does, and for a weight that is no finite decimal number.
    """
    found = []
    for text in texts:
        try:
            path, weight = _split(text)
            found.append(WeightedAdapter(load_adapter(path), weight))
        except OSError as error:  # a name that is too long, say
            raise InputError(
                f"{quoted(text)}: {error.strerror}; expected an adapter (.safetensors)"
            ) from error
    return found


def adapter_file(text: str) -> Path:
    """The file that holds the arrays of FILE[:WEIGHT]."""
    path = _split(text)[0]
    return path / WEIGHTS if path.is_dir() else path


def _split(text: str) -> tuple[Path, float]:
    path, colon, number = text.rpartition(":")
    if not colon or not path or Path(text).exists():
        return Path(text), 1.0
    try:
        weight = float(number)
    except ValueError:
        return Path(text), 1.0
    if not _NUMBER.fullmatch(number) or not math.isfinite(weight):  # Python takes 1_0 for 10
        raise InputError(
            f"{quoted(text)}: the weight is {quoted(number)}; expected a finite number, such as 0.5"
        )
    return Path(path), weight


def load_adapter(path: str | os.PathLike[str]) -> Adapter:
    """The adapter in a .safetensors file, or in a folder as ``peft`` writes it.

    Raises InputError for a file that is missing, damaged or without settings, a matrix without
    its partner, one of another rank than the settings say, numbers that are not finite, and for
    what this does not do.
    """
    path = Path(path)
    file = path / WEIGHTS if path.is_dir() else path
    shown = quoted(file)
    if not file.is_file():
        raise InputError(f"{shown}: no such file; expected an adapter (.safetensors)")
    metadata, headers = read_header(file)
    settings = _settings(file, metadata)
    _check_settings(shown, settings)
    for name, header in headers.items():
        if header.dtype not in ("F64", "F32", "F16", "BF16"):
            raise InputError(
                f"{shown}: {quoted(name)} has dtype {header.dtype}; expected floating point"
            )
    arrays = {}
    for name, array in read_tensors(file, headers).items():
        if not np.isfinite(array).all():
            raise InputError(f"{shown}: {quoted(name)} is not finite; expected numbers")
        short = name.removeprefix(_PREFIX)
        if short in arrays:
            raise InputError(f"{shown}: has {quoted(short)} with and without {_PREFIX}")
        arrays[short] = array
    classes = _classes(shown, metadata, settings, arrays)
    pairs = _pairs(shown, settings, arrays)
    if not pairs and not classes:
        raise InputError(f"{shown}: holds nothing; expected lora_A and lora_B of some weights")
    base, tokenizer = (noted_checksum(metadata, field, shown) for field in ("base", "tokenizer"))
    return Adapter(shown, pairs, **classes, base=base, tokenizer=tokenizer)


def save_adapter(adapter: Adapter, folder: Path, alpha: float, num_classes: int) -> None:
    """Writes ``adapter_model.safetensors`` and ``adapter_config.json``, each whole or not at all.

    alpha: of all pairs, whose scale is alpha / rank. num_classes: those of the base.
    """
    arrays = {}
    for name, pair in adapter.pairs.items():
        arrays[f"{_PREFIX}{name}.lora_A.weight"] = pair.down_ri
        arrays[f"{_PREFIX}{name}.lora_B.weight"] = pair.up_or
    indices = None
    if adapter.class_rows_mc is not None:
        arrays[f"{_PREFIX}{_ROWS}"] = adapter.class_rows_mc
        indices = {_TABLE: list(range(num_classes, num_classes + len(adapter.class_names)))}
    settings = {
        "peft_type": "LORA",
        "r": next(len(pair.down_ri) for pair in adapter.pairs.values()),
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "target_modules": sorted(adapter.pairs),
        "trainable_token_indices": indices,
        "modules_to_save": None,
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    text = json.dumps(settings, indent=2)
    metadata = {"format": "pt", SETTINGS: text, "new_classes": json.dumps(adapter.class_names)}
    metadata |= {n: v for n in ("base", "tokenizer") if (v := getattr(adapter, n)) is not None}
    with replacing(folder / SETTINGS) as temporary:
        temporary.write_text(text + "\n")
    with replacing(folder / WEIGHTS) as temporary:
        write_tensors(temporary, arrays, metadata)


def _settings(file: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    beside = file.with_name(SETTINGS)
    source = f"{quoted(file)}: {SETTINGS} in its metadata"
    text = metadata.get(SETTINGS)
    try:
        if text is None:
            source = quoted(beside)
            with open_regular(beside) as opened:
                content = opened.read(_LARGEST_SETTINGS + 1)
            if len(content) > _LARGEST_SETTINGS:
                raise ValueError(f"more than {_LARGEST_SETTINGS} bytes")
            text = content.decode()
        settings = json.loads(text, object_pairs_hook=unique_fields)
        if not isinstance(settings, dict):
            raise ValueError(f"it is a {type(settings).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{source}: not the settings of an adapter: {quoted(str(error))}; expected what peft "
            "writes"
        ) from error
    return settings


def _check_settings(shown: str, settings: Mapping[str, Any]) -> None:
    def refuse(name: str, expected: str) -> None:
        value = quoted(str(settings.get(name)))[:100]
        raise InputError(f"{shown}: {name} is {value}; expected {expected}")

    if settings.get("peft_type") != "LORA":
        refuse("peft_type", "LORA, the only kind of adapter that fits here")
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 0 < rank <= _LARGEST_RANK:
        refuse("r", f"a whole number from 1 to {_LARGEST_RANK}")
    if (
        not isinstance(alpha, int | float)
        or isinstance(alpha, bool)
        or not -_LARGEST_ALPHA <= alpha <= _LARGEST_ALPHA  # which NaN is not, either
    ):
        refuse("lora_alpha", f"a number, at most {_LARGEST_ALPHA:.0e}")
    if not isinstance(settings.get("use_rslora", False), bool):
        refuse("use_rslora", "true or false")
    start = settings.get("init_lora_weights", True)
    if isinstance(start, dict | list) or start not in _STARTS:
        refuse("init_lora_weights", "one that leaves the base as it is, such as true")
    if settings.get("bias", "none") != "none":
        refuse("bias", "none: biases are not adapted")
    for name, value in settings.items():
        if name not in (*_FREE, "bias") and value not in (None, False, 0, "", [], {}):
            raise InputError(
                f"{shown}: {quoted(name)} is set, which asks for a variant of LoRA; expected plain "
                "LoRA"
            )
    saved = settings.get("modules_to_save") or []
    if not isinstance(saved, list) or any(name != _TABLE for name in saved):
        refuse("modules_to_save", f"none, or {_TABLE} alone")


def _pairs(
    shown: str, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> dict[str, Pair]:
    """The pairs among ``arrays``, whose names have no prefix any more."""
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        module, _, kind = name.removesuffix(".weight").rpartition(".")
        if kind not in ("lora_A", "lora_B") or not name.endswith(".weight") or array.ndim != 2:
            raise InputError(
                f"{shown}: {quoted(name)} {array.shape} is not one of LoRA's matrices; expected "
                "NAME.lora_A.weight and NAME.lora_B.weight alone"
            )
        parts.setdefault(module, {})[kind] = array
    pairs = {}
    for module, found in parts.items():
        for kind in ("lora_A", "lora_B"):
            if kind not in found:
                (other,) = found
                raise InputError(
                    f"{shown}: has {other} of {quoted(module)} without {kind}; expected both"
                )
        down_ri, up_or = found["lora_A"], found["lora_B"]
        rank = len(down_ri)
        if rank != up_or.shape[1] or (rank != settings["r"] and not settings.get("rank_pattern")):
            raise InputError(
                f"{shown}: lora_A {down_ri.shape} and lora_B {up_or.shape} of {quoted(module)}; "
                f"expected ({settings['r']}, inputs) and (outputs, {settings['r']}), since r is "
                f"{settings['r']}"
            )
        divisor = math.sqrt(rank) if settings.get("use_rslora") else rank
        pairs[module] = Pair(down_ri, up_or, settings["lora_alpha"] / divisor)
    return pairs


def _classes(
    shown: str,
    metadata: Mapping[str, str],
    settings: Mapping[str, Any],
    arrays: dict[str, np.ndarray],
) -> dict[str, Any]:
    """The fields of ``Adapter`` about classes; takes their arrays out of ``arrays``."""
    found: dict[str, Any] = {}
    table_nc, rows_mc = arrays.pop(f"{_TABLE}.weight", None), arrays.pop(_ROWS, None)
    for name, array in ((f"{_TABLE}.weight", table_nc), (_ROWS, rows_mc)):
        if array is not None and array.ndim != 2:
            raise InputError(f"{shown}: {name} is {array.shape}; expected rows of numbers")
    if table_nc is not None:
        found["table_nc"] = table_nc
    if rows_mc is None:
        return found
    try:
        names = json.loads(metadata.get("new_classes", "[]"))
        if names:
            names = check_class_names(names, len(rows_mc))
            if len(set(names)) < len(names):
                raise InputError("new_classes has a name twice")
            return found | {"class_names": names, "class_rows_mc": rows_mc}
    except (ValueError, RecursionError) as error:  # an InputError is a ValueError
        raise InputError(
            f"{shown}: unusable new_classes in its metadata: {quoted(str(error))}"
        ) from error
    indices = settings.get("trainable_token_indices")
    listed = indices.get(_TABLE) if isinstance(indices, dict) else indices
    numbers = listed if isinstance(listed, list) else []
    whole = all(type(number) is int and number >= 0 for number in numbers)
    if not whole or len(set(map(str, numbers))) != len(rows_mc) or len(numbers) != len(rows_mc):
        raise InputError(
            f"{shown}: trainable_token_indices is {quoted(str(indices))[:100]}; expected "
            f"{len(rows_mc)} numbers of classes, one for each row"
        )
    return found | {"replaced_rows": dict(zip(numbers, rows_mc, strict=True))}
