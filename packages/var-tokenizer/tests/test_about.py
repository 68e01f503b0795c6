"""What ``python -m var_tokenizer.about`` says, above all where something is broken."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from var_tokenizer import about


def lines(**environment):
    """What the command prints: names -> values."""
    process = subprocess.run(
        [sys.executable, "-m", "var_tokenizer.about"],
        env={k: v for k, v in os.environ.items() if k not in about.VARIABLES} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Traceback" not in process.stderr
    rows = [line.partition("  ") for line in process.stdout.splitlines()]
    return {name: value.strip() for name, _, value in rows}


def test_it_names_device_threads_and_versions():
    found = lines(OMP_NUM_THREADS="1")
    assert found["python"] == platform.python_version()
    assert found["device"] == "CPU" and found["threads"] == "1"
    major, slower = int(found["oneDNN"].partition(".")[0]), "slower" in found["oneDNN"]
    assert (major, slower) in ((3, False), (2, True))
    assert found["environment"] == "OMP_NUM_THREADS=1"


def test_it_names_the_chosen_instruction_set_and_who_uses_it():
    chosen, _, available = lines()["instruction set"].partition(" of ")
    if not available:
        pytest.skip("kernels were not built")
    lowest = available.split(", ")[0]
    assert chosen == available.split(", ")[-1]
    found = lines(VAR_CPU=lowest)
    assert found["instruction set"] == f"{lowest} of {available}"
    assert found["var-tokenizer"].endswith(f"kernels: used, {lowest}")


def test_it_says_why_kernels_are_not_used():
    if " of " not in lines()["instruction set"]:
        pytest.skip("kernels were not built")
    assert "not used, VAR_CPU is 'i386'" in lines(VAR_CPU="i386")["var-tokenizer"]


def test_it_says_what_is_wrong_with_a_broken_mindspore(tmp_path):
    (tmp_path / "mindspore").mkdir()
    (tmp_path / "mindspore" / "__init__.py").write_text("raise OSError('libx.so is\\nmissing')")
    found = lines(PYTHONPATH=str(tmp_path))
    assert found["device"] == "unknown, OSError: libx.so is missing"
    assert found["python"] == platform.python_version()
    assert found["var-tokenizer"].endswith("kernels: unknown, OSError: libx.so is missing")


def test_a_variable_cannot_break_the_lines_or_colour_a_terminal():
    found = lines(VAR_CPU="v3\nprocessor  other\x1b[31m" + "x" * 5000)
    assert "\x1b" not in "".join(found.values())
    assert "other" not in found["processor"]
    assert len(found["environment"]) < 120


def test_a_reader_that_leaves_early_is_no_error():
    command = f"set -o pipefail; {sys.executable} -m var_tokenizer.about | true"
    process = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")


def test_a_full_disk_is_one_line_and_exit_code_2():
    command = [sys.executable, "-m", "var_tokenizer.about"]
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert process.returncode == 2
    assert process.stderr == "ERROR: standard output: No space left on device\n"


def test_it_says_which_of_the_packages_are_not_installed(monkeypatch):
    def none(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(about, "version", none)
    found = [line.split(None, 1) for line in about.report().splitlines()]
    assert ["var-train", "not installed"] in found
