"""Scorers inside scikit-learn's searches and cross-validation."""

import pickle

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.datasets import load_iris, make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skve import metrics
from skve.uncertainty import Uncertainty


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    return X, load_iris().target_names[y]


@pytest.fixture(scope="module")
def model(iris):
    return LogisticRegression(max_iter=500).fit(*iris)


@pytest.mark.parametrize("name", metrics.get_scorer_names())
def test__scorer__each_name__higher_is_better_and_in_range(name, model, iris):
    score = metrics.get_scorer(name)(model, *iris)
    assert isinstance(score, float)
    assert -1 <= score <= 0 if name.startswith("neg_") else 0 <= score <= 1


def test__scorer__value__that_of_the_metric(model, iris):
    X, y = iris
    scorer = metrics.get_scorer("neg_expected_calibration_error", n_bins=5)
    expected = metrics.expected_calibration_error(y, model.predict_proba(X), n_bins=5)
    assert scorer(model, X, y) == -expected


def test__scorer__class_missing_from_y__columns_of_the_estimator(model, iris):
    X, y = iris
    some = y != "versicolor"
    score = metrics.get_scorer("neg_aurc")(model, X[some], y[some])
    expected = metrics.aurc(y[some], model.predict_proba(X[some]), labels=model.classes_)
    assert score == -expected


def test__scorer__binary__two_columns():
    X, y = make_classification(random_state=0)
    model = LogisticRegression().fit(X, y)
    expected = metrics.expected_calibration_error(y, model.predict_proba(X))
    assert metrics.get_scorer("neg_expected_calibration_error")(model, X, y) == -expected


def test__scorer__several_in_cross_validate__all_reported(iris):
    names = metrics.get_scorer_names()
    scoring = {name: metrics.get_scorer(name) for name in [*names, "neg_log_loss"]}
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    scores = cross_validate(pipeline, *iris, scoring=scoring, cv=3)
    for name in scoring:
        assert np.isfinite(scores[f"test_{name}"]).all()


def test__scorer__grid_search__chooses_by_it(iris):
    search = GridSearchCV(
        LogisticRegression(max_iter=500),
        {"C": [1e-4, 1.0]},
        scoring={
            "ece": metrics.get_scorer("neg_expected_calibration_error"),
            "aurc": metrics.get_scorer("neg_aurc"),
        },
        refit="ece",
        n_jobs=1,
    ).fit(*iris)
    assert search.best_params_ == {"C": 1.0}


def test__scorer__pickled_and_cloned__same(model, iris):
    scorer = metrics.get_scorer("accuracy_at_coverage", coverage=0.5)
    for copy in (pickle.loads(pickle.dumps(scorer)), clone(scorer)):
        assert copy(model, *iris) == scorer(model, *iris)


def test__scorer__sample_weight__used_and_routed(model, iris):
    X, y = iris
    weight = np.random.default_rng(0).uniform(size=len(y))
    scorer = metrics.get_scorer("neg_expected_calibration_error")
    expected = metrics.expected_calibration_error(y, model.predict_proba(X), sample_weight=weight)
    assert scorer(model, X, y, sample_weight=weight) == -expected
    with sklearn.config_context(enable_metadata_routing=True):
        requesting = clone(scorer).set_score_request(sample_weight=True)
        estimator = LogisticRegression(max_iter=500).set_fit_request(sample_weight=False)
        weighted, plain = (
            cross_val_score(estimator, X, y, scoring=requesting, params={"sample_weight": w}, cv=3)
            for w in (weight, np.ones(len(y)))
        )
        assert not np.allclose(weighted, plain)
        cross_validate(estimator, X, y, scoring={"ece": requesting}, params={"sample_weight": weight}, cv=3)


def test__get_scorer__unknown__value_error_lists_names():
    with pytest.raises(ValueError, match=r"name must be one of .*neg_aurc.*got 'ece'"):
        metrics.get_scorer("ece")


