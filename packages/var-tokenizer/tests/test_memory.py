"""How much memory a process may still take, and what a command says when it was too little."""

from types import SimpleNamespace

import mindspore as ms
import pytest
from var_tokenizer.common import InputError, fewer_images, images_that_fit, needing_memory
from var_tokenizer.common.command import exit_codes
from var_tokenizer.common.memory import available_memory, is_out_of_memory, system_memory

GIB = 2**30


def known(monkeypatch, system: int | None, group: int | None) -> None:
    monkeypatch.setattr("var_tokenizer.common.memory.system_memory", lambda: system)
    monkeypatch.setattr("var_tokenizer.common.memory.memory_left", lambda: group)


@pytest.mark.parametrize(
    ("system", "group", "available"),
    [
        (8 * GIB, 2 * GIB, 2 * GIB),
        (2 * GIB, 8 * GIB, 2 * GIB),
        (3 * GIB, None, 3 * GIB),
        (None, 3 * GIB, 3 * GIB),
        (8 * GIB, 0, 0),
        (None, None, 4 * GIB),  # macOS, say
    ],
)
def test_the_least_of_free_memory_and_what_the_groups_leave_counts(
    monkeypatch, system, group, available
):
    known(monkeypatch, system, group)
    assert available_memory() == available


@pytest.mark.parametrize(("group", "images"), [(0, 1), (100, 1), (700, 3), (10**6, 25)])
def test_as_many_images_fit_as_half_of_the_memory_holds_but_at_least_one(
    monkeypatch, group, images
):
    known(monkeypatch, None, group)
    assert images_that_fit(100, 25) == images


def test_free_memory_of_the_system_is_what_linux_calls_available(tmp_path):
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:  9 kB\nMemFree:  1 kB\nMemAvailable:      5 kB\nBuffers: 2 kB\n")
    assert system_memory(path) == 5 * 1024


@pytest.mark.parametrize(
    "content", [b"", b"MemFree: 1 kB\n", b"MemAvailable:\n", b"MemAvailable: x kB\n", b"\xff"]
)
def test_a_system_that_does_not_say_what_is_free_is_unknown(tmp_path, content):
    assert system_memory(tmp_path / "absent") is None
    (tmp_path / "meminfo").write_bytes(content)
    assert system_memory(tmp_path / "meminfo") is None


@pytest.fixture
def npu(monkeypatch):
    """An NPU of 64 GiB, of which 20 are free, and 3 of MindSpore's 10 unused."""
    properties = SimpleNamespace(name="Ascend", total_memory=64 * GIB, free_memory=20 * GIB)
    monkeypatch.setattr("var_tokenizer.common.memory.on_cpu", lambda: False)
    monkeypatch.setattr(ms.hal, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(ms.runtime, "memory_reserved", lambda: 10 * GIB)
    monkeypatch.setattr(ms.runtime, "memory_allocated", lambda: 7 * GIB)
    return properties


def test_on_an_npu_its_own_memory_counts(monkeypatch, npu):
    known(monkeypatch, 2 * GIB, 1 * GIB)
    assert available_memory() == 23 * GIB


def test_an_npu_that_says_nothing_leaves_the_systems_memory_to_count(monkeypatch, npu):
    known(monkeypatch, 2 * GIB, 1 * GIB)
    npu.total_memory = npu.free_memory = 0  # before its first use
    assert available_memory() == 1 * GIB
    monkeypatch.delattr(ms.hal, "get_device_properties")
    assert available_memory() == 1 * GIB


MINDSPORE_SAYS = [
    "#umsg#Memory not enough:#umsg#Memory isn't enough and alloc failed, kernel name: a, size: 9B.",
    "Device(id:0) memory isn't enough and alloc failed, kernel name: Default/Add, alloc size: 9B.",
    "Memory not enough: alloc size[9] is larger than",
    "Allocate device memory failed!",
    "Malloc memory failed: size 9",
    "For 'MatMul', malloc memory failed.",
    "Out of Memory!!! Request memory size: 9B, Memory Statistic:",
    "Malloc device memory failed, size[9], ret[207001], Device 6",
    "std::bad_alloc",
]


@pytest.mark.parametrize(
    "error", [MemoryError(), *(RuntimeError(f"{text}\n\n--- C++ ---") for text in MINDSPORE_SAYS)]
)
def test_an_out_of_memory_names_the_option_to_lower(error):
    remedy = fewer_images("--batch", 8)
    with pytest.raises(InputError) as refused, needing_memory("drawing 8 images at once", remedy):
        raise error
    assert str(refused.value) == (
        "out of memory when drawing 8 images at once; expected --batch below 8"
    )
    assert "more memory" in fewer_images("--batch", 1)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("The sub operator failed: memory layout"),
        ValueError("out of memory"),
        OSError(),
    ],
)
def test_other_errors_pass_unchanged(error):
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)) as passed, needing_memory("drawing", "less"):
        raise error
    assert passed.value is error


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("Allocate memory failed")])
def test_a_command_that_runs_out_of_memory_anywhere_ends_with_2_and_one_line(caplog, error):
    with pytest.raises(SystemExit) as end, exit_codes():
        raise error
    assert end.value.code == 2
    [record] = caplog.records
    assert record.getMessage().startswith("out of memory")
