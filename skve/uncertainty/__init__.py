"""How unsure an ensemble is: measures of the probabilities that its members predict.

Everything takes and returns NumPy arrays. Entropies and divergences are in nats (natural logarithm);
divide by ``numpy.log(2)`` for bits.
"""

from skve.uncertainty.measures import (
    disagreement,
    entropy,
    expected_entropy,
    expected_pairwise_kl,
    margin,
    max_probability,
    mutual_information,
    predicted_class_variance,
    predictive_entropy,
    variation_ratio,
)
from skve.uncertainty.result import Uncertainty, predict_uncertainty

__all__ = [
    "Uncertainty",
    "disagreement",
    "entropy",
    "expected_entropy",
    "expected_pairwise_kl",
    "margin",
    "max_probability",
    "mutual_information",
    "predict_uncertainty",
    "predicted_class_variance",
    "predictive_entropy",
    "variation_ratio",
]
