"""The table of repaired faults names tests that exist."""

import csv
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]

with open(ROOT / "docs" / "data" / "repairs.csv", newline="", encoding="utf-8") as stream:
    ROWS = list(csv.DictReader(stream))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["instance"][:40])
def test__repairs__each_row__names_a_test_that_exists(row):
    path, _, name = row["test"].partition("::")
    assert row["kind"]
    assert row["instance"]
    assert f"def {name.partition('[')[0]}(" in (ROOT / path).read_text(encoding="utf-8")
