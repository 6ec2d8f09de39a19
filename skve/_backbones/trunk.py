"""What the layers in front of the first adapted one make of training samples, computed once for all steps of a fit.

Modules in front of the first adapted weight return the same for a sample in every step. A pass can be resumed behind
them if what the rest of the network reads is put in their places: the outputs of some of them, one row for each
sample. The others need not be computed at all and leave placeholders.
"""

import contextlib
import dataclasses
import math
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from skve._backbones import layer_selection
from skve._backbones.cache import cache_limit
from skve._backbones.network import Network
from skve._backbones.trace import depends_on
from skve._inputs.pipeline import part_of
from skve._runtime.device import autocast
from skve._runtime.memory import available_memory, is_out_of_memory, release_memory
from skve._runtime.randomness import own_global_generators

TOLERANCE = 1e-4  # of features in float32, relative to the largest, when a pass is resumed


class _NotResumableError(Exception):
    """A pass cannot be resumed from rows of single samples."""


@dataclasses.dataclass(frozen=True)
class _Row:
    """One tensor among the outputs: what belongs to a sample, or to a token of a text.

    Attributes
    ----------
    shape : tuple of int
        Without the axis of samples and, for texts, that of tokens.
    dtype : torch.dtype
    layout : torch.memory_format
    is_read : bool
        Whether the rest of the network reads its values.
    """

    shape: tuple
    dtype: torch.dtype
    layout: torch.memory_format
    is_read: bool

    @property
    def nbytes(self):
        return math.prod(self.shape) * self.dtype.itemsize if self.is_read else 0


@dataclasses.dataclass(frozen=True)
class Trunk:
    """Where passes of a backbone can be resumed.

    Attributes
    ----------
    outputs : dict of str to output
        By module what it returns, with a `_Row` in the place of each tensor.
    """

    outputs: dict[str, Any]

    @property
    def nbytes(self):
        """Memory that a sample, or a token of a text, takes, in bytes."""
        return sum(row.nbytes for output in self.outputs.values() for row in _leaves(output))

    def split(self, outputs, inputs):
        """Return what has to be kept of each sample of a batch: for each, by tensor, a list of its rows.

        An image has one row, a text one of the length of its tokens, a prompt with choices one for each choice.

        Parameters
        ----------
        outputs : dict of str to output
            Of the modules in front, for the batch.
        inputs : torch.Tensor or dict of str to torch.Tensor
            The batch.
        """
        read = [
            tensor
            for name, spec in self.outputs.items()
            for row, tensor in zip(_leaves(spec), _leaves(outputs[name]), strict=True)
            if row.is_read
        ]
        if isinstance(inputs, torch.Tensor):
            return [[[tensor[i].clone()] for tensor in read] for i in range(len(inputs))]
        lengths = inputs["attention_mask"].flatten(0, -2).sum(1).tolist()
        n_each = len(lengths) // _n_samples(inputs)

        def rows(tensor, i):
            return [tensor[row, : lengths[row]].clone() for row in range(i * n_each, (i + 1) * n_each)]

        return [[rows(tensor, i) for tensor in read] for i in range(_n_samples(inputs))]

    def join(self, samples, inputs):
        """Return the outputs of the modules in front for a batch: the reverse of `split`."""
        read = iter(zip(*samples, strict=True))
        sizes = _sizes(inputs)
        n_each = sizes[0] // len(samples)

        def of_batch(rows):
            """Return as many rows of a sample as a batch has: prompts with fewer choices repeat the first one."""
            return [*rows[:n_each], *rows[:1] * (n_each - len(rows))]

        def tensor(row):
            if not row.is_read:
                return torch.zeros((), dtype=row.dtype, device=samples[0][0][0].device).expand(*sizes, *row.shape)
            rows = [one for sample in next(read) for one in of_batch(sample)]
            return pad_sequence(rows, batch_first=True).contiguous(memory_format=row.layout)

        return {name: _mapped(output, tensor) for name, output in self.outputs.items()}


