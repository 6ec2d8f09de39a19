"""The experiment runner: studies parse, run end to end on toys, go on after a kill, and say what is wrong."""

import csv
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from experiment_cases import EXAMPLES, SMALL, STUDIES

import _data  # isort: skip
import _fits  # isort: skip
import run  # isort: skip
import table  # isort: skip
from _common import Table, measures  # isort: skip
from _study import Study  # isort: skip


def start(study, data_dir, csv_path, *more):
    return run.main([str(study), "--data-dir", str(data_dir), "--csv", str(csv_path), *more])


def rows_of(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def count_fits(monkeypatch):
    """Return a list that grows by the cells of each fit from now on."""
    fits, original = [], run.run_fit
    monkeypatch.setattr(run, "run_fit", lambda cells, options: fits.append(cells) or original(cells, options))
    return fits


# ------------------------------------------------------------------------------------------ the studies


def test__studies__all_that_are_promised__there():
    datasets = ("flowers_cnn", "flowers_vit", "clinc", "sst2")
    promised = {f"{kind}_{data}" for kind in ("main", "basis") for data in datasets}
    promised |= {"basis_signs_10", "basis_sst2_10", "directions_signs"}
    promised |= {f"labels_{data}" for data in ("signs", "cifar10", "sst2", "emotion", "flowers_vit")}
    promised |= {f"rates_lora_batch_{data}" for data in ("signs", "cifar10", "emotion")}
    promised |= {"rates_vit_flowers", "rates_vit_signs"}
    promised |= {f"{kind}_{data}" for kind in ("shift", "layers") for data in ("cifar10", "emotion")}
    promised |= {"transfer_cifar10", "transfer_flowers", "more_labels_cifar10", "variants_signs", "variants_emotion"}
    promised |= {"pretrained_signs", "pretrained_sst2", "layers_signs"}
    promised |= {
        "pretrained",
        "members",
        "rates",
        "default_rates",
        *(f"equal_rates_{data}" for data in datasets),
        "members_that_differ",
        "remedies",
        "remedies_clinc",
        "head_bootstrap",
    }
    promised |= {"paper_sst2_bert", "paper_arc_easy_llama2"}
    promised |= {"paper_flowers102_dino_vits16", "paper_flowers102_dinov2", "paper_pets_dinov2"}
    promised |= {"paper_cifar100_dinov2"}
    assert {path.stem for path in STUDIES} == promised


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test__study__each_file__is_valid_and_names_the_methods_that_it_compares(path):
    study = Study(path)
    assert len(study.methods) > 1
    assert study.question.endswith(("?", "."))
    if path.stem.startswith("main_"):
        kinds = {"sve", "scale", "single", "deep", "head", "lora", "batch", "dropout", "bias"}
        assert {own["ensemble"] for own in study.methods.values()} == kinds
        assert 4 <= study.n_trials <= 6
        assert study.tuning["n_members"] == 2
        assert len(study.test["seeds"]) == 3


def shrink(study, data_dir):
    """Return the changes that let a study run on a handful of items and a toy backbone."""
    known = Study(study)
    changes = ["common.max_epochs=1", "tuning.trials=1", "test.seeds=[0]", "common.n_members=2", "data.n_test=9"]
    changes += ["data.n_valid=6", "common.warmup=0.1"]
    if known.data["loader"] != "jsonl":
        backbone, size = ("random:test_resnet", 32) if "cnn" in study.stem else ("random:test_vit", 160)
        changes += [f"common.backbone={backbone}", f"common.image_size={size}"]
    else:
        folder = "decoder" if "llama" in study.stem else "encoder"
        changes += [f"common.backbone={data_dir / folder}"]
        changes += ["common.max_length=64"] * ("max_length" in known.common)
        changes += [f"methods.{name}.n_members=2" for name, own in known.methods.items() if "n_members" in own]
    changes += ["data.per_class=2"] * (known.data["per_class"] is not None)
    changes += ["data.near_classes=1"] * (known.data["near_classes"] > 0)
    changes += ["data.n_classes=3"] * (known.data["n_classes"] is not None)
    changes += ["factors.n_members=[1, 3]"] * ("n_members" in known.factors)
    changes += [f"methods.{name}.max_steps=2" for name in known.methods if name == OURS]
    return [part for change in changes for part in ("--set", change)]


OURS = "sve, defaults of skve"
QUICK = ("main_clinc", "main_flowers_cnn")
END_TO_END = [
    pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else [pytest.mark.slow])
    for path in STUDIES
    if path.stem.startswith(("main_", "paper_"))
]


