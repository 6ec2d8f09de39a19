"""What all member rules share: the keys of a member's tensors, options, and how single layers are changed."""

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions

from skve._backbones import decomposition
from skve._backbones.quantized import QuantizedWeight

# A member is a flat dict of tensors; the prefix of a key says what it is, the rest names the layer or parameter.
RATIOS, SCALES, BIASES, WEIGHTS, HEAD = "log_ratios.", "log_scales.", "bias_offsets.", "weights.", "head."
INPUT_OFFSETS, OUTPUT_OFFSETS, DOWN, UP, MASKS = "input_offsets.", "output_offsets.", "down.", "up.", "masks."
FACTORS = (RATIOS, SCALES)  # kept as logarithms; their exponentials are `ratios_`
Member = Mapping[str, torch.Tensor]
Options = dict[str, tuple[object, list]]  # name -> default, constraints as in scikit-learn

SAME_START = "raise member_lr or max_steps: members start from the same weights, with heads of their own"
# How members come to differ, besides their random start; for every rule that trains several members.
DIFFERENCES: Options = {
    "order": (None, [StrOptions({"shared", "own"}), None]),
    "bootstrap": (False, ["boolean", StrOptions({"bayesian"})]),
    "folds": ("auto", [Interval(numbers.Integral, 2, None, closed="left"), StrOptions({"auto"}), None]),
    "diversity": (0.0, [Interval(numbers.Real, 0, 1, closed="both")]),
}


@dataclasses.dataclass(frozen=True)
class Defaults:
    """What the estimators' None stands for under one rule and one kind of inputs, chosen on validation data.

    Attributes
    ----------
    member_lr, head_lr : float
        Learning rates of a member's backbone parameters, and of its head.
    head_weight_decay : float
        Decoupled weight decay of the heads.
    folds : int or None
        What `folds="auto"` in `ensemble_params` stands for.
    least_steps : int or None
        In place of the schedule's `LEAST_STEPS`.
    """

    member_lr: float
    head_lr: float
    head_weight_decay: float = 0.0
    folds: int | None = None
    least_steps: int | None = None


def is_trained(key):
    """Say whether the optimizer moves a member's tensor; running batch statistics move by themselves, masks never."""
    return not key.startswith(MASKS) and not key.endswith(("running_mean", "running_var"))


def place(key, backbone):
    """Return the device of a member's tensor: that of its layer, or of its head."""
    return backbone.device if key.startswith(HEAD) else backbone.frozen.where(key.partition(".")[2])


