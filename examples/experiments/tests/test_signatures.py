"""Fits with known failures, and the diversity of healthy ones, on a handful of samples."""

import csv

import experiment_cases  # where the scripts are
import numpy as np
import pytest

import diversity  # isort: skip
import signatures  # isort: skip


@pytest.fixture
def short(monkeypatch):
    """Let the scripts have one healthy fit and two with failures, of two steps on few samples."""
    load = signatures.load

    def few(data, seed):
        X, y, X_test, y_test, foreign = load(data, seed)
        return X[::10], y[::10], X_test[:30], y_test[:30], foreign[:20]

    def cells(data):
        if data != "fashion":
            return []
        known = {"data": data, "ensemble": "sve", "seed": 0}
        settings = {"healthy": {}, "ratios hardly moved": {"member_lr": 1e-6}, "ratios ran away": {"member_lr": 1e9}}
        return [({**known, "setting": name}, {"max_steps": 2, **own}) for name, own in settings.items()]

    for module in (signatures, diversity):
        monkeypatch.setattr(module, "load", few)
        monkeypatch.setattr(module, "cells", cells)
        monkeypatch.setattr(module, "N_JUDGED", 20)


def test__signatures__each_fit__its_findings_once_and_a_table(short, tmp_path, capsys):
    out, models = tmp_path / "signatures.csv", tmp_path / "models"
    for _ in range(2):
        signatures.main(["run", "--csv", str(out), "--models", str(models)])
    rows = list(csv.DictReader(out.open()))
    assert [row["setting"] for row in rows] == ["healthy", "ratios hardly moved", "ratios ran away"]
    findings = {row["setting"]: row["findings"] for row in rows}
    assert "ratios hardly moved" in findings["ratios hardly moved"]
    assert "training stopped too early" in findings["healthy"]  # of two steps
    capsys.readouterr()
    signatures.main(["show", "--csv", str(out)])
    assert "| fashion | ratios hardly moved | 1 | 1 of 1 |" in capsys.readouterr().out


def test__diversity__a_kept_fit__rows_for_two_members_and_more(short, tmp_path, capsys, monkeypatch):
    out, models = tmp_path / "diversity.csv", tmp_path / "models"
    monkeypatch.setattr(diversity, "LARGE", {})
    diversity.main(["run", "--csv", str(tmp_path / "first.csv"), "--models", str(models)])
    with monkeypatch.context() as patched:
        patched.setattr(signatures.skve.SVEClassifier, "fit", None)  # it is there
        for _ in range(2):
            diversity.main(["run", "--csv", str(out), "--models", str(models)])
    assert out.read_text() == (tmp_path / "first.csv").read_text()
    rows = list(csv.DictReader(out.open()))
    assert [row["members"] for row in rows] == ["2", "3", "4"]
    for row in rows:
        assert 0 <= float(row["disagreement"]) <= 1
        depths = [float(row[f"cka_{quarter}"]) for quarter in (1, 2, 3, 4)]
        assert all(0 < value <= 1 + 1e-6 for value in depths)
        assert depths[0] > depths[-1]  # members part on the way
        assert np.isfinite([float(row[name]) for name in ("gain", "epistemic", "border", "foreign", "spread")]).all()
    monkeypatch.setattr(diversity, "LARGE", {"sve": 5})
    diversity.main(["run", "--csv", str(out), "--models", str(models)])
    more = list(csv.DictReader(out.open()))
    assert more[:3] == rows
    assert [row["members"] for row in more[3:]] == ["5"]
    capsys.readouterr()
    diversity.main(["show", "--csv", str(out), "--picture", str(tmp_path / "diversity.png")])
    shown = capsys.readouterr().out
    assert "| fashion | sve | 1 |" in shown
    assert "| fashion | sve | 2 |" in shown
    assert (tmp_path / "diversity.png").stat().st_size > 10_000


@pytest.mark.parametrize("script", [signatures, diversity], ids=lambda script: script.__name__)
def test__studies_page__tables_of_a_script__those_of_its_committed_rows(script, tmp_path):
    docs, copy = experiment_cases.EXAMPLES.parent / "docs", tmp_path / "studies.md"
    text = (docs / "studies.md").read_text(encoding="utf-8")
    copy.write_text(text, encoding="utf-8")
    script.main(["show", "--csv", str(docs / "data" / f"{script.__name__}.csv"), "--page", str(copy)])
    assert copy.read_text(encoding="utf-8") == text
