"""Distances from the training data, and the share of the training samples that are nearer."""

import dataclasses

import numpy as np
import pytest
from scipy import stats
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import cosine_similarity

import skve
from skve._fitted.novelty import Novelty, n_kept
from skve.testing import ToyClassifier


def features(n, seed=0, width=24, centre=3.0):
    return np.random.default_rng(seed).normal(size=(n, width)) + centre


def nearest(train, X, k=5):
    return 1 - np.sort(cosine_similarity(X, train), axis=1)[:, -k:].mean(axis=1)


def test__distances__are_those_to_the_five_nearest_training_samples():
    train, X = features(60), features(40, seed=1)
    found = Novelty.of_training(train).distances_of(X)
    np.testing.assert_allclose(found, nearest(train, X), atol=2e-3)


def test__own_distances__leave_each_sample_out():
    train = features(30)
    expected = [nearest(np.delete(train, i, axis=0), train[i : i + 1])[0] for i in range(30)]
    np.testing.assert_allclose(Novelty.of_training(train).distances, np.sort(expected), atol=2e-3)


@pytest.mark.parametrize("n", [20, 80, 1000])
def test__share_above_a_threshold__is_that_of_false_alarms(n):
    alarms, n_repeats, n_test = [], 60 if n < 1000 else 5, 400
    for seed in range(n_repeats):
        novelty = Novelty.of_training(features(n, seed))
        alarms.append(np.mean(novelty.shares(novelty.distances_of(features(n_test, 1000 + seed))) > 0.95))
    # Of one fit the number is beta-binomial, since its threshold lies between two order statistics.
    above = max(1, int(np.ceil(0.05 * (n + 1))))
    spread = stats.betabinom(n_test, above, n + 1 - above).std() / n_test / np.sqrt(n_repeats)
    assert abs(np.mean(alarms) - 0.05) < 3 * spread + 0.5 / (n + 1)


@pytest.mark.parametrize("n", [2, 3, 5, 6, 40])
def test__shares__grow_strictly_and_far_beyond_the_training_data(n):
    novelty = Novelty.of_training(features(n))
    distances = np.sort(np.concatenate([np.linspace(0, 2, 5001), novelty.distances]))
    shares = novelty.shares(distances)
    assert (np.diff(shares)[np.diff(distances) > 1e-12] > 0).all()
    assert shares.min() >= 0
    assert shares.max() < 1


def test__shares__rank_as_the_distances_do():
    novelty = Novelty.of_training(features(50))
    near, far = features(200, seed=1), features(200, seed=2, centre=2.0)
    truth, distances = np.repeat([0, 1], 200), novelty.distances_of(np.concatenate([near, far]))
    assert roc_auc_score(truth, novelty.shares(distances)) == roc_auc_score(truth, distances)


def test__duplicates__count_once():
    train, X = features(40), features(300, seed=1)
    once, often = Novelty.of_training(train), Novelty.of_training(np.repeat(train, 3, axis=0))
    np.testing.assert_allclose(often.shares(often.distances_of(X)), once.shares(once.distances_of(X)), atol=0.03)


@pytest.mark.parametrize("train", [np.ones((10, 4)), np.zeros((10, 4)), np.ones((1, 4))])
def test__constant_features__alarm_at_nothing_that_is_the_same(train):
    novelty = Novelty.of_training(train)
    shares = novelty.shares(novelty.distances_of(train))
    assert (shares <= 0.9).all()
    other = novelty.shares(novelty.distances_of(np.array([[1.0, -1.0, 0.0, 0.0]])))
    assert np.isfinite(other).all()


@pytest.mark.parametrize(("n", "width"), [(3000, 64), (2000, 1280), (400, 4096)])
def test__what_is_kept__stays_under_a_megabyte(n, width):
    novelty = Novelty.of_training(features(n, width=width), n_classes=20)
    assert novelty.directions.nbytes + novelty.coordinates.nbytes + novelty.distances.nbytes < 1_010_000
    assert len(novelty.distances) == min(n, n_kept(20))


def test__earlier_data__stay():
    first, second = features(40), features(40, seed=1) * [-1, *[1] * 23]
    both = Novelty.of_training(second, Novelty.of_training(first))
    assert np.median(both.shares(both.distances_of(features(40, seed=2)))) < 0.9


# ------------------------------------------------------------------------------------------- of an estimator


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4))
    return X, (X[:, 0] > 0).astype(int)


@pytest.mark.parametrize("ensemble", ["sve", "deep", "head", "dropout"])
def test__every_ensemble__has_the_same_novelty_of_the_frozen_backbone(data, ensemble):
    X, y = data
    clf = ToyClassifier(ensemble=ensemble, n_members=2, max_epochs=1, random_state=0).fit(X, y)
    u = clf.predict_uncertainty(X * 3)
    other = ToyClassifier(ensemble="single", max_epochs=1, random_state=1).fit(X, y).predict_uncertainty(X * 3)
    np.testing.assert_allclose(u.novelty, other.novelty, atol=1e-6)
    assert u.novelty.mean() > clf.predict_uncertainty(X).novelty.mean()


def test__score_samples__orders_as_novelty_does(data):
    X, y = data
    clf = ToyClassifier(n_members=2, max_epochs=1, random_state=0).fit(X, y)
    far = X * 2
    assert (np.argsort(-clf.score_samples(far)) == np.argsort(clf.predict_uncertainty(far).novelty)).all()


def test__samples_of_weight_zero__are_no_training_data(data):
    X, y = data
    weight = np.where(np.arange(60) < 40, 1.0, 0.0)
    clf = ToyClassifier(n_members=2, max_epochs=1, random_state=0)
    weighted = clf.fit(X, y, sample_weight=weight).score_samples(X)
    np.testing.assert_allclose(weighted, clf.fit(X[:40], y[:40]).score_samples(X), atol=1e-6)


def test__partial_fit__adds_to_the_training_data(data):
    X, y = data
    clf = ToyClassifier(n_members=2, random_state=0).partial_fit(X[:30], y[:30], classes=[0, 1])
    before = clf.score_samples(X[30:])
    after = clf.partial_fit(X[30:], y[30:]).score_samples(X[30:])
    assert (after >= before - 2e-3).all()
    assert len(clf._state.novelty.distances) == 60


def test__a_model_saved_before__has_no_novelty_and_says_so(data):
    X, y = data
    clf = ToyClassifier(n_members=2, max_epochs=1, random_state=0).fit(X, y)
    clf._state = dataclasses.replace(clf._state, training={})
    assert np.isnan(clf.predict_uncertainty(X[:3]).novelty).all()
    with pytest.raises(ValueError, match="score_samples requires a model that keeps"):
        clf.score_samples(X[:3])
    with pytest.raises(ValueError, match="novelty"):
        skve.SelectiveClassifier(FrozenEstimator(clf), coverage=0.9, uncertainty="novelty").fit(X, y)
