"""What differs between the releases of MindSpore that this project runs on; nothing else asks.

An NPU's driver ties its user to one of them. Where possible a feature is looked for, not a number.
"""

import re
from pathlib import Path

import mindspore as ms
from mindspore import Parameter, Tensor, mint, ops

from var_tokenizer.common.errors import InputError, quoted

try:
    from mindspore.graph import api
except ImportError:  # before 2.9
    from mindspore.common import api

graph_api = api
_OLDEST, _NEWEST = (2, 7), (2, 10)


def _release() -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", ms.__version__)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def check_mindspore() -> None:
    """Raises InputError if MindSpore is a release that this project was never tested with.

    Others free memory that compiled graphs still read: the results are wrong, and nothing says so.
    """
    if not _OLDEST <= _release() <= _NEWEST:
        raise InputError(f"MindSpore is {quoted(ms.__version__)}; expected 2.7.0 to 2.10")


def onednn_path() -> Path:
    """The oneDNN of MindSpore's wheel: version 3, or before MindSpore 2.9 version 2."""
    library = Path(ms.__file__).parent / "lib" / "libdnnl.so.3"
    before = library.with_name("libdnnl.so.2")
    return before if before.exists() and not library.exists() else library


def takes_built_operators() -> bool:
    """Whether graphs for an Ascend find what ``ops.CustomOpBuilder`` built: from 2.7.1 on."""
    operators = Path(ms.__file__).parent / "include" / "mindspore" / "ops"
    header = Path("kernel", "ascend", "custom", "kernel_mod_impl", "custom_register.h")
    return any((folder / header).is_file() for folder in (operators, operators / "include"))


def is_on_device(tensor: Tensor) -> bool:
    """Whether the device has had a tensor: before 2.8, a new one is Python's alone."""
    if _release() >= (2, 8):
        return True
    try:
        tensor.untyped_storage()
    except RuntimeError as error:  # on the CPU it is one in any case
        return "has no device" not in str(error)
    return True


def memory_address(tensor: Tensor) -> int:
    """Where the numbers of a tensor lie, on the device or else in Python's memory."""
    return tensor.data_ptr() if is_on_device(tensor) else tensor.asnumpy().ctypes.data


def memory_of(parameter: Parameter) -> Tensor:
    """A tensor with the parameter's memory, which stays where ``set_data`` moves the parameter."""
    memory = parameter.data
    # before 2.8 that is the parameter itself; elsewhere a new tensor would be a copy on the host
    return Tensor(parameter) if memory is parameter else memory


def unfilled(shape: tuple[int, ...], dtype: ms.dtype) -> Tensor:
    """Memory for the device to write to."""
    try:
        return mint.empty(shape, dtype=dtype)
    except RuntimeError:  # before 2.8 it is for other devices than the CPU
        return ops.zeros(shape, dtype)


def free_memory(tensor: Tensor) -> None:
    """Frees the memory of a tensor that is not used any more, whoever still holds the tensor."""
    try:
        tensor.untyped_storage().resize_(0)
    except (AttributeError, RuntimeError):  # before 2.8
        tensor.assign_value(Tensor([], tensor.dtype))
