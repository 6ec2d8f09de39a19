"""Uncertainty measures against closed forms and torch-uncertainty, and the way through wrappers."""

import builtins
import pathlib

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.ensemble import BaggingClassifier, StackingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skve import SelectiveClassifier, predict_uncertainty, uncertainty
from skve.uncertainty import Uncertainty

MEASURES = {
    "total": uncertainty.predictive_entropy,
    "aleatoric": uncertainty.expected_entropy,
    "epistemic": uncertainty.mutual_information,
    "epkl": uncertainty.expected_pairwise_kl,
    "disagreement": uncertainty.disagreement,
    "variation_ratio": uncertainty.variation_ratio,
    "variance": uncertainty.predicted_class_variance,
    "margin": uncertainty.margin,
    "confidence": uncertainty.max_probability,
}


def random_members(n_members=5, n_samples=200, n_classes=7, seed=0, concentration=0.3):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(n_classes, concentration), size=(n_members, n_samples))


@pytest.fixture(scope="module")
def digits_members():
    """Predictions of bagged models on real data: many near-certain samples, some disputed."""
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, _ = train_test_split(X / 16, y, random_state=0)
    bagging = BaggingClassifier(LogisticRegression(max_iter=300), n_estimators=4, random_state=0)
    bagging.fit(X_train[:300], y_train[:300])
    return np.stack([member.predict_proba(X_test) for member in bagging.estimators_])


@pytest.fixture(params=["random", "digits"])
def member_proba(request):
    return random_members() if request.param == "random" else request.getfixturevalue("digits_members")


class MeanOfMembers(ClassifierMixin, BaseEstimator):
    """A tiny ensemble with the interface of the estimators: shrunken copies of one classifier."""

    def __init__(self, n_members=3):
        self.n_members = n_members

    def fit(self, X, y):
        self.model_ = LogisticRegression().fit(X, y)
        self.classes_ = self.model_.classes_
        return self

    def predict_proba_members(self, X):
        decision = self.model_.decision_function(X)
        proba = np.stack([1 / (1 + np.exp(-decision / (m + 1))) for m in range(self.n_members)])
        return np.stack([1 - proba, proba], axis=2)

    def predict_proba(self, X):
        return self.predict_proba_members(X).mean(axis=0)

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def predict_uncertainty(self, X):
        return Uncertainty.from_members(self.predict_proba_members(X))


@pytest.fixture(scope="module")
def binary_data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 3))
    return X, (X[:, 0] + rng.normal(size=120) > 0).astype(int)


# Values


def test__entropy__uniform_and_certain__log_n_and_zero():
    proba = np.array([[0.25] * 4, [0, 1, 0, 0]])
    np.testing.assert_allclose(uncertainty.entropy(proba), [np.log(4), 0], atol=1e-12)


def test__decomposition__sum__equals_total(member_proba):
    u = Uncertainty.from_members(member_proba)
    np.testing.assert_allclose(u.aleatoric + u.epistemic, u.total, rtol=1e-12, atol=1e-15)
    assert (u.epistemic >= 0).all()


def test__measures__opposite_certain_members__closed_forms():
    u = Uncertainty.from_members([[[1.0, 0.0]], [[0.0, 1.0]]])
    np.testing.assert_allclose(u.total, np.log(2))
    np.testing.assert_allclose(u.aleatoric, 0, atol=1e-12)
    np.testing.assert_allclose(u.epistemic, np.log(2))
    assert u.disagreement == 1
    assert u.variation_ratio == 0.5
    assert u.variance == 0.25
    assert u.margin == 0
    assert u.confidence == 0.5
    assert np.isfinite(u.epkl).all()
    assert u.epkl > 100


def test__measures__single_member__nothing_epistemic():
    u = Uncertainty.from_members(random_members(n_members=1))
    for name in ("epistemic", "epkl", "disagreement", "variation_ratio", "variance"):
        np.testing.assert_allclose(getattr(u, name), 0, atol=1e-12)


def test__measures__identical_members__never_negative():
    member_proba = np.repeat(random_members(n_members=1, n_samples=5000), 4, axis=0)
    u = Uncertainty.from_members(member_proba)
    for name in ("total", "aleatoric", "epistemic", "epkl"):
        assert getattr(u, name).min() >= 0
    np.testing.assert_allclose(u.epistemic, 0, atol=1e-14)


