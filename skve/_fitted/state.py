"""What a fit leaves behind, NumPy arrays and plain values, and whether a backbone is the one it was fitted on."""

import dataclasses

import numpy as np
import torch

from skve._backbones import layer_selection
from skve._backbones.trace import Trace
from skve._ensembles import FACTORS, HEAD, Head, is_trained, make_rule, place
from skve._fitted.novelty import Novelty
from skve._runtime.wording import shortened

READING = ("tokenizer_sha256", "label_words")


@dataclasses.dataclass(frozen=True)
class FittedState:
    """The fitted part of an estimator, without any torch object.

    Attributes
    ----------
    arrays : dict of str to ndarray
        Members' tensors, key -> (n_members, ...), or (1, ...) for what all members share.
    layers : tuple of str
        Adapted layers.
    fingerprints : dict of str to float
        One number for each layer's singular vectors or other basis, see `decomposition.fingerprint`.
    ensemble, ensemble_params, train_bias : str, dict, bool
        What the members are.
    batch_size : int
        Samples in a prediction batch.
    n_features, n_classes : int
    positions, shareable, normalised : dict, tuple, dict
        From the `Trace` of the backbone. Nothing is `normalised` in models saved before it was noted.
    backbone : dict
        `Backbone.description`.
    reading : dict
        What of the preprocessing must be the same for a fit to go on: of texts tokenizer and label words.
    n_epochs : int
        Epochs trained, those of earlier fits that this one went on from included.
    annealed : bool
        Whether the learning rates of a training fell to zero: `partial_fit` then goes on with low ones. Taken for
        granted in models saved before it was noted.
    split_seed : int
        Seed of the validation part that the first fit set aside.
    training : dict of str to ndarray
        The attributes of the `Novelty` of the training data; none in models saved before there was such a thing.
    regression : dict of str to ndarray
        The logistic regression on features of the frozen backbone that predictions are blended with: `weight`
        (n_classes, n_features), `bias` (n_classes,) and its `share` (1,); none without it.
    own_features : bool
        Whether `training` and `regression` are about features of the one body that all members of a student share;
        else about those of the frozen backbone.
    spec : object
        The estimator's `backbone` when it was fitted; an `EmbeddedBackbone` where that was saved with the model.
    """

    arrays: dict
    layers: tuple
    fingerprints: dict
    ensemble: str
    ensemble_params: dict
    train_bias: bool
    batch_size: int
    n_features: int
    n_classes: int
    positions: dict
    shareable: tuple
    backbone: dict
    split_seed: int
    reading: dict = dataclasses.field(default_factory=dict)
    n_epochs: int = 0
    annealed: bool = True
    normalised: dict = dataclasses.field(default_factory=dict)
    training: dict = dataclasses.field(default_factory=dict)
    regression: dict = dataclasses.field(default_factory=dict)
    own_features: bool = False
    spec: object = None

    def __setstate__(self, state):
        """Restore a pickle, also one that was made before there were `normalised` and `annealed`."""
        self.__dict__.update({"normalised": {}, "annealed": True, **state})

    def fitted(self, arrays, n_epochs, spec, novelty, annealed):
        """Return this state with the arrays of a finished training of `n_epochs` more epochs."""
        n_epochs += self.n_epochs
        training = vars(novelty)
        return dataclasses.replace(
            self, arrays=arrays, n_epochs=n_epochs, spec=spec, training=training, annealed=annealed
        )

    @property
    def novelty(self):
        """The `Novelty` of the training data, or None."""
        return Novelty(**self.training) if self.training else None

    @property
    def regression_share(self):
        """The share of the regression in predictions."""
        return float(self.regression["share"][0]) if self.regression else 0.0

    def regression_head(self, device):
        """Return the regression as the tensors of a head."""
        return {HEAD + name: torch.tensor(self.regression[name], device=device) for name in ("weight", "bias")}

    @property
    def n_members(self):
        return max(len(value) for value in self.arrays.values())

    @property
    def heads_only(self):
        """Whether members differ by their heads alone, so that one pass through a network serves all of them."""
        lengths = [len(value) for key, value in self.arrays.items() if not key.startswith(HEAD)]
        return not lengths or (max(lengths) == 1 and self.n_members > 1)

    @property
    def compared(self):
        """What of a prediction `novelty` compares: a kind of `BaseSVEClassifier._predict`."""
        return "body_features" if self.own_features else "features"

    def ratios(self):
        return {k.partition(".")[2]: np.exp(v) for k, v in self.arrays.items() if k.startswith(FACTORS)}

    def n_member_parameters(self):
        return int(sum(value[0].size for key, value in self.arrays.items() if is_trained(key)))

    def members(self, backbone):
        """Return the members as dicts of torch tensors, each on the device of its layer in a backbone."""
        devices = {key: place(key, backbone) for key in self.arrays}

        def tensor(key, value):
            # In the backbone's layout, which files do not keep: another one is slower and rounds otherwise.
            layout = torch.channels_last if value.ndim == 4 else torch.contiguous_format
            source = torch.tensor(value)
            there = {"dtype": source.dtype, "device": devices[key]}
            return torch.empty(value.shape, **there, memory_format=layout).copy_(source)

        shared = {key: tensor(key, value[0]) for key, value in self.arrays.items() if len(value) == 1}
        own = {key: value for key, value in self.arrays.items() if key not in shared}
        members = [{key: tensor(key, value[index]) for key, value in own.items()} for index in range(self.n_members)]
        return [{**shared, **member} for member in members]

    def rule_on(self, backbone):
        """Return the rule of the members on a backbone, for one network."""
        selected = set(self.layers)
        sites = [site for site in layer_selection.find_sites(backbone.module)[0] if site.layer in selected]
        return make_rule(
            self.ensemble,
            backbone,
            sites,
            init_scale=0.0,
            train_bias=self.train_bias,
            ensemble_params=self.ensemble_params,
        )

    def head_on(self, backbone):
        """Return what the members' heads are."""
        return Head.on(backbone, self.n_features, self.n_classes)

    @property
    def traced(self):
        """The `Trace` of the backbone, as far as a prediction needs it."""
        return Trace(frozenset(), self.positions, list(self.shareable), self.n_features, self.normalised)

    def check(self, backbone):
        """Check that the members were fitted on a backbone.

        Raises
        ------
        ValueError
            If the backbone's weights, or its singular vectors, are not those that the members were fitted on.
        """
        self._check_weights(backbone)
        rule = self.rule_on(backbone)
        self._check_bases(rule)
        self._check_shapes(rule, self.head_on(backbone))
        self._check_modules(backbone)

    def _check_weights(self, backbone):
        now, then = backbone.description["sha256"], self.backbone["sha256"]
        if now != then:
            raise ValueError(
                f"The backbone {self.backbone['name']!r} must have the weights of the fit (SHA-256 "
                f"{shortened(then, 13)}), but they have changed since, got {shortened(now, 13)}. Restore the fitted "
                f"weights, or fit again."
            )

    def _check_bases(self, rule):
        for layer, fingerprint in rule.fingerprints().items():
            if layer not in self.fingerprints:
                raise ValueError(
                    f"skve.json must have a fingerprint of layer {layer!r}, got none. Replace a damaged copy of the "
                    f"saved model."
                )
            if abs(fingerprint - self.fingerprints[layer]) > 1e-4:
                raise ValueError(
                    f"The singular vectors of layer {layer!r} must be those of the fit, but those computed on this "
                    f"machine differ: one of the two linear-algebra libraries is wrong, or the model was "
                    f"altered. Fit again here."
                )

    def _check_shapes(self, rule, head):
        shapes = {**head.shapes(), **rule.shapes()}
        one_body = self.heads_only
        shared = {key for key in shapes if (not key.startswith(HEAD) if one_body else rule.shares(key))}
        required = {key: (1 if key in shared else self.n_members, *shape) for key, shape in shapes.items()}
        found = {key: value.shape for key, value in self.arrays.items()}
        wrong = sorted(key for key in required.keys() | found.keys() if required.get(key) != found.get(key))
        if wrong:
            raise ValueError(
                f"The members must fit the backbone {self.backbone['name']!r}: the shape of {wrong[0]} must "
                f"be {required.get(wrong[0], 'none')}, got {found.get(wrong[0], 'none')}. Fit again, or replace "
                f"a damaged copy of the saved model."
            )

    def _check_modules(self, backbone):
        known = {name for name, _ in backbone.module.named_modules(remove_duplicate=False)}
        unknown = sorted({*self.shareable, *self.normalised, *self.normalised.values()} - known)
        if unknown:
            raise ValueError(
                f"The modules of the fit must be those of the backbone {self.backbone['name']!r}, got "
                f"{unknown[0]!r}. Fit again, or replace a damaged copy of the saved model."
            )
