"""What every function of predicted probabilities shares: checking them, and reading them in pieces."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Rows of float16 probabilities sum to one only to about 5e-4.
ROW_SUM_TOLERANCE = 1e-3
# Elements of one piece: 4 MB in float64, so that temporaries stay small and in the processor's cache.
_CHUNK_ELEMENTS = 2**19


def row_chunks(n_rows, elements_per_row):
    """Slices that cut ``n_rows`` rows into pieces of bounded size.

    Parameters
    ----------
    n_rows : int
    elements_per_row : int

    Yields
    ------
    slice
    """
    step = max(1, _CHUNK_ELEMENTS // max(1, elements_per_row))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def check_proba(proba: Any, *, name: str = "proba") -> NDArray[Any]:
    """Check probabilities of shape (n_samples, n_classes) and return them as an array, not copied.

    Parameters
    ----------
    proba : array-like of shape (n_samples, n_classes)
    name : str, default="proba"
        How error messages call the argument.

    Returns
    -------
    ndarray of shape (n_samples, n_classes), floating

    Raises
    ------
    ValueError
        If the shape is wrong, or a row has a NaN, a negative value or a sum other than 1.
    """
    proba = _as_floats(proba, name, ("n_samples", "n_classes"))
    _check_rows(proba, name)
    return proba


def check_member_proba(member_proba: Any, *, name: str = "member_proba") -> NDArray[Any]:
    """Check probabilities of shape (n_members, n_samples, n_classes) and return them as an array, not copied.

    Parameters
    ----------
    member_proba : array-like of shape (n_members, n_samples, n_classes)
    name : str, default="member_proba"
        How error messages call the argument.

    Returns
    -------
    ndarray of shape (n_members, n_samples, n_classes), floating

    Raises
    ------
    ValueError
        If the shape is wrong, or a row has a NaN, a negative value or a sum other than 1.
    """
    member_proba = _as_floats(member_proba, name, ("n_members", "n_samples", "n_classes"))
    if member_proba.shape[0] == 0:
        raise ValueError(f"{name} must have at least one member, got shape {member_proba.shape}.")
    for member, proba in enumerate(member_proba):
        _check_rows(proba, f"{name}[{member}]")
    return member_proba


def _as_floats(values, name, axes):
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} must be an array of shape ({', '.join(axes)}): {error}") from error
    if array.ndim != len(axes):
        raise ValueError(f"{name} must have shape ({', '.join(axes)}), got an array of shape {array.shape}.")
    if array.shape[-1] == 0:
        raise ValueError(f"{name} must have at least one class, got an array of shape {array.shape}.")
    if array.dtype.kind in "iub":
        array = array.astype(np.float64)
    if array.dtype.kind != "f":
        raise ValueError(f"{name} must hold real numbers, got dtype {array.dtype}.")
    return array


def _check_rows(proba, name):
    for rows in row_chunks(*proba.shape):
        piece = proba[rows]
        if piece.min() >= 0:
            sums = piece.sum(axis=1, dtype=np.float64)
            wrong = ~(np.abs(sums - 1) <= ROW_SUM_TOLERANCE)
            if not wrong.any():
                continue
            row = int(np.argmax(wrong))
            what = f"sums to {sums[row]:.6g}, not to 1 (logits need a softmax first)"
        else:  # a negative value, or a NaN, which compares false
            wrong = ~(piece >= 0)
            row = int(np.argmax(wrong.any(axis=1)))
            what = f"contains {piece[row][wrong[row]][0]}"
        raise ValueError(f"{name} must hold probabilities, but row {rows.start + row} {what}.")
