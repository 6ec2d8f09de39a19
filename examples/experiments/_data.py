"""Labelled data from files: train, validation and test parts, and groups of no known class."""

import dataclasses
import functools
import pathlib
import zipfile
import zlib

import numpy as np
from _common import as_prompt, load_jpegs, read_jsonl

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclasses.dataclass(frozen=True)
class Parts:
    """What one fit sees, and what it is judged by: lists of items, and their labels as strings."""

    X_train: list
    y_train: np.ndarray
    X_valid: list
    y_valid: np.ndarray
    X_test: list
    y_test: np.ndarray
    shifts: dict  # "near" and "far", those that there are -> items of no known class


def load(data, data_dir, seed, judged_on="test", section="data"):
    """Return the parts of a study's data.

    Which classes are known and which items are tested does not depend on the seed; what is trained and validated
    does. The validation items come from the end of each class's order, so that they are the same for all sizes, and
    are at most half of a class.

    Parameters
    ----------
    data : dict
        The section on data of a `_study.Study`.
    data_dir : path
    seed : int
        Of the choice of training and validation items.
    judged_on : {"test", "valid"}
        "valid" takes the validation items for the test, and the held-out classes of the training split as near
        ones: the test split is not read. `near` and `far` name their own split.
    section : str, default="data"
        What messages call the section.

    Returns
    -------
    Parts

    Raises
    ------
    ValueError
        If a file or split is missing, or a class has fewer items than are asked for.
    """
    read = functools.partial(read_split, data["loader"], pathlib.Path(data_dir) / data["path"])
    X, y = read(data["train"])
    known, held_out = _known_classes(y, data, section)

    def take(X, y, chosen):
        return [X[i] for i in chosen], y[chosen]

    by_class = {}
    for i, label in enumerate(known):
        by_class[label] = np.random.default_rng([seed, i]).permutation(np.flatnonzero(y == label))
    shares = np.diff(np.linspace(0, data["n_valid"], len(known) + 1).astype(int))
    if data["valid"] is None:
        n_valid = {label: min(n, len(by_class[label]) // 2) for label, n in zip(known, shares, strict=True)}
        valid = take(X, y, np.concatenate([own[len(own) - n_valid[label] :] for label, own in by_class.items()]))
    else:
        n_valid = dict.fromkeys(known, 0)
        valid = _some(*read(data["valid"]), known, data["n_valid"], seed)
    for label, own in by_class.items():
        if (data["per_class"] or 1) > len(own) - n_valid[label]:
            raise ValueError(
                f"{section}.per_class={data['per_class']}: class {str(label)!r} of {data['path']} has {len(own)} "
                f"training items, of which {n_valid[label]} are for validation"
            )
    sizes = {label: data["per_class"] or len(own) - n_valid[label] for label, own in by_class.items()}
    train = take(X, y, np.concatenate([own[: sizes[label]] for label, own in by_class.items()]))
    shifts = {}
    if judged_on == "valid":
        test = valid
        others = X, y
    else:
        others = read(data["test"])
        test = _some(*others, known, data["n_test"], 0)
    if len(held_out):
        shifts["near"] = _some(*others, held_out, data["n_test"], 0)[0]
    for name in ("near", "far"):
        if data[name] is not None:
            source = data[name]
            items, labels = read_split(source["loader"], pathlib.Path(data_dir) / source["path"], source["split"])
            shifts[name] = _some(items, labels, np.unique(labels), source["n"], 0)[0]
    return Parts(*train, *valid, *test, shifts)


def _known_classes(y, data, section="data"):
    """Return the names of the classes that are known, and of those held out."""
    order = np.random.default_rng(0).permutation(np.unique(y))
    n_classes = data["n_classes"] or len(order) - data["near_classes"]
    if n_classes < 2 or n_classes + data["near_classes"] > len(order):
        raise ValueError(
            f"{section}: n_classes={data['n_classes']} and near_classes={data['near_classes']} of {len(order)} "
            f"classes in {data['path']}; at least 2 must stay known"
        )
    return np.sort(order[:n_classes]), order[n_classes : n_classes + data["near_classes"]]


def load_domain(data, data_dir, seed, judged_on="test"):
    """Return the parts of the domain `data["domain"]`, which is not the study's own; arguments as of `load`.

    With `classes` there are test items alone, under the names that the study's own data have; else what `load`
    returns, without foreign items.
    """
    domain, section = data["domains"][data["domain"]], f"data.domains.{data['domain']}"
    if domain["per_class"] is not None:
        unused = {"valid": None, "near_classes": 0, "near": None, "far": None}
        return load({**data, **domain, **unused}, data_dir, seed, judged_on, section)
    data_dir, classes = pathlib.Path(data_dir), domain["classes"]
    X, y = read_split(
        domain["loader"], data_dir / domain["path"], domain["train" if judged_on == "valid" else "test"]
    )
    known, _ = _known_classes(read_split(data["loader"], data_dir / data["path"], data["train"])[1], data)
    for names, held, path in ((classes, y, domain["path"]), (classes.values(), known, data["path"])):
        missing = sorted(set(names) - set(held))
        if missing:
            raise ValueError(f"{section}.classes: {path} has no known class {missing[0]!r}")
    items, names = _some(X, y, list(classes), domain["n_test"], 0)
    return Parts([], y[:0], [], y[:0], items, np.array([classes[name] for name in names]), {})


def _some(X, y, classes, n, seed):
    """Return at most `n` random items of some classes, and their labels."""
    chosen = np.flatnonzero(np.isin(y, classes))
    chosen = np.random.default_rng(seed).permutation(chosen)[:n]
    return [X[i] for i in chosen], y[chosen]


@functools.lru_cache(maxsize=8)
def read_split(loader, path, split):
    """Return (items, labels as strings) of one split; README.md says what each loader reads."""
    if not path.exists():
        raise ValueError(f"data: there is no {path}")
    try:
        items, labels = LOADERS[loader](path, split)
    except (OSError, EOFError, KeyError, IndexError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"data: {path} can't be read by the loader {loader!r}: {error}") from error
    if len(items) == 0:
        raise ValueError(f"data: {path} has nothing in the split {split!r}")
    return items, np.asarray(labels).astype(str)


def _jpegs(path, split):
    _need_arrays(path, f"jpeg_{split}")
    images, codes, classes = load_jpegs(path, split)
    return images, np.asarray(classes)[codes] if codes.max() < len(classes) else codes


def _arrays(path, split):
    _need_arrays(path, f"x_{split}")
    with np.load(path) as data:
        return list(data[f"x_{split}"]), data["classes"][data[f"y_{split}"]]


def _need_arrays(path, name):
    if not zipfile.is_zipfile(path):
        raise ValueError(f"data: {path} is no npz file")
    with np.load(path) as data:
        if name not in data:
            raise ValueError(f"data: {path} has no array {name}; it has {sorted(data)}")


def _jsonl(path, split):
    try:
        records = [record for record in read_jsonl(path) if record["split"] == split]
        pairs = [as_prompt(r) if "choices" in r else (r["text"], r["label"]) for r in records]
    except (KeyError, TypeError, ValueError) as error:
        form = "{split, text, label} or {split, question, choices, label}"
        raise ValueError(
            f"data: each line of {path} must be a record {form}, got one that is not: {error!r}."
        ) from error
    return [text for text, _ in pairs], [str(label) for _, label in pairs]


def _folders(path, split):
    files = [f for f in sorted((path / split).glob("*/*")) if f.suffix.lower() in SUFFIXES]
    return [str(f) for f in files], [f.parent.name for f in files]


LOADERS = {"jpegs": _jpegs, "arrays": _arrays, "jsonl": _jsonl, "folders": _folders}