def find_trunk(backbone, shareable, inputs, dtype=torch.float32):
    """Find out where passes of a backbone can be resumed.

    Parameters
    ----------
    backbone : Backbone
    shareable : list of str
        Of its `Trace`.
    inputs : torch.Tensor or dict of str to torch.Tensor
        A prepared batch of two samples or more, on which the resumed pass is tried.
    dtype : torch.dtype, default=torch.float32
        Arithmetic of the passes.

    Returns
    -------
    Trunk or None
        None where no layer that could be adapted is in front, or where resumed passes give other features: where
        modules in front draw at random or mix samples, return something that is not one row for each sample, or
        where their outputs are written to.
    """
    sites = {site.layer for site in layer_selection.find_sites(backbone.module)[0]}
    heavy = {name for name in shareable if any(not name or f"{site}.".startswith(f"{name}.") for site in sites)}
    if not heavy:
        return None
    with autocast(backbone.device, dtype), own_global_generators(0):  # a module may draw from them
        try:
            trunk = _found(backbone, shareable, heavy, inputs)
            return trunk if _resumes(backbone, trunk, inputs, dtype) else None
        except (_NotResumableError, RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            if is_out_of_memory(error):
                release_memory(backbone.device)
            return None


def _found(backbone, shareable, heavy, inputs):
    """Return the trunk whose kept outputs are those of `heavy` modules.

    Others are computed for each batch, once for all members, where the rest reads what they return, or where that is
    not one row for each sample.
    """
    sizes, cut = _sizes(inputs), list(shareable)
    while True:
        outputs, read = _outputs_and_read(backbone, cut, inputs)
        by_batch = {
            name for name in outputs if not all(_is_by_sample(tensor, sizes) for tensor in _leaves(outputs[name]))
        }
        computed = ({name for name, _ in read} | by_batch) - heavy
        if not computed:
            break
        cut = [name for name in cut if name not in computed]
    if by_batch:
        raise _NotResumableError

    def rows(name, output):
        index = iter(range(len(_leaves(output))))
        return _mapped(output, lambda tensor: _row(tensor, sizes, (name, next(index)) in read))

    return Trunk({name: rows(name, output) for name, output in outputs.items()})


def _outputs_and_read(backbone, names, inputs):
    """Return what the modules of these names return, and the (name, index) of the tensors that the rest reads."""
    network = _new_network(backbone)
    outputs, leaves, whole = {}, {}, set()

    def cut_behind(name):
        forward = network.forward_of(name)

        def compute(*args, **kwargs):
            with torch.no_grad():
                output = forward(*args, **kwargs)
            index = iter(range(len(_leaves(output))))
            outputs[name] = output

            def behind(tensor):
                place = (name, next(index))
                if not tensor.is_floating_point():
                    whole.add(place)  # autograd does not say what becomes of it
                    return tensor
                leaves[place] = tensor.detach().requires_grad_()
                return leaves[place].clone()  # which may be written to

            return _mapped(output, behind)

        return compute

    for name in names:
        network.set_forward(name, cut_behind(name))
    with torch.enable_grad():
        return outputs, depends_on(network.features(inputs), leaves) | whole


def _is_by_sample(tensor, sizes):
    return tuple(tensor.shape[: len(sizes)]) == sizes


def _row(tensor, sizes, is_read):
    channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return _Row(tuple(tensor.shape[len(sizes) :]), tensor.dtype, layout, is_read)


def _resumes(backbone, trunk, inputs, dtype):
    """Say whether passes that are resumed from rows of single samples give the features of whole passes."""
    if not trunk.nbytes:
        return False
    network = _new_network(backbone)
    network.share(trunk.outputs)
    with torch.no_grad():
        samples = []
        for index in range(_n_samples(inputs)):
            one = part_of(inputs, slice(index, index + 1))
            network.new_batch()
            network.features(one)
            samples += trunk.split(network.batch_outputs(), one)
        expected = _new_network(backbone).features(inputs)
        network.new_batch(trunk.join(samples, inputs))
        resumed = [network.features(inputs) for _ in range(2)]  # as two members do
    eps = max(torch.finfo(kind).eps for kind in (dtype, expected.dtype))
    bound = max(TOLERANCE, 8 * eps) * expected.abs().max()
    close = all(bool(((features - expected).abs() <= bound).all()) for features in resumed)
    return close and not network.wrote_to_shared()


def _new_network(backbone):
    network = Network(backbone)
    network.avoid_fast_paths()
    return network


class KeptTrunk:
    """The trunk's rows of all samples of a fit.

    Parameters
    ----------
    trunk : Trunk
    samples : list of list of list of torch.Tensor
        From `Trunk.split`.
    """

    def __init__(self, trunk, samples):
        self.trunk, self.samples = trunk, samples

    def outputs(self, indices, inputs):
        """Return the outputs of the modules in front, by name, for the batch `inputs` of the samples `indices`."""
        return self.trunk.join([self.samples[index] for index in indices], inputs)


def keep_trunk(ensemble, pipeline, batch_size):
    """Compute what is in front of the first adapted layer once for each sample.

    Parameters
    ----------
    ensemble : Ensemble
    pipeline : Pipeline
    batch_size : int

    Returns
    -------
    KeptTrunk or None
        None where that is not the same in every step, or takes more than half of what the process cache may
        (`cache_limit`) or a quarter of the free memory.
    """
    if not pipeline.same_each_epoch or len(pipeline) < 2:
        return None
    backbone, device = ensemble.rule.backbone, ensemble.device
    few = pipeline.prepare(pipeline.load(torch.arange(2).numpy()), None)
    trunk = find_trunk(backbone, ensemble.network.shared_layers, few, ensemble.dtype)
    if trunk is None:
        return None
    free = available_memory(device)
    bound = min(cache_limit() / 2, math.inf if free is None else free / 4)
    if trunk.nbytes * pipeline.mean_size * len(pipeline) > bound:
        return None
    samples: list = [None] * len(pipeline)
    order = list(pipeline.batches(batch_size, None))
    network, first = ensemble.network, ensemble.trained[0]
    try:
        with torch.no_grad(), contextlib.closing(pipeline.load_each(order, 2)) as reading:
            for indices, raw in zip(order, reading, strict=True):
                inputs = pipeline.prepare(raw, None)
                network.new_batch()
                ensemble.chunk_logits(inputs, [first])
                for index, rows in zip(indices, trunk.split(network.batch_outputs(), inputs), strict=True):
                    samples[index] = rows
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        samples = []
    network.new_batch()
    if not samples:
        release_memory(device)
        return None
    return KeptTrunk(trunk, samples)


def part_of_outputs(outputs, samples, n_samples):
    """Return the outputs of modules for some of the samples of a batch, a slice or a tensor of indices."""

    def part(tensor):
        if len(tensor) == n_samples:
            return tensor[samples]
        return tensor.unflatten(0, (n_samples, -1))[samples].flatten(0, 1)

    return {name: _mapped(output, part) for name, output in outputs.items()}


def _n_samples(inputs):
    return len(inputs if isinstance(inputs, torch.Tensor) else inputs["input_ids"])


def _sizes(inputs):
    """Return (samples,) of a batch, or (texts, tokens), where each choice of a prompt makes a text."""
    if isinstance(inputs, torch.Tensor):
        return tuple(inputs.shape[:1])
    return tuple(inputs["input_ids"].flatten(0, -2).shape)


def _mapped(output, function):
    """Return what a module returns, with `function` of each tensor, or row, in its place."""
    if isinstance(output, torch.Tensor | _Row):
        return function(output)
    if type(output) in (tuple, list):
        return type(output)(_mapped(value, function) for value in output)
    if output is None:
        return None
    raise _NotResumableError


def _leaves(output):
    found: list = []
    _mapped(output, found.append)
    return found
