"""`sample --candidates N --keep M`, with a judge that knows classes by their brightness."""

import json
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from command_line import call, words
from var_tokenizer.common import InputError, read_picture
from var_transformer import sample
from var_transformer.commands import selection
from var_transformer.generation.generate import Generation, generate

CLASSES, CANDIDATES, KEEP = (1, 3), 7, 2


class Brightness:
    """Class n is the likelier, the brighter an image is."""

    identity = "brightness"

    def probabilities(self, images_byxc):
        brightness_b = images_byxc.mean((1, 2, 3)) / 255
        return np.repeat(brightness_b[:, None], 5, 1)


def drawn(_model, _tokenizer, labels, *, numbers, **_settings):
    """Images whose brightness follows from their class and number."""
    found = [np.random.default_rng([*pair]).random() for pair in zip(labels, numbers, strict=True)]
    return Generation(np.ones((len(labels), 3, 6, 6)) * np.reshape(found, (-1, 1, 1, 1)), [])


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch):
    monkeypatch.setattr(sample, "load_judge", lambda *_: Brightness())
    monkeypatch.setattr(sample, "generate", drawn)


def selecting(pair, out, **changes):
    options = {"classes": "1,3", "candidates": CANDIDATES, "keep": KEEP, "batch": 4}
    return words(pair, out, **options | changes)


@pytest.fixture
def selected(pair, tmp_path):
    """A folder of a selection, whole."""
    assert call("sample", *selecting(pair, tmp_path / "selected"), "--npz") == 0
    return tmp_path / "selected"


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def record(folder):
    return [json.loads(line) for line in (folder / selection.RECORD).read_text().splitlines()]


def test_the_likeliest_candidates_stay_with_the_bytes_of_a_run_without_a_judge(
    pair, tmp_path, selected
):
    plain = tmp_path / "plain"
    options = {"classes": "1,3", "per-class": CANDIDATES, "batch": 4}
    assert call("sample", *words(pair, plain, **options)) == 0
    images = {p.name: np.asarray(read_picture(p)) for p in plain.glob("0*.png")}
    assert len(images) == len(CLASSES) * CANDIDATES
    expected = set()
    for label, line in zip(CLASSES, record(selected), strict=True):
        of_class = {n: i.mean() / 255 for n, i in images.items() if n.endswith(f"_{label}.png")}
        assert line["class"] == label
        assert line["numbers"] == [int(name.split("_")[0]) for name in sorted(of_class)]
        assert line["probabilities"] == pytest.approx(
            [of_class[n] for n in sorted(of_class)], abs=1e-6
        )
        best = sorted(of_class, key=of_class.get)[-KEEP:]
        assert line["kept"] == sorted(int(name.split("_")[0]) for name in best)
        expected |= set(best)
    kept = {path.name for path in selected.glob("0*.png")}
    assert kept == expected
    assert all((selected / n).read_bytes() == (plain / n).read_bytes() for n in kept)
    with np.load(selected / "samples.npz") as array:
        assert len(array["arr_0"]) == len(kept) and sorted(array["arr_1"]) == [1, 1, 3, 3]
    assert read_picture(selected / "grid.png").size == (2 * 8 + 2, 2 * 8 + 2)
    assert set(content(selected)) - kept == {
        *("grid.png", "samples.npz", "settings.json", selection.RECORD)
    }


@pytest.mark.slow
def test_a_kept_image_is_drawn_again_alone_by_its_number(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "generate", generate)
    out, alone = tmp_path / "out", tmp_path / "alone"
    assert call("sample", *selecting(pair, out, classes="3", candidates=4, keep=1)) == 0
    ((number,),) = (line["kept"] for line in record(out))
    assert call("sample", *words(pair, alone, classes=3, numbers=number)) == 0
    found, kept = (
        np.asarray(read_picture(folder / f"{number:06d}_3.png")).astype(int)
        for folder in (alone, out)
    )
    assert np.abs(found - kept).max() <= 1  # another batch rounds otherwise


class Killed(BaseException):
    """The end of a command at any moment."""


