"""Conformal prediction sets by MAPIE around both classifiers: what they promise, and what X may be."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.stats import betabinom
from sklearn.base import clone
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skve import SVEClassifier, SVETextClassifier
from skve.datasets import load_fashion, load_intents
from skve.testing import make_toy_text_backbone

mapie = pytest.importorskip("mapie.classification")
pytest.importorskip("transformers")

LEVEL = 0.9
TEXTS = ["a fine day", "what a bore", "so fine", "a bore again", "fine and good", "bore me not"] * 4
LABELS = np.array(["good", "bad"] * 12)


def object_array(items):
    """Return a one-dimensional array of objects; np.array would look into images."""
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def predict_sets(clf, X_calibrate, y_calibrate, X_test, score="lac"):
    conformal = mapie.SplitConformalClassifier(
        clf, confidence_level=LEVEL, conformity_score=score, prefit=True, random_state=0
    )
    answers, sets = conformal.conformalize(X_calibrate, y_calibrate).predict_set(X_test)
    return answers, sets[:, :, 0]


def make_case(clf, X, y):
    """Split X and y at random in halves to calibrate and to test on, and predict sets by the default score."""
    X_calibrate, X_test, y_calibrate, y_test = train_test_split(X, y, test_size=0.5, random_state=0)
    answers, sets = predict_sets(clf, X_calibrate, y_calibrate, X_test)
    return SimpleNamespace(
        clf=clf,
        X_calibrate=X_calibrate,
        y_calibrate=y_calibrate,
        X_test=X_test,
        y_test=y_test,
        answers=answers,
        sets=sets,
    )


@pytest.fixture(scope="module")
def images():
    """500 photographs of ten classes, as an array of PIL images."""
    data = load_fashion()
    clf = SVEClassifier(ensemble="head", n_members=2, image_size=32, max_epochs=2, augment=None, random_state=0)
    clf.fit(data.images[:200], data.target[:200])
    return make_case(clf, object_array([Image.fromarray(image) for image in data.images_test]), data.target_test)


@pytest.fixture(scope="module")
def texts():
    """360 questions of twelve intents, as an array of strings."""
    data = load_intents()
    train, test = (np.isin(target, data.target_names[:12]) for target in (data.target, data.target_test))
    X_train, X = (np.array(X, dtype=object)[chosen] for X, chosen in ((data.texts, train), (data.texts_test, test)))
    clf = SVETextClassifier(ensemble="head", n_members=2, max_epochs=8, head_lr=1e-2, random_state=0)
    clf.fit(X_train[::20], data.target[train][::20])
    return make_case(clf, X, data.target_test[test])


@pytest.fixture(params=["images", "texts"])
def case(request):
    return request.getfixturevalue(request.param)


def hits_and_bounds(case, sets):
    """Count the sets that hold the truth, and bound that count.

    A random split makes both parts exchangeable. The threshold is the k-th smallest of n calibration scores, so the
    number of test scores below it follows a beta-binomial law, whatever the classifier is. Outside these bounds lie
    two of ten thousand splits, so for the fixed split here a failure is not bad luck.
    """
    n = len(case.y_calibrate)
    k = int(np.ceil((n + 1) * LEVEL))
    truth = np.searchsorted(case.clf.classes_, case.y_test)
    low, high = betabinom(len(truth), k, n + 1 - k).ppf([1e-4, 1 - 1e-4])
    return sets[np.arange(len(truth)), truth].sum(), low, high


def test__sets__object_array__hold_the_truth_as_often_as_promised(case):
    hits, low, high = hits_and_bounds(case, case.sets)
    assert low <= hits <= high
    assert high < len(case.y_test)  # sets of all classes would not pass
    assert case.sets.sum(1).mean() < len(case.clf.classes_) / 2
    assert np.array_equal(case.answers, case.clf.predict(case.X_test))


def test__sets__aps__never_empty_and_hold_the_truth_at_least_as_often(case):
    _, sets = predict_sets(case.clf, case.X_calibrate, case.y_calibrate, case.X_test, score="aps")
    hits, low, _ = hits_and_bounds(case, sets)
    assert hits >= low  # no upper bound: the class that crosses the threshold is always included
    assert sets.any(axis=1).all()


def test__sets__lac__as_computed_by_hand(case):
    truth = np.searchsorted(case.clf.classes_, case.y_calibrate)
    scores = np.sort(1 - case.clf.predict_proba(case.X_calibrate)[np.arange(len(truth)), truth])
    threshold = scores[int(np.ceil((len(scores) + 1) * LEVEL)) - 1]
    expected = 1 - case.clf.predict_proba(case.X_test) <= threshold + 1e-8  # MAPIE's tolerance
    assert np.array_equal(case.sets, expected)


@pytest.mark.parametrize("kind", ["array", "array of arrays", "split into pixels", "paths", "column of paths"])
def test__sets__images_of_any_indexable_kind__same_sets(images, kind, tmp_path):
    def convert(X):
        if kind == "array":
            return np.stack([np.asarray(image) for image in X])
        if kind == "array of arrays":
            return object_array([np.asarray(image) for image in X])
        if kind == "split into pixels":  # what NumPy does with PIL images of one size
            return np.array(list(X), dtype=object)
        paths = [tmp_path / f"{id(image)}.png" for image in X]
        for path, image in zip(paths, X, strict=True):
            image.save(path)
        paths = np.array(paths, dtype=object)
        return paths if kind == "paths" else paths[:, None]

    _, sets = predict_sets(
        images.clf, convert(images.X_calibrate[:100]), images.y_calibrate[:100], convert(images.X_test[:40])
    )
    _, expected = predict_sets(images.clf, images.X_calibrate[:100], images.y_calibrate[:100], images.X_test[:40])
    assert np.array_equal(sets, expected)


def test__sets__images_of_several_sizes__predicted(images):
    X_test = object_array([image.resize((20 + index, 30)) for index, image in enumerate(images.X_test[:10])])
    _, sets = predict_sets(images.clf, images.X_calibrate, images.y_calibrate, X_test)
    assert sets.shape == (10, 10)


def test__sets__pipeline__as_of_its_classifier(images):
    pipe = make_pipeline(FunctionTransformer(), images.clf)
    _, sets = predict_sets(pipe, images.X_calibrate, images.y_calibrate, images.X_test)
    assert np.array_equal(sets, images.sets)


def toy_text_classifier():
    return SVETextClassifier(make_toy_text_backbone(), n_members=2, max_epochs=2, batch_size=8, random_state=0)


TEXT_KINDS = {
    "array of str": np.array,
    "column": lambda X: np.array(X, dtype=object)[:, None],
    "sentence pairs": lambda X: np.array([(text, X[0]) for text in X], dtype=object),
    "array of pairs": lambda X: object_array([(text, X[0]) for text in X]),
}


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test__sets__texts_of_any_indexable_kind__as_computed_by_hand(kind):
    X = TEXT_KINDS[kind](TEXTS)
    clf = toy_text_classifier().fit(X, LABELS)
    _, sets = predict_sets(clf, X, LABELS, X[:6])
    scores = np.sort(1 - clf.predict_proba(X)[np.arange(24), np.searchsorted(clf.classes_, LABELS)])
    assert np.array_equal(sets, 1 - clf.predict_proba(X[:6]) <= scores[22] + 1e-8)  # ceil(25 * 0.9) is 23


def test__cross_conformal__texts__fits_a_clone_for_each_fold():
    X = np.array(TEXTS, dtype=object)
    clf = clone(toy_text_classifier())
    conformal = mapie.CrossConformalClassifier(clf, confidence_level=LEVEL, cv=2).fit_conformalize(X, LABELS)
    assert conformal.predict_set(X[:6])[1].shape == (6, 2, 1)
    assert not hasattr(clf, "classes_")
