"""Labels of any kind to class indices and to JSON, and the stratified validation part."""

import datetime
import enum
import warnings

import numpy as np
import torch
from sklearn.exceptions import DataConversionWarning
from sklearn.utils.multiclass import check_classification_targets

from skve._inputs.containers import as_sequence, columns_of, is_frame, plain_str
from skve._runtime.wording import listed, quoted

_KINDS = "strings, integers, whole floats, booleans, dates or times"
_MISSING = ("NoneType", "NAType", "NaTType")


def check_labels(y, name):
    """Return labels as a 1-D array of one kind without missing ones.

    The elements are looked at before NumPy converts them: it would make strings of `[1, "a"]` and of NaN among
    strings, floats of integers beside missing ones, and cut members of enums short.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Strings (members of `class K(str, Enum)` included), integers, whole floats, booleans, dates or times.
    name : str
        What messages call it.

    Returns
    -------
    labels : ndarray of shape (n_samples,)
        Strings as `str` if they came in a list, else as object; all else in a dtype of NumPy.

    Raises
    ------
    ValueError
        If labels are missing, mixed, of another kind, or not one for each sample.
    """
    if y is None:
        raise ValueError(
            f"fit requires {name} to be passed, but the target {name} is None. Pass a label for each sample."
        )
    strings = np.str_ if isinstance(y, list | tuple) else object  # as NumPy and pandas do
    if is_frame(y) and y.shape[1] == 1:
        _warn_of_column(name)
        y = columns_of(y)[0]
    labels = _one_dimensional(as_sequence(y, name), name)
    if isinstance(labels, list) or labels.dtype.kind in "OTS":
        labels = _of_one_kind(list(labels), name, strings)
    elif labels.dtype.kind in "fmM" and not np.isfinite(labels).all():
        _refuse_missing(labels, int(np.argmin(np.isfinite(labels))), name)
    try:
        check_classification_targets(labels)
    except ValueError as error:
        reason = str(error).replace("\n", " ").strip().rstrip(".")
        raise ValueError(f"{name} must hold {_KINDS}, got {labels.dtype} values. {reason}.") from error
    return labels


def check_classes(classes, name):
    """Return the names of classes as `check_labels` does, without its warning that many are different."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The number of unique classes")
        return check_labels(classes, name)


def _one_dimensional(y, name):
    """Return a list, or an array of shape (n_samples,); a column becomes one with scikit-learn's warning."""
    shape: tuple = np.shape(y) if not isinstance(y, list | tuple) else (len(y),)
    nested = [isinstance(label, list | tuple | np.ndarray) for label in y] if isinstance(y, list | tuple) else []
    if any(nested):
        if not all(nested) or any(np.shape(label) != (1,) for label in y):
            raise ValueError(
                f"{name} must be a 1d array with one label for each sample, got a list whose element "
                f"{name}[{nested.index(True)}] is {quoted(y[nested.index(True)])}."
            )
        _warn_of_column(name)
        return [label[0] for label in y]
    if len(shape) == 2 and shape[1] == 1 and isinstance(y, np.ndarray):
        _warn_of_column(name)
        return y[:, 0]
    if len(shape) != 1 or isinstance(y, dict):
        shown = f"shape {shape}" if shape else quoted(y)
        raise ValueError(
            f"{name} must be a 1d array of shape (n_samples,) with one label for each sample, got {shown}."
        )
    return list(y) if isinstance(y, tuple) else y


def _warn_of_column(name):
    warnings.warn(
        f"A column-vector {name} was passed when a 1d array was expected. Please change the shape of {name} to "
        f"(n_samples,), for example using ravel().",
        DataConversionWarning,
        stacklevel=4,
    )


def _of_one_kind(values, name, strings):
    """Return labels as an array of the dtype of their kind; `strings` is that of str."""
    kinds = {label_type: _kind(label_type) for label_type in set(map(type, values))}
    for label_type in kinds:
        if label_type.__name__ in _MISSING:
            _refuse_missing(values, [type(label) for label in values].index(label_type), name)
    for index, label in enumerate(values if {"float", "time"} & set(kinds.values()) else ()):
        if isinstance(label, float | np.inexact | np.datetime64 | np.timedelta64) and not np.isfinite(label):
            _refuse_missing(values, index, name)
    refused = next((label for label in values if kinds[type(label)] is None), None)
    if refused is not None:
        raise ValueError(
            f"{name} must hold {_KINDS}, got {quoted(refused)}, a {type(refused).__name__}. {_hint(refused)}"
        )
    found = set(kinds.values())
    if len(found - {"integer"}) > 1 or (len(found) > 1 and "float" not in found):
        first: dict[str | None, str] = {}
        for index, label in enumerate(values):
            first.setdefault(kinds[type(label)], f"{name}[{index}] = {quoted(label)}")
        shown = " and ".join(f"{kind}s ({example})" for kind, example in first.items())
        raise ValueError(
            f"{name} must hold labels of one kind, got {shown}. Convert them to one, as by list(map(str, {name}))."
        )
    kind = "float" if "float" in found else next(iter(found), "string")
    if kind == "string":
        plain = [plain_str(label) for label in values]
        # NumPy's own strings lose zeros at their end, and with them the difference between labels.
        return np.array(plain, object if any(label.endswith("\0") for label in plain) else strings)
    if kind in ("date", "time"):
        return _times(values, kind, name)
    plain = [label.value if isinstance(label, enum.Enum) else label for label in values]
    large = kind == "integer" and max(plain) >= 2**63
    if kind == "integer" and not (0 if large else -(2**63)) <= min(plain) <= max(plain) < 2**64:
        raise ValueError(f"{name} must hold integers of at most 64 bits, got larger ones. Pass them as strings.")
    array = np.array(plain, np.uint64 if large else None)
    if kind == "float" and any(a != b for a, b in zip(array.tolist(), plain, strict=True)):
        raise ValueError(f"{name} must hold numbers that floats distinguish, got larger integers. Pass strings.")
    return array


