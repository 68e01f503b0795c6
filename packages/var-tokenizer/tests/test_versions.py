"""The releases of MindSpore that the project runs on, and what the older ones lack."""

import mindspore as ms
import numpy as np
import pytest
import tiny
from mindspore import Tensor
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError, free_memory, takes_built_operators, unfilled
from var_tokenizer.common.command import exit_codes
from var_tokenizer.common.versions import is_on_device, memory_address

OTHERS = ["1.10.1", "2.6.0", "2.11.0", "3.0.0", "unknown"]


@pytest.mark.parametrize("version", ["2.7.0", "2.7.1.post1", "2.7.2", "2.8.0", "2.9.0", "2.10.0"])
def test_every_supported_release_builds_a_model(version, monkeypatch):
    monkeypatch.setattr(ms, "__version__", version)
    Tokenizer(tiny.tokenizer())


@pytest.mark.parametrize("version", OTHERS)
def test_a_model_is_refused_where_results_may_be_wrong(version, monkeypatch):
    monkeypatch.setattr(ms, "__version__", version)
    with pytest.raises(InputError, match=f"^MindSpore is {version}; expected 2.7.0 to 2.10$"):
        Tokenizer(tiny.tokenizer())


@pytest.mark.parametrize("version", OTHERS)
def test_a_command_ends_with_one_line_before_it_begins(version, monkeypatch, caplog):
    monkeypatch.setattr(ms, "__version__", version)
    with pytest.raises(SystemExit) as end, exit_codes():
        raise AssertionError("it began")
    assert end.value.code == 2
    assert caplog.messages == [f"MindSpore is {version}; expected 2.7.0 to 2.10"]


def test_freed_memory_is_gone_and_other_tensors_keep_theirs():
    kept, freed = (Tensor(np.ones((2, 3), np.float32)) * 2 for _ in range(2))
    free_memory(freed)
    np.testing.assert_array_equal(kept.asnumpy(), np.full((2, 3), 2, np.float32))
    try:
        assert freed.untyped_storage().nbytes() == 0
    except RuntimeError:  # before MindSpore 2.8 only another device has storage
        assert freed.nbytes == 0


def test_unfilled_memory_is_written_to():
    memory = unfilled((2, 3), ms.float32)
    assert memory.shape == (2, 3) and memory.dtype == ms.float32
    memory.copy_(Tensor(np.arange(6, dtype=np.float32).reshape(2, 3)))
    np.testing.assert_array_equal(memory.asnumpy().ravel(), np.arange(6))


def test_an_address_is_that_of_the_numbers():
    first, second = (Tensor(np.ones(4, np.float32)) for _ in range(2))
    assert len({memory_address(first), memory_address(second), 0}) == 3
    computed = first + second
    assert is_on_device(computed) and memory_address(computed) == computed.data_ptr()


def test_graphs_take_built_operators_in_all_releases_but_the_oldest():
    assert takes_built_operators() == (ms.__version__ != "2.7.0")
