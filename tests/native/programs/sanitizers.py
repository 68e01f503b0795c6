"""Builds the native libraries and sanitizers.cpp with each sanitizer, and runs the program.

Needs g++, which has the sanitizers, and the oneDNN of MindSpore; imports no package that it builds.
"""

import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
TESTS = HERE.parents[1]
PACKAGES = TESTS.parent / "packages"
TOKENIZER = PACKAGES / "var-tokenizer" / "src" / "var_tokenizer"
sys.path += [str(TESTS), str(TOKENIZER / "cpp" / "common")]
import building  # noqa: E402
from native.calls import LIBRARIES, every_call, write  # noqa: E402

SANITIZERS = {"thread": ["thread"], "address": ["address", "undefined"]}
OPTIONS = {
    "TSAN_OPTIONS": "exitcode=66",
    "ASAN_OPTIONS": "detect_leaks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}
log = logging.getLogger("sanitizers")


def fixed_addresses() -> list[str]:
    """A prefix of a command: g++ 12's sanitizers fail where addresses are too random."""
    command = ["setarch", "--addr-no-randomize"]
    try:
        allowed = subprocess.run([*command, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return []
    return command if allowed else []


def run(name: str, target: Path, onednn: Path) -> None:
    begin = time.monotonic()
    flags = ["-O1", "-g", f"-fsanitize={','.join(SANITIZERS[name])}", "-fno-sanitize-recover=all"]
    libraries = [str(target / f"{library}.so") for library in LIBRARIES]
    for package, library in zip(LIBRARIES, libraries, strict=True):
        source = PACKAGES / f"var-{package}" / "src" / f"var_{package}"
        building.build(source, Path(library), flags=flags)
    program = ["g++", "-std=c++17", *flags, str(HERE / "sanitizers.cpp")]
    subprocess.run([*program, "-ldl", "-pthread", "-o", str(target / "program")], check=True)
    built = time.monotonic()
    calls = target / "calls"
    with calls.open("wb") as file:
        write(every_call(), file)
    program = [str(target / "program"), *libraries, str(onednn), str(calls)]
    subprocess.run([*fixed_addresses(), *program], check=True, env={**os.environ, **OPTIONS})
    end = time.monotonic()
    log.info("%s: %.0f s to build, %.0f s to run", name, built - begin, end - built)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    spec = importlib.util.find_spec("mindspore")
    if spec is None or spec.origin is None:
        sys.exit("MindSpore is not installed: its oneDNN is needed")
    for name in sys.argv[1:] or SANITIZERS:
        with tempfile.TemporaryDirectory() as target:
            run(name, Path(target), Path(spec.origin).parent / "lib" / "libdnnl.so.3")


if __name__ == "__main__":
    main()
