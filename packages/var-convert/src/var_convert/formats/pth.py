"""Reading PyTorch's .pth safely, and writing it. Imports PyTorch only when called."""

import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from var_tokenizer.common import InputError, open_regular, quoted

from var_convert.formats.dtypes import LONG_NAMES, SHORT_NAMES
from var_convert.formats.names import under_suffix
from var_convert.formats.weights import Entry, LazyEntries, Weights

if TYPE_CHECKING:
    from torch import Tensor

SAFE_SINCE = (2, 6)  # CVE-2025-32434: before it, weights-only loading could be made to run code
DEEPEST = 8  # of the mappings that are searched for state dicts

# What trainers save beside the weights. Nothing of theirs is called or imported: each becomes an
# empty stand-in.
BESIDE_WEIGHTS = (
    ("argparse", "Namespace"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
)


class _Ignored:
    """Stands for an object that is no weight. It takes what a pickle gives it and keeps nothing."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def _stand_ins() -> list[type]:
    return [
        type(name, (_Ignored,), {"__module__": module, "__qualname__": name})
        for module, name in BESIDE_WEIGHTS
    ]


def read_pth(path: Path) -> list[Weights]:
    """The state dicts of the file: the one it is, or all that a trainer's mappings hold.

    Raises InputError if the file is unusable, or holds none.
    """
    torch, shown, loaded = import_torch(path), quoted(path), load_pth(path)
    found = [_weights(torch, shown, key, state) for key, state in _state_dicts(torch, loaded)]
    if not found:
        raise InputError(
            f"{shown}: holds {', '.join(map(_key, list(loaded)[:5])) or 'nothing'}; "
            "expected a state dict, or a trainer checkpoint with one in it"
        )
    return found


def load_pth(path: Path) -> Mapping:
    """What is in the file, its tensors mapped.

    Only tensors and plain containers are loaded (``weights_only``), and the objects of
    BESIDE_WEIGHTS are left out, so nothing in the file can run code. Raises InputError if the file
    needs more than that, is damaged, holds no mapping, or PyTorch is missing.
    """
    torch, shown = import_torch(path), quoted(path)
    with open_regular(path) as file:
        magic = file.read(4)
    archive = magic == b"PK\x03\x04"  # as PyTorch decides
    if archive:
        _refuse_compressed(path)
    try:
        with (
            warnings.catch_warnings(),
            torch.serialization.safe_globals(_stand_ins()),
            under_suffix(path, ".pth") as named,  # PyTorch goes by .safetensors
        ):
            warnings.simplefilter("ignore")  # about old formats; useless to the user
            loaded = torch.load(named, map_location="cpu", weights_only=True, mmap=archive)
    except Exception as error:  # a damaged or hostile file may raise anything inside PyTorch
        foreign = not archive and not magic.startswith(b"\x80")  # a pickle's first byte
        reason = "it begins as no file of torch.save does" if foreign else _reason(error)
        raise InputError(f"{shown}: not a .pth of weights only: {reason}") from error
    if not isinstance(loaded, Mapping):
        raise InputError(f"{shown}: holds a {type(loaded).__name__}; expected a state dict")
    return loaded


def _state_dicts(torch: ModuleType, loaded: Mapping) -> Iterator[tuple[str, Mapping]]:
    """The mappings with a named tensor, and where each is: keys joined by dots."""
    seen: set[int] = set()  # a pickle may hold a mapping twice, or in itself
    rest: list[tuple[tuple[str, ...], Mapping]] = [((), loaded)]
    while rest:
        place, mapping = rest.pop()
        if id(mapping) in seen or len(place) > DEEPEST:
            continue
        seen.add(id(mapping))
        named = {name: value for name, value in mapping.items() if isinstance(name, str)}
        if any(isinstance(value, torch.Tensor) for value in named.values()):
            yield ".".join(place), mapping
        rest += [
            ((*place, name), value)
            for name, value in reversed(named.items())
            if isinstance(value, Mapping)
        ]


def import_torch(path: Path) -> ModuleType:
    """PyTorch; raises InputError if it is missing, or too old to read a file safely."""
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{quoted(path)}: .pth files need PyTorch; install it with: "
            "pip install 'var-convert[torch]'"
        ) from error
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < SAFE_SINCE:
        raise InputError(
            f"{quoted(path)}: PyTorch is {torch.__version__}, which may run code from a .pth file; "
            "expected 2.6 or newer: pip install --upgrade 'var-convert[torch]'"
        )
    return torch


def _reason(error: Exception) -> str:
    """PyTorch's reason in one line, without its advice to disable safe loading."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
    return quoted((telling or lines or [type(error).__name__])[0].split(". ")[0])


def _refuse_compressed(path: Path) -> None:
    """A few compressed megabytes can inflate to terabytes; PyTorch never compresses its files."""
    try:
        with zipfile.ZipFile(path) as archive:
            stored = all(m.compress_type == zipfile.ZIP_STORED for m in archive.infolist())
    except Exception as error:  # a damaged or hostile archive may raise anything
        raise InputError(f"{quoted(path)}: not a readable .pth file: {_reason(error)}") from error
    if not stored:
        raise InputError(
            f"{quoted(path)}: has compressed parts; expected a .pth as torch.save writes it"
        )


def _key(key: object) -> str:
    return repr(quoted(key)) if isinstance(key, str) else f"a {type(key).__name__}"


def _weights(torch: ModuleType, shown: str, key: str, state: Mapping) -> Weights:
    source = f"{shown} ({quoted(key)})" if key else shown
    names = [n for n, v in state.items() if isinstance(n, str) and isinstance(v, torch.Tensor)]
    note = getattr(state, "var_mindspore", None)
    metadata = note if isinstance(note, dict) else {}
    return Weights(
        source,
        LazyEntries(names, lambda name: tensor_entry(torch, source, name, state[name])),
        {key: value for key, value in metadata.items() if isinstance(value, str)},
        key,
    )


def tensor_entry(torch: ModuleType, source: str, name: str, tensor: "Tensor") -> Entry:
    """A tensor of a file; raises InputError unless all of it is in the file."""
    dtype = SHORT_NAMES.get(str(tensor.dtype).removeprefix("torch."))
    dense = tensor.layout == torch.strided and not tensor.is_nested
    if dtype is None or not dense or tensor.device.type != "cpu":
        layout = "nested" if tensor.is_nested else tensor.layout
        raise InputError(
            f"{source}: tensor {quoted(name)} is {tensor.dtype}, {layout}, on "
            f"{tensor.device}; expected a dense tensor of one of {', '.join(SHORT_NAMES)}"
        )
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InputError(
            f"{source}: tensor {quoted(name)} of shape {tuple(tensor.shape)} repeats its elements; "
            "expected each in the file"
        )

    # a file may say that a tensor is the negative of its elements
    flat = tensor.detach().resolve_neg().contiguous().view(-1)
    if dtype == "BF16":
        flat = flat.view(torch.uint16)

    def read(start: int, stop: int) -> np.ndarray:
        return flat[start:stop].numpy()

    return Entry(dtype, tuple(tensor.shape), read)


def write_pth(path: Path, tensors: Mapping[str, Entry], metadata: Mapping[str, str]) -> None:
    """Writes a state dict that ``load_state_dict(strict=True)`` takes.

    ``metadata`` is an attribute of the OrderedDict, like PyTorch's own version notes. It is not a
    key, so strict loading does not see it.
    """
    torch = import_torch(path)
    with path.open("wb") as file:  # of a path, the file would hold the name, which is temporary
        torch.save(state_dict(torch, tensors, metadata), file)


def state_dict(
    torch: ModuleType, tensors: Mapping[str, Entry], metadata: Mapping[str, str]
) -> dict[str, "Tensor"]:
    """What ``write_pth`` writes."""
    state = OrderedDict((name, _tensor(torch, entry)) for name, entry in tensors.items())
    vars(state)["var_mindspore"] = dict(metadata)
    return state


def _tensor(torch: ModuleType, entry: Entry) -> "Tensor":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # arrays that are not writable: they are only read
        tensor = torch.from_numpy(entry.array())
    return tensor.view(getattr(torch, LONG_NAMES[entry.dtype]))
