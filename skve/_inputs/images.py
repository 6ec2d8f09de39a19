"""What users pass as images: every accepted container becomes a sequence of images; every input error is here."""

import numbers
import os

import numpy as np
import torch
from PIL import Image

from skve._inputs.containers import as_sequence, columns_of, is_frame, plain_str
from skve._inputs.image_decoding import ONE, decode_file, decode_opened, from_array, is_16_bits
from skve._inputs.pipeline import content_key
from skve._runtime.warnings import warn
from skve._runtime.wording import quoted
from skve.exceptions import ImageError

ACCEPTED = (
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
        item, where = self.items[index], self.where(index)
        if isinstance(item, bytes):
            return decode_file(item, f"{where} ({len(item)} bytes)")
        if isinstance(item, ENCODED):
            return decode_file(item, f"{where} = {os.fspath(item)!r}")
        if isinstance(item, Image.Image):
            return decode_opened(item, where)
        return from_array(np.asarray(item), self.float_scale, where)

    def where(self, index):
        """Return what messages call image `index`."""
        return f"X[{self.numbers[index]}]"

    def content_key(self, index, n_pixels):
        """Return a key for the content of image `index`, None if it cannot be read or has more than `n_pixels`.

        A file, whatever its pixels, goes by its path, place on the disk, size and times of its last changes; others
        go by what is in them.
        """
        item = self.items[index]
        if isinstance(item, bytes):
            return content_key(item)
        if isinstance(item, ENCODED):
            try:
                found = os.stat(item)
            except OSError:  # reading it says what is wrong
                return None
            times = found.st_mtime_ns, found.st_ctime_ns
            return content_key(os.path.abspath(item), found.st_dev, found.st_ino, found.st_size, *times)
        sides = item.size if isinstance(item, Image.Image) else np.shape(item)[:2]
        if np.prod(sides) > n_pixels:
            return None
        image = self[index]
        return content_key(image.size, image.tobytes())

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
        See `ACCEPTED`.
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
        raise ValueError("X must have at least one image, got 0 sample(s) while a minimum of 1 is required.")
    for index, item in enumerate(X if not _is_pixels(X) else ()):
        if isinstance(item, str | os.PathLike):
            _check_path(item, f"X[{index}] = {os.fspath(item)!r}")
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
                f"The float pixels of X reach only {largest:g} and are taken as 0 to 255: nearly black. "
                f"Rescale them to 0 to 1 if that is not intended."
            )
    elif float_scale == 255 and 0 < largest <= ONE and any((array != np.rint(array)).any() for array in floats):
        raise ValueError(
            f"X must have float pixels from 0 to 255 as in fit, got pixels up to {largest:g} only. Multiply them "
            f"by 255."
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
                f"X must be a list of images, got the folder {os.fspath(X)!r}. X, y = "
                f"skve.datasets.load_image_folder(folder) lists the files of class folders."
            )
        raise TypeError(f"X must be a list of images, got one {kind}. Pass [X].")
    if _is_torch_dataset(X):
        raise TypeError(
            f"X must be {ACCEPTED}, got a torch {kind}. Pass the images instead; X = [image for image, label in "
            f"dataset] makes a list of them."
        )
    if is_frame(X):
        if X.shape[1] != 1 and image_shape is None:
            raise ValueError(f"X must have one column of paths or images, got {X.shape[1]} columns.")
        X = columns_of(X)[0] if image_shape is None else X.to_numpy()
    if isinstance(X, torch.Tensor):
        if X.dim() == 3:
            raise ValueError(
                f"X must have shape (n, channels, height, width), got a tensor of shape {tuple(X.shape)}. X[:, None] "
                f"makes grey images of it, X[None] one image."
            )
        X = _from_tensor(X, "X")
    elif isinstance(X, np.ndarray) and X.ndim == 4 and image_shape is None:
        _check_layout(X.shape, "X")
    # Columns of pixels keep their type as arrays; pyarrow has no arrays of words.
    X = X.to_numpy() if hasattr(X, "to_numpy") and not hasattr(X, "to_pylist") else as_sequence(X, "X")
    if isinstance(X, list | tuple):
        X = [_unwrap_item(item, f"X[{index}]") for index, item in enumerate(X)]
        if image_shape is not None:
            X = np.asarray(X)
    if not isinstance(X, np.ndarray | list):
        raise TypeError(f"X must be {ACCEPTED}, got a {kind}.")
    if isinstance(X, np.ndarray) and X.dtype == object and X.ndim in (3, 4):
        X = np.array(X.tolist())  # what NumPy makes of equally large images in np.array(images, dtype=object)
    if isinstance(X, np.ndarray) and X.dtype.kind == "S":
        raise TypeError(
            f"X must be a list of bytes, got an array of {X.dtype}, which cuts zeros off the end of bytes."
        )
    if isinstance(X, np.ndarray) and X.dtype.kind in "OUT":
        if X.ndim == 2 and X.shape[1] == 1:
            X = X[:, 0]
        if X.ndim != 1:
            raise ValueError(f"X must have one column of paths or images, got shape {X.shape}.")
        X = [_unwrap_item(item, f"X[{index}]") for index, item in enumerate(X)]
    if isinstance(X, np.ndarray) and image_shape is not None:
        X = _rows_to_images(X, image_shape)
    return X


