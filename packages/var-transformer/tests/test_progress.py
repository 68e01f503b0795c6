"""What the commands say while they work, and how they end."""

import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mindspore
import pytest
import tyro
from PIL import Image
from rich.progress import Progress
from var_tokenizer.common import InputError
from var_tokenizer.common.command import exit_codes
from var_tokenizer.common.progress import duration, line, next_line, progress_bar
from var_transformer.ascend_c.__main__ import BuildConfig
from var_transformer.cost.__main__ import CostConfig
from var_transformer.edit.__main__ import EditConfig
from var_transformer.edit.__main__ import run as edit
from var_transformer.sample import SampleConfig
from var_transformer.serve import ServeConfig

ENVIRONMENT = os.environ | {"GLOG_v": "3"}
COMMAND = """
import logging
import signal
from var_tokenizer.common.command import exit_codes
from var_transformer.ascend_c.__main__ import BuildConfig
from var_transformer.cost.__main__ import CostConfig
from var_transformer.edit.__main__ import EditConfig
from var_transformer.edit.__main__ import run as edit
with exit_codes("interrupted; the same command continues"):
    logging.getLogger("var_train").info("long %s", "name " * 300)
    logging.getLogger("var_train").warning("%s", "\\x1b[2J\\nERROR: caf\u00e9")
    logging.getLogger("httpx").info("not ours")
    signal.raise_signal(signal.SIGTERM)
"""


def test_lines_come_after_a_few_seconds_then_rarely_and_never_in_a_flood():
    elapsed, gaps = 0.0, []
    while elapsed < 7 * 24 * 3600:
        gaps.append(next_line(elapsed))
        elapsed += gaps[-1]
    assert gaps[0] == 5 and gaps == sorted(gaps) and gaps[-1] == 300
    assert len(gaps) < 2100  # of a week of training


def test_a_line_has_step_total_loss_and_the_time_left():
    clock = [0.0]
    bar = Progress(get_time=lambda: clock[-1], disable=True)
    task = bar.add_task("tokenizer  ", total=1_000_000, loss="compiling", speed="", unit="steps")
    clock.append(7.0)
    assert line(bar.tasks[0]) == "tokenizer: 0 of 1000000 steps, compiling, 0:07 so far"
    for now in (10.0, 12.0, 14.0):
        clock.append(now)
        bar.update(task, advance=1000, loss="loss 0.1250", speed="8 images/s")
    assert line(bar.tasks[0]) == (
        "tokenizer: 3000 of 1000000 steps, loss 0.1250, 8 images/s, 33:14 left"
    )
    assert line(bar.tasks[0], ended=True).endswith("loss 0.1250, 8 images/s, after 0:14")


def test_durations_are_written_as_clocks_do():
    assert [duration(s) for s in (4.6, 750, 3723, 100_000)] == [
        *("0:05", "12:30", "1:02:03", "27:46:40")
    ]


def test_lines_are_logged_while_nothing_moves(caplog, monkeypatch):
    monkeypatch.setattr("var_tokenizer.common.progress.next_line", lambda elapsed: 0.001)
    caplog.set_level(logging.INFO, "var_transformer")
    with progress_bar() as bar:
        bar.add_task("sampling", total=3)
        while "sampling: 0 of 3, 0:00 so far" not in caplog.text:
            pass
    caplog.clear()
    with progress_bar(silent=True) as bar:
        bar.add_task("sampling", total=3)
    assert not caplog.records


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


def test_what_mindspore_is_at_ends_before_an_interrupt_takes_effect(caplog):
    done = []
    source = "signal.raise_signal(signal.SIGINT)\ndone.append('compiled')"
    compilation = compile(source, str(Path(mindspore.__file__).with_name("api.py")), "exec")
    with pytest.raises(SystemExit) as end, exit_codes():
        exec(compilation, {"signal": signal, "done": done})
        while True:  # the interrupt comes again
            pass
    assert end.value.code == 130 and done == ["compiled"] and caplog.messages == ["interrupted"]


@pytest.mark.slow
def test_ctrl_c_while_a_command_compiles_is_one_line(model, tokenizer, tmp_path):
    model.save(tmp_path / "m.safetensors")
    tokenizer.save(tmp_path / "t.safetensors")
    words = (
        "--tokenizer t.safetensors --model m.safetensors --classes 0-4 --per-class 500 --out out"
    )
    with (tmp_path / "stderr.txt").open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "var_transformer.sample", *words.split(), "--batch", "8"],
            stderr=file,
            cwd=tmp_path,
            env=ENVIRONMENT | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
        )
    while not (tmp_path / "out" / "settings.json").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    lines = (tmp_path / "stderr.txt").read_text().splitlines()
    assert lines[-1] == "ERROR: interrupted; the same command continues"
    assert all(text.startswith("INFO: sampling: ") for text in lines[:-1])
    assert not (tmp_path / "rank_0").exists()


def test_other_errors_are_not_hidden():
    with pytest.raises(RuntimeError), exit_codes():
        raise RuntimeError


def test_a_log_file_has_whole_lines_of_one_format_and_the_shell_the_exit_code(tmp_path):
    path = tmp_path / "stderr.txt"
    with path.open("w") as file:
        command = [sys.executable, "-c", COMMAND]
        code = subprocess.run(command, stderr=file, env=ENVIRONMENT, check=False).returncode
    assert code == 130
    assert path.read_text().splitlines() == [
        f"INFO: long {'name ' * 300}",
        "WARNING: \\x1b[2J\\nERROR: caf\u00e9",
        "ERROR: interrupted; the same command continues",
    ]


def test_edit_says_that_it_loads_and_draws(model, tokenizer, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("var_tokenizer.common.progress.next_line", lambda elapsed: 0.0001)
    caplog.set_level(logging.INFO)
    model.save(tmp_path / "m.safetensors")
    tokenizer.save(tmp_path / "t.safetensors")
    Image.new("RGB", (6, 6)).save(tmp_path / "image.png")
    names = ("t.safetensors", "m.safetensors", "image.png")
    files = (tmp_path / name for name in names)
    edit(EditConfig(*files, label="1", out=tmp_path / "out", box=(0, 0, 3, 6)))
    for what in ("loading the models", "drawing"):
        assert re.search(f"^{what}: 0:00 so far$", "\n".join(caplog.messages), re.MULTILINE)


def test_a_package_lists_its_commands():
    command = [sys.executable, "-m", "var_transformer"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    listed = {line.split(".")[1] for line in shown.splitlines() if line.startswith("python -m")}
    assert listed == {"sample", "edit", "serve", "cost", "ascend_c"}


@pytest.mark.parametrize("kind", [SampleConfig, EditConfig, ServeConfig, CostConfig, BuildConfig])
def test_no_help_talks_of_exceptions(capsys, kind):
    with pytest.raises(SystemExit) as end:
        tyro.cli(kind, args=["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and "Raises" not in text and "InputError" not in text


def test_a_reader_that_has_enough_ends_a_command_without_a_traceback():
    """As ``--help | head`` does; the command writes long after its reader has gone."""
    command = [sys.executable, "-m", "var_transformer.sample", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
