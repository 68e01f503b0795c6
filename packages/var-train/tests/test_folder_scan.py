"""Which images a folder holds, for training and evaluation alike."""

import logging
import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from image_tree import random_image, write_image_tree
from PIL import Image
from var_tokenizer.common import InputError
from var_train.data.image_sources import load_folder, load_image_tree
from var_train.listing.folder_scan import IGNORED, scan_folder, scan_tree

SIZE = (4, 4)


def write(path: Path, seed: int = 0, kind: str = "PNG") -> Path:
    """A small random image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random_image(seed, SIZE)).save(path, kind)
    return path


@pytest.fixture
def tree(tmp_path) -> Path:
    """train and val, each with cat/{0,1}.png and dog/{0,1}.png."""
    return write_image_tree(tmp_path / "tree", SIZE, train=2, val=2)


def train_names(tree: Path) -> list[str]:
    return list(scan_tree(tree)[0].names)


CAT_AND_DOG = ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"]


# What counts as an image


@pytest.mark.parametrize(
    "suffix", ["webp", "bmp", "tif", "TIFF", "gif", "jfif", "ppm", "JPEG", "jpg", "Png"]
)
def test_every_readable_kind_of_image_is_taken(tree, suffix):
    kinds = {"jfif": "JPEG", "jpg": "JPEG", "tif": "TIFF"}
    write(tree / "train" / "cat" / f"2.{suffix}", kind=kinds.get(suffix, suffix.upper()))
    assert f"cat/2.{suffix}" in train_names(tree)
    images, _ = load_image_tree(tree, SIZE)
    assert images.batch([2])[0].shape == (1, *SIZE, 3) and len(images) == 5


def test_an_image_is_read_by_its_content_whatever_its_suffix(tree, caplog):
    write(tree / "train" / "cat" / "2.jpg", seed=9, kind="WEBP")
    write(tree / "train" / "cat" / "2.png", seed=9, kind="WEBP")
    images, _ = load_image_tree(tree, SIZE)
    pixels_byxc, _ = images.batch([2, 3])
    np.testing.assert_array_equal(pixels_byxc[0], pixels_byxc[1])
    assert not caplog.records


def test_files_left_out_are_counted_by_kind(tree, caplog):
    caplog.set_level(logging.INFO)
    for name in ("a.txt", "b.txt", "c.heic", "README"):
        (tree / "train" / "cat" / name).write_text("no image")
    (tree / "train" / "dog" / "gone.png").symlink_to(tree / "nowhere")
    assert train_names(tree) == CAT_AND_DOG
    (line,) = caplog.messages
    assert f"{tree / 'train'}: left out 5 file(s)" in line
    for kind in ("2 .txt", "1 .heic", "1 without a suffix", "1 broken link"):
        assert kind in line


def test_a_suffix_cannot_write_to_the_terminal(tree, caplog):
    caplog.set_level(logging.INFO)
    (tree / "train" / "cat" / "a.\x1b[31mred\n").write_text("")
    train_names(tree)
    assert caplog.messages and "\x1b" not in caplog.text


def test_pipes_and_devices_are_left_out_and_nobody_waits(tree, caplog):
    caplog.set_level(logging.INFO)
    os.mkfifo(tree / "train" / "cat" / "pipe.png")
    (tree / "train" / "cat" / "zero.png").symlink_to("/dev/zero")
    images, _ = load_image_tree(tree, SIZE)
    assert len(images) == 4
    assert "2 pipe or device" in caplog.text


def test_a_pipe_in_an_images_place_does_not_hang(tree):
    images, _ = load_image_tree(tree, SIZE, memory_limit=0)
    path = tree / "train" / "cat" / "1.png"
    path.unlink()
    os.mkfifo(path)
    pixels_byxc, _ = images.batch([0, 1])  # the next of the class stands in
    np.testing.assert_array_equal(pixels_byxc[0], pixels_byxc[1])


@pytest.mark.parametrize(
    "name",
    [".hidden.png", "._0.png", ".ipynb_checkpoints/0.png", "Thumbs.db", "desktop.ini"]
    + [f"{name}/0.png" for name in sorted(IGNORED)],
)
def test_what_is_hidden_or_left_by_a_system_is_neither_seen_nor_counted(tree, caplog, name):
    caplog.set_level(logging.INFO)
    write(tree / "train" / "cat" / name)
    write(tree / "train" / name)
    assert train_names(tree) == CAT_AND_DOG and not caplog.records


# Depth and links


def test_images_are_taken_at_any_depth_of_a_class(tree):
    write(tree / "train" / "cat" / "images" / "2.png")
    write(tree / "train" / "cat" / "a" / "b" / "c" / "3.png")
    shutil.rmtree(tree / "train" / "dog")
    write(tree / "train" / "dog" / "images" / "4.png")
    expected = ["cat/0.png", "cat/1.png", "cat/a/b/c/3.png", "cat/images/2.png"]
    assert train_names(tree) == [*expected, "dog/images/4.png"]
    images, _ = load_image_tree(tree, SIZE)
    assert images.labels_n.tolist() == [0, 0, 0, 0, 1]


def test_images_come_in_the_order_of_their_names_whatever_folders_hold_them(tmp_path):
    names = [
        "a-b/2.png",
        "a-b/x/1.png",
        "a.png",
        "a/0.png",
        "a/b.png",
        "a/b/3.png",
        "b.png",
        "Z.png",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    files = scan_folder(tmp_path)
    assert list(files.names) == sorted(names)
    assert files.sizes_n.tolist() == [len(name) for name in sorted(names)]


def test_a_scan_takes_less_than_200_bytes_an_image(tmp_path):
    (tmp_path / "n01440764").mkdir()
    for n in range(5000):
        (tmp_path / "n01440764" / f"n01440764_{n}.JPEG").touch()
    tracemalloc.start()
    files = scan_folder(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(files) == 5000 and peak < 5000 * 200 + 100_000  # the rest of a scan


def test_links_to_folders_and_files_are_followed(tree, tmp_path):
    elsewhere = write(tmp_path / "elsewhere" / "7.png").parent
    shutil.rmtree(tree / "train" / "dog")
    (tree / "train" / "dog").symlink_to(elsewhere)
    (tree / "train" / "cat" / "2.png").symlink_to(elsewhere / "7.png")
    (tree / "train" / "cat" / "more").symlink_to(elsewhere)
    expected = ["cat/0.png", "cat/1.png", "cat/2.png", "cat/more/7.png", "dog/7.png"]
    assert train_names(tree) == expected


def test_links_that_lead_in_circles_end(tree):
    cat = tree / "train" / "cat"
    (cat / "up").symlink_to(tree / "train")
    (cat / "self").symlink_to(cat)
    (cat / "loop.png").symlink_to(cat / "loop.png")
    found = train_names(tree)
    assert [name for name in found if not name.startswith("cat/up")] == CAT_AND_DOG
    assert found.count("cat/0.png") == 1 and len(found) == 6  # the dogs below cat/up, once


def test_a_folder_that_is_deeper_than_python_recurses_is_scanned(tmp_path):
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        for _ in range(1500):
            os.mkdir("d", dir_fd=handle)
            inner = os.open("d", os.O_RDONLY, dir_fd=handle)
            os.close(handle)
            handle = inner
    finally:
        os.close(handle)
    write(tmp_path / "0.png")
    assert list(scan_folder(tmp_path).names) == ["0.png"]


def test_training_and_evaluation_see_the_same_images(tree):
    cat = tree / "train" / "cat"
    write(cat / "deep" / "2.webp", kind="WEBP")
    write(cat / ".ipynb_checkpoints" / "0-checkpoint.png")
    (cat / "._0.png").write_bytes(b"hidden")
    (cat / "link").symlink_to(tree / "val" / "cat")
    (cat / "Thumbs.db").write_bytes(b"")
    of_class = [name for name in train_names(tree) if name.startswith("cat/")]
    assert len(of_class) == 5
    assert [f"cat/{name}" for name in scan_folder(cat).names] == of_class
    assert len(load_folder(cat, SIZE)) == 5


# Names


def test_a_name_that_is_not_utf_8_is_read_like_any_other(tree):
    shutil.copy(tree / "train" / "cat" / "0.png", tree / "train" / "cat" / os.fsdecode(b"\xe9.png"))
    for split in ("train", "val"):
        (tree / split / "dog").rename(tree / split / os.fsdecode(b"d\xf6g"))
    images, _ = load_image_tree(tree, SIZE)
    assert images.classes == ("cat", "d\udcf6g")
    pixels_byxc, _ = images.batch([0, 2])
    np.testing.assert_array_equal(pixels_byxc[0], pixels_byxc[1])


@pytest.mark.parametrize("memory_limit", [2**30, 0], ids=["memory", "lazy"])
def test_an_unreadable_image_is_named_with_escapes(tree, caplog, memory_limit):
    (tree / "train" / "cat" / os.fsdecode(b"caf\xe9\x1b.png")).write_bytes(b"broken")
    images, _ = load_image_tree(tree, SIZE, memory_limit=memory_limit)
    images.batch(np.arange(5))
    assert "caf\\xe9\\x1b.png" in caplog.text


def test_classes_that_are_numbers_are_sorted_by_value(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for split in ("train", "val"):
        for name in ("0", "1", "10", "2"):
            write(tmp_path / split / name / "0.png")
    train, val = scan_tree(tmp_path)
    assert train.classes == val.classes == ("0", "1", "2", "10")
    assert train.names[2] == "2/0.png"
    assert "all classes are numbers" in caplog.text and "0, 1, 2, 10" in caplog.text
    caplog.clear()
    for split in ("train", "val"):
        write(tmp_path / split / "cat" / "0.png")
    assert scan_tree(tmp_path)[0].classes == ("0", "1", "10", "2", "cat")
    assert not caplog.records


# Held out for validation


@pytest.fixture
def flat(tmp_path) -> Path:
    """DIR/{cat,dog}/*.png, 40 images each."""
    original = write(tmp_path / "original.png")
    for name in ("cat", "dog"):
        (tmp_path / "flat" / name).mkdir(parents=True)
        for i in range(40):
            os.link(original, tmp_path / "flat" / name / f"{i}.png")
    return tmp_path / "flat"


def test_a_part_of_a_flat_folder_is_held_out(flat):
    train, val = scan_tree(flat, 0.25)
    assert train.classes == val.classes == ("cat", "dog")
    assert not set(train.names) & set(val.names)
    assert sorted([*train.names, *val.names]) == sorted(
        f"{name}/{i}.png" for name in ("cat", "dog") for i in range(40)
    )
    for label in (0, 1):
        assert 4 <= np.count_nonzero(val.labels_n == label) <= 16
    assert [val.classes[n] for n in val.labels_n] == [name.split("/")[0] for name in val.names]


def test_an_image_stays_in_its_split_whatever_else_the_folder_holds(flat, monkeypatch):
    before = set(scan_tree(flat, 0.25)[1].names)
    for name in ("ant", "cat", "zebra"):
        for i in range(100, 120):
            write(flat / name / f"{i}.png")
    listed = os.scandir

    class Backwards:
        def __init__(self, folder):
            self.entries = sorted(listed(folder), key=lambda e: e.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    forwards = scan_tree(flat, 0.25)
    monkeypatch.setattr("var_train.listing.folder_scan.os.scandir", Backwards)
    backwards = scan_tree(flat, 0.25)
    for ours, theirs in zip(forwards, backwards, strict=True):
        assert ours.names == theirs.names
    old = {f"{name}/{i}.png" for name in ("cat", "dog") for i in range(40)}
    assert set(forwards[1].names) & old == before


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_every_class_keeps_an_image_on_either_side(flat, fraction):
    for split in scan_tree(flat, fraction):
        assert set(split.labels_n.tolist()) == {0, 1}


def test_a_class_of_one_image_cannot_be_split(flat):
    write(flat / "emu" / "0.png")
    with pytest.raises(InputError, match="emu: one image; expected at least two"):
        scan_tree(flat, 0.5)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_a_fraction_out_of_range_is_refused(flat, fraction):
    with pytest.raises(
        InputError, match=r"val_fraction is .*; expected a number above 0 and below 1"
    ):
        scan_tree(flat, fraction)


def test_a_folder_with_train_alone_has_a_part_of_it_held_out(flat, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "dir").mkdir()
    flat.rename(tmp_path / "dir" / "train")
    with pytest.raises(InputError, match=r"val: no such folder; expected .*--val-fraction"):
        scan_tree(tmp_path / "dir")
    train, val = scan_tree(tmp_path / "dir", 0.25)
    assert train.classes == ("cat", "dog") and len(train) + len(val) == 80
    write(tmp_path / "dir" / "test" / "images" / "0.png")
    assert scan_tree(tmp_path / "dir", 0.25)[0].names == train.names
    assert "not reading test beside train" in caplog.text


def test_a_flat_folder_may_have_a_class_called_train(flat):
    (flat / "cat").rename(flat / "train")
    assert scan_tree(flat, 0.5)[0].classes == ("dog", "train")
