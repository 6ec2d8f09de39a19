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
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV

import skve
from skve._backbones import cache, decomposition
from skve.testing import ToyClassifier

ROOT = pathlib.Path(__file__).parents[2]
ENGINES = runpy.run_path(str(ROOT / "examples" / "score_engines.py"))
PACKAGES = {"dask": ("distributed", "pyarrow"), "ray": ("ray", "pyarrow"), "spark": ("pyspark", "pyarrow")}
ROWS = 60


def needs(engine):
    for package in PACKAGES[engine]:
        pytest.importorskip(package, reason=f"{package} is not installed")
    if engine == "spark" and shutil.which("java") is None:
        pytest.skip("Spark needs Java")


@pytest.fixture
def paths(monkeypatch):
    """The tests' modules for workers, and one thread for each."""
    known = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *([known] if known else [])]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def dask_client(paths):
    needs("dask")
    from dask.distributed import Client, LocalCluster

    options = {"host": "127.0.0.1", "dashboard_address": None, "threads_per_worker": 1}
    with LocalCluster(n_workers=2, **options) as cluster, Client(cluster) as client:
        yield client


# ----------------------------------------------------------------------------------------------- searches


def count_decompositions():
    """Let a worker count how often it decomposes a weight."""
    decompose = decomposition.decompose
    decomposition.n_calls = 0

    @functools.wraps(decompose)
    def counted(*arguments):
        decomposition.n_calls += 1
        return decompose(*arguments)

    decomposition.decompose = counted


def n_decompositions():
    return decomposition.n_calls


def loaded_backbones(estimator, X, y):
    """Return what a scorer sees in a worker: the accuracy, and how many backbones the process holds."""
    return {"accuracy": estimator.score(X, y), "loaded": float(len(cache._cache))}


SEARCH = {"param_grid": {"head_lr": [0.01, 0.1], "n_members": [2, 3]}, "cv": 2, "refit": False}


def search(scoring=None):
    X, y = load_iris(return_X_y=True)
    return GridSearchCV(ToyClassifier(max_steps=3, random_state=0), scoring=scoring, **SEARCH).fit(X, y)


@pytest.mark.slow
def test__grid_search__dask__same_scores_and_one_decomposition_of_each_layer_in_a_worker(dask_client):
    here = search()
    dask_client.run(count_decompositions)
    with joblib.parallel_config("dask"):
        there = search()
    np.testing.assert_array_equal(here.cv_results_["mean_test_score"], there.cv_results_["mean_test_score"])
    assert all(
        n in (0, 2) for n in dask_client.run(n_decompositions).values()
    )  # of the two layers; 0: an idle worker


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # ray's own
def test__grid_search__ray__same_scores_and_one_backbone_in_a_worker(paths):
    needs("ray")
    import ray
    from ray.util.joblib import register_ray

    here = search(loaded_backbones)
    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1")
    try:
        register_ray()
        with joblib.parallel_config("ray"):
            there = search(loaded_backbones)
    finally:
        ray.shutdown()
    for split in range(2):
        name = f"split{split}_test_accuracy"
        np.testing.assert_array_equal(here.cv_results_[name], there.cv_results_[name])
        assert (there.cv_results_[f"split{split}_test_loaded"] == 1).all()


@pytest.mark.parametrize("cls", [skve.SVEClassifier, skve.SVETextClassifier])
def test__pickle__estimator_of_a_search__no_weights(cls):
    assert len(pickle.dumps(clone(cls(n_members=8)))) < 5000


# ------------------------------------------------------------------------------------------------- scoring


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a model of texts, and a table of them in parts of five rows."""
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    folder = tmp_path_factory.mktemp("engines")
    texts = [f"{'good' if index % 2 else 'bad'} night {index}" for index in range(ROWS)]
    labels = ["light" if index % 2 else "dark" for index in range(ROWS)]
    settings = {"n_members": 2, "layers": "last:1", "max_steps": 4, "batch_size": 8, "random_state": 0}
    skve.SVETextClassifier(**settings).fit(texts[:16], labels[:16]).save(folder / "model")
    pd.DataFrame({"text": texts}).to_parquet(folder / "texts.parquet", row_group_size=5)
    return folder


def check(scores, folder):
    """Check that each text has one row, with what the model predicts here."""
    texts = pd.read_parquet(folder / "texts.parquet")["text"]
    found = pd.read_parquet(scores).set_index("text")
    assert sorted(found.index) == sorted(texts)
    found, clf = found.loc[texts], skve.load(folder / "model")
    np.testing.assert_allclose(found.filter(like="p("), clf.predict_proba(texts), atol=0.01)
    uncertainty = clf.predict_uncertainty(texts)
    for name in ("total", "epistemic", "novelty"):
        np.testing.assert_allclose(found[name], getattr(uncertainty, name), atol=0.02)
    assert (found["class"] == clf.predict(texts)).mean() > 0.95


def start(engine, folder, scores):
    command = [sys.executable, "-W", "ignore", str(ROOT / "examples" / "score_engines.py"), engine]
    return subprocess.Popen([*command, str(folder / "model"), str(folder / "texts.parquet"), str(scores)])


@pytest.mark.slow
@pytest.mark.parametrize("engine", PACKAGES)
def test__score__engine__each_row_once_with_the_models_predictions(paths, saved, tmp_path, engine):
    needs(engine)
    assert start(engine, saved, tmp_path / "scores").wait(300) == 0
    check(tmp_path / "scores", saved)


def descendants(pid):
    """Return the processes that a process started, and those that they started, with their command lines."""
    found = {}
    for child in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        for own in map(int, child.read_text().split()):
            found[own] = pathlib.Path(f"/proc/{own}/cmdline").read_text().replace("\0", " ")
            found |= descendants(own)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/task").exists(), reason="needs Linux")
def test__score__worker_that_is_killed__nothing_lost_or_doubled(paths, saved, tmp_path):
    needs("dask")
    scores, killed = tmp_path / "scores", []
    process = start("dask", saved, scores)
    while process.poll() is None and not killed:
        if any(scores.glob("*.parquet")):  # in the midst of the work
            workers = [pid for pid, command in descendants(process.pid).items() if "spawn_main" in command]
            os.kill(workers[0], signal.SIGKILL)
            killed.append(workers[0])
        time.sleep(0.01)
    assert process.wait(300) == 0
    assert killed
    check(scores, saved)


# ------------------------------------------------------------------------------------------- what is missing


@pytest.mark.parametrize("engine", PACKAGES)
def test__score__package_that_is_missing__import_error_names_the_extra(monkeypatch, engine):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf"not installed\. Run pip install 'skve\[{engine}\]'"):
        ENGINES["check"](engine, None)


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


def test__score__empty_part__columns_of_a_full_one(saved):
    clf = skve.load(saved / "model")
    full = ENGINES["score"](pd.DataFrame({"text": ["a night", "a day"]}, index=[7, 9]), clf, "text")
    empty = ENGINES["score"](pd.DataFrame({"text": pd.Series([], dtype="str")}), clf, "text")
    assert list(full.index) == [7, 9]
    assert list(full["class"]) == clf.predict(["a night", "a day"]).tolist()
    assert list(full.columns) == list(empty.columns)
    assert list(full.dtypes) == list(empty.dtypes)
