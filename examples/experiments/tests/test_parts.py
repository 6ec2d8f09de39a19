"""What the experiment runner is made of: data, measures, paired intervals, tables and pictures."""

import csv
import itertools
import re

import numpy as np
import pytest
from experiment_cases import EXAMPLES, STUDIES, write_lines
from matplotlib.figure import Figure
from PIL import Image

import skve
from skve.metrics import paired_bootstrap

import _corrupt  # isort: skip
import _data  # isort: skip
import _fits  # isort: skip
import _intervals  # isort: skip
import ood_scores  # isort: skip
import table  # isort: skip
from _common import Table, keep_predictions  # isort: skip
from _study import Study, digest_of, show  # isort: skip


# --------------------------------------------------------------------------------------- data, measures


def test__load__sizes_and_seeds__one_validation_part_one_test_part_and_unknown_classes_apart(small, data_dir):
    data = Study(small).data
    parts = {(n, seed): _data.load({**data, "per_class": n}, data_dir, seed) for n in (2, 5) for seed in (0, 1)}
    key = {name: [np.asarray(x).tobytes() for x in parts[name].X_valid] for name in parts}
    assert key[2, 0] == key[5, 0] != key[2, 1]
    for part in parts.values():
        assert np.array_equal(part.y_test, parts[2, 0].y_test)
        assert len(set(part.y_train)) == 4
        valid = {np.asarray(x).tobytes() for x in part.X_valid}
        assert len(valid) == 8
        assert not valid & {np.asarray(x).tobytes() for x in part.X_train}
        assert len(part.shifts["near"]) == 5
    assert np.bincount(np.unique(parts[5, 0].y_train, return_inverse=True)[1]).tolist() == [5] * 4


def test__load__rare_class__half_of_it_is_for_training(tmp_path):
    labels = ["a"] * 20 + ["b"] * 20 + ["c"] * 2
    for split in ("train", "test"):
        records = [{"split": split, "text": f"text {i}", "label": label} for i, label in enumerate(labels)]
        write_lines(tmp_path / f"{split}.jsonl.gz", records)
    path = next(path for path in STUDIES if path.stem == "main_sst2")
    data = {**Study(path).data, "path": "train.jsonl.gz", "n_valid": 30, "per_class": None, "far": None}
    parts = _data.load(data, tmp_path, 0, "valid")
    assert {label: (parts.y_train == label).sum() for label in "abc"} == {"a": 10, "b": 10, "c": 1}
    assert (parts.y_valid == "c").sum() == 1


@pytest.mark.parametrize("as_array", [False, True])
def test__corrupt__images__each_kind_moves_pixels_further_with_its_strength(as_array):
    rng = np.random.default_rng(0)
    pixels = np.asarray(Image.fromarray(rng.integers(256, size=(8, 8, 3)).astype(np.uint8)).resize((32, 32)))
    images = [pixels if as_array else Image.fromarray(pixels)] * 4
    assert _corrupt.corrupt(images, 0, texts=False) is images
    moved = np.array(
        [
            [np.abs(np.asarray(image, float) - pixels).mean() for image in changed]
            for changed in (_corrupt.corrupt(images, strength, texts=False) for strength in range(1, 6))
        ]
    )
    assert (moved[0] > 0).all()
    assert (np.diff(moved, axis=0) > 0).all()


def test__corrupt__texts__typing_errors_capitals_and_dropped_words():
    text = "the quick brown fox jumps over the lazy dog " * 5
    typos, capitals, dropped = _corrupt.corrupt([text] * 3, 3, texts=True)
    words = text.split()
    changed = [(old, new) for old, new in zip(words, typos.split(), strict=True) if old != new]
    assert changed
    assert all(sorted(old) == sorted(new) for old, new in changed)
    assert capitals != text
    assert capitals.lower().split() == words
    assert 0 < len(dropped.split()) < len(words)
    assert _corrupt.corrupt([text] * 3, 3, texts=True) == [typos, capitals, dropped]
    assert _corrupt.corrupt(["a", "b", "c"], 5, texts=True)[2] == "c"
    assert _corrupt.corrupt(["", "", ""], 5, texts=True) == ["", "", ""]


