"""What users pass as images: every accepted container becomes a sequence of images; every input error is here."""

import numbers
import os
import pathlib

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from ._warnings import warn

ONE = 1.001  # the largest float pixel of images from 0 to 1: resizing overshoots a little
WANTED = (
    "paths, PIL images, uint8 or float arrays of shape (n, height, width[, channels]), a list of such images, "
    "a torch tensor of shape (n, channels, height, width), a one-column DataFrame or Series of paths or images, "
    "or rows of pixels together with image_shape="
)


def index_batches(n_samples, batch_size, generator):
    """Return the indices of each batch as a list of arrays, in a random order if there is a generator."""
    order = np.arange(n_samples) if generator is None else torch.randperm(n_samples, generator=generator).numpy()
    return [order[start : start + batch_size] for start in range(0, n_samples, batch_size)]


class ImageSequence:
    """Images of one of the accepted kinds, decoded one at a time.

    Parameters
    ----------
    items : sequence
        Paths, PIL images or arrays (height, width[, channels]).
    float_scale : {None, 1, 255}
        What white is in float pixels; None if there are none.
    numbers : sequence of int, default=None
        The images' indices in the user's X, for messages. None: 0, 1, 2, ...
    """

    def __init__(self, items, float_scale=None, numbers=None):
        self.items, self.float_scale = items, float_scale
        self.numbers = range(len(items)) if numbers is None else numbers

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        """Return image `index` as an RGB PIL image."""
        item, number = self.items[index], self.numbers[index]
        if isinstance(item, str | os.PathLike):
            return _open(item, number)
        if isinstance(item, Image.Image):
            return _to_rgb(item, f"X[{number}]")
        pixels = np.asarray(item)
        if pixels.dtype.kind == "f":
            _check_range(pixels, self.float_scale, number)
            scale = self.float_scale or (1 if pixels.max() <= ONE else 255)
            pixels = np.rint(np.clip(pixels / scale, 0, 1) * 255).astype(np.uint8)
        elif pixels.dtype.kind == "b":
            pixels = pixels * np.uint8(255)
        if pixels.ndim == 3 and pixels.shape[-1] == 1:
            pixels = pixels[..., 0]
        return Image.fromarray(np.ascontiguousarray(pixels, np.uint8)).convert("RGB")

    def take(self, indices):
        """Return the images at `indices` as a sequence of their own."""
        items = self.items
        chosen = items[indices] if isinstance(items, np.ndarray) else [items[i] for i in indices]
        return ImageSequence(chosen, self.float_scale, [self.numbers[i] for i in indices])


def _open(path, index):
    try:
        with Image.open(path) as image:
            return _to_rgb(image, f"X[{index}] = {str(path)!r}")
    except FileNotFoundError:
        raise ValueError(f"X[{index}] = {str(path)!r}: there is no such file") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"X[{index}] = {str(path)!r} cannot be read as an image: {error}") from error


def _to_rgb(image, where):
    if image.mode in ("I", "F") or image.mode.startswith("I;"):  # Pillow would cut off what exceeds 255
        raise ValueError(
            f"{where} has more than 8 bits a pixel (mode {image.mode!r}); scale it to 0 to 255, for instance as an "
            f"array of uint8"
        )
    try:
        return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{where} cannot be decoded: {error}") from error


