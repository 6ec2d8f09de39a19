"""Risk-coverage metrics against closed forms and torch-uncertainty."""

import numpy as np
import pytest
from scipy.integrate import trapezoid

from skve import metrics
from tests.metrics.test_calibration import CASES, random_case


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]()


def test__risk_coverage__no_ties__cumulative_error_rate():
    y_true, y_proba = random_case()
    coverage, risk, thresholds = metrics.risk_coverage_curve(y_true, y_proba)
    order = np.argsort(-y_proba.max(1))
    errors = (y_proba.argmax(1) != y_true)[order]
    steps = np.arange(1, len(y_true) + 1)
    np.testing.assert_allclose(risk, np.cumsum(errors) / steps)
    np.testing.assert_allclose(coverage, steps / len(y_true))
    np.testing.assert_allclose(thresholds, 1 - y_proba.max(1)[order])


def test__risk_coverage__given_uncertainty__ranks_by_it():
    y_proba = [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]
    _, risk, thresholds = metrics.risk_coverage_curve([1, 0, 0], y_proba, uncertainty=[3.0, 2.0, 1.0])
    np.testing.assert_allclose(risk, [0, 0, 1 / 3])
    np.testing.assert_allclose(thresholds, [1, 2, 3])


def test__risk_coverage__ties__mean_over_random_orders():
    y_true = np.array([0, 1, 0, 1, 1])
    y_proba = np.tile([0.7, 0.3], (5, 1))
    uncertainty = np.array([0.0, 1.0, 1.0, 1.0, 2.0])
    _, risk, _ = metrics.risk_coverage_curve(y_true, y_proba, uncertainty=uncertainty)
    np.testing.assert_allclose(risk, [0, 2 / 3 / 2, 4 / 3 / 3, 2 / 4, 3 / 5])


def test__aurc__order_of_input__irrelevant(case):
    y_true, y_proba = case
    uncertainty = y_proba.max(1).round(1)  # many ties
    order = np.random.default_rng(0).permutation(len(y_true))
    assert metrics.aurc(y_true, y_proba, uncertainty=uncertainty) == pytest.approx(
        metrics.aurc(y_true[order], y_proba[order], uncertainty=uncertainty[order]), abs=1e-12
    )


def test__aurc__uninformative__error_rate(case):
    y_true, y_proba = case
    error_rate = (y_proba.argmax(1) != y_true).mean()
    assert metrics.aurc(y_true, y_proba, uncertainty=np.zeros(len(y_true))) == pytest.approx(error_rate)


def test__excess_aurc__perfect_and_worst_ranking__zero_and_largest(case):
    y_true, y_proba = case
    wrong = (y_proba.argmax(1) != y_true).astype(float)
    assert metrics.excess_aurc(y_true, y_proba, uncertainty=wrong) == 0
    worst = metrics.excess_aurc(y_true, y_proba, uncertainty=-wrong)
    assert worst > metrics.excess_aurc(y_true, y_proba) > 0


def test__excess_aurc__many_samples__limit_of_the_source():
    y_true, y_proba = random_case(n_samples=20_000)
    best = metrics.aurc(y_true, y_proba) - metrics.excess_aurc(y_true, y_proba)
    rate = (y_proba.argmax(1) != y_true).mean()
    assert best == pytest.approx(rate + (1 - rate) * np.log(1 - rate), abs=1e-4)


def test__accuracy_rejection__mirror_of_risk_coverage(case):
    coverage, risk, thresholds = metrics.risk_coverage_curve(*case)
    rejection, accuracy, largest = metrics.accuracy_rejection_curve(*case)
    np.testing.assert_allclose(rejection[::-1], 1 - coverage)
    np.testing.assert_allclose(accuracy[::-1], 1 - risk)
    np.testing.assert_array_equal(largest[::-1], thresholds)
    assert rejection[0] == 0
    assert accuracy[0] == pytest.approx((case[1].argmax(1) == case[0]).mean())


@pytest.mark.parametrize("coverage", [0.3, 0.8, 1.0])
def test__accuracy_at_coverage__no_ties__accuracy_of_the_first(coverage):
    y_true, y_proba = random_case(n_samples=90)
    first = np.argsort(-y_proba.max(1))[: round(coverage * 90)]
    expected = (y_proba.argmax(1) == y_true)[first].mean()
    assert metrics.accuracy_at_coverage(y_true, y_proba, coverage=coverage) == pytest.approx(expected)


def test__accuracy_at_coverage__single_sample__one_or_zero():
    assert metrics.accuracy_at_coverage([0], [[0.9, 0.1]], coverage=0.01, labels=[0, 1]) == 1


@pytest.mark.parametrize("metric", [metrics.aurc, metrics.excess_aurc, metrics.accuracy_at_coverage])
def test__metric__zero_weight__same_as_left_out(metric):
    y_true, y_proba = random_case(n_samples=100)
    weight = np.repeat([0.0, 2.0], 50)
    expected = metric(y_true[50:], y_proba[50:])
    assert metric(y_true, y_proba, sample_weight=weight) == pytest.approx(expected, abs=1e-12)


def test__accuracy_at_coverage__integer_weights__same_as_repetition():
    y_true, y_proba = random_case(n_samples=100)
    weight = np.random.default_rng(0).integers(1, 4, size=100)
    repeated = np.repeat(np.arange(100), weight)
    assert metrics.accuracy_at_coverage(y_true, y_proba, sample_weight=weight, coverage=1.0) == pytest.approx(
        metrics.accuracy_at_coverage(y_true[repeated], y_proba[repeated], coverage=1.0)
    )


def test__aurc__torch_uncertainty__same_curve_and_area():
    torch = pytest.importorskip("torch")
    peer = pytest.importorskip("torch_uncertainty.metrics")
    y_true, y_proba = random_case()
    metric = peer.AURC()
    metric.update(torch.as_tensor(y_proba), torch.as_tensor(y_true))
    coverage, risk, _ = metrics.risk_coverage_curve(y_true, y_proba)
    np.testing.assert_allclose(risk, metric.partial_compute().numpy(), atol=1e-6)
    area = trapezoid(risk, coverage) / (1 - 1 / len(risk))
    assert area == pytest.approx(float(metric.compute()), abs=1e-6)
    assert metrics.aurc(y_true, y_proba) == pytest.approx(area, abs=1 / len(risk))


@pytest.mark.parametrize(
    ("uncertainty", "message"),
    [
        ([1.0, 2.0], "uncertainty must have 3 samples like y_true, got 2"),
        ([1.0, np.nan, 2.0], "uncertainty must be finite, got NaN"),
        ([[1.0, 2.0, 3.0]], "uncertainty must be real numbers of shape"),
        (["a", "b", "c"], "uncertainty must be real numbers"),
    ],
)
def test__aurc__bad_uncertainty__value_error_says_what(uncertainty, message):
    with pytest.raises(ValueError, match=message):
        metrics.aurc([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], uncertainty=uncertainty)


@pytest.mark.parametrize("coverage", [0, 1.1, "all", None])
def test__accuracy_at_coverage__bad_coverage__value_error(coverage):
    with pytest.raises(ValueError, match=r"coverage must be in \(0, 1\]"):
        metrics.accuracy_at_coverage([0, 1], [[0.9, 0.1], [0.2, 0.8]], coverage=coverage)
