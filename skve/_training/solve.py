"""A fit without steps: the best linear heads on features of the frozen backbone, which are computed once."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from sklearn.model_selection import StratifiedKFold

from skve._ensembles import HEAD
from skve._fitted import prediction
from skve._runtime.progress import report_progress
from skve._runtime.warnings import ignored, warn
from skve._training.loop import Result, check_callbacks

STRENGTHS = np.logspace(-4, 4, 9)  # candidates for C
FIXED_STRENGTH = 1.0  # where no class has the two samples that cross-validation needs
N_FOLDS = 5
PATIENCE = 2  # candidates in a row that may be worse than the best, until the larger ones are left out
# Largest entry of the gradient, of the mean loss in the scaled coordinates, at an optimum and in cross-validation.
EXACT, ROUGH = 1e-6, 1e-4


def solve(ensemble, train, train_batches, valid_batches, settings, *, weights, seeds, callbacks=None, verbose=0):
    """Bring the members of an ensemble whose rule is solved to what is best, and return what they became.

    Parameters
    ----------
    ensemble : Ensemble
        Its rule has `is_solved`.
    train : FrozenFeatures
        Of the training samples.
    train_batches : Batches
        The same samples.
    valid_batches : Batches or None
    settings : Settings
        Only the label smoothing counts.
    weights : ndarray of shape (n_samples,)
        Of the training samples; those of `train_batches` may differ by member.
    seeds : Seeds
    callbacks : list, default=None
        Of skorch; there is nothing that they could be called in.
    verbose : int, default=0

    Returns
    -------
    Result
        With one row of history: the members' mean loss on their own samples, and the validation data's.

    Raises
    ------
    KeyboardInterrupt
        If Ctrl-C came: there is no state in between.
    """
    check_callbacks(callbacks or [])
    if callbacks:
        warn("callbacks have no effect on an ensemble that is solved directly. Set callbacks=None.")
    if verbose:
        report_progress("skve: solving the heads")
    n_members, likelihood = len(ensemble.members), ensemble.head.likelihood
    problem = HeadProblem(
        likelihood,
        train,
        torch.as_tensor(weights),
        seeds.generator("split").initial_seed(),
        start=ensemble.rule.backbone.head_start,
        label_smoothing=settings.label_smoothing,
    )
    of_members = train_batches.weights.double().expand(n_members, -1)
    heads = ensemble.rule.solve(problem, of_members, [seeds.generator("member", m) for m in range(n_members)])
    for member, head in zip(map(ensemble.member, range(n_members)), heads, strict=True):
        for name, value in zip(("weight", "bias"), head, strict=True):
            member[HEAD + name].data.copy_(value)
    losses = likelihood.losses(train.logits(heads, likelihood), train.targets, settings.label_smoothing)
    history = {
        "epoch": [1],
        "step": [0],
        "loss": [float((of_members * losses).mean())],
        "valid_nll": [math.nan],
        "ratio_spread": {},
        "gradient_norm": {},
    }
    if valid_batches is not None:
        valid = FrozenFeatures.of(valid_batches, ensemble, verbose)
        log_proba = likelihood.pooled_log_proba(valid.logits(heads, likelihood))
        history["valid_nll"] = [float((valid_batches.weights * likelihood.nll(log_proba, valid.targets)).mean())]
    return Result(ensemble.arrays(), history, n_iter=1, interrupted=False)


def fold_regression(ensemble, train, weights, folds, seeds):
    """Return the best linear head (weight, bias) for features of the frozen backbone, and what it predicts by folds.

    Parameters
    ----------
    ensemble : Ensemble
    train : FrozenFeatures
        Of the training samples.
    weights : ndarray of shape (n_samples,)
    folds : Folds
        Of the same samples.
    seeds : Seeds

    Returns
    -------
    head : tuple of ndarray
        Weight (n_classes, n_features) and bias (n_classes,), float32.
    proba : ndarray of shape (n_samples, n_classes)
        Of each sample, by a head that was fitted without its fold.
    """
    seed, start = seeds.generator("split").initial_seed(), ensemble.rule.backbone.head_start
    problem = HeadProblem(ensemble.head.likelihood, train, torch.as_tensor(weights), seed, start=start)
    strength = problem.best_strength()
    best = problem.optimum(problem.weights, strength)
    proba = np.empty((len(weights), ensemble.head.likelihood.n_classes))
    for fold in range(folds.n_folds):
        rows = np.flatnonzero(folds.of_samples == fold)
        solution = problem.optimum(problem.without(rows), strength, best)
        proba[rows] = problem.likelihood.proba(problem.logits(solution, rows)).numpy()
    return tuple(value.float().numpy() for value in problem.head(best)), proba


def soft_heads(likelihood, features, targets, starts, impossible, fold_seed):
    """Return linear heads (weight, bias), float32, that predict given probabilities and stay close to given heads.

    How close is chosen once, on the means of the probabilities and of the heads.

    Parameters
    ----------
    likelihood : Likelihood
    features : ndarray of shape (n_samples, n_features)
    targets : ndarray of shape (n_heads, n_samples, n_classes)
    starts : sequence of tuple of ndarray or torch.Tensor
        Weight (n_classes, n_features) and bias (n_classes,) of each head.
    impossible : ndarray of bool, shape (n_samples, n_classes), or None
        See `Pipeline`.
    fold_seed : int
        Decides on the folds of the cross-validation.
    """
    impossible = None if impossible is None else torch.from_numpy(impossible)
    mean = FrozenFeatures(torch.from_numpy(features), torch.tensor(targets.mean(axis=0)), impossible)
    starts = [tuple(map(torch.as_tensor, start)) for start in starts]
    start = tuple(torch.stack(parts).mean(0) for parts in zip(*starts, strict=True))
    pooled = HeadProblem(likelihood, mean, torch.ones(len(features)), fold_seed, start=start)
    strength = pooled.best_strength()
    heads = []
    for target, own in zip(targets, starts, strict=True):
        problem = pooled.another(torch.tensor(target), own)
        heads.append(problem.head(problem.optimum(problem.weights, strength)))
    return [tuple(value.float().numpy() for value in head) for head in heads]


@dataclasses.dataclass(frozen=True)
class FrozenFeatures:
    """What the frozen backbone makes of samples.

    Attributes
    ----------
    values : torch.Tensor of float32, shape (n_samples, n_features)
    targets : torch.Tensor
        See `Likelihood`.
    impossible : torch.Tensor of bool, shape (n_samples, n_classes), default=None
        Classes that a sample cannot have.
    """

    values: torch.Tensor
    targets: torch.Tensor
    impossible: torch.Tensor | None = None

    @classmethod
    def of(cls, batches, ensemble, verbose=0):
        """Take the samples of `batches` through the backbone once, as they are."""
        pipeline, backbone = batches.pipeline, ensemble.rule.backbone
        passes, features = prediction.frozen_passes(backbone, pipeline, ensemble.head.n_features)
        prediction.predict(passes, pipeline, batches.batch_size, ensemble.device, verbose=verbose)
        values = torch.from_numpy(features)
        bad = torch.nonzero(~values.isfinite())
        if len(bad):
            value, row = float(values[tuple(bad[0])]), int(bad[0, 0])
            raise ValueError(
                f"The backbone's features must be finite, got {value} for X[{row}]: numbers overflow in it. Replace "
                f"a damaged copy of its weights."
            )
        impossible = pipeline.impossible
        return cls(values, batches.targets, None if impossible is None else torch.from_numpy(impossible))

    def logits(self, heads, likelihood):
        """Return the logits (n_heads, n_samples, n_classes)."""
        values = _read_by(heads[0], self.values.double())
        return torch.stack([likelihood.logits(F.linear(values, *head), self.impossible) for head in heads])


def _read_by(head, features):
    """Return those of the features that a head (weight, bias) reads, the leading ones."""
    return features[:, : head[0].shape[1]]


class HeadProblem:
    """The regularised likelihood of a linear head, whose optimum is unique.

    Minimises `sum_i w_i * cross_entropy_i + |W - W_0|^2 / (2 C)`. With `W_0 = 0` this is the objective of
    scikit-learn's LogisticRegression, and SciPy's L-BFGS is its solver as well. Here, targets may be probabilities,
    classes may be impossible for a sample, and the penalty may draw towards a given head `W_0`, as that of a
    language model.

    The centred features are rotated onto their singular vectors and scaled by the expected curvature. Neither
    changes the optimum; the solver needs a few dozen steps in place of thousands, and with fewer samples than
    features fewer coordinates.

    Parameters
    ----------
    likelihood : Likelihood
    samples : FrozenFeatures
    weights : torch.Tensor of shape (n_samples,)
    fold_seed : int
        Decides on the folds of the cross-validation.
    start : tuple of torch.Tensor, default=None
        `W_0` (n_classes, n_features) and its bias (n_classes,); None for zeros. Features that it does not read do not
        count.
    label_smoothing : float, default=0.0

    Attributes
    ----------
    coordinates : torch.Tensor of shape (n_samples, rank)
        The centred features along `directions`.
    directions : torch.Tensor of shape (rank, n_features)
        Orthonormal.
    """

    def __init__(self, likelihood, samples, weights, fold_seed, *, start=None, label_smoothing=0.0):
        self.likelihood, self.targets, self.impossible = likelihood, samples.targets, samples.impossible
        self.weights, self.fold_seed, self.label_smoothing = weights.double(), fold_seed, label_smoothing
        features = samples.values.double()
        n_classes = likelihood.n_classes
        if start is None:
            start = torch.zeros(n_classes, features.shape[1]), torch.zeros(n_classes)
        features = _read_by(start, features)
        self._features, self._center = features, features.mean(0)
        self._draw_to(start)
        left, singular, right = torch.linalg.svd(features - self._center, full_matrices=False)
        rank = int((singular > singular[:1] * max(features.shape) * torch.finfo(torch.float32).eps).sum())
        self.coordinates, self.directions = left[:, :rank] * singular[:rank], right[:rank]

    def _draw_to(self, start):
        self._start = [value.detach().cpu().double() for value in start]
        self._offset = F.linear(self._features, *self._start)

    def another(self, targets, start):
        """Return the problem of other targets for the same samples, whose penalty draws towards another head."""
        problem = copy.copy(self)
        problem.targets = targets
        problem._draw_to(start)
        return problem

    @property
    def n_features(self):
        return len(self._center)

    def logits(self, solution, rows=slice(None)):
        """Return the logits (n_rows, n_classes) of a solution for samples of the problem."""
        outputs = self._offset[rows] + F.linear(self.coordinates[rows], solution[:, :-1], solution[:, -1])
        return self.likelihood.logits(outputs, None if self.impossible is None else self.impossible[rows])

    def losses(self, solution, rows=slice(None), label_smoothing=0.0):
        """Return the cross-entropy (n_rows,) of a solution."""
        return self.likelihood.losses(self.logits(solution, rows)[None], self.targets[rows], label_smoothing)[0]

    def optimum(self, weights, strength, start=None, tolerance=EXACT):
        """Return the solution (n_classes, rank + 1) for `C = strength`: weights by coordinate, and the bias.

        Parameters
        ----------
        weights : torch.Tensor of shape (n_samples,)
        strength : float
        start : torch.Tensor of shape (n_classes, rank + 1), default=None
            Where the solver starts; None for zeros.
        tolerance : float, default=EXACT
        """
        weights = weights.double()
        rows = torch.nonzero(weights)[:, 0]
        if not len(rows):  # a bootstrap sample may consist of samples without weight
            return torch.zeros(len(self._start[1]), self.coordinates.shape[1] + 1, dtype=torch.float64)
        weights, total = weights[rows], float(weights.sum())
        shape = (self.likelihood.n_classes, self.coordinates.shape[1] + 1)
        if start is None:
            start = torch.zeros(shape, dtype=torch.float64)
        # The mean curvature of the loss at the start, for each coordinate and the bias.
        proba = torch.softmax(self.logits(start, rows), -1)
        curvature = max(float((proba * (1 - proba)).mean()), 1e-6)
        moments = torch.cat([self.coordinates[rows].square().T @ weights, torch.tensor([total]).double()])
        penalty = torch.full_like(moments, 1 / strength)
        penalty[-1] = 0
        scale = (moments * curvature + penalty).rsqrt() * total**0.5

        def value_and_gradient(flat):
            scaled = torch.from_numpy(flat.reshape(shape)).requires_grad_()
            solution = scaled * scale
            losses = self.losses(solution, rows, self.label_smoothing)
            value = (weights @ losses + (penalty * solution.square()).sum() / 2) / total
            (gradient,) = torch.autograd.grad(value, scaled)
            return value.item(), gradient.numpy().ravel()

        options = {"maxiter": 10_000, "maxfun": 20_000, "gtol": tolerance, "ftol": 8 * np.finfo(float).eps}
        found = minimize(
            value_and_gradient, (start / scale).numpy().ravel(), method="L-BFGS-B", jac=True, options=options
        )
        return torch.from_numpy(found.x.reshape(shape)) * scale

    def best_strength(self):
        """Return the C with the lowest negative log-likelihood in stratified cross-validation.

        The lone sample of a class is in every training part; where all are such, C is `FIXED_STRENGTH`.
        """
        held_out = self.folds()
        if not held_out:
            return FIXED_STRENGTH
        solutions: list[torch.Tensor | None] = [None] * len(held_out)
        best, lowest, n_worse = FIXED_STRENGTH, np.inf, 0
        for strength in STRENGTHS:
            total = 0.0
            for fold, rows in enumerate(held_out):
                solutions[fold] = self.optimum(self.without(rows), strength, solutions[fold], ROUGH)
                total += float(self.weights[rows] @ self.losses(solutions[fold], rows))
            if total < lowest:
                best, lowest, n_worse = float(strength), total, 0
            else:
                n_worse += 1
                if n_worse == PATIENCE:
                    break
        return best

    def folds(self):
        """Return the indices of the samples that each fold holds out."""
        codes = (self.targets if self.targets.dim() == 1 else self.targets.argmax(1)).numpy()
        counting = np.flatnonzero(self.weights.numpy() > 0)
        counts = np.bincount(codes[counting])
        tested = counting[counts[codes[counting]] > 1]
        n_folds = min(N_FOLDS, counts.max())
        if not len(tested):
            return []
        splitter = StratifiedKFold(n_folds, shuffle=True, random_state=self.fold_seed % 2**32)
        with ignored(
            "The least populated class"
        ):  # that some have fewer samples than there are folds is provided for
            return [tested[rows] for _, rows in splitter.split(tested, codes[tested])]

    def without(self, rows):
        """Return the weights with those of `rows` set to 0."""
        weights = self.weights.clone()
        weights[rows] = 0
        return weights

    def head(self, solution, beyond=None):
        """Return the head (weight, bias) of a solution, on the features as they come.

        Parameters
        ----------
        solution : torch.Tensor of shape (n_classes, rank + 1)
        beyond : torch.Tensor of shape (n_classes, n_features), default=None
            Added to the weight; only the part that no training sample sees.
        """
        change = solution[:, :-1] @ self.directions
        if beyond is not None:
            change = change + beyond - beyond @ self.directions.T @ self.directions
        weight, bias = self._start
        return weight + change, bias + solution[:, -1] - change @ self._center