@pytest.mark.parametrize("path", END_TO_END)
def test__run__study_on_a_handful_of_items__every_cell_with_its_measures(path, data_dir, tmp_path):
    out = tmp_path / "evidence.csv"
    assert start(path, data_dir, out, "--predictions", str(tmp_path / "kept"), *shrink(path, data_dir)) == 0
    rows = rows_of(out)
    study = Study(path)
    n_points = 2 if "n_members" in study.factors else 1
    assert {row["method"] for row in rows} == set(study.methods)
    assert len(rows) == n_points * len(study.methods)
    for row in rows:
        assert (row["status"], row["error"]) == ("ok", "")
        assert 0 <= float(row["accuracy"]) <= 1
        for name in ("nll", "brier", "ece", "nll_temperature", "ece_temperature", "aurc", "extra_percent"):
            assert np.isfinite(float(row[name])), name
        for shift in ("near", "far"):
            known = study.data[shift] is not None or (shift == "near" and study.data["near_classes"])
            several = int(row["n_members"]) > 1
            assert (row[f"{shift}_total"] != "") == bool(known)
            assert (row[f"{shift}_epistemic"] != "") == bool(known and several)
    paired = rows_of(tmp_path / "evidence_intervals.csv")
    assert {row["against"] for row in paired} == set(study.test["against"])
    pairs = {(row["factors"], frozenset((row["method"], row["against"])), row["metric"]) for row in paired}
    assert len(pairs) == len(paired)
    assert all(float(row["low"]) <= float(row["high"]) for row in paired)
    assert any("| sve " in line for lines in table.main_tables(table.read(out)) for line in lines)


# ------------------------------------------------------------------------------------------ the runner


def test__run__two_trials__the_better_on_validation_data_is_tested(small, data_dir, tmp_path):
    out = tmp_path / "e.csv"
    assert start(small, data_dir, out) == 0
    rows = rows_of(out)
    assert len(rows) == 3 * 2 + 3 * 2
    for method in ("deep", "single", "head"):
        tuned = [row for row in rows if (row["method"], row["stage"]) == (method, "tune")]
        tested = [row for row in rows if (row["method"], row["stage"]) == (method, "test")]
        assert {row["seed"] for row in tuned} == {"100"}
        best = min(tuned, key=lambda row: float(row["nll"]))
        assert {row["head_lr"] for row in tested} == {best["head_lr"]}
        assert {row["trials"] for row in rows} == {"2"}


def test__run__swept_members__fitted_once_for_all_numbers(small, data_dir, tmp_path, monkeypatch):
    fits = count_fits(monkeypatch)
    one = ("--set", "tuning.trials=1", "--set", "factors.n_members=[1, 2]", "--set", "test.seeds=[1]")
    assert start(small, data_dir, tmp_path / "e.csv", *one) == 0
    assert sorted(len(cells) for cells in fits) == [2, 2, 2]
    row = next(r for r in rows_of(tmp_path / "e.csv") if (r["method"], r["factors"]) == ("deep", "n_members=1"))
    study = Study(small, ["tuning.trials=1", "methods.deep.n_members=1"])
    cell = next(c for c in study.cells("test") if (c.method, c.seed) == ("deep", 1))
    parts = _data.load(cell.data, data_dir, 1)
    clf = _fits.make_classifier(cell, {"weights": data_dir}).fit(parts.X_train, parts.y_train)
    found = measures({"test": clf.predict_proba(parts.X_test)}, {}, parts.y_test, clf.classes_)
    assert float(row["nll"]) == pytest.approx(found["nll"], rel=1e-5)


