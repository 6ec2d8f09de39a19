"""All measures of one prediction side by side, and the way to them through wrappers."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skve.uncertainty._validation import check_member_proba, check_proba
from skve.uncertainty._wrappers import unwrap
from skve.uncertainty.measures import class_variance, decomposition, margin_of, pairwise_kl, per_sample, vote_measures

if TYPE_CHECKING:
    import pandas as pd

_SUMMARY = ("total", "aleatoric", "epistemic", "novelty", "confidence")  # what `repr` shows


@dataclass(frozen=True, eq=False, repr=False)
class Uncertainty:
    """The uncertainty of an ensemble about each sample, by every measure of this module.

    `total` ranks samples by how likely the answer is wrong, and `novelty` by how unlike the training data the sample
    is. Entropies and divergences are in nats. All measures but `margin` and `confidence` grow with the
    uncertainty. Indexing selects samples: ``u[3]``, ``u[:10]``, ``u[u.novelty > 0.95]``.

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
        Largest probability of the prediction, after calibration if there is one: :func:`max_probability`.
    novelty : ndarray of shape (n_samples,)
        Share of the training samples that lie nearer to the rest of the training data than this sample does, 0 to
        1. About 5 % of the samples like the training data exceed 0.95, and most foreign ones do. Increases strictly
        with the distance. NaN if only probabilities are known, and for models saved by skve 0.1: fit these again.
    prediction : ndarray of shape (n_samples,), or None
        The predicted classes, if they are known.

    Examples
    --------
    >>> from skve.uncertainty import Uncertainty
    >>> u = Uncertainty.from_members([[[0.5, 0.5], [1.0, 0.0]], [[0.5, 0.5], [0.0, 1.0]]])
    >>> len(u)
    2
    >>> u.epistemic.round(4)
    array([0.    , 0.6931])
    >>> u[1].epistemic.round(4)
    array([0.6931])
    >>> print(u)
    Uncertainty of 2 samples
                median    5 %   95 %
    total        0.693  0.693  0.693
    aleatoric    0.347  0.035  0.65...
    epistemic    0.347  0.035  0.65...
    confidence   0.500  0.500  0.500
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
    novelty: np.ndarray
    prediction: np.ndarray | None = None

    @classmethod
    def from_members(
        cls,
        member_proba: ArrayLike,
        *,
        proba: ArrayLike | None = None,
        novelty: ArrayLike | None = None,
        classes: ArrayLike | None = None,
    ) -> Uncertainty:
        """Compute every measure from the members' probabilities, in one pass.

        Parameters
        ----------
        member_proba : array-like of shape (n_members, n_samples, n_classes)
            Probabilities of each member; every row sums to 1.
        proba : array-like of shape (n_samples, n_classes), default=None
            The calibrated prediction, where there is one. Only `confidence` is taken from it.
        novelty : array-like of shape (n_samples,), default=None
            Distance from the training data as a share of the training samples; None: NaN.
        classes : array-like of shape (n_classes,), default=None
            The class of each column, for `prediction`; None leaves it out.

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
        checked = check_member_proba(member_proba)
        n_samples, n_classes = checked.shape[1:]
        tiny = np.finfo(checked.dtype).tiny
        pooled = None if proba is None else check_proba(proba)
        if pooled is not None and pooled.shape != (n_samples, n_classes):
            raise ValueError(
                f"proba must have shape {(n_samples, n_classes)} like the members' predictions, got {pooled.shape}."
            )

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

        columns = per_sample(checked, measures, checked=True, n_outputs=9)
        if pooled is not None:
            columns[-1] = pooled.max(axis=1)
        shares = np.full(n_samples, np.nan) if novelty is None else np.asarray(novelty, np.float64)
        if shares.shape != (n_samples,):
            raise ValueError(f"novelty must have shape {(n_samples,)} like the samples, got {shares.shape}.")
        prediction = None
        if classes is not None:
            names = np.asarray(classes)
            if names.shape != (n_classes,):
                raise ValueError(f"classes must have shape {(n_classes,)}, one for each column, got {names.shape}.")
            prediction = names[(checked.mean(axis=0) if pooled is None else pooled).argmax(axis=1)]
        measured: dict[str, Any] = {field.name: values for field, values in zip(fields(cls), columns, strict=False)}
        return cls(**measured, novelty=shares, prediction=prediction)

    def __len__(self) -> int:
        return len(self.total)

    def __getitem__(self, key: Any) -> Uncertainty:
        """Return the samples that an integer, a slice, a mask or indices select."""
        if isinstance(key, tuple):
            raise IndexError(f"an index must select samples along one axis, got {key!r}.")
        if isinstance(key, int | np.integer):
            key = [key]  # a sample is an array of length 1
        elif not isinstance(key, slice):
            key = np.asarray(key)  # a mask from a table, too
        present = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        return replace(self, **{name: getattr(self, name)[key] for name in present})

    def __repr__(self) -> str:
        lines = [f"Uncertainty of {len(self)} sample{'' if len(self) == 1 else 's'}"]
        if len(self):
            lines.append(f"{'':10}  {'median':>6}  {'5 %':>5}  {'95 %':>5}")
            for name in _SUMMARY:
                values = getattr(self, name)
                if not np.isnan(values).all():
                    middle, low, high = np.quantile(values, [0.5, 0.05, 0.95])
                    lines.append(f"{name:10}  {middle:6.3f}  {low:5.3f}  {high:5.3f}")
        return "\n".join(lines)

    def to_frame(self, *, index: Any = None, X: Any = None) -> pd.DataFrame:
        """Return the measures as a table: one row per sample, one column per measure.

        Parameters
        ----------
        index : array-like of length n_samples, default=None
            Names of the rows. By default the index of `X` if it is a Series or a DataFrame, else numbers.
        X : array-like of length n_samples, default=None
            The samples. Texts and paths become the first column, "X"; of a DataFrame, all its columns come first.
            Other kinds, such as pixels, are left out.

        Returns
        -------
        pandas.DataFrame of shape (n_samples, n_columns)
            The samples as described above, the prediction if it is known, and the measures.

        Raises
        ------
        ValueError
            If `index` or `X` is of another length.
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
            raise ImportError(
                "Uncertainty.to_frame requires pandas, which is not installed. Install it: pip install pandas."
            ) from error
        for name, values in (("index", index), ("X", X)):
            if values is not None and len(values) != len(self):
                raise ValueError(f"{name} must have {len(self)} entries, one per sample, got {len(values)}.")
        if index is None:
            index = X.index if isinstance(X, pd.Series | pd.DataFrame) else None
        columns: dict[str, Any] = {}
        if isinstance(X, pd.DataFrame):
            columns = {name: values.to_numpy() for name, values in X.items()}
        elif X is not None:
            samples = list(X)
            if all(isinstance(sample, str | os.PathLike) for sample in samples):
                columns["X"] = [os.fspath(sample) for sample in samples]
        if self.prediction is not None:
            columns["prediction"] = self.prediction
        measures = [field.name for field in fields(self) if field.name != "prediction"]
        return pd.DataFrame(columns | {name: getattr(self, name) for name in measures}, index=index)


