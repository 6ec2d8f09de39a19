"""What each member predicts for given samples."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skve._runtime.wording import shortened
from skve.metrics._inputs import check_count
from skve.plots._samples import draw_sample, shown_samples
from skve.plots._style import COLORS, MARKERS, font_size, import_pyplot, name_of, new_axes, split_axes, tidy
from skve.uncertainty._validation import check_member_proba
from skve.uncertainty._wrappers import unwrap


class MembersDisplay:
    """The members' probabilities for given samples, next to the image or text.

    One row per sample: for the most probable classes, a mark per member and a bar for their mean. Marks apart
    from each other are epistemic uncertainty; marks together in the middle are aleatoric.
    Use :meth:`from_estimator` or :meth:`from_members` to make one.

    Parameters
    ----------
    member_proba : ndarray of shape (n_members, n_samples, n_classes)
        Probabilities of each member.
    classes : ndarray of shape (n_classes,)
        Names of the classes.
    samples : sequence of length n_samples, default=None
        Images (arrays, PIL images or paths), texts or pairs of texts to show.
    y_true : ndarray of shape (n_samples,), default=None
        True classes, marked by bold type; a true class outside the most probable ones gets a row of its own.
    n_top : int, default=3
        Number of classes per sample.
    name : str, default=None
        Name of the model, for the title.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes whose place the panels take.
    axes_ : ndarray of matplotlib Axes, shape (n_samples, 1) or (n_samples, 2)
        The panels; with samples, the first column shows them.
    figure_ : matplotlib Figure
        Figure that holds them.
    legend_ : matplotlib Legend
        Which mark is which member.

    Examples
    --------
    >>> from skve.plots import MembersDisplay
    >>> members = [[[0.9, 0.1], [0.2, 0.8]], [[0.8, 0.2], [0.7, 0.3]]]
    >>> display = MembersDisplay.from_members(members, samples=["fine", "so so"], classes=["pos", "neg"])
    >>> display.axes_.shape
    (2, 2)
    """

    def __init__(
        self,
        member_proba: NDArray[Any],
        classes: NDArray[Any],
        *,
        samples: Any = None,
        y_true: NDArray[Any] | None = None,
        n_top: int = 3,
        name: str | None = None,
    ) -> None:
        self.member_proba = member_proba
        self.classes = classes
        self.samples = samples
        self.y_true = y_true
        self.n_top = n_top
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Sequence[Any] | NDArray[Any] | None = None,
        *,
        member_proba: ArrayLike | None = None,
        n_top: int = 3,
        name: str | None = None,
        ax: Any = None,
    ) -> Self:
        """Draw the members of a fitted ensemble.

        Parameters
        ----------
        estimator : fitted ensemble
            Has ``predict_proba_members`` and ``classes_``, or wraps an estimator that has; see
            :func:`skve.predict_uncertainty`.
        X : array-like or list of length n_samples
            Samples, images or texts, to predict and to show; a handful.
        y : array-like of shape (n_samples,), default=None
            True classes.
        member_proba : array-like of shape (n_members, n_samples, n_classes), default=None
            ``estimator.predict_proba_members(X)``, where it is known already.
        n_top : int, default=3
            Number of classes per sample.
        name : str, default=None
            Name for the title; by default the class of the estimator.
        ax : matplotlib Axes, default=None
            Axes whose place the panels take; by default a new figure.

        Returns
        -------
        MembersDisplay
        """
        import_pyplot(cls.__name__)
        model, model_X, _ = unwrap(estimator, X, "predict_proba_members")
        return cls.from_members(
            model.predict_proba_members(model_X) if member_proba is None else member_proba,
            samples=X,
            y_true=y,
            classes=model.classes_,
            n_top=n_top,
            name=name_of(model, name),
            ax=ax,
        )

    @classmethod
    def from_members(
        cls,
        member_proba: ArrayLike,
        *,
        samples: Any = None,
        y_true: Sequence[Any] | NDArray[Any] | None = None,
        classes: ArrayLike | None = None,
        n_top: int = 3,
        name: str | None = None,
        ax: Any = None,
    ) -> Self:
        """Draw given probabilities of members.

        Parameters
        ----------
        member_proba : array-like of shape (n_members, n_samples, n_classes)
            Probabilities of each member.
        samples : sequence, array, Series or DataFrame of length n_samples, default=None
            Images (arrays, PIL images or paths), texts or pairs of texts to show; rows of numbers are left out.
        y_true : array-like of shape (n_samples,), default=None
            True classes.
        classes : array-like of shape (n_classes,), default=None
            Names of the classes; by default their numbers.
        n_top : int, default=3
            Number of classes per sample.
        name : str, default=None
            Name for the title.
        ax : matplotlib Axes, default=None
            Axes whose place the panels take; by default a new figure.

        Returns
        -------
        MembersDisplay

        Raises
        ------
        ValueError
            If probabilities are not probabilities, lengths differ or ``n_top`` is not a positive integer.
        ImportError
            If matplotlib is not installed.
        """
        import_pyplot(cls.__name__)
        member_proba = check_member_proba(member_proba)
        _, n_samples, n_classes = member_proba.shape
        if n_samples == 0:
            raise ValueError(f"member_proba must have at least one sample, got shape {member_proba.shape}.")
        classes = np.arange(n_classes) if classes is None else np.asarray(classes)
        for values, n_entries, what in (
            (classes, n_classes, "classes"),
            (samples, n_samples, "samples"),
            (y_true, n_samples, "y_true"),
        ):
            if values is not None and len(values) != n_entries:
                raise ValueError(f"{what} must have {n_entries} entries like member_proba, got {len(values)}.")
        y_true = None if y_true is None else np.asarray(y_true)
        display = cls(member_proba, classes, samples=samples, y_true=y_true, n_top=n_top, name=name)
        return display.plot(ax)

    def plot(self, ax: Any = None, *, name: str | None = None) -> Self:
        """Draw the panels.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes whose place the panels take; by default a new figure.
        name : str, default=None
            Name for the title; by default the one given before.

        Returns
        -------
        MembersDisplay
        """
        caller = type(self).__name__
        n_samples = self.member_proba.shape[1]
        n_top = min(check_count(self.n_top, name="n_top"), len(self.classes))
        ax = new_axes(caller, ax, (5.4, 0.6 + n_samples * (0.35 + 0.25 * n_top)))
        shown = [] if self.samples is None else shown_samples(self.samples)
        with_samples = any(sample is not None for sample in shown)
        if with_samples:
            is_text = all(isinstance(sample, str) for sample in shown)
            axes = split_axes(caller, ax, n_samples, 2, width_ratios=[1.3 if is_text else 0.6, 1])
        else:
            axes = split_axes(caller, ax, n_samples, 1)
        for row in range(n_samples):
            self._draw_row(axes[row, -1], row, n_top, last=row == n_samples - 1)
        name = self.name if name is None else name
        if name:
            axes[0, -1].set_title(f"{name}, {len(self.member_proba)} members", fontsize=font_size(ax))
        if with_samples:
            ax.figure.draw_without_rendering()  # texts are wrapped to the width that the layout leaves
            for panel, sample in zip(axes[:, 0], shown, strict=True):
                draw_sample(panel, sample)
        marks, labels = axes[0, -1].get_legend_handles_labels()
        place = "lower right" if ax.figure.get_layout_engine() is None else "outside lower right"
        self.legend_ = ax.figure.legend(
            marks, labels, loc=place, ncols=min(4, len(marks)), frameon=False, fontsize=font_size(ax) - 1
        )
        self.ax_, self.axes_, self.figure_ = ax, axes, ax.figure
        return self

    def _draw_row(self, ax, row, n_top, *, last):
        proba = self.member_proba[:, row].astype(float)
        mean = proba.mean(axis=0)
        top = np.argsort(-mean, kind="stable")[:n_top]
        if self.y_true is not None:
            true = np.flatnonzero(self.classes == self.y_true[row])
            top = np.append(top, true[~np.isin(true, top)])
        places = np.arange(len(top))
        ax.barh(places, mean[top], height=0.62, color="0.85", edgecolor="0.6", linewidth=0.6, label="mean")
        size = 14 if font_size(ax) < 10 else 24
        # Members keep their height within the bar, so that one can be followed from class to class.
        offsets = np.linspace(-0.22, 0.22, len(proba)) if len(proba) > 1 else np.zeros(1)
        for member, offset in enumerate(offsets):
            ax.scatter(
                proba[member, top],
                places + offset,
                s=size,
                # Another pair of marker and colour for each of 36 members.
                marker=MARKERS[(member + member // len(COLORS)) % len(MARKERS)],
                facecolor=COLORS[member % len(COLORS)],
                edgecolor="black",
                linewidth=0.4,
                zorder=3,
                clip_on=False,
                label=f"member {member + 1}",
            )
        ax.set(xlim=(0, 1), ylim=(len(top) - 0.45, -0.55))
        tidy(ax, xlabel="Probability" if last else None, grid=False)
        names = [shortened(str(self.classes[column]), 18 if size > 14 else 13) for column in top]
        ax.set_yticks(places, names, parse_math=False)
        ax.tick_params(left=False, labelbottom=last)
        ax.set_xticks([0, 0.5, 1])
        if self.y_true is not None:
            for tick, column in zip(ax.get_yticklabels(), top, strict=True):
                if self.classes[column] == self.y_true[row]:
                    tick.set_fontweight("bold")
