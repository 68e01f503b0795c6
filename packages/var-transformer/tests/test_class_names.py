"""Classes as users write them."""

import time
import types

import pytest
from var_tokenizer.common import InputError
from var_transformer.commands.class_names import (
    class_number,
    class_numbers,
    names_of,
    other_numbers,
    read_class_names,
)

NAMES = ("cat", "dog, hound", "eel", "fox", "gnu")
FOLDERS = ("0", "1", "2", "10")  # as numbers are sorted
IMAGENET = "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n"


def written(tmp_path, content):
    path = tmp_path / "names.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_any_of_a_wordnet_id_a_name_and_a_synonym_finds_a_class(tmp_path):
    names = read_class_names(written(tmp_path, IMAGENET), 2)
    assert names[0] == "tench, Tinca tinca, n01440764"
    for text in ("n01440764", "tench", "Tinca tinca", "tinca TINCA", "tench, Tinca tinca", "0"):
        assert class_numbers(text, 2, names) == [0], text
    assert class_numbers("tench, Tinca tinca,n01443537,goldfish", 2, names) == [0, 1, 1]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfcat\ndog\n",
        b"cat\ndog\n\n",
        b"cat\r\ndog\r\n \r\n\r\n",
        b"cat\ndog",
        "\ufeffcat\ndog\n\n".encode(),
    ],
)
def test_a_byte_order_mark_and_empty_last_lines_do_not_count(tmp_path, content):
    assert read_class_names(written(tmp_path, content), 2) == ("cat", "dog")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat\n", r"names\.txt: holds 1 names; expected 2, the classes"),
        (b"cat\n\ndog\n", r"names\.txt: holds 3 names; expected 2"),
        (b"\ncat\n", r"names\.txt: class_names holds at 0 a name of 0 characters"),
        (b"\xff\xfe", r"names\.txt: not a readable text file"),
        (b"x" * (2**24 + 1), r"names\.txt: too large"),
    ],
)
def test_a_file_of_class_names_that_does_not_fit_is_an_error(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        read_class_names(written(tmp_path, content), 2)
    with pytest.raises(InputError, match="not a readable text file"):
        read_class_names(tmp_path, 2)


def test_names_are_those_of_the_file_or_else_the_models(tmp_path):
    model = types.SimpleNamespace(
        class_names=("n01440764", "n01443537"), config=types.SimpleNamespace(num_classes=2)
    )
    assert names_of(model, None) == model.class_names
    path = written(tmp_path, IMAGENET)
    assert class_number("goldfish", 2, names_of(model, path)) == 1
    model.class_names = model.class_names[::-1]
    with pytest.raises(InputError, match=r"line 1 is 'tench.*'; expected 'n01443537', the model's"):
        names_of(model, path)
    model.class_names = None
    assert names_of(model, path)[1].startswith("goldfish")


def test_names_that_are_numbers_come_before_numbers():
    assert class_numbers("0,1,10,2", 4, FOLDERS) == [0, 1, 3, 2]
    assert class_numbers("0-10", 4, FOLDERS) == [0, 1, 2, 3]
    assert class_number("3", 4, FOLDERS) == 3  # nothing is named 3
    assert other_numbers([0, 3, 2, 3], FOLDERS) == "10 is number 3"
    assert other_numbers([0, 1, 4], FOLDERS) == "" and other_numbers([0], None) == ""
    assert class_numbers("7,007", 2, ("006", "007")) == [1, 1]


def test_lists_have_ranges_all_classes_and_none():
    assert class_numbers("all", 5, NAMES) == [0, 1, 2, 3, 4]
    assert class_numbers("0-999", 1000, None) == list(range(1000))
    assert class_numbers(" 3 - 4 ,none, Hound,1", 5, NAMES) == [3, 4, 5, 1, 1]
    assert class_numbers("dog, hound,cat", 5, NAMES) == [1, 0]
    assert class_numbers("dog,hound", 5, NAMES) == [1, 1]


def test_a_class_may_be_called_all_or_none_or_like_a_range():
    names = ("all", "none", "0-1", "None", "x")
    found = [class_numbers(n, 5, names) for n in ("all", "none", "None", "0-1")]
    assert found == [[0], [1], [3], [2]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", "class is '5'; expected 0 to 4, the name of a class or 'none', for no class"),
        ("", "class is ''"),
        ("cat,", "class is ''"),
        ("4-2", "classes are '4-2'; expected the smaller number first"),
        ("2-5", "class is '5'"),
        ("9" * 9999, r"class is '9{40}\.\.\.'"),
        ("x" * 10**6, r"class is 'x{40}\.\.\.'"),
        ("\x1b[2Jcow\nERROR", r"class is '\\x1b\[2Jcow\\nERROR'"),
        ("٣", "class is '٣'"),
        ("-1", "class is '-1'"),
    ],
)
def test_what_is_no_class_is_an_error_that_shows_it(text, message):
    with pytest.raises(InputError, match=message):
        class_numbers(text, 5, NAMES)


def test_a_name_of_several_classes_is_an_error_with_their_numbers():
    with pytest.raises(InputError, match=r"class 'x' names \[0, 2\]; expected one of these"):
        class_numbers("x", 3, ("x", "y", "x, z"))


def test_a_thousand_names_of_a_thousand_classes_are_found_at_once():
    names = tuple(f"name {n}, other {n}, third {n}, fourth {n}" for n in range(1000))
    begin, everyone = time.process_time(), list(range(1000))
    for entries in ((f"fourth {n}" for n in everyone), map(str, everyone)):
        assert class_numbers(",".join(entries), 1000, names) == everyone
    assert time.process_time() - begin < 5  # in seconds; without a table it takes a minute
