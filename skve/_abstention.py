"""How a selective classifier abstains: beyond which threshold, and what it says instead of a class."""

import numpy as np


def choose_threshold(scores, correct, weight, *, coverage, accuracy):
    """Choose the threshold that meets a coverage, or an accuracy with the largest coverage.

    Parameters
    ----------
    scores : ndarray of shape (n_samples,)
        Uncertainties; those up to the threshold are answered.
    correct : ndarray of bool, shape (n_samples,)
    weight : ndarray of shape (n_samples,)
    coverage : float
        Share to answer at least, where ``accuracy`` is None.
    accuracy : float or None

    Returns
    -------
    threshold : float
        Infinite if all are answered.
    coverage, accuracy : float
        What it reaches.

    Raises
    ------
    ValueError
        If the accuracy is not reached at any coverage.
    """
    order = np.argsort(scores)
    ordered = scores[order]
    last_of_ties = np.append(ordered[1:] != ordered[:-1], True)
    thresholds = ordered[last_of_ties]
    mass = np.cumsum(weight[order])[last_of_ties]
    coverages = mass / mass[-1]
    with np.errstate(invalid="ignore"):  # samples of no weight may come first
        accuracies = np.cumsum((weight * correct)[order])[last_of_ties] / mass
    # The slack keeps a goal that is met exactly from being missed by a rounding error.
    if accuracy is None:
        chosen = int(np.searchsorted(coverages, coverage * (1 - 1e-12)))
    else:
        reached = np.flatnonzero(accuracies >= accuracy * (1 - 1e-12))
        if len(reached) == 0:
            best = int(np.nanargmax(accuracies))
            raise ValueError(
                f"accuracy={accuracy} is not reached on the validation data at any coverage: "
                f"the best is {accuracies[best]:.4g}, at a coverage of {coverages[best]:.4g}."
            )
        chosen = reached[-1]
    threshold = thresholds[chosen] if chosen < len(thresholds) - 1 else np.inf
    return float(threshold), float(coverages[chosen]), float(accuracies[chosen])


def check_abstention(abstention, classes):
    """Check that an abstention can be told from the classes, so that none counts as an answer."""
    if any(_is_same(abstention, label) for label in classes.tolist()):
        raise ValueError(f"abstention may not be a class, got {abstention!r}.")


def put_abstention(predicted, answered, abstention):
    """Return the predictions with the abstention where none is answered, changing neither's value."""
    kinds = predicted.dtype.kind + np.asarray(abstention).dtype.kind
    alike = all(kind in "iuf" for kind in kinds) or all(kind == "U" for kind in kinds)
    dtype = np.result_type(predicted.dtype, np.asarray(abstention).dtype) if alike else object
    predicted = predicted.astype(dtype)
    predicted[~answered] = abstention
    return predicted


def _is_same(value, label):
    try:
        return bool(value == label)
    except TypeError:  # pandas.NA, of which nothing can be said
        return False
