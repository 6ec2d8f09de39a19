"""Weights of samples and of classes."""

import contextlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skve._inputs.containers import as_sequence
from skve._inputs.labels import check_classes, encode_labels
from skve._runtime.wording import quoted


def check_weights(sample_weight: Any, n_samples: int, *, name: str = "sample_weight") -> NDArray[np.float64] | None:
    """Return the weights as float64 of shape (n_samples,), or None where none were given.

    Raises
    ------
    ValueError
        If they are no finite numbers of at least 0, one for each sample, or all 0.
    """
    if sample_weight is None:
        return None
    weights = np.asarray(as_sequence(sample_weight, name))
    if weights.dtype == object:
        with contextlib.suppress(ValueError, TypeError):  # words in between, pandas.NA
            weights = weights.astype(np.float64)
    if weights.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be finite and not negative numbers, got values of type {weights.dtype}.")
    weights = weights.astype(np.float64)
    if weights.ndim == 0:
        weights = np.full(n_samples, weights)
    if weights.shape != (n_samples,):
        raise ValueError(f"{name} must have shape ({n_samples},), got {weights.shape}.")
    wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(wrong):
        raise ValueError(
            f"{name} must be finite and not negative for each sample, got {name}[{wrong[0]}] = {weights[wrong[0]]:g}."
        )
    if not weights.any():
        raise ValueError(f"{name} must be above 0 for at least one sample, got zero for every sample.")
    return weights


def to_mean_one(weights, part):
    """Scale weights to mean 1.

    Raises
    ------
    ValueError
        If they are all zero; the message names the part of the samples.
    """
    if not weights.any():
        raise ValueError(
            f"sample_weight must be above 0 for at least one sample of the {part}, got zero for all of its weights."
        )
    weights = weights / weights.max()  # the sum of large ones would overflow
    return weights / weights.mean()


def class_weights(class_weight, codes, classes):
    """Return the weight that `class_weight` gives each sample, at most 1 for a dict.

    Parameters
    ----------
    class_weight : None, dict of label to weight, or "balanced"
        Labels that a dict lacks have weight 1.
    codes : ndarray of int, shape (n_samples,)
    classes : ndarray of shape (n_classes,)

    Raises
    ------
    ValueError
        If a key is no class, or a weight no finite number of at least 0.
    """
    counts = np.bincount(codes, minlength=len(classes))
    if class_weight is None:
        return np.ones(len(codes))
    if isinstance(class_weight, str):  # "balanced"
        return (len(codes) / (np.count_nonzero(counts) * np.maximum(counts, 1)))[codes]
    per_class = np.ones(len(classes))
    keys = check_classes(list(class_weight), "class_weight")
    places = encode_labels(keys, classes, name=f"class_weight={quoted(class_weight, 100)}") if len(keys) else []
    per_class[places] = check_weights(list(class_weight.values()), len(keys), name="class_weight") if len(keys) else 1
    if not per_class[counts > 0].any():
        raise ValueError(f"class_weight must leave one class of y a weight above 0, got {quoted(class_weight, 100)}.")
    return (per_class / per_class.max())[codes]
