"""Data-parallel fits, in processes that torchrun starts on this machine."""

import json
import os
import pathlib
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from torch import distributed

import skve
from skve._runtime import processes
from skve.testing import ToyClassifier
from tests.toys import TinyCNN, toy_classifier, toy_images

ROOT = pathlib.Path(__file__).parents[2]
COMMON = {"n_members": 3, "max_epochs": 3, "random_state": 0, "precision": "float32"}
CASES = {
    "sve": {},
    "early stopping": {
        "early_stopping": True,
        "validation_fraction": 0.2,
        "n_iter_no_change": 2,
        "head_lr": 1.0,
        "max_epochs": 8,
    },
    "folds": {"ensemble_params": {"folds": 3}, "calibrate": "auto"},
    "own orders": {"ensemble_params": {"order": "own", "bootstrap": True}},
    "diversity": {"ensemble_params": {"diversity": 0.3}},
    "deep": {"ensemble": "deep"},
    "last batch of two": {"batch_size": 37},
    "temperature": {"calibrate": "temperature", "validation_fraction": 0.2},
    "solved": {"ensemble": "head"},
    "clipped": {"grad_clip": 0.01},
}

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="torch was built without gloo"
)


def iris():
    return load_iris(return_X_y=True)


def of_images():
    return toy_classifier(TinyCNN(), max_epochs=2, random_state=0, precision="float32")


def fitted(case):
    """Return what a fit leaves that all processes must agree on."""
    if case == "images":
        X, y = toy_images()
        clf = of_images().fit(X, y)
    else:
        X, y = iris()
        clf = ToyClassifier(**{**COMMON, **CASES[case]}).fit(X, y)
    numbers = {"proba": clf.predict_proba(X[:10]), "loss": clf.history_["loss"], "temperature": clf.temperature_}
    return {**clf._state.arrays, **numbers, "valid": clf.history_["valid_nll"], "n_iter": clf.n_iter_}


def error_of(fit):
    """Return the class and the message of the error that a fit ends in."""
    try:
        fit()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def work(folder):
    """What each process does for the tests below; `folder` is where it leaves what it found."""
    distributed.init_process_group("gloo")
    rank, n = processes.rank(), processes.n_processes()
    warnings.simplefilter("ignore")
    for case in [*CASES, "images"]:
        np.savez(folder / f"{case}-{rank}.npz", **fitted(case))
    X, y = iris()
    drawn = ToyClassifier(**{**COMMON, "random_state": None}, verbose=1).fit(X, y)
    np.savez(folder / f"drawn-{rank}.npz", **drawn._state.arrays)
    of_images().fit(*toy_images()).save(folder / "model")
    toy = ToyClassifier(**COMMON)
    errors = {
        "X": error_of(lambda: toy.fit(X + rank, y)),
        "y": error_of(lambda: toy.fit(X, (y + (rank == n - 1)) % 3)),
        "parameters": error_of(lambda: ToyClassifier(**{**COMMON, "n_members": 2 + rank}).fit(X, y)),
        "batch_size": error_of(lambda: ToyClassifier(**COMMON, batch_size=1).fit(X, y)),
    }
    (folder / f"errors-{rank}.json").write_text(json.dumps(errors))
    if rank == n - 1:
        os._exit(0)  # without a word to the others
    errors["death"] = error_of(lambda: toy.fit(X, y))
    (folder / f"errors-{rank}.json").write_text(json.dumps(errors))
    os._exit(0)


def torchrun(n, folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}", "-m", __name__]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        [*command, str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def run(request, tmp_path_factory):
    """The number of processes, the folder of what they found, and the output of all."""
    folder = tmp_path_factory.mktemp("ranks")
    done = torchrun(request.param, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return request.param, folder, done.stderr


@pytest.fixture(scope="module")
def alone():
    return {case: fitted(case) for case in [*CASES, "images"]}


@pytest.mark.parametrize("case", [*CASES, "images"])
def test__fit__several_processes__the_model_of_one(run, alone, case):
    n, folder, _ = run
    for rank in range(n):
        found = np.load(folder / f"{case}-{rank}.npz")
        assert set(found) == set(alone[case])
        for name, expected in alone[case].items():
            np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-5, err_msg=name)


def test__fit__random_state_none__the_first_process_draws_for_all(run):
    n, folder, _ = run
    first, *others = (dict(np.load(folder / f"drawn-{rank}.npz")) for rank in range(n))
    for other in others:
        for name, array in first.items():
            np.testing.assert_array_equal(other[name], array)


def test__save__in_every_process__one_whole_model(run, alone):
    _, folder, _ = run
    loaded = skve.load(folder / "model", backbone=TinyCNN())
    np.testing.assert_allclose(loaded.predict_proba(toy_images()[0][:10]), alone["images"]["proba"], atol=1e-5)


def test__fit__verbose__one_process_reports(run):
    assert run[2].count("skve: preparing the backbone") == 1


@pytest.mark.parametrize("name", ["X", "y", "parameters"])
def test__fit__another_input_in_a_process__every_process_names_it(run, name):
    n, folder, _ = run
    for rank in range(n):
        error = json.loads((folder / f"errors-{rank}.json").read_text())[name]
        assert error.startswith(f"ValueError: {name} must be the same in all {n} processes")


def test__fit__batch_smaller_than_the_number_of_processes__value_error(run):
    n, folder, _ = run
    error = json.loads((folder / "errors-0.json").read_text())["batch_size"]
    assert f"must be at least the number of processes of a data-parallel fit, got batch_size=1 for {n}" in error


def test__fit__process_that_dies__the_others_end_with_an_error(run):
    n, folder, _ = run
    for rank in range(n - 1):
        error = json.loads((folder / f"errors-{rank}.json").read_text())["death"]
        assert error.startswith(f"RuntimeError: A data-parallel fit requires all {n} processes")


def test__fit__torchrun_without_a_group__warning_says_what_to_call(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # what torchrun sets, for each process
    monkeypatch.setenv("WORLD_SIZE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ToyClassifier(**COMMON).fit(*iris())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.warns(UserWarning, match=r"each of the 2 processes of torchrun\. Call torch.distributed.init_proc"):
        ToyClassifier(**COMMON).fit(*iris())


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("size", [0, 1, 4, 32])
def test__own_part__all_processes__each_sample_once(monkeypatch, n, size):
    monkeypatch.setattr(processes, "n_processes", lambda: n)
    found = []
    for rank in range(n):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        found += range(size)[processes.own_part(size)]
    assert found == list(range(size))


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(pathlib.Path(sys.argv[1]))
