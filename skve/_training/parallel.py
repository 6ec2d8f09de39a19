"""Members that train in several processes at once, because no member's training depends on another's."""

import multiprocessing
import threading

import joblib
import numpy as np
import torch
from joblib.parallel import get_active_backend
from scipy.special import logsumexp

from skve._runtime import processes
from skve._training.loop import Result


def n_groups(n_members, n_jobs, device):
    """Return in how many groups members train at once, on a device.

    One for each of joblib's jobs on processors, and one for each GPU where `device` does not name one. One where
    others already work beside this one: in workers, in threads and in the processes of a data-parallel fit.
    """
    if processes.n_processes() > 1 or _is_worker():
        return 1
    n = joblib.effective_n_jobs(n_jobs)
    if device.type != "cpu":
        n = min(n, torch.cuda.device_count() if device.type == "cuda" and device.index is None else 1)
    return min(n, n_members)


def _is_worker():
    return (
        get_active_backend()[0].nesting_level > 0
        or multiprocessing.parent_process() is not None
        or threading.current_thread() is not threading.main_thread()
    )


def split_members(n_members, n):
    """Return the members in n groups of nearly the same size."""
    return [range(n_members * index // n, n_members * (index + 1) // n) for index in range(n)]


def device_of(device, group):
    """Return where a group of members trains: each has a GPU of its own where there are several."""
    return f"cuda:{group}" if device.type == "cuda" and device.index is None else str(device)


def run(tasks):
    """Return what `train(*arguments)` returns for each of the tasks (train, arguments), by joblib's backend.

    There are as many jobs as tasks: joblib shares the processor's cores out among the jobs that it is asked for.
    """
    return joblib.Parallel(n_jobs=len(tasks))(joblib.delayed(train)(*arguments) for train, arguments in tasks)


def merge(results):
    """Return the result of one training of all members, from those of groups of them, in the members' order."""
    sizes = [result.notes.n_members for result in results]
    notes, histories = [result.notes for result in results], [result.history for result in results]

    def mean(values):
        return np.average(list(values), axis=0, weights=sizes)

    def spread(layer):
        """Return the standard deviation over all members, from those of the groups around their own means."""
        means = np.array([each.ratio_means[layer] for each in notes])
        variances = np.array([history["ratio_spread"][layer] for history in histories]) ** 2
        return np.sqrt(mean(variances + (means - mean(means)) ** 2)).tolist()

    first = histories[0]
    history = {
        "epoch": first["epoch"],
        "step": first["step"],
        "loss": mean(history["loss"] for history in histories).tolist(),
        "valid_nll": first["valid_nll"],
        "ratio_spread": {layer: spread(layer) for layer in first["ratio_spread"]},
        "gradient_norm": {
            layer: mean(history["gradient_norm"][layer] for history in histories).tolist()
            for layer in first["gradient_norm"]
        },
    }
    if notes[0].valid_nll:
        shares = np.log(np.array(sizes) / sum(sizes))[:, None, None]
        nll = -logsumexp(shares - np.array([each.valid_nll for each in notes]), axis=0)
        history["valid_nll"] = (nll * notes[0].valid_weights).mean(axis=1).tolist()
    arrays = {key: np.concatenate([result.arrays[key] for result in results]) for key in results[0].arrays}
    return Result(arrays, history, results[0].n_iter, interrupted=False)
