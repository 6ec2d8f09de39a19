"""SelectiveClassifier: scikit-learn's checks, and its promise at a coverage below one."""

import json
import warnings

import numpy as np
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits, load_iris, make_classification
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate, train_test_split
from sklearn.naive_bayes import GaussianNB, MultinomialNB
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from skve import SelectiveClassifier, SVEClassifier, load, predict_uncertainty
from skve._fitted.saving import document_hash
from skve.exceptions import SavedModelError
from skve.testing import make_toy_image_backbone
from tests.uncertainty.test_uncertainty import MeanOfMembers

WEIGHT_CHECKS = (
    "check_sample_weights_pandas_series",
    "check_sample_weights_not_an_array",
    "check_sample_weights_list",
    "check_sample_weights_shape",
    "check_sample_weights_not_overwritten",
    "check_sample_weight_equivalence_on_dense_data",
    "check_classifiers_one_label_sample_weights",
)


def checks_that_fail(estimator):
    if not isinstance(estimator.estimator, Pipeline):
        return {}
    return dict.fromkeys(WEIGHT_CHECKS, "a pipeline takes weights for its steps only")


@parametrize_with_checks(
    [
        SelectiveClassifier(LogisticRegression()),
        SelectiveClassifier(GaussianNB()),
        SelectiveClassifier(make_pipeline(StandardScaler(), LogisticRegression())),
    ],
    expected_failed_checks=checks_that_fail,
)
def test__selective__scikit_learn_checks__pass(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return train_test_split(X, y, random_state=0)


@pytest.fixture(scope="module")
def fitted(digits):
    X_train, _, y_train, _ = digits
    return GaussianNB().fit(X_train[:600], y_train[:600])


CLASSIFIERS = {
    "plain": GaussianNB(),
    "pipeline": make_pipeline(StandardScaler(), LogisticRegression()),
    "calibrated": CalibratedClassifierCV(LinearSVC(), cv=2),
}


# Coverage


@pytest.mark.parametrize("name", CLASSIFIERS)
def test__coverage__of_held_out_part__met_there_and_near_it_on_test(name, digits):
    X_train, X_test, y_train, y_test = digits
    clf = SelectiveClassifier(CLASSIFIERS[name], coverage=0.8, random_state=0).fit(X_train, y_train)
    assert 0.8 <= clf.validation_coverage_ < 0.85
    assert clf.coverage_score(X_test) == pytest.approx(0.8, abs=0.08)
    assert clf.score(X_test, y_test) >= clf.estimator_.score(X_test, y_test)
    assert clf.score(X_test, y_test) >= 0.85


@pytest.mark.parametrize("coverage", [0.1, 0.5, 0.8, 0.999])
def test__coverage__frozen__smallest_threshold_that_meets_it(coverage, fitted, digits):
    X_val, y_val = digits[0][600:], digits[2][600:]
    clf = SelectiveClassifier(FrozenEstimator(fitted), coverage=coverage, uncertainty="margin")
    clf.fit(X_val, y_val)
    scores = 1 - np.diff(np.sort(fitted.predict_proba(X_val))[:, -2:])[:, 0]
    answered = clf.answers(X_val)
    assert answered.mean() == pytest.approx(clf.validation_coverage_)
    assert answered.mean() >= coverage
    # One distinct score less would be too few.
    if coverage < 0.99:
        assert (scores < clf.threshold_ - 1e-12).mean() < coverage


def test__coverage__one__answers_all_and_holds_nothing_out(digits):
    X_train, X_test, y_train, _ = digits
    clf = SelectiveClassifier(GaussianNB()).fit(X_train, y_train)
    assert clf.threshold_ == np.inf
    assert clf.coverage_score(X_test) == 1
    np.testing.assert_array_equal(clf.predict(X_test), GaussianNB().fit(X_train, y_train).predict(X_test))


def test__coverage__given_validation_data__used_and_all_of_x_trained_on(digits):
    X_train, X_test, y_train, y_test = digits
    clf = SelectiveClassifier(GaussianNB(), coverage=0.8)
    clf.fit(X_train, y_train, X_val=X_test, y_val=y_test)
    assert 0.8 <= clf.coverage_score(X_test) == clf.validation_coverage_
    np.testing.assert_array_equal(clf.estimator_.theta_, GaussianNB().fit(X_train, y_train).theta_)


def test__coverage__all_scores_tied__all_answered(digits):
    X_train, X_test, y_train, _ = digits
    clf = SelectiveClassifier(
        GaussianNB(), coverage=0.5, uncertainty=lambda estimator, X: np.zeros(len(X)), random_state=0
    ).fit(X_train, y_train)
    assert clf.coverage_score(X_test) == 1


def test__hold_out__class_with_one_sample__no_error():
    X, y = make_classification(random_state=0)
    y = y.copy()
    y[0] = 7
    clf = SelectiveClassifier(GaussianNB(), coverage=0.8, random_state=0).fit(X, y)
    assert 7 in clf.classes_


# Accuracy


def test__accuracy__reachable__met_with_the_largest_coverage(fitted, digits):
    X_val, y_val = digits[0][600:], digits[2][600:]
    assert fitted.score(X_val, y_val) < 0.9
    clf = SelectiveClassifier(FrozenEstimator(fitted), accuracy=0.9).fit(X_val, y_val)
    assert clf.score(X_val, y_val) >= 0.9
    assert clf.score(X_val, y_val) == pytest.approx(clf.validation_accuracy_)
    more = SelectiveClassifier(FrozenEstimator(fitted), coverage=min(1.0, clf.validation_coverage_ + 0.002)).fit(
        X_val, y_val
    )
    assert more.score(X_val, y_val) < 0.9


def test__accuracy__below_that_of_all__everything_answered(fitted, digits):
    X_val, y_val = digits[0][600:], digits[2][600:]
    clf = SelectiveClassifier(FrozenEstimator(fitted), accuracy=0.5).fit(X_val, y_val)
    assert clf.coverage_score(X_val) == 1


def test__accuracy__no_errors_on_the_validation_samples__warns_that_no_threshold_is_known(fitted, digits):
    _, X, _, y = digits
    right = fitted.predict(X) == y
    with pytest.warns(UserWarning, match=f"all {right.sum()} validation samples are predicted correctly"):
        selective = SelectiveClassifier(fitted, accuracy=0.9, prefit=True).fit(X[right], y[right])
    assert selective.threshold_ == np.inf
    with warnings.catch_warnings(action="error"):
        SelectiveClassifier(fitted, accuracy=0.9, prefit=True).fit(X, y)
        SelectiveClassifier(fitted, coverage=0.9, prefit=True).fit(X[right], y[right])


def test__accuracy__unreachable__value_error_with_the_best(digits):
    X_val, y_val = digits[1], digits[3]
    X_train, y_train = digits[0], np.random.default_rng(0).permutation(digits[2])
    model = LogisticRegression(max_iter=20, C=1e-6).fit(X_train, y_train)
    clf = SelectiveClassifier(FrozenEstimator(model), accuracy=1.0, uncertainty=lambda e, X: X[:, 0] * 0)
    with pytest.raises(
        ValueError, match=r"accuracy must be reached .* got 1\.0, where the best is 0\.\d+, at a coverage of 1"
    ):
        clf.fit(X_val, y_val)


# Abstention


@pytest.mark.parametrize(
    ("labels", "abstention", "kind"),
    [
        (np.arange(10), -1, "i"),
        (np.arange(10), None, "O"),
        (np.arange(10), np.nan, "f"),
        (np.arange(10), "not sure", "O"),
        (np.array([f"digit {k}" for k in range(10)]), "I would rather not say", "U"),
        (np.array([f"digit {k}" for k in range(10)], dtype=object), "not sure", "OU"),
        (np.array([f"digit {k}" for k in range(10)]), -1, "O"),
    ],
)
def test__predict__any_abstention__kept_as_it_is(labels, abstention, kind, digits):
    X_train, X_test, y_train, _ = digits
    clf = SelectiveClassifier(GaussianNB(), coverage=0.6, abstention=abstention, random_state=0)
    clf.fit(X_train, labels[y_train])
    predicted, answered = clf.predict(X_test), clf.answers(X_test)
    assert predicted.dtype.kind in kind
    np.testing.assert_array_equal(predicted[answered], clf.estimator_.predict(X_test)[answered])
    assert 0 < answered.sum() < len(answered)
    assert all(value == abstention or value != value for value in predicted[~answered].tolist())


def test__fit__abstention_is_a_class__value_error(digits):
    with pytest.raises(ValueError, match="abstention must not be a class, got 3"):
        SelectiveClassifier(GaussianNB(), coverage=0.8, abstention=3).fit(digits[0], digits[2])


# Uncertainty


def test__uncertainty__epistemic_of_an_ensemble__threshold_on_it():
    X, y = make_classification(n_samples=300, random_state=0)
    clf = SelectiveClassifier(
        make_pipeline(StandardScaler(), MeanOfMembers()),
        coverage=0.7,
        uncertainty="epistemic",
        random_state=0,
    ).fit(X, y)
    u = predict_uncertainty(clf, X)
    np.testing.assert_array_equal(clf.answers(X), u.epistemic <= clf.threshold_)


def test__uncertainty__epistemic_of_a_plain_classifier__type_error(digits):
    with pytest.raises(TypeError, match="got a GaussianNB, which has no predict_uncertainty"):
        SelectiveClassifier(GaussianNB(), coverage=0.7, uncertainty="epistemic").fit(digits[0], digits[2])


# In scikit-learn


def test__selective__grid_search_and_cross_validation__work(digits):
    X_train, _, y_train, _ = digits
    clf = SelectiveClassifier(GaussianNB(), coverage=0.8, random_state=0)
    scores = cross_val_score(clf, X_train, y_train, cv=3)
    assert (scores > 0.8).all()
    search = GridSearchCV(clf, {"estimator__var_smoothing": [1e-9, 1e-2]}, cv=2).fit(X_train, y_train)
    assert search.best_params_ == {"estimator__var_smoothing": 1e-2}


def test__selective__texts__pipeline_of_strings():
    texts = np.array(["good film", "bad film", "fine good", "awful bad"] * 20, dtype=object)
    y = np.array(["pos", "neg", "pos", "neg"] * 20)
    clf = SelectiveClassifier(
        make_pipeline(TfidfVectorizer(), MultinomialNB()), coverage=0.8, abstention="?", random_state=0
    ).fit(list(texts), y)
    assert set(clf.predict(list(texts))) <= {"pos", "neg", "?"}


def test__score__nothing_answered__nan(fitted, digits):
    clf = SelectiveClassifier(FrozenEstimator(fitted), coverage=0.5, uncertainty=lambda e, X: X[:, 3])
    clf.fit(digits[0], digits[2])
    hopeless = digits[1] + 100
    assert np.isnan(clf.score(hopeless, digits[3]))
    assert clf.coverage_score(hopeless) == 0


def test__selective__sample_weight__weighs_fit_choice_and_scores(digits):
    X_train, X_test, y_train, y_test = digits
    rng = np.random.default_rng(0)
    weight, weight_test = rng.integers(0, 3, size=len(y_train)), rng.integers(0, 3, size=len(y_test))
    clf = SelectiveClassifier(GaussianNB(), coverage=0.8, random_state=0)
    clf.fit(X_train, y_train, sample_weight=weight)
    expected = clf.score(np.repeat(X_test, weight_test, axis=0), np.repeat(y_test, weight_test))
    assert clf.score(X_test, y_test, sample_weight=weight_test) == pytest.approx(expected)
    expected = clf.coverage_score(np.repeat(X_test, weight_test, axis=0))
    assert clf.coverage_score(X_test, sample_weight=weight_test) == pytest.approx(expected)
    frozen = SelectiveClassifier(FrozenEstimator(clf.estimator_), coverage=0.8)
    frozen.fit(X_test, y_test, sample_weight=weight_test)
    repeated = clone(frozen).fit(np.repeat(X_test, weight_test, axis=0), np.repeat(y_test, weight_test))
    assert frozen.threshold_ == repeated.threshold_
    assert frozen.validation_accuracy_ == pytest.approx(repeated.validation_accuracy_)


def test__selective__sample_weight_of_a_step__split_with_the_samples(digits):
    X_train, _, y_train, _ = digits
    clf = SelectiveClassifier(CLASSIFIERS["pipeline"], coverage=0.8, random_state=0)
    weight = np.where(y_train == 3, 0.0, 1.0)
    clf.fit(X_train, y_train, logisticregression__sample_weight=weight)
    assert 3 not in clf.estimator_.predict(X_train)


def test__selective__failed_fit__leaves_the_fitted_state(digits):
    X_train, X_test, y_train, _ = digits
    clf = SelectiveClassifier(GaussianNB(), coverage=0.8, random_state=0).fit(X_train, y_train)
    before = clf.predict(X_test)
    with pytest.raises(ValueError, match="abstention"):
        clf.set_params(abstention=3).fit(X_train, y_train)
    np.testing.assert_array_equal(clf.set_params(abstention=None).predict(X_test), before)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"coverage": 0}, "'coverage' parameter"),
        ({"coverage": 1.5}, "'coverage' parameter"),
        ({"accuracy": 95}, "'accuracy' parameter"),
        ({"uncertainty": "entropy"}, "'uncertainty' parameter"),
        ({"validation_fraction": 1.0}, "'validation_fraction' parameter"),
        ({"estimator": LinearSVC()}, "'estimator' parameter"),
        ({"coverage": 0.8, "accuracy": 0.9}, "coverage must be 1.0 if accuracy is given"),
    ],
)
def test__fit__bad_parameter__value_error_names_it(params, message, digits):
    with pytest.raises(ValueError, match=message):
        SelectiveClassifier(**{"estimator": GaussianNB()} | params).fit(digits[0], digits[2])


