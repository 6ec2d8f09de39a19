"""Chosen items at a glance: each with its prediction and how far to trust it."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import _num_samples

from skve._runtime.wording import shortened
from skve.metrics._inputs import check_count
from skve.plots._samples import draw_sample, names_of_samples, shown_samples
from skve.plots._style import COLORS, font_size, import_pyplot, name_of, new_axes, split_axes
from skve.uncertainty import Uncertainty
from skve.uncertainty._prediction import predict_all
from skve.uncertainty._scores import check_measure, scores_of

_N_COLUMNS = 6  # at most; fewer in narrow figures


class ContactSheetDisplay:
    """Images side by side, or texts in a list, each with its prediction, confidence, uncertainty and novelty.

    Shows, for instance, the items that a model is least sure of, or those least like its training data. The caption
    of an item gives the predicted class (and the true one if the prediction is wrong: these captions have another
    colour), the confidence, the total uncertainty in nats, the novelty, and the name of the file or the
    place among the samples. Use :meth:`from_estimator` or :meth:`from_predictions` to make one.

    Parameters
    ----------
    samples : list of length n_items
        The items: images as arrays, texts, or None for what cannot be shown.
    uncertainty : Uncertainty of n_items samples
        Their uncertainties, with the `prediction`.
    names : list of str
        The items' files, by their paths in the folder that holds all files, or their places among the samples.
    y_true : ndarray of shape (n_items,), default=None
        True classes.
    name : str, default=None
        Title above all, for instance the name of the model.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes whose place the items take.
    axes_ : ndarray of matplotlib Axes, shape (n_rows, n_columns)
        One for each image, in rows of six; or for each text, in one column.
    figure_ : matplotlib Figure
        Figure that holds them.

    Examples
    --------
    >>> from skve.plots import ContactSheetDisplay
    >>> from skve.uncertainty import Uncertainty
    >>> members = [[[0.9, 0.1], [0.4, 0.6]], [[0.8, 0.2], [0.7, 0.3]]]
    >>> u = Uncertainty.from_members(members, classes=["good", "bad"])
    >>> display = ContactSheetDisplay.from_predictions(u, ["fine", "so so"], n_items=1)
    >>> display.samples
    ['so so']
    """

    def __init__(
        self,
        samples: list[Any],
        uncertainty: Uncertainty,
        names: list[str],
        *,
        y_true: NDArray[Any] | None = None,
        name: str | None = None,
    ) -> None:
        self.samples = samples
        self.uncertainty = uncertainty
        self.names = names
        self.y_true = y_true
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Sequence[Any] | NDArray[Any] | None = None,
        *,
        sort_by: str = "total",
        n_items: int = 12,
        indices: ArrayLike | None = None,
        name: str | None = None,
        ax: Any = None,
    ) -> Self:
        """Draw items with the predictions of a fitted ensemble.

        Parameters
        ----------
        estimator : fitted ensemble
            Has ``predict_proba_members`` and ``classes_``, or wraps an estimator that has; see
            :func:`skve.predict_uncertainty`.
        X : array-like or list of length n_samples
            Images or texts to predict and to choose from.
        y : array-like of shape (n_samples,), default=None
            True classes.
        sort_by : str, default="total"
            The items with the highest values of this measure are shown, the highest first. One as of
            :class:`skve.SelectiveClassifier`.
        n_items : int, default=12
            Number of items.
        indices : array-like of int, shape (n_items,), default=None
            Which items to show instead, in this order.
        name : str, default=None
            Title above all; by default the class of the estimator.
        ax : matplotlib Axes, default=None
            Axes whose place the items take; by default a new figure.

        Returns
        -------
        ContactSheetDisplay
        """
        import_pyplot(cls.__name__)
        options: dict[str, Any] = {"sort_by": sort_by, "n_items": n_items, "indices": indices}
        return cls.from_predictions(
            predict_all(estimator, X).uncertainty, X, y_true=y, name=name_of(estimator, name), ax=ax, **options
        )

    @classmethod
    def from_predictions(
        cls,
        uncertainty: Uncertainty,
        samples: Any,
        *,
        y_true: Sequence[Any] | NDArray[Any] | None = None,
        sort_by: str = "total",
        n_items: int = 12,
        indices: ArrayLike | None = None,
        name: str | None = None,
        ax: Any = None,
    ) -> Self:
        """Draw items with given predictions.

        Parameters
        ----------
        uncertainty : Uncertainty of n_samples
            From ``predict_uncertainty``.
        samples : sequence, array, Series or DataFrame of length n_samples
            Images (arrays, PIL images, paths or bytes), texts or pairs of texts to choose from.
        y_true : array-like of shape (n_samples,), default=None
            True classes.
        sort_by : str, default="total"
            The items with the highest values of this measure are shown, the highest first.
        n_items : int, default=12
            Number of items.
        indices : array-like of int, shape (n_items,), default=None
            Which items to show instead, in this order.
        name : str, default=None
            Title above all.
        ax : matplotlib Axes, default=None
            Axes whose place the items take; by default a new figure.

        Returns
        -------
        ContactSheetDisplay

        Raises
        ------
        ValueError
            If lengths differ, nothing is chosen, `sort_by` is not a measure or is NaN, or `uncertainty` has no
            prediction.
        ImportError
            If matplotlib is not installed.
        """
        import_pyplot(cls.__name__)
        if uncertainty.prediction is None:
            raise ValueError("uncertainty must know the predicted classes, got one whose prediction is None.")
        for values, what in ((samples, "samples"), (y_true, "y_true")):
            if values is not None and _num_samples(values) != len(uncertainty):
                raise ValueError(
                    f"{what} must have {len(uncertainty)} entries like uncertainty, got {_num_samples(values)}."
                )
        if indices is None:
            scores = scores_of(uncertainty, check_measure(sort_by))
            if np.isnan(scores).any():
                raise ValueError(f"sort_by must be a measure that is known, got {sort_by!r}, which has NaN.")
            chosen = np.argsort(-scores, kind="stable")[: check_count(n_items, name="n_items")]
        else:
            chosen = np.arange(len(uncertainty))[np.asarray(indices, None if np.size(indices) else int)]
        if len(chosen) == 0:
            raise ValueError("indices must choose at least one item, got none.")
        parts = _safe_indexing(samples, chosen)
        names = names_of_samples(samples, chosen)
        truth = None if y_true is None else np.asarray(y_true)[chosen]
        return cls(shown_samples(parts), uncertainty[chosen], names, y_true=truth, name=name).plot(ax)

    def plot(self, ax: Any = None, *, name: str | None = None) -> Self:
        """Draw the items.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes whose place the items take; by default a new figure.
        name : str, default=None
            Title above all; by default the one given before.

        Returns
        -------
        ContactSheetDisplay
        """
        caller, n_items = type(self).__name__, len(self.samples)
        name = self.name if name is None else name
        as_list = not any(isinstance(sample, np.ndarray) for sample in self.samples)
        width = 7 if as_list else 1.35 * min(_N_COLUMNS, n_items) + 0.1
        width = width if ax is None else ax.figure.get_figwidth()
        n_columns = 1 if as_list else max(1, min(_N_COLUMNS, n_items, round(width)))
        n_rows = -(-n_items // n_columns)
        ax = new_axes(caller, ax, (width, 0.3 + (0.85 if as_list else 2.15) * n_rows))
        # The title has a row of its own, since captions stand where an axes' title would.
        heights = [0.12 if name else 1e-3, *[1] * n_rows]
        space = {"hspace": 1.0} if ax.figure.get_layout_engine() is None else {}  # nothing else keeps captions apart
        axes = split_axes(caller, ax, n_rows + 1, n_columns, height_ratios=heights, **space)
        for panel in axes[0]:
            panel.set_axis_off()
        if name:
            where = {"transform": axes[0, 0].transAxes, "in_layout": False}  # wider than its column
            axes[0, 0].text(0, 0, name, fontsize=font_size(ax) + 1, parse_math=False, **where)
        axes = axes[1:]
        for panel in axes.flat[n_items:]:  # of the last row
            panel.set_axis_off()
        for place, panel in enumerate(axes.flat[:n_items]):
            caption, is_wrong = self._caption(place, as_list, font_size(ax) < 10)
            panel.set_title(
                caption,
                fontsize=font_size(ax) - (1 if as_list else 3),
                color=COLORS[4] if is_wrong else "black",
                loc="left",
                pad=3,
                parse_math=False,
            )
        ax.figure.draw_without_rendering()  # texts are wrapped to the width that the layout leaves
        for sample, panel in zip(self.samples, axes.flat, strict=False):
            draw_sample(panel, sample)
        self.ax_, self.axes_, self.figure_ = ax, axes, ax.figure
        return self

    def _caption(self, place, as_list, narrow):
        item = self.uncertainty[place]
        answer = str(item.prediction[0])  # type: ignore[index]
        is_wrong = self.y_true is not None and item.prediction[0] != self.y_true[place]  # type: ignore[index]
        limit = 40 if as_list else 20
        parts = [shortened(answer, limit)]
        if is_wrong:
            parts.append(shortened(f"true: {self.y_true[place]}", limit))  # type: ignore[index]
        numbers = [f"confidence {item.confidence[0]:.2f}", f"total {item.total[0]:.2f} nats"]
        if not np.isnan(item.novelty[0]):
            numbers.append(f"novelty {item.novelty[0]:.2f}")
        name = shortened(self.names[place], limit, keep_end=True)
        if as_list:
            return ("\n" if narrow else "   ").join([", ".join(parts), "   ".join([*numbers, name])]), is_wrong
        return "\n".join([*(parts if is_wrong else [*parts, " "]), *numbers, name]), is_wrong
