"""Selective prediction: how accurate is a model that may leave its least certain samples unanswered?"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skve.metrics._inputs import check_fraction, check_scores, check_targets, errors, top_label

__all__ = [
    "accuracy_at_coverage",
    "accuracy_rejection_curve",
    "aurc",
    "excess_aurc",
    "risk_coverage_curve",
]


def risk_coverage_curve(
    y_true: ArrayLike,
    y_proba: ArrayLike,
    *,
    uncertainty: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    r"""Error rate on the most certain samples, against their share.

    .. math:: r_k = \frac{1}{k} \sum_{i \le k} 1[\hat y_i \ne y_i], \qquad \text{most certain first}

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True classes.
    y_proba : array-like of shape (n_samples, n_classes) or (n_samples,)
        Predicted probabilities; one column is the probability of the second of two classes.
    uncertainty : array-like of shape (n_samples,), default=None
        What the samples are ranked by, the lowest answered first; for instance ``u.epistemic``. By default
        one minus the largest probability.
    labels : array-like of shape (n_classes,), default=None
        The class of each column, ``clf.classes_``; by default the sorted classes of ``y_true``.
    sample_weight : array-like of shape (n_samples,), default=None
        Sample weights.

    Returns
    -------
    coverage : ndarray of shape (n_samples,)
        Share of the samples answered, rising to 1. Samples of no weight are left out.
    risk : ndarray of shape (n_samples,)
        Error rate among them.
    thresholds : ndarray of shape (n_samples,)
        Uncertainty of the last sample answered.

    Raises
    ------
    ValueError
        If probabilities are not probabilities, labels have no column, uncertainty is NaN or lengths differ.

    Notes
    -----
    Samples of equal uncertainty have no order of their own: each counts with the error rate of all of them,
    the expectation over random orders. The curve does not depend on the order of the input.

    References
    ----------
    El-Yaniv and Wiener, "On the Foundations of Noise-free Selective Classification", JMLR 2010.

    Examples
    --------
    >>> from skve.metrics import risk_coverage_curve
    >>> y_proba = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]
    >>> coverage, risk, thresholds = risk_coverage_curve([0, 1, 1], y_proba)
    >>> risk.round(4)
    array([0.    , 0.    , 0.3333])
    """
    wrong, uncertainty, weight = _ranked(y_true, y_proba, uncertainty, labels, sample_weight)
    coverage, risk = _curve(wrong, weight)
    return coverage, risk, uncertainty


def accuracy_rejection_curve(
    y_true: ArrayLike,
    y_proba: ArrayLike,
    *,
    uncertainty: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Accuracy on what is left when the least certain samples are rejected, against the share rejected.

    The same numbers as :func:`risk_coverage_curve`, read from the other side.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True classes.
    y_proba : array-like of shape (n_samples, n_classes) or (n_samples,)
        Predicted probabilities; one column is the probability of the second of two classes.
    uncertainty : array-like of shape (n_samples,), default=None
        What the samples are ranked by, the highest rejected first. By default one minus the largest
        probability.
    labels : array-like of shape (n_classes,), default=None
        The class of each column, ``clf.classes_``; by default the sorted classes of ``y_true``.
    sample_weight : array-like of shape (n_samples,), default=None
        Sample weights.

    Returns
    -------
    rejection : ndarray of shape (n_samples,)
        Share of the samples rejected, rising from 0. Samples of no weight are left out.
    accuracy : ndarray of shape (n_samples,)
        Accuracy on the rest.
    thresholds : ndarray of shape (n_samples,)
        The largest uncertainty that is not rejected.

    Raises
    ------
    ValueError
        If probabilities are not probabilities, labels have no column, uncertainty is NaN or lengths differ.

    References
    ----------
    Nadeem et al., "Accuracy-Rejection Curves (ARCs) for Comparing Classification Methods with a Reject
    Option", MLSB 2009.

    Examples
    --------
    >>> from skve.metrics import accuracy_rejection_curve
    >>> y_proba = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]
    >>> rejection, accuracy, thresholds = accuracy_rejection_curve([0, 1, 1], y_proba)
    >>> accuracy.round(4)
    array([0.6667, 1.    , 1.    ])
    """
    coverage, risk, thresholds = risk_coverage_curve(
        y_true, y_proba, uncertainty=uncertainty, labels=labels, sample_weight=sample_weight
    )
    return 1 - coverage[::-1], 1 - risk[::-1], thresholds[::-1]


