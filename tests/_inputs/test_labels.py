"""Labels of any kind, missing and mixed ones, and the stratified validation part."""

import collections
import datetime
import decimal
import enum
import json

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.exceptions import DataConversionWarning

import skve
from skve._inputs.labels import check_labels, encode_labels, labels_from_json, labels_to_json, stratified_part
from skve.metrics import expected_calibration_error
from tests.toys import same_arrays, toy_classifier


class Plain(enum.Enum):
    NO, YES = range(2)


class Word(str, enum.Enum):  # noqa: UP042 - not a StrEnum: its str() is "Word.LONG"
    LONG, B = "a much longer value", "b"


class Shouting(str):
    __slots__ = ()

    def __str__(self):
        return "SHOUT"


KINDS = {
    "strings": ["b", "a", "c"],
    "long strings": ["a" * 50, "ü", ""],
    "booleans": [True, False],
    "not from zero": [5, 7],
    "negative": [-1, 1],
    "floats that are whole": [2.0, 0.0, 1.0],
    "objects": np.array(["x", "y", "z"], dtype=object),
    "unsigned": np.array([3, 200, 9], dtype=np.uint8),
}


def labels_of(kind, codes):
    values = np.asarray(KINDS[kind])
    return values[codes % len(values)]


@pytest.mark.parametrize("kind", KINDS)
def test__fit__labels_of_any_kind__predictions_are_labels(images, kind):
    X, codes = images
    y = labels_of(kind, codes)
    classifier = toy_classifier(max_epochs=40, head_lr=0.1).fit(X, y)
    assert np.array_equal(classifier.classes_, np.unique(y))
    assert classifier.classes_.dtype == y.dtype
    predicted = classifier.predict(X)
    assert predicted.dtype == y.dtype
    assert (predicted == y).mean() > 0.9
    proba = classifier.predict_proba(X)
    assert np.array_equal(classifier.classes_[proba.argmax(1)], predicted)


class Column(collections.abc.Sequence):
    """As a column of Hugging Face's datasets: a sequence, and nothing else."""

    def __init__(self, values):
        self.values = values

    def __getitem__(self, key):
        return self.values[key]

    def __len__(self):
        return len(self.values)