def _kind(label_type):
    """Return the kind of labels that the instances of a type are; None for none."""
    kinds = {
        "boolean": bool | np.bool_,
        "time": np.datetime64 | np.timedelta64 | datetime.datetime | datetime.timedelta,  # some are integers to NumPy
        "integer": int | np.integer,
        "float": float | np.floating,
        "string": str,
        "date": datetime.date,
    }
    return next((kind for kind, types in kinds.items() if issubclass(label_type, types)), None)


def _times(values, kind, name):
    if any(getattr(label, "tzinfo", None) is not None for label in values):
        raise ValueError(
            f"{name} must hold times without a time zone, got {values[0]}. Convert them to one zone first."
        )
    if kind == "date":
        return np.array(values, "datetime64[D]")
    array = np.array([label.to_numpy() if hasattr(label, "to_numpy") else label for label in values])
    array = array.astype("datetime64[us]") if array.dtype == object else array  # datetime.datetime
    if array.dtype.kind not in "mM":
        raise ValueError(f"{name} must hold times or durations, got both.")
    return array


def _hint(label):
    if isinstance(label, bytes):
        return "Decode them, as by [label.decode() for label in y]."
    if isinstance(label, enum.Enum):
        return "Members of an enum cannot be sorted; pass their names, as by [label.name for label in y]."
    return "Pass strings in their place, as by list(map(str, y))."


def _refuse_missing(labels, index, name):
    raise ValueError(
        f"{name} must have a label for each sample and no NaN or infinity, got {name}[{index}] = {labels[index]!r}. "
        f"Leave out samples without a label."
    )


def encode_labels(y, classes, *, name="y", classes_name="the classes"):
    """Return labels as indices into classes; both are what `check_labels` returns, the classes in any order.

    Raises
    ------
    ValueError
        If a label is not among the classes.
    """
    found, codes = np.unique(y, return_inverse=True)
    index = {label: i for i, label in enumerate(_comparable(classes, found))}
    places = [index.get(label) for label in _comparable(found, classes)]
    unknown = [label for label, place in zip(found.tolist(), places, strict=True) if place is None]
    if unknown:
        known, others = listed(classes.tolist(), form=repr), listed(unknown, form=repr)
        raise ValueError(
            f"{name} must hold labels that are among {classes_name} ({known}), got {others}. Leave out their "
            f"samples, or fit again; partial_fit requires all classes in its first call."
        )
    return np.array(places, np.intp)[codes]


def _comparable(labels, others):
    """Return labels as a list of Python objects that are equal if the labels are, times of other units included."""
    if labels.dtype.kind in "mM":
        unit = np.result_type(labels, others) if labels.dtype.kind == others.dtype.kind else labels.dtype
        return [(labels.dtype.kind, moment) for moment in labels.astype(unit).astype(np.int64).tolist()]
    return labels.tolist()


# ------------------------------------------------------------------------------------------------ JSON


def labels_to_json(labels):
    """Return checked labels as plain values; `labels_from_json` reads them."""
    if labels.dtype.kind in "mM":
        return {"dtype": labels.dtype.str, "values": labels.astype(np.int64).tolist()}
    names = {"U": "str", "O": "object", "b": "bool"}
    return {"dtype": names.get(labels.dtype.kind, labels.dtype.str), "values": labels.tolist()}


def labels_from_json(saved):
    """Return the labels that `labels_to_json` wrote.

    Raises
    ------
    ValueError, TypeError, OverflowError
        If these are no such values.
    """
    values, dtype = saved["values"], saved["dtype"]
    if dtype in ("str", "object"):
        known = all(isinstance(value, str) for value in values)
    else:
        known = dtype == "bool" or (isinstance(dtype, str) and np.dtype(dtype).kind in "iufmM")
        known = known and all(isinstance(value, int | float) for value in values)
    if not known:
        raise ValueError(f"labels must be of a kind that save writes, got values of type {quoted(dtype)}.")
    labels = np.array(values, np.int64 if str(np.dtype(dtype).kind) in "mM" else dtype).astype(dtype)
    if labels_to_json(labels) != saved:
        raise ValueError(f"labels must be values of type {quoted(dtype)}, got others.")
    return labels


# ------------------------------------------------------------------------------------- validation part


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
