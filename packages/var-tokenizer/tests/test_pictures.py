"""The reader of pictures, and the ranges of pixels: image files as people have them."""

import os
import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from picture_files import png, saved
from PIL import Image
from var_tokenizer import read_images, to_pictures
from var_tokenizer.common import (
    InputError,
    fit_picture,
    is_picture_name,
    open_regular,
    read_alpha,
    read_picture,
    to_model_range,
    to_pixels,
    to_unit_range,
)
from var_tokenizer.common.pictures import PICTURE_FORMATS

ORIENTATION = 0x0112


def pixels(source, **options) -> np.ndarray:
    return np.asarray(read_picture(source, **options))


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[ORIENTATION] = orientation
    return block


# ---------------------------------------------------------------- ranges, and users of Python
def test_all_256_values_go_to_the_models_range_and_back():
    values_nyxc = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    images_ncyx = to_model_range(values_nyxc)
    assert images_ncyx.dtype == np.float32 and images_ncyx.shape == (1, 3, 16, 16)
    assert images_ncyx.min() == -1 and images_ncyx.max() == 1
    np.testing.assert_array_equal(to_pixels(to_unit_range(images_ncyx)), values_nyxc)


def test_values_outside_a_range_are_clipped():
    images_ncyx = np.array([-9, 0.5, 9], np.float32).reshape(3, 1, 1, 1).repeat(3, axis=1)
    assert to_pixels(to_unit_range(images_ncyx))[:, 0, 0, 0].tolist() == [0, 191, 255]
    assert to_pixels(images_ncyx)[:, 0, 0, 0].tolist() == [0, 128, 255]


def test_files_and_pil_images_become_what_encode_takes_and_go_back(tmp_path):
    noise_yxc = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    image = Image.fromarray(noise_yxc)
    image.save(tmp_path / "a.png")
    images_ncyx = read_images([tmp_path / "a.png", str(tmp_path / "a.png"), image], (8, 12))
    assert images_ncyx.shape == (3, 3, 8, 12) and images_ncyx.dtype == np.float32
    for picture in to_pictures(images_ncyx):
        np.testing.assert_array_equal(picture, noise_yxc)
    np.testing.assert_array_equal(read_images(image, (8, 12)), images_ncyx[:1])
    np.testing.assert_array_equal(read_images(saved(image), (8, 12)), images_ncyx[:1])
    assert read_images(image, (4, 4)).shape == (1, 3, 4, 4)
    with pytest.raises(InputError, match="pictures is empty"):
        read_images([], (8, 12))


def test_a_pil_image_is_turned_and_laid_over_white_as_its_file_is():
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (200, 0, 0, 0))
    data = saved(image, exif=exif(6))
    with Image.open(BytesIO(data)) as opened:
        images_ncyx = read_images([opened, data], (2, 1))
    assert to_pixels(to_unit_range(images_ncyx))[:, :, 0].tolist() == [[[0] * 3, [255] * 3]] * 2


# ---------------------------------------------------------------- what people have
@pytest.mark.parametrize("kind", PICTURE_FORMATS)
def test_every_format_is_read_by_content(tmp_path, kind):
    image = Image.new("RGB", (16, 8), (200, 40, 60))
    path = tmp_path / "any.name"
    path.write_bytes(saved(image, kind, **({"quality": 95} if kind in ("JPEG", "WEBP") else {})))
    for source in (path, path.read_bytes(), path.open("rb")):
        picture = read_picture(source)
        assert picture.mode == "RGB" and picture.size == (16, 8)
        assert np.abs(np.asarray(picture).astype(int) - (200, 40, 60)).max() <= 4


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "jfif", "webp", "bmp", "tif", "gif", "ppm"])
def test_pictures_in_folders_are_told_by_their_suffix(suffix):
    assert is_picture_name(f"a.b.{suffix}") and not is_picture_name(f"{suffix}.txt")


def test_a_picture_with_damaged_exif_is_read():
    damaged = saved(
        Image.new("RGB", (64, 64)), "JPEG", dpi=(72, 72), exif=b"Exif\x00\x00garbage-garbage"
    )
    assert not pixels(damaged).any()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_is_read_whatever_the_damage_to_its_exif_block(kind):
    whole = exif(6).tobytes()
    image = Image.new("RGB", (16, 8), "white")
    assert read_picture(saved(image, kind, exif=whole)).size == (8, 16)
    rng = np.random.default_rng(0)
    for cut in range(6, len(whole)):
        noise = whole[:cut] + rng.bytes(len(whole) - cut)
        for block in (whole[:cut], noise, b"Exif\0\0" + rng.bytes(cut)):
            assert read_picture(saved(image, kind, exif=block)).size in ((16, 8), (8, 16))


