"""A run goes on with the data that it was trained on, wherever that lies, and with no other."""

import os
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from image_tree import write_image_tree
from safetensors.numpy import load_file, save_file
from var_tokenizer.common import InputError
from var_train.data.image_sources import ImageFolder, load_image_tree
from var_train.data.resume_check import DataRecord, check_data
from var_train.listing.name_list import NameList

NO_TOKENS = {"tokens": None}


def write_tree(root: Path) -> Path:
    return write_image_tree(root, (4, 4), suffix="ppm")


def record_of(root: Path, memory_limit: int) -> DataRecord:
    train, val = load_image_tree(root, (4, 4), memory_limit=memory_limit)
    return DataRecord.of(train.files, val.files)


@pytest.fixture(params=[2**30, 0], ids=["memory", "lazy"])
def trained(request, tmp_path):
    """A tree, and what a command says of it as it is now: None, or the refusal."""
    tree = write_tree(tmp_path / "tree")
    first = record_of(tree, request.param)
    first.save(tmp_path)
    saved = NO_TOKENS | {"data": first.settings}

    def refusal(root: Path = tree) -> str | None:
        now = record_of(root, request.param)
        try:
            check_data(tmp_path, saved, NO_TOKENS | {"data": now.settings}, now)
        except InputError as error:
            return str(error)

    return tree, refusal


def again(path: Path, pixels: int | None = None) -> None:
    """Writes a file anew: the same image, or another of the same size in bytes."""
    content = path.read_bytes()
    if pixels is not None:
        content = content[:-1] + bytes([content[-1] ^ pixels])
    path.unlink()
    path.write_bytes(content)
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


def test_unchanged_data_goes_on_wherever_it_is_moved(trained, tmp_path):
    tree, refusal = trained
    assert refusal() is None
    (tmp_path / "else").mkdir()
    tree.rename(tmp_path / "else" / "where")
    assert refusal(tmp_path / "else" / "where") is None


def test_a_copied_folder_goes_on_though_all_its_times_are_new(trained):
    tree, refusal = trained
    for path in tree.rglob("*.ppm"):
        again(path)
    assert refusal() is None


def test_a_renamed_class_is_refused_by_both_of_its_names(trained):
    tree, refusal = trained
    for split in ("train", "val"):
        (tree / split / "cat").rename(tree / split / "zebra")
    assert "class cat is gone and class zebra is new" in refusal()


def test_new_images_are_refused_until_they_are_removed(trained):
    tree, refusal = trained
    new = [tree / "train" / "dog" / f"new{i}.ppm" for i in range(20)]
    for path in new:
        shutil.copy(tree / "train" / "dog" / "0.ppm", path)
    message = refusal()
    assert "20 new image(s): train/dog/new0.ppm, " in message and "put them back" in message
    for path in new:
        path.unlink()
    assert refusal() is None


def test_a_missing_image_is_named(trained):
    tree, refusal = trained
    (tree / "val" / "dog" / "3.ppm").unlink()
    assert "1 missing image(s): val/dog/3.ppm;" in refusal()


def test_another_image_of_the_same_name_and_size_is_named(trained):
    tree, refusal = trained
    again(tree / "train" / "cat" / "2.ppm", pixels=1)
    message = refusal()
    assert "1 image(s)" in message and "train/cat/2.ppm" in message


def test_an_image_of_another_size_is_named_whatever_its_time(trained):
    tree, refusal = trained
    path = tree / "train" / "cat" / "2.ppm"
    status = path.stat()
    path.write_bytes(path.read_bytes() + b"#")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "1 image(s) changed: train/cat/2.ppm;" in refusal()


def test_images_that_are_read_may_be_rewritten_one_by_one(tmp_path):
    tree = write_tree(tmp_path / "tree")
    before = record_of(tree, 2**30)
    again(tree / "train" / "cat" / "2.ppm")
    assert record_of(tree, 2**30).settings == before.settings


@pytest.mark.parametrize(
    ("saved", "named"),
    [
        ({"data": "/images", "tokens": None}, "an earlier version"),
        ({"data": None, "tokens": None}, "the digits then, images now"),
        ({"data": None, "tokens": {"classes": ["a"]}}, "tokens then, images now"),
    ],
)
def test_another_kind_of_data_is_refused(tmp_path, saved, named):
    now = record_of(write_tree(tmp_path / "tree"), 0)
    with pytest.raises(InputError, match=named):
        check_data(tmp_path, saved, NO_TOKENS | {"data": now.settings}, now)


def test_other_tokens_are_refused(tmp_path):
    def settings(digest: str) -> dict:
        tokens = {"classes": ["a"], "images": [1, 1], "digests": [digest, digest]}
        return {"data": None, "tokens": tokens}

    check_data(tmp_path, settings("1"), settings("1"), None)
    with pytest.raises(InputError, match="was trained on other data"):
        check_data(tmp_path, settings("1"), settings("2"), None)


def test_classes_in_another_order_are_refused(tmp_path):
    now = record_of(write_tree(tmp_path / "tree"), 0)
    saved = replace(now, classes=("dog", "cat")).settings
    with pytest.raises(InputError, match="in the order dog, cat, now cat, dog"):
        check_data(tmp_path, NO_TOKENS | {"data": saved}, NO_TOKENS | {"data": now.settings}, now)


