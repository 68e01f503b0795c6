"""The shards of a token cache: few open files, each checked when its first row is read."""

import gc
import resource
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest
import tiny
from image_tree import write_image_tree
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError
from var_train.data import cache_index, token_shards
from var_train.data.token_cache import TokenCache
from var_train.tokenize import TokenizeConfig, tokenize

CONFIG = tiny.tokenizer(channel_multipliers=(1,), scales=(1, 2, 8))
EVERY = np.arange(24)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return Tokenizer(CONFIG, 0)


@pytest.fixture(scope="module")
def written(tmp_path_factory, tokenizer) -> Path:
    """A cache whose training images are in 24 shards."""
    root = tmp_path_factory.mktemp("shards")
    write_image_tree(root / "images", train=12, val=2)
    tokenizer.save(root / "tokenizer.safetensors")
    files = {"tokenizer": root / "tokenizer.safetensors", "data": root / "images"}
    tokenize(TokenizeConfig(**files, out=root / "cache", batch=4, shard=1))
    return root / "cache"


@pytest.fixture
def folder(written, tmp_path) -> Path:
    return shutil.copytree(written, tmp_path / "cache")


@pytest.fixture
def opened(folder, tokenizer) -> TokenCache:
    return TokenCache(folder, "train", tokenizer)


def shard(folder: Path, number: int) -> Path:
    return folder / "train" / f"{number:05d}.safetensors"


def files_of(folder: Path) -> int:
    """How many files below ``folder`` this process has open."""
    links = list(Path("/proc/self/fd").iterdir())
    return sum(str(folder) in str(link.readlink()) for link in links if link.is_symlink())


def test_a_damaged_shard_is_named_before_its_first_token_and_the_others_are_read(folder, tokenizer):
    content = bytearray(shard(folder, 5).read_bytes())
    content[-1] ^= 1
    shard(folder, 5).write_bytes(content)
    cache = TokenCache(folder, "train", tokenizer)
    cache.batch(np.delete(EVERY, 5))
    for _ in range(2):
        with pytest.raises(InputError, match=r"train/00005\.safetensors: damaged"):
            cache.batch(EVERY[4:6])


def test_a_shard_is_checked_once(opened, monkeypatch):
    checked, real = [], cache_index.arrays_checksum
    monkeypatch.setattr(
        cache_index, "arrays_checksum", lambda arrays: checked.append(1) or real(arrays)
    )
    monkeypatch.setattr(token_shards, "MOST_OPEN", 2)
    assert not checked
    for _ in range(3):
        opened.batch(EVERY)
    assert len(checked) == len(EVERY)


def test_no_more_files_stay_open_than_the_limit(folder, opened, monkeypatch):
    assert files_of(folder) == 0
    opened.batch(EVERY)
    assert files_of(folder) == len(EVERY) < token_shards.MOST_OPEN
    monkeypatch.setattr(token_shards, "MOST_OPEN", 3)
    opened.batch(EVERY)
    assert files_of(folder) == len(EVERY)  # all of them were open already
    again = TokenCache(folder, "train", Tokenizer(CONFIG, 0))
    again.batch(EVERY)
    assert files_of(folder) == len(EVERY) + 3
    del again, opened


def test_threads_read_what_one_reads(folder, opened, written, tokenizer, monkeypatch):
    expected = TokenCache(written, "train", tokenizer).batch(EVERY)[0]
    monkeypatch.setattr(token_shards, "MOST_OPEN", 2)
    orders = [np.random.default_rng(n).permutation(EVERY) for n in range(40)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda order: opened.batch(order)[0], orders))
    for order, ids_bl in zip(orders, found, strict=True):
        np.testing.assert_array_equal(ids_bl, expected[order])
    assert files_of(folder) == 2


@pytest.mark.parametrize("change", ["gone", "shorter", "another"])
def test_a_shard_that_changes_in_the_middle_of_a_run_is_named(folder, opened, monkeypatch, change):
    monkeypatch.setattr(token_shards, "MOST_OPEN", 1)
    before = opened.batch(EVERY)[0]
    path = shard(folder, 7)
    kept = path.rename(folder / "kept")
    if change == "shorter":
        path.write_bytes(kept.read_bytes()[:-8])
    elif change == "another":  # whole, but not what the run began with
        arrays = load_file(shard(folder, 8))
        with safe_open(shard(folder, 8), framework="numpy") as file:
            save_file(arrays, path, file.metadata())
    with pytest.raises(InputError, match=r"00007\.safetensors: (cannot read|became sh|damaged)"):
        opened.batch(EVERY)
    kept.replace(path)
    np.testing.assert_array_equal(opened.batch(EVERY)[0], before)


@pytest.fixture
def few_files() -> Iterator[None]:
    """Lets the process open 8 more files or so."""
    gc.collect()  # else files of earlier tests may be closed in the middle of this one
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(link.name) for link in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_few_descriptors_are_enough_and_none_is_an_error_that_says_so(opened, few_files):
    with ExitStack() as stack:
        with suppress(OSError):
            while True:
                stack.enter_context(Path("/dev/null").open("rb"))
        with pytest.raises(InputError, match=r"safetensors: .*Too many open files; .*ulimit -n"):
            opened.batch(EVERY)
    opened.batch(EVERY)  # though it would keep more open
