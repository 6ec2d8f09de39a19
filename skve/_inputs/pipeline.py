"""What a pipeline offers to training and prediction: the protocol, and what its implementations share."""

import hashlib
from collections.abc import Generator, Iterable
from typing import Any, Protocol

import numpy as np
import torch


class Pipeline(Protocol):
    """Turns the items of one fit or prediction into batches for the network; one class for each kind of inputs."""

    @property
    def mean_size(self) -> float:
        """Rows that a layer multiplies for an average item: 1 for images, tokens for texts."""

    @property
    def impossible(self) -> np.ndarray | None:
        """Which classes an item cannot have: bool (n_items, n_classes), or None where all are possible."""

    @property
    def same_each_epoch(self) -> bool:
        """Whether the network makes the same of an item in each epoch of a training, whatever batch it is in."""

    def __len__(self) -> int:
        """Return the number of items."""

    def content_keys(self) -> list[bytes | None]:
        """Return a key for the content of each item, by which features of a frozen backbone are found again.

        Two items have the same key only if `load` returns the same for both. None stands for content that takes too
        long to look at.
        """

    def size(self, indices: np.ndarray) -> int:
        """Return the number of rows in the batch of these items, in the unit of `mean_size`, padding included."""

    def batches(self, batch_size: int, generator: torch.Generator | None) -> Iterable[np.ndarray]:
        """Return the indices of each batch: every item once, in a random order if there is a generator."""

    def load(self, indices: np.ndarray) -> Any:
        """Return the items at `indices`, read and on the CPU."""

    def load_each(self, batches: Iterable[np.ndarray], ahead: int) -> Generator[Any, None, None]:
        """Yield what `load` returns for each batch; up to `ahead` more may be read meanwhile, until it is closed."""

    def prepare(self, raw: Any, generator: torch.Generator | None) -> Any:
        """Return the network's input of what was loaded, on the device: a tensor, or a dict of tensors by name.

        It is augmented where a generator is given, and has the samples on the first axis of each tensor.
        """

    def check_labels(self, codes: np.ndarray, name: str) -> None:
        """Raise ValueError where an item of `name`, "X" or "X_val", cannot have its label; mostly all can."""


def content_key(*parts):
    """Return a key for bytes and plain values that together are the content of an item."""
    digest = hashlib.sha256()
    for part in parts:
        part = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def part_of(inputs, samples):
    """Return the network's input of a slice of the samples of a batch."""
    return inputs[samples] if isinstance(inputs, torch.Tensor) else {name: t[samples] for name, t in inputs.items()}


def index_batches(n_samples, batch_size, generator):
    """Return the indices of each batch as a list of arrays, in a random order if there is a generator."""
    order = np.arange(n_samples) if generator is None else torch.randperm(n_samples, generator=generator).numpy()
    return [order[start : start + batch_size] for start in range(0, n_samples, batch_size)]
