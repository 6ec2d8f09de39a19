"""Small real data that ships with the package."""

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
