"""Weights in several files: shards and their index, and a folder as the hub lays it out."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from var_tokenizer.common import InputError, open_regular, quoted, replacing, unique_fields

from var_convert.formats.names import INDEX, format_of_name
from var_convert.formats.safetensors import write_safetensors
from var_convert.formats.weights import Entry, Weights

CONFIG = "config.json"
NOTES = "var_mindspore"  # this project's own metadata in config.json
SINGLE = ("model.safetensors", f"model.safetensors{INDEX}")  # of a folder
SHARD_BYTES = 5_000_000_000  # where the hub's libraries begin another file
LONGEST_JSON = 1 << 24

Reader = Callable[[Path], list[Weights]]


def read_folder(folder: Path, read_file: Reader) -> list[Weights]:
    """The weights of a folder that holds one model, and what its config.json says of it.

    Raises InputError if there are none or several, or one is unusable.
    """
    chosen = _weights_file(folder)
    read = read_index(chosen, read_file) if chosen.name.endswith(INDEX) else read_file(chosen)
    return with_config(read, folder, True)


def with_config(read: list[Weights], folder: Path, is_its_own: bool) -> list[Weights]:
    """Weights of a file in ``folder``, with what its config.json says of them.

    is_its_own: whether it is certain to be about these weights, so that its notes are theirs.
    """
    if not (folder / CONFIG).is_file():
        return read
    config = _json_object(folder / CONFIG)
    noted = _texts(config.get(NOTES)) if is_its_own else {}
    return [replace(held, metadata={**held.metadata, **noted}, config=config) for held in read]


def _weights_file(folder: Path) -> Path:
    """The one file of weights: safetensors before others, an index before its shards."""
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise InputError(f"{quoted(folder)}: cannot read: {error.strerror}") from error
    indices = [path for path in files if path.name.endswith(INDEX)]
    shards = {shard for index in indices for shard in weight_map(index).values()}
    whole = [path for path in files if format_of_name(path) and path.name not in shards]
    preferred = [p for p in (*indices, *whole) if ".safetensors" in p.name] or [*indices, *whole]
    if not preferred:
        raise InputError(f"{quoted(folder)}: a folder without weights; expected e.g. model.pth")
    if len(preferred) > 1:
        names = ", ".join(quoted(path.name) for path in preferred[:6])
        raise InputError(f"{quoted(folder)}: holds {names}; expected one model: name its file")
    return preferred[0]


def read_index(path: Path, read_file: Reader) -> list[Weights]:
    """The one state dict whose tensors the index distributes over files beside it.

    Raises InputError for an index or a shard that is unusable, and for a shard whose tensors are
    not those that the index says.
    """
    shown, places = quoted(path), weight_map(path)
    tensors: dict[str, Entry] = {}
    for shard in dict.fromkeys(places.values()):
        listed = {name for name, place in places.items() if place == shard}
        for weights in read_file(path.parent / shard):
            wrong = sorted(listed ^ set(weights.tensors))
            if wrong:
                raise InputError(
                    f"{weights.source}: tensor {quoted(wrong[0])} is not where {shown} says; "
                    "expected the index of these shards"
                )
            tensors |= weights.tensors
    return [Weights(shown, tensors, _texts(_json_object(path).get("metadata")))]


def weight_map(index: Path) -> dict[str, str]:
    """Tensor -> name of the file beside the index that holds it."""
    places = _json_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{quoted(index)}: no weight_map; expected tensors' names and files")
    for place in places.values():
        # a file says this: it may name what lies beside it, and nothing else
        if (
            not isinstance(place, str)
            or place != Path(place).name
            or not format_of_name(Path(place))
        ):
            raise InputError(
                f"{quoted(index)}: weight_map holds {quoted(str(place))!r}; "
                "expected the name of a file of weights in the same folder"
            )
    return places


def _json_object(path: Path) -> dict[str, Any]:
    with open_regular(path) as file:
        text = file.read(LONGEST_JSON + 1)
    if len(text) > LONGEST_JSON:
        raise InputError(f"{quoted(path)}: longer than {LONGEST_JSON >> 20} MiB; expected less")
    try:
        found = json.loads(text, object_pairs_hook=unique_fields)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{quoted(path)}: no readable JSON: {quoted(str(error))}") from error
    if not isinstance(found, dict):
        raise InputError(f"{quoted(path)}: holds a {type(found).__name__}; expected an object")
    return found


def _texts(value: object) -> dict[str, str]:
    held = value if isinstance(value, dict) else {}
    return {name: text for name, text in held.items() if isinstance(text, str)}


def in_the_way(target: Path, layout: str) -> Path | None:
    """A file that writing ``target`` might replace; None if there is none."""
    held = [target]
    if layout == "folder" and target.is_dir():
        parts = (p for p in target.iterdir() if _is_shard(p, "model"))
        held = [target / CONFIG, *(target / name for name in SINGLE), *parts]
    elif layout == "index" and target.parent.is_dir():
        held += [p for p in target.parent.iterdir() if _is_shard(p, _stem(target))]
    return next((path for path in held if path.exists()), None)


def write_folder(
    folder: Path, tensors: Mapping[str, Entry], notes: Mapping[str, str], config: Mapping[str, Any]
) -> None:
    """Writes config.json, and model.safetensors or shards of it, all or nothing.

    config: what PyTorchModelHubMixin passes to the model. Raises InputError if the folder holds
    other weights, which would make it ambiguous.
    """
    parts = list(_shards(tensors))
    names = _shard_names("model", len(parts)) if len(parts) > 1 else [SINGLE[0]]
    written = {*names, SINGLE[1]} if len(parts) > 1 else set(names)
    there = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    for name in there:
        if (format_of_name(Path(name)) or name.endswith(INDEX)) and name not in written:
            raise InputError(f"{quoted(folder)}: holds {quoted(name)}; expected no other weights")
    text = json.dumps({**config, NOTES: dict(notes)}, indent=2, sort_keys=True)
    new = not folder.exists()
    try:
        with ExitStack() as files:
            files.enter_context(replacing(folder / CONFIG)).write_text(text)
            if len(parts) > 1:
                _write_index(files, folder / SINGLE[1], parts, names, {})
            _write_shards(files, folder, parts, names)
    except BaseException:
        if new:
            with suppress(OSError):
                folder.rmdir()
        raise


def write_index(index: Path, tensors: Mapping[str, Entry], notes: Mapping[str, str]) -> None:
    """Writes an index, and its shards beside it, all or nothing."""
    parts = list(_shards(tensors))
    names = _shard_names(_stem(index), len(parts))
    with ExitStack() as files:
        _write_index(files, index, parts, names, notes)
        _write_shards(files, index.parent, parts, names)


def _shards(tensors: Mapping[str, Entry]) -> Iterator[dict[str, Entry]]:
    part: dict[str, Entry] = {}
    size = 0
    for name, entry in tensors.items():
        if part and size + entry.nbytes > SHARD_BYTES:
            yield part
            part, size = {}, 0
        part[name] = entry
        size += entry.nbytes
    yield part


def _shard_names(stem: str, count: int) -> list[str]:
    return [f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def _stem(index: Path) -> str:
    return index.name[: -len(INDEX)].removesuffix(".safetensors")


def _is_shard(path: Path, stem: str) -> bool:
    return re.fullmatch(rf"{re.escape(stem)}-\d+-of-\d+\.safetensors", path.name) is not None


def _write_index(
    files: ExitStack,
    index: Path,
    parts: list[dict[str, Entry]],
    names: list[str],
    notes: Mapping[str, str],
) -> None:
    """The index; ``files`` renames it last, when all shards are there."""
    size = sum(entry.nbytes for part in parts for entry in part.values())
    places = {name: shard for part, shard in zip(parts, names, strict=True) for name in part}
    content = {"metadata": {"total_size": size, **notes}, "weight_map": places}
    text = json.dumps(content, indent=2, sort_keys=True)
    files.enter_context(replacing(index)).write_text(text)


def _write_shards(
    files: ExitStack, folder: Path, parts: list[dict[str, Entry]], names: list[str]
) -> None:
    for part, name in zip(parts, names, strict=True):
        temporary = files.enter_context(replacing(folder / name))
        write_safetensors(temporary, part, {"format": "pt"})
