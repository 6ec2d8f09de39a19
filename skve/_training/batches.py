"""Training batches, and how those of members come to differ."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from skve._backbones.trunk import KeptTrunk, part_of_outputs
from skve._inputs.pipeline import Pipeline, part_of
from skve._inputs.weights import to_mean_one


@dataclasses.dataclass(frozen=True)
class Part:
    """Samples that a fit trains on or validates with, as the estimator holds them.

    Attributes
    ----------
    items : sequence
        Checked inputs.
    targets : ndarray
        Class indices.
    weights : ndarray of shape (n_samples,)
        Of mean 1.
    rows : ndarray of int, shape (n_samples,)
        Their places in what the user passed.
    name : {"X", "X_val"}
        What the user calls that.
    """

    items: Any
    targets: np.ndarray
    weights: np.ndarray
    rows: np.ndarray
    name: str = "X"


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a fit trains on, and what it sets aside or is given for validation."""

    train: Part
    valid: Part | None


@dataclasses.dataclass(frozen=True)
class Group:
    """Samples of a batch, on the device, and the members that see them.

    Attributes
    ----------
    members : sequence of int
    inputs : torch.Tensor or dict of str to torch.Tensor
    targets : torch.Tensor
        See `Likelihood`.
    weights : torch.Tensor of shape (n_samples,) or (n_members, n_samples)
        In the second case a row for each member of the ensemble, also of those that do not see the samples.
    trunk : dict of str to output, default=None
        What the modules in front of the first adapted layer make of the samples, by name, where that is kept.
    """

    members: Sequence[int]
    inputs: Any
    targets: torch.Tensor
    weights: torch.Tensor
    trunk: dict | None = None

    def __len__(self):
        return len(self.targets)

    def part(self, samples):
        """Return the group with some of its samples: a slice, or a tensor of indices."""
        inputs = part_of(self.inputs, samples)
        trunk = self.trunk and part_of_outputs(self.trunk, samples, len(self))
        return Group(self.members, inputs, self.targets[samples], self.weights[..., samples], trunk)


@dataclasses.dataclass(frozen=True)
class Batch:
    """What one step computes: one group that all members see, or a group of as many samples for each member."""

    groups: tuple[Group, ...]

    def __len__(self):
        return len(self.groups[0])


@dataclasses.dataclass(frozen=True)
class Stream:
    """Members that see the same samples in the same order.

    Attributes
    ----------
    members : sequence of int
    order, augment : torch.Generator or None
        None keeps the order, and the samples as they are.
    """

    members: Sequence[int]
    order: torch.Generator | None = None
    augment: torch.Generator | None = None


class Batches:
    """Samples with targets and weights, in batches; each iteration draws new orders.

    Parameters
    ----------
    pipeline : Pipeline
        One reading of it serves all streams in turn: their threads together are those of one.
    targets : torch.Tensor
    weights : torch.Tensor of shape (n_samples,) or (n_members, n_samples)
    batch_size : int
    device : torch.device
    streams : sequence of Stream
    merges_single : bool, default=False
        Whether a last batch of one sample becomes part of another one, for the sake of batch statistics.

    Attributes
    ----------
    kept_trunk : KeptTrunk or None
        What the groups' `trunk` is made from.
    """

    AHEAD = 2  # batches that are read while the network computes

    def __init__(self, pipeline: Pipeline, targets, weights, batch_size, device, streams, merges_single=False):
        self.pipeline, self.targets, self.weights = pipeline, targets, weights
        self.batch_size, self.device, self.streams = batch_size, device, streams
        self._merges = merges_single and len(targets) > batch_size > 1 and len(targets) % batch_size == 1
        self._reading: Any = None
        self.kept_trunk: KeptTrunk | None = None

    def __len__(self):
        return math.ceil(len(self.targets) / self.batch_size) - self._merges

    def __iter__(self):
        orders = [self._order(stream) for stream in self.streams]
        steps = list(zip(*orders, strict=True))
        in_turn = [indices for step in steps for indices in step]
        self._reading = reading = self.pipeline.load_each(in_turn, self.AHEAD * len(self.streams))
        for step in steps:
            pairs = zip(self.streams, step, strict=True)
            yield Batch(tuple(self._group(stream, indices, next(reading)) for stream, indices in pairs))

    def _order(self, stream):
        order = list(self.pipeline.batches(self.batch_size, stream.order))
        if self._merges:
            single = order.pop(next(place for place, indices in enumerate(order) if len(indices) == 1))
            order[-1] = np.concatenate([order[-1], single])
        return order

    def _group(self, stream, indices, raw):
        targets, weights = self.targets[indices].to(self.device), self.weights[..., indices].to(self.device)
        inputs = self.pipeline.prepare(raw, stream.augment)
        trunk = None if self.kept_trunk is None else self.kept_trunk.outputs(indices, inputs)
        return Group(stream.members, inputs, targets, weights, trunk)

    def close(self):
        """End the reading, and its threads, where an iteration stopped half-way."""
        if self._reading is not None:
            self._reading.close()