class Arrow:
    """As an array of pyarrow: its elements are boxes around the values."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __iter__(self):
        return map(object, self.values)

    def to_pylist(self):
        return self.values


CONTAINERS = {
    "list": list,
    "tuple": tuple,
    "column": lambda y: y[:, None],
    "Series": lambda y: pd.Series(y, index=np.arange(len(y))[::-1]),
    "frame": lambda y: pd.DataFrame({"label": y}),
    "categorical": lambda y: pd.Series(pd.Categorical(y, categories=["z", "c", "b", "a"])),
    "string column": lambda y: pd.Series(y, dtype="string"),
    "strings of NumPy 2": lambda y: y.astype(np.dtypes.StringDType()),
    "pandas' Categorical": pd.Categorical,
    "Index": pd.Index,
    "polars": pl.Series,
    "deque": collections.deque,
    "values of a dict": lambda y: dict(enumerate(y)).values(),
    "column of datasets": lambda y: Column(y.tolist()),
    "array of pyarrow": lambda y: Arrow(y.tolist()),
}


@pytest.mark.filterwarnings("ignore:A column-vector y was passed")
@pytest.mark.parametrize("container", CONTAINERS)
def test__fit__labels_in_any_container__same_members(images, container):
    X, codes = images
    y = np.array(["a", "b", "c"])[codes]
    classifier = toy_classifier(max_epochs=1).fit(X, CONTAINERS[container](y))
    assert same_arrays(classifier, toy_classifier(max_epochs=1).fit(X, y))
    assert classifier.classes_.tolist() == ["a", "b", "c"]


def test__fit__tensor_of_labels__as_an_array(images):
    X, codes = images
    assert same_arrays(toy_classifier().fit(X, torch.tensor(codes)), toy_classifier().fit(X, codes))


MISSING = {
    "None": (np.array(["a", None, "b"], dtype=object), r"y must have a label for each sample.*, got y\[1\] = None"),
    "NaN among strings": (np.array(["a", "b", np.nan], dtype=object), r"y\[2\] = nan"),
    "NaN in a list of strings": (["a", "b", float("nan")], r"y\[2\] = nan"),
    "None in a list of integers": ([1, None, 2], r"y\[1\] = None"),
    "missing in a list of strings": (["a", pd.NA, "b"], r"y\[1\] = <NA>"),
    "NaN among floats": ([0.0, 1.0, np.nan], r"y\[2\] = (np.float64\()?nan"),
    "infinity": ([0.0, 1.0, np.inf], r"y\[2\] = (np.float64\()?inf"),
    "missing in pandas": (pd.Series(["a", None, "b"]), r"y\[1\] = (nan|None)"),
    "missing string": (pd.Series(["a", "b", None], dtype="string"), r"y\[2\] = (<NA>|nan)"),
    "missing category": (pd.Series(pd.Categorical(["a", None, "b"])), r"y\[1\] = nan"),
    "missing integer": (pd.Series([1, None, 2], dtype="Int64"), r"y\[1\] = <NA>"),
    "missing boolean": (pd.Series([True, None, False], dtype="boolean"), r"y\[1\] = <NA>"),
    "missing time in a list": ([np.datetime64("2026-01-01"), np.datetime64("NaT")], r"y\[1\] = np.datetime64\('NaT'"),
    "missing time of pandas": ([pd.Timestamp("2026-01-01"), pd.NaT], r"y\[1\] = NaT"),
    "masked": (
        np.ma.array([0, 1, 0], mask=[False, True, False]),
        r"y must have no masked elements, got one in y\[1\]",
    ),
}


@pytest.mark.parametrize("kind", MISSING)
def test__check_labels__missing__value_error_names_the_sample(kind):
    y, message = MISSING[kind]
    with pytest.raises(ValueError, match=message):
        check_labels(y, "y")


OTHER = {
    "none at all": (None, "requires y to be passed, but the target y is None"),
    "two columns": (np.zeros((3, 2), int), "1d array"),
    "pairs in a list": ([(1, 2), (1, 2), (3, 4)], r"1d array .*, got .* y\[0\] is \(1, 2\)"),
    "measurements": ([0.1, 0.2, 0.7], "[Uu]nknown label type: continuous"),
    "mixed types": (np.array(["a", 1, "b"], dtype=object), r"labels of one kind, got strings .* and integers"),
    "mixed types in a list": ([1, "a", 1], r"labels of one kind, got integers \(y\[0\] = 1\) and strings \(y\[1\]"),
    "booleans and strings": ([True, "no", True], "labels of one kind, got booleans"),
    "booleans and integers": ([True, 2, True], "labels of one kind, got booleans"),
    "integers and times": ([1, np.datetime64("2026-01-01"), 1], "labels of one kind"),
    "bytes": ([b"a", b"b", b"a"], r"got b'a', a bytes\. Decode them"),
    "array of bytes": (np.array([b"a", b"b", b"a"]), r"a bytes_?\. Decode them"),
    "enum": ([Plain.NO, Plain.YES, Plain.NO], "a Plain. Members of an enum cannot be sorted; pass their names"),
    "decimals": ([decimal.Decimal(1), decimal.Decimal(2), decimal.Decimal(1)], "a Decimal. Pass strings"),
    "times of a zone": ([pd.Timestamp("2026-01-01", tz="UTC")] * 3, "without a time zone"),
    "integers of 70 bits": ([2**70, 1, 2], "integers of at most 64 bits"),
    "integers that no type of NumPy holds": ([2**63, -1, 2], "integers of at most 64 bits"),
    "a set": ({1, 2, 3}, "1d array"),
}


@pytest.mark.parametrize("kind", OTHER)
def test__fit__labels_that_are_none__value_error(images, kind):
    y, message = OTHER[kind]
    with pytest.raises(ValueError, match=message):
        toy_classifier().fit(images[0][:3], y)


@pytest.mark.parametrize("y", [["a"] * 24, [1] * 24, [True] * 24])
def test__fit__one_class__value_error_shows_it(images, y):
    with pytest.raises(ValueError, match=r"y must have at least two classes, got only one class: "):
        toy_classifier().fit(images[0], y)


EXPECTED = {
    "enum of strings": ([Word.LONG, Word.B], ["a much longer value", "b"]),
    "str that shouts": ([Shouting("a"), Shouting("b")], ["a", "b"]),
    "strings that end with a zero": (["a", "a\0"], ["a", "a\0"]),
    "objects that are integers": (np.array([2, 1], dtype=object), [2, 1]),
    "objects that are booleans": (np.array([True, False], dtype=object), [True, False]),
    "nullable integers": (pd.Series([2**53, 2**53 + 1], dtype="Int64"), [2**53, 2**53 + 1]),
    "nullable booleans": (pd.Series([True, False], dtype="boolean"), [True, False]),
    "enum of integers": ([enum.IntEnum("N", "A B").A, enum.IntEnum("N", "A B").B], [1, 2]),
    "large unsigned integers": ([2**63, 1], [2**63, 1]),
    "integers and whole floats": ([1, 2.0], [1.0, 2.0]),
    "dates": ([datetime.date(2026, 1, 2), datetime.date(2026, 1, 1)], ["2026-01-02", "2026-01-01"]),
    "times": ([datetime.datetime(2026, 1, 2), datetime.datetime(2026, 1, 1)], ["2026-01-02", "2026-01-01"]),
    "times of pandas": (pd.Series(pd.to_datetime(["2026-01-02", "2026-01-01"])), ["2026-01-02", "2026-01-01"]),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test__check_labels__unusual_kind__the_labels_themselves(kind):
    y, expected = EXPECTED[kind]
    labels = check_labels(y, "y")
    if labels.dtype.kind == "M":
        expected = np.array(expected, labels.dtype).tolist()
    assert labels.tolist() == expected
    assert [type(label) for label in labels.tolist()] == [type(label) for label in expected]


SAVED = {
    "nanoseconds": np.array(["2026-01-01", "2026-01-02"], "datetime64[ns]"),
    "days": np.array(["2026-01-01", "2026-01-02"], "datetime64[D]"),
    "durations": np.array([1, 2], "timedelta64[s]"),
    "floats of 32 bits": np.array([1, 2], np.float32),
    "objects": np.array(["a", "b\0"], object),
    **{kind: np.unique(labels_of(kind, np.arange(3))) for kind in KINDS},
}


@pytest.mark.parametrize("kind", SAVED)
def test__labels_to_json__any_kind__read_back_as_they_were(kind):
    labels = SAVED[kind]
    saved = json.loads(json.dumps(labels_to_json(labels)))
    found = labels_from_json(saved)
    assert found.dtype == labels.dtype
    assert np.array_equal(found, labels)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("<i8", [0.5, 1]),
        ("bool", [2, 3]),
        ("object", [1, 2]),
        ("<M8[D]", ["2026"]),
        ("V8", [1]),
        (3, [1]),
        ("|i1", [400]),
    ],
)
def test__labels_from_json__values_that_are_never_written__error(dtype, values):
    with pytest.raises((ValueError, TypeError, OverflowError)):
        labels_from_json({"dtype": dtype, "values": values})


def test__save__labels_that_are_times__load(images, tmp_path):
    X, codes = images
    y = np.array(["2026-01-01", "2026-01-02", "2026-01-03"], "datetime64[ns]")[codes]
    classifier = toy_classifier(max_epochs=1).fit(X, y)
    classifier.save(tmp_path)
    loaded = skve.load(tmp_path, backbone=classifier.backbone)
    assert loaded.classes_.dtype == y.dtype
    assert np.array_equal(loaded.predict(X), classifier.predict(X))


@pytest.mark.parametrize("wrong", [["a", float("nan"), "b"], [1, "a", 1], [True, "no", True]])
def test__everything_that_takes_labels__mixed_or_missing_ones__value_error(images, wrong):
    X, codes = images
    wrong, y = wrong * 8, np.array(["a", "b", "nan"])[codes]
    fitted = toy_classifier(max_epochs=1).fit(X, y)
    selective = skve.SelectiveClassifier(fitted, coverage=0.5)
    for call in (
        lambda: toy_classifier().partial_fit(X, y, classes=wrong),
        lambda: toy_classifier().fit(X, y, X_val=X, y_val=wrong),
        lambda: selective.fit(X, wrong),
        lambda: selective.fit(X, y, X_val=X, y_val=wrong),
        lambda: expected_calibration_error(wrong, fitted.predict_proba(X), labels=fitted.classes_),
        lambda: expected_calibration_error(y, fitted.predict_proba(X), labels=wrong[:3]),
    ):
        with pytest.raises(ValueError, match=r"labels of one kind|must have a label for each sample"):
            call()


def test__encode_labels__known_classes__their_indices_and_unknown_ones_refused():
    known = np.array([2, 9, 5])
    assert encode_labels(np.array([9, 2]), known).tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"y must hold labels that are among the classes .*, got 3, 7"):
        encode_labels(np.array([9, 7, 3]), known)


@pytest.mark.parametrize(
    ("y", "classes"),
    [(["1", "2"], [1, 2]), ([1, 2], ["1", "2"]), ([2**53 + 1], [2**53, 1]), ([1], np.array([1, 2], "datetime64[s]"))],
)
def test__encode_labels__what_numpy_takes_for_equal__refused(y, classes):
    with pytest.raises(ValueError, match="among"):
        encode_labels(np.array(y), np.array(classes))


def test__encode_labels__times_in_other_units__equal_ones_found():
    classes = np.array(["2026-01-01", "2026-01-02"], "datetime64[D]")
    assert encode_labels(classes[::-1].astype("datetime64[ns]"), classes).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (None, "classes must be passed on the first call to partial_fit"),
        ([0, 1], r"y must hold labels that are among the classes .*, got 2"),
        (["a", "b"], "y must hold labels that are among the classes"),
    ],
)
def test__partial_fit__classes_missing_or_incomplete__value_error(images, classes, message):
    with pytest.raises(ValueError, match=message):
        toy_classifier().partial_fit(*images, classes=classes)


def test__partial_fit__other_classes_later__value_error_and_still_usable(images):
    classifier = toy_classifier().partial_fit(*images, classes=[0, 1, 2])
    state = classifier._state
    with pytest.raises(ValueError, match="must be those of the first call"):
        classifier.partial_fit(*images, classes=[0, 1, 2, 3])
    with pytest.raises(ValueError, match="that are among the classes"):
        classifier.partial_fit(images[0], images[1] + 1)
    assert classifier._state is state
    classifier.partial_fit(*images)


# ------------------------------------------------------------------------------------- stratified part


def random_codes(seed):
    rng = np.random.default_rng(seed)
    n_classes = int(rng.integers(2, 12))
    return rng.choice(n_classes, size=int(rng.integers(n_classes, 200)), p=rng.dirichlet(np.full(n_classes, 0.5)))


def chosen_part(codes, fraction, seed=0):
    return stratified_part(codes, fraction, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.25, 0.5, 0.9])
def test__stratified_part__random_labels__size_and_proportions(fraction):
    for seed in range(60):
        codes = random_codes(seed)
        chosen = chosen_part(codes, fraction, seed)
        counts, taken = np.bincount(codes), np.bincount(codes[chosen], minlength=codes.max() + 1)
        room = np.maximum(counts - 1, 0)
        assert chosen.sum() == min(max(1, round(len(codes) * fraction)), room.sum()), seed
        assert (taken <= room).all(), seed  # every class keeps a sample to train on
        if fraction <= 0.5:  # beyond, small classes cannot give their share
            assert (taken >= np.minimum(room, np.floor(counts * fraction))).all(), seed
            assert (taken <= counts * fraction + 2).all(), seed


def test__stratified_part__classes_with_one_sample__never_chosen():
    codes = np.array([0] * 30 + [1, 2, 3])
    for seed in range(20):
        assert not chosen_part(codes, 0.3, seed)[30:].any()


def test__stratified_part__only_classes_with_one_sample__empty():
    assert not chosen_part(np.arange(5), 0.5).any()


def test__stratified_part__same_seed__same_part_and_another_one_otherwise():
    codes = random_codes(3)
    assert np.array_equal(chosen_part(codes, 0.3, 1), chosen_part(codes, 0.3, 1))
    assert not np.array_equal(chosen_part(codes, 0.3, 1), chosen_part(codes, 0.3, 2))


def test__stratified_part__all_samples__chosen_about_equally_often():
    codes = np.repeat([0, 1], [10, 20])
    often = sum(chosen_part(codes, 0.4, seed).astype(int) for seed in range(300))
    assert (np.abs(often / 300 - 0.4) < 0.12).all()


def test__fit__early_stopping_with_a_lone_sample__class_is_learned(images):
    X, y = images
    kept = np.concatenate([np.flatnonzero(y == 0)[:1], np.flatnonzero(y != 0)])
    classifier = toy_classifier(early_stopping=True, validation_fraction=0.3).fit(X[kept], y[kept])
    assert classifier.classes_.tolist() == [0, 1, 2]


def test__check_labels__lists_of_one_label__as_a_column():
    with pytest.warns(DataConversionWarning):
        assert check_labels([["a"], ["b"]], "y").tolist() == ["a", "b"]


@pytest.mark.parametrize("y", [["a", ["b"]], [["a", "b"], ["c", "d"]]])
def test__check_labels__lists_of_several_labels__value_error_shows_the_first(y):
    with pytest.raises(
        ValueError, match="must be a 1d array with one label for each sample, got a list whose element"
    ):
        check_labels(y, "y")