def test__fit__half_of_validation_data__value_error(digits):
    with pytest.raises(ValueError, match="X_val and y_val must be given together"):
        SelectiveClassifier(GaussianNB(), coverage=0.8).fit(digits[0], digits[2], X_val=digits[1])


# Scores that are infinite


def test__coverage__sure_samples_of_minus_infinity__the_only_ones_answered(digits):
    X_val, y_val = digits[0][:100], digits[2][:100]
    model = GaussianNB().fit(X_val, y_val)

    def measure(estimator, X):
        return np.where(np.arange(len(X)) < 30, -np.inf, np.arange(len(X), dtype=float))

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        clf = SelectiveClassifier(FrozenEstimator(model), coverage=0.2, uncertainty=measure).fit(X_val, y_val)
    assert clf.threshold_ == -np.inf
    assert clf.coverage_score(X_val) == clf.validation_coverage_ == 0.3


# Labels and weights


@pytest.fixture
def selective(fitted, digits):
    return SelectiveClassifier(FrozenEstimator(fitted), coverage=0.5).fit(digits[0], digits[2])


BAD_LABELS = {
    "strings": (lambda y: y.astype(str), "must hold labels that are among classes_"),
    "NaN": (lambda y: np.where(y == 3, np.nan, y), "must have a label for each sample"),
    "one less": (lambda y: y[:-1], "must have one label for each of the 450 samples, got 449"),
}


