"""Images in shards are trained on as the same images in a folder are, and lost shards are named."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from image_tree import pack_shards, write_image_tree, write_tar
from safetensors.numpy import load_file
from var_tokenizer.common import InputError
from var_train.data.crops import draw_place
from var_train.data.image_sources import ImageFolder, load_folder, load_image_tree
from var_train.data.resume_check import DataRecord, check_data
from var_train.listing import shard_scan
from var_train.listing.find_images import find_images
from var_train.listing.shard_index import ShardIndex
from var_train.listing.shard_scan import expand

SIZE = (8, 12)
PATTERN = "train-{0000..0003}.tar"
SMALL = """
    --tokenizer.channel-multipliers 1 1 --tokenizer.vocab-size 16 --tokenizer.scales 1 2 4
    --train-tokenizer.batch 4 --random-crops
"""
IDS = ("ids", "flipped", "labels")


@pytest.fixture
def tree(tmp_path) -> Path:
    """cat and dog, nine images of each in train and in val."""
    return write_image_tree(tmp_path / "tree", SIZE, train=9, val=9)


@pytest.fixture
def shards(tree, tmp_path) -> Path:
    """The same images in four shards of train and four of val, which have been there for a day."""
    return aged(pack_shards(tree, tmp_path / "shards"))


def aged(folder: Path) -> Path:
    """``folder``, as if its shards were old: what was written a moment ago is not kept."""
    for path in folder.glob("*.tar"):
        os.utime(path, ns=(0, path.stat().st_mtime_ns - 10**14))
    return folder


@pytest.fixture
def indexed(monkeypatch, tmp_path) -> list[str]:
    """The names of the shards that are read for their index; a cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(shard_scan, "FRESH", -(10**18))  # their ctime is that of the test
    read = []
    index_shard = shard_scan.index_shard

    def noted(path):
        read.append(path.name)
        return index_shard(path)

    monkeypatch.setattr(shard_scan, "index_shard", noted)
    return read


def lazy(data: Path, val_fraction: float | None = None) -> tuple[ImageFolder, ImageFolder]:
    train, val = load_image_tree(data, SIZE, val_fraction=val_fraction, memory_limit=0)
    assert isinstance(train, ImageFolder) and isinstance(val, ImageFolder)
    return train, val


# The same images


@pytest.mark.parametrize("memory_limit", [2**30, 0], ids=["memory", "lazy"])
@pytest.mark.parametrize("crops", [False, True], ids=["whole", "crops"])
@pytest.mark.parametrize("name", ["", PATTERN, "{train,val}-{0000..0003}.tar"])
def test_shards_give_the_batches_of_a_folder(tree, shards, name, memory_limit, crops):
    for folder, packed in zip(
        *(
            load_image_tree(data, SIZE, memory_limit=memory_limit, random_crops=crops)
            for data in (tree, shards / name)
        ),
        strict=True,
    ):
        assert folder.classes == packed.classes == ("cat", "dog") and len(packed) == 18
        indices = np.random.default_rng(0).permutation(18)
        flip, place_of = indices % 2 == 0, partial(draw_place, 1, 2)
        for ours, theirs in zip(
            folder.batch(indices, flip, place_of),
            packed.batch(indices, flip, place_of),
            strict=True,
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_the_same_images_are_held_out_of_shards_as_of_a_folder(tree, shards):
    for folder, packed in zip(
        find_images(tree, 0.3), find_images(shards / PATTERN, 0.3), strict=True
    ):
        members = [name.partition(".tar/")[2] for name in packed.names]
        assert members == list(folder.names)
        np.testing.assert_array_equal(packed.labels_n, folder.labels_n)
        np.testing.assert_array_equal(packed.sizes_n, folder.sizes_n)


def test_folders_train_and_val_may_hold_the_shards(tree, shards, tmp_path):
    for path in shards.glob("*.tar"):
        split, _, name = path.name.partition("-")
        (tmp_path / "two" / split).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "two" / split / name)
    shutil.copy(shards / "classes.txt", tmp_path / "two")
    train, val = find_images(tmp_path / "two")
    assert (len(train), len(val), train.classes) == (18, 18, ("cat", "dog"))
    assert train.names[0] == "0000.tar/cat/0.png"


def test_an_evaluation_takes_all_shards_as_one_class_labels_or_not(shards):
    assert len(load_folder(shards, SIZE)) == 36
    images = load_folder(shards / "train-0000.tar", SIZE)
    assert len(images) == 5 and images.classes == ("shards",)
    unlabelled = [("a.png", images.files.source(0).getvalue())]
    alone = load_folder(write_tar(shards.parent / "u" / "x.tar", unlabelled), SIZE)
    np.testing.assert_array_equal(alone.batch([0])[0], images.batch([0])[0])


