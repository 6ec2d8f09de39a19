"""Temperature scaling inside the estimator: agreement with scikit-learn's, and what it leaves alone."""

import json
import pickle
import tracemalloc

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import log_loss

import skve
from skve import SVETextClassifier
from skve._ensembles import Likelihood
from skve._fitted import temperature
from skve._fitted.saving import document_hash
from skve._fitted.temperature import fit_temperature, fit_temperature_out_of_fold
from skve.testing import make_toy_text_backbone
from tests.toys import pooled_nll, same_arrays, toy_classifier, toy_images

NAMES = np.array(["rose", "iris", "lily"])


@pytest.fixture(scope="module")
def blurred():
    """Images whose labels are in part at random, so that a fit becomes too sure; for training and validation."""
    parts = []
    for seed, per_class in ((0, 20), (1, 15), (2, 30)):
        X, y = toy_images(per_class=per_class, seed=seed)
        rng = np.random.default_rng(seed)
        parts.append((X, NAMES[np.where(rng.random(len(y)) < 0.3, rng.integers(0, 3, len(y)), y)]))
    return parts


@pytest.fixture(scope="module")
def fits(blurred):
    """The same fit without and with calibration, without a prior, as scikit-learn has none."""
    (X, y), (X_val, y_val), _ = blurred
    settings = {"max_epochs": 12, "head_lr": 5e-2, "schedule": "constant"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(temperature, "PRIOR_SCALE", np.inf)
        return [
            toy_classifier(calibrate=calibrate, **settings).fit(X, y, X_val=X_val, y_val=y_val)
            for calibrate in (None, "temperature")
        ]


def test__calibrate__same_validation_data__log_loss_of_scikit_learn(fits, blurred):
    plain, calibrated = fits
    _, (X_val, y_val), (X, y) = blurred
    peer = CalibratedClassifierCV(FrozenEstimator(plain), method="temperature").fit(X_val, y_val)
    for part in ((X_val, y_val), (X, y)):
        ours, theirs = (log_loss(part[1], model.predict_proba(part[0])) for model in (calibrated, peer))
        assert ours == pytest.approx(theirs, abs=1e-6)
    np.testing.assert_allclose(calibrated.predict_proba(X), peer.predict_proba(X), atol=1e-6)


def test__calibrate__predictions_too_sure__temperature_over_one_and_a_better_log_loss(fits, blurred):
    plain, calibrated = fits
    assert plain.temperature_ == 1.0
    assert calibrated.temperature_ > 1.1
    assert pooled_nll(calibrated, *blurred[1]) < pooled_nll(plain, *blurred[1])


def test__calibrate__members_and_uncertainty__as_without_but_for_the_confidence(fits, blurred):
    plain, calibrated = fits
    X = blurred[2][0]
    assert same_arrays(plain, calibrated)
    assert np.array_equal(calibrated.predict_proba_members(X), plain.predict_proba_members(X))
    before, after = plain.predict_uncertainty(X).to_frame(), calibrated.predict_uncertainty(X).to_frame()
    assert before.drop(columns="confidence").equals(after.drop(columns="confidence"))
    assert np.array_equal(after["confidence"], calibrated.predict_proba(X).max(axis=1))
    assert (after["confidence"] < before["confidence"]).all()
    assert np.array_equal(calibrated.predict(X), plain.predict(X))
    assert np.array_equal(calibrated.score_samples(X), plain.score_samples(X))


def test__calibrate__rows__sum_to_one_in_float64(fits, blurred):
    proba = fits[1].predict_proba(blurred[2][0])
    assert proba.dtype == np.float64
    assert proba.flags.c_contiguous
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-12)


def test__calibrate__no_validation_data__own_part_is_set_aside(blurred):
    X, y = blurred[0]
    classifier = toy_classifier(calibrate="temperature", validation_fraction=0.4, max_epochs=12, head_lr=5e-2)
    classifier.fit(X, y)
    assert np.isfinite(classifier.history_["valid_nll"]).all()
    assert classifier.temperature_ != 1.0
    assert not same_arrays(classifier, toy_classifier(max_epochs=12, head_lr=5e-2).fit(X, y))


