"""What a file holds: kind, architecture, tensors, checksum."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from var_tokenizer import Scale

from var_convert.conversion import Progress, Watch
from var_convert.formats.dtypes import LONG_NAMES
from var_convert.formats.weights import Entry
from var_convert.hub import local_file
from var_convert.opened_model import checksum_of, open_model
from var_convert.published_names import HITS, Config


@dataclass(frozen=True)
class TensorSummary:
    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Inspection:
    """path: the file. assumed: fields of ``config`` that the file leaves open.

    parameters: the number of learned elements, without statistics and derived buffers. dtype: their
    type; several are joined with "+". tensors: all in the file, under its own names. checksum: of
    the weights as float32 numbers, the same in every format. not_finite: tensors with NaN or
    infinite values.
    class_names, tokenizer: of a transformer, the names of its classes and the checksum of its
    tokenizer. rounded_from: the checksum that a tokenizer had before it was rounded. These three
    are None if the file does not say.
    """

    path: Path
    kind: str
    config: Config
    assumed: tuple[str, ...]
    parameters: int
    dtype: str
    checksum: str
    not_finite: tuple[str, ...]
    class_names: tuple[str, ...] | None
    tokenizer: str | None
    rounded_from: str | None
    tensors: tuple[TensorSummary, ...]


def inspect(
    path: str | os.PathLike[str],
    only: str | None = None,
    scales: Sequence[Scale] | None = None,
    heads: int | None = None,
    using_znorm: bool = False,
    key: str | None = None,
    progress: Progress = lambda done, total: None,
) -> Inspection:
    """Kind, architecture, size, tensors and checksum of a file; arguments as of ``convert``.

    Raises InputError for a file that is not exactly one model of VAR.
    """
    path = local_file(path, progress)
    model = open_model(path, only, scales, heads, using_znorm, key)
    watch = Watch(sum(entry.nbytes for entry in model.tensors.values()), progress)
    checksum = checksum_of(watch.over(model.tensors))
    learned = [entry for name, entry in model.tensors.items() if name != HITS]
    return Inspection(
        path=path,
        kind=model.kind,
        config=model.config,
        assumed=tuple(sorted(model.architecture.assumed)),
        parameters=sum(entry.size for entry in learned),
        dtype="+".join(sorted({_type_in_file(entry) for entry in learned})),
        checksum=checksum,
        not_finite=tuple(sorted(watch.not_finite)),
        class_names=model.class_names,
        tokenizer=model.notes.get("tokenizer"),
        rounded_from=model.notes.get("rounded_from"),
        tensors=tuple(
            TensorSummary(name, _type_in_file(entry), entry.shape)
            for name, entry in model.stored.items()
        ),
    )


def _type_in_file(entry: Entry) -> str:
    return LONG_NAMES[entry.held or entry.dtype]
