"""Members that each leave out a fold of the training samples, and what they predict for it."""

import dataclasses

import numpy as np
import torch


@dataclasses.dataclass(frozen=True)
class Folds:
    """Which member leaves out which training sample: member m those of the fold m % n_folds.

    Attributes
    ----------
    of_samples : ndarray of int, shape (n_samples,)
        The fold of each sample.
    n_folds, n_members : int
    """

    of_samples: np.ndarray
    n_folds: int
    n_members: int

    def members(self, fold):
        """Return the members that leave out a fold."""
        return range(fold, self.n_members, self.n_folds)

    def kept(self, weights, members=None):
        """Return the weights (n_members, n_samples) of members, of all by default, 0 where one leaves a sample out.

        `weights` has the shape (n_samples,) or (n_members, n_samples).
        """
        members = np.arange(self.n_members) if members is None else np.asarray(members)
        left_out = self.of_samples == members[:, None] % self.n_folds
        return np.where(left_out, 0, weights)

    def predictions(self, predict):
        """Return, for each sample, the probabilities (n_left_out, n_classes) by the members that left it out.

        Parameters
        ----------
        predict : callable
            Gets indices of samples and the members; returns probabilities (n_members, n_samples, n_classes).
        """
        found: list = [None] * len(self.of_samples)
        for fold in range(self.n_folds):
            samples = np.flatnonzero(self.of_samples == fold)
            for sample, proba in zip(samples, predict(samples, self.members(fold)).swapaxes(0, 1), strict=True):
                found[sample] = proba
        return found


def split_folds(codes, n_folds, n_members, generator):
    """Deal the samples out to folds at random, as evenly as can be, each class as well.

    A class of fewer samples than folds is missing in some of them, a lone sample's class in the training of the
    members that leave it out.

    Parameters
    ----------
    codes : ndarray of int, shape (n_samples,)
        Classes.
    n_folds, n_members : int
    generator : torch.Generator

    Returns
    -------
    Folds

    Raises
    ------
    ValueError
        If there are fewer samples than folds.
    """
    if len(codes) < n_folds:
        raise ValueError(
            f"folds in ensemble_params must be at most the number of training samples, got {n_folds} for "
            f"{len(codes)}."
        )
    order = torch.randperm(len(codes), generator=generator).numpy()
    order = order[np.argsort(codes[order], kind="stable")]
    of_samples = np.empty(len(codes), int)
    of_samples[order] = np.arange(len(codes)) % n_folds
    return Folds(of_samples, n_folds, n_members)
