"""One number per sample that says how unsure an estimator is, by whichever measure."""

import numpy as np

from skve import uncertainty as measures
from skve.uncertainty._validation import check_proba

# What needs only the prediction that is reported; higher means less sure.
MEASURES_OF_PREDICTION = {
    "total": measures.entropy,
    "confidence": lambda proba: 1 - check_proba(proba).max(axis=1),
    "margin": lambda proba: 1 - measures.margin(np.asarray(proba)[None]),
}
_OF_MEMBERS = ("aleatoric", "epistemic", "epkl", "disagreement", "variation_ratio", "variance", "novelty")
MEASURES = (*MEASURES_OF_PREDICTION, *_OF_MEMBERS)


def check_measure(measure):
    """Return ``measure`` if it is a callable or one of ``MEASURES``."""
    if not callable(measure) and measure not in MEASURES:
        raise ValueError(f"uncertainty must be a callable or one of {list(MEASURES)}, got {measure!r}.")
    return measure


def scores_of(uncertainty, measure):
    """Return a measure of an ``Uncertainty``, higher where less sure, of shape (n_samples,)."""
    values = getattr(uncertainty, measure)
    return 1 - values if measure in ("confidence", "margin") else values


def uncertainty_scores(estimator, X, measure, *, proba=None, uncertainty=None):
    """Uncertainty of a fitted estimator about each sample; higher means less sure.

    Parameters
    ----------
    estimator : fitted classifier
        Has ``predict_proba``; measures of members need :func:`skve.predict_uncertainty` to find an ensemble.
    X : array-like or list of length n_samples, or Uncertainty
        An ``Uncertainty`` is what is known of the samples already: nothing is predicted then.
    measure : str or callable
        One of ``MEASURES``, or ``measure(estimator, X)`` returns an array of shape (n_samples,).
    proba : ndarray of shape (n_samples, n_classes), default=None
        ``estimator.predict_proba(X)``, where it is known already.
    uncertainty : Uncertainty, default=None
        ``skve.predict_uncertainty(estimator, X)``, where it is known already; all measures are taken from it.

    Returns
    -------
    ndarray of shape (n_samples,)
    """
    if isinstance(X, measures.Uncertainty):
        uncertainty = X
    if callable(measure):
        scores = measure(estimator, X)
    elif uncertainty is not None:
        scores = scores_of(uncertainty, measure)
    elif measure in MEASURES_OF_PREDICTION:
        scores = MEASURES_OF_PREDICTION[measure](estimator.predict_proba(X) if proba is None else proba)
    else:
        scores = scores_of(measures.predict_uncertainty(estimator, X), measure)
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 1:
        raise ValueError(f"uncertainty must be of shape (n_samples,), got {scores.shape} from {measure!r}.")
    if np.isnan(scores).any():
        remedy = " Models saved by skve 0.1 have no novelty. Fit again." if measure == "novelty" else ""
        raise ValueError(f"uncertainty must be a number for each sample, got NaN from {measure!r}.{remedy}")
    return scores


def predict_with_scores(estimator, X, measure):
    """Predicted classes and uncertainties, in one pass over the samples where one gives both.

    Parameters
    ----------
    estimator : fitted classifier
    X : array-like or list of length n_samples
    measure : str or callable
        As of :func:`uncertainty_scores`.

    Returns
    -------
    predicted : ndarray of shape (n_samples,)
    scores : ndarray of shape (n_samples,)
    """
    # Ensembles predict the most probable class; other classifiers, such as those with a threshold, need not.
    if not callable(measure) and measure in MEASURES_OF_PREDICTION and hasattr(estimator, "predict_proba_members"):
        proba = np.asarray(estimator.predict_proba(X))
        return estimator.classes_[proba.argmax(axis=1)], uncertainty_scores(estimator, X, measure, proba=proba)
    return np.asarray(estimator.predict(X)), uncertainty_scores(estimator, X, measure)
