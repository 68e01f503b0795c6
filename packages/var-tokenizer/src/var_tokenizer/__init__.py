"""The multi-scale VQ tokenizer of VAR: images <-> token maps."""

from var_tokenizer.autoencoder import Conv2d, GroupNorm
from var_tokenizer.checkpoint import (
    check_private,
    check_tensors,
    read_checkpoint,
    read_metadata,
    replacing,
    weights_checksum,
    write_checkpoint,
)
from var_tokenizer.config import TokenizerConfig
from var_tokenizer.errors import InputError, quoted
from var_tokenizer.kernels import KernelLibrary
from var_tokenizer.ops import cpu_kernels
from var_tokenizer.schedule import SCALES_256, SCALES_512, Scale, ScaleSchedule
from var_tokenizer.tokenizer import LatentCodec, Tokenizer

__all__ = [
    "SCALES_256",
    "SCALES_512",
    "Conv2d",
    "GroupNorm",
    "InputError",
    "KernelLibrary",
    "LatentCodec",
    "Scale",
    "ScaleSchedule",
    "Tokenizer",
    "TokenizerConfig",
    "check_private",
    "check_tensors",
    "cpu_kernels",
    "quoted",
    "read_checkpoint",
    "read_metadata",
    "replacing",
    "weights_checksum",
    "write_checkpoint",
]