def test__calibrate__sample_weights__count_in_the_validation_part(blurred):
    X, y = blurred[0]
    settings = {"calibrate": "temperature", "validation_fraction": 0.5, "max_epochs": 12, "head_lr": 5e-2}
    plain = toy_classifier(**settings).fit(X, y)
    assert toy_classifier(**settings).fit(X, y, np.full(len(y), 3.0)).temperature_ == plain.temperature_
    weights = np.random.default_rng(0).uniform(0.1, 3, len(y))
    assert toy_classifier(**settings).fit(X, y, weights).temperature_ != plain.temperature_


def test__calibrate__validation_part_lacks_a_class__fitted_on_the_others(blurred):
    (X, y), (X_val, y_val), _ = blurred
    kept = y_val != "lily"
    classifier = toy_classifier(calibrate="temperature", max_epochs=12, head_lr=5e-2)
    classifier.fit(X, y, X_val=X_val[kept], y_val=y_val[kept])
    assert classifier.temperature_ > 1


def test__fit_temperature__handful_of_samples__close_to_one():
    proba = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.1, 0.2, 0.7], [0.4, 0.3, 0.3]])
    right, wrong = proba.argmax(1), (proba.argmax(1) + 1) % 3
    assert 0.6 < fit_temperature(proba, right, np.ones(4)) < 1
    assert 1 < fit_temperature(proba, wrong, np.ones(4)) < 1.7
    assert (
        fit_temperature(np.tile(proba, (100, 1)), np.tile(right, 100), np.ones(400)) < 0.4
    )  # they outweigh the prior


def test__fit_temperature__samples_without_weight__do_not_count():
    rng = np.random.default_rng(0)
    proba, codes = rng.dirichlet(np.ones(3), 30), rng.integers(0, 3, 30)
    weights = (np.arange(30) < 10).astype(float)
    expected = fit_temperature(proba[:10], codes[:10], np.ones(10))
    assert fit_temperature(proba, codes, 3 * weights) == pytest.approx(expected, rel=1e-5)


def test__fit_temperature__many_classes__memory_linear_in_them():
    n_classes = 4000
    proba = np.random.default_rng(0).dirichlet(np.full(n_classes, 0.1), 8)
    tracemalloc.start()
    try:
        fit_temperature(proba, np.arange(8), np.ones(8))
        assert tracemalloc.get_traced_memory()[1] < 20 * proba.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("n_left_out", "n_members"), [(2, 4), (2, 16), (4, 8)])
def test__fit_temperature_out_of_fold__noisy_members__that_of_the_pool_of_all(n_left_out, n_members):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (4000, 1, 5))
    members = softmax(2 * logits + rng.normal(0, 1, (4000, n_members, 5)), axis=-1)
    codes = (softmax(logits[:, 0], axis=-1).cumsum(axis=1) > rng.random((4000, 1))).argmax(axis=1)
    ones = np.ones(4000)
    best = fit_temperature(members.mean(axis=1), codes, ones)
    found = fit_temperature_out_of_fold(list(members[:, :n_left_out]), codes, ones, n_members)
    of_few = fit_temperature(members[:, :n_left_out].mean(axis=1), codes, ones)
    assert abs(np.log(found / best)) < 0.5 * abs(np.log(of_few / best))


def test__fit_temperature_out_of_fold__one_member_a_sample__between_theirs_and_one():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (500, 4))
    codes = (softmax(logits, axis=1).cumsum(axis=1) > rng.random((500, 1))).argmax(axis=1)
    for sharpness in (3, 0.5):
        proba = softmax(sharpness * logits, axis=1)
        of_one = fit_temperature(proba, codes, np.ones(500))
        found = fit_temperature_out_of_fold(list(proba[:, None]), codes, np.ones(500), 4)
        assert 1 < found < of_one if sharpness > 1 else found == pytest.approx(of_one)


def test__calibrate__refit_without__temperature_one_again(fits, blurred):
    (X, y), (X_val, y_val), _ = blurred
    classifier = toy_classifier(calibrate="temperature", max_epochs=12, head_lr=5e-2)
    classifier.fit(X, y, X_val=X_val, y_val=y_val)
    assert classifier.set_params(calibrate=None).fit(X, y).temperature_ == 1.0


def test__calibrate__warm_start__fitted_anew(blurred):
    (X, y), (X_val, y_val), _ = blurred
    classifier = toy_classifier(calibrate="temperature", head_lr=5e-2, warm_start=True)
    for _ in range(2):
        classifier.fit(X, y, X_val=X_val, y_val=y_val)
        codes = np.searchsorted(classifier.classes_, y_val)
        pooled = classifier.predict_proba_members(X_val).mean(axis=0)
        assert classifier.temperature_ == fit_temperature(pooled, codes, np.ones(len(codes)))


