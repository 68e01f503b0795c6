"""Calls every kernel of an aarch64 library at every size, under QEMU, and checks the results.

aarch64.py [ONEDNN_LIBRARY]

Needs Debian's g++-aarch64-linux-gnu and qemu-user. oneDNN is that of MindSpore's own wheel for
aarch64, which is downloaded (370 MB) if no path is given.
"""

import logging
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import tomllib

ROOT = Path(__file__).parents[3]
TOKENIZER = ROOT / "packages" / "var-tokenizer"
sys.path += [str(ROOT / "tests"), str(TOKENIZER / "src/var_tokenizer/cpp/common")]
import building  # noqa: E402
from native.calls import LIBRARIES, Call, every_call, read_results, write  # noqa: E402
from native.expected import differences  # noqa: E402
from native.sizes import every_size  # noqa: E402

COMPILER = "aarch64-linux-gnu-g++"
# Armv8.0: QEMU ends a program that has any later instruction. And one with SVE, of 64 bytes, for
# which oneDNN has other code.
PROCESSORS = ("cortex-a72", "a64fx")
log = logging.getLogger("aarch64")


def download_onednn(folder: Path) -> Path:
    """The library within the wheel that pip takes on an aarch64 machine."""
    project = tomllib.loads((TOKENIZER / "pyproject.toml").read_text())["project"]
    (wanted,) = (name for name in project["dependencies"] if name.startswith("mindspore"))
    options = ["--platform", "manylinux2014_aarch64", "--python-version", "3.11"]
    options += ["--only-binary", ":all:", "--no-deps", "--quiet", "--dest", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, wanted], check=True)
    (wheel,) = folder.glob("mindspore-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract("mindspore/lib/libdnnl.so.3", folder))


def build(folder: Path) -> tuple[Path, list[Path]]:
    """The program that calls kernels, and the libraries."""
    os.environ["CXX"] = COMPILER
    libraries = [folder / f"{name}.so" for name in LIBRARIES]
    for name, library in zip(LIBRARIES, libraries, strict=True):
        source = ROOT / "packages" / f"var-{name}" / "src" / f"var_{name}"
        building.build(source, library, "aarch64")
    program = folder / "results"
    source = Path(__file__).with_name("results.cpp")
    command = [COMPILER, "-std=c++17", "-O1", str(source), "-ldl", "-pthread", "-o", str(program)]
    subprocess.run(command, check=True)
    return program, libraries


def wrong_results(
    program: Path, libraries: Sequence[Path], onednn: Path, processor: str, calls: Sequence[Call]
) -> list[str]:
    """A line for each array that is not as defined."""
    with tempfile.TemporaryDirectory() as folder:
        written, results = Path(folder, "calls"), Path(folder, "results")
        with written.open("wb") as file:
            write(calls, file)
        qemu = ["qemu-aarch64", "-cpu", processor, "-L", "/usr/aarch64-linux-gnu"]
        paths = map(str, (program, *libraries, onednn, written, results))
        done = subprocess.run([*qemu, *paths], check=True, stdout=subprocess.PIPE, text=True)
        if done.stdout.split() != ["neon"]:
            return [f"the kernels of {done.stdout!r} were called, expected neon"]
        with results.open("rb") as file:
            arrays = read_results(calls, file)
    return [line for pair in zip(calls, arrays, strict=True) for line in differences(*pair)]


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    calls = [*every_call(), *every_size()]
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        onednn = Path(sys.argv[1]) if sys.argv[1:] else download_onednn(Path(folder))
        program, libraries = build(Path(folder))
        for processor in PROCESSORS:
            begin = time.monotonic()
            lines = wrong_results(program, libraries, onednn, processor, calls)
            seconds = time.monotonic() - begin
            log.info("%s: %d calls in %.0f s", processor, len(calls), seconds)
            wrong += [f"{processor}: {line}" for line in lines]
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
