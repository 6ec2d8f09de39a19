"""Each known failure is provoked in a small fake ensemble; a healthy one reports none."""

import zlib

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skve import diagnose

CLASSES = np.array(["a", "b", "c"])
N_LAYERS, N_MEMBERS = 4, 4


class Fake(ClassifierMixin, BaseEstimator):
    """An ensemble whose samples carry the logits: members see them sharpened and blurred.

    ``noise`` is what sets the members apart, ``sharpness`` how sure they are.
    """

    def __init__(self, init_scale=0.01, noise=0.7, sharpness=1.0, changes=None):
        self.init_scale = init_scale
        self.noise = noise
        self.sharpness = sharpness
        self.changes = changes

    def fit(self, X=None, y=None):
        self.classes_ = CLASSES
        rng = np.random.default_rng(0)
        layers = [f"block.{i}" for i in range(N_LAYERS)]
        self.ratios_ = {layer: np.exp(rng.normal(scale=0.2, size=(N_MEMBERS, 8))) for layer in layers}
        self.history_ = {
            "epoch": [1, 2],
            "loss": [1.0, 0.5],
            "valid_nll": [1.0, 0.6],
            "ratio_spread": {layer: [0.1, 0.2] for layer in layers},
            "gradient_norm": {layer: [0.3, 0.2] for layer in layers},
        }
        if self.changes is not None:
            self.changes(self)
        return self

    def predict_proba_members(self, X):
        X = np.asarray(X)
        # The same sample gets the same noise, wherever it stands.
        rngs = [np.random.default_rng(zlib.crc32(row.tobytes())) for row in np.round(X, 6)]
        noise = np.stack([rng.normal(size=(N_MEMBERS, 3)) for rng in rngs], axis=1)
        logits = self.sharpness * (X + self.noise * noise)
        proba = np.exp(logits - logits.max(axis=2, keepdims=True))
        return proba / proba.sum(axis=2, keepdims=True)

    def predict_proba(self, X):
        return self.predict_proba_members(X).mean(axis=0)

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


@pytest.fixture(scope="module")
def data():
    """Logits, classes drawn with the probabilities that they stand for, and foreign logits near 0."""
    rng = np.random.default_rng(1)
    X = rng.normal(scale=2.5, size=(600, 3))
    codes = (X + rng.gumbel(size=X.shape)).argmax(axis=1)
    return X, CLASSES[codes], 0.3 * rng.normal(size=(200, 3))


@pytest.fixture(scope="module")
def reference(data):
    return LogisticRegression().fit(data[0], data[1])


def names(diagnosis):
    return [finding.name for finding in diagnosis]


# Healthy


def test__diagnose__healthy_with_everything__no_finding_and_all_checked(data, reference):
    X, y, X_ood = data
    diagnosis = diagnose(Fake().fit(), X, y, X_ood=X_ood, reference=reference)
    assert names(diagnosis) == []
    assert len(diagnosis.checked) == 8
    assert not diagnosis.skipped
    assert not diagnosis
    assert str(diagnosis) == "0 of 8 known failures found."


def test__diagnose__healthy_without_data__training_checked_only():
    diagnosis = diagnose(Fake().fit())
    assert names(diagnosis) == []
    assert "ratios hardly moved" in diagnosis.checked
    assert diagnosis.skipped["OOD score near one half"] == "no X_ood"
    assert "not looked for: OOD score near one half (no X_ood)" in str(diagnosis)


def test__diagnose__ensemble_without_ratios__their_checks_skipped(data):
    def no_ratios(fake):
        fake.ratios_ = {}
        fake.history_["gradient_norm"] = {}

    diagnosis = diagnose(Fake(changes=no_ratios).fit(), *data[:2])
    assert names(diagnosis) == []
    assert {"layer without gradient", "ratios ran away", "ratios hardly moved"} <= set(diagnosis.skipped)


@pytest.mark.parametrize("wrap", ["pipeline", "frozen", "calibrated"])
def test__diagnose__wrapped__seen_through(wrap, data):
    X, y, X_ood = data
    fake = Fake(noise=0).fit()
    est = {
        "pipeline": lambda: make_pipeline(FunctionTransformer(lambda Z: Z / 2).fit(X), fake),
        "frozen": lambda: FrozenEstimator(fake),
        "calibrated": lambda: CalibratedClassifierCV(FrozenEstimator(fake), method="temperature").fit(X, y),
    }[wrap]()
    assert names(diagnose(est, X, y, X_ood=X_ood)) == ["members collapsed"]