@pytest.mark.parametrize("random_state", [0, None])
def test__calibrate__warm_start__same_samples_set_aside(blurred, random_state):
    X, y = blurred[0]
    aside = []

    class Watched(type(toy_classifier())):
        def _split(self, items, *args):
            parts = super()._split(items, *args)
            aside.append(parts.valid.targets.tolist())
            return parts

    classifier = Watched(**toy_classifier(calibrate="temperature", warm_start=True).get_params())
    classifier.set_params(random_state=random_state, validation_fraction=0.4)
    y = np.arange(len(y))[::-1] // 4 % 3  # so that the labels tell other parts
    classifier.fit(X, y).fit(X, y)
    assert aside[0] == aside[1]


def test__calibrate__partial_fit__value_error_with_the_remedy(images):
    X, y = images
    with pytest.raises(ValueError, match=r"calibrate must be None in partial_fit, which has no validation data, got"):
        toy_classifier(calibrate="temperature").partial_fit(X, y, classes=[0, 1, 2])


def test__calibrate__unknown_method__value_error(images):
    with pytest.raises(ValueError, match="'calibrate' parameter"):
        toy_classifier(calibrate="isotonic").fit(*images)


def test__calibrate__saved_and_pickled__same_probabilities(fits, blurred, tmp_path):
    calibrated, X = fits[1], blurred[2][0]
    expected = calibrated.predict_proba(X)
    with pytest.warns(UserWarning, match="not saved"):
        calibrated.save(tmp_path)
    loaded = skve.load(tmp_path, backbone=calibrated.backbone)
    assert loaded.temperature_ == calibrated.temperature_
    for same in (loaded, pickle.loads(pickle.dumps(calibrated))):
        assert np.array_equal(same.predict_proba(X), expected)


@pytest.mark.parametrize("wrong", [0, -1.0, "2", None, float("nan"), float("inf")])
def test__load__temperature_of_another_kind__value_error(fits, tmp_path, wrong):
    with pytest.warns(UserWarning, match="not saved"):
        fits[1].save(tmp_path)
    path = tmp_path / "skve.json"
    document = {**json.loads(path.read_text()), "temperature": wrong}
    path.write_text(json.dumps({**document, "sha256": document_hash(document)}))
    with pytest.raises(ValueError, match=r"'temperature' parameter of skve\.json must be"):
        skve.load(tmp_path, backbone=fits[1].backbone)


def test__fit_temperature__scaled_logits__the_factor_found():
    # Labels drawn from the probabilities: the logits times 3 want the temperature 3 back, up to the sampling.
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (20_000, 4))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    codes = (true.cumsum(axis=1) > rng.random((len(true), 1))).argmax(axis=1)
    sharp = Likelihood(4).temper(true, 1 / 3)
    assert fit_temperature(sharp, codes, np.ones(len(codes))) == pytest.approx(3, rel=0.03)


def test__calibrate__texts__agrees_with_scikit_learn(monkeypatch):
    monkeypatch.setattr(temperature, "PRIOR_SCALE", np.inf)
    texts = ["a fine day", "what a bore", "fine and good", "a bore again", "so fine", "bore me not"] * 10
    labels = np.random.default_rng(0).permutation(["good", "bad"] * 30)  # nothing to learn, only to remember
    backbone = make_toy_text_backbone("bert")
    settings = {"n_members": 2, "max_epochs": 5, "head_lr": 0.5, "random_state": 0}
    plain, calibrated = (
        SVETextClassifier(backbone, calibrate=calibrate, **settings).fit(
            texts[:30], labels[:30], X_val=texts[30:], y_val=labels[30:]
        )
        for calibrate in (None, "temperature")
    )
    peer = CalibratedClassifierCV(FrozenEstimator(plain), method="temperature").fit(texts[30:], labels[30:])
    proba = calibrated.predict_proba(texts[30:])
    assert calibrated.temperature_ != 1.0
    assert log_loss(labels[30:], proba) == pytest.approx(
        log_loss(labels[30:], peer.predict_proba(texts[30:])), abs=1e-6
    )
    assert skve.predict_uncertainty(calibrated, texts[30:]).confidence == pytest.approx(proba.max(axis=1))
