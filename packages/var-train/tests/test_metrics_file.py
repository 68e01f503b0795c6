"""The end of metrics.jsonl says what the whole of it would."""

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from var_train.reports import metrics_file
from var_train.reports.metrics_file import MetricsFile

STAGES = ("tokenizer", "transformer")
TEXTS = ("", "tokenizer", '"}\n{"of": "transformer"', "é" * 20)


@st.composite
def runs(draw: st.DrawFn) -> list[dict]:
    """Lines of both stages, steps, validations and settings, mixed in any way."""
    waiting: dict[str, list[dict]] = {name: [] for name in (*STAGES, "settings")}
    for stage in STAGES:
        for step in range(draw(st.integers(0, 6))):
            waiting[stage].append({"stage": stage, "step": step})
            if draw(st.booleans()):
                waiting[stage].append({"stage": "validation", "step": step, "of": stage})
    for n in range(draw(st.integers(0, 2))):
        waiting["settings"].append({"stage": "settings", "changed": {"tokenizer.x": [n, n + 1]}})
    lines = []
    while kinds := [kind for kind, left in waiting.items() if left]:
        line = waiting[draw(st.sampled_from(kinds))].pop(0)
        lines.append(line | {"seconds": len(lines) + 0.5, "text": draw(st.sampled_from(TEXTS))})
    return lines


def kept(content: str, stage: str, step: int, pending: bool) -> list[str]:
    """What ``rewind`` leaves, by its definition on all lines."""
    lines = []
    for text in content.splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line.get("of", line["stage"]) != stage or line["step"] < step - (
            pending and line["stage"] == "validation"
        ):
            lines.append(text)
    return lines


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("metrics") / "metrics.jsonl"


@settings(max_examples=100)
@given(
    lines=runs(),
    torn=st.integers(0, 60),
    stage=st.sampled_from(STAGES),
    step=st.integers(0, 7),
    pending=st.booleans(),
    block=st.sampled_from((1, 7, 64, 2**20)),
)
def test_a_rewind_removes_what_is_repeated_and_nothing_else(
    path, lines, torn, stage, step, pending, block
):
    whole = "".join(json.dumps(line) + "\n" for line in lines)
    content = whole[: max(0, len(whole) - torn)]  # as a kill may leave it
    path.write_text(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics_file, "_BLOCK", block)
        log = MetricsFile(path, resume=True)
        before = [json.loads(text) for text in kept(content, "", 0, False)]
        assert log.seconds() == max((line["seconds"] for line in before), default=0)
        log.rewind(stage, step, pending)
        log.append({"stage": stage, "step": step})
        log.close()
    found = path.read_text()
    assert found.endswith("\n")
    assert found.splitlines()[:-1] == kept(content, stage, step, pending)


def test_lines_of_another_stage_stay_and_a_kill_while_removing_leaves_all(path, monkeypatch):
    names = ("tokenizer", "transformer", "tokenizer")
    content = "".join(json.dumps({"stage": s, "step": n}) + "\n" for n, s in enumerate(names))
    path.write_text(content)

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            MetricsFile(path, resume=True).rewind("tokenizer", 0)
    assert path.read_text() == content
    MetricsFile(path, resume=True).rewind("tokenizer", 0)
    assert path.read_text() == json.dumps({"stage": "transformer", "step": 1}) + "\n"
    assert list(path.parent.iterdir()) == [path]


def test_a_long_file_is_rewound_without_being_held_or_parsed(path, monkeypatch):
    text = "x" * 400
    with path.open("w") as file:
        for n in range(20_000):
            line = {"stage": STAGES[n // 10_000], "step": n % 10_000, "seconds": n, "text": text}
            file.write(json.dumps(line) + "\n")
    size, parsed = path.stat().st_size, []
    real = json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(text) or real(text))
    tracemalloc.start()
    log = MetricsFile(path, resume=True)
    assert log.seconds() == 19_999
    log.rewind("tokenizer", 10_000)  # as when the second stage goes on
    log.rewind("transformer", 9_990)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.read_bytes().count(b"\n") == 19_990
    assert len(parsed) < 20 and peak < 8 * 2**20 < size
