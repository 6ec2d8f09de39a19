"""The member rules: what each member of an ensemble owns, how it starts, and how it enters the network."""

import dataclasses
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from . import _layers, _svd
from ._device import autocast

# A member is a flat dict of tensors; the prefix of a key says what it is.
RATIOS, BIASES, WEIGHTS, HEAD = "log_ratios.", "bias_offsets.", "weights.", "head."
Member = Mapping[str, torch.Tensor]
BATCHES_PER_INSTALLATION = 16  # in prediction: batches that are kept while members take turns


class MemberRule:
    """Base of the member rules; a rule serves one network.

    Parameters
    ----------
    backbone : Backbone
        On the device where members live.
    sites : list of Site
        The selected weights.
    """

    single_member = False
    options: dict[str, object] = {}  # name and default of each entry that `ensemble_params` may have

    def __init__(self, backbone, sites, *, init_scale, train_bias, **options):
        self.backbone = backbone
        self.sites = sites
        self.init_scale = init_scale
        self.train_bias = train_bias

    @property
    def changed(self):
        """Full names of the parameters of the backbone that differ between members."""
        return []

    def new_member(self, generator):
        """Return the starting tensors of one member's part of the backbone, drawn from its own generator."""
        return {}

    def shapes(self):
        """Return the shape of each tensor of one member's part of the backbone."""
        return {}

    def prepare(self, network, traced, size, *, training):
        """Adjust a fresh network once; `size` samples or tokens pass through it between two installations."""

    def install(self, network, member: Member):
        """Let the network compute as `member`; gradients flow back into the member's tensors."""

    def set_training(self, network, mode):
        """Tell the network that a training step (True) or a prediction (False) comes next."""


class LinearHeads(MemberRule):
    """Linear heads on the frozen backbone."""


class SingularValues(MemberRule):
    """Singular value ensemble (arXiv 2601.22068): log ratios of the singular values, optionally biases."""

    def __init__(self, backbone, sites, *, init_scale, train_bias):
        super().__init__(backbone, sites, init_scale=init_scale, train_bias=train_bias)
        self._parameters = dict(backbone.module.named_parameters())
        self._two_factor: dict[str, dict] = {}

    @property
    def changed(self):
        biases = [site.bias for site in self.sites if site.bias] if self.train_bias else []
        return [site.parameter for site in self.sites] + biases

    def new_member(self, generator):
        member = {}
        for site in self.sites:
            factors = self.backbone.factors(site)
            noise = torch.randn(len(factors.sigma), generator=generator, dtype=torch.float32)
            member[RATIOS + site.layer] = (self.init_scale * noise).to(factors.sigma.device)
            if self.train_bias and site.bias:
                member[BIASES + site.layer] = torch.zeros_like(self._parameters[site.bias], dtype=torch.float32)
        return member

    def shapes(self):
        ranks = {s.layer: min(_svd.as_matrix(self._parameters[s.parameter], s.kind).shape) for s in self.sites}
        biases = {s.layer: self._parameters[s.bias].shape for s in self.sites if self.train_bias and s.bias}
        return {RATIOS + k: (rank,) for k, rank in ranks.items()} | {BIASES + k: tuple(v) for k, v in biases.items()}

    def prepare(self, network, traced, size, *, training):
        if training:
            network.simplify_batch_norms()
        for site in self.sites:
            if site.layer not in traced.positions or not network.calls_plainly(site.layer):
                continue
            weight = self._parameters[site.parameter]
            d_out, d_in = _svd.as_matrix(weight, site.kind).shape
            n_positions = traced.positions[site.layer] * size
            if _layers.choose_form(site.kind, d_out, d_in, n_positions, training=training) == "two_factor":
                own = {"log_ratios": None, "bias": self._parameters.get(site.bias)}
                factors = self.backbone.factors(site).to(weight.dtype)
                network.set_forward(site.layer, _TwoFactorForward(factors, own))
                self._two_factor[site.layer] = own

    def install(self, network, member):
        for site in self.sites:
            log_ratios = member[RATIOS + site.layer]
            if site.layer in self._two_factor:
                self._two_factor[site.layer]["log_ratios"] = log_ratios
            else:
                weight = self._parameters[site.parameter]
                folded = _layers.fold(weight, site.kind, self.backbone.factors(site), log_ratios)
                network.set_tensor(site.parameter, folded)
            if self.train_bias and site.bias:
                bias = self._parameters[site.bias]
                bias = (bias + member[BIASES + site.layer]).to(bias.dtype)
                network.set_tensor(site.bias, bias)
                if site.layer in self._two_factor:
                    self._two_factor[site.layer]["bias"] = bias


