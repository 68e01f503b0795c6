"""`python -m var_transformer.sample` as a user meets it."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import call, start, words
from PIL import Image
from var_tokenizer.common import InputError, read_picture, save_png, to_pixels
from var_transformer import Refiner, Transformer, generate
from var_transformer.generation.generate import Generation
from var_transformer.generation.sampler import Sampler
from var_transformer.sample import SampleConfig, make_plan, run, save_shuffled


def config_of(pair, out, classes, **changes):
    files = {"tokenizer": pair / "t.safetensors", "model": pair / "m.safetensors"}
    return SampleConfig(**files, out=out, classes=classes, **changes)


@pytest.fixture(scope="module")
def sampled(pair, tmp_path_factory):
    out = tmp_path_factory.mktemp("sampled")
    options = {"per-class": 2, "animate": "gif", "refined-scales": 1}
    code = call(
        "sample",
        *words(pair, out, classes="hound,3", seed=7, **options),
        *("--npz", "--class-names", pair / "names.txt", "--cfg", "2", "--top-k", "5", "4", "3"),
        *("--refiner", pair / "small.safetensors"),
    )
    assert code == 0
    return out


def test_sample_writes_each_image_a_grid_an_animation_and_the_evaluators_array(sampled):
    names = ["000000_1", "000001_1", "000002_3", "000003_3"]
    expected = {f"{name}{suffix}" for name in names for suffix in (".png", ".gif")}
    extra = {"grid.png", "samples.npz", "settings.json"}
    assert {path.name for path in sampled.iterdir()} == expected | extra
    with np.load(sampled / "samples.npz") as archive:
        assert archive.files == ["arr_0", "arr_1"]
        array, labels = archive["arr_0"], archive["arr_1"]
    assert array.shape == (4, 6, 6, 3) and array.dtype == np.uint8 and labels.dtype == np.int64
    pictures = {name: np.asarray(read_picture(sampled / f"{name}.png")).tobytes() for name in names}
    assert len(set(pictures.values())) == 4
    order = [name for p in array for name in names if p.tobytes() == pictures[name]]
    assert sorted(order) == names and [int(name[-1]) for name in order] == labels.tolist()
    for name in names:
        with Image.open(sampled / f"{name}.gif") as animation:
            assert 1 < animation.n_frames <= 3  # Pillow joins frames that are equal
    assert read_picture(sampled / "grid.png").size == (2 * 8 + 2, 2 * 8 + 2)


def test_the_log_of_a_command_has_lines_of_this_project_alone(pair, tmp_path):
    options = words(pair, tmp_path / "out", model=pair / "small.safetensors", classes=0)
    with start("sample", *options, stderr=subprocess.PIPE, cache=tmp_path / "cache") as process:
        lines = process.stderr.readlines()
    assert process.returncode == 0 and lines
    assert all(line.startswith("INFO: ") for line in lines), lines


def test_the_images_of_sample_are_those_of_generate(sampled, model, tokenizer, smaller):
    labels = np.array([1, 1, 3, 3])
    refiner = Refiner(smaller, 1)
    settings = {"cfg": 2.0, "top_k": (5, 4, 3), "seed": 7}
    out = generate(model, tokenizer, labels, refiner=refiner, **settings)
    for n, pixels in enumerate(to_pixels(out.images)):
        np.testing.assert_array_equal(read_picture(next(sampled.glob(f"{n:06d}_*.png"))), pixels)


def test_a_finished_run_draws_nothing_and_refuses_other_settings(sampled, pair, no_model_runs):
    refined = {"refiner": pair / "small.safetensors", "refined_scales": 1}
    sampler = Sampler(cfg=2.0, top_k=(5, 4, 3))
    same = config_of(pair, sampled, "1,3", per_class=2, sampler=sampler, seed=7, **refined)
    before = (sampled / "grid.png").read_bytes()
    (sampled / "grid.png").unlink()
    run(same)
    assert (sampled / "grid.png").read_bytes() == before
    for change, message in (
        ({"seed": 8}, "seed is 8 and was 7"),
        ({"batch": 3}, "batch is 3 and was 4"),
        ({"refined_scales": 2}, "refined_scales is 2 and was 1"),
        ({"sampler": Sampler()}, "sampler is"),
    ):
        with pytest.raises(InputError, match=message):
            run(dataclasses.replace(same, **change))


def test_the_evaluators_array_has_an_order_that_the_seed_alone_decides(tmp_path):
    """In the order of classes, the Inception Score of consecutive parts would fall."""
    count = 60

    def written(name, seed=3, batch=0):
        """The array's bytes, in which image n is all n, and the numbers and labels in it."""
        config = config_of(tmp_path, tmp_path / name, "1", seed=seed, batch=batch)
        labels_n = np.repeat([7, 8, 9], 20)
        targets = [tmp_path / name / f"{n:06d}_{labels_n[n]}.png" for n in range(count)]
        for n, target in enumerate(targets):
            save_png(np.full((2, 2, 3), n, np.uint8), target)
        save_shuffled(config, targets, labels_n)
        data = (tmp_path / name / "samples.npz").read_bytes()
        with np.load(tmp_path / name / "samples.npz") as archive:
            return data, archive["arr_0"][:, 0, 0, 0].tolist(), archive["arr_1"].tolist()

    first, numbers, labels = written("a")
    assert sorted(numbers) == list(range(count)) and numbers != sorted(numbers)
    assert labels == [7 + n // 20 for n in numbers]
    assert all(len(set(labels[at : at + 15])) == 3 for at in range(0, count, 15))
    assert written("b", batch=7)[0] == first
    assert written("c", seed=4)[1] != numbers


def test_the_evaluators_array_is_not_written_again_until_an_image_or_itself_changes(tmp_path):
    labels_n = np.array([1, 1, 2])
    paths = [tmp_path / f"{n:06d}_{label}.png" for n, label in enumerate(labels_n)]
    for n, path in enumerate(paths):
        save_png(np.full((2, 2, 3), n, np.uint8), path)
        os.utime(path, (n, n))
    array = tmp_path / "samples.npz"

    def is_written_again(labels_n=labels_n):
        before = array.stat().st_ino if array.exists() else None
        save_shuffled(config_of(tmp_path, tmp_path, "1", seed=3), paths, labels_n)
        return array.stat().st_ino != before  # a new file takes the place of the old one

    assert is_written_again() and not is_written_again()
    whole = array.read_bytes()
    save_png(np.full((2, 2, 3), 9, np.uint8), paths[1])
    os.utime(paths[1], (2**33, 2**33))
    assert is_written_again() and array.read_bytes() != whole
    os.utime(paths[1], (1, 1))
    assert not is_written_again()
    for content in (whole[:-9], whole.replace(b"3, 2, 2, 3", b"2, 2, 2, 3"), b""):
        array.write_bytes(content)
        assert is_written_again()
    assert is_written_again(np.array([1, 2, 2]))


def test_an_image_that_cannot_be_written_ends_sample_with_2_and_the_others_are_there(
    pair, tmp_path, caplog, monkeypatch
):
    def drawn(_model, _tokenizer, labels, **_settings):
        return Generation(np.ones((len(labels), 3, 6, 6)), [])

    monkeypatch.setattr("var_transformer.sample.generate", drawn)
    out = tmp_path / "out"
    (out / "folder").mkdir(parents=True)
    real = save_png

    def save(pixels_yxc, path):
        if path.name == "000002_1.png":
            path = out / "folder"
        real(pixels_yxc, path)

    monkeypatch.setattr("var_transformer.commands.options.save_png", save)
    same = words(pair, out, classes="1", **{"per-class": 8}, batch=2)
    assert call("sample", *same) == 2
    assert "folder: is a folder; expected a file" in caplog.text
    names = {path.name for path in out.glob("0*.png")}
    assert {f"00000{n}_1.png" for n in (0, 1, 3)} <= names and len(names) < 7
    monkeypatch.setattr("var_transformer.commands.options.save_png", real)
    assert call("sample", *same) == 0
    assert len(list(out.glob("0*.png"))) == 8


@pytest.mark.parametrize("columns", [0, 2])
def test_an_image_of_another_size_is_an_error(pair, tmp_path, no_model_runs, columns):
    same = config_of(pair, tmp_path, "1,2", columns=columns)
    with pytest.raises(AssertionError, match="a model ran"):
        run(same)
    for n, side in ((1, 6), (2, 7)):
        save_png(np.zeros((side, side, 3), np.uint8), tmp_path / f"{n - 1:06d}_{n}.png")
    with pytest.raises(InputError, match=r"000001_2\.png: .*is \(7, 7\); expected \(6, 6\)"):
        run(same)


def test_images_have_the_models_classes_and_given_numbers(pair, tmp_path, caplog, monkeypatch):
    def drawn(_model, _tokenizer, labels, *, numbers, **_settings):
        """Images of which each says its label and its number."""
        values = np.stack([labels, numbers, labels], 1)[..., None, None]
        return Generation(np.ones((1, 1, 6, 6)) * values / 255, [])

    monkeypatch.setattr("var_transformer.sample.generate", drawn)
    caplog.set_level("INFO")
    options = {"classes": "10,none,dog", "numbers": "57,60-61", "columns": 2}
    options |= {"model": pair / "named.safetensors", "batch": 2}
    assert call("sample", *words(pair, tmp_path / "a", **options)) == 0
    assert "10 is number 4" in caplog.text
    for number, label in ((57, 4), (60, 5), (61, 1)):
        pixels = np.asarray(read_picture(tmp_path / f"a/{number:06d}_{label}.png"))
        assert (pixels == (label, number, label)).all()
    assert read_picture(tmp_path / "a" / "grid.png").size == (2 * 8 + 2, 2 * 8 + 2)
    assert call("sample", *words(pair, tmp_path / "a", **options | {"numbers": "1-3"})) == 2
    assert "numbers is 1-3 and was 57,60-61 in the run" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": "7"}, "class is '7'; expected 0 to 4"),
        ({"classes": "cow"}, "class is 'cow'; expected 0 to 4"),
        ({"classes": "1-9"}, "class is '9'; expected 0 to 4"),
        ({"numbers": "1,x"}, "numbers are '1,x'; expected numbers such as 57 or 57,60-63"),
        ({"numbers": "9-1"}, "numbers are '9-1'; expected the smaller number first"),
        ({"numbers": "0-999999999"}, "numbers has 1000000000 entries; expected 1, one for each"),
        ({"classes": "1,1", "numbers": "5,5"}, "numbers are 5,5; expected each once for a class"),
        ({"columns": "101"}, "columns is 101; expected an integer from 0 to 100"),
        ({"cfg": "-1"}, "cfg is -1.0; expected a number of at least 0"),
        ({"top-p": "1.5"}, "top_p is 1.5; expected a number from 0 to 1"),
        ({"top-k": "33"}, "top_k is 33; expected 0 to 32"),
        ({"per-class": "0"}, "per_class is 0; expected an integer of at least 1"),
        ({"model": "absent.safetensors"}, "absent.safetensors: no such file"),
        ({"refiner": "m.safetensors"}, "refined_scales is 0; expected both or none"),
        ({"refined-scales": "1"}, "refiner is None and refined_scales is 1"),
    ],
)
def test_bad_input_ends_sample_with_2_and_one_line_before_any_work(
    pair, tmp_path, caplog, no_model_runs, changes, message
):
    code = call("sample", *words(pair, tmp_path / "out", **{"classes": "1"} | changes))
    assert code == 2 and message in caplog.text and not (tmp_path / "out").exists()


