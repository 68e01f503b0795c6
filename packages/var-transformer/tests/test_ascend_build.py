"""The operators of Ascend's backend compile as MindSpore's builder compiles them, without CANN."""

import shutil
import subprocess
import sysconfig

import pytest
from ascend_models import MODEL, SOURCES
from mindspore import ops

# MindSpore's machinery for CANN's own operators, of which ours use nothing; it needs all of CANN
ACLNN = (
    "include/kernel/ascend/custom/pyboost_impl/aclnn_op_runner.h",
    "include/kernel/ascend/custom/pyboost_impl_v2/aclnn_dispatch.h",
    "mindspore/ccsrc/plugin/ascend/res_manager/mem_manager/ascend_memory_pool.h",
    "mindspore/ops/kernel/ascend/aclnn/pyboost_impl/customize/custom_launch_aclnn.h",
    "mindspore/ops/kernel/ascend/internal/internal_ascend_adapter.h",
)


@pytest.mark.slow  # fifteen seconds of g++ on MindSpore's headers
def test_the_operators_compile_for_ascends_backend(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("needs a compiler")
    for name in ACLNN:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    source = str(SOURCES / "operators.cc")
    builder = ops.CustomOpBuilder("var_ascend_c", [source], backend="CPU")
    folders = (tmp_path, SOURCES, MODEL, *builder.get_include_paths())
    command = [
        *("g++", "-fsyntax-only", *builder.get_cflags(), "-O0", "-w", "-DCUSTOM_ASCEND_OP"),
        *(f"-I{folder}" for folder in (*folders, sysconfig.get_path("include"))),
    ]
    compiled = subprocess.run([*command, source], capture_output=True, text=True, check=False)
    errors = [line for line in compiled.stderr.splitlines() if "error" in line]
    assert compiled.returncode == 0, "\n".join(errors[:5])
