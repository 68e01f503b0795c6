"""A folder is listed once, and again as soon as one of its folders has changed; no file may lie."""

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from image_tree import write_image_tree
from var_tokenizer.common import InputError
from var_train.data.image_sources import ImageFolder, load_image_tree
from var_train.data.resume_check import DataRecord, check_data
from var_train.listing import folder_scan, kept_folders
from var_train.listing.find_images import find_images

SIZE = (4, 4)


@pytest.fixture
def tree(tmp_path) -> Path:
    """cat and dog, six images of each in train and in val."""
    return write_image_tree(tmp_path / "tree", SIZE, suffix="ppm")


@pytest.fixture
def walked(monkeypatch, tmp_path) -> list[str]:
    """The classes that are listed; a cache folder of the test's own, which keeps small lists."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_folders, "LEAST", 1)
    monkeypatch.setattr(kept_folders, "FRESH", -(10**18))
    seen = []
    walk = folder_scan._walk

    def noted(folder, name, *rest):
        seen.append(f"{folder.name}/{name}")
        return walk(folder, name, *rest)

    monkeypatch.setattr(folder_scan, "_walk", noted)
    return seen


def listed(tree: Path, walked: list[str]) -> list[str]:
    """What of ``tree`` is listed anew, after it has been listed before."""
    walked.clear()
    find_images(tree, kept=True)
    return list(walked)


def touch(folder: Path) -> None:
    """As if the clock had gone on since the list was kept: a test is faster than its ticks."""
    status = folder.stat()
    os.utime(folder, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


def rewritten(path: Path, more: bytes = b"") -> None:
    """Writes another image in place, or a longer file."""
    content, status = path.read_bytes(), path.stat()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) + more)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


def test_an_unchanged_folder_is_listed_once_and_the_list_is_the_same(tree, walked):
    (tree / "train" / "cat" / "notes.txt").write_text("left out")
    first = find_images(tree, kept=True)
    assert len(walked) == 4
    assert listed(tree, walked) == []
    for ours, theirs in zip(first, find_images(tree, kept=True), strict=True):
        assert ours.names == theirs.names and ours.classes == theirs.classes
        for name in ("labels_n", "sizes_n", "times_n"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
            assert getattr(ours, name).dtype == getattr(theirs, name).dtype


def test_of_two_that_start_together_one_lists_and_the_other_reads_its_list(
    tree, walked, monkeypatch, caplog
):
    caplog.set_level("INFO")
    walk = folder_scan._walk

    def slow(*arguments):
        deadline = time.monotonic() + 60
        while "waiting for another process" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        return walk(*arguments)

    monkeypatch.setattr(folder_scan, "_walk", slow)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: find_images(tree, kept=True), range(2))
    assert len(walked) == 4 and f"{tree / 'train'}: waiting for another process" in caplog.text
    for ours, theirs in zip(first, second, strict=True):
        assert ours.names == theirs.names


def test_each_lists_a_folder_whose_list_cannot_be_kept(tree, walked, monkeypatch):
    monkeypatch.setattr(kept_folders, "LEAST", 100)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: find_images(tree, kept=True), range(3)))
    assert len(walked) == 12 and len({len(train) for train, _ in found}) == 1


def test_what_was_left_out_is_said_again(tree, walked, caplog):
    caplog.set_level("INFO")
    (tree / "train" / "cat" / "notes.txt").write_text("left out")
    find_images(tree, kept=True)
    assert caplog.text.count("1 .txt") == 1
    assert listed(tree, walked) == [] and caplog.text.count("1 .txt") == 2
    assert "12 images, as listed before" in caplog.text


def add(tree: Path) -> Path:
    shutil.copy(tree / "val" / "cat" / "0.ppm", tree / "train" / "cat" / "new.ppm")
    return tree / "train" / "cat"


def remove(tree: Path) -> Path:
    (tree / "train" / "cat" / "3.ppm").unlink()
    return tree / "train" / "cat"


def rename(tree: Path) -> Path:
    (tree / "train" / "cat" / "3.ppm").rename(tree / "train" / "cat" / "x.ppm")
    return tree / "train" / "cat"


def add_below(tree: Path) -> Path:
    shutil.copy(tree / "val" / "cat" / "0.ppm", tree / "train" / "dog" / "deep" / "er" / "0.ppm")
    return tree / "train" / "dog" / "deep" / "er"


def exchange(tree: Path) -> Path:
    """Another folder in a folder's place, with the same times and as many names."""
    old, new = tree / "train" / "cat", tree / "train" / ".new"
    shutil.copytree(old, new)
    old.rename(tree / "train" / ".old")
    new.rename(old)
    return old.parent


@pytest.mark.parametrize("change", [add, remove, rename, add_below, exchange])
def test_a_folder_is_listed_anew_after_a_change_at_any_depth(tree, walked, change):
    (tree / "train" / "dog" / "deep" / "er").mkdir(parents=True)
    find_images(tree, kept=True)
    touch(change(tree))
    assert listed(tree, walked) == ["train/cat", "train/dog"]
    assert find_images(tree, kept=True)[0].names == find_images(tree)[0].names
    assert listed(tree, walked) == []


