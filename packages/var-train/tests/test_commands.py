"""What the commands of training say, how they end, and what they leave to be read."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import tyro
from image_tree import write_image_tree
from var_tokenizer import Tokenizer
from var_train.commands.run_config import RunConfig, read_run_config
from var_train.evaluate import TokenizerEvaluationConfig
from var_train.evaluate import main as evaluate_command
from var_train.reports.json_files import changed_settings, record_settings
from var_train.reports.metrics_log import MetricsLog
from var_train.reports.progress_bars import step_bar
from var_train.run import main as run_command
from var_train.tokenize import TokenizeConfig
from var_train.tokenize import main as tokenize_command

EVALUATION = ["tokenizer", "--tokenizer", "t", "--data", "d", "--out", "o"]


def test_a_bar_says_what_happens_between_steps(caplog, monkeypatch):
    monkeypatch.setattr("var_tokenizer.common.progress.next_line", lambda elapsed: 0.001)
    caplog.set_level(logging.INFO)

    def wait_for(text: str) -> None:
        while text not in caplog.text:
            pass

    with step_bar("tokenizer  ", 1_000_000) as bar:
        wait_for("tokenizer: 0 of 1000000 steps, compiling, 0:00 so far")
        bar.advance(2, 0.5)
        wait_for("tokenizer: 1 of 1000000 steps, loss 0.5000")
        with bar.doing("validating"):
            wait_for("tokenizer: 1 of 1000000 steps, validating")
    assert caplog.messages[-1].startswith("tokenizer: 1 of 1000000 steps, loss 0.5000")


def test_settings_are_a_readable_file_and_a_change_is_said(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    settings = {"loop": {"keep": 3}, "out": tmp_path, "sizes": (1, 2)}
    assert changed_settings(tmp_path, settings) == {}  # there is nothing yet
    record_settings(tmp_path, settings)
    written = json.loads((tmp_path / "settings.json").read_text())
    assert written == {"loop": {"keep": 3}, "out": str(tmp_path), "sizes": [1, 2]}
    assert changed_settings(tmp_path, settings) == {} and not caplog.messages
    changed = changed_settings(tmp_path, settings | {"loop": {"keep": 4}})
    assert changed == {"loop.keep": (3, 4)}
    assert caplog.messages == [
        "settings changed since the last command here: loop.keep was 3 and is 4"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]
    (tmp_path / "settings.json").write_text("{")  # damaged: written anew
    assert changed_settings(tmp_path, settings) == {}
    record_settings(tmp_path, {})
    assert json.loads((tmp_path / "settings.json").read_text()) == {}


def test_changed_settings_stay_in_the_metrics_when_steps_are_repeated(tmp_path):
    metrics = MetricsLog(tmp_path)
    for step in range(3):
        metrics.write("tokenizer", step, loss=1.0)
    metrics.write_changes({}, {"tokenizer": 3})
    metrics.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "tok')  # the process was killed
    metrics = MetricsLog(tmp_path, resume=True)
    metrics.write_changes({"loop.keep": (3, 4)}, {"tokenizer": 2, "transformer": None})
    metrics.rewind("tokenizer", 2)
    metrics.close()
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["tokenizer", "tokenizer", "settings"]
    assert lines[-1]["done"] == {"tokenizer": 2, "transformer": None}
    assert lines[-1]["changed"] == {"loop.keep": [3, 4]}


def test_the_package_lists_its_commands():
    command = [sys.executable, "-m", "var_train"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    listed = [line.split(".")[1] for line in shown.splitlines() if line.startswith("python -m")]
    assert listed == ["run", "tokenize", "evaluate", "launch"]


def test_a_worker_of_the_launcher_shows_its_help_and_ends_with_0():
    """It has a stand-in of MindSpore, which knows no number of workers."""
    command = [sys.executable, "-m", "var_train.run", "--help"]
    environment = os.environ | {"VAR_LAUNCHER": str(os.getpid()), "MS_ROLE": "MS_WORKER"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (ended.returncode, ended.stderr) == (0, "") and "usage: " in ended.stdout


def shown(capsys, monkeypatch, kind: type, *words: str) -> str:
    """What the command line of ``kind`` prints before it exits with 0."""
    monkeypatch.setattr(sys, "argv", ["command", *words])
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        read_run_config() if kind is RunConfig else tyro.cli(kind)
    assert end.value.code == 0
    return capsys.readouterr().out


def test_the_help_of_a_run_fits_on_two_screens_and_names_every_setting(capsys, monkeypatch):
    text = shown(capsys, monkeypatch, RunConfig, "--help")
    assert len(text.splitlines()) <= 100
    assert "--train-transformer.epochs 12  .batch 64" in text and ".scales 1 2 3 4" in text
    everything = shown(capsys, monkeypatch, RunConfig, "--help-all")
    for option in re.findall(r"│ (--[a-z0-9.-]+)", everything):
        name = option.removeprefix("--").split(".")[-1]
        assert re.search(rf"[.-]{name.removeprefix('no-')}\b", text), option
    assert "--train-transformer.batch 768" not in text
    assert ".batch 768" in shown(capsys, monkeypatch, RunConfig, "--preset", "d16", "--help")


@pytest.mark.parametrize("kind", [RunConfig, TokenizeConfig, TokenizerEvaluationConfig])
def test_help_does_not_mention_exceptions(capsys, monkeypatch, kind):
    text = shown(capsys, monkeypatch, kind, "--help-all" if kind is RunConfig else "--help")
    assert "Raises" not in text and "InputError" not in text


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """1,000 images and a tokenizer of them."""
    root = tmp_path_factory.mktemp("work")
    write_image_tree(root / "images", (16, 16), ("cat",), train=500, val=500)
    Tokenizer(tiny.tokenizer(scales=(1, 8))).save(root / "tokenizer.safetensors")
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "until", "last"),
    [
        ("tokenize --shard 10", "index.json", "the same command goes on with the next shard"),
        (
            "tokenize --shard 10",
            "train/00002.safetensors",
            "the same command goes on with the next",
        ),
        ("evaluate tokenizer", "measuring: ", "the same command measures from the beginning"),
    ],
)
def test_a_command_that_is_interrupted_exits_with_130_and_leaves_no_half_file(
    work, tmp_path, command, until, last
):
    out, stderr = tmp_path / "out", tmp_path / "stderr.txt"
    module, *words = command.split()
    words += ["--tokenizer", work / "tokenizer.safetensors", "--data", work / "images"]
    with stderr.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", f"var_train.{module}", *words, "--out", out, "--batch", "1"],
            env=os.environ | {"GLOG_v": "3"},
            stderr=file,
        )
    while not (out / until).exists() and until not in stderr.read_text():
        assert process.poll() is None, stderr.read_text()
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    lines = stderr.read_text().splitlines()
    assert lines[-1].startswith(f"ERROR: interrupted; {last}")
    assert all(text.startswith(("INFO: ", "ERROR: interrupted")) for text in lines)
    assert not [path for path in out.rglob(".*") if path.is_file()]


@pytest.mark.parametrize(
    ("main", "words", "message"),
    [
        (run_command, ["--val-fraction", "0.1"], "val_fraction is 0.1 without data; "),
        (run_command, ["--loop.keep", "0"], "keep is 0; expected an integer from 1 to 10000"),
        (run_command, ["--tokenizer.vocab-size", "0"], "vocab_size is 0; "),
        (tokenize_command, [*EVALUATION[1:], "--batch", "-1"], "batch is -1; "),
        (
            evaluate_command,
            [*EVALUATION, "--batch", "-1"],
            "batch is -1; expected an integer of at least 0",
        ),
    ],
)
def test_unusable_settings_are_one_line(main, words, message, capsys, caplog, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2 and capsys.readouterr() == ("", "")
    (said,) = caplog.messages
    assert said.startswith(message) and "\n" not in said


@pytest.fixture
def few(tmp_path) -> list[str]:
    """Options that name six images and a tokenizer of them."""
    write_image_tree(tmp_path / "images", (6, 6), ("cat",), train=6, val=6)
    Tokenizer(tiny.tokenizer()).save(tmp_path / "t.safetensors")
    named = {"tokenizer": "t.safetensors", "data": "images", "out": "out"}
    return [word for name, path in named.items() for word in (f"--{name}", str(tmp_path / path))]


def ended(monkeypatch, main, *words: str) -> int | str | None:
    """The exit code of a command."""
    monkeypatch.setattr(sys, "argv", ["command", *words])
    try:
        main()
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.parametrize(
    ("main", "words", "working"),
    [
        (evaluate_command, ["tokenizer"], "evaluate.measure_tokenizer"),
        (tokenize_command, [], "tokenize.write_cache"),
    ],
)
def test_evaluate_and_tokenize_choose_a_batch_that_fits_and_name_it_after_an_out_of_memory(
    main, words, working, few, monkeypatch, caplog
):
    def without_memory(*arguments, **_):
        raise RuntimeError(f"Memory isn't enough and alloc failed, kernel name: {arguments}")

    monkeypatch.setattr(f"var_train.{working}", without_memory)
    each = tiny.tokenizer().bytes_per_image
    for available, batch in ((2 * 3 * each, 3), (0, 1), (2**40, None)):
        monkeypatch.setattr(
            "var_tokenizer.common.memory.available_memory", lambda available=available: available
        )
        caplog.clear()
        assert ended(monkeypatch, main, *words, *few) == 2
        most = {3: "below 3", 1: "more memory: one image at once is the least"}
        if batch is not None:
            assert f"ing {batch} images at once; expected " in caplog.text
            assert most[batch] in caplog.text
        else:  # no more than there are, or the usual number
            assert re.search("ing (12|32) images at once; expected --batch below ", caplog.text)


def test_an_evaluation_of_one_image_at_once_measures_the_same(few, monkeypatch, tmp_path, capsys):
    reports = []
    for free in (2**40, 0):
        monkeypatch.setattr("var_tokenizer.common.memory.available_memory", lambda free=free: free)
        assert ended(monkeypatch, evaluate_command, "tokenizer", *few) == 0
        reports.append(json.loads((tmp_path / "out" / "tokenizer.json").read_text()))
    capsys.readouterr()
    assert reports[0]["images"] == reports[1]["images"] == 12
    assert reports[0]["psnr"] == pytest.approx(reports[1]["psnr"], rel=1e-5)
    assert reports[0]["scale_codes_used"] == reports[1]["scale_codes_used"]


def test_unknown_options_are_explained(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command", "--bogus", "3"])
    with pytest.raises(SystemExit) as end:
        run_command()
    assert end.value.code == 2 and "Unrecognized options: --bogus" in capsys.readouterr().err
