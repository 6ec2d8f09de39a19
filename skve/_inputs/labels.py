"""Labels of any kind to class indices, and the stratified validation part."""

import numpy as np
import torch
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, column_or_1d

_KINDS = "strings, integers, booleans or other objects that can be sorted"


def check_labels(y, name):
    """Return labels as a 1-D array without missing ones."""
    if y is None:
        raise ValueError(f"requires {name} to be passed, but the target {name} is None")
    try:
        y = column_or_1d(y, warn=True)
    except ValueError as error:
        raise ValueError(f"{name}: {error}; wanted one label for each sample: {_KINDS}") from error
    if (y.dtype.kind == "f" and not np.isfinite(y).all()) or (y.dtype.kind in "mM" and np.isnat(y).any()):
        raise ValueError(f"Input {name} contains NaN or infinity; every sample needs a label")
    if y.dtype == object:
        missing = [i for i, label in enumerate(y) if _is_missing(label)]
        if missing:
            raise ValueError(f"{name}[{missing[0]}] is {y[missing[0]]!r}: every sample needs a label")
    try:
        check_classification_targets(y)
    except TypeError as error:
        raise _mixed(name, error) from error
    except ValueError as error:
        raise ValueError(f"{name}: {error} Wanted are {_KINDS}") from error
    return y


def _mixed(name, error):
    return ValueError(
        f"{name} mixes labels that cannot be sorted together: {error}; bring them to one type, "
        f"as by list(map(str, {name}))"
    )


def _is_missing(label):
    try:
        return label is None or bool(label != label)
    except TypeError:  # pandas.NA, of which nothing can be said
        return True


def encode_labels(y, known, name):
    """Return the classes and the labels as indices into them."""
    try:
        found, codes = np.unique(y, return_inverse=True)
    except TypeError as error:
        raise _mixed(name, error) from error
    if known is None:
        return found, codes
    unknown = np.setdiff1d(found, known)
    if len(unknown):
        raise ValueError(
            f"{name} has labels that are not among the classes {known.tolist()}: {unknown.tolist()}; leave their "
            f"samples out, or fit anew (partial_fit: list all in classes= of the first call)"
        )
    return known, np.searchsorted(known, found)[codes]


def stratified_part(codes, fraction, generator):
    """Choose about `fraction` of the samples, proportionally from every class; a lone sample is never chosen.

    Parameters
    ----------
    codes : ndarray of int, shape (n_samples,)
    fraction : float
    generator : torch.Generator

    Returns
    -------
    chosen : ndarray of bool, shape (n_samples,)
    """
    order = torch.randperm(len(codes), generator=generator).numpy()
    counts = np.bincount(codes)
    wanted = counts * fraction
    quota = np.floor(wanted).astype(int)
    total = min(round(len(codes) * fraction) or 1, int(np.maximum(counts - 1, 0).sum()))
    room = np.maximum(counts - 1, 0)
    quota = np.minimum(quota, room)
    order_of_classes = np.argsort(-(wanted - quota), kind="stable")  # largest remainders first
    while quota.sum() < total:
        with_room = order_of_classes[(quota < room)[order_of_classes]]
        quota[with_room[: total - quota.sum()]] += 1
    chosen = np.zeros(len(codes), bool)
    taken = np.zeros(len(counts), int)
    for sample in order:
        if taken[codes[sample]] < quota[codes[sample]]:
            taken[codes[sample]] += 1
            chosen[sample] = True
    return chosen


def check_weights(sample_weight, y):
    """Return the weights of the samples as an array, ones for None."""
    try:
        return _check_sample_weight(sample_weight, y, dtype=np.float64, ensure_non_negative=True)
    except (ValueError, TypeError) as error:
        raise type(error)(
            f"sample_weight: {error}; wanted None or a finite number of at least 0 for each sample, not all 0"
        ) from error


def to_mean_one(weights, part):
    """Scale weights to mean 1.

    Raises
    ------
    ValueError
        If they are all zero; the message names the part of the samples.
    """
    if not weights.sum() > 0:
        raise ValueError(
            f"sample_weight: all weights of the {part} are zero; give at least one sample a weight above 0"
        )
    return weights / weights.mean()


def class_weights(class_weight, codes, classes):
    """Return the weight that `class_weight` (None, a dict or "balanced") gives each sample."""
    if class_weight is None:
        return np.ones(len(codes))
    present = np.unique(codes)
    per_class = np.ones(len(classes))
    try:
        per_class[present] = compute_class_weight(class_weight, classes=classes[present], y=classes[codes])
    except ValueError as error:
        raise ValueError(f"class_weight={class_weight!r}: {error}; its keys must be labels of y") from error
    return per_class[codes]