def test__run__swept_strength__one_fit_judged_on_ever_more_corrupted_items(small, data_dir, tmp_path, monkeypatch):
    fits = count_fits(monkeypatch)
    one = ("--set", "tuning.trials=1", "--set", "factors.strength=[0, 5]", "--set", "test.seeds=[1]")
    assert start(small, data_dir, tmp_path / "e.csv", *one, "--methods", "deep") == 0
    assert [len(cells) for cells in fits] == [2]
    clean, corrupted = rows_of(tmp_path / "e.csv")
    assert (clean["factors"], corrupted["factors"]) == ("strength=0", "strength=5")
    assert clean["nll"] != corrupted["nll"]
    assert clean["near_total"] != corrupted["near_total"]
    assert clean["near_novelty"] != corrupted["near_novelty"]
    assert start(small, data_dir, tmp_path / "plain.csv", *one[:2], *one[4:], "--methods", "deep") == 0
    (plain,) = rows_of(tmp_path / "plain.csv")
    assert plain["settings"] == clean["settings"]
    assert plain["nll"] == clean["nll"]


DOMAINS = """
[data.domains.shared]
loader = "jpegs"
path = "flowers17_160px.npz"
n_test = 6
classes = { "iris" = "tulip", "daisy" = "tulip", "lily" = "lily" }

[data.domains.same]
loader = "arrays"
path = "cifar10_small.npz"
n_test = 12
classes = { "iris" = "iris", "crocus" = "crocus", "tulip" = "tulip", "daisy" = "daisy", "lily" = "lily" }

[data.domains.new]
loader = "jpegs"
path = "flowers17_160px.npz"
n_classes = 3
per_class = 2
n_valid = 6
n_test = 9
"""


def test__run__swept_domain__one_fit_judged_on_the_same_classes_elsewhere_and_on_new_ones(
    small, data_dir, tmp_path, monkeypatch
):
    fits = count_fits(monkeypatch)
    small.write_text(small.read_text() + DOMAINS)
    one = ("--set", "tuning.trials=1", "--set", "factors.domain=['own', 'same', 'shared', 'new']")
    one += ("--set", "data.near_classes=0", "--set", "test.seeds=[0]", "--methods", "deep")
    assert start(small, data_dir, tmp_path / "e.csv", *one, "--predictions", str(tmp_path / "kept")) == 0
    assert [len(cells) for cells in fits] == [4]
    rows = {row["factors"].removeprefix("domain="): row for row in rows_of(tmp_path / "e.csv")}
    assert [row["n_train"] for row in rows.values()] == ["15", "15", "15", "6"]
    assert [row["n_test"] for row in rows.values()] == ["12", "12", "6", "9"]
    for name in ("accuracy", "nll", "nll_temperature"):
        assert rows["own"][name] == rows["same"][name]
    assert len({row["nll"] for row in rows.values()}) == 3
    assert [("path" in row["settings"], "domains" in row["settings"]) for row in rows.values()] == [
        (True, name != "own") for name in rows
    ]
    (file,) = (tmp_path / "kept").glob("*/*domain=new*")
    with np.load(file) as kept:
        assert kept["members_test"].shape == (2, 9, 3)
        assert len(set(kept["classes"])) == 3


