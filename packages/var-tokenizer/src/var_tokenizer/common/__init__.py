"""The small interface that the four packages share; README.md beside this file is its map."""

from var_tokenizer.common.checkpoint import (
    TensorHeader,
    check_private,
    check_tensors,
    noted_checksum,
    open_checkpoint,
    parse_config,
    read_checkpoint,
    read_header,
    read_tensors,
    replacing,
    weights_checksum,
    write_checkpoint,
)
from var_tokenizer.common.checks import (
    check_integer,
    check_shape,
    checked_floats,
    checked_images,
    is_integer,
    is_number,
)
from var_tokenizer.common.compiled import (
    CompiledPasses,
    one_at_a_time,
)
from var_tokenizer.common.errors import (
    InputError,
    quoted,
)
from var_tokenizer.common.foreign import (
    conversion,
    format_of,
)
from var_tokenizer.common.kernels import (
    KernelLibrary,
)
from var_tokenizer.common.pictures import (
    MAX_PIXELS,
    PICTURE_FORMATS,
    PICTURE_SUFFIXES,
    fit_picture,
    is_picture_name,
    open_regular,
    read_alpha,
    read_images,
    read_picture,
    to_model_range,
    to_pictures,
    to_pixels,
    to_unit_range,
    unit_to_pixels,
    upright_rgb,
)

__all__ = [
    "MAX_PIXELS",
    "PICTURE_FORMATS",
    "PICTURE_SUFFIXES",
    "CompiledPasses",
    "InputError",
    "KernelLibrary",
    "TensorHeader",
    "check_integer",
    "check_private",
    "check_shape",
    "check_tensors",
    "checked_floats",
    "checked_images",
    "conversion",
    "fit_picture",
    "format_of",
    "is_integer",
    "is_number",
    "is_picture_name",
    "noted_checksum",
    "one_at_a_time",
    "open_checkpoint",
    "open_regular",
    "parse_config",
    "quoted",
    "read_alpha",
    "read_checkpoint",
    "read_header",
    "read_images",
    "read_picture",
    "read_tensors",
    "replacing",
    "to_model_range",
    "to_pictures",
    "to_pixels",
    "to_unit_range",
    "unit_to_pixels",
    "upright_rgb",
    "weights_checksum",
    "write_checkpoint",
]