class _TwoFactorForward:
    """The forward of a layer in two-factor form; `own` holds what the present member put there."""

    def __init__(self, factors, own):
        self.factors, self.own = factors, own

    def __call__(self, inputs):
        return _layers.two_factor(inputs, self.factors, self.own["log_ratios"], self.own["bias"])


class FullFineTuning(MemberRule):
    """Independent full fine-tunes: every member owns all weights of the backbone (a deep ensemble).

    With `train_batch_norm` the batch statistics are those of the training batches and the running ones move;
    by default batch normalisation stays in evaluation mode.
    """

    options = {"train_batch_norm": False}

    def __init__(self, backbone, sites, *, init_scale, train_bias, train_batch_norm=False):
        super().__init__(backbone, sites, init_scale=init_scale, train_bias=train_bias)
        self.train_batch_norm = train_batch_norm
        self._names = [name for name, p in backbone.module.named_parameters() if p.is_floating_point()]
        owners: dict[int, list[str]] = {}
        for name, parameter in backbone.module.named_parameters(remove_duplicate=False):
            owners.setdefault(id(parameter), []).append(name)
        self._aliases = {names[0]: names for names in owners.values()}  # tied weights have several names
        self._statistics = [
            f"{path}.{name}" if path else name
            for path, module in backbone.module.named_modules()
            if train_batch_norm and isinstance(module, nn.modules.batchnorm._BatchNorm)
            for name in ("running_mean", "running_var")
        ]

    @property
    def changed(self):
        return self._names

    def _tensors(self):
        module = self.backbone.module
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        return {WEIGHTS + name: tensors[name].detach() for name in self._names + self._statistics}

    def new_member(self, generator):
        # In float32, in which small steps do not get lost.
        return {key: tensor.to(torch.float32, copy=True) for key, tensor in self._tensors().items()}

    def shapes(self):
        return {key: tuple(tensor.shape) for key, tensor in self._tensors().items()}

    def prepare(self, network, traced, size, *, training):
        for name, _ in self.backbone.module.named_buffers():
            if name.endswith("num_batches_tracked"):  # a counter that training mode would advance for all
                network.set_tensor(name, None)

    def install(self, network, member):
        for name in self._names + self._statistics:
            for alias in self._aliases.get(name, [name]):
                network.set_tensor(alias, member[WEIGHTS + name])

    def set_training(self, network, mode):
        if self.train_batch_norm:
            network.train_batch_norms(mode)


class SingleFineTuning(FullFineTuning):
    """One full fine-tune, whatever `n_members` says."""

    single_member = True


RULES: dict[str, type[MemberRule]] = {
    "sve": SingularValues,
    "single": SingleFineTuning,
    "deep": FullFineTuning,
    "head": LinearHeads,
}


@dataclasses.dataclass(frozen=True)
class Head:
    """A linear head for each member, computed in float32.

    Attributes
    ----------
    n_features, n_classes : int
    softcap : float or None
        Bound of the logits, `softcap * tanh(logits / softcap)`, of language models that have one.
    """

    n_features: int
    n_classes: int
    softcap: float | None = None

    def new_member(self, generator, device, start=None):
        """Return the starting tensors of one head: `start` = (weight, bias) if given.

        Else the weight is uniform in +-1/sqrt(n_features), as in torch's linear layers, and the bias zero.
        """
        if start is None:
            shape = (self.n_classes, self.n_features)
            uniform = torch.rand(shape, generator=generator, dtype=torch.float32) * 2 - 1
            start = (uniform * self.n_features**-0.5, torch.zeros(self.n_classes, dtype=torch.float32))
        return {HEAD + name: value.clone().to(device) for name, value in zip(("weight", "bias"), start, strict=True)}

    def shapes(self):
        """Return the shape of each tensor of one head."""
        return {HEAD + "weight": (self.n_classes, self.n_features), HEAD + "bias": (self.n_classes,)}

    def logits(self, features, member, impossible=None):
        """Return the logits (n_samples, n_classes); classes that are `impossible` for a sample get none."""
        if features.shape[-1] != self.n_features:
            raise ValueError(
                f"the backbone gives {features.shape[-1]} features, the members' heads take {self.n_features}; "
                f"fit again, or load the model from a whole copy"
            )
        logits = F.linear(features.float(), member[HEAD + "weight"], member[HEAD + "bias"])
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        # Finite, so that label smoothing stays so; the probability is exactly zero all the same.
        return logits if impossible is None else logits.masked_fill(impossible, -1e4)


def is_trained(key):
    """Say whether the optimizer moves a member's tensor; running batch statistics move by themselves."""
    return not key.endswith(("running_mean", "running_var"))


