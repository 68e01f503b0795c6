"""The build of the kernels, as its sources say."""

import importlib.util
import re
from pathlib import Path

CPP = Path(__file__).parents[1] / "packages/var-tokenizer/src/var_tokenizer/cpp/common"


def test_the_processor_is_asked_for_each_feature_that_a_variant_is_compiled_for():
    spec = importlib.util.spec_from_file_location("building", CPP / "building.py")
    building = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(building)
    asked = set(re.findall(r'__builtin_cpu_supports\("(\w+)"\)', (CPP / "open.cpp").read_text()))
    flags = {flag for of in building.VARIANTS["x86_64"].values() for flag in of}
    named = {"-march=x86-64", "-mprefer-vector-width=512"}
    assert {flag.removeprefix("-m") for flag in flags - named} == asked
