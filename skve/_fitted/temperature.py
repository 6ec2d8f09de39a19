"""The temperature of the pooled prediction, fitted on samples that were not trained on, and kept as one number."""

import numpy as np
from scipy.optimize import minimize_scalar

from skve._ensembles import Likelihood

# Standard deviation of log T before any sample is seen, around T = 1: some ten samples outweigh it.
PRIOR_SCALE = 0.5
# The search ends there: beyond, predictions are uniform, or certain.
LARGEST = 1e4
# Share of overconfident members' log temperature that is taken for noise of their own, which pooling averages out,
# where one member only left each sample out, so that it cannot be measured. 0 corrects nothing.
SHARE_OF_NOISE = 0.5


def fit_temperature(proba, codes, weights, prior_scale=None):
    """Return the temperature that fits a prediction to the true classes best.

    It minimises the sum of the negative log-likelihoods (Guo et al., "On Calibration of Modern Neural Networks", ICML
    2017) minus the logarithm of a normal prior of log T, with mean 0 and standard deviation `PRIOR_SCALE`: a handful
    of samples hardly moves T from 1, and there is an optimum also where all of them are predicted correctly.

    Parameters
    ----------
    proba : ndarray of shape (n_samples, n_classes)
        Predicted probabilities of samples that were not trained on.
    codes : ndarray of int, shape (n_samples,)
        True classes. Classes may be missing.
    weights : ndarray of shape (n_samples,)
        They count as (sum w)^2 / sum w^2 samples of weight 1.
    prior_scale : float, default=None
        In place of `PRIOR_SCALE`.

    Returns
    -------
    temperature : float
        Above 1 where predictions were overconfident.
    """
    likelihood = Likelihood(proba.shape[1])
    scale = PRIOR_SCALE if prior_scale is None else prior_scale
    weights = weights * (weights.sum() / (weights**2).sum())
    samples = np.arange(len(codes))

    def objective(log_temperature):
        tempered = likelihood.log_temper(proba, np.exp(log_temperature))
        return -weights @ tempered[samples, codes] + 0.5 * (log_temperature / scale) ** 2

    bound = np.log(LARGEST)
    found = minimize_scalar(objective, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-7})
    return float(np.exp(found.x))


def fit_temperature_out_of_fold(predictions, codes, weights, n_members):
    """Return the temperature of the pool of all members, from predictions of those that left a sample out.

    A pool is less sharp than its members, since the noise of k of them averages out as 1 / k: log T(k) = a + b / k.
    Where samples have the predictions of several members, T of single members and of their pools give a and b.

    Parameters
    ----------
    predictions : list of ndarray of shape (n_left_out, n_classes)
        Of each sample, the probabilities by the members that left it out.
    codes : ndarray of int, shape (n_samples,)
    weights : ndarray of shape (n_samples,)
    n_members : int
        Members of the pool that the temperature is for.

    Returns
    -------
    temperature : float
    """
    counts = np.array([len(each) for each in predictions])
    of_one_in_k = np.mean(1 / counts)
    # The predictions of a sample are no samples of their own: the prior has to weigh as much as on one of each.
    single, scale = np.concatenate(predictions), PRIOR_SCALE * np.sqrt(of_one_in_k)
    of_one = np.log(fit_temperature(single, codes.repeat(counts), (weights / counts).repeat(counts), scale))
    if of_one_in_k == 1:
        noise = SHARE_OF_NOISE * max(0.0, of_one)
    else:
        pooled = np.array([each.mean(axis=0) for each in predictions])
        noise = max(0.0, of_one - np.log(fit_temperature(pooled, codes, weights))) / (1 - of_one_in_k)
    return float(np.exp(of_one - noise * (1 - 1 / n_members)))