def test_images_beside_a_tar_file_are_a_folder_as_before(tree, shards):
    for split in ("train", "val"):
        shutil.copy(shards / "train-0000.tar", tree / split / "cat")
    shutil.copy(shards / "train-0000.tar", tree)
    assert len(find_images(tree)[0]) == 18
    assert len(load_folder(tree / "train" / "cat", SIZE)) == 9


@pytest.mark.slow
def test_every_command_takes_shards_and_gives_what_it_gives_of_a_folder(tmp_path):
    tree = write_image_tree(tmp_path / "tree", (8, 8), train=9, val=9)
    shards = pack_shards(tree, tmp_path / "shards")

    def results(name: str, data: Path) -> list[object]:
        """The weights, the losses, the figures and the tokens of the commands on ``data``."""
        out = tmp_path / name
        model = ["--tokenizer", out / "tokenizer.safetensors", "--data", data]
        for words in (
            ["run", "--data", data, "--out", out, "--stage", "tokenizer", *SMALL.split()],
            ["evaluate", "tokenizer", *model, "--out", out / "figures"],
            ["tokenize", *model, "--out", out / "tokens", "--shard", 9],
        ):
            command = [sys.executable, "-m", f"var_train.{words[0]}", *map(str, words[1:])]
            subprocess.run(command, check=True, env=os.environ | {"GLOG_v": "3"})
        metrics = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
        tokens = [load_file(path) for path in sorted(out.glob("tokens/*/*.safetensors"))]
        return [
            (out / "tokenizer.safetensors").read_bytes(),
            [line["loss"] for line in metrics if "loss" in line],
            json.loads((out / "figures" / "tokenizer.json").read_text())["psnr"],
            [{name: array.tolist() for name, array in t.items() if name in IDS} for t in tokens],
        ]

    of_folder, of_shards = results("a", tree), results("b", shards)
    assert len(of_folder[1]) > 8 and len(of_folder[3]) == 4
    # an evaluation has the images in the order of the shards, and sums in theirs
    assert of_shards.pop(2) == pytest.approx(of_folder.pop(2), rel=1e-6)
    assert of_shards == of_folder


# Names of shards and classes


@pytest.mark.parametrize(
    "pattern",
    [
        *("a-{0..3}.tar", "a-{08..11}.tar", "a-{000..2}.tar", "a-{3..1}.tar", "{a,b}-{1..2}.tar"),
        *("{a,b{1..2},}c", "a{b}c", "a{1..}c", "{a,b", "a}b{", "{{a,b},c}{0..1}", "x"),
    ],
)
def test_braces_are_expanded_as_a_shell_does(pattern):
    said = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True, check=True
    )
    assert [name for name in expand(pattern) if name] == said.stdout.split()


@pytest.mark.parametrize("pattern", ["{0..1000000}.tar", "{0..999}{0..1001}.tar"])
def test_a_pattern_of_too_many_shards_is_refused(pattern):
    with pytest.raises(InputError, match="expected at most 1000000 shards"):
        expand(pattern)


def test_without_names_of_classes_their_numbers_are_the_names(shards):
    (shards / "classes.txt").unlink()
    assert find_images(shards)[0].classes == ("0", "1")
    image = (shards / "train-0000.tar").read_bytes()[512:600]
    members = [(f"{i}.{s}", c) for i in (30, 7) for s, c in (("png", image), ("cls", b"%d" % i))]
    for split in ("train", "val"):
        write_tar(shards.parent / "more" / f"{split}.tar", members)
    train, _ = find_images(shards.parent / "more")
    assert train.classes == ("7", "30") and list(train.names) == [
        "train.tar/7.png",
        "train.tar/30.png",
    ]


@pytest.mark.parametrize(
    ("names", "refusal"),
    [
        (b"cat\n", r"train-0001.tar/dog/0.png: label 1; expected less than 1, the lines of"),
        (b"cat\ndog\nemu\n", r"no image of 1 class\(es\) in these shards: emu"),
        (b"cat\ncat\n", "classes.txt: a name twice"),
        (b"cat\n\ndog\n", "classes.txt: a gap"),
        (b"cat\n\xff\n", "classes.txt: no UTF-8"),
    ],
)
def test_names_of_classes_that_do_not_fit_are_refused(shards, names, refusal):
    (shards / "classes.txt").write_bytes(names)
    with pytest.raises(InputError, match=refusal):
        find_images(shards / PATTERN)


def test_shards_without_labels_are_refused_by_the_first_image(shards):
    write_tar(shards / "train-0002.tar", [("a/\x1b.png", b"image"), ("a/b.png", b"image")])
    with pytest.raises(
        InputError, match=r"train-0002\.tar/a/\\x1b\.png: no label; expected a .cls"
    ):
        find_images(shards)


