"""Each known failure is provoked in a small fake ensemble; a healthy one reports none."""

import zlib

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from skve import diagnose, metrics
from skve.testing import ToyClassifier

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
            "epoch": [1, 2, 3, 4, 5, 6],
            "step": [20, 40, 60, 80, 100, 120],
            "loss": [1.0, 0.5, 0.4, 0.38, 0.38, 0.38],
            "valid_nll": [1.0, 0.6, 0.55, 0.52, 0.5, 0.51],
            "ratio_spread": {layer: [0.1] * 6 for layer in layers},
            "gradient_norm": {layer: [0.3] * 6 for layer in layers},
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
    """Worse than the ensemble by a little: it learned from other samples."""
    rng = np.random.default_rng(2)
    X = rng.normal(scale=2.5, size=(40, 3))
    return LogisticRegression().fit(X, CLASSES[(X + rng.gumbel(size=X.shape)).argmax(axis=1)])


def names(diagnosis):
    return [finding.name for finding in diagnosis]


# Healthy


def test__diagnose__healthy_with_everything__no_finding_and_all_checked(data, reference):
    X, y, X_ood = data
    diagnosis = diagnose(Fake().fit(), X, y, X_ood=X_ood, reference=reference)
    assert names(diagnosis) == []
    assert len(diagnosis.checked) == 12
    assert diagnosis.skipped == {"worse than logistic regression": "a reference is given"}
    assert not diagnosis
    assert str(diagnosis).startswith("0 of 12 known failures found.\nmeasured: gain of the ensemble: the NLL of the")
    assert list(diagnosis.measured) == ["gain of the ensemble", "calibration", "comparison", "foreign samples"]


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
    assert names(diagnosis) == [
        "overconfident",
        "worse than the reference",
        "calibration worse than the reference",
    ]
    assert "larger than the reference's by 0." in diagnosis.findings[2].evidence


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
    assert names(diagnosis) == ["overconfident", "uncertainty does not rise with error"]


def test__diagnose__hardly_any_errors__nothing_said_about_ranking_them(data):
    X, y, _ = data
    clear = X.max(axis=1) > 6
    diagnosis = diagnose(Fake().fit(), X[clear], y[clear])
    assert "uncertainty does not rise with error" in diagnosis.skipped


def test__diagnose__foreign_samples_like_the_others__ood_score_near_one_half(data):
    X, y, _ = data
    diagnosis = diagnose(Fake().fit(), X[:300], y[:300], X_ood=X[300:])
    assert names(diagnosis) == ["OOD score near one half"]
    assert "by the total uncertainty, 0." in diagnosis.findings[0].evidence


def test__diagnose__foreign_samples_surer_than_familiar_ones__ood_score_near_one_half(data):
    X, _, X_ood = data
    assert "OOD score near one half" in diagnose(Fake().fit(), X_ood, X_ood=X * 3)


# Result and bad input


def test__diagnosis__repr__evidence_and_remedy_of_each():
    text = repr(diagnose(Fake(changes=zero_gradient).fit()))
    assert text.startswith("1 of 5 known failures found.\nlayer without gradient\n  evidence: ")
    assert "  remedy:   leave these layers out" in text


def test__diagnose__data_that_needs_other_data__value_error(data, reference):
    X, y, X_ood = data
    with pytest.raises(ValueError, match="X must be given where y is, got None"):
        diagnose(Fake().fit(), y=y)
    with pytest.raises(ValueError, match="X must be given where X_ood is, got None"):
        diagnose(Fake().fit(), X_ood=X_ood)
    with pytest.raises(ValueError, match="y must be given where reference is, got None"):
        diagnose(Fake().fit(), X, reference=reference)
    with pytest.raises(ValueError, match="y_train must be given where X_train is, got None"):
        diagnose(Fake().fit(), X, y, X_train=X)


def test__diagnose__no_samples__value_error():
    class Nothing:
        def predict_proba_members(self, X):
            return np.empty((2, len(X), 3))

    with pytest.raises(ValueError, match="X must have at least one sample, got none"):
        diagnose(Nothing(), [])


