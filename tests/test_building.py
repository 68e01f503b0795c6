"""The build of the kernels, as its sources say."""

import ctypes
import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

PACKAGES = Path(__file__).parents[1] / "packages"
CPP = PACKAGES / "var-tokenizer/src/var_tokenizer/cpp/common"


@pytest.fixture(scope="module")
def building():
    spec = importlib.util.spec_from_file_location("building", CPP / "building.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("compiler", ["", "g++ -g0"])
def test_cxx_may_be_empty_or_have_arguments(building, monkeypatch, tmp_path, compiler):
    monkeypatch.setenv("CXX", compiler)
    building.build(PACKAGES / "var-train/src/var_train", tmp_path / "train.so")
    assert hasattr(ctypes.CDLL(str(tmp_path / "train.so")), "adamw")


def test_a_failed_compiler_leaves_the_library_as_it_was(building, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "false")
    library = tmp_path / "train.so"
    library.write_text("before")
    with pytest.raises(subprocess.CalledProcessError):
        building.build(PACKAGES / "var-train/src/var_train", library)
    assert library.read_text() == "before"


def test_the_processor_is_asked_for_each_feature_that_a_variant_is_compiled_for(building):
    asked = set(re.findall(r'__builtin_cpu_supports\("(\w+)"\)', (CPP / "open.cpp").read_text()))
    flags = {flag for of in building.VARIANTS["x86_64"].values() for flag in of}
    named = {"-march=x86-64", "-mprefer-vector-width=512"}
    assert {flag.removeprefix("-m") for flag in flags - named} == asked
