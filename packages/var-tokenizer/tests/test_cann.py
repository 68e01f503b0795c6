"""A CANN that is missing, or that this MindSpore does not work with, is named."""

import mindspore as ms
import pytest
from var_tokenizer.common import InputError, check_cann, find_npu
from var_tokenizer.common import cann as cann_module
from var_tokenizer.common.cann import wanted_versions, warn_of_cann


@pytest.fixture
def cann(monkeypatch, tmp_path):
    """Writes a CANN of a version."""
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    (tmp_path / "compiler").mkdir()
    return lambda text: (tmp_path / "compiler" / "version.info").write_text(text)


def test_a_cann_that_mindspore_wants_is_taken(cann):
    newest = wanted_versions()[-1]
    cann(f"Version={newest}.RC1\nrelease=x\n")
    assert check_cann() == newest


@pytest.mark.parametrize(
    ("text", "found"), [("Version=3.1.0\n", "3.1"), ("", "of no version"), ("Version=\x1b[2J", "")]
)
def test_another_cann_is_an_error_that_names_both_versions(cann, text, found):
    cann(text)
    wanted = f"MindSpore {ms.__version__} expects {' or '.join(wanted_versions())}"
    with pytest.raises(InputError) as raised:
        check_cann()
    assert f"CANN is {found}" in str(raised.value) and wanted in str(raised.value)
    assert "\x1b" not in str(raised.value) and "\n" not in str(raised.value)


def test_a_missing_cann_is_an_error_that_names_what_mindspore_wants(monkeypatch, tmp_path):
    wanted = f"MindSpore {ms.__version__} expects"
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    with pytest.raises(InputError, match=rf"CANN is missing .*version\.info.*; {wanted}"):
        check_cann()
    monkeypatch.delenv("ASCEND_HOME_PATH")
    with pytest.raises(InputError, match=rf"CANN is missing .*ASCEND_HOME_PATH.*; {wanted}"):
        check_cann()


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Puts so many files of a driver, and perhaps ``npu-smi``, in the place of this machine's."""

    def place(*files: str, tool: bool = False) -> None:
        for name in files:
            (tmp_path / name).touch()
        if tool:
            (tmp_path / "npu-smi").touch(0o755)
        monkeypatch.setattr(cann_module, "_DEVICES", tmp_path)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))

    return place


@pytest.mark.parametrize(
    ("files", "tool", "sign"),
    [
        (("davinci0", "davinci_manager"), False, "davinci0"),
        (("davinci_manager",), True, "davinci_manager"),
        ((), True, "npu-smi"),
    ],
)
def test_a_command_warns_of_it_where_there_is_an_npu(machine, tmp_path, caplog, files, tool, sign):
    machine(*files, tool=tool)
    assert find_npu() == str(tmp_path / sign)
    warn_of_cann()
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "CANN is missing" in record.message


def test_a_machine_without_an_npu_is_not_warned(machine, caplog):
    machine("null")
    warn_of_cann()
    assert find_npu() is None and not caplog.records


def test_an_npu_that_mindspore_does_not_use_is_named_beside_the_cpu(cann, machine, caplog):
    machine("davinci0")
    cann(f"Version={wanted_versions()[-1]}.RC1")
    warn_of_cann()
    (record,) = caplog.records
    assert "davinci0" in record.message and "the device is the CPU" in record.message
    assert f"MindSpore {ms.__version__} did not load its plug-in" in record.message
    assert "mindspore.set_device('Ascend')" in record.message
