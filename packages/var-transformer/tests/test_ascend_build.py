"""What would stop a build of the operators in Ascend C, tried without CANN.

`nox -s ascend` builds them by the project's command, with g++ in the place of CANN's compiler.
"""

import os
import shutil
import subprocess
import sysconfig

import pytest
from ascend_models import MODEL, SOURCES
from mindspore import ops
from var_transformer.ascend_c import building
from var_transformer.ascend_c.__main__ import BuildConfig, run

PLANS = """
#include "tiling.h"
using namespace var_transformer;
int main() {
  return PlanModulatedNorm(1, 2, 64, DType::kFloat32, DType::kFloat16, 40, 1e-6f).cores +
         PlanUnitHeads(1, 2, 4, 16, 2, 0, DType::kFloat32, DType::kFloat16, 40).cores;
}
"""


def test_the_command_compiles_the_kernels_for_the_architecture_of_today(monkeypatch, tmp_path):
    compiler, target, linked = tmp_path / "bin" / "bisheng", tmp_path / "built", []
    compiler.parent.mkdir()
    compiler.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$0.given"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{compiler.parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("ASCEND_HOME_PATH", "ASCEND_OPP_PATH"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(building, "check_cann", lambda: "8.5")
    monkeypatch.setattr(building, "takes_built_operators", lambda: True)
    monkeypatch.setattr(building, "directory", lambda: target)
    monkeypatch.setattr(building, "build_operators", lambda *_, ldflags: linked.append(ldflags))
    run(BuildConfig())
    given = compiler.with_name("bisheng.given").read_text().splitlines()
    assert {"-xasc", "--npu-arch=dav-2201", f"-I{SOURCES}"} <= set(given)
    kernels = target / "libvar_ascend_c_kernels.so"
    assert given[-3:] == ["-o", str(kernels), str(SOURCES / "kernels.cpp")]
    assert linked == [f"-L{target} -l:{kernels.name} -Wl,-rpath,{target}"]


@pytest.mark.parametrize("helper", [None, "Least", "RoundUp", "BuffersOf"])
def test_host_functions_call_none_of_the_devices(tmp_path, helper):
    """As g++ tells it; with a helper that is the device's alone it does not compile."""
    if shutil.which("g++") is None:
        pytest.skip("needs a compiler")
    lines = (SOURCES / "tiling.h").read_text().splitlines()
    of_device = [helper is not None and f" {helper}(" in line for line in lines]
    assert any(of_device) == (helper is not None)
    for i, its in enumerate(of_device):
        if its:
            lines[i] = lines[i].replace("__host_aicore__", "__aicore__")
    (tmp_path / "tiling.h").write_text("\n".join(lines))
    (tmp_path / "plans.cpp").write_text(PLANS)
    command = [
        *("g++", "-std=c++17", "-O0", "-c", "plans.cpp", "-D__host_aicore__="),
        '-D__aicore__=__attribute__((error("of the device")))',
    ]
    compiled = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (compiled.returncode == 0) == (helper is None), compiled.stderr
    assert ("of the device" in compiled.stderr) == (helper is not None)


@pytest.mark.slow  # fifteen seconds of g++ on MindSpore's headers
def test_the_operators_compile_for_ascends_backend():
    if shutil.which("g++") is None:
        pytest.skip("needs a compiler")
    source = str(SOURCES / "operators.cc")
    builder = ops.CustomOpBuilder("var_ascend_c", [source], backend="CPU")
    folders = (MODEL / "without_cann", SOURCES, MODEL, *builder.get_include_paths())
    command = [
        *("g++", "-fsyntax-only", *builder.get_cflags(), "-O0", "-w", "-DCUSTOM_ASCEND_OP"),
        *(f"-I{folder}" for folder in (*folders, sysconfig.get_path("include"))),
    ]
    compiled = subprocess.run([*command, source], capture_output=True, text=True, check=False)
    errors = [line for line in compiled.stderr.splitlines() if "error" in line]
    assert compiled.returncode == 0, "\n".join(errors[:5])