class MemberRule:
    """Base of the member rules; a rule serves one network.

    Parameters
    ----------
    backbone : Backbone
        On the device where members live.
    sites : list of Site
        The selected weights; none for rules that do not select layers.
    init_scale : float
    train_bias : bool
    **options
        Entries of `takes`; others have their defaults.
    """

    takes: Options = DIFFERENCES  # the entries that `ensemble_params` may have
    # By kind of inputs, "image" and "text".
    defaults: dict[str, Defaults] = {"image": Defaults(1e-2, 1e-2), "text": Defaults(1e-2, 1e-2)}
    # What sets members apart that have become alike, for `diagnose`.
    set_apart = "raise member_lr or max_steps, and see that init_scale is not 0"
    has_ratios = False  # whether members own factors that start at exp(N(0, init_scale^2)) and become `ratios_`
    mixes_samples = False  # whether a training batch gives other gradients than its parts do in turn
    selects_layers = False  # whether `layers` selects the members' parameters
    owns_weights = False  # whether members own the weights of the backbone, which then cannot be kept in few bits
    is_solved = False  # whether members are heads on the frozen backbone, for which fit calls `solve`
    student: str | None = None  # the ensemble that one body of the members belongs to, where it is another

    def __init__(self, backbone, sites, *, init_scale, train_bias, **options):
        self.backbone = backbone
        self.sites = sites
        self.init_scale = init_scale
        self.train_bias = train_bias
        self.noise = torch.Generator()  # what training draws from besides the members' own generators
        known = {**DIFFERENCES, **self.takes}
        self.options: dict[str, Any] = {name: default for name, (default, _) in known.items()} | options

    @property
    def changed(self):
        """Full names of the parameters of the backbone that differ between members."""
        return []

    @property
    def added(self):
        """Tensors by full name that members give to layers which have no such parameter, as they start."""
        return {}

    def main_parameter(self, site):
        """Return the full name of the parameter without which a site has no effect."""
        return site.parameter

    def fingerprints(self):
        """Return one number for each layer whose computed basis must be the same where a fitted member is used."""
        return {}

    @classmethod
    def n_members(cls, n_members):
        """Return how many members there are where the estimator asks for `n_members`."""
        return n_members

    @classmethod
    def trained(cls, n_members):
        """Return the range of the members that the optimizer moves; others share the tensors of the first of them."""
        return range(n_members)

    @classmethod
    def n_cycles(cls, n_members):
        """Return how often the learning rate runs through its schedule; a member is kept after each cycle."""
        return 1

    @property
    def draws_start(self):
        """Whether members' parts of the backbone start at random."""
        return False

    @property
    def starts_alike(self):
        """Whether all members are one and the same at the start, as nothing is drawn and heads have a given start."""
        return self.backbone.head_start is not None and not self.draws_start

    @property
    def order(self):
        """Whether members see the batches in one order ("shared"), or each in its own ("own").

        Where nobody says, the order sets those apart that start alike; the diversity term requires one order.
        """
        if self.options["order"] is not None:
            return self.options["order"]
        return "own" if self.starts_alike and self.options["diversity"] == 0 else "shared"

    def member_lr(self, key, member_lr):
        """Return the learning rate of a tensor of the backbone's part where the estimator's is `member_lr`."""
        return member_lr

    def check(self, n_members, early_stopping=False):
        """Raise ValueError if the options do not fit together, or the members not into memory."""
        options = self.options
        if options["folds"] not in (None, "auto") and options["folds"] > n_members:
            raise ValueError(
                f"folds in ensemble_params must be at most n_members={n_members}, so that some member leaves out "
                f"each fold, got {options['folds']}."
            )
        if options["diversity"] == 0:
            return
        same = f"where diversity={options['diversity']} compares members on the same samples"
        if n_members < 2:
            raise ValueError(f"n_members must be at least 2 {same}, got {n_members}.")
        given = {**options, "order": self.order, "folds": None if options["folds"] == "auto" else options["folds"]}
        required = {"order": "shared", "bootstrap": False, "folds": None, "train_batch_norm": False}
        for name, value in required.items():
            if given.get(name, value) != value:
                raise ValueError(f"{name} in ensemble_params must be {value!r} {same}, got {given[name]!r}.")

    def reason_to_skip(self, site, traced):
        """Say why members would own something of a layer in vain; empty where they would not."""
        return "" if self.main_parameter(site) in traced.used else "the features do not depend on it"

    def shares(self, key):
        """Say whether all members have one and the same tensor under `key`."""
        return False

    def new_member(self, generator):
        """Return the starting tensors of one member's part of the backbone, drawn from its own generator."""
        return {}

    def shapes(self):
        """Return the shape of each tensor of one member's part of the backbone."""
        return {key: tuple(tensor.shape) for key, tensor in self.new_member(torch.Generator()).items()}

    def new_copy(self, member, generator):
        """Return the start of a member that shares the tensors of `member`."""
        return dict(member)

    @classmethod
    def average(cls, arrays, options):
        """Return the one body in the middle of several members', from which their student starts.

        Parameters
        ----------
        arrays : dict of str to ndarray of shape (n_members, ...)
            What members own of the backbone, or (1, ...) for what they share.
        options : dict
            `ensemble_params`.

        Returns
        -------
        body : dict of str to ndarray of shape (1, ...)
        options : dict
            Those that the body has.

        Raises
        ------
        ValueError
            If there is nothing in the middle of the members.
        """
        body = {key: value.mean(axis=0, keepdims=True, dtype=np.float64) for key, value in arrays.items()}
        options = {name: value for name, value in options.items() if name not in DIFFERENCES}
        return {key: value.astype(np.float32) for key, value in body.items()}, options

    def solve(self, problem, weights, generators):
        """Return the heads of the members, of a rule that is solved; see `LinearHeads`."""
        raise NotImplementedError

    def prepare(self, network, traced, size, *, training):
        """Adjust a fresh network once; `size` samples or tokens pass through it between two installations."""

    def install(self, network, member: Member):
        """Let the network compute as `member`; gradients flow back into the member's tensors."""

    def hold(self, member: Member):
        """Do of `install` what does not replace tensors of the network."""

    def set_training(self, network, mode):
        """Tell the network that a training step (True) or a prediction (False) comes next."""