MOMENTS = {
    "drawing": (sample, "generate"),
    "judging": (Brightness, "probabilities"),
    "writing": (os, "fsync"),
    "removing": (Path, "unlink"),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("is_over", [False, True])
@pytest.mark.parametrize("last", [1, 3])
def test_a_killed_selection_goes_on_to_the_same_bytes(
    pair, tmp_path, selected, monkeypatch, moment, is_over, last
):
    real, calls = getattr(*MOMENTS[moment]), iter(range(1, last))

    def killed(*arguments, **settings):
        is_last = next(calls, None) is None
        if is_last and not is_over:
            raise Killed
        found = real(*arguments, **settings)
        if is_last:
            raise Killed
        return found

    same = *selecting(pair, tmp_path / "out"), "--npz"
    with monkeypatch.context() as patch, suppress(Killed):
        patch.setattr(*MOMENTS[moment], killed)
        call("sample", *same)
    assert call("sample", *same) == 0
    assert content(tmp_path / "out") == content(selected)


def test_a_record_that_was_cut_off_is_judged_again(pair, selected):
    before, path = content(selected), selected / selection.RECORD
    path.write_bytes(path.read_bytes()[:-20])
    assert call("sample", *selecting(pair, selected), "--npz") == 0
    assert content(selected) == before


def test_a_finished_selection_draws_nothing(pair, selected, no_model_runs):
    before = content(selected)
    assert call("sample", *selecting(pair, selected), "--npz") == 0
    assert content(selected) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": 3}, "selection is {'keep': 3, 'judge': 'brightness'} and was"),
        ({"candidates": 8}, "per_class is 8 and was"),
        ({"seed": 1}, "seed is 1 and was"),
    ],
)
def test_a_folder_of_another_selection_is_refused_and_stays(
    pair, selected, caplog, no_model_runs, changes, message
):
    before = content(selected)
    assert call("sample", *selecting(pair, selected, **changes)) == 2
    assert message in caplog.text and content(selected) == before


def test_a_folder_of_a_selection_is_not_that_of_a_plain_run(pair, selected, caplog, no_model_runs):
    plain = words(pair, selected, **{"classes": "1,3", "per-class": CANDIDATES, "batch": 4})
    assert call("sample", *plain) == 2
    assert "selection is None and was" in caplog.text


def test_a_record_without_the_settings_of_its_run_is_refused(pair, selected, caplog, no_model_runs):
    for path in selected.iterdir():
        if path.name != selection.RECORD:
            path.unlink()
    assert call("sample", *selecting(pair, selected, seed=1)) == 2
    assert "holds candidates.jsonl but no settings.json" in caplog.text


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"{",
        b'{"class": 1, "numbers": [0], "kept": [0]}',
        b'{"class": 1, "numbers": [0, 1, 2, 3, 4, 5, 6], "kept": [0, 7]}',
        b'{"class": 1, "numbers": [0, 1, 2, 3, 4, 5, 6], "kept": [0, 0]}',
        b'{"class": 1, "numbers": [0, 1, 2, 3, 4, 5, 6], "kept": [[], {}]}',
    ],
)
def test_a_damaged_record_is_refused(pair, selected, caplog, line):
    path = selected / selection.RECORD
    path.write_bytes(line + b"\n")
    assert call("sample", *selecting(pair, selected)) == 2
    assert f"{path}: line 1 is damaged or of other images" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": 0}, "candidates is 0, keep 2 and judge None"),
        ({"keep": 8}, "candidates is 7, keep 8 and per_class 1; expected at most as many to keep"),
        ({"per-class": 2}, "keep 2 and per_class 2"),
        ({"classes": "1,none"}, "classes has none; expected classes to judge"),
        ({"keep": 0}, "keep is 0; expected an integer of at least 1"),
    ],
)
def test_a_selection_that_cannot_be_ends_with_2_before_any_work(
    pair, tmp_path, caplog, no_model_runs, changes, message
):
    assert call("sample", *selecting(pair, tmp_path / "out", **changes)) == 2
    assert message in caplog.text and not (tmp_path / "out").exists()


def test_without_var_train_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setattr(selection, "entry_points", lambda **_: ())
    with pytest.raises(InputError, match=r"pip install 'var-train\[judge\]'"):
        selection.load_judge(None, 1000, None)
