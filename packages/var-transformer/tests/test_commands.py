"""`python -m var_transformer.sample` and `.edit` as a user meets them."""

import dataclasses
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from var_tokenizer import InputError, read_picture, unit_to_pixels
from var_transformer import Refiner, Transformer, edit, generate
from var_transformer.classes import class_number, read_class_names
from var_transformer.sample import Sample, run
from var_transformer.sampler import Sampler

# the commands run in this process, beside their imported modules
pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")


@pytest.fixture(scope="module")
def pair(model, tokenizer, make_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    model.save(folder / "m.safetensors")
    tokenizer.save(folder / "t.safetensors")
    make_model(depth=1, width=16).save(folder / "small.safetensors")
    (folder / "names.txt").write_text("cat\ndog, hound\neel\nfox\ngnu\n")
    return folder


def arguments(pair, out, **more):
    files = {"tokenizer": pair / "t.safetensors", "model": pair / "m.safetensors", "out": out}
    return [part for name, value in (files | more).items() for part in (f"--{name}", str(value))]


def call(module, *arguments):
    """The exit code of a command run in this process."""
    argv = sys.argv
    sys.argv = [module, *map(str, arguments)]
    try:
        runpy.run_module(f"var_transformer.{module}", run_name="__main__")
    except SystemExit as end:
        return end.code
    finally:
        sys.argv = argv
    return 0


@pytest.fixture(scope="module")
def sampled(pair, tmp_path_factory):
    out = tmp_path_factory.mktemp("sampled")
    options = {"per-class": 2, "animate": "gif", "refined-scales": 1}
    code = call(
        "sample",
        *arguments(pair, out, classes="hound,3", seed=7, **options),
        *("--npz", "--class-names", pair / "names.txt", "--cfg", "2", "--top-k", "5", "4", "3"),
        *("--refiner", pair / "small.safetensors"),
    )
    assert code == 0
    return out


def test_it_writes_each_image_a_grid_an_animation_and_the_evaluators_array(sampled):
    names = ["000000_1", "000001_1", "000002_3", "000003_3"]
    expected = {f"{name}{suffix}" for name in names for suffix in (".png", ".gif")}
    extra = {"grid.png", "samples.npz", "settings.json"}
    assert {path.name for path in sampled.iterdir()} == expected | extra
    with np.load(sampled / "samples.npz") as archive:
        assert archive.files == ["arr_0"]
        array = archive["arr_0"]
    assert array.shape == (4, 6, 6, 3) and array.dtype == np.uint8
    for pixels, name in zip(array, names, strict=True):
        np.testing.assert_array_equal(pixels, read_picture(sampled / f"{name}.png"))
        with Image.open(sampled / f"{name}.gif") as animation:
            assert 1 < animation.n_frames <= 3  # Pillow joins frames that are equal
    assert read_picture(sampled / "grid.png").size == (2 * 8 + 2, 2 * 8 + 2)


def test_the_files_are_what_generate_gives(sampled, model, tokenizer, make_model):
    labels = np.array([1, 1, 3, 3])
    refiner = Refiner(make_model(depth=1, width=16), 1)
    settings = {"cfg": 2.0, "top_k": (5, 4, 3), "seed": 7}
    out = generate(model, tokenizer, labels, refiner=refiner, **settings)
    for n, pixels in enumerate(unit_to_pixels(out.images)):
        np.testing.assert_array_equal(read_picture(next(sampled.glob(f"{n:06d}_*.png"))), pixels)


def test_a_finished_run_only_joins_its_files_again_and_other_settings_are_an_error(
    sampled, pair, monkeypatch
):
    def unexpected(*_args, **_more):
        raise AssertionError("a model ran")

    monkeypatch.setattr("var_transformer.sample.generate", unexpected)
    same = Sample(
        pair / "t.safetensors",
        pair / "m.safetensors",
        "1,3",
        sampled,
        per_class=2,
        sampler=Sampler(cfg=2.0, top_k=(5, 4, 3)),
        refiner=pair / "small.safetensors",
        refined_scales=1,
        seed=7,
    )
    before = (sampled / "grid.png").read_bytes()
    (sampled / "grid.png").unlink()
    run(same)
    assert (sampled / "grid.png").read_bytes() == before
    with pytest.raises(InputError, match="seed is 8 and was 7"):
        run(dataclasses.replace(same, seed=8))
    with pytest.raises(InputError, match="batch is 3 and was 4"):
        run(dataclasses.replace(same, batch=3))
    with pytest.raises(InputError, match="refined_scales is 2 and was 1"):
        run(dataclasses.replace(same, refined_scales=2))
    with pytest.raises(InputError, match="sampler is"):
        run(dataclasses.replace(same, sampler=Sampler()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": "7"}, "class is '7'; expected 0 to 4"),
        ({"classes": "cow"}, "class is 'cow'; expected 0 to 4"),
        ({"cfg": "-1"}, "cfg is -1.0; expected at least 0"),
        ({"top-p": "1.5"}, "top_p is 1.5; expected 0 to 1"),
        ({"top-k": "33"}, "top_k is 33; expected 0 to 32"),
        ({"per-class": "0"}, "per_class is 0; expected at least 1"),
        ({"model": "absent.safetensors"}, "absent.safetensors: no such file"),
        ({"refiner": "m.safetensors"}, "refined_scales is 0; expected both or none"),
        ({"refined-scales": "1"}, "refiner is None and refined_scales is 1"),
    ],
)
def test_bad_input_ends_with_2_and_a_line_before_any_model_runs_or_file_is_written(
    pair, tmp_path, caplog, no_model_runs, changes, message
):
    code = call("sample", *arguments(pair, tmp_path / "out", **{"classes": "1"} | changes))
    assert code == 2 and message in caplog.text and not (tmp_path / "out").exists()


def test_a_pair_that_does_not_match_is_an_error_with_both_values(
    pair, tmp_path, caplog, make_config
):
    other = tmp_path / "other.safetensors"
    Transformer(make_config(vocab_size=16)).save(other)
    code = call("sample", *arguments(pair, tmp_path / "out", classes=1, model=other))
    assert code == 2
    assert "vocab_size is 16 in the transformer and 32 in the tokenizer" in caplog.text


def test_images_of_an_unknown_run_are_not_taken_for_finished(pair, tmp_path, caplog):
    Image.new("RGB", (6, 6)).save(tmp_path / "000000_1.png")
    assert call("sample", *arguments(pair, tmp_path, classes=1)) == 2
    assert "holds images but no settings.json" in caplog.text


def test_a_class_is_a_number_a_name_or_a_synonym(pair):
    names = read_class_names(pair / "names.txt", 5)
    assert [class_number(text, 5, names) for text in ("4", "CAT", "dog", " hound")] == [4, 0, 1, 1]
    with pytest.raises(InputError, match="'x' names"):
        class_number("x", 2, ["x", "x"])
    with pytest.raises(InputError, match="holds 5 names; expected 6"):
        read_class_names(pair / "names.txt", 6)


@pytest.mark.parametrize(
    "way",
    [
        ["--mask", "mask.png"],
        pytest.param(["--keep-box", 0, 0, 6, 2], marks=pytest.mark.slow),
        pytest.param(["--box", 0, 2, 6, 6], marks=pytest.mark.slow),
    ],
    ids=lambda way: way[0],
)
def test_edit_redraws_a_mask_as_the_function_does(
    pair, tmp_path, monkeypatch, model, tokenizer, way
):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("image.png")
    mask = np.zeros((6, 6), np.uint8)
    mask[:, 2:] = 255
    Image.fromarray(mask).save("mask.png")
    options = {"image": "image.png", "class": 2, "count": 3, "animate": "apng"}
    out = tmp_path / "out"
    assert call("edit", *arguments(pair, out, **options), *way) == 0
    scaled = pixels.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1
    expected = edit(model, tokenizer, scaled, mask > 0, np.full(3, 2))
    for n, variant in enumerate(unit_to_pixels(expected.images)):
        np.testing.assert_array_equal(read_picture(out / f"{n:06d}_2.png"), variant)
        with Image.open(out / f"{n:06d}_2.anim.png") as animation:
            assert animation.n_frames > 1


@pytest.mark.parametrize(
    ("size", "way", "message"),
    [
        ((6, 6), ["--box", 0, 0, 9, 3], "box is (0, 0, 9, 3)"),
        ((6, 6), [], "nothing given; expected exactly one of --mask, --box and --keep-box"),
        ((6, 6), ["--mask", "wide.png"], "(rows, columns) is (6, 7); expected (6, 6)"),
        ((6, 6), ["--mask", "text.png"], "not a readable image"),
    ],
)
def test_an_image_or_mask_of_another_size_ends_with_2_and_both_values(
    pair, tmp_path, caplog, monkeypatch, no_model_runs, size, way, message
):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", size).save("image.png")
    Image.new("L", (7, 6)).save("wide.png")
    Path("text.png").write_text("no image")
    options = {"image": "image.png", "class": 2}
    assert call("edit", *arguments(pair, tmp_path / "out", **options), *way) == 2
    assert message in caplog.text


@pytest.mark.slow
def test_a_run_killed_three_times_and_continued_is_byte_identical(pair, tmp_path):
    def start(out, **more):
        options = {"classes": "0,1,2,3,4", "per-class": 200, "top-p": 0.95, **more}
        command = ["-m", "var_transformer.sample", *arguments(pair, out, **options), "--npz"]
        return subprocess.Popen(
            [sys.executable, *command], env=os.environ | {"GLOG_v": "3"}, stderr=subprocess.DEVNULL
        )

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole, batch=16).wait() == 0
    for goal in (100, 400, 700):
        process = start(killed, batch=16)
        while len(list(killed.glob("[0-9]*.png"))) < goal:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert goal <= len(list(killed.glob("[0-9]*.png"))) < 1000
    assert start(killed).wait() == 0  # keeps the batch that it began with
    names = {path.name for path in whole.iterdir()}
    assert len(names) == 1003 and names == {path.name for path in killed.iterdir()}
    for name in names:
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name


