"""Each hostile input of `tests.hostile.inputs` gets an error that names what is wrong and what to do."""

import csv
import re

import pytest

from tests.hostile import inputs as hostile

VERBS = (
    *(
        "bring",
        "call",
        "check",
        "choose",
        "decode",
        "fit",
        "give",
        "install",
        "join",
        "keep",
        "leave",
        "list",
        "lower",
    ),
    *(
        "make",
        "mend",
        "move",
        "multiply",
        "open",
        "pass",
        "raise",
        "replace",
        "save",
        "say",
        "scale",
        "set",
        "stretch",
    ),
    *("take", "turn", "upgrade", "use"),
)
# What to do, at the start of a clause; or what is wanted. Words inside of quotes are the user's.
REMEDY = re.compile(
    rf"(?:[;:(.,]|\b(?:and|or)) (?:{'|'.join(VERBS)})\b(?! of\b)|\bwant(?:ed|s)\b|\bmust (?:be|take|have|contain)\b|"
    r"\b(?:at least|at most|a minimum of) \d|\bdid you mean\b|\bevery sample needs\b",
    re.IGNORECASE,
)
QUOTED = re.compile(r"'[^']*'")
WITHOUT = {  # scikit-learn's messages, and one of the user's own function
    ("labels", "none at all"),
    ("labels", "too few"),
    ("labels", "too many"),
    ("labels", "empty"),
    ("backbones", "a callable that wants arguments"),
}


def says_what_to_do(message):
    return REMEDY.search(QUOTED.sub("''", message)) is not None


@pytest.fixture(scope="module")
def table():
    with open(hostile.TABLE, newline="") as stream:
        return list(csv.DictReader(stream))


def ids(case):
    return f"{case.group}: {case.name}"


@pytest.mark.parametrize("case", hostile.CASES, ids=ids)
def test__hostile_input__each__error_of_the_table_that_names_it_and_a_remedy(case, table, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    row = case.row()
    assert row["error"] != "none"
    assert re.search(case.argument, row["message"]), row["message"]
    assert says_what_to_do(row["message"]) == ((case.group, case.name) not in WITHOUT), row["message"]
    recorded = next(other for other in table if (other["group"], other["case"]) == (case.group, case.name))
    assert (row["call"], row["error"]) == (recorded["call"], recorded["error"])
    if table[-1]["message"] == hostile.note():  # other versions of libraries word their messages otherwise
        assert row["message"] == recorded["message"], "run python -m tests.hostile.inputs"


@pytest.mark.parametrize(
    "message",
    [
        "X[0] cannot be read as an image: cannot identify the file",
        "X has 3 columns, which makes no sense; the estimator takes images and uses one column",
        "backbone='pass it; wanted' is unknown: it should set its weights",
        "skve.json is damaged: it has a set of values, use of which is made by load",
        "the loss became nan; training takes and needs other numbers",
    ],
)
def test__says_what_to_do__complaint_alone__no(message):
    assert not says_what_to_do(message)
    assert says_what_to_do(f"{message}; pass another one")


def test__hostile_inputs__list__at_least_200_of_all_kinds_each_once(table):
    names = [(case.group, case.name) for case in hostile.CASES]
    assert len(names) == len(set(names)) >= 200
    assert [(row["group"], row["case"]) for row in table[:-1]] == names
    groups = {"images", "files", "labels", "sample_weight", "parameters", "backbones", "saved folders", "texts"}
    guide = hostile.TABLE.parents[2] / "guide" / "images.md"
    assert f"[{len(names)} hostile inputs" in guide.read_text("utf-8")
    assert {case.group for case in hostile.CASES} == groups
