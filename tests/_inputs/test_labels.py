"""Labels of any kind, missing and mixed ones, and the stratified validation part."""

import numpy as np
import pandas as pd
import pytest
import torch

from skve._inputs.labels import check_labels, encode_labels, stratified_part
from tests.toys import same_arrays, toy_classifier

KINDS = {
    "strings": ["b", "a", "c"],
    "long strings": ["a" * 50, "ü", ""],
    "booleans": [True, False],
    "not from zero": [5, 7],
    "negative": [-1, 1],
    "floats that are whole": [2.0, 0.0, 1.0],
    "objects": np.array(["x", "y", "z"], dtype=object),
    "unsigned": np.array([3, 200, 9], dtype=np.uint8),
}


def labels_of(kind, codes):
    values = np.asarray(KINDS[kind])
    return values[codes % len(values)]


@pytest.mark.parametrize("kind", KINDS)
def test__fit__labels_of_any_kind__predictions_are_labels(images, kind):
    X, codes = images
    y = labels_of(kind, codes)
    classifier = toy_classifier(max_epochs=40, head_lr=0.1).fit(X, y)
    assert np.array_equal(classifier.classes_, np.unique(y))
    assert classifier.classes_.dtype == y.dtype
    predicted = classifier.predict(X)
    assert predicted.dtype == y.dtype
    assert (predicted == y).mean() > 0.9
    proba = classifier.predict_proba(X)
    assert np.array_equal(classifier.classes_[proba.argmax(1)], predicted)


CONTAINERS = {
    "list": list,
    "tuple": tuple,
    "column": lambda y: y[:, None],
    "Series": lambda y: pd.Series(y, index=np.arange(len(y))[::-1]),
    "frame": lambda y: pd.DataFrame({"label": y}),
    "categorical": lambda y: pd.Series(pd.Categorical(y, categories=["z", "c", "b", "a"])),
    "string column": lambda y: pd.Series(y, dtype="string"),
}


@pytest.mark.filterwarnings("ignore:A column-vector y was passed")
@pytest.mark.parametrize("container", CONTAINERS)
def test__fit__labels_in_any_container__same_members(images, container):
    X, codes = images
    y = np.array(["a", "b", "c"])[codes]
    classifier = toy_classifier(max_epochs=1).fit(X, CONTAINERS[container](y))
    assert same_arrays(classifier, toy_classifier(max_epochs=1).fit(X, y))
    assert classifier.classes_.tolist() == ["a", "b", "c"]


def test__fit__tensor_of_labels__as_an_array(images):
    X, codes = images
    assert same_arrays(toy_classifier().fit(X, torch.tensor(codes)), toy_classifier().fit(X, codes))


MISSING = {
    "None": (np.array(["a", None, "b"], dtype=object), r"y\[1\] is None: every sample needs a label"),
    "NaN among strings": (np.array(["a", "b", np.nan], dtype=object), r"y\[2\] is nan"),
    "NaN among floats": ([0.0, 1.0, np.nan], "y contains NaN or infinity"),
    "infinity": ([0.0, 1.0, np.inf], "y contains NaN or infinity"),
    "missing in pandas": (pd.Series(["a", None, "b"]), r"y\[1\] is (nan|None)"),
    "missing string": (pd.Series(["a", "b", None], dtype="string"), r"y\[2\] is (<NA>|nan)"),
    "missing category": (pd.Series(pd.Categorical(["a", None, "b"])), r"y\[1\] is nan"),
    "missing integer": (pd.Series([1, None, 2], dtype="Int64"), r"y\[1\] is <NA>|NaN"),
}


@pytest.mark.parametrize("kind", MISSING)
def test__check_labels__missing__value_error_names_the_sample(kind):
    y, message = MISSING[kind]
    with pytest.raises(ValueError, match=message):
        check_labels(y, "y")


OTHER = {
    "none at all": (None, "requires y to be passed, but the target y is None"),
    "two columns": (np.zeros((3, 2), int), "1d array"),
    "measurements": ([0.1, 0.2, 0.7], "[Uu]nknown label type: continuous"),
    "mixed types": (np.array(["a", 1, "b"], dtype=object), "y mixes labels that cannot be sorted together"),
}


@pytest.mark.parametrize("kind", OTHER)
def test__fit__labels_that_are_none__value_error(images, kind):
    y, message = OTHER[kind]
    with pytest.raises(ValueError, match=message):
        toy_classifier().fit(images[0][:3], y)