def test_a_model_that_is_replaced_while_it_is_read_ends_sample_with_2(
    pair, tmp_path, caplog, monkeypatch, no_model_runs
):
    model = Path(shutil.copy(pair / "m.safetensors", tmp_path))

    def replaced_meanwhile(config):
        plan = make_plan(config)
        Path(shutil.copy(model, tmp_path / "new")).replace(model)
        return plan

    monkeypatch.setattr("var_transformer.sample.make_plan", replaced_meanwhile)
    assert call("sample", *words(pair, tmp_path / "out", classes=1, model=model)) == 2
    assert "m.safetensors: changed while it was read" in caplog.text
    assert not (tmp_path / "out").exists()


def test_a_mismatched_pair_ends_sample_with_2(pair, tmp_path, caplog, make_config):
    other = tmp_path / "other.safetensors"
    Transformer(make_config(vocab_size=16)).save(other)
    code = call("sample", *words(pair, tmp_path / "out", classes=1, model=other))
    assert code == 2
    assert "vocab_size is 16 in the transformer and 32 in the tokenizer" in caplog.text


def test_images_of_an_unknown_run_are_refused(pair, tmp_path, caplog):
    Image.new("RGB", (6, 6)).save(tmp_path / "000000_1.png")
    assert call("sample", *words(pair, tmp_path, classes=1)) == 2
    assert "holds images but no settings.json" in caplog.text


