"""Weights of VAR in and out: PyTorch, MindSpore and safetensors files, both ways.

    convert("var_d16.pth", "var_d16.safetensors")
    inspect("var_d16.safetensors").parameters
    verify("var_d16.pth", "var_d16.safetensors").agrees()

The PyTorch reference of both models is in ``var_convert.reference`` and needs the extra
``[torch]``; nothing here imports PyTorch before a ``.pth`` is read or written.
"""

from var_convert.conversion import Conversion, convert
from var_convert.inspection import Inspection, TensorSummary, inspect
from var_convert.merging import Merge, merge
from var_convert.parity import ForwardDifference, IdDifference, compare_ids
from var_convert.training import TrainingConversion, convert_training
from var_convert.verification import TensorDifference, Verification, verify

__all__ = [
    "Conversion",
    "ForwardDifference",
    "IdDifference",
    "Inspection",
    "Merge",
    "TensorDifference",
    "TensorSummary",
    "TrainingConversion",
    "Verification",
    "compare_ids",
    "convert",
    "convert_training",
    "inspect",
    "merge",
    "verify",
]