def test__cells__tuning__knows_neither_other_domains_nor_corrupted_items(small):
    small.write_text(small.read_text() + DOMAINS)
    study = Study(small, ["factors.domain=['own', 'new']", "data.strength=3"])
    assert {(cell.data["domain"], cell.data["strength"]) for cell in study.cells("tune")} == {("own", 0)}
    assert {(cell.data["domain"], cell.data["strength"]) for cell in study.cells("test")} == {("own", 3), ("new", 3)}
    assert len({cell.fit for cell in study.cells("tune")}) == study.n_trials * len(study.methods)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('data.domains.new.classes={"iris" = "lily"}', "either classes, names there = names here, or per_class"),
        ("data.domains.shared.classes={}", "either classes, names there = names here, or per_class"),
        ("data.domains.new.loader=jsonl", "data.domains.new.loader must be one of"),
        ("factors.domain=['nwe']", "The nearest is 'new'"),
        ("data.domain=nwe", "The nearest is 'new'"),
        ('data.domains.shared.classes={"rose" = "lily"}', "data.domains.shared.classes: flowers17_160px.npz has no"),
        (
            'data.domains.shared.classes={"lily" = "rose"}',
            "cifar10_small.npz has no known class 'rose'",
        ),
        ('data.domains.shared.classes={"lily" = 3}', "classes must be names there = names here"),
        ("data.domains.shared.n_classes=3", "must not have n_classes beside classes"),
        ("data.domains.new.per_class=50", "data.domains.new.per_class=50: class"),
        ("data.domains.new.per_class=1", "data.domains.new.per_class must be at least 2"),
        ("data.domains.new.n_classes=50", "data.domains.new: n_classes=50"),
        ("data.domains.own={}", "the name of a domain must have letters"),
        ("methods.head.of_factors=[]", "methods.head.of_factors must have domain"),
    ],
)
def test__run__wrong_domain__one_error_before_any_fit(small, data_dir, tmp_path, capsys, change, message):
    small.write_text(small.read_text() + DOMAINS)
    sweep = ("--set", "factors.domain=['shared', 'new']")
    with pytest.raises(SystemExit):
        start(small, data_dir, tmp_path / "e.csv", *sweep, "--set", change)
    assert message in capsys.readouterr().err


def test__run__trials_in_another_order__their_rows_still_count(small, data_dir, tmp_path, monkeypatch):
    out = tmp_path / "e.csv"
    assert start(small, data_dir, out) == 0
    fits = count_fits(monkeypatch)
    more = ("--set", "methods.deep.trials={head_lr=[1e-1, 1e-2]}")
    assert start(small, data_dir, out, *more) == 0
    assert not fits


def test__run__predictions_asked_for_later__finished_tests_are_fitted_again(small, data_dir, tmp_path, monkeypatch):
    out, kept = tmp_path / "e.csv", tmp_path / "kept"
    one = ("--set", "tuning.trials=1", "--set", "test.seeds=[0]")
    assert start(small, data_dir, out, *one) == 0
    fits = count_fits(monkeypatch)
    assert start(small, data_dir, out, *one, "--predictions", str(kept)) == 0
    assert len(fits) == 3
    before = rows_of(tmp_path / "e_intervals.csv")
    again = (*one, "--predictions", str(tmp_path / "new"), "--limit", "1")
    assert start(small, data_dir, out, *again) == 0
    assert rows_of(tmp_path / "e_intervals.csv") == before  # one method alone has no pair: the old ones stay


def test__run__interrupted_twice__every_cell_runs_once(small, data_dir, tmp_path, monkeypatch):
    out = tmp_path / "e.csv"
    fits = count_fits(monkeypatch)
    start(small, data_dir, out, "--limit", "2")
    assert len(fits) == 2
    original = run.run_fit

    def stopped(cells, options):
        if len(fits) == 5:
            raise KeyboardInterrupt
        return original(cells, options)

    monkeypatch.setattr(run, "run_fit", stopped)
    with pytest.raises(KeyboardInterrupt):
        start(small, data_dir, out)
    monkeypatch.setattr(run, "run_fit", original)
    assert start(small, data_dir, out) == 0
    identities = [cell.identity for cells in fits for cell in cells]
    assert len(identities) == len(set(identities)) == len(rows_of(out)) == 12
    before = len(fits)
    assert start(small, data_dir, out) == 0
    assert len(fits) == before


