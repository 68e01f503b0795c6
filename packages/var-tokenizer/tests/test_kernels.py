"""Which kernels a process uses: the instruction set, and libraries that do not suit it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from var_tokenizer.common import kernels
from var_tokenizer.common.kernels import KernelLibrary

LIBRARY = KernelLibrary("var_tokenizer._kernels")
CPP = Path(__file__).parents[1] / "src" / "var_tokenizer" / "cpp" / "common"

DRAW = """
import mindspore as ms
import numpy as np
from var_tokenizer import operators
from var_tokenizer.common.kernels import KernelLibrary

x, weight = (np.ones(shape, np.float32) for shape in ((1, 8, 8, 32), (32, 3, 3, 32)))
y = operators.conv2d(3)(ms.Tensor(x), ms.Tensor(weight), ms.Tensor(np.zeros(32, np.float32)))
assert y[0, 3, 3, 5] == 9 * 32
print(KernelLibrary("var_tokenizer._kernels").opened.instruction_set or "composed")
"""


@pytest.fixture(autouse=True)
def built():
    if LIBRARY.path is None:
        pytest.skip("the kernels were not built when the package was installed")


def draw(**environment: str) -> subprocess.CompletedProcess:
    """A convolution in a new process, which prints what computed it."""
    environment = {**os.environ, "GLOG_v": "3", **environment}
    command = [sys.executable, "-c", DRAW]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


def test_the_best_instruction_set_that_the_processor_has_is_used():
    assert draw(VAR_CPU="").stdout.split() == [LIBRARY.opened.available[-1]]


@pytest.mark.parametrize("name", LIBRARY.opened.available)
def test_the_kernels_run_in_every_instruction_set_that_the_processor_has(name):
    drawn = draw(VAR_CPU=name)
    assert drawn.stdout.split() == [name]
    assert "VAR_CPU" not in drawn.stderr


@pytest.mark.parametrize("name", ["v5", "AVX2", "../v3", "v3\x1b[31m"])
def test_an_unknown_instruction_set_is_named_and_operators_are_composed(name):
    drawn = draw(VAR_CPU=name)
    assert drawn.stdout.split() == ["composed"]
    (line,) = [line for line in drawn.stderr.splitlines() if "VAR_CPU" in line]
    known = ", ".join(kernels._instruction_sets(kernels._load(LIBRARY.path)))
    assert line.startswith(f"VAR_CPU is {name!r}; expected one of {known}: operators are composed")


def test_an_instruction_set_that_the_processor_lacks_is_named_beside_those_it_has(
    monkeypatch, caplog
):
    sets = {"baseline": True, "v3": True, "v4": False}
    monkeypatch.setattr(kernels, "_instruction_sets", lambda library: sets)
    monkeypatch.setattr(kernels, "_wanted", "v4")
    assert KernelLibrary("var_tokenizer._kernels").if_usable() is None
    (record,) = (r for r in caplog.records if r.levelname == "WARNING")
    expected = "VAR_CPU is 'v4', and the processor has baseline, v3 only: operators are composed"
    assert record.getMessage().startswith(expected)


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A package ``other`` whose library is a copy of ours."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    return Path(shutil.copy(LIBRARY.path, tmp_path / "other" / "_kernels.so"))


def test_a_library_of_another_architecture_is_refused_by_both_names(copied, caplog):
    content = bytearray(copied.read_bytes())
    content[18:20] = (243).to_bytes(2, "little")
    copied.write_bytes(content)
    library = KernelLibrary("other._kernels")
    assert library.if_usable() is None
    (record,) = (r for r in caplog.records if r.levelname == "WARNING")
    assert "other/_kernels.so was built for machine 243, and this is " in record.getMessage()


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"#!/bin/sh\n" * 9])
def test_a_broken_library_is_refused(copied, content, caplog):
    copied.write_bytes(content)
    assert KernelLibrary("other._kernels").if_usable() is None
    (record,) = (r for r in caplog.records if r.levelname == "WARNING")
    assert "_kernels.so" in record.getMessage()


def test_a_library_that_is_cut_off_is_refused(copied, caplog):
    copied.write_bytes(copied.read_bytes()[:20000])
    assert KernelLibrary("other._kernels").if_usable() is None
    (record,) = (r for r in caplog.records if r.levelname == "WARNING")
    assert "other/_kernels.so is cut off" in record.getMessage()


def test_a_library_built_from_other_sources_than_those_beside_it_is_refused(copied, caplog):
    if not CPP.exists():
        pytest.skip("the sources are not here")
    shutil.copytree(CPP.parent, copied.parent / "cpp")
    assert KernelLibrary("other._kernels").if_usable() is not None
    with (copied.parent / "cpp" / "winograd.cpp").open("a") as file:
        file.write("// a later version\n")
    assert KernelLibrary("other._kernels").if_usable() is None
    (record,) = (r for r in caplog.records if r.levelname == "WARNING")
    assert "was built from other sources; install other again" in record.getMessage()


@pytest.mark.skipif(shutil.which("gcc") is None, reason="a library is made with gcc")
def test_a_library_of_another_version_is_refused(copied, caplog, tmp_path):
    source = tmp_path / "old.c"
    source.write_text("int open_kernels(void) { return 0; }")
    subprocess.run(["gcc", "-shared", str(source), "-o", str(copied)], check=True)
    assert KernelLibrary("other._kernels").if_usable() is None
    (record,) = (r for r in caplog.records if r.levelname == "WARNING")
    assert "other/_kernels.so" in record.getMessage()
    assert "another version" in record.getMessage()