class Ensemble(nn.Module):
    """The members of one ensemble and the network that they take turns in.

    Only the members' tensors are registered: the state dict, the optimizer and `train()` see nothing of the
    backbone, which stays frozen and in evaluation mode.

    Parameters
    ----------
    rule : MemberRule
    head : Head
    members : list of Member
    traced : Trace
    size : float
        Samples (for texts, tokens) between two installations of a member: a batch in training, many batches in
        prediction.
    training : bool
        Whether gradients are wanted.
    dtype : torch.dtype, default=torch.float32
        Arithmetic of the backbone; heads and losses are always float32.
    checkpoints : collection of str, default=()
        Modules whose activations are computed again in the backward pass instead of being kept.
    """

    network: _layers.Network
    rule: MemberRule
    head: Head
    dtype: torch.dtype
    device: torch.device
    keys: list[str]

    def __init__(self, rule, head, members, traced, size, *, training, dtype=torch.float32, checkpoints=()):
        super().__init__()
        network = _layers.Network(rule.backbone)
        if training:
            network.avoid_fast_paths()
        rule.prepare(network, traced, size, training=training)
        network.checkpoint(checkpoints)
        network.share(traced.shareable)
        # Not as submodules: see above.
        self.__dict__.update(network=network, rule=rule, head=head, dtype=dtype, keys=list(members[0]))
        self.members = nn.ModuleList(_Tensors(member, training) for member in members)
        self.device = next(iter(members[0].values())).device

    def train(self, mode=True):
        self.rule.set_training(self.network, mode)
        return super().train(mode)

    def member(self, index):
        """Return the tensors of one member by key."""
        return self.members[index].by_key()

    def install(self, index):
        """Let the following `member_logits` be those of member `index`."""
        self.rule.install(self.network, self.member(index))

    def member_logits(self, inputs, index):
        """Return the logits (n_samples, n_classes) of the member that is installed."""
        return self._logits(inputs, self.member(index))

    def _logits(self, inputs, member):
        with autocast(self.device, self.dtype):
            features = self.network.features(inputs)
        impossible = inputs.get("impossible") if isinstance(inputs, Mapping) else None
        with autocast(self.device, torch.float32):
            return self.head.logits(features, member, impossible)

    def chunk_logits(self, inputs, indices):
        """Return the logits (n_chunk, n_samples, n_classes) of several members in one pass."""

        def one(member):
            with autocast(self.device, self.dtype):
                self.rule.install(self.network, member)
            return self._logits(inputs, member)

        members = [self.member(index) for index in indices]
        if len(members) == 1:
            return one(members[0])[None]
        stacked = {key: torch.stack([m[key] for m in members]) for key in self.keys}
        logits = torch.vmap(one)(stacked)
        for key in self.keys:
            if not is_trained(key):  # running statistics, which a training step moves in place
                for member, moved in zip(members, stacked[key], strict=True):
                    member[key].copy_(moved)
        return logits

    def forward(self, inputs):
        """Return the logits of all members, (n_members, n_samples, n_classes), one member after another."""
        self.network.new_batch()
        return torch.cat([self.chunk_logits(inputs, [index]) for index in range(len(self.members))])

    def arrays(self):
        """Return the members as NumPy arrays: key -> (n_members, ...)."""
        stacked = {
            key: torch.stack([self.member(i)[key].detach() for i in range(len(self.members))]) for key in self.keys
        }
        return {key: value.cpu().numpy() for key, value in stacked.items()}


class _Tensors(nn.Module):
    """One member's tensors: parameters where the optimizer moves them, else buffers."""

    def __init__(self, member, training):
        super().__init__()
        self._names = {key: key.replace(".", "/") for key in member}  # torch allows no dot in a name
        for key, tensor in member.items():
            if training and is_trained(key):
                self.register_parameter(self._names[key], nn.Parameter(tensor))
            else:
                self.register_buffer(self._names[key], tensor)

    def by_key(self):
        tensors = {**self._parameters, **self._buffers}
        return {key: tensors[name] for key, name in self._names.items()}


def make_rule(ensemble, backbone, sites, *, init_scale, train_bias, ensemble_params):
    """Make the member rule that `ensemble` names.

    Raises
    ------
    ValueError
        If `ensemble_params` has an option that the rule does not take.
    """
    rule = RULES[ensemble]
    options = dict(ensemble_params or {})
    unknown = sorted(set(options) - set(rule.options))
    if unknown:
        takes = f"it takes {sorted(rule.options)}" if rule.options else "it takes none"
        raise ValueError(f"ensemble_params={options!r}: ensemble={ensemble!r} has no option {unknown}; {takes}")
    return rule(backbone, sites, init_scale=init_scale, train_bias=train_bias, **options)
