"""The token cache: whole, resumable, and the same tokens as the tokenizer gives."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from var_tokenizer import InputError, Tokenizer, TokenizerConfig
from var_train.cache import TokenCache
from var_train.data import load_image_tree
from var_train.tokenize import Tokenization, tokenize

CONFIG = TokenizerConfig(
    vocab_size=16,
    latent_channels=4,
    channels=32,
    channel_multipliers=(1,),
    res_blocks=1,
    phi_count=1,
    scales=(1, 2, 8),
)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A folder with images, a tokenizer and the cache made of them."""
    root = tmp_path_factory.mktemp("tokenize")
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 2)):
        for name in ("cat", "dog"):
            folder = root / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    Tokenizer(CONFIG, 0).save(root / "tokenizer.safetensors")
    tokenize(command(root))
    return root


def command(root: Path, **changes) -> Tokenization:
    settings = {
        "tokenizer": root / "tokenizer.safetensors",
        "data": root / "images",
        "out": root / "cache",
        "batch": 3,
        "shard": 4,
    }
    return Tokenization(**(settings | changes))


def test_the_cache_holds_the_tokens_of_every_image_as_it_is_and_mirrored(work):
    tokenizer = Tokenizer.load(work / "tokenizer.safetensors")
    images, _ = load_image_tree(work / "images", (8, 8))
    cache = TokenCache(work / "cache", "train", tokenizer)
    assert len(cache) == 10 and cache.classes == ("cat", "dog")
    indices, flip = np.array([9, 0, 4, 4]), np.array([False, True, False, True])
    pixels_bcyx, labels_b = images.batch(indices, flip)
    ids, found_b = cache.batch(indices, flip)
    np.testing.assert_array_equal(found_b, labels_b)
    for ours, theirs in zip(ids, tokenizer.encode(pixels_bcyx), strict=True):
        np.testing.assert_array_equal(ours, theirs.asnumpy())


def test_a_second_run_writes_what_is_missing_or_damaged_and_nothing_else(work, tmp_path):
    cache = tmp_path / "cache"
    shutil.copytree(work / "cache", cache)
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


def test_an_unreadable_image_is_replaced_and_named_in_a_warning(work, tmp_path, caplog):
    shutil.copytree(work / "images", tmp_path / "images")
    (tmp_path / "images" / "train" / "dog" / "3.png").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        tokenize(command(work, data=tmp_path / "images", out=tmp_path / "cache"))
    assert "dog/3.png" in caplog.text
