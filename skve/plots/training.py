"""The course of a training: losses, and the singular values of every layer."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skve.plots._style import COLORS, font_size, import_pyplot, legend, name_of, new_axes, split_axes, tidy
from skve.uncertainty._wrappers import unwrap

# A map whose lightness rises evenly: the order of the layers survives greyscale.
_COLORMAP = "cividis"
_ENTRIES = {"epoch", "loss", "valid_nll", "ratio_spread"}  # of a history


class TrainingDisplay:
    """Loss, validation NLL and spread of the singular-value ratios over the epochs.

    Use :meth:`from_estimator` or :meth:`from_history` to make one.

    Parameters
    ----------
    history : dict
        ``"epoch"``, ``"loss"``, ``"valid_nll"`` (nats; NaN without validation data): lists of one entry
        per epoch; ``"ratio_spread"``: such a list for each layer.
    name : str, default=None
        Name of the model, for the title.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes whose place the panels take.
    axes_ : ndarray of matplotlib Axes, shape (2,)
        Losses above, spread of the ratios below. Only the first if no layer is adapted.
    figure_ : matplotlib Figure
        Figure that holds them.

    Examples
    --------
    >>> from skve.plots import TrainingDisplay
    >>> history = {
    ...     "epoch": [1, 2],
    ...     "loss": [1.2, 0.8],
    ...     "valid_nll": [1.1, 0.9],
    ...     "ratio_spread": {"block.0": [0.01, 0.02], "block.1": [0.01, 0.03]},
    ... }
    >>> TrainingDisplay.from_history(history).axes_.shape
    (2,)
    """

    def __init__(self, history: Mapping[str, Any], *, name: str | None = None) -> None:
        self.history = history
        self.name = name

    @classmethod
    def from_estimator(cls, estimator: Any, *, name: str | None = None, ax: Any = None) -> Self:
        """Draw the training of a fitted estimator.

        Parameters
        ----------
        estimator : fitted estimator
            Has ``history_``, or wraps an estimator that has; see :func:`skve.predict_uncertainty`.
        name : str, default=None
            Name for the title; by default the class of the estimator.
        ax : matplotlib Axes, default=None
            Axes whose place the panels take; by default a new figure.

        Returns
        -------
        TrainingDisplay

        Raises
        ------
        TypeError
            If no ``history_`` is found.
        sklearn.exceptions.NotFittedError
            If the estimator is not fitted.
        """
        model, _, _ = unwrap(estimator, None, "history_")
        return cls.from_history(model.history_, name=name_of(model, name), ax=ax)

    @classmethod
    def from_history(cls, history: Mapping[str, Any], *, name: str | None = None, ax: Any = None) -> Self:
        """Draw a given history.

        Parameters
        ----------
        history : dict
            As the parameter of the class.
        name : str, default=None
            Name for the title.
        ax : matplotlib Axes, default=None
            Axes whose place the panels take; by default a new figure.

        Returns
        -------
        TrainingDisplay

        Raises
        ------
        ValueError
            If entries are missing, empty or of different lengths.
        ImportError
            If matplotlib is not installed.
        """
        import_pyplot(cls.__name__)
        missing = _ENTRIES - set(history)
        if missing:
            raise ValueError(
                f"history must have the entries {sorted(_ENTRIES)}, got none of the name {sorted(missing)}."
            )
        n_epochs = len(history["epoch"])
        if n_epochs == 0:
            raise ValueError("history must have at least one epoch, got none.")
        lists = {"loss": history["loss"], "valid_nll": history["valid_nll"], **history["ratio_spread"]}
        for key, values in lists.items():
            if len(values) != n_epochs:
                raise ValueError(
                    f"history must have {n_epochs} values of {key!r}, as many as epochs, got {len(values)}."
                )
        return cls(history, name=name).plot(ax)

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
        TrainingDisplay
        """
        from matplotlib.ticker import MaxNLocator

        epochs, spread = self.history["epoch"], self.history["ratio_spread"]
        ax = new_axes(type(self).__name__, ax, (4.6, 4.8 if spread else 2.8))
        axes = split_axes(type(self).__name__, ax, 2 if spread else 1, 1)[:, 0]
        name = self.name if name is None else name

        marks = {"markersize": 4, "linewidth": 1.5}
        axes[0].plot(epochs, self.history["loss"], color=COLORS[0], marker="o", label="training loss", **marks)
        validation = np.asarray(self.history["valid_nll"], dtype=float)
        if not np.isnan(validation).all():
            axes[0].plot(epochs, validation, color=COLORS[1], marker="s", ls="--", label="validation NLL", **marks)
        tidy(axes[0], ylabel="Loss (nats)", xlabel=None if spread else "Epoch", title=name)
        legend(axes[0], loc="best")

        if spread:
            import matplotlib as mpl

            norm, colormap = mpl.colors.Normalize(0, max(len(spread) - 1, 1)), mpl.colormaps[_COLORMAP]
            for depth, values in enumerate(spread.values()):
                axes[1].plot(epochs, values, color=colormap(norm(depth)), linewidth=1.1)
            tidy(axes[1], xlabel="Epoch", ylabel="Spread of the ratios")
            axes[1].update_datalim([(epochs[0], 0)])  # so that the margin above is of the whole height
            axes[1].autoscale_view()
            axes[1].set_ylim(bottom=0)
            axes[0].sharex(axes[1])
            axes[0].tick_params(labelbottom=False)
            if len(spread) > 1:
                colors = mpl.cm.ScalarMappable(norm, colormap)
                bar = ax.figure.colorbar(colors, ax=axes[1], ticks=[0, len(spread) - 1], pad=0.02)
                bar.ax.set_yticklabels(["first\nlayer", "last\nlayer"], fontsize=font_size(ax) - 1)
                bar.outline.set_visible(False)
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        self.ax_, self.axes_, self.figure_ = ax, axes, ax.figure
        return self