def test__corrupt__files_of_images__their_pixels_and_not_their_names(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(8, 8, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    from_files = _corrupt.corrupt([str(tmp_path / "a.png")] * 4, 3, texts=False)
    from_arrays = _corrupt.corrupt([pixels] * 4, 3, texts=False)
    for one, other in zip(from_files, from_arrays, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test__read_split__line_that_is_no_record__value_error_shows_what_is_wanted(tmp_path):
    write_lines(tmp_path / "t.jsonl.gz", [{"split": "train", "sentence": "one"}])
    with pytest.raises(ValueError, match=r"each line of .*t.jsonl.gz must be a record .*'text'"):
        _data.read_split("jsonl", tmp_path / "t.jsonl.gz", "train")


@pytest.mark.parametrize("loader", ["jpegs", "arrays", "jsonl"])
@pytest.mark.parametrize("damage", ["text", "cut", "folder", "other arrays"])
def test__read_split__file_that_is_damaged__value_error_names_it(loader, damage, tmp_path):
    file = tmp_path / ("t.jsonl.gz" if loader == "jsonl" else "t.npz")
    if damage == "folder":
        file.mkdir()
    elif loader == "jsonl":
        write_lines(file, [{"split": "train", "text": "one", "label": 1}] * 9)
        file.write_bytes(file.read_bytes()[:-20] if damage == "cut" else b"text")
    else:
        np.savez(file, x_train=np.zeros(3), jpeg_train=np.zeros(3, np.uint8))
        file.write_bytes({"cut": file.read_bytes()[:-200], "text": b"image"}.get(damage, file.read_bytes()))
    with pytest.raises(ValueError, match=re.escape(str(file))):
        _data.read_split(loader, file, "train")


def test__load__judged_on_validation__reads_no_test_split(small, data_dir):
    data = {**Study(small).data, "test": "no such split"}
    parts = _data.load(data, data_dir, 0, "valid")
    assert np.array_equal(parts.y_test, parts.y_valid)
    with pytest.raises(ValueError, match="has no array x_no such split; it has"):
        _data.load(data, data_dir, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "missing.npz"}, "there is no .*missing.npz"),
        ({"near_classes": 4}, "near_classes=4 of 5 classes .* at least 2 must stay known"),
        ({"per_class": 7}, "data.per_class=7: class 'crocus' .* has 8 training items, of which 2 are for validation"),
        ({"loader": "jsonl", "path": "sst2.jsonl.gz", "train": "tran"}, "nothing in the split 'tran'"),
    ],
)
def test__load__what_is_not_there__value_error_names_it(small, data_dir, changes, message):
    with pytest.raises(ValueError, match=message):
        _data.load({**Study(small).data, **changes}, data_dir, 0)


@pytest.mark.parametrize("ensemble", ["deep", "dropout", "head", "sve", "snapshot"])
def test__extra_percent__each_kind__counts_what_is_kept_beyond_one_network(small, data_dir, ensemble):
    cell = Study(small, [f"methods.head.ensemble={ensemble}", "common.n_members=3", "common.max_epochs=3"]).cells(
        "test"
    )[-1]
    parts = _data.load(cell.data, data_dir, 0)
    clf = _fits.make_classifier(cell, {"weights": data_dir}).fit(parts.X_train, parts.y_train)
    module = clf._load_backbone(clf._state.spec, clf.preprocess_).module
    size = sum(p.numel() for p in module.parameters())
    head = 4 * (clf._state.n_features + 1)
    expected = {"deep": 2 * (size + head), "snapshot": 2 * (size + head), "dropout": 0, "head": 2 * head}
    if ensemble == "sve":
        expected["sve"] = 3 * sum(ratios.shape[1] for ratios in clf.ratios_.values()) + 2 * head
    assert _fits.extra_percent(clf, 3) == pytest.approx(100 * expected[ensemble] / size)


def test__make_classifier__random_text_backbone__untrained_and_the_same_each_time(data_dir):
    path = next(path for path in STUDIES if path.stem == "main_sst2")
    study = Study(path, [f"common.backbone=random:{data_dir / 'encoder'}"])
    clf = _fits.make_classifier(study.cells("test")[0], {"weights": data_dir})
    models = [clf._load_backbone(clf.backbone, classes=["0", "1"]).module.state_dict() for _ in range(2)]
    trained = skve.SVETextClassifier(str(data_dir / "encoder"))._load_backbone(str(data_dir / "encoder")).module
    name = next(name for name in models[0] if name.endswith("query.weight"))
    assert np.array_equal(models[0][name], models[1][name])
    assert not np.array_equal(models[0][name], trained.state_dict()[name])


