"""Checks that the metrics share: labels, probabilities and weights in, column indices and arrays out."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_consistent_length

from skve._inputs.labels import check_classes, check_labels, encode_labels
from skve._inputs.weights import check_weights
from skve.uncertainty._validation import check_proba, row_chunks


def check_targets(
    y_true: Any, y_proba: Any, labels: Any = None, sample_weight: Any = None
) -> tuple[NDArray[np.intp], NDArray[Any], NDArray[np.float64] | None]:
    """Check labels against probabilities and express the labels as columns.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
    y_proba : array-like of shape (n_samples, n_classes) or (n_samples,)
        A single column is the probability of the second of two classes.
    labels : array-like of shape (n_classes,), default=None
        The class of each column; by default the sorted classes found in ``y_true``.
    sample_weight : array-like of shape (n_samples,), default=None

    Returns
    -------
    columns : ndarray of int, shape (n_samples,)
        The column of each true class.
    y_proba : ndarray of shape (n_samples, n_classes)
    sample_weight : ndarray of shape (n_samples,) or None

    Raises
    ------
    ValueError
        If anything does not fit; the message names the argument.
    """
    y_proba = _two_columns(y_proba)
    y_true = check_labels(y_true, "y_true")
    check_consistent_length(y_true, y_proba, sample_weight)
    if len(y_true) == 0:
        raise ValueError("y_true must have at least one sample, got none.")
    return _columns(y_true, y_proba.shape[1], labels), y_proba, check_weights(sample_weight, len(y_true))


def check_known(
    y: Any, classes: Any, n_samples: int, *, name: str = "y", classes_name: str = "classes_"
) -> NDArray[Any]:
    """Return labels as an array of shape (n_samples,); ValueError for one that is not among the classes."""
    y = check_labels(y, name)
    if len(y) != n_samples:
        raise ValueError(f"{name} must have one label for each of the {n_samples} samples, got {len(y)}.")
    encode_labels(y, check_classes(classes, classes_name), name=name, classes_name=classes_name)
    return y


def check_comparable(y, classes, n_samples, *, name="y", classes_name="classes_"):
    """Return labels as an array of shape (n_samples,), of which some may be no classes: those count as errors.

    ValueError if none is a class: then labels of another kind are meant.
    """
    y = check_labels(y, name)
    if len(y) != n_samples:
        raise ValueError(f"{name} must have one label for each of the {n_samples} samples, got {len(y)}.")
    classes = np.asarray(classes)
    if len(y) and not np.isin(y.astype(object), classes.astype(object)).any():
        check_known(y, classes, n_samples, name=name, classes_name=classes_name)
    return y


def _columns(y_true, n_classes, labels):
    """Return the column of each label (n_samples,); ValueError for a label that has none."""
    if labels is None:
        present, columns = np.unique(y_true, return_inverse=True)
        if len(present) != n_classes:
            raise ValueError(
                f"labels must name the class of each of the {n_classes} columns of y_proba where y_true holds "
                f"{len(present)} classes, got None. Pass labels=clf.classes_."
            )
        return columns
    labels = check_classes(labels, "labels")
    if len(labels) != n_classes or len(np.unique(labels)) != n_classes:
        raise ValueError(
            f"labels must name the class of each of the {n_classes} columns of y_proba, once; got "
            f"{len(labels)} labels, {len(np.unique(labels))} of them different."
        )
    return encode_labels(y_true, labels, name="y_true", classes_name="labels")


def check_scores(scores: Any, *, name: str) -> NDArray[np.float64]:
    """Return one finite float64 score per sample, shape (n_samples,)."""
    scores = np.asarray(scores)
    if scores.ndim != 1 or scores.dtype.kind not in "fiub":
        raise ValueError(
            f"{name} must be real numbers of shape (n_samples,), got shape {scores.shape} and dtype {scores.dtype}."
        )
    if len(scores) == 0:
        raise ValueError(f"{name} must have at least one sample, got none.")
    scores = scores.astype(np.float64, copy=False)
    if not np.isfinite(scores).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity.")
    return scores


def check_count(value, *, name):
    """Return a positive integer."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}.")
    return int(value)


def check_choice(value, choices, *, name):
    """Return ``value`` if it is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}.")
    return value


def check_fraction(value, *, name):
    """Return a float in (0, 1]."""
    if not isinstance(value, int | float | np.integer | np.floating) or not 0 < value <= 1:
        raise ValueError(f"{name} must be in (0, 1], got {value!r}.")
    return float(value)


def top_label(columns, y_proba):
    """Confidence and correctness of the predicted class, each of shape (n_samples,)."""
    confidence = np.empty(len(columns))
    correct = np.empty(len(columns), dtype=bool)
    for rows in row_chunks(*y_proba.shape):
        predicted = y_proba[rows].argmax(axis=1)
        confidence[rows] = np.take_along_axis(y_proba[rows], predicted[:, None], axis=1)[:, 0]
        correct[rows] = predicted == columns[rows]
    return confidence, correct


def errors(y_true, y_proba, labels=None):
    """Whether the predicted class is wrong (n_samples,); as an uncertainty, it ranks best."""
    columns, y_proba, _ = check_targets(y_true, y_proba, labels)
    return ~top_label(columns, y_proba)[1]


def _two_columns(y_proba):
    values = np.asarray(y_proba)
    if values.ndim != 1:
        return check_proba(values, name="y_proba")
    if values.dtype.kind not in "fiub":
        raise ValueError(f"y_proba must hold real numbers, got dtype {values.dtype}.")
    # A NaN or a value outside [0, 1] shows up as such in the check of the rows.
    return check_proba(np.column_stack([1.0 - values, values]), name="y_proba")
