"""The exact forms of an adapted layer, the rule that chooses one, and the network they are put into."""

import copy
import dataclasses
from collections.abc import Mapping

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

from ._svd import from_matrix, is_huggingface_conv1d


def fold(weight, kind, factors, log_ratios):
    """Build a member's weight, `W + U diag(sigma * expm1(delta)) V^T`: `W` bit for bit at `delta = 0`.

    Parameters
    ----------
    weight : torch.Tensor
        Pretrained weight, in the layout of its module.
    kind : {"linear", "transposed", "convolution"}
    factors : Factors
    log_ratios : torch.Tensor of shape (r,)
        `delta`, the logarithm of each singular value's ratio to its pretrained value.

    Returns
    -------
    torch.Tensor
        Same shape, dtype and memory layout as `weight`.
    """
    return add_change(weight, kind, (factors.U * (factors.sigma * torch.expm1(log_ratios))) @ factors.Vt)


def add_change(weight, kind, change):
    """Return a weight plus a (d_out, d_in) matrix, in the weight's shape, dtype and memory layout."""
    # The sum takes the memory layout of its first term.
    return (weight + from_matrix(change, kind, weight.shape)).to(weight.dtype)


def scale_channels(weight, kind, *, inputs=None, outputs=None):
    """Return a weight with its input channels, its output channels or both multiplied by one factor each.

    Parameters
    ----------
    weight : torch.Tensor
        In the layout of its module.
    kind : {"linear", "transposed", "convolution"}
    inputs : torch.Tensor of shape (n_inputs,), or None
    outputs : torch.Tensor of shape (n_outputs,), or None

    Returns
    -------
    torch.Tensor
        Same shape, dtype and memory layout as `weight`.
    """
    scaled = weight
    input_axis = 0 if kind == "transposed" else 1
    for factors, axis in ((inputs, input_axis), (outputs, 1 - input_axis)):
        if factors is not None:
            shape = [1] * weight.dim()
            shape[axis] = -1
            scaled = scaled * factors.reshape(shape)
    return scaled.to(weight.dtype)


def two_factor(inputs, factors, log_ratios, bias=None):
    """Apply a member's linear layer without building its weight: `U((sigma * exp(delta)) * (V^T x)) + b`."""
    scaled = F.linear(inputs, factors.Vt) * (factors.sigma * torch.exp(log_ratios)).to(inputs.dtype)
    return F.linear(scaled, factors.U, bias)


def one_sided(inputs, weight, factors, log_ratios, bias=None):
    """Apply a linear layer as the pretrained one plus a member's change: `W x + U((sigma * expm1(delta)) * V^T x)`.

    Unlike in `two_factor`, the factors need not make up the whole weight (d_out, d_in).
    """
    scaled = F.linear(inputs, factors.Vt) * (factors.sigma * torch.expm1(log_ratios)).to(inputs.dtype)
    return F.linear(inputs, weight, bias) + F.linear(scaled, factors.U)


def choose_form(kind, d_out, d_in, n_positions, *, training):
    """Choose the cheaper form of a layer, by counting multiply-adds.

    With N positions and r = min(d), a training step costs `4 N r (d_out + d_in)` in two-factor form and
    `6 N d_out d_in + 4 r d_out d_in` folded. The closed rule: two-factor where the weight is at least twice as
    long as wide or the positions are few. Feature maps have many positions and narrow weights: always folded.
    In prediction a folded weight serves all positions, and only few of them do not pay for folding.

    Parameters
    ----------
    kind : {"linear", "transposed", "convolution"}
    d_out, d_in : int
    n_positions : float
        Rows (samples times tokens) that the layer multiplies between two changes of its weight.
    training : bool

    Returns
    -------
    {"folded", "two_factor"}
    """
    short, long = min(d_out, d_in), max(d_out, d_in)
    if kind == "convolution":
        return "folded"
    if not training:
        return "folded" if n_positions > long else "two_factor"
    return "two_factor" if long >= 2 * short or n_positions < 2 * short else "folded"


