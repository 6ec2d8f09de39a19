"""Containers and strings of any library become lists, arrays and plain strings: the first look at what users pass."""

from collections.abc import Collection, Mapping, Set

import numpy as np
from sklearn.utils.validation import _check_feature_names


def plain_str(text):
    """Return the characters of a str as a plain str, whatever the class of an enum's member, say, makes of `str`."""
    return str.__str__(text)


def as_sequence(values, name):
    """Return a container of samples as a list or an array whose elements are as they were; anything else as it is.

    Parameters
    ----------
    values : object
        Lists, tuples, arrays and frames pass as they are. Columns of pandas, polars, pyarrow and Hugging Face
        datasets, deques, views of dicts and other collections with an order become lists, pandas' columns of NumPy
        types arrays.
    name : str
        What messages call it.

    Raises
    ------
    ValueError
        If a masked array hides an element, which nothing later would see.
    """
    if isinstance(values, np.ma.MaskedArray):
        if np.ma.is_masked(values):
            at = int(np.argwhere(np.ma.getmaskarray(values))[0][0])
            raise ValueError(
                f"{name} must have no masked elements, got one in {name}[{at}]. Leave it out, or fill it by "
                f"{name}.filled(value)."
            )
        return np.asarray(values)
    if isinstance(values, list | tuple | np.ndarray | str | bytes) or is_frame(values):
        return values
    if hasattr(values, "to_pylist"):  # pyarrow
        return values.to_pylist()
    dtype = getattr(values, "dtype", None)
    if dtype is not None and not isinstance(dtype, np.dtype):  # pandas' extension types, polars
        for to_list in ("to_list", "tolist"):
            if hasattr(values, to_list):
                return getattr(values, to_list)()
    if hasattr(values, "__array__") and (dtype is not None or not isinstance(values, Collection)):
        return np.asarray(values)
    ordered = isinstance(values, Collection) and not isinstance(values, Mapping | Set)
    return list(values) if ordered else values


def is_frame(values):
    """Say whether these are the columns of a table: a DataFrame of pandas or polars, or a table of pyarrow."""
    return hasattr(values, "columns") and hasattr(values, "shape")


def columns_of(frame):
    """Return the columns of a table, whichever library's it is."""
    if hasattr(frame, "iloc"):  # names may stand twice
        return [frame.iloc[:, i] for i in range(frame.shape[1])]
    return list(frame.columns if hasattr(frame, "column_names") else (frame[name] for name in frame.columns))


def check_column_names(estimator, X, *, reset):
    """Learn the names of a table's columns, or check that they come in the order of the fit, as scikit-learn does.

    Sets `feature_names_in_` where there are several columns: sentence pairs, rows of pixels. The name of a single
    one, of paths or texts, does not matter.
    """
    several = is_frame(X) and X.shape[1] > 1
    _check_feature_names(estimator, X if several else [], reset=reset)