def test_a_missing_shard_is_named(shards):
    (shards / "train-0002.tar").unlink()
    with pytest.raises(InputError, match=r"train-0002\.tar: no such shard"):
        find_images(shards / PATTERN)


def test_shards_without_validation_ones_are_refused_with_the_way_out(shards):
    for path in shards.glob("val*"):
        path.unlink()
    with pytest.raises(InputError, match=r"expected val-\*\.tar beside .*--val-fraction"):
        find_images(shards)
    assert len(find_images(shards, 0.5)[0]) < 18


# The index


def test_a_shard_is_indexed_once_and_again_after_it_was_written_to(shards, tree, indexed):
    first = find_images(shards)
    assert len(indexed) == 8
    indexed.clear()
    again = find_images(shards)
    assert indexed == []
    for ours, theirs in zip(first, again, strict=True):
        assert ours.names == theirs.names and ours.times_n.tolist() == theirs.times_n.tolist()
        assert ours.source(7).getvalue() == theirs.source(7).getvalue()
    path = shards / "train-0001.tar"
    content, status = path.read_bytes(), path.stat()
    path.write_bytes(content.replace(b"cat/5", b"cat/X"))  # the checksum no longer fits
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(InputError, match=r"train-0001\.tar: holds no tar header"):
        find_images(shards)
    path.write_bytes(content)
    indexed.clear()
    find_images(shards)
    assert indexed == ["train-0001.tar"]


def test_workers_that_start_together_index_a_shard_once(shards, indexed):
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: find_images(shards), range(3)))
    assert len(indexed) == 8
    assert all(files.names == found[0][i].names for both in found for i, files in enumerate(both))


def test_a_damaged_index_is_made_again(shards, indexed, tmp_path):
    find_images(shards)
    for path in (tmp_path / "cache" / "var-train").iterdir():
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
    indexed.clear()
    find_images(shards)
    assert len(indexed) == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"labels_n": lambda n: n.astype(np.float32)},
        {"sizes_n": lambda n: n[:-1]},
        {"more": lambda _: np.zeros(1)},
        {"names": lambda text: text[: text.size // 2]},
    ],
)
def test_an_index_of_another_make_is_made_again(shards, indexed, monkeypatch, changes):
    arrays_of = ShardIndex.arrays

    def arrays(index: ShardIndex) -> dict[str, np.ndarray]:
        found = arrays_of(index)
        return found | {name: change(found.get(name)) for name, change in changes.items()}

    monkeypatch.setattr(ShardIndex, "arrays", arrays)
    first = find_images(shards)
    indexed.clear()
    again = find_images(shards)
    assert len(indexed) == 8
    assert [a.labels_n.tolist() for a in again] == [f.labels_n.tolist() for f in first]


def test_a_pipe_in_the_place_of_an_index_is_no_index(shards, indexed, tmp_path):
    find_images(shards)
    for path in (tmp_path / "cache" / "var-train").iterdir():
        path.unlink()
        os.mkfifo(path)
    indexed.clear()
    find_images(shards)
    assert len(indexed) == 8


def test_what_was_written_a_moment_ago_is_not_kept(shards, indexed, monkeypatch):
    monkeypatch.setattr(shard_scan, "FRESH", 10**15)
    find_images(shards)
    find_images(shards)
    assert len(indexed) == 16


def test_a_cache_folder_that_others_can_write_to_is_not_used(shards, indexed, tmp_path, caplog):
    (tmp_path / "cache" / "var-train").mkdir(parents=True)
    (tmp_path / "cache" / "var-train").chmod(0o777)
    find_images(shards)
    assert "others can write to it" in caplog.text
    assert not list((tmp_path / "cache" / "var-train").iterdir())


# Shards that are lost in mid-run


@pytest.mark.parametrize("opened", [False, True])
def test_a_shard_that_disappears_is_named_with_the_image(shards, opened):
    train, _ = lazy(shards)
    if opened:
        train.batch([12])
    (shards / "train-0002.tar").unlink()
    with pytest.raises(InputError, match=r"train-0002\.tar: .*expected.*/dog/3\.png"):
        train.batch([12])


@pytest.mark.parametrize("opened", [False, True])
def test_a_shard_that_is_written_to_is_named_with_the_image(shards, opened):
    train, _ = lazy(shards)
    if opened:
        train.batch([12])
    with (shards / "train-0002.tar").open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(
        InputError,
        match=r"train-0002\.tar: was changed after it was indexed; .*train-0002\.tar/dog/3\.png",
    ):
        train.batch([12])


