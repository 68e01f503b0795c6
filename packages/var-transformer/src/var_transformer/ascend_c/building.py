"""Builds the fused operators with CANN's compiler and MindSpore's builder, and loads them."""

import functools
import hashlib
import importlib
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
from mindspore import ops
from var_tokenizer.common import InputError, check_cann, check_private, takes_built_operators

log = logging.getLogger(__name__)

_SOURCES = Path(__file__).parent
_MODULE = "var_ascend_c"
_KERNELS = "libvar_ascend_c_kernels.so"


def directory() -> Path:
    """The build folder for these sources and this version of MindSpore; it need not exist."""
    digest = hashlib.sha256(ms.__version__.encode())
    for path in sorted(_SOURCES.iterdir()):
        if path.suffix in (".h", ".cpp", ".cc", ".yaml"):
            digest.update(path.read_bytes())
    return Path.home() / ".cache" / "var-transformer" / f"ascend_c-{digest.hexdigest()[:16]}"


def build(npu_arch: str) -> Path:
    """Compiles the kernels for an architecture ("dav-2201") and the operators; returns the folder.

    Raises InputError if CANN, its compiler, ninja or PyYAML is missing, if CANN is of another
    version than MindSpore wants, if MindSpore's graphs take no such operators, or if compilation
    fails.
    """
    check_cann()
    if not takes_built_operators():
        raise InputError(
            f"MindSpore is {ms.__version__}, whose graphs take no such operators; "
            "expected 2.7.1 or later"
        )
    compiler = shutil.which("bisheng")
    if compiler is None or "ASCEND_OPP_PATH" not in os.environ:
        raise InputError(
            "CANN is missing: ASCEND_OPP_PATH and bisheng on the PATH are expected; source CANN's "
            "set_env.sh"
        )
    has_ninja, has_yaml = shutil.which("ninja") is not None, find_spec("yaml") is not None
    if not (has_ninja and has_yaml):
        missing = " and ".join(["ninja"] * (not has_ninja) + ["pyyaml"] * (not has_yaml))
        raise InputError(
            f"{missing} is missing, which MindSpore's builder of operators needs; "
            "expected: pip install ninja pyyaml"
        )
    cann = os.environ["ASCEND_HOME_PATH"]
    target = directory()
    target.mkdir(0o700, parents=True, exist_ok=True)
    interface = Path(cann) / "compiler" / "tikcpp" / "tikcfw"
    folders = (interface, interface / "impl", interface / "interface", Path(cann) / "include")
    command = [
        *(compiler, "-fPIC", "-shared", "-xasc", "-O2", "-std=c++17", f"--npu-arch={npu_arch}"),
        *(f"-I{folder}" for folder in (*folders, _SOURCES)),
        *("-o", str(target / _KERNELS), str(_SOURCES / "kernels.cpp")),
    ]
    log.info("%s", " ".join(command))
    if subprocess.run(command, check=False).returncode != 0:
        raise InputError("bisheng failed to compile the kernels; its own message is above")
    link = f"-L{target} -l:{_KERNELS} -Wl,-rpath,{target}"
    build_operators(target, "Ascend", ldflags=link)
    return target


def build_operators(
    target: Path,
    backend: str,
    sources: Sequence[Path] = (),
    include_paths: Sequence[Path] = (),
    ldflags: str | None = None,
) -> None:
    """Builds the kernels as operators of MindSpore, for "Ascend" or, in tests, for "CPU"."""
    builder = ops.CustomOpBuilder(
        _MODULE,
        [str(path) for path in (_SOURCES / "operators.cc", *sources)],
        backend=backend,
        include_paths=[str(path) for path in (_SOURCES, *include_paths)],
        cflags="-w",  # MindSpore's headers warn by the hundred
        ldflags=ldflags,
        build_dir=str(target),
        op_def=str(_SOURCES / "operators.yaml"),
    )
    builder.build()


def load(target: Path) -> SimpleNamespace:
    """The operators built in ``target``, for graphs and for PyNative mode.

    Raises InputError if other users can write to that folder.
    """
    check_private(target)
    if str(target) not in sys.path:
        sys.path.append(str(target))
    # Primitives, not the functions that MindSpore generates around them: to a function in a graph
    # it hands a copy of each array that is written to, and a cache would stay as it was.
    built = importlib.import_module(f"{_MODULE}_auto_generate.gen_ops_prim")
    names = ("var_modulated_norm", "var_cached_heads")
    return SimpleNamespace(**{name: getattr(built, f"{name}_op") for name in names})


@functools.cache
def _loaded() -> SimpleNamespace | None:
    if not (directory() / f"{_MODULE}.so").is_file():
        log.info("the fused operators are not built (python -m var_transformer.ascend_c)")
        return None
    try:
        return load(directory())
    except InputError as error:
        log.warning("%s; running without the fused operators", error)
        return None


def operators() -> SimpleNamespace | None:
    """The fused operators; None unless the device is an Ascend and they were built."""
    return _loaded() if ms.get_context("device_target") == "Ascend" else None
