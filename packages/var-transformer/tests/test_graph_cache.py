"""Which compiled graphs a command takes from its user's folder, and which ones are evicted."""

import os
import sys
import time
from types import SimpleNamespace

import pytest
from command_line import start, words
from PIL import Image
from var_tokenizer.common import InputError
from var_transformer.ascend_c import building
from var_transformer.commands import graph_cache


def private(path):
    path.mkdir(parents=True)
    path.chmod(0o700)
    return path


@pytest.fixture
def as_command(monkeypatch, tmp_path):
    """As if Python had been started as ``python -m var_transformer.sample``; its cache folder."""
    spec = SimpleNamespace(name="var_transformer.sample")
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "var-mindspore"


@pytest.fixture
def cached(monkeypatch):
    """Whether a block was told to use a cache."""
    told = []
    monkeypatch.setattr(graph_cache.ms, "set_context", lambda **context: told.append(context))

    def run():
        told.clear()
        with graph_cache.graph_cache(command="test"):
            pass
        return any(context.get("enable_compile_cache") for context in told)

    return run


def test_a_folder_of_ones_own_is_used(as_command, cached):
    assert cached()
    assert as_command.stat().st_mode & 0o777 == 0o700
    assert cached()  # and it is there already


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777, 0o1777])
def test_a_folder_that_others_can_write_to_is_not_used(as_command, cached, caplog, mode):
    private(as_command).chmod(mode)
    assert not cached()
    assert f"{as_command}: others can write to it" in caplog.text
    assert not list(as_command.iterdir())


def test_a_folder_of_another_user_is_not_used(as_command, cached, caplog, monkeypatch):
    private(as_command)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert not cached()
    assert f"{as_command}: belongs to another user" in caplog.text


def test_a_link_is_not_used_and_nothing_behind_it_removed(as_command, cached, caplog, tmp_path):
    for n in range(20):  # more than are kept
        private(tmp_path / "home" / f"work{n}")
    as_command.symlink_to(tmp_path / "home")
    assert not cached()
    assert f"{as_command}: no folder; expected one, not a link" in caplog.text
    assert len(list((tmp_path / "home").iterdir())) == 20


def test_graphs_that_others_could_have_written_are_not_used(as_command, cached, caplog):
    folder = private(as_command / graph_cache._name({"command": "test"}))
    assert cached()
    folder.chmod(0o777)
    assert not cached()
    assert "others can write to it" in caplog.text


def test_a_folder_that_others_can_replace_is_not_used(as_command, cached, caplog, tmp_path):
    private(as_command)
    tmp_path.chmod(0o777)
    assert not cached()
    assert f"{tmp_path}: everybody can write to it" in caplog.text
    tmp_path.chmod(0o1777)  # as /tmp
    assert cached()


def test_a_user_without_a_home_has_no_cache(as_command, cached, monkeypatch):
    def none():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(graph_cache.Path, "home", none)
    assert not cached()


def test_the_graphs_unused_for_longest_are_evicted(as_command, cached):
    day = 24 * 60 * 60
    ages = {f"model {n}": n * day for n in range(20)} | {".killed": 2 * day, ".compiling": 60}
    for name, age in ages.items():
        private(as_command / name)
        os.utime(as_command / name, (time.time() - age,) * 2)
    as_command.chmod(0o700)
    assert cached()
    left = {path.name for path in as_command.iterdir()}
    assert left == {f"model {n}" for n in range(15)} | {".compiling"}  # 16 with the new one


def test_another_instruction_set_has_other_graphs(monkeypatch):
    name = graph_cache._name({})
    assert name == graph_cache._name({})
    opened = SimpleNamespace(path="kernels.so", instruction_set="another")
    monkeypatch.setattr(graph_cache.KernelLibrary, "opened", opened)
    assert graph_cache._name({}) != name


def test_operators_that_others_could_have_written_are_not_loaded(tmp_path, monkeypatch):
    (private(tmp_path / "built")).chmod(0o777)
    with pytest.raises(InputError, match="others can write to it"):
        building.load(tmp_path / "built")


def graphs(cache):
    return {path: path.stat().st_mtime_ns for path in cache.rglob("*.mindir")}


@pytest.mark.slow
def test_the_next_process_takes_the_graphs_of_its_model_and_draws_the_same_images(pair, tmp_path):
    cache = tmp_path / "cache"

    def drawn(name, model, batch):
        files = words(pair, tmp_path / name, model=pair / f"{model}.safetensors", batch=batch)
        assert start("sample", *files, "--classes", "1,2", cache=cache).wait() == 0
        return [path.read_bytes() for path in sorted((tmp_path / name).glob("0*.png"))]

    first = drawn("first", "m", 2)
    compiled = graphs(cache)
    assert compiled and drawn("second", "m", 2) == first
    assert graphs(cache) == compiled  # none was compiled again
    small, pairwise = drawn("small", "small", 2), drawn("one by one", "m", 1)
    assert len({path.parents[2] for path in graphs(cache)}) == 3
    assert small != first and pairwise == first
    assert drawn("small again", "small", 2) == small


@pytest.mark.slow
def test_an_edit_takes_the_graphs_of_an_earlier_one_with_another_box(pair, tmp_path):
    cache = tmp_path / "cache"
    Image.new("RGB", (6, 6), "orange").save(tmp_path / "image.png")

    def edited(name, box):
        options = {"image": tmp_path / "image.png", "class": 2}
        out = tmp_path / name
        process = start("edit", *words(pair, out, **options), "--box", *box, cache=cache)
        assert process.wait() == 0
        return (out / "000000_2.png").read_bytes()

    left = edited("left", (0, 0, 6, 3))
    compiled = graphs(cache)
    assert compiled and edited("right", (0, 3, 6, 6)) != left
    assert edited("left again", (0, 0, 6, 3)) == left
    assert graphs(cache) == compiled
