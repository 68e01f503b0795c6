import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from var_tokenizer import SCALES_256, SCALES_512, ScaleSchedule
from var_tokenizer.common import InputError

SIZES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6).map(
    lambda pairs: list(
        zip(sorted(rows for rows, _ in pairs), sorted(cols for _, cols in pairs), strict=True)
    )
)


def test_the_published_schedules_have_680_and_2240_tokens():
    assert ScaleSchedule(SCALES_256).length == 680
    assert ScaleSchedule(SCALES_512).length == 2240


@given(SIZES)
def test_offsets_split_the_sequence_into_the_scales(sizes):
    schedule = ScaleSchedule(sizes)
    parts = schedule.split(schedule.scale_of_token, axis=0)
    assert [len(part) for part in parts] == [rows * columns for rows, columns in sizes]
    assert all((part == k).all() for k, part in enumerate(parts))


@given(SIZES)
def test_a_token_sees_its_own_and_coarser_scales_only(sizes):
    schedule = ScaleSchedule(sizes)
    for k, (begin, end) in enumerate(zip(schedule.offsets, schedule.offsets[1:], strict=False)):
        assert schedule.visible[begin:end, : schedule.offsets[k + 1]].all()
        assert not schedule.visible[begin:end, schedule.offsets[k + 1] :].any()


@given(SIZES)
def test_square_scales_are_ints_and_a_schedule_rebuilds_itself(sizes):
    schedule = ScaleSchedule(sizes)
    assert ScaleSchedule(schedule.scales) == schedule
    assert all(isinstance(s, int) or s[0] != s[1] for s in schedule.scales)
    assert schedule.sizes == tuple(sizes)


@pytest.mark.parametrize(
    "scales", [(), (0, 1), (2, 1), ((1, 3), (2, 2)), (1.5,), ("a",), ((1, 2, 3),), (True,), 7]
)
def test_a_schedule_that_is_empty_or_shrinks_is_an_error_that_names_scales(scales):
    with pytest.raises(InputError, match="scales"):
        ScaleSchedule(scales)


def test_scales_may_be_numpy_integers():
    assert ScaleSchedule(np.array([1, 2, 3])).scales == (1, 2, 3)