def check_images(X, *, image_shape=None, float_scale=None, learn=True):
    """Turn X of any accepted kind into an `ImageSequence`.

    Parameters
    ----------
    X : object
        See `WANTED`.
    image_shape : tuple of int or None
        (height, width) or (height, width, channels) of 2-D rows of pixels.
    float_scale : {None, 1, 255}
        The scale of float pixels that was learned in fit; None if there is none.
    learn : bool, default=True
        Whether to learn the scale from X: 1 if no pixel exceeds 1, else 255. Otherwise, without a known scale,
        each image is judged by itself, so that its prediction does not depend on the others.

    Returns
    -------
    ImageSequence

    Raises
    ------
    TypeError
        If X or an element is of no accepted kind.
    ValueError
        If X is empty, or an image has a wrong shape, channel count, type or values; the index is named.
    """
    X = _unwrap(X, image_shape)
    if len(X) == 0:
        raise ValueError("X is empty: 0 sample(s) while a minimum of 1 is required")
    for index, item in enumerate(X if not _is_pixels(X) else ()):
        if isinstance(item, str | os.PathLike):
            path = pathlib.Path(item)
            if path.is_dir():
                raise ValueError(f"X[{index}] = {str(item)!r} is a folder; pass the files in it")
            if not path.is_file():
                hint = "; '~' is not expanded" if str(item).startswith("~") else ""
                raise ValueError(f"X[{index}] = {str(item)!r}: there is no such file{hint}")
        elif not isinstance(item, Image.Image):
            _check_pixels(item, f"X[{index}]")
    if _is_pixels(X):
        _check_pixels(X, "X", batch=True)
    if float_scale is None and not learn:
        return ImageSequence(X)
    largest = max([_float_max(X)] if _is_pixels(X) else [_float_max(item) for item in X])
    if float_scale is None and largest >= 0:
        float_scale = 1 if largest <= ONE else 255
        if ONE < largest < 64:
            warn(
                f"the float pixels of X reach only {largest:g} and are taken as 0 to 255: nearly black; "
                f"bring them to 0 to 1 if that is not meant"
            )
    elif float_scale == 255 and 0 < largest <= ONE and _has_fractions(X):
        raise ValueError(
            f"X has float pixels up to {largest:g} only, but the estimator was fitted on float pixels from 0 to 255; "
            f"multiply them by 255"
        )
    return ImageSequence(X, float_scale)


def _is_pixels(X):
    return isinstance(X, np.ndarray) and X.dtype != object


def _unwrap(X, image_shape):
    """Reduce containers to a numeric array (n, height, width[, channels]) or a list of single images."""
    kind = type(X).__name__
    if isinstance(X, str | bytes | os.PathLike | Image.Image):
        if isinstance(X, str | os.PathLike) and pathlib.Path(X).is_dir():
            raise TypeError(f"X is the folder {str(X)!r}; wanted a list of its files, as sorted(Path(X).glob('*/*'))")
        raise TypeError(f"X is one {kind}; wanted a list of images, as in [X]")
    if _is_torch_dataset(X):
        raise TypeError(
            f"X is a torch {kind}; pass what it reads instead: {WANTED}. "
            f"(X = [image for image, label in dataset] makes a list of it)"
        )
    if hasattr(X, "columns") and hasattr(X, "shape"):  # pandas and polars frames, duck-typed
        if X.shape[1] != 1 and image_shape is None:
            raise ValueError(f"X has {X.shape[1]} columns; wanted one column of paths or images")
        X = X.iloc[:, 0] if hasattr(X, "iloc") and image_shape is None else X.to_numpy()
    if hasattr(X, "detach") and hasattr(X, "numpy"):
        if X.dim() == 3:
            raise ValueError(
                f"X is a tensor of shape {tuple(X.shape)}; wanted (n, channels, height, width): X[:, None] makes "
                f"grey images of it, X[None] one image"
            )
        X = _from_tensor(X)
    if hasattr(X, "to_numpy"):
        X = X.to_numpy()
    if isinstance(X, list | tuple):
        X = [_from_tensor(item) if hasattr(item, "detach") else item for item in X]
        if image_shape is not None:
            X = np.asarray(X)
    if not isinstance(X, np.ndarray | list):
        raise TypeError(f"X is a {kind}; wanted {WANTED}")
    if isinstance(X, np.ndarray) and X.dtype == object and X.ndim in (3, 4):
        X = np.array(X.tolist())  # what NumPy makes of equally large images in np.array(images, dtype=object)
    if isinstance(X, np.ndarray) and X.dtype.kind in "OUST":
        if X.ndim == 2 and X.shape[1] == 1:
            X = X[:, 0]
        if X.ndim != 1:
            raise ValueError(f"X has shape {X.shape}; wanted one column of paths or images")
        X = [str(item) if isinstance(item, np.str_) else item for item in X]
    if isinstance(X, np.ndarray) and image_shape is not None:
        X = _rows_to_images(X, image_shape)
    return X


