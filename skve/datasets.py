"""Small real data that ships with the package."""

import csv
import importlib.resources

import numpy as np
from sklearn.datasets import load_digits
from sklearn.utils import Bunch


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
