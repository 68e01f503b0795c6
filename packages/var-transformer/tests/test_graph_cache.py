"""Whose folder compiled graphs are taken from."""

import os
import sys
from types import SimpleNamespace

import pytest
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


def test_operators_that_others_could_have_written_are_not_loaded(tmp_path, monkeypatch):
    (private(tmp_path / "built")).chmod(0o777)
    with pytest.raises(InputError, match="others can write to it"):
        building.load(tmp_path / "built")
