"""Scorers: the metrics in the form that GridSearchCV and cross_validate take."""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.metrics import get_scorer as get_sklearn_scorer
from sklearn.utils.metadata_routing import UNUSED

from skve.metrics import calibration, ood, selective
from skve.metrics._inputs import check_choice, check_comparable
from skve.uncertainty._scores import check_measure, uncertainty_scores

__all__ = ["get_scorer", "get_scorer_names", "make_ood_scorer"]

# Name: metric, parameters, sign.
_SCORERS: dict[str, tuple[Any, dict[str, Any], int]] = {
    "accuracy_at_coverage": (selective.accuracy_at_coverage, {"coverage": 0.8}, 1),
    "neg_adaptive_calibration_error": (calibration.adaptive_calibration_error, {}, -1),
    "neg_aurc": (selective.aurc, {}, -1),
    "neg_classwise_calibration_error": (calibration.expected_calibration_error, {"kind": "classwise"}, -1),
    "neg_excess_aurc": (selective.excess_aurc, {}, -1),
    "neg_expected_calibration_error": (calibration.expected_calibration_error, {}, -1),
    "neg_max_calibration_error": (calibration.expected_calibration_error, {"norm": "max"}, -1),
    "neg_smooth_calibration_error": (calibration.smooth_calibration_error, {}, -1),
}
_OOD_METRICS = {
    "auroc": (ood.ood_auroc, 1),
    "aupr": (ood.ood_aupr, 1),
    "fpr_at_tpr": (ood.ood_fpr_at_tpr, -1),
}


class _Scorer(BaseEstimator):
    """A callable ``(estimator, X, y)`` whose weights scikit-learn's metadata routing knows how to ask for."""

    # `score` carries the request for weights; its first argument is no metadata.
    __metadata_request__score: ClassVar = {"estimator": UNUSED}

    def __call__(self, estimator, X, y=None, sample_weight=None):
        return self.score(estimator, X, y, sample_weight=sample_weight)


class ProbaScorer(_Scorer):
    """Score a classifier by a metric of (y, proba); built by :func:`get_scorer`.

    Parameters
    ----------
    metric : callable
        ``metric(y_true, y_proba, *, labels, sample_weight, **params)``.
    params : dict, default=None
        Further parameters of the metric.
    sign : {1, -1}, default=1
        -1 for a metric for which lower is better.
    """

    def __init__(self, metric, *, params=None, sign=1):
        self.metric = metric
        self.params = params
        self.sign = sign

    def score(self, estimator, X, y, sample_weight=None):
        """Return the score of a fitted classifier; higher is better.

        Parameters
        ----------
        estimator : fitted classifier
            Has ``predict_proba`` and ``classes_``.
        X : array-like or list of length n_samples
            Samples.
        y : array-like of shape (n_samples,)
            True classes. They may lack some of ``estimator.classes_``; others than these count as errors.
        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights.

        Returns
        -------
        float
        """
        proba = np.asarray(estimator.predict_proba(X))
        labels = np.asarray(estimator.classes_)
        y = check_comparable(y, labels, len(proba), classes_name="estimator.classes_")
        unknown = np.unique([label for label in y.tolist() if label not in set(labels.tolist())])
        if len(unknown):  # classes that the model gives no probability
            labels = np.concatenate([labels, unknown.astype(np.result_type(labels, unknown))])
            proba = np.hstack([proba, np.zeros((len(proba), len(unknown)))])
        params = self.params or {}
        return self.sign * self.metric(y, proba, labels=labels, sample_weight=sample_weight, **params)


class OODScorer(_Scorer):
    """Score how well a classifier's uncertainty detects foreign samples; built by :func:`make_ood_scorer`.

    Parameters
    ----------
    X_ood : array-like or list of length n_out, or Uncertainty
    metric : str, default="auroc"
    uncertainty : str or callable, default="total"
    """

    def __init__(self, X_ood, *, metric="auroc", uncertainty="total"):
        self.X_ood = X_ood
        self.metric = metric
        self.uncertainty = uncertainty

    def score(self, estimator, X, y=None, sample_weight=None):
        """Return the score of a fitted classifier; higher is better.

        Parameters
        ----------
        estimator : fitted classifier
            Has what the measure of uncertainty requires.
        X : array-like or list of length n_in, or Uncertainty
            Familiar samples; or ``skve.predict_uncertainty(estimator, X)``, where it is known already.
        y : ignored
            Not used.
        sample_weight : array-like of shape (n_in,), default=None
            Weights of ``X``.

        Returns
        -------
        float
        """
        metric, sign = _OOD_METRICS[self.metric]
        return sign * metric(
            uncertainty_scores(estimator, X, self.uncertainty),
            uncertainty_scores(estimator, self.X_ood, self.uncertainty),
            sample_weight_in=sample_weight,
        )


