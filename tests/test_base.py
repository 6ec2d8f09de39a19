"""The shell that image and text classifiers share: scikit-learn's own checks, parameters and their documentation."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from skve import SVEClassifier, SVETextClassifier
from skve._base import BaseSVEClassifier, inherit_parameter_docs
from skve.testing import ToyClassifier

EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": "a sample of weight 2 is drawn once, two samples may fall "
    "into two mini-batches: the results agree in expectation, not to 1e-7",
}
QUICK = {"n_members": 2, "max_epochs": 6, "head_lr": 1e-1, "device": "cpu", "random_state": 0}
CLASSES = [SVEClassifier, SVETextClassifier, ToyClassifier]


@parametrize_with_checks(
    [ToyClassifier(**QUICK), ToyClassifier(ensemble="deep", member_lr=2e-3, **QUICK)],
    expected_failed_checks=lambda estimator: EXPECTED_FAILURES,
    xfail_strict=True,
)
def test__shell__sklearn_check__passes(estimator, check):
    check(estimator)


# ------------------------------------------------------------------------------------------ parameters


@pytest.mark.parametrize("cls", CLASSES)
def test__constructor__every_parameter__stored_as_it_came(cls):
    given = {name: object() for name in inspect.signature(cls).parameters}
    estimator = cls(**given)
    assert vars(estimator) == given
    assert cls().get_params(deep=False) == {
        name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()
    }
    assert clone(cls(n_members=7)).n_members == 7


@pytest.mark.parametrize("cls", CLASSES)
def test__constructor__shared_parameters__same_defaults_and_annotations(cls):
    shared, own = inspect.signature(BaseSVEClassifier).parameters, inspect.signature(cls).parameters
    differ = {name for name in shared if shared[name] != own[name]}
    assert differ <= {"backbone", "max_epochs"}


def test__constructor__subclass_with_a_parameter_of_its_own__stored():
    class Own(ToyClassifier):
        def __init__(self, backbone=None, *, extra=1, n_members=4):
            super().__init__(backbone, n_members=n_members)
            self.extra = extra

    assert clone(Own(extra=3, n_members=2)).get_params() == {"backbone": None, "extra": 3, "n_members": 2}


# --------------------------------------------------------------------------------------- documentation


class Shared:
    """Base.

    Parameters
    ----------
    first : int, default=1
        Of the base class.
    last : int, default=2
        Has
        two lines.

    Attributes
    ----------
    learned_ : int
    """


def test__inherit_parameter_docs__entries__of_the_class_first_in_the_order_of_the_constructor():
    @inherit_parameter_docs
    class Own(Shared):
        """Own.

        Parameters
        ----------
        middle : int
            Of its own.
        first : int, default=5
            Replaced.

        Attributes
        ----------
        own_ : int

        Examples
        --------
        >>> 1
        1
        """

        def __init__(self, first=5, middle=0, last=2):
            pass

    assert inspect.getdoc(Own).splitlines() == [
        "Own.",
        "",
        "Parameters",
        "----------",
        "first : int, default=5",
        "    Replaced.",
        "middle : int",
        "    Of its own.",
        "last : int, default=2",
        "    Has",
        "    two lines.",
        "",
        "Attributes",
        "----------",
        "learned_ : int",
        "own_ : int",
        "",
        "Examples",
        "--------",
        ">>> 1",
        "1",
    ]


def test__inherit_parameter_docs__parameter_without_an_entry__error():
    class Own(Shared):
        """Own.

        Parameters
        ----------
        first : int

        Attributes
        ----------
        own_ : int
        """

        def __init__(self, first, forgotten):
            pass

    with pytest.raises(KeyError, match="forgotten"):
        inherit_parameter_docs(Own)


def test__docstrings__stripped_by_python__estimators_work():
    code = "import skve, skve.testing as t; print(skve.SVEClassifier.__doc__, t.ToyClassifier(n_members=3).n_members)"
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("None 3\n", 0), done.stderr


# ------------------------------------------------------------------------------------------ predicting


def test__predict__members_that_overflow__error_names_member_and_sample():
    X = np.random.default_rng(0).normal(size=(12, 3))
    clf = ToyClassifier(n_members=2, max_epochs=1, random_state=0).fit(X, np.arange(12) % 2)
    weights = next(value for key, value in clf._state.arrays.items() if key.endswith("weight"))
    weights[1] = np.nan
    with pytest.raises(ValueError, match=r"^Members must predict finite .*, got NaN from member 1 for X\[0\]: .*\.$"):
        clf.predict(X)


@pytest.mark.parametrize("name", ["ratios_", "n_member_parameters_"])
def test__fitted_attributes__before_fit__attribute_error(name):
    with pytest.raises(AttributeError, match=f"^ToyClassifier has no attribute '{name}' before fit.$"):
        getattr(ToyClassifier(), name)


@pytest.fixture(scope="module")
def blobs():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 4))
    return X, (X[:, 0] > 0).astype(int)


@pytest.fixture(scope="module")
def fitted_on_blobs(blobs):
    return ToyClassifier(n_members=3, max_epochs=2, random_state=0).fit(*blobs)


def test__transform__features_of_the_backbone__those_of_the_plain_module(blobs):
    import torch

    from skve.testing import make_toy_backbone

    module = make_toy_backbone(4)
    clf = ToyClassifier(module, n_members=2, max_epochs=2, random_state=0).fit(*blobs)
    plain = module(torch.from_numpy(np.arcsinh(blobs[0])).float()).detach().numpy()
    np.testing.assert_allclose(clf.transform(blobs[0]), plain, atol=1e-6)


def test__transform__members_features__their_probabilities_with_their_heads(blobs, fitted_on_blobs):
    X, _ = blobs
    features = fitted_on_blobs.set_params(features="members").transform(X).reshape(40, 3, 16)
    head = fitted_on_blobs._state.arrays
    logits = np.einsum("nmd,mcd->mnc", features, head["head.weight"]) + head["head.bias"][:, None]
    proba = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(fitted_on_blobs.predict_proba_members(X), proba, atol=1e-5)
    mean = fitted_on_blobs.set_params(features="mean").transform(X)
    np.testing.assert_allclose(mean, features.mean(axis=1), atol=1e-6)
    fitted_on_blobs.set_params(features="backbone")


@pytest.mark.parametrize(("features", "n"), [("backbone", 16), ("mean", 16), ("members", 48)])
def test__transform__pandas__names_of_the_features(blobs, fitted_on_blobs, features, n):
    pytest.importorskip("pandas")
    import sklearn

    fitted_on_blobs.set_params(features=features)
    with sklearn.config_context(transform_output="pandas"):
        table = fitted_on_blobs.transform(blobs[0][:3])
    assert (
        list(table.columns)
        == list(fitted_on_blobs.get_feature_names_out())
        == [f"toyclassifier{i}" for i in range(n)]
    )
    fitted_on_blobs.set_params(features="backbone")


def test__transform__step_of_a_pipeline__feeds_the_next_one(blobs):
    X, y = blobs
    pipeline = make_pipeline(ToyClassifier(n_members=2, max_epochs=1, random_state=0), LogisticRegression())
    assert pipeline.fit(X, y).score(X, y) > 0.8
    assert pipeline[:-1].get_feature_names_out().shape == (16,)


def test__transform__unknown_features__value_error(blobs, fitted_on_blobs):
    with pytest.raises(ValueError, match="features"):
        fitted_on_blobs.set_params(features="pixels").transform(blobs[0])
    fitted_on_blobs.set_params(features="backbone")


@pytest.mark.parametrize(
    "container",
    [
        lambda y: y.astype(object),
        list,
        lambda y: [int(label) for label in y],
        lambda y: pytest.importorskip("pandas").Series(y, dtype="Int64"),
        lambda y: pytest.importorskip("pandas").Categorical(y),
    ],
)
def test__score__labels_in_any_container__accuracy(container):
    X, y = load_iris(return_X_y=True)
    clf = ToyClassifier(ensemble="head", n_members=1, random_state=0).fit(X, y)
    assert clf.score(X, container(y)) == np.mean(clf.predict(X) == y) > 0.8
    weight = np.arange(len(y))
    assert clf.score(X, container(y), weight) == pytest.approx(np.average(clf.predict(X) == y, weights=weight))


def test__score__labels_that_are_no_class__errors_and_a_value_error_if_all_are():
    X, y = load_iris(return_X_y=True)
    clf = ToyClassifier(ensemble="head", n_members=1, random_state=0).fit(X, y)
    assert clf.score(X, np.where(np.arange(150) < 75, 7, y)) == np.mean((clf.predict(X) == y)[75:]) / 2
    with pytest.raises(ValueError, match="y must hold labels that are among classes_"):
        clf.score(X, y.astype(str))