@pytest.mark.parametrize("y", [["a"] * 24, [1] * 24, [True] * 24])
def test__fit__one_class__value_error_shows_it(images, y):
    with pytest.raises(ValueError, match=r"y has one class only, .*; a classifier needs at least 2 classes"):
        toy_classifier().fit(images[0], y)


def test__encode_labels__unsorted__indices_into_sorted_classes():
    classes, codes = encode_labels(np.array(["b", "c", "a", "b"]), None, "y")
    assert classes.tolist() == ["a", "b", "c"]
    assert codes.tolist() == [1, 2, 0, 1]


def test__encode_labels__known_classes__their_indices_and_unknown_ones_refused():
    known = np.array([2, 5, 9])
    assert encode_labels(np.array([9, 2]), known, "y")[1].tolist() == [2, 0]
    with pytest.raises(ValueError, match=r"y has labels that are not among the classes .*: \[3, 7\]"):
        encode_labels(np.array([9, 7, 3]), known, "y")


def test__encode_labels__mixed_types__value_error_names_the_argument():
    with pytest.raises(ValueError, match="y_val mixes labels that cannot be sorted together"):
        encode_labels(np.array(["a", 1], dtype=object), None, "y_val")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (None, "classes must be passed on the first call to partial_fit"),
        ([0, 1], r"y has labels that are not among the classes .*: \[2\]"),
        (["a", "b"], "y has labels that are not among the classes"),
    ],
)
def test__partial_fit__classes_missing_or_incomplete__value_error(images, classes, message):
    with pytest.raises(ValueError, match=message):
        toy_classifier().partial_fit(*images, classes=classes)


def test__partial_fit__other_classes_later__value_error_and_still_usable(images):
    classifier = toy_classifier().partial_fit(*images, classes=[0, 1, 2])
    state = classifier._state
    with pytest.raises(ValueError, match="differs from those of the first call"):
        classifier.partial_fit(*images, classes=[0, 1, 2, 3])
    with pytest.raises(ValueError, match="not among the classes"):
        classifier.partial_fit(images[0], images[1] + 1)
    assert classifier._state is state
    classifier.partial_fit(*images)


# ------------------------------------------------------------------------------------- stratified part


def random_codes(seed):
    rng = np.random.default_rng(seed)
    n_classes = int(rng.integers(2, 12))
    return rng.choice(n_classes, size=int(rng.integers(n_classes, 200)), p=rng.dirichlet(np.full(n_classes, 0.5)))


def chosen_part(codes, fraction, seed=0):
    return stratified_part(codes, fraction, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.25, 0.5, 0.9])
def test__stratified_part__random_labels__size_and_proportions(fraction):
    for seed in range(60):
        codes = random_codes(seed)
        chosen = chosen_part(codes, fraction, seed)
        counts, taken = np.bincount(codes), np.bincount(codes[chosen], minlength=codes.max() + 1)
        room = np.maximum(counts - 1, 0)
        assert chosen.sum() == min(max(1, round(len(codes) * fraction)), room.sum()), seed
        assert (taken <= room).all(), seed  # every class keeps a sample to train on
        if fraction <= 0.5:  # beyond, small classes cannot give their share
            assert (taken >= np.minimum(room, np.floor(counts * fraction))).all(), seed
            assert (taken <= counts * fraction + 2).all(), seed


def test__stratified_part__classes_with_one_sample__never_chosen():
    codes = np.array([0] * 30 + [1, 2, 3])
    for seed in range(20):
        assert not chosen_part(codes, 0.3, seed)[30:].any()


def test__stratified_part__only_classes_with_one_sample__empty():
    assert not chosen_part(np.arange(5), 0.5).any()


def test__stratified_part__same_seed__same_part_and_another_one_otherwise():
    codes = random_codes(3)
    assert np.array_equal(chosen_part(codes, 0.3, 1), chosen_part(codes, 0.3, 1))
    assert not np.array_equal(chosen_part(codes, 0.3, 1), chosen_part(codes, 0.3, 2))


def test__stratified_part__all_samples__chosen_about_equally_often():
    codes = np.repeat([0, 1], [10, 20])
    often = sum(chosen_part(codes, 0.4, seed).astype(int) for seed in range(300))
    assert (np.abs(often / 300 - 0.4) < 0.12).all()


def test__fit__early_stopping_with_a_lone_sample__class_is_learned(images):
    X, y = images
    kept = np.concatenate([np.flatnonzero(y == 0)[:1], np.flatnonzero(y != 0)])
    classifier = toy_classifier(early_stopping=True, validation_fraction=0.3).fit(X[kept], y[kept])
    assert classifier.classes_.tolist() == [0, 1, 2]
