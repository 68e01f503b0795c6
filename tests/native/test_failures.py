"""A kernel that fails is an error in Python, not a result that nothing was written to."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from native.calls import LIBRARIES
from var_tokenizer.common import KernelLibrary

PROGRAMS = Path(__file__).parent / "programs"


def test_kernels_report_each_call_of_onednn_that_fails(libraries, tmp_path):
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a compiler")
    onednn = Path(ms.__file__).parent / "lib" / "libdnnl.so.3"
    if not onednn.exists():
        pytest.skip("MindSpore before 2.9 has oneDNN 2, of which one function is used")
    failing = tmp_path / "libfailing.so"
    source = str(PROGRAMS / "failing_onednn.c")
    subprocess.run([compiler, "-shared", "-fPIC", source, "-o", str(failing), "-ldl"], check=True)
    paths = [KernelLibrary(f"var_{name}._kernels").path for name in LIBRARIES]
    environment = {**os.environ, "REAL_ONEDNN": str(onednn)}
    done = subprocess.run(
        [sys.executable, str(PROGRAMS / "failures.py"), *paths, str(failing)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_mindspore_raises_an_error_where_a_kernel_refuses(libraries):
    linear = KernelLibrary("var_transformer._kernels").operator(
        "linear", lambda x, weight, bias: (x[0], weight[0])
    )
    x, weight, bias = (Tensor(np.ones(shape, np.float32)) for shape in ((2, 3), (4, 5), (4,)))

    # in a graph: PyNative mode may raise an error again in a later call of another test
    def graph(x, weight, bias):
        return linear(x, weight, bias)

    with pytest.raises(RuntimeError, match="linear"):
        ms.jit(graph)(x, weight, bias).asnumpy()
