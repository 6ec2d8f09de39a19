"""What is taken as texts, and what is said about the rest."""

import collections
import re

import numpy as np
import pytest

from skve._inputs.texts import TextSequence, check_choices, check_texts
from tests._inputs.test_labels import Arrow, Column

pd = pytest.importorskip("pandas")
pl = pytest.importorskip("polars")


class Loud(str):
    """A str whose str() is another one, as that of an enum's member."""

    __slots__ = ()

    def __str__(self):
        return "LOUD"


TEXTS = ["one", "", " ", "naïve 🙂"]


@pytest.mark.parametrize(
    "X",
    [
        TEXTS,
        tuple(TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        np.array(TEXTS, dtype=np.dtypes.StringDType()),
        np.array(TEXTS)[:, None],
        [np.str_(text) for text in TEXTS],
        pd.Series(TEXTS, index=[3, 1, 2, 0]),
        pd.Series(TEXTS, dtype="string"),
        pd.Series(TEXTS, dtype="category"),
        pd.DataFrame({"text": TEXTS}),
        pl.Series(TEXTS),
        pl.DataFrame({"text": TEXTS}),
        pd.Categorical(TEXTS),
        collections.deque(TEXTS),
        dict(enumerate(TEXTS)).values(),
        Column(TEXTS),
        Arrow(TEXTS),
        [Loud(text) for text in TEXTS],
    ],
    ids=lambda X: f"{type(X).__module__}.{type(X).__name__}",
)
def test__check_texts__every_container__same_strings(X):
    texts = check_texts(X)
    assert texts.first == TEXTS
    assert {type(text) for text in texts.first} == {str}
    assert not texts.paired
    assert len(texts) == 4


@pytest.mark.parametrize(
    "X",
    [
        [("a", "b"), ("c", "d")],
        np.array([["a", "b"], ["c", "d"]]),
        pd.DataFrame({"first": ["a", "c"], "second": ["b", "d"]}),
        pl.DataFrame({"first": ["a", "c"], "second": ["b", "d"]}),
    ],
    ids=lambda X: f"{type(X).__module__}.{type(X).__name__}",
)
def test__check_texts__pairs__both_sentences(X):
    texts = check_texts(X)
    assert (texts.first, texts.second) == (["a", "c"], ["b", "d"])
    assert texts.paired


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (None, ValueError, "X[2] must be a text, got None. Fill in missing texts, or drop them."),
        (float("nan"), ValueError, "X[2] must be a text, got nan."),
        (pd.NA, ValueError, "X[2] must be a text, got <NA>."),
        (3, TypeError, "X[2] must be a string, got 3 of type int."),
        (b"ab", TypeError, "X[2] must be a string, got b'ab' of type bytes. Decode it first"),
        (["a", "b"], TypeError, "X[2] must be a string, got ['a', 'b'] of type list. A sentence pair is a tuple"),
        ("\ud800", ValueError, "X[2] must be valid Unicode"),
        (("a", "b"), TypeError, "X must hold either single texts or pairs, got X[0] = 'one' and X[2] = ('a', 'b')"),
        ({"text": "a" * 100}, TypeError, "… of type dict"),
    ],
)
def test__check_texts__something_else_among_texts__named_by_index(bad, error, message):
    with pytest.raises(error, match=re.escape(message)):
        check_texts(["one", "two", bad])


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        ("one text", TypeError, "X must be a list of texts, got one str. Pass [X]."),
        ([], ValueError, "0 sample(s) while a minimum of 1 is required"),
        (pd.DataFrame({"a": ["x"], "b": ["y"], "c": ["z"]}), ValueError, "sentence pairs, got 3 columns"),
        (np.array([["a", "b", "c"]]), ValueError, "for sentence pairs, got (1, 3)"),
        (np.arange(3), TypeError, "got an array of int64"),
        ({"a", "b"}, TypeError, "got a set"),
        ([("a", None)], ValueError, "X[0][1] must be a text, got None"),
        ([("a", "b", "c")], ValueError, "X[0] must be a pair (first, second), got 3 texts"),
        (pd.Series(["a", None]), ValueError, "X[1] must be a text"),
        (pl.Series(["a", None]), ValueError, "X[1] must be a text, got None"),
        (
            np.array(["a", np.nan], dtype=np.dtypes.StringDType(na_object=np.nan)),
            ValueError,
            "X[1] must be a text, got nan",
        ),
    ],
)
def test__check_texts__wrong_container__says_what_is_wanted(X, error, message):
    with pytest.raises(error, match=re.escape(message)):
        check_texts(X)


