"""What a pipeline offers to training and prediction."""

import numpy as np
import torch


def index_batches(n_samples, batch_size, generator):
    """Return the indices of each batch as a list of arrays, in a random order if there is a generator."""
    order = np.arange(n_samples) if generator is None else torch.randperm(n_samples, generator=generator).numpy()
    return [order[start : start + batch_size] for start in range(0, n_samples, batch_size)]