def test__run__last_line_half_written__cut_off_and_run_again(small, data_dir, tmp_path, monkeypatch):
    out = tmp_path / "e.csv"
    one = ("--set", "tuning.trials=1")
    start(small, data_dir, out, *one)
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:-1]) + lines[-1][:25])
    fits = count_fits(monkeypatch)
    assert start(small, data_dir, out, *one) == 0
    assert [cell.identity[:-1] for cells in fits for cell in cells] == [("small", "head", "", "test", "1")]
    rows = rows_of(out)
    assert len(rows) == 6
    assert all(None not in row and row["status"] == "ok" for row in rows)


def test__run__methods_chosen__only_they_are_fitted_and_intervals_have_all_that_is_finished(
    small, data_dir, tmp_path
):
    out, kept = tmp_path / "e.csv", ("--predictions", str(tmp_path / "kept"))
    one = ("--set", "tuning.trials=1", "--set", "test.seeds=[0]", *kept)
    assert start(small, data_dir, out, *one, "--methods", "head") == 0
    assert [row["method"] for row in rows_of(out)] == ["head"]
    assert start(small, data_dir, out, *one, "--methods", "deep") == 0
    assert {(row["method"], row["against"]) for row in rows_of(tmp_path / "e_intervals.csv")} == {("head", "deep")}
    for row in rows_of(out):
        assert float(row["fit_cpu_seconds"]) > 0
        assert 0 <= float(row["near_novelty"]) <= 1


def test__run__changed_setting__only_rows_with_the_present_settings_count(small, data_dir, tmp_path, monkeypatch):
    out = tmp_path / "e.csv"
    one = ("--set", "tuning.trials=1")
    start(small, data_dir, out, *one)
    fits = count_fits(monkeypatch)
    assert start(small, data_dir, out, *one, "--set", "methods.head.max_epochs=2") == 0
    assert {cell.method for cells in fits for cell in cells} == {"head"}
    assert len(rows_of(out)) == 8
    assert len(table.read(out)) == 6


def test__run__failing_cell__recorded_and_tried_again_while_the_others_go_on(small, data_dir, tmp_path, capsys):
    out = tmp_path / "e.csv"
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    backbones = 'factors.backbone=["random:test_resnet", "test_resnet@{weights}/broken.safetensors"]'
    more = ("--set", "tuning.trials=1", "--set", backbones, "--set", "test.seeds=[0]", "--weights", str(tmp_path))
    assert start(small, data_dir, out, *more) == 1
    rows = rows_of(out)
    assert [row["status"] for row in rows].count("failed") == 3
    assert [row["status"] for row in rows].count("ok") == 3
    failed = next(row for row in rows if row["status"] == "failed")
    assert failed["factors"] == "backbone=test_resnet@{weights}/broken.safetensors"
    assert "{weights}/broken.safetensors" in failed["error"]
    assert str(tmp_path) not in failed["error"]
    assert "3 cells finished, 3 failed, 0 to do" in capsys.readouterr().err
    assert start(small, data_dir, out, *more) == 1
    assert len(rows_of(out)) == 9


