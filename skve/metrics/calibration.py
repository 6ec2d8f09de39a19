"""Calibration: is a confidence of 0.8 correct 80 % of the time?"""

from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.fft import dct, idct

from skve._runtime.wording import listed
from skve.metrics._inputs import check_choice, check_count, check_targets, top_label

__all__ = [
    "CalibrationBins",
    "adaptive_calibration_error",
    "calibration_bins",
    "expected_calibration_error",
    "smooth_calibration_error",
]

_STRATEGIES = ("uniform", "quantile")
# Cells of the grid on which the smooth calibration error is computed.
_GRID = 8192


@dataclass(frozen=True, eq=False)
class CalibrationBins:
    """Predictions grouped by confidence: what a reliability diagram shows.

    Attributes
    ----------
    edges : ndarray of shape (n_bins + 1,)
        Bin ``b`` holds confidences in ``(edges[b], edges[b + 1]]``; the first one holds 0 too.
    weight : ndarray of shape (n_bins,)
        Number of samples, or sum of their weights.
    confidence : ndarray of shape (n_bins,)
        Mean confidence; NaN in an empty bin.
    accuracy : ndarray of shape (n_bins,)
        Share of the samples for which the event took place; NaN in an empty bin.
    effective_size : ndarray of shape (n_bins,)
        ``(sum of weights)**2 / (sum of squared weights)``: the number of samples when they weigh the same.

    Examples
    --------
    >>> from skve.metrics import calibration_bins
    >>> bins = calibration_bins([0, 1], [[0.9, 0.1], [0.4, 0.6]], n_bins=2)
    >>> bins.edges
    array([0. , 0.5, 1. ])
    >>> bins.confidence
    array([ nan, 0.75])
    """

    edges: np.ndarray
    weight: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    effective_size: np.ndarray


