"""Heads that are solved: the optimum against scikit-learn's, its strength, and what a fit makes of it."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch import nn

import skve
from skve._ensembles import Likelihood
from skve._training import solve
from skve._training.solve import FrozenFeatures, HeadProblem
from skve.testing import ToyClassifier, make_toy_backbone
from tests.toys import TinyMLP, same_arrays, toy_classifier

ONE = {"ensemble": "head", "n_members": 1, "ensemble_params": {"bootstrap": False}, "random_state": 0}


def make_data(n_samples=60, n_features=10, n_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.permutation(np.arange(n_samples) % n_classes)
    scales = rng.uniform(0.1, 3, n_features)
    return rng.normal(size=(n_samples, n_features)) * scales + 2 + targets[:, None] * rng.normal(
        size=n_features
    ), targets


def make_problem(features, targets, weights=None, *, n_classes=3, impossible=None, **settings):
    weights = torch.ones(len(features)) if weights is None else torch.as_tensor(weights)
    samples = FrozenFeatures(torch.as_tensor(features).double(), torch.as_tensor(targets), impossible)
    return HeadProblem(Likelihood(n_classes), samples, weights, 0, **settings)


def best_head(problem, strength, weights=None):
    weight, bias = problem.head(problem.optimum(problem.weights if weights is None else weights, strength))
    return weight.numpy(), bias.numpy() - bias.numpy().mean()  # a constant in all logits changes nothing


def assert_same_heads(first, second, tolerance=1e-3):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(1, np.abs(other).max()))


def sklearn_head(features, targets, strength, weights=None):
    model = LogisticRegression(C=strength, tol=1e-8, max_iter=100_000).fit(features, targets, weights)
    return model.coef_, model.intercept_ - model.intercept_.mean()


# --------------------------------------------------------------------------------------------- the optimum


@pytest.mark.parametrize("n_features", [4, 100])
@pytest.mark.parametrize("strength", [1e-3, 0.1, 10.0])
def test__optimum__weighted_samples__that_of_scikit_learn(strength, n_features):
    features, targets = make_data(n_features=n_features)
    weights = np.random.default_rng(1).uniform(0.5, 2, len(targets))
    problem = make_problem(features, targets, weights)
    assert_same_heads(best_head(problem, strength), sklearn_head(features, targets, strength, weights))


def test__optimum__samples_of_weight_0__as_without_them():
    features, targets = make_data()
    weights = (np.arange(60) % 4 > 0).astype(float)
    kept = weights > 0
    found = best_head(make_problem(features, targets), 0.1, torch.as_tensor(weights))
    assert_same_heads(found, sklearn_head(features[kept], targets[kept], 0.1))


def test__optimum__no_weight_at_all__head_of_the_start():
    features, targets = make_data()
    weight, bias = best_head(make_problem(features, targets), 1.0, torch.zeros(60))
    assert not weight.any()
    assert not bias.any()


def test__optimum__probabilities_as_targets__as_samples_with_these_weights():
    features, _ = make_data()
    proba = np.random.default_rng(2).dirichlet(np.ones(3), 60)
    repeated, targets = np.repeat(features, 3, axis=0), np.tile(np.arange(3), 60)
    found = best_head(make_problem(features, proba), 0.1)
    assert_same_heads(found, sklearn_head(repeated, targets, 0.1, proba.ravel()))


def test__optimum__label_smoothing__as_smoothed_targets():
    features, targets = make_data()
    smoothed = 0.7 * np.eye(3)[targets] + 0.1
    found = best_head(make_problem(features, targets, label_smoothing=0.3), 0.1)
    assert_same_heads(found, best_head(make_problem(features, smoothed), 0.1))


def test__optimum__class_that_is_always_impossible__the_others_as_without_it():
    features, targets = make_data(n_classes=2)
    impossible = torch.tensor([False, False, True]).expand(60, 3)
    weight, _ = best_head(make_problem(features, targets, impossible=impossible), 0.1)
    expected, _ = best_head(make_problem(features, targets, n_classes=2), 0.1)
    assert_same_heads([weight[:2]], [expected])
    np.testing.assert_allclose(weight[2], 0, atol=1e-6)


def test__optimum__strong_penalty__draws_towards_the_start():
    features, targets = make_data()
    start = torch.randn(3, 10, generator=torch.Generator().manual_seed(0)), torch.zeros(3)
    near, far = (best_head(make_problem(features, targets, start=start), C)[0] for C in (1e-7, 10.0))
    np.testing.assert_allclose(near, start[0], atol=1e-3)
    assert np.abs(far - start[0].numpy()).max() > 0.1


# -------------------------------------------------------------------------------------------- the strength


@pytest.mark.parametrize("seed", [0, 1])
def test__best_strength__that_of_scikit_learns_models_on_the_same_folds(seed):
    features, targets = make_data(n_features=30, seed=seed)
    problem = make_problem(features, targets)
    losses = np.zeros(len(solve.STRENGTHS))
    for rows in problem.folds():
        kept = np.setdiff1d(np.arange(60), rows)
        for place, strength in enumerate(solve.STRENGTHS):
            model = LogisticRegression(C=strength, max_iter=100_000).fit(features[kept], targets[kept])
            losses[place] += len(rows) * log_loss(targets[rows], model.predict_proba(features[rows]), labels=range(3))
    assert problem.best_strength() == solve.STRENGTHS[losses.argmin()]


def test__folds__rare_classes_and_weights_of_0__each_is_tested_once_or_never():
    features, _ = make_data(12)
    targets = np.array([0] * 7 + [1] * 2 + [2] + [0] * 2)
    problem = make_problem(features, targets, np.array([1.0] * 10 + [0.0] * 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folds = problem.folds()
    assert len(folds) == 5
    assert sorted(np.concatenate(folds)) == list(range(9))  # neither the lone one nor those that do not count


def test__best_strength__one_sample_of_each_class__fixed():
    features, _ = make_data(3)
    assert make_problem(features, np.arange(3)).best_strength() == solve.FIXED_STRENGTH


# ------------------------------------------------------------------------------------------------- the fit


@pytest.fixture
def iris():
    X, y = load_iris(return_X_y=True)
    return X[::3], y[::3]


def test__fit__one_head__logistic_regression_on_the_frozen_features(iris, monkeypatch):
    monkeypatch.setattr(solve, "STRENGTHS", np.array([0.5]))
    X, y = iris
    clf = ToyClassifier(**ONE).fit(X, y)
    with torch.no_grad():
        features = make_toy_backbone(4)(torch.from_numpy(np.arcsinh(X)).float()).numpy()
    model = LogisticRegression(C=0.5, tol=1e-8, max_iter=10_000).fit(features, y)
    np.testing.assert_allclose(clf.predict_proba(X), model.predict_proba(features), atol=1e-4)


def test__fit__rates_decays_and_epochs__no_effect(iris):
    plain = ToyClassifier(ensemble="head", random_state=0).fit(*iris)
    settings = {"head_lr": 7.0, "head_weight_decay": 9.0, "max_epochs": 1, "batch_size": 7, "schedule": "constant"}
    other = ToyClassifier(ensemble="head", random_state=0, **settings).fit(*iris)
    np.testing.assert_allclose(other.predict_proba(iris[0]), plain.predict_proba(iris[0]), atol=1e-4)


@pytest.mark.parametrize("ensemble", ["head", pytest.param("laplace", marks=pytest.mark.slow)])
def test__fit__same_and_other_seed__same_bits_and_other_members(iris, ensemble):
    fits = [ToyClassifier(ensemble=ensemble, random_state=seed).fit(*iris) for seed in (0, 0, 1)]
    assert same_arrays(fits[0], fits[1])
    assert not same_arrays(fits[0], fits[2])
    assert fits[0].predict_uncertainty(iris[0]).epistemic.max() > 1e-5


@pytest.mark.parametrize("ensemble", ["head", "laplace"])
def test__fit__validation_data__history_of_one_row(iris, ensemble):
    X, y = iris
    clf = ToyClassifier(ensemble=ensemble, random_state=0).fit(X[::2], y[::2], X_val=X[1::2], y_val=y[1::2])
    history = clf.history_
    assert clf.n_iter_ == 1
    assert history["epoch"] == [1]
    assert history["ratio_spread"] == history["gradient_norm"] == {}
    assert history["valid_nll"] == pytest.approx([log_loss(y[1::2], clf.predict_proba(X[1::2]))], rel=1e-3)


def test__fit__one_member__loss_is_that_of_the_training_data(iris):
    clf = ToyClassifier(**ONE).fit(*iris)
    assert clf.history_["loss"] == pytest.approx([log_loss(iris[1], clf.predict_proba(iris[0]))], rel=1e-3)


def test__fit__early_stopping_and_temperature__validation_part_is_set_aside(iris):
    settings = {"early_stopping": True, "calibrate": "temperature", "validation_fraction": 0.4}
    X, y = load_iris(return_X_y=True)
    y = np.where(np.arange(150) % 7 == 0, 0, y)  # some that are predicted wrongly
    clf = ToyClassifier(ensemble="head", random_state=0, **settings).fit(X, y)
    assert np.isfinite(clf.history_["valid_nll"]).all()
    assert clf.temperature_ != 1


@pytest.mark.parametrize("ensemble", ["head", pytest.param("laplace", marks=pytest.mark.slow)])
def test__fit__class_weight_and_sample_weight__counted(iris, ensemble):
    X, y = iris
    plain = ToyClassifier(ensemble=ensemble, random_state=0).fit(X, y).predict_proba(X)
    by_class = ToyClassifier(ensemble=ensemble, random_state=0, class_weight={1: 50}).fit(X, y).predict_proba(X)
    by_sample = ToyClassifier(ensemble=ensemble, random_state=0).fit(X, y, np.where(y == 1, 50, 1)).predict_proba(X)
    assert by_class[:, 1].mean() > plain[:, 1].mean() + 0.01
    np.testing.assert_allclose(by_sample, by_class, atol=1e-6)


def test__fit__constant_features__frequencies_of_the_classes():
    y = np.array([0] * 6 + [1] * 3 + [2])
    clf = ToyClassifier(**ONE).fit(np.ones((10, 4)), y)
    np.testing.assert_allclose(clf.predict_proba(np.ones((1, 4))), [[0.6, 0.3, 0.1]], atol=1e-3)


@pytest.mark.parametrize("ensemble", ["head", "laplace"])
def test__fit__one_sample_of_each_class__likelier_than_by_chance(ensemble):
    X = 5 * np.eye(3)
    clf = ToyClassifier(ensemble=ensemble, random_state=0).fit(X, [0, 1, 2])
    assert np.diag(clf.predict_proba(X)).mean() > 1 / 3


def test__fit__equal_members__warning(iris):
    with pytest.warns(UserWarning, match="All 4 members are the same head.*Set bootstrap"):
        clf = ToyClassifier(**{**ONE, "n_members": 4}).fit(*iris)
    assert clf.predict_uncertainty(iris[0]).epistemic.max() < 1e-12


def test__fit__bootstrap_of_samples_without_weight__finite(iris):
    weights = np.zeros(len(iris[1]))
    weights[[0, 20, 40]] = 1
    clf = ToyClassifier(ensemble="head", n_members=8, ensemble_params={"bootstrap": True}, random_state=0)
    assert np.isfinite(clf.fit(*iris, weights).predict_proba_members(iris[0])).all()


def test__fit__folds__each_member_is_the_optimum_without_its_fold(iris):
    params = {"bootstrap": False, "folds": 4}
    clf = ToyClassifier(ensemble="head", n_members=4, ensemble_params=params, random_state=0).fit(*iris)
    assert clf.oof_proba_.shape == (50, 3)
    assert log_loss(iris[1], clf.oof_proba_) > log_loss(iris[1], clf.predict_proba(iris[0]))
    assert clf.predict_uncertainty(iris[0]).epistemic.max() > 1e-5


def test__fit__diversity__value_error(iris):
    with pytest.raises(ValueError, match="diversity in ensemble_params must be 0 for members that are solved"):
        ToyClassifier(ensemble="head", ensemble_params={"diversity": 0.5}).fit(*iris)


def test__fit__features_that_overflow__value_error():
    class Overflows(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, inputs):
            return self.linear(inputs) / 0

    with pytest.raises(ValueError, match=r"features must be finite, got (nan|-?inf) for X\[0\]"):
        ToyClassifier(Overflows(), ensemble="head").fit(np.eye(4), [0, 1, 0, 1])


def test__fit__callbacks__warning_that_they_are_not_called(iris):
    from skorch.callbacks import Callback

    with pytest.warns(UserWarning, match="callbacks have no effect"):
        ToyClassifier(ensemble="head", callbacks=[Callback()]).fit(*iris)


def test__fit__novelty__from_the_same_pass_over_the_samples(iris, monkeypatch):
    passes, original = [], solve.prediction.frozen_passes

    def counting(*args):
        passes.append(args)
        return original(*args)

    monkeypatch.setattr(solve.prediction, "frozen_passes", counting)
    clf = ToyClassifier(ensemble="head", random_state=0).fit(*iris)
    assert len(passes) == 1
    assert (clf.predict_uncertainty(iris[0]).novelty <= 1).all()


@pytest.mark.parametrize("fitted", [False, True])
def test__fit__ctrl_c__stays_as_it_was(iris, monkeypatch, fitted):
    clf = ToyClassifier(ensemble="head", random_state=0)
    if fitted:
        clf.fit(*iris)
    before = dict(vars(clf))

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(HeadProblem, "optimum", interrupted)
    with pytest.raises(KeyboardInterrupt):
        clf.fit(*iris)
    assert vars(clf) == before


def test__warm_start__other_data__solved_for_these_alone(iris):
    X, y = iris
    warm = ToyClassifier(**ONE, warm_start=True).fit(X, np.roll(y, 20)).fit(X, y)
    fresh = ToyClassifier(**ONE).fit(X, y)
    np.testing.assert_allclose(warm.predict_proba(X), fresh.predict_proba(X), atol=1e-3)


def test__partial_fit__after_fit__one_epoch_of_steps_from_there(iris):
    X, y = iris
    clf = ToyClassifier(**ONE, head_lr=1e-3).fit(X, y)
    solved = clf.predict_proba(X)
    moved = clf.partial_fit(X, np.roll(y, 20)).predict_proba(X)
    assert 1e-5 < np.abs(moved - solved).max() < 0.1


@pytest.mark.parametrize("ensemble", ["head", "laplace"])
def test__save__solved_heads__predict_the_same(images, tmp_path, ensemble):
    clf = toy_classifier(TinyMLP(), ensemble=ensemble).fit(*images)
    clf.save(tmp_path)
    loaded = skve.load(tmp_path, backbone=TinyMLP())
    np.testing.assert_array_equal(loaded.predict_proba(images[0]), clf.predict_proba(images[0]))
