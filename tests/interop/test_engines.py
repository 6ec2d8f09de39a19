"""Searches and scoring on Dask, Ray and Spark, which the tests start on this machine.

Without its package, an engine's tests are skipped.
"""

import functools
import os
import pathlib
import pickle
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

import skve
from skve._backbones import decomposition
from skve.testing import make_toy_text_backbone
from tests.toys import image_files, toy_classifier, toy_images

ROOT = pathlib.Path(__file__).parents[2]
with pytest.MonkeyPatch.context() as _patch:
    _patch.syspath_prepend(ROOT / "examples")  # which import one another
    ENGINES = runpy.run_path(str(ROOT / "examples" / "score_engines.py"))
    SEARCHES = runpy.run_path(str(ROOT / "examples" / "search_engines.py"))
PACKAGES = {"dask": ("distributed", "pyarrow"), "ray": ("ray", "pyarrow"), "spark": ("pyspark", "pyarrow")}
ROWS, ROWS_IN_PART = 120, 5


def needs(engine):
    for package in PACKAGES[engine]:
        pytest.importorskip(package, reason=f"{package} is not installed")
    if engine == "spark" and shutil.which("java") is None:
        pytest.skip("Spark needs Java")


@pytest.fixture(scope="module")
def paths():
    """The tests' modules for workers, one thread for each, and the number of the process that has them."""
    known = os.environ.get("PYTHONPATH", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *([known] if known else [])]))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("SKVE_TEST_DRIVER", str(os.getpid()))
        yield


# ----------------------------------------------------------------------------------------------- searches


class CountedClassifier(skve.SVETextClassifier):
    """Counts how often the process decomposes a weight, from its first fit on."""

    def fit(self, X, y):
        if not hasattr(decomposition, "n_calls"):
            decompose, decomposition.n_calls = decomposition.decompose, 0

            @functools.wraps(decompose)
            def counted(*arguments):
                decomposition.n_calls += 1
                return decompose(*arguments)

            decomposition.decompose = counted
        return super().fit(X, y)


def accuracy_in_a_worker(estimator, X, y):
    """Return the accuracy, where this is a worker that decomposed each layer once in all its fits."""
    if os.environ["SKVE_TEST_DRIVER"] == str(os.getpid()):
        raise AssertionError("the fit did not leave the process of the search")
    n_layers = len(estimator._state.layers)
    if decomposition.n_calls != n_layers:
        raise AssertionError(f"{decomposition.n_calls} decompositions of {n_layers} layers")
    return estimator.score(X, y)


@pytest.fixture
def task_sizes(monkeypatch):
    """The size in bytes of each task that joblib hands to an engine."""
    sizes, dispatch = [], joblib.Parallel._dispatch

    def measured(self, batch):
        sizes.extend(len(pickle.dumps(task)) for task in batch.items)
        return dispatch(self, batch)

    monkeypatch.setattr(joblib.Parallel, "_dispatch", measured)
    return sizes


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the engines' own
@pytest.mark.parametrize("engine", ["dask", "ray"])
def test__searches__on_a_cluster__same_scores_one_decomposition_a_worker_and_no_weights_in_tasks(
    paths, task_sizes, tmp_path, engine
):
    needs(engine)
    model, tokenizer = make_toy_text_backbone(hidden_size=128, num_hidden_layers=2)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size > 500_000
    X, y = ["yes it is", "no it is not", "yes yes", "not so"] * 6, [1, 0, 1, 0] * 6
    settings = {"max_steps": 6, "n_members": 2, "random_state": 0, "precision": "float32"}
    searches = SEARCHES["SEARCHES"]
    here = {
        name: searches[name](skve.SVETextClassifier(str(tmp_path), **settings), X, y, "accuracy") for name in searches
    }
    task_sizes.clear()
    with SEARCHES["workers"](engine, 2):
        clf = CountedClassifier(str(tmp_path), **settings)
        there = {name: searches[name](clf, X, y, accuracy_in_a_worker) for name in searches}
    for name in searches:
        np.testing.assert_array_equal(here[name], there[name])
    assert len(task_sizes) == 9 + 12 + 3
    assert max(task_sizes) < 10_000