@pytest.mark.parametrize("kind", BAD_LABELS)
def test__labels__unlike_the_classes__value_error_names_them(kind, selective, digits):
    X_train, X_test, y_train, y_test = digits
    change, message = BAD_LABELS[kind]
    with pytest.raises(ValueError, match=f"^y {message}"):
        selective.score(X_test, change(y_test))
    with pytest.raises(ValueError, match=f"^y {message}"):
        clone(selective).fit(X_test, change(y_test))
    with pytest.raises(ValueError, match=f"^y_val {message}"):
        SelectiveClassifier(GaussianNB(), coverage=0.5).fit(X_train, y_train, X_val=X_test, y_val=change(y_test))


def test__hold_out__class_in_the_held_out_part_only__counts_as_an_error():
    X, y = make_classification(random_state=0)
    unknown = 0
    for seed in range(20):
        y_seed = y.copy()
        y_seed[seed] = 7
        selective = SelectiveClassifier(GaussianNB(), coverage=0.999, random_state=seed).fit(X, y_seed)
        if 7 not in selective.classes_:
            unknown += 1
            assert selective.validation_accuracy_ < 1
    assert unknown > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: -weight, "sample_weight must be finite and not negative"),
        (lambda weight: weight * np.nan, "sample_weight must be finite and not negative"),
        (lambda weight: weight[:-1], r"sample_weight must have shape \(450,\), got \(449,\)"),
    ],
)
def test__weights__negative_nan_or_too_few__value_error(change, message, selective, digits):
    X_test, y_test = digits[1], digits[3]
    weight = change(np.ones(len(y_test)))
    for call in (
        lambda: selective.score(X_test, y_test, sample_weight=weight),
        lambda: selective.coverage_score(X_test, sample_weight=weight),
        lambda: clone(selective).fit(X_test, y_test, sample_weight=weight),
        lambda: SelectiveClassifier(GaussianNB(), coverage=0.8).fit(X_test, y_test, sample_weight=weight),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test__sample_weight__routed_by_cross_validate__weighs_fit_and_score(digits):
    X_train, _, y_train, _ = digits
    weight = np.where(y_train == 3, 0.0, 1.0)
    clf = SelectiveClassifier(GaussianNB(), coverage=0.8, random_state=0)
    with config_context(enable_metadata_routing=True):
        clf.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        result = cross_validate(
            clf, X_train, y_train, params={"sample_weight": weight}, cv=3, return_estimator=True, error_score="raise"
        )
    assert (result["test_score"] > 0.8).all()
    assert all(3 not in fold.predict(X_train) for fold in result["estimator"])


# Parameters changed after fit


def test__predict__parameters_changed_after_fit__abstains_as_fitted(selective, digits):
    X_test = digits[1]
    predicted, answered = selective.predict(X_test), selective.answers(X_test)
    selective.set_params(coverage=1.0, uncertainty="margin")
    np.testing.assert_array_equal(selective.predict(X_test), predicted)
    np.testing.assert_array_equal(selective.answers(X_test), answered)
    assert 0 < answered.mean() < 1


# Values of abstention


def test__predict__pandas_na__kept(digits):
    pd = pytest.importorskip("pandas")
    clf = SelectiveClassifier(GaussianNB(), coverage=0.6, abstention=pd.NA, random_state=0).fit(digits[0], digits[2])
    predicted, answered = clf.predict(digits[1]), clf.answers(digits[1])
    assert all(value is pd.NA for value in predicted[~answered])
    np.testing.assert_array_equal(predicted[answered].astype(int), clf.estimator_.predict(digits[1])[answered])


@pytest.mark.parametrize("abstention", [[-1], (-1, -2), np.array([-1]), np.array(-1), {}])
def test__fit__abstention_of_several_values__value_error(abstention, digits):
    with pytest.raises(ValueError, match="abstention must be one value, got"):
        SelectiveClassifier(GaussianNB(), coverage=0.6, abstention=abstention).fit(digits[0], digits[2])


# Cost


class CountingMembers(MeanOfMembers):
    """Counts its passes over samples."""

    passes = 0

    def predict_proba_members(self, X):
        type(self).passes += 1
        return super().predict_proba_members(X)


@pytest.mark.parametrize("uncertainty", ["total", "confidence", "margin"])
def test__selective__frozen_ensemble__one_pass_per_call(uncertainty):
    X, y = make_classification(n_samples=100, random_state=0)
    members = CountingMembers().fit(X, y)
    clf = SelectiveClassifier(FrozenEstimator(members), coverage=0.5, uncertainty=uncertainty)
    for call in (lambda: clf.fit(X, y), lambda: clf.predict(X), lambda: clf.score(X, y), lambda: clf.answers(X)):
        CountingMembers.passes = 0
        call()
        assert CountingMembers.passes == 1
    np.testing.assert_array_equal(clf.predict(X)[clf.answers(X)].astype(int), members.predict(X)[clf.answers(X)])


# ------------------------------------------------------------------------------------- fitted, foreign, unknown


@pytest.fixture(scope="module")
def ensemble():
    from skve.testing import ToyClassifier

    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 4)) + 3
    y = np.where(X[:, 0] > 3, "yes", "no")
    return ToyClassifier(n_members=2, max_epochs=5, random_state=0).fit(X[:80], y[:80]), X[80:], y[80:]


