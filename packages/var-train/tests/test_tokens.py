"""Tokens in memory, and the token cache: whole, resumable, and what the tokenizer gives."""

import hashlib
import json
import logging
import os
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
from image_tree import random_image, write_image_tree
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError, arrays_checksum, to_model_range
from var_train.data import image_sources, token_cache
from var_train.data.crops import draw_place
from var_train.data.image_sources import load_image_tree
from var_train.data.resume_check import DataRecord, check_data
from var_train.data.token_cache import TokenCache
from var_train.data.token_sources import TokenSet
from var_train.tokenize import TokenizeConfig, tokenize
from var_train.training.transformer_stage import TransformerStageConfig, TransformerTraining
from var_transformer import Transformer

LENGTH = tiny.tokenizer().schedule.length
LABELS = np.zeros(4, np.int32)


@pytest.mark.parametrize(
    ("ids", "flipped", "named"),
    [
        (np.zeros((4, LENGTH), np.int64), None, "ids_nl is int64"),
        (np.zeros((3, LENGTH), np.int32), None, r"ids_nl is int32 \(3, .*\); expected int32 \(4"),
        (np.zeros((4, LENGTH), np.int32), np.zeros((4, 1), np.int32), "flipped_nl is int32"),
    ],
)
def test_ids_of_another_shape_or_dtype_are_refused(ids, flipped, named):
    with pytest.raises(InputError, match=named):
        TokenSet(ids, LABELS, flipped)


@pytest.mark.parametrize("value", [-1, tiny.tokenizer().vocab_size])
def test_ids_out_of_range_are_refused_before_training(value):
    tokenizer, model = Tokenizer(tiny.tokenizer()), Transformer(tiny.transformer(depth=1))
    good = TokenSet(np.zeros((4, LENGTH), np.int32), LABELS)
    bad = TokenSet(np.full((4, LENGTH), value, np.int32), LABELS)
    for train, val in ((bad, good), (good, bad)):
        with pytest.raises(InputError, match=r"ids_nl lie in .*; expected \[0, "):
            TransformerTraining(model, tokenizer, train, val, TransformerStageConfig(batch=2), 0)


