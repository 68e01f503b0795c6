"""A CANN that is missing, or that this MindSpore does not work with, is named."""

import mindspore as ms
import pytest
from var_tokenizer.common import InputError
from var_tokenizer.common import cann as cann_module
from var_tokenizer.common.cann import check_cann, wanted_versions


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


@pytest.mark.parametrize("driver", [True, False])
def test_a_command_warns_of_it_where_there_is_an_npu(monkeypatch, tmp_path, caplog, driver):
    monkeypatch.setattr(cann_module, "_DRIVER", tmp_path if driver else tmp_path / "absent")
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    cann_module.warn_of_cann()
    assert ["CANN is missing" in record.message for record in caplog.records] == [True] * driver
