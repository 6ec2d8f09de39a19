"""Measures of the probabilities that members predict, one function each."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skve.uncertainty._validation import check_member_proba, check_proba, row_chunks


def entropy(proba: ArrayLike) -> NDArray[np.float64]:
    r"""Entropy of each predicted distribution, in nats.

    .. math:: H[p] = -\sum_c p_c \log p_c, \qquad 0 \log 0 = 0

    Parameters
    ----------
    proba : array-like of shape (n_samples, n_classes)
        Probabilities; every row sums to 1.

    Returns
    -------
    ndarray of shape (n_samples,)
        Between 0 (certain) and ``log(n_classes)`` (all classes alike).

    Raises
    ------
    ValueError
        If ``proba`` has another shape, a NaN, a negative value or a row that does not sum to 1.

    References
    ----------
    Shannon, "A Mathematical Theory of Communication", 1948.

    Examples
    --------
    >>> from skve.uncertainty import entropy
    >>> entropy([[1.0, 0.0], [0.5, 0.5]]).round(4)
    array([0.    , 0.6931])
    """
    proba = check_proba(proba)
    result = np.empty(proba.shape[0])
    for rows in row_chunks(*proba.shape):
        result[rows] = entropy_of(proba[rows].astype(np.float64, copy=False))
    return result


def predictive_entropy(member_proba: ArrayLike) -> NDArray[np.float64]:
    r"""Total uncertainty: entropy of the mean prediction, in nats.

    .. math:: H[\bar p], \qquad \bar p = \frac{1}{M} \sum_m p_m

    Parameters
    ----------
    member_proba : array-like of shape (n_members, n_samples, n_classes)
        Probabilities of each member; every row sums to 1.

    Returns
    -------
    ndarray of shape (n_samples,)
        Between 0 and ``log(n_classes)``; the sum of :func:`expected_entropy` and :func:`mutual_information`.

    Raises
    ------
    ValueError
        If ``member_proba`` has another shape, a NaN, a negative value or a row that does not sum to 1.

    References
    ----------
    Depeweg et al., "Decomposition of Uncertainty in Bayesian Deep Learning for Efficient and
    Risk-sensitive Learning", ICML 2018.

    Examples
    --------
    >>> from skve.uncertainty import predictive_entropy
    >>> agree, differ = [0.5, 0.5], [1.0, 0.0]
    >>> predictive_entropy([[agree, differ], [agree, differ[::-1]]]).round(4)
    array([0.6931, 0.6931])
    """
    return per_sample(member_proba, lambda members: entropy_of(members.mean(axis=0)))


def expected_entropy(member_proba: ArrayLike) -> NDArray[np.float64]:
    r"""Aleatoric uncertainty: mean entropy of the members' predictions, in nats.

    .. math:: \frac{1}{M} \sum_m H[p_m]

    Parameters
    ----------
    member_proba : array-like of shape (n_members, n_samples, n_classes)
        Probabilities of each member; every row sums to 1.

    Returns
    -------
    ndarray of shape (n_samples,)
        Between 0 and ``log(n_classes)``: what remains unsure when the members agree.

    Raises
    ------
    ValueError
        If ``member_proba`` has another shape, a NaN, a negative value or a row that does not sum to 1.

    References
    ----------
    Depeweg et al., "Decomposition of Uncertainty in Bayesian Deep Learning for Efficient and
    Risk-sensitive Learning", ICML 2018.

    Examples
    --------
    >>> from skve.uncertainty import expected_entropy
    >>> agree, differ = [0.5, 0.5], [1.0, 0.0]
    >>> expected_entropy([[agree, differ], [agree, differ[::-1]]]).round(4)
    array([0.6931, 0.    ])
    """
    return per_sample(member_proba, lambda members: entropy_of(members).mean(axis=0))


def mutual_information(member_proba: ArrayLike) -> NDArray[np.float64]:
    r"""Epistemic uncertainty: mutual information of the prediction and the choice of member, in nats.

    .. math:: H[\bar p] - \frac{1}{M} \sum_m H[p_m] = \frac{1}{M} \sum_m \mathrm{KL}(p_m \| \bar p) \ge 0

    Parameters
    ----------
    member_proba : array-like of shape (n_members, n_samples, n_classes)
        Probabilities of each member; every row sums to 1.

    Returns
    -------
    ndarray of shape (n_samples,)
        Between 0 (the members agree) and ``log(min(n_members, n_classes))``; never negative by rounding.

    Raises
    ------
    ValueError
        If ``member_proba`` has another shape, a NaN, a negative value or a row that does not sum to 1.

    References
    ----------
    Houlsby et al., "Bayesian Active Learning for Classification and Preference Learning", 2011 (BALD).

    Examples
    --------
    >>> from skve.uncertainty import mutual_information
    >>> agree, differ = [0.5, 0.5], [1.0, 0.0]
    >>> mutual_information([[agree, differ], [agree, differ[::-1]]]).round(4)
    array([0.    , 0.6931])
    """
    return per_sample(member_proba, lambda members: decomposition(members)[2])


def expected_pairwise_kl(member_proba: ArrayLike) -> NDArray[np.float64]:
    r"""EPKL: Kullback-Leibler divergence between two members, averaged over all pairs, in nats.

    .. math:: \frac{1}{M^2} \sum_{i, j} \mathrm{KL}(p_i \| p_j)

    Parameters
    ----------
    member_proba : array-like of shape (n_members, n_samples, n_classes)
        Probabilities of each member; every row sums to 1.

    Returns
    -------
    ndarray of shape (n_samples,)
        Zero where the members agree; never below :func:`mutual_information`.

    Raises
    ------
    ValueError
        If ``member_proba`` has another shape, a NaN, a negative value or a row that does not sum to 1.

    Notes
    -----
    The pairs are ordered and hold each member with itself, as in the source; multiply by
    ``n_members / (n_members - 1)`` for the mean over distinct members.

    Where one member says zero and another does not the divergence is infinite. A zero therefore counts as
    the smallest normal number of the array's type (1.2e-38 in float32, 2.2e-308 in float64), which makes
    the result large but finite.

    References
    ----------
    Malinin and Gales, "Uncertainty Estimation in Autoregressive Structured Prediction", ICLR 2021.

    Examples
    --------
    >>> from skve.uncertainty import expected_pairwise_kl
    >>> expected_pairwise_kl([[[0.5, 0.5]], [[0.8, 0.2]]]).round(4)
    array([0.104])
    """
    member_proba = check_member_proba(member_proba)
    tiny = np.finfo(member_proba.dtype).tiny
    return per_sample(member_proba, lambda members: pairwise_kl(members, tiny), checked=True)


def disagreement(member_proba: ArrayLike) -> NDArray[np.float64]:
    r"""Share of the pairs of members that predict different classes.

    .. math:: 1 - \sum_c \frac{n_c (n_c - 1)}{M (M - 1)}, \qquad n_c = \text{members that predict } c

    Parameters
    ----------
    member_proba : array-like of shape (n_members, n_samples, n_classes)
        Probabilities of each member; every row sums to 1.

    Returns
    -------
    ndarray of shape (n_samples,)
        Between 0 (all predict the same class) and 1 (no two do); 0 for a single member.

    Raises
    ------
    ValueError
        If ``member_proba`` has another shape, a NaN, a negative value or a row that does not sum to 1.

    References
    ----------
    Skalak, "The Sources of Increased Accuracy for Two Proposed Boosting Algorithms", AAAI 1996 workshop.

    Examples
    --------
    >>> from skve.uncertainty import disagreement
    >>> disagreement([[[0.9, 0.1]], [[0.6, 0.4]], [[0.3, 0.7]]]).round(4)
    array([0.6667])
    """
    return per_sample(member_proba, lambda members: vote_measures(members)[0])


def variation_ratio(member_proba: ArrayLike) -> NDArray[np.float64]:
    r"""Share of the members that do not predict the most frequent class.

    .. math:: 1 - \frac{1}{M} \max_c n_c, \qquad n_c = \text{members that predict } c

    Parameters
    ----------
    member_proba : array-like of shape (n_members, n_samples, n_classes)
        Probabilities of each member; every row sums to 1.

    Returns
    -------
    ndarray of shape (n_samples,)
        Between 0 and ``1 - 1 / n_members``.

    Raises
    ------
    ValueError
        If ``member_proba`` has another shape, a NaN, a negative value or a row that does not sum to 1.

    References
    ----------
    Freeman, "Elementary Applied Statistics", 1965.

    Examples
    --------
    >>> from skve.uncertainty import variation_ratio
    >>> variation_ratio([[[0.9, 0.1]], [[0.6, 0.4]], [[0.3, 0.7]]]).round(4)
    array([0.3333])
    """
    return per_sample(member_proba, lambda members: vote_measures(members)[1])


def predicted_class_variance(member_proba: ArrayLike) -> NDArray[np.float64]:
    r"""Variance over the members of the probability of the predicted class.

    .. math:: \frac{1}{M} \sum_m (p_{m, \hat c} - \bar p_{\hat c})^2, \qquad \hat c = \arg\max_c \bar p_c

    Parameters
    ----------
    member_proba : array-like of shape (n_members, n_samples, n_classes)
        Probabilities of each member; every row sums to 1.

    Returns
    -------
    ndarray of shape (n_samples,)
        Between 0 and 0.25: squared probability, divided by ``n_members``, not ``n_members - 1``.

    Raises
    ------
    ValueError
        If ``member_proba`` has another shape, a NaN, a negative value or a row that does not sum to 1.

    References
    ----------
    Lakshminarayanan et al., "Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles",
    NeurIPS 2017.

    Examples
    --------
    >>> from skve.uncertainty import predicted_class_variance
    >>> predicted_class_variance([[[0.9, 0.1]], [[0.6, 0.4]], [[0.3, 0.7]]]).round(4)
    array([0.06])
    """
    return per_sample(member_proba, lambda members: class_variance(members, members.mean(axis=0)))


def margin(member_proba: ArrayLike) -> NDArray[np.float64]:
    r"""Difference between the two largest probabilities of the mean prediction.

    .. math:: \bar p_{(1)} - \bar p_{(2)}

    Parameters
    ----------
    member_proba : array-like of shape (n_members, n_samples, n_classes)
        Probabilities of each member; every row sums to 1.

    Returns
    -------
    ndarray of shape (n_samples,)
        Between 0 (undecided) and 1: **small** where the ensemble is unsure. With a single class, 1.

    Raises
    ------
    ValueError
        If ``member_proba`` has another shape, a NaN, a negative value or a row that does not sum to 1.

    References
    ----------
    Scheffer et al., "Active Hidden Markov Models for Information Extraction", IDA 2001.

    Examples
    --------
    >>> from skve.uncertainty import margin
    >>> margin([[[0.5, 0.5]], [[0.8, 0.2]]]).round(4)
    array([0.3])
    """
    return per_sample(member_proba, lambda members: margin_of(members.mean(axis=0)))


def max_probability(member_proba: ArrayLike) -> NDArray[np.float64]:
    r"""Confidence: the largest probability of the mean prediction.

    .. math:: \max_c \bar p_c

    Parameters
    ----------
    member_proba : array-like of shape (n_members, n_samples, n_classes)
        Probabilities of each member; every row sums to 1.

    Returns
    -------
    ndarray of shape (n_samples,)
        Between ``1 / n_classes`` and 1: **small** where the ensemble is unsure.

    Raises
    ------
    ValueError
        If ``member_proba`` has another shape, a NaN, a negative value or a row that does not sum to 1.

    References
    ----------
    Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural
    Networks", ICLR 2017.

    Examples
    --------
    >>> from skve.uncertainty import max_probability
    >>> max_probability([[[0.5, 0.5]], [[0.8, 0.2]]]).round(4)
    array([0.65])
    """
    return per_sample(member_proba, lambda members: members.mean(axis=0).max(axis=1))


def per_sample(member_proba, function, *, checked=False, n_outputs=None):
    """Apply ``function`` to float64 pieces (n_members, some samples, n_classes) and join the results."""
    if not checked:
        member_proba = check_member_proba(member_proba)
    n_members, n_samples, n_classes = member_proba.shape
    result = np.empty(n_samples if n_outputs is None else (n_outputs, n_samples))
    for rows in row_chunks(n_samples, n_members * n_classes):
        result[..., rows] = function(member_proba[:, rows].astype(np.float64, copy=False))
    return result


def entropy_of(proba):
    # Zero times the logarithm of the smallest number is zero: no special case for 0 log 0.
    logs = np.log(np.maximum(proba, np.finfo(proba.dtype).tiny))
    # Rounding can leave a sum a little above one, hence an entropy a little below zero.
    return np.maximum(-np.einsum("...c,...c->...", proba, logs), 0.0)


def decomposition(members):
    total = entropy_of(members.mean(axis=0))
    epistemic = np.maximum(total - entropy_of(members).mean(axis=0), 0.0)
    return total, total - epistemic, epistemic


def pairwise_kl(members, tiny):
    # The double sum over members separates: the mean of p_i log p_i, less the mean p times the mean log p.
    logs = np.log(np.maximum(members, tiny))
    own = np.einsum("msc,msc->s", members, logs) / len(members)
    crossed = np.einsum("sc,sc->s", members.mean(axis=0), logs.mean(axis=0))
    return np.maximum(own - crossed, 0.0)


def vote_measures(members):
    """Disagreement and variation ratio."""
    n_members = len(members)
    votes = members.argmax(axis=2)
    supporters = (votes[:, None] == votes[None]).sum(axis=1)  # of each member's class, itself included
    pairs = max(1, n_members * (n_members - 1))
    agreeing_pairs = supporters.sum(axis=0) - n_members
    if n_members == 1:
        return np.zeros(votes.shape[1]), np.zeros(votes.shape[1])
    return 1 - agreeing_pairs / pairs, 1 - supporters.max(axis=0) / n_members


def class_variance(members, mean):
    predicted = mean.argmax(axis=1)
    return members[:, np.arange(len(predicted)), predicted].var(axis=0)


def margin_of(mean):
    if mean.shape[1] == 1:
        return mean[:, 0]
    second, first = np.partition(mean, -2, axis=1)[:, -2:].T
    return first - second
