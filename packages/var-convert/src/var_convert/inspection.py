"""What a file holds: kind, architecture, tensors, checksum."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from var_tokenizer import Scale
from var_tokenizer.common import weights_checksum

from var_convert.conversion import Progress
from var_convert.formats.dtypes import LONG_NAMES, widen
from var_convert.formats.weights import Entry
from var_convert.opened_model import open_model
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
    tensors: tuple[TensorSummary, ...]
    checksum: str
    not_finite: tuple[str, ...]
    class_names: tuple[str, ...] | None
    tokenizer: str | None
    rounded_from: str | None


def inspect(
    path: str | os.PathLike[str],
    only: str | None = None,
    scales: Sequence[Scale] | None = None,
    heads: int | None = None,
    using_znorm: bool = False,
    progress: Progress = lambda done, total: None,
) -> Inspection:
    """Kind, architecture, size, tensors and checksum of a file; arguments as of ``convert``.

    Raises InputError for a file that is not exactly one model of VAR.
    """
    path = Path(path)
    model = open_model(path, only, scales, heads, using_znorm)
    checksum, not_finite = _read_through(model.tensors, progress)
    learned = [entry for name, entry in model.tensors.items() if name != HITS]
    return Inspection(
        path=path,
        kind=model.kind,
        config=model.config,
        assumed=tuple(sorted(model.architecture.assumed)),
        parameters=sum(entry.size for entry in learned),
        dtype="+".join(sorted({LONG_NAMES[entry.dtype] for entry in learned})),
        tensors=tuple(
            TensorSummary(name, LONG_NAMES[entry.dtype], entry.shape)
            for name, entry in model.stored.items()
        ),
        checksum=checksum,
        not_finite=not_finite,
        class_names=model.class_names,
        tokenizer=model.notes.get("tokenizer"),
        rounded_from=model.notes.get("rounded_from"),
    )


def _read_through(tensors: Mapping[str, Entry], progress: Progress) -> tuple[str, tuple[str, ...]]:
    """The checksum, and the names of tensors with NaN or infinite values, in order."""
    not_finite: set[str] = set()
    done, total = 0, sum(entry.nbytes for entry in tensors.values())

    def pieces(name: str, entry: Entry) -> Iterator[np.ndarray]:
        nonlocal done
        for piece in entry.pieces():
            numbers = widen(piece, entry.dtype)
            if not np.isfinite(numbers).all():
                not_finite.add(name)
            yield numbers
            done += piece.nbytes
            progress(done, total)

    checksum = weights_checksum((n, e.shape, pieces(n, e)) for n, e in tensors.items())
    return checksum, tuple(sorted(not_finite))
