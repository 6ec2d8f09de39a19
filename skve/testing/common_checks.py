"""The checks that image and text classifiers share. They differ in their samples, not in the contract."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import io
import pickle
import random
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

LABELS = np.array(["no", "yes"] * 9)


@dataclasses.dataclass(frozen=True)
class Samples:
    """The samples on which one kind of classifier is checked.

    Attributes
    ----------
    X : list of length 18
        The first six differ, and so do samples 0, 2, 4, ... from 1, 3, 5, ...
    containers : callable
        Called without arguments; yields (name, X in another container, parameters that it requires).
    fingerprint : callable
        Maps X in any container to a value that is equal if and only if the samples are.
    clean : callable
        A step of a pipeline, from X to X, that changes predictions. Defined at module level.
    bad_items, bad_inputs : list of tuple
        (an invalid sample, or an invalid X; the parts that the message must contain).
    """

    X: list
    containers: Callable
    fingerprint: Callable
    clean: Callable
    bad_items: list
    bad_inputs: list


def run_or_list(
    estimator: Any, checks: Sequence[Callable], samples: Samples, generate_only: bool
) -> list[tuple[Any, Callable[[Any], None]]] | None:
    """Run checks on clones of an estimator, or return pairs (estimator, check), each run as `check(estimator)`."""
    pairs: list = [(estimator, functools.partial(_run_check, check, samples)) for check in checks]
    if generate_only:
        return pairs
    for _, check in pairs:
        check(estimator)
    return None


def _run_check(check, samples, estimator):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "not saved, since they are no plain values")  # the backbone is passed again
        try:
            check(clone(estimator), samples)
        except AssertionError as error:
            failed = traceback.extract_tb(error.__traceback__)[-1]
            said = str(error).strip() or failed.line
            raise AssertionError(f"{check.__name__}: {said}") from error


def same(one, other, what, tolerance=0.0):
    """Assert that two arrays are equal."""
    np.testing.assert_allclose(one, other, rtol=0, atol=tolerance, err_msg=what)


def raises(error, parts, call, *args):
    """Assert that a call raises `error` with a message that has all `parts`."""
    message = None
    try:
        call(*args)
    except error as raised:
        message = str(raised)
    assert message is not None, f"{call} must raise {error}, got no error."
    missing = [part for part in parts if part not in message]
    assert not missing, f"The message of {call} must contain {missing}, got {message!r}."


def check_parameters(estimator, samples):
    """`get_params`, `set_params` and `clone` keep parameters as they are, and `fit` does not change them."""
    parameters = estimator.get_params()
    assert estimator.set_params(**parameters) is estimator
    copied = clone(estimator)
    assert copied.get_params().keys() == parameters.keys()
    shown = {name: repr(value) for name, value in parameters.items()}
    assert estimator.fit(samples.X, LABELS) is estimator
    changed = [name for name, value in estimator.get_params().items() if value is not parameters[name]]
    assert not changed, f"fit replaced the parameters {changed}"
    assert shown == {name: repr(value) for name, value in estimator.get_params().items()}, "fit changed a parameter"
    raises(NotFittedError, [], clone(estimator).predict, samples.X)
    same(copied.fit(samples.X, LABELS).predict_proba(samples.X), estimator.predict_proba(samples.X), "a clone")


def check_containers(estimator, samples):
    """Every container gives the predictions of a list, and is not changed."""
    expected = clone(estimator).fit(samples.X, LABELS).predict_proba(samples.X)
    for name, X, parameters in samples.containers():
        before = samples.fingerprint(X)
        same(clone(estimator).set_params(**parameters).fit(X, LABELS).predict_proba(X), expected, name)
        assert samples.fingerprint(X) == before, f"{name} was changed"


def check_labels(estimator, samples):
    """Predictions are labels of the type given to `fit`. Missing labels and a wrong number of labels are errors."""
    for labels in (
        LABELS,
        LABELS.astype(object),
        np.array([0, 2] * 9),
        np.array([7, 5] * 9),
        np.array([False, True] * 9),
    ):
        estimator.fit(samples.X, labels)
        assert list(estimator.classes_) == sorted(set(labels.tolist()))
        predicted = estimator.predict(samples.X)
        assert predicted.shape == (18,)
        assert predicted.dtype == labels.dtype
        assert set(predicted) <= set(labels)
    missing: list[list] = [["one"] * 18, [None] + ["a", "b"] * 8 + ["a"], [float("nan"), 1.0] * 9]
    for wrong in missing:
        raises(ValueError, [], estimator.fit, samples.X, wrong)
    raises(ValueError, ["18", "2"], estimator.fit, samples.X, ["a", "b"])


def check_probabilities(estimator, samples):
    """Probabilities are float64, sum to one and come from the members'; the uncertainty agrees with them."""
    estimator.fit(samples.X, LABELS)
    members, proba = estimator.predict_proba_members(samples.X), estimator.predict_proba(samples.X)
    assert proba.dtype == np.float64
    assert proba.flags.c_contiguous
    assert proba.shape == (18, 2)
    assert members.shape[1:] == proba.shape
    same(proba.sum(1), 1.0, "rows sum to one", 1e-12)
    tempered = members.mean(0) ** (1 / estimator.temperature_)
    share = estimator.regression_share_  # of another prediction, which is unknown here
    rest = proba - (1 - share) * tempered / tempered.sum(1, keepdims=True)
    same(rest.sum(1), share, "mean of the members, calibrated and blended", 1e-9)
    assert rest.min() > -1e-9
    assert (estimator.predict(samples.X) == estimator.classes_[proba.argmax(1)]).all()
    uncertainty = estimator.predict_uncertainty(samples.X)
    same(uncertainty.total, uncertainty.aleatoric + uncertainty.epistemic, "parts of the uncertainty", 1e-9)
    distances = -estimator.score_samples(samples.X)
    assert uncertainty.novelty.min() >= 0
    assert uncertainty.novelty.max() < 1
    assert (np.argsort(distances, kind="stable") == np.argsort(uncertainty.novelty, kind="stable")).all()
    assert (uncertainty.prediction == estimator.predict(samples.X)).all()
    assert not hasattr(estimator, "decision_function")


