"""The multi-scale VQ tokenizer of VAR: images <-> token maps."""

from var_tokenizer.autoencoder import Conv2d, GroupNorm
from var_tokenizer.checkpoint import (
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
from var_tokenizer.checks import (
    check_integer,
    check_shape,
    checked_floats,
    checked_images,
    is_integer,
    is_number,
)
from var_tokenizer.compiled import CompiledPasses, one_at_a_time
from var_tokenizer.config import TokenizerConfig
from var_tokenizer.errors import InputError, quoted
from var_tokenizer.foreign import conversion, format_of
from var_tokenizer.kernels import KernelLibrary
from var_tokenizer.ops import cpu_kernels
from var_tokenizer.pictures import (
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
from var_tokenizer.schedule import SCALES_256, SCALES_512, Scale, ScaleSchedule
from var_tokenizer.shapes import tokenizer_shapes
from var_tokenizer.tokenizer import LatentCodec, Tokenizer

__all__ = [
    "MAX_PIXELS",
    "PICTURE_FORMATS",
    "PICTURE_SUFFIXES",
    "SCALES_256",
    "SCALES_512",
    "CompiledPasses",
    "Conv2d",
    "GroupNorm",
    "InputError",
    "KernelLibrary",
    "LatentCodec",
    "Scale",
    "ScaleSchedule",
    "TensorHeader",
    "Tokenizer",
    "TokenizerConfig",
    "check_integer",
    "check_private",
    "check_shape",
    "check_tensors",
    "checked_floats",
    "checked_images",
    "conversion",
    "cpu_kernels",
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
    "tokenizer_shapes",
    "unit_to_pixels",
    "upright_rgb",
    "weights_checksum",
    "write_checkpoint",
]
