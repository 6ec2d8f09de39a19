"""Out-of-distribution detection: does the uncertainty distinguish foreign samples from familiar ones?"""

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from skve._inputs.weights import check_weights
from skve.metrics._inputs import check_choice, check_fraction, check_scores

__all__ = ["ood_aupr", "ood_auroc", "ood_fpr_at_tpr"]


def ood_auroc(
    scores_in: ArrayLike,
    scores_out: ArrayLike,
    *,
    sample_weight_in: ArrayLike | None = None,
    sample_weight_out: ArrayLike | None = None,
) -> float:
    """Area under the ROC curve of detecting foreign samples by their score.

    The probability that a foreign sample scores higher than a familiar one, ties counting half.

    Parameters
    ----------
    scores_in : array-like of shape (n_in,)
        Scores of familiar samples; higher means more foreign, for instance ``u.epistemic``.
    scores_out : array-like of shape (n_out,)
        Scores of foreign samples.
    sample_weight_in, sample_weight_out : array-like of shape (n_in,) and (n_out,), default=None
        Sample weights.

    Returns
    -------
    float
        Between 0 and 1; 0.5 for an uninformative score.

    Raises
    ------
    ValueError
        If a side is empty, or has a NaN or a wrong shape.

    References
    ----------
    Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural
    Networks", ICLR 2017. Computed by :func:`sklearn.metrics.roc_auc_score`.

    Examples
    --------
    >>> from skve.metrics import ood_auroc
    >>> round(ood_auroc([0.1, 0.2, 0.6], [0.5, 0.9]), 4)
    0.8333
    """
    foreign, scores, weight = _both(scores_in, scores_out, sample_weight_in, sample_weight_out)
    return float(roc_auc_score(foreign, scores, sample_weight=weight))


def ood_aupr(
    scores_in: ArrayLike,
    scores_out: ArrayLike,
    *,
    positive: str = "out",
    sample_weight_in: ArrayLike | None = None,
    sample_weight_out: ArrayLike | None = None,
) -> float:
    """Area under the precision-recall curve (average precision) of detecting foreign samples by their score.

    Parameters
    ----------
    scores_in : array-like of shape (n_in,)
        Scores of familiar samples; higher means more foreign.
    scores_out : array-like of shape (n_out,)
        Scores of foreign samples.
    positive : {"out", "in"}, default="out"
        Which side to detect: AUPR-out or AUPR-in.
    sample_weight_in, sample_weight_out : array-like of shape (n_in,) and (n_out,), default=None
        Sample weights.

    Returns
    -------
    float
        Between 0 and 1; the share of the positive side for an uninformative score.

    Raises
    ------
    ValueError
        If a side is empty, or has a NaN or a wrong shape, or ``positive`` is unknown.

    Notes
    -----
    Average precision is a sum over thresholds; the trapezoidal area, which some toolboxes report, is
    a little larger.

    References
    ----------
    Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural
    Networks", ICLR 2017. Computed by :func:`sklearn.metrics.average_precision_score`.

    Examples
    --------
    >>> from skve.metrics import ood_aupr
    >>> round(ood_aupr([0.1, 0.2, 0.6], [0.5, 0.9]), 4)
    0.8333
    """
    foreign, scores, weight = _both(scores_in, scores_out, sample_weight_in, sample_weight_out)
    if check_choice(positive, ("out", "in"), name="positive") == "in":
        foreign, scores = ~foreign, -scores
    return float(average_precision_score(foreign, scores, sample_weight=weight))


def ood_fpr_at_tpr(
    scores_in: ArrayLike,
    scores_out: ArrayLike,
    *,
    tpr: float = 0.95,
    positive: str = "out",
    sample_weight_in: ArrayLike | None = None,
    sample_weight_out: ArrayLike | None = None,
) -> float:
    """False-positive rate at the threshold that finds a given share of the positive side (FPR95).

    With the default: the share of ordinary samples called foreign when 95 % of the foreign ones are found.

    Parameters
    ----------
    scores_in : array-like of shape (n_in,)
        Scores of familiar samples; higher means more foreign.
    scores_out : array-like of shape (n_out,)
        Scores of foreign samples.
    tpr : float, default=0.95
        The true-positive rate to reach, in (0, 1]. The highest threshold that reaches it is taken, without
        interpolation.
    positive : {"out", "in"}, default="out"
        Which side to detect. With "in": the share of foreign samples taken for ordinary ones when
        95 % of the ordinary are accepted, the definition of Liang et al.
    sample_weight_in, sample_weight_out : array-like of shape (n_in,) and (n_out,), default=None
        Sample weights.

    Returns
    -------
    float
        Between 0 and 1; lower is better.

    Raises
    ------
    ValueError
        If a side is empty, or has a NaN or a wrong shape, or an option is out of range.

    References
    ----------
    Liang et al., "Enhancing the Reliability of Out-of-distribution Image Detection in Neural Networks",
    ICLR 2018.

    Examples
    --------
    >>> from skve.metrics import ood_fpr_at_tpr
    >>> round(ood_fpr_at_tpr([0.1, 0.2, 0.6], [0.5, 0.9]), 4)
    0.3333
    """
    tpr = check_fraction(tpr, name="tpr")
    foreign, scores, weight = _both(scores_in, scores_out, sample_weight_in, sample_weight_out)
    if check_choice(positive, ("out", "in"), name="positive") == "in":
        foreign, scores = ~foreign, -scores
    false_positive, true_positive, _ = roc_curve(foreign, scores, sample_weight=weight, drop_intermediate=False)
    # The slack keeps a rate that is met exactly from being missed by a rounding error.
    return float(false_positive[np.searchsorted(true_positive, tpr * (1 - 1e-12))])


def _both(scores_in, scores_out, weight_in, weight_out):
    """Join both sides: whether foreign, score, and weight (or None)."""
    scores_in = check_scores(scores_in, name="scores_in")
    scores_out = check_scores(scores_out, name="scores_out")
    weight_in = check_weights(weight_in, len(scores_in), name="sample_weight_in")
    weight_out = check_weights(weight_out, len(scores_out), name="sample_weight_out")
    weight = None
    if weight_in is not None or weight_out is not None:
        weight = np.concatenate(
            [
                np.ones(len(scores_in)) if weight_in is None else weight_in,
                np.ones(len(scores_out)) if weight_out is None else weight_out,
            ]
        )
    foreign = np.repeat([False, True], [len(scores_in), len(scores_out)])
    return foreign, np.concatenate([scores_in, scores_out]), weight
