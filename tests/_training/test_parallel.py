"""Members that train in several processes: the same members, and where they have to train in one."""

import threading

import joblib
import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback

from skve import SVETextClassifier
from skve._training import parallel
from skve.testing import ToyClassifier, make_toy_text_backbone
from tests.toys import TinyCNN, same_arrays, toy_classifier

CPU = torch.device("cpu")
X, Y = load_iris(return_X_y=True)
COMMON = {"n_members": 3, "max_epochs": 3, "random_state": 0, "precision": "float32"}
CASES = {
    "sve": {},
    "folds": {"ensemble_params": {"folds": 3}},
    "own orders": {"ensemble_params": {"order": "own", "bootstrap": True}},
    "own orders and folds": {"ensemble_params": {"order": "own", "folds": 2}, "n_members": 4},
    "validation": {"calibrate": "temperature", "validation_fraction": 0.2, "class_weight": "balanced"},
    "last batch of two": {"batch_size": 37},
    "deep": {"ensemble": "deep"},
    "batch statistics": {"ensemble": "deep", "ensemble_params": {"train_batch_norm": True}},
    "scale": {"ensemble": "scale", "train_bias": True},
}


def both(fit):
    """Return what `fit(n_jobs)` returns for one job and for two."""
    return fit(None), fit(2)


def assert_same(one, other):
    assert same_arrays(one, other)
    assert one.n_iter_ == other.n_iter_
    assert set(one.history_) == set(other.history_)
    for name in ("epoch", "step", "loss", "valid_nll"):
        np.testing.assert_allclose(one.history_[name], other.history_[name], rtol=1e-6)
    for name in ("ratio_spread", "gradient_norm"):
        assert list(one.history_[name]) == list(other.history_[name])
        for layer, values in one.history_[name].items():
            np.testing.assert_allclose(values, other.history_[name][layer], rtol=1e-5)
    assert one.temperature_ == other.temperature_


@pytest.fixture
def in_threads():
    """Two jobs in threads, which need no start of a process."""
    with joblib.parallel_config("threading"):
        yield


@pytest.mark.parametrize("case", CASES)
def test__fit__two_jobs__same_members(in_threads, case):
    assert_same(*both(lambda n_jobs: ToyClassifier(**{**COMMON, **CASES[case]}, n_jobs=n_jobs).fit(X, Y)))


def test__fit__warm_start__goes_on_with_the_same_members(in_threads):
    assert_same(
        *both(lambda n_jobs: ToyClassifier(**COMMON, warm_start=True, n_jobs=n_jobs).fit(X, Y).fit(X, Y)),
    )


def test__partial_fit__two_jobs__same_members(in_threads):
    def fit(n_jobs):
        clf = ToyClassifier(**{**COMMON, "max_epochs": None}, n_jobs=n_jobs)
        return clf.partial_fit(X[::2], Y[::2], classes=[0, 1, 2]).partial_fit(X[1::2], Y[1::2])

    assert_same(*both(fit))


def test__fit__processes__same_members_of_images_that_joblib_maps_into_memory(images):
    pixels = np.repeat(images[0], 60, axis=0)
    assert pixels.nbytes > 1e6  # from where joblib shares an array through a file, read-only
    fit = {"backbone": TinyCNN(), "max_steps": 4, "max_epochs": None, "augment": "light", "precision": "float32"}
    assert_same(*both(lambda n_jobs: toy_classifier(**fit, n_jobs=n_jobs).fit(pixels, np.repeat(images[1], 60))))


@pytest.mark.slow
def test__fit__processes__same_members_of_texts_and_the_first_reports(capfd):
    texts, labels = ["good film", "a bad one", "good", "bad", "so good", "so bad"] * 4, [1, 0] * 12
    backbone = make_toy_text_backbone()

    def fit(n_jobs):
        clf = SVETextClassifier(backbone, n_members=4, max_steps=3, random_state=0, n_jobs=n_jobs, verbose=1)
        return clf.fit(texts, labels)  # leaves out folds

    assert_same(*both(fit))
    assert capfd.readouterr().err.count("skve: preparing the backbone") == 2  # once for each fit


def test__fit__other_device_for_each_group__the_classifier_keeps_its_own(in_threads):
    clf = ToyClassifier(**COMMON, n_jobs=2, device="auto").fit(X, Y)
    assert clf.device == "auto"
    assert clf.n_jobs == 2