def test_other_images_are_refused_without_the_record_too(tmp_path):
    tree = write_tree(tmp_path / "tree")
    saved = record_of(tree, 0).settings
    (tree / "train" / "cat" / "0.ppm").unlink()
    (tmp_path / "data.safetensors").write_bytes(b"damaged")
    now = record_of(tree, 0)
    with pytest.raises(InputError, match="which ones is not on record"):
        check_data(tmp_path, NO_TOKENS | {"data": saved}, NO_TOKENS | {"data": now.settings}, now)


def test_a_record_keeps_names_that_are_not_utf_8(tmp_path):
    tree = write_tree(tmp_path / "tree")
    (tree / "train" / "cat" / "0.ppm").rename(tree / "train" / "cat" / "\udce9.ppm")
    before = record_of(tree, 0)
    before.save(tmp_path)
    found = DataRecord.read_file(tmp_path)
    assert found.settings == before.settings and found.names == before.names


def lazy(root: Path, folder: Path, resumed: bool) -> tuple[DataRecord, ImageFolder]:
    """The record of images that are read step by step, in a run with checkpoints in ``folder``."""
    train, val = load_image_tree(root, (4, 4), memory_limit=0)
    record = DataRecord.of(train.files, val.files)
    if resumed:
        saved = NO_TOKENS | {"data": record.settings}
        check_data(folder, saved, saved, record)
    record.watch((train, val), [folder] if resumed else [])
    record.save(folder)
    return record, train


def test_another_image_in_a_copied_folder_is_named_when_a_step_reads_it(tmp_path):
    tree = write_tree(tmp_path / "tree")
    record, train = lazy(tree, tmp_path, resumed=False)
    train.batch(range(6))
    record.note(tmp_path)
    copy = shutil.copytree(tree, tmp_path / "copy", copy_function=shutil.copyfile)
    again(copy / "train" / "cat" / "2.ppm", pixels=1)
    _, train = lazy(copy, tmp_path, resumed=True)
    train.batch([0, 1, 3, 4, 5])
    with pytest.raises(InputError, match=r"train/cat/2\.ppm: is another image than the one"):
        train.batch([1, 2])


def test_a_rewritten_image_that_a_step_has_read_is_judged_by_its_content(tmp_path):
    tree = write_tree(tmp_path / "tree")
    record, train = lazy(tree, tmp_path, resumed=False)
    train.batch([1])
    record.note(tmp_path)
    again(tree / "train" / "cat" / "1.ppm")
    _, train = lazy(tree, tmp_path, resumed=True)
    train.batch([1, 2])
    again(tree / "train" / "cat" / "3.ppm")
    with pytest.raises(InputError, match=r"1 image\(s\) were rewritten .*: train/cat/3\.ppm"):
        lazy(tree, tmp_path, resumed=True)


def test_an_image_that_two_workers_read_otherwise_is_named(tmp_path, monkeypatch):
    record, train = lazy(write_tree(tmp_path / "tree"), tmp_path, resumed=False)
    train.batch(range(6))
    others = record.hashes_n.copy()
    others[[0, 2]] = 0, 1  # another worker has not read the first image yet

    monkeypatch.setattr(
        "var_train.data.resume_check.workers.gather", lambda a: np.stack([a, others])
    )
    with pytest.raises(InputError, match=r"1 image\(s\) were replaced .*: train/cat/2\.ppm;"):
        record.note(tmp_path)


def test_a_record_of_an_earlier_version_goes_on(tmp_path):
    """It has no hashes of images that were not read at the start."""
    tree = write_tree(tmp_path / "tree")
    lazy(tree, tmp_path, resumed=False)
    path = tmp_path / "data.safetensors"
    arrays = load_file(path)
    del arrays["hashes"]
    save_file(arrays, path, {"classes": '["cat", "dog"]', "counts": "[12, 12]"})
    lazy(tree, tmp_path, resumed=True)
    assert not DataRecord.read_file(tmp_path).read


def test_a_record_takes_at_most_100_bytes_an_image(tmp_path):
    tree = write_tree(tmp_path / "tree")
    lazy(tree, tmp_path, resumed=False)
    path = tmp_path / "data.safetensors"
    assert path.stat().st_size < 24 * 100


def test_what_is_still_so_is_compared_without_a_second_copy(tmp_path):
    count = 200_000
    names = NameList.of(f"train/n01440764/n01440764_{n}.JPEG" for n in range(count))
    numbers_n = np.arange(count)
    now = DataRecord(
        ("n01440764",), (count, 0), names, numbers_n, numbers_n, numbers_n.astype(np.uint64), False
    )
    now.save(tmp_path)
    tracemalloc.start()
    before = DataRecord.read_file(tmp_path, now)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert before.names == names and (before.sizes_n == numbers_n).all()
    assert peak < 8e6  # they take 13 MB
    other = replace(now, hashes_n=now.hashes_n + 1)
    assert (DataRecord.read_file(tmp_path, other).hashes_n == now.hashes_n).all()
