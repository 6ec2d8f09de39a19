"""The checks for image classifiers: what keeps the contract passes, and what breaks it fails the right one."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone

from skve import SVEClassifier
from skve.testing import check_image_estimator, make_toy_image_backbone

QUICK = {"n_members": 2, "max_epochs": 1, "image_size": 8, "device": "cpu", "precision": "float32", "random_state": 0}
TOY = SVEClassifier(make_toy_image_backbone(), **QUICK)
BUNDLED = SVEClassifier(layers="last:1", augment="strong", **{**QUICK, "image_size": 32})
DEEP = SVEClassifier(make_toy_image_backbone(), ensemble="deep", **QUICK)


def checks_of(estimator):
    return {check.args[0].__name__: check for _, check in check_image_estimator(estimator, generate_only=True)}


@pytest.mark.parametrize("name", checks_of(TOY))
@pytest.mark.parametrize(
    "clf",
    [
        pytest.param(TOY, id="toy"),
        pytest.param(BUNDLED, id="bundled", marks=pytest.mark.slow),
        pytest.param(DEEP, id="deep", marks=pytest.mark.slow),
    ],
)
def test__image_classifier__check__passes(clf, name):
    checks_of(clf)[name](clf)


@pytest.mark.parametrize("name", ["check_stored", "check_probabilities"])
def test__image_classifier__bundled_backbone__passes(name):
    checks_of(BUNDLED)[name](BUNDLED)


class Own(SVEClassifier):
    """Changes nothing."""


class Single(SVEClassifier):
    """Predicts in single precision."""

    def predict_proba(self, X):
        return super().predict_proba(X).astype(np.float32)


class Restless(SVEClassifier):
    """Moves a global random generator."""

    def fit(self, X, y, sample_weight=None, **options):
        torch.rand(1)
        return super().fit(X, y, sample_weight, **options)


class Forgetful(SVEClassifier):
    """Changes a parameter in fit."""

    def fit(self, X, y, sample_weight=None, **options):
        self.max_epochs = 2
        return super().fit(X, y, sample_weight, **options)


class Talkative(SVEClassifier):
    """Prints."""

    def fit(self, X, y, sample_weight=None, **options):
        print("fitting")
        return super().fit(X, y, sample_weight, **options)


class Sorting(SVEClassifier):
    """Lets a prediction depend on its neighbours."""

    def predict_proba(self, X):
        proba = super().predict_proba(X)
        return (proba + proba.mean(axis=0)) / 2


class Numbers(SVEClassifier):
    """Returns numbers in place of labels."""

    def predict(self, X):
        return self.predict_proba(X).argmax(axis=1)


class Lenient(SVEClassifier):
    """Takes what is no image for a black one."""

    def _check_inputs(self, X, *, reset):
        if isinstance(X, list):
            X = [np.zeros((12, 12, 3), np.uint8) if item is None else item for item in X]
        return super()._check_inputs(X, reset=reset)


class Paths(SVEClassifier):
    """Takes no tensors."""

    def _check_inputs(self, X, *, reset):
        if isinstance(X, torch.Tensor):
            raise TypeError("X is a tensor")
        return super()._check_inputs(X, reset=reset)


class Scrubbing(SVEClassifier):
    """Writes into the pixels that it is given."""

    def fit(self, X, y, sample_weight=None, **options):
        if isinstance(X, np.ndarray) and X.dtype == np.uint8 and X.ndim == 4:
            X[0, 0, 0] ^= 1
        return super().fit(X, y, sample_weight, **options)


@pytest.mark.parametrize(
    ("broken", "name"),
    [
        (Single, "check_probabilities"),
        (Restless, "check_repeatable"),
        (Forgetful, "check_parameters"),
        (Talkative, "check_silent"),
        (Sorting, "check_order_and_company"),
        (Numbers, "check_labels"),
        (Lenient, "check_bad_inputs"),
    ],
)
def test__broken_subclass__its_check__fails(broken, name):
    clf = broken(**TOY.get_params())
    with pytest.raises(AssertionError):
        checks_of(clf)[name](clf)


@pytest.mark.parametrize(("broken", "error"), [(Paths, TypeError), (Scrubbing, AssertionError)])
def test__broken_subclass__containers__fail(broken, error):
    clf = broken(**TOY.get_params())
    with pytest.raises(error):
        checks_of(clf)["check_containers"](clf)


def test__check_image_estimator__called_plainly__runs_all_and_leaves_the_estimator():
    clf = Single(**TOY.get_params())
    with pytest.raises(AssertionError):
        check_image_estimator(clf)
    assert not hasattr(clf, "classes_")
    assert len(checks_of(clone(clf))) >= 12


def test__image_classifier__plain_subclass__passes_the_check_of_storage_without_a_warning():
    clf = Own(make_toy_image_backbone(), n_members=2, max_epochs=1, image_size=8, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checks_of(clf)["check_stored"](clf)


def test__checks__failing__message_names_the_check_and_the_assertion():
    clf = Single(make_toy_image_backbone(), n_members=2, max_epochs=1, image_size=8, random_state=0)
    with pytest.raises(AssertionError, match=r"^check_probabilities: .*\w"):
        checks_of(clf)["check_probabilities"](clf)
