"""Files are written whole or not at all."""

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from var_tokenizer.common import InputError, holding, remove_leftovers, replacing


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half of the new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_file_has_the_permissions_that_the_umask_leaves(tmp_path, umask):
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "a.txt") as temporary:
            assert temporary.stat().st_mode & 0o777 == 0o666 & ~umask
            temporary.write_text("new")
            temporary.chmod(0o400)  # as MindSpore's save_checkpoint does
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o666 & ~umask


def test_no_thread_sees_another_umask_while_a_file_is_written(tmp_path, monkeypatch):
    def unexpected(_mask):
        raise AssertionError("the umask of all threads was set")

    monkeypatch.setattr(os, "umask", unexpected)
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_link_is_replaced_not_followed(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    with replacing(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_folder_in_the_place_of_a_file_is_an_error_that_names_it(tokenizer, tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(InputError, match=r"model\.safetensors: is a folder"):
        tokenizer.save(tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == [tmp_path / "model.safetensors"]


def test_a_folder_that_is_a_file_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write here"), replacing(tmp_path / "file" / "x"):
        pass


def test_an_interrupt_right_after_the_temporary_file_appeared_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*arguments: object) -> int:
        os.close(opened(*arguments))
        raise KeyboardInterrupt

    opened = os.open
    monkeypatch.setattr("var_tokenizer.common.files.os.open", interrupted)
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "file.png"):
        pytest.fail("the block ran")
    assert not list(tmp_path.iterdir())


@contextmanager
def another_process(block: AbstractContextManager[object]) -> Iterator[None]:
    """While a process that entered ``block`` lives; it is killed in the end."""
    ready, tell = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            block.__enter__()
            os.write(tell, b".")
            signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    try:
        assert os.read(ready, 1) == b"."
        yield
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(ready)


def test_temporary_files_of_killed_processes_are_removed_those_of_living_ones_stay(tmp_path):
    with another_process(replacing(tmp_path / "model.safetensors")):
        [temporary] = tmp_path.iterdir()
        library = temporary.with_suffix(".tmp")  # as MindSpore's save_checkpoint makes one
        library.touch()
        remove_leftovers(tmp_path)
        assert {*tmp_path.iterdir()} == {temporary, library}
    users = tmp_path / ".model.notes.txt"
    users.touch()
    remove_leftovers(tmp_path)
    assert [*tmp_path.iterdir()] == [users]


def test_a_second_command_in_a_folder_is_refused_and_learns_of_the_first(tmp_path):
    with another_process(holding(tmp_path / "out")):
        (tmp_path / "out" / "work").touch()
        with (
            pytest.raises(InputError, match=r"out: process \d+ on .* writes here; expected one"),
            holding(tmp_path / "out"),
        ):
            pytest.fail("two at once")
        with holding(tmp_path / "other"):
            pass
    with holding(tmp_path / "out"):  # the first one was killed
        pass
    assert [*(tmp_path / "out").iterdir()] == [tmp_path / "out" / "work"]


def test_a_hold_does_not_follow_a_link(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / ".lock").symlink_to(precious)
    with holding(tmp_path):
        pass
    assert precious.read_text() == "precious"


def test_a_hold_that_writes_nothing_leaves_no_folder(tmp_path):
    with pytest.raises(InputError), holding(tmp_path / "a" / "b"):
        raise InputError("unusable settings")
    assert [*tmp_path.iterdir()] == []


def test_a_hold_leaves_it_to_the_block_to_say_where_it_cannot_write(tmp_path):
    (tmp_path / "file").touch()
    with holding(tmp_path / "file" / "out"):
        pass
    with holding("/proc/out"):
        pass


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # files cannot grow beyond
    try:
        with (
            pytest.raises(InputError, match=r"a\.bin: cannot write: File too large"),
            replacing(tmp_path / "a.bin") as temporary,
        ):
            temporary.write_bytes(bytes(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [*tmp_path.iterdir()] == [tmp_path / "a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == b"old"
