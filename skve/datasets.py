"""Small real data that ships with the package, and images from folders."""

import csv
import importlib.resources
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.utils import Bunch

from skve._inputs.image_decoding import readable_formats
from skve._runtime.warnings import warn
from skve._runtime.wording import listed, quoted

_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def load_fashion(*, return_X_y: bool = False, as_frame: bool = False) -> Bunch | Any:  # Any: a pair with return_X_y
    """Load a part of Fashion-MNIST: clothes to classify, and digits that do not belong to any class.

    Parameters
    ----------
    return_X_y : bool, default=False
        Return `(data, target)` of the training images instead of a Bunch.
    as_frame : bool, default=False
        Make `data` a DataFrame of pixels, a row of 784 for each image, for a classifier with
        `image_shape=(28, 28)`, and `target` a Series. Requires pandas.

    Returns
    -------
    data : sklearn.utils.Bunch
        data : ndarray of shape (600, 784), uint8, or DataFrame
            The training images as rows of pixels.
        images : ndarray of shape (600, 28, 28), uint8
            Training images, 60 of each class.
        target : ndarray of shape (600,), str
            Their class names.
        images_test, target_test : ndarray of shape (500, 28, 28), uint8, and (500,), str
            Test images, 50 of each class, and their class names.
        images_ood : ndarray of shape (500, 8, 8), uint8
            Handwritten digits of scikit-learn: out-of-distribution images.
        target_names : ndarray of shape (10,), str
            The class names.
        feature_names : list of str
            Names of the pixels, as "pixel_0_27".
        frame : DataFrame
            `data` and `target`; only with `as_frame`.
        DESCR : str
            Source and licence (MIT).
    (data, target) : tuple
        With `return_X_y`.

    Examples
    --------
    >>> from skve.datasets import load_fashion
    >>> data = load_fashion()
    >>> data.images.shape, data.target[0]
    ((600, 28, 28), np.str_('Dress'))
    """
    folder = importlib.resources.files("skve") / "data" / "fashion"
    with (folder / "fashion.npz").open("rb") as stream, np.load(stream) as file:
        data = dict(file)
    digits = load_digits().images[:500]  # floats from 0 to 16
    names = data["classes"]
    return _bunch(
        data["x_train"].reshape(600, -1),
        names[data["y_train"]],
        [f"pixel_{row}_{column}" for row in range(28) for column in range(28)],
        return_X_y=return_X_y,
        as_frame=as_frame,
        images=data["x_train"],
        images_test=data["x_test"],
        target_test=names[data["y_test"]],
        images_ood=np.minimum(digits * 16, 255).astype(np.uint8),
        target_names=names,
        DESCR=(folder / "DESCR.rst").read_text("utf-8"),
    )


def load_intents(*, return_X_y: bool = False, as_frame: bool = False) -> Bunch | Any:  # Any: a pair with return_X_y
    """Load a part of CLINC150: questions to a bank's assistant, and questions that it has no answer to.

    Parameters
    ----------
    return_X_y : bool, default=False
        Return `(data, target)` of the training questions instead of a Bunch.
    as_frame : bool, default=False
        Make `data` a DataFrame with the column "text" and `target` a Series. Requires pandas.

    Returns
    -------
    data : sklearn.utils.Bunch
        data : list of str, length 1500, or DataFrame
            The same as `texts`.
        texts : list of str, length 1500
            Training questions, 60 of each intent.
        target : ndarray of shape (1500,), str
            Their intents.
        texts_test, target_test : list of str, length 750, and ndarray of shape (750,), str
            Test questions, 30 of each intent, and their intents.
        texts_ood : list of str, length 500
            Out-of-scope questions.
        target_names : ndarray of shape (25,), str
            The intents' names.
        feature_names : list of str
            "text".
        frame : DataFrame
            `data` and `target`; only with `as_frame`.
        DESCR : str
            Source and licence (CC BY 3.0).
    (data, target) : tuple
        With `return_X_y`.

    Examples
    --------
    >>> from skve.datasets import load_intents
    >>> data = load_intents()
    >>> data.texts[0], data.target[0]
    ('is the apr on my credit card good', np.str_('apr'))
    """
    folder = importlib.resources.files("skve") / "data" / "intents"
    rows = list(csv.DictReader((folder / "intents.csv").read_text("utf-8").splitlines()))
    train = [row for row in rows if row["split"] == "train"]
    test = [row for row in rows if row["split"] == "test" and row["intent"] != "out_of_scope"]
    target = np.array([row["intent"] for row in train])
    texts = [row["text"] for row in train]
    return _bunch(
        texts,
        target,
        ["text"],
        return_X_y=return_X_y,
        as_frame=as_frame,
        texts=texts,
        texts_test=[row["text"] for row in test],
        target_test=np.array([row["intent"] for row in test]),
        texts_ood=[row["text"] for row in rows if row["intent"] == "out_of_scope"],
        target_names=np.unique(target),
        DESCR=(folder / "DESCR.rst").read_text("utf-8"),
    )


