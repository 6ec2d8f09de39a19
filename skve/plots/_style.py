"""The style that the displays share: legible to the colour-blind, in greyscale and at one column's width."""

# Colours of Okabe and Ito ("Color Universal Design", 2008), in an order in which neighbours differ in
# lightness too; line styles and markers repeat the difference for greyscale.
COLORS: tuple[str, ...] = ("#0072B2", "#E69F00", "#000000", "#56B4E9", "#D55E00", "#009E73")
LINES: tuple = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")
GREY = "0.55"
# Below this width (inches) fonts and markers shrink.
_NARROW = 4.5


def import_pyplot(caller):
    """Import matplotlib.pyplot, or say what to install."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            f"{caller} requires matplotlib, which is not installed. Install it: pip install matplotlib."
        ) from error
    return plt


def new_axes(caller, ax, figsize):
    """Return ``ax``, or the axes of a new figure of ``figsize`` inches."""
    plt = import_pyplot(caller)
    if ax is None:
        _, ax = plt.subplots(figsize=figsize, layout="constrained")
    return ax


def split_axes(caller, ax, n_rows, n_columns, **ratios):
    """Replace ``ax`` by a grid of axes in its place, shape (n_rows, n_columns)."""
    import_pyplot(caller)
    import numpy as np

    spec = ax.get_subplotspec()
    if spec is None:
        raise ValueError(
            f"ax must come from plt.subplots or add_subplot for the panels of {caller}, got one without a place in a "
            f"grid."
        )
    ax.set_axis_off()
    grid = spec.subgridspec(n_rows, n_columns, **ratios)
    return np.array([[ax.figure.add_subplot(grid[i, j]) for j in range(n_columns)] for i in range(n_rows)])


def font_size(ax):
    """Size of the text in points, by the width of the figure."""
    return 8 if ax.figure.get_figwidth() < _NARROW else 10


def tidy(ax, *, xlabel=None, ylabel=None, title=None, grid=True):
    """Label the axes in the size that fits, without a frame at the top and right."""
    size = font_size(ax)
    ax.set_xlabel(xlabel or "", fontsize=size)
    ax.set_ylabel(ylabel or "", fontsize=size)
    if title:
        ax.set_title(title, fontsize=size)
    ax.tick_params(labelsize=size - 1)
    ax.spines[["top", "right"]].set_visible(False)
    if grid:
        ax.grid(True, color="0.9", linewidth=0.6)
        ax.set_axisbelow(True)


def legend(ax, **options):
    """Draw a legend in the size that fits, and return it."""
    options = {"fontsize": font_size(ax) - 1, "frameon": False, "handlelength": 2.2} | options
    return ax.legend(**options)


def name_of(estimator, name):
    """The name given, or the class of the estimator."""
    return type(estimator).__name__ if name is None else name
