"""The members' probabilities, in parts that fit the memory."""

import contextlib

import numpy as np
import torch

from skve._ensembles import BATCHES_PER_INSTALLATION
from skve._runtime.memory import is_out_of_memory, release_memory


def predict_members(ensemble, pipeline, batch_size, n_classes, n_batches=BATCHES_PER_INSTALLATION):
    """Return the members' probabilities, float64 of shape (n_members, n_samples, n_classes).

    Samples are read once for all members, and a member's weights are built once for `n_batches` batches. If these
    do not fit the memory, they and the following ones are halved.
    """
    proba = np.empty((len(ensemble.members), len(pipeline), n_classes))
    batches = list(pipeline.batches(batch_size, None))
    while batches:
        n_done, failed = 0, False
        try:
            with contextlib.closing(pipeline.load_each(batches, n_batches)) as reading:
                while n_done < len(batches):
                    block = batches[n_done : n_done + n_batches]
                    _predict_block(ensemble, pipeline, block, reading, proba)
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
            release_memory(ensemble.device)
    return proba


def _predict_block(ensemble, pipeline, batches, reading, proba):
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
                proba[index, indices] = torch.softmax(logits.cpu().double(), -1).numpy()
    network.new_batch()
