"""The share of another prediction in a mixture, fitted on samples that neither was trained on."""

import numpy as np
from scipy.optimize import minimize_scalar

from skve._ensembles.likelihood import EPSILON


def fit_share(proba, other, codes, weights):
    """Return the share of `other` in the mixture of two predictions that fits the true classes best.

    It is 0 unless the mixture has a lower negative log-likelihood than `proba` alone by more than the standard error
    of that difference.

    Parameters
    ----------
    proba, other : ndarray of shape (n_samples, n_classes)
        Predicted probabilities of samples that were not trained on.
    codes : ndarray of int, shape (n_samples,)
        True classes.
    weights : ndarray of shape (n_samples,)

    Returns
    -------
    share : float
        Between 0 and 1.
    """
    samples, weights = np.arange(len(codes)), weights / weights.sum()
    own, others = proba[samples, codes] + EPSILON, other[samples, codes] + EPSILON

    def gains(share):
        return np.log1p(share * (others / own - 1))

    found = minimize_scalar(lambda share: -weights @ gains(share), bounds=(0, 1), method="bounded")
    share = max(found.x, 1.0, key=lambda share: weights @ gains(share))  # the search stays inside its bounds
    gain = weights @ gains(share)
    error = np.sqrt(weights**2 @ (gains(share) - gain) ** 2)
    return float(share) if gain > error else 0.0