def test__prefit__keeps_the_estimator_and_chooses_on_the_samples_given(ensemble):
    clf, X, y = ensemble
    selective = SelectiveClassifier(clf, coverage=0.5, prefit=True).fit(X, y)
    assert selective.estimator_ is clf
    assert 0.5 <= selective.validation_coverage_ <= 0.6


@pytest.mark.parametrize("max_novelty", [None, 0.95])
@pytest.mark.parametrize("measure", ["total", "margin", "confidence", "epistemic", "novelty"])
def test__answers__known_prediction__as_without_it(measure, max_novelty):
    rng = np.random.default_rng(0)
    X, y = load_iris(return_X_y=True)
    X = X + rng.normal(0, 0.8, X.shape)
    from skve.testing import ToyClassifier

    clf = ToyClassifier(n_members=3, max_steps=40, calibrate="temperature", random_state=0).fit(X, y)
    assert abs(clf.temperature_ - 1) > 0.1  # calibrated and plain uncertainty differ
    selective = SelectiveClassifier(clf, uncertainty=measure, coverage=0.5, prefit=True, max_novelty=max_novelty)
    selective.fit(X, y)
    u, proba = clf.predict_uncertainty(X, return_proba=True)
    answered = selective.answers(X)
    assert 0 < answered.sum() < len(X)
    np.testing.assert_array_equal(selective.answers(X, uncertainty=u, proba=proba), answered)
    with pytest.raises(ValueError, match="must be given together"):
        selective.answers(X, uncertainty=u)
    with pytest.raises(ValueError, match="must be of the 3 samples of X, got 150 and 150"):
        selective.answers(X[:3], uncertainty=u, proba=proba)


