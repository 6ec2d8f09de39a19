"""A frozen module whose blocks lie on several devices, for models that no single one has the memory for."""

import copy

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from skve._backbones import layer_selection
from skve.exceptions import BackboneError


def split(module, devices):
    """Return a copy of a frozen module whose blocks lie on several devices, in their order.

    The devices get parts of nearly the same size. A block brings what it is given to its own device, and so does each
    other layer with tensors; the module brings what it returns to the first device. What lies in front of the first
    block or behind the last one is there, too, and what lies between two blocks beside the first of them.

    Parameters
    ----------
    module : torch.nn.Module
    devices : sequence of torch.device

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    BackboneError
        If there are fewer blocks than devices.
    """
    blocks = _outermost_blocks(module)
    if len(blocks) < len(devices):
        raise BackboneError(
            f"backbone must have a block (a module in a ModuleList or Sequential with two weights or more) for each "
            f"of the {len(devices)} devices, got {len(blocks)} blocks. List fewer devices."
        )
    places = _places(module, blocks, devices)
    copied = copy_on(module, places)
    for name, part in copied.named_modules():
        if name in blocks or (name and _own_tensors(part) and not _block_around(name, blocks)):
            part.register_forward_pre_hook(_Bring(places[name]).inputs, with_kwargs=True)
    copied.register_forward_hook(_Bring(devices[0]).output)
    return copied


def _own_tensors(module):
    """Return the parameters and buffers of a module without those of its parts."""
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _outermost_blocks(module):
    """Return the names of the blocks that no other block holds."""
    names = layer_selection.blocks(module, layer_selection.find_sites(module)[0])
    return [name for name in names if not _block_around(name.rpartition(".")[0], names)]


def _block_around(name, blocks):
    """Return the block that a module is, or is part of, by its name; None outside of blocks."""
    return next((block for block in blocks if f"{name}.".startswith(f"{block}.")), None)


def _places(module, blocks, devices):
    """Return the device of each module by its name."""
    sizes = {name: sum(tensor.nbytes for tensor in _own_tensors(part)) for name, part in module.named_modules()}
    names = list(sizes)
    behind = names[max(place for place, name in enumerate(names) if _block_around(name, blocks)) + 1 :]
    total, before = sum(sizes.values()), sum(sizes[name] for name in behind)
    places, device = {}, devices[0]
    for name in names:
        if name in blocks:
            size = sum(own for other, own in sizes.items() if _block_around(other, [name]))
            device = devices[int(len(devices) * (before + size / 2) / total)]
        places[name] = device
        before += sizes[name]
    return places | dict.fromkeys(behind, devices[0])


def copy_on(module, places):
    """Return a copy of a module without gradients, each part of it on the device that `places` has by its name."""
    tensors: dict[int, torch.Tensor] = {}
    for name, part in module.named_modules():
        for tensor in part.parameters(recurse=False):
            there = tensor.detach().to(places[name], copy=True)
            tensors.setdefault(id(tensor), nn.Parameter(there, requires_grad=False))
        for tensor in part.buffers(recurse=False):
            tensors.setdefault(id(tensor), tensor.detach().to(places[name], copy=True))
    return copy.deepcopy(module, tensors)


class _Bring:
    """Hooks that bring what a module is given, or returns, to a device."""

    def __init__(self, device):
        self.device = device

    def inputs(self, module, args, kwargs):
        return self._bring((args, kwargs))

    def output(self, module, args, output):
        return self._bring(output)

    def _bring(self, tensors):
        return tree_map_only(torch.Tensor, lambda tensor: tensor.to(self.device), tensors)
