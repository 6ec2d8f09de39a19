"""Fitted estimators as one graph for other programs: prepared inputs in, probabilities and uncertainty out."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json
import logging
import math
import os
import pathlib
import warnings
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from skve._backbones import quantized
from skve._backbones.network import Network
from skve._ensembles import HEAD, Ensemble
from skve._ensembles.likelihood import EPSILON
from skve._fitted.saving import plain
from skve._runtime.device import neutral_modes
from skve.exceptions import BackboneError

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
WEIGHT_DTYPES = ("float32", "int8")
_LARGEST_FLOAT_MATRIX = 8192  # numbers; the exporter to ONNX would fold such small ones into float32 again
LOWEST_OPSET = 18  # of ONNX, that torch's exporter writes
FORMAT_VERSION = 1
_LARGEST_ONNX = 2**31  # bytes of one file: what its format, protobuf, can address
_OUTPUTS = {
    "member_proba": "probabilities of each member, (n_members, n_samples, n_classes)",
    "proba": "calibrated probabilities of the ensemble, (n_samples, n_classes)",
    "total": "entropy of the members' mean in nats, (n_samples,)",
    "aleatoric": "mean entropy of the members in nats, (n_samples,)",
    "epistemic": "total - aleatoric, (n_samples,)",
    "novelty": "share of the training samples that are nearer to the others, (n_samples,)",
}


def export(estimator, path, *, format, opset, resize, weight_dtype, selective=None):
    """Write a fitted estimator as a graph and a JSON file; see `BaseSVEClassifier.export`.

    `selective` are the thresholds that a SelectiveClassifier adds to the JSON file.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {list(FORMATS)}, got {format!r}.")
    if weight_dtype not in WEIGHT_DTYPES:
        raise ValueError(f"weight_dtype must be one of {list(WEIGHT_DTYPES)}, got {weight_dtype!r}.")
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a path, got {path!r}.")
    path = pathlib.Path(path)
    if path.suffix != FORMATS[format]:
        raise ValueError(
            f"path must end in {FORMATS[format]!r} for format={format!r}, got {str(path)!r}. The settings are "
            f"written beside it, as .json."
        )
    if format == "onnx":
        _check_onnx(opset)
    cpu = torch.device("cpu")
    with neutral_modes(cpu), torch.no_grad():
        state = estimator._state
        backbone = estimator._load_backbone(state.spec, estimator.preprocess_).on(cpu)
        state.check(backbone)
        inputs = estimator._exported_inputs(backbone, resize=resize)
        graph = Graph(state, backbone, inputs.prepare, estimator.temperature_).eval()
        if weight_dtype == "int8":
            _keep_in_eight_bits(graph)
        program = _traced(graph, inputs, backbone)
        outputs = list(graph(inputs.example))
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(path) as partial:
            if format == "onnx":
                _write_onnx(program, partial, opset, inputs, outputs)
            else:
                with _quiet():
                    torch.export.save(program, partial)
    document = _document(estimator, path.name, format, opset, weight_dtype, inputs, outputs, selective)
    with _replacing(path.with_suffix(".json")) as partial:
        partial.write_text(json.dumps(plain(document), indent=1), "utf-8")


