"""The examples of the guide "Working with other tools", run as they stand, with images and with texts.

Examples of packages that are not installed are skipped. CONTRIBUTING.md names the packages.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import skve

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "interop.md"
LABELS = np.array(["dark", "light"])[np.arange(24) % 2]


def examples():
    """Return the blocks of Python code below each heading of the guide."""
    sections = re.split(r"^## (.+)$", GUIDE.read_text("utf-8"), flags=re.MULTILINE)[1:]
    found = {
        title: re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        for title, text in zip(sections[::2], sections[1::2], strict=True)
    }
    return {title: blocks for title, blocks in found.items() if blocks}


@pytest.fixture(scope="module", params=["images", "texts"])
def case(request, tmp_path_factory):
    """A fitted classifier, and what it was fitted on: paths of dark and light pictures, or texts about them."""
    settings = {"n_members": 2, "layers": "last:1", "max_steps": 16, "batch_size": 12, "head_lr": 0.1}
    if request.param == "images":
        folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
        X = [str(folder / f"{index}.png") for index in range(24)]
        for path, label in zip(X, LABELS, strict=True):
            pixels = (60 if label == "dark" else 190) + rng.integers(-30, 30, (12, 12, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(path)
        clf = skve.SVEClassifier(image_size=32, random_state=0, **settings)
    else:
        pytest.importorskip("transformers", reason="texts require transformers")
        X = [f"{label} night {index}" for index, label in enumerate(LABELS)]
        clf = skve.SVETextClassifier(random_state=0, **settings)
    return clf.fit(X, LABELS), X


@pytest.fixture
def run(case, tmp_path, monkeypatch):
    """Return a function that runs the blocks below a heading in a folder of their own, and returns their names."""
    monkeypatch.chdir(tmp_path)
    clf, X = case

    def run(title, *packages, y=LABELS, files=None, **changes):
        for package in packages:
            pytest.importorskip(package, reason=f"{package} is not installed")
        names = {"__name__": "example", "skve": skve, "clf": clf, "X": X, "y": y, "X_val": X, "y_val": y}
        for block in examples()[title]:
            for old, new in changes.items():
                block = re.sub(rf"\b{old}=[^,)]+", f"{old}={new}", block)
            if files and "set_model" in block:
                Path(files).write_text(block, "utf-8")
            else:
                exec(compile(block, f"{GUIDE.name}: {title}", "exec"), names)
        return names

    return run


def test__examples__headings__each_is_tested():
    tested = set(re.findall(r'\brun\(\s*"([^"]+)"', Path(__file__).read_text("utf-8")))
    assert set(examples()) == tested


def test__pandas__example__one_row_an_item(run, case):
    table = run("pandas and polars", "pandas")["table"]
    assert list(table["X"]) == case[1]


class _Hopeless:
    """A trial that its study would end after the first round."""

    def suggest_float(self, name, low, high, log):
        return low

    def report(self, value, step):
        assert np.isfinite(value)

    def should_prune(self):
        return True


@pytest.mark.slow
def test__optuna__example__best_of_the_trials(run):
    names = run("Optuna", "optuna", n_trials=2)
    assert names["best"].get_params()["n_members"] == names["study"].best_params["n_members"]
    assert np.isfinite(names["pruned"].best_value)
    with pytest.raises(names["optuna"].TrialPruned):
        names["validation_nll"](_Hopeless())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # skore's own
def test__skore__example__metrics_and_view(run, case):
    names = run("skore", "skore")
    assert np.isfinite(names["report"].metrics.log_loss().to_numpy(dtype=float)).all()
    assert "SVE" in names["html"]


@pytest.mark.filterwarnings("ignore")
def test__skore__array_of_images__view_fails_as_the_guide_says():
    skore = pytest.importorskip("skore", reason="skore is not installed")
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    clf = skve.SVEClassifier(
        skve.testing.make_toy_image_backbone(), n_members=1, image_size=8, max_steps=1, random_state=0
    )
    report = skore.EstimatorReport(clf, X_train=images, y_train=LABELS[:8], X_test=images, y_test=LABELS[:8])
    assert np.isfinite(report.metrics.log_loss())
    with pytest.raises(ValueError, match="Found array with dim 4"):
        report._repr_html_()


@pytest.mark.slow
def test__cleanlab__example__finds_the_wrong_label(run):
    wrong = LABELS.copy()
    wrong[5] = "dark"
    assert run("cleanlab", "cleanlab", y=wrong)["suspects"][0] == 5


def test__mapie__example__a_set_for_each_item(run):
    names = run("MAPIE", "mapie")
    assert names["sets"].shape == (24, 2, 1)
    assert set(names["answers"]) <= {"dark", "light"}


def test__skops__example__same_predictions(run, case):
    clf, X = case
    loaded = run("skops", "skops")["loaded"]
    assert np.array_equal(loaded.predict_proba(X), clf.predict_proba(X))


def test__skops__any_estimator__no_other_types(case):
    skops_io = pytest.importorskip("skops.io", reason="skops is not installed")
    clf, X = case
    selective = skve.SelectiveClassifier(clf, prefit=True, accuracy=0.1).fit(X, LABELS)
    types = skops_io.get_untrusted_types(data=skops_io.dumps(selective))
    assert set(types) < set(skve.SKOPS_TYPES)
    assert len(types) == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test__mlflow__examples__estimator_and_table_come_back(run, case):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    mlflow.set_tracking_uri(f"sqlite:///{Path.cwd() / 'runs.db'}")
    clf, X = case
    names = run("MLflow", files="served.py")
    u = clf.predict_uncertainty(X)
    assert np.array_equal(names["u"].total, u.total)
    assert np.allclose(names["table"]["total"], u.total)
    assert list(names["table"]["prediction"]) == list(clf.predict(X))


def test__plain_files__same_fit__same_weights_of_the_same_names(case, tmp_path):
    clf, X = case
    clf.save(tmp_path / "model")
    clf.fit(X, LABELS).save(tmp_path / "again")
    first, second = (
        {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
        for folder in (tmp_path / "model", tmp_path / "again")
    )
    assert len(first) > 1
    assert first == second


@pytest.mark.slow
def test__dvc__example__folder_is_added_and_comes_back(case, tmp_path):
    if not (shutil.which("dvc") and shutil.which("git")):
        pytest.skip("dvc or git is not installed")
    clf, X = case
    commands = re.search(r"```sh\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)[1]
    clf.save(tmp_path / "model")
    shell = {"cwd": tmp_path, "check": True, "env": {**os.environ, "DVC_NO_ANALYTICS": "1"}, "capture_output": True}
    subprocess.run(["bash", "-ec", f"git init -q && dvc init -q\n{commands}"], **shell)
    shutil.rmtree(tmp_path / "model")
    subprocess.run(["dvc", "checkout", "-q"], **shell)
    assert np.array_equal(skve.load(tmp_path / "model").predict_proba(X), clf.predict_proba(X))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # distributed's own
def test__dask__example__search_and_table(run, case):
    names = run("Dask", "distributed")
    assert names["search"].best_params_["n_members"] in (2, 4)
    assert list(names["table"]["X"]) == case[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test__ray__example__table(run, case):
    clf, X = case
    table = run("Ray", "ray", num_cpus=1)["table"]
    assert list(table["X"]) == X
    assert np.allclose(table["total"], clf.predict_uncertainty(X).total, atol=0.01)  # other batches, in bfloat16