class Network:
    """A private view of a frozen backbone whose weights can be replaced, member by member.

    The module structure is copied, every tensor is shared with the backbone: a view costs milliseconds and no
    memory, and threads that own one each cannot disturb one another. A replaced parameter becomes a plain
    attribute of its module, which every architecture honours, also those that read `layer.weight` instead of
    calling the layer.

    Parameters
    ----------
    backbone : Backbone
        Supplies `module` and `features(module, inputs)`.
    """

    def __init__(self, backbone):
        tensors = [*backbone.module.parameters(), *backbone.module.buffers()]
        self.module = copy.deepcopy(backbone.module, {id(tensor): tensor for tensor in tensors})
        self._features = backbone.features
        self._modules = dict(self.module.named_modules(remove_duplicate=False))
        self._shared_outputs: dict[str, object] = {}

    def features(self, inputs):
        """Return the backbone's features of a batch, of shape (n_samples, n_features)."""
        return self._features(self.module, inputs)

    def set_tensor(self, name, tensor):
        """Replace the parameter or buffer `name` by a tensor, which may need a gradient or be on its way."""
        path, _, attribute = name.rpartition(".")
        module = self._modules[path]
        module._parameters.pop(attribute, None)
        module._buffers.pop(attribute, None)
        module.__dict__[attribute] = tensor

    def calls_plainly(self, layer):
        """Say whether a layer's own forward is all that it does, so that another form may take its place."""
        module = self._modules[layer]
        if isinstance(self._modules[layer.rpartition(".")[0]], nn.TransformerEncoderLayer):
            return False  # called when gradients are wanted, else its fast path reads the weights of its layers
        return type(module) is nn.Linear or is_huggingface_conv1d(module)

    def forward_of(self, layer):
        """Return what `layer` computes at present."""
        return self._modules[layer].forward

    def set_forward(self, layer, forward):
        """Let `layer` compute `forward(inputs)`; only for layers that are called and not just read."""
        self._modules[layer].forward = forward

    def avoid_fast_paths(self):
        """Keep torch's attention off its inference-only kernels; under vmap it takes them in training as well."""
        for module in self._modules.values():
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
            if isinstance(module, nn.MultiheadAttention | nn.TransformerEncoderLayer):
                module.training = True

    def simplify_batch_norms(self):
        """Compute frozen batch normalisations as `scale * x + shift`: equal to rounding, half the backward."""
        for module in self._modules.values():
            activates = type(module).__name__ == "BatchNormAct2d" and type(module).__module__.startswith("timm.")
            if (type(module) is nn.BatchNorm2d or activates) and module.running_var is not None:
                module.forward = _FrozenBatchNorm(module, activates)

    def train_batch_norms(self, mode):
        """Put batch normalisation into training mode (statistics of the batch) or back; nothing else moves."""
        for module in self._modules.values():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.training = mode

    def share(self, layers):
        """Compute the modules `layers` once for each batch and not once for each member.

        Parameters
        ----------
        layers : iterable of str
            Modules in front of the first adapted layer, from `trace`.
        """
        for layer in layers:
            module = self._modules[layer]
            module.forward = _SharedForward(layer, module.forward, self._shared_outputs)

    def checkpoint(self, layers):
        """Compute the activations of the modules `layers` again in the backward pass instead of keeping them."""
        for layer in layers:
            module = self._modules[layer]
            module.forward = _CheckpointedForward(module.forward)

    def new_batch(self):
        """Forget what the previous batch left behind; call before its first member."""
        self._shared_outputs.clear()

    @property
    def shared_outputs(self):
        """Outputs of the shared modules of the present batch; assign to bring back those of another."""
        return dict(self._shared_outputs)

    @shared_outputs.setter
    def shared_outputs(self, outputs):
        self._shared_outputs.clear()
        self._shared_outputs.update(outputs)


class _SharedForward:
    def __init__(self, layer, forward, outputs):
        self.layer, self.forward, self.outputs = layer, forward, outputs

    def __call__(self, *args, **kwargs):
        kept = self.outputs.get(self.layer)
        if kept is None or _versions(kept[0]) != kept[1]:  # later code may have written into the output
            output = self.forward(*args, **kwargs)
            kept = self.outputs[self.layer] = (output, _versions(output))
        return kept[0]


class _CheckpointedForward:
    def __init__(self, forward):
        self.forward = forward

    def __call__(self, *args, **kwargs):
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return torch.utils.checkpoint.checkpoint(
            self.forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs
        )


class _FrozenBatchNorm:
    def __init__(self, module, activates):
        # Statistics and affine weights are fixed: torch's kernel would still compute sums for their gradients.
        scale = torch.rsqrt(module.running_var + module.eps)
        scale = scale if module.weight is None else scale * module.weight
        shift = -module.running_mean * scale
        shift = shift if module.bias is None else shift + module.bias
        self.scale, self.shift = scale[:, None, None], shift[:, None, None]
        self.module = module if activates else None

    def __call__(self, inputs):
        output = torch.addcmul(self.shift, inputs, self.scale)
        return output if self.module is None else self.module.act(self.module.drop(output))


