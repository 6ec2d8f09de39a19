"""The members' probabilities, in parts that fit the memory."""

import contextlib

import numpy as np
import torch

from skve._ensembles import BATCHES_PER_INSTALLATION
from skve._runtime.memory import is_out_of_memory, release_memory
from skve._runtime.progress import progress_bar


def predict_members(ensemble, pipeline, batch_size, n_batches=BATCHES_PER_INSTALLATION, *, verbose=0):
    """Return the members' probabilities, float64 of shape (n_members, n_samples, n_classes).

    Samples are read once for all members, and a member's weights are built once for `n_batches` batches. If these
    do not fit the memory, they and the following ones are halved. `verbose` shows a progress bar where there are more
    batches than that.
    """
    proba = np.empty((len(ensemble.members), len(pipeline), ensemble.head.likelihood.n_classes))
    batches = list(pipeline.batches(batch_size, None))
    n_passes = len(batches) * len(ensemble.members)
    with progress_bar(n_passes, shown=verbose and len(batches) > n_batches) as bar:
        _predict(ensemble, pipeline, batches, n_batches, proba, bar)
    return proba


def _predict(ensemble, pipeline, batches, n_batches, proba, bar):
    while batches:
        n_done, failed = 0, False
        try:
            with contextlib.closing(pipeline.load_each(batches, n_batches)) as reading:
                while n_done < len(batches):
                    block = batches[n_done : n_done + n_batches]
                    _predict_block(ensemble, pipeline, block, reading, proba, bar)
                    n_done += len(block)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if max(map(len, batches)) == 1:
                raise torch.OutOfMemoryError(f"one member and one sample: {error}") from error
            failed = True
        batches = batches[n_done:]
        ensemble.network.new_batch()
        if failed:
            batches = [half for batch in batches for half in np.array_split(batch, 2) if len(half)]
            bar.total = bar.n + len(batches) * len(ensemble.members)
            release_memory(ensemble.device)


def _predict_block(ensemble, pipeline, batches, reading, proba, bar):
    network = ensemble.network
    raw: list = []
    shared: list[dict] = [{} for _ in batches]
    with torch.no_grad():
        for index in range(len(ensemble.members)):
            ensemble.install(index)
            for position, indices in enumerate(batches):
                if index == 0:  # the first member computes while the next batches are read
                    raw.append(next(reading))
                network.shared_outputs = shared[position]
                logits = ensemble.member_logits(pipeline.prepare(raw[position], None), index)
                shared[position] = network.shared_outputs
                proba[index, indices] = ensemble.head.likelihood.proba(logits).numpy()
                bar.update()
    network.new_batch()
