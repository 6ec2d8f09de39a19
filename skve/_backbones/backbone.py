"""From what a user passes as `backbone` to a frozen module with its preprocessing, kept in a process cache."""

import copy
import dataclasses
import functools
import hashlib
import sys
import types
from collections.abc import Callable, Mapping

import torch
from torch import nn

from skve._backbones import decomposition, decomposition_folder, layer_selection, quantized
from skve._backbones.cache import cached
from skve._backbones.kept_features import KeptFeatures
from skve._backbones.split import copy_on, split
from skve._runtime.locks import new_lock
from skve.exceptions import BackboneError

FEW_CHANNELS = 16  # below which convolutions take another path in oneDNN; from 16 on none was found to fail


class FrozenModule:
    """A frozen module with what is computed from it at most once in a process.

    Parameters
    ----------
    module : torch.nn.Module
        In evaluation mode, in float32, without gradients; never changed afterwards. Linear layers may be
        `QuantizedLinear`.

    Attributes
    ----------
    devices : tuple of torch.device
        Of the weights, in the order of the layers; the CPU where there are none.
    """

    def __init__(self, module):
        self.module = module
        self.devices = tuple(dict.fromkeys(tensor.device for tensor in _tensors(module))) or (torch.device("cpu"),)
        self._factors: dict[tuple[str, str], decomposition.Factors] = {}
        self._fingerprints: dict[tuple[str, str], float] = {}
        self._copies: dict[tuple[torch.device, ...], FrozenModule] = {}
        self.kept_features = KeptFeatures()
        self._lock = new_lock()

    @property
    def device(self):
        """The device of inputs and features: that of the first layers."""
        return self.devices[0]

    def where(self, name):
        """Return the device of a layer, a parameter or a buffer, by its name; "" is the whole module."""
        if len(self.devices) == 1 or not name:
            return self.device
        state = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        return next(tensor.device for own, tensor in state.items() if f"{own}.".startswith(f"{name}."))

    def weight(self, site):
        """Return the weight of a site: a parameter, or a `QuantizedWeight`."""
        layer = self.module.get_submodule(site.layer)
        is_quantized = isinstance(layer, quantized.QuantizedLinear)
        return layer.weight if is_quantized else self.module.get_parameter(site.parameter)

    def factors(self, site, basis):
        """Return the decomposition of one weight, or its factors in a random basis.

        Of a quantised weight, they are the leading ones of `quantized.n_directions`, with vectors in bfloat16: all of
        them in float32 would take many times the memory of the weight.
        """
        with self._lock:
            key = (site.layer, basis)
            if key not in self._factors:
                weight = self.weight(site)
                if isinstance(weight, quantized.QuantizedWeight):
                    k = quantized.n_directions(weight.shape)
                    factors = _decomposed(weight.dequantized(), site, basis).chosen(k).to(torch.bfloat16)
                else:
                    factors = _decomposed(weight, site, basis, lambda: self.factors(site, "singular"))
                self._factors[key] = factors.to(weight.device)
            return self._factors[key]

    def fingerprint(self, site, basis):
        """Return the fingerprint of one weight's factors, see `decomposition.fingerprint`."""
        with self._lock:
            key = (site.layer, basis)
            if key not in self._fingerprints:
                self._fingerprints[key] = decomposition.fingerprint(self.factors(site, basis).to("cpu"))
            return self._fingerprints[key]

    def on(self, *devices):
        """Return this module where it lies on the devices, else its one copy there, with factors of its own.

        Several devices share out its blocks, see `split`.
        """
        devices = tuple(_numbered(torch.device(device)) for device in devices)
        if devices == tuple(map(_numbered, self.devices)) or not _tensors(self.module):
            return self
        with self._lock:
            if devices not in self._copies:
                if len(devices) == 1:
                    copied = copy.deepcopy(self.module).to(devices[0])
                else:
                    copied = split(self.module, devices)
                self._copies[devices] = FrozenModule(copied)
            return self._copies[devices]

    def dequantized(self):
        """Return this module with float weights in place of quantised ones, and with the same factors."""
        if not any(isinstance(part, quantized.QuantizedLinear) for part in self.module.modules()):
            return self
        wide = FrozenModule(quantized.dequantize(copy.deepcopy(self.module)))
        wide.factors = lambda site, basis: self.factors(site, basis).to(torch.float32)  # type: ignore[method-assign]
        return wide

    @property
    def nbytes(self):
        """Memory of the weights, the decompositions, the kept features and the copies on other devices, in bytes."""
        parts = [*_tensors(self.module), *self._factors.values(), *self._copies.values(), self.kept_features]
        return sum(part.nbytes for part in parts)