def in_a_process(module, cache, *arguments):
    """Runs a command as a process of its own, with its graphs below the folder ``cache``."""
    subprocess.run(
        [sys.executable, "-m", f"var_transformer.{module}", *map(str, arguments)],
        env=os.environ | {"GLOG_v": "3", "XDG_CACHE_HOME": str(cache)},
        check=True,
        stderr=subprocess.DEVNULL,
    )


def graphs(cache):
    return {path: path.stat().st_mtime_ns for path in cache.rglob("*.mindir")}


@pytest.mark.slow
def test_the_next_process_takes_the_graphs_of_its_model_and_draws_the_same_images(pair, tmp_path):
    cache = tmp_path / "cache"

    def drawn(name, model, batch):
        files = arguments(pair, tmp_path / name, model=pair / f"{model}.safetensors", batch=batch)
        in_a_process("sample", cache, *files, "--classes", "1,2")
        return [path.read_bytes() for path in sorted((tmp_path / name).glob("0*.png"))]

    first = drawn("first", "m", 2)
    compiled = graphs(cache)
    assert compiled and drawn("second", "m", 2) == first
    assert graphs(cache) == compiled  # none was compiled again
    small, pairwise = drawn("small", "small", 2), drawn("one by one", "m", 1)
    assert len({path.parents[2] for path in graphs(cache)}) == 3
    assert small != first and pairwise == first
    assert drawn("small again", "small", 2) == small


