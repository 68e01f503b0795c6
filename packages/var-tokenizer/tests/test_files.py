"""Files are written whole or not at all."""

import os

import pytest
from var_tokenizer.common import InputError, replacing


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