@overload
def predict_uncertainty(estimator: Any, X: Any, *, return_proba: Literal[False] = False) -> Uncertainty: ...
@overload
def predict_uncertainty(
    estimator: Any, X: Any, *, return_proba: Literal[True]
) -> tuple[Uncertainty, NDArray[np.float64]]: ...
def predict_uncertainty(
    estimator: Any, X: Any, *, return_proba: bool = False
) -> Uncertainty | tuple[Uncertainty, NDArray[np.float64]]:
    """Uncertainty of an ensemble that may sit inside a pipeline, a search or a calibration.

    Sees through :class:`~sklearn.pipeline.Pipeline` (whose transforms are applied to ``X``), search objects
    such as :class:`~sklearn.model_selection.GridSearchCV`, :class:`~sklearn.frozen.FrozenEstimator`,
    :class:`~sklearn.calibration.CalibratedClassifierCV` with one calibrated classifier (a frozen estimator
    or ``ensemble=False``), and any wrapper that keeps one fitted model as ``estimator_``.

    Parameters
    ----------
    estimator : fitted estimator
        Has ``predict_uncertainty(X)``, or wraps an estimator that has it.
    X : array-like or list of length n_samples
        Samples, of the kind that ``estimator.predict`` takes.
    return_proba : bool, default=False
        Also return the class probabilities. They come from the same pass over the samples, unless a calibration is
        wrapped around the ensemble.

    Returns
    -------
    uncertainty : Uncertainty
        With a calibration, `confidence` and `prediction` are those of the calibrated prediction; everything else
        describes the uncalibrated members.
    proba : ndarray of shape (n_samples, n_classes)
        As ``estimator.predict_proba`` returns it. Only with ``return_proba=True``.

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
    if return_proba and not calibrated and hasattr(model, "_predict_all"):  # one of skve's: in one pass
        return model.predict_uncertainty(model_X, return_proba=True)
    uncertainty = model.predict_uncertainty(model_X)
    if not (calibrated or return_proba):
        return uncertainty
    proba = np.asarray(estimator.predict_proba(X))
    if calibrated:
        prediction = np.asarray(estimator.classes_)[proba.argmax(axis=1)]
        uncertainty = replace(uncertainty, confidence=proba.max(axis=1), prediction=prediction)
    return (uncertainty, proba) if return_proba else uncertainty