@contextmanager
def no_more_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_at_most_64_shards_are_open(tmp_path):
    image = write_image_tree(tmp_path / "tree", SIZE, train=1, val=1) / "train" / "cat" / "0.png"
    for i in range(100):
        members = [("a.png", image.read_bytes()), ("a.cls", b"0")]
        write_tar(tmp_path / "shards" / f"train-{i:03d}.tar", members)
    shutil.copy(tmp_path / "shards" / "train-000.tar", tmp_path / "shards" / "val.tar")
    train, _ = lazy(tmp_path / "shards")
    open_files = Path("/proc/self/fd")
    before = len(list(open_files.iterdir()))
    train.batch(range(100))
    assert 10 < len(list(open_files.iterdir())) - before <= 64
    with (
        no_more_files(),
        pytest.raises(InputError, match=r"train-\d+\.tar: .*Too many open files"),
    ):
        train.batch(range(100))


def test_too_few_file_descriptors_are_no_unreadable_image(tree, caplog):
    train, _ = lazy(tree)
    with (
        no_more_files(),
        pytest.raises(InputError, match=r"train/.*png: .*Too many open files; .*ulimit -n"),
    ):
        train.batch(range(9))
    assert "stands in" not in caplog.text


def test_an_unreadable_image_of_a_shard_is_named_and_the_next_one_stands_in(shards, caplog):
    images = find_images(shards)[0]
    place = int(images.members.offsets_n[1])
    path = shards / "train-0000.tar"
    content = bytearray(path.read_bytes())
    content[place : place + 8] = b"no image"
    path.write_bytes(content)
    train, _ = lazy(shards)
    pixels_byxc, _ = train.batch([1, 2])
    np.testing.assert_array_equal(pixels_byxc[0], pixels_byxc[1])
    assert "train-0000.tar/cat/1.png: not a readable image" in caplog.text


# The same data


def record_of(data: Path, folder: Path, resumed: bool) -> tuple[DataRecord, ImageFolder]:
    train, val = lazy(data)
    record = DataRecord.of(train.files, val.files)
    if resumed:
        saved = {"tokens": None, "data": DataRecord.read_file(folder).settings}
        check_data(folder, saved, {"tokens": None, "data": record.settings}, record)
    record.watch((train, val), [folder] if resumed else [])
    record.save(folder)
    return record, train


def another_image(path: Path, name: str) -> None:
    """Changes the last byte of a member, and with it the time of the shard."""
    train = find_images(path.parent)[0]
    index = list(train.names).index(f"{path.name}/{name}")
    content = bytearray(path.read_bytes())
    content[train.members.offsets_n[index] + train.sizes_n[index] - 1] ^= 1
    path.write_bytes(content)


def test_shards_may_be_moved_and_copied_between_two_commands(shards, tmp_path):
    record_of(shards, tmp_path, resumed=False)
    (tmp_path / "else").mkdir()
    shards.rename(tmp_path / "else" / "where")
    record_of(tmp_path / "else" / "where", tmp_path, resumed=True)
    copy = shutil.copytree(
        tmp_path / "else" / "where", tmp_path / "copy", copy_function=shutil.copyfile
    )
    record_of(copy, tmp_path, resumed=True)


def test_another_image_in_a_rewritten_shard_is_named(shards, tmp_path):
    record_of(shards, tmp_path, resumed=False)
    another_image(shards / "train-0002.tar", "dog/3.png")
    with pytest.raises(InputError, match=r"5 image\(s\) were rewritten.*train/train-0002\.tar/dog"):
        record_of(shards, tmp_path, resumed=True)


def test_another_image_in_copied_shards_is_named_when_a_step_reads_it(shards, tmp_path):
    record, train = record_of(shards, tmp_path, resumed=False)
    train.batch(range(18))
    record.note(tmp_path)
    copy = shutil.copytree(shards, tmp_path / "copy", copy_function=shutil.copyfile)
    another_image(copy / "train-0002.tar", "dog/3.png")
    _, train = record_of(copy, tmp_path, resumed=True)
    train.batch([*range(12), *range(13, 18)])
    with pytest.raises(InputError, match=r"train-0002\.tar/dog/3\.png: is another image than"):
        train.batch([12])


def test_a_new_and_a_missing_shard_are_named(shards, tmp_path):
    record_of(shards, tmp_path, resumed=False)
    path = shards / "train-0003.tar"
    shutil.copy(path, shards / "train-0004.tar")
    with pytest.raises(InputError, match=r"3 new image\(s\): train/train-0004\.tar/dog/6\.png"):
        record_of(shards, tmp_path, resumed=True)
    (shards / "train-0004.tar").unlink()
    path.unlink()
    with pytest.raises(InputError, match=r"3 missing image\(s\): train/train-0003\.tar/dog/6\.png"):
        record_of(shards, tmp_path, resumed=True)
