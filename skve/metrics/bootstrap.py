"""Bootstrap intervals: how far would a metric move with other test samples?"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_random_state

from skve._inputs.labels import check_labels
from skve._inputs.weights import check_weights
from skve.metrics._inputs import check_count

__all__ = ["BootstrapResult", "bootstrap_interval", "paired_bootstrap"]


@dataclass(frozen=True, eq=False)
class BootstrapResult:
    """A metric, or the difference of two models' metrics, with its confidence interval.

    Attributes
    ----------
    estimate : float
        Value on the samples as they are.
    low, high : float
        Ends of the interval.
    confidence_level : float
        Share of such intervals that contain the true value.
    distribution : ndarray of shape (n_resamples,)
        Value on each resample.

    Examples
    --------
    >>> from sklearn.metrics import accuracy_score
    >>> from skve.metrics import bootstrap_interval
    >>> result = bootstrap_interval(accuracy_score, [0, 1] * 50, [0, 1, 1, 1] * 25, random_state=0)
    >>> result.estimate, len(result.distribution)
    (0.75, 1000)
    >>> result.low < result.estimate < result.high
    True
    """

    estimate: float
    low: float
    high: float
    confidence_level: float
    distribution: np.ndarray

    def __repr__(self):
        return (
            f"BootstrapResult(estimate={self.estimate:.4g}, low={self.low:.4g}, high={self.high:.4g}, "
            f"confidence_level={self.confidence_level:g})"
        )


def bootstrap_interval(
    metric: Callable[..., float],
    y_true: ArrayLike,
    y_proba: ArrayLike,
    *,
    n_resamples: int = 1000,
    confidence_level: float = 0.95,
    random_state: int | np.random.RandomState | None = None,
    **metric_params: Any,
) -> BootstrapResult:
    """Percentile bootstrap interval of a metric over test samples.

    Parameters
    ----------
    metric : callable
        ``metric(y_true, y_proba, **metric_params)`` returns a float: of this module, or for instance
        :func:`sklearn.metrics.log_loss`.
    y_true : array-like of shape (n_samples,)
        True classes.
    y_proba : array-like of shape (n_samples, ...) or (n_runs, n_samples, n_classes)
        What the metric takes as its second argument. With three dimensions, predictions of several runs (say,
        random seeds): the metric is averaged over them, and runs are resampled together with the samples.
    n_resamples : int, default=1000
        Number of resamples.
    confidence_level : float, default=0.95
        In (0, 1).
    random_state : int, RandomState instance or None, default=None
        Seed of the draws.
    **metric_params
        Passed on to the metric, as are the keywords of a :class:`functools.partial`. If it knows ``labels``
        and they are not given, the classes of ``y_true`` are, so that a resample may lack a class. A
        ``sample_weight`` is drawn with the samples.

    Returns
    -------
    BootstrapResult

    Raises
    ------
    ValueError
        If lengths differ, an option is out of range, a weight is negative or not finite, or the metric raises
        one on a resample.

    References
    ----------
    Efron, "Bootstrap Methods: Another Look at the Jackknife", Annals of Statistics 1979.

    Examples
    --------
    >>> import numpy as np
    >>> from skve.metrics import bootstrap_interval, expected_calibration_error
    >>> y_proba = np.tile([[0.8, 0.2]], (100, 1))
    >>> y_true = np.repeat([0, 1], [70, 30])
    >>> result = bootstrap_interval(expected_calibration_error, y_true, y_proba, random_state=0)
    >>> round(result.estimate, 4)
    0.1
    >>> bool(result.low < 0.1 < result.high)
    True
    """
    runs = _as_runs(y_proba, "y_proba")
    return _bootstrap(metric, y_true, [runs], [1.0], n_resamples, confidence_level, random_state, metric_params)


def paired_bootstrap(
    metric: Callable[..., float],
    y_true: ArrayLike,
    y_proba_a: ArrayLike,
    y_proba_b: ArrayLike,
    *,
    n_resamples: int = 1000,
    confidence_level: float = 0.95,
    random_state: int | np.random.RandomState | None = None,
    **metric_params: Any,
) -> BootstrapResult:
    """Percentile bootstrap interval of ``metric(a) - metric(b)`` for two models on the same test samples.

    Both models are evaluated on the same resamples, so that differences in difficulty between samples cancel. If the
    interval excludes 0, the models differ by more than chance.

    Parameters
    ----------
    metric : callable
        ``metric(y_true, y_proba, **metric_params)`` returns a float.
    y_true : array-like of shape (n_samples,)
        True classes.
    y_proba_a, y_proba_b : array-like of shape (n_samples, ...) or (n_runs, n_samples, n_classes)
        Predictions of the two models. With three dimensions, of several runs each (say, random seeds), paired
        by their place: the metric is averaged over them, and runs are resampled together with the samples.
    n_resamples : int, default=1000
        Number of resamples.
    confidence_level : float, default=0.95
        In (0, 1).
    random_state : int, RandomState instance or None, default=None
        Seed of the draws.
    **metric_params
        Passed on to the metric, as by :func:`bootstrap_interval`.

    Returns
    -------
    BootstrapResult
        Of the difference: the first model minus the second.

    Raises
    ------
    ValueError
        If lengths or numbers of runs differ, an option is out of range, a weight is negative or not finite,
        or the metric raises one on a resample.

    References
    ----------
    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.metrics import log_loss
    >>> from skve.metrics import paired_bootstrap
    >>> y_true = np.repeat([0, 1], [70, 30])
    >>> sharp, blunt = np.tile([[0.7, 0.3]], (100, 1)), np.tile([[0.5, 0.5]], (100, 1))
    >>> result = paired_bootstrap(log_loss, y_true, sharp, blunt, random_state=0)
    >>> round(result.estimate, 4)
    -0.0823
    """
    a, b = _as_runs(y_proba_a, "y_proba_a"), _as_runs(y_proba_b, "y_proba_b")
    if len(a) != len(b):
        raise ValueError(f"y_proba_b must have {len(a)} runs like y_proba_a, got {len(b)}.")
    return _bootstrap(metric, y_true, [a, b], [1.0, -1.0], n_resamples, confidence_level, random_state, metric_params)


def _as_runs(y_proba, name):
    y_proba = np.asarray(y_proba)
    if y_proba.ndim not in (1, 2, 3):
        raise ValueError(
            f"{name} must have shape (n_samples,), (n_samples, n_classes) or (n_runs, n_samples, n_classes), "
            f"got {y_proba.shape}."
        )
    return y_proba if y_proba.ndim == 3 else y_proba[None]


def _bootstrap(metric, y_true, models, signs, n_resamples, confidence_level, random_state, params):
    y_true = check_labels(y_true, "y_true")
    n_resamples = check_count(n_resamples, name="n_resamples")
    if not 0 < confidence_level < 1:
        raise ValueError(f"confidence_level must be in (0, 1), got {confidence_level!r}.")
    n_runs, n_samples = len(models[0]), len(y_true)
    if n_runs == 0 or n_samples == 0:
        raise ValueError(f"The predictions must have at least one run and one sample, got {n_runs} and {n_samples}.")
    for runs in models:
        if runs.shape[1] != n_samples:
            raise ValueError(f"The predictions must have {n_samples} samples like y_true, got {runs.shape[1]}.")
    if isinstance(metric, partial):  # what it binds is treated like what is passed on
        params = {**metric.keywords, **params}
    labels = inspect.signature(metric).parameters.get("labels")
    if labels is not None and _is_unset(labels) and params.get("labels") is None:
        params = {**params, "labels": np.unique(y_true)}
    weight = check_weights(params.get("sample_weight"), n_samples)

    def value(samples, drawn_runs):
        drawn = params if weight is None else {**params, "sample_weight": weight[samples]}
        truth = y_true[samples]
        return sum(
            sign * np.mean([metric(truth, runs[run][samples], **drawn) for run in drawn_runs])
            for sign, runs in zip(signs, models, strict=True)
        )

    rng = check_random_state(random_state)
    estimate = value(np.arange(n_samples), np.arange(n_runs))
    distribution = np.array(
        [value(rng.randint(n_samples, size=n_samples), rng.randint(n_runs, size=n_runs)) for _ in range(n_resamples)]
    )
    tail = (1 - confidence_level) / 2
    low, high = np.quantile(distribution, [tail, 1 - tail])
    return BootstrapResult(float(estimate), float(low), float(high), confidence_level, distribution)


def _is_unset(parameter):
    # By identity: the default, or what a partial binds, may be an array.
    return parameter.default is None or parameter.default is parameter.empty