class Graph(nn.Module):
    """All members of a fitted state as one module: their folded weights, calibration and measures of uncertainty.

    Parameters
    ----------
    state : FittedState
    backbone : Backbone
        On the CPU.
    prepare : torch.nn.Module or None
    temperature : float
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, state, backbone, prepare, temperature):
        super().__init__()
        self.prepare, self.temperature = prepare, temperature
        backbone = backbone.dequantized()
        self.features, self.likelihood = backbone.features, state.head_on(backbone).likelihood
        rule = state.rule_on(backbone)
        reads_frozen = (state.training or state.regression) and not state.own_features
        self.frozen = _body(Network(backbone), {}) if rule.is_solved or reads_frozen else None
        self.bodies = nn.ModuleList([] if rule.is_solved else _folded(state, backbone, rule))
        self.own_features, self.is_solved = state.own_features, rule.is_solved
        n_members = state.n_members
        for name in ("weight", "bias"):
            values = state.arrays[HEAD + name]
            self.register_buffer(name, torch.tensor(np.repeat(values, n_members // len(values), axis=0)))
        self.share = state.regression_share
        if state.regression:
            self.register_buffer("regression_weight", torch.tensor(state.regression["weight"]))
            self.register_buffer("regression_bias", torch.tensor(state.regression["bias"]))
        self.novelty = None if state.novelty is None else _Novelty(state.novelty)

    def forward(self, inputs):
        """Return the outputs by name, see `_OUTPUTS`."""
        impossible = inputs.get("impossible") if isinstance(inputs, dict) else None
        if self.prepare is not None:
            inputs = self.prepare(inputs)
        own = [self.features(body, inputs).float() for body in self.bodies]
        frozen = None if self.frozen is None else self.features(self.frozen, inputs).float()
        bodies = [frozen] if self.is_solved else own
        members = torch.stack(
            [
                self._proba(bodies[index % len(bodies)], self.weight[index], self.bias[index], impossible)
                for index in range(len(self.weight))
            ]
        )
        mean = members.mean(0)
        total = _entropy(mean)
        epistemic = torch.clamp(total - _entropy(members).mean(0), min=0)
        compared = own[0] if self.own_features else frozen
        pooled = self._tempered(mean)
        if self.share > 0:
            regression = self._proba(compared, self.regression_weight, self.regression_bias, impossible)
            pooled = (1 - self.share) * pooled + self.share * regression
        outputs = {
            "member_proba": members,
            "proba": pooled,
            "total": total,
            "aleatoric": total - epistemic,
            "epistemic": epistemic,
        }
        if self.novelty is not None:
            outputs["novelty"] = self.novelty(compared)
        return outputs

    def _proba(self, features, weight, bias, impossible):
        outputs = F.linear(features[:, : weight.shape[1]], weight, bias)
        return torch.softmax(self.likelihood.logits(outputs, impossible), -1)

    def _tempered(self, proba):
        if self.temperature == 1.0:
            return proba
        logs = torch.where(proba > 0, torch.log(proba + EPSILON), -math.inf)
        return torch.softmax(logs / self.temperature, -1)


def _entropy(proba):
    return -(proba * torch.log(torch.clamp(proba, min=torch.finfo(proba.dtype).tiny))).sum(-1)


class _Novelty(nn.Module):
    """`Novelty` in torch; in float64, as neighbouring distances may be closer than float32 distinguishes."""

    known: torch.Tensor
    shares: torch.Tensor
    slopes: torch.Tensor
    directions: torch.Tensor
    coordinates: torch.Tensor

    def __init__(self, novelty):
        super().__init__()
        known, shares, self.spread = novelty.curve()
        slopes = np.append(np.diff(shares) / np.diff(known), 0.0)
        self.n_neighbors, self.last = novelty.n_neighbors, float(shares[-1])
        arrays = {"known": known, "shares": shares, "slopes": slopes}
        arrays |= {"directions": novelty.directions, "coordinates": novelty.coordinates}
        for name, values in arrays.items():
            self.register_buffer(name, torch.tensor(values))

    def forward(self, features):
        features = features.double()
        norms = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
        units = features / torch.where(norms > 0, norms, 1.0)
        similarity = units @ self.directions.double().T @ self.coordinates.double().T
        distances = 1 - similarity.topk(self.n_neighbors).values.mean(-1)
        inside = torch.clamp(distances, min=self.known[0], max=self.known[-1])
        at = (inside[:, None] >= self.known).sum(-1) - 1
        shares = self.shares[at] + self.slopes[at] * (inside - self.known[at])
        beyond = torch.clamp(distances - self.known[-1], min=0) / self.spread
        return torch.where(beyond > 0, 1 - (1 - self.last) / (1 + beyond), shares).float()


# ------------------------------------------------------------------------------- from members to modules


def _folded(state, backbone, rule):
    """Return a module for each member, with its weights, or one for all where they differ by their heads alone."""
    traced = dataclasses.replace(state.traced, shareable=[], normalised={})
    members = state.members(backbone)[: 1 if state.heads_only else None]
    # With samples without end, the cheapest form of every layer is the plain one with a folded weight.
    ensemble = Ensemble(rule, state.head_on(backbone), members, traced, math.inf, training=False)
    bodies = []
    for index in range(len(members)):
        ensemble.install(index)
        bodies.append(_body(ensemble.network, ensemble.network.replaced))
    return bodies


def _body(network, replaced):
    """Return a copy of a network's module, in float32, with replaced tensors as parameters; all others are shared.

    A graph holds what is a parameter or a buffer; other tensors it would take for constants of its own.
    """
    module = network.module
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers(), *replaced.values())}
    module = copy.deepcopy(module, shared)
    for name, tensor in replaced.items():
        path, _, attribute = name.rpartition(".")
        owner = module.get_submodule(path)
        owner.__dict__.pop(attribute, None)
        if tensor is None or attribute.startswith(("running_", "num_batches_")):
            owner.register_buffer(attribute, tensor)
        else:
            owner.register_parameter(attribute, nn.Parameter(tensor.detach(), requires_grad=False))
    for part in module.modules():
        for name, value in vars(part).items():  # LeViT and its kin keep what they compute of their weights
            if name.endswith("_cache") and isinstance(value, dict):
                setattr(part, name, {})
    return module.float()


class _FromEightBits(nn.Module):
    """Restores a float32 weight from its int8 values."""

    scales: torch.Tensor

    def __init__(self, scales):
        super().__init__()
        self.register_buffer("scales", scales)

    def forward(self, values):
        return values.float() * self.scales


def _keep_in_eight_bits(graph):
    """Keep the matrices of a graph's networks in eight bits, with a scale for each row, in place.

    Weights that several networks share stay shared. A parameter with a single row, such as an embedding of positions
    (1, n, d), stays in float32: one scale is too few for it.
    """
    kept = {}
    for module in list(graph.modules()):
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.dim() < 2 or len(weight) == 1 or weight.numel() <= _LARGEST_FLOAT_MATRIX:
                continue
            if id(weight) not in kept:
                values, scales = quantized.in_eight_bits(weight.flatten(1))
                values = nn.Parameter(values.view_as(weight), requires_grad=False)
                scales = scales.view(-1, *[1] * (weight.dim() - 1))
                kept[id(weight)] = weight, values, _FromEightBits(scales)
            _, values, restored = kept[id(weight)]
            module.register_parameter(name, values)
            parametrize.register_parametrization(module, name, restored, unsafe=True)  # may change the dtype


# ------------------------------------------------------------------------------------ from modules to files


def _traced(graph, inputs, backbone):
    """Return the program of a graph, with its open axes."""
    dynamic = torch.export.Dim.DYNAMIC
    axes: Any = {name: dict.fromkeys(open_axes, dynamic) for name, open_axes in inputs.open_axes.items()}
    if not isinstance(inputs.example, dict):
        (axes,) = axes.values()
    try:
        with _quiet():
            return torch.export.export(graph, (inputs.example,), dynamic_shapes=(axes,), strict=False)
    except Exception as error:  # whatever a forward provokes that cannot be traced
        first = str(error).strip().partition("\n")[0]
        raise BackboneError(
            f"backbone must be a module that torch.export can trace, got {backbone.description['name']!r}, where it "
            f"ends in {type(error).__name__}: {first}. Write its forward without branches that depend on the values "
            f"of tensors; or save the estimator and use it in Python by skve.load."
        ) from error


def _check_onnx(opset):
    if not isinstance(opset, int) or isinstance(opset, bool) or opset < LOWEST_OPSET:
        raise ValueError(
            f"opset must be an integer from {LOWEST_OPSET}, which torch's exporter writes, got {opset!r}. For older "
            f"runtimes use format='torch'."
        )
    try:
        import onnx
        import onnxscript  # noqa: F401 - what torch's exporter needs
    except ImportError as error:
        raise ImportError(
            f"format='onnx' requires the packages onnx and onnxscript, got an environment without {error.name}. "
            f"Install them: pip install '.[export]' in a clone of skve. format='torch' requires neither."
        ) from error
    if opset > onnx.defs.onnx_opset_version():
        raise ValueError(
            f"opset must be at most {onnx.defs.onnx_opset_version()}, the newest of the installed onnx, got {opset}. "
            f"Upgrade onnx, or lower it."
        )


def _write_onnx(program, path, opset, inputs, outputs):
    size = sum({tensor.data_ptr(): tensor.nbytes for tensor in program.state_dict.values()}.values())
    if size >= _LARGEST_ONNX:
        raise ValueError(
            f"The weights of an ONNX file must take less than 2 GiB, got {size / 2**30:.1f} GiB. Export a student "
            f"(distill), or use format='torch'."
        )
    try:
        with _quiet():
            written: Any = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=list(inputs.open_axes),
                output_names=outputs,
                verbose=False,
            )
    except Exception as error:  # whatever an operator that ONNX lacks provokes in the exporter
        cause = str(error.__cause__ or error).strip().partition("\n")[0]
        raise BackboneError(
            f"backbone must consist of operators that ONNX has for format='onnx', got {type(error).__name__}: "
            f"{cause}. Use format='torch'."
        ) from error
    for value in written.model.graph.inputs:
        _name_axes(value, inputs.open_axes[value.name])
    _share_equal_weights(written.model)
    written.save(path, external_data=False)


def _name_axes(value, names):
    for axis, name in names.items():
        value.shape[axis] = name


def _share_equal_weights(model):
    """Let the members' equal weights, of what they share of the backbone, stand in the file once."""
    from onnx_ir.passes import common

    common.DeduplicateInitializersPass(size_limit=2**31)(model)