def test__diagnose__lengths_differ_and_empty__value_error(data):
    X, y, _ = data
    with pytest.raises(ValueError, match="y must have one label for each of the 600 samples, got 599"):
        diagnose(Fake().fit(), X, y[:-1])
    with pytest.raises(ValueError, match=r"among est.classes_ .*, got 'z'"):
        diagnose(Fake().fit(), X, np.full(600, "z"))


def test__diagnose__reference_of_other_classes__value_error(data):
    X, y, _ = data
    other = LogisticRegression().fit(X, (y == "a").astype(int))
    with pytest.raises(ValueError, match="reference must know the same classes as est, got one that "):
        diagnose(Fake().fit(), X, y, reference=other)


def test__diagnose__plain_classifier__type_error(data, reference):
    with pytest.raises(TypeError, match="got a LogisticRegression, which has no predict_proba_members"):
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
    assert calls == [600, 600, 200]  # one of X is that of est.predict_proba


def test__diagnose__fitted_toy_with_everything__one_pass_of_the_members_over_each(blobs, healthy, monkeypatch):
    passes = []
    predict = ToyClassifier._predict_blocks

    def counting(self, items, kinds, *args, **options):
        passes.append((len(items), *(kind for kind in kinds if kind != "regression")))  # of the same pass
        return predict(self, items, kinds, *args, **options)

    monkeypatch.setattr(ToyClassifier, "_predict_blocks", counting)
    X_train, y_train, X, y, X_ood = blobs
    diagnose(healthy, X, y, X_train=X_train, y_train=y_train, X_ood=X_ood)
    assert sorted(passes) == [(100, "proba", "features"), (200, "features"), (300, "proba", "features")]


# Toys that were fitted


def toy(**params):
    """An ensemble of a strength that suits a toy backbone: heads that use it, members that differ."""
    given = {"n_members": 2, "member_lr": 3e-3, "head_lr": 0.1, "head_weight_decay": 0.05, "random_state": 0}
    length = {} if "max_epochs" in params else {"max_steps": 160}
    return ToyClassifier(**given | length | params)


@pytest.fixture(scope="module")
def blobs():
    X, y = make_blobs(500, n_features=8, centers=4, cluster_std=3.5, random_state=0)
    y = np.array(["a", "b", "c", "d"])[y]
    return X[:200], y[:200], X[200:], y[200:], 30 + 10 * np.random.default_rng(0).normal(size=(100, 8))


@pytest.fixture(scope="module")
def healthy(blobs):
    return toy(ensemble_params={"folds": 2}).fit(*blobs[:2])


HEALTHY = {
    "bootstrap": {"ensemble_params": {"bootstrap": True}},
    "early stopping": {"ensemble_params": {"bootstrap": True}, "early_stopping": True, "n_iter_no_change": 2},
    "constant rate": {"ensemble_params": {"folds": 2}, "schedule": "constant", "max_epochs": 15},
    "heads": {"ensemble": "head", "n_members": 3},
}


@pytest.mark.parametrize("kind", ["folds", *HEALTHY])
def test__diagnose__healthy_toy__no_false_alarm(kind, blobs, healthy):
    X_train, y_train, X, y, X_ood = blobs
    clf = healthy if kind == "folds" else toy(**HEALTHY[kind]).fit(X_train, y_train)
    given = {"X_train": X_train, "y_train": y_train} if kind in ("folds", "constant rate") else {}
    diagnosis = diagnose(clf, X, y, X_ood=X_ood, **given)
    assert names(diagnosis) == []
    assert {"worse than logistic regression", "overconfident"} <= set(diagnosis.checked)
    assert ("training stopped too early" in diagnosis.checked) == (kind != "heads")


@pytest.mark.parametrize(
    ("length", "evidence"),
    [
        ({"max_steps": 4}, "the training took 4 steps (limit 20)"),
        ({"max_epochs": 1}, "the training took 7 steps (limit 20)"),
        ({"max_epochs": 4, "schedule": "constant"}, "the training loss was still falling"),
        ({"max_steps": 30}, "the training loss was still falling"),
    ],
)
def test__diagnose__short_training__stopped_too_early(length, evidence, blobs):
    diagnosis = diagnose(toy(head_lr=1e-2, **length).fit(*blobs[:2]))
    (finding,) = [finding for finding in diagnosis if finding.name == "training stopped too early"]
    assert evidence in finding.evidence
    assert "max_steps" in finding.remedy