def test__expected_pairwise_kl__random__mean_over_ordered_pairs():
    member_proba = random_members(concentration=2.0)
    pairs = [(p * np.log(p / q)).sum(axis=1) for p in member_proba for q in member_proba]
    np.testing.assert_allclose(uncertainty.expected_pairwise_kl(member_proba), np.mean(pairs, axis=0), rtol=1e-9)


def test__expected_pairwise_kl__random__at_least_mutual_information(member_proba):
    u = Uncertainty.from_members(member_proba)
    assert (u.epkl >= u.epistemic - 1e-12).all()


def test__vote_measures__three_against_one__counted():
    votes = np.eye(3)[[0, 0, 0, 2]][:, None]
    np.testing.assert_allclose(uncertainty.disagreement(votes), 1 - 6 / 12)
    np.testing.assert_allclose(uncertainty.variation_ratio(votes), 0.25)


def test__predicted_class_variance__random__numpy_variance():
    member_proba = random_members()
    predicted = member_proba.mean(axis=0).argmax(axis=1)
    expected = [member_proba[:, i, c].var() for i, c in enumerate(predicted)]
    np.testing.assert_allclose(uncertainty.predicted_class_variance(member_proba), expected)


@pytest.mark.parametrize("name", MEASURES)
def test__function__any_measure__same_as_field(name, member_proba):
    u = Uncertainty.from_members(member_proba)
    np.testing.assert_array_equal(MEASURES[name](member_proba), getattr(u, name))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test__measures__low_precision__close_to_float64_and_returned_in_it(dtype):
    member_proba = random_members(concentration=1.0)
    u = Uncertainty.from_members(member_proba.astype(dtype))
    assert u.total.dtype == np.float64
    np.testing.assert_allclose(u.total, Uncertainty.from_members(member_proba).total, atol=2e-3)


def test__measures__thousands_of_classes__small_temporaries():
    import tracemalloc

    member_proba = random_members(n_members=4, n_samples=500, n_classes=5000).astype(np.float32)
    tracemalloc.start()
    u = Uncertainty.from_members(member_proba)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < member_proba.nbytes
    whole = uncertainty.entropy(member_proba.astype(np.float64).mean(axis=0))
    np.testing.assert_allclose(u.total, whole, rtol=1e-6)


def test__measures__no_samples__empty():
    assert len(Uncertainty.from_members(np.empty((3, 0, 4)))) == 0


# Peer


def test__measures__torch_uncertainty__same(member_proba):
    torch = pytest.importorskip("torch")
    peer = pytest.importorskip("torch_uncertainty.metrics")
    as_tensor = torch.as_tensor(member_proba)

    def reference(metric, tensor):
        metric.update(tensor)
        return metric.compute().numpy()

    u = Uncertainty.from_members(member_proba)
    samples_first = as_tensor.transpose(0, 1)
    np.testing.assert_allclose(
        u.epistemic, reference(peer.MutualInformation(reduction="none"), samples_first), atol=1e-6
    )
    np.testing.assert_allclose(
        u.disagreement, reference(peer.Disagreement(reduction="none"), samples_first), atol=1e-6
    )
    np.testing.assert_allclose(u.total, reference(peer.Entropy(reduction="none"), as_tensor.mean(dim=0)), atol=1e-6)
    np.testing.assert_allclose(
        u.aleatoric,
        np.mean([reference(peer.Entropy(reduction="none"), member) for member in as_tensor], axis=0),
        atol=1e-6,
    )


# Result


def test__uncertainty__calibrated_proba__changes_confidence_only():
    member_proba = random_members()
    plain = Uncertainty.from_members(member_proba)
    proba = np.sqrt(member_proba.mean(axis=0))
    proba /= proba.sum(axis=1, keepdims=True)
    calibrated = Uncertainty.from_members(member_proba, proba=proba)
    np.testing.assert_array_equal(calibrated.confidence, proba.max(axis=1))
    for name in MEASURES:
        if name != "confidence":
            np.testing.assert_array_equal(getattr(calibrated, name), getattr(plain, name))


def test__uncertainty__to_frame__one_column_per_measure():
    pytest.importorskip("pandas")
    u = Uncertainty.from_members(random_members(n_samples=6))
    frame = u.to_frame()
    assert list(frame.columns) == [*MEASURES, "novelty"]
    assert len(frame) == len(u) == 6


