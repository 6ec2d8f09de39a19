"""Calibration metrics against closed forms, a plain loop, netcal and torch-uncertainty."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import trapezoid
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.naive_bayes import GaussianNB

from skve import metrics


def random_case(n_samples=900, n_classes=5, seed=0):
    rng = np.random.default_rng(seed)
    y_proba = rng.dirichlet(np.full(n_classes, 0.5), size=n_samples)
    y_true = np.array([rng.choice(n_classes, p=p) for p in np.sqrt(y_proba) / np.sqrt(y_proba).sum(1)[:, None]])
    return y_true, y_proba


def digits_case():
    """Naive Bayes on real images: over-confident, with many exact zeros and ones."""
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0, test_size=900)
    return y_test, GaussianNB(var_smoothing=1e-3).fit(X_train, y_train).predict_proba(X_test)


CASES = {"random": random_case, "digits": digits_case}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]()


def ece_by_loop(confidence, happened, edges, norm="l1"):
    gaps, shares = [], []
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if low == 0:
            inside |= confidence == 0
        if inside.any():
            gaps.append(abs(confidence[inside].mean() - happened[inside].mean()))
            shares.append(inside.mean())
    gaps, shares = np.array(gaps), np.array(shares)
    return {"l1": shares @ gaps, "l2": np.sqrt(shares @ gaps**2), "max": gaps.max()}[norm]


# Expected calibration error


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
@pytest.mark.parametrize("n_bins", [1, 10, 15])
def test__ece__top_label__same_as_loop(case, norm, n_bins):
    y_true, y_proba = case
    expected = ece_by_loop(y_proba.max(1), y_proba.argmax(1) == y_true, np.linspace(0, 1, n_bins + 1), norm)
    actual = metrics.expected_calibration_error(y_true, y_proba, n_bins=n_bins, norm=norm)
    assert actual == pytest.approx(expected, abs=1e-12)
    assert isinstance(actual, float)


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
def test__ece__classwise__norm_over_classes(case, norm):
    y_true, y_proba = case
    per_class = np.array(
        [ece_by_loop(y_proba[:, k], y_true == k, np.linspace(0, 1, 16), norm) for k in range(y_proba.shape[1])]
    )
    expected = {"l1": per_class.mean(), "l2": np.sqrt((per_class**2).mean()), "max": per_class.max()}[norm]
    actual = metrics.expected_calibration_error(y_true, y_proba, kind="classwise", norm=norm)
    assert actual == pytest.approx(expected, abs=1e-12)


def test__ece__confidence_on_an_edge__belongs_to_the_lower_bin():
    bins = metrics.calibration_bins([0, 1], [[0.6, 0.4], [0.4, 0.6]], n_bins=5)
    np.testing.assert_array_equal(bins.weight, [0, 0, 2, 0, 0])
    bins = metrics.calibration_bins([0, 1], [[1.0, 0.0], [0.0, 1.0]], n_bins=5, pos_label=1)
    np.testing.assert_array_equal(bins.weight, [1, 0, 0, 0, 1])


def test__ece__calibrated_by_construction__zero():
    y_proba = np.repeat([[0.8, 0.2], [0.4, 0.6]], 10, axis=0)
    y_true = np.repeat([0, 1, 1, 0], [8, 2, 6, 4])
    assert metrics.expected_calibration_error(y_true, y_proba) == pytest.approx(0, abs=1e-12)


def test__ece__quantile__bins_of_equal_mass():
    y_true, y_proba = random_case()
    bins = metrics.calibration_bins(y_true, y_proba, strategy="quantile", n_bins=9)
    np.testing.assert_array_equal(bins.weight, np.full(9, 100))


def test__ece__quantile_ties__never_torn_apart():
    y_proba = np.repeat([[0.7, 0.3], [0.9, 0.1]], [7, 3], axis=0)
    bins = metrics.calibration_bins(np.repeat([0, 1], 5), y_proba, strategy="quantile", n_bins=5)
    assert sorted(bins.weight[bins.weight > 0]) == [3, 7]


def test__ece__debiased__near_zero_where_plain_is_biased():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, size=3000)
    y_true = (rng.uniform(size=3000) > confidence).astype(int)
    y_proba = np.column_stack([confidence, 1 - confidence])
    options = {"norm": "l2", "n_bins": 100}
    plain = metrics.expected_calibration_error(y_true, y_proba, **options)
    debiased = metrics.expected_calibration_error(y_true, y_proba, debias=True, **options)
    assert plain > 0.05
    assert debiased < 0.02


def test__ece__debiased__closed_form():
    y_proba = np.tile([0.9, 0.1], (10, 1))
    y_true = np.repeat([0, 1], [6, 4])
    actual = metrics.expected_calibration_error(y_true, y_proba, norm="l2", debias=True)
    assert actual == pytest.approx(np.sqrt(0.3**2 - 0.6 * 0.4 / 9))


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
@pytest.mark.parametrize("kind", ["top_label", "classwise"])
@pytest.mark.parametrize(
    "metric",
    [
        metrics.expected_calibration_error,
        metrics.adaptive_calibration_error,
        metrics.smooth_calibration_error,
    ],
)
def test__metric__integer_weights__same_as_repetition(metric, kind, strategy):
    y_true, y_proba = random_case(n_samples=200)
    options = {"kind": kind, "strategy": strategy} if metric is metrics.expected_calibration_error else {}
    weight = np.random.default_rng(1).integers(0, 4, size=len(y_true))
    repeated = metric(np.repeat(y_true, weight), np.repeat(y_proba, weight, axis=0), **options)
    assert metric(y_true, y_proba, sample_weight=weight, **options) == pytest.approx(repeated, abs=1e-9)


def test__ece__binary_single_column__same_as_two():
    y_true, y_proba = random_case(n_classes=2)
    both = metrics.expected_calibration_error(y_true, y_proba)
    assert metrics.expected_calibration_error(y_true, y_proba[:, 1]) == pytest.approx(both, abs=1e-12)


def test__ece__string_labels_in_given_order__columns_follow():
    y_true, y_proba = random_case(n_classes=3)
    names = np.array(["zebra", "ape", "cat"])
    expected = metrics.expected_calibration_error(y_true, y_proba)
    assert metrics.expected_calibration_error(names[y_true], y_proba, labels=names) == expected
    assert metrics.expected_calibration_error(names[y_true].astype(object), y_proba, labels=names) == expected


# Peers


@pytest.mark.parametrize("n_bins", [10, 15])
def test__calibration__netcal__same(case, n_bins):
    netcal = pytest.importorskip("netcal.metrics")
    y_true, y_proba = case
    top = (y_proba.max(axis=1), (y_proba.argmax(axis=1) == y_true).astype(int))
    ours = {"n_bins": n_bins}
    assert metrics.expected_calibration_error(y_true, y_proba, **ours) == pytest.approx(
        netcal.ECE(n_bins).measure(*top), abs=1e-6
    )
    assert metrics.expected_calibration_error(y_true, y_proba, norm="max", **ours) == pytest.approx(
        netcal.MCE(n_bins).measure(*top), abs=1e-6
    )
    per_class = [
        netcal.ECE(n_bins).measure(y_proba[:, k], (y_true == k).astype(int)) for k in range(y_proba.shape[1])
    ]
    assert metrics.expected_calibration_error(y_true, y_proba, kind="classwise", **ours) == pytest.approx(
        np.mean(per_class), abs=1e-6
    )


def test__calibration__torch_uncertainty__same(case):
    torch = pytest.importorskip("torch")
    peer = pytest.importorskip("torch_uncertainty.metrics")
    y_true, y_proba = case
    # The peer puts a confidence of exactly 1 into a bin of its own: keep away from it.
    y_proba = 0.999 * y_proba + 0.001 / y_proba.shape[1]

    def reference(metric):
        metric.update(torch.as_tensor(y_proba), torch.as_tensor(y_true))
        return float(metric.compute())

    options = {"task": "multiclass", "num_classes": y_proba.shape[1], "num_bins": 15}
    for norm in ("l1", "l2", "max"):
        assert metrics.expected_calibration_error(y_true, y_proba, norm=norm) == pytest.approx(
            reference(peer.CalibrationError(norm=norm, **options)),
            abs=4e-6,  # summed in float32
        )


def test__smooth_ece__torch_uncertainty_on_a_fine_grid__same():
    # Not on the digits: there the peer is 1.5 % off the integral, by how it treats mass at the ends.
    torch = pytest.importorskip("torch")
    peer = pytest.importorskip("torch_uncertainty.metrics")
    y_true, y_proba = random_case()
    metric = peer.SmoothCalibrationError(kernel_type="reflected", eps=1e-5, refine_steps=25, mesh_pts=20_000)
    metric.update(torch.as_tensor(y_proba, dtype=torch.float32), torch.as_tensor(y_true))
    actual = metrics.smooth_calibration_error(y_true, y_proba)
    assert actual == pytest.approx(float(metric.compute()), abs=5e-6)


def test__ece__quantile__torch_uncertainty_without_ties__same():
    torch = pytest.importorskip("torch")
    peer = pytest.importorskip("torch_uncertainty.metrics")
    y_true, y_proba = random_case(n_samples=900)
    metric = peer.AdaptiveCalibrationError(task="multiclass", num_classes=5, num_bins=15)
    metric.update(torch.as_tensor(y_proba), torch.as_tensor(y_true))
    actual = metrics.expected_calibration_error(y_true, y_proba, strategy="quantile")
    assert actual == pytest.approx(float(metric.compute()), abs=1e-6)


# Adaptive and smooth


def test__ace__random__mean_over_classes_and_bins():
    y_true, y_proba = random_case(n_samples=900)
    gaps = []
    for k in range(5):
        order = np.argsort(y_proba[:, k])
        for part in np.split(order, 15):
            gaps.append(abs(y_proba[part, k].mean() - (y_true[part] == k).mean()))
    actual = metrics.adaptive_calibration_error(y_true, y_proba)
    assert actual == pytest.approx(np.mean(gaps), abs=1e-12)


def test__ace__threshold_above_all__zero():
    assert metrics.adaptive_calibration_error([0, 1], [[0.5, 0.5]] * 2, threshold=0.9) == 0
    y_true, y_proba = random_case()
    assert metrics.adaptive_calibration_error(y_true, y_proba, threshold=0.01) > 0


@pytest.mark.parametrize("confidence", [0.55, 0.8, 0.99])
def test__smooth_ece__one_confidence__absolute_gap(confidence):
    y_true = np.repeat([0, 1], [5, 5])
    y_proba = np.tile([confidence, 1 - confidence], (10, 1))
    actual = metrics.smooth_calibration_error(y_true, y_proba)
    assert actual == pytest.approx(confidence - 0.5, abs=1e-6)


@pytest.mark.parametrize("sigma", [0.005, 0.05])
def test__smooth_ece__fixed_bandwidth__same_as_quadrature(sigma, case):
    y_true, y_proba = case
    confidence, residual = y_proba.max(1), (y_proba.argmax(1) == y_true) - y_proba.max(1)
    t = np.linspace(0, 1, 20001)
    curve = np.zeros_like(t)
    for f, r in zip(confidence, residual, strict=True):
        for image in (f, -f, 2 - f, 2 + f, f - 2):
            curve += r * np.exp(-0.5 * ((t - image) / sigma) ** 2)
    curve /= len(confidence) * sigma * np.sqrt(2 * np.pi)
    expected = trapezoid(np.abs(curve), t)
    actual = metrics.smooth_calibration_error(y_true, y_proba, bandwidth=sigma)
    assert actual == pytest.approx(expected, abs=1e-6)


def test__smooth_ece__auto__fixed_point(case):
    actual = metrics.smooth_calibration_error(*case)
    assert metrics.smooth_calibration_error(*case, bandwidth=actual) == pytest.approx(actual, abs=1e-6)


def test__smooth_ece__bandwidth_of_numpy__as_a_float(case):
    expected = metrics.smooth_calibration_error(*case, bandwidth=0.125)
    assert metrics.smooth_calibration_error(*case, bandwidth=np.float32(0.125)) == expected


# Bins


def test__calibration_bins__empty_bin__nan_and_counts_nothing():
    bins = metrics.calibration_bins([0, 0], [[0.9, 0.1]] * 2, labels=[0, 1], n_bins=2)
    assert np.isnan(bins.accuracy[0])
    assert np.isnan(bins.confidence[0])
    assert metrics.expected_calibration_error([0, 0], [[0.9, 0.1]] * 2, labels=[0, 1], n_bins=2) == pytest.approx(0.1)


def test__calibration_bins__pos_label__probability_of_that_class():
    y_true, y_proba = random_case(n_classes=3)
    names = np.array(["a", "b", "c"])
    bins = metrics.calibration_bins(names[y_true], y_proba, pos_label="b", n_bins=1)
    assert bins.accuracy[0] == pytest.approx((y_true == 1).mean())
    assert bins.confidence[0] == pytest.approx(y_proba[:, 1].mean())


# Bad input

GOOD = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])


@pytest.mark.parametrize(
    "metric",
    [
        metrics.expected_calibration_error,
        metrics.adaptive_calibration_error,
        metrics.smooth_calibration_error,
        metrics.calibration_bins,
        metrics.risk_coverage_curve,
        metrics.accuracy_rejection_curve,
        metrics.aurc,
        metrics.excess_aurc,
        metrics.accuracy_at_coverage,
    ],
)
@pytest.mark.parametrize(
    ("y_true", "y_proba", "options", "message"),
    [
        ([0, 1, 1], GOOD * 2, {}, "row 0 sums to 2"),
        ([0, 1, 1], np.log(GOOD), {}, "row 0 contains -0.1"),
        ([0, 1, 1], [[0.9, 0.1], [np.nan, 0.8], [0.6, 0.4]], {}, "row 1 contains nan"),
        ([0, 1, 1], [0.1, np.nan, 0.4], {}, "row 1 contains nan"),
        ([0, 1, 1], [0.1, 1.5, 0.4], {}, "row 1 contains -0.5"),
        ([0, 1], GOOD, {}, "inconsistent numbers of samples"),
        ([0, 1, 1], GOOD, {"sample_weight": [1, 1]}, "inconsistent numbers of samples"),
        ([0, 1, 1], GOOD, {"sample_weight": [1, 1, -1]}, "sample_weight must be finite and not negative"),
        ([0, 1, 1], GOOD, {"sample_weight": [1, 1, np.nan]}, "sample_weight must be finite"),
        ([0, 1, 1], GOOD, {"sample_weight": [0, 0, 0]}, "sample_weight must be above 0"),
        ([0, 1, 2], GOOD, {}, "where y_true holds 3 classes, got None. Pass labels"),
        ([0, 0, 0], GOOD, {}, "where y_true holds 1 classes, got None. Pass labels"),
        ([0, 1, 2], GOOD, {"labels": [0, 1]}, r"among labels .*, got 2"),
        (["0", "1", "1"], GOOD, {"labels": [0, 1]}, "are among labels"),
        ([0, 1, 1], GOOD, {"labels": [0, 1, 2]}, "labels must name the class of each of the 2 columns"),
        ([0, 1, 1], GOOD, {"labels": [0, 0]}, "labels must name"),
        (np.array(["a", "b", None], dtype=object), GOOD, {}, r"got y_true\[2\] = None"),
        (np.array(["a", 1, 1], dtype=object), GOOD, {}, "labels of one kind, got strings .* and integers"),
        ([0, 1, np.nan], GOOD, {"labels": [0, 1]}, "y_true must have a label for each sample"),
        ([[0, 1], [1, 0], [0, 1]], GOOD, {}, "1d array"),
        ([], np.empty((0, 2)), {}, "at least one sample"),
        ([0, 1, 1], GOOD[None], {}, "y_proba must have shape"),
        ([0, 1, 1], ["0.1", "0.8", "0.4"], {}, "y_proba must hold real numbers, got dtype <U3"),
    ],
)
def test__metric__bad_input__value_error_says_what(metric, y_true, y_proba, options, message):
    with pytest.raises(ValueError, match=message):
        metric(y_true, y_proba, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_bins": 0}, "n_bins must be a positive integer"),
        ({"n_bins": 2.5}, "n_bins must be a positive integer"),
        ({"norm": "l3"}, "norm must be one of"),
        ({"strategy": "best"}, "strategy must be one of"),
        ({"kind": "marginal"}, "kind must be one of"),
        ({"debias": True}, "norm must be 'l2' if debias is set"),
    ],
)
def test__ece__bad_option__value_error_names_it(options, message):
    with pytest.raises(ValueError, match=message):
        metrics.expected_calibration_error([0, 1, 1], GOOD, **options)


def test__calibration__other_bad_options__value_error():
    with pytest.raises(ValueError, match="pos_label must be one of"):
        metrics.calibration_bins([0, 1, 1], GOOD, pos_label=7)
    with pytest.raises(ValueError, match="threshold must be in"):
        metrics.adaptive_calibration_error([0, 1, 1], GOOD, threshold=1)


@pytest.mark.parametrize("bandwidth", [0, -1, np.inf, np.nan, True, None, "wide"])
def test__smooth_ece__bad_bandwidth__value_error(bandwidth):
    with pytest.raises(ValueError, match="bandwidth must be 'auto' or a positive, finite number"):
        metrics.smooth_calibration_error([0, 1, 1], GOOD, bandwidth=bandwidth)


def test__calibration__many_classes_named_once_each__no_warning(recwarn):
    labels = [f"class {index}" for index in range(30)]
    y_proba = np.full((2, 30), 1 / 30)
    metrics.expected_calibration_error(labels[:2], y_proba, labels=labels)
    assert [str(warning.message) for warning in recwarn] == []
