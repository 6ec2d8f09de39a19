"""The members of one ensemble and the network that they take turns in; heads."""

import dataclasses
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from skve._backbones.network import Network
from skve._ensembles.base import HEAD, MemberRule, is_trained
from skve._ensembles.likelihood import Likelihood
from skve._runtime.device import attention_in_float32, autocast

BATCHES_PER_INSTALLATION = 16  # in prediction: batches that are kept while members take turns


@dataclasses.dataclass(frozen=True)
class Head:
    """A linear head for each member, computed in float32.

    Attributes
    ----------
    n_features : int
    likelihood : Likelihood
        What its outputs mean.
    n_read : int or None, default=None
        How many of the features, from the first on, it reads; None for all.
    """

    n_features: int
    likelihood: Likelihood
    n_read: int | None = None

    @classmethod
    def on(cls, backbone, n_features, n_classes):
        """Return the head for a backbone's features."""
        return cls(n_features, Likelihood(n_classes, backbone.preprocess.get("softcap")), backbone.n_read)

    def new_member(self, generator, device, start=None):
        """Return the starting tensors of one head: `start` = (weight, bias) if given.

        Else the weight is uniform in +-1/sqrt(n_read), as in torch's linear layers, and the bias zero.
        """
        if start is None:
            shape = self.shapes()[HEAD + "weight"]
            uniform = torch.rand(shape, generator=generator, dtype=torch.float32) * 2 - 1
            start = (uniform * shape[1] ** -0.5, torch.zeros(len(uniform), dtype=torch.float32))
        return {HEAD + name: value.clone().to(device) for name, value in zip(("weight", "bias"), start, strict=True)}

    def shapes(self):
        """Return the shape of each tensor of one head."""
        n_classes = self.likelihood.n_classes
        return {HEAD + "weight": (n_classes, self.n_read or self.n_features), HEAD + "bias": (n_classes,)}

    def logits(self, features, member, impossible=None):
        """Return the logits (n_samples, n_classes); classes that are `impossible` for a sample get none."""
        if features.shape[-1] != self.n_features:
            raise ValueError(
                f"The backbone must return {self.n_features} features, as in fit, got {features.shape[-1]}. Fit "
                f"again, or load the model from a complete copy."
            )
        outputs = F.linear(features[..., : self.n_read].float(), member[HEAD + "weight"], member[HEAD + "bias"])
        return self.likelihood.logits(outputs, impossible)


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
        Whether gradients are needed.
    dtype : torch.dtype, default=torch.float32
        Arithmetic of the backbone; heads and losses are always float32.
    checkpoints : collection of str, default=()
        Modules whose activations are computed again in the backward pass instead of being kept.
    kept : dict, default=None
        In prediction, where the tensors that installing a member puts into place stay, converted to `dtype`, for
        several networks of the same members. None computes them in each installation.
    """

    network: Network
    rule: MemberRule
    head: Head
    dtype: torch.dtype
    device: torch.device
    keys: list[str]
    trained: range
    kept: dict | None

    def __init__(
        self, rule, head, members, traced, size, *, training, dtype=torch.float32, checkpoints=(), kept=None
    ):
        super().__init__()
        network = Network(rule.backbone)
        if training:
            network.avoid_fast_paths()
            network.avoid_copies()
        rule.prepare(network, traced, size, training=training)
        network.checkpoint(checkpoints)
        network.share(traced.shareable)
        # Not as submodules: see above.
        self.__dict__.update(network=network, rule=rule, head=head, dtype=dtype, keys=list(members[0]), kept=kept)
        if dtype != torch.float32 and kept is not None:
            network.narrow(network.multiplied(), dtype)
        if kept is not None or (dtype != torch.float32 and rule.backbone.device.type == "cpu"):
            self._keep_same({} if kept is None else kept)
        self.trained = rule.trained(len(members)) if training else range(0)
        self.members = nn.ModuleList(_Tensors(member, i in self.trained) for i, member in enumerate(members))
        self.device = rule.backbone.device

    def train(self, mode=True):
        self.rule.set_training(self.network, mode)
        return super().train(mode)

    def member(self, index):
        """Return the tensors of one member by key."""
        return self.members[index].by_key()

    def _keep_same(self, kept):
        """Put into place what no member changes, the same for all networks: converted weights, folded convolutions.

        Autocast would convert the weights in each call.
        """
        if "all members" not in kept:
            parameters = dict(self.rule.backbone.module.named_parameters(remove_duplicate=False))
            own = {**parameters, **self.network.replaced}
            narrow = set(self.network.multiplied()) if self.dtype != torch.float32 else set()
            same = (narrow & own.keys() | self.network.replaced.keys()).difference(self.rule.changed)
            kept["all members"] = {name: own[name].to(self.dtype) if name in narrow else own[name] for name in same}
        self.network.put(kept["all members"])

    def install(self, index):
        """Let the following `member_logits` be those of member `index`."""
        if self.kept is not None and index in self.kept:
            self.network.put(self.kept[index])
            self.rule.hold(self.member(index))
            return
        self.rule.install(self.network, self.member(index))
        if self.kept is not None:
            self.kept[index] = dict(self.network.replaced)

    def member_logits(self, inputs, index):
        """Return the logits (n_samples, n_classes) of the member that is installed."""
        return self._logits(inputs, self.member(index))

    def features(self, inputs):
        """Return the features (n_samples, n_features) of the member that is installed."""
        with autocast(self.device, self.dtype), attention_in_float32():
            return self.network.features(inputs)

    def _logits(self, inputs, member):
        features = self.features(inputs)
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

    def forward(self, inputs, trunk=None):
        """Return the logits of all members, (n_members, n_samples, n_classes), one member after another.

        What the modules in front of the first adapted layer make of the inputs may be given, see `Group`.
        """
        self.network.new_batch(trunk)
        return torch.cat([self.chunk_logits(inputs, [index]) for index in range(len(self.members))])

    def keep(self, index):
        """Let member `index`, which shares the tensors of the one that trains, have them as they are now."""
        for key, tensor in self.member(self.trained[0]).items():
            self.members[index].put(key, tensor.detach().clone())

    def arrays(self):
        """Return the members as NumPy arrays: key -> (n_members, ...), or (1, ...) for what all share."""
        members = [self.member(index) for index in range(len(self.members))]
        stacked = {
            key: torch.stack([member[key].detach() for member in (members[:1] if self.rule.shares(key) else members)])
            for key in self.keys
        }
        return {key: value.cpu().numpy() for key, value in stacked.items()}


class _Tensors(nn.Module):
    """One member's tensors: parameters where the optimizer moves them, else buffers."""

    def __init__(self, member, trained):
        super().__init__()
        self._names = {key: key.replace(".", "/") for key in member}  # torch allows no dot in a name
        for key, tensor in member.items():
            if trained and is_trained(key):
                self.register_parameter(self._names[key], nn.Parameter(tensor))
            else:
                self.register_buffer(self._names[key], tensor)

    def put(self, key, tensor):
        """Replace a buffer."""
        self._buffers[self._names[key]] = tensor

    def by_key(self):
        tensors = {**self._parameters, **self._buffers}
        return {key: tensors[name] for key, name in self._names.items()}