def calibration_bins(
    y_true: ArrayLike,
    y_proba: ArrayLike,
    *,
    pos_label: Any = None,
    n_bins: int = 15,
    strategy: str = "uniform",
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> CalibrationBins:
    """Group predictions into bins of confidence, with the mean confidence and accuracy of each.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True classes.
    y_proba : array-like of shape (n_samples, n_classes) or (n_samples,)
        Predicted probabilities; one column is the probability of the second of two classes.
    pos_label : label, default=None
        Bin the probability of this class, whatever is predicted; by default the probability of the predicted
        class (top label).
    n_bins : int, default=15
        Number of bins.
    strategy : {"uniform", "quantile"}, default="uniform"
        Bins of equal width or of equal mass.
    labels : array-like of shape (n_classes,), default=None
        The class of each column, ``clf.classes_``; by default the sorted classes of ``y_true``.
    sample_weight : array-like of shape (n_samples,), default=None
        Sample weights.

    Returns
    -------
    CalibrationBins

    Raises
    ------
    ValueError
        If probabilities are not probabilities, labels have no column, lengths differ, ``pos_label`` is not a class
        or an option is unknown.

    References
    ----------
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.

    Examples
    --------
    >>> from skve.metrics import calibration_bins
    >>> bins = calibration_bins([0, 1, 1], [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]], n_bins=2)
    >>> bins.weight
    array([0., 3.])
    >>> bins.accuracy
    array([       nan, 0.66666667])
    """
    check_choice(strategy, _STRATEGIES, name="strategy")
    n_bins = check_count(n_bins, name="n_bins")
    columns, y_proba, sample_weight = check_targets(y_true, y_proba, labels, sample_weight)
    if pos_label is None:
        confidence, happened = top_label(columns, y_proba)
    else:
        classes = np.unique(y_true) if labels is None else np.asarray(labels)
        if pos_label not in classes:
            raise ValueError(
                f"pos_label must be one of the classes {listed(classes.tolist(), form=repr)}, got {pos_label!r}."
            )
        column = int(np.flatnonzero(classes == pos_label)[0])
        confidence, happened = y_proba[:, column].astype(np.float64), columns == column
    return _bins(confidence, happened, n_bins, strategy, sample_weight)


def expected_calibration_error(
    y_true: ArrayLike,
    y_proba: ArrayLike,
    *,
    kind: str = "top_label",
    n_bins: int = 15,
    strategy: str = "uniform",
    norm: str = "l1",
    debias: bool = False,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    r"""Expected calibration error (ECE): mean gap between confidence and accuracy, bin by bin.

    .. math:: \mathrm{ECE} = \bigl( \sum_b \frac{n_b}{n} |\mathrm{acc}_b - \mathrm{conf}_b|^p \bigr)^{1/p}

    with p = 1 or 2; the maximum norm is the largest gap (MCE).

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True classes.
    y_proba : array-like of shape (n_samples, n_classes) or (n_samples,)
        Predicted probabilities; one column is the probability of the second of two classes.
    kind : {"top_label", "classwise"}, default="top_label"
        Compare the confidence in the predicted class with the accuracy; or, class after class, the
        probability of the class with its frequency, and take the same norm over all classes, each of weight
        ``1 / n_classes``.
    n_bins : int, default=15
        Number of bins.
    strategy : {"uniform", "quantile"}, default="uniform"
        Bins of equal width or of equal mass.
    norm : {"l1", "l2", "max"}, default="l1"
        Norm of the gaps. Empty bins do not count.
    debias : bool, default=False
        Subtract, bin by bin, the squared gap that a calibrated model shows by chance,
        ``acc * (1 - acc) / (n - 1)``. Only for ``norm="l2"``. A bin of one sample does not count, and a
        negative sum counts as 0.
    labels : array-like of shape (n_classes,), default=None
        The class of each column, ``clf.classes_``; by default the sorted classes of ``y_true``.
    sample_weight : array-like of shape (n_samples,), default=None
        Sample weights.

    Returns
    -------
    float
        Between 0 (calibrated) and 1, as a fraction, not in percent.

    Raises
    ------
    ValueError
        If probabilities are not probabilities, labels have no column, lengths differ or an option is unknown.

    Notes
    -----
    Bins are ``(lo, hi]`` as in Guo et al.; netcal's are ``[lo, hi)``, which differs only for a confidence
    exactly on an edge; torch-uncertainty gives a confidence of exactly 1 a bin of its own. Edges of
    equal-mass bins are predicted confidences (samples of the same confidence are never split, and a
    weight of two equals two samples), where netcal interpolates between them and torch-uncertainty cuts the
    sorted samples.

    References
    ----------
    * Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015.
    * Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (top label, 15 bins).
    * Kumar et al., "Verified Uncertainty Calibration", NeurIPS 2019 (L2, debiased, classwise).
    * Nixon et al., "Measuring Calibration in Deep Learning", CVPR 2019 workshop (classwise).

    Examples
    --------
    >>> from skve.metrics import expected_calibration_error
    >>> y_proba = [[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.4, 0.6]]
    >>> round(expected_calibration_error([0, 0, 1, 1], y_proba), 4)
    0.275
    """
    check_choice(kind, ("top_label", "classwise"), name="kind")
    check_choice(strategy, _STRATEGIES, name="strategy")
    check_choice(norm, ("l1", "l2", "max"), name="norm")
    n_bins = check_count(n_bins, name="n_bins")
    if debias and norm != "l2":
        raise ValueError(f"norm must be 'l2' if debias is set, got {norm!r}.")
    columns, y_proba, sample_weight = check_targets(y_true, y_proba, labels, sample_weight)
    gaps = [
        _gap(_bins(confidence, happened, n_bins, strategy, sample_weight), norm, debias)
        for confidence, happened in _events(columns, y_proba, kind)
    ]
    error = max(gaps) if norm == "max" else np.mean(gaps)
    return float(np.sqrt(max(error, 0.0)) if norm == "l2" else error)


def adaptive_calibration_error(
    y_true: ArrayLike,
    y_proba: ArrayLike,
    *,
    n_bins: int = 15,
    threshold: float = 0.0,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    r"""Adaptive calibration error (ACE): gap per class in bins of equal mass, every bin counting the same.

    .. math:: \mathrm{ACE} = \frac{1}{K B} \sum_k \sum_b |\mathrm{acc}_{kb} - \mathrm{conf}_{kb}|

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True classes.
    y_proba : array-like of shape (n_samples, n_classes) or (n_samples,)
        Predicted probabilities; one column is the probability of the second of two classes.
    n_bins : int, default=15
        Number of bins per class. Bins left empty by equal probabilities are left out of the mean.
    threshold : float, default=0.0
        Leave out predictions of at most this probability (thresholded ACE), so that the many
        near-zero probabilities do not fill the bins. At 0, all are kept.
    labels : array-like of shape (n_classes,), default=None
        The class of each column, ``clf.classes_``; by default the sorted classes of ``y_true``.
    sample_weight : array-like of shape (n_samples,), default=None
        Sample weights.

    Returns
    -------
    float
        Between 0 (calibrated) and 1. If no prediction exceeds ``threshold``, 0.

    Raises
    ------
    ValueError
        If probabilities are not probabilities, labels have no column, lengths differ, ``n_bins`` is not a positive
        integer or ``threshold`` is not in [0, 1).

    References
    ----------
    Nixon et al., "Measuring Calibration in Deep Learning", CVPR 2019 workshop.

    Examples
    --------
    >>> from skve.metrics import adaptive_calibration_error
    >>> y_proba = [[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.4, 0.6]]
    >>> round(adaptive_calibration_error([0, 0, 1, 1], y_proba, n_bins=2), 4)
    0.225
    """
    n_bins = check_count(n_bins, name="n_bins")
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be in [0, 1), got {threshold!r}.")
    columns, y_proba, sample_weight = check_targets(y_true, y_proba, labels, sample_weight)
    gaps = []
    for confidence, happened in _events(columns, y_proba, "classwise"):
        kept = confidence > threshold if threshold > 0 else np.ones(len(columns), dtype=bool)
        weight = None if sample_weight is None else sample_weight[kept]
        if kept.any() and (weight is None or weight.any()):
            bins = _bins(confidence[kept], happened[kept], n_bins, "quantile", weight)
            gaps.append(np.nanmean(np.abs(bins.accuracy - bins.confidence)))
    return float(np.mean(gaps)) if gaps else 0.0


def smooth_calibration_error(
    y_true: ArrayLike,
    y_proba: ArrayLike,
    *,
    bandwidth: float | Literal["auto"] = "auto",
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    r"""Smooth calibration error (smECE) of the predicted class: no bins, a kernel instead.

    .. math:: \mathrm{smECE}_\sigma = \int_0^1 \bigl| \frac{1}{n} \sum_i K_\sigma(t, f_i) (y_i - f_i) \bigr| dt

    with the Gaussian kernel reflected at 0 and 1. The bandwidth is the one for which
    ``smECE(bandwidth) == bandwidth``, so nothing is left to choose.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True classes.
    y_proba : array-like of shape (n_samples, n_classes) or (n_samples,)
        Predicted probabilities; one column is the probability of the second of two classes.
    bandwidth : float or "auto", default="auto"
        Standard deviation of the kernel, in units of probability.
    labels : array-like of shape (n_classes,), default=None
        The class of each column, ``clf.classes_``; by default the sorted classes of ``y_true``.
    sample_weight : array-like of shape (n_samples,), default=None
        Sample weights.

    Returns
    -------
    float
        Between 0 (calibrated) and 1.

    Raises
    ------
    ValueError
        If probabilities are not probabilities, labels have no column, lengths differ or ``bandwidth`` is not a
        positive, finite number.

    Notes
    -----
    The residuals are laid on a grid of 8192 cells, on which the reflected kernel is a product in the cosine
    basis. The error of the grid is below 1e-5 for bandwidths over 0.002. The authors' code and
    torch-uncertainty search for the bandwidth to 1e-3 only, and the latter's default is a kernel in logits.

    References
    ----------
    Blasiok and Nakkiran, "Smooth ECE: Principled Reliability Diagrams via Kernel Smoothing", ICLR 2024.

    Examples
    --------
    >>> from skve.metrics import smooth_calibration_error
    >>> round(smooth_calibration_error([0, 0, 0, 1], [[0.8, 0.2]] * 4), 4)
    0.05
    """
    is_number = isinstance(bandwidth, Real) and not isinstance(bandwidth, bool)
    if bandwidth != "auto" and not (is_number and 0 < bandwidth < np.inf):
        raise ValueError(f"bandwidth must be 'auto' or a positive, finite number, got {bandwidth!r}.")
    columns, y_proba, sample_weight = check_targets(y_true, y_proba, labels, sample_weight)
    confidence, correct = top_label(columns, y_proba)
    residuals = correct - confidence
    residuals *= 1 / len(residuals) if sample_weight is None else sample_weight / sample_weight.sum()

    # Each residual is shared by the two nearest cells, whose centres are at (i + 1/2) / _GRID.
    position = np.clip(confidence * _GRID - 0.5, 0, _GRID - 1)
    cell = np.minimum(position.astype(np.intp), _GRID - 2)
    upper = position - cell
    grid = np.bincount(cell, residuals * (1 - upper), _GRID) + np.bincount(cell + 1, residuals * upper, _GRID)
    spectrum = dct(grid)
    frequency = np.pi * np.arange(_GRID)

    def smoothed(sigma):
        return float(np.abs(idct(spectrum * np.exp(-0.5 * (frequency * sigma) ** 2))).sum())

    if bandwidth != "auto":
        return smoothed(float(bandwidth))
    # A wider kernel gives a smaller error: bisection finds the one crossing.
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if smoothed(middle) > middle else (low, middle)
    return high


def _events(columns, y_proba, kind):
    """Yield (probability, whether it came true) for the top label or for class after class."""
    if kind == "top_label":
        yield top_label(columns, y_proba)
    else:
        for column in range(y_proba.shape[1]):
            yield y_proba[:, column].astype(np.float64), columns == column


def _bins(confidence, happened, n_bins, strategy, sample_weight):
    weight = np.ones(len(confidence)) if sample_weight is None else sample_weight
    if strategy == "uniform":
        return _collect(np.linspace(0, 1, n_bins + 1), confidence, happened, weight)
    return _collect(_equal_mass_edges(confidence, weight, n_bins), confidence, happened, weight)


def _equal_mass_edges(confidence, weight, n_bins):
    """Edges at quantiles of the confidences; a quantile is a sample, so that weights act as repetitions."""
    order = np.argsort(confidence)
    mass = np.cumsum(weight[order])
    # The slack keeps a bound that is met exactly from being missed by a rounding error.
    bounds = mass[-1] * np.arange(1, n_bins) / n_bins * (1 - 1e-12)
    return np.concatenate([[0.0], confidence[order[np.searchsorted(mass, bounds)]], [1.0]])


def _collect(edges, confidence, happened, weight):
    index = np.searchsorted(edges[1:-1], confidence)  # side "left": bins are (lo, hi]
    n_bins = len(edges) - 1
    mass = np.bincount(index, weight, n_bins)
    squares = np.bincount(index, weight**2, n_bins)
    with np.errstate(invalid="ignore"):  # empty bins are NaN
        return CalibrationBins(
            edges=edges,
            weight=mass,
            confidence=np.bincount(index, weight * confidence, n_bins) / mass,
            accuracy=np.bincount(index, weight * happened, n_bins) / mass,
            effective_size=mass**2 / squares,
        )


def _gap(bins, norm, debias):
    filled = bins.weight > 0
    share = bins.weight[filled] / bins.weight.sum()
    accuracy = bins.accuracy[filled]
    gap = np.abs(accuracy - bins.confidence[filled])
    if norm == "max":
        return gap.max()
    if norm == "l1":
        return share @ gap
    gap = gap**2
    if debias:
        size = bins.effective_size[filled]
        several = size > 1
        chance = accuracy * (1 - accuracy) / np.where(several, size - 1, 1)
        gap = np.where(several, gap - chance, 0.0)
    return share @ gap
