"""A Laplace approximation of the last layer's posterior, whose draws are the members."""

import numbers

import numpy as np
import torch
from sklearn.utils._param_validation import Interval

from skve._ensembles.linear_heads import LinearHeads

FACTORS = np.logspace(0, 5, 11)  # candidates for the posterior's prior precision, times that of the mode
N_DRAWS = 16  # by which a candidate is judged


class Laplace(LinearHeads):
    """Last-layer Laplace approximation, Kronecker-factored (Ritter et al., ICLR 2018; arXiv 2106.14806).

    Members are draws from a Gaussian around the best head on features of the frozen backbone. Its precision is the
    Hessian `n A (x) G + prior_precision`, with the features' second moment A and the mean G of the curvatures
    `diag(p) - p p^T` in the logits. Features are centred, the bias counting as a feature that is 1.

    The penalty that is best for the mode leaves a posterior that is far too wide where the classes can be separated.
    So without a given `prior_precision`, the mode has the penalty, and its spread the prior precision, of the best
    out-of-fold likelihood (section 4.2 of arXiv 2106.14806 tunes it after the training, too).
    """

    takes = {"prior_precision": (None, [Interval(numbers.Real, 0, None, closed="neither"), None])}
    set_apart = "set a lower prior_precision in ensemble_params"

    def solve(self, problem, weights, generators):
        precision = self.options["prior_precision"]
        strength = problem.best_strength() if precision is None else 1 / precision
        if precision is None:
            precision = _best_precision(problem, strength)
        mode = problem.optimum(problem.weights, strength)
        posterior = Posterior(problem, problem.weights, mode)
        return [posterior.sample(generator, precision) for generator in generators]


class Posterior:
    """A Gaussian over heads around a solution of a `HeadProblem`, with a Kronecker-factored precision.

    Parameters
    ----------
    problem : HeadProblem
    weights : torch.Tensor of shape (n_samples,)
    mode : torch.Tensor of shape (n_classes, rank + 1)
    """

    def __init__(self, problem, weights, mode):
        self.problem, self.mode = problem, mode
        self._total = weights.sum()
        inputs = torch.cat([problem.coordinates, torch.ones(len(weights), 1, dtype=torch.float64)], 1)
        proba = torch.softmax(problem.logits(mode), -1)
        second_moment = (inputs.T * weights) @ inputs / self._total
        curvature = (torch.diag(weights @ proba) - (proba.T * weights) @ proba) / self._total
        self._input_scales, self._input_basis = torch.linalg.eigh(second_moment)
        self._output_scales, self._output_basis = torch.linalg.eigh(curvature)

    def noise(self, standard, precision):
        """Turn standard normal numbers (..., n_classes, rank + 1) into deviations from the mode."""
        curvatures = torch.outer(self._output_scales.clamp(min=0), self._input_scales.clamp(min=0))
        scales = (self._total * curvatures + precision).rsqrt()
        return self._output_basis @ (scales * standard) @ self._input_basis.T

    def sample(self, generator, precision):
        """Draw a head (weight, bias). Where no training sample is, its weights have the prior's variance."""
        standard = torch.randn(self.mode.shape, generator=generator, dtype=torch.float64)
        shape = (len(self.mode), self.problem.n_features)
        beyond = torch.randn(shape, generator=generator, dtype=torch.float64) / precision**0.5
        return self.problem.head(self.mode + self.noise(standard, precision), beyond)


def _best_precision(problem, strength):
    """Return the prior precision whose draws have the lowest out-of-fold negative log-likelihood, pooled."""
    candidates = FACTORS / strength
    held_out = problem.folds()
    if not held_out:
        return candidates[0]
    totals = np.zeros(len(candidates))
    generator = torch.Generator().manual_seed(problem.fold_seed)
    for rows in held_out:
        weights = problem.without(rows)
        posterior = Posterior(problem, weights, problem.optimum(weights, strength))
        standard = torch.randn((N_DRAWS, *posterior.mode.shape), generator=generator, dtype=torch.float64)
        for place, precision in enumerate(candidates):
            draws = posterior.mode + posterior.noise(standard, precision)
            logits = torch.stack([problem.logits(draw, rows) for draw in draws])
            losses = problem.likelihood.nll(problem.likelihood.pooled_log_proba(logits), problem.targets[rows])
            totals[place] += float(problem.weights[rows] @ losses)
    return float(candidates[totals.argmin()])