def _decomposed(weight, site, basis, singular=None):
    """Return the factors of a weight; `singular()` returns its decomposition where that may be kept."""
    if basis == "singular":
        return decomposition_folder.decompose_once(weight, site.kind)
    whole = decomposition_folder.decompose_once(weight, site.kind) if singular is None else singular()
    return decomposition.random_basis(weight, site.kind, site.layer, whole.Vt)


def _tensors(module):
    return [*module.parameters(), *module.buffers()]


def _numbered(device):
    """Return a device with its number, so that "cuda" and "cuda:0" compare equal where they are the same."""
    if device.type == "cpu":
        return torch.device("cpu")
    if device.index is None:
        return torch.device(device.type, torch.cuda.current_device() if device.type == "cuda" else 0)
    return device


@dataclasses.dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen pretrained module and how it is read; `dataclasses.replace` gives another reading of the same module.

    Attributes
    ----------
    frozen : FrozenModule
        Shared by all readings, with its decompositions and its copies on devices.
    description : dict
        Plain values that identify the backbone: "kind", "name", "architecture", "sha256" of the weights.
    preprocess : dict
        Plain values that turn an input into what the module expects (for images timm's data configuration).
    features : callable
        `features(module, inputs)` returns a tensor of shape (n_samples, n_features).
    head_start : tuple of (Tensor of shape (n_classes, n_read), Tensor of shape (n_classes,)), or None
        Where members' heads start; None draws them at random.
    """

    frozen: FrozenModule
    description: dict
    preprocess: dict
    features: Callable
    head_start: tuple | None = None

    @property
    def module(self):
        """The module itself, in evaluation mode and without gradients."""
        return self.frozen.module

    @property
    def device(self):
        """The device of inputs and features: that of the first layers."""
        return self.frozen.device

    def weight(self, site):
        """Return the weight of a site: a parameter, or a `QuantizedWeight`."""
        return self.frozen.weight(site)

    def factors(self, site, basis="singular"):
        """Return the decomposition of one weight, or its factors in a random basis; computed once in a process.

        Those of a quantised weight are as many as `quantized.n_directions` allows.
        """
        return self.frozen.factors(site, basis)

    def fingerprint(self, site, basis="singular"):
        """Return the fingerprint of one weight's factors, see `decomposition.fingerprint`."""
        return self.frozen.fingerprint(site, basis)

    def on(self, *devices):
        """Return this backbone with its module on the devices, copied there at most once in a process."""
        return dataclasses.replace(self, frozen=self.frozen.on(*devices))

    def dequantized(self):
        """Return this backbone with float weights in place of quantised ones, for members that were fitted on it."""
        return dataclasses.replace(self, frozen=self.frozen.dequantized())

    @property
    def n_read(self):
        """How many of the features, from the first on, members' heads read; None for all."""
        return getattr(self.features, "n_choices", None)

    @property
    def reading(self):
        """What the features of an item depend on besides the module and the item, hashable."""
        return (self.features, repr(sorted(self.preprocess.items())))

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
        """Memory of all that the backbone keeps, in bytes."""
        return self.frozen.nbytes


def weights_hash(module):
    """Return the SHA-256 of a module's parameters and buffers: names, types, shapes and bytes."""
    return tensors_hash(module.state_dict())


def tensors_hash(tensors):
    """Return the SHA-256 of a dict of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name}:{values.dtype}:{tuple(values.shape)};".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def quantized_as(module, dtype):
    """Return a module, whose linear layers are quantised in place where a dtype of the frozen weights asks for it."""
    if dtype in quantized.BITS:
        quantized.quantize(module, layer_selection.find_sites(module)[0], dtype)
    return module


def freeze(module, description, preprocess, features, *, dtype="float32", state=None):
    """Make a `Backbone` of a module that nobody else holds.

    Parameters
    ----------
    module : torch.nn.Module
    description, preprocess, features
        See `Backbone`; the SHA-256 and, of quantised weights, `float_layers` are added to the description.
    dtype : str, default="float32"
        "int8" and "int4" quantise the weights of linear layers; others are of no concern here.
    state : dict of str to torch.Tensor, default=None
        What `module` as it will be loads. None keeps its weights.
    """
    module = quantized_as(module.eval().requires_grad_(False), dtype)
    if dtype in quantized.BITS:
        description = {**description, "float_layers": quantized.float_layers(module)}
    if state is not None:
        module.load_state_dict(state)
    module = laid_out(module)
    description = {**description, "sha256": weights_hash(module)}
    return Backbone(FrozenModule(module), description, preprocess, features)


def laid_out(module):
    """Return a module in evaluation mode, without gradients, its weights laid out for speed; nobody else holds it."""
    module = module.eval().requires_grad_(False)
    if any(isinstance(part, nn.Conv2d) for part in module.modules()):
        for tensor in _tensors(module):
            if tensor.dim() == 4:  # two to four times faster on CPUs; three-dimensional convolutions have five
                tensor.data = tensor.data.to(memory_format=torch.channels_last)
        for part in module.modules():
            if _overwrites_memory(part):
                part.register_forward_pre_hook(_Subsample(part.stride))
                part.stride = (1, 1)
    return module


def _overwrites_memory(part):
    """Say whether the backward pass of a convolution in channels-last layout writes where it must not.

    That of torch 2.14 on CPUs does where kernels of one pixel leave out pixels of few channels, such as
    `Conv2d(3, 48, kernel_size=1, stride=2)`: it ends in a segmentation fault, or worse, goes on.
    """
    return (
        isinstance(part, nn.Conv2d)
        and part.kernel_size == (1, 1)
        and part.stride != (1, 1)
        and part.padding in ((0, 0), "valid")
        and part.in_channels < FEW_CHANNELS
    )


class _Subsample:
    """A hook that leaves out the pixels which a convolution of one pixel with a stride does not read."""

    def __init__(self, stride):
        self.stride = stride

    def __call__(self, module, args):
        vertical, horizontal = self.stride
        return (args[0][:, :, ::vertical, ::horizontal], *args[1:])


def from_module(module, features, preprocess, options=(), dtype="float32"):
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
    dtype : str, default="float32"
        Of the frozen weights.
    """
    key = ("module", features.__qualname__, options, dtype, module_key(module))

    def build():
        own = own_copy(module).float()
        description = {"kind": "module", "name": type(module).__qualname__, "architecture": None}
        return freeze(own, description, preprocess(own), features, dtype=dtype)

    return cached(key, build)


def own_copy(module):
    """Return a copy of a user's module; one that lies on several devices comes whole to the CPU.

    accelerate, which spreads models over devices (`device_map`), leaves hooks on them: the copy is without.
    """
    if len({tensor.device for tensor in _tensors(module)}) > 1:
        copied = copy_on(module, {name: torch.device("cpu") for name, _ in module.named_modules()})
    else:
        copied = copy.deepcopy(module)
    if any(hasattr(part, "_hf_hook") for part in copied.modules()):
        from accelerate.hooks import remove_hook_from_module

        copied = remove_hook_from_module(copied, recurse=True)
    return copied


def module_key(module):
    """Return what distinguishes modules and is the same for copies: classes, plain attributes and weights.

    A module with an attribute that cannot be compared (a lambda, a hook, an object of its own kind) is compared
    by identity, and shares its entry of the cache with nobody.
    """
    if any(tensor.device.type == "meta" for tensor in _tensors(module)):
        raise BackboneError(
            f"backbone must have all its weights in memory, got a {type(module).__name__} with weights on the device "
            f"'meta', as device_map leaves them that offloads to disk or CPU. Load it without device_map; "
            f"device=['cuda:0', 'cuda:1'] splits it."
        )
    try:
        parts = tuple((name, type(part), _hashable(vars(part))) for name, part in module.named_modules())
        parts += tuple(name for name, _ in module.named_parameters())  # a tied weight is listed once
    except _NotComparableError:
        return (module, weights_hash(module))
    return (parts, weights_hash(module))


class _NotComparableError(Exception):
    pass


def _hashable(value):
    """Return a hashable stand-in for an attribute's value."""
    if isinstance(value, nn.Module | nn.Parameter):
        return None  # listed by `named_modules` and hashed with the weights
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()  # any dtype as bytes
        return (str(value.dtype), tuple(value.shape), hashlib.sha256(data.tobytes()).digest())
    if value is None or isinstance(value, bool | int | float | str | bytes | torch.dtype | torch.device | type):
        return value
    if isinstance(value, functools.partial):
        return (_hashable(value.func), _hashable(value.args), _hashable(value.keywords))
    if hasattr(value, "to_json_string"):  # a configuration of transformers
        return (type(value), value.to_json_string())
    if isinstance(value, Mapping):
        return tuple((_hashable(k), _hashable(v)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return tuple(_hashable(v) for v in value)
    if isinstance(value, set | frozenset):
        return frozenset(_hashable(v) for v in value)
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType) and "<" not in value.__qualname__:
        return value
    raise _NotComparableError


def eager(module):
    """Return a user's module without the wrapper of `torch.compile`; raise BackboneError if parts are compiled code.

    Members need the modules themselves: their weights are replaced.
    """
    module = getattr(module, "_orig_mod", module)
    for name, part in module.named_modules():
        kind = "scripted" if isinstance(part, torch.jit.ScriptModule) else "compiled"
        if kind == "scripted" or hasattr(part, "_orig_mod"):
            what = f"a {kind} part {name!r}" if name else f"a {kind} module"
            raise BackboneError(
                f"backbone must be a plain torch.nn.Module, got {what}. Pass the module that it was made from."
            )
    return module


def model_of_transformers(module):
    """Return the outermost model of transformers in a module, itself included, or None."""
    models = sys.modules.get("transformers.modeling_utils")  # else nobody has made one
    if models is None or not isinstance(module, nn.Module):
        return None
    return next((part for part in module.modules() if isinstance(part, models.PreTrainedModel)), None)


def without_wrapper(module):
    """Return the model of transformers that a wrapper such as PEFT's holds, with the adapted weights."""
    prompts = [config for config in getattr(module, "peft_config", {}).values() if config.is_prompt_learning]
    if prompts:
        raise BackboneError(
            f"backbone must be a model whose own weights can be adapted, got one with {type(prompts[0]).__name__}, "
            f"which adds prompts before the inputs. Use another method of PEFT, such as LoRA."
        )
    return model_of_transformers(module)


def without_heads(module, returned):
    """Return the body of a model of transformers with a head on top, however deep a wrapper holds it.

    Parameters
    ----------
    module : torch.nn.Module
    returned : callable
        `returned(module)` gives the output for some input.

    Returns
    -------
    torch.nn.Module
        `module` itself where it is of another kind, or a wrapper that does not return logits.
    """
    model = model_of_transformers(module)
    if model is None or (model is not module and not _is_of_head(returned(module))):
        return module
    return without_wrapper(module).base_model


def _is_of_head(output):
    """Say whether a model's output has the logits of a head and no hidden state to read features from."""
    names = output.keys() if isinstance(output, Mapping) else ()
    return "last_hidden_state" not in names and any("logits" in name for name in names)


def check_output(output, dims, required):
    """Return the features in what a module returned, a tensor with a number of dimensions that is among `dims`.

    Of a model of transformers these are its last hidden state; the logits of a head are none.
    """
    if _is_of_head(output):
        raise BackboneError(
            "backbone must return features, got a model that returns the logits of its head. Pass the model without "
            "the head, as AutoModel loads it."
        )
    if isinstance(output, Mapping):
        output = output.get("last_hidden_state", output)
    if not isinstance(output, torch.Tensor) or output.dim() not in dims:
        what = f"shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else type(output).__name__
        raise BackboneError(f"backbone must return {required}, got {what}.")
    return output
