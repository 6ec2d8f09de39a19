"""Each hostile input of `tests.hostile` gets an error that names what is wrong and what to do."""

import csv
import re

import pytest

from tests import hostile

REMEDY = re.compile(
    r"\b(wanted|wants|must|should|pass|use|set|give|bring|scale it|stretch|multiply|lower|raise|install|needs?|"
    r"did you mean|replace|check|takes?|fit again|fit anew|makes?|choose|save|upgrade|requires?|required|reads|knows|"
    r"belongs?|move|open it|expected|at least|at most|call 'fit' with|decode it|filled in|finite|join|near ones|"
    r"say which|inconsistent numbers of samples|fitted on single texts|same number|has 2|trust)\b",
    re.IGNORECASE,
)


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
    assert REMEDY.search(row["message"]), row["message"]
    recorded = next(other for other in table if (other["group"], other["case"]) == (case.group, case.name))
    assert (row["call"], row["error"]) == (recorded["call"], recorded["error"])
    if table[-1]["message"] == hostile.note():  # other versions of libraries word their messages otherwise
        assert row["message"] == recorded["message"], "run python -m tests.hostile"


def test__hostile_inputs__list__at_least_200_of_all_kinds_each_once(table):
    names = [(case.group, case.name) for case in hostile.CASES]
    assert len(names) == len(set(names)) >= 200
    assert [(row["group"], row["case"]) for row in table[:-1]] == names
    groups = {"images", "files", "labels", "sample_weight", "parameters", "backbones", "saved folders", "texts"}
    guide = hostile.TABLE.parents[1] / "guide" / "images.md"
    assert f"[{len(names)} hostile inputs" in guide.read_text("utf-8")
    assert {case.group for case in hostile.CASES} == groups