@pytest.mark.parametrize("content", [b"[1]", b"[" * 100_000, b"\xff", b'{"batch": 0}', None])
def test_unreadable_settings_end_sample_with_2_and_one_line(pair, tmp_path, caplog, content):
    out = tmp_path / "out"
    out.mkdir()
    if content is None:
        os.mkfifo(out / "settings.json")
    else:
        (out / "settings.json").write_bytes(content)
    assert call("sample", *words(pair, out, classes=1)) == 2
    [record] = caplog.records
    assert record.getMessage().startswith(f"{out / 'settings.json'}: no")


def test_after_an_out_of_memory_the_same_command_goes_on_with_the_option_that_it_named(
    pair, tmp_path, caplog, monkeypatch
):
    def drawn(_model, _tokenizer, labels, *, numbers, **_settings):
        if len(labels) > 1 and 2 in numbers:
            raise RuntimeError(
                "Memory isn't enough and alloc failed, kernel name: x, alloc size: 9"
            )
        return Generation(np.ones((len(labels), 3, 6, 6)), [])

    monkeypatch.setattr("var_transformer.sample.generate", drawn)
    caplog.set_level("INFO")
    out = tmp_path / "out"
    same = words(pair, out, classes="1,2,3,4")
    assert call("sample", *same, "--batch", "2") == 2
    said = "out of memory when drawing 2 images at once; expected --batch below 2"
    assert said in caplog.text and len(list(out.glob("0*.png"))) == 2
    assert call("sample", *same, "--batch", "1", "--seed", "1") == 2  # another run all the same
    assert "seed is 1 and was 0" in caplog.text
    assert call("sample", *same, "--batch", "1") == 0
    assert "the batch was 2 and is 1 from now on" in caplog.text
    assert len(list(out.glob("0*.png"))) == 4