class LayersDisplay:
    """How far the singular values, or the factors of channels, of each layer moved, by member.

    On the left, the root mean square of the log ratios of each member, in percent: 0 is unchanged. On the
    right the ratios themselves: median, and the range of the middle 90 %, over all members. Use
    :meth:`from_estimator` or :meth:`from_ratios` to make one.

    Parameters
    ----------
    ratios : dict of {str: ndarray of shape (n_members, n_values)}
        For each layer, singular values as ratios to their pretrained values, or with ``ensemble="scale"`` the
        factors of its input channels; 1 is unchanged.
    name : str, default=None
        Name of the model, for the title.

    Attributes
    ----------
    change : ndarray of shape (n_layers, n_members)
        Root mean square of the log ratios, as a fraction.
    ax_ : matplotlib Axes
        Axes whose place the panels take.
    axes_ : ndarray of matplotlib Axes, shape (2,)
        The change by layer and member, and the ratios by layer.
    figure_ : matplotlib Figure
        Figure that holds them.

    Examples
    --------
    >>> import numpy as np
    >>> from skve.plots import LayersDisplay
    >>> ratios = {"block.0": np.ones((4, 8)), "block.1": np.full((4, 8), 1.1)}
    >>> LayersDisplay.from_ratios(ratios).change.round(3)
    array([[0.   , 0.   , 0.   , 0.   ],
           [0.095, 0.095, 0.095, 0.095]])
    """

    def __init__(self, ratios: Mapping[str, NDArray[Any]], *, name: str | None = None) -> None:
        self.ratios = ratios
        self.name = name
        logs = [np.log(np.asarray(values, dtype=float)) for values in ratios.values()]
        self.change = np.stack([np.sqrt((values**2).mean(axis=1)) for values in logs])

    @classmethod
    def from_estimator(cls, estimator: Any, *, name: str | None = None, ax: Any = None) -> Self:
        """Draw the layers of a fitted estimator.

        Parameters
        ----------
        estimator : fitted estimator
            Has ``ratios_``, or wraps an estimator that has; see :func:`skve.predict_uncertainty`.
        name : str, default=None
            Name for the title; by default the class of the estimator.
        ax : matplotlib Axes, default=None
            Axes whose place the panels take; by default a new figure.

        Returns
        -------
        LayersDisplay

        Raises
        ------
        TypeError
            If no ``ratios_`` are found.
        sklearn.exceptions.NotFittedError
            If the estimator is not fitted.
        """
        model, _, _ = unwrap(estimator, None, "ratios_")
        return cls.from_ratios(model.ratios_, name=name_of(model, name), ax=ax)

    @classmethod
    def from_ratios(cls, ratios: Mapping[str, ArrayLike], *, name: str | None = None, ax: Any = None) -> Self:
        """Draw given ratios.

        Parameters
        ----------
        ratios : dict of {str: array-like of shape (n_members, n_values)}
            As the parameter of the class.
        name : str, default=None
            Name for the title.
        ax : matplotlib Axes, default=None
            Axes whose place the panels take; by default a new figure.

        Returns
        -------
        LayersDisplay

        Raises
        ------
        ValueError
            If there are no layers, shapes do not fit or a ratio is not positive.
        ImportError
            If matplotlib is not installed.
        """
        import_pyplot(cls.__name__)
        if not ratios:
            raise ValueError("ratios must have at least one layer, got none.")
        arrays = {layer: np.asarray(values) for layer, values in ratios.items()}
        n_members = next(iter(arrays.values())).shape[:1]
        for layer, values in arrays.items():
            if values.ndim != 2 or values.size == 0 or values.shape[:1] != n_members:
                raise ValueError(
                    "ratios must hold arrays of shape (n_members, n_values), with as many members in each "
                    f"layer, got {values.shape} in {layer!r}."
                )
            if not (values > 0).all():
                raise ValueError(f"ratios must be positive, got {values.min():g} in {layer!r}.")
        return cls(arrays, name=name).plot(ax)

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
        LayersDisplay
        """
        n_layers, n_members = self.change.shape
        ax = new_axes(type(self).__name__, ax, (5.4, min(1.6 + 0.22 * n_layers, 9)))
        axes = split_axes(type(self).__name__, ax, 1, 2, width_ratios=[1, 1.4])[0]
        size = font_size(ax)
        name = self.name if name is None else name

        image = axes[0].imshow(100 * self.change, aspect="auto", cmap=_COLORMAP, vmin=0)
        tidy(axes[0], xlabel="Member", grid=False)
        every = int(np.ceil(n_members / 4))
        axes[0].set_xticks(range(0, n_members, every), range(1, n_members + 1, every))
        # As many names as fit: each needs its font's height.
        height = ax.get_window_extent().height / ax.figure.dpi
        step = int(np.ceil(n_layers * 1.25 * size / 72 / max(height, 0.5)))
        shown = range(0, n_layers, step)
        layers = _distinct_parts(list(self.ratios))
        axes[0].set_yticks(shown, [_tail(layers[i], 26 if size > 8 else 16) for i in shown], parse_math=False)
        axes[0].tick_params(axis="y", labelsize=size - 2)
        bar = ax.figure.colorbar(image, ax=axes[0], location="bottom", pad=0.02, aspect=12)
        bar.set_label("RMS change (%)", fontsize=size)
        bar.ax.tick_params(labelsize=size - 1)

        low, middle, high = np.transpose([np.quantile(values, [0.05, 0.5, 0.95]) for values in self.ratios.values()])
        places = np.arange(n_layers)
        axes[1].axvline(1, color="0.4", linewidth=1, linestyle=(0, (1, 1)))
        axes[1].hlines(places, low, high, color=COLORS[0], linewidth=min(4, 140 / n_layers), alpha=0.55)
        axes[1].plot(middle, places, "|", color="black", markersize=min(7, 240 / n_layers))
        axes[1].set_ylim(n_layers - 0.5, -0.5)
        tidy(axes[1], xlabel="Ratio: median and middle 90 %")
        axes[1].set_yticks(shown, [])
        if name:
            axes[1].set_title(name, fontsize=size)
        self.ax_, self.axes_, self.figure_ = ax, axes, ax.figure
        return self


def _distinct_parts(names):
    """Names of layers without the parts in front that all share."""
    parts = [name.split(".") for name in names]
    shared = 0
    while all(len(p) > shared + 1 and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    return [".".join(p[shared:]) for p in parts]


def _tail(text, length):
    """The end of a long name: layers differ there."""
    return text if len(text) <= length else "…" + text[-(length - 1) :]
