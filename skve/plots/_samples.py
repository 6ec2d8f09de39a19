"""Samples as they are shown to people: images as arrays, texts as strings."""

import os
import textwrap

import numpy as np

from skve.plots._style import font_size

_BETWEEN = "  |  "  # the texts of a pair


def shown_samples(samples):
    """Return what there is to see of each sample: an image as an array, a text, or None.

    Parameters
    ----------
    samples : sequence, array, Series or DataFrame of length n_samples
        Images (arrays, tensors, PIL images, paths or bytes), texts or pairs of texts.

    Returns
    -------
    list of length n_samples
    """
    if hasattr(samples, "to_numpy"):  # a table would give its columns
        samples = samples.to_numpy()
    return [_showable(sample) for sample in samples]


def _showable(sample):
    if isinstance(sample, tuple) or (isinstance(sample, np.ndarray) and sample.ndim == 1):  # columns of a table
        if len(sample) == 1:
            return _showable(sample[0])
        if all(isinstance(part, str) for part in sample):
            return _BETWEEN.join(sample)
    if isinstance(sample, os.PathLike | bytes) or (isinstance(sample, str) and os.path.isfile(sample)):
        from skve._inputs.image_decoding import decode_file

        try:
            return np.asarray(decode_file(sample, "The sample"))
        except ValueError:
            if isinstance(sample, str):  # a text that happens to be the name of a file
                return sample
            raise
    if isinstance(sample, str):
        return sample
    if hasattr(sample, "getbands"):  # a PIL image, of any mode
        from skve._inputs.image_decoding import decode_opened

        return np.asarray(decode_opened(sample, "The sample"))
    image = np.asarray(sample)
    if image.ndim == 3 and image.shape[0] in (1, 3) and image.shape[2] not in (1, 3, 4):
        image = image.transpose(1, 2, 0)  # channels first
    return image if image.dtype.kind in "fiub" and image.ndim in (2, 3) else None


def names_of_samples(samples, chosen, places=None):
    """Return names of some samples: of a file, its path in the folder that holds all files; else its place.

    Parameters
    ----------
    samples : sequence, array, Series or DataFrame of length n_samples
    chosen : ndarray of int, shape (n_chosen,)
        Which of them to name.
    places : ndarray of int, shape (n_samples,), default=None
        The places of all, where these are samples of a larger collection.

    Returns
    -------
    list of str, length n_chosen
    """
    rows = samples.to_numpy() if hasattr(samples, "to_numpy") else samples
    files = {index: path for index in chosen if (path := _path_of(rows[index])) is not None and os.path.isfile(path)}
    folder = _shared_folder(rows) if files else ""
    names = {index: os.path.relpath(path, folder) if folder else path for index, path in files.items()}
    return [names.get(index, f"sample {index if places is None else places[index]}") for index in chosen]


def _path_of(sample):
    """Return a string or path as a string, also the only column of a table, or None."""
    if isinstance(sample, np.ndarray | tuple) and np.shape(sample) == (1,):
        sample = sample[0]
    return os.fspath(sample) if isinstance(sample, str | os.PathLike) else None


def _shared_folder(samples):
    paths = [path for path in map(_path_of, samples) if path is not None]
    try:
        return os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:  # absolute and relative paths, or different drives
        return ""


def draw_sample(ax, sample):
    """Draw what `shown_samples` gives of one sample into axes of its own."""
    ax.set_axis_off()
    if isinstance(sample, str):
        size = font_size(ax) - 1
        width, height = np.array(ax.get_window_extent().size) * 72 / ax.figure.dpi / size
        # A letter is about half as wide as its font is high, a line 1.25 times as high.
        width = max(8, int(width / 0.54))
        lines = [line for part in sample.splitlines() for line in textwrap.wrap(part, width)]
        fitting = max(1, int(height / 1.25))
        if len(lines) > fitting:
            lines = [*lines[: fitting - 1], lines[fitting - 1] + " …"]
        # Dollar signs are dollars here, no formulae.
        ax.text(0, 0.5, "\n".join(lines), fontsize=size, va="center", transform=ax.transAxes, parse_math=False)
    elif sample is not None:
        ax.imshow(sample.squeeze(), cmap="gray", interpolation="nearest")