def _rows_to_images(X, image_shape):
    sides = list(image_shape)
    if len(sides) not in (2, 3) or not all(isinstance(side, numbers.Integral) and int(side) > 0 for side in sides):
        raise ValueError(f"image_shape must be (height, width) or (height, width, channels), got {image_shape!r}.")
    if len(sides) == 2 and sides[1] in (3, 4):
        raise ValueError(
            f"image_shape must have a width before the channels, got {tuple(image_shape)}. Pass (height, "
            f"width, {sides[1]}) for colour images, {(*image_shape, 1)} for grey ones of width {sides[1]}."
        )
    if X.ndim != 2 or X.shape[1] != int(np.prod(image_shape)):
        raise ValueError(
            f"X must have shape (n, {int(np.prod(image_shape))}) for image_shape={tuple(image_shape)}, got {X.shape}."
        )
    return X.reshape(len(X), *image_shape)


def _is_torch_dataset(X):
    return any(base.__module__.startswith("torch.utils.data") for base in type(X).__mro__)


def _unwrap_item(item, where):
    """Bring tensors into the order of arrays, and read open files at once: they would not survive a pickle."""
    if isinstance(item, torch.Tensor):
        return _from_tensor(item, where)
    if isinstance(item, str):
        return plain_str(item)
    if isinstance(item, bytearray | memoryview):
        return bytes(item)
    if isinstance(item, np.ndarray):
        item = as_sequence(item, where)
    if isinstance(item, np.ndarray) and item.ndim == 3:
        _check_layout(item.shape, where)
    if not hasattr(item, "read") or isinstance(item, os.PathLike):
        return item
    try:
        if hasattr(item, "seek") and item.seekable():
            item.seek(0)
        content = item.read()
    except (OSError, ValueError) as error:
        raise ImageError(
            f"{where} must be an open file, got one that cannot be read: {error} Pass its path or bytes."
        ) from error
    if not isinstance(content, bytes):
        raise TypeError(
            f"{where} must be a file that gives bytes, got {type(content).__name__}. Open it in binary mode, "
            f"open(path, 'rb')."
        )
    return content


def _check_layout(shape, where):
    """Refuse images that could have their channels first as well as last."""
    first, middle, last = shape[-3:]
    if first in CHANNELS and last in CHANNELS:
        raise ValueError(
            f"{where} must have its channels either first or last, got shape {tuple(shape)}, which may be {first} x "
            f"{middle} pixels with {last} channels last, or {middle} x {last} pixels with {first} channels first. "
            f"Pass PIL images, or rows with image_shape=(height, width, channels)."
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
            f"{where} must have shape (n, channels, height, width) with 1, 3 or 4 channels, got a tensor of shape "
            f"{tuple(array.shape)}."
        )
    return array