def test__max_novelty__abstains_from_foreign_samples_whatever_else(ensemble):
    clf, X, y = ensemble
    selective = SelectiveClassifier(clf, prefit=True, max_novelty=0.95).fit(X, y)
    answered = selective.answers(X)
    np.testing.assert_array_equal(answered, clf.predict_uncertainty(X).novelty <= 0.95)
    assert not selective.answers(-X).any()
    assert selective.validation_coverage_ == answered.mean()
    both = SelectiveClassifier(clf, prefit=True, max_novelty=0.95, coverage=0.5).fit(X, y)
    assert (both.answers(X) <= answered).all()
    assert both.validation_coverage_ == both.answers(X).mean() < answered.mean()
    assert list(both.predict(X)[~both.answers(X)]) == [None] * int((~both.answers(X)).sum())


def test__labels_that_are_no_class__count_as_errors(ensemble):
    clf, X, y = ensemble
    selective = SelectiveClassifier(clf, prefit=True).fit(X, y)
    new = np.where(np.arange(len(y)) < 10, "maybe", y)
    assert selective.score(X, new) == np.mean(clf.predict(X) == new)
    with pytest.raises(ValueError, match="y"):
        selective.score(X, np.arange(len(y)))


# ------------------------------------------------------------------------------------------------- saving


