"""The next-scale transformer of VAR: token maps -> next token map."""

import os
import sys

if sys.argv[:1] == ["-m"]:  # a command: Python imports its package first, and finds it only then
    os.environ.setdefault("GLOG_v", "3")  # MindSpore's warnings, from its import on, are not ours

from var_transformer.attention import Backend
from var_transformer.command import (
    INTERRUPTED,
    exit_codes,
    list_commands,
    read_settings,
    run_command,
)
from var_transformer.config import TransformerConfig
from var_transformer.edit import box_mask, edit, tokens_to_redraw
from var_transformer.generate import Generation, Refiner, check_pair, generate
from var_transformer.progress import progress_bar, working
from var_transformer.sampler import Sampler, check_sampler
from var_transformer.shapes import transformer_shapes
from var_transformer.transformer import Transformer, check_class_names, parse_class_names

__all__ = [
    "INTERRUPTED",
    "Backend",
    "Generation",
    "Refiner",
    "Sampler",
    "Transformer",
    "TransformerConfig",
    "box_mask",
    "check_class_names",
    "check_pair",
    "check_sampler",
    "edit",
    "exit_codes",
    "generate",
    "list_commands",
    "parse_class_names",
    "progress_bar",
    "read_settings",
    "run_command",
    "tokens_to_redraw",
    "transformer_shapes",
    "working",
]
