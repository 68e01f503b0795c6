"""Builds the kernels. Everything else about the package is in pyproject.toml."""

import sys

from setuptools import setup

sys.path.insert(0, "src/var_tokenizer/cpp/common")
from building import extension

setup(**extension("var_tokenizer"))