@pytest.mark.slow
def test_an_edit_takes_the_graphs_of_an_earlier_one_with_another_box(pair, tmp_path):
    cache = tmp_path / "cache"
    Image.new("RGB", (6, 6), "orange").save(tmp_path / "image.png")

    def edited(name, box):
        options = {"image": tmp_path / "image.png", "class": 2}
        out = tmp_path / name
        in_a_process("edit", cache, *arguments(pair, out, **options), "--box", *box)
        return (out / "000000_2.png").read_bytes()

    left = edited("left", (0, 0, 6, 3))
    compiled = graphs(cache)
    assert compiled and edited("right", (0, 3, 6, 6)) != left
    assert edited("left again", (0, 0, 6, 3)) == left
    assert graphs(cache) == compiled


@pytest.mark.slow
def test_the_graphs_that_were_not_used_for_longest_make_room(pair, tmp_path):
    folder = tmp_path / "cache" / "var-mindspore"
    day = 24 * 60 * 60
    ages = {f"model {n}": n * day for n in range(20)} | {".killed": 2 * day, ".compiling": 60}
    for name, age in ages.items():
        (folder / name).mkdir(parents=True)
        os.utime(folder / name, (time.time() - age,) * 2)
    files = arguments(pair, tmp_path / "out", classes="1")
    in_a_process("sample", tmp_path / "cache", *files)
    left = {path.name for path in folder.iterdir()}
    assert {f"model {n}" for n in range(15)} | {".compiling"} == left & ages.keys()
    assert len(left) == 17  # and this model's