def test__uncertainty__to_frame__of_samples__keeps_index_texts_and_predictions():
    pd = pytest.importorskip("pandas")
    members = random_members(n_samples=3, n_classes=3)
    u = Uncertainty.from_members(members, classes=["a", "b", "c"], novelty=[0.1, 0.2, 0.99])
    texts = pd.Series(["one", "two", "three"], index=[7, 8, 9])
    frame = u.to_frame(X=texts)
    assert list(frame.index) == [7, 8, 9]
    assert list(frame.columns[:2]) == ["X", "prediction"]
    assert list(frame["X"]) == list(texts)
    assert list(frame["prediction"]) == [["a", "b", "c"][i] for i in members.mean(axis=0).argmax(axis=1)]
    assert list(u.to_frame(index=["x", "y", "z"], X=texts).index) == ["x", "y", "z"]
    paths = u.to_frame(X=[pathlib.Path("a.jpg"), pathlib.Path("b.jpg"), "c.jpg"])
    assert list(paths["X"]) == ["a.jpg", "b.jpg", "c.jpg"]
    table = u.to_frame(X=pd.DataFrame({"first": ["q", "r", "s"], "second": ["t", "u", "v"]}))
    assert list(table.columns[:3]) == ["first", "second", "prediction"]
    assert "X" not in u.to_frame(X=np.zeros((3, 8, 8)))
    with pytest.raises(ValueError, match="X must have 3 entries, one per sample, got 2"):
        u.to_frame(X=texts[:2])


def test__uncertainty__indexed__selects_samples():
    u = Uncertainty.from_members(random_members(n_samples=6), novelty=np.linspace(0, 1, 6), classes=range(7))
    foreign = u[u.novelty > 0.5]
    assert len(foreign) == 3
    np.testing.assert_array_equal(foreign.total, u.total[3:])
    np.testing.assert_array_equal(foreign.prediction, u.prediction[3:])
    assert len(u[2]) == len(u[np.int64(2)]) == 1
    assert u[-1].total[0] == u.total[-1]
    assert len(u[:4]) == 4
    np.testing.assert_array_equal(u[[3, 1]].margin, u.margin[[3, 1]])
    assert len(u[pd_series([True, False, False, False, False, True])]) == 2
    with pytest.raises(IndexError):
        u[1, 2]
    with pytest.raises(IndexError):
        u[6]


def pd_series(values):
    return pytest.importorskip("pandas").Series(values)


@pytest.mark.parametrize("n", [0, 1, 5000])
def test__uncertainty__printed__is_a_summary(n):
    u = Uncertainty.from_members(random_members(n_samples=max(n, 1)), novelty=np.linspace(0, 1, max(n, 1)))[:n]
    assert str(n) in str(u)
    assert len(str(u)) < 400
    assert ("novelty" in str(u)) == (n > 0)


@pytest.mark.parametrize(("name", "value"), [("novelty", [0.5]), ("classes", ["a"])])
def test__uncertainty__of_other_lengths__is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must have shape"):
        Uncertainty.from_members(random_members(n_samples=6), **{name: value})


def test__uncertainty__no_pandas__clear_import_error(monkeypatch):
    real_import = builtins.__import__

    def no_pandas(name, *args, **kwargs):
        if name == "pandas":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    u = Uncertainty.from_members(random_members())
    monkeypatch.setattr(builtins, "__import__", no_pandas)
    with pytest.raises(ImportError, match="pip install pandas"):
        u.to_frame()


def test__uncertainty__assignment__frozen():
    u = Uncertainty.from_members(random_members())
    with pytest.raises(AttributeError):
        u.total = u.margin


# Bad input


@pytest.mark.parametrize("function", [*MEASURES.values(), Uncertainty.from_members])
@pytest.mark.parametrize(
    ("member_proba", "message"),
    [
        (np.full((4, 3), 1 / 3), r"member_proba must have shape \(n_members, n_samples, n_classes\)"),
        (np.full((2, 4, 3), 0.5), r"row 0 sums to 1\.5, not to 1"),
        ([[[0.5, 0.5]], [[np.nan, 1.0]]], r"member_proba\[1\].*row 0 contains nan"),
        ([[[0.5, 0.5], [-0.5, 1.5]]], r"row 1 contains -0\.5"),
        ([[[np.inf, 0.5]]], "sums to inf"),
        (np.empty((0, 4, 3)), "at least one member"),
        (np.empty((2, 4, 0)), "at least one class"),
        ([[["a", "b"]]], "real numbers"),
        ([[[1.0, 0.0]], [[1.0]]], "member_proba must be an array"),
    ],
)
def test__function__bad_member_proba__value_error_says_what(function, member_proba, message):
    with pytest.raises(ValueError, match=message):
        function(member_proba)


