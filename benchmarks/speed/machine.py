"""What the benchmarks record of the machine, and the instruction sets that it has."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

THREADS = 2
GIB = 2**30


def instruction_sets() -> list[str]:
    """What the kernels have and the machine, too, highest first, without the baseline."""
    from var_tokenizer.common import KernelLibrary  # peers' processes have no MindSpore

    available = KernelLibrary("var_tokenizer._kernels").opened.available
    return [name for name in reversed(available) if name != "baseline"]


def _cpuinfo(name: str) -> str:
    """The first line of that name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith(name)), "")


def machine() -> dict[str, Any]:
    return {
        "processor": _cpuinfo("model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": THREADS,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        "system": platform.platform(),
    }


def environment(name: str) -> dict[str, str]:
    """What holds ours and every peer to an instruction set.

    OV_CPU_MAX_ISA: OpenVINO's own kernels (2026.4 and later); its products of matrices, MLAS's,
    are not held by anything (see ``converted.py``).
    """
    if name == "neon":
        return {"VAR_CPU": name}
    wide = name == "v4"
    onednn = "AVX512_CORE" if wide else "AVX2"
    return {
        "VAR_CPU": name,
        "ATEN_CPU_CAPABILITY": "avx512" if wide else "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512" if wide else "AVX2",
        "TORCHINDUCTOR_CPP_MARCH": f"x86-64-{name}",
        "ONEDNN_MAX_CPU_ISA": onednn,
        "OV_CPU_MAX_ISA": onednn,
    }


def versions(pythons: dict[str, str]) -> dict[str, str]:
    """Of the packages measured. pythons: the interpreter of each peer's environment, by package."""
    names = ("mindspore", "numpy", "var-tokenizer", "var-transformer", "var-train")
    found = {"python": platform.python_version()} | {name: version(name) for name in names}
    for package in pythons.keys() - {"ours"}:
        script = f"from importlib.metadata import version; print(version({package!r}))"
        run = subprocess.run([pythons[package], "-c", script], capture_output=True, text=True)
        found[package] = run.stdout.strip()
    return found