def check_order_and_company(estimator, samples):
    """The prediction of a sample depends neither on its position nor on the other samples."""
    estimator.fit(samples.X, LABELS)
    proba = estimator.predict_proba(samples.X)
    assert np.isfinite(proba).all()
    order = np.random.default_rng(0).permutation(18)
    same(estimator.predict_proba([samples.X[i] for i in order]), proba[order], "another order", 1e-5)
    for index in range(6):
        same(estimator.predict_proba([samples.X[index]])[0], proba[index], f"sample {index} alone", 1e-5)


def check_repeatable(estimator, samples):
    """The same seed gives identical predictions, in a second fit too. Global random states do not change."""
    import torch

    numpy_state = np.random.get_state
    before = torch.get_rng_state().tolist(), repr(numpy_state()), random.getstate()
    one = clone(estimator).fit(samples.X, LABELS).predict_proba_members(samples.X)
    same(estimator.fit(samples.X, LABELS).predict_proba_members(samples.X), one, "another estimator's fit")
    same(estimator.fit(samples.X, LABELS).predict_proba_members(samples.X), one, "a second fit")
    after = torch.get_rng_state().tolist(), repr(numpy_state()), random.getstate()
    assert before == after, "a global random generator was advanced"


def check_silent(estimator, samples):
    """With `verbose=0` nothing is printed."""
    if "verbose" in estimator.get_params():
        estimator.set_params(verbose=0)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        estimator.fit(samples.X, LABELS).predict_proba(samples.X)
    assert not out.getvalue() + err.getvalue(), f"printed: {out.getvalue()}{err.getvalue()}"


def check_stored(estimator, samples):
    """Pickles give identical predictions; saved folders, with the backbone if possible, do so to rounding."""
    import skve

    proba = estimator.fit(samples.X, LABELS).predict_proba(samples.X)
    same(pickle.loads(pickle.dumps(estimator)).predict_proba(samples.X), proba, "pickle")
    same(copy.deepcopy(estimator).predict_proba(samples.X), proba, "deepcopy")
    with tempfile.TemporaryDirectory() as folder:
        is_module = hasattr(estimator.backbone, "forward")  # cannot be rebuilt from its weights
        estimator.save(folder, include_backbone=not is_module)
        loaded = skve.load(folder, **({"backbone": estimator.backbone} if is_module else {}))
        # Features that the process kept of the first backbone may come from other batches, which round otherwise.
        same(loaded.predict_proba(samples.X), proba, "save and load", 1e-6)
        assert (loaded.classes_ == estimator.classes_).all()


def check_threads(estimator, samples):
    """Threads that share a fitted estimator get the predictions of calls in turn."""
    estimator.fit(samples.X, LABELS)
    parts = [samples.X[start : start + 8] for start in range(4)]
    expected = [estimator.predict_proba(part) for part in parts]
    got: list = [None] * len(parts)

    def work(index):
        got[index] = estimator.predict_proba(parts[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, alone in enumerate(expected):
        assert got[index] is not None, f"thread {index} failed"
        same(got[index], alone, f"thread {index}")


def check_bad_inputs(estimator, samples):
    """Errors name the index of an invalid sample, and a failed fit leaves the estimator as it was."""
    estimator.fit(samples.X, LABELS)
    state = dict(vars(estimator))
    for bad, parts in samples.bad_items:
        objects = np.empty(18, dtype=object)
        for X in (list(samples.X), objects):
            for index, sample in enumerate(samples.X):
                X[index] = sample
            X[4] = bad
            raises((TypeError, ValueError), ["X[4]", *parts], estimator.predict, X)
            raises((TypeError, ValueError), ["X[4]", *parts], estimator.fit, X, LABELS)
    for anything, parts in samples.bad_inputs:
        raises((TypeError, ValueError), parts, estimator.predict, anything)
        raises((TypeError, ValueError), parts, estimator.fit, anything, LABELS)
    assert vars(estimator).keys() == state.keys()
    assert all(vars(estimator)[name] is value for name, value in state.items()), "a failed fit changed the estimator"


def check_incremental(estimator, samples):
    """`partial_fit` starts with all classes, continues, and accepts weights."""
    estimator.partial_fit(samples.X[:6], LABELS[:6], classes=["maybe", "no", "yes"])
    before = estimator.predict_proba(samples.X)
    assert before.shape == (18, 3)
    estimator.partial_fit(samples.X, LABELS, sample_weight=np.linspace(0, 1, 18))
    assert not np.array_equal(estimator.predict_proba(samples.X), before)


def check_pipeline(estimator, samples):
    """A transformer in front of the classifier gives the predictions for transformed samples."""
    cleaned = samples.clean(samples.X)
    expected = clone(estimator).fit(cleaned, LABELS).predict_proba(cleaned)
    pipeline = make_pipeline(FunctionTransformer(samples.clean), estimator).fit(samples.X, LABELS)
    same(pipeline.predict_proba(samples.X), expected, "behind a transformer")


CHECKS = (
    check_parameters,
    check_containers,
    check_labels,
    check_probabilities,
    check_order_and_company,
    check_repeatable,
    check_silent,
    check_stored,
    check_threads,
    check_bad_inputs,
    check_incremental,
    check_pipeline,
)