# Each failure


def zero_gradient(fake):
    fake.history_["gradient_norm"]["block.2"] = [0.0, 0.0]


def nan_gradient(fake):
    fake.history_["gradient_norm"]["block.2"] = [np.nan, np.inf]


def all_zero_gradients(fake):
    fake.history_["gradient_norm"] = {layer: [0.0] for layer in fake.ratios_}


@pytest.mark.parametrize("changes", [zero_gradient, nan_gradient])
def test__diagnose__layer_without_gradient__named(changes):
    (finding,) = diagnose(Fake(changes=changes).fit())
    assert finding.name == "layer without gradient"
    assert "block.2 (1 of 4 layers)" in finding.evidence
    assert "layers=" in finding.remedy


def test__diagnose__no_layer_with_gradient__all_named():
    (finding,) = diagnose(Fake(changes=all_zero_gradients).fit())
    assert "block.0, block.1, block.2 and 1 more (4 of 4 layers)" in finding.evidence


def untrained(fake):
    rng = np.random.default_rng(0)
    for layer in fake.ratios_:
        fake.ratios_[layer] = np.exp(rng.normal(scale=fake.init_scale, size=(N_MEMBERS, 64)))


@pytest.mark.parametrize("ensemble", ["sve", "scale", "sve+lora"])
def test__diagnose__ratios_as_drawn__hardly_moved(ensemble):
    class Kind(Fake):
        def get_params(self, deep=True):
            return {**super().get_params(deep), "ensemble": ensemble}

    (finding,) = diagnose(Kind(changes=untrained).fit())
    assert finding.name == "ratios hardly moved"
    assert "init_scale=0.01" in finding.evidence
    assert "member_lr" in finding.remedy


@pytest.mark.parametrize("ratio", [50.0, 1e-3, 0.0, np.nan, np.inf])
def test__diagnose__ratios_of_a_layer_far_from_one__ran_away(ratio):
    def changes(fake):
        fake.ratios_["block.1"] = np.full((N_MEMBERS, 8), ratio)

    diagnosis = diagnose(Fake(changes=changes).fit())
    assert "ratios ran away" in diagnosis
    assert "block.1" in diagnosis.findings[0].evidence
    assert "lower member_lr" in diagnosis.findings[0].remedy


def test__diagnose__large_init_and_poor_members__init_scale_too_large(data):
    fake = Fake(init_scale=0.5, noise=6.0, changes=untrained).fit()
    diagnosis = diagnose(fake, *data[:2])
    assert "init_scale too large" in diagnosis
    assert "ratios hardly moved" not in diagnosis
    assert "lower init_scale to 0.01" in str(diagnosis)


def test__diagnose__large_init_and_members_below_reference__init_scale_too_large(data, reference):
    X, y, _ = data
    diagnosis = diagnose(Fake(init_scale=0.1, noise=2.0).fit(), X, y, reference=reference)
    assert "init_scale too large" in diagnosis


def test__diagnose__large_init_and_good_members__healthy(data):
    assert "init_scale too large" not in diagnose(Fake(init_scale=0.15).fit(), *data[:2])


def test__diagnose__members_alike_on_samples__collapsed(data):
    (finding,) = diagnose(Fake(noise=0).fit(), data[0])
    assert finding.name == "members collapsed"
    assert "mutual information is 0 of the total" in finding.evidence


def test__diagnose__members_with_equal_ratios_and_no_samples__collapsed():
    def changes(fake):
        fake.ratios_ = {layer: np.repeat(v[:1], N_MEMBERS, axis=0) for layer, v in fake.ratios_.items()}

    (finding,) = diagnose(Fake(changes=changes).fit())
    assert finding.name == "members collapsed"
    assert "log ratios differ by" in finding.evidence


def test__diagnose__overconfident__calibration_worse_than_the_reference(data, reference):
    X, y, _ = data
    diagnosis = diagnose(Fake(sharpness=20).fit(), X, y, reference=reference)
    assert names(diagnosis) == ["calibration worse than the reference"]
    assert "larger than the reference's by 0." in diagnosis.findings[0].evidence


def test__diagnose__reference_with_classes_in_another_order__columns_matched(data, reference):
    X, y, _ = data

    class Turned:
        classes_ = reference.classes_[::-1]

        def predict_proba(self, X):
            return reference.predict_proba(X)[:, ::-1]

        def predict(self, X):
            return reference.predict(X)

    assert not diagnose(Fake().fit(), X, y, reference=Turned())