@pytest.mark.parametrize(
    ("method", "expected"),
    [("sve", (0.01, 0.2)), ("lora", (1e-4, 1e-2)), ("head", ("", 0.2))],
)
def test__rates__none_in_the_study__those_of_the_estimator(data_dir, tmp_path, method, expected):
    changes = [f"methods={{{method}={{ensemble='{method}'{', head_lr=0.2' if method != 'lora' else ''}}}}}"]
    study = Study(STUDIES[0].with_name("main_sst2.toml"), [*changes, "test.against=[]", "common={}"])
    found = _fits.rates_of(study.cells("test")[0], {"weights": data_dir})
    assert (found["member_lr"], found["head_lr"]) == expected


# ------------------------------------------------------------------------------------ intervals, tables


def keep(folder, method, seed, rng, sharpness, truth):
    logits = rng.normal(size=(2, len(truth), 3)) + sharpness * np.eye(3)[truth]
    other = rng.normal(size=(2, 40, 3))
    members = {"test": logits, "valid": logits, "far": other}
    members = {k: np.exp(v) / np.exp(v).sum(-1, keepdims=True) for k, v in members.items()}
    labels = {"test": truth, "valid": truth}
    keep_predictions(folder / f"toys_{method}_{seed}.npz", members, labels, np.arange(3))
    return members["test"].mean(0), members["far"].mean(0)


