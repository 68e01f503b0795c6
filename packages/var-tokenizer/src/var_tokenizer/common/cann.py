"""CANN: whether it is there, and in a version that this MindSpore works with."""

import logging
import os
import shutil
from pathlib import Path

import mindspore as ms
from mindspore.run_check import _check_version

from var_tokenizer.common.errors import InputError, quoted
from var_tokenizer.common.kernels import on_cpu

log = logging.getLogger(__name__)

_DEVICES = Path("/dev")


def find_npu() -> str | None:
    """What shows that this machine has an NPU, usable or not: a file of its driver, or its tool."""
    files = sorted(map(str, _DEVICES.glob("davinci*")))
    return files[0] if files else shutil.which("npu-smi")


def warn_of_cann() -> None:
    """Logs what ``check_npu`` says, if there is an NPU: MindSpore would use the CPU, or fail."""
    npu = find_npu()
    if npu is not None:
        try:
            check_npu(npu)
        except InputError as error:
            log.warning("%s", error)


def check_npu(npu: str) -> str:
    """The version of CANN, if MindSpore computes on the NPU that ``find_npu`` found.

    Raises the InputError of ``check_cann``; and one that names NPU and device if it does not.
    """
    version = check_cann()
    if on_cpu():
        raise InputError(
            f"{quoted(npu)} says that there is an NPU, but the device is the CPU: MindSpore "
            f"{ms.__version__} did not load its plug-in for CANN {version}; expected an Ascend "
            "(python -c \"import mindspore; mindspore.set_device('Ascend')\" says why)"
        )
    return version


def wanted_versions() -> list[str]:
    """What this MindSpore names in its own check of CANN, for example ["8.2", "8.3"]."""
    return list(_check_version.AscendEnvChecker("").version)


def check_cann() -> str:
    """The version of CANN, for example "8.3".

    Raises InputError, with both versions, if CANN is missing or this MindSpore wants another.
    """
    wanted = f"MindSpore {ms.__version__} expects {' or '.join(wanted_versions())}"
    remedy = "source CANN's set_env.sh"
    home = os.environ.get("ASCEND_HOME_PATH")
    if home is None:
        raise InputError(f"CANN is missing (ASCEND_HOME_PATH is not set); {wanted}: {remedy}")
    path = Path(home) / "compiler" / "version.info"  # where MindSpore looks
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError as error:
        raise InputError(
            f"CANN is missing ({quoted(path)}: {error.strerror}); {wanted}: {remedy}"
        ) from error
    found = [line.partition("=")[2].strip() for line in lines if line.startswith("Version=")]
    version = ".".join(found[0].split(".")[:2]) if found else "of no version"
    if version not in wanted_versions():
        raise InputError(f"CANN is {quoted(version)} ({quoted(path)}); {wanted}")
    return version