@pytest.mark.parametrize("marker", [0xE1, 0xE2, 0xEC, 0xED, 0xEF, 0xFE])
def test_a_jpeg_is_read_whatever_the_damage_to_its_other_metadata(marker):
    data = saved(Image.new("RGB", (16, 8), "white"), "JPEG")
    starts = (b"", b"MPF\0", b"ICC_PROFILE\0", b"Photoshop 3.0\0" + b"8BIM\x03\xed\0\0\0\0\xff\xff")
    for start in starts:
        block = start + b"\xff\xd8\xff"
        segment = struct.pack(">BBH", 0xFF, marker, len(block) + 2) + block
        assert pixels(data[:2] + segment + data[2:]).min() >= 254


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_is_turned_upright_once(kind, orientation):
    upright = Image.new("RGB", (24, 16), "black")
    upright.paste("white", (0, 0, 8, 8))
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the inverse of each turn
    lying = upright if orientation == 1 else upright.transpose(Image.Transpose(back[orientation]))
    options = {"exif": exif(orientation)}
    if kind in ("JPEG", "WEBP"):
        options["quality"] = 95
    if kind == "TIFF":
        options = {"tiffinfo": {ORIENTATION: orientation}}
    picture = read_picture(saved(lying, kind, **options))
    assert np.abs(np.asarray(picture).astype(int) - np.asarray(upright)).max() <= 8
    assert not picture.info and ORIENTATION not in picture.getexif()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_grey_of_16_bits_keeps_its_high_byte(kind):
    grey = np.array([[0, 255, 256, 20000, 65535]], np.uint16)
    by_hand = b"P5 5 1 65535\n" + grey.astype(">u2").tobytes()  # not every Pillow can write it
    data = by_hand if kind == "PPM" else saved(Image.fromarray(grey), kind)
    assert pixels(data)[0, :, 0].tolist() == [0, 0, 1, 78, 255]


def test_grey_of_no_known_range_is_refused():
    for dtype in (np.int32, np.float32):
        data = saved(Image.fromarray(np.full((2, 2), 7, dtype)), "TIFF")
        with pytest.raises(InputError, match=r"image: .*grey of 32 bits, of no known range"):
            read_picture(data)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_value_of_grey_of_any_depth_is_white(depth):
    """Two pixels, 0 and the transparent value 1 (in 16 bits 300), in a PNG of that depth."""
    key = 300 if depth == 16 else 1
    packed = struct.pack(">HH", 0, key) if depth == 16 else bytes([0, key])
    if depth < 8:
        packed = bytes([key << (8 - 2 * depth)])
    data = png(2, 1, depth, 0, b"\0" + packed, (b"tRNS", struct.pack(">H", key)))
    assert pixels(data)[0, :, 0].tolist() == [0, 255]


def test_the_transparent_colour_of_16_bits_a_channel_is_white():
    red, key = (0xFF00, 0, 0), (0x1234, 0x5678, 0x9ABC)
    row = b"\0" + struct.pack(">6H", *red, *key)
    data = png(2, 1, 16, 2, row, (b"tRNS", struct.pack(">3H", *key)))
    assert pixels(data)[0].tolist() == [[255, 0, 0], [255, 255, 255]]


def test_opacity_of_any_depth_is_read_upright():
    row = b"\0" + struct.pack(">HH", 0, 300)
    grey = png(2, 1, 16, 0, row, (b"tRNS", struct.pack(">H", 300)))
    assert np.asarray(read_alpha(grey)).tolist() == [[255, 0]]
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 90))
    image.putpixel((1, 0), (0, 0, 0, 20))
    assert np.asarray(read_alpha(saved(image, exif=exif(6)))).tolist() == [[90], [20]]
    assert np.asarray(read_alpha(saved(image.convert("RGB"), "JPEG"))).tolist() == [[255, 255]]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "GIF"])
def test_colours_hidden_under_transparency_do_not_show(kind):
    image = Image.new("RGBA", (2, 2), (0, 0, 0, 255))
    image.putpixel((1, 1), (255, 0, 0, 0))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert pixels(saved(image, kind, **options))[:, :, 0].tolist() == [[0, 0], [0, 255]]


def test_transparency_is_laid_over_white_as_pillow_composes_it():
    alpha_yx, colour_yx = np.mgrid[:256, :256].astype(np.uint8)
    image = Image.fromarray(np.dstack([colour_yx, colour_yx, colour_yx, alpha_yx]))
    expected = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    difference = pixels(saved(image)).astype(int) - np.asarray(expected.convert("RGB"))
    assert np.abs(difference).max() <= 1 and np.abs(difference).mean() < 0.01


