"""The share of another prediction in a mixture, fitted on samples that neither was trained on."""

import numpy as np
from scipy.optimize import minimize_scalar

from skve._ensembles.likelihood import EPSILON

# Rate of an exponential prior of the share: the whole share has to earn five nats. Of the rates 2 to 20 it had the
# lowest loss on validation items of five sets of texts (docs/evidence.md).
PRIOR_RATE = 5.0


def fit_share(proba, other, codes, weights):
    """Return the share of `other` in the mixture of two predictions that fits the true classes best.

    It maximises the sum of the log-likelihoods plus the logarithm of an exponential prior of the share, with the rate
    `PRIOR_RATE`: it is 0 unless the samples speak for `other`, and a handful of them cannot.

    Parameters
    ----------
    proba, other : ndarray of shape (n_samples, n_classes)
        Predicted probabilities of samples that were not trained on.
    codes : ndarray of int, shape (n_samples,)
        True classes.
    weights : ndarray of shape (n_samples,)
        They count as (sum w)^2 / sum w^2 samples of weight 1.

    Returns
    -------
    share : float
        Between 0 and 1.
    """
    samples = np.arange(len(codes))
    weights = weights * (weights.sum() / (weights**2).sum())
    own, others = proba[samples, codes] + EPSILON, other[samples, codes] + EPSILON

    def objective(share):
        return weights @ np.log1p(share * (others / own - 1)) - PRIOR_RATE * share

    found = minimize_scalar(lambda share: -objective(share), bounds=(0, 1), method="bounded").x
    return float(max(0.0, found, 1.0, key=objective))  # the search stays inside its bounds
