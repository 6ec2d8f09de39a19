"""Risk-coverage curve."""

from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skve.metrics import aurc, risk_coverage_curve
from skve.metrics._inputs import errors
from skve.plots._style import COLORS, GREY, LINES, import_pyplot, legend, name_of, new_axes, tidy
from skve.uncertainty import Uncertainty
from skve.uncertainty._scores import check_measure, uncertainty_scores

_BEST = "best ranking"


class RiskCoverageDisplay:
    """Risk-coverage curve: error rate on the most certain samples, against their share.

    The lower the curve, the better the model recognizes its errors. The dotted line is the lowest that any ranking
    could reach with these predictions. Use :meth:`from_estimator` or :meth:`from_predictions` to make
    one.

    Parameters
    ----------
    coverage : ndarray of shape (n_samples,)
        Share of the samples answered.
    risk : ndarray of shape (n_samples,)
        Error rate among them.
    best_risk : ndarray of shape (n_samples,)
        Error rate if every error came last.
    aurc : float
        Area under the curve.
    name : str, default=None
        Name of the model, for the legend.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the curve.
    figure_ : matplotlib Figure
        Figure that holds them.
    line_ : matplotlib Line2D
        The curve.

    References
    ----------
    Geifman and El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.naive_bayes import GaussianNB
    >>> from skve.plots import RiskCoverageDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> display = RiskCoverageDisplay.from_estimator(GaussianNB().fit(X, y), X, y)
    >>> round(float(display.risk[-1]), 3)
    0.04
    """

    def __init__(
        self,
        coverage: NDArray[np.float64],
        risk: NDArray[np.float64],
        best_risk: NDArray[np.float64],
        aurc: float,
        *,
        name: str | None = None,
    ) -> None:
        self.coverage = coverage
        self.risk = risk
        self.best_risk = best_risk
        self.aurc = aurc
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: ArrayLike,
        *,
        y_proba: ArrayLike | None = None,
        uncertainty: str | Callable[[Any, Any], ArrayLike] | ArrayLike | Uncertainty = "total",
        sample_weight: ArrayLike | None = None,
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Draw the curve of a fitted classifier.

        Parameters
        ----------
        estimator : fitted classifier
            Has ``predict_proba`` and ``classes_``.
        X : array-like or list of length n_samples
            Samples it was not trained on.
        y : array-like of shape (n_samples,)
            True classes.
        y_proba : array-like of shape (n_samples, n_classes), default=None
            ``estimator.predict_proba(X)``, where it is known already.
        uncertainty : str, callable, array-like of shape (n_samples,) or Uncertainty, default="total"
            What the samples are ranked by: a measure as of :class:`skve.SelectiveClassifier`, or
            ``uncertainty(estimator, X)``; or what is known already: scores, or an ``Uncertainty``, of which the
            total is taken.
        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights.
        name : str, default=None
            Name for the legend; by default the class of the estimator.
        ax : matplotlib Axes, default=None
            Where to draw; several curves may share axes. By default a new figure.
        **kwargs
            Passed on to ``ax.plot``.

        Returns
        -------
        RiskCoverageDisplay
        """
        import_pyplot(cls.__name__)
        is_measure = isinstance(uncertainty, str) or callable(uncertainty)
        if is_measure:
            check_measure(uncertainty)
        proba = estimator.predict_proba(X) if y_proba is None else y_proba
        scores: Any = uncertainty_scores(estimator, X, uncertainty, proba=proba) if is_measure else uncertainty
        return cls.from_predictions(
            y,
            proba,
            uncertainty=scores,
            labels=estimator.classes_,
            sample_weight=sample_weight,
            name=name_of(estimator, name),
            ax=ax,
            **kwargs,
        )

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike,
        y_proba: ArrayLike,
        *,
        uncertainty: ArrayLike | Uncertainty | None = None,
        labels: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Draw the curve of predicted probabilities.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            True classes.
        y_proba : array-like of shape (n_samples, n_classes) or (n_samples,)
            Predicted probabilities.
        uncertainty : array-like of shape (n_samples,) or Uncertainty, default=None
            What the samples are ranked by; by default one minus the largest probability; of an ``Uncertainty``
            its total.
        labels : array-like of shape (n_classes,), default=None
            The class of each column; by default the sorted classes of ``y_true``.
        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights.
        name : str, default=None
            Name for the legend.
        ax : matplotlib Axes, default=None
            Where to draw; several curves may share axes. By default a new figure.
        **kwargs
            Passed on to ``ax.plot``.

        Returns
        -------
        RiskCoverageDisplay

        Raises
        ------
        ValueError
            If probabilities are not probabilities, labels have no column or lengths differ.
        ImportError
            If matplotlib is not installed.
        """
        import_pyplot(cls.__name__)
        if isinstance(uncertainty, Uncertainty):
            uncertainty = uncertainty.total
        common = {"labels": labels, "sample_weight": sample_weight}
        coverage, risk, _ = risk_coverage_curve(y_true, y_proba, uncertainty=uncertainty, **common)
        wrong = errors(y_true, y_proba, labels)
        _, best_risk, _ = risk_coverage_curve(y_true, y_proba, uncertainty=wrong, **common)
        area = aurc(y_true, y_proba, uncertainty=uncertainty, **common)
        return cls(coverage, risk, best_risk, area, name=name).plot(ax, **kwargs)

    def plot(self, ax: Any = None, *, name: str | None = None, **kwargs: Any) -> Self:
        """Draw the curve.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; several curves may share axes. By default a new figure.
        name : str, default=None
            Name for the legend; by default the one given before.
        **kwargs
            Passed on to ``ax.plot``.

        Returns
        -------
        RiskCoverageDisplay
        """
        ax = new_axes(type(self).__name__, ax, (4.6, 3.6))
        place = sum(line.get_gid() == "risk-coverage" for line in ax.lines) % len(COLORS)
        name = self.name if name is None else name
        label = f"{name} (AURC {self.aurc:.3f})" if name else f"AURC {self.aurc:.3f}"
        style = {"color": COLORS[place], "linestyle": LINES[place], "linewidth": 1.6, "label": label} | kwargs
        (self.line_,) = ax.plot(self.coverage, self.risk, gid="risk-coverage", **style)
        best = _BEST if place == 0 else None
        ax.plot(self.coverage, self.best_risk, color=GREY, linewidth=1, linestyle=":", label=best)
        ax.set_xlim(0, 1)
        # Among the first few samples the error rate is noise: it does not set the scale.
        highest = 1.15 * self.risk[self.coverage >= 0.1].max()
        ax.set_ylim(0, max(highest, 1e-3) if place == 0 else max(highest, ax.get_ylim()[1]))
        tidy(ax, xlabel="Coverage (share answered)", ylabel="Risk (error rate)")
        # Above the axes: curves may run anywhere within. What all are compared with comes last.
        handles = sorted(ax.get_legend_handles_labels()[0], key=lambda handle: handle.get_label() == _BEST)
        legend(ax, handles=handles, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
        self.ax_, self.figure_ = ax, ax.figure
        return self