KINDS_OF_FILES = [
    *(("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
    *(("JPEG", mode, {"progressive": True}) for mode in ("L", "RGB", "CMYK")),
    ("JPEG", "RGB", {"subsampling": 2, "restart_marker_rows": 1, "icc_profile": bytes(200_000)}),
    *(("WEBP", mode, {"lossless": True, "exif": exif(1)}) for mode in ("RGB", "RGBA")),
    *(("GIF", mode, {"interlace": 1, "comment": b"x" * 999}) for mode in ("L", "P", "RGBA")),
    *(("BMP", mode, {}) for mode in ("1", "L", "P", "RGB")),
    *(("PPM", mode, {}) for mode in ("1", "L", "RGB")),
    *(("TIFF", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB")),
    *(("TIFF", "RGB", {"compression": c}) for c in ("tiff_lzw", "tiff_adobe_deflate", "packbits")),
    ("TIFF", "YCbCr", {"compression": "jpeg", "quality": 90}),
    ("TIFF", "1", {"compression": "group4"}),
    ("TIFF", "RGB", {"tiffinfo": {270: "a description", 34853: {1: "N"}}, "big_tiff": False}),
]


@pytest.mark.parametrize(("kind", "mode", "options"), KINDS_OF_FILES)
def test_pixels_do_not_depend_on_the_metadata_that_is_left_out(kind, mode, options):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (9, 7, 4), dtype=np.uint8), "RGBA")
    image = small.resize((70, 90), Image.Resampling.BILINEAR)
    image = image.quantize(9) if mode == "P" else image.convert("RGB") if mode in "LAB" else image
    if mode == "LAB":
        image = Image.merge("LAB", image.split())
    data = saved(image if mode in ("P", "RGBA") else image.convert(mode), kind, **options)
    with Image.open(BytesIO(data)) as opened:
        if opened.has_transparency_data:
            layer = opened.convert("RGBA")
            expected = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        else:
            expected = opened
        expected = np.asarray(expected.convert("RGB")).astype(int)
    assert np.abs(pixels(data) - expected).max() <= (1 if "A" in mode else 0)
    assert expected.std() > 10


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        assert np.abs(pixels(data)[0, 0].astype(int) - (255, 0, 0)).max() <= 2, kind


def test_a_picture_is_fitted_to_a_size_by_its_centre():
    wide = Image.new("RGB", (30, 10), "red")
    wide.paste("white", (10, 0, 20, 10))
    fitted = fit_picture(wide, (4, 4))
    assert fitted.size == (4, 4) and np.asarray(fitted)[:, 1:3].min() == 255
    assert fit_picture(Image.new("RGB", (1, 1)), (6, 8)).size == (8, 6)


# ---------------------------------------------------------------- what is broken
@pytest.mark.parametrize("kind", PICTURE_FORMATS)
def test_a_cut_or_changed_file_is_read_or_refused_by_name(tmp_path, kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8))
    data, rng, refused = saved(noise, kind), np.random.default_rng(1), 0
    path = tmp_path / "broken"
    for n in range(300):
        changed = bytearray(data[: rng.integers(len(data))] if n % 3 == 0 else data)
        for at in rng.integers(0, max(len(changed), 1), 3 if changed else 0):
            changed[at] = rng.integers(256)
        path.write_bytes(changed)
        try:
            assert read_picture(path, 2**20).mode == "RGB"
        except InputError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ")
    assert refused > 50


@pytest.mark.parametrize(
    "content", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"RIFF\4\0\0\0WAVE"]
)
def test_a_file_of_another_kind_is_refused_by_name(tmp_path, content):
    path = tmp_path / "fake.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"fake\.jpg: not a readable image; expected PNG, JPEG,"):
        read_picture(path)


def test_postscript_starts_no_program(tmp_path, monkeypatch):
    started = tmp_path / "started"
    helper = tmp_path / "gs"
    helper.write_text(f"#!/bin/sh\ntouch {started}\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "a.png").write_bytes(saved(Image.new("RGB", (9, 9)), "EPS"))
    with pytest.raises(InputError, match="not a readable image"):
        read_picture(tmp_path / "a.png")
    assert not started.exists()


@pytest.mark.parametrize("name", ["folder", "pipe", "pipe-link", "/dev/zero", "/dev/tty", "absent"])
def test_anything_but_a_regular_file_is_refused_without_waiting(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    os.mkfifo("pipe")
    Path("pipe-link").symlink_to("pipe")
    for read in (read_picture, open_regular):
        with pytest.raises(InputError, match=f"{name}: (no regular file|cannot read this file)"):
            read(name)
    with pytest.raises(InputError, match="not a readable image"):
        read_picture("a\0b")


def test_a_link_to_a_file_is_followed(tmp_path):
    (tmp_path / "a.png").write_bytes(saved(Image.new("RGB", (2, 2))))
    (tmp_path / "link").symlink_to("a.png")
    assert read_picture(tmp_path / "link").size == (2, 2)