def _versions(output):
    """Return how often each tensor of a module's output was written to."""
    if isinstance(output, torch.Tensor):
        return output._version
    if isinstance(output, Mapping):
        return [_versions(value) for value in output.values()]
    return [_versions(value) for value in output] if isinstance(output, tuple | list) else None


@dataclasses.dataclass(frozen=True)
class Trace:
    """What one forward pass tells about a backbone.

    Attributes
    ----------
    used : frozenset of str
        Parameters that the features depend on.
    positions : dict of str to float
        Rows that a called linear layer multiplies, for each sample, or for each token of a text.
    shareable : list of str
        Outermost modules that finish before the first adapted weight is used.
    n_features : int
    """

    used: frozenset
    positions: dict
    shareable: list
    n_features: int


def trace(backbone, changed, inputs, size, added=()):
    """Run one forward pass and look at what is called, in which order, and what the features depend on.

    Parameters
    ----------
    backbone : Backbone
    changed : collection of str
        Full names of the parameters that members replace.
    inputs : torch.Tensor or dict
        A prepared batch.
    size : int
        Samples in it; for texts tokens, padding included.
    added : dict of str to Tensor, default=()
        Parameters among `changed` that the backbone has not got, by full name.

    Returns
    -------
    Trace
    """
    network = Network(backbone)
    parameters = {**dict(network.module.named_parameters()), **dict(added)}
    leaves = {}
    for name in changed:
        if name in parameters and parameters[name].is_floating_point():
            leaves[name] = parameters[name].detach().requires_grad_()
            network.set_tensor(name, leaves[name])
    recorder = _Recorder(network.module, {name.rpartition(".")[0] for name in changed})
    with recorder, torch.enable_grad():
        features = network.features(inputs)
    used = _depends_on(features, leaves)
    positions = {layer: rows / size for layer, rows in recorder.rows.items()}
    return Trace(frozenset(used), positions, recorder.shareable(), int(features.shape[1]))


def _depends_on(output, leaves):
    """Return the names of the leaves that `output` was computed from, by walking the autograd graph."""
    names = {id(leaf): name for name, leaf in leaves.items()}
    found, seen, stack = set(), set(), [output.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) in names:
            found.add(names[id(variable)])
        stack.extend(parent for parent, _ in node.next_functions)
    return found


class _Recorder:
    """Forward hooks that note when each module starts and ends, and how many rows linear layers see."""

    def __init__(self, model, changed_layers):
        self.model = model
        self.names = {module: name for name, module in model.named_modules()}
        self.changed_layers = changed_layers
        self.calls: dict[str, list[tuple[int, int]]] = {}
        self.rows: dict[str, float] = {}
        self._clock = 0
        self._open: list[tuple[str, int]] = []

    def __enter__(self):
        self._handles = []
        for module in self.names:
            self._handles.append(module.register_forward_pre_hook(self._before))
            self._handles.append(module.register_forward_hook(self._after))
        return self

    def __exit__(self, *exception):
        for handle in self._handles:
            handle.remove()

    def _before(self, module, args):
        self._clock += 1
        self._open.append((self.names[module], self._clock))

    def _after(self, module, args, output):
        self._clock += 1
        name, started = self._open.pop()
        self.calls.setdefault(name, []).append((started, self._clock))
        if args and isinstance(args[0], torch.Tensor) and args[0].dim() >= 2:
            self.rows[name] = self.rows.get(name, 0) + args[0].numel() / args[0].shape[-1]

    def shareable(self):
        """Return the outermost modules, called once, without changed weights, before the first changed one."""
        boundary = min((self._first_use(layer) for layer in self.changed_layers), default=self._clock + 1)
        holds_changed = {ancestor for layer in self.changed_layers for ancestor in _self_and_ancestors(layer)}
        early = {
            name
            for name, calls in self.calls.items()
            if name not in holds_changed and len(calls) == 1 and calls[0][1] < boundary
        }
        return sorted(
            (name for name in early if not any(a in early for a in _self_and_ancestors(name)[1:])),
            key=lambda name: self.calls[name][0][0],
        )

    def _first_use(self, layer):
        """Return when a layer is first used; one that is not called is used by its innermost called parent."""
        for name in _self_and_ancestors(layer):
            if name in self.calls:
                return min(start for start, _ in self.calls[name])
        return 0


def _self_and_ancestors(name):
    """Return a module name and those around it, innermost first, the root "" last."""
    path = [name]
    while path[-1]:
        path.append(path[-1].rpartition(".")[0])
    return path