def test__run__all_trials_of_a_method_failed__it_has_no_test_and_others_have(small, data_dir, tmp_path):
    out = tmp_path / "e.csv"
    broken = ("--set", "methods.head.backbone=random:no_such_model", "--set", "test.seeds=[0]")
    assert start(small, data_dir, out, *broken) == 1
    tested = {row["method"] for row in rows_of(out) if row["stage"] == "test"}
    assert tested == {"deep", "single"}


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test__run__killed_process__goes_on_where_it_was(small, data_dir, tmp_path, monkeypatch, ending):
    out = tmp_path / "e.csv"
    script = str(EXAMPLES / "experiments" / "run.py")
    command = [sys.executable, script, str(small), "--data-dir", str(data_dir), "--csv", str(out)]
    with open(tmp_path / "log", "wb") as log, subprocess.Popen(command, stderr=log) as process:
        while not out.exists() or out.read_bytes().count(b"\n") < 3:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(ending)
    if ending == signal.SIGINT:
        assert process.returncode == 130
        assert (tmp_path / "log").read_text().endswith("goes on with the cells that are not finished\n")
    kept = Table(out, ()).rows
    fits = count_fits(monkeypatch)
    assert start(small, data_dir, out) == 0
    done = {tuple(row[name] for name in run.KEY) for row in kept}
    assert not done & {cell.identity for cells in fits for cell in cells if len(cells) == 1}
    assert len(rows_of(out)) >= 12


@pytest.mark.slow
def test__run__two_jobs_or_fresh_processes__the_same_figures_and_a_peak(small, data_dir, tmp_path):
    more = ("--set", "tuning.trials=1", "--set", "test.seeds=[0]")
    found = {}
    for name, options in {"plain": (), "jobs": ("--jobs", "2"), "fresh": ("--memory", "--jobs", "2")}.items():
        assert start(small, data_dir, tmp_path / f"{name}.csv", *more, *options) == 0
        found[name] = {row["method"]: row for row in rows_of(tmp_path / f"{name}.csv")}
    for name in ("jobs", "fresh"):
        for method, row in found["plain"].items():
            assert found[name][method]["nll"] == row["nll"]
    assert float(found["fresh"]["deep"]["peak_mib"]) > 0


# ------------------------------------------------------------------------------------------- bad input

WRONG = {
    "unknown section": ('comon = {}\n', "small: unknown key comon; the nearest known one is common"),
    "unknown key of data": (("per_class = 3", "per_clas = 3"), "data.per_clas; the nearest known one is per_class"),
    "unknown parameter": (("max_epochs = 1", "max_epoch = 1"), "unknown key common.max_epoch; .* max_epochs"),
    "unknown key of a method": (('ensemble = "head"', 'ensembl = "head"'), "methods.head.ensembl; .* ensemble"),
    "unknown rate": (("head_lr = [1e-2, 1e-1] }\n\n[methods.single", "headlr = [1, 2] }\n\n[methods.single"),
                     "methods.deep.trials.headlr; .* head_lr"),
    "wrong type": (("per_class = 3", 'per_class = "3"'), "data.per_class must be of type int, got '3'"),
    "negative number": (("n_valid = 8", "n_valid = -8"), "data.n_valid must be at least 1, got -8"),
    "missing key": (("n_valid = 8", ""), "data.n_valid is missing"),
    "unknown loader": (('loader = "arrays"', 'loader = "array"'), "data.loader must .* got 'array'. .* 'arrays'"),
    "unknown ensemble": (('ensemble = "head"', 'ensemble = "heads"'), "methods.head: .*'ensemble' parameter"),
    "wrong value": (("max_epochs = 1", "max_epochs = -1"), "'max_epochs' parameter .* Got -1"),
    "unknown option": (('ensemble = "deep"', 'ensemble = "deep"\nensemble_params = { rank = 3 }'),
                       "methods.deep: The options in ensemble_params of ensemble=.deep. must be among .* got ..rank"),
    "unequal trials": (("head_lr = [1e-2, 1e-1] }\n\n[methods.single", "head_lr = [1e-2] }\n\n[methods.single"),
                       "every method must have the same number of trials, got .*'deep': 1, 'single': 2, 'head': 2"),
    "unknown reference": (("seeds = [0, 1]", 'seeds = [0]\nagainst = ["deap"]'),
                          "test.against must .* got 'deap'. .* 'deep'"),
    "no seeds": (("seeds = [0, 1]", "seeds = []"), "test.seeds must be a list of integers, at least 0, got"),
    "negative seed": (("seeds = [0, 1]", "seeds = [-1]"), "test.seeds must be a list of integers, at least 0, got"),
    "broken file": (("[common]", "[common"), "is no TOML"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test__study__wrong_file__value_error_names_it(small, case):
    change, message = WRONG[case]
    text = change + SMALL if isinstance(change, str) else SMALL.replace(*change)
    assert text != SMALL
    small.write_text(text)
    with pytest.raises(ValueError, match=message):
        Study(small)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.per_clas=3", "unknown key data.per_clas"),
        ("factors.n_member=[1, 2]", "unknown key factors.n_member; the nearest known one is n_members"),
        ("factors.n_members=2", "factors.n_members must be a list of values, got 2"),
        ("factors.head_lr=[1e-2]", "methods.deep must not set head_lr, which factors sweep"),
        ('factors.per_class=["5"]', "factors.per_class must be of type int, got '5'"),
        ("factors.per_class=[0]", "factors.per_class must be at least 1, got 0"),
        ("data.n_valid=0", "data.n_valid must be at least 1, got 0"),
        ("factors.strength=[0, 6]", "factors.strength must be at most 5, got 6"),
        ("tuning.trials=0", "tuning.trials must be at least 1, got 0"),
        ("question.x=2", "question is a value, no section"),
        ("nothing", "must be section.key=value, got"),
    ],
)
def test__study__wrong_change__value_error_names_it(small, change, message):
    with pytest.raises(ValueError, match=message):
        Study(small, [change])


