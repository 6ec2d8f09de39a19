"""Uncertainty in and out of distribution."""

from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skve.metrics import ood_auroc
from skve.plots._style import COLORS, import_pyplot, legend, name_of, new_axes, tidy
from skve.uncertainty import Uncertainty
from skve.uncertainty._scores import check_measure, scores_of, uncertainty_scores

_AXIS = {
    "total": "Total uncertainty (nats)",
    "aleatoric": "Aleatoric uncertainty (nats)",
    "epistemic": "Epistemic uncertainty (nats)",
    "epkl": "Expected pairwise KL (nats)",
    "confidence": "1 - confidence",
    "margin": "1 - margin",
    "disagreement": "Disagreement",
    "variation_ratio": "Variation ratio",
    "variance": "Variance of the predicted class",
    "novelty": "Novelty (share of training samples nearer by)",
}


class UncertaintyDisplay:
    """Histograms of the uncertainty about familiar and foreign samples.

    The less they overlap, the better foreign samples are detected. Use :meth:`from_estimator` or
    :meth:`from_predictions` to make one.

    Parameters
    ----------
    scores_in : ndarray of shape (n_in,)
        Uncertainty about familiar samples.
    scores_out : ndarray of shape (n_out,)
        Uncertainty about foreign samples.
    auroc : float
        AUROC of distinguishing them.
    name : str, default=None
        Name of the model, for the title.
    xlabel : str, default="Uncertainty"
        What is shown, with its unit.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the histograms.
    figure_ : matplotlib Figure
        Figure that holds them.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from skve.plots import UncertaintyDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression().fit(X[:100], y[:100])
    >>> display = UncertaintyDisplay.from_estimator(clf, X[:100], X[100:])
    >>> display.scores_out.shape
    (50,)
    """

    def __init__(
        self,
        scores_in: NDArray[np.float64],
        scores_out: NDArray[np.float64],
        auroc: float,
        *,
        name: str | None = None,
        xlabel: str = "Uncertainty",
    ) -> None:
        self.scores_in = scores_in
        self.scores_out = scores_out
        self.auroc = auroc
        self.name = name
        self.xlabel = xlabel

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        X_ood: Any,
        *,
        uncertainty: str | Callable[[Any, Any], ArrayLike] = "total",
        name: str | None = None,
        ax: Any = None,
    ) -> Self:
        """Draw the histograms of a fitted classifier.

        Parameters
        ----------
        estimator : fitted classifier
            Has what the measure of uncertainty requires.
        X : array-like or list of length n_in, or Uncertainty
            Familiar samples; or ``skve.predict_uncertainty(estimator, X)``, where it is known already.
        X_ood : array-like or list of length n_out, or Uncertainty
            Foreign samples; or their ``Uncertainty``.
        uncertainty : str or callable, default="total"
            A measure as of :class:`skve.SelectiveClassifier`, or ``uncertainty(estimator, X)``.
        name : str, default=None
            Name for the title; by default the class of the estimator.
        ax : matplotlib Axes, default=None
            Where to draw; by default a new figure.

        Returns
        -------
        UncertaintyDisplay
        """
        import_pyplot(cls.__name__)
        check_measure(uncertainty)
        return cls.from_predictions(
            uncertainty_scores(estimator, X, uncertainty),
            uncertainty_scores(estimator, X_ood, uncertainty),
            name=name_of(estimator, name),
            xlabel=_AXIS.get(uncertainty, "Uncertainty") if isinstance(uncertainty, str) else "Uncertainty",
            ax=ax,
        )

    @classmethod
    def from_predictions(
        cls,
        scores_in: Any,
        scores_out: Any,
        *,
        uncertainty: str = "total",
        name: str | None = None,
        xlabel: str | None = None,
        ax: Any = None,
    ) -> Self:
        """Draw the histograms of given scores.

        Parameters
        ----------
        scores_in : array-like of shape (n_in,) or Uncertainty
            Uncertainty about familiar samples; higher means more foreign.
        scores_out : array-like of shape (n_out,) or Uncertainty
            Uncertainty about foreign samples.
        uncertainty : str, default="total"
            Which measure of an ``Uncertainty`` is drawn.
        name : str, default=None
            Name for the title.
        xlabel : str, default=None
            What is shown, with its unit. By default the name of the measure.
        ax : matplotlib Axes, default=None
            Where to draw; by default a new figure.

        Returns
        -------
        UncertaintyDisplay

        Raises
        ------
        ValueError
            If a side is empty, or has a NaN or a wrong shape.
        ImportError
            If matplotlib is not installed.
        """
        import_pyplot(cls.__name__)
        if isinstance(scores_in, Uncertainty) and isinstance(scores_out, Uncertainty):
            check_measure(uncertainty)
            scores_in, scores_out = scores_of(scores_in, uncertainty), scores_of(scores_out, uncertainty)
            xlabel = _AXIS[uncertainty] if xlabel is None else xlabel
        xlabel = "Uncertainty" if xlabel is None else xlabel
        auroc = ood_auroc(scores_in, scores_out)
        scores_in, scores_out = np.asarray(scores_in, float), np.asarray(scores_out, float)
        return cls(scores_in, scores_out, auroc, name=name, xlabel=xlabel).plot(ax)

    def plot(self, ax: Any = None, *, name: str | None = None, n_bins: int = 30) -> Self:
        """Draw the histograms.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; by default a new figure.
        name : str, default=None
            Name for the title; by default the one given before.
        n_bins : int, default=30
            Number of bins over the range of both.

        Returns
        -------
        UncertaintyDisplay
        """
        ax = new_axes(type(self).__name__, ax, (4.6, 3.4))
        both = np.concatenate([self.scores_in, self.scores_out])
        edges = np.histogram_bin_edges(both, bins=n_bins)
        for scores, label, fill in (
            (self.scores_in, "in distribution", {"facecolor": COLORS[3], "alpha": 0.7}),
            (self.scores_out, "out of distribution", {"facecolor": "none", "hatch": "////"}),
        ):
            share = np.histogram(scores, bins=edges)[0] / len(scores)
            edge = COLORS[0] if "alpha" in fill else COLORS[4]
            ax.stairs(share, edges, fill=True, label=label, edgecolor=edge, linewidth=1.2, **fill)
        name = self.name if name is None else name
        title = f"{name}, AUROC {self.auroc:.3f}" if name else f"AUROC {self.auroc:.3f}"
        ax.set_ylim(bottom=0)
        tidy(ax, xlabel=self.xlabel, ylabel="Share of samples", title=title)
        legend(ax, loc="best")
        self.ax_, self.figure_ = ax, ax.figure
        return self
