import logging
import shutil

import numpy as np
import pytest
from image_tree import random_image, write_image_tree
from PIL import Image
from var_tokenizer.common import InputError
from var_train.data.image_sources import ImageFolder, ImageSet, load_image_tree

SIZE = (8, 12)
IN_MEMORY, LAZY = 2**30, 0
both_forms = pytest.mark.parametrize("memory_limit", [IN_MEMORY, LAZY], ids=["memory", "lazy"])


def noise(seed):
    """An image that read_image returns unchanged, because it has SIZE."""
    return random_image(seed, SIZE)


def write_tree(root, count=3):
    return write_image_tree(root, SIZE, train=count, val=count)


def truncate(path):
    path.write_bytes(path.read_bytes()[:150])


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "tree")


# Images in memory


def test_a_batch_holds_the_images_and_labels_at_its_indices():
    images_nyxc = np.stack([noise(seed) for seed in range(4)])
    images = ImageSet(images_nyxc, np.array([0, 1, 0, 1], np.int32), ("a", "b"))
    pixels_byxc, labels_b = images.batch([3, 0, 3])
    assert len(images) == 4
    assert pixels_byxc.dtype == np.uint8 and labels_b.dtype == np.int32
    np.testing.assert_array_equal(pixels_byxc, images_nyxc[[3, 0, 3]])
    assert labels_b.tolist() == [1, 0, 1]


@both_forms
def test_only_the_images_of_flip_are_mirrored(tree, memory_limit):
    images, _ = load_image_tree(tree, SIZE, memory_limit=memory_limit)
    plain_byxc, _ = images.batch([0, 1])
    mirrored_byxc, _ = images.batch([0, 1], flip=np.array([False, True]))
    np.testing.assert_array_equal(mirrored_byxc[0], plain_byxc[0])
    np.testing.assert_array_equal(mirrored_byxc[1], plain_byxc[1, :, ::-1])
    np.testing.assert_array_equal(images.batch([0, 1])[0], plain_byxc)


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_out_of_range_is_named(label):
    with pytest.raises(InputError, match=f"labels_n holds {label}; expected 0 to 1"):
        ImageSet(np.zeros((1, 2, 2, 3), np.uint8), np.array([label], np.int32), ("a", "b"))


@pytest.mark.parametrize(
    ("images", "labels", "named"),
    [
        (np.zeros((1, 2, 2, 3)), np.zeros(1, np.int32), "images_nyxc is float64"),
        (np.zeros((1, 3, 2, 2), np.uint8), np.zeros(1, np.int32), "images_nyxc"),
        (np.zeros((1, 2, 2, 3), np.uint8), np.zeros(2, np.int32), "labels_n"),
        (np.zeros((1, 2, 2, 3), np.uint8), np.zeros(1), "labels_n is float64"),
    ],
)
def test_arrays_of_another_shape_or_dtype_are_refused(images, labels, named):
    with pytest.raises(InputError, match=named):
        ImageSet(images, labels, ("a",))


# Folders


@both_forms
def test_a_tree_gives_its_images_in_order_and_its_folders_as_classes(tree, memory_limit):
    train, val = load_image_tree(tree, SIZE, memory_limit=memory_limit)
    assert isinstance(train, ImageFolder if memory_limit == LAZY else ImageSet)
    assert train.classes == val.classes == ("cat", "dog")
    assert (len(train), len(val)) == (6, 6)
    for images, first_seed in ((train, 0), (val, 6)):
        pixels_byxc, labels_b = images.batch(np.arange(6))
        assert labels_b.tolist() == [0, 0, 0, 1, 1, 1]
        expected = np.stack([noise(first_seed + n) for n in range(6)])
        np.testing.assert_array_equal(pixels_byxc, expected)


def test_a_missing_or_empty_folder_is_refused_with_the_layout(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such folder; expected DIR/train/CLASS"):
        load_image_tree(tmp_path / "nowhere", SIZE)
    with pytest.raises(InputError, match=rf"{tmp_path}: this folder is empty; expected DIR/train"):
        load_image_tree(tmp_path, SIZE)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_split_is_named(tree, split):
    shutil.rmtree(tree / split)
    with pytest.raises(InputError, match=f"{split}: no such folder; expected DIR/train/CLASS"):
        load_image_tree(tree, SIZE)


def test_images_without_class_folders_are_refused(tmp_path):
    (tmp_path / "train").mkdir()
    Image.fromarray(noise(0)).save(tmp_path / "train" / "0.png")
    with pytest.raises(InputError, match="train: no class folders; expected DIR/train/CLASS"):
        load_image_tree(tmp_path, SIZE)


@pytest.mark.parametrize(("split", "other"), [("train", "val"), ("val", "train")])
def test_classes_missing_from_a_split_are_named(tree, split, other):
    (tree / other / "emu").mkdir()
    with pytest.raises(InputError, match=f"{split}: no folder for 1 class.*: emu; expected"):
        load_image_tree(tree, SIZE)


@both_forms
@pytest.mark.parametrize("kind", ["empty", "text only", "all truncated"])
def test_a_class_without_a_readable_image_is_named(tree, memory_limit, kind):
    for path in (tree / "val" / "dog").iterdir():
        truncate(path) if kind == "all truncated" else path.unlink()
    if kind == "text only":
        (tree / "val" / "dog" / "readme.txt").write_text("no image")
    with pytest.raises(
        InputError, match=rf"{tree / 'val' / 'dog'}: no (readable )?image; expected"
    ):
        load_image_tree(tree, SIZE, memory_limit=memory_limit)


@both_forms
@pytest.mark.parametrize(("broken", "stands_in"), [(1, 2), (2, 0)])
def test_a_truncated_image_is_named_and_the_next_of_its_class_stands_in(
    tree, caplog, broken, stands_in, memory_limit
):
    path = tree / "train" / "cat" / f"{broken}.png"
    truncate(path)
    train, _ = load_image_tree(tree, SIZE, memory_limit=memory_limit)
    for _ in range(2):
        pixels_byxc, labels_b = train.batch([broken, 3])
        assert labels_b.tolist() == [0, 1]
        np.testing.assert_array_equal(pixels_byxc, np.stack([noise(stands_in), noise(3)]))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and str(path) in record.message
    assert "unreadable image" in record.message


def test_an_epoch_is_the_same_whether_it_fits_into_memory_or_not(tree):
    for name in ("0", "1"):
        truncate(tree / "train" / "dog" / f"{name}.png")
    memory, lazy = (load_image_tree(tree, SIZE, memory_limit=m)[0] for m in (IN_MEMORY, LAZY))
    assert len(memory) == len(lazy) == 6
    for ours, theirs in zip(memory.batch(range(6)), lazy.batch(range(6)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@both_forms
def test_ten_unreadable_images_pass_and_eleven_stop_the_run(tmp_path, memory_limit):
    write_tree(tmp_path, count=15)
    broken = sorted((tmp_path / "train" / "cat").iterdir())[-11:]
    for path in broken[:10]:
        truncate(path)
    train, _ = load_image_tree(tmp_path, SIZE, memory_limit=memory_limit)
    train.batch(np.arange(len(train)))
    truncate(broken[10])
    with pytest.raises(InputError, match="train: 11 of 30 images are unreadable") as caught:
        train, _ = load_image_tree(tmp_path, SIZE, memory_limit=memory_limit)
        train.batch(np.arange(len(train)))
    assert all(str(path) in str(caught.value) for path in broken)