def training_batches(part, pipeline, ensemble, seeds, batch_size, folds=None, members=None):
    """Return training batches in which members differ as the rule's order and options say.

    Member m draws from its own generators; those of the first one draw the order that all share, too. What a member
    does not see, by "bootstrap" or as its fold, has the weight 0.

    Parameters
    ----------
    part : Part
    pipeline : Pipeline
        Of the part's samples.
    ensemble : Ensemble
    seeds : Seeds
    batch_size : int
    folds : Folds, default=None
    members : range, default=None
        Which members of a larger ensemble `ensemble` holds; None where it holds all.

    Returns
    -------
    Batches
    """
    rule, trained, n_samples = ensemble.rule, ensemble.trained, len(part.targets)
    members = range(len(trained)) if members is None else members
    weights = torch.as_tensor(part.weights, dtype=torch.float32)
    if rule.options["bootstrap"]:
        generators = [seeds.generator("bootstrap", m) for m in members]
        draw = _bayesian_bootstrap if rule.options["bootstrap"] == "bayesian" else _ordinary_bootstrap
        weights = weights * torch.stack([draw(n_samples, generator) for generator in generators])
    if folds is not None:
        kept = [
            to_mean_one(row, f"samples that member {m} keeps")
            for m, row in zip(members, folds.kept(weights.numpy(), members), strict=True)
        ]
        weights = torch.as_tensor(np.stack(kept), dtype=torch.float32)

    def stream(seen_by, m):
        return Stream(seen_by, seeds.generator("order", m), seeds.generator("augment", m))

    if len(trained) == 1 or rule.order == "shared":
        streams = [stream(trained, 0)]
    else:
        streams = [stream([member], m) for m, member in zip(members, trained, strict=True)]
    targets = ensemble.head.likelihood.targets(part.targets)
    return Batches(pipeline, targets, weights, batch_size, ensemble.device, streams, rule.mixes_samples)


def _ordinary_bootstrap(n_samples, generator):
    """Return how often each sample is among as many that are drawn with replacement."""
    return torch.randint(n_samples, (n_samples,), generator=generator).bincount(minlength=n_samples)


def _bayesian_bootstrap(n_samples, generator):
    """Return weights from a flat Dirichlet distribution, times n: none is 0 (Rubin, Annals of Statistics, 1981)."""
    drawn = torch.empty(n_samples, dtype=torch.float32).exponential_(generator=generator)
    return drawn / drawn.mean()


def validation_batches(part, pipeline, ensemble, batch_size):
    """Return the batches of validation samples, in order and as they are; see `training_batches`."""
    weights = torch.as_tensor(part.weights, dtype=torch.float32)
    targets = ensemble.head.likelihood.targets(part.targets)
    return Batches(pipeline, targets, weights, batch_size, ensemble.device, [Stream(range(len(ensemble.members)))])
