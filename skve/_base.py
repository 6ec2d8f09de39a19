"""The scikit-learn shell that image and text classifiers share: parameters, fitting, predicting, saving."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import numbers
import os
import re
from abc import ABCMeta, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions, validate_parameter_constraints
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from skve._documentation import DocumentedMixin
from skve._ensembles import RULES
from skve._inputs.labels import check_classes, check_labels, encode_labels, stratified_part
from skve._inputs.weights import check_weights, class_weights, to_mean_one
from skve._runtime.callbacks import CallbackSupportMixin, has_callbacks, with_callbacks
from skve._runtime.progress import report_progress

if TYPE_CHECKING:
    import torch

    from skve.uncertainty import Uncertainty

Samples = ArrayLike | Sequence[Any]  # images, texts or pairs of texts in any container

POSITIVE = Interval(numbers.Real, 0, None, closed="neither")
NOT_NEGATIVE = Interval(numbers.Real, 0, None, closed="left")
COUNT = Interval(numbers.Integral, 1, None, closed="left")

_RATES_AFTER_FIT = 0.02  # learning rates of `partial_fit` after `fit`, as shares of those of `fit`

Estimator = TypeVar("Estimator", bound=type)


def inherit_parameter_docs(cls: Estimator) -> Estimator:
    """Complete the docstring of a class with the parameters and attributes that its base class documents.

    An entry of the class's own takes precedence. Parameters come in the order of the constructor.
    """
    own, inherited = cls.__doc__, cls.__bases__[0].__doc__
    if own is None or inherited is None:  # python -OO
        return cls
    for title, order in (("Parameters", inspect.signature(cls).parameters), ("Attributes", None)):
        before, entries, after = _split_section(inspect.cleandoc(own), title)
        entries = {**_split_section(inspect.cleandoc(inherited), title)[1], **entries}
        own = before + "\n".join(entries[name] for name in order or entries) + after
    cls.__doc__ = own
    return cls


def _split_section(doc: str, title: str) -> tuple[str, dict[str, str], str]:
    """Split a numpydoc docstring into the text before a section's entries, the entries by name, and the rest."""
    heading = f"\n{title}\n{'-' * len(title)}\n"
    start = doc.index(heading) + len(heading)
    following = re.search(r"\n\n\w[\w ]*\n-+\n", doc[start:])
    end = start + following.start() if following else len(doc)
    entries = re.split(r"\n(?=\S)", doc[start:end])
    return doc[:start], {entry.partition(" : ")[0]: entry for entry in entries}, doc[end:]


