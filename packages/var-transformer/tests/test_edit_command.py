"""`python -m var_transformer.edit` as a user meets it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import call, words
from picture_files import png
from PIL import Image
from var_tokenizer.common import fit_picture, read_picture, to_model_range, to_pixels
from var_transformer import edit
from var_transformer.edit import __main__ as edit_command
from var_transformer.generation.generate import Generation


@pytest.mark.parametrize(
    "way",
    [
        ["--mask", "mask.png"],
        pytest.param(["--keep-box", 0, 0, 6, 2], marks=pytest.mark.slow),
        pytest.param(["--box", 0, 2, 6, 6], marks=pytest.mark.slow),
    ],
    ids=lambda way: way[0],
)
def test_edit_redraws_as_the_function_does(pair, tmp_path, monkeypatch, model, tokenizer, way):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("image.png")
    mask = np.zeros((6, 6), np.uint8)
    mask[:, 2:] = 255
    Image.fromarray(mask).save("mask.png")
    options = {"image": "image.png", "class": 2, "count": 3, "animate": "apng"}
    out = tmp_path / "out"
    assert call("edit", *words(pair, out, **options), *way) == 0
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

    monkeypatch.setattr(edit_command, "edit", edited)
    options = {"image": "photo.png", "mask": "mask.png", "class": "none", "count": 3}
    options["animate"] = "apng"
    for out, keep in (("drawn", []), ("kept", ["--keep"])):
        assert call("edit", *words(pair, tmp_path / out, **options), *keep) == 0
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
def test_a_mask_of_any_mode_has_one_rule(tmp_path, mode, value, white):
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
        assert call("edit", *words(pair, tmp_path / "out", **options)) == 2
        [record] = caplog.records
        shown = name.replace("\x1b", "\\x1b").replace("\n", "\\n")
        assert record.getMessage().startswith(f"{shown}: ")


@pytest.mark.parametrize(
    ("size", "way", "message"),
    [
        ((6, 6), ["--box", 0, 0, 9, 3], "box is (0, 0, 9, 3)"),
        ((6, 6), [], "nothing given; expected exactly one of --mask, --box and --keep-box"),
        ((6, 6), ["--mask", "wide.png"], "(rows, columns) is (6, 7); expected (6, 6)"),
        ((6, 6), ["--mask", "text.png"], "not a readable image"),
    ],
)
def test_an_unusable_mask_or_box_ends_edit_with_2_and_the_values(
    pair, tmp_path, caplog, monkeypatch, no_model_runs, size, way, message
):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", size).save("image.png")
    Image.new("L", (7, 6)).save("wide.png")
    Path("text.png").write_text("no image")
    options = {"image": "image.png", "class": 2}
    assert call("edit", *words(pair, tmp_path / "out", **options), *way) == 2
    assert message in caplog.text


MEMORY = """
import resource
import sys
from var_transformer.edit.__main__ import main
for name in ("text.png", "bomb.png"):
    sys.argv = ["edit", "--image", name, *sys.argv[1 if name == "text.png" else 3 :]]
    try:
        main()
    except SystemExit as end:
        print(end.code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_a_picture_bomb_takes_the_edit_command_no_memory(pair, tmp_path):
    """13,300 x 13,300 pixels in 22 KB, against a picture that is refused for its kind."""
    rows = (b"\0" + b"\xff" * 1663) * 13_300
    (tmp_path / "bomb.png").write_bytes(png(13_300, 13_300, 1, 0, rows))
    (tmp_path / "text.png").write_bytes(b"text")
    options = [*words(pair, tmp_path / "out", **{"class": 2}), "--box", "0", "0", "3", "3"]
    command = [sys.executable, "-c", MEMORY, *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    text, bomb = (tuple(map(int, line.split())) for line in done.stdout.splitlines())
    assert text[0] == bomb[0] == 2
    text_line, bomb_line = done.stderr.splitlines()
    assert "text.png" in text_line
    assert "bomb.png" in bomb_line and "13300 x 13300 pixels; expected at most" in bomb_line
    assert bomb[1] < text[1] + 32 * 1024  # KiB; decoded it takes 2.3 GB
