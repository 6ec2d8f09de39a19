"""What messages leave out of long values and lists, they say."""

import pytest

from skve._runtime.wording import listed, quoted, shortened


@pytest.mark.parametrize(("text", "expected"), [("abcd", "abcd"), ("abcde", "abc…"), ("ab cd", "ab…"), ("", "")])
def test__shortened__long_text__ends_with_an_ellipsis(text, expected):
    assert shortened(text, 4) == expected


def test__shortened__keep_end__the_start_is_left_out():
    assert shortened("folder/1.jpg", 8, keep_end=True) == "…r/1.jpg"


def test__quoted__value__as_python_writes_it():
    assert quoted("a") == "'a'"
    assert quoted(list(range(100)), 10) == "[0, 1, 2,…"


@pytest.mark.parametrize(("values", "expected"), [([], ""), ([1, 2], "1, 2"), ("abcde", "a, b and 3 more")])
def test__listed__long_list__how_many_more(values, expected):
    assert listed(values, 2) == expected


def test__listed__form__of_each_value():
    assert listed(["a", 1], form=repr) == "'a', 1"
