"""Selective prediction: answer where the model is sure enough, abstain elsewhere."""

from numbers import Real

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import ShuffleSplit, StratifiedShuffleSplit
from sklearn.utils import _safe_indexing, get_tags
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _check_sample_weight, _num_samples, check_is_fitted, column_or_1d

from skve._scores import MEASURES, uncertainty_scores

__all__ = ["SelectiveClassifier"]


def _estimator_has(method):
    def check(self):
        getattr(getattr(self, "estimator_", self.estimator), method)
        return True

    return check


class SelectiveClassifier(MetaEstimatorMixin, ClassifierMixin, BaseEstimator):
    """Classifier that abstains from the samples it is least sure of.

    Answers where the uncertainty is at most a threshold, which ``fit`` chooses on validation data so
    that a wanted share of the samples is answered, or a wanted accuracy is reached on the answers.

    Parameters
    ----------
    estimator : classifier
        Any classifier with ``predict_proba``, or a pipeline that ends in one. It is cloned and fitted; wrap a
        fitted one in :class:`~sklearn.frozen.FrozenEstimator` to keep it as it is.
    coverage : float, default=1.0
        Share of the validation samples to answer, in (0, 1]; at least this share is. At 1.0 everything is
        answered, and no validation data is needed.
    accuracy : float, default=None
        Accuracy to reach on the answered validation samples, in (0, 1]; as many are answered as allow it.
        Goes with ``coverage=1.0`` only.
    uncertainty : str or callable, default="total"
        What is compared with the threshold: "total" (entropy, nats), "confidence" or "margin" (each as one
        minus it) of the predicted probabilities; "aleatoric", "epistemic", "epkl", "disagreement",
        "variation_ratio" or "variance" of the members, for ensembles; or ``uncertainty(estimator, X)`` that
        returns an array of shape (n_samples,), higher where less sure.
    abstention : object, default=None
        What ``predict`` returns for an unanswered sample. May not be a class. Predictions become an object
        array if numbers and strings (or None) have to mix.
    validation_fraction : float, default=0.2
        Share of the training data held out to choose the threshold, where ``fit`` gets no validation data
        and ``estimator`` is not frozen. In (0, 1); stratified where the classes allow it.
    random_state : int, RandomState instance or None, default=None
        Seed of that split.

    Attributes
    ----------
    estimator_ : classifier
        The fitted classifier.
    threshold_ : float
        Samples of a larger uncertainty are not answered; infinite if all are.
    validation_coverage_ : float
        Share of the validation samples answered; 1.0 if there were none.
    validation_accuracy_ : float
        Accuracy on them; NaN if there were none.
    classes_ : ndarray of shape (n_classes,)
        The classes, without the abstention.
    n_features_in_ : int
        As of ``estimator_``, where it has it.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        As of ``estimator_``, where it has it.

    Notes
    -----
    The promise holds on the validation data; on new data of the same kind coverage and accuracy vary about it
    by chance, the less the more validation samples there are.

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
        "abstention": "no_validation",
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator,
        *,
        coverage=1.0,
        accuracy=None,
        uncertainty="total",
        abstention=None,
        validation_fraction=0.2,
        random_state=None,
    ):
        self.estimator = estimator
        self.coverage = coverage
        self.accuracy = accuracy
        self.uncertainty = uncertainty
        self.abstention = abstention
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def fit(self, X, y, *, X_val=None, y_val=None, **fit_params):
        """Fit the classifier and choose the threshold.

        Parameters
        ----------
        X : array-like or list of length n_samples
            Training samples, of the kind that ``estimator`` takes. For a frozen estimator, and without
            ``X_val``, the validation samples.
        y : array-like of shape (n_samples,)
            Classes.
        X_val : array-like or list of length n_val, default=None
            Validation samples. By default held out of ``X``.
        y_val : array-like of shape (n_val,), default=None
            Their classes.
        **fit_params
            Passed on to ``estimator.fit``, for instance ``sample_weight``, or ``step__sample_weight`` for a
            pipeline. What has one entry per sample is split with the samples; ``sample_weight`` weighs the
            held-out samples too.

        Returns
        -------
        self : SelectiveClassifier

        Raises
        ------
        ValueError
            If ``accuracy`` cannot be reached at any coverage (the message says what can), ``abstention`` is a
            class, ``coverage`` and ``accuracy`` are both asked for, or only one of ``X_val``, ``y_val`` is
            given.
        """
        self._validate_params()
        if self.accuracy is not None and self.coverage < 1:
            raise ValueError(
                f"Ask for a coverage or an accuracy, got coverage={self.coverage} and accuracy={self.accuracy}."
            )
        if (X_val is None) != (y_val is None):
            raise ValueError("X_val and y_val go together, got only one of them.")
        if y is None:
            raise ValueError("SelectiveClassifier requires y to be passed, but the target y is None.")

        frozen = isinstance(self.estimator, FrozenEstimator)
        weight_val = None
        if X_val is None and self._may_abstain:
            if frozen:
                X_val, y_val, weight_val = X, y, fit_params.get("sample_weight")
            else:
                (X, y, fit_params), (X_val, y_val, params_val) = self._hold_out(X, y, fit_params)
                weight_val = params_val.get("sample_weight")
        estimator = self.estimator if frozen else clone(self.estimator).fit(X, y, **fit_params)
        check_is_fitted(estimator)
        self._check_abstention(estimator.classes_)

        threshold, coverage, accuracy = np.inf, 1.0, np.nan
        if X_val is not None:
            threshold, coverage, accuracy = self._choose(estimator, X_val, y_val, weight_val)
        self.estimator_ = estimator
        self.classes_ = estimator.classes_
        self.threshold_ = threshold
        self.validation_coverage_ = coverage
        self.validation_accuracy_ = accuracy
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(estimator, name):
                setattr(self, name, getattr(estimator, name))
        return self

    def answers(self, X):
        """Tell which samples are answered.

        Parameters
        ----------
        X : array-like or list of length n_samples
            Samples.

        Returns
        -------
        ndarray of bool, shape (n_samples,)
            False where the classifier abstains.
        """
        check_is_fitted(self)
        if np.isinf(self.threshold_):
            return np.ones(_num_samples(X), dtype=bool)
        return uncertainty_scores(self.estimator_, X, self.uncertainty) <= self.threshold_

    def predict(self, X):
        """Predict the class of each sample, or the abstention.

        Parameters
        ----------
        X : array-like or list of length n_samples
            Samples.

        Returns
        -------
        ndarray of shape (n_samples,)
            Classes, and ``abstention`` for what is not answered.
        """
        check_is_fitted(self)
        predicted = np.asarray(self.estimator_.predict(X))
        if not self._may_abstain:
            return predicted
        predicted = predicted.astype(_common_dtype(predicted.dtype, self.abstention))
        predicted[~self.answers(X)] = self.abstention
        return predicted

    def predict_proba(self, X):
        """Predict the probability of each class, answered or not.

        Parameters
        ----------
        X : array-like or list of length n_samples
            Samples.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        check_is_fitted(self)
        return self.estimator_.predict_proba(X)

    @available_if(_estimator_has("predict_log_proba"))
    def predict_log_proba(self, X):
        """Predict the logarithm of the probability of each class, answered or not.

        Parameters
        ----------
        X : array-like or list of length n_samples
            Samples.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        check_is_fitted(self)
        return self.estimator_.predict_log_proba(X)

    def score(self, X, y, sample_weight=None):
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
        """
        answered = self.answers(X)
        correct = np.asarray(self.estimator_.predict(X)) == column_or_1d(y)
        return _mean(correct[answered], None if sample_weight is None else np.asarray(sample_weight)[answered])

    def coverage_score(self, X, y=None, sample_weight=None):
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
        """
        return _mean(self.answers(X), sample_weight)

    @property
    def _may_abstain(self):
        return self.coverage < 1 or self.accuracy is not None

    def _hold_out(self, X, y, fit_params):
        """Split samples, classes and parameters of one entry per sample into training and validation part."""
        labels = column_or_1d(y)
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

    def _check_abstention(self, classes):
        # An abstention that cannot be told from a class would count as an answer.
        if self._may_abstain and any(self.abstention == label for label in classes.tolist()):
            raise ValueError(f"abstention may not be a class, got {self.abstention!r}.")

    def _choose(self, estimator, X, y, sample_weight):
        """Threshold, coverage and accuracy on the validation samples."""
        scores = uncertainty_scores(estimator, X, self.uncertainty)
        correct = np.asarray(estimator.predict(X)) == column_or_1d(y)
        weight = np.ones(len(scores)) if sample_weight is None else _check_sample_weight(sample_weight, scores)
        order = np.argsort(scores)
        last_of_ties = np.append(np.diff(scores[order]) > 0, True)
        mass = np.cumsum(weight[order])[last_of_ties]
        thresholds = scores[order][last_of_ties]
        with np.errstate(invalid="ignore"):  # samples of no weight may come first
            accuracy = np.cumsum((weight * correct)[order])[last_of_ties] / mass
        coverage = mass / mass[-1]
        # The slack keeps a goal that is met exactly from being missed by a rounding error.
        if self.accuracy is not None:
            reached = np.flatnonzero(accuracy >= self.accuracy * (1 - 1e-12))
            if len(reached) == 0:
                best = int(np.nanargmax(accuracy))
                raise ValueError(
                    f"accuracy={self.accuracy} is not reached on the validation data at any coverage: "
                    f"the best is {accuracy[best]:.4g}, at a coverage of {coverage[best]:.4g}."
                )
            chosen = reached[-1]
        else:
            chosen = int(np.searchsorted(coverage, self.coverage * (1 - 1e-12)))
        threshold = thresholds[chosen] if chosen < len(thresholds) - 1 else np.inf
        return float(threshold), float(coverage[chosen]), float(accuracy[chosen])

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        inner = get_tags(self.estimator)
        tags.input_tags = inner.input_tags
        tags.target_tags = inner.target_tags
        tags.classifier_tags = inner.classifier_tags
        return tags


def _is_per_sample(value, n_samples):
    return not isinstance(value, str | dict) and hasattr(value, "__len__") and len(value) == n_samples


def _common_dtype(dtype, value):
    """A type that holds the predictions and the abstention without changing either."""
    kinds = dtype.kind + np.asarray(value).dtype.kind
    if all(kind in "iuf" for kind in kinds) or all(kind == "U" for kind in kinds):
        return np.result_type(dtype, np.asarray(value).dtype)
    return object


def _mean(values, weight):
    if len(values) == 0 or (weight is not None and not np.any(weight)):
        return float("nan")
    return float(np.average(values, weights=weight))
