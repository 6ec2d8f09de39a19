"""Temperature scaling of the pooled prediction: fitted by scikit-learn, kept as one number."""

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV

from skve._runtime.warnings import warn

# Beyond it every prediction is uniform; scikit-learn's search ends at exp(10).
LARGEST = 1e4


class _Predicted(ClassifierMixin, BaseEstimator):
    """A classifier whose inputs are its predictions, so that scikit-learn calibrates what is computed already."""

    def fit(self, X, y, sample_weight=None):
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, X):
        return X


def fit_temperature(proba, codes, weights):
    """Return the temperature that minimises the weighted negative log-likelihood.

    The same optimum as `CalibratedClassifierCV(FrozenEstimator(classifier), method="temperature")` finds on the
    same samples (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017).

    Parameters
    ----------
    proba : ndarray of shape (n_samples, n_classes)
        Predicted probabilities of samples that were not trained on.
    codes : ndarray of int, shape (n_samples,)
        True classes. Classes may be missing.
    weights : ndarray of shape (n_samples,)

    Returns
    -------
    temperature : float
        Over 1 where predictions were too sure. 1, with a warning, where no sample that counts is predicted wrongly,
        or where the uniform distribution fits the samples best: no temperature is a best one then.
    """
    if (proba.argmax(axis=1) == codes)[weights > 0].all():
        warn(
            f"calibrate='temperature': all {len(codes)} validation samples are predicted rightly, and do not "
            f"tell how sure predictions should be; the temperature stays 1. Give more samples as X_val, y_val",
        )
        return 1.0
    n_classes = proba.shape[1]
    # scikit-learn learns the classes from the labels: one sample of weight 0 each makes them complete.
    proba = np.concatenate([proba, np.full((n_classes, n_classes), 1 / n_classes)])
    codes = np.concatenate([codes, np.arange(n_classes)])
    weights = np.concatenate([weights, np.zeros(n_classes)])
    everything = np.arange(len(codes))
    calibration = CalibratedClassifierCV(_Predicted(), method="temperature", cv=[(everything, everything)])
    calibration.fit(proba, codes, sample_weight=weights)
    temperature = float(1 / calibration.calibrated_classifiers_[0].calibrators[0].beta_)
    if temperature > LARGEST:
        warn(
            f"calibrate='temperature': {(weights > 0).sum()} validation samples are predicted no better than by "
            f"chance, and do not tell how sure predictions should be; the temperature stays 1. Give more samples as "
            f"X_val, y_val",
        )
        return 1.0
    return temperature