def test__study__missing_file__value_error_with_the_nearest(small):
    with pytest.raises(ValueError, match=r"no file .*smal.toml; did you mean small.toml\?"):
        Study(small.with_name("smal.toml"))


def test__study__factors_swept_together__pairs_and_not_products(small):
    study = Study(small, ['factors={"per_class, max_epochs" = [[2, 5], [3, 4]], n_members = [1, 2]}'])
    points = [(c.data["per_class"], c.parameters["max_epochs"], c.n_members) for c in study.cells("test")]
    assert {p for p in points if p[2] == 2} == {(2, 5, 2), (3, 4, 2)}
    with pytest.raises(ValueError, match="must be lists of 2 values"):
        Study(small, ['factors={"per_class, max_epochs" = [2, 3]}'])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.per_clas=3", "error: small: unknown key data.per_clas; the nearest known one is per_class"),
        ("factors.per_class=[3, 99]", "error: data.per_class=99: class 'crocus' of cifar10_small.npz has 8 training"),
        ("data.n_classes=9", "error: data: n_classes=9 and near_classes=1 of 5 classes"),
        ("data.path=none.npz", "error: data: there is no"),
        ('data.far={loader="arrays", path="cifar10_small.npz", split="x"}', "error: data: .* has no array x_x"),
    ],
)
def test__run__wrong_study_or_sizes_that_data_lack__one_error_before_any_fit(
    small, data_dir, tmp_path, change, message, capsys
):
    with pytest.raises(SystemExit):
        start(small, data_dir, tmp_path / "e.csv", "--set", change)
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "e.csv").exists()


def test__run__missing_weights__one_error_with_the_command_that_makes_them(data_dir, tmp_path, capsys):
    study = EXAMPLES / "experiments/studies/labels_flowers_vit.toml"
    sizes = ("--set", "data.per_class=2", "--set", "data.n_test=9", "--set", "data.n_valid=6")
    with pytest.raises(SystemExit):
        start(study, data_dir, tmp_path / "e.csv", *sizes)
    told = capsys.readouterr().err
    assert "there is no" in told
    assert "python examples/benchmarks/vit_weights.py WEIGHTS/vit_s14.safetensors" in told
    assert not (tmp_path / "e.csv").exists()