CONFIG = tiny.tokenizer(channel_multipliers=(1,), scales=(1, 2, 8))


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A folder with images, a tokenizer and the cache made of them."""
    root = tmp_path_factory.mktemp("tokenize")
    write_image_tree(root / "images", train=5, val=2)
    Tokenizer(CONFIG, 0).save(root / "tokenizer.safetensors")
    tokenize(command(root))
    return root


def command(root: Path, **changes) -> TokenizeConfig:
    settings = {
        "tokenizer": root / "tokenizer.safetensors",
        "data": root / "images",
        "out": root / "cache",
        "batch": 3,
        "shard": 4,
    }
    return TokenizeConfig(**(settings | changes))


def encoded(tokenizer: Tokenizer, pixels_byxc: np.ndarray) -> np.ndarray:
    """Ids (B, L) of pixels."""
    return np.concatenate([i.asnumpy() for i in tokenizer.encode(to_model_range(pixels_byxc))], 1)


def test_the_cache_holds_tokens_of_every_image_as_it_is_and_mirrored(work):
    tokenizer = Tokenizer.load(work / "tokenizer.safetensors")
    images, _ = load_image_tree(work / "images", (8, 8))
    cache = TokenCache(work / "cache", "train", tokenizer)
    assert len(cache) == 10 and cache.classes == ("cat", "dog")
    indices, flip = np.array([9, 0, 4, 4]), np.array([False, True, False, True])
    pixels_byxc, labels_b = images.batch(indices, flip)
    ids_bl, found_b = cache.batch(indices, flip)
    assert ids_bl.dtype == np.int32
    np.testing.assert_array_equal(found_b, labels_b)
    np.testing.assert_array_equal(ids_bl, encoded(tokenizer, pixels_byxc))


def test_the_index_names_the_images_by_a_hash_of_their_list(work):
    index = json.loads((work / "cache" / "index.json").read_text())
    paths = (work / "images").rglob("*.png")
    names = sorted(str(path.relative_to(work / "images")) for path in paths)
    assert index["files"] == hashlib.sha256("\n".join(names).encode()).hexdigest()


@pytest.mark.parametrize("crops", [0, 3])
def test_an_image_is_decoded_once_for_all_its_crops_mirrored_too(
    work, tmp_path, monkeypatch, crops
):
    decoded = []
    read = image_sources.read_picture
    monkeypatch.setattr(image_sources, "read_picture", lambda p: decoded.append(p) or read(p))
    tokenize(command(work, out=tmp_path, batch=5, shard=10, crops=crops))
    training = [path for path in decoded if "train" in path.parts]
    classes = 2  # one image of each is tried at the start
    assert len(training) == 10 + classes


def test_an_image_of_more_crops_than_fit_at_once_has_the_same(work, tmp_path, monkeypatch):
    tokenize(command(work, out=tmp_path / "whole", crops=5))
    monkeypatch.setattr(token_cache, "_MOST_CROPS", 2)
    tokenize(command(work, out=tmp_path / "parts", crops=5))
    for path in (tmp_path / "whole" / "train").iterdir():
        assert path.read_bytes() == (tmp_path / "parts" / "train" / path.name).read_bytes()


@pytest.fixture(scope="module")
def cropped(work) -> Path:
    """Images of 12 x 16 pixels, and a cache with three crops of each, not mirrored."""
    write_image_tree(work / "large", (12, 16), train=3, val=2)
    large = {"data": work / "large", "out": work / "crops"}
    tokenize(command(work, **large, crops=3, mirror=False, seed=4))
    return work / "crops"


def test_the_cache_holds_several_crops_of_an_image_and_a_step_draws_one(work, cropped):
    tokenizer = Tokenizer.load(work / "tokenizer.safetensors")
    train, val = load_image_tree(work / "large", (8, 8), random_crops=True)
    cache = TokenCache(cropped, "train", tokenizer)
    assert (cache.crops, cache.mirrors, len(cache)) == (3, False, 6)
    every = np.arange(6)
    for crop, at in enumerate((0.0, 0.34, 0.99)):
        ids_bl, labels_b = cache.batch(every, place_of=lambda index, at=at: (at, 0.5))
        pixels_byxc, _ = train.batch(every, place_of=partial(draw_place, 4, crop))
        np.testing.assert_array_equal(ids_bl, encoded(tokenizer, pixels_byxc))
        assert labels_b.tolist() == [0, 0, 0, 1, 1, 1]
    held_out = TokenCache(cropped, "val", tokenizer)
    expected = encoded(tokenizer, val.batch(np.arange(4))[0])
    np.testing.assert_array_equal(held_out.batch(np.arange(4))[0], expected)
    chosen = held_out.batch(np.arange(4), place_of=partial(draw_place, 0, 0))[0]
    np.testing.assert_array_equal(chosen, expected)


def test_mirrored_crops_that_a_cache_lacks_are_refused_before_training(work, cropped):
    tokenizer = Tokenizer.load(work / "tokenizer.safetensors")
    cache = TokenCache(cropped, "train", tokenizer)
    model = Transformer(tiny.transformer(depth=1, scales=CONFIG.scales, num_classes=2))
    config = TransformerStageConfig(batch=2, flip=True)
    with pytest.raises(InputError, match="flip is True; expected tokens of mirrored images"):
        TransformerTraining(model, tokenizer, cache, cache, config, 0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"crops": 2}, "another number of crops"),
        ({"crops": 3, "seed": 5}, "another seed of the crops"),
        ({"crops": 3, "mirror": True}, "another choice of mirrored images"),
    ],
)
def test_a_cache_of_other_crops_is_refused_by_what_differs(work, tokenizer, cropped, changes, said):
    settings = {"data": work / "large", "out": cropped, "seed": 4, "mirror": False}
    with pytest.raises(InputError, match=f"holds tokens with {said}"):
        tokenize(command(work, **(settings | changes)))


def test_a_cache_from_before_there_were_crops_is_read_and_continued(work, tokenizer, cache):
    index = json.loads((cache / "index.json").read_text())
    for name in ("crops", "mirrored", "seed"):
        del index[name]
    (cache / "index.json").write_text(json.dumps(index))
    (cache / "train" / "00001.safetensors").unlink()
    tokenize(command(work, out=cache))
    old, new = (TokenCache(folder, "train", tokenizer) for folder in (cache, work / "cache"))
    assert old.digest == new.digest and old.mirrors and not old.crops


def test_a_second_run_writes_only_missing_and_damaged_shards(work, cache):
    missing, damaged, whole = (cache / "train" / f"0000{i}.safetensors" for i in range(3))
    missing.unlink()
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    before = whole.stat().st_mtime_ns
    with pytest.raises(InputError, match=r"00000\.safetensors: missing or damaged"):
        TokenCache(cache, "train", Tokenizer.load(work / "tokenizer.safetensors"))
    tokenize(command(work, out=cache))
    assert whole.stat().st_mtime_ns == before
    for path in (missing, damaged):
        assert path.read_bytes() == (work / "cache" / "train" / path.name).read_bytes()


def test_a_resumed_run_names_the_image_whose_tokens_changed(work, data, cache, tokenizer, tmp_path):
    def opened(folder: Path) -> tuple[dict, list[TokenCache]]:
        caches = [TokenCache(folder, split, tokenizer) for split in ("train", "val")]
        tokens = {"classes": ["cat", "dog"], "digests": [c.digest for c in caches]}
        return {"data": None, "tokens": tokens}, caches

    saved, caches = opened(cache)
    DataRecord.of(*(c.files for c in caches)).save(tmp_path)
    moved = cache.rename(tmp_path / "moved")
    assert opened(moved)[0] == saved
    Image.fromarray(random_image(99, (8, 8))).save(data / "train" / "dog" / "3.png")
    tokenize(command(work, data=data, out=moved))
    now, caches = opened(moved)
    with pytest.raises(InputError, match=r"other data: 1 image\(s\) changed: train/dog/3\.png;"):
        check_data(tmp_path, saved, now, DataRecord.of(*(c.files for c in caches)))


def test_a_cache_that_names_no_images_is_trained_from(cache, tokenizer):
    """As those of version 0.1.0."""
    for path in (cache / "train").glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            save_file(load_file(path), path, {"sha256": file.metadata()["sha256"]})
    train, val = (TokenCache(cache, split, tokenizer) for split in ("train", "val"))
    assert train.files is None and val.files.names[0] == "cat/0.png"


@pytest.mark.parametrize(
    ("name", "value"), [("ids", CONFIG.vocab_size), ("flipped", 999), ("labels", 2)]
)
def test_tokens_out_of_range_are_refused_whatever_their_checksum(work, cache, name, value):
    path = cache / "val" / "00000.safetensors"
    arrays = load_file(path)
    arrays[name].flat[-1] = value
    tokens = {key: arrays[key] for key in ("ids", "flipped", "labels")}
    save_file(arrays, path, {"sha256": arrays_checksum(tokens)})
    opened = TokenCache(cache, "val", Tokenizer.load(work / "tokenizer.safetensors"))
    with pytest.raises(InputError, match=r"00000\.safetensors: damaged"):
        opened.batch(np.arange(1))


def test_tokens_of_another_tokenizer_are_refused(work):
    other = Tokenizer(CONFIG, 1)
    with pytest.raises(InputError, match="tokens of another tokenizer"):
        TokenCache(work / "cache", "val", other)
    other.save(work / "other.safetensors")
    with pytest.raises(InputError, match="holds tokens with another tokenizer"):
        tokenize(command(work, tokenizer=work / "other.safetensors"))


def test_a_folder_without_an_index_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected a token cache"):
        TokenCache(tmp_path, "train", Tokenizer(CONFIG, 0))
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(InputError, match="no index of a token cache"):
        TokenCache(tmp_path, "train", Tokenizer(CONFIG, 0))


def test_an_unreadable_image_is_replaced_and_named_in_a_warning(work, data, tmp_path, caplog):
    (data / "train" / "dog" / "3.png").write_bytes(b"no image")
    tokenize(command(work, data=data, out=tmp_path / "cache"))
    assert "dog/3.png" in caplog.text


@pytest.fixture(scope="module")
def loaded(work) -> Tokenizer:
    return Tokenizer.load(work / "tokenizer.safetensors")


@pytest.fixture
def tokenizer(loaded, monkeypatch) -> Tokenizer:
    """The one that every command uses, so that it is compiled once."""
    monkeypatch.setattr("var_train.tokenize.Tokenizer.load", lambda _: loaded)
    return loaded


@pytest.fixture
def data(work, tmp_path) -> Path:
    return shutil.copytree(work / "images", tmp_path / "images")


@pytest.fixture
def cache(work, tmp_path) -> Path:
    return shutil.copytree(work / "cache", tmp_path / "cache")


def replace(path: Path, seed: int) -> None:
    """Another image under an old name, of the same size in bytes."""
    size = path.stat().st_size
    path.unlink()
    Image.fromarray(random_image(seed, (8, 8))).save(path)
    assert path.stat().st_size == size


def test_only_shards_with_a_replaced_image_are_written_anew(work, tokenizer, data, cache, caplog):
    shards = sorted((cache / "train").iterdir())
    before = [path.stat().st_mtime_ns for path in shards]
    replace(data / "train" / "dog" / "1.png", 123)  # the seventh of ten, in shards of four
    with caplog.at_level(logging.INFO):
        tokenize(command(work, data=data, out=cache))
    assert "1 image(s) were replaced, their shards are written anew: dog/1.png" in caplog.text
    changed = [path.stat().st_mtime_ns != then for path, then in zip(shards, before, strict=True)]
    assert changed == [False, True, False]
    images, _ = load_image_tree(data, (8, 8))
    ids_bl, _ = TokenCache(cache, "train", tokenizer).batch(np.arange(10))
    np.testing.assert_array_equal(ids_bl, encoded(tokenizer, images.batch(np.arange(10))[0]))


def test_images_that_were_copied_need_no_new_tokens(work, tokenizer, cache, tmp_path):
    data = shutil.copytree(work / "images", tmp_path / "images", copy_function=shutil.copyfile)
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")}
    tokenize(command(work, data=data, out=cache))
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_shard_is_written_anew_if_an_image_that_stood_in_was_replaced(
    work, tokenizer, data, tmp_path
):
    cache = tmp_path / "cache"
    (data / "train" / "cat" / "3.png").write_bytes(b"broken")  # in shard 0; 4 is in shard 1
    tokenize(command(work, data=data, out=cache))
    replace(data / "train" / "cat" / "4.png", 124)
    tokenize(command(work, data=data, out=cache))
    ids_bl, _ = TokenCache(cache, "train", tokenizer).batch(np.array([3, 4]))
    images, _ = load_image_tree(data, (8, 8))
    np.testing.assert_array_equal(ids_bl, encoded(tokenizer, images.batch([4, 4])[0]))


def test_more_images_than_before_are_refused_with_the_way_out(work, tokenizer, data, cache):
    shutil.copy(data / "train" / "cat" / "0.png", data / "train" / "cat" / "new.png")
    with pytest.raises(InputError, match=r"another number of images .*; expected .* another --out"):
        tokenize(command(work, data=data, out=cache))
    (data / "train" / "cat" / "new.png").unlink()
    (data / "train" / "cat" / "4.png").rename(data / "train" / "cat" / "renamed.png")
    with pytest.raises(InputError, match="another list of image files"):
        tokenize(command(work, data=data, out=cache))


def test_a_renamed_class_is_refused_by_both_names(work, tokenizer, data, cache):
    for split in ("train", "val"):
        (data / split / "dog").rename(data / split / "zebra")
    with pytest.raises(InputError, match=r"another list of classes \(no longer: dog; new: zebra\)"):
        tokenize(command(work, data=data, out=cache))


def test_a_cache_of_an_earlier_version_says_what_to_do(work, tokenizer, cache):
    index = json.loads((cache / "index.json").read_text())
    del index["format"]
    (cache / "index.json").write_text(json.dumps(index))
    said = r"format 1; expected 2 \(python -m var_train.tokenize"
    with pytest.raises(InputError, match=said):
        TokenCache(cache, "train", tokenizer)
    with pytest.raises(InputError, match=said):
        tokenize(command(work, out=cache))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("shard", 0, "no index of a token cache: shard is 0"),
        ("shard", "4", "no index of a token cache: shard is '4'"),
        ("images", {}, "no index of a token cache"),
        ("images", [4], "no index of a token cache"),
        ("images", {"train": 0, "val": 1}, "no index of a token cache: images of train is 0"),
        ("images", {"train": 10**15, "val": 1}, "missing or damaged"),
        ("crops", -1, "no index of a token cache: crops is -1"),
        ("crops", 10**15, "missing or damaged"),
        ("mirrored", "no", "no index of a token cache: mirrored is 'no'"),
        ("classes", [1, 2], "no index of a token cache"),
    ],
)
def test_an_index_that_claims_anything_is_refused_at_once(tokenizer, cache, field, value, said):
    index = json.loads((cache / "index.json").read_text())
    (cache / "index.json").write_text(json.dumps(index | {field: value}))
    with pytest.raises(InputError, match=re.escape(said)):
        TokenCache(cache, "train", tokenizer)


def test_names_that_are_not_utf_8_are_encoded(work, tokenizer, data, tmp_path):
    (data / "train" / "cat" / "0.png").rename(data / "train" / "cat" / os.fsdecode(b"caf\xe9.png"))
    for split in ("train", "val"):
        (data / split / "dog").rename(data / split / os.fsdecode(b"d\xf6g"))
    tokenize(command(work, data=data, out=tmp_path / "cache"))
    cache = TokenCache(tmp_path / "cache", "train", tokenizer)
    assert cache.classes == ("cat", os.fsdecode(b"d\xf6g")) and len(cache) == 10


def test_a_part_of_a_flat_folder_is_held_out(work, tokenizer, tmp_path):
    data = shutil.copytree(work / "images" / "train", tmp_path / "images")
    tokenize(command(work, data=data, out=tmp_path / "cache", val_fraction=0.3))
    train, val = (TokenCache(tmp_path / "cache", split, tokenizer) for split in ("train", "val"))
    assert len(train) + len(val) == 10 and set(val.labels_n.tolist()) == {0, 1}
