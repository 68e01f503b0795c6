"""What every command does: its ``--help``, and its warning of an NPU that cannot be used."""

import os
import runpy
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from var_tokenizer.common import cann

ROOT = Path(__file__).parents[1] / "packages"
# each takes a second or more; MindSpore's own __init__.py begins with its log, ours never name it
HEAVY = {"mindspore.log", "torch", "sklearn", "tensorboardX", "gradio"}
# as -m would run it, but for what var_tokenizer sees of it: MindSpore is imported
WITH_MINDSPORE = "import runpy, sys; runpy.run_module({0!r}, None, '__main__', True)"
# as -m would run it on a machine that has an NPU's driver, but no CANN
BESIDE_AN_NPU = """
import runpy, sys
sys.argv[0] = "-m"
from var_tokenizer.common import cann
cann.find_npu = lambda: "/dev/davinci0"
runpy.run_module({0!r}, None, "__main__", True)
"""


def commands() -> list[str]:
    """Every module that does something if it is run."""
    found = []
    for path in ROOT.glob("*/src/**/*.py"):
        if path.name == "__main__.py" or '__name__ == "__main__"' in path.read_text():
            parts = path.with_suffix("").relative_to(ROOT).parts[2:]  # after PACKAGE/src
            if "cpp" not in parts:  # a script of the build, which is not installed
                found.append(".".join(part for part in parts if part != "__main__"))
    return sorted(found)


def python(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "80", "GLOG_v": "3"}
    words = (sys.executable, *words)
    return subprocess.run(words, capture_output=True, text=True, check=True, env=environment)


def test_all_commands_are_found():
    some = {"var_train.run", "var_transformer.edit", "var_convert", "var_tokenizer.about"}
    assert some <= set(commands())


@pytest.mark.parametrize("command", commands())
def test_help_loads_nothing_heavy(command):
    shown = python("-X", "importtime", "-m", command, "--help")
    loaded = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "var_tokenizer" in loaded and not loaded & HEAVY
    assert shown.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", commands())
def test_help_says_the_same_with_mindspore(command):
    expected = python("-c", WITH_MINDSPORE.format(command), "--help")
    assert python("-m", command, "--help").stdout == expected.stdout


def test_help_does_not_look_for_cann():
    shown = python("-c", BESIDE_AN_NPU.format("var_transformer.sample"), "--help")
    assert shown.stdout and not shown.stderr


@pytest.mark.filterwarnings("ignore:.* found in sys.modules")  # a test before imported it
@pytest.mark.parametrize("command", sorted(set(commands()) - {"var_tokenizer.about"}))
def test_a_command_warns_once_of_a_cann_that_is_missing(monkeypatch, caplog, command):
    monkeypatch.setattr(cann, "find_npu", lambda: "/dev/davinci0")
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    monkeypatch.setattr(sys, "argv", [command, "--no-such-option"])
    with suppress(SystemExit):
        runpy.run_module(command, None, "__main__", True)
    warned = [r.levelname for r in caplog.records if "CANN is missing" in r.message]
    assert warned == ["WARNING"]
