"""What a fitted classifier does, for images and texts alike: predict, tell its state, save itself."""

import contextlib
from abc import ABCMeta, abstractmethod

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted


class EnsemblePredictor(ClassifierMixin, BaseEstimator, metaclass=ABCMeta):
    """The predicting half of a classifier, and the hooks by which subclasses read their inputs."""

    classes_: np.ndarray
    temperature_: float

    # ------------------------------------------------------------------------------------------- hooks

    @abstractmethod
    def _check_inputs(self, X, *, reset):
        """Return X as a sequence with `len` and `take(indices)`; `reset` in fit, where attributes are learned."""

    @abstractmethod
    def _load_backbone(self, spec, preprocess=None, classes=None):
        """Return the `Backbone` of a specification, for `classes` in fit, with the fitted preprocessing later."""

    @abstractmethod
    def _make_pipeline(self, items, backbone, device, *, training):
        """Return what reads, prepares and batches the items for the network; `training` reads them often."""

    # -------------------------------------------------------------------------------------- predicting

    def predict_proba_members(self, X):
        """Predict each member's class probabilities.

        Parameters
        ----------
        X : array-like of length n_samples

        Returns
        -------
        proba : ndarray of shape (n_members, n_samples, n_classes), float64
            Columns in the order of `classes_`; rows sum to 1.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before fit.
        ValueError, TypeError
            If X is not as in fit, or the backbone's weights have changed since.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skve.testing import ToyClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = ToyClassifier(n_members=2, random_state=0).fit(X, y)
        >>> clf.predict_proba_members(X[:5]).shape
        (2, 5, 3)
        """
        check_is_fitted(self)
        with self._out_of_memory_explained("predict"):
            return self._predict_members(self._check_inputs(X, reset=False))

    @contextlib.contextmanager
    def _out_of_memory_explained(self, doing):
        """Turn the errors of all allocators into one, with the sizes and the remedies."""
        from ._device import is_out_of_memory

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
                f"out of memory in {doing} on device={self.device!r} with {present}. Remedies: {remedies}. "
                f"What failed: {error or type(error).__name__}"
            ) from error

    def _memory_parameters(self, doing):
        """Return the parameters that memory depends on, each with the remedy that it offers."""
        remedies = {
            "batch_size": "a smaller batch_size",
            "image_size": "a smaller image_size",
            "max_length": "a smaller max_length",
            "device": "device='cpu', where the memory is that of the machine",
        }
        if doing == "fit":
            remedies |= {
                "layers": "fewer layers, as layers='last:2'",
                "precision": "precision='bfloat16'",
                "n_members": "a smaller n_members",
                "activation_checkpointing": "activation_checkpointing=True",
            }
        return remedies

    def _predict_members(self, items):
        from ._device import neutral_modes, resolve_device
        from ._step import predict_members

        device = resolve_device(self.device)
        with neutral_modes(device):
            backbone = self._load_backbone(self._state.spec, self.preprocess_).on(device)
            pipeline = self._make_pipeline(items, backbone, device, training=False)
            ensemble = self._state.ensemble_on(backbone, pipeline)
            proba = predict_members(ensemble, pipeline, self.batch_size, len(self.classes_))
        if not np.isfinite(proba).all():
            member, sample = np.argwhere(~np.isfinite(proba))[0][:2]
            raise ValueError(
                f"member {member} predicts NaN for X[{sample}]: numbers overflow in the backbone or in the member; "
                f"fit again with lower member_lr and head_lr, or take a whole copy of the saved model"
            )
        return proba

    def predict_proba(self, X):
        """Predict class probabilities: the mean of the members' probabilities, calibrated with `calibrate`.

        Parameters
        ----------
        X : array-like of length n_samples

        Returns
        -------
        proba : ndarray of shape (n_samples, n_classes), float64
            Columns in the order of `classes_`; rows sum to 1.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before fit.
        ValueError, TypeError
            If X is not as in fit, or the backbone's weights have changed since.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skve.testing import ToyClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = ToyClassifier(n_members=2, random_state=0).fit(X, y)
        >>> clf.predict_proba(X[:5]).shape
        (5, 3)
        """
        return self._pool(self.predict_proba_members(X))

    def _pool(self, members):
        """Return the prediction of members' probabilities: their mean at the fitted temperature."""
        from ._temperature import apply_temperature

        return np.ascontiguousarray(apply_temperature(members.mean(axis=0), self.temperature_))

    def predict(self, X):
        """Predict class labels.

        Parameters
        ----------
        X : array-like of length n_samples

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            Of the kind that `fit` was given.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before fit.
        ValueError, TypeError
            If X is not as in fit, or the backbone's weights have changed since.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skve.testing import ToyClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = ToyClassifier(n_members=2, random_state=0).fit(X, y)
        >>> clf.predict(X[:3]).shape
        (3,)
        """
        proba = self.predict_proba(X)
        return self.classes_[proba.argmax(axis=1)]

    def predict_uncertainty(self, X):
        """Predict how uncertain the ensemble is, in nats, split by where the uncertainty comes from.

        Parameters
        ----------
        X : array-like of length n_samples

        Returns
        -------
        uncertainty : skve.uncertainty.Uncertainty
            Arrays of shape (n_samples,): `total` = `aleatoric` + `epistemic`, and others; `to_frame()`. With
            `calibrate`, `confidence` is the largest calibrated probability; all else describes the members as
            they are.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before fit.
        ValueError, TypeError
            If X is not as in fit, or the backbone's weights have changed since.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skve.testing import ToyClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = ToyClassifier(n_members=2, random_state=0).fit(X, y)
        >>> clf.predict_uncertainty(X[:5]).total.shape
        (5,)
        """
        from .uncertainty import Uncertainty

        members = self.predict_proba_members(X)
        return Uncertainty.from_members(members, proba=self._pool(members))

    def score_samples(self, X):
        """Return minus the total uncertainty of each sample: higher is surer, as scikit-learn's outlier scores.

        Parameters
        ----------
        X : array-like of length n_samples

        Returns
        -------
        scores : ndarray of shape (n_samples,), float64
            In nats, at most 0.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before fit.
        ValueError, TypeError
            If X is not as in fit, or the backbone's weights have changed since.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skve.testing import ToyClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = ToyClassifier(n_members=2, random_state=0).fit(X, y)
        >>> bool((clf.score_samples(X) <= 0).all())
        True
        """
        return -self.predict_uncertainty(X).total

    # ------------------------------------------------------------------------------------ fitted state

    def __sklearn_is_fitted__(self):
        return hasattr(self, "_state")

    @property
    def ratios_(self):
        """Ratios of singular values (or channels) to the pretrained ones: dict of layer to (n_members, r)."""
        return self._fitted("ratios_").ratios()

    @property
    def n_member_parameters_(self):
        """Number of parameters that one member owns."""
        return self._fitted("n_member_parameters_").n_member_parameters()

    def _fitted(self, name):
        if not hasattr(self, "_state"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r} before fit")
        return self._state

    def save(self, folder, *, include_backbone=False):
        """Save the fitted estimator as a folder of safetensors and JSON; nothing in it is a pickle.

        Parameters
        ----------
        folder : str or path
            Created if need be; an older model in it is replaced.
        include_backbone : bool, default=False
            Embed the backbone's weights, so that loading needs neither a network nor the original.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before fit.
        ValueError
            If `include_backbone` is set and weights alone do not rebuild the backbone, as those of a module of
            your own; if `folder` is a file, or the labels are of a kind that cannot be saved.
        OSError
            If the disk is full or cannot be written. An older model in the folder is whole then, as it is when the
            process ends at any moment of a save.

        Examples
        --------
        See `skve.load`.
        """
        from . import _saving

        check_is_fitted(self)
        _saving.save(self, folder, include_backbone=include_backbone)