def test__diagnose__validation_data_of_which_less_training_would_do__not_stopped_too_early():
    def changes(fake, last=0.7):
        fake.history_ |= {"loss": [1.0, 0.9, 0.8, 0.7, 0.6, 0.5], "valid_nll": [1.0, 0.8, 0.6, 0.6, 0.65, last]}

    def falling(fake):
        changes(fake, last=0.5)

    assert "training stopped too early" not in diagnose(Fake(changes=changes).fit())
    assert "training stopped too early" in diagnose(Fake(changes=falling).fit())


@pytest.mark.parametrize(("last", "found"), [(0.02, False), (0.2, True)])
def test__diagnose__training_loss_that_falls_until_nothing_is_left__not_stopped_too_early(last, found):
    def changes(fake):
        fake.history_ |= {"loss": [1.8, 0.9, 0.8, 0.7, 0.6, last], "valid_nll": [1.0, 0.8, 0.6, 0.6, 0.65, 0.5]}

    assert ("training stopped too early" in diagnose(Fake(changes=changes).fit())) == found


@pytest.mark.parametrize("n_calls", [1, 2])
def test__diagnose__partial_fit__judged_by_the_first_call_only(n_calls, blobs):
    clf = toy()
    for _ in range(n_calls):
        clf.partial_fit(*blobs[:2], classes=["a", "b", "c", "d"])
    diagnosis = diagnose(clf)
    assert ("training stopped too early" in diagnosis) == (n_calls == 1)
    assert ("training stopped too early" in diagnosis.skipped) == (n_calls == 2)


def test__diagnose__sharpened__overconfident_unless_few_samples(data):
    X, y, _ = data
    diagnosis = diagnose(Fake(sharpness=3).fit(), X, y)
    assert names(diagnosis) == ["overconfident"]
    assert "the mean confidence 0.870, the accuracy 0.768" in diagnosis.findings[0].evidence
    assert "FrozenEstimator(est)" in diagnosis.findings[0].remedy
    assert "overconfident" not in diagnose(Fake(sharpness=1.5).fit(), X[:20], y[:20])


def test__diagnose__temperature_at_the_end_of_the_search__said_and_no_estimate(data):
    X, y, _ = data
    few = X[:20], y[:20]
    right = Fake().fit().predict(few[0]) == few[1]
    all_right = diagnose(Fake().fit(), few[0][right], few[1][right]).measured["calibration"]
    assert all_right.startswith("no temperature fits X best, since all answers are right, the mean confidence")
    blurred = diagnose(Fake(sharpness=0.02).fit(), X, y).measured["calibration"]
    assert blurred.startswith("the temperature that fits X best is 0.125 or less (0.125 or less to 0.125 or less)")
    wrong = diagnose(Fake(sharpness=30).fit(), X, np.roll(y, 1))
    assert "is 8 or more (8 or more to 8 or more)" in wrong.measured["calibration"]
    assert "overconfident" in wrong


@pytest.mark.parametrize(
    ("params", "remedy"),
    [
        (
            {"calibrate": "auto", "ensemble": "sve"},
            "fit again with calibrate='temperature'; folds in ensemble_params",
        ),
        ({"calibrate": "auto", "ensemble": "single"}, "fit again with calibrate='temperature', or wrap"),
        ({"calibrate": None}, "calibrate with scikit-learn's CalibratedClassifierCV"),
    ],
)
def test__diagnose__overconfident__remedy_that_the_ensemble_can_follow(params, remedy, data):
    class Kind(Fake):
        def get_params(self, deep=True):
            return {**super().get_params(deep), **params}

    diagnosis = diagnose(Kind(sharpness=5).fit(), *data[:2])
    assert diagnosis.findings[0].remedy.startswith(remedy)


@pytest.mark.parametrize("with_training_data", [False, True])
def test__diagnose__heads_held_small__worse_than_logistic_regression(with_training_data, blobs):
    X_train, y_train, X, y, _ = blobs
    clf = make_pipeline(StandardScaler(), toy(n_members=1, max_steps=40, head_weight_decay=2.0)).fit(X_train, y_train)
    given = {"X_train": X_train, "y_train": y_train} if with_training_data else {}
    diagnosis = diagnose(clf, X, y, **given)
    assert "worse than logistic regression" in diagnosis
    assert ("on X_train" if with_training_data else "cross-validated on X") in diagnosis.measured["comparison"]
    assert "ensemble='head'" in str(diagnosis)


