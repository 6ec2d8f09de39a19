"""Reliability diagram."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skve.metrics import CalibrationBins, calibration_bins, expected_calibration_error
from skve.plots._style import (
    COLORS,
    GREY,
    LINES,
    MARKERS,
    font_size,
    import_pyplot,
    legend,
    name_of,
    new_axes,
    split_axes,
    tidy,
)


class ReliabilityDisplay:
    """Reliability diagram: accuracy against confidence, with the number of samples below.

    On the diagonal a confidence of 0.8 is correct 80 % of the time; below it the model is overconfident.
    Use :meth:`from_estimator` or :meth:`from_predictions` to make one.

    Parameters
    ----------
    bins : dict of {str: CalibrationBins}
        What is drawn: the top label, or one entry per class.
    ece : float
        Top-label expected calibration error (L1), as a fraction; of what the bins were made from.
    name : str, default=None
        Name of the model, for the legend.
    confidence_level : float, default=0.95
        Level of the band around the accuracies (Wilson's interval); None draws none.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the curves.
    histogram_ax_ : matplotlib Axes
        Axes with the share of samples per bin.
    figure_ : matplotlib Figure
        Figure that holds them.
    lines_ : list of matplotlib Line2D
        One curve per entry of ``bins``.

    References
    ----------
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017; Wilson, "Probable Inference, the Law of
    Succession, and Statistical Inference", JASA 1927.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.naive_bayes import GaussianNB
    >>> from skve.plots import ReliabilityDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> display = ReliabilityDisplay.from_estimator(GaussianNB().fit(X, y), X, y, n_bins=5)
    >>> round(display.ece, 3)
    0.017
    """

    def __init__(
        self,
        bins: Mapping[str, CalibrationBins],
        ece: float,
        *,
        name: str | None = None,
        confidence_level: float | None = 0.95,
    ) -> None:
        self.bins = bins
        self.ece = ece
        self.name = name
        self.confidence_level = confidence_level

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: ArrayLike,
        *,
        y_proba: ArrayLike | None = None,
        name: str | None = None,
        ax: Any = None,
        **options: Any,
    ) -> Self:
        """Draw the diagram of a fitted classifier.

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
        name : str, default=None
            Name for the title; by default the class of the estimator.
        ax : matplotlib Axes, default=None
            Where to draw; by default a new figure.
        **options
            As of :meth:`from_predictions`.

        Returns
        -------
        ReliabilityDisplay
        """
        options = {"labels": estimator.classes_} | options
        proba = estimator.predict_proba(X) if y_proba is None else y_proba
        return cls.from_predictions(y, proba, name=name_of(estimator, name), ax=ax, **options)

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike,
        y_proba: ArrayLike,
        *,
        classes: Sequence[Any] | NDArray[Any] | None = None,
        n_bins: int = 15,
        strategy: str = "uniform",
        confidence_level: float | None = 0.95,
        labels: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        name: str | None = None,
        ax: Any = None,
    ) -> Self:
        """Draw the diagram of predicted probabilities.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            True classes.
        y_proba : array-like of shape (n_samples, n_classes) or (n_samples,)
            Predicted probabilities.
        classes : list of labels or "all", default=None
            Draw one curve for each of these classes, of its probability against its frequency; by default the
            predicted class (top label). At most six.
        n_bins : int, default=15
            Number of bins.
        strategy : {"uniform", "quantile"}, default="uniform"
            Bins of equal width or of equal mass.
        confidence_level : float, default=0.95
            Level of the band; None draws none.
        labels : array-like of shape (n_classes,), default=None
            The class of each column; by default the sorted classes of ``y_true``.
        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights.
        name : str, default=None
            Name for the legend.
        ax : matplotlib Axes, default=None
            Where to draw; by default a new figure.

        Returns
        -------
        ReliabilityDisplay

        Raises
        ------
        ValueError
            If probabilities are not probabilities, labels have no column, or more than six classes are given.
        ImportError
            If matplotlib is not installed.
        """
        import_pyplot(cls.__name__)
        common: dict[str, Any] = {"labels": labels, "sample_weight": sample_weight}
        ece = expected_calibration_error(y_true, y_proba, n_bins=n_bins, strategy=strategy, **common)
        if isinstance(classes, str) and classes == "all":
            classes = np.unique(y_true) if labels is None else np.asarray(labels)
        if classes is not None and not 1 <= len(classes) <= len(COLORS):
            raise ValueError(f"classes must name 1 to {len(COLORS)} classes to be legible, got {len(classes)}.")
        common |= {"n_bins": n_bins, "strategy": strategy}
        if classes is None:
            bins = {"top label": calibration_bins(y_true, y_proba, **common)}
        else:
            bins = {str(label): calibration_bins(y_true, y_proba, pos_label=label, **common) for label in classes}
        return cls(bins, ece, name=name, confidence_level=confidence_level).plot(ax)

    def plot(self, ax: Any = None, *, name: str | None = None) -> Self:
        """Draw the diagram.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes whose place the two panels take. By default a new figure.
        name : str, default=None
            Name for the legend; by default the one given before.

        Returns
        -------
        ReliabilityDisplay
        """
        ax = new_axes(type(self).__name__, ax, (4.2, 4.8))
        ax, below = split_axes(type(self).__name__, ax, 2, 1, height_ratios=[4, 1])[:, 0]
        below.sharex(ax)
        ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (1, 1)))
        self.lines_ = []
        single = len(self.bins) == 1
        for i, (label, bins) in enumerate(self.bins.items()):
            filled = bins.weight > 0
            confidence, accuracy = bins.confidence[filled], bins.accuracy[filled]
            if self.confidence_level is not None:
                low, high = _wilson(accuracy, bins.effective_size[filled], self.confidence_level)
                ax.fill_between(confidence, low, high, color=COLORS[i], alpha=0.18 if single else 0.1, linewidth=0)
            style = {"color": COLORS[i], "linestyle": LINES[i], "marker": MARKERS[i]}
            size = 3 if font_size(ax) < 10 else 4.5
            self.lines_ += ax.plot(confidence, accuracy, label=label, linewidth=1.4, markersize=size, **style)
            share = bins.weight / bins.weight.sum()
            if single:
                width = np.diff(bins.edges)
                below.bar(bins.edges[:-1], share, width, align="edge", color=COLORS[i], edgecolor="white")
            else:
                below.stairs(share, bins.edges, color=COLORS[i], linestyle=LINES[i], linewidth=1.2)
        name = self.name if name is None else name
        title = f"{name}, ECE {self.ece:.3f}" if name else f"ECE {self.ece:.3f}"
        ax.set(xlim=(0, 1), ylim=(0, 1))
        tidy(ax, ylabel="Accuracy" if single else "Frequency of the class", title=title)
        tidy(below, xlabel="Confidence" if single else "Probability of the class", ylabel="Share")
        ax.tick_params(labelbottom=False)
        if not single:
            for text in legend(ax, loc="upper left").get_texts():
                text.set_parse_math(False)  # names of classes are no formulae
        self.ax_, self.histogram_ax_, self.figure_ = ax, below, ax.figure
        return self


def _wilson(share, size, level):
    """Ends of Wilson's interval of a share observed in ``size`` samples."""
    from scipy.stats import norm

    z = norm.ppf((1 + level) / 2)
    centre = (share + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z / (1 + z**2 / size) * np.sqrt(share * (1 - share) / size + z**2 / (4 * size**2))
    return centre - half, centre + half
