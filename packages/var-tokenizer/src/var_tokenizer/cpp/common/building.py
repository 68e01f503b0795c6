"""Compiles the kernels of a package once for each instruction set, into one library.

    python building.py PACKAGE TARGET.so [--machine aarch64] [FLAG ...]

builds it without setuptools, e.g. with CXX=aarch64-linux-gnu-g++ for another architecture.

``cpp/*.cpp`` is compiled for every variant; ``cpp/common/*.cpp``, which decides between them when
the library is opened, once for the lowest. An inline function that two variants use is compiled
twice under one name, and a linker would keep either one for both. So the symbols of each variant
but its kernels become local before the variants are linked.
"""

import argparse
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# Lowest first, as in variants.h; open.cpp asks the processor for just these features.
VARIANTS = {
    "x86_64": {
        "baseline": ["-march=x86-64"],
        "v3": ["-mavx2", "-mfma"],
        "v4": [
            *("-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq"),
            *("-mavx512vl", "-mprefer-vector-width=512"),
        ],
    },
    "aarch64": {"neon": ["-march=armv8-a"]},
}
_FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fopenmp-simd"),
    *("-fno-math-errno", "-fno-trapping-math"),
)
_POOL_OWNER = "var_tokenizer"  # its library has the threads of all


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def build(
    package: Path, target: Path, machine: str = platform.machine(), flags: Iterable[str] = ()
) -> None:
    """Compiles the library of ``package`` (the folder that has cpp/) with the compiler CXX.

    flags: more of them, for the compiler and the linker. Raises OSError or
    subprocess.CalledProcessError if a tool is missing or fails.
    """
    if machine not in VARIANTS:
        raise OSError(f"there are no kernels for {machine}, only for {', '.join(VARIANTS)}")
    variants = VARIANTS[machine]
    lowest = next(iter(variants))
    kernels = sorted((package / "cpp").glob("*.cpp"))
    common = sorted((package / "cpp" / "common").glob("*.cpp"))
    if package.name != _POOL_OWNER:
        common = [path for path in common if path.stem != "thread_pool"]
    with tempfile.TemporaryDirectory() as folder:
        sources = f'-DSOURCES="{digest(package)}"'
        objects = _compiled([*kernels, *common], lowest, machine, [sources, *flags], folder)
        for name in list(variants)[1:]:
            objects.append(f"{folder}/{name}.o")
            _link_apart(_compiled(kernels, name, machine, flags, folder), name, objects[-1])
        target.parent.mkdir(parents=True, exist_ok=True)
        written = target.with_suffix(".tmp")
        _run(*_compiler(), "-shared", *flags, *objects, "-ldl", "-pthread", "-o", str(written))
        written.replace(target)


def digest(package: Path) -> str:
    """A hash of the sources of ``package``, which its library knows, too."""
    files = sorted(path for room in ("cpp", "cpp/common") for path in (package / room).glob("*.*"))
    content = b"".join(path.name.encode() + path.read_bytes() for path in files)
    return hashlib.sha256(content).hexdigest()[:16]


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "")) or ["g++"]


def _compiled(
    sources: list[Path], variant: str, machine: str, flags: Iterable[str], folder: str
) -> list[str]:
    """Compiles sources, several at a time, for one variant; returns the objects in ``folder``."""
    command = [*_compiler(), *VARIANTS[machine][variant], *_FLAGS, f"-DVARIANT={variant}", *flags]
    if variant == next(iter(VARIANTS[machine])):
        command.append("-DLOWEST_VARIANT")
    objects = [f"{folder}/{variant}-{path.stem}.o" for path in sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiles = (
            pool.submit(_run, *command, "-c", str(source), "-o", result)
            for source, result in zip(sources, objects, strict=True)
        )
        for compiled in list(compiles):
            compiled.result()
    return objects


def _link_apart(objects: list[str], variant: str, target: str) -> None:
    """Links the objects of a variant into one, in which only its kernels have global names.

    The other names end in the variant's, so that a debugger or a disassembly shows whose they are.
    """
    _run(*_compiler(), "-r", "-nostdlib", "-Wl,--force-group-allocation", *objects, "-o", target)
    listed = _output(_tool("nm"), "--defined-only", "-P", target).splitlines()
    names = {line.split()[0] for line in listed}
    renamed = [f"{n} {n}.{variant}\n" for n in sorted(names) if not n.endswith(f"_{variant}")]
    new_names = Path(f"{target}.names")
    new_names.write_text("".join(renamed))
    keep = ("--wildcard", f"--keep-global-symbol=*_{variant}")
    _run(_tool("objcopy"), f"--redefine-syms={new_names}", *keep, target)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _tool(name: str) -> str:
    """A tool that comes with the compiler."""
    return _output(*_compiler(), f"-print-prog-name={name}").strip()


def extension(package: str) -> dict[str, Any]:
    """What setup() needs to build the kernels of ``package``; without a compiler it goes on."""
    from setuptools import Extension
    from setuptools.command.bdist_wheel import bdist_wheel
    from setuptools.command.build_ext import build_ext
    from setuptools.errors import CompileError

    folder = Path("src", package)

    class Build(build_ext):
        def get_ext_filename(self, fullname: str) -> str:
            return f"{fullname.replace('.', os.sep)}.so"  # of any version of Python

        def build_extension(self, ext: Extension) -> None:
            try:
                build(folder, Path(self.get_ext_fullpath(ext.name)).absolute())
            except (OSError, subprocess.CalledProcessError) as error:
                raise CompileError(f"{ext.name}: {error}") from error

    class Wheel(bdist_wheel):
        def get_tag(self) -> tuple[str, str, str]:
            return "py3", "none", super().get_tag()[2]  # of any version of Python, too

    rooms = (folder / "cpp", folder / "cpp" / "common")
    files = sorted(str(path) for room in rooms for path in room.glob("*.*"))
    kernels = Extension(
        f"{package}._kernels",  # no module: common/kernels.py gives it to MindSpore
        sources=[path for path in files if path.endswith(".cpp")],
        depends=[path for path in files if path.endswith((".h", ".py"))],
        optional=True,
    )
    return {"ext_modules": [kernels], "cmdclass": {"build_ext": Build, "bdist_wheel": Wheel}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--machine", default=platform.machine())
    options, flags = parser.parse_known_args()
    build(options.package, options.target, options.machine, flags)