@contextlib.contextmanager
def _quiet():
    """Silence what torch's exporters and the libraries that they trace print, log and warn of."""
    names = ("torch.onnx", "torch.export", "torch.fx.experimental.symbolic_shapes", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def _replacing(path):
    """Give the name of a file to write, which takes the place of `path` once it is whole."""
    partial = path.with_name(f".{path.name}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _document(estimator, file, format, opset, weight_dtype, inputs, outputs, selective):
    import skve
    from skve._fitted.novelty import FAMILIAR

    state, labels = estimator._state, estimator.classes_.tolist()
    return {
        "format_version": FORMAT_VERSION,
        "skve": skve.__version__,
        "file": file,
        "format": format,
        **({"opset": opset} if format == "onnx" else {}),
        "weight_dtype": weight_dtype,
        "class": type(estimator).__name__,
        "ensemble": state.ensemble,
        "n_members": state.n_members,
        "backbone": {name: state.backbone.get(name) for name in ("kind", "name", "architecture", "sha256")},
        "classes": [label if isinstance(label, str | int | float) else str(label) for label in labels],
        "inputs": inputs.described,
        "outputs": {name: _OUTPUTS[name] for name in outputs},
        "in_graph": {
            "temperature": estimator.temperature_,
            "regression_share": state.regression_share,
        },
        "thresholds": {"familiar_up_to_novelty": FAMILIAR, **(selective or {})},
        **inputs.settings,
    }
