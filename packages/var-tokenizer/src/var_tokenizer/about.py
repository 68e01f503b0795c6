"""``python -m var_tokenizer.about``: says what runs here, as text to paste into an issue.

A line whose part is broken says why. Only the standard library is needed for the others.
"""

import argparse
import ctypes
import logging
import os
import platform
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_WITH_KERNELS = ("var-tokenizer", "var-transformer", "var-train")
VARIABLES = ("VAR_CPU", "OMP_NUM_THREADS", "ONEDNN_MAX_CPU_ISA")


def report() -> str:
    """Device, processor, instruction set, threads, versions and kernels: a line for each."""
    variables = [f"{name}={_shown(os.environ[name])}" for name in _set_variables()]
    rows = [("environment", " ".join(variables) or "none of " + ", ".join(VARIABLES))]
    rows += [(name, _or_reason(value)) for name, value in _lines()]
    width = max(len(name) for name, _ in rows)
    return "".join(f"{name:{width}}  {value}\n" for name, value in rows)


def _set_variables() -> list[str]:
    # VAR_CPU sets the other in this process
    ours = {"ONEDNN_MAX_CPU_ISA"} if os.environ.get("VAR_CPU") else set()
    return [name for name in VARIABLES if name in os.environ and name not in ours]


def _shown(value: str) -> str:
    return value if value.isprintable() and len(value) <= 80 else f"{ascii(value)[:80]}..."


def _lines() -> Iterator[tuple[str, Callable[[], str]]]:
    yield "system", platform.platform
    yield "processor", _processor
    yield "device", _device
    yield "instruction set", _instruction_set
    yield "threads", _threads
    yield "python", platform.python_version
    yield "mindspore", partial(version, "mindspore")
    yield "numpy", partial(version, "numpy")
    yield "oneDNN", _onednn
    for name in _WITH_KERNELS:
        yield name, partial(_package, name)
    yield "var-convert", partial(version, "var-convert")


def _or_reason(value: Callable[[], str]) -> str:
    try:
        return value()
    except PackageNotFoundError:
        return "not installed"
    except Exception as error:  # whatever is broken here is what the reader wants to know
        return f"unknown, {type(error).__name__}: {' '.join(str(error).split())}"


def _processor() -> str:
    cores = f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} for this process"
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {cores}"


def _device() -> str:
    import mindspore

    return mindspore.get_context("device_target")


def _instruction_set() -> str:
    from var_tokenizer.common.kernels import KernelLibrary

    opened = KernelLibrary("var_tokenizer._kernels").opened
    if opened.reason:
        return f"none, {opened.reason}"
    return f"{opened.instruction_set} of {', '.join(opened.available)}"


def _threads() -> str:
    from var_tokenizer.common.threads import thread_count

    return str(thread_count())


def _onednn() -> str:
    from var_tokenizer.common.versions import onednn_path

    library = ctypes.CDLL(str(onednn_path()))
    library.dnnl_version.restype = ctypes.POINTER(ctypes.c_int * 3)
    numbers = library.dnnl_version().contents
    slower = ", not 3: some convolutions are slower" if numbers[0] < 3 else ""
    return ".".join(map(str, numbers)) + slower


def _package(distribution: str) -> str:
    return f"{version(distribution)}, kernels: {_or_reason(partial(_kernels, distribution))}"


def _kernels(distribution: str) -> str:
    from var_tokenizer.common.kernels import KernelLibrary, on_cpu

    if not on_cpu():
        return "not used, because the device is no CPU"
    opened = KernelLibrary(f"{distribution.replace('-', '_')}._kernels").opened
    return f"not used, {opened.reason}" if opened.reason else f"used, {opened.instruction_set}"


def main() -> None:
    """The command."""
    argparse.ArgumentParser("python -m var_tokenizer.about", description=__doc__).parse_args()
    logging.disable()  # the lines say it
    try:
        sys.stdout.write(report())
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's last flush
        if not isinstance(error, BrokenPipeError):  # there, who read it had enough
            sys.stderr.write(f"ERROR: standard output: {error.strerror}\n")
            sys.exit(2)


if __name__ == "__main__":
    main()
