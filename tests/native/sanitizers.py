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
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from calls import LIBRARIES, every_call, write

HERE = Path(__file__).parent
PACKAGES = HERE.parents[1] / "packages"
SANITIZERS = {"thread": ["thread"], "address": ["address", "undefined"]}
OPTIONS = {
    "TSAN_OPTIONS": "exitcode=66",
    "ASAN_OPTIONS": "detect_leaks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}
log = logging.getLogger("sanitizers")


def flags(kinds: list[str]) -> list[str]:
    return ["-O1", "-g", f"-fsanitize={','.join(kinds)}", "-fno-sanitize-recover=all"]


def compile_commands(kinds: list[str], target: Path) -> list[tuple[list[str], list[list[str]]]]:
    """For each library and the program: how it is linked, and how its sources are compiled."""
    commands = []
    for name in LIBRARIES:
        package = PACKAGES / f"var-{name}"
        project = tomllib.loads((package / "pyproject.toml").read_text())
        (module,) = project["tool"]["setuptools"]["ext-modules"]
        arguments = [a for a in module["extra-compile-args"] if not a.startswith("-O")]
        objects, compiles = [], []
        for source in module["sources"]:
            objects.append(str(target / f"{name}-{Path(source).stem}.o"))
            command = ["g++", *arguments, *flags(kinds), "-fPIC", "-c", str(package / source)]
            compiles.append([*command, "-o", objects[-1]])
        library = str(target / f"{name}.so")
        link = ["g++", "-shared", *flags(kinds), *objects, *module["extra-link-args"]]
        commands.append(([*link, "-o", library], compiles))
    program = ["g++", "-std=c++17", *flags(kinds), str(HERE / "sanitizers.cpp")]
    commands.append(([*program, "-ldl", "-pthread", "-o", str(target / "program")], []))
    return commands


def fixed_addresses() -> list[str]:
    """A prefix of a command: g++ 12's sanitizers fail where addresses are too random."""
    command = ["setarch", "--addr-no-randomize"]
    try:
        allowed = subprocess.run([*command, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return []
    return command if allowed else []


def call(command: list[str]) -> None:
    subprocess.run(command, check=True)


def run(name: str, target: Path, onednn: Path) -> None:
    begin = time.monotonic()
    commands = compile_commands(SANITIZERS[name], target)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(call, [command for _, compiles in commands for command in compiles]))
        list(pool.map(call, [link for link, _ in commands]))
    built = time.monotonic()
    libraries = [str(target / f"{library}.so") for library in LIBRARIES]
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
