"""Images in every container, and the checks that any image classifier of skve's kind passes."""

from __future__ import annotations

import contextlib
import io
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from skve.testing import common_checks
from skve.testing.common_checks import LABELS, raises, same


def check_image_estimator(
    estimator: Any, *, generate_only: bool = False
) -> list[tuple[Any, Callable[[Any], None]]] | None:
    """Check that an image classifier keeps the contract of `SVEClassifier`, over all image containers.

    It does for subclasses and configurations of `SVEClassifier` what
    `sklearn.utils.estimator_checks.check_estimator` does for estimators of tables. It checks that

    * paths, PIL images, arrays, tensors, Series, DataFrame columns and rows of pixels give identical predictions;
    * probabilities are float64, sum to one in each row and are the mean of the members', and the uncertainty agrees
      with them;
    * the prediction of an image depends neither on its position nor on the other images;
    * the same seed gives identical predictions, in clones, second fits, pickles, saved folders and threads;
    * `fit` changes neither its inputs nor a parameter nor a global random generator, and prints nothing;
    * predictions are labels of the type given to `fit`, and invalid inputs raise errors that name their index and
      leave the estimator as it was.

    Parameters
    ----------
    estimator : estimator
        An unfitted estimator with a `random_state`, `calibrate=None` and `early_stopping=False`, quick to
        fit: images are 12 pixels wide, and there are about 80 fits. It is cloned for each check.
    generate_only : bool, default=False
        Whether to return the checks instead of running them, for `pytest.mark.parametrize`.

    Returns
    -------
    checks : list of tuple, or None
        With `generate_only`, pairs (estimator, check), each to be run as `check(estimator)`.

    Raises
    ------
    AssertionError
        If the estimator fails a check.

    Examples
    --------
    >>> from skve import SVEClassifier
    >>> from skve.testing import check_image_estimator, make_toy_image_backbone
    >>> clf = SVEClassifier(
    ...     make_toy_image_backbone(), n_members=2, max_epochs=1, image_size=8, random_state=0
    ... )
    >>> _, check = check_image_estimator(clf, generate_only=True)[0]
    >>> check(clf)
    """
    return common_checks.run_or_list(estimator, _CHECKS, _SAMPLES, generate_only)


def image_containers(images, folder):
    """Put images into each accepted container.

    Parameters
    ----------
    images : ndarray of shape (n, height, width, 3), uint8
    folder : path
        Folder to which image files are written.

    Returns
    -------
    containers : dict of str to tuple
        From name to (X, parameters that it requires). Containers of packages that are not installed are left out.
    """
    n, height, width, _ = images.shape
    pictures = [Image.fromarray(pixels) for pixels in images]
    paths = [pathlib.Path(folder) / f"{index}.png" for index in range(n)]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path)
    files = [str(path) for path in paths]
    objects = np.empty(n, dtype=object)
    objects[:] = pictures
    channels_first = np.ascontiguousarray(np.moveaxis(images, -1, 1))
    containers: dict = {
        "list of paths, str": files,
        "list of paths, Path": paths,
        "tuple of paths": tuple(files),
        "array of paths": np.array(files),
        "object array of paths": np.array(paths, dtype=object),
        "list of bytes": [path.read_bytes() for path in paths],
        "list of BytesIO": [io.BytesIO(path.read_bytes()) for path in paths],
        "list of open files": [path.open("rb") for path in paths],  # closed by the caller
        "list of PIL images": pictures,
        "object array of PIL images": objects,
        "uint8 array": images,
        "float array, 0 to 1": images / 255,
        "float array, 0 to 255": images.astype(np.float32),
        "list of arrays": list(images),
        "uint8 tensor": torch.tensor(channels_first),
        "float tensor, 0 to 1": torch.tensor(channels_first) / 255,
        "list of tensors": list(torch.tensor(channels_first)),
    }
    try:
        import pandas as pd

        containers["pandas Series of paths"] = pd.Series(files, index=range(5, 5 + n))
        containers["pandas DataFrame of paths"] = pd.DataFrame({"photo": files})
        containers["pandas Series of PIL images"] = pd.Series(pictures)
    except ImportError:
        pass
    try:
        import polars as pl

        containers["polars Series of paths"] = pl.Series("photo", files)
        containers["polars DataFrame of paths"] = pl.DataFrame({"photo": files})
    except ImportError:
        pass
    plain: dict = {name: (X, {}) for name, X in containers.items()}
    return {**plain, "rows of pixels": (images.reshape(n, -1), {"image_shape": (height, width, 3)})}


