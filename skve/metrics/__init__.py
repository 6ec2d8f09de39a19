"""Metrics of calibration, selective prediction, out-of-distribution detection and diversity.

For any classifier with ``predict_proba``: NumPy in, numbers out. Negative log-likelihood and Brier score are
scikit-learn's (:func:`sklearn.metrics.log_loss`, :func:`sklearn.metrics.brier_score_loss`).
"""

from skve.metrics.bootstrap import BootstrapResult, bootstrap_interval, paired_bootstrap
from skve.metrics.calibration import (
    CalibrationBins,
    adaptive_calibration_error,
    calibration_bins,
    expected_calibration_error,
    smooth_calibration_error,
)
from skve.metrics.diversity import (
    average_kl,
    error_correlation,
    linear_cka,
    member_cka,
    pairwise_disagreement,
    q_statistic,
)
from skve.metrics.ood import ood_aupr, ood_auroc, ood_fpr_at_tpr
from skve.metrics.scorers import get_scorer, get_scorer_names, make_ood_scorer
from skve.metrics.selective import (
    accuracy_at_coverage,
    accuracy_rejection_curve,
    aurc,
    excess_aurc,
    risk_coverage_curve,
)

__all__ = [
    "BootstrapResult",
    "CalibrationBins",
    "accuracy_at_coverage",
    "accuracy_rejection_curve",
    "adaptive_calibration_error",
    "aurc",
    "average_kl",
    "bootstrap_interval",
    "calibration_bins",
    "error_correlation",
    "excess_aurc",
    "expected_calibration_error",
    "get_scorer",
    "get_scorer_names",
    "linear_cka",
    "make_ood_scorer",
    "member_cka",
    "ood_aupr",
    "ood_auroc",
    "ood_fpr_at_tpr",
    "paired_bootstrap",
    "pairwise_disagreement",
    "q_statistic",
    "risk_coverage_curve",
    "smooth_calibration_error",
]
