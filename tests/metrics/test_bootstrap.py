"""Bootstrap intervals: coverage of the truth, pairing, runs, weights and bad input."""

from functools import partial

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from skve import metrics
from tests.metrics.test_calibration import random_case


def test__bootstrap__mean_of_errors__close_to_normal_interval():
    y_true, y_pred = np.zeros(400, dtype=int), (np.arange(400) < 100).astype(int)
    result = metrics.bootstrap_interval(accuracy_score, y_true, y_pred, random_state=0)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert result.estimate == 0.75
    assert result.low == pytest.approx(0.75 - half, abs=0.01)
    assert result.high == pytest.approx(0.75 + half, abs=0.01)
    assert result.distribution.shape == (1000,)


def test__bootstrap__same_seed__same_interval_and_global_state_untouched():
    case = random_case(n_samples=100)
    np.random.seed(7)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (
        metrics.bootstrap_interval(metrics.aurc, *case, n_resamples=20, random_state=3) for _ in range(2)
    )
    np.testing.assert_array_equal(first.distribution, second.distribution)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test__bootstrap__rare_class_missing_from_resamples__labels_filled_in():
    y_true = np.array([0] * 20 + [1])
    y_proba = np.tile([0.9, 0.1], (21, 1))
    for metric in (log_loss, metrics.expected_calibration_error):
        result = metrics.bootstrap_interval(metric, y_true, y_proba, n_resamples=50, random_state=0)
        assert np.isfinite(result.distribution).all()


def test__bootstrap__metric_of_scores__any_second_argument():
    rng = np.random.default_rng(0)
    y_true = rng.integers(0, 2, size=200)
    result = metrics.bootstrap_interval(
        roc_auc_score, y_true, y_true + rng.normal(size=200), n_resamples=50, random_state=0
    )
    assert 0.5 < result.low < result.estimate < result.high < 1


def test__bootstrap__sample_weight__drawn_with_the_samples():
    y_true, y_proba = random_case(n_samples=100)
    weight = np.repeat([0.0, 1.0], 50)
    result = metrics.bootstrap_interval(
        metrics.aurc, y_true, y_proba, sample_weight=weight, n_resamples=20, random_state=0
    )
    assert result.estimate == pytest.approx(metrics.aurc(y_true[50:], y_proba[50:]))
    assert np.isfinite(result.distribution).all()


def test__paired__same_model__zero():
    y_true, y_proba = random_case(n_samples=100)
    result = metrics.paired_bootstrap(log_loss, y_true, y_proba, y_proba, n_resamples=20, random_state=0)
    assert result.estimate == result.low == result.high == 0


def test__paired__small_steady_difference__found_where_single_intervals_overlap():
    y_true, y_proba = random_case(n_samples=400)
    blurred = 0.97 * y_proba + 0.03 / y_proba.shape[1]
    options = {"n_resamples": 300, "random_state": 0}
    difference = metrics.paired_bootstrap(log_loss, y_true, y_proba, blurred, **options)
    a, b = (metrics.bootstrap_interval(log_loss, y_true, p, **options) for p in (y_proba, blurred))
    assert difference.low > 0 or difference.high < 0
    assert a.low < b.high
    assert b.low < a.high


def test__paired__runs__mean_of_differences_with_wider_interval():
    y_true, y_proba = random_case(n_samples=300)
    runs_a = np.stack([(1 - s) * y_proba + s / y_proba.shape[1] for s in (0.0, 0.3, 0.6)])
    runs_b = np.repeat(y_proba[None], 3, axis=0)
    result = metrics.paired_bootstrap(log_loss, y_true, runs_a, runs_b, n_resamples=200, random_state=0)
    expected = np.mean([log_loss(y_true, a) - log_loss(y_true, y_proba) for a in runs_a])
    assert result.estimate == pytest.approx(expected)
    one = metrics.paired_bootstrap(log_loss, y_true, runs_a[1], y_proba, n_resamples=200, random_state=0)
    assert result.high - result.low > one.high - one.low


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_resamples": 0}, "n_resamples must be a positive integer"),
        ({"confidence_level": 95}, "confidence_level must be in"),
        ({"y_true": [0, 1]}, "predictions must have 2 samples like y_true, got 3"),
        ({"y_true": [], "y_proba": np.empty((0, 2))}, "at least one run and one sample"),
        ({"y_proba": np.empty((0, 3, 2))}, "at least one run and one sample"),
        ({"y_proba": np.ones((1, 1, 3, 2))}, "y_proba must have shape"),
        ({"y_true": [0, 0, 0]}, "labels must name"),
    ],
)
def test__bootstrap__bad_input__value_error_says_what(change, message):
    arguments = {
        "y_true": [0, 1, 1],
        "y_proba": np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]),
        "n_resamples": 5,
    } | change
    with pytest.raises(ValueError, match=message):
        metrics.bootstrap_interval(metrics.aurc, **arguments)


def test__paired__different_numbers_of_runs__value_error():
    y_true, y_proba = random_case(n_samples=10)
    with pytest.raises(ValueError, match="y_proba_b must have 2 runs like y_proba_a, got 1"):
        metrics.paired_bootstrap(metrics.aurc, y_true, np.stack([y_proba] * 2), y_proba)


def permuted_case():
    """Labels whose columns are not in sorted order."""
    y_true, y_proba = random_case(n_samples=100, n_classes=3)
    return y_true, y_proba[:, ::-1]


def ece_of_reversed_columns(y_true, y_proba, labels=(2, 1, 0)):
    return metrics.expected_calibration_error(y_true, y_proba, labels=labels)


@pytest.mark.parametrize(
    "metric", [partial(metrics.expected_calibration_error, labels=np.array([2, 1, 0])), ece_of_reversed_columns]
)
def test__bootstrap__labels_of_the_metrics_own__kept(metric):
    y_true, y_proba = permuted_case()
    result = metrics.bootstrap_interval(metric, y_true, y_proba, n_resamples=5, random_state=0)
    assert result.estimate == metric(y_true, y_proba)


def test__bootstrap__partial_with_other_keywords__labels_filled_in():
    y_true = np.array([0] * 20 + [1])
    metric = partial(metrics.expected_calibration_error, n_bins=5)
    result = metrics.bootstrap_interval(metric, y_true, np.tile([0.9, 0.1], (21, 1)), n_resamples=20, random_state=0)
    assert np.isfinite(result.distribution).all()


def test__bootstrap__sample_weight_of_a_partial__drawn_with_the_samples():
    y_true, y_proba = random_case(n_samples=100)
    weight = np.random.default_rng(0).uniform(size=100)
    options = {"n_resamples": 10, "random_state": 0}
    bound = metrics.bootstrap_interval(partial(metrics.aurc, sample_weight=weight), y_true, y_proba, **options)
    passed = metrics.bootstrap_interval(metrics.aurc, y_true, y_proba, sample_weight=weight, **options)
    np.testing.assert_array_equal(bound.distribution, passed.distribution)


@pytest.mark.parametrize("n_weights", [99, 101])
def test__bootstrap__sample_weight_of_another_length__value_error(n_weights):
    y_true, y_proba = random_case(n_samples=100)
    with pytest.raises(ValueError, match=rf"sample_weight must have shape \(100,\), got \({n_weights},\)"):
        metrics.bootstrap_interval(accuracy_of_proba, y_true, y_proba, sample_weight=np.ones(n_weights))


def accuracy_of_proba(y_true, y_proba, sample_weight):
    return np.average(y_proba.argmax(axis=1) == y_true, weights=sample_weight)
