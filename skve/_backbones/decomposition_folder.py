"""Decompositions that outlive the process, in a folder that an environment variable names."""

import contextlib
import hashlib
import os
import pathlib
import tempfile

import torch

from skve._backbones import decomposition
from skve._backbones.decomposition import Factors
from skve._runtime.warnings import warn

FOLDER = "SKVE_DECOMPOSITIONS"  # environment variable, which worker processes inherit
_VERSION = 1  # of what a file holds and of how it is computed


def decompose_once(weight, kind):
    """Return `decomposition.decompose(weight, kind)`, from the folder where a process has left it there.

    Files are named after the hash of the weight, so that any models and versions may share a folder, and contain the
    hash of their content: one that is damaged is computed and written again. Whatever is wrong with the folder costs
    time only.
    """
    folder = os.environ.get(FOLDER)
    if not folder:
        return decomposition.decompose(weight, kind)
    values = weight.detach().cpu().contiguous()
    name = _sha256({"weight": values}, f"{_VERSION} {kind} {values.dtype} {tuple(values.shape)}")
    path = pathlib.Path(folder).expanduser() / f"{name}.safetensors"
    factors = _read(path, decomposition.as_matrix(values, kind).shape)
    if factors is None:
        factors = decomposition.decompose(weight, kind)
        _write_factors(path, factors)
    return factors


def _sha256(tensors, description=""):
    digest = hashlib.sha256(description.encode())
    for tensor in tensors.values():
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path, shape):
    """Return the factors in a file for a matrix (d_out, d_in); None where there are none, or other ones."""
    from safetensors import SafetensorError, safe_open

    d_out, d_in = shape
    r = min(shape)
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in ("U", "sigma", "Vt")}
            said = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    found = [(tuple(tensor.shape), tensor.dtype) for tensor in tensors.values()]
    required = [((d_out, r), torch.float32), ((r,), torch.float32), ((r, d_in), torch.float32)]
    return Factors(**tensors) if found == required and said == _sha256(tensors) else None


def _write_factors(path, factors):
    from safetensors.torch import save_file

    tensors = {name: getattr(factors, name).contiguous() for name in ("U", "sigma", "Vt")}
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(".tmp", path.stem[:8], path.parent)
        os.close(handle)
        save_file(tensors, temporary, {"sha256": _sha256(tensors)})
        os.replace(temporary, path)  # whole or not at all, whoever else writes or reads
    except Exception as error:  # safetensors has an exception of its own for a full disk
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        warn(
            f"{FOLDER} must be a folder that can be written to, got {str(path.parent)!r}: {error}. Decompositions "
            f"are not kept."
        )