def _make_images():
    """Return noise on alternating dark and bright backgrounds, of shape (18, 12, 12, 3)."""
    rng = np.random.default_rng(0)
    ground = np.where(LABELS == "no", 60, 190)[:, None, None, None]
    return np.clip(ground + rng.normal(0, 30, (18, 12, 12, 3)), 0, 255).astype(np.uint8)


_IMAGES = _make_images()


def _containers():
    with tempfile.TemporaryDirectory() as folder:
        containers = image_containers(_IMAGES.copy(), folder)
        with contextlib.ExitStack() as stack:
            for file in containers["list of open files"][0]:
                stack.enter_context(file)
            for name, (X, parameters) in containers.items():
                yield name, X, parameters


def _fingerprint(X):
    items = X.to_numpy().ravel().tolist() if hasattr(X, "to_numpy") else list(X)
    return [item if isinstance(item, str | pathlib.Path) else np.asarray(item).tobytes() for item in items]


def _invert(X):
    return [255 - pixels for pixels in X]


_SAMPLES = common_checks.Samples(
    X=list(_IMAGES),
    containers=_containers,
    fingerprint=_fingerprint,
    clean=_invert,
    bad_items=[
        (None, ["None"]),
        (float("nan"), ["nan"]),
        (3, ["3"]),
        (b"no image", []),
        ({"a": 1}, ["dict"]),
        (["a", "list"], []),
        ("no/such/file.png", ["no/such/file.png", "must be a file"]),
        (np.zeros((12, 12, 7), np.uint8), ["7 channels"]),
        (np.zeros((0, 12, 3), np.uint8), ["(0, 12, 3)"]),
        (np.zeros(5, np.uint8), ["(5,)"]),
        (np.full((12, 12, 3), 300), ["300"]),
        (np.full((12, 12, 3), np.nan), ["NaN"]),
        (np.full((12, 12, 3), -1.0), ["-1"]),
    ],
    bad_inputs=[
        ("one/path.png", ["X must be a list", "one str"]),
        (b"one image", ["X must be a list", "one bytes"]),
        (Image.fromarray(_IMAGES[0]), ["X must be a list", "one Image"]),
        ([], ["X must have at least one"]),
        (3, ["X must be", "got a int"]),
        (None, ["X must be", "got a NoneType"]),
        ({"a": 1}, ["X must be", "got a dict"]),
        ((pixels for pixels in _IMAGES), ["X must be", "got a generator"]),
        (_IMAGES[0], ["(12, 12, 3)", "X[None]"]),
        (_IMAGES.reshape(18, -1), ["(18, 432)", "image_shape"]),
        (np.moveaxis(_IMAGES, -1, 1), ["(18, 3, 12, 12)", "channels-first"]),
        (torch.zeros(2, 12, 12), ["(2, 12, 12)"]),
    ],
)


def check_sizes(estimator, samples):
    """Images of all sizes can be mixed, and grey ones count as colour images of equal channels."""
    mixed = [
        np.repeat(np.repeat(pixels, 1 + index % 3, 0), 1 + index % 2, 1) for index, pixels in enumerate(samples.X)
    ]
    proba = estimator.fit(mixed, LABELS).predict_proba(mixed)
    assert proba.shape == (18, 2)
    grey = [pixels[..., 0] for pixels in mixed]
    same(estimator.predict_proba(grey), estimator.predict_proba([np.stack([p] * 3, -1) for p in grey]), "grey images")


def check_float_scale(estimator, samples):
    """Float pixels from 0 to 1 and from 0 to 255 are distinguished in `fit`, and not confused later."""
    floats = [pixels / 255 for pixels in samples.X]
    estimator.fit(floats, LABELS)
    raises(ValueError, ["X[0]", "0 to 1"], estimator.predict, [255 * pixels for pixels in floats])
    estimator.fit([255 * pixels for pixels in floats], LABELS)
    raises(ValueError, ["0 to 255", "255"], estimator.predict, floats)


_CHECKS = (*common_checks.CHECKS, check_sizes, check_float_scale)
