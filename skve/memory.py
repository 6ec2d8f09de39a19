"""How much memory a fit and predictions take, from shapes alone."""

from __future__ import annotations

import copy
import dataclasses
import math
import weakref

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skve._backbones import layer_selection
from skve._backbones.backbone import Backbone, FrozenModule, laid_out
from skve._backbones.cache import cache_limit
from skve._backbones.decomposition import Factors, as_matrix
from skve._backbones.quantized import QuantizedWeight, n_directions
from skve._backbones.split import split
from skve._backbones.trace import trace
from skve._base import COUNT, BaseSVEClassifier
from skve._ensembles import HEAD, Ensemble, Head, check_dtype, check_options, make_rule
from skve._fitted.prediction import batches_of_a_block
from skve._fitted.predictor import n_in_place
from skve._runtime.device import neutral_modes, resolve_device, resolve_prediction_dtype, resolve_training_dtype
from skve._runtime.randomness import Seeds
from skve._runtime.warnings import ignored
from skve._training import build

# Of the members' probabilities, while uncertainty is computed from them: as measured with 5,000 classes.
_COPIES_OF_A_BLOCK = 2.3
_DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of a fit, or of predictions, in bytes.

    Attributes
    ----------
    frozen_weights : int
        The backbone.
    factors : int
        Its decomposition.
    members : int
        What all members own of the backbone; in predictions also the weights that are made of it and kept.
    heads : int
        Of all members.
    optimizer : int
        Gradients, the moments of AdamW, and copies of the members after the last rounds.
    activations : int
        What comes and goes: activations, the weights of the members whose turn it is, gradients on their way; in
        predictions also what waits while members take turns. Of a .gguf file on a CPU at least what reading it takes.
    """

    frozen_weights: int
    factors: int
    members: int
    heads: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """What `skve.estimate_memory` returns; `print` shows it as a table.

    Attributes
    ----------
    training, prediction : Memory
    """

    training: Memory
    prediction: Memory

    def __str__(self) -> str:
        names = [*(field.name for field in dataclasses.fields(Memory)), "total"]
        lines = [f"{'MB':<15}{'training':>12}{'prediction':>12}"]
        for name in names:
            training, prediction = (getattr(part, name) / 1e6 for part in (self.training, self.prediction))
            lines.append(f"{name.replace('_', ' '):<15}{training:>12,.1f}{prediction:>12,.1f}")
        return "\n".join(lines)


def estimate_memory(
    estimator: BaseSVEClassifier, *, n_classes: int = 2, length: int = 128, device: str = "auto"
) -> MemoryEstimate:
    """Estimate the memory that a fit and predictions take, without reading weights or data.

    A step of the training and a prediction run on tensors that have shapes but no content. So a model of any size can
    be tried on any machine, in seconds.

    Parameters
    ----------
    estimator : SVEClassifier or SVETextClassifier
        Need not be fitted. Its parameters count: `ensemble`, `n_members`, `layers`, `batch_size`, `image_size`,
        `precision` and others. For texts, `backbone` is a name, a folder, of which only the configuration is read, or
        a configuration of transformers; for images it is the name of an architecture of timm. In both cases it may
        also be a module, on the device "meta" as well.
    n_classes : int, default=2
        Number of classes.
    length : int, default=128
        For texts, the number of tokens of the longest text in a batch; with `head="likelihood"` of a prompt and a
        choice, of which there are `n_classes` for each prompt.
    device : {"auto", "cpu", "cuda", "mps"}, default="auto"
        Where the fit will run, which this machine need not have: on GPUs members pass through the network together,
        and `precision="auto"` is bfloat16. "auto" is the estimator's device.

    Returns
    -------
    estimate : MemoryEstimate
        With `training` and `prediction`, each with the bytes of its parts and their `total`. Where the estimator's
        `device` is a list, each is that of the device which takes the most.

    Raises
    ------
    TypeError
        If `estimator` is no classifier of images or texts, or its backbone cannot be built without weights.
    ValueError
        If a parameter is not as described.

    Notes
    -----
    With `n_jobs`, each process takes about as much as a fit of its share of the members; the estimate is that of
    one process. Not in the estimate are Python and its libraries (0.3 to 0.6 GB), the data, what a fit keeps of
    frozen layers and of features (see `skve.clear_cache`), and the decomposition of the largest layer while it is
    computed. Of `ensemble="head"` and `"laplace"` it holds the passes of the backbone, not the solution on the
    features of all samples. The documentation's benchmarks compare with measured peaks.

    Examples
    --------
    >>> import skve
    >>> clf = skve.SVETextClassifier(n_members=8, batch_size=16)
    >>> estimate = skve.estimate_memory(clf, n_classes=4, length=64, device="cpu")
    >>> 90e6 < estimate.training.frozen_weights < 91e6
    True
    """
    if not isinstance(estimator, BaseSVEClassifier):
        raise TypeError(
            f"estimator must be an SVEClassifier or an SVETextClassifier, got {type(estimator).__name__}."
        )
    for name, value in (("n_classes", n_classes), ("length", length)):
        if not COUNT.is_satisfied_by(value):
            raise ValueError(f"{name} must be a positive integer, got {value!r}.")
    if device not in _DEVICES:
        raise ValueError(f"device must be one of {_DEVICES}, got {device!r}.")
    estimator._validate_params()
    check_options(estimator.ensemble, estimator.ensemble_params)
    check_dtype(estimator.ensemble, getattr(estimator, "backbone_dtype", "float32"))
    planned = resolve_device(estimator.device) if device == "auto" else torch.device(device)
    with neutral_modes(torch.device("cpu")), ignored(".*performance drop.*"):  # torch's, of what runs on no processor
        with torch.device("meta"):
            module, features, preprocess, inputs, size = estimator._outline(length, n_classes)
        with FakeTensorMode():
            memo = {id(t): _empty_like(t) for t in [*module.parameters(), *module.buffers()]}
            module = laid_out(copy.deepcopy(module, memo))
            n_devices = len(estimator.device) if isinstance(estimator.device, list | tuple) else 1
            if n_devices > 1:  # whose numbers tell tensors without content apart
                module = split(module, [torch.device("cpu"), *(torch.device("cpu", i) for i in range(1, n_devices))])
            backbone = Backbone(_Shapes(module), {"name": type(module).__name__}, preprocess, features)
            return _estimate(estimator, backbone, _like(inputs), size, n_classes, planned)


def _empty_like(tensor):
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def _like(inputs):
    return {name: _empty_like(t) for name, t in inputs.items()} if isinstance(inputs, dict) else _empty_like(inputs)


class _Shapes(FrozenModule):
    """A module of tensors without content, whose decompositions are of the right shapes."""

    def factors(self, site, basis):
        if (site.layer, basis) not in self._factors:
            if basis != "singular":
                self.factors(site, "singular")
            weight = self.weight(site)
            is_quantized = isinstance(weight, QuantizedWeight)
            d_out, d_in = (weight if is_quantized else as_matrix(weight, site.kind)).shape
            r, dtype = (n_directions(weight.shape), torch.bfloat16) if is_quantized else (min(d_out, d_in), None)
            shapes = {"U": (d_out, r), "sigma": (r,), "Vt": (r, d_in)}
            dtypes = {"U": dtype, "sigma": None, "Vt": dtype}
            self._factors[site.layer, basis] = Factors(
                **{name: torch.empty(shapes[name], dtype=dtypes[name], device=weight.device) for name in shapes}
            )
        return self._factors[site.layer, basis]


class _Peak(TorchDispatchMode):
    """Adds up the memory of the tensors that come and go.

    Parameters
    ----------
    known : iterable of torch.Tensor
        Those that were there before, and do not count.
    devices : sequence of torch.device

    Attributes
    ----------
    live, peak : ndarray of int, shape (n_devices,)
        Bytes at present, and at most.
    """

    def __init__(self, known, devices):
        super().__init__()
        self._devices = devices
        self.live, self.peak = (np.zeros(len(devices), np.int64) for _ in range(2))
        self._sizes: dict[int, int] = {}
        self._known = [tensor.untyped_storage() for tensor in known]  # held, so that no other takes a key
        self._sizes.update({storage._cdata: 0 for storage in self._known})

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for value in tree_leaves(output):
            if isinstance(value, torch.Tensor):
                self._add(value.untyped_storage(), self._devices.index(value.device))
        return output

    def _add(self, storage, place):
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live[place] += storage.nbytes()
            self.peak[place] = max(self.peak[place], self.live[place])
            weakref.finalize(storage, self._remove, key, place)

    def _remove(self, key, place):
        self.live[place] -= self._sizes.pop(key)


def _estimate(estimator, backbone, inputs, size, n_classes, device):
    """Run what a fit and a prediction run on tensors without content; see `estimate_memory`."""
    design, module, devices = estimator._design(estimator.early_stopping), backbone.module, backbone.frozen.devices
    selection = build.select_layers(design, backbone)

    def rule_of(sites):
        settings = {"init_scale": design.init_scale, "train_bias": design.train_bias}
        return make_rule(design.ensemble, backbone, sites, ensemble_params=design.ensemble_params, **settings)

    rule = rule_of(selection.sites)
    traced = trace(backbone, rule.changed, inputs, size, rule.added)
    rule = rule_of([site for site in selection.sites if not rule.reason_to_skip(site, traced)])
    head = Head.on(backbone, traced.n_features, n_classes)
    members = build.make_members(design, rule, head, None, Seeds(0), None, n_samples=design.batch_size + 1)

    factors = [*backbone.frozen._factors.values(), *getattr(rule, "_factors", {}).values()]
    of_factors = [tensor for each in factors for tensor in (each.U, each.sigma, each.Vt)]
    weights = [*module.parameters(), *module.buffers()]
    of_all = [tensor for member in members for tensor in member.values()]
    known = [*weights, *of_factors, *of_all, *(inputs.values() if isinstance(inputs, dict) else [inputs])]
    n_own, n_heads = (np.zeros(len(devices), np.int64) for _ in range(2))
    for key, tensor in members[0].items():
        part = n_heads if key.startswith(HEAD) else n_own
        part[devices.index(tensor.device)] += tensor.nbytes * (1 if rule.shares(key) else len(members))
    fixed = {"frozen_weights": _n_bytes(weights, devices), "factors": _n_bytes(of_factors, devices), "heads": n_heads}

    n_read = 0
    if device.type == "cpu" and str(estimator.backbone).endswith(".gguf"):
        n_read = 2 * 4 * sum(weight.numel() for weight in weights)  # transformers unpacks the whole file first
    candidates = [backbone.weight(site) for site in selection.candidates]
    dtype = resolve_training_dtype(design.precision, device, build.linear_share(backbone, selection.candidates))
    own_copies, passing = np.zeros_like(n_own), _pass_once(backbone, inputs, known)
    if not rule.is_solved:
        checkpoints = layer_selection.blocks(module, selection.candidates) if design.activation_checkpointing else ()
        trained = rule.trained(len(members))
        chunk = 1 if device.type == "cpu" or checkpoints else len(trained)
        with _Peak(known, devices) as step:
            ensemble = Ensemble(
                rule, head, members, traced, size, training=True, dtype=dtype, checkpoints=checkpoints
            )
            ensemble.train()
            gradients = [torch.zeros_like(parameter) for parameter in ensemble.parameters()]
            for parameter, gradient in zip(ensemble.parameters(), gradients, strict=True):
                parameter.grad = gradient
            n_gradients = _n_bytes(gradients, devices)
            ensemble.network.new_batch()
            for start in range(0, min(len(trained), 2 * chunk), chunk):
                logits = ensemble.chunk_logits(inputs, trained[start : start + chunk])
                targets = torch.zeros(logits.shape[1], dtype=torch.long)
                head.likelihood.losses(logits, targets).sum().backward()
                del logits
        # Gradients, two moments and the state of the last complete round; in the end another state replaces that.
        n_state = n_own + n_heads
        own_copies = 3 * n_gradients + n_state * (2 if design.early_stopping else 1)
        passing = np.maximum.reduce([passing, step.peak - n_gradients, n_state])
    passing = np.maximum(passing, n_read - sum(fixed.values()) - n_own - own_copies)
    training = _fullest(**fixed, members=n_own, optimizer=own_copies, activations=passing)

    n_kept, passing = np.zeros_like(n_own), _pass_once(backbone, inputs, known)
    width = n_classes * len(members)
    n_batches = batches_of_a_block(size, width)
    if not rule.is_solved:
        dtype = resolve_prediction_dtype(estimator.predict_precision, device, candidates)
        n_kept = _n_in_place(rule, traced, candidates, len(members), dtype)
        keeps = sum(part.sum() for part in (*fixed.values(), n_own, n_kept)) <= cache_limit()
        n_kept *= keeps
        kept: dict | None = {} if keeps else None
        n_rows = math.inf if keeps else size * n_batches
        with _Peak(known, devices) as prediction, torch.no_grad():
            ensemble = Ensemble(rule, head, members, traced, n_rows, training=False, dtype=dtype, kept=kept).eval()
            ensemble.install(0)
            n_installed = prediction.live.copy()
            ensemble.member_logits(inputs, 0)
            shared = [t for t in tree_leaves(ensemble.network.batch_outputs()) if isinstance(t, torch.Tensor)]
        # While members take turns, other batches wait: what is computed of them for all members, and raw images.
        n_waiting = (n_batches - 1) * _n_bytes(shared, devices)
        if device.type == "cpu" and isinstance(inputs, torch.Tensor):
            n_waiting += n_batches * inputs.numel()
        passing = np.maximum(passing, prediction.peak - n_installed * keeps + n_waiting)
    if device.type == "cpu":
        passing = np.maximum(passing, int(_COPIES_OF_A_BLOCK * 8 * size * n_batches * width))
    n_copies = 2 if device.type == "cpu" else 1  # what is fitted, and the tensors that are made of it
    of_members = n_copies * n_own + n_kept
    passing = np.maximum(passing, n_read - sum(fixed.values()) - of_members)
    prediction = _fullest(**fixed, members=of_members, optimizer=np.zeros_like(n_own), activations=passing)
    return MemoryEstimate(training, prediction)


def _fullest(**parts):
    """Return the memory of the device that takes the most, from the parts of all of them."""
    place = sum(parts.values()).argmax()
    return Memory(**{name: int(values[place]) for name, values in parts.items()})


def _n_bytes(tensors, devices):
    """Return the bytes of tensors on each device."""
    storages = {t.untyped_storage()._cdata: (t.untyped_storage().nbytes(), devices.index(t.device)) for t in tensors}
    found = np.zeros(len(devices), np.int64)
    for size, place in storages.values():
        found[place] += size
    return found


def _n_in_place(rule, traced, candidates, n_members, dtype):
    """Return the bytes on each device of what predictions put in place of weights and keep, see `n_in_place`."""
    frozen = rule.backbone.frozen

    def of(device):
        changed = [name for name in rule.changed if frozen.where(name.rpartition(".")[0]) == device]
        normalised = {norm: layer for norm, layer in traced.normalised.items() if frozen.where(layer) == device}
        weights = [weight for weight in candidates if weight.device == device]
        return n_in_place(frozen.module, changed, normalised, weights, n_members, dtype)

    return np.array([of(device) for device in frozen.devices])


def _pass_once(backbone, inputs, known):
    """Return what comes and goes in a pass of the frozen backbone, on each device."""
    with _Peak(known, backbone.frozen.devices) as once, torch.no_grad():
        backbone.features(backbone.module, inputs)
    return once.peak
