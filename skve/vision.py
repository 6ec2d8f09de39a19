"""SVEClassifier: singular value ensembles of pretrained image models."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils._param_validation import Interval, StrOptions

from skve._backbones import from_timm
from skve._base import BaseSVEClassifier, inherit_parameter_docs
from skve._inputs.containers import check_column_names
from skve._inputs.exported import exported_images
from skve._inputs.image_pipeline import ImagePipeline
from skve._inputs.images import check_images

if TYPE_CHECKING:
    import torch


@inherit_parameter_docs
class SVEClassifier(BaseSVEClassifier):
    """Image classifier that estimates its uncertainty: a singular value ensemble of one pretrained backbone.

    The backbone's weights are decomposed once. Each member trains only their singular values, parametrized as
    `sigma * exp(delta)`, and a linear head. The method is that of arXiv 2601.22068.

    X is a list, tuple, array or Series of paths, PIL images, bytes, open files, arrays or tensors, an array or tensor
    of images, a DataFrame with one column of them, or, with `image_shape`, rows of pixels.

    Parameters
    ----------
    backbone : str, path, torch.nn.Module or callable, default="bundled:efficientnet_lite0"
        A timm name (`"resnet18"`, `"hf-hub:user/model"`), `"local-dir:folder"` or a folder in timm's format,
        `"ARCHITECTURE@FILE"` for a timm architecture with a file of weights, `"bundled:efficientnet_lite0"`
        (works offline, requires the extra `offline`), a module (copied, never changed), or a callable that
        returns one. A module must return features or logits: (n, d), (n, tokens, d) or (n, d, height, width). Models
        of transformers give their last hidden state, and get images normalised as for ImageNet.
    member_lr : float, default=None
        Learning rate of each member's backbone parameters. None: 5e-2 for `"sve"`, `"sve+lora"` and `"scale"`, 3e-2
        for `"bias"`, 1e-2 for `"batch"`, 3e-4 for `"lora"`, 1e-4 for fine-tunes.
    head_lr : float, default=None
        Learning rate of the heads. None: 1e-2.
    head_weight_decay : float, default=None
        Decoupled weight decay of the heads. None: 0.3 / `head_lr`, that is 30 by default. Heads that stay
        small leave the task to the backbone's features, which helps most where labels are few.
    image_size : int, default=None
        Side of the network's square input in pixels. None uses the backbone's own size.
    image_shape : tuple of int, default=None
        (height, width) or (height, width, channels) if each row of X holds the pixels of one image.
    backbone_dtype : {"float32", "int8", "int4"}, default="float32"
        Type of the frozen weights. `"int8"` and `"int4"` keep those of linear layers in a quarter and in a seventh of
        the memory. This is useful for transformers; convolutions stay float32. Members then train and predict beside
        the quantised weights, which they adapt along the leading singular directions. `fit` raises an error for
        ensembles that train all weights, such as "deep".
    augment : {"light", "strong"} or callable, default="light"
        Random changes of training images. `"light"`: flips and small shifts; `"strong"`: also zoom and
        colour. A callable receives and returns a float tensor of shape (n, channels, height, width) with values in
        [0, 1]. None disables augmentation.

    Attributes
    ----------
    float_layers_ : list of str
        Only with `backbone_dtype="int8"` or `"int4"`: the modules whose matrices stay float32, such as convolutions.
    preprocess_ : dict
        Input size, interpolation, crop, mean and standard deviation with which images are prepared, and `"dtype"` of
        the frozen weights.

    See Also
    --------
    skve.SVETextClassifier : The same for texts.
    skve.load : Load a saved estimator.
    skve.predict_uncertainty : Uncertainty of an estimator in a pipeline or a search.

    Examples
    --------
    >>> from skve import SVEClassifier
    >>> from skve.datasets import load_fashion
    >>> data = load_fashion()
    >>> clf = SVEClassifier(n_members=2, layers="last:1", image_size=32, max_epochs=2, random_state=0)
    >>> clf = clf.fit(data.images[:60], data.target[:60])
    >>> clf.predict_proba(data.images[:3]).shape
    (3, 10)
    >>> clf.predict_uncertainty(data.images[:3]).epistemic.shape
    (3,)
    """

    image_size: int | None
    image_shape: Sequence[int] | None
    backbone_dtype: str
    augment: str | Callable[[Any], Any] | None
    _float_scale: int | None
    _learned = {"_float_scale": [None, 1, 255]}
    _check_preprocess = staticmethod(from_timm.check_preprocess)

    _parameter_constraints: dict = {
        **BaseSVEClassifier._parameter_constraints,
        "image_size": [Interval(numbers.Integral, 8, None, closed="left"), None],
        "image_shape": ["array-like", None],
        "backbone_dtype": [StrOptions(from_timm.DTYPES)],
        "augment": [StrOptions({"light", "strong"}), callable, None],
    }
    _kind_of_inputs = "image"

    def __init__(
        self,
        backbone: Any = "bundled:efficientnet_lite0",
        *,
        ensemble: str = "sve",
        ensemble_params: dict[str, Any] | None = None,
        n_members: int = 4,
        layers: str | Sequence[str] = "all",
        init_scale: float = 0.01,
        train_bias: bool = False,
        member_lr: float | None = None,
        head_lr: float | None = None,
        weight_decay: float = 0.0,
        head_weight_decay: float | None = None,
        max_epochs: int | None = None,
        max_steps: int | None = None,
        batch_size: int = 32,
        schedule: str = "cosine",
        warmup: float = 0.1,
        grad_clip: float | None = 1.0,
        label_smoothing: float = 0.0,
        class_weight: dict[Any, float] | str | None = None,
        validation_fraction: float = 0.1,
        early_stopping: bool = False,
        n_iter_no_change: int = 5,
        calibrate: str | None = "auto",
        image_size: int | None = None,
        image_shape: Sequence[int] | None = None,
        backbone_dtype: str = "float32",
        augment: str | Callable[[Any], Any] | None = "light",
        precision: str = "auto",
        predict_precision: str = "auto",
        device: str | torch.device | list[str] = "auto",
        n_jobs: int | None = None,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
        callbacks: Sequence[Any] | None = None,
        features: str = "backbone",
    ) -> None:
        self._store_parameters(locals())

    def _check_inputs(self, X, *, reset):
        check_column_names(self, X, reset=reset)
        known = None if reset else self._float_scale
        images = check_images(X, image_shape=self.image_shape, float_scale=known, learn=reset)
        if reset:
            self._float_scale = images.float_scale
        return images

    def _load_backbone(self, spec, preprocess=None, classes=None):
        if preprocess is None:
            return from_timm.load_image_backbone(spec, self.image_size, self.backbone_dtype)
        size, dtype = preprocess["input_size"][-1], preprocess.get("dtype", "float32")  # models of 0.1 have none
        if self.image_size is None:  # most likely the fit's entry of the cache
            backbone = from_timm.load_image_backbone(spec, None, dtype)
            if backbone.preprocess["input_size"][-1] == size:
                return dataclasses.replace(backbone, preprocess=preprocess)
        return dataclasses.replace(from_timm.load_image_backbone(spec, size, dtype), preprocess=preprocess)

    def _outline(self, length, n_classes):
        outline = from_timm.outline(self.backbone, self.batch_size, self.image_size, self.backbone_dtype)
        return *outline, self.batch_size

    def _make_pipeline(self, items, backbone, device, *, training):
        return ImagePipeline(items, backbone.preprocess, device, augment=self.augment, keep=training)

    def _exported_inputs(self, backbone, *, resize):
        return exported_images(backbone.preprocess, resize=resize)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = self.image_shape is not None
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags
