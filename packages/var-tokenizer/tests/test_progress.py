"""What a command shows or logs while it works."""

import logging

from rich.progress import Progress
from var_tokenizer.common.progress import duration, line, next_line, progress_bar


def test_lines_come_after_five_seconds_and_then_less_and_less_often():
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
    caplog.set_level(logging.INFO, "var_tokenizer")
    with progress_bar() as bar:
        bar.add_task("sampling", total=3)
        while "sampling: 0 of 3, 0:00 so far" not in caplog.text:
            pass
    caplog.clear()
    with progress_bar(silent=True) as bar:
        bar.add_task("sampling", total=3)
    assert not caplog.records