def test__run__missing_data__the_error_says_where_they_come_from(tmp_path, capsys):
    with pytest.raises(SystemExit):
        start(EXAMPLES / "experiments/studies/labels_cifar10.toml", tmp_path, tmp_path / "e.csv")
    assert "https://www.cs.toronto.edu/~kriz/cifar.html" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "n_fits"),
    [
        ("methods.deep.ensemble_params={order = 'own'}", 1),
        ("methods.deep.ensemble_params={diversity = 0.1}", 2),
        ("methods.deep.ensemble_params={folds = 2}", 2),
        ("data.loader='jsonl'", 2),  # texts have folds by default
        ("methods.deep.ensemble='snapshot'", 2),
        ("common.early_stopping=true", 2),
    ],
)
def test__cell_fit__members_that_are_coupled__have_fits_of_their_own(small, change, n_fits):
    study = Study(small, ["common={max_epochs=3}", "factors.n_members=[2, 3]", "test.seeds=[0]", change])
    assert len({cell.fit for cell in study.cells("test") if cell.method == "deep"}) == n_fits


def test__cells__method_with_a_part_of_common__takes_no_more(small):
    common = "common={max_epochs=3, batch_size=8}"
    study = Study(small, [common, 'methods.deep.of_common=["batch_size"]'])
    parameters = {cell.method: cell.parameters for cell in study.cells("test")}
    assert (parameters["deep"]["batch_size"], parameters["deep"].get("max_epochs")) == (8, None)
    assert (parameters["single"]["batch_size"], parameters["single"]["max_epochs"]) == (8, 3)
    with pytest.raises(ValueError, match=r"unknown key methods\.deep\.of_common\.backbon; the nearest known one is"):
        Study(small, [common, 'methods.deep.of_common=["backbon"]'])


def test__cells__method_without_factors__the_same_fit_at_every_point(small):
    changes = ["factors.batch_size=[4, 8]", "methods.deep.of_factors=[]"]
    cells = [cell for cell in Study(small, changes).cells("test") if cell.seed == 0]
    fits = {name: {cell.fit for cell in cells if cell.method == name} for name in ("deep", "head")}
    assert (len(fits["deep"]), len(fits["head"])) == (1, 2)
    with pytest.raises(
        ValueError, match=r"unknown key methods\.deep\.of_factors\.batchsize; the nearest known one is"
    ):
        Study(small, [*changes[:1], 'methods.deep.of_factors=["batchsize"]'])


@pytest.mark.parametrize("path", [path for path in STUDIES if path.stem.startswith("paper_")], ids=lambda p: p.stem)
def test__paper_study__method_with_the_defaults__differs_in_training_alone(path):
    study = Study(path)
    ours = {cell.seed: cell.parameters for cell in study.cells("test") if cell.method == OURS}[0]
    theirs = {cell.seed: cell.parameters for cell in study.cells("test") if cell.method == "sve"}[0]
    assert ours.keys() < theirs.keys()
    assert {name: theirs[name] for name in ours} == ours
    training = {"max_epochs", "warmup", "schedule", "batch_size", "grad_clip", "weight_decay", "head_weight_decay"}
    assert theirs.keys() - ours.keys() - {"augment"} == training | {"member_lr", "head_lr"}


def test__cells__options_in_trials__join_those_of_the_method(small):
    changes = ['methods.deep={ensemble="lora", ensemble_params={gain=2.0}, trials={"ensemble_params.rank"=[2, 4]}}']
    cells = [cell for cell in Study(small, changes).cells("tune") if cell.method == "deep"]
    assert [cell.parameters["ensemble_params"] for cell in cells] == [{"gain": 2.0, "rank": n} for n in (2, 4)]


@pytest.mark.parametrize("more", [("--jobs", "10000"), ("--threads", "0")])
def test__run__more_threads_than_cores__stops_at_once(small, data_dir, tmp_path, more, capsys):
    with pytest.raises(SystemExit):
        start(small, data_dir, tmp_path / "e.csv", *more)
    assert "must be from 1 to" in capsys.readouterr().err
