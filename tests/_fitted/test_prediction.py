"""Predictions: their progress bar, the parameters they read, and a fit that comes between."""

import copy

import numpy as np
import pytest
import torch

from skve._ensembles import BATCHES_PER_INSTALLATION
from skve._ensembles.ensemble import Ensemble
from skve._fitted import prediction
from skve._inputs import pipeline
from skve.testing import ToyClassifier

N_BATCHES = BATCHES_PER_INSTALLATION + 1
X = np.random.default_rng(0).normal(size=(2 * N_BATCHES, 3))
y = np.arange(len(X)) % 2


@pytest.fixture(scope="module")
def fitted():
    return ToyClassifier(n_members=3, max_epochs=1, batch_size=2, random_state=0).fit(X, y)


@pytest.mark.parametrize(("verbose", "n_batches"), [(1, N_BATCHES), (1, N_BATCHES - 1), (0, N_BATCHES)])
def test__predict__verbose_and_many_batches__bar_over_members_and_batches(fitted, verbose, n_batches, capsys):
    fitted.set_params(verbose=verbose).predict(X[: 2 * n_batches])
    captured = capsys.readouterr()
    assert captured.out == ""
    if verbose and n_batches > BATCHES_PER_INSTALLATION:
        assert f"{3 * n_batches}/{3 * n_batches}" in captured.err
    else:
        assert captured.err == ""


def test__predict__batches_halved_when_memory_is_short__bar_still_ends_full(fitted, monkeypatch, capsys):
    expected = fitted.predict_proba(X)
    original = Ensemble.member_logits

    def short_of_memory(self, inputs, index):
        if len(inputs) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, inputs, index)

    monkeypatch.setattr(Ensemble, "member_logits", short_of_memory)
    capsys.readouterr()
    np.testing.assert_allclose(fitted.set_params(verbose=1).predict_proba(X), expected, rtol=0, atol=1e-6)
    total = 3 * len(X)
    assert f"{total}/{total}" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [0, 2.5, "8"])
def test__predict__batch_size_set_after_the_fit__validated(fitted, wrong):
    with pytest.raises(ValueError, match="'batch_size' parameter of ToyClassifier must be an int"):
        clone_of(fitted).set_params(batch_size=wrong).predict(X)


def test__predict__pipeline_that_leaves_samples_out__error(fitted, monkeypatch):
    original = pipeline.index_batches
    monkeypatch.setattr(pipeline, "index_batches", lambda *args: original(*args)[:-1])
    with pytest.raises(RuntimeError, match=f"each of the {len(X)} items once"):
        fitted.predict(X)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_proba_members", "predict_uncertainty"])
def test__predict__fit_of_other_data_meanwhile__one_model_answers(fitted, monkeypatch, method):
    estimator = clone_of(fitted)
    before = np.asarray(answer(estimator, method))
    refitted = []

    def predict(*args, **kwargs):
        if not refitted:
            refitted.append(True)
            estimator.fit(X[:, :2], np.array(["a", "b", "c", "d"])[np.arange(len(X)) % 4])
        return original(*args, **kwargs)

    original = prediction.predict
    monkeypatch.setattr(prediction, "predict", predict)
    assert np.array_equal(answer(estimator, method), before)
    assert refitted
    assert estimator.classes_.tolist() == ["a", "b", "c", "d"]


def clone_of(fitted):
    return copy.copy(fitted)


def answer(estimator, method):
    found = getattr(estimator, method)(X)
    return found.confidence if method == "predict_uncertainty" else found


@pytest.mark.parametrize(
    ("batch_size", "width", "n_batches"), [(32, 40, 16), (256, 4 * 5000, 6), (256, 16 * 20000, 1), (1, 0, 16)]
)
def test__block__many_classes__fewer_batches(batch_size, width, n_batches):
    assert prediction.batches_of_a_block(batch_size, width) == n_batches


def test__predict__small_blocks__same_probabilities(fitted, monkeypatch):
    expected = fitted.predict_uncertainty(X, return_proba=True)
    monkeypatch.setattr(prediction, "_LARGEST_BLOCK", 1)
    found = fitted.predict_uncertainty(X, return_proba=True)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-6)
    np.testing.assert_allclose(found[0].novelty, expected[0].novelty, atol=1e-6)