def get_scorer(name: str, **params: Any) -> Callable[..., float]:
    """Return a scorer by name, for ``scoring=`` of GridSearchCV, cross_validate and others.

    Parameters
    ----------
    name : str
        One of :func:`get_scorer_names`, or a name that :func:`sklearn.metrics.get_scorer` knows.
    **params
        Parameters of the metric, for instance ``coverage=0.9`` or ``n_bins=10``.

    Returns
    -------
    callable
        ``scorer(estimator, X, y, sample_weight=None)``, higher is better. Classes that are missing
        from ``y`` are no error: the columns are those of ``estimator.classes_``.

    Raises
    ------
    ValueError
        If the name is unknown, or the metric has no such parameter.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.model_selection import cross_validate
    >>> from skve.metrics import get_scorer
    >>> scoring = {"ece": get_scorer("neg_expected_calibration_error"), "aurc": get_scorer("neg_aurc")}
    >>> X, y = load_iris(return_X_y=True)
    >>> scores = cross_validate(LogisticRegression(max_iter=500), X, y, scoring=scoring)
    >>> sorted(scores)
    ['fit_time', 'score_time', 'test_aurc', 'test_ece']
    """
    if name not in _SCORERS:
        try:
            scorer = get_sklearn_scorer(name)
        except ValueError as error:
            raise ValueError(
                f"name must be one of {get_scorer_names()} or a scorer of scikit-learn, got {name!r}."
            ) from error
        if params:
            raise ValueError(f"params must be empty for {name!r}, a scorer of scikit-learn's, got {list(params)}.")
        return scorer
    metric, defaults, sign = _SCORERS[name]
    known = set(inspect.signature(metric).parameters) - {"y_true", "y_proba", "labels", "sample_weight"}
    known.discard("uncertainty")  # one value per sample: not known before the samples are
    if not set(params) <= known:
        raise ValueError(f"params of {name!r} must be among {sorted(known)}, got {sorted(set(params) - known)}.")
    return ProbaScorer(metric, params={**defaults, **params}, sign=sign)


def get_scorer_names() -> list[str]:
    """Return the names of skve's own scorers, for :func:`get_scorer`.

    Returns
    -------
    list of str

    Examples
    --------
    >>> from skve.metrics import get_scorer_names
    >>> "neg_expected_calibration_error" in get_scorer_names()
    True
    """
    return sorted(_SCORERS)


def make_ood_scorer(
    X_ood: Any, *, metric: str = "auroc", uncertainty: str | Callable[[Any, Any], ArrayLike] = "total"
) -> Callable[..., float]:
    """Make a scorer of how well a classifier's uncertainty distinguishes given foreign samples from its own.

    Parameters
    ----------
    X_ood : array-like or list of length n_out, or Uncertainty
        Foreign samples, of the kind that the classifier takes; or ``skve.predict_uncertainty(estimator, X_ood)`` of
        the one classifier that is scored, where it is known already.
    metric : {"auroc", "aupr", "fpr_at_tpr"}, default="auroc"
        The metric; "fpr_at_tpr" is negated, so that higher is better.
    uncertainty : str or callable, default="total"
        "total" (entropy), "confidence" or "margin" of the prediction, for any classifier; "novelty", which is made
        for this, or a measure of the members such as "epistemic", for ensembles; or
        ``uncertainty(estimator, X)`` returns an array of shape (n_samples,), higher for less certain samples.

    Returns
    -------
    callable
        ``scorer(estimator, X, y=None, sample_weight=None)``; ``X`` may be an ``Uncertainty``, too.

    Raises
    ------
    ValueError
        If an option is unknown.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from skve.metrics import make_ood_scorer
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=500).fit(X[:100], y[:100])
    >>> scorer = make_ood_scorer(X[100:])
    >>> bool(0 <= scorer(clf, X[:100]) <= 1)
    True
    """
    check_choice(metric, tuple(_OOD_METRICS), name="metric")
    check_measure(uncertainty)
    return OODScorer(X_ood, metric=metric, uncertainty=uncertainty)
