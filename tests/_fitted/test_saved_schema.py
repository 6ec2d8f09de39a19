"""What a saved model may say: each value that `save` does not write is refused before it is used."""

import copy
import json

import numpy as np
import pytest

from skve._fitted.saved_schema import NAMES, check_document
from skve._fitted.saving import DOCUMENT
from tests.toys import toy_classifier


@pytest.fixture(scope="module")
def saved(images, tmp_path_factory):
    """A document as it is saved, its estimator and its arrays."""
    classifier = toy_classifier(max_epochs=1).fit(*images)
    folder, state = tmp_path_factory.mktemp("model"), classifier._state
    with pytest.warns(UserWarning, match="not saved"):
        classifier.save(folder)
    return (
        json.loads((folder / DOCUMENT).read_text()),
        classifier,
        {"members": dict(state.arrays), "training": dict(state.training)},
    )


def changed(saved, *path, value):
    document, classifier, tensors = saved
    document = copy.deepcopy(document)
    part = document
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    return document, classifier, tensors


def test__check_document__as_saved__accepted(saved):
    check_document(*saved)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("n_iter",), -1),
        (("n_iter",), "1"),
        (("temperature",), 0.0),
        (("temperature",), float("inf")),
        (("history",), []),
        (("state", "n_classes"), 1),
        (("state", "n_classes"), 4),
        (("state", "batch_size"), 0),
        (("state", "ensemble"), "pickle"),
        (("state", "train_bias"), 1),
        (("state", "layers"), [1]),
        (("state", "shareable"), [None]),
        (("state", "fingerprints"), {"fc1": "1"}),
        (("state", "fingerprints"), {"nowhere": 1.0}),
        (("state", "positions"), {"fc1": float("nan")}),
        (("state", "backbone"), {"kind": "module", "name": 3, "sha256": ""}),
        (("classes", "values"), [0, 0, 1]),
        (("classes", "values"), [2, 1, 0]),
        (("fitted",), {}),
        (("fitted", "predict"), "x"),
        (("fitted", NAMES), ["one"]),
        (("fitted", NAMES), ["one", 2]),
    ],
    ids=str,
)
def test__check_document__value_that_save_does_not_write__value_error(path, value, saved):
    with pytest.raises(ValueError, match=r"must|is not what save writes\. Use a complete copy\."):
        check_document(*changed(saved, *path, value=value))


@pytest.mark.parametrize("name", ["classes", "state", "temperature", "preprocess"])
def test__check_document__value_missing__key_error(name, saved):
    document, classifier, tensors = saved
    with pytest.raises(KeyError):
        check_document({key: value for key, value in document.items() if key != name}, classifier, tensors)


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("head.weight"),
        lambda arrays: arrays.update({"head.bias": arrays["head.bias"].astype(np.float64)}),
        lambda arrays: arrays.update({"head.bias": np.full_like(arrays["head.bias"], np.nan)}),
        lambda arrays: arrays.update({"head.bias": np.float32(1)}),
        lambda arrays: arrays.update({"head.bias": np.zeros((5, 3), np.float32)}),
    ],
    ids=["no head", "float64", "NaN", "a number", "other members"],
)
def test__check_document__members_that_save_does_not_write__value_error(change, saved):
    document, classifier, tensors = saved
    members = dict(tensors["members"])
    change(members)
    with pytest.raises(ValueError, match="'members' is not what save writes"):
        check_document(document, classifier, {**tensors, "members": members})


@pytest.mark.parametrize("name", ["directions", "coordinates", "distances"])
@pytest.mark.parametrize("change", [lambda a: a[:0], lambda a: a.astype(np.float32), lambda a: a * np.nan, None])
def test__check_document__training_that_save_does_not_write__value_error(name, change, saved):
    document, classifier, tensors = saved
    training = {key: value for key, value in tensors["training"].items() if key != name}
    if change is not None:
        training[name] = change(tensors["training"][name])
    with pytest.raises(ValueError, match="is not what save writes"):
        check_document(document, classifier, {**tensors, "training": training})


def test__check_document__saved_by_01_without_training__accepted(saved):
    document, classifier, tensors = saved
    check_document(document, classifier, {"members": tensors["members"]})