def test__check_texts__pairs_after_single_texts__value_error():
    with pytest.raises(ValueError, match="X must hold single texts as in fit, got sentence pairs"):
        check_texts([("a", "b")], paired=False)


def test__take__part_of_a_part__in_its_order_and_computed_once():
    whole = TextSequence(["a", "b", "c", "d"])
    part = whole.take(np.array([3, 1, 0])).take(np.array([2, 0]))
    assert part.rows.tolist() == [0, 3]
    calls = []
    for sequence in (whole, part):
        assert sequence.computed_once("key", lambda: calls.append(1) or "result") == "result"
    assert calls == [1]


# ---------------------------------------------------------------------------------- prompts with choices

PROMPTS, CHOICES = ["the sky is", ""], [["blue", "green"], ["a", "b", "c"]]


@pytest.mark.parametrize(
    "X",
    [
        list(zip(PROMPTS, CHOICES, strict=True)),
        [["the sky is", ("blue", "green")], ["", np.array(["a", "b", "c"])]],
        Column(list(zip(PROMPTS, CHOICES, strict=True))),
        np.array([("the sky is", CHOICES[0]), ("", CHOICES[1])], dtype=object),
    ],
    ids=["tuples", "lists and arrays", "column", "array of objects"],
)
def test__check_choices__every_container__prompts_and_choices(X):
    items = check_choices(X)
    assert (items.first, items.second, items.paired) == (PROMPTS, CHOICES, "choices")
    assert items.take(np.array([1])).paired == "choices"


def test__check_choices__frame__prompts_and_choices():
    items = check_choices(pd.DataFrame({"prompt": PROMPTS, "choices": CHOICES}))
    assert (items.first, items.second) == (PROMPTS, CHOICES)


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        ([], ValueError, "at least one prompt, got 0"),
        (["a prompt"], TypeError, r"tuples \(prompt, choices\).* got X\[0\] = 'a prompt'"),
        ([("p", ["a", "b"]), ("p", ["a", "b"], 1)], TypeError, r"got X\[1\] = "),
        ([("p", "ab")], TypeError, r"X\[0\]\[1\] must be a list of choices"),
        ([("p", {"a", "b"})], TypeError, r"X\[0\]\[1\] must be a list of choices"),
        ([("p", ["a"])], ValueError, r"X\[0\]\[1\] must have at least two choices, got 1"),
        ([("p", [])], ValueError, r"X\[0\]\[1\] must have at least two choices, got 0"),
        ([("p", ["a", ""])], ValueError, r"X\[0\]\[1\]\[1\] must be a text that can be scored, got ''"),
        ([("p", ["a", " \n"])], ValueError, r"X\[0\]\[1\]\[1\] must be a text that can be scored"),
        ([("p", ["a", None])], ValueError, r"X\[0\]\[1\]\[1\] must be a text, got None"),
        ([("p", ["a", 3])], TypeError, r"X\[0\]\[1\]\[1\] must be a string, got 3"),
        ([(None, ["a", "b"])], ValueError, r"X\[0\]\[0\] must be a text, got None"),
    ],
)
def test__check_choices__bad_input__named_by_index(X, error, message):
    with pytest.raises(error, match=message):
        check_choices(X)