@pytest.mark.parametrize("cls", [skve.SVEClassifier, skve.SVETextClassifier])
def test__pickle__estimator_of_a_search__no_weights(cls):
    assert len(pickle.dumps(clone(cls(n_members=8)))) < 5000


# ------------------------------------------------------------------------------------------------- scoring


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a model of texts, and a table of them in files of five rows."""
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    folder = tmp_path_factory.mktemp("engines")
    texts = [f"{'good' if index % 2 else 'bad'} night {index}" for index in range(ROWS)]
    labels = ["light" if index % 2 else "dark" for index in range(ROWS)]
    settings = {"n_members": 2, "layers": "last:1", "max_steps": 4, "batch_size": 8, "random_state": 0}
    skve.SVETextClassifier(**settings).fit(texts[:16], labels[:16]).save(folder / "model")
    (folder / "texts").mkdir()
    for start in range(0, ROWS, ROWS_IN_PART):
        part = pd.DataFrame({"text": texts[start : start + ROWS_IN_PART]})
        part.to_parquet(folder / "texts" / f"{start:03d}.parquet")
    return folder / "model", folder / "texts", texts


@pytest.fixture(scope="module")
def saved_images(tmp_path_factory):
    """A folder with a model of images, and a folder of them."""
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    folder = tmp_path_factory.mktemp("images")
    X, y = toy_images()
    settings = {"image_size": 32, "layers": "last:1", "max_epochs": 1}
    toy_classifier("bundled:efficientnet_lite0", **settings).fit(X, y).save(folder / "model")
    (folder / "photos" / "of" / "today").mkdir(parents=True)
    files = image_files(X, folder / "photos" / "of" / "today")
    (folder / "photos" / "notes.txt").write_text("no photograph")
    return folder / "model", folder / "photos", list(map(str, files))


def check(scores, model, items, column):
    """Check that each item has one row, with what the model predicts here."""
    found = pd.read_parquet(scores).set_index(column)
    assert sorted(found.index) == sorted(items)
    found, clf = found.loc[items], skve.load(model)
    np.testing.assert_allclose(found.filter(like="p("), clf.predict_proba(items), atol=0.01)
    uncertainty = clf.predict_uncertainty(items)
    for name in ("total", "epistemic", "novelty"):
        np.testing.assert_allclose(found[name], getattr(uncertainty, name), atol=0.02)
    assert (found["class"].astype(str) == clf.predict(items).astype(str)).mean() > 0.9


def start(engine, model, items, scores, *options):
    command = [sys.executable, "-W", "ignore", str(ROOT / "examples" / "score_engines.py"), engine]
    command += [str(model), str(items), str(scores), "--rows", str(ROWS_IN_PART), *options]
    return subprocess.Popen(command, start_new_session=True)


@pytest.mark.slow
@pytest.mark.parametrize("engine", PACKAGES)
def test__score__folder_of_images__each_once_with_the_models_predictions(paths, saved_images, tmp_path, engine):
    needs(engine)
    model, photos, files = saved_images
    assert start(engine, model, photos, tmp_path / "scores", "--column", "path").wait(300) == 0
    check(tmp_path / "scores", model, files, "path")


def descendants(pid):
    """Return the processes that a process started, and those that they started, with their command lines."""
    found = {}
    for child in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        for own in map(int, child.read_text().split()):
            found[own] = pathlib.Path(f"/proc/{own}/cmdline").read_text().replace("\0", " ")
            found |= descendants(own)
    return found


def wait_for_scores(process, scores):
    """Wait until an engine is in the midst of its work."""
    while process.poll() is None and not any(scores.rglob("*.parquet")):
        time.sleep(0.01)
    assert process.poll() is None


WORKERS = {"dask": "spawn_main", "ray": "ray::MapWorker", "spark": "pyspark.daemon"}  # the last of several


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/task").exists(), reason="needs Linux")
@pytest.mark.parametrize("engine", PACKAGES)
def test__score__worker_that_is_killed__nothing_lost_or_doubled(paths, saved, tmp_path, engine):
    needs(engine)
    model, texts, items = saved
    process = start(engine, model, texts, tmp_path / "scores")
    wait_for_scores(process, tmp_path / "scores")
    workers = [pid for pid, command in descendants(process.pid).items() if WORKERS[engine] in command]
    os.kill(workers[-1], signal.SIGKILL)
    assert process.wait(300) == 0
    assert not pathlib.Path(f"/proc/{workers[-1]}").exists()
    check(tmp_path / "scores", model, items, "text")


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/task").exists(), reason="needs Linux")
def test__score__run_that_is_killed__the_next_one_starts_anew(paths, saved, tmp_path):
    needs("dask")
    model, texts, items = saved
    process = start("dask", model, texts, tmp_path / "scores")
    wait_for_scores(process, tmp_path / "scores")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert start("dask", model, texts, tmp_path / "scores").wait(300) == 0
    check(tmp_path / "scores", model, items, "text")


# ------------------------------------------------------------------------------------------- what is missing


@pytest.mark.parametrize("engine", PACKAGES)
def test__score__package_that_is_missing__import_error_names_the_extra(monkeypatch, engine):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf"not installed\. Run pip install '.\[{engine}\]'"):
        ENGINES["check"](engine, None)


def test__score__spark_without_java__error(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(FileNotFoundError, match="spark requires Java 17 or newer, got none on the PATH"):
        ENGINES["check"]("spark", None)


@pytest.mark.parametrize("engine", ["dask", "ray"])
def test__search__package_that_is_missing__import_error_names_the_extra(monkeypatch, engine):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf"not installed\. Run pip install '.\[{engine}\]'"):
        SEARCHES["main"]([engine, "grid"])


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:{port}", "127.0.0.1:{port}", "nonsense"])
def test__score__engine_that_is_not_running__connection_error(monkeypatch, address):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConnectionError, match="address must be that of a running dask cluster"):
        ENGINES["check"]("dask", address.format(port=port))


def test__score__model_that_a_worker_does_not_see__error_names_the_machine(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"every worker can read, got .*, which {socket.gethostname()} does"):
        ENGINES["load"](str(tmp_path / "elsewhere"))


@pytest.mark.parametrize("place", ["items", "model", "above both"])
def test__score__scores_that_hold_the_items_or_the_model__refused_and_kept(tmp_path, monkeypatch, place):
    monkeypatch.setitem(ENGINES["run"].__globals__, "check", lambda engine, address: None)
    monkeypatch.setitem(ENGINES["run"].__globals__, "load", lambda model: None)
    for name in ("items", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("precious")
    scores = tmp_path if place == "above both" else tmp_path / place
    with pytest.raises(ValueError, match="scores must be a folder of its own"):
        ENGINES["run"]("dask", tmp_path / "model", tmp_path / "items", scores)
    assert (tmp_path / "items" / "file").read_text() == (tmp_path / "model" / "file").read_text() == "precious"


def test__score__empty_part__columns_of_a_full_one(saved):
    clf = skve.load(saved[0])
    full = ENGINES["score"](pd.DataFrame({"text": ["a night", "a day"]}, index=[7, 9]), clf, "text")
    empty = ENGINES["score"](pd.DataFrame({"text": pd.Series([], dtype="str")}), clf, "text")
    assert list(full.index) == [7, 9]
    assert list(full["class"]) == clf.predict(["a night", "a day"]).tolist()
    assert list(full.columns) == list(empty.columns)
    assert list(full.dtypes) == list(empty.dtypes)


def test__score__folder_without_items__error_names_it(tmp_path):
    (tmp_path / "notes.txt").write_text("no photograph")
    with pytest.raises(FileNotFoundError, match=r"items must be Parquet or a folder .*, got .* without any"):
        ENGINES["paths_in"](str(tmp_path), "path")
