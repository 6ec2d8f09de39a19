"""Weights of samples and of classes."""

import collections

import numpy as np
import pandas as pd
import pytest

from skve._inputs.weights import check_weights, class_weights, to_mean_one
from tests.toys import same_arrays, toy_classifier


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([1.0, -1], r"not negative .*, got sample_weight\[1\] = -1"),
        ([np.nan, 1], r"finite .*, got sample_weight\[0\] = nan"),
        (pd.Series([1, None], dtype="Int64"), "numbers, got values of type object"),
        (["a", "b"], "numbers, got values of type <U1"),
        ([1j, 1], "numbers, got values of type complex128"),
        (np.ones((2, 1)), r"must have shape \(2,\), got \(2, 1\)"),
        ([0, 0], "above 0 for at least one sample"),
        (np.ma.array([1, 2], mask=[0, 1]), "no masked elements"),
    ],
)
def test__check_weights__wrong__value_error_says_what(wrong, message):
    with pytest.raises(ValueError, match=message):
        check_weights(wrong, 2)


@pytest.mark.parametrize(
    "container",
    [list, pd.Series, collections.deque, lambda w: pd.Series(w, dtype="Float64"), lambda w: np.array(w, object)],
)
def test__check_weights__any_container__float64(container):
    weights = check_weights(container([1.0, 2.0]), 2)
    assert weights.dtype == np.float64
    assert weights.tolist() == [1, 2]


def test__to_mean_one__weights_whose_sum_overflows__as_small_ones():
    assert (
        to_mean_one(np.array([1e308, 1e308, 5e307]), "data").tolist()
        == to_mean_one(np.array([2.0, 2, 1]), "").tolist()
    )


def test__fit__weights_of_1e308__as_ones(images):
    X, y = images
    heavy = toy_classifier(max_epochs=1).fit(X, y, sample_weight=np.full(len(y), 1e308))
    assert same_arrays(heavy, toy_classifier(max_epochs=1).fit(X, y))


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf, "a", None])
def test__class_weight__no_weight__value_error(images, weight):
    with pytest.raises(ValueError, match="class_weight"):
        toy_classifier(class_weight={0: weight}).fit(*images)


def test__class_weight__class_that_a_batch_lacks__its_weight_waits(images):
    X, y = images
    classifier = toy_classifier(class_weight={2: 5.0}).partial_fit(X[y < 2], y[y < 2], classes=[0, 1, 2])
    assert same_arrays(classifier, toy_classifier().partial_fit(X[y < 2], y[y < 2], classes=[0, 1, 2]))
    with pytest.raises(ValueError, match=r"class_weight.*among the classes .*, got 7"):
        toy_classifier(class_weight={7: 5.0}).fit(X, y)


def test__class_weights__balanced__as_scikit_learn():
    codes = np.array([0, 0, 0, 2])
    assert class_weights("balanced", codes, np.array(["a", "b", "c"])).tolist() == pytest.approx([2 / 3] * 3 + [2])


def test__fit__samples_of_weight_0__never_validation(images):
    X, y = images
    weights = np.zeros(len(y))
    weights[np.concatenate([np.flatnonzero(y == label)[:3] for label in range(3)])] = 1
    classifier = toy_classifier(early_stopping=True, validation_fraction=0.3, max_epochs=1)
    assert np.isfinite(classifier.fit(X, y, sample_weight=weights).history_["valid_nll"]).all()
