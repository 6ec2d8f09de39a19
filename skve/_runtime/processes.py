"""The processes of a data-parallel training: those of torch.distributed's default group, or this one alone."""

import os

import joblib
import torch
from torch import distributed

from skve._runtime.warnings import warn


def rank():
    """Return the number of this process in the group, from 0."""
    return distributed.get_rank() if _is_group() else 0


def n_processes():
    """Return how many processes train together."""
    return distributed.get_world_size() if _is_group() else 1


def warn_of_missing_group():
    """Warn where torchrun started several processes that know nothing of one another."""
    n = os.environ.get("WORLD_SIZE", "1")
    if n != "1" and not _is_group() and distributed.is_available() and distributed.is_torchelastic_launched():
        warn(
            f"fit trains the whole ensemble in each of the {n} processes of torchrun. Call "
            f"torch.distributed.init_process_group() before fit to share the work."
        )


def own_part(size):
    """Return the slice of `size` samples that is this process's."""
    n, own = n_processes(), rank()
    return slice(size * own // n, size * (own + 1) // n)


def sum_up(tensors):
    """Replace tensors by their sums over the processes, in one message from the device of the last one."""
    if n_processes() == 1:
        return
    device = tensors[-1].device
    flat = torch.cat([tensor.detach().reshape(-1).to(device) for tensor in tensors])
    _together(lambda: distributed.all_reduce(flat))
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def take_from_first(tensors):
    """Replace tensors by those of the first process."""
    if n_processes() > 1:
        for tensor in tensors:
            _together(lambda tensor=tensor: distributed.broadcast(tensor, src=0))


def of_first(value):
    """Return a small object as the first process has it."""
    values = [value]
    if n_processes() > 1:
        _together(lambda: distributed.broadcast_object_list(values, src=0))
    return values[0]


def check_same(**values):
    """Check that all processes passed the same values, by hashes of them.

    Raises
    ------
    ValueError
        Names the value and the processes, in each process.
    """
    if n_processes() == 1:
        return
    own = {name: joblib.hash(value) for name, value in values.items()}
    found: list = [None] * n_processes()
    _together(lambda: distributed.all_gather_object(found, own))
    for name in own:
        others = [index for index, hashes in enumerate(found) if hashes.get(name) != found[0].get(name)]
        if others:
            raise ValueError(
                f"{name} must be the same in all {len(found)} processes of a data-parallel fit, got another one in "
                f"process {others[0]} than in process 0. Pass all samples in every process: fit shares out each "
                f"batch."
            )


def _is_group():
    return distributed.is_available() and distributed.is_initialized()


def _together(call):
    try:
        return call()
    except RuntimeError as error:
        raise RuntimeError(
            f"A data-parallel fit requires all {n_processes()} processes to train to the end, got no answer from one "
            f"of them in process {rank()}: {error}. See that process's own error, or call fit in every process."
        ) from error