@pytest.mark.parametrize("n_jobs", [0, 1.5, "2"])
def test__fit__n_jobs_that_is_no_number_of_jobs__value_error(n_jobs):
    with pytest.raises(ValueError, match="'n_jobs' parameter of ToyClassifier must be"):
        ToyClassifier(**COMMON, n_jobs=n_jobs).fit(X, Y)


def test__fit__error_in_a_job__raised_and_the_estimator_stays(in_threads):
    clf = ToyClassifier(**COMMON, n_jobs=2).fit(X, Y)
    before = clf._state
    with pytest.raises(ValueError, match="The training diverged"):
        clf.set_params(member_lr=1e30, grad_clip=None).fit(X, Y)
    assert clf._state is before


# ---------------------------------------------------------------------------------- where one process trains


@pytest.fixture
def never_parallel(monkeypatch):
    def run(*arguments):
        raise AssertionError("members that depend on one another were trained apart")

    monkeypatch.setattr(parallel, "run", run)


@pytest.mark.parametrize(
    "case",
    [
        {"early_stopping": True},
        {"ensemble_params": {"diversity": 0.3}},
        {"callbacks": [Callback()]},
        {"ensemble": "snapshot", "max_epochs": 6},
        {"ensemble": "dropout"},
        {"ensemble": "single"},
        {"ensemble": "head"},
        {"ensemble": "laplace"},
        {"n_members": 1},
        {"n_jobs": 1},
        {"n_jobs": None},
    ],
    ids=lambda case: "-".join(case),
)
def test__fit__members_that_depend_on_one_another__one_process(never_parallel, case):
    ToyClassifier(**{"n_jobs": 2, **COMMON, **case}).fit(X, Y)


def test__fit__callbacks_of_sklearn__one_process(never_parallel):
    callback = pytest.importorskip("sklearn.callback")
    ToyClassifier(**COMMON, n_jobs=2).set_callbacks(callback.ScoringMonitor(scoring="accuracy")).fit(X, Y)


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test__n_groups__within_a_job__one(backend):
    with joblib.parallel_config(backend):
        found = joblib.Parallel(n_jobs=2)(joblib.delayed(parallel.n_groups)(4, 2, CPU) for _ in range(2))
    assert found == [1, 1]


def test__n_groups__another_thread_than_the_main_one__one():
    found = []
    thread = threading.Thread(target=lambda: found.append(parallel.n_groups(4, 2, CPU)))
    thread.start()
    thread.join()
    assert found == [1]


def test__n_groups__of_joblib__as_many_as_members_at_most():
    assert parallel.n_groups(4, None, CPU) == 1
    assert parallel.n_groups(4, 3, CPU) == 3
    assert parallel.n_groups(4, 9, CPU) == 4
    assert parallel.n_groups(64, -1, CPU) == min(64, joblib.cpu_count())
    with joblib.parallel_config(n_jobs=2):
        assert parallel.n_groups(4, None, CPU) == 2


def test__n_groups__gpus__one_for_each(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert parallel.n_groups(8, 4, torch.device("cuda")) == 2
    assert parallel.n_groups(8, 4, torch.device("cuda:1")) == 1
    assert parallel.n_groups(8, 4, torch.device("mps")) == 1
    assert [parallel.device_of(torch.device("cuda"), group) for group in (0, 1)] == ["cuda:0", "cuda:1"]
    assert parallel.device_of(torch.device("cuda:1"), 0) == "cuda:1"


def test__split_members__uneven__each_once():
    assert parallel.split_members(5, 2) == [range(2), range(2, 5)]
    assert parallel.split_members(3, 3) == [range(1), range(1, 2), range(2, 3)]


@pytest.mark.slow
def test__grid_search__jobs_within_jobs__same_results():
    def search(n_jobs):
        return GridSearchCV(ToyClassifier(**COMMON, n_jobs=2), {"head_lr": [0.01, 0.1]}, cv=2, n_jobs=n_jobs).fit(
            X, Y
        )

    one, two = search(None), search(2)
    np.testing.assert_array_equal(one.cv_results_["mean_test_score"], two.cv_results_["mean_test_score"])


def test__run__as_many_jobs_as_tasks__so_that_joblib_shares_out_all_cores(monkeypatch):
    asked = []
    real = parallel.joblib.Parallel
    monkeypatch.setattr(parallel.joblib, "Parallel", lambda n_jobs: asked.append(n_jobs) or real(n_jobs=1))
    assert parallel.run([(abs, (-1,)), (abs, (-2,))]) == [1, 2]
    assert asked == [2]
