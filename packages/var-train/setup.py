"""Builds the kernels. Everything else about the package is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import setup

COMMON = Path("src/var_train/cpp/common")
if not COMMON.exists():
    sys.exit(f"{COMMON} is a link into var-tokenizer, which is not beside this: copy with cp -rL")
sys.path.insert(0, str(COMMON))
from building import extension  # noqa: E402

setup(**extension("var_train"))
