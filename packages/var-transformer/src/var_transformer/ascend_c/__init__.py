"""Fused operators in Ascend C for the steps around the attention.

    python -m var_transformer.ascend_c        # on a machine with CANN

builds them once; from then on ``operators()`` returns them. It returns None on any other device
and if they were not built: callers then compose MindSpore's operators. Importing builds nothing.

The norm's gradient is composed, and computes the norm again. The heads are used in generation
alone: in training they would save a kernel or two of a block, and have no gradient.

| file | what |
| --- | --- |
| ``tiling.h`` | divides rows among cores and into tiles for the unified buffer; plain C++ |
| ``modulated_norm.h``, ``unit_heads.h``, ``vector.h`` | the kernels |
| ``kernels.cpp``, ``launch.h`` | their entry points |
| ``operators.cc``, ``operators.yaml`` | the kernels as operators of MindSpore |
| ``building.py`` | the build |
| ``cells.py`` | what they take; the norm with its gradient |
"""

from var_transformer.ascend_c.building import build, load, operators
from var_transformer.ascend_c.cells import ModulatedNorm, takes_heads, takes_width

__all__ = [
    "ModulatedNorm",
    "build",
    "load",
    "operators",
    "takes_heads",
    "takes_width",
]