@pytest.fixture(scope="module")
def photographs():
    """An ensemble of images, 40 images that it was not trained on, and their classes."""
    rng = np.random.default_rng(0)
    y = np.where(np.arange(80) % 2, "bright", "dark")
    X = (rng.integers(0, 120, size=(80, 8, 8, 3)) + np.where(np.arange(80) % 2, 90, 0)[:, None, None, None]).astype(
        "u1"
    )
    clf = SVEClassifier(make_toy_image_backbone(), ensemble="head", n_members=2, image_size=8, random_state=0)
    return clf.fit(X[:40], y[:40]), X[40:], y[40:]


@pytest.fixture
def saved(photographs, tmp_path):
    """A function that fits a SelectiveClassifier around the ensemble, saves it, and returns it and what is loaded."""
    clf, X, y = photographs

    def save_and_load(wrap=lambda clf: clf, **params):
        selective = SelectiveClassifier(wrap(clf), **params).fit(X, y)
        selective.save(tmp_path / "model")
        return selective, load(tmp_path / "model", backbone=make_toy_image_backbone())

    return save_and_load


@pytest.mark.parametrize(
    ("wrap", "params"),
    [
        (lambda clf: clf, {"coverage": 0.5, "prefit": True, "abstention": "?"}),
        (lambda clf: clf, {"accuracy": 0.6, "max_novelty": 0.95, "prefit": True}),
        (FrozenEstimator, {"coverage": 0.7, "uncertainty": "epistemic", "abstention": "ask"}),
        (lambda clf: clf, {"prefit": True}),
        (lambda clf: clf, {"coverage": 0.8, "random_state": 0, "abstention": np.nan, "validation_fraction": 0.5}),
    ],
)
def test__save__load__same_answers_and_parameters(wrap, params, saved, photographs):
    _, X, _ = photographs
    selective, loaded = saved(wrap, **params)
    assert type(loaded) is SelectiveClassifier
    np.testing.assert_array_equal(loaded.answers(X), selective.answers(X))
    assert [str(label) for label in loaded.predict(X)] == [str(label) for label in selective.predict(X)]
    np.testing.assert_array_equal(loaded.predict_proba(X), selective.predict_proba(X))
    for name in ("threshold_", "validation_coverage_", "validation_accuracy_"):
        np.testing.assert_equal(getattr(loaded, name), getattr(selective, name))
    assert {name: str(value) for name, value in loaded.get_params(deep=False).items() if name != "estimator"} == {
        name: str(value) for name, value in selective.get_params(deep=False).items() if name != "estimator"
    }
    assert isinstance(loaded.estimator, FrozenEstimator) == isinstance(selective.estimator, FrozenEstimator)


