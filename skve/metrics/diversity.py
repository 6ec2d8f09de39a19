"""Diversity: do the members of an ensemble differ, and do they err on different samples?"""

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skve import uncertainty
from skve.metrics._inputs import check_targets
from skve.uncertainty._validation import check_member_proba

__all__ = [
    "average_kl",
    "error_correlation",
    "linear_cka",
    "member_cka",
    "pairwise_disagreement",
    "q_statistic",
]


def pairwise_disagreement(member_proba: ArrayLike) -> float:
    """Share of samples on which two members predict different classes, averaged over pairs of members.

    Parameters
    ----------
    member_proba : array-like of shape (n_members, n_samples, n_classes)
        Probabilities of each member; every row sums to 1.

    Returns
    -------
    float
        Between 0 (members always agree) and 1.

    Raises
    ------
    ValueError
        If ``member_proba`` has fewer than two members or no samples, or does not hold probabilities.

    References
    ----------
    Kuncheva and Whitaker, "Measures of Diversity in Classifier Ensembles and Their Relationship with
    the Ensemble Accuracy", Machine Learning 2003.

    Examples
    --------
    >>> from skve.metrics import pairwise_disagreement
    >>> pairwise_disagreement([[[0.9, 0.1], [0.9, 0.1]], [[0.8, 0.2], [0.4, 0.6]]])
    0.5
    """
    return float(uncertainty.disagreement(_several(member_proba)).mean())


def average_kl(member_proba: ArrayLike) -> float:
    """Kullback-Leibler divergence between two different members, averaged over samples and pairs, in nats.

    Parameters
    ----------
    member_proba : array-like of shape (n_members, n_samples, n_classes)
        Probabilities of each member; every row sums to 1.

    Returns
    -------
    float
        0 if the members agree. Zeros are treated as in :func:`skve.uncertainty.expected_pairwise_kl`, which
        also pairs each member with itself and so is smaller by ``(n_members - 1) / n_members``.

    Raises
    ------
    ValueError
        If ``member_proba`` has fewer than two members or no samples, or does not hold probabilities.

    References
    ----------
    Fort et al., "Deep Ensembles: A Loss Landscape Perspective", 2019.

    Examples
    --------
    >>> from skve.metrics import average_kl
    >>> round(average_kl([[[0.5, 0.5]], [[0.8, 0.2]]]), 4)
    0.2079
    """
    member_proba = _several(member_proba)
    n_members = len(member_proba)
    return float(uncertainty.expected_pairwise_kl(member_proba).mean() * n_members / (n_members - 1))


def q_statistic(y_true: ArrayLike, member_proba: ArrayLike, *, labels: ArrayLike | None = None) -> float:
    r"""Yule's Q of two members' right and wrong answers, averaged over pairs of members.

    .. math:: Q_{ij} = \frac{N_{11} N_{00} - N_{01} N_{10}}{N_{11} N_{00} + N_{01} N_{10}}

    with N the counts of samples on which both are right (11), both wrong (00), only one right (01, 10).

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True classes.
    member_proba : array-like of shape (n_members, n_samples, n_classes)
        Probabilities of each member; every row sums to 1.
    labels : array-like of shape (n_classes,), default=None
        The class of each column, ``clf.classes_``; by default the sorted classes of ``y_true``.

    Returns
    -------
    float
        Between -1 (err on different samples) and 1 (err on the same); 0 if independent. Pairs for which Q is
        0 / 0 are left out, and if all are (members without errors) the result is NaN.

    Raises
    ------
    ValueError
        If ``member_proba`` has fewer than two members or no samples, or does not hold probabilities, or
        labels have no column.

    References
    ----------
    Kuncheva and Whitaker, "Measures of Diversity in Classifier Ensembles and Their Relationship with
    the Ensemble Accuracy", Machine Learning 2003.

    Examples
    --------
    >>> from skve.metrics import q_statistic
    >>> first, second = [[0.9, 0.1], [0.9, 0.1], [0.8, 0.2]], [[0.9, 0.1], [0.3, 0.7], [0.4, 0.6]]
    >>> q_statistic([0, 0, 1], [first, second])
    -1.0
    """
    right = _right(y_true, member_proba, labels).astype(np.int64)
    both = right @ right.T
    neither = (1 - right) @ (1 - right).T
    only = right @ (1 - right).T
    same, different = both * neither, only * only.T
    with np.errstate(invalid="ignore"):
        return _mean_over_pairs((same - different) / (same + different))