def _bunch(data, target, feature_names, *, return_X_y, as_frame, **rest):
    """Return a data set in the form of scikit-learn's."""
    if as_frame:
        import pandas as pd

        data, target = pd.DataFrame(data, columns=feature_names), pd.Series(target, name="target")
        rest["frame"] = pd.concat([data, target], axis=1)
    return (data, target) if return_X_y else Bunch(data=data, target=target, feature_names=feature_names, **rest)


def load_image_folder(
    path: str | os.PathLike[str], *, extensions: Sequence[str] | None = None
) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    """List the images of a folder that has a folder for each class, as in `path/cat/1.jpg`; none is opened.

    Parameters
    ----------
    path : str or path
        Its folders are the classes; images lie in them, or in folders within them. Links are followed. Hidden files
        and folders, whose names begin with a dot, and files with other extensions are skipped.
    extensions : list of str, default=None
        Extensions of images, as in `[".jpg", ".png"]`, in upper or lower case. None: those of all supported formats,
        including those of registered Pillow plugins.

    Returns
    -------
    paths : ndarray of shape (n_samples,), str
        Paths of the images that begin with `path`, sorted by class and name.
    labels : ndarray of shape (n_samples,), str
        The name of the class folder of each.

    Raises
    ------
    ValueError
        If `path` is no folder, or has no class folder with an image in it.
    TypeError
        If `path` is neither a str nor a path, or `extensions` no list of strings.

    Warns
    -----
    UserWarning
        If a class folder has no image, images lie outside of the class folders, files of other formats are left out,
        or the class folders have names of parts of a data set, such as "train" and "test".

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from PIL import Image
    >>> from skve.datasets import load_image_folder
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
    ...         file = pathlib.Path(folder, name)
    ...         file.parent.mkdir(exist_ok=True)
    ...         Image.new("RGB", (8, 8)).save(file)
    ...     paths, labels = load_image_folder(folder)
    >>> len(paths), labels.tolist()
    (3, ['cat', 'cat', 'dog'])
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"path must be a folder as a str or pathlib.Path, got {quoted(path)} of type {type(path).__name__}."
        )
    root = pathlib.Path(path)
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise ValueError(
            f"path must be a folder that has a folder of images for each class, got {os.fspath(path)!r}, "
            f"which {what}."
        )
    chosen = _extensions(extensions)
    entries = sorted(entry for entry in os.listdir(root) if not entry.startswith("."))
    files = {entry: _files(root / entry) for entry in entries if (root / entry).is_dir()}
    found = {name: [file for file in inside if _is_one_of(file, chosen)] for name, inside in files.items()}
    others = [file for inside in files.values() for file in inside if not _is_one_of(file, chosen)]
    beside = [entry for entry in entries if entry not in found and entry.lower().endswith(chosen)]
    if not any(found.values()):
        what = f"whose folders ({listed(found)}) contain none" if found else "which contains no folder"
        hint = f" Images that lie in it, as {beside[0]!r}, belong to no class." if beside else ""
        raise ValueError(
            f"path must contain images in class folders, as in path/CLASS/image.jpg, got {os.fspath(path)!r}, {what}."
            f"{hint} Images are files with the extensions {', '.join(chosen)}."
        )
    empty = [name for name, inside in found.items() if not inside]
    if empty:
        warn(
            f"The folders {empty} have no image and are not used as classes. Remove them, or check the extensions of "
            f"their files."
        )
    if beside:
        warn(
            f"{len(beside)} images, such as {beside[0]!r}, lie outside of the class folders and are left out. Move "
            f"them."
        )
    if others and extensions is None:
        kinds = sorted({pathlib.Path(file).suffix.lower() for file in others})
        n_files = "1 file is" if len(others) == 1 else f"{len(others)} files are"
        warn(
            f"{n_files} left out, such as {os.path.relpath(others[0], root)!r}: broken links, or not readable as "
            f"images here, with the extensions {kinds}. Plugins of Pillow, such as pillow-heif, read more formats; "
            f"extensions=[...] lists only what you name, without this warning."
        )
    if {name.lower() for name in found} <= _SPLITS:
        warn(f"The class folders are named {list(found)}. Pass one of them as path if the classes lie within.")
    pairs = [(file, name) for name, files in found.items() for file in files]
    return np.array([file for file, _ in pairs]), np.array([name for _, name in pairs])


def _extensions(extensions):
    """Return the extensions as a tuple of lower-case strings with a dot."""
    if extensions is None:
        readable = readable_formats()
        return tuple(sorted(name for name, kind in Image.registered_extensions().items() if kind in readable))
    names: list = list(extensions) if np.iterable(extensions) and not isinstance(extensions, str) else [None]
    if not all(isinstance(name, str) and name.strip(".") for name in names):
        raise TypeError(f"extensions must be a list of strings, as in ['.jpg', '.png'], got {extensions!r}.")
    return tuple("." + name.lower().lstrip(".") for name in names)


def _is_one_of(path, extensions):
    return path.lower().endswith(extensions) and os.path.isfile(path)


def _files(folder):
    """List the files of a folder and of those within, sorted; a link back into a folder above ends there."""
    found, seen = [], set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            seen.add(real)
            found += [pathlib.Path(parent, name) for name in files if not name.startswith(".")]
    return [os.fspath(file) for file in sorted(found, key=lambda file: file.parts)]