def _check_pixels(item, where, batch=False):
    if not isinstance(item, np.ndarray):
        if isinstance(item, numbers.Number | type(None) | dict):
            raise TypeError(
                f"{where} must be a path, PIL image or array, got {quoted(item)} of type {type(item).__name__}."
            )
        try:
            item = np.asarray(item)
        except ValueError as error:
            raise TypeError(
                f"{where} must have rows of equal length, got a {type(item).__name__} that is no array: {error}."
            ) from error
    n_batch = int(batch)
    shape = item.shape[n_batch:]
    if batch and item.ndim == 3 and item.shape[-1] in (3, 4):
        raise ValueError(
            f"{where} must be several images, got shape {item.shape}, which looks like one colour image. Pass "
            f"X[None]."
        )
    if len(shape) not in (2, 3):
        axes = "(n, height, width[, channels])" if batch else "(height, width[, channels])"
        hint = " Rows of pixels need image_shape=(height, width[, channels])." if batch else ""
        raise ValueError(f"{where} must have shape {axes}, got {item.shape}.{hint}")
    if len(shape) == 3 and shape[-1] not in CHANNELS:
        hint = ""
        if shape[0] in CHANNELS:
            hint = " It looks channels-first: turn it by np.moveaxis(X, -3, -1), or pass a tensor."
        raise ValueError(
            f"{where} must have 1, 3 or 4 channels as last axis, got {shape[-1]} channels (shape {item.shape}).{hint}"
        )
    if 0 in shape:
        raise ValueError(f"{where} must have at least 1 pixel, got shape {item.shape}.")
    if item.dtype.kind == "f":
        if not np.isfinite(item).all():
            at = f"{where}[{int(np.argwhere(~np.isfinite(item))[0][0])}]" if batch else where
            raise ValueError(f"{at} must have finite pixels, got one that contains NaN or infinity.")
        if item.min() < 0 or item.max() > 255:
            raise ValueError(
                f"{where} must have float pixels from 0 to 1 or 0 to 255, got {item.min():g} to {item.max():g}."
            )
    elif not is_16_bits(item) and (item.dtype.kind not in "iub" or item.min() < 0 or item.max() > 255):
        values = f" from {item.min()} to {item.max()}" if item.dtype.kind in "iu" else ""
        raise ValueError(
            f"{where} must have integer pixels from 0 to 255, uint16 from 0 to 65535, or floats from 0 to 1 or 0 to "
            f"255, got pixels of type {item.dtype}{values}."
        )


def _check_16_bits(arrays, learn):
    """Check that uint16 arrays use their range, so that 8-bit values in them are never taken for black images."""
    largest = max((int(array.max()) for array in arrays if is_16_bits(array)), default=0)
    if 0 < largest <= 255:
        raise ValueError(
            f"X must use the range 0 to 65535 of uint16, got pixels of type uint16 up to {largest} only, which may "
            f"be images from 0 to 255 or black ones. Pass X.astype(np.uint8) for the first, "
            f"(X // 257).astype(np.uint8) for the second."
        )
    if learn and 0 < largest < 2**14:
        warn(
            f"The uint16 pixels of X reach only {largest} and are taken as 0 to 65535: nearly black. "
            f"Stretch them, as in X * (65535 // {largest}), if that is not intended."
        )


def _check_path(path, where):
    if os.path.isfile(path):
        return
    if os.path.isdir(path):
        raise ImageError(
            f"{where} must be a file, got a folder. Pass the files in it, as skve.datasets.load_image_folder lists "
            f"them."
        )
    if os.path.exists(path):  # and is neither; it could block for ever, or never end
        raise ImageError(f"{where} must be a file, got a pipe, a socket or a device. Pass its content as bytes.")
    if os.path.islink(path):
        raise ImageError(f"{where} must be a file, got a broken link. Repair it, or pass its target.")
    remedy = "Check the path."
    if os.fsdecode(path).startswith("~"):
        remedy = "'~' is not expanded, use Path.expanduser()."
    elif "://" in os.fsdecode(path):
        remedy = "Addresses are not read, save the image in a file first."
    raise ImageError(f"{where} must be a file, got a path that does not exist. {remedy}")
