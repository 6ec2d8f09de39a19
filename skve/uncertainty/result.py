"""All measures of one prediction side by side, and the way to them through wrappers."""

from dataclasses import dataclass, fields, replace

import numpy as np

from skve.uncertainty._validation import check_member_proba, check_proba
from skve.uncertainty._wrappers import unwrap
from skve.uncertainty.measures import class_variance, decomposition, margin_of, pairwise_kl, per_sample, vote_measures


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """How unsure an ensemble is about each sample, by every measure of this module.

    Entropies and divergences are in nats. All but `margin` and `confidence` grow with uncertainty.

    Attributes
    ----------
    total : ndarray of shape (n_samples,)
        Entropy of the mean prediction: :func:`predictive_entropy`.
    aleatoric : ndarray of shape (n_samples,)
        Mean entropy of the members: :func:`expected_entropy`.
    epistemic : ndarray of shape (n_samples,)
        ``total - aleatoric``, never negative: :func:`mutual_information`.
    epkl : ndarray of shape (n_samples,)
        Mean divergence between members: :func:`expected_pairwise_kl`.
    disagreement : ndarray of shape (n_samples,)
        Share of pairs of members that predict different classes: :func:`disagreement`.
    variation_ratio : ndarray of shape (n_samples,)
        Share of members outside the majority: :func:`variation_ratio`.
    variance : ndarray of shape (n_samples,)
        Variance of the predicted class's probability: :func:`predicted_class_variance`.
    margin : ndarray of shape (n_samples,)
        Difference between the two largest mean probabilities: :func:`margin`.
    confidence : ndarray of shape (n_samples,)
        Largest probability of the (calibrated, where there is one) prediction: :func:`max_probability`.

    Examples
    --------
    >>> from skve.uncertainty import Uncertainty
    >>> u = Uncertainty.from_members([[[0.5, 0.5], [1.0, 0.0]], [[0.5, 0.5], [0.0, 1.0]]])
    >>> len(u)
    2
    >>> u.epistemic.round(4)
    array([0.    , 0.6931])
    """

    total: np.ndarray
    aleatoric: np.ndarray
    epistemic: np.ndarray
    epkl: np.ndarray
    disagreement: np.ndarray
    variation_ratio: np.ndarray
    variance: np.ndarray
    margin: np.ndarray
    confidence: np.ndarray

    @classmethod
    def from_members(cls, member_proba, *, proba=None):
        """Compute every measure from the members' probabilities, in one pass.

        Parameters
        ----------
        member_proba : array-like of shape (n_members, n_samples, n_classes)
            Probabilities of each member; every row sums to 1.
        proba : array-like of shape (n_samples, n_classes), default=None
            The calibrated prediction, where there is one. Only `confidence` is taken from it.

        Returns
        -------
        Uncertainty

        Raises
        ------
        ValueError
            If an array has another shape, a NaN, a negative value or a row that does not sum to 1.

        Examples
        --------
        >>> from skve.uncertainty import Uncertainty
        >>> members = [[[0.5, 0.5]], [[0.8, 0.2]]]
        >>> Uncertainty.from_members(members).confidence
        array([0.65])
        >>> Uncertainty.from_members(members, proba=[[0.55, 0.45]]).confidence
        array([0.55])
        """
        member_proba = check_member_proba(member_proba)
        tiny = np.finfo(member_proba.dtype).tiny

        def measures(members):
            mean = members.mean(axis=0)
            return np.stack(
                [
                    *decomposition(members),
                    pairwise_kl(members, tiny),
                    *vote_measures(members),
                    class_variance(members, mean),
                    margin_of(mean),
                    mean.max(axis=1),
                ]
            )

        columns = per_sample(member_proba, measures, checked=True, n_outputs=len(fields(cls)))
        if proba is not None:
            proba = check_proba(proba)
            if proba.shape != member_proba.shape[1:]:
                raise ValueError(
                    f"proba must have shape {member_proba.shape[1:]} like the members' predictions, "
                    f"got {proba.shape}."
                )
            columns[-1] = proba.max(axis=1)
        return cls(*columns)

    def __len__(self):
        return len(self.total)

    def to_frame(self):
        """Return the measures as a table: one row per sample, one column per measure.

        Returns
        -------
        pandas.DataFrame of shape (n_samples, 9)

        Raises
        ------
        ImportError
            If pandas is not installed.

        Examples
        --------
        >>> from skve.uncertainty import Uncertainty
        >>> u = Uncertainty.from_members([[[0.5, 0.5]], [[0.8, 0.2]]])
        >>> u.to_frame()[["total", "confidence"]].round(2)
           total  confidence
        0   0.65        0.65
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("Uncertainty.to_frame needs pandas: pip install pandas") from error
        return pd.DataFrame({field.name: getattr(self, field.name) for field in fields(self)})


def predict_uncertainty(estimator, X):
    """Uncertainty of an ensemble that may sit inside a pipeline, a search or a calibration.

    Sees through :class:`~sklearn.pipeline.Pipeline` (whose transforms are applied to ``X``), search objects
    such as :class:`~sklearn.model_selection.GridSearchCV`, :class:`~sklearn.frozen.FrozenEstimator`,
    :class:`~sklearn.calibration.CalibratedClassifierCV` with one calibrated classifier (a frozen estimator
    or ``ensemble=False``), and any wrapper that keeps one fitted model as ``estimator_``.

    Parameters
    ----------
    estimator : fitted estimator
        Has ``predict_uncertainty(X)``, or wraps an estimator that has.
    X : array-like or list of length n_samples
        Samples, of the kind that ``estimator.predict`` takes.

    Returns
    -------
    Uncertainty
        Behind a calibration, `confidence` is that of the calibrated prediction; all else describes the
        uncalibrated members.

    Raises
    ------
    ValueError
        If ``estimator`` holds several fitted models: it is not clear whose members are meant.
    TypeError
        If no ``predict_uncertainty`` is found, or a wrapper such as stacking predicts by more than one model.
    sklearn.exceptions.NotFittedError
        If the estimator is not fitted.

    Examples
    --------
    >>> import numpy as np
    >>> from skve import predict_uncertainty
    >>> from skve.uncertainty import Uncertainty
    >>> class TwoCoins:
    ...     def predict_uncertainty(self, X):
    ...         return Uncertainty.from_members(np.full((2, len(X), 2), 0.5))
    >>> predict_uncertainty(TwoCoins(), ["a", "b", "c"]).total.round(4)
    array([0.6931, 0.6931, 0.6931])
    """
    model, model_X, calibrated = unwrap(estimator, X, "predict_uncertainty")
    uncertainty = model.predict_uncertainty(model_X)
    if calibrated:
        uncertainty = replace(uncertainty, confidence=estimator.predict_proba(X).max(axis=1))
    return uncertainty
