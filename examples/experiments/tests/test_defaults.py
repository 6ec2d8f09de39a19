import csv

import pytest
from experiment_cases import EXAMPLES

import defaults  # isort: skip

DOCS = EXAMPLES.parent / "docs"


def test__page__its_tables__are_those_of_the_committed_rows(tmp_path):
    page, text = tmp_path / "evidence.md", (DOCS / "evidence.md").read_text(encoding="utf-8")
    page.write_text(text, encoding="utf-8")
    defaults.main(["--data", str(DOCS / "data"), "--page", str(page)])
    assert page.read_text(encoding="utf-8") == text
    page.write_text(text.replace("<!-- members -->", ""), encoding="utf-8")
    with pytest.raises(ValueError, match="must have the lines <!-- members --> and <!-- end of members -->"):
        defaults.main(["--data", str(DOCS / "data"), "--page", str(page)])


def test__committed_rows__mark_one_default_a_method_data_set_and_seed():
    with open(DOCS / "data" / "defaults_evidence.csv", newline="", encoding="utf-8") as stream:
        marked = [row for row in csv.DictReader(stream) if row["defaults"]]
    keys = [tuple(row[name] for name in ("data", "shots", "seed", "split", "method", "defaults")) for row in marked]
    assert len(keys) == len(set(keys))
    sets = {data for kind in defaults.KINDS.values() for data in kind}
    assert {row["data"] for row in marked if row["method"] == "sve" and row["defaults"] == "0.2"} == sets


def row(method, data, seed, nll, version=""):
    known = dict.fromkeys([*defaults.METRICS, "members", "scheme", "prior_sd"], "")
    known |= {"split": "test", "method": method, "data": data, "seed": seed, "defaults": version}
    return known | {"nll": nll, "accuracy": "0.5", "ece": "0.5", "auroc_error": "0.5", "auroc_foreign": "0.5"}


def test__read__only_seeds_that_sve_has__means_over_seeds_then_data_sets(tmp_path):
    path = tmp_path / "defaults_evidence.csv"
    rows = [row("sve", data, "0", "0.2", "0.2") for data in defaults.KINDS["texts"]]
    rows += [row("sve", "emotion", "1", "0.4", "0.2")]
    rows += [row("logreg", data, seed, "1") for data in defaults.KINDS["texts"] for seed in "01"]
    rows += [row("logreg", "emotion", "2", "9"), row("sve", "emotion", "0", "7")]
    with open(path, "w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    methods = defaults.read(path)
    shown = [line.split(" | ") for line in defaults.summary(methods, "texts")[2:]]
    assert [(line[0], line[1], line[-1]) for line in shown] == [
        ("| sve", "0.220", "6 |"),
        ("| LogReg", "1.000", "6 |"),
    ]


def test__differences__interval_that_leaves_zero_out__bold():
    known = {"method": "sve", "against": "logreg", "data": "all", "estimate": "-0.1", "low": "-0.2"}
    for high, bold in (("-0.05", True), ("0.05", False)):
        (line,) = defaults.differences([known | {"high": high}], [("sve", "logreg")], {"all": "all"})[2:]
        assert line == f"| sve less LogReg | {'**' * bold}-0.100 (-0.200 to {float(high):+.3f}){'**' * bold} |"