def error_correlation(y_true: ArrayLike, member_proba: ArrayLike, *, labels: ArrayLike | None = None) -> float:
    """Pearson correlation of two members' errors, averaged over pairs of members.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True classes.
    member_proba : array-like of shape (n_members, n_samples, n_classes)
        Probabilities of each member; every row sums to 1.
    labels : array-like of shape (n_classes,), default=None
        The class of each column, ``clf.classes_``; by default the sorted classes of ``y_true``.

    Returns
    -------
    float
        Between -1 and 1 (err on the same samples). Pairs with a member that is always right or always wrong
        are left out, and if all are the result is NaN.

    Raises
    ------
    ValueError
        If ``member_proba`` has fewer than two members or no samples, or does not hold probabilities, or
        labels have no column.

    References
    ----------
    Kuncheva and Whitaker, "Measures of Diversity in Classifier Ensembles and Their Relationship with
    the Ensemble Accuracy", Machine Learning 2003.

    Examples
    --------
    >>> from skve.metrics import error_correlation
    >>> first, second = [[0.9, 0.1], [0.9, 0.1], [0.8, 0.2]], [[0.9, 0.1], [0.3, 0.7], [0.4, 0.6]]
    >>> round(error_correlation([0, 0, 1], [first, second]), 4)
    -0.5
    """
    right = _right(y_true, member_proba, labels).astype(np.float64)
    centred = right - right.mean(axis=1, keepdims=True)
    covariance = centred @ centred.T
    deviation = np.sqrt(np.diag(covariance))
    with np.errstate(invalid="ignore"):
        return _mean_over_pairs(covariance / np.outer(deviation, deviation))


def linear_cka(features_a: ArrayLike, features_b: ArrayLike) -> float:
    r"""Linear centred kernel alignment (CKA) of two representations of the same samples.

    .. math:: \frac{\|A^\top B\|_F^2}{\|A^\top A\|_F \|B^\top B\|_F}, \qquad A, B \text{ centred by column}

    Parameters
    ----------
    features_a : array-like of shape (n_samples, n_features_a)
        Features of one model.
    features_b : array-like of shape (n_samples, n_features_b)
        Features of another for the same samples; their number may differ.

    Returns
    -------
    float
        Between 0 and 1 (equal up to rotation, scale and shift). NaN if a representation is constant.

    Raises
    ------
    ValueError
        If an array is not two-dimensional and finite, or the numbers of samples differ.

    References
    ----------
    Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019.

    Examples
    --------
    >>> import numpy as np
    >>> from skve.metrics import linear_cka
    >>> features = np.random.default_rng(0).normal(size=(50, 3))
    >>> round(linear_cka(features, -2 * features), 4)
    1.0
    """
    a, b = _centred(features_a, "features_a"), _centred(features_b, "features_b")
    if len(a) != len(b):
        raise ValueError(f"features_b must have {len(a)} samples like features_a, got {len(b)}.")
    scale = _overlap(a, a) * _overlap(b, b)
    return float(_overlap(a, b) / np.sqrt(scale)) if scale > 0 else float("nan")


def member_cka(member_features: ArrayLike) -> NDArray[np.float64]:
    """Linear CKA of the features of every two members.

    Parameters
    ----------
    member_features : array-like of shape (n_members, n_samples, n_features)
        Features of each member for the same samples. With ``features="members"``, ``transform`` of this package's
        classifiers returns them side by side; ``np.split(clf.transform(X), n_members, axis=1)`` separates them.

    Returns
    -------
    ndarray of shape (n_members, n_members)
        Symmetric, with ones on the diagonal; see :func:`linear_cka`. A constant member has NaN in its row.

    Raises
    ------
    ValueError
        If the array is not three-dimensional and finite.

    References
    ----------
    Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019.

    Examples
    --------
    >>> import numpy as np
    >>> from skve.metrics import member_cka
    >>> features = np.random.default_rng(0).normal(size=(50, 3))
    >>> member_cka([features, features + 1]).round(4)
    array([[1., 1.],
           [1., 1.]])
    """
    member_features = np.asarray(member_features)
    if member_features.ndim != 3:
        raise ValueError(
            "member_features must have shape (n_members, n_samples, n_features), "
            f"got an array of shape {member_features.shape}."
        )
    members = [_centred(features, f"member_features[{m}]") for m, features in enumerate(member_features)]
    overlap = np.empty((len(members), len(members)))
    for i, first in enumerate(members):
        for j in range(i + 1):
            overlap[i, j] = overlap[j, i] = _overlap(first, members[j])
    scale = np.sqrt(np.diag(overlap))
    with np.errstate(invalid="ignore"):
        return overlap / np.outer(scale, scale)


def _several(member_proba: Any) -> NDArray[Any]:
    member_proba = check_member_proba(member_proba)
    if len(member_proba) < 2 or member_proba.shape[1] == 0:
        raise ValueError(
            f"member_proba must hold at least two members and one sample, got an array of shape {member_proba.shape}."
        )
    return member_proba


def _right(y_true, member_proba, labels):
    """Whether each member is right about each sample, (n_members, n_samples)."""
    member_proba = _several(member_proba)
    columns, _, _ = check_targets(y_true, member_proba[0], labels)
    return member_proba.argmax(axis=2) == columns


def _mean_over_pairs(matrix):
    values = np.array([matrix[i, j] for i, j in combinations(range(len(matrix)), 2)])
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _centred(features, name):
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or features.size == 0:
        raise ValueError(f"{name} must have shape (n_samples, n_features), got {features.shape}.")
    if not np.isfinite(features).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity.")
    features = features - features[0]  # so that what is constant becomes zero, without rounding errors
    return features - features.mean(axis=0)


def _overlap(a, b):
    # The smaller of the two products: features against features, or samples against samples.
    if len(a) < max(a.shape[1], b.shape[1]):
        return np.sum((a @ a.T) * (b @ b.T))
    return np.sum((a.T @ b) ** 2)
