"""Every container of images in every tool of scikit-learn; the guide's table is made of this list."""

import pathlib
import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import Pipeline

import skve
from skve.testing import make_toy_image_backbone
from skve.testing.image_checks import image_containers

GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "guide" / "interop.md"
Y = np.array(["dark", "light"])[np.arange(16) % 2]


def make_images():
    rng = np.random.default_rng(0)
    ground = np.where(Y == "dark", 60, 190)[:, None, None, None]
    return np.clip(ground + rng.normal(0, 30, (16, 12, 12, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def containers(tmp_path_factory):
    images = make_images()
    made = image_containers(images, tmp_path_factory.mktemp("images"))
    mixed = [pixels.repeat(1 + i % 3, axis=0).repeat(1 + i % 2, axis=1) for i, pixels in enumerate(images)]
    yield {**made, "list of arrays of mixed sizes": (mixed, {})}
    for file in made["list of open files"][0]:
        file.close()


CONTAINERS = [
    "list of paths, str",
    "list of paths, Path",
    "tuple of paths",
    "array of paths",
    "object array of paths",
    "pandas Series of paths",
    "pandas DataFrame of paths",
    "polars Series of paths",
    "polars DataFrame of paths",
    "list of bytes",
    "list of BytesIO",
    "list of open files",
    "list of PIL images",
    "object array of PIL images",
    "pandas Series of PIL images",
    "uint8 array",
    "float array, 0 to 1",
    "float array, 0 to 255",
    "uint8 tensor",
    "float tensor, 0 to 1",
    "list of arrays",
    "list of arrays of mixed sizes",
    "list of tensors",
    "rows of pixels",
]


def is_right(predicted, y):
    """Dark and light images are told apart by whoever saw each image with its own label."""
    assert np.mean(np.asarray(predicted) == np.asarray(y)) > 0.9


def fit_and_predict(clf, X, y):
    is_right(clf.fit(X, y).predict(X), y)


def predict_proba(clf, X, y):
    proba = clf.fit(X, y).predict_proba(X)
    assert proba.shape == (16, 2)
    is_right(clf.classes_[proba.argmax(1)], y)


def predict_uncertainty(clf, X, y):
    assert skve.predict_uncertainty(clf.fit(X, y), X).total.shape == (16,)


def cloned(clf, X, y):
    fitted = clf.fit(X, y)
    assert np.array_equal(clone(fitted).fit(X, y).predict_proba(X), fitted.predict_proba(X))


def pickled(clf, X, y):
    fitted = clf.fit(X, y)
    assert np.array_equal(pickle.loads(pickle.dumps(fitted)).predict_proba(X), fitted.predict_proba(X))


def grid_search(clf, X, y):
    search = GridSearchCV(clf, {"n_members": [1, 2]}, cv=2, n_jobs=2, error_score="raise").fit(X, y)
    assert search.best_score_ > 0.9
    is_right(search.predict(X), y)


def cross_validated(clf, X, y):
    assert cross_validate(clf, X, y, cv=2, error_score="raise")["test_score"].mean() > 0.9


def calibrated(clf, X, y):
    is_right(CalibratedClassifierCV(clf, cv=2).fit(X, y).predict(X), y)


def frozen(clf, X, y):
    prefit = CalibratedClassifierCV(FrozenEstimator(clf.fit(X, y)), method="temperature").fit(X, y)
    is_right(prefit.predict(X), y)


def voting(clf, X, y):
    is_right(VotingClassifier([("a", clf), ("b", clone(clf))], voting="soft").fit(X, y).predict(X), y)


def stacking(clf, X, y):
    is_right(StackingClassifier([("a", clf), ("b", clone(clf))], cv=2).fit(X, y).predict(X), y)


def pipeline(clf, X, y):
    is_right(Pipeline([("nothing", "passthrough"), ("clf", clf)]).fit(X, y).predict(X), y)


def column_transformer(clf, X, y):
    chosen = ["photo"] if hasattr(X, "columns") else slice(0, getattr(X, "shape", (1,))[-1])
    columns = ColumnTransformer([("photo", "passthrough", chosen)])
    is_right(Pipeline([("columns", columns), ("clf", clf)]).fit(X, y).predict(X), y)


PROCESSES = "GridSearchCV, n_jobs=2"
OPERATIONS = {
    "fit, predict": fit_and_predict,
    "predict_proba": predict_proba,
    "predict_uncertainty": predict_uncertainty,
    "clone": cloned,
    "pickle": pickled,
    PROCESSES: grid_search,
    "cross_validate": cross_validated,
    "CalibratedClassifierCV": calibrated,
    "FrozenEstimator": frozen,
    "VotingClassifier": voting,
    "StackingClassifier": stacking,
    "Pipeline": pipeline,
    "ColumnTransformer": column_transformer,
}

TABLES = ("pandas DataFrame of paths", "polars DataFrame of paths", "rows of pixels")
NO_TABLE = "scikit-learn selects columns of tables only: put paths into a data frame"
NO_PICKLE = "open files cannot be sent to other processes: pass their paths or bytes"
NOTES = {NO_TABLE: "¹", NO_PICKLE: "²"}
# In the default run: one container with every operation in this process, and these operations with every container.
FULL = "pandas DataFrame of paths"
QUICK = ("fit, predict", "cross_validate", "ColumnTransformer")


def impossible(container, operation):
    """Return why a cell cannot work, None where it does."""
    if container == "list of open files" and operation == PROCESSES:
        return NO_PICKLE
    return NO_TABLE if operation == "ColumnTransformer" and container not in TABLES else None


def is_quick(container, operation):
    return operation in QUICK or (container == FULL and operation != PROCESSES)


def make_classifier(parameters):
    return skve.SVEClassifier(
        make_toy_image_backbone(),
        n_members=2,
        max_epochs=10,
        batch_size=4,
        head_lr=0.3,
        head_weight_decay=0.0,
        image_size=8,
        augment=None,
        device="cpu",
        random_state=0,
        **parameters,
    )


@pytest.mark.parametrize(
    ("container", "operation"),
    [
        pytest.param(container, operation, marks=[] if is_quick(container, operation) else [pytest.mark.slow])
        for container in CONTAINERS
        for operation in OPERATIONS
    ],
)
def test__matrix__cell__works_or_is_refused(containers, container, operation):
    if container not in containers:
        pytest.skip("its package is not installed")
    X, parameters = containers[container]
    clf = make_classifier(parameters)
    if impossible(container, operation):
        with pytest.raises((ValueError, IndexError, pickle.PicklingError)):
            OPERATIONS[operation](clf, X, Y)
    else:
        OPERATIONS[operation](clf, X, Y)


def test__matrix__containers__all_that_there_are(containers):
    pytest.importorskip("pandas")
    pytest.importorskip("polars")
    assert sorted(CONTAINERS) == sorted(containers)


def matrix():
    """Return the guide's table."""
    lines = ["| X | " + " | ".join(OPERATIONS) + " |", "|---" * (len(OPERATIONS) + 1) + "|"]
    for container in CONTAINERS:
        reasons = [impossible(container, operation) for operation in OPERATIONS]
        cells = [f"no {NOTES[reason]}" if reason else "yes" for reason in reasons]
        lines.append(f"| {container} | " + " | ".join(cells) + " |")
    notes = [f"{sign} {reason}." for reason, sign in NOTES.items()]
    return "\n\n".join(["\n".join(lines), *notes])


def test__matrix__guide__has_this_table():
    assert matrix() in GUIDE.read_text(), f"docs/guide/interop.md should have\n{matrix()}"


# ------------------------------------------------------------------------------------------- labels

LABELS = {
    "strings": lambda y: y,
    "booleans": lambda y: y == "light",
    "5 and 7": lambda y: np.where(y == "light", 5, 7),
    "objects": lambda y: y.astype(object),
    "pandas categories": lambda y: pytest.importorskip("pandas").Series(y, dtype="category"),
    "polars": lambda y: pytest.importorskip("polars").Series(y),
}


@pytest.mark.parametrize(
    "operation",
    [
        "CalibratedClassifierCV",
        pytest.param(PROCESSES, marks=pytest.mark.slow),
        pytest.param("cross_validate", marks=pytest.mark.slow),
        pytest.param("FrozenEstimator", marks=pytest.mark.slow),
        pytest.param("VotingClassifier", marks=pytest.mark.slow),
        pytest.param("StackingClassifier", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("kind", LABELS)
def test__labels__of_any_kind__through_the_tools(kind, operation):
    OPERATIONS[operation](make_classifier({}), make_images(), LABELS[kind](Y))
