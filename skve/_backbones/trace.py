"""What one forward pass shows about a backbone: what is called, in which order, and what the features depend on."""

import dataclasses

import torch
import torch.utils.checkpoint
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from skve._backbones.network import Network


@dataclasses.dataclass(frozen=True)
class Trace:
    """What one forward pass shows about a backbone.

    Attributes
    ----------
    used : frozenset of str
        Parameters that the features depend on.
    positions : dict of str to float
        Rows that a called linear layer multiplies, for each sample, or for each token of a text.
    shareable : list of str
        Outermost modules that finish before the first adapted weight is used.
    n_features : int
    normalised : dict of str to str
        Convolutions whose outputs depend on changed weights, and go to one module, such as a batch normalisation, and
        nowhere else: that module's name -> the convolution's.
    """

    used: frozenset
    positions: dict
    shareable: list
    n_features: int
    normalised: dict = dataclasses.field(default_factory=dict)


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
    used = depends_on(features, leaves)
    positions = {layer: rows / size for layer, rows in recorder.rows.items()}
    normalised = recorder.normalised(features)
    if not _folds(backbone, normalised, inputs, features):
        normalised = {}
    return Trace(frozenset(used), positions, recorder.shareable(), int(features.shape[1]), normalised)


def _folds(backbone, normalised, inputs, features):
    """Say whether convolutions can compute the normalisations behind them, by comparing the features of a batch.

    The autograd graph does not show hooks, and uses of a convolution's output that have no gradient.
    """
    if not normalised or features.is_meta or isinstance(features, FakeTensor):
        return True
    network = Network(backbone)
    network.fold_batch_norms(normalised)
    with torch.no_grad():
        folded = network.features(inputs)
    return torch.allclose(folded, features, rtol=1e-3, atol=1e-3 * float(features.detach().abs().max()))


def depends_on(output, leaves):
    """Return the names of the leaves that `output` was computed from, by walking the autograd graph."""
    names = {id(leaf): name for name, leaf in leaves.items()}
    variables = (getattr(node, "variable", None) for node in _uses(output))
    return {names[id(variable)] for variable in variables if variable is not None and id(variable) in names}


def _uses(output):
    """Return the nodes of the autograd graph of `output`, and how many other nodes use what each computed."""
    uses, stack = {output.grad_fn: 0}, [output.grad_fn]
    while stack:
        node = stack.pop()
        for used, _ in node.next_functions if node is not None else ():
            if used is not None:
                if used not in uses:
                    stack.append(used)
                uses[used] = uses.get(used, 0) + 1
    return uses


class _Recorder:
    """Forward hooks that note when each module starts and ends, and how many rows linear layers see."""

    def __init__(self, model, changed_layers):
        self.model = model
        self.names = {module: name for name, module in model.named_modules()}
        self.changed_layers = changed_layers
        self.calls: dict[str, list[tuple[int, int]]] = {}
        self.rows: dict[str, float] = {}
        self._convolved: dict[torch.autograd.graph.Node, str] = {}  # what computed a convolution's output
        self._next: dict[str, torch.autograd.graph.Node] = {}  # by the module that was given this output
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
        if args and getattr(args[0], "grad_fn", None) in self._convolved:
            self._next[self.names[module]] = args[0].grad_fn

    def _after(self, module, args, output):
        self._clock += 1
        name, started = self._open.pop()
        self.calls.setdefault(name, []).append((started, self._clock))
        if args and isinstance(args[0], torch.Tensor) and args[0].dim() >= 2:
            self.rows[name] = self.rows.get(name, 0) + args[0].numel() / args[0].shape[-1]
        if isinstance(module, nn.Conv2d) and output.grad_fn is not None:
            self._convolved[output.grad_fn] = name

    def normalised(self, features):
        """Return by its name each module that alone was given a convolution's output: that convolution."""
        uses = _uses(features)
        pairs = {module: (self._convolved[node], uses.get(node)) for module, node in self._next.items()}
        once = {name for name, calls in self.calls.items() if len(calls) == 1}
        return {
            module: convolution
            for module, (convolution, n_uses) in pairs.items()
            if n_uses == 1 and {module, convolution} <= once
        }

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
