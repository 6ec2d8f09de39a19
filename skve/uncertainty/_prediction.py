"""Everything that an ensemble says about samples, from one pass over them."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from skve.uncertainty._wrappers import unwrap
from skve.uncertainty.result import Uncertainty


@dataclass(frozen=True, eq=False)
class Prediction:
    """What `predict_all` returns.

    Attributes
    ----------
    members : ndarray of shape (n_members, n_samples, n_classes)
        Probabilities of each member.
    proba : ndarray of shape (n_samples, n_classes)
        The prediction, of a calibration where there is one.
    uncertainty : Uncertainty of n_samples
    features : ndarray of shape (n_samples, n_features), or None
        Those of the frozen backbone, where it is known how far the training data is.
    """

    members: np.ndarray
    proba: np.ndarray
    uncertainty: Uncertainty
    features: np.ndarray | None = None


def predict_all(estimator: Any, X: Any) -> Prediction:
    """Predict members, their mean, uncertainty and features of samples, reading the samples once.

    Parameters
    ----------
    estimator : fitted estimator
        Has ``predict_proba_members``, or wraps an estimator that has. A calibration around it reads the samples once
        more.
    X : array-like or list of length n_samples

    Raises
    ------
    ValueError, TypeError, sklearn.exceptions.NotFittedError
        As :func:`skve.predict_uncertainty`.
    """
    model, inputs, calibrated = unwrap(estimator, X, "predict_proba_members")
    if hasattr(model, "_predict_all"):
        predicted = Prediction(*model._predict_all(inputs))
    else:
        members = np.asarray(model.predict_proba_members(inputs))
        uncertainty = Uncertainty.from_members(members, classes=getattr(model, "classes_", None))
        predicted = Prediction(members, members.mean(axis=0), uncertainty)
    if not calibrated:
        return predicted
    proba = np.asarray(estimator.predict_proba(X))
    prediction = np.asarray(estimator.classes_)[proba.argmax(axis=1)]
    uncertainty = replace(predicted.uncertainty, confidence=proba.max(axis=1), prediction=prediction)
    return replace(predicted, proba=proba, uncertainty=uncertainty)
