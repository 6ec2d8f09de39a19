"""What members, and the frozen backbone beside them, compute of samples, in parts that fit the memory."""

import contextlib
import dataclasses
from collections.abc import Callable

import numpy as np
import torch

from skve._backbones.network import Network
from skve._ensembles import BATCHES_PER_INSTALLATION
from skve._runtime.memory import is_out_of_memory, release_memory
from skve._runtime.progress import progress_bar


@dataclasses.dataclass(frozen=True, eq=False)
class Pass:
    """One way through a network for all samples.

    Attributes
    ----------
    network : Network
    install : callable
        `install()` brings the network's weights into place.
    compute : callable
        `compute(inputs)` returns a tensor (n_samples, width) for a prepared batch.
    output : ndarray of shape (n_samples, width)
        Where the results go.
    """

    network: Network
    install: Callable
    compute: Callable
    output: np.ndarray


def probability_passes(ensemble, n_samples, members=None):
    """Return a pass for each member, or each of some, and their probabilities (n_members, n_samples, n_classes)."""
    members = range(len(ensemble.members)) if members is None else members
    likelihood = ensemble.head.likelihood
    proba = np.empty((len(members), n_samples, likelihood.n_classes))

    def compute(index):
        return lambda inputs: likelihood.proba(ensemble.member_logits(inputs, index))

    return _member_passes(ensemble, members, proba, compute), proba


def feature_passes(ensemble, n_samples, n_features):
    """Return a pass for each member, and the array (n_members, n_samples, n_features) of their features."""
    features = np.empty((len(ensemble.members), n_samples, n_features), np.float32)

    def compute(index):
        return lambda inputs: ensemble.network.features(inputs).float()

    return _member_passes(ensemble, range(len(features)), features, compute), features


def _member_passes(ensemble, members, outputs, compute):
    return [
        Pass(ensemble.network, lambda index=index: ensemble.install(index), compute(index), output)
        for index, output in zip(members, outputs, strict=True)
    ]


def frozen_passes(backbone, n_samples, n_features, shareable=()):
    """Return the pass of the backbone as it is, and the array (n_samples, n_features) of its features.

    `shareable` are the modules that members have in common with it, from the ensemble's trace.
    """
    network = Network(backbone)
    network.share(shareable)
    features = np.empty((n_samples, n_features), np.float32)
    return [Pass(network, lambda: None, lambda inputs: network.features(inputs).float(), features)], features


def predict(passes, pipeline, batch_size, device, n_batches=BATCHES_PER_INSTALLATION, *, verbose=0):
    """Take all samples through each pass and fill the outputs.

    Samples are read once for all passes, and weights are installed once for `n_batches` batches. If these do not
    fit the memory, they and the following ones are halved. `verbose` shows a progress bar where there are more
    batches than that.
    """
    batches = list(pipeline.batches(batch_size, None))
    if not np.array_equal(np.sort(np.concatenate(batches)), np.arange(len(pipeline))):
        raise RuntimeError(f"The batches of a prediction must hold each of the {len(pipeline)} items once.")
    with progress_bar(len(batches) * len(passes), shown=verbose and len(batches) > n_batches) as bar:
        _predict(passes, pipeline, batches, n_batches, device, bar)


def _predict(passes, pipeline, batches, n_batches, device, bar):
    while batches:
        n_done, failed = 0, False
        try:
            with contextlib.closing(pipeline.load_each(batches, n_batches)) as reading:
                while n_done < len(batches):
                    block = batches[n_done : n_done + n_batches]
                    _predict_block(passes, pipeline, block, reading, bar)
                    n_done += len(block)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if max(map(len, batches)) == 1:
                raise torch.OutOfMemoryError(f"one member and one sample: {error}") from error
            failed = True
        batches = batches[n_done:]
        for one in passes:
            one.network.new_batch()
        if failed:
            batches = [half for batch in batches for half in np.array_split(batch, 2) if len(half)]
            bar.total = bar.n + len(batches) * len(passes)
            release_memory(device)


def _predict_block(passes, pipeline, batches, reading, bar):
    raw: list = []
    shared: list[dict] = [{} for _ in batches]
    with torch.no_grad():
        for one in passes:
            one.install()
            for position, indices in enumerate(batches):
                if len(raw) == position:  # the first pass computes while the next batches are read
                    raw.append(next(reading))
                one.network.shared_outputs = shared[position]
                result = one.compute(pipeline.prepare(raw[position], None))
                shared[position] = one.network.shared_outputs
                one.output[indices] = result.cpu().numpy()
                bar.update()
    for one in passes:
        one.network.new_batch()
