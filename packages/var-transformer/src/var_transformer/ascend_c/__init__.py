"""Fused operators in Ascend C for what surrounds the attention.

    python -m var_transformer.ascend_c        # on a machine with CANN: builds them

builds them once; ``operators()`` gives them from then on, and None on any other device and where
they were not built. Callers then compose MindSpore's own operators. Nothing is built at import.

The kernels have no backward: their cells compose it.

| file | what |
| --- | --- |
| ``tiling.h`` | rows to cores and tiles to the unified buffer, in plain C++ |
| ``modulated_norm.h``, ``unit_heads.h``, ``vector.h`` | the kernels |
| ``kernels.cpp``, ``launch.h`` | their entry points |
| ``operators.cc``, ``operators.yaml`` | MindSpore's operators of them |
| ``building.py``, ``cells.py`` | the build; cells with gradients |
"""

from var_transformer.ascend_c.building import build, load, operators
from var_transformer.ascend_c.cells import ModulatedNorm, UnitHeads, takes_heads, takes_width

__all__ = [
    "ModulatedNorm",
    "UnitHeads",
    "build",
    "load",
    "operators",
    "takes_heads",
    "takes_width",
]
