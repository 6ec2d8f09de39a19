"""Predictions blended with a logistic regression on features of the frozen backbone."""

import json

import numpy as np
import pytest
from safetensors.numpy import load, save

import skve
from skve._ensembles import Likelihood
from skve._fitted import saving
from skve._fitted.blending import PRIOR_RATE, fit_share
from skve.testing import ToyClassifier
from skve.uncertainty import predictive_entropy
from tests.toys import TinyMLP, toy_classifier

RNG = np.random.default_rng(0)
TRUTH = RNG.integers(3, size=300)


def predictions(sharpness, seed):
    """Probabilities that are right more often, the sharper they are."""
    logits = np.random.default_rng(seed).normal(size=(300, 3))
    logits[np.arange(300), TRUTH] += sharpness
    proba = np.exp(logits)
    return proba / proba.sum(axis=1, keepdims=True)


def loss(proba):
    return -np.log(proba[np.arange(300), TRUTH]).mean()


def test__fit_share__other_is_better__its_share_maximises_the_posterior():
    own, other = predictions(1.0, 1), predictions(1.2, 2)
    share = fit_share(own, other, TRUTH, np.ones(300))

    def objective(s):
        return 300 * loss((1 - s) * own + s * other) + PRIOR_RATE * s

    assert 0.2 < share < 0.9
    assert objective(share) <= min(map(objective, np.linspace(0, 1, 101))) + 1e-6


def test__fit_share__other_knows_all__alone():
    other = np.full((300, 3), 1e-6)
    other[np.arange(300), TRUTH] = 1 - 2e-6
    assert fit_share(predictions(0.5, 1), other, TRUTH, np.ones(300)) == 1.0


@pytest.mark.parametrize("other", [predictions(-0.5, 3), np.full((300, 3), 1 / 3)], ids=["worse", "uniform"])
def test__fit_share__other_does_not_help__zero(other):
    assert fit_share(predictions(1.5, 1), other, TRUTH, np.ones(300)) == 0.0


@pytest.mark.parametrize("n", [1, 6])
def test__fit_share__handful_of_samples__cannot_decide(n):
    own = np.full((n, 3), 1 / 3)
    other = np.full((n, 3), 0.3)
    other[np.arange(n), TRUTH[:n]] = 0.4  # a little better on each
    assert fit_share(own, other, TRUTH[:n], np.ones(n)) == 0.0


def test__fit_share__weights__count_as_copies():
    own, other = predictions(0.5, 1), predictions(1.0, 2)
    weights = np.where(np.arange(300) < 150, 1.0, 0.0)
    assert fit_share(own, other, TRUTH, weights) == pytest.approx(
        fit_share(own[:150], other[:150], TRUTH[:150], np.ones(150)), abs=1e-6
    )


# ------------------------------------------------------------------------------------------ in a classifier

X = RNG.normal(size=(60, 4))
y = np.array(["no", "yes"])[(X[:, 0] > 0).astype(int)]
FOLDS = {"n_members": 4, "ensemble_params": {"folds": 4}, "max_steps": 2, "random_state": 0}


@pytest.fixture(scope="module")
def blended():
    """Two steps leave members behind a regression on frozen features, which separate the classes."""
    return ToyClassifier(**FOLDS).fit(X, y)


def test__fit__regression_is_better_out_of_fold__prediction_has_a_share_of_it(blended):
    share = blended.regression_share_
    assert 0 < share <= 1
    head = blended._state.regression
    logits = blended.transform(X).astype(float) @ head["weight"].T.astype(float) + head["bias"]
    regression = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    members = blended.predict_proba_members(X)
    tempered = Likelihood(2).temper(members.mean(axis=0), blended.temperature_)
    proba = blended.predict_proba(X)
    np.testing.assert_allclose(proba, (1 - share) * tempered + share * regression, atol=1e-6)
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-12)
    u = blended.predict_uncertainty(X)
    np.testing.assert_allclose(u.confidence, proba.max(axis=1))
    np.testing.assert_allclose(u.total, predictive_entropy(members))


def test__fit__regression__is_solved_on_all_samples(blended):
    alone = ToyClassifier(ensemble="head", n_members=1, ensemble_params={"bootstrap": False}, random_state=0).fit(
        X, y
    )
    np.testing.assert_allclose(blended._state.regression["weight"], alone._state.arrays["head.weight"][0], atol=1e-3)


@pytest.mark.parametrize(
    "parameters",
    [{"calibrate": "temperature"}, {"calibrate": None}, {"ensemble": "head", "ensemble_params": {"folds": 4}}],
    ids=str,
)
def test__fit__not_asked_for__no_regression(parameters):
    assert ToyClassifier(**{**FOLDS, **parameters}).fit(X, y).regression_share_ == 0


def test__fit__after_a_blend__state_of_its_own(blended):
    again = ToyClassifier(**FOLDS).fit(X, y).set_params(calibrate=None).fit(X, y)
    assert again.regression_share_ == 0
    np.testing.assert_array_equal(again.predict_proba(X), again.predict_proba_members(X).mean(axis=0))
    assert blended.regression_share_ > 0


@pytest.fixture
def saved(images, tmp_path):
    """A blended classifier, and the folder that it was saved in."""
    parameters = {name: value for name, value in FOLDS.items() if name != "max_steps"}
    classifier = toy_classifier(TinyMLP(), **parameters, max_epochs=1).fit(*images)
    assert classifier.regression_share_ > 0
    with pytest.warns(UserWarning, match="not saved"):
        classifier.save(tmp_path / "model")
    return classifier, tmp_path / "model"


def test__save__blend__predicts_the_same(images, saved):
    classifier, folder = saved
    loaded = skve.load(folder, backbone=TinyMLP())
    assert loaded.regression_share_ == classifier.regression_share_
    np.testing.assert_array_equal(loaded.predict_proba(images[0]), classifier.predict_proba(images[0]))


def test__load__share_above_one__refused(saved):
    folder = saved[1]
    document = json.loads((folder / "skve.json").read_text())
    arrays = load((folder / document["files"]["regression"]["file"]).read_bytes())
    data = save({**arrays, "share": np.array([1.5])})
    document["files"]["regression"] = saving._entry("regression", data)
    (folder / document["files"]["regression"]["file"]).write_bytes(data)
    document["sha256"] = saving.document_hash(document)
    (folder / "skve.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="'regression' is not what save writes"):
        skve.load(folder, backbone=TinyMLP())
