"""What members, and the frozen backbone beside them, compute of samples, in parts that fit the memory."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import torch
from sklearn.utils import gen_batches

from skve._backbones.network import Network
from skve._ensembles import BATCHES_PER_INSTALLATION, HEAD
from skve._runtime.memory import is_out_of_memory, release_memory
from skve._runtime.progress import progress_bar

_LARGEST_BLOCK = 2**28  # bytes of probabilities that are kept at a time


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
    output : ndarray of shape (n_samples, width), default=None
        Where the results of all samples go; None: they are handed over block by block.
    missing : ndarray of bool, shape (n_samples,), default=None
        Samples without a result; None: all.
    keep : callable, default=None
        `keep(indices)` is called when the results of these samples are there.
    """

    network: Network
    install: Callable
    compute: Callable
    output: np.ndarray | None = None
    missing: np.ndarray | None = None
    keep: Callable | None = None


def probability_passes(ensemble, members=None):
    """Return a pass for each member, or each of some, that computes its probabilities (n_samples, n_classes)."""
    likelihood = ensemble.head.likelihood
    return _member_passes(
        ensemble, members, lambda inputs, index: likelihood.proba(ensemble.member_logits(inputs, index))
    )


def feature_passes(ensemble, members=None):
    """Return a pass for each member, or each of some, that computes its features (n_samples, n_features)."""
    return _member_passes(ensemble, members, lambda inputs, index: ensemble.features(inputs).float())


def _member_passes(ensemble, members, compute):
    return [
        Pass(
            ensemble.network,
            functools.partial(ensemble.install, index),
            functools.partial(compute, index=index),
        )
        for index in (range(len(ensemble.members)) if members is None else members)
    ]


def frozen_passes(backbone, pipeline, n_features, new_network=None):
    """Return the pass of the backbone as it is, and the array (n_samples, n_features) of its features.

    Features that the process keeps are in the array already; there is no pass where that holds for all samples.
    `new_network()` returns the `Network` of the pass; by default a view that shares nothing with members.
    """
    keys, kept, reading = pipeline.content_keys(), backbone.frozen.kept_features, backbone.reading
    features, missing = kept.find(reading, keys, n_features)
    if not missing.any():
        return [], features
    network = Network(backbone) if new_network is None else new_network()

    def keep(indices):
        kept.keep(reading, [keys[index] for index in indices], features[indices])

    return [
        Pass(network, lambda: None, lambda inputs: network.features(inputs).float(), features, missing, keep)
    ], features


def head_probabilities(head, members, features, impossible):
    """Return the probabilities (n_members, n_samples, n_classes) of heads on features of the frozen backbone.

    Parameters
    ----------
    head : Head
    members : sequence of Member
        Only what belongs to the head counts.
    features : ndarray of shape (n_samples, n_features)
    impossible : ndarray of bool, shape (n_samples, n_classes), or None
        See `Pipeline`.
    """

    def on_device(array, member):
        return None if array is None else torch.from_numpy(array).to(member[HEAD + "weight"].device)

    with torch.no_grad():
        logits = [head.logits(on_device(features, one), one, on_device(impossible, one)) for one in members]
        return np.stack([head.likelihood.proba(each).numpy() for each in logits])


def collect(passes, pipeline, batch_size, device):
    """Return what each pass computes of all samples, arrays of shape (n_samples, width)."""
    arrays: list = [None] * len(passes)

    def keep(rows, outputs):
        for index, output in enumerate(outputs):
            if arrays[index] is None:
                arrays[index] = np.empty((len(pipeline), *output.shape[1:]), output.dtype)
            arrays[index][rows] = output

    predict(passes, pipeline, batch_size, device, keep)
    return arrays


def batches_of_a_block(batch_size, width):
    """Return how many batches weights are installed for, where `width` probabilities of each sample are kept.

    Thousands of classes make blocks smaller, so that memory does not grow with the product of both.
    """
    return max(1, min(BATCHES_PER_INSTALLATION, _LARGEST_BLOCK // (8 * batch_size * max(1, width))))


def predict(passes, pipeline, batch_size, device, keep=None, n_batches=BATCHES_PER_INSTALLATION, *, verbose=0):
    """Take all samples through each pass, block by block, and hand over what they compute.

    Samples are read once for all passes, unless none misses them, and weights are installed once for `n_batches`
    batches, a block. If these do not fit the memory, they and the following ones are halved. `verbose` shows a
    progress bar where there are more batches than that.

    Parameters
    ----------
    passes : list of Pass
    pipeline : Pipeline
    batch_size : int
    device : torch.device
    keep : callable, default=None
        `keep(rows, outputs)` receives the indices of a block's samples, and an array (n_rows, width) for each pass
        without an `output`. All calls together have all samples; some may come again where memory was short.
    """
    batches = list(pipeline.batches(batch_size, None))
    order = np.concatenate(batches)
    if not np.array_equal(np.sort(order), np.arange(len(pipeline))):
        raise RuntimeError(f"The batches of a prediction must hold each of the {len(pipeline)} items once.")
    blocks = [np.concatenate(batches[start : start + n_batches]) for start in range(0, len(batches), n_batches)]
    hands_over = keep is not None and any(one.output is None for one in passes)
    if all(one.missing is not None for one in passes):
        order = order[np.any([one.missing[order] for one in passes], axis=0)] if passes else order[:0]
        batches = [order[rows] for rows in gen_batches(len(order), batch_size)] if len(order) else []
    with progress_bar(len(batches) * len(passes), shown=verbose and len(batches) > n_batches) as bar:
        _run_passes(passes, pipeline, batches, n_batches, device, keep if hands_over else None, bar)
    if keep is not None and not hands_over:
        for rows in blocks:
            keep(rows, [])


def _run_passes(passes, pipeline, batches, n_batches, device, keep, bar):
    while batches:
        n_done, failed = 0, False
        try:
            with contextlib.closing(pipeline.load_each(batches, n_batches)) as reading:
                while n_done < len(batches):
                    block = batches[n_done : n_done + n_batches]
                    outputs = _predict_block(passes, pipeline, block, reading, bar)
                    if keep is not None:
                        keep(np.concatenate(block), outputs)
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
    ends = np.cumsum([len(indices) for indices in batches])
    outputs: list = []
    with torch.no_grad():
        for one in passes:
            one.install()
            output = one.output
            parts = zip(ends, batches, strict=True)
            places = batches if output is not None else [slice(end - len(rows), end) for end, rows in parts]
            for position, indices in enumerate(batches):
                if len(raw) == position:  # the first pass computes while the next batches are read
                    raw.append(next(reading))
                if one.missing is None or one.missing[indices].any():
                    one.network.shared_outputs = shared[position]
                    result = one.compute(pipeline.prepare(raw[position], None)).cpu().numpy()
                    shared[position] = one.network.shared_outputs
                    if output is None:
                        output = np.empty((ends[-1], *result.shape[1:]), result.dtype)
                    output[places[position]] = result
                    if one.keep is not None:
                        one.keep(indices)
                bar.update()
            if one.output is None:
                outputs.append(output)
    for one in passes:
        one.network.new_batch()
    return outputs
