"""Backbones whose weights came with a saved model: what somebody else wrote decides neither memory nor time."""

import dataclasses
import hashlib
import json

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from skve.exceptions import BackboneError

_ROOM = 2**28  # bytes of one tensor that building a network may take beside what came: masks, tables of positions
_CALLS = 5000  # of torch, and so many for each array: a network calls it a few dozen times to make one weight
_CALLS_EACH = 100


@dataclasses.dataclass(frozen=True, eq=False)
class EmbeddedBackbone:
    """A backbone whose weights came with a saved model: plain values, NumPy arrays and bytes, no network.

    Attributes
    ----------
    description, preprocess : dict
        As of the `Backbone` that was saved.
    arrays : dict of str to ndarray
        The weights.
    files : dict of str to bytes
        What else rebuilding takes: a tokenizer's files.
    content : str
        SHA-256 of all that was saved, whatever the description says of it: what the cache keeps it under.
    """

    description: dict
    preprocess: dict
    arrays: dict
    files: dict = dataclasses.field(default_factory=dict)
    content: str = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        digest = hashlib.sha256(json.dumps([self.description, self.preprocess], sort_keys=True).encode())
        for name, array in sorted(self.arrays.items()):
            digest.update(f"{name}:{array.dtype}:{array.shape};".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        for name, file in sorted(self.files.items()):
            digest.update(f"{name}:{len(file)};".encode())
            digest.update(file)
        object.__setattr__(self, "content", digest.hexdigest())

    def __repr__(self):
        return f"<the embedded backbone {self.description['name']!r}>"

    def __deepcopy__(self, memo):
        return self  # nothing changes it; scikit-learn's clone copies parameters


def check_dtype(spec, dtype):
    """Raise BackboneError if an `EmbeddedBackbone` has weights of another dtype than is required."""
    held = spec.preprocess.get("dtype", "float32")  # which models saved by 0.1 do not say of images
    if dtype != held:
        raise BackboneError(
            f"backbone_dtype must be {held!r} for the backbone {spec.description['name']!r}, whose embedded weights "
            f"have that type, got {dtype!r}. Keep it, or set backbone to the location of the original weights."
        )


def check_rebuilt(backbone, spec):
    """Return a backbone that was rebuilt from an `EmbeddedBackbone` if it has the weights that this describes."""
    wrong = [
        name for name in ("sha256", "head_sha256") if backbone.description.get(name) != spec.description.get(name)
    ]
    if wrong:
        raise BackboneError(
            f"The embedded backbone {spec.description['name']!r} must have the weights that its description names, "
            f"got others. Use a complete copy of the saved model, or pass the weights: "
            f"skve.load(folder, backbone=...)."
        )
    return backbone


def misfit(build, arrays):
    """Say how the arrays of an `EmbeddedBackbone` differ from the network that `build` makes, without making it.

    The network is built on torch's device "meta", where tensors have a shape and no memory, and is given up when it
    takes more than arrays of this size can be for.

    Parameters
    ----------
    build : callable
        Returns a module, or a dict of its tensors by name.
    arrays : dict of str to ndarray

    Returns
    -------
    str
        The first difference; empty where there is none.
    """
    came = {name: _shape(array) for name, array in arrays.items()}
    try:
        with torch.device("meta"), _Bounded(arrays):
            built = build()
    except _TooLargeError as error:
        return str(error)
    tensors = built if isinstance(built, dict) else built.state_dict()
    needed = {name: _shape(tensor) for name, tensor in tensors.items()}
    for name in sorted(needed.keys() | came.keys()):
        if needed.get(name) != came.get(name):
            needs, got = (f"shape {part[name]}" if name in part else "none" for part in (needed, came))
            return f"{name} must have {needs}, got {got}"
    return ""


def _shape(array):
    return tuple(array.shape) or (1,)  # which saved numbers have become


class _TooLargeError(Exception):
    pass


class _Bounded(TorchFunctionMode):
    """Stop the building of a network whose tensors are more, or larger, than `arrays` can be the weights of."""

    def __init__(self, arrays):
        super().__init__()
        self._calls_left = _CALLS + _CALLS_EACH * len(arrays)
        self._room = _ROOM + sum(array.nbytes for array in arrays.values())

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self._calls_left -= 1
        if self._calls_left < 0:
            raise _TooLargeError("the network has more layers than there are weights")
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.numel() * result.element_size() > self._room:
            raise _TooLargeError(f"a tensor of shape {tuple(result.shape)} is larger than all weights together")
        return result
