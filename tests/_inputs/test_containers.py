"""Strings and tables of any library, and the order of their columns."""

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest

import skve
from skve._inputs.containers import as_sequence, columns_of, plain_str
from skve.testing import make_toy_text_backbone
from tests._inputs.test_texts import Loud
from tests.toys import toy_classifier


def test__plain_str__subclass__its_characters_as_a_str():
    for text in (Loud("a"), np.str_("a")):
        assert plain_str(text) == "a"
        assert type(plain_str(text)) is str


@pytest.mark.parametrize("values", [{"a": 1}, {1, 2}, "ab", b"ab", 3, None, (i for i in range(2))])
def test__as_sequence__no_order_or_no_container__as_it_is(values):
    assert as_sequence(values, "X") is values


def test__columns_of__names_that_stand_twice__each_its_own():
    frame = pd.DataFrame([["a", "b"]], columns=["text", "text"])
    assert [column.tolist() for column in columns_of(frame)] == [["a"], ["b"]]


@pytest.fixture(scope="module")
def pairs():
    frame = pd.DataFrame({"question": ["to be", "or not", "that is", "it"], "answer": ["yes", "no", "maybe", "so"]})
    backbone = make_toy_text_backbone("bert")
    parameters = {"n_members": 1, "max_epochs": 1, "batch_size": 4, "device": "cpu", "random_state": 0}
    return skve.SVETextClassifier(backbone, **parameters).fit(frame, [0, 1, 0, 1]), frame


def test__fit__pairs_in_a_frame__names_learned_and_another_order_refused(pairs):
    classifier, frame = pairs
    assert classifier.feature_names_in_.tolist() == ["question", "answer"]
    for swapped in (frame[["answer", "question"]], pl.DataFrame(frame[["answer", "question"]].to_dict("list"))):
        with pytest.raises(ValueError, match="feature names should match"):
            classifier.predict(swapped)


def test__load__pairs_in_a_frame__another_order_still_refused(pairs, tmp_path):
    classifier, frame = pairs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classifier.save(tmp_path)
    loaded = skve.load(tmp_path, backbone=classifier.backbone)
    assert loaded.feature_names_in_.tolist() == ["question", "answer"]
    assert np.array_equal(loaded.predict_proba(frame), classifier.predict_proba(frame))
    with pytest.raises(ValueError, match="feature names should match"):
        loaded.predict(frame[["answer", "question"]])


def test__fit__pixels_in_a_frame__another_order_refused_and_forgotten_by_another_fit(images):
    X, y = images
    rows = pd.DataFrame(X.reshape(len(X), -1)).rename(columns=str)
    classifier = toy_classifier(image_shape=X.shape[1:], max_epochs=1).fit(rows, y)
    with pytest.raises(ValueError, match="feature names should match"):
        classifier.predict(rows[rows.columns[::-1]])
    assert not hasattr(classifier.fit(rows.to_numpy(), y), "feature_names_in_")


def test__predict__one_column_under_another_name__does_not_matter(images):
    X, y = images
    frame = pd.DataFrame({"image": list(X)})
    classifier = toy_classifier(max_epochs=1).fit(frame, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(classifier.predict(frame.rename(columns={"image": "other"})), classifier.predict(X))
