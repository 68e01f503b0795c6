"""The small interface that the four packages share; its map is README.md, next to this file."""

from var_tokenizer.common.checkpoint import (
    check_tensors,
    noted_checksum,
    open_checkpoint,
    parse_config,
    weights_checksum,
    write_checkpoint,
)
from var_tokenizer.common.checks import (
    Array,
    check_choice,
    check_flag,
    check_integer,
    check_number,
    check_shape,
    checked_floats,
    checked_images,
    checked_integers,
    is_integer,
)
from var_tokenizer.common.compiled import CompiledPasses, one_at_a_time
from var_tokenizer.common.errors import InputError, quoted
from var_tokenizer.common.files import check_private, open_regular, replacing
from var_tokenizer.common.foreign import format_of
from var_tokenizer.common.kernels import KernelLibrary, kernels_in_use, on_cpu
from var_tokenizer.common.pictures import (
    MAX_PIXELS,
    PICTURE_SUFFIXES,
    fit_picture,
    is_picture_name,
    read_alpha,
    read_picture,
    save_png,
    to_floats,
    to_model_range,
    to_pixels,
    to_unit_range,
)
from var_tokenizer.common.safetensors import (
    TensorHeader,
    arrays_checksum,
    read_header,
    read_tensors,
)

__all__ = [
    "MAX_PIXELS",
    "PICTURE_SUFFIXES",
    "Array",
    "CompiledPasses",
    "InputError",
    "KernelLibrary",
    "TensorHeader",
    "arrays_checksum",
    "check_choice",
    "check_flag",
    "check_integer",
    "check_number",
    "check_private",
    "check_shape",
    "check_tensors",
    "checked_floats",
    "checked_images",
    "checked_integers",
    "fit_picture",
    "format_of",
    "is_integer",
    "is_picture_name",
    "kernels_in_use",
    "noted_checksum",
    "on_cpu",
    "one_at_a_time",
    "open_checkpoint",
    "open_regular",
    "parse_config",
    "quoted",
    "read_alpha",
    "read_header",
    "read_picture",
    "read_tensors",
    "replacing",
    "save_png",
    "to_floats",
    "to_model_range",
    "to_pixels",
    "to_unit_range",
    "weights_checksum",
    "write_checkpoint",
]
