"""How commands log, and how they end."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mindspore
import pytest
from var_tokenizer.common import InputError, check_integer
from var_tokenizer.common.command import exit_codes, run_command

COMMAND = """
import logging
import signal
from var_tokenizer.common.command import exit_codes
with exit_codes("interrupted; the same command continues"):
    logging.getLogger("var_train").info("long %s", "name " * 300)
    logging.getLogger("var_train").warning("%s", "\\x1b[2J\\nERROR: caf\u00e9")
    logging.getLogger("httpx").info("not ours")
    signal.raise_signal(signal.SIGTERM)
"""


def raising(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


def turned_into_another_error() -> None:
    """As MindSpore does where a compilation is interrupted."""
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        raise RuntimeError


@pytest.mark.parametrize(
    ("action", "code", "said"),
    [
        (raising(InputError("x is 1; expected 2")), 2, "x is 1; expected 2"),
        (Path("a" * 300).stat, 2, f"{'a' * 300}: File name too long; expected a shorter name"),
        (Path("a" * 5000).stat, 2, f"{'a' * 1000}...: File name too long; expected a shorter"),
        (raising(KeyboardInterrupt()), 130, "interrupted; the same command continues"),
        (partial(signal.raise_signal, signal.SIGINT), 130, "interrupted; the same command"),
        (partial(signal.raise_signal, signal.SIGTERM), 130, "interrupted; the same command"),
        (turned_into_another_error, 130, "interrupted; the same command continues"),
    ],
)
def test_a_command_ends_with_its_code_and_one_line(caplog, action, code, said):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end, exit_codes("interrupted; the same command continues"):
        action()
    assert end.value.code == code and signal.getsignal(signal.SIGTERM) is before
    assert [record.getMessage()[: len(said)] for record in caplog.records] == [said]


def test_a_compilation_ends_before_an_interrupt_takes_effect(caplog):
    done = []
    source = "signal.raise_signal(signal.SIGINT)\ndone.append('compiled')"
    compilation = compile(source, str(Path(mindspore.__file__).with_name("api.py")), "exec")
    with pytest.raises(SystemExit) as end, exit_codes():
        exec(compilation, {"signal": signal, "done": done})
        while True:  # the interrupt comes again
            pass
    assert end.value.code == 130 and done == ["compiled"] and caplog.messages == ["interrupted"]


def test_a_file_that_an_interrupt_broke_is_no_unusable_input(caplog):
    with pytest.raises(SystemExit) as end, exit_codes():
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:  # as a library's writer turns it into an error of its own
            raise InputError("out.pth: cannot write: unexpected position") from None
    assert end.value.code == 130 and caplog.messages == ["interrupted"]


def test_other_errors_are_not_hidden():
    with pytest.raises(RuntimeError), exit_codes():
        raise RuntimeError


def test_a_log_file_has_whole_lines_of_one_format_and_the_shell_the_exit_code(tmp_path):
    path = tmp_path / "stderr.txt"
    with path.open("w") as file:
        command = [sys.executable, "-c", COMMAND]
        code = subprocess.run(
            command, stderr=file, env=os.environ | {"GLOG_v": "3"}, check=False
        ).returncode
    assert code == 130
    assert path.read_text().splitlines() == [
        f"INFO: long {'name ' * 300}",
        "WARNING: \\x1b[2J\\nERROR: caf\u00e9",
        "ERROR: interrupted; the same command continues",
    ]


@dataclass(frozen=True)
class Config:
    count: int = 1

    def __post_init__(self) -> None:
        check_integer("count", self.count, 1)


@pytest.mark.parametrize("kind", [Config, {"count": Config}], ids=["command", "subcommand"])
def test_a_command_ends_with_what_its_action_returns_or_with_one_line(monkeypatch, caplog, kind):
    words = [] if kind is Config else ["count"]
    for count, code in ((3, 3), (0, 2)):
        monkeypatch.setattr(sys, "argv", ["command", *words, "--count", str(count)])
        with pytest.raises(SystemExit) as end:
            run_command(kind, "command", lambda config: config.count)
        assert end.value.code == code
    assert caplog.messages == ["count is 0; expected an integer of at least 1"]