@pytest.mark.parametrize(("gibibytes", "batch"), [(64, 4), (0, 1)])
def test_sample_chooses_the_batch_that_fits_into_memory(
    pair, tmp_path, monkeypatch, gibibytes, batch
):
    def drawn(_model, _tokenizer, labels, **_settings):
        assert len(labels) == batch
        return Generation(np.ones((len(labels), 3, 6, 6)), [])

    monkeypatch.setattr("var_transformer.sample.generate", drawn)
    free = gibibytes * 2**30
    monkeypatch.setattr("var_tokenizer.common.memory.available_memory", lambda: free)
    assert call("sample", *words(pair, tmp_path / "out", classes="1,2,3,4")) == 0


def test_a_run_from_before_dtype_goes_on_in_float32(pair, tmp_path, no_model_runs):
    same = config_of(pair, tmp_path, "1")
    with pytest.raises(AssertionError, match="a model ran"):
        run(same)
    path = tmp_path / "settings.json"
    settings = json.loads(path.read_text())
    assert settings.pop("dtype") == "float32"
    path.write_text(json.dumps(settings))
    with pytest.raises(AssertionError, match="a model ran"):
        run(same)
    with pytest.raises(InputError, match="dtype is float16 and was float32"):
        run(dataclasses.replace(same, dtype="float16"))


def test_a_recorded_batch_of_0_is_refused(pair, tmp_path, caplog, no_model_runs):
    same = config_of(pair, tmp_path, "1")
    with pytest.raises(AssertionError, match="a model ran"):
        run(same)
    settings = (tmp_path / "settings.json").read_text()
    (tmp_path / "settings.json").write_text(settings.replace('"batch": 1', '"batch": 0'))
    with pytest.raises(InputError, match="batch is 1 and was 0"):
        run(same)


@pytest.mark.slow
def test_a_run_killed_three_times_and_continued_gives_the_same_bytes(pair, tmp_path):
    def begin(out, **more):
        options = {"classes": "0,1,2,3,4", "per-class": 200, "top-p": 0.95, **more}
        return start("sample", *words(pair, out, **options), "--npz")

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert begin(whole, batch=16).wait() == 0
    for goal in (100, 400, 700):
        process = begin(killed, batch=16)
        while len(list(killed.glob("[0-9]*.png"))) < goal:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert goal <= len(list(killed.glob("[0-9]*.png"))) < 1000
    assert begin(killed).wait() == 0  # keeps the batch that it began with
    names = {path.name for path in whole.iterdir()}
    assert len(names) == 1003 and names == {path.name for path in killed.iterdir()}
    for name in names:
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name


def test_a_run_from_before_a_setting_of_the_sampler_goes_on(pair, tmp_path, caplog):
    out = tmp_path / "out"
    assert call("sample", *words(pair, out, classes=1)) == 0
    settings = json.loads((out / "settings.json").read_text())
    del settings["sampler"]["pruned"], settings["sampler"]["speed"]
    (out / "settings.json").write_text(json.dumps(settings))
    assert call("sample", *words(pair, out, classes=1)) == 0
    assert call("sample", *words(pair, out, classes=1, pruned=0.5)) == 2
    assert "in the run that" in caplog.text


@pytest.mark.parametrize("other", [{"pruned": 0.5}, {"guided-scales": 0}])
def test_a_speed_with_settings_that_contradict_it_ends_with_2_and_names_both(
    pair, tmp_path, caplog, no_model_runs, other
):
    [(name, value)] = other.items()
    for command, options in (("sample", {"classes": 1}), ("edit", {"image": "no.png", "class": 1})):
        line = words(pair, tmp_path / "out", speed=2, **options, **other)
        assert call(command, *line) == 2
        field = name.replace("-", "_")
        assert f"speed is 2 and {field} is ({value},); expected one of them" in caplog.text
        caplog.clear()
    assert not (tmp_path / "out").exists()