def aurc(
    y_true: ArrayLike,
    y_proba: ArrayLike,
    *,
    uncertainty: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    r"""Area under the risk-coverage curve (AURC): mean error rate over all coverages.

    .. math:: \mathrm{AURC} = \frac{1}{n} \sum_k r_k

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True classes.
    y_proba : array-like of shape (n_samples, n_classes) or (n_samples,)
        Predicted probabilities; one column is the probability of the second of two classes.
    uncertainty : array-like of shape (n_samples,), default=None
        What the samples are ranked by. By default one minus the largest probability.
    labels : array-like of shape (n_classes,), default=None
        The class of each column, ``clf.classes_``; by default the sorted classes of ``y_true``.
    sample_weight : array-like of shape (n_samples,), default=None
        Sample weights.

    Returns
    -------
    float
        Between 0 (no errors) and 1; the error rate itself if the uncertainty is uninformative.

    Raises
    ------
    ValueError
        If probabilities are not probabilities, labels have no column, uncertainty is NaN or lengths differ.

    Notes
    -----
    The mean over samples is the definition of the source. torch-uncertainty takes the trapezoidal area over
    coverages from ``1 / n`` to 1, divided by their width; the two differ by at most ``1 / n``.

    References
    ----------
    Geifman et al., "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers", ICLR 2019.

    Examples
    --------
    >>> from skve.metrics import aurc
    >>> round(aurc([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), 4)
    0.1111
    """
    wrong, _, weight = _ranked(y_true, y_proba, uncertainty, labels, sample_weight)
    return float(np.average(_curve(wrong, weight)[1], weights=weight))


def excess_aurc(
    y_true: ArrayLike,
    y_proba: ArrayLike,
    *,
    uncertainty: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Excess AURC (E-AURC): AURC minus that of a ranking that puts every error last.

    What is lost by the ranking alone, whatever the accuracy.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True classes.
    y_proba : array-like of shape (n_samples, n_classes) or (n_samples,)
        Predicted probabilities; one column is the probability of the second of two classes.
    uncertainty : array-like of shape (n_samples,), default=None
        What the samples are ranked by. By default one minus the largest probability.
    labels : array-like of shape (n_classes,), default=None
        The class of each column, ``clf.classes_``; by default the sorted classes of ``y_true``.
    sample_weight : array-like of shape (n_samples,), default=None
        Sample weights.

    Returns
    -------
    float
        Between 0 (every error less certain than every right answer) and 1.

    Raises
    ------
    ValueError
        If probabilities are not probabilities, labels have no column, uncertainty is NaN or lengths differ.

    Notes
    -----
    The best ranking's AURC is summed exactly, where the source takes the limit for many samples,
    ``r + (1 - r) * log(1 - r)`` for an error rate ``r``.

    References
    ----------
    Geifman et al., "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers", ICLR 2019.

    Examples
    --------
    >>> from skve.metrics import excess_aurc
    >>> excess_aurc([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])  # the one error is the least certain
    0.0
    """
    common = {"labels": labels, "sample_weight": sample_weight}
    area = aurc(y_true, y_proba, uncertainty=uncertainty, **common)
    best = aurc(y_true, y_proba, uncertainty=errors(y_true, y_proba, labels), **common)
    return max(area - best, 0.0)


def accuracy_at_coverage(
    y_true: ArrayLike,
    y_proba: ArrayLike,
    *,
    coverage: float = 0.8,
    uncertainty: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Accuracy on the most certain share of the samples.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True classes.
    y_proba : array-like of shape (n_samples, n_classes) or (n_samples,)
        Predicted probabilities; one column is the probability of the second of two classes.
    coverage : float, default=0.8
        Share of the samples to answer, in (0, 1]; rounded up to whole samples.
    uncertainty : array-like of shape (n_samples,), default=None
        What the samples are ranked by. By default one minus the largest probability.
    labels : array-like of shape (n_classes,), default=None
        The class of each column, ``clf.classes_``; by default the sorted classes of ``y_true``.
    sample_weight : array-like of shape (n_samples,), default=None
        Sample weights.

    Returns
    -------
    float
        Between 0 and 1. Of samples tied at the end of the share, the mean is taken.

    Raises
    ------
    ValueError
        If probabilities are not probabilities, labels have no column, uncertainty is NaN, lengths differ or
        ``coverage`` is not in (0, 1].

    References
    ----------
    Geifman and El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017.

    Examples
    --------
    >>> from skve.metrics import accuracy_at_coverage
    >>> accuracy_at_coverage([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], coverage=0.6)
    1.0
    """
    coverage = check_fraction(coverage, name="coverage")
    covered, risk, _ = risk_coverage_curve(
        y_true, y_proba, uncertainty=uncertainty, labels=labels, sample_weight=sample_weight
    )
    # The slack keeps a coverage that is met exactly from being missed by a rounding error.
    return float(1 - risk[np.searchsorted(covered, coverage * (1 - 1e-12))])


def _ranked(
    y_true: Any, y_proba: Any, uncertainty: Any, labels: Any, sample_weight: Any
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64] | None]:
    """Errors, uncertainties and weights (or None), the most certain sample first; ties share their errors."""
    columns, y_proba, weight = check_targets(y_true, y_proba, labels, sample_weight)
    confidence, correct = top_label(columns, y_proba)
    if uncertainty is None:
        uncertainty = 1 - confidence
    else:
        uncertainty = check_scores(uncertainty, name="uncertainty")
        if len(uncertainty) != len(columns):
            raise ValueError(f"uncertainty must have {len(columns)} samples like y_true, got {len(uncertainty)}.")
    if weight is not None:  # a sample of no weight has no share in any coverage
        kept = weight > 0
        uncertainty, correct, weight = uncertainty[kept], correct[kept], weight[kept]
    order = np.argsort(uncertainty)
    uncertainty = uncertainty[order]
    wrong = (~correct[order]).astype(np.float64)
    weight = None if weight is None else weight[order]
    starts = np.flatnonzero(np.concatenate([[True], uncertainty[1:] != uncertainty[:-1]]))
    if len(starts) < len(wrong):
        lengths = np.diff(np.append(starts, len(wrong)))
        mass = lengths if weight is None else np.add.reduceat(weight, starts)
        total = np.add.reduceat(wrong if weight is None else wrong * weight, starts)
        wrong = np.repeat(total / mass, lengths)
    return wrong, uncertainty, weight


def _curve(wrong, weight):
    """Coverage and risk after each sample."""
    mass = np.arange(1.0, len(wrong) + 1) if weight is None else np.cumsum(weight)
    risk = np.cumsum(wrong if weight is None else wrong * weight) / mass
    return mass / mass[-1], risk