class LayerRule(MemberRule):
    """Base of the rules by which each member changes the selected layers of the frozen backbone.

    What a member owns of a layer is folded into the weight, and the folded weight takes the place of the
    parameter, which every architecture honours. A linear layer that is known to be called plainly may compute
    by `call` instead, where `calls` finds that cheaper; one whose weight is quantised always does.
    """

    selects_layers = True
    prefixes: tuple[str, ...] = ()  # of the keys of a member's parameters for each layer's weight

    def __init__(self, backbone, sites, **settings):
        super().__init__(backbone, sites, **settings)
        self._parameters = dict(backbone.module.named_parameters())
        self._weights = {site.layer: backbone.weight(site) for site in sites}
        self._called: dict[str, _CalledForm] = {}

    def new_layer(self, site, weight, generator):
        """Return a member's parameters for one layer's weight as they start, by prefix, on the CPU."""
        return {}

    def fold(self, site, weight, own):
        """Return `weight` changed by a member's parameters of the layer, in the same layout and dtype."""
        raise NotImplementedError

    def calls(self, shape, n_positions, training):
        """Say whether `call` is cheaper than folding, for a linear layer of shape (d_out, d_in)."""
        return False

    def call(self, site, inputs, weight, own, bias):
        """Apply a member's layer to its inputs; `weight` is the pretrained matrix (d_out, d_in), maybe quantised."""
        raise NotImplementedError

    @property
    def draws_start(self):
        return bool(self.prefixes) and self.init_scale > 0

    def bias_name(self, site):
        """Return the full name of the bias that members own, or None."""
        return site.bias if self.train_bias else None

    @property
    def changed(self):
        weights = [site.parameter for site in self.sites] if self.prefixes else []
        return weights + [name for site in self.sites if (name := self.bias_name(site))]

    def new_member(self, generator):
        member = {}
        for site in self.sites:
            weight = self._weights[site.layer]
            for prefix, tensor in self.new_layer(site, weight, generator).items():
                member[prefix + site.layer] = tensor.to(weight.device)
            if self.bias_name(site):
                member[BIASES + site.layer] = self.new_bias(site)
        return member

    def reason_to_skip(self, site, traced):
        reason = super().reason_to_skip(site, traced)
        is_read = isinstance(self._weights[site.layer], QuantizedWeight) and site.layer not in traced.positions
        return reason or ("its quantised weight is read and the layer not called" if is_read else "")

    def new_bias(self, site):
        """Return the offset of a layer's bias as it starts: zeros (d_out,)."""
        weight = self._weights[site.layer]
        return torch.zeros(
            decomposition.as_matrix(weight, site.kind).shape[0], dtype=torch.float32, device=weight.device
        )

    def prepare(self, network, traced, size, *, training):
        if training:
            network.simplify_batch_norms()
        moving = {name.rpartition(".")[0] for name in self.changed}
        network.fold_batch_norms({norm: layer for norm, layer in traced.normalised.items() if norm not in moving})
        for site in self.sites:
            if site.layer not in traced.positions or not network.calls_plainly(site.layer):
                continue
            matrix = decomposition.as_matrix(self._weights[site.layer], site.kind)
            if isinstance(matrix, QuantizedWeight):
                is_called = bool(self.prefixes)
            else:
                is_called = self.calls(matrix.shape, traced.positions[site.layer] * size, training)
            if is_called:
                self._called[site.layer] = _CalledForm(self, site, matrix)
                network.set_forward(site.layer, self._called[site.layer])

    def install(self, network, member):
        for site in self.sites:
            if self.bias_name(site):
                network.set_tensor(self.bias_name(site), self._bias(site, member))
            if self.prefixes and site.layer not in self._called:
                weight = self._weights[site.layer]
                network.set_tensor(site.parameter, self.fold(site, weight, self._own(site, member)))
        self.hold(member)

    def hold(self, member):
        for called in self._called.values():
            called.own, called.bias = self._own(called.site, member), self._bias(called.site, member)

    def _own(self, site, member):
        """Return a member's parameters for a layer's weight, by prefix."""
        return {prefix: member[prefix + site.layer] for prefix in self.prefixes}

    def _bias(self, site, member):
        """Return a member's bias of a layer, or None."""
        bias = self._parameters.get(site.bias)
        if not self.bias_name(site):
            return bias
        offset = member[BIASES + site.layer]
        return (offset if bias is None else bias + offset).to(self._weights[site.layer].dtype)


class _CalledForm:
    """The forward of a layer that computes by `LayerRule.call` with the parameters of the present member."""

    def __init__(self, rule, site, weight):
        self.rule, self.site, self.weight = rule, site, weight
        self.own, self.bias = {}, None

    def __call__(self, inputs):
        return self.rule.call(self.site, inputs, self.weight, self.own, self.bias)


def draw(shape, generator, scale):
    """Draw float32 values from N(0, scale^2)."""
    return scale * torch.randn(shape, generator=generator, dtype=torch.float32)


def n_inputs(weight, kind):
    """Return the number of input channels of a weight."""
    return weight.shape[0 if kind == "transposed" else 1]