def test__get_scorer__unknown_parameter__value_error_lists_them():
    with pytest.raises(ValueError, match=r"must be among \['debias', 'kind'"):
        metrics.get_scorer("neg_expected_calibration_error", bins=3)
    with pytest.raises(ValueError, match="params must be empty"):
        metrics.get_scorer("accuracy", coverage=0.3)


# Out of distribution


@pytest.mark.parametrize("measure", ["total", "confidence", "margin"])
@pytest.mark.parametrize("metric", ["auroc", "aupr", "fpr_at_tpr"])
def test__ood_scorer__any_classifier__value_of_the_metric(measure, metric, iris):
    X, y = iris
    known = y != "virginica"
    model = LogisticRegression(C=100, max_iter=500).fit(X[known], y[known])
    score = metrics.make_ood_scorer(X[~known], metric=metric, uncertainty=measure)(model, X[known])
    assert 0 <= abs(score) <= 1
    if metric == "auroc":
        proba_in, proba_out = model.predict_proba(X[known]), model.predict_proba(X[~known])
        expected = metrics.ood_auroc(-proba_in.max(1), -proba_out.max(1))
        assert score == pytest.approx(expected)  # of two classes, all three measures rank alike


def test__ood_scorer__members__epistemic_of_predict_uncertainty(iris):
    X, _ = iris

    class Ensemble:
        def predict_uncertainty(self, X):
            spread = 0.4 * (X[:, 0] > 6)
            members = np.stack([0.5 + spread, 0.5 - spread])
            return Uncertainty.from_members(np.stack([members, 1 - members], axis=2))

    scorer = metrics.make_ood_scorer(X[X[:, 0] > 6], uncertainty="epistemic")
    assert scorer(Ensemble(), X[X[:, 0] <= 6]) == 1


def test__ood_scorer__callable_and_cross_validation__works(iris):
    def first_feature(estimator, X):
        return X[:, 0]

    X, y = iris
    scorer = metrics.make_ood_scorer(X + 100, uncertainty=first_feature)
    np.testing.assert_array_equal(
        cross_val_score(LogisticRegression(max_iter=500), X, y, scoring=scorer, cv=3), np.ones(3)
    )


def test__ood_scorer__bad_option__value_error(iris):
    X, _ = iris
    with pytest.raises(ValueError, match="metric must be one of"):
        metrics.make_ood_scorer(X, metric="accuracy")
    with pytest.raises(ValueError, match="uncertainty must be a callable or one of"):
        metrics.make_ood_scorer(X, uncertainty="entropy of everything")


@pytest.mark.parametrize(
    ("uncertainty", "message"),
    [
        (lambda estimator, X: np.full(len(X), np.nan), "must be a number"),
        (lambda estimator, X: X, "must be of shape"),
    ],
)
def test__ood_scorer__callable_returns_nonsense__value_error(uncertainty, message, model, iris):
    scorer = metrics.make_ood_scorer(iris[0], uncertainty=uncertainty)
    with pytest.raises(ValueError, match=message):
        scorer(model, iris[0])


def test__ood_scorer__members_of_a_plain_classifier__type_error(model, iris):
    with pytest.raises(TypeError, match="has no predict_uncertainty"):
        metrics.make_ood_scorer(iris[0], uncertainty="epistemic")(model, iris[0])


def test__scorer__labels_that_are_no_class__count_as_errors():
    X, y = load_iris(return_X_y=True)
    clf = LogisticRegression(max_iter=500).fit(X[:100], y[:100])
    confidence = clf.predict_proba(X).max(axis=1)
    right = clf.predict(X) == y
    edges = np.minimum((confidence * 15).astype(int), 14)
    expected = sum(abs((confidence - right)[edges == b].sum()) for b in range(15)) / len(y)
    np.testing.assert_allclose(metrics.get_scorer("neg_expected_calibration_error")(clf, X, y), -expected, atol=1e-3)
    with pytest.raises(ValueError, match="classes_"):
        metrics.get_scorer("neg_expected_calibration_error")(clf, X, y + 7)
