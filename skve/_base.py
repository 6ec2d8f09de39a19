"""The scikit-learn shell that image and text classifiers share: parameters and fit."""

import copy
import numbers
import sys
from abc import abstractmethod

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_consistent_length

from ._ensembles import RULES
from ._labels import check_labels, check_weights, class_weights, encode_labels, stratified_part, to_mean_one
from ._predictor import EnsemblePredictor

POSITIVE = Interval(numbers.Real, 0, None, closed="neither")
NOT_NEGATIVE = Interval(numbers.Real, 0, None, closed="left")
COUNT = Interval(numbers.Integral, 1, None, closed="left")


class BaseSVEClassifier(EnsemblePredictor):
    """Everything of a classifier but its inputs. Subclasses declare the constructor and the hooks."""

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
        "head_weight_decay": [NOT_NEGATIVE],
        "max_epochs": [COUNT],
        "batch_size": [COUNT],
        "schedule": [StrOptions({"cosine", "linear", "constant"})],
        "warmup": [Interval(numbers.Real, 0, 1, closed="left")],
        "grad_clip": [POSITIVE, None],
        "label_smoothing": [Interval(numbers.Real, 0, 1, closed="left")],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "validation_fraction": [Interval(numbers.Real, 0, 1, closed="neither")],
        "early_stopping": ["boolean"],
        "n_iter_no_change": [COUNT],
        "calibrate": [StrOptions({"temperature"}), None],
        "precision": [StrOptions({"auto", "float32", "bfloat16", "float16"})],
        "device": "no_validation",
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
        "callbacks": [list, tuple, None],
    }

    @abstractmethod
    def _default_rates(self):
        """Return the learning rates (of members, of heads) that None stands for, chosen on validation data."""

    def _check_labels(self, pipeline, codes, name):
        """Raise ValueError where a sample of `name`, "X" or "X_val", cannot have its label; mostly all can."""

    # ----------------------------------------------------------------------------------------- fitting

    def fit(self, X, y, sample_weight=None, *, X_val=None, y_val=None):
        """Fit the ensemble.

        Parameters
        ----------
        X : array-like of length n_samples
            Inputs of one of the kinds that the class lists.
        y : array-like of shape (n_samples,)
            Labels of any kind: strings, integers, booleans; at least two classes.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples in the loss, brought to mean 1. None weighs all alike.
        X_val, y_val : array-like, default=None
            Validation data, whose negative log-likelihood `history_` notes. Without it, `early_stopping` and
            `calibrate` set `validation_fraction` of the samples aside, stratified by class. Class weights do not
            count there.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError, TypeError
            If a parameter or an input is not as described. The estimator stays as it was.
        torch.OutOfMemoryError
            If the memory is short even for one member and one sample at a time, as which a batch is tried in the
            end, for the same gradients. The estimator stays as it was.
        KeyboardInterrupt
            On Ctrl-C; the last complete epoch is the fitted state then.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skve.testing import ToyClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = ToyClassifier(n_members=2, random_state=0)
        >>> clf.fit(X, y, X_val=X, y_val=y).n_iter_
        10
        """
        start = self._state if self.warm_start and hasattr(self, "_state") else None
        return self._fit_or_stay(X, y, sample_weight, X_val=X_val, y_val=y_val, start=start)

    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """Train for one epoch on the samples given, at a constant learning rate.

        The optimizer starts anew in each call; `history_` and `n_iter_` describe the last one.

        Parameters
        ----------
        X : array-like of length n_samples
        y : array-like of shape (n_samples,)
        classes : array-like of shape (n_classes,), default=None
            All labels that will ever come; needed in the first call.
        sample_weight : array-like of shape (n_samples,), default=None

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            If `classes` is missing in the first call, differs from an earlier one, or lacks a label of `y`; if
            `calibrate` is set, since there is no validation data.

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
        if self.calibrate is not None:
            raise ValueError(
                f"calibrate={self.calibrate!r}: partial_fit has no validation data; set calibrate=None and calibrate "
                f"in the end with CalibratedClassifierCV(FrozenEstimator(classifier), method='temperature')"
            )
        if start is None and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit")
        if start is not None:
            if classes is not None and not np.array_equal(np.unique(classes), self.classes_):
                raise ValueError(
                    f"classes={classes!r} differs from those of the first call: {self.classes_!r}; pass none"
                )
            classes = self.classes_
        return self._fit_or_stay(X, y, sample_weight, start=start, classes=classes)

    def _fit_or_stay(self, *args, **kwargs):
        from ._device import neutral_modes, resolve_device
        from ._ensembles import check_options

        self._validate_params()
        check_options(self.ensemble, self.ensemble_params)  # before a backbone of many gigabytes is read
        # A copy is fitted and takes over in one assignment: Ctrl-C at any moment leaves a whole estimator.
        fitted = copy.copy(self)
        with self._out_of_memory_explained("fit"), neutral_modes(resolve_device(self.device)):
            interrupted = fitted._fit(*args, **kwargs)
        self.__dict__ = fitted.__dict__
        if interrupted:
            raise KeyboardInterrupt
        return self

    def _fit(self, X, y, sample_weight, *, X_val=None, y_val=None, start=None, classes=None):
        from . import _differences, _state, _training
        from ._device import Seeds, resolve_device
        from ._temperature import fit_temperature

        once = classes is not None
        items = self._check_inputs(X, reset=start is None)
        y = check_labels(y, "y")
        check_consistent_length(items, y)
        known = np.unique(classes) if once else (self.classes_ if start is not None else None)
        classes_, codes = encode_labels(y, known, "y")
        if len(classes_) < 2:
            raise ValueError(f"y has one class only, {classes_.tolist()[0]!r}; a classifier needs at least 2 classes")
        weights = check_weights(sample_weight, y)
        seeds = Seeds(
            self.random_state
            if self.random_state is None or isinstance(self.random_state, numbers.Integral)
            else check_random_state(self.random_state),
            **({} if start is None else {"n_epochs": start.n_epochs, "split_seed": start.split_seed}),
        )
        parts = self._validation_part(items, codes, weights, X_val, y_val, classes_, seeds, once)
        device = resolve_device(self.device)
        if self.verbose:
            print("skve: preparing the backbone", file=sys.stderr)
        backbone = self._load_backbone(self.backbone, classes=classes_).on(device)
        checkpointing = getattr(self, "activation_checkpointing", False)
        settings = self._settings(once, has_validation=parts[1] is not None)
        ensemble, plan = _state.new_ensemble(
            backbone,
            self._make_pipeline(parts[0][0], backbone, device, training=False),
            len(classes_),
            seeds,
            start,
            ensemble=self.ensemble,
            ensemble_params=self.ensemble_params,
            n_members=self.n_members,
            layers=self.layers,
            init_scale=self.init_scale,
            train_bias=self.train_bias,
            batch_size=self.batch_size,
            precision=self.precision,
            early_stopping=settings.early_stopping,
            checkpointing=checkpointing,
        )

        def batches(part, **generators):
            items, codes, weights = part
            pipeline = self._make_pipeline(items, backbone, device, training=True)
            self._check_labels(pipeline, codes, "X_val" if part is parts[1] and X_val is not None else "X")
            return _training.Batches(pipeline, codes, weights, self.batch_size, device, **generators)

        train_batches = batches(parts[0], order=seeds.generator("order"), augment=seeds.generator("augment"))

        result = _training.train(
            ensemble,
            _differences.for_members(train_batches, ensemble.rule, seeds, len(ensemble.trained)),
            batches(parts[1]) if parts[1] is not None else None,
            settings,
            callbacks=self.callbacks,
            verbose=self.verbose,
            chunk=1 if device.type == "cpu" or checkpointing else len(ensemble.trained),
        )
        self._state = plan.fitted(result.arrays, result.n_iter, self.backbone)
        self.classes_ = classes_
        self.preprocess_ = dict(backbone.preprocess)
        self.history_ = result.history
        self.n_iter_ = result.n_iter
        self.temperature_ = 1.0
        if self.calibrate is not None:
            items, codes, weights = parts[1]
            self.temperature_ = fit_temperature(self._predict_members(items).mean(axis=0), codes, weights)
        return result.interrupted

    def _settings(self, once, has_validation):
        from ._step import Settings

        member_lr, head_lr = self._default_rates()
        return Settings(
            member_lr=member_lr if self.member_lr is None else self.member_lr,
            head_lr=head_lr if self.head_lr is None else self.head_lr,
            weight_decay=self.weight_decay,
            head_weight_decay=self.head_weight_decay,
            max_epochs=1 if once else self.max_epochs,
            batch_size=self.batch_size,
            schedule="constant" if once else self.schedule,
            warmup=0.0 if once else self.warmup,
            grad_clip=self.grad_clip,
            label_smoothing=self.label_smoothing,
            early_stopping=self.early_stopping and has_validation,
            n_iter_no_change=self.n_iter_no_change,
        )

    def _validation_part(self, items, codes, weights, X_val, y_val, classes, seeds, once):
        """Return [training part, validation part or None], each (items, codes, weights of mean 1).

        Class weights change what is learned, not what is measured: they count in the training part only.
        """
        if (X_val is None) != (y_val is None):
            raise ValueError("X_val and y_val must be given together")
        held_out = np.zeros(len(codes), bool)
        valid = None
        if X_val is not None:
            try:
                val_items = self._check_inputs(X_val, reset=False)
            except (ValueError, TypeError) as error:
                raise type(error)(f"X_val: {error}") from error
            val_y = check_labels(y_val, "y_val")
            check_consistent_length(val_items, val_y)
            val_codes = encode_labels(val_y, classes, "y_val")[1]
            valid = (val_items, val_codes, np.ones(len(val_codes)))
        elif (self.early_stopping or self.calibrate is not None) and not once:
            held_out = stratified_part(codes, self.validation_fraction, seeds.generator("split"))
            if not 0 < held_out.sum() < len(codes):
                raise ValueError(
                    f"validation_fraction={self.validation_fraction} of {len(codes)} samples leaves "
                    f"{held_out.sum()} for validation; give more samples, or X_val and y_val"
                )
            out = np.flatnonzero(held_out)
            valid = (items.take(out), codes[out], to_mean_one(weights[out], "validation part"))
        kept = np.flatnonzero(~held_out)
        weights = (weights * class_weights(self.class_weight, codes, classes))[kept]
        train_items = items.take(kept) if held_out.any() else items
        return [(train_items, codes[kept], to_mean_one(weights, "training part")), valid]
