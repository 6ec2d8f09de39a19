"""What a saved model may say: every value of `skve.json` and every array is checked before it is used."""

import math
import numbers

import numpy as np
from sklearn.utils._param_validation import Interval, StrOptions, validate_parameter_constraints

from skve._ensembles import HEAD, MASKS, RULES
from skve._inputs.labels import labels_from_json

NAMES = "feature_names_in_"  # of the columns of a data frame, where fit got one
_COUNT = Interval(numbers.Integral, 1, None, closed="left")
_SIZE = Interval(numbers.Integral, 0, None, closed="left")
_POSITIVE = Interval(numbers.Real, 0, np.inf, closed="neither")

_DOCUMENT: dict = {
    "parameters": [dict],
    "files": [dict],
    "classes": [dict],
    "preprocess": [dict],
    "history": [dict],
    "n_iter": [_SIZE],
    "temperature": [_POSITIVE],
    "fitted": [dict],
    "state": [dict],
}
_STATE: dict = {
    "layers": [list],
    "fingerprints": [dict],
    "ensemble": [StrOptions(set(RULES))],
    "ensemble_params": [dict],
    "train_bias": [bool],
    "batch_size": [_COUNT],
    "n_features": [_COUNT],
    "n_classes": [Interval(numbers.Integral, 2, None, closed="left")],
    "positions": [dict],
    "shareable": [list],
    "backbone": [dict],
    "split_seed": [_SIZE],
    "reading": [dict],
    "n_epochs": [_SIZE],
}


def check_document(document, estimator, tensors):
    """Check what was read from a folder, for an estimator with the folder's parameters.

    What belongs to a kind of input the estimator checks: its preprocessing, and the attributes that it has learned.

    Raises
    ------
    ValueError
        If a value is of another type or outside its range, or an array of another shape.
    """
    state = document["state"]
    for part, constraints in ((document, _DOCUMENT), (state, _STATE)):
        validate_parameter_constraints(constraints, {name: part[name] for name in constraints}, "skve.json")
    estimator._check_preprocess(document["preprocess"])
    estimator._validate_params()
    _check("classes", _are_labels(document["classes"], state["n_classes"]))
    learned = dict(document["fitted"])
    names = learned.pop(NAMES, ["a", "b"])
    _check(NAMES, isinstance(names, list) and len(names) > 1 and all(isinstance(name, str) for name in names))
    _check("fitted", learned.keys() == estimator._learned.keys())
    for name, allowed in estimator._learned.items():
        _check(name, any(type(learned[name]) is type(value) and learned[name] == value for value in allowed))
    _check("backbone", all(isinstance(state["backbone"].get(name), str) for name in ("kind", "name", "sha256")))
    for name in ("layers", "shareable"):
        _check(name, all(isinstance(layer, str) for layer in state[name]))
    for name in ("fingerprints", "positions"):
        _check(name, all(_is_finite(value) for value in state[name].values()))
    _check("fingerprints", state["fingerprints"].keys() <= set(state["layers"]))
    _check("own_features", isinstance(state.get("own_features", False), bool))  # there since students are
    _check("annealed", isinstance(state.get("annealed", True), bool))  # likewise
    normalised = state.get("normalised", {})  # likewise
    _check("normalised", isinstance(normalised, dict) and all(isinstance(name, str) for name in normalised.values()))
    _check_members(tensors["members"])
    if "training" in tensors:  # models saved by 0.1 have none
        _check_training(tensors["training"], state["n_features"])
    if "regression" in tensors:
        n_read = tensors["members"][HEAD + "weight"].shape[-1]  # which the backbone is compared with
        _check_regression(tensors["regression"], state["n_classes"], n_read)


def _check(name, good):
    if not good:
        raise ValueError(f"{name!r} is not what save writes. Use a complete copy.")


def _is_finite(value):
    return isinstance(value, int | float) and math.isfinite(value)


def _are_labels(classes, n_classes):
    try:
        labels = labels_from_json(classes)
    except (ValueError, TypeError, OverflowError):
        return False
    return len(labels) == n_classes and np.array_equal(np.unique(labels), labels)


def _check_members(arrays):
    """Check that all arrays belong to the same number of members and hold numbers; shapes wait for the backbone."""
    _check("members", HEAD + "weight" in arrays and all(value.ndim > 0 for value in arrays.values()))
    lengths = {len(value) for value in arrays.values()}  # 1 for what all members share
    _check("members", len(lengths - {1}) <= 1 and 0 not in lengths)
    for key, value in arrays.items():
        _check("members", value.dtype == (bool if key.startswith(MASKS) else np.float32) and np.isfinite(value).all())


def _check_training(arrays, n_features):
    names = {"directions", "coordinates", "distances"}
    _check("training", arrays.keys() == names and all(np.isfinite(value).all() for value in arrays.values()))
    directions, coordinates, distances = (arrays[name] for name in ("directions", "coordinates", "distances"))
    _check("training", directions.dtype == coordinates.dtype == np.float16 and distances.dtype == np.float64)
    _check("training", directions.ndim == 2 and len(directions) > 0)
    _check("n_features", directions.shape[1] == n_features)
    _check("training", distances.ndim == 1 and coordinates.shape == (len(distances), len(directions)))
    _check("training", len(distances) > 0 and (np.diff(distances) >= 0).all())


def _check_regression(arrays, n_classes, n_read):
    shapes = {"weight": (n_classes, n_read), "bias": (n_classes,), "share": (1,)}
    _check("regression", {name: value.shape for name, value in arrays.items()} == shapes)
    _check("regression", all(np.isfinite(value).all() for value in arrays.values()))
    dtypes = {name: value.dtype for name, value in arrays.items()}
    _check("regression", dtypes == {"weight": np.float32, "bias": np.float32, "share": np.float64})
    _check("regression", 0 < arrays["share"][0] <= 1)
