"""The multi-scale VQ tokenizer of VAR: images <-> token maps."""

import os
import sys
from pathlib import Path

from var_tokenizer.help_only import asks_for_help, leave_out_mindspore

# in a command (for -m, Python imports the package before it finds the module), MindSpore's
# warnings would bury ours; MindSpore reads this at its import
if Path((sys.argv or [""])[0]).name in ("-m", "var-convert"):
    os.environ.setdefault("GLOG_v", "3")
    if asks_for_help(sys.argv[1:]):
        leave_out_mindspore()

try:
    from var_tokenizer import layout, operators
    from var_tokenizer.autoencoder import Conv2d, GroupNorm
    from var_tokenizer.common.errors import InputError
    from var_tokenizer.common.pictures import read_images, to_pictures
    from var_tokenizer.config import TokenizerConfig
    from var_tokenizer.resize import area_matrix, bicubic_matrix
    from var_tokenizer.schedule import SCALES_256, SCALES_512, Scale, ScaleSchedule
    from var_tokenizer.shapes import tokenizer_shapes
    from var_tokenizer.tokenizer import LatentCodec, Tokenizer
except Exception:
    if "var_tokenizer.about" not in sys.orig_argv:  # that command says what is broken
        raise

__all__ = [
    "SCALES_256",
    "SCALES_512",
    "Conv2d",
    "GroupNorm",
    "InputError",
    "LatentCodec",
    "Scale",
    "ScaleSchedule",
    "Tokenizer",
    "TokenizerConfig",
    "area_matrix",
    "bicubic_matrix",
    "layout",
    "operators",
    "read_images",
    "to_pictures",
    "tokenizer_shapes",
]
