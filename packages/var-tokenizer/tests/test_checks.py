"""The shared checks of single values, and how a message shows a name."""

import math
from pathlib import Path

import numpy as np
import pytest
from var_tokenizer import InputError, TokenizerConfig
from var_tokenizer.common import check_choice, check_flag, check_integer, check_number, quoted


@pytest.mark.parametrize("value", [1, 8, np.int64(3), np.uint8(8)])
def test_an_integer_within_its_bounds_comes_back_as_pythons(value):
    assert type(check_integer("batch", value, 1, 8)) is int


@pytest.mark.parametrize("value", [0, 9, True, 2.0, math.nan, "2", None, np.float32(2), [2]])
def test_values_other_than_an_integer_within_its_bounds_are_refused(value):
    with pytest.raises(InputError, match=r"batch is .*; expected an integer from 1 to 8$"):
        check_integer("batch", value, 1, 8)


@pytest.mark.parametrize(
    ("bounds", "good", "bad", "expected"),
    [
        ({}, -1e30, math.inf, "a number"),
        ({"least": 0}, 0, -0.1, "a number of at least 0"),
        ({"above": 0}, 1e-9, 0.0, "a number above 0"),
        ({"least": 0, "most": 1}, np.float32(1), 1.1, "a number from 0 to 1"),
        ({"least": 0, "below": 1}, 0.99, 1, "a number of at least 0 and below 1"),
        ({"above": 0, "below": 1}, 0.5, True, "a number above 0 and below 1"),
        ({"above": 0, "finite": False}, math.inf, math.nan, "a number above 0"),
    ],
)
def test_a_number_is_held_to_the_bounds_that_are_given(bounds, good, bad, expected):
    check_number("rate", good, **bounds)
    with pytest.raises(InputError, match=f"^rate is {bad}; expected {expected}$"):
        check_number("rate", bad, **bounds)


@pytest.mark.parametrize("value", [0, 1, "True", None])
def test_a_flag_is_true_or_false_and_nothing_else(value):
    assert check_flag("flip", np.bool_(True)) is True
    with pytest.raises(InputError, match=r"flip is .*; expected True or False"):
        check_flag("flip", value)


@pytest.mark.parametrize("value", ["", "C", None, [], {}, np.zeros(2)])
def test_a_choice_is_one_of_the_names(value):
    check_choice("start", "b", {"a": 1, "b": 2})
    with pytest.raises(InputError, match=r"start is .*; expected one of a, b$"):
        check_choice("start", value, {"a": 1, "b": 2})


def test_a_configuration_holds_only_numbers_of_python():
    config = TokenizerConfig(channels=np.int64(32), channel_multipliers=np.array([1, 2]))
    assert config == TokenizerConfig(channels=32, channel_multipliers=(1, 2))
    assert all(type(n) is int for n in (config.channels, *config.channel_multipliers))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("encoder.conv_in.weight", "encoder.conv_in.weight"),
        ("Häuser/猫 [red].png", "Häuser/猫 [red].png"),
        ("\x1b[2J\a\b", r"\x1b[2J\x07\x08"),
        ("a\nERROR: b\r", r"a\nERROR: b\r"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("\u202egnp.exe\u2066\u200f", r"\u202egnp.exe\u2066\u200f"),
        ("line\u2028separator", r"line\u2028separator"),
        (b"caf\xe9.png", r"caf\xe9.png"),
        (Path("b\ud800"), r"b\ud800"),
        ("x" * 2000, "x" * 1000 + "..."),
    ],
)
def test_names_of_files_are_shown_in_one_line_without_control_characters(name, shown):
    assert quoted(name) == shown


def test_an_integer_beyond_all_floats_is_a_number_like_any_other():
    check_number("rate", 10**400, above=0)
    with pytest.raises(InputError, match="expected a number from 0 to 1"):
        check_number("share", 10**400, least=0, most=1)
