"""``nox -s torture`` finds what is lost; its page shows what it recorded."""

import random
import signal
from collections.abc import Callable

import pytest
from torture import survival_page
from torture.kills import Kill, Usual
from torture.works import Survived, Work, contents

FIRST = "not pathlib.Path('out/begun').exists()"


@pytest.fixture
def survive(tmp_path, monkeypatch) -> Callable[[str], Survived]:
    """Kills a program, whose end should be the file result.json, at its first change of a file."""
    at_once = Kill("change of a file", 0.0, signal.SIGKILL, 0.0)
    monkeypatch.setattr(Kill, "draw", lambda _rng: at_once)
    monkeypatch.setattr(random.Random, "randint", lambda *_: 1)
    usual = tmp_path / "usual"
    (usual / "out").mkdir(parents=True)
    (usual / "out" / "begun").touch()
    (usual / "out" / "result.json").write_text("[1]")

    def act(program: str) -> Survived:
        (tmp_path / "program.py").write_text(f"import pathlib, time\n{program}")
        (tmp_path / "case" / "work" / "out").mkdir(parents=True)
        work = Work("program", lambda inputs: f"{inputs}/program.py")
        return work.survive(0, tmp_path, tmp_path / "case", Usual(1.0, 1), contents(usual))

    return act


def test_a_program_that_goes_on_survives(survive):
    case = survive(f"""
out = pathlib.Path("out")
if {FIRST}:
    (out / "begun").touch()
    time.sleep(60)
(out / ".result.json").write_text("[1]")
(out / ".result.json").rename(out / "result.json")
""")
    assert case.failure is None and case.kills == {("SIGKILL", "change of a file"): 1}


def test_half_of_a_file_is_found(survive):
    case = survive("""
pathlib.Path("out/result.json").write_text("[")
time.sleep(60)
""")
    assert "leaves half of out/result.json" in case.failure


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('(out / "result.json").write_text("[2]")', "out/result.json differs"),
        ('(out / "more").touch()', "out/more is left over; out/result.json is missing"),
        ("raise RuntimeError", "ends with 1 after None"),
    ],
)
def test_another_end_is_found(survive, line, told):
    case = survive(f"""
out = pathlib.Path("out")
if {FIRST}:
    (out / "begun").touch()
    time.sleep(60)
{line}
""")
    if told.endswith("missing"):
        assert "out/more is left over" in case.failure
        assert "out/result.json is missing" in case.failure
    else:
        assert told in case.failure


def test_the_page_shows_the_recorded_night():
    text = survival_page.PAGE.read_text()
    assert survival_page.with_table(text, survival_page.recorded()) == text


def test_the_table_counts_signals_moments_and_failures():
    def case(name: str, failure: str | None, **signals: int) -> dict:
        moments = {"any moment": sum(signals.values())}
        return {"case": name, "failure": failure, "signals": signals, "moments": moments}

    cases = [case("page", None, SIGKILL=2, SIGTERM=1), case("page", "lost", SIGTERM=4)]
    record = {"cases": [*cases, case("sample", None)]}
    assert [*survival_page.rows(record)] == [
        ("page", "2", "7", "2", "5", "0", "7", "0", "1 of 2"),
        ("sample", "1", "0", "0", "0", "0", "0", "0", "1 of 1"),
        ("all", "3", "7", "2", "5", "0", "7", "0", "2 of 3"),
    ]
