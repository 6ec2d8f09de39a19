"""Selective prediction: answer where the model is sure enough, abstain elsewhere."""

import os
from collections.abc import Callable
from numbers import Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import ShuffleSplit, StratifiedShuffleSplit
from sklearn.utils import _safe_indexing, get_tags
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions, validate_parameter_constraints
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _num_samples, check_is_fitted

from skve._documentation import DocumentedMixin
from skve._inputs.labels import check_labels
from skve._inputs.weights import check_weights
from skve._runtime.warnings import warn
from skve.exceptions import SavedModelError
from skve.metrics._inputs import check_comparable
from skve.uncertainty._scores import MEASURES, MEASURES_OF_PREDICTION, predict_with_scores, uncertainty_scores
from skve.uncertainty.result import Uncertainty, predict_uncertainty

__all__ = ["SelectiveClassifier"]


def _estimator_has(method):
    def check(self):
        getattr(getattr(self, "estimator_", self.estimator), method)
        return True

    return check


class SelectiveClassifier(DocumentedMixin, MetaEstimatorMixin, ClassifierMixin, BaseEstimator):
    """Classifier that abstains from the samples it is least certain about.

    It answers where the uncertainty is at most a threshold, which ``fit`` chooses on validation data so
    that a given share of the samples is answered, or a given accuracy is reached on the answers.

    Parameters
    ----------
    estimator : classifier
        Any classifier with ``predict_proba``, or a pipeline that ends in one. It is cloned and fitted, unless
        ``prefit`` is set or it is wrapped in :class:`~sklearn.frozen.FrozenEstimator`.
    coverage : float, default=1.0
        Smallest share of the validation samples to answer, in (0, 1]. With 1.0 everything is
        answered, and no validation data are required.
    accuracy : float, default=None
        Accuracy to reach on the answered validation samples, in (0, 1]; as many samples as possible are answered.
        Requires ``coverage=1.0``.
    uncertainty : str or callable, default="total"
        What is compared with the threshold: "total" (entropy, nats), "confidence" or "margin" (each as one
        minus it) of the predicted probabilities; "aleatoric", "epistemic", "epkl", "disagreement",
        "variation_ratio" or "variance" of the members, or "novelty", for ensembles; or ``uncertainty(estimator, X)``
        that returns an array of shape (n_samples,), higher for less certain samples.
    max_novelty : float, default=None
        Abstain from foreign samples, too: those whose ``novelty`` exceeds this value, however certain the ensemble
        is. 0.95 rejects about 5 % of the samples like the training data. ``coverage`` and ``accuracy`` then refer to
        the other samples. For ensembles only; None answers foreign samples like others.
    prefit : bool, default=False
        Whether ``estimator`` is fitted already and stays as it is; ``fit`` then requires validation samples, which
        it was not trained on.
    abstention : object, default=None
        What ``predict`` returns for an unanswered sample: one value, which may not be a class. Predictions
        become an object array if numbers and strings (or None) have to mix. Scorers that compare predictions
        with classes, such as ``scoring="accuracy"``, fail on such arrays: leave ``scoring=None``, which takes
        ``score``, or choose a value like the classes, say -1 or "?", which then counts as an error.
    validation_fraction : float, default=0.2
        Share of the training data held out to choose the threshold, if ``fit`` gets no validation data
        and ``estimator`` is not frozen. In (0, 1); stratified if the classes allow it.
    random_state : int, RandomState instance or None, default=None
        Seed of that split.

    Attributes
    ----------
    estimator_ : classifier
        The fitted classifier.
    threshold_ : float
        Samples of a larger uncertainty are not answered. Infinite if all are answered: with ``coverage=1.0``, or if
        answers to all validation samples reach ``accuracy``.
    validation_coverage_ : float
        Share of the validation samples answered; 1.0 without validation samples.
    validation_accuracy_ : float
        Accuracy on them; NaN without validation samples.
    classes_ : ndarray of shape (n_classes,)
        The classes, without the abstention.
    n_features_in_ : int
        That of ``estimator_``, if it has the attribute.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        That of ``estimator_``, if it has the attribute.

    Notes
    -----
    The promise holds on the validation data; on new data of the same kind coverage and accuracy vary about it
    by chance, the less the more validation samples there are.

    ``predict`` and ``score`` ask ``estimator`` for classes and for uncertainty, which are two passes over the
    samples. An ensemble such as :class:`skve.SVEClassifier`, bare or frozen, takes one for "total",
    "confidence" and "margin".

    References
    ----------
    Geifman and El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.naive_bayes import GaussianNB
    >>> from sklearn.model_selection import train_test_split
    >>> from skve import SelectiveClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
    >>> clf = SelectiveClassifier(GaussianNB(), coverage=0.8, abstention=-1, random_state=0)
    >>> clf = clf.fit(X_train, y_train)
    >>> bool((clf.predict(X_test) == -1).any())
    True
    >>> clf.score(X_test, y_test) > clf.estimator_.score(X_test, y_test)
    True
    """

    _parameter_constraints = {
        "estimator": [HasMethods(["fit", "predict_proba"])],
        "coverage": [Interval(Real, 0, 1, closed="right")],
        "accuracy": [None, Interval(Real, 0, 1, closed="right")],
        "uncertainty": [callable, StrOptions(set(MEASURES))],
        "max_novelty": [None, Interval(Real, 0, 1, closed="neither")],
        "prefit": ["boolean"],
        "abstention": "no_validation",
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator: Any,
        *,
        coverage: float = 1.0,
        accuracy: float | None = None,
        uncertainty: str | Callable[[Any, Any], ArrayLike] = "total",
        max_novelty: float | None = None,
        prefit: bool = False,
        abstention: Any = None,
        validation_fraction: float = 0.2,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.coverage = coverage
        self.accuracy = accuracy
        self.uncertainty = uncertainty
        self.max_novelty = max_novelty
        self.prefit = prefit
        self.abstention = abstention
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def fit(
        self,
        X: Any,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        X_val: Any = None,
        y_val: ArrayLike | None = None,
        **fit_params: Any,
    ) -> Self:
        """Fit the classifier and choose the threshold.

        Parameters
        ----------
        X : array-like or list of length n_samples
            Training samples, of the kind that ``estimator`` takes. For a fitted (``prefit``) or frozen
            estimator, and without ``X_val``, the validation samples.
        y : array-like of shape (n_samples,)
            Classes.
        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights, passed on to ``estimator.fit`` if given; the held-out samples are weighed too. For
            the steps of a pipeline, see ``fit_params``.
        X_val : array-like or list of length n_val, default=None
            Validation samples. By default held out of ``X``.
        y_val : array-like of shape (n_val,), default=None
            Their classes.
        **fit_params
            Passed on to ``estimator.fit``, for instance ``step__sample_weight`` for a pipeline. What has one
            entry per sample is split with the samples.

        Returns
        -------
        self : SelectiveClassifier

        Raises
        ------
        ValueError
            If ``accuracy`` cannot be reached at any coverage (the message says what can), ``abstention`` is a
            class or no single value, ``coverage`` and ``accuracy`` are both asked for, only one of ``X_val``,
            ``y_val`` is given, no validation label is a class, or weights are negative or not finite.

        Warns
        -----
        UserWarning
            If ``accuracy`` is given and all validation samples are predicted correctly, so that no threshold can be
            chosen and ``threshold_`` is infinite.
        """
        self._validate_params()
        if self.accuracy is not None and self.coverage < 1:
            raise ValueError(
                f"coverage must be 1.0 if accuracy is given, got coverage={self.coverage} and "
                f"accuracy={self.accuracy}. Set only one of them."
            )
        if (X_val is None) != (y_val is None):
            raise ValueError("X_val and y_val must be given together, got one of them.")
        if y is None:
            raise ValueError("SelectiveClassifier requires y to be passed, but the target y is None.")
        if hasattr(self.abstention, "__len__") and not isinstance(self.abstention, str | bytes):
            raise ValueError(f"abstention must be one value, got {self.abstention!r}.")
        if sample_weight is not None:
            fit_params["sample_weight"] = check_weights(sample_weight, _num_samples(X))

        frozen = self.prefit or isinstance(self.estimator, FrozenEstimator)
        y_name, weight_val = "y_val" if X_val is not None else "y", None
        held_out = X_val is None and self._may_abstain and not frozen
        if held_out:
            (X, y, fit_params), (X_val, y_val, params_val) = self._hold_out(X, y, fit_params)
            weight_val = params_val.get("sample_weight")
        elif X_val is None and self._may_abstain:
            X_val, y_val, weight_val = X, y, fit_params.get("sample_weight")
        estimator = self.estimator if frozen else clone(self.estimator).fit(X, y, **fit_params)
        check_is_fitted(estimator)
        if self._may_abstain:
            check_abstention(self.abstention, estimator.classes_)

        threshold, coverage, accuracy = np.inf, 1.0, np.nan
        if X_val is not None:
            if not held_out:  # there all labels may be new, and count as errors
                y_val = check_comparable(y_val, estimator.classes_, _num_samples(X_val), name=y_name)
            threshold, coverage, accuracy = self._choose(estimator, X_val, y_val, weight_val)
        # What the thresholds are of, whatever the parameters become.
        self._measure, self._max_novelty = self.uncertainty, self.max_novelty
        self.threshold_ = threshold
        self.validation_coverage_ = coverage
        self.validation_accuracy_ = accuracy
        return self._wrap(estimator)

    def _wrap(self, estimator):
        """Take a fitted estimator, and what is known of its inputs."""
        self.estimator_ = estimator
        self.classes_ = estimator.classes_
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(estimator, name):
                setattr(self, name, getattr(estimator, name))
        return self

    def answers(
        self, X: Any, *, uncertainty: Uncertainty | None = None, proba: NDArray[Any] | None = None
    ) -> NDArray[np.bool_]:
        """Tell which samples are answered.

        Parameters
        ----------
        X : array-like or list of length n_samples
            Samples.
        uncertainty : Uncertainty, default=None
        proba : array of shape (n_samples, n_classes), default=None
            The two results of ``skve.predict_uncertainty(selective.estimator_, X, return_proba=True)``, if they are
            known already. Nothing is predicted again then, unless ``uncertainty`` of the classifier is a callable.

        Returns
        -------
        ndarray of bool, shape (n_samples,)
            False where the classifier abstains.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before ``fit``.
        ValueError
            If only one of ``uncertainty`` and ``proba`` is given, or they are not of as many samples as ``X``.
        """
        check_is_fitted(self)
        if (uncertainty is None) != (proba is None):
            raise ValueError("uncertainty and proba must be given together, got one of them.")
        if self._answers_all:
            return np.ones(_num_samples(X), dtype=bool)
        if uncertainty is None or proba is None:
            return self._predict_and_answer(X)[1]
        if not len(uncertainty.total) == len(proba) == _num_samples(X):
            raise ValueError(
                f"uncertainty and proba must be of the {_num_samples(X)} samples of X, got {len(uncertainty.total)} "
                f"and {len(proba)} samples."
            )
        known = {"uncertainty": uncertainty} if self._reads_members else {"proba": proba}
        scores = uncertainty_scores(self.estimator_, X, self._measure, **known)
        return (scores <= self.threshold_) & _is_familiar(uncertainty, self._max_novelty)

    def predict(self, X: Any) -> NDArray[Any]:
        """Predict the class of each sample, or the abstention.

        Parameters
        ----------
        X : array-like or list of length n_samples
            Samples.

        Returns
        -------
        ndarray of shape (n_samples,)
            Classes, and ``abstention`` for what is not answered.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before ``fit``.
        """
        check_is_fitted(self)
        predicted, answered = self._predict_and_answer(X)
        return predicted if self._answers_all else put_abstention(predicted, answered, self.abstention)

    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Predict the probability of each class, answered or not.

        Parameters
        ----------
        X : array-like or list of length n_samples
            Samples.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before ``fit``.
        """
        check_is_fitted(self)
        return self.estimator_.predict_proba(X)

    @available_if(_estimator_has("predict_log_proba"))
    def predict_log_proba(self, X: Any) -> NDArray[Any]:
        """Predict the logarithm of the probability of each class, answered or not.

        Parameters
        ----------
        X : array-like or list of length n_samples
            Samples.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before ``fit``.
        """
        check_is_fitted(self)
        return self.estimator_.predict_log_proba(X)

    def score(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Return the accuracy on the samples that are answered.

        Parameters
        ----------
        X : array-like or list of length n_samples
            Samples.
        y : array-like of shape (n_samples,)
            True classes.
        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights.

        Returns
        -------
        float
            Between 0 and 1; NaN if nothing is answered.

        Raises
        ------
        ValueError
            If no label is a class (single ones count as errors), lengths differ, or weights are negative, not
            finite or all zero.
        sklearn.exceptions.NotFittedError
            Before ``fit``.
        """
        check_is_fitted(self)
        predicted, answered = self._predict_and_answer(X)
        y = check_comparable(y, self.classes_, len(predicted))
        sample_weight = check_weights(sample_weight, len(predicted))
        return _mean((predicted == y)[answered], None if sample_weight is None else sample_weight[answered])

    def coverage_score(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """Return the share of the samples that are answered.

        Parameters
        ----------
        X : array-like or list of length n_samples
            Samples.
        y : ignored
            Not used, present for scikit-learn's calling convention.
        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights.

        Returns
        -------
        float
            Between 0 and 1.

        Raises
        ------
        ValueError
            If weights are negative, not finite, all zero or not as many as samples.
        sklearn.exceptions.NotFittedError
            Before ``fit``.
        """
        answered = self.answers(X)
        return _mean(answered, check_weights(sample_weight, len(answered)))

    def save(self, folder: str | os.PathLike[str], *, include_backbone: bool = False) -> None:
        """Save the thresholds and the ensemble as a folder of safetensors and JSON files, without pickles.

        Parameters
        ----------
        folder : str or path
            Created if it does not exist. An older model in it is replaced.
        include_backbone : bool, default=False
            Whether to embed the backbone's weights, so that loading requires neither a network nor the original.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the classifier is not fitted.
        ValueError
            If the wrapped estimator is none of skve's, bare or in a FrozenEstimator; if ``uncertainty`` is a
            callable or ``abstention`` no plain value; and as :meth:`skve.SVEClassifier.save`.
        OSError
            If the disk is full or cannot be written to.

        Examples
        --------
        >>> import skve, tempfile
        >>> from skve.datasets import load_fashion
        >>> data = load_fashion()
        >>> clf = skve.SVEClassifier(image_size=32, ensemble="head", random_state=0)
        >>> clf = clf.fit(data.images[:40], data.target[:40])
        >>> selective = skve.SelectiveClassifier(clf, coverage=0.5, prefit=True, abstention="?")
        >>> selective = selective.fit(data.images[40:60], data.target[40:60])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     selective.save(folder)
        ...     same = skve.load(folder)
        >>> same.threshold_ == selective.threshold_
        True
        """
        from skve._fitted import saving

        ensemble = self._ensemble_with_plain_thresholds("saved")
        parameters = self.get_params(deep=False)
        del parameters["estimator"]
        if not isinstance(self.random_state, int | np.integer):
            parameters["random_state"] = None  # the state of a generator is no setting
        if callable(self.uncertainty):  # changed since the fit
            parameters["uncertainty"] = self._measure
        fitted = {name: getattr(self, name) for name in _SAVED}
        saving.save(
            ensemble,
            folder,
            include_backbone=include_backbone,
            selective={
                "parameters": parameters,
                "fitted": fitted,
                "is_frozen": isinstance(self.estimator_, FrozenEstimator),
            },
        )

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        format: str = "onnx",
        opset: int = 18,
        resize: bool = True,
        weight_dtype: str = "float32",
    ) -> None:
        """Export the ensemble as one graph, with the thresholds among its settings in a JSON file.

        The graph does not abstain by itself: a program compares its outputs with ``uncertainty``, ``threshold``,
        ``max_novelty`` and ``abstention``. A sample is answered where the uncertainty is at most the threshold, and
        the novelty at most ``max_novelty`` where that is not null. ``computed_from`` says whether ``"total"`` and
        ``"margin"`` are those of the output ``proba`` or of the mean of ``member_proba``; ``"confidence"`` and
        ``"margin"`` stand for 1 minus their values.

        Parameters
        ----------
        path, format, opset, resize, weight_dtype
            As of :meth:`skve.SVEClassifier.export`.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the classifier is not fitted.
        ValueError, ImportError
            If the wrapped estimator is none of skve's, bare or in a FrozenEstimator; if ``uncertainty`` is a
            callable or ``abstention`` no plain value; and as :meth:`skve.SVEClassifier.export`.

        Examples
        --------
        See :meth:`skve.SVEClassifier.export`.
        """
        from skve._fitted import exporting

        ensemble = self._ensemble_with_plain_thresholds("exported")
        thresholds = {
            "uncertainty": self._measure,
            "computed_from": "member_proba" if self._reads_members else "proba",
            "threshold": self.threshold_,
            "max_novelty": self._max_novelty,
            "abstention": self.abstention,
        }
        settings = {"format": format, "opset": opset, "resize": resize, "weight_dtype": weight_dtype}
        exporting.export(ensemble._snapshot(), path, **settings, selective=thresholds)

    def _ensemble_with_plain_thresholds(self, stored):
        """Return the ensemble of skve's that answers, if all beside it are plain values that can be stored."""
        from skve._base import BaseSVEClassifier
        from skve._fitted import saving

        check_is_fitted(self)
        is_frozen = isinstance(self.estimator_, FrozenEstimator)
        ensemble = self.estimator_.estimator if is_frozen else self.estimator_
        if not isinstance(ensemble, BaseSVEClassifier):
            raise SavedModelError(
                f"estimator must be a classifier of skve's to be {stored}, got a {type(ensemble).__name__}. Save "
                f"others as scikit-learn's user guide describes, for instance with skops."
            )
        if callable(self._measure):
            raise SavedModelError(
                f"uncertainty must be one of {list(MEASURES)} to be {stored}, got {self._measure!r}, a function."
            )
        try:
            saving.plain(self.abstention)
        except TypeError as error:
            raise SavedModelError(f"abstention must be a plain value to be {stored}, got {error}.") from error
        return ensemble

    @classmethod
    def _of_saved(cls, saved, ensemble):
        """Return the fitted classifier of what `save` wrote; ValueError, KeyError or TypeError if it did not."""
        parameters, fitted = saved["parameters"], saved["fitted"]
        result = cls(FrozenEstimator(ensemble) if saved["is_frozen"] else ensemble, **parameters)
        result._validate_params()
        for name, constraints in _SAVED.items():
            validate_parameter_constraints({name: constraints}, {name: fitted[name]}, cls.__name__)
            setattr(result, name, fitted[name])
        if np.isnan(result.threshold_):
            raise ValueError("threshold_ must be a number, got NaN.")
        check_abstention(result.abstention, ensemble.classes_)
        return result._wrap(result.estimator)

    @property
    def _may_abstain(self):
        return self.coverage < 1 or self.accuracy is not None or self.max_novelty is not None

    @property
    def _reads_members(self):
        """Whether the threshold is of the members' uncertainty, and not of the calibrated probabilities."""
        return self._max_novelty is not None or self._measure not in MEASURES_OF_PREDICTION

    @property
    def _answers_all(self):
        return self.threshold_ == np.inf and self._max_novelty is None  # minus infinity is a threshold like others

    def _predict_and_answer(self, X):
        """Classes, and whether they are answered."""
        if self._answers_all:
            return np.asarray(self.estimator_.predict(X)), self.answers(X)
        predicted, scores, familiar = _predict_and_score(self.estimator_, X, self._measure, self._max_novelty)
        return predicted, (scores <= self.threshold_) & familiar

    def _hold_out(self, X, y, fit_params):
        """Split samples, classes and parameters of one entry per sample into training and validation part."""
        labels = check_labels(y, "y")
        counts = np.unique(labels, return_counts=True)[1]
        n_val = int(np.ceil(self.validation_fraction * len(labels)))
        stratify = counts.min() >= 2 and min(n_val, len(labels) - n_val) >= len(counts)
        split = (StratifiedShuffleSplit if stratify else ShuffleSplit)(
            n_splits=1, test_size=self.validation_fraction, random_state=self.random_state
        )
        parts = []
        for indices in next(split.split(np.zeros(len(labels)), labels)):
            params = {
                name: _safe_indexing(value, indices) if _is_per_sample(value, len(labels)) else value
                for name, value in fit_params.items()
            }
            parts.append((_safe_indexing(X, indices), _safe_indexing(y, indices), params))
        return parts

    def _choose(self, estimator, X, y, sample_weight):
        """Threshold, coverage and accuracy on the validation samples."""
        predicted, scores, familiar = _predict_and_score(estimator, X, self.uncertainty, self.max_novelty)
        correct = predicted == check_labels(y, "y")
        weight = check_weights(sample_weight, len(scores), name="sample_weight of the validation samples")
        if weight is None:
            weight = np.ones(len(scores))
        known = weight * familiar
        if not known.any():
            raise ValueError(
                f"max_novelty must leave validation samples to answer, but all exceed {self.max_novelty}. Raise it, "
                f"or pass validation samples like the training data."
            )
        if self.accuracy is not None and correct[known > 0].all():
            warn(
                f"No threshold can be chosen, since all {np.count_nonzero(known)} validation samples are predicted "
                f"correctly: threshold_ is infinite, and no sample is too uncertain to be answered. Pass more "
                f"validation samples, or set coverage instead of accuracy."
            )
        threshold, coverage, accuracy = choose_threshold(
            scores[familiar], correct[familiar], weight[familiar], coverage=self.coverage, accuracy=self.accuracy
        )
        return threshold, coverage * float(known.sum() / weight.sum()), accuracy

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        inner = get_tags(self.estimator)
        tags.input_tags = inner.input_tags
        tags.target_tags = inner.target_tags
        tags.classifier_tags = inner.classifier_tags
        return tags


# What a fit learns besides the ensemble, and the values that a saved one may have.
_SHARE = Interval(Real, 0, 1, closed="both")
_SAVED: dict[str, list] = {
    "threshold_": [Real],
    "validation_coverage_": [_SHARE],
    "validation_accuracy_": [_SHARE, "nan"],
    "_measure": [StrOptions(set(MEASURES))],
    "_max_novelty": [None, Interval(Real, 0, 1, closed="neither")],
}


def _predict_and_score(estimator, X, measure, max_novelty):
    """Return classes, uncertainties, and whether samples are familiar, in one pass where one gives all."""
    if max_novelty is None:
        predicted, scores = predict_with_scores(estimator, X, measure)
        return predicted, scores, np.ones(len(scores), bool)
    uncertainty = predict_uncertainty(estimator, X)
    scores = uncertainty_scores(estimator, X, measure, uncertainty=uncertainty)
    predicted = uncertainty.prediction
    if predicted is None or not hasattr(estimator, "predict_proba_members"):  # it may decide by a threshold
        predicted = np.asarray(estimator.predict(X))
    return predicted, scores, _is_familiar(uncertainty, max_novelty)


def _is_familiar(uncertainty, max_novelty):
    if max_novelty is None:
        return np.ones(len(uncertainty.total), bool)
    return uncertainty_scores(None, uncertainty, "novelty") <= max_novelty


def _is_per_sample(value, n_samples):
    return not isinstance(value, str | dict) and hasattr(value, "__len__") and len(value) == n_samples


def _mean(values, weight):
    if len(values) == 0 or (weight is not None and not np.any(weight)):
        return float("nan")
    return float(np.average(values, weights=weight))


def choose_threshold(scores, correct, weight, *, coverage, accuracy):
    """Choose the threshold that meets a coverage, or an accuracy with the largest coverage.

    Parameters
    ----------
    scores : ndarray of shape (n_samples,)
        Uncertainties; those up to the threshold are answered.
    correct : ndarray of bool, shape (n_samples,)
    weight : ndarray of shape (n_samples,)
    coverage : float
        Share to answer at least, where ``accuracy`` is None.
    accuracy : float or None

    Returns
    -------
    threshold : float
        Infinite if all are answered.
    coverage, accuracy : float
        What it reaches.

    Raises
    ------
    ValueError
        If the accuracy is not reached at any coverage.
    """
    order = np.argsort(scores)
    ordered = scores[order]
    last_of_ties = np.append(ordered[1:] != ordered[:-1], True)
    thresholds = ordered[last_of_ties]
    mass = np.cumsum(weight[order])[last_of_ties]
    coverages = mass / mass[-1]
    with np.errstate(invalid="ignore"):  # samples of no weight may come first
        accuracies = np.cumsum((weight * correct)[order])[last_of_ties] / mass
    # The slack keeps a goal that is met exactly from being missed by a rounding error.
    if accuracy is None:
        chosen = int(np.searchsorted(coverages, coverage * (1 - 1e-12)))
    else:
        reached = np.flatnonzero(accuracies >= accuracy * (1 - 1e-12))
        if len(reached) == 0:
            best = int(np.nanargmax(accuracies))
            raise ValueError(
                f"accuracy must be reached on the validation data at some coverage, got {accuracy}, where the best "
                f"is {accuracies[best]:.4g}, at a coverage of {coverages[best]:.4g}. Ask for less."
            )
        chosen = reached[-1]
    threshold = thresholds[chosen] if chosen < len(thresholds) - 1 else np.inf
    return float(threshold), float(coverages[chosen]), float(accuracies[chosen])


def check_abstention(abstention, classes):
    """Check that an abstention differs from the classes, so that none counts as an answer."""
    if any(_is_same(abstention, label) for label in classes.tolist()):
        raise ValueError(f"abstention must not be a class, got {abstention!r}.")


def put_abstention(predicted, answered, abstention):
    """Return the predictions with the abstention where none is answered, changing neither's value."""
    kinds = predicted.dtype.kind + np.asarray(abstention).dtype.kind
    alike = all(kind in "iuf" for kind in kinds) or all(kind == "U" for kind in kinds)
    dtype = np.result_type(predicted.dtype, np.asarray(abstention).dtype) if alike else object
    predicted = predicted.astype(dtype)
    predicted[~answered] = abstention
    return predicted


def _is_same(value, label):
    try:
        return bool(value == label)
    except TypeError:  # pandas.NA, of which nothing can be said
        return False
