"""Each hostile input of `tests.hostile.inputs` gets an error that names what is wrong and what to do."""

import csv
import re

import pytest

from tests.hostile import inputs as hostile

OTHERS = {  # messages of scikit-learn, and of a function of the user's own
    ("labels", "none at all"),
    ("labels", "too few"),
    ("labels", "too many"),
    ("labels", "empty"),
    ("backbones", "a callable that wants arguments"),
}


@pytest.fixture(scope="module")
def table():
    with open(hostile.TABLE, newline="") as stream:
        return list(csv.DictReader(stream))


def ids(case):
    return f"{case.group}: {case.name}"


@pytest.mark.parametrize("case", hostile.CASES, ids=ids)
def test__hostile_input__each__error_of_the_table_that_names_it(case, table, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    row = case.row()
    assert row["error"] != "none"
    assert re.search(case.argument, row["message"]), row["message"]
    recorded = next(other for other in table if (other["group"], other["case"]) == (case.group, case.name))
    assert (row["call"], row["error"]) == (recorded["call"], recorded["error"])
    if table[-1]["message"] == hostile.note():  # other versions of libraries word their messages otherwise
        assert row["message"] == recorded["message"], "run python -m tests.hostile.inputs"


def test__messages__each__full_sentences_that_say_what_is_required(table):
    """The form is "n_members must be a positive integer, got 0.", with the remedy in a second sentence."""
    own = [row["message"] for row in table[:-1] if (row["group"], row["case"]) not in OTHERS]
    assert [message for message in own if not message.endswith(".") or re.search(r"\bwant(ed|s)\b", message)] == []


def test__hostile_inputs__list__at_least_200_of_all_kinds_each_once(table):
    names = [(case.group, case.name) for case in hostile.CASES]
    assert len(names) == len(set(names)) >= 200
    assert [(row["group"], row["case"]) for row in table[:-1]] == names
    groups = {"images", "files", "labels", "sample_weight", "parameters", "backbones", "saved folders", "texts"}
    guide = hostile.TABLE.parents[1] / "guide" / "images.md"
    assert f"[{len(names)} hostile inputs" in guide.read_text("utf-8")
    assert {case.group for case in hostile.CASES} == groups | {"deployment"}
