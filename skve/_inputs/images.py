"""What users pass as images: every accepted container becomes a sequence of images; every input error is here."""

import numbers
import os

import numpy as np
import torch
from PIL import Image

from skve._inputs.image_decoding import ONE, decode_file, decode_opened, from_array
from skve._runtime.warnings import warn

WANTED = (
    "paths, bytes or open files of images, PIL images, uint8, uint16 or float arrays of shape (n, height, width[, "
    "channels]), a list of such images, a torch tensor of shape (n, channels, height, width), a one-column DataFrame "
    "or Series of paths or images, or rows of pixels together with image_shape="
)
CHANNELS = (1, 3, 4)
ENCODED = (str, os.PathLike, bytes)  # what has to be decoded


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
        item, where = self.items[index], f"X[{self.numbers[index]}]"
        if isinstance(item, bytes):
            return decode_file(item, f"{where} ({len(item)} bytes)")
        if isinstance(item, ENCODED):
            return decode_file(item, f"{where} = {str(item)!r}")
        if isinstance(item, Image.Image):
            return decode_opened(item, where)
        return from_array(np.asarray(item), self.float_scale, where)

    def is_encoded(self, index):
        """Say whether image `index` is a file, which takes long to decode."""
        return isinstance(self.items[index], ENCODED)

    def take(self, indices):
        """Return the images at `indices` as a sequence of their own."""
        items = self.items
        chosen = items[indices] if isinstance(items, np.ndarray) else [items[i] for i in indices]
        return ImageSequence(chosen, self.float_scale, [self.numbers[i] for i in indices])


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
            _check_path(item, f"X[{index}] = {str(item)!r}")
        elif not isinstance(item, bytes | Image.Image):
            _check_pixels(item, f"X[{index}]")
    if _is_pixels(X):
        _check_pixels(X, "X", batch=True)
    arrays = [X] if _is_pixels(X) else [np.asarray(x) for x in X if not isinstance(x, (*ENCODED, Image.Image))]
    _check_16_bits(arrays, learn)
    if float_scale is None and not learn:
        return ImageSequence(X)
    floats = [array for array in arrays if array.dtype.kind == "f"]
    largest = max((float(array.max()) for array in floats), default=-1.0)
    if float_scale is None and largest >= 0:
        float_scale = 1 if largest <= ONE else 255
        if ONE < largest < 64:
            warn(
                f"the float pixels of X reach only {largest:g} and are taken as 0 to 255: nearly black; "
                f"bring them to 0 to 1 if that is not meant"
            )
    elif float_scale == 255 and 0 < largest <= ONE and any((array != np.rint(array)).any() for array in floats):
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
    if isinstance(X, str | bytes | bytearray | memoryview | os.PathLike | Image.Image) or hasattr(X, "read"):
        if isinstance(X, str | os.PathLike) and os.path.isdir(X):
            raise TypeError(
                f"X is the folder {str(X)!r}; wanted a list of its files: X, y = "
                f"skve.datasets.load_image_folder(folder) lists those of class folders"
            )
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
    if isinstance(X, torch.Tensor):
        if X.dim() == 3:
            raise ValueError(
                f"X is a tensor of shape {tuple(X.shape)}; wanted (n, channels, height, width): X[:, None] makes "
                f"grey images of it, X[None] one image"
            )
        X = _from_tensor(X, "X")
    elif isinstance(X, np.ndarray) and X.ndim == 4 and image_shape is None:
        _check_layout(X.shape, "X")
    if hasattr(X, "to_numpy"):
        X = X.to_numpy()
    if isinstance(X, list | tuple):
        X = [_unwrap_item(item, f"X[{index}]") for index, item in enumerate(X)]
        if image_shape is not None:
            X = np.asarray(X)
    if not isinstance(X, np.ndarray | list):
        raise TypeError(f"X is a {kind}; wanted {WANTED}")
    if isinstance(X, np.ndarray) and X.dtype == object and X.ndim in (3, 4):
        X = np.array(X.tolist())  # what NumPy makes of equally large images in np.array(images, dtype=object)
    if isinstance(X, np.ndarray) and X.dtype.kind == "S":
        raise TypeError(
            f"X is an array of {X.dtype}, which cuts zeros off the end of bytes; wanted a list of bytes or str"
        )
    if isinstance(X, np.ndarray) and X.dtype.kind in "OUT":
        if X.ndim == 2 and X.shape[1] == 1:
            X = X[:, 0]
        if X.ndim != 1:
            raise ValueError(f"X has shape {X.shape}; wanted one column of paths or images")
        X = [_unwrap_item(item, f"X[{index}]") for index, item in enumerate(X)]
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


def _unwrap_item(item, where):
    """Bring tensors into the order of arrays, and read open files at once: they would not survive a pickle."""
    if isinstance(item, torch.Tensor):
        return _from_tensor(item, where)
    if isinstance(item, np.str_):
        return str(item)
    if isinstance(item, bytearray | memoryview):
        return bytes(item)
    if isinstance(item, np.ndarray) and item.ndim == 3:
        _check_layout(item.shape, where)
    if not hasattr(item, "read") or isinstance(item, os.PathLike):
        return item
    try:
        if hasattr(item, "seek") and item.seekable():
            item.seek(0)
        content = item.read()
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}: the open file cannot be read: {error}; pass its path or its bytes") from error
    if not isinstance(content, bytes):
        raise TypeError(
            f"{where} is a file that gives {type(content).__name__}; open it in binary mode, open(path, 'rb')"
        )
    return content