def _rows_to_images(X, image_shape):
    sides = list(image_shape)
    if len(sides) not in (2, 3) or not all(isinstance(side, numbers.Integral) and int(side) > 0 for side in sides):
        raise ValueError(f"image_shape={image_shape!r}: wanted (height, width) or (height, width, channels)")
    if X.ndim != 2 or X.shape[1] != int(np.prod(image_shape)):
        raise ValueError(
            f"image_shape={tuple(image_shape)} wants X of shape (n, {int(np.prod(image_shape))}); got {X.shape}"
        )
    return X.reshape(len(X), *image_shape)


def _is_torch_dataset(X):
    return any(base.__module__.startswith("torch.utils.data") for base in type(X).__mro__)


def _from_tensor(tensor):
    """Bring a tensor (n, channels, height, width) or (channels, height, width) into the order of arrays."""
    tensor = tensor.detach().cpu()
    array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()  # NumPy has no bfloat16
    if array.ndim >= 3 and array.shape[-3] in (1, 3, 4):
        return np.moveaxis(array, -3, -1)
    if array.ndim == 4:
        raise ValueError(
            f"X is a tensor of shape {tuple(array.shape)}; wanted (n, channels, height, width) "
            f"with 1, 3 or 4 channels"
        )
    return array


def _check_pixels(item, where, batch=False):
    if not isinstance(item, np.ndarray):
        if isinstance(item, numbers.Number | bytes | type(None) | dict):
            raise TypeError(f"{where} is {item!r}, a {type(item).__name__}; wanted a path, PIL image or array")
        try:
            item = np.asarray(item)
        except ValueError as error:
            raise TypeError(f"{where} is a {type(item).__name__} that is no array: {error}") from error
    n_batch = int(batch)
    shape = item.shape[n_batch:]
    if batch and item.ndim == 3 and item.shape[-1] in (3, 4):
        raise ValueError(f"{where} has shape {item.shape}, which looks like one colour image; pass X[None]")
    if len(shape) not in (2, 3):
        hint = "; rows of pixels need image_shape=(height, width[, channels])" if batch else ""
        raise ValueError(
            f"{where} has shape {item.shape}; wanted {'(n, ' if batch else '('}height, width[, channels]){hint}"
        )
    if len(shape) == 3 and shape[-1] not in (1, 3, 4):
        hint = ""
        if shape[0] in (1, 3, 4):
            hint = "; it looks channels-first: turn it by np.moveaxis(X, -3, -1), or pass a tensor"
        raise ValueError(
            f"{where} has {shape[-1]} channels (shape {item.shape}); wanted 1, 3 or 4 as last axis{hint}"
        )
    if 0 in shape:
        raise ValueError(f"{where} has shape {item.shape}: there is no pixel in it")
    if item.dtype.kind == "f":
        if not np.isfinite(item).all():
            at = f"{where}[{int(np.argwhere(~np.isfinite(item))[0][0])}]" if batch else where
            raise ValueError(f"{at} contains NaN or infinity; pixels must be finite")
        if item.min() < 0 or item.max() > 255:
            raise ValueError(
                f"{where} has float pixels from {item.min():g} to {item.max():g}; wanted 0 to 1 or 0 to 255"
            )
    elif item.dtype.kind not in "iub" or item.min() < 0 or item.max() > 255:
        values = f" from {item.min()} to {item.max()}" if item.dtype.kind in "iu" else ""
        raise ValueError(
            f"{where} has pixels of type {item.dtype}{values}; wanted integers from 0 to 255, "
            f"or floats from 0 to 1 or 0 to 255"
        )


def _float_max(item):
    """Return the largest float pixel, -1 where there is none."""
    if isinstance(item, str | os.PathLike | Image.Image):
        return -1.0
    item = np.asarray(item)
    return float(item.max()) if item.dtype.kind == "f" else -1.0


def _has_fractions(X):
    arrays = [X] if _is_pixels(X) else [np.asarray(item) for item in X if not isinstance(item, str | Image.Image)]
    return any(array.dtype.kind == "f" and bool((array != np.rint(array)).any()) for array in arrays)


def _check_range(pixels, scale, index):
    if scale == 1 and pixels.max() > ONE:
        raise ValueError(
            f"X[{index}] has float pixels up to {pixels.max():g}, but the estimator was fitted on float pixels from "
            f"0 to 1; bring all images to one scale, or to uint8"
        )