def test__diagnose__x_much_larger_than_the_training_data__regression_learns_from_as_many(blobs, monkeypatch):
    X_train, y_train, X, y, _ = blobs
    sizes = []

    class Regression(LogisticRegression):
        def fit(self, X, y):
            sizes.append(len(X))
            return super().fit(X, y)

    monkeypatch.setattr("skve.diagnosis.LogisticRegression", Regression)
    clf = toy(ensemble="head", n_members=1).fit(X_train[:40], y_train[:40])
    diagnose(clf, X, y)
    assert set(sizes) == {40}


@pytest.mark.parametrize(("n", "lacking"), [(5, "fewer than two samples of a class in X"), (0, "no X and y")])
def test__diagnose__too_few_samples__no_comparison(n, lacking, blobs, healthy):
    X, y = (blobs[2][:n], ["a", "b", "c", "d", "d"]) if n else (None, None)
    assert lacking in diagnose(healthy, X, y).skipped["worse than logistic regression"]


def test__diagnose__training_data_with_a_class_of_one_sample__no_comparison(blobs, healthy):
    X_train, y_train, X, y, _ = blobs
    few = np.append(np.flatnonzero(y_train != "a"), np.flatnonzero(y_train == "a")[:1])
    diagnosis = diagnose(healthy, X, y, X_train=X_train[few], y_train=y_train[few])
    assert diagnosis.skipped["worse than logistic regression"] == "fewer than two samples of a class in X_train"


def test__diagnose__foreign_samples_of_which_members_agree__epistemic_uncertainty_inverted(data):
    X, _, _ = data
    diagnosis = diagnose(Fake().fit(), X, X_ood=3 * X)
    assert "epistemic uncertainty inverted" in diagnosis
    assert "u.novelty" in str(diagnosis)
    few = diagnose(Fake().fit(), X, X_ood=3 * X[:2])
    assert "epistemic uncertainty inverted" not in few


def test__diagnose__foreign_samples_far_away__detected_by_novelty(blobs, healthy):
    X_ood = blobs[4]
    text = diagnose(healthy, blobs[2], X_ood=X_ood).measured["foreign samples"]
    expected = metrics.ood_auroc(-healthy.score_samples(blobs[2]), -healthy.score_samples(X_ood))
    assert f"{expected:.3f} by novelty" in text


def test__diagnose__gain_of_the_ensemble__always_reported_with_advice_if_small(data):
    X, y, _ = data
    text = diagnose(Fake(noise=2).fit(), X, y).measured["gain of the ensemble"]
    members = Fake(noise=2).fit().predict_proba_members(X)
    losses = [log_loss(y, proba) for proba in members]
    assert f"is {np.mean(losses) - log_loss(y, members.mean(axis=0)):.3f} (" in text
    assert "n_members=1" not in text
    assert "n_members=1, or let members learn from different samples by folds" in str(
        diagnose(Fake(noise=0.1).fit(), X, y)
    )


# What cannot be looked for


def test__diagnose__one_member__says_what_needs_several(data):
    X, y, X_ood = data
    single = Fake().fit()
    single.predict_proba_members = lambda X: Fake.predict_proba_members(single, X)[:1]
    skipped = diagnose(single, X, y, X_ood=X_ood).skipped
    assert {"members collapsed", "epistemic uncertainty inverted"} <= {
        name for name, reason in skipped.items() if reason == "one member only"
    }


def test__diagnose__history_of_one_round__says_that_there_is_no_course(data):
    X, y, _ = data
    short = Fake().fit()
    short.history_ = {name: values[-1:] for name, values in short.history_.items() if isinstance(values, list)}
    assert "no course of the loss at one rate in history_" in diagnose(short, X, y).skipped.values()


def test__diagnose__history_of_two_rounds__starts_at_equal_probabilities(data):
    X, y, _ = data
    short = Fake().fit()
    short.history_ = {name: values[-2:] for name, values in short.history_.items() if isinstance(values, list)}
    assert "training stopped too early" in diagnose(short, X, y).checked