def test__diagnose__labels_shuffled__uncertainty_does_not_rise_with_error(data):
    X, y, _ = data
    y = np.random.default_rng(0).permutation(y)
    diagnosis = diagnose(Fake().fit(), X, y)
    assert names(diagnosis) == ["uncertainty does not rise with error"]


def test__diagnose__hardly_any_errors__nothing_said_about_ranking_them(data):
    X, y, _ = data
    clear = X.max(axis=1) > 6
    diagnosis = diagnose(Fake().fit(), X[clear], y[clear])
    assert "uncertainty does not rise with error" in diagnosis.skipped


def test__diagnose__foreign_samples_like_the_others__ood_score_near_one_half(data):
    X, y, _ = data
    diagnosis = diagnose(Fake().fit(), X[:300], y[:300], X_ood=X[300:])
    assert names(diagnosis) == ["OOD score near one half"]
    assert "by the total and" in diagnosis.findings[0].evidence


def test__diagnose__foreign_samples_surer_than_familiar_ones__ood_score_near_one_half(data):
    X, _, X_ood = data
    assert "OOD score near one half" in diagnose(Fake().fit(), X_ood, X_ood=X * 3)


# Result and bad input


def test__diagnosis__repr__evidence_and_remedy_of_each():
    text = repr(diagnose(Fake(changes=zero_gradient).fit()))
    assert text.startswith("1 of 4 known failures found.\nlayer without gradient\n  evidence: ")
    assert "  remedy:   leave these layers out" in text


def test__diagnose__data_that_needs_other_data__value_error(data, reference):
    X, y, X_ood = data
    with pytest.raises(ValueError, match="y is given without X"):
        diagnose(Fake().fit(), y=y)
    with pytest.raises(ValueError, match="X_ood is given without X"):
        diagnose(Fake().fit(), X_ood=X_ood)
    with pytest.raises(ValueError, match="reference is given without y"):
        diagnose(Fake().fit(), X, reference=reference)


def test__diagnose__lengths_differ_and_empty__value_error(data):
    X, y, _ = data
    with pytest.raises(ValueError, match="y must have one label for each of the 600 samples, got 599"):
        diagnose(Fake().fit(), X, y[:-1])
    with pytest.raises(ValueError, match=r"among est.classes_ .*, got \['z'\]"):
        diagnose(Fake().fit(), X, np.full(600, "z"))


def test__diagnose__reference_of_other_classes__value_error(data):
    X, y, _ = data
    other = LogisticRegression().fit(X, (y == "a").astype(int))
    with pytest.raises(ValueError, match="reference must know the classes of est"):
        diagnose(Fake().fit(), X, y, reference=other)


def test__diagnose__plain_classifier__type_error(data, reference):
    with pytest.raises(TypeError, match="LogisticRegression has no predict_proba_members"):
        diagnose(reference, data[0])


@pytest.mark.parametrize("wrap", [lambda fake: fake, make_pipeline, FrozenEstimator])
def test__diagnose__not_fitted__not_fitted_error(wrap):
    with pytest.raises(NotFittedError, match="Fake instance is not fitted"):
        diagnose(wrap(Fake()))


@pytest.mark.parametrize(
    ("ensemble", "remedy", "without"),
    [
        ("head", "bootstrap", "member_lr"),
        ("laplace", "prior_precision", "member_lr"),
        ("deep", "member_lr", "init_scale"),
        ("sve", "init_scale is not 0", "head_lr"),
    ],
)
def test__diagnose__collapsed_ensemble_of_any_kind__remedy_that_it_can_follow(ensemble, remedy, without, data):
    class Kind(Fake):
        def get_params(self, deep=True):
            return {**super().get_params(deep), "ensemble": ensemble}

    (finding,) = diagnose(Kind(noise=0).fit(), data[0])
    assert remedy in finding.remedy
    assert without not in finding.remedy


def test__diagnose__heads_with_large_init_scale__not_blamed(data):
    class Heads(Fake):
        def get_params(self, deep=True):
            return {**super().get_params(deep), "ensemble": "head"}

    assert "init_scale too large" in diagnose(Heads(init_scale=0.5, noise=6.0).fit(), *data[:2]).skipped


def test__diagnose__with_everything__three_predictions_of_the_ensemble(data, reference):
    calls = []

    class Counting(Fake):
        def predict_proba_members(self, X):
            calls.append(len(X))
            return super().predict_proba_members(X)

    diagnose(Counting().fit(), *data[:2], X_ood=data[2], reference=reference)
    assert calls == [600, 600, 200]