class BaseSVEClassifier(
    CallbackSupportMixin,
    DocumentedMixin,
    ClassNamePrefixFeaturesOutMixin,
    ClassifierMixin,
    TransformerMixin,
    BaseEstimator,
    metaclass=ABCMeta,
):
    """Everything of a classifier but its inputs, which subclasses read by the hooks below.

    Parameters
    ----------
    backbone : object, default=None
        The pretrained network; each class lists the kinds that it accepts.
    ensemble : str, default="sve"
        What each member owns besides its head. Parameters of the selected layers: `"sve"`, singular values;
        `"lora"`, a low-rank pair of matrices for each layer (LoRA-Ensemble); `"sve+lora"`, both; `"batch"`, a factor
        for each input and output channel (BatchEnsemble); `"scale"`, a factor for each input channel; `"bias"`,
        biases. All weights: `"deep"`, independently fine-tuned copies; `"single"`, one fine-tuned copy;
        `"snapshot"`, one, of which a member is kept after each cycle of the learning rate; `"dropout"`, one, whose
        members are passes with different dropout masks (Monte Carlo dropout). Nothing else:
        `"head"`, logistic regressions on features of the frozen backbone; `"laplace"`, draws from the approximate
        posterior of one. These two are solved directly: features are computed once, without augmentation, and the
        penalty comes from cross-validation. Learning rates, decays, the length of the training and its schedule then
        only affect `partial_fit`; `early_stopping` has nothing to stop, and `callbacks` are not called.
    ensemble_params : dict, default=None
        Options of the ensemble, with their defaults:

        * `"sve"` and `"sve+lora"`: `basis` (`"singular"`; `"random"` rotates the right singular vectors at random).
        * `"sve"`: `rank` (None: all; an integer: members own the singular values of so many directions of each
          layer, which makes fits of few tokens faster); `directions`, which of them (`"leading"`: those of the
          largest singular values; `"trailing"`: of the smallest; `"random"`: a fixed random choice).
        * `"lora"` and `"sve+lora"`: `rank` (8); `scale` (1.0), by which the product is multiplied; `gain` (10.0) of
          the Xavier initialization. `"sve+lora"` also takes `lora_lr` (1e-4), the learning rate of the pairs.
        * `"batch"`: `init` (`"normal"`: factors from N(1, init_scale^2); `"signs"`: -1 or 1).
        * `"dropout"`: `rate` (None: 0.1 for linear layers, 0.01 for convolutions).
        * `"laplace"`: `prior_precision` (None: from cross-validation), of the weights of the head.
        * `"single"` and `"deep"`: `train_batch_norm` (False), whether training uses batch statistics.
        * All that train several members: `order` (`"shared"`: members see the same batches; `"own"`: each member
          draws its own; None: `"own"` where members would otherwise start alike, as those of `"deep"` and `"bias"` do
          with `head="lm"`, else `"shared"`); `bootstrap` (False; True: each member draws samples with replacement;
          `"bayesian"`, the default of `"head"`: each member draws weights of the samples from a flat Dirichlet
          distribution); `folds` (an integer from 2 to `n_members`: the training samples are split into that many
          parts, stratified by class, and member m leaves out part m % folds, see `oof_proba_`; None: all members
          train on all samples; `"auto"`, the default: 4 for texts with at least four members and four samples of each
          class, otherwise None; also None for `"head"`, in `partial_fit`, and if another of these options is set);
          `diversity` (0.0 to 1.0: the weight of the mean prediction's loss in the members' loss; not for `"head"`).
    n_members : int, default=4
        Number of members. `"single"` always has one.
    layers : str or list of str, default="all"
        Layers that the members adapt, or whose inputs `"dropout"` masks: `"all"`, `"attention"`, `"mlp"`, `"last:k"`
        (the last k blocks), a regular expression that is searched in the layer names, or a list of names.
    init_scale : float, default=0.01
        Standard deviation of the initial log ratios of singular values or channels, and of the initial factors of
        `"batch"` around 1.
    train_bias : bool, default=False
        Whether members also own the biases of the selected layers.
    member_lr : float, default=None
        Learning rate of each member's backbone parameters. None takes the default of the ensemble.
    head_lr : float, default=None
        Learning rate of the heads. None takes the default of the ensemble.
    weight_decay : float, default=0.0
        Decoupled weight decay (AdamW) of each member's backbone parameters. It pulls them toward the pretrained
        weights; the weights of full fine-tunes are pulled toward zero.
    head_weight_decay : float, default=None
        Decoupled weight decay of the heads. None takes the default of the ensemble.
    max_epochs : int, default=None
        Number of passes over the training data. None leaves the length of the training to `max_steps`.
    max_steps : int, default=None
        Number of training steps, each on one batch; only one of `max_epochs` and `max_steps` can be given. If both
        are None, training takes 160 steps or 6 epochs, whichever is longer, so that few samples are seen often enough
        and many samples a few times. A training that is counted in steps is divided into 5 to 20 rounds, if possible
        of one epoch each; what otherwise happens once per epoch (validation, `history_`, `early_stopping`) then
        happens once per round. With `warm_start` each fit trains for the full length; `partial_fit` always trains for
        one epoch.
    batch_size : int, default=32
        Number of samples in a batch, in training and in prediction.
    schedule : {"cosine", "linear", "constant"}, default="cosine"
        Schedule of both learning rates after the warm-up.
    warmup : float, default=0.1
        Fraction of the training steps in which the learning rates rise linearly, in [0, 1).
    grad_clip : float, default=1.0
        Largest norm of a member's gradient. None disables clipping.
    label_smoothing : float, default=0.0
        Label smoothing of the cross-entropy, in [0, 1).
    class_weight : dict or "balanced", default=None
        Weights of the classes in the loss, as elsewhere in scikit-learn.
    validation_fraction : float, default=0.1
        Fraction of the samples that `early_stopping` and `calibrate` hold out, stratified by class.
    early_stopping : bool, default=False
        Whether to stop when the negative log-likelihood of the mean prediction on the validation data has not
        improved for `n_iter_no_change` epochs, and to restore the best epoch; see `max_steps` for trainings whose
        length is given in steps.
    n_iter_no_change : int, default=5
        Number of epochs, or of rounds, without improvement after which `early_stopping` stops.
    calibrate : {"auto", "temperature"} or None, default="auto"
        `"temperature"` divides the logarithms of the mean prediction by a temperature that is fitted on validation
        data: those passed to `fit`; otherwise, if members leave out `folds`, all training samples, each predicted by
        the members that left it out; otherwise `validation_fraction` of the samples. With few samples the temperature
        stays close to 1. `"auto"` calibrates only if members leave out folds, because this costs no training sample.
        It also blends the prediction with a logistic regression on features of the frozen backbone, as far as the
        out-of-fold predictions of more than a handful of samples support it; predictions then take one more pass of
        the frozen backbone. Both change `predict_proba`, but not the members and their uncertainty.
    precision : {"auto", "float32", "bfloat16", "float16"}, default="auto"
        Arithmetic of the backbone in training. `"auto"` uses bfloat16 if the processor supports it and it is
        faster, else float32. `"float16"`, for GPUs without bfloat16, scales each member's loss and skips the steps of
        a member whose gradient overflows. Heads and losses are always float32 or better.
    predict_precision : {"auto", "float32", "bfloat16"}, default="auto"
        Arithmetic of the members' networks in prediction. `"auto"` uses bfloat16 for transformers if the processor
        multiplies it natively, which takes less than half the time, else float32. Probabilities in bfloat16 differ by
        less than 0.01 from those in float32. Heads, probabilities and the frozen backbone's features are always
        float32 or better.
    device : str, torch.device or list of them, default="auto"
        `"auto"` uses a GPU if there is one. A list of GPUs, such as `["cuda:0", "cuda:1"]`, splits the backbone: each
        takes some of its blocks, with what members own of them, for models that no single one has the memory for.
        Inputs, heads and losses are on the first.
    n_jobs : int, default=None
        Number of processes in which `fit` trains members at the same time, by joblib's backend: on processors as many
        as given, -1 for all of them; with several GPUs at most one for each GPU, unless `device` names one. The
        members are the same as with one process of as many threads. None means 1 unless in a `joblib.parallel_config`
        context. One process trains all members if they depend on one another: with `early_stopping`, `diversity` or
        `callbacks`; with `"snapshot"` and `"dropout"`, which train one network, and with `"head"` and `"laplace"`,
        which are solved; also within a worker of joblib, such as those of a parallel `GridSearchCV`, in threads and
        under `torchrun`. On Ctrl-C the estimator does not change.
    warm_start : bool, default=False
        Whether `fit` continues from the previous fit.
    random_state : int or RandomState, default=None
        An int makes fits repeatable: the same seed, number of threads and processor give the same bits.
    verbose : int, default=0
        1 shows progress bars with the remaining time, in training and in predictions of many batches; where standard
        error is neither a terminal nor a notebook, lines every half minute and at the end.
    callbacks : list, default=None
        Callbacks of skorch that take part in the training.
    features : {"backbone", "mean", "members"}, default="backbone"
        What `transform` returns: the features of the frozen backbone, the mean of the members' features, or the
        features of each member, one after another.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    history_ : dict
        Lists with one entry per epoch or round, see `max_steps`: `"epoch"` (passes over the training data so far),
        `"step"` (training steps so far), `"loss"` (mean over members), `"valid_nll"` (NaN without validation data).
        `"ratio_spread"` and `"gradient_norm"` hold such a list for each layer in `ratios_`.
    n_iter_ : int
        Number of epochs, or of rounds, trained.
    oof_proba_ : ndarray of shape (n_samples, n_classes), float32
        Only if members leave out `folds`: the probabilities of each training sample, in the order of `y`, as the mean
        of the members that left it out, without extra training and without calibration. NaN for samples that were
        held out for validation. It is not saved with the model.
    temperature_ : float
        Temperature of the predictions: above 1 if `calibrate` found them overconfident, and 1 without calibration.
    regression_share_ : float
        Share of a logistic regression on features of the frozen backbone in the predictions, from 0, if
        `calibrate` does not blend, to 1.
    ratios_ : dict of str to ndarray of shape (n_members, r)
        For each adapted layer, the ratios of the members' singular values to the pretrained ones; with
        `basis="random"` the ratios along its directions, and with `"scale"` the factors of the r input channels.
        Empty for other ensembles.
    n_member_parameters_ : int
        Number of parameters that each member owns.
    """

    _parameter_constraints: dict = {
        "backbone": "no_validation",
        "ensemble": [StrOptions(set(RULES))],
        "ensemble_params": [dict, None],
        "n_members": [COUNT],
        "layers": [str, "array-like"],
        "init_scale": [NOT_NEGATIVE],
        "train_bias": ["boolean"],
        "member_lr": [POSITIVE, None],
        "head_lr": [POSITIVE, None],
        "weight_decay": [NOT_NEGATIVE],
        "head_weight_decay": [NOT_NEGATIVE, None],
        "max_epochs": [COUNT, None],
        "max_steps": [COUNT, None],
        "batch_size": [COUNT],
        "schedule": [StrOptions({"cosine", "linear", "constant"})],
        "warmup": [Interval(numbers.Real, 0, 1, closed="left")],
        "grad_clip": [POSITIVE, None],
        "label_smoothing": [Interval(numbers.Real, 0, 1, closed="left")],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "validation_fraction": [Interval(numbers.Real, 0, 1, closed="neither")],
        "early_stopping": ["boolean"],
        "n_iter_no_change": [COUNT],
        "calibrate": [StrOptions({"auto", "temperature"}), None],
        "precision": [StrOptions({"auto", "float32", "bfloat16", "float16"})],
        "predict_precision": [StrOptions({"auto", "float32", "bfloat16"})],
        "device": "no_validation",
        "n_jobs": [COUNT, Interval(numbers.Integral, None, -1, closed="right"), None],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
        "callbacks": [list, tuple, None],
        "features": [StrOptions({"backbone", "mean", "members"})],
    }

    _kind_of_inputs: str  # "image" or "text": which of a rule's defaults apply

    # The constructor's arguments.
    backbone: Any
    ensemble: str
    ensemble_params: dict[str, Any] | None
    n_members: int
    layers: str | Sequence[str]
    init_scale: float
    train_bias: bool
    member_lr: float | None
    head_lr: float | None
    weight_decay: float
    head_weight_decay: float | None
    max_epochs: int | None
    max_steps: int | None
    batch_size: int
    schedule: str
    warmup: float
    grad_clip: float | None
    label_smoothing: float
    class_weight: dict[Any, float] | str | None
    validation_fraction: float
    early_stopping: bool
    n_iter_no_change: int
    calibrate: str | None
    precision: str
    predict_precision: str
    device: str | torch.device | list[str]
    n_jobs: int | None
    warm_start: bool
    random_state: int | np.random.RandomState | None
    verbose: int
    callbacks: Sequence[Any] | None
    features: str

    # What `fit` learns.
    classes_: NDArray[Any]
    history_: dict[str, Any]
    n_iter_: int
    preprocess_: dict[str, Any]
    temperature_: float
    oof_proba_: NDArray[np.float32]

    def __init__(
        self,
        backbone: Any = None,
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

    def _store_parameters(self, arguments: Mapping[str, Any]) -> None:
        """Store the arguments of the constructor, which passes `locals()`, as attributes of the same names."""
        for name, value in arguments.items():
            if name != "self":
                setattr(self, name, value)

    # ------------------------------------------------------------------------------------------- hooks

    @abstractmethod
    def _check_inputs(self, X, *, reset):
        """Return X as a sequence with `len` and `take(indices)`; `reset` in fit, where attributes are learned."""

    @abstractmethod
    def _load_backbone(self, spec, preprocess=None, classes=None):
        """Return the `Backbone` of a specification, for `classes` in fit, with the fitted preprocessing later."""

    @abstractmethod
    def _make_pipeline(self, items, backbone, device, *, training):
        """Return the pipeline that reads, prepares and batches the items; in `training` they are read repeatedly."""

    _learned: dict[str, list] = {}  # what fit learns of the inputs: attribute -> all values that it may have

    @abstractmethod
    def _exported_inputs(self, backbone, *, resize):
        """Return what an exported graph takes, an `ExportedInputs`; `resize` is for images."""

    @abstractmethod
    def _outline(self, length, n_classes):
        """Return the backbone's module without weights, its features, its preprocessing, a batch, and its size.

        Tensors are made on the default device, "meta"; `length` is that of texts, in tokens.
        """

    def _find_classes(self, items, y):
        """Return the classes, sorted, of the labels `y` that a fit gets for checked inputs."""
        return np.unique(y)

    @staticmethod
    @abstractmethod
    def _check_preprocess(preprocess):
        """Raise ValueError, KeyError or TypeError if a saved model's `preprocess_` is of no backbone of this kind."""

    def _defaults(self):
        """Return what None stands for where the ensemble decides: a `skve._ensembles.Defaults`."""
        return RULES[self.ensemble].defaults[self._kind_of_inputs]

    # ----------------------------------------------------------------------------------------- fitting

    @with_callbacks
    def fit(
        self,
        X: Samples,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        X_val: Samples | None = None,
        y_val: ArrayLike | None = None,
    ) -> Self:
        """Fit the ensemble.

        Parameters
        ----------
        X : array-like of length n_samples
            Inputs of one of the kinds that the class lists.
        y : array-like of shape (n_samples,)
            Labels of any kind: strings, integers, booleans; at least two classes.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples in the loss, scaled to mean 1. None gives all samples the same weight.
        X_val, y_val : array-like, default=None
            Validation data, whose negative log-likelihood is recorded in `history_`. Without them, `early_stopping`
            and `calibrate` hold out `validation_fraction` of the samples, stratified by class. Class weights do not
            apply to validation data.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError, TypeError
            If a parameter or an input is not as described. The estimator does not change.
        torch.OutOfMemoryError
            If one member and one sample do not fit into memory, after retrying with smaller parts of a batch. The
            estimator does not change.
        KeyboardInterrupt
            On Ctrl-C. The last complete epoch or round becomes the fitted state.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skve.testing import ToyClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = ToyClassifier(n_members=2, max_epochs=5, random_state=0)
        >>> clf.fit(X, y, X_val=X, y_val=y).n_iter_
        5
        """
        start = self._state if self.warm_start and hasattr(self, "_state") else None
        task = self._init_callback_context(max_subtasks=None)
        if task is not None:
            task.call_on_fit_task_begin(estimator=self, X=X, y=y)
        self._fit_or_stay(X, y, sample_weight, X_val=X_val, y_val=y_val, start=start, task=task)
        if task is not None:
            task.call_on_fit_task_end(estimator=self, X=X, y=y)
        return self

    def partial_fit(
        self,
        X: Samples,
        y: ArrayLike,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Train for one epoch on the samples given, at constant learning rates.

        After `fit`, whose learning rates end at zero, these are a fiftieth of `member_lr` and `head_lr`, so that a
        few new samples correct the model and do not replace what it has learned. Models that only `partial_fit` has
        trained, or `fit` with `schedule="constant"`, go on with the full rates. The optimizer starts anew in each
        call; `history_` and `n_iter_` describe the last call.

        Parameters
        ----------
        X : array-like of length n_samples
            Inputs of one of the kinds that the class lists.
        y : array-like of shape (n_samples,)
            Labels.
        classes : array-like of shape (n_classes,), default=None
            All classes that any call will pass. Required in the first call.
        sample_weight : array-like of shape (n_samples,), default=None
            As in `fit`.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            If `classes` is missing in the first call, differs from that of an earlier call or lacks a label of `y`,
            or if `calibrate` is set, since there is no validation data.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skve.testing import ToyClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = ToyClassifier(n_members=2, random_state=0)
        >>> clf.partial_fit(X[::2], y[::2], classes=[0, 1, 2]).partial_fit(X[1::2], y[1::2]).n_iter_
        1
        """
        start = getattr(self, "_state", None)
        if self.calibrate == "temperature" and (self.ensemble_params or {}).get("folds") is None:
            raise ValueError(
                f"calibrate must be None in partial_fit, which has no validation data, got {self.calibrate!r}. Set "
                f"folds in ensemble_params, or calibrate in the end with "
                f"CalibratedClassifierCV(FrozenEstimator(classifier), method='temperature')."
            )
        if start is None and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit, got None.")
        if start is not None:
            if classes is not None and not np.array_equal(
                np.unique(check_classes(classes, "classes")), self.classes_
            ):
                raise ValueError(
                    f"classes must be those of the first call, {self.classes_.tolist()!r}, got {classes!r}. Pass "
                    f"none."
                )
            classes = self.classes_
        return self._fit_or_stay(X, y, sample_weight, start=start, classes=classes)

    def _fit_or_stay(self, *args, **kwargs):
        from skve._ensembles import check_dtype, check_options
        from skve._runtime.device import neutral_modes, resolve_device

        self._validate_params()
        check_options(self.ensemble, self.ensemble_params)  # before a backbone of many gigabytes is read
        check_dtype(self.ensemble, getattr(self, "backbone_dtype", "float32"))
        if self.max_epochs is not None and self.max_steps is not None:
            raise ValueError(
                f"max_epochs and max_steps must not both be given, got max_epochs={self.max_epochs} and "
                f"max_steps={self.max_steps}."
            )
        # A copy is fitted and takes over in one assignment: Ctrl-C at any moment leaves a whole estimator.
        fitted = copy.copy(self)
        with self._out_of_memory_explained("fit"), neutral_modes(resolve_device(self.device)):
            interrupted = fitted._fit(*args, **kwargs)
        self.__dict__ = fitted.__dict__
        if interrupted:
            raise KeyboardInterrupt
        return self

    def _fit(self, X, y, sample_weight, *, X_val=None, y_val=None, start=None, classes=None, task=None):
        from skve._runtime import processes
        from skve._training.folds import split_folds

        once = classes is not None
        data, classes_ = self._check_training_data(X, y, sample_weight, start, classes)
        processes.warn_of_missing_group()
        seeds = processes.of_first(self._seeds(start))  # which may be drawn
        n_folds = self._n_folds(data.targets, once)
        parts = self._split(data, X_val, y_val, classes_, seeds, once, n_folds)
        parameters = {name: value for name, value in vars(self).items() if isinstance(value, int | float | str)}
        validation = parts.valid and (parts.valid.items, parts.valid.targets, parts.valid.weights)
        processes.check_same(
            X=data.items, y=data.targets, sample_weight=data.weights, X_val=validation, parameters=parameters
        )
        folds = None
        if n_folds is not None:  # as the split, the same where a fit goes on
            folds = split_folds(parts.train.targets, n_folds, self.n_members, seeds.generator("split"))
        interrupted, regression = self._train(parts, folds, classes_, seeds, start, once, task)
        self._predict_and_calibrate(data, parts, folds, regression)
        return interrupted

    def _seeds(self, start=None):
        """Return the seeds of a training, which may go on from an earlier state."""
        from skve._runtime.randomness import Seeds

        return Seeds(
            self.random_state
            if self.random_state is None or isinstance(self.random_state, numbers.Integral)
            else check_random_state(self.random_state),
            **({} if start is None else {"n_epochs": start.n_epochs, "split_seed": start.split_seed}),
        )

    def _check_training_data(self, X, y, sample_weight, start, classes):
        """Return what the user passed as a `Part`, with weights of mean 1, and the classes."""
        from skve._training.batches import Part

        items = self._check_inputs(X, reset=start is None)
        y = check_labels(y, "y")
        check_consistent_length(items, y)
        if classes is not None:
            classes_ = np.unique(check_classes(classes, "classes"))
        else:
            classes_ = self._find_classes(items, y) if start is None else self.classes_
        codes = encode_labels(y, classes_)
        if len(classes_) < 2:
            raise ValueError(f"y must have at least two classes, got only one class: {classes_.tolist()[0]!r}.")
        weights = check_weights(sample_weight, len(y))
        weights = np.ones(len(y)) if weights is None else to_mean_one(weights, "data")
        return Part(items, codes, weights, np.arange(len(y))), classes_

    def _train(self, parts, folds, classes_, seeds, start, once, task):
        """Train, and set what a fit learns but for the calibration.

        Return whether Ctrl-C ended the training, and the `fold_regression` that predictions may be blended with.
        """
        from skve._runtime.device import resolve_devices
        from skve._training import loop, parallel, solve

        devices = resolve_devices(self.device)
        device = devices[0]
        if self.verbose:
            report_progress("skve: preparing the backbone")
        backbone = self._load_backbone(self.backbone, classes=classes_).on(*devices)
        settings = self._settings(once, start, has_validation=parts.valid is not None)
        groups = self._member_groups(settings, once, device)
        given = (parts, folds, len(classes_), seeds, start, settings)
        members = groups[0] if len(groups) > 1 else None
        ensemble, plan, train_batches, valid_batches = self._new_ensemble(backbone, *given, members)
        is_solved = ensemble.rule.is_solved and not once
        own_validation = parts.valid is not None and parts.valid.name == "X_val"
        blends = self.calibrate == "auto" and not (folds is None or is_solved or once or own_validation)
        frozen = solve.FrozenFeatures.of(train_batches, ensemble, self.verbose) if is_solved or blends else None
        # Before the training: Ctrl-C in it keeps the last epoch, and has nothing left to wait for.
        earlier = start.novelty if once and start is not None else None
        novelty = self._novelty(parts.train, frozen, plan, backbone, device, seeds, earlier)
        regression = None
        if blends:
            regression = solve.fold_regression(ensemble, frozen, parts.train.weights, folds, seeds)
        reports = {"callbacks": self.callbacks, "verbose": self.verbose}
        if is_solved:
            weights = parts.train.weights
            result = solve.solve(
                ensemble, frozen, train_batches, valid_batches, settings, weights=weights, seeds=seeds, **reports
            )
        elif len(groups) > 1:
            trainings = [
                (_train_group, (self._as_worker(index, device), classes_, *given, members))
                for index, members in enumerate(groups)
            ]
            result = parallel.merge(parallel.run(trainings))
        else:
            if task is not None:
                reports["callbacks"] = [*(self.callbacks or []), loop.EpochTasks(self, task)]
            chunk = self._chunk(ensemble)
            result = loop.train(ensemble, train_batches, valid_batches, settings, chunk=chunk, **reports)
        annealed = settings.schedule != "constant" or (start is not None and start.annealed)
        self._state = plan.fitted(result.arrays, result.n_iter, self.backbone, novelty, annealed)
        self.classes_ = classes_
        self.preprocess_ = dict(backbone.preprocess)
        self.history_ = result.history
        self.n_iter_ = result.n_iter
        return result.interrupted, regression

    def _new_ensemble(self, backbone, parts, folds, n_classes, seeds, start, settings, members):
        """Return the ensemble to train, of all members or of a range of them, its state to be, and its batches."""
        from skve._training import build
        from skve._training.batches import training_batches, validation_batches

        def pipeline_of(part):
            pipeline = self._make_pipeline(part.items, backbone, backbone.device, training=True)
            pipeline.check_labels(part.targets, part.name)
            return pipeline

        pipeline, design = pipeline_of(parts.train), self._design(settings.early_stopping)
        ensemble, plan = build.new_ensemble(design, backbone, pipeline, n_classes, seeds, start, members)
        train_batches = training_batches(parts.train, pipeline, ensemble, seeds, self.batch_size, folds, members)
        valid_batches = None
        if parts.valid is not None:
            valid_batches = validation_batches(parts.valid, pipeline_of(parts.valid), ensemble, self.batch_size)
        return ensemble, plan, train_batches, valid_batches

    def _chunk(self, ensemble):
        """Return how many members pass through the network together."""
        one_by_one = ensemble.device.type == "cpu" or getattr(self, "activation_checkpointing", False)
        return 1 if one_by_one else len(ensemble.trained)

    def _member_groups(self, settings, once, device):
        """Return the members as ranges that train at once: all in one where they depend on one another."""
        from skve._training import parallel

        rule, options = RULES[self.ensemble], self.ensemble_params or {}
        n_members = rule.n_members(self.n_members)
        depend = (
            len(rule.trained(n_members)) < n_members
            or (rule.is_solved and not once)
            or options.get("diversity")
            or settings.early_stopping
            or self.callbacks
            or has_callbacks(self)
        )
        n_groups = 1 if depend else parallel.n_groups(n_members, self.n_jobs, device)
        return parallel.split_members(n_members, n_groups)

    def _as_worker(self, group, device):
        """Return the estimator as a process gets it that trains a group of members."""
        from skve._training import parallel

        worker = copy.copy(self)
        for name in ("_state", "oof_proba_"):
            worker.__dict__.pop(name, None)
        worker.device = parallel.device_of(device, group)
        worker.verbose = self.verbose if group == 0 else 0
        return worker

    def _predict_and_calibrate(self, data, parts, folds, regression):
        """Set `oof_proba_` where members leave out folds, `temperature_`, and the share of the regression."""
        from skve._fitted.temperature import fit_temperature, fit_temperature_out_of_fold

        self.temperature_ = 1.0
        self.__dict__.pop("oof_proba_", None)
        train, valid = parts.train, parts.valid
        if folds is not None:
            left_out = folds.predictions(
                lambda rows, members: self._predict(train.items.take(rows), "proba", members=members)[0]
            )
            self.oof_proba_ = np.full((len(data.targets), len(self.classes_)), np.nan, np.float32)
            self.oof_proba_[train.rows] = [each.mean(axis=0) for each in left_out]
        if self.calibrate is None or (self.calibrate == "auto" and folds is None):
            return
        if folds is not None and (valid is None or valid.name == "X"):
            weights = data.weights[train.rows]  # without those of the classes
            self.temperature_ = fit_temperature_out_of_fold(left_out, train.targets, weights, self.n_members)
            if regression is not None:
                head, by_regression = regression
                self._blend(head, by_regression, left_out, train.targets, weights)
        else:
            pooled = self._predict(valid.items, "proba")[0].mean(axis=0)
            self.temperature_ = fit_temperature(pooled, valid.targets, valid.weights)

    def _blend(self, head, by_regression, left_out, targets, weights):
        """Let predictions have the share of a regression that the out-of-fold predictions of both ask for."""
        from skve._ensembles import Likelihood
        from skve._fitted.blending import fit_share
        from skve._fitted.temperature import fit_temperature

        by_members = np.array([each.mean(axis=0) for each in left_out])
        # These are means of other numbers of members than predictions are: they have a temperature of their own.
        temperature = fit_temperature(by_members, targets, weights)
        by_members = Likelihood(by_members.shape[1]).temper(by_members, temperature)
        share = fit_share(by_members, by_regression, targets, weights)
        if share > 0:
            regression = {"weight": head[0], "bias": head[1], "share": np.array([share])}
            self._state = dataclasses.replace(self._state, regression=regression)

    def _design(self, early_stopping):
        from skve._training.build import Design

        return Design(
            ensemble=self.ensemble,
            ensemble_params=self.ensemble_params,
            n_members=self.n_members,
            layers=self.layers,
            init_scale=self.init_scale,
            train_bias=self.train_bias,
            batch_size=self.batch_size,
            precision=self.precision,
            early_stopping=early_stopping,
            activation_checkpointing=getattr(self, "activation_checkpointing", False),
        )

    def _novelty(self, part, frozen, plan, backbone, device, seeds, earlier):
        """Return what is kept of the training samples that count, or of a random part of them, for `novelty`."""
        from skve._fitted import prediction
        from skve._fitted.novelty import Novelty, n_kept

        chosen = np.flatnonzero(part.weights > 0)
        largest = n_kept(plan.n_classes)
        if len(chosen) > largest:
            order = np.random.default_rng(seeds.generator("novelty").initial_seed())
            chosen = np.sort(order.choice(chosen, largest, replace=False))
        if frozen is not None:
            return Novelty.of_training(frozen.values.numpy()[chosen], earlier, n_classes=plan.n_classes)
        pipeline = self._make_pipeline(part.items.take(chosen), backbone, device, training=False)
        passes, features = prediction.frozen_passes(backbone, pipeline, plan.n_features)
        prediction.predict(passes, pipeline, self.batch_size, device)
        return Novelty.of_training(features, earlier, n_classes=plan.n_classes)

    def _settings(self, once, start, has_validation):
        from skve._training.loop import Settings

        defaults = self._defaults()
        head_lr = defaults.head_lr if self.head_lr is None else self.head_lr
        # What a step takes from a head is the product of the two: another learning rate leaves it as it is.
        head_weight_decay = defaults.head_weight_decay * defaults.head_lr / head_lr
        member_lr = defaults.member_lr if self.member_lr is None else self.member_lr
        # An optimizer that starts anew takes steps of the size of the rate, whatever the gradient: at full rates, a
        # few of them would undo the fit.
        factor = _RATES_AFTER_FIT if once and start is not None and start.annealed else 1.0
        return Settings(
            member_lr=factor * member_lr,
            head_lr=factor * head_lr,
            weight_decay=self.weight_decay,
            head_weight_decay=head_weight_decay if self.head_weight_decay is None else self.head_weight_decay,
            max_epochs=1 if once else self.max_epochs,
            max_steps=None if once else self.max_steps,
            least_steps=defaults.least_steps,
            schedule="constant" if once else self.schedule,
            warmup=0.0 if once else self.warmup,
            grad_clip=self.grad_clip,
            label_smoothing=self.label_smoothing,
            early_stopping=self.early_stopping and has_validation,
            n_iter_no_change=self.n_iter_no_change,
        )

    def _split(self, data, X_val, y_val, classes, seeds, once, n_folds):
        """Return what is trained on and what validates, as `Parts` with weights of mean 1.

        Class weights change what is learned, not what is measured: they count in the training part only.
        """
        from skve._training.batches import Part, Parts

        if (X_val is None) != (y_val is None):
            raise ValueError("X_val and y_val must be given together, got one of them.")
        items, codes, weights = data.items, data.targets, data.weights
        held_out = np.zeros(len(codes), bool)
        valid = None
        if X_val is not None:
            try:
                val_items = self._check_inputs(X_val, reset=False)
            except (ValueError, TypeError) as error:
                raise type(error)(f"X_val: {error}") from error
            val_y = check_labels(y_val, "y_val")
            check_consistent_length(val_items, val_y)
            val_codes = encode_labels(val_y, classes, name="y_val")
            valid = Part(val_items, val_codes, np.ones(len(val_codes)), np.arange(len(val_codes)), "X_val")
        elif (self.early_stopping or (self.calibrate == "temperature" and n_folds is None)) and not once:
            counted = np.flatnonzero(weights)  # the others would measure nothing
            chosen = stratified_part(codes[counted], self.validation_fraction, seeds.generator("split"))
            held_out[counted[chosen]] = True
            if not 0 < held_out.sum() < len(codes):
                raise ValueError(
                    f"validation_fraction must leave a sample for validation and one for training, got "
                    f"{self.validation_fraction}, which holds out {held_out.sum()} of {len(codes)}. Pass more "
                    f"samples, or X_val and y_val."
                )
            out = np.flatnonzero(held_out)
            valid = Part(items.take(out), codes[out], to_mean_one(weights[out], "validation part"), out)
        kept = np.flatnonzero(~held_out)
        weights = (weights * class_weights(self.class_weight, codes, classes))[kept]
        train_items = items.take(kept) if held_out.any() else items
        return Parts(Part(train_items, codes[kept], to_mean_one(weights, "training part"), kept), valid)

    def _n_folds(self, codes, once):
        """Return in how many parts the training samples are split, of which each member leaves out one, or None.

        Where nobody says, the ensemble's default, if there are members to leave out a fold each and every class has
        a sample in each fold, and no other option already gives members different samples. None in `partial_fit`
        (`once`), whose calls would leave out other samples each.
        """
        options = self.ensemble_params or {}
        default = "auto" if "folds" in RULES[self.ensemble].takes else None
        folds = options.get("folds", default)
        if folds != "auto":
            return folds
        folds = self._defaults().folds
        if once or folds is None or options.get("bootstrap") or options.get("diversity"):
            return None
        return folds if self.n_members >= folds and np.bincount(codes).min() >= folds else None

    # -------------------------------------------------------------------------------------- predicting

    def predict_proba_members(self, X: Samples) -> NDArray[np.float64]:
        """Predict each member's class probabilities.

        Parameters
        ----------
        X : array-like of length n_samples
            Inputs of one of the kinds that the class lists.

        Returns
        -------
        proba : ndarray of shape (n_members, n_samples, n_classes), float64
            Columns in the order of `classes_`; rows sum to 1.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the estimator is not fitted.
        ValueError, TypeError
            If X is not of the kind that `fit` was given, or the backbone's weights have changed since.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skve.testing import ToyClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = ToyClassifier(n_members=2, random_state=0).fit(X, y)
        >>> clf.predict_proba_members(X[:5]).shape
        (2, 5, 3)
        """
        fitted = self._snapshot()
        with fitted._out_of_memory_explained("predict"):
            return fitted._predict(fitted._check_inputs(X, reset=False), "proba")[0]

    def _snapshot(self):
        """Return the fitted estimator as it is now, with the parameters that predictions read validated.

        A fit, in another thread say, replaces all attributes in one assignment, and changes nothing in the snapshot.
        """
        fitted = copy.copy(self)
        check_is_fitted(fitted)
        read = ("batch_size", "predict_precision", "image_size", "image_shape", "augment", "features", "verbose")
        parameters = {name: value for name, value in fitted.get_params(deep=False).items() if name in read}
        constraints = {name: fitted._parameter_constraints[name] for name in parameters}
        validate_parameter_constraints(constraints, parameters, type(self).__name__)
        return fitted

    @contextlib.contextmanager
    def _out_of_memory_explained(self, doing):
        """Turn the errors of all allocators into one, with the sizes and the remedies."""
        from skve._runtime.memory import is_out_of_memory

        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            import torch

            names = [name for name in self._memory_parameters(doing) if name in self.get_params(deep=False)]
            present = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
            remedies = "; ".join(self._memory_parameters(doing)[name] for name in names)
            raise torch.OutOfMemoryError(
                f"Out of memory in {doing} on device={self.device!r} with {present}. Remedies: {remedies}. "
                f"The allocator's message: {error or type(error).__name__}"
            ) from error

    def _memory_parameters(self, doing):
        """Return the parameters that memory depends on, each with the remedy that it offers."""
        remedies = {
            "batch_size": "a smaller batch_size",
            "image_size": "a smaller image_size",
            "max_length": "a smaller max_length",
            "device": "device='cpu', which uses the memory of the machine",
        }
        if doing != "predict":
            remedies |= {
                "layers": "fewer layers, as layers='last:2'",
                "precision": "precision='bfloat16'",
                "n_members": "a smaller n_members",
                "activation_checkpointing": "activation_checkpointing=True",
            }
        return remedies

    def _predict(self, items, *kinds, members=None):
        """Return an array for each of `kinds`, of all members or of some; the items are read once for all.

        "proba": the members' probabilities (n_members, n_samples, n_classes); "features": those of the frozen
        backbone (n_samples, n_features); "member_features": (n_members, n_samples, n_features); "body_features":
        (n_samples, n_features), of the one body of all members where they differ by their heads alone; "regression":
        the probabilities (n_samples, n_classes) of the regression that predictions are blended with.
        """
        found: dict[str, Any] = {}

        def keep(rows, *blocks):
            for kind, block in zip(kinds, blocks, strict=True):
                _put(found, kind, len(items), rows, block)

        self._predict_blocks(items, kinds, keep, members=members)
        return [found[kind] for kind in kinds]

    def _predict_blocks(self, items, kinds, keep, *, members=None):
        """Call `keep(rows, *arrays)` for one block of items after another, with the arrays of `_predict` for it.

        What is kept of a block decides on the memory that many items take.
        """
        from skve._fitted import prediction
        from skve._fitted.predictor import predictor_for
        from skve._runtime.device import neutral_modes, resolve_devices

        devices = resolve_devices(self.device)
        device = devices[0]
        state = self._state
        # Features are compared with those of other fits and of the training.
        precision = "float32" if "member_features" in kinds else self.predict_precision
        with neutral_modes(device):
            predictor = predictor_for(
                state,
                self.preprocess_,
                lambda: self._load_backbone(state.spec, self.preprocess_),
                devices,
                precision,
            )
            pipeline = self._make_pipeline(items, predictor.backbone, device, training=False)
            with predictor.lend(pipeline) as networks:
                ensemble, features = networks.ensemble, None
                heads_only = state.heads_only
                own_body = heads_only and not ensemble.rule.is_solved  # not the frozen backbone
                passes: list = []
                of_members = [kind for kind in kinds if kind in ("proba", "member_features") and not heads_only]
                for kind in of_members:
                    new = prediction.probability_passes if kind == "proba" else prediction.feature_passes
                    passes += new(ensemble, members)
                if own_body:
                    passes += prediction.feature_passes(ensemble, [0])
                regression_reads_frozen = "regression" in kinds and not state.own_features
                if "features" in kinds or regression_reads_frozen or (heads_only and not own_body):
                    frozen, features = prediction.frozen_passes(
                        predictor.backbone, pipeline, state.n_features, lambda: networks.frozen
                    )
                    passes += frozen

                def keep_block(rows, outputs):
                    n_each = len(outputs) // max(1, len(of_members))
                    found = {kind: np.stack(outputs[i * n_each :][:n_each]) for i, kind in enumerate(of_members)}
                    impossible = None if pipeline.impossible is None else pipeline.impossible[rows]
                    if features is not None:
                        found["features"] = features[rows]
                    if heads_only:
                        body = found["body_features"] = outputs[0] if own_body else found["features"]
                        chosen = range(len(ensemble.members)) if members is None else members
                        heads = [ensemble.member(index) for index in chosen]
                        found["proba"] = prediction.head_probabilities(ensemble.head, heads, body, impossible)
                        found["member_features"] = np.broadcast_to(body, (len(ensemble.members), *body.shape))
                    if "regression" in kinds:
                        read = found[state.compared]
                        heads = [state.regression_head(device)]
                        (found["regression"],) = prediction.head_probabilities(ensemble.head, heads, read, impossible)
                    for kind in kinds:
                        _check_finite(found[kind], rows)
                    keep(rows, *(found[kind] for kind in kinds))

                width = len(self.classes_) * (len(ensemble.members) if members is None else len(members))
                n_batches = prediction.batches_of_a_block(self.batch_size, width)
                prediction.predict(
                    passes, pipeline, self.batch_size, device, keep_block, n_batches, verbose=self.verbose
                )

    def predict_proba(self, X: Samples) -> NDArray[np.float64]:
        """Predict class probabilities: the mean of the members' probabilities, calibrated with `calibrate`.

        Parameters
        ----------
        X : array-like of length n_samples
            Inputs of one of the kinds that the class lists.

        Returns
        -------
        proba : ndarray of shape (n_samples, n_classes), float64
            Columns in the order of `classes_`; rows sum to 1.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the estimator is not fitted.
        ValueError, TypeError
            If X is not of the kind that `fit` was given, or the backbone's weights have changed since.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skve.testing import ToyClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = ToyClassifier(n_members=2, random_state=0).fit(X, y)
        >>> clf.predict_proba(X[:5]).shape
        (5, 3)
        """
        return self._snapshot()._predict_pooled(X, lambda proba: proba)

    def _predict_pooled(self, X, reduce):
        """Return what `reduce` makes of the prediction (n_rows, n_classes) of each block of samples."""
        found: dict[str, Any] = {}
        with self._out_of_memory_explained("predict"):
            items = self._check_inputs(X, reset=False)

            def keep(rows, *arrays):
                _put(found, "pooled", len(items), rows, reduce(self._pool(*arrays)))

            self._predict_blocks(items, self._pooled_kinds(), keep)
        return found["pooled"]

    def _pooled_kinds(self):
        """Return the kinds of `_predict` that `_pool` takes."""
        return ("proba", "regression") if self._state.regression else ("proba",)

    def _pool(self, members, regression=None):
        """Return the prediction: the mean of the members at the fitted temperature, blended with the regression."""
        from skve._ensembles import Likelihood

        pooled = Likelihood(len(self.classes_)).temper(members.mean(axis=0), self.temperature_)
        share = self._state.regression_share
        return pooled if regression is None else (1 - share) * pooled + share * regression

    def predict(self, X: Samples) -> NDArray[Any]:
        """Predict class labels.

        Parameters
        ----------
        X : array-like of length n_samples
            Inputs of one of the kinds that the class lists.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            Labels from `classes_`, of the type given to `fit`.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the estimator is not fitted.
        ValueError, TypeError
            If X is not of the kind that `fit` was given, or the backbone's weights have changed since.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skve.testing import ToyClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = ToyClassifier(n_members=2, random_state=0).fit(X, y)
        >>> clf.predict(X[:3]).shape
        (3,)
        """
        fitted = self._snapshot()
        return fitted.classes_[fitted._predict_pooled(X, lambda proba: proba.argmax(axis=1))]

    def score(self, X: Samples, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Return the accuracy on given samples.

        Parameters
        ----------
        X : array-like of length n_samples
            Inputs of one of the kinds that the class lists.
        y : array-like of shape (n_samples,)
            True labels, in any container that `fit` takes. Labels that are not in `classes_` count as errors.
        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights.

        Returns
        -------
        accuracy : float
            Between 0 and 1.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the estimator is not fitted.
        ValueError, TypeError
            If no label is in `classes_`, lengths differ, weights are negative, not finite or all zero; and as
            `predict`.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skve.testing import ToyClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = ToyClassifier(n_members=2, random_state=0).fit(X, y)
        >>> bool(0 <= clf.score(X, y) <= 1)
        True
        """
        from skve.metrics._inputs import check_comparable

        predicted = self.predict(X)
        right = predicted == check_comparable(y, self.classes_, len(predicted))
        return float(np.average(right, weights=check_weights(sample_weight, len(predicted))))

    @overload
    def predict_uncertainty(self, X: Samples, *, return_proba: Literal[False] = False) -> Uncertainty: ...
    @overload
    def predict_uncertainty(
        self, X: Samples, *, return_proba: Literal[True]
    ) -> tuple[Uncertainty, NDArray[np.float64]]: ...
    def predict_uncertainty(
        self, X: Samples, *, return_proba: bool = False
    ) -> Uncertainty | tuple[Uncertainty, NDArray[np.float64]]:
        """Predict the uncertainty of each sample, in nats, and split it by source.

        Parameters
        ----------
        X : array-like of length n_samples
            Inputs of one of the kinds that the class lists.
        return_proba : bool, default=False
            Also return the class probabilities, which come from the same pass over the samples.

        Returns
        -------
        uncertainty : skve.uncertainty.Uncertainty
            Arrays of shape (n_samples,): `total` = `aleatoric` + `epistemic`, and others. With `calibrate`,
            `confidence` is the largest calibrated probability; the other measures describe the uncalibrated
            members. `novelty` measures how unlike the training data a sample is; it takes one pass of the frozen
            backbone in addition to those of the members.
        proba : ndarray of shape (n_samples, n_classes), float64
            As `predict_proba` returns it. Only with `return_proba=True`.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the estimator is not fitted.
        ValueError, TypeError
            If X is not of the kind that `fit` was given, or the backbone's weights have changed since.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skve.testing import ToyClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = ToyClassifier(n_members=2, random_state=0).fit(X, y)
        >>> clf.predict_uncertainty(X[:5]).total.shape
        (5,)
        """
        uncertainty, arrays = self._predict_measured(X, keep=("pooled",) if return_proba else ())
        return (uncertainty, arrays["pooled"]) if return_proba else uncertainty

    def _predict_all(self, X):
        """Return what one pass gives: probabilities of members and their pool, `Uncertainty`, features or None."""
        measures, arrays = self._predict_measured(X, keep=("members", "pooled", "features"))
        return arrays["members"], arrays["pooled"], measures, arrays.get("features")

    def _predict_measured(self, X, *, keep=()):
        """Return `Uncertainty`, and the arrays to keep of those that it was computed from."""
        from skve.uncertainty import Uncertainty

        fitted = self._snapshot()
        novelty = fitted._state.novelty
        measures: dict[str, Any] = {}
        arrays: dict[str, Any] = {}
        with fitted._out_of_memory_explained("predict"):
            items = fitted._check_inputs(X, reset=False)

            kinds = fitted._pooled_kinds()

            def measure(rows, *found):
                members, features = found[0], found[-1] if novelty is not None else None
                shares = None if novelty is None else novelty.shares(novelty.distances_of(features))
                pooled = fitted._pool(*found[: len(kinds)])
                block = Uncertainty.from_members(members, proba=pooled, novelty=shares, classes=fitted.classes_)
                for name, values in vars(block).items():
                    _put(measures, name, len(items), rows, values)
                for name, values in {"members": members, "pooled": pooled, "features": features}.items():
                    if name in keep and values is not None:
                        _put(arrays, name, len(items), rows, values)

            # Models that were saved before there was such a thing have no novelty.
            compared = () if novelty is None else (fitted._state.compared,)
            fitted._predict_blocks(items, (*kinds, *compared), measure)
        return Uncertainty(**measures), arrays

    def score_samples(self, X: Samples) -> NDArray[np.float64]:
        """Return the negative distance of each sample from the training data: the higher, the more normal.

        The distance is one minus the mean cosine similarity to the 5 nearest training samples, by features of the
        frozen backbone. `predict_uncertainty` returns the same distance as a share of the training samples,
        `novelty`.

        Parameters
        ----------
        X : array-like of length n_samples
            Inputs of one of the kinds that the class lists.

        Returns
        -------
        scores : ndarray of shape (n_samples,), float64
            From about -2, the farthest, to about 0.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the estimator is not fitted.
        ValueError, TypeError
            If X is not of the kind that `fit` was given, or the backbone's weights have changed since; if the model
            was saved by a version without this distance.

        References
        ----------
        Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skve.testing import ToyClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = ToyClassifier(n_members=2, random_state=0).fit(X, y)
        >>> bool(clf.score_samples([[5.8, 3.0, 4.4, 1.3]]) > clf.score_samples([[-9.0, 9.0, 0.0, 0.0]]))
        True
        """
        fitted = self._snapshot()
        novelty = fitted._state.novelty
        if novelty is None:
            raise ValueError(
                "score_samples requires a model that keeps its training data's distances, got one saved by skve 0.1. "
                "Fit it again."
            )
        with self._out_of_memory_explained("predict"):
            (features,) = fitted._predict(fitted._check_inputs(X, reset=False), fitted._state.compared)
        return -novelty.distances_of(features)

    # ---------------------------------------------------------------------------------------- features

    def transform(self, X: Samples) -> NDArray[np.float32]:
        """Return pooled features of the frozen backbone or of the members, as the parameter `features` says.

        Parameters
        ----------
        X : array-like of length n_samples
            Inputs of one of the kinds that the class lists.

        Returns
        -------
        features : ndarray of shape (n_samples, n_features), float32
            With `features="members"` of shape (n_samples, n_members * n_features), one member after another.
            A table if `set_output` selects one.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the estimator is not fitted.
        ValueError, TypeError
            If X is not of the kind that `fit` was given, or the backbone's weights have changed since.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skve.testing import ToyClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = ToyClassifier(n_members=2, random_state=0).fit(X, y)
        >>> clf.transform(X[:5]).shape
        (5, 16)
        >>> clf.set_params(features="members").transform(X[:5]).shape
        (5, 32)
        """
        fitted = self._snapshot()
        kind = "features" if fitted.features == "backbone" else "member_features"
        with fitted._out_of_memory_explained("predict"):
            (features,) = fitted._predict(fitted._check_inputs(X, reset=False), kind)
        if fitted.features == "members":
            return np.hstack(features)
        return features.mean(axis=0) if fitted.features == "mean" else features

    @property
    def _n_features_out(self):
        """Number of columns of `transform`, which `get_feature_names_out` names."""
        return self._state.n_features * (self._state.n_members if self.features == "members" else 1)

    # -------------------------------------------------------------------------------------- distilling

    def distill(self, X: Samples | None = None) -> Self:
        """Return a student: an estimator with one network that predicts in one pass what the members predict.

        The student's network is the average of the members', in the singular basis that they share. On it stands a
        head for each member (as in Hydra, arXiv 2001.04694), which is solved so that it predicts for X what the
        member does; a penalty, chosen by cross-validation, keeps it close to the member's own head. So the heads
        differ as the members do, and `predict_uncertainty` returns aleatoric and epistemic uncertainty.

        Parameters
        ----------
        X : array-like of length n_samples, default=None
            Inputs of one of the kinds that the class lists, without labels. The training samples are enough; more
            samples of the kind that predictions are made for are better. None keeps the members' own heads on the
            average network, which is less faithful.

        Returns
        -------
        student : estimator
            A fitted estimator of the same class with `n_members=1`; full fine-tunes become `ensemble="single"`.
            Novelty is measured on features of the student's network, from those samples of X that are no novelty to
            the ensemble; without X, it takes a pass of the frozen backbone, as before.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the estimator is not fitted.
        ValueError, TypeError
            If the members pass through one network already, as those of `"head"`, `"laplace"` and `"single"` do; if
            nothing lies in the middle of them, as of `"batch"` with `init="signs"`; or if X is not of the kind that
            `fit` was given.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skve.testing import ToyClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = ToyClassifier(n_members=3, random_state=0).fit(X, y)
        >>> student = clf.distill(X)
        >>> student.predict_proba_members(X).shape
        (3, 150, 3)
        >>> student.predict_uncertainty(X).epistemic.shape
        (150,)
        """
        from skve._runtime.device import neutral_modes, resolve_device
        from skve._training import distillation

        teacher = self._snapshot()
        student = copy.copy(teacher)
        student.__dict__.pop("oof_proba_", None)
        student._state = state = distillation.average(teacher._state)
        student.set_params(n_members=1, ensemble=state.ensemble, ensemble_params=state.ensemble_params or None)
        if X is not None:
            with self._out_of_memory_explained("distill"), neutral_modes(resolve_device(self.device)):
                student._learn_from(teacher, teacher._check_inputs(X, reset=False))
        return student

    def _learn_from(self, teacher, items):
        """Let a student learn what the ensemble that it was made of predicts for items."""
        from skve._fitted.novelty import FAMILIAR, Novelty
        from skve._training import distillation

        state, novelty = self._state, self._state.novelty
        kinds = (*self._pooled_kinds(), *(() if novelty is None else ("features",)))
        predicted = dict(zip(kinds, teacher._predict(items, *kinds), strict=True))
        (features,) = self._predict(items, "body_features")
        backbone = self._load_backbone(state.spec, self.preprocess_)
        pipeline = self._make_pipeline(items, backbone, backbone.device, training=False)
        fold_seed = self._seeds().generator("split").initial_seed()
        learned = distillation.learn(
            state,
            backbone,
            features,
            predicted["proba"],
            predicted.get("regression"),
            pipeline.impossible,
            fold_seed,
        )
        if novelty is not None:
            shares = novelty.shares(novelty.distances_of(predicted["features"]))
            familiar = features[shares <= FAMILIAR]
            if not len(familiar):
                raise ValueError(
                    f"X must have a sample of the kind of the training data, with a novelty up to {FAMILIAR}, got "
                    f"{len(items)} of which all are foreign. Pass the training samples, too."
                )
            known = Novelty.of_training(familiar, n_classes=state.n_classes)
            learned = dataclasses.replace(learned, training=vars(known))
        self._state = learned

    # ------------------------------------------------------------------------------------ fitted state

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # features are float32 always
        return tags

    def __sklearn_is_fitted__(self):
        return hasattr(self, "_state")

    @property
    def ratios_(self) -> dict[str, NDArray[np.float32]]:
        """Ratios of singular values (or channels) to the pretrained ones: dict of layer to (n_members, r)."""
        return self._fitted("ratios_").ratios()

    @property
    def float_layers_(self) -> list[str]:
        """Names of the backbone's modules whose matrices stay float where its linear layers are quantised."""
        described = self._fitted("float_layers_").backbone
        if "float_layers" not in described:
            raise AttributeError(
                f"{type(self).__name__} has float_layers_ with backbone_dtype='int8' or 'int4' only, got a fit with "
                f"float weights."
            )
        return list(described["float_layers"])

    @property
    def regression_share_(self) -> float:
        """Share, from 0 to 1, of the logistic regression that predictions are blended with."""
        return self._fitted("regression_share_").regression_share

    @property
    def n_member_parameters_(self) -> int:
        """Number of parameters that one member owns."""
        return self._fitted("n_member_parameters_").n_member_parameters()

    def _fitted(self, name):
        if not hasattr(self, "_state"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r} before fit.")
        return self._state

    def save(self, folder: str | os.PathLike[str], *, include_backbone: bool = False) -> None:
        """Save the fitted estimator as a folder of safetensors and JSON files, without pickles.

        Parameters
        ----------
        folder : str or path
            Created if it does not exist. An older model in it is replaced.
        include_backbone : bool, default=False
            Whether to embed the backbone's weights, so that loading requires neither a network nor the original.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the estimator is not fitted.
        ValueError
            If `include_backbone` is set and the backbone cannot be rebuilt from its weights alone, as a module of
            your own; if `folder` is a file; or if the labels are of a kind that cannot be saved.
        OSError
            If the disk is full or cannot be written to. An older model in the folder stays intact, even if the
            process is killed during a save.

        Examples
        --------
        See `skve.load`.
        """
        from skve._fitted import saving

        fitted = copy.copy(self)
        check_is_fitted(fitted)
        saving.save(fitted, folder, include_backbone=include_backbone)

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        format: str = "onnx",
        opset: int = 18,
        resize: bool = True,
        weight_dtype: str = "float32",
    ) -> None:
        """Export the fitted estimator as one graph that predicts without skve, with its settings in a JSON file.

        The graph holds all members, their weights folded into the backbone's, and the calibration. It takes
        prepared inputs in batches of any size: of images the pixels, uint8 of shape (n_samples, height, width,
        channels); of texts of any length `input_ids`, `attention_mask` and, where the backbone takes them,
        `token_type_ids`, int64 of shape (n_samples, length). It returns `member_proba` of shape (n_members,
        n_samples, n_classes), `proba` (what `predict_proba` returns), and `total`, `aleatoric`, `epistemic` and
        `novelty` of shape (n_samples,), all float32. The JSON file has the classes, what the inputs are, how they
        are prepared (for texts with the tokenizer), and the thresholds.

        Parameters
        ----------
        path : str or path
            File to write, which ends in ".onnx" or ".pt2"; the JSON file beside it has the same name and ends in
            ".json". Older files are replaced.
        format : {"onnx", "torch"}, default="onnx"
            `"onnx"` for onnxruntime and others, which requires the extra `export`; `"torch"` for
            `torch.export.load` in Python and AOTInductor.
        opset : int, default=18
            Version of ONNX's operators, 18 or newer.
        resize : bool, default=True
            For images, whether the graph resizes and crops images of any size, as the estimator does; all images of
            a batch have one size then. With False images have the network's size.
        weight_dtype : {"float32", "int8"}, default="float32"
            `"int8"` keeps the large matrices in eight bits, with a scale for each row: the file is a quarter to two
            fifths of the size. The graph computes in float32; onnxruntime restores the weights when it loads the
            file, and a graph of torch in each call.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the estimator is not fitted.
        ValueError
            If a parameter is invalid, the backbone cannot be traced by torch.export, `opset` is too low or too new,
            the weights take 2 GiB or more (ONNX), or images are resized in a way that the graph cannot.
        ImportError
            If the extra `export` is not installed and the format is `"onnx"`.

        Examples
        --------
        >>> import tempfile, torch
        >>> from sklearn.datasets import load_iris
        >>> from skve.testing import ToyClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = ToyClassifier(n_members=2, random_state=0).fit(X, y)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     clf.export(f"{folder}/iris.pt2", format="torch")
        ...     graph = torch.export.load(f"{folder}/iris.pt2").module()
        >>> outputs = graph(torch.tensor(X[:5]).float())
        >>> bool(abs(outputs["proba"].numpy() - clf.predict_proba(X[:5])).max() < 1e-4)
        True
        """
        from skve._fitted import exporting

        settings = {"format": format, "opset": opset, "resize": resize, "weight_dtype": weight_dtype}
        exporting.export(self._snapshot(), path, **settings)


def _train_group(estimator, classes, parts, folds, n_classes, seeds, start, settings, members):
    """Train some members of an estimator's ensemble in a process of their own; return a `Result`."""
    from skve._runtime.device import neutral_modes, resolve_device
    from skve._runtime.warnings import ignored
    from skve._training import loop

    device = resolve_device(estimator.device)
    with neutral_modes(device):
        with ignored(""):  # the process that all groups come from has warned of the same
            backbone = estimator._load_backbone(estimator.backbone, classes=classes).on(device)
            ensemble, _, train_batches, valid_batches = estimator._new_ensemble(
                backbone, parts, folds, n_classes, seeds, start, settings, members
            )
        chunk = estimator._chunk(ensemble)
        return loop.train(ensemble, train_batches, valid_batches, settings, chunk=chunk, verbose=estimator.verbose)


def _put(arrays, name, n_items, rows, block):
    """Put a block (n_rows,) or (..., n_rows, width) in its place among all items, in `arrays` under a name."""
    where = (rows,) if block.ndim == 1 else (..., rows, slice(None))
    if name not in arrays:
        shape = (n_items,) if block.ndim == 1 else (*block.shape[:-2], n_items, block.shape[-1])
        arrays[name] = np.empty(shape, block.dtype)
    arrays[name][where] = block


def _check_finite(array, rows):
    """Raise ValueError where the numbers (..., n_rows, width) of a sample in `rows` are not finite."""
    if np.isfinite(array).all():
        return
    *member, place, _ = np.argwhere(~np.isfinite(array))[0]
    sample = rows[place]
    if member:
        raise ValueError(
            f"Members must predict finite probabilities, got NaN from member {member[0]} for X[{sample}]: "
            f"numbers overflow in the backbone or in the member. Fit again with lower member_lr and head_lr, or "
            f"replace a damaged copy of the saved model."
        )
    raise ValueError(
        f"The backbone must compute finite features, got NaN for X[{sample}]: numbers overflow in it. Replace a "
        f"damaged copy of its weights."
    )