def test__save__twice__one_model_in_the_folder_and_an_ensemble_in_its_place(saved, photographs, tmp_path):
    saved(coverage=0.5, prefit=True)
    saved(coverage=0.6, prefit=True)
    assert sorted(path.name.partition("-")[0] for path in (tmp_path / "model").iterdir()) == [
        "members",
        "skve.json",
        "training",
    ]
    photographs[0].save(tmp_path / "model")
    assert type(load(tmp_path / "model", backbone=make_toy_image_backbone())) is type(photographs[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.set_params(abstention=object()), "abstention must be a plain value to be saved, got a object"),
        (lambda s: setattr(s, "_measure", len), "uncertainty must be one of .* to be saved, got <built-in"),
        (
            lambda s: setattr(s, "estimator_", GaussianNB().fit([[0.0], [1.0]], [0, 1])),
            "estimator must be a classifier of skve's to be saved, got a GaussianNB",
        ),
    ],
)
def test__save__what_has_no_safe_form__saved_model_error_and_nothing_written(change, message, photographs, tmp_path):
    clf, X, y = photographs
    selective = SelectiveClassifier(clf, coverage=0.5, prefit=True).fit(X, y)
    change(selective)
    with pytest.raises(SavedModelError, match=message):
        selective.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test__save__not_fitted__not_fitted_error(photographs, tmp_path):
    with pytest.raises(NotFittedError):
        SelectiveClassifier(photographs[0], prefit=True).save(tmp_path / "model")


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("fitted", "threshold_", "high"),
        ("fitted", "threshold_", float("nan")),
        ("fitted", "_measure", "os.system"),
        ("fitted", "_max_novelty", 3),
        ("fitted", "validation_coverage_", -1),
        ("fitted", "threshold_", None),
        ("parameters", "coverage", 7),
        ("parameters", "abstention", "dark"),
        ("parameters", "estimator", "x"),
        ("parameters", "unknown", 1),
    ],
)
def test__load__altered_thresholds__saved_model_error(part, name, value, saved, tmp_path):
    saved(coverage=0.5, prefit=True)
    path = tmp_path / "model" / "skve.json"
    document = json.loads(path.read_text())
    document["selective"][part][name] = value
    document["sha256"] = document_hash(document)
    path.write_text(json.dumps(document))
    with pytest.raises(SavedModelError, match="is damaged"):
        load(path.parent, backbone=make_toy_image_backbone())


def test__load__thresholds_missing__saved_model_error(saved, tmp_path):
    saved(coverage=0.5, prefit=True)
    path = tmp_path / "model" / "skve.json"
    for missing in ("selective", "fitted"):
        document = json.loads(path.read_text())
        del (document if missing == "selective" else document["selective"])[missing]
        document["sha256"] = document_hash(document)
        path.write_text(json.dumps(document))
        with pytest.raises(SavedModelError):
            load(path.parent)
        saved(coverage=0.5, prefit=True)
