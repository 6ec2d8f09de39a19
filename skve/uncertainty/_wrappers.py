"""The way to the model inside pipelines, searches, calibrations and other wrappers."""


def unwrap(estimator, X, method):
    """Find the model with a given method inside the wrappers of scikit-learn.

    Sees through Pipeline (whose transforms are applied to ``X``), search objects, FrozenEstimator,
    CalibratedClassifierCV with one calibrated classifier, and wrappers that keep one fitted model in
    ``estimator_`` or ``estimators_``.

    Parameters
    ----------
    estimator : fitted estimator
    X : array-like or list of length n_samples, or None
        What ``estimator`` takes.
    method : str
        The method or attribute to find, for instance ``"predict_uncertainty"``.

    Returns
    -------
    model : fitted estimator
        Has the attribute ``method``.
    X : array-like or list of length n_samples, or None
        What ``model`` takes.
    calibrated : bool
        Whether a CalibratedClassifierCV was seen through.

    Raises
    ------
    ValueError
        If an estimator on the way holds several fitted models.
    TypeError
        If the innermost estimator lacks the method, or one on the way predicts by more than the model in it.
    sklearn.exceptions.NotFittedError
        If an estimator on the way is not fitted.
    """
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator
    from sklearn.model_selection._search import BaseSearchCV
    from sklearn.pipeline import Pipeline
    from sklearn.utils.validation import check_is_fitted

    calibrated = False
    while True:
        if isinstance(estimator, FrozenEstimator):
            estimator = estimator.estimator
        elif isinstance(estimator, Pipeline):
            if len(estimator) > 1 and X is not None:
                X = estimator[:-1].transform(X)
            estimator = estimator[-1]
        elif isinstance(estimator, BaseSearchCV):
            check_is_fitted(estimator, "best_estimator_")
            estimator = estimator.best_estimator_
        elif isinstance(estimator, CalibratedClassifierCV):
            check_is_fitted(estimator, "calibrated_classifiers_")
            estimator = _only_one(estimator, estimator.calibrated_classifiers_, method).estimator
            calibrated = True
        elif hasattr(estimator, method):
            _check_fitted(estimator)
            return estimator, X, calibrated
        elif hasattr(estimator, "final_estimator_"):
            raise TypeError(
                f"estimator must predict by one model that has {method}, got a {type(estimator).__name__}, which "
                f"predicts by a final estimator on top of several. Pass one of these."
            )
        elif hasattr(estimator, "estimators_"):
            estimator = _only_one(estimator, estimator.estimators_, method)
        elif hasattr(estimator, "estimator_"):
            estimator = estimator.estimator_
        else:
            _check_fitted(estimator)
            raise TypeError(
                f"estimator must be an ensemble such as skve.SVEClassifier, or a fitted Pipeline, search, "
                f"FrozenEstimator or CalibratedClassifierCV around one, got a {type(estimator).__name__}, which has "
                f"no {method}."
            )


def _check_fitted(estimator):
    from sklearn.utils.validation import check_is_fitted

    if hasattr(estimator, "fit"):  # not so where only predictions are given
        check_is_fitted(estimator)


def _only_one(estimator, models, method):
    if len(models) != 1:
        raise ValueError(
            f"estimator must hold one fitted model that has {method}, got a {type(estimator).__name__} with "
            f"{len(models)}. Pass one of them; or calibrate a FrozenEstimator, which keeps a single model."
        )
    return models[0]
