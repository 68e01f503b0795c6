"""Names of many files in one array."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from var_train.listing.name_list import NameList

# any bytes but zero, as file systems have them: those that are not UTF-8 become surrogates
NAMES = st.lists(
    st.binary(max_size=12).map(lambda b: b.replace(b"\0", b"/").decode("utf-8", "surrogateescape")),
    max_size=30,
)


@given(NAMES)
def test_a_list_gives_the_names_it_was_made_of(names):
    found = NameList.of(names)
    assert list(found) == names and [found[i] for i in range(len(found))] == names
    assert found == NameList.of(names) and found != NameList.of([*names, ""])
    assert found.text.tobytes().decode("utf-8", "surrogateescape") == "\0".join(names)


@given(NAMES, st.data())
def test_any_selection_and_any_prefix_can_be_taken(names, data):
    found = NameList.of(names)
    indices = data.draw(st.lists(st.integers(0, len(names) - 1))) if names else []
    assert list(found.take(np.array(indices, np.int64))) == [names[i] for i in indices]
    joined = NameList.joined([("train/", found), ("val/", found)])
    assert list(joined) == [f"train/{n}" for n in names] + [f"val/{n}" for n in names]


def test_a_list_longer_than_what_is_decoded_at_once_is_whole():
    names = [f"class{i % 7}/{i}.png" for i in range(10_000)]
    found = NameList.of(names)
    assert list(found) == names and found[-1] == names[-1] and found[9990:] == names[9990:]
    order = np.arange(len(names))[::-1]
    assert list(found.take(order)) == names[::-1]
    with pytest.raises(IndexError):
        found[10_000]


def test_a_name_takes_nine_bytes_beside_its_own():
    names = [f"{i:020d}" for i in range(50_000)]
    tracemalloc.start()
    found = NameList.of(names)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 50_000 and kept < 50_000 * 29 + 10_000