def _check_layout(shape, where):
    """Refuse images that could have their channels first as well as last."""
    first, middle, last = shape[-3:]
    if first in CHANNELS and last in CHANNELS:
        raise ValueError(
            f"{where} has shape {tuple(shape)}, which may be {first} x {middle} pixels with {last} channels last, or "
            f"{middle} x {last} pixels with {first} channels first; pass PIL images, or rows with "
            f"image_shape=(height, width, channels)"
        )


def _from_tensor(tensor, where):
    """Bring a tensor (n, channels, height, width) or (channels, height, width) into the order of arrays."""
    tensor = tensor.detach().cpu()
    array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()  # NumPy has no bfloat16
    if array.ndim >= 3 and array.shape[-3] in CHANNELS:
        _check_layout(array.shape, where)
        return np.moveaxis(array, -3, -1)
    if array.ndim == 4:
        raise ValueError(
            f"{where} is a tensor of shape {tuple(array.shape)}; wanted (n, channels, height, width) "
            f"with 1, 3 or 4 channels"
        )
    return array


def _check_pixels(item, where, batch=False):
    if not isinstance(item, np.ndarray):
        if isinstance(item, numbers.Number | type(None) | dict):
            raise TypeError(f"{where} is {item!r:.60}, a {type(item).__name__}; wanted a path, PIL image or array")
        try:
            item = np.asarray(item)
        except ValueError as error:
            raise TypeError(
                f"{where} is a {type(item).__name__} that is no array: {error}; wanted rows of equal length"
            ) from error
    n_batch = int(batch)
    shape = item.shape[n_batch:]
    if batch and item.ndim == 3 and item.shape[-1] in (3, 4):
        raise ValueError(f"{where} has shape {item.shape}, which looks like one colour image; pass X[None]")
    if len(shape) not in (2, 3):
        hint = "; rows of pixels need image_shape=(height, width[, channels])" if batch else ""
        raise ValueError(
            f"{where} has shape {item.shape}; wanted {'(n, ' if batch else '('}height, width[, channels]){hint}"
        )
    if len(shape) == 3 and shape[-1] not in CHANNELS:
        hint = ""
        if shape[0] in CHANNELS:
            hint = "; it looks channels-first: turn it by np.moveaxis(X, -3, -1), or pass a tensor"
        raise ValueError(
            f"{where} has {shape[-1]} channels (shape {item.shape}); wanted 1, 3 or 4 as last axis{hint}"
        )
    if 0 in shape:
        raise ValueError(f"{where} has shape {item.shape}: there is no pixel in it; at least 1 is wanted")
    if item.dtype.kind == "f":
        if not np.isfinite(item).all():
            at = f"{where}[{int(np.argwhere(~np.isfinite(item))[0][0])}]" if batch else where
            raise ValueError(f"{at} contains NaN or infinity; pixels must be finite")
        if item.min() < 0 or item.max() > 255:
            raise ValueError(
                f"{where} has float pixels from {item.min():g} to {item.max():g}; wanted 0 to 1 or 0 to 255"
            )
    elif item.dtype != np.uint16 and (item.dtype.kind not in "iub" or item.min() < 0 or item.max() > 255):
        values = f" from {item.min()} to {item.max()}" if item.dtype.kind in "iu" else ""
        raise ValueError(
            f"{where} has pixels of type {item.dtype}{values}; wanted integers from 0 to 255, uint16 from 0 to "
            f"65535, or floats from 0 to 1 or 0 to 255"
        )


def _check_16_bits(arrays, learn):
    """Check that uint16 arrays use their range, so that 8-bit values in them are never taken for black images."""
    largest = max((int(array.max()) for array in arrays if array.dtype == np.uint16), default=0)
    if 0 < largest <= 255:
        raise ValueError(
            f"X has pixels of type uint16 up to {largest} only, which may be images from 0 to 255 or black ones from "
            f"0 to 65535; pass X.astype(np.uint8) for the first, (X // 257).astype(np.uint8) for the second"
        )
    if learn and 0 < largest < 2**14:
        warn(
            f"the uint16 pixels of X reach only {largest} and are taken as 0 to 65535: nearly black; "
            f"stretch them, as in X * (65535 // {largest}), if that is not meant"
        )


def _check_path(item, where):
    if os.path.isdir(item):
        raise ValueError(f"{where} is a folder; pass the files in it, as skve.datasets.load_image_folder lists them")
    if not os.path.isfile(item):
        hint = "; check the path"
        if str(item).startswith("~"):
            hint = "; '~' is not expanded, use Path.expanduser()"
        elif "://" in str(item):
            hint = "; addresses are not read, save the image in a file first"
        raise ValueError(f"{where}: there is no such file{hint}")
