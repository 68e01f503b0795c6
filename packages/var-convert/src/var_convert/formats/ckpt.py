"""Reading and writing MindSpore's .ckpt. Imports MindSpore only when called."""

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from var_tokenizer.common import InputError, quoted

from var_convert.formats.dtypes import SHORT_NAMES
from var_convert.formats.names import under_suffix
from var_convert.formats.weights import Entry, Weights, entry_of

if TYPE_CHECKING:
    from mindspore import Tensor


def read_ckpt(path: Path) -> list[Weights]:
    """The one model of the file. Raises InputError if MindSpore cannot read it."""
    import mindspore

    try:
        with _quiet(), _page_cache_counted_as_free(), under_suffix(path, ".ckpt") as named:
            loaded = mindspore.load_checkpoint(str(named))
    except Exception as error:  # a damaged file may raise anything inside MindSpore
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise InputError(
            f"{quoted(path)}: not a readable MindSpore .ckpt file: {quoted(reason)}"
        ) from error
    metadata = {name: value for name, value in loaded.items() if isinstance(value, str)}
    for name, text in metadata.items():
        # MindSpore takes any four bytes for a character; Python fails where it meets such a one
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        if codes.max(initial=0) > sys.maxunicode:
            raise InputError(f"{quoted(path)}: {quoted(name)} is no text; expected Unicode")
    tensors = {
        name: _entry(path, name, value) for name, value in loaded.items() if name not in metadata
    }
    return [Weights(quoted(path), tensors, metadata)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences MindSpore's log of a failure, which repeats the exception."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _page_cache_counted_as_free() -> Iterator[None]:
    """Disables MindSpore's check of free memory.

    MindSpore counts the page cache as used, so after reading or writing a few gigabytes it
    refuses files that would fit. A real lack of memory raises MemoryError.
    """
    from mindspore.train import serialization

    before = getattr(serialization, "_get_available_memory", None)  # older ones do not check
    if before is None:
        yield
        return
    serialization._get_available_memory = lambda: None
    try:
        yield
    finally:
        serialization._get_available_memory = before


def _entry(path: Path, name: str, value: "Tensor") -> Entry:
    try:
        array = np.ascontiguousarray(value.asnumpy())
        dtype = SHORT_NAMES[array.dtype.name]
    except (AttributeError, KeyError) as error:
        raise InputError(
            f"{quoted(path)}: {quoted(name)} is a "
            f"{getattr(value, 'dtype', type(value).__name__)}; "
            "expected a tensor of a common floating or integer type"
        ) from error
    return entry_of(array.view(np.uint16) if dtype == "BF16" else array, dtype)


def write_ckpt(path: Path, tensors: Mapping[str, Entry], metadata: Mapping[str, str]) -> None:
    """Writes all tensors, with ``metadata`` as extra text entries."""
    import mindspore

    parameters = [
        {"name": name, "data": _tensor(mindspore, entry)} for name, entry in tensors.items()
    ]
    try:
        with _quiet():
            mindspore.save_checkpoint(parameters, str(path), append_dict=dict(metadata))
    finally:
        path.with_suffix(".tmp").unlink(missing_ok=True)  # MindSpore's own, if it failed


def _tensor(mindspore: ModuleType, entry: Entry) -> "Tensor":
    array = entry.array()
    if entry.dtype == "BF16":
        bfloat16 = mindspore.Tensor(0, mindspore.bfloat16).asnumpy().dtype  # not NumPy's own
        array = array.view(bfloat16)
    return mindspore.Tensor(array)