def test__differences__two_methods__as_the_paired_bootstrap_of_the_package(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.integers(3, size=80)
    proba = {name: [keep(tmp_path, name, s, rng, w, truth) for s in range(3)] for name, w in (("a", 2), ("b", 1))}
    read = {name: {s: _intervals.read(tmp_path / f"toys_{name}_{s}.npz") for s in range(3)} for name in proba}
    found = {row["metric"]: row for row in _intervals.differences(read["a"], read["b"])}
    one, other = (np.stack([test for test, _ in proba[name]]) for name in ("a", "b"))

    def nll(y, p):
        return -np.log(p[np.arange(len(y)), y]).mean()

    expected = paired_bootstrap(nll, truth, one, other, n_resamples=2000, random_state=0)
    assert float(found["nll"]["estimate"]) == pytest.approx(expected.estimate, rel=1e-4)
    assert float(found["nll"]["low"]) == pytest.approx(expected.low, abs=0.05)
    assert float(found["nll"]["high"]) == pytest.approx(expected.high, abs=0.05)

    def judge(pooled, foreign):
        members = {"test": pooled[None], "valid": pooled[None], "far": foreign[None]}
        return _fits.judge(members, {"test": truth, "valid": truth}, np.arange(3), calibrated=True)

    judged = {name: [judge(*kept) for kept in runs] for name, runs in proba.items()}
    for metric in ("accuracy", "brier", "ece", "nll_temperature", "far_total"):
        one, other = (np.mean([values[metric] for values in judged[name]]) for name in ("a", "b"))
        assert float(found[metric]["estimate"]) == pytest.approx(one - other, abs=1e-5)
        assert (found[metric]["n_seeds"], found[metric]["n_items"]) == (3, 80)
    assert "nll_temperature" not in _intervals.read(tmp_path / "toys_a_0.npz", calibrated=False)


def test__judge__temperature_of_the_fit__its_prediction_is_judged_and_members_are_uncertain_as_they_are(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.integers(3, size=60)
    logits = {"test": rng.normal(size=(4, 60, 3)) + np.eye(3)[truth], "far": rng.normal(size=(4, 30, 3))}
    members = {k: np.exp(v) / np.exp(v).sum(-1, keepdims=True) for k, v in logits.items()}
    members["valid"], labels = members["test"], {"test": truth, "valid": truth}
    plain, tempered = (_fits.judge(members, labels, np.arange(3), True, t) for t in (1.0, 2.0))
    assert {plain[k] == tempered[k] for k in ("far_total", "far_epistemic", "accuracy")} == {True}
    powers = np.sqrt(members["test"].mean(axis=0))
    expected = -np.log((powers / powers.sum(1, keepdims=True))[np.arange(60), truth])
    assert tempered["nll"] == pytest.approx(expected.mean())
    each = [_fits.judge({**members, "test": m[None]}, labels, np.arange(3), False)["nll"] for m in members["test"]]
    assert plain["nll_mean_member"] == pytest.approx(np.mean(each))
    assert plain["nll_first"] == pytest.approx(each[0])
    assert plain["nll"] < plain["nll_first_two"] < plain["nll_mean_member"]
    keep_predictions(tmp_path / "kept.npz", members, labels, np.arange(3), temperature=2.0)
    kept = _intervals.read(tmp_path / "kept.npz")
    np.testing.assert_allclose(kept["nll"], expected)
    assert kept["nll_temperature"].mean() == pytest.approx(tempered["nll_temperature"])


def test__committed_rows__have_the_columns_that_runs_add_to():
    for name in ("evidence.csv", "evidence_0.2.csv"):
        Table(EXAMPLES.parent / "docs" / "data" / name, ()).check(_fits.COLUMNS)


def test__differences__other_test_items__value_error(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.integers(3, size=20)
    keep(tmp_path, "a", 0, rng, 1, truth)
    keep(tmp_path, "b", 0, rng, 1, truth[::-1])
    one, other = ({0: _intervals.read(tmp_path / f"toys_{name}_0.npz")} for name in ("a", "b"))
    with pytest.raises(ValueError, match="cannot be paired"):
        _intervals.differences(one, other)


def row(method, seed, **values):
    known = {"study": "s", "data": "toys", "method": method, "factors": "", "stage": "test", "seed": str(seed)}
    known |= {
        "status": "ok",
        "trial": "",
        "sitting": "x",
        "threads": "1",
        "jobs": "1",
        "member_lr": "",
        "head_lr": "0.1",
    }
    return {name: str({**known, **values}.get(name, "")) for name in _fits.COLUMNS}


def test__main_tables__rows__best_in_bold_and_times_of_one_sitting_only():
    rows = [row("deep", s, nll=0.5 + s / 10, accuracy=0.8, fit_seconds=10.0, sitting=s) for s in (0, 1)]
    rows += [row("sve", s, nll=0.3 + s / 10, accuracy=0.8, fit_seconds=4.0, sitting=0) for s in (0, 1)]
    quality, costs = table.main_tables(rows)
    assert quality[0] == "| method | accuracy % | NLL | seeds | member / head rate |"
    assert quality[2:] == [
        "| deep | **80.0** ± 0.0 | 0.550 ± 0.071 | 2 | - / 0.1 |",
        "| sve | **80.0** ± 0.0 | **0.350** ± 0.071 | 2 | - / 0.1 |",
    ]
    assert costs == ["| method | fit / deep |", "|---|---|", "| deep | 1.00 |", "| sve | 0.40 |"]


def test__paper_table__studies_of_the_paper__its_figures_beside_those_of_the_rows():
    rows = [row("sve", s, study="paper_pets_dinov2", accuracy=0.9, ece=0.01) for s in (0, 1)]
    rows += [row("sve, defaults of skve", 0, study="paper_pets_dinov2", accuracy=0.95, ece=0.02)]
    assert table.paper_table(rows) == [
        "|  | method | accuracy % | ECE % |",
        "|---|---|---|---|",
        "| here | sve | 90.0 ± 0.0 | 1.0 ± 0.0 |",
        "| here | sve, defaults of skve | 95.0 | 2.0 |",
        "| paper | deep | 89.2 | 13.3 |",
        "| paper | lora | 86.1 | 9.0 |",
        "| paper | sve | 90.1 | 2.2 |",
    ]
    assert table.paper_table([row("sve", 0, accuracy=0.9)]) == []
    assert "Compared with the figures of arXiv 2601.22068" in table.report(None, rows, [])


def test__table__csv_and_intervals__prints_tables_and_draws(tmp_path, capsys):
    out = tmp_path / "e.csv"
    rows = Table(out, ())
    for n, method, seed in ((n, m, s) for n in (20, 5) for m in ("deep", "sve") for s in (0, 1)):
        rows.add(row(method, seed, factors=f"per_class={n} max_epochs={60 // n}", nll=0.5 + n / 100, ece=0.1))
    with open(tmp_path / "e_intervals.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, _intervals.COLUMNS)
        writer.writeheader()
        values = {"metric": "ece", "estimate": -0.02, "low": -0.03, "high": -0.01, "method": "sve", "against": "deep"}
        values |= {"study": "s", "factors": "per_class=5 max_epochs=12", "n_seeds": 2}
        writer.writerow({**values, "settings": f"{digest_of('')} {digest_of('')}"})
        writer.writerow({**values, "metric": "nll", "settings": f"{digest_of('{}')} {digest_of('')}"})
        writer.writerow({**values, "metric": "nll", "settings": f"{digest_of('')} {digest_of('')}", "n_seeds": 1})
    table.main(["--csv", str(out), "--pictures", str(tmp_path / "pictures")])
    captured = capsys.readouterr()
    shown = captured.out
    assert shown.index("| per_class=5 max_epochs=12 | deep |") < shown.index("| per_class=20 max_epochs=3 | deep |")
    assert "| difference | ECE % |" in shown
    assert "| sve less deep | **-2.0 (-3.0 to -1.0)** |" in shown
    assert "2 differences of other settings or seeds" in captured.err
    assert Image.open(tmp_path / "pictures" / "s.png").width > 300
    page = tmp_path / "page.md"
    page.write_text("Before.\n<!-- s -->\nold\n<!-- end of s -->\nAfter.\n")
    table.main(["--csv", str(out), "--page", str(page)])
    found = page.read_text()
    assert found.startswith("Before.\n<!-- s -->\n")
    assert found.endswith("|\n<!-- end of s -->\nAfter.\n")
    assert "old" not in found
    page.write_text("Before.\n<!-- s -->\nAfter.\n")
    with pytest.raises(SystemExit):
        table.main(["--csv", str(out), "--page", str(page)])
    assert page.read_text() == "Before.\n<!-- s -->\nAfter.\n"
    with pytest.raises(SystemExit):
        table.main(["--csv", str(out), "--study", "t"])
    assert "--study t: the CSV has tests of ['s']" in capsys.readouterr().err


def test__verdict__pairs_in_either_direction__better_worse_or_level():
    def pair(method, against, metric, estimate, low, high):
        known = {"study": "main_a", "factors": "", "method": method, "against": against, "metric": metric}
        return known | {"estimate": estimate, "low": low, "high": high}

    rows = [
        pair("sve", "deep", "nll", "-0.02", "-0.03", "-0.01"),
        pair("head", "sve", "nll", "-0.02", "-0.03", "-0.01"),
        pair("sve", "deep", "far_total", "0.1", "-0.1", "0.3"),
        pair("head", "sve", "far_total", "-0.1", "-0.2", "-0.05"),
        pair("head", "deep", "nll", "1", "1", "1"),
        pair("head", "sve", "nll", "-0.01", "-1", "1") | {"factors": "per_class=5"},
    ]
    assert table.verdict(rows, "sve", "main") == [
        "|  | sve less | a | a per_class=5 |",
        "|---|---|---|---|",
        "| NLL | deep | **better** -0.020 |  |",
        "| NLL | head | *worse* +0.020 | level +0.010 |",
        "| far, total | deep | level +0.100 |  |",
        "| far, total | head | **better** +0.100 |  |",
    ]


def test__table__rows_of_other_settings_than_the_study_has__says_so(tmp_path, capsys):
    study = Study(STUDIES[0].with_name("rates.toml"))
    cell = study.cells("test")[0]
    for settings in ("{}", cell.settings):
        out = tmp_path / f"{len(settings)}.csv"
        Table(out, ()).add(row("sve", 0, study="rates", factors=show(cell.factors), nll=0.5, settings=settings))
        table.main(["--csv", str(out)])
        assert ("1 of 1 rows were made with other settings than rates.toml has" in capsys.readouterr().out) == (
            settings == "{}"
        )


def test__read__study_without_a_file__rows_of_the_last_settings_alone(tmp_path):
    out = tmp_path / "e.csv"
    for seed, settings in ((0, "old"), (1, "old"), (0, "new")):
        Table(out, ()).add(row("sve", seed, study="mine", nll=0.5, settings=settings))
    assert [(found["seed"], found["settings"]) for found in table.read(out)] == [("0", "new")]


def test__table__folder_of_studies__their_questions_and_the_order_of_their_factors_and_methods(tmp_path, capsys):
    text = '[common]\nensemble = "sve"\n[factors]\nlayers = ["mlp", "all"]\n[methods.b]\n[methods.a]\n'
    data = 'name = "toys"\nloader = "arrays"\npath = "toys.npz"\nn_valid = 1\nn_test = 1\n'
    (tmp_path / "mine.toml").write_text(f'question = "Which?"\n[data]\n{data}{text}')
    out = tmp_path / "e.csv"
    for cell in reversed(Study(tmp_path / "mine.toml").cells("test")):
        Table(out, ()).add(
            row(cell.method, cell.seed, study="mine", factors=show(cell.factors), nll=0.5, settings=cell.settings)
        )
    table.main(["--csv", str(out), "--studies", str(tmp_path), "--pictures", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "Which?" in shown
    places = [shown.index(f"| {factors} | {method} |") for factors in ("layers=mlp", "layers=all") for method in "ba"]
    assert places == sorted(places)


def test__plot__label_that_the_last_panel_lacks__in_the_legend_with_one_colour(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: figures.append(self))
    rows = [
        row("sve", 0, factors="domain=other", nll=0.5),
        row("sve", 0, factors="domain=own", nll=0.5, far_total=0.9),
    ]
    table.plot(rows, tmp_path / "p.png")
    colours = {}
    for axis in figures[0].axes:
        for line, label in zip(*axis.get_legend_handles_labels(), strict=True):
            colours.setdefault(label, set()).add(line[0].get_color())
    assert {label: len(known) for label, known in colours.items()} == {"domain=other": 1, "domain=own": 1}
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["domain=other", "domain=own"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("a,b\n1,2\n", "is no table of run.py"), (",".join(_fits.COLUMNS) + "\n", "has no finished tests")],
)
def test__table__csv_without_tests__error(text, message, tmp_path, capsys):
    (tmp_path / "e.csv").write_text(text)
    with pytest.raises(SystemExit):
        table.main(["--csv", str(tmp_path / "e.csv")])
    assert message in capsys.readouterr().err


def test__csv_table__other_columns_than_the_file__value_error(tmp_path):
    Table(tmp_path / "t.csv", ("a",)).add({"a": 1, "b": 2})
    with pytest.raises(ValueError, match=r"has the columns \['a', 'b'\]; a row to be added has \['a'\]"):
        Table(tmp_path / "t.csv", ("a",)).add({"a": 1})


@pytest.mark.parametrize(
    ("page", "rows", "verdicts"),
    [
        ("evidence-0.1.md", "evidence.csv", ("main=sve", "basis=singular")),
        ("evidence.md", "evidence_0.2.csv", ("labels=sve", "basis=singular")),
        ("studies.md", "studies_0.2.csv", ()),
    ],
)
def test__evidence_page__its_tables__are_those_of_the_committed_rows(tmp_path, page, rows, verdicts):
    docs, copy = EXAMPLES.parent / "docs", tmp_path / page
    text, rows = (docs / page).read_text(encoding="utf-8"), docs / "data" / rows
    copy.write_text(text, encoding="utf-8")
    compared = ["--verdict", *verdicts] if verdicts else []
    table.main(["--csv", str(rows), *compared, "--page", str(copy)])
    assert copy.read_text(encoding="utf-8") == text
    assert "other settings" not in text
    for study in {row["study"] for row in table.read(rows)}:
        assert f"<!-- {study} -->\n" in text
        assert f"<!-- end of {study} -->" in text
        if page != "evidence.md":
            assert (docs / "pictures" / f"{study}.png").is_file()


def test__ood_scores__kept_predictions__a_line_for_each_method(tmp_path, capsys):
    rng = np.random.default_rng(0)
    truth = rng.integers(3, size=20)
    for method, seed in itertools.product("ab", range(2)):
        keep(tmp_path, method, f"{seed}_0123abcd", rng, 3, truth)
    ood_scores.main([str(tmp_path)])
    header, _, *lines = capsys.readouterr().out.splitlines()
    assert header.startswith("| foreign | data, method | total | aleatoric | epistemic | first member |")
    assert [line.split(" | ")[1] for line in lines] == ["toys a", "toys b"]
    assert all(0.5 < float(line.split(" | ")[2]) <= 1 for line in lines)
    with pytest.raises(SystemExit):
        ood_scores.main([str(tmp_path / "none")])
    assert "no predictions of several members" in capsys.readouterr().err
