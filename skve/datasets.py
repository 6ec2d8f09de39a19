"""Small real data that ships with the package, and images from folders."""

import csv
import importlib.resources
import os
import pathlib

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.utils import Bunch

from skve._inputs.image_decoding import readable_formats
from skve._runtime.warnings import warn

_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def load_fashion():
    """Load a part of Fashion-MNIST: clothes to classify, and digits that do not belong to any class.

    Returns
    -------
    data : sklearn.utils.Bunch
        images : ndarray of shape (600, 28, 28), uint8
            Training images, 60 of each class.
        target : ndarray of shape (600,), str
            Their class names.
        images_test, target_test : ndarray of shape (500, 28, 28), uint8, and (500,), str
            Test images, 50 of each class, and their class names.
        images_ood : ndarray of shape (500, 8, 8), uint8
            Handwritten digits of scikit-learn: out-of-distribution images.
        target_names : ndarray of shape (10,), str
        DESCR : str
            Source and licence (MIT).

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
    return Bunch(
        images=data["x_train"],
        target=names[data["y_train"]],
        images_test=data["x_test"],
        target_test=names[data["y_test"]],
        images_ood=np.minimum(digits * 16, 255).astype(np.uint8),
        target_names=names,
        DESCR=(folder / "DESCR.rst").read_text("utf-8"),
    )


def load_intents():
    """Load a part of CLINC150: questions to a bank's assistant, and questions that it has no answer to.

    Returns
    -------
    data : sklearn.utils.Bunch
        texts : list of str, length 1500
            Training questions, 60 of each intent.
        target : ndarray of shape (1500,), str
            Their intents.
        texts_test, target_test : list of str, length 750, and ndarray of shape (750,), str
            Test questions, 30 of each intent, and their intents.
        texts_ood : list of str, length 500
            Out-of-scope questions.
        target_names : ndarray of shape (25,), str
        DESCR : str
            Source and licence (CC BY 3.0).

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
    return Bunch(
        texts=[row["text"] for row in train],
        target=target,
        texts_test=[row["text"] for row in test],
        target_test=np.array([row["intent"] for row in test]),
        texts_ood=[row["text"] for row in rows if row["intent"] == "out_of_scope"],
        target_names=np.unique(target),
        DESCR=(folder / "DESCR.rst").read_text("utf-8"),
    )


def load_image_folder(path, *, extensions=None):
    """List the images of a folder that has a folder for each class, as in `path/cat/1.jpg`; none is opened.

    Parameters
    ----------
    path : str or path
        Its folders are the classes; images lie in them, or in folders within. Links are followed. Hidden files
        and folders, whose names begin with a dot, and files with other extensions are skipped.
    extensions : list of str, default=None
        Extensions of images, as in `[".jpg", ".png"]`; capitals do not matter. None: those of all formats that
        are read.

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
        If a class folder has no image, images lie beside the class folders, or these are called as parts of a data
        set, such as "train" and "test".

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
        raise TypeError(f"path={path!r:.60} is a {type(path).__name__}; wanted the folder as a str or pathlib.Path")
    root = pathlib.Path(path)
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise ValueError(f"path={str(path)!r} {what}; wanted a folder that has a folder of images for each class")
    wanted = _extensions(extensions)
    entries = sorted(entry for entry in os.listdir(root) if not entry.startswith("."))
    found = {entry: _files(root / entry, wanted) for entry in entries if (root / entry).is_dir()}
    beside = [entry for entry in entries if entry not in found and entry.lower().endswith(wanted)]
    if not any(found.values()):
        hint = f"; images that lie in it, as {beside[0]!r}, belong to no class" if beside else ""
        raise ValueError(
            f"path={str(path)!r} has {len(found)} folders and no image in any of them{hint}; wanted files as in "
            f"path/CLASS/image.jpg, with one of the extensions {', '.join(wanted)}"
        )
    empty = [name for name, files in found.items() if not files]
    if empty:
        warn(f"the folders {empty} have no image and are no classes; remove them, or see to their files' extensions")
    if beside:
        warn(f"{len(beside)} images, as {beside[0]!r}, lie beside the class folders and are left out; move them")
    if {name.lower() for name in found} <= _SPLITS:
        warn(f"the class folders are called {list(found)}; pass one of them as path if the classes lie within")
    pairs = [(file, name) for name, files in found.items() for file in files]
    return np.array([file for file, _ in pairs]), np.array([name for _, name in pairs])


def _extensions(extensions):
    """Return the extensions as a tuple of lower-case strings with a dot."""
    if extensions is None:
        readable = readable_formats()
        return tuple(sorted(name for name, kind in Image.registered_extensions().items() if kind in readable))
    names: list = list(extensions) if np.iterable(extensions) and not isinstance(extensions, str) else [None]
    if not all(isinstance(name, str) and name.strip(".") for name in names):
        raise TypeError(f"extensions={extensions!r}: wanted a list of strings, as in ['.jpg', '.png']")
    return tuple("." + name.lower().lstrip(".") for name in names)


def _files(folder, extensions):
    """List the files of a folder and of those within, sorted; a link back into a folder above ends there."""
    found, seen = [], set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            seen.add(real)
            chosen = [name for name in files if name.lower().endswith(extensions) and not name.startswith(".")]
            found += [pathlib.Path(parent, name) for name in chosen]
    return [str(file) for file in sorted(found, key=lambda file: file.parts) if file.is_file()]