def test__entropy__bad_row_in_a_later_piece__named():
    proba = np.full((200_000, 4), 0.25)
    proba[150_000, 1] = np.nan
    with pytest.raises(ValueError, match="row 150000 contains nan"):
        uncertainty.entropy(proba)


def test__from_members__proba_of_other_shape__value_error():
    with pytest.raises(ValueError, match="proba must have shape"):
        Uncertainty.from_members(random_members(n_samples=4), proba=random_members(n_samples=3)[0])


# Wrappers


def test__predict_uncertainty__bare_and_wrapped__same(binary_data):
    X, y = binary_data
    model = MeanOfMembers().fit(X, y)
    expected = model.predict_uncertainty(X).epistemic
    for estimator in (
        model,
        FrozenEstimator(model),
        make_pipeline(model),
        make_pipeline("passthrough", FrozenEstimator(model)),
        FrozenEstimator(make_pipeline(model)),
    ):
        np.testing.assert_array_equal(predict_uncertainty(estimator, X).epistemic, expected)


def test__predict_uncertainty__pipeline__transforms_applied(binary_data):
    X, y = binary_data
    pipeline = make_pipeline(StandardScaler(), MeanOfMembers()).fit(X, y)
    expected = pipeline[-1].predict_uncertainty(pipeline[0].transform(X)).total
    np.testing.assert_array_equal(predict_uncertainty(pipeline, X).total, expected)


def test__predict_uncertainty__search_over_pipeline__best_estimator(binary_data):
    X, y = binary_data
    search = GridSearchCV(
        make_pipeline(StandardScaler(), MeanOfMembers()), {"meanofmembers__n_members": [2, 3]}, cv=2
    )
    with pytest.raises(NotFittedError):
        predict_uncertainty(search, X)
    search.fit(X, y)
    expected = predict_uncertainty(search.best_estimator_, X).total
    np.testing.assert_array_equal(predict_uncertainty(search, X).total, expected)


@pytest.mark.parametrize("method", ["sigmoid", "temperature"])
def test__predict_uncertainty__calibrated__members_uncalibrated_confidence_calibrated(binary_data, method):
    X, y = binary_data
    model = MeanOfMembers().fit(X, y)
    calibrated = CalibratedClassifierCV(FrozenEstimator(model), method=method).fit(X, y)
    u = predict_uncertainty(calibrated, X)
    np.testing.assert_array_equal(u.total, model.predict_uncertainty(X).total)
    np.testing.assert_array_equal(u.confidence, calibrated.predict_proba(X).max(axis=1))


def test__predict_uncertainty__several_inner_models__value_error(binary_data):
    X, y = binary_data
    for estimator in (
        CalibratedClassifierCV(MeanOfMembers(), cv=3, ensemble=True).fit(X, y),
        BaggingClassifier(MeanOfMembers(), n_estimators=3).fit(X, y),
    ):
        with pytest.raises(ValueError, match=r"must hold one fitted model .* with 3"):
            predict_uncertainty(estimator, X)


def test__predict_uncertainty__plain_classifier__type_error_says_what_is_wanted(binary_data):
    X, y = binary_data
    with pytest.raises(
        TypeError, match=r"SVEClassifier.* got a LogisticRegression, which has no predict_uncertainty"
    ):
        predict_uncertainty(LogisticRegression().fit(X, y), X)


@pytest.mark.parametrize("wrap", [lambda model: model, make_pipeline, SelectiveClassifier, FrozenEstimator])
def test__predict_uncertainty__not_fitted__not_fitted_error(wrap, binary_data):
    with pytest.raises(NotFittedError):
        predict_uncertainty(wrap(MeanOfMembers()), binary_data[0])


def test__predict_uncertainty__stack_of_one__type_error(binary_data):
    X, y = binary_data
    stack = StackingClassifier([("one", MeanOfMembers())], cv=2).fit(X, y)
    with pytest.raises(TypeError, match="StackingClassifier, which predicts by a final estimator"):
        predict_uncertainty(stack, X)