def test_a_new_class_and_a_class_that_a_link_leads_elsewhere_are_seen(tree, walked):
    find_images(tree, kept=True)
    for split in ("train", "val"):
        shutil.copytree(tree / split / "cat", tree / split / "emu")
    assert len(listed(tree, walked)) == 6
    (tree / "train" / "emu").rename(tree / "emu")
    (tree / "train" / "emu").symlink_to(tree / "emu")
    assert "train/emu" in listed(tree, walked)
    assert listed(tree, walked) == []
    (tree / "train" / "emu").unlink()
    (tree / "train" / "emu").symlink_to(tree / "val" / "emu")
    assert "train/emu" in listed(tree, walked)


def test_a_folder_that_changed_a_moment_ago_and_a_small_one_are_listed_anew(
    tree, walked, monkeypatch
):
    monkeypatch.setattr(kept_folders, "FRESH", 10**15)
    find_images(tree, kept=True)
    assert len(listed(tree, walked)) == 4
    monkeypatch.setattr(kept_folders, "FRESH", -(10**18))
    monkeypatch.setattr(kept_folders, "LEAST", 13)
    assert len(listed(tree, walked)) == len(listed(tree, walked)) == 4


def test_a_folder_with_a_broken_link_is_listed_anew_in_case_it_is_mended(tree, walked):
    (tree / "train" / "cat" / "gone.ppm").symlink_to(tree / "elsewhere.ppm")
    find_images(tree, kept=True)
    assert listed(tree, walked) == ["train/cat", "train/dog"]
    shutil.copy(tree / "val" / "cat" / "0.ppm", tree / "elsewhere.ppm")
    assert "cat/gone.ppm" in find_images(tree, kept=True)[0].names


def test_a_damaged_list_is_made_again(tree, walked, tmp_path):
    find_images(tree, kept=True)
    for path in (tmp_path / "cache" / "var-train").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert len(listed(tree, walked)) == 4


def test_tokens_and_figures_come_from_a_new_list(tree, walked):
    find_images(tree, kept=True)
    walked.clear()
    find_images(tree)
    assert len(walked) == 4


def resumed(tree: Path, folder: Path) -> tuple[DataRecord, ImageFolder]:
    """The images of a run whose first command has checkpoints in ``folder``."""
    train, val = load_image_tree(tree, SIZE, memory_limit=0)
    assert isinstance(train, ImageFolder)
    record, before = DataRecord.of(train.files, val.files), DataRecord.read_file(folder)
    if before is not None:
        saved = {"tokens": None, "data": before.settings}
        check_data(folder, saved, {"tokens": None, "data": record.settings}, record)
    record.watch((train, val), [folder] if before is not None else [])
    record.save(folder)
    return record, train


@pytest.mark.parametrize("more", [b"", b"#"], ids=["same size", "other size"])
def test_a_file_rewritten_in_place_is_named_when_a_step_reads_it_and_then_by_the_next_start(
    tree, walked, tmp_path, more
):
    resumed(tree, tmp_path)
    rewritten(tree / "train" / "cat" / "2.ppm", more)
    walked.clear()
    _, train = resumed(tree, tmp_path)
    assert walked == []  # its folder has not changed
    train.batch([0, 1, 3])
    with pytest.raises(InputError, match=r"cat/2\.ppm: was rewritten or removed after this folder"):
        train.batch([2])
    with pytest.raises(InputError, match=r"1 image\(s\) (changed|were rewritten.*): train/cat/2"):
        resumed(tree, tmp_path)
    assert "train/cat" in walked


def test_a_file_that_was_read_before_and_is_only_touched_goes_on_after_one_refusal(
    tree, walked, tmp_path
):
    record, train = resumed(tree, tmp_path)
    train.batch([2])
    record.note(tmp_path)
    os.utime(tree / "train" / "cat" / "2.ppm", ns=(0, 10**18))
    with pytest.raises(InputError, match="the same command lists the folder anew"):
        resumed(tree, tmp_path)[1].batch([2])
    resumed(tree, tmp_path)[1].batch([2])


def test_a_linked_file_that_is_gone_is_no_unreadable_image(tree, walked, tmp_path, caplog):
    link = tree / "train" / "cat" / "linked.ppm"
    shutil.copy(tree / "train" / "cat" / "0.ppm", tmp_path / "target.ppm")
    link.symlink_to(tmp_path / "target.ppm")
    resumed(tree, tmp_path)
    (tmp_path / "target.ppm").unlink()
    _, train = resumed(tree, tmp_path)
    with pytest.raises(InputError, match=r"linked\.ppm: was rewritten or removed"):
        train.batch(range(7))
    with pytest.raises(InputError, match=r"1 missing image\(s\): train/cat/linked\.ppm"):
        resumed(tree, tmp_path)
    assert "stands in" not in caplog.text
