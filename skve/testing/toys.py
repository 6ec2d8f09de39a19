"""Toy backbones and a toy classifier."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.utils.validation import validate_data
from torch import nn

from skve._backbones.backbone import from_module
from skve._base import BaseSVEClassifier, inherit_parameter_docs
from skve._inputs import pipeline
from skve._inputs.exported import ExportedInputs
from skve._runtime.randomness import OwnDraws


def make_toy_backbone(n_inputs: int = 8, *, width: int = 16, depth: int = 2, seed: int = 0) -> nn.Sequential:
    """Make a small untrained multilayer perceptron.

    Parameters
    ----------
    n_inputs : int, default=8
        Number of inputs.
    width : int, default=16
        Number of units of each layer, and of features.
    depth : int, default=2
        Number of linear layers.
    seed : int, default=0
        Seed of the weights. The global random state of torch does not change.

    Returns
    -------
    module : torch.nn.Sequential
        Maps (n_samples, n_inputs) to (n_samples, width).

    Examples
    --------
    >>> from skve.testing import make_toy_backbone
    >>> len(make_toy_backbone(4, width=8, depth=3))
    6
    """
    with OwnDraws(seed):
        layers: list[nn.Module] = []
        for index in range(depth):
            layers += [nn.Linear(width if index else n_inputs, width), nn.Tanh()]
        return nn.Sequential(*layers)


def make_toy_image_backbone(width: int = 8, *, seed: int = 0) -> nn.Sequential:
    """Make a small untrained convolutional network with batch normalisation and a depthwise layer.

    Parameters
    ----------
    width : int, default=8
        Number of channels, and of features.
    seed : int, default=0
        Seed of the weights. The global random state of torch does not change.

    Returns
    -------
    module : torch.nn.Sequential
        Maps images (n, 3, height, width) to feature maps (n, channels, height, width).

    Examples
    --------
    >>> import torch
    >>> from skve.testing import make_toy_image_backbone
    >>> make_toy_image_backbone()(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 8, 4, 4])
    """
    with OwnDraws(seed):
        return nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, groups=width),
            nn.Conv2d(width, width, 1),
            nn.ReLU(),
        )


@inherit_parameter_docs
class ToyClassifier(BaseSVEClassifier):
    """Singular value ensemble for tables of numbers, on a small untrained backbone.

    It is quick to fit and accepts the inputs of scikit-learn's own checks and examples.

    Parameters
    ----------
    backbone : torch.nn.Module, default=None
        A module that maps arrays of shape `(n_samples, n_features_in_)` to features. None uses a multilayer
        perceptron, `make_toy_backbone(n_features_in_)`.

    Attributes
    ----------
    n_features_in_ : int
        Number of columns of X in `fit`.
    preprocess_ : dict
        The transformation of the inputs.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skve.testing import ToyClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> bool(ToyClassifier(head_lr=0.1, max_steps=80, random_state=0).fit(X, y).score(X, y) > 0.9)
    True
    """

    _kind_of_inputs = "image"  # their defaults suit the toys

    def _check_inputs(self, X, *, reset):
        return _Rows(validate_data(self, X, reset=reset, dtype=np.float64))

    def _load_backbone(self, spec, preprocess=None, classes=None):
        module = make_toy_backbone(self.n_features_in_) if spec is None else spec
        return from_module(module, _call, lambda own: {"squash": "arcsinh"})

    def _make_pipeline(self, items, backbone, device, *, training):
        return _RowPipeline(items.rows, device)

    def _exported_inputs(self, backbone, *, resize):
        n_columns = self.n_features_in_
        return ExportedInputs(
            torch.zeros(2, n_columns),
            {"rows": {0: "n_samples"}},
            {"rows": f"float32, (n_samples, {n_columns})"},
            {"preprocess": backbone.preprocess},
            _Squash(),
        )

    def _outline(self, length, n_classes):
        module = make_toy_backbone(length) if self.backbone is None else self.backbone
        n_columns = next(part.in_features for part in module.modules() if isinstance(part, nn.Linear))
        return module, _call, {"squash": "arcsinh"}, torch.empty(self.batch_size, n_columns), self.batch_size

    @staticmethod
    def _check_preprocess(preprocess):
        if preprocess != {"squash": "arcsinh"}:
            raise ValueError(f"The preprocessing of rows must be {{'squash': 'arcsinh'}}, got {preprocess!r}.")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


class _Squash(nn.Module):
    def forward(self, rows):
        return torch.asinh(rows)


def _call(module, inputs):
    return module(inputs)


class _Rows:
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def take(self, indices):
        return _Rows(self.rows[indices])


class _RowPipeline:
    def __init__(self, rows, device):
        self.rows, self.device = rows, device

    def __len__(self):
        return len(self.rows)

    impossible = None
    mean_size = 1.0
    same_each_epoch = True

    def content_keys(self):
        return [pipeline.content_key(row.tobytes()) for row in self.rows]

    def size(self, indices):
        return len(indices)

    def batches(self, batch_size, generator):
        return pipeline.index_batches(len(self.rows), batch_size, generator)

    def load(self, indices):
        return torch.from_numpy(np.arcsinh(self.rows[indices])).float()

    def load_each(self, batches, ahead):
        yield from map(self.load, batches)

    def check_labels(self, codes, name):
        pass

    def prepare(self, raw, generator):
        return raw.to(self.device)
