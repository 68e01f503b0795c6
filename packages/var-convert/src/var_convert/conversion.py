"""Conversion from one format to another: changes nothing, leaves nothing half-written."""

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from var_tokenizer import Scale
from var_tokenizer.common import InputError, check_choice, quoted, remove_leftovers, replacing

from var_convert.formats.dispatch import WRITERS, read_weights
from var_convert.formats.dtypes import SHORT_NAMES, widen
from var_convert.formats.folders import in_the_way, write_folder, write_index
from var_convert.formats.names import INDEX, SUFFIXES, layout_of_target
from var_convert.formats.weights import Entry, Weights
from var_convert.hub import local_file
from var_convert.inception import METADATA, inception_in, judging_tensors
from var_convert.kinds import KINDS
from var_convert.opened_model import OpenedModel, model_among, tell_assumptions
from var_convert.published_names import MASK, Config, published_config

log = logging.getLogger(__name__)

DTYPES = ("float32", "float16", "bfloat16", "int8")
Progress = Callable[[int, int], None]  # bytes done, bytes in total


@dataclass(frozen=True)
class Conversion:
    """What was written.

    kind: one of KINDS, or "feature network", which has no config. not_finite: the tensors written
    with a NaN or an infinity.
    """

    target: Path
    kind: str
    config: Config | None
    tensors: int
    bytes: int
    not_finite: tuple[str, ...]


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    only: str | None = None,
    dtype: str | None = None,
    scales: Sequence[Scale] | None = None,
    heads: int | None = None,
    using_znorm: bool = False,
    key: str | None = None,
    force: bool = False,
    progress: Progress = lambda done, total: None,
) -> Conversion:
    """Writes the model of ``source`` as ``target``, whose suffix chooses the format.

    source: a path, or an address of the hub, ``hf://OWNER/NAME/FILE``. A target without a suffix,
    or one that is a folder, becomes a folder as the hub lays it out; one that ends in
    ``.index.json`` comes with shards beside it.

    only: "tokenizer" or "transformer", of a trainer checkpoint that holds both. key: where in the
    file the model is, such as "ema", if there are several. dtype: "float32",
    "float16" or "bfloat16" for all floating tensors, "int8" for a transformer's large weights in a
    native file; None leaves them unchanged. scales, heads,
    using_znorm: what a foreign file leaves open (see README). force: replace a target that exists.

    Raises InputError for anything unusable, and then leaves the target as it was.
    """
    target = Path(target)
    _check_request(target, only, dtype, force)
    path = local_file(source, progress)
    held = read_weights(path)
    network = inception_in(held)
    if network is not None:
        given = (only, dtype, scales, heads, using_znorm or None, key)
        return _write_network(network, path, target, given, progress)
    model = model_among(path, held, only, scales, heads, using_znorm, key)
    tell_assumptions(model)
    if dtype == "int8":
        if model.kind != "transformer" or layout_of_target(target) != "safetensors":
            raise InputError(
                f"dtype is int8 for a {model.kind} in {quoted(target)}; expected it for a "
                "transformer in a .safetensors"
            )
        model = model.as_int8()
    else:
        model = model.as_dtype(SHORT_NAMES.get(dtype or ""))
    return write_model(model, target, progress)


def write_model(
    model: OpenedModel, target: Path, progress: Progress = lambda done, total: None
) -> Conversion:
    """Writes an opened model as ``target``, whose name chooses the format, over what is there.

    Raises InputError if it cannot be written, and then leaves the target as it was.
    """
    layout = layout_of_target(target)
    native = layout in ("MindSpore", "safetensors")
    tensors = model.tensors if native else model.published()
    total = sum(entry.nbytes for entry in tensors.values())
    remove_leftovers(target if layout == "folder" else target.parent)
    _check_space(target, total)
    watch = Watch(total, progress)
    try:
        watched = watch.over(tensors)
        if layout == "folder":
            config = published_config(model.config, model.uniform_phi_names)
            write_folder(target, watched, model.metadata, config)
        elif layout == "index":
            write_index(target, watched, model.metadata)
        else:
            with replacing(target) as temporary:
                WRITERS[layout or ""](temporary, watched, model.metadata)
    except (OSError, RuntimeError) as error:  # a full disk: PyTorch and MindSpore raise these
        reason = quoted((str(error).splitlines() or [type(error).__name__])[0])
        raise InputError(f"{quoted(target)}: cannot write: {reason}") from error
    not_finite = tuple(name for name in tensors if name in watch.not_finite)
    if not_finite:
        log.warning("%s: NaN or infinite values in %s", model.source, ", ".join(not_finite))
    return Conversion(target, model.kind, model.config, len(tensors), total, not_finite)


def _write_network(
    network: Weights, path: Path, target: Path, given: Sequence[object], progress: Progress
) -> Conversion:
    if any(option is not None for option in given):
        raise InputError(
            f"{network.source}: an Inception v3; expected no option but --force, since it judges "
            "images by the weights that it has"
        )
    if layout_of_target(target) != "safetensors":
        raise InputError(f"{quoted(target)}: expected .safetensors, for an Inception v3")
    tensors = judging_tensors(network, path)
    total = sum(entry.nbytes for entry in tensors.values())
    remove_leftovers(target.parent)
    _check_space(target, total)
    with replacing(target) as temporary:
        WRITERS["safetensors"](temporary, Watch(total, progress).over(tensors), METADATA)
    return Conversion(target, "feature network", None, len(tensors), total, ())


def _check_request(target: Path, only: str | None, dtype: str | None, force: bool) -> None:
    if target.parts[:1] == ("hf:",):
        raise InputError(f"{quoted(target)}: nothing is written to the hub; expected a file here")
    layout = layout_of_target(target)
    if layout is None:
        known = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
        raise InputError(
            f"{quoted(target)}: suffix {target.suffix!r}; expected one of {known}, "
            f"*{INDEX}, or the name of a folder"
        )
    for field, value, allowed in (("only", only, KINDS), ("dtype", dtype, DTYPES)):
        if value is not None:
            check_choice(field, value, allowed)
    if target.is_dir() and layout != "folder":
        raise InputError(f"{quoted(target)}: is a folder; expected the name of a file")
    former = in_the_way(target, layout)
    if former is not None and not force:
        raise InputError(f"{quoted(former)}: exists; give --force to replace it")


def _check_space(target: Path, needed: int) -> None:
    """Raises InputError if the disk of ``target`` has no room for ``needed`` bytes."""
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    disk = shutil.disk_usage(folder)
    if disk.total and needed > disk.free:  # pseudo file systems report no size
        raise InputError(
            f"{quoted(target)}: needs {needed / 1e9:.2f} GB; "
            f"{disk.free / 1e9:.2f} GB are free in {quoted(folder)}"
        )


class Watch:
    """Counts the elements that pass from source to target, and notes tensors with bad ones."""

    def __init__(self, total: int, progress: Progress) -> None:
        self.not_finite: set[str] = set()
        self._done, self._total, self._progress = 0, total, progress

    def over(self, tensors: Mapping[str, Entry]) -> dict[str, Entry]:
        return {name: self._over(name, entry) for name, entry in tensors.items()}

    def _over(self, name: str, entry: Entry) -> Entry:
        def read(start: int, stop: int) -> np.ndarray:
            elements = entry.read(start, stop)
            checked = entry.is_floating and name != MASK  # the mask is infinite by design
            if checked and not np.isfinite(widen(elements, entry.dtype)).all():
                self.not_finite.add(name)
            self._done += elements.nbytes
            self._progress(self._done, self._total)
            return elements

        return replace(entry, read=read)
