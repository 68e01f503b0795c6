"""`python -m var_transformer.sample` and `.edit` as a user meets them."""

import dataclasses
import os
import runpy
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from var_tokenizer.common import (
    InputError,
    fit_picture,
    read_picture,
    to_model_range,
    to_pixels,
)
from var_transformer import Refiner, Transformer, edit, generate
from var_transformer.commands.class_names import class_number, read_class_names
from var_transformer.commands.image_files import save_png
from var_transformer.edit import __main__ as edit_command
from var_transformer.generation.generate import Generation
from var_transformer.generation.sampler import Sampler
from var_transformer.sample import SampleConfig, run, save_shuffled

# the commands run in this process, beside their imported modules
pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")


@pytest.fixture(scope="module")
def pair(model, tokenizer, make_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    model.save(folder / "m.safetensors")
    tokenizer.save(folder / "t.safetensors")
    make_model(depth=1, width=16).save(folder / "small.safetensors")
    named = Transformer.load(folder / "m.safetensors")
    named.class_names = ("cat", "dog", "0", "fox", "10")
    named.save(folder / "named.safetensors")
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


def test_a_commands_log_is_its_own_alone(pair, tmp_path):
    files = {"tokenizer": pair / "t.safetensors", "model": pair / "small.safetensors"}
    options = {"classes": 0, "out": tmp_path / "out"}
    environment = {name: value for name, value in os.environ.items() if name != "GLOG_v"}
    said = subprocess.run(
        [sys.executable, "-m", "var_transformer.sample"]
        + [part for name, value in (files | options).items() for part in (f"--{name}", str(value))],
        env=environment | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
        check=True,
        stderr=subprocess.PIPE,
        text=True,
    ).stderr
    assert said and all(line.startswith("INFO: ") for line in said.splitlines()), said


def test_the_files_are_what_generate_gives(sampled, model, tokenizer, make_model):
    labels = np.array([1, 1, 3, 3])
    refiner = Refiner(make_model(depth=1, width=16), 1)
    settings = {"cfg": 2.0, "top_k": (5, 4, 3), "seed": 7}
    out = generate(model, tokenizer, labels, refiner=refiner, **settings)
    for n, pixels in enumerate(to_pixels(out.images)):
        np.testing.assert_array_equal(read_picture(next(sampled.glob(f"{n:06d}_*.png"))), pixels)


def test_a_finished_run_only_joins_its_files_again_and_other_settings_are_an_error(
    sampled, pair, monkeypatch
):
    def unexpected(*_args, **_more):
        raise AssertionError("a model ran")

    monkeypatch.setattr("var_transformer.sample.generate", unexpected)
    same = SampleConfig(
        tokenizer=pair / "t.safetensors",
        model=pair / "m.safetensors",
        classes="1,3",
        out=sampled,
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


def test_the_evaluators_array_is_in_an_order_of_the_seed_alone(tmp_path):
    """In the order of classes, the Inception Score of consecutive parts would fall."""
    count = 60

    def written(name, seed=3, batch=0, begin=0):
        """The array's bytes, in which image n is all n, and the numbers and labels in it."""
        config = SampleConfig(
            tokenizer=None,
            model=None,
            classes="1",
            out=tmp_path / name,
            seed=seed,
            batch=batch,
            npz=True,
            per_class=20,
        )
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


@pytest.mark.parametrize("columns", [0, 2])
def test_an_image_of_another_size_in_the_folder_ends_with_2_and_its_name(
    pair, tmp_path, caplog, no_model_runs, columns
):
    same = SampleConfig(
        tokenizer=pair / "t.safetensors",
        model=pair / "m.safetensors",
        classes="1,2",
        out=tmp_path,
        columns=columns,
    )
    with pytest.raises(AssertionError, match="a model ran"):
        run(same)
    for n, side in ((1, 6), (2, 7)):
        save_png(np.zeros((side, side, 3), np.uint8), tmp_path / f"{n - 1:06d}_{n}.png")
    with pytest.raises(InputError, match=r"000001_2\.png: .*is \(7, 7\); expected \(6, 6\)"):
        run(same)


def test_classes_are_the_models_own_and_images_have_the_numbers_that_are_asked_for(
    pair, tmp_path, caplog, monkeypatch
):
    def drawn(_model, _tokenizer, labels, *, numbers, **_settings):
        """Images of which each says its label and its number."""
        values = np.stack([labels, numbers, labels], 1)[..., None, None]
        return Generation(np.ones((1, 1, 6, 6)) * values / 255, [])

    monkeypatch.setattr(sys.modules["var_transformer.generation.generate"], "generate", drawn)
    caplog.set_level("INFO")
    options = {"classes": "10,none,dog", "numbers": "57,60-61", "columns": 2}
    options |= {"model": pair / "named.safetensors", "batch": 2}
    assert call("sample", *arguments(pair, tmp_path / "a", **options)) == 0
    assert "10 is number 4" in caplog.text
    for number, label in ((57, 4), (60, 5), (61, 1)):
        pixels = np.asarray(read_picture(tmp_path / f"a/{number:06d}_{label}.png"))
        assert (pixels == (label, number, label)).all()
    assert read_picture(tmp_path / "a" / "grid.png").size == (2 * 8 + 2, 2 * 8 + 2)
    assert call("sample", *arguments(pair, tmp_path / "a", **options | {"numbers": "1-3"})) == 2
    assert "numbers is 1-3 and was 57,60-61 in the run" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": "7"}, "class is '7'; expected 0 to 4"),
        ({"classes": "cow"}, "class is 'cow'; expected 0 to 4"),
        ({"classes": "1-9"}, "class is '9'; expected 0 to 4"),
        ({"numbers": "1,x"}, "numbers are '1,x'; expected such as 57 or 57,60-63"),
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


@pytest.mark.parametrize("content", [b"[1]", b"[" * 100_000, b"\xff", b'{"batch": 0}', None])
def test_settings_that_are_none_end_with_2_and_one_line(pair, tmp_path, caplog, content):
    out = tmp_path / "out"
    out.mkdir()
    if content is None:
        os.mkfifo(out / "settings.json")
    else:
        (out / "settings.json").write_bytes(content)
    assert call("sample", *arguments(pair, out, classes=1)) == 2
    [record] = caplog.records
    assert record.getMessage().startswith(f"{out / 'settings.json'}: no")


def test_a_batch_of_0_in_the_settings_is_not_taken(pair, tmp_path, caplog, no_model_runs):
    same = SampleConfig(
        tokenizer=pair / "t.safetensors", model=pair / "m.safetensors", classes="1", out=tmp_path
    )
    with pytest.raises(AssertionError, match="a model ran"):
        run(same)
    settings = (tmp_path / "settings.json").read_text()
    (tmp_path / "settings.json").write_text(settings.replace('"batch": 1', '"batch": 0'))
    with pytest.raises(InputError, match="batch is 1 and was 0"):
        run(same)


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
    for n, variant in enumerate(to_pixels(expected.images)):
        np.testing.assert_array_equal(read_picture(out / f"{n:06d}_2.png"), variant)
        with Image.open(out / f"{n:06d}_2.anim.png") as animation:
            assert animation.n_frames > 1


def test_edit_fits_a_photograph_turns_it_and_keeps_its_own_pixels(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    upright, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save("photo.png", exif=exif)
    mask = np.zeros((10, 12), np.uint8)
    mask[:, 6:] = 255
    Image.fromarray(mask).save("mask.png")
    fitted = np.asarray(fit_picture(upright, (6, 6)))
    right = np.zeros((6, 6), bool)
    right[:, 3:] = True
    new = np.random.default_rng(1).integers(0, 256, (3, 6, 6, 3), dtype=np.uint8)

    def edited(_model, _tokenizer, image, mask, labels, *_more, on_scale):
        np.testing.assert_array_equal(image, to_model_range(fitted[None])[0])
        np.testing.assert_array_equal(mask, right)
        np.testing.assert_array_equal(labels, [5] * 3)
        images = new.transpose(0, 3, 1, 2) / 255
        on_scale(0, images)
        return Generation(images, [])

    monkeypatch.setattr(sys.modules["var_transformer.generation.editing"], "edit", edited)
    options = {"image": "photo.png", "mask": "mask.png", "class": "none", "count": 3}
    options["animate"] = "apng"
    for out, keep in (("drawn", []), ("kept", ["--keep"])):
        assert call("edit", *arguments(pair, tmp_path / out, **options), *keep) == 0
        for n in range(3):
            for suffix in (".png", ".anim.png"):
                variant = np.asarray(read_picture(f"{out}/{n:06d}_5{suffix}"))
                np.testing.assert_array_equal(variant[:, 3:], new[n, :, 3:])
                np.testing.assert_array_equal(variant[:, :3], (fitted if keep else new[n])[:, :3])


WHITE_AND_NOT = [
    *(("1", value, value == 255) for value in (0, 255)),
    *(("L", value, value >= 128) for value in (0, 127, 128, 255)),
    *(("I;16", value, value >= 0x8000) for value in (0, 300, 0x7FFF, 0x8000, 0xFFFF)),
    *(("RGB", colour, white) for colour, white in (((255, 0, 0), False), ((200, 200, 99), True))),
    *(("LA", value, white) for value, white in (((255, 255), True), ((255, 99), False))),
    ("RGBA", (255, 255, 255, 255), True),
    ("RGBA", (255, 255, 255, 0), False),
    ("RGBA", (0, 0, 0, 0), False),
    ("RGBA", (0, 0, 0, 255), False),
    ("P", 1, True),
    ("P", 0, False),
    ("P", 2, False),
]


@pytest.mark.parametrize(("mode", "value", "white"), WHITE_AND_NOT)
def test_masks_of_every_mode_have_one_rule(tmp_path, mode, value, white):
    """At least half white is redrawn; black and transparent stay."""
    mask = Image.new(mode, (2, 2), value)
    if mode == "P":
        mask.putpalette([9, 9, 9, 255, 255, 255, 255, 255, 255])
        mask.info["transparency"] = 2
    mask.save(tmp_path / "mask.png")
    assert (np.asarray(edit_command._read_mask(tmp_path / "mask.png")) == 255 * white).all()


@pytest.mark.parametrize("size", [(6, 6), (18, 30), (7, 5)])
def test_a_mask_is_fitted_as_its_image_is_and_stays_sharp(size):
    columns = size[1]
    left = np.zeros(size, np.uint8)
    left[:, : columns // 2] = 255
    image = fit_picture(Image.fromarray(left), (6, 6))
    mask = edit_command._fitted_mask(None, Image.fromarray(left), (6, 6))
    np.testing.assert_array_equal(mask, np.asarray(image) >= 128)


@pytest.mark.parametrize("option", ["image", "mask"])
def test_a_broken_picture_ends_edit_with_2_and_one_line(
    pair, tmp_path, caplog, monkeypatch, no_model_runs, option
):
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(noise).save("whole.png")
    data = Path("whole.png").read_bytes()
    os.mkfifo("pipe\x1b[2J\nERROR: all is well")
    broken = {
        "chunk.png": data.replace(b"IDAT", b"IDAT\xff"),
        "cut.png": data[:50],
        "palette.png": data.replace(b"IHDR\0\0\0\6\0\0\0\6\x08\2", b"IHDR\0\0\0\6\0\0\0\6\x08\3"),
    }
    for name, content in broken.items():
        Path(name).write_bytes(content)
    for name in (*broken, "pipe\x1b[2J\nERROR: all is well", "/dev/zero", ".", "absent.png"):
        caplog.clear()
        options = {"image": "whole.png", "mask": "whole.png", "class": 2} | {option: name}
        assert call("edit", *arguments(pair, tmp_path / "out", **options)) == 2
        [record] = caplog.records
        shown = name.replace("\x1b", "\\x1b").replace("\n", "\\n")
        assert record.getMessage().startswith(f"{shown}: ")


def test_a_picture_bomb_takes_the_edit_command_no_memory(pair, tmp_path):
    """13,300 x 13,300 pixels in 22 KB, against a picture that is refused for its kind."""
    row = b"\0" + b"\xff" * 1663
    packer = zlib.compressobj(9)
    data = b"".join([*(packer.compress(row) for _ in range(13_300)), packer.flush()])
    header = struct.pack(">IIBBBBB", 13_300, 13_300, 1, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
        for part in (b"IHDR" + header, b"IDAT" + data, b"IEND")
    )
    peaks = {}
    for name, content in (("bomb.png", png), ("text.png", b"text")):
        (tmp_path / name).write_bytes(content)
        options = {"image": tmp_path / name, "class": 2, "box": 0}
        command = arguments(pair, tmp_path / "out", **options)
        process = subprocess.Popen(
            [sys.executable, "-m", "var_transformer.edit", *command, "0", "3", "3"],
            stderr=subprocess.PIPE,
            text=True,
        )
        said = process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 2 and name in said and said.count("\n") == 1
        assert ("13300 x 13300 pixels; expected at most" in said) == (name == "bomb.png")
        peaks[name] = used.ru_maxrss / 1024
    assert peaks["bomb.png"] < peaks["text.png"] + 32  # MiB; decoded it takes 2.3 GB


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
