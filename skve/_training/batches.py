"""Training batches, and how those of members come to differ."""

import copy
import math

import torch

_AHEAD = 2  # batches that are read while the network computes


class Batches:
    """Samples with targets and weights, in batches; each iteration draws a new order.

    Parameters
    ----------
    pipeline : object
        `pipeline.load_each(batches, ahead)` reads the samples of one batch after another, those of the next ones
        ahead; `pipeline.prepare(raw, generator)` makes them the network's input, augmented where a generator is
        given.
    targets : numpy.ndarray of int, shape (n_samples,)
    weights : numpy.ndarray of float, shape (n_samples,) or (n_members, n_samples)
    batch_size : int
    device : torch.device
    order, augment : torch.Generator or None
        None keeps the order, and the samples as they are.
    """

    def __init__(self, pipeline, targets, weights, batch_size, device, order=None, augment=None):
        self.pipeline, self.batch_size, self.device = pipeline, batch_size, device
        self.targets = torch.as_tensor(targets)
        self.weights = torch.as_tensor(weights, dtype=torch.float32)
        self.order, self.augment = order, augment
        self._reading = None

    def copy(self, **changes):
        """Return these batches with other attributes."""
        other = copy.copy(self)
        vars(other).update(changes)
        return other

    def __len__(self):
        return math.ceil(len(self.targets) / self.batch_size)

    def __iter__(self):
        batches = list(self.pipeline.batches(self.batch_size, self.order))
        self._reading = self.pipeline.load_each(batches, _AHEAD)
        for indices, raw in zip(batches, self._reading, strict=True):
            inputs = self.pipeline.prepare(raw, self.augment)
            yield inputs, (self.targets[indices].to(self.device), self.weights[..., indices].to(self.device))

    def close(self):
        """End the reading, and its threads, where an iteration stopped half-way."""
        if self._reading is not None:
            self._reading.close()


def for_members(batches, rule, seeds, n_members):
    """Return training batches in which members differ as the rule's order and its option "bootstrap" say.

    Member m draws from its own generators; those of the first one draw the order that all share, too.
    """
    n_samples = len(batches.targets)
    if rule.options["bootstrap"]:  # how often each sample is among as many that are drawn with replacement
        draws = [
            torch.randint(n_samples, (n_samples,), generator=seeds.generator("bootstrap", m))
            for m in range(n_members)
        ]
        counts = torch.stack([drawn.bincount(minlength=n_samples) for drawn in draws])
        batches = batches.copy(weights=batches.weights * counts)
    if n_members == 1 or rule.order == "shared":
        return batches
    weights = batches.weights.expand(n_members, n_samples)
    return OwnOrders(
        [
            batches.copy(weights=weights[m], order=seeds.generator("order", m), augment=seeds.generator("augment", m))
            for m in range(n_members)
        ]
    )


class OwnOrders:
    """Batches of members that each have an order of their own; yields a list of batches, one for each member.

    One reading serves all members in turn: their threads together are those of one.

    Parameters
    ----------
    members : list of Batches
    """

    def __init__(self, members):
        self.members = members
        self._reading = None

    def __len__(self):
        return len(self.members[0])

    def __iter__(self):
        pipeline = self.members[0].pipeline
        orders = [list(pipeline.batches(batches.batch_size, batches.order)) for batches in self.members]
        in_turn = [indices for step in zip(*orders, strict=True) for indices in step]
        self._reading = pipeline.load_each(in_turn, _AHEAD * len(orders))
        turns = [
            batches.copy(pipeline=_Turn(pipeline, order, self._reading))
            for batches, order in zip(self.members, orders, strict=True)
        ]
        return map(list, zip(*turns, strict=True))

    def close(self):
        """End what reads ahead; see `Batches.close`."""
        if self._reading is not None:
            self._reading.close()


class _Turn:
    """What `Batches` asks of a pipeline, for a member that takes its batches in turn from a reading for all."""

    def __init__(self, pipeline, order, reading):
        self.prepare, self._order, self._reading = pipeline.prepare, order, reading

    def batches(self, batch_size, generator):
        return self._order

    def load_each(self, batches, ahead):
        return self._reading
