"""What an exported graph takes: images or tokens, and the part of their preparation that is inside the graph."""

import dataclasses
import json
from typing import Any

import torch
from torch import nn

from skve._inputs.tokenization import pad_token

LENGTH = 6  # tokens of the example; the axis is open
_BATCH = "n_samples"


@dataclasses.dataclass(frozen=True)
class ExportedInputs:
    """What a graph takes, of one kind of inputs.

    Attributes
    ----------
    example : torch.Tensor, or dict of str to torch.Tensor
        Two samples.
    open_axes : dict of str to dict of int to str
        For each input by name, the axes of any length, with their names.
    described : dict of str to str
        What each input is.
    settings : dict
        What a program has to know to prepare them.
    prepare : torch.nn.Module, default=None
        What the graph does with them before the network; None hands them over as they are.
    """

    example: Any
    open_axes: dict[str, dict[int, str]]
    described: dict[str, str]
    settings: dict
    prepare: nn.Module | None = None


# ---------------------------------------------------------------------------------------------- images


def exported_images(preprocess, *, resize):
    """Return what a graph of images takes: uint8 pixels of any size, or of the network's with `resize=False`.

    Raises
    ------
    ValueError
        If resizing is of a kind that the graph cannot do.
    """
    channels, height, width = preprocess["input_size"]
    inside = ["scaling to 0..1", "normalisation"]
    shape, axes = f"{height}, {width}", {0: _BATCH}
    if resize:
        inside = ["resizing", "cropping", *inside]
        shape, axes = "height, width", {0: _BATCH, 1: "height", 2: "width"}
        _check_resize(preprocess)
        height, width = height + 3, width + 5
    return ExportedInputs(
        example=torch.zeros(2, height, width, channels, dtype=torch.uint8),
        open_axes={"images": axes},
        described={"images": f"uint8, ({_BATCH}, {shape}, {channels}): pixels, {'grey' if channels == 1 else 'RGB'}"},
        settings={"preprocess": {**preprocess, "inside_graph": inside}},
        prepare=ImagePreparation(preprocess, resize=resize),
    )


def _check_resize(preprocess):
    _, height, width = preprocess["input_size"]
    mode, interpolation, cropped = (preprocess[name] for name in ("crop_mode", "interpolation", "crop_pct"))
    for name, value, known in (("interpolation", interpolation, list(_FILTERS)), ("crop_mode", mode, list(_MODES))):
        if value not in known:
            raise ValueError(
                f"resize must be False where {name} of the backbone's images is none of {known}, got {value!r}. "
                f"Resize and crop them before, as the JSON file says."
            )
    if cropped > 1 or (mode == "center" and height != width):
        raise ValueError(
            f"resize must be False where images are padded or cut to a side ratio of their own, got "
            f"crop_pct={cropped} for {height} x {width} pixels. Resize and crop them before, as the JSON file says."
        )


class ImagePreparation(nn.Module):
    """Turns pixels (n, height, width, channels) into the network's input, as `ImagePipeline` does.

    Images are resized as Pillow does it, one axis after the other with rounding between: each is a product with a
    matrix of weights, which the graph builds for the size that comes. Pixels differ from Pillow's by at most one of
    255 levels, and in few places.
    """

    def __init__(self, preprocess, *, resize):
        super().__init__()
        self.resize, self.squashes = resize, preprocess["crop_mode"] == "squash"
        self.sides = preprocess["input_size"][1:]
        self.resized = [int(side / preprocess["crop_pct"]) for side in self.sides]
        self.filter: Any = _FILTERS.get(preprocess["interpolation"])
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(preprocess[name]).reshape(1, -1, 1, 1))

    def forward(self, images):
        pixels = images.permute(0, 3, 1, 2).float()
        if self.resize:
            vertical, horizontal = self._matrices(pixels)
            pixels = _levels(vertical @ _levels(pixels @ horizontal.T))
        return (pixels / 255 - self.mean) / self.std

    def _matrices(self, pixels):
        """Return the weights (side, height) and (side, width) of both axes."""
        places = [torch.arange(pixels.shape[axis], dtype=torch.float32) for axis in (2, 3)]
        lengths = [axis[-1] + 1 for axis in places]
        if self.squashes:
            resized = [torch.tensor(float(side)) for side in self.resized]
        else:
            shorter = torch.minimum(*lengths)
            resized = [torch.floor(self.resized[0] * length.double() / shorter) for length in lengths]
        return [self._matrix(*axis) for axis in zip(places, lengths, resized, self.sides, strict=True)]

    def _matrix(self, places, length, resized, side):
        """Return the weights (side, length) by which the pixels of one axis enter those of the input."""
        first = torch.round((resized - side) / 2)  # half to even, as torchvision crops
        scale = (length / resized).float()
        centers = (torch.arange(side, dtype=torch.float32) + first.float() + 0.5) * scale
        weights = self.filter((places + 0.5 - centers[:, None]) / torch.clamp(scale, min=1))
        return weights / weights.sum(1, keepdim=True)


def _levels(pixels):
    return torch.clamp(torch.floor(pixels + 0.5), 0, 255)


def _triangle(x):
    return torch.clamp(1 - x.abs(), min=0)


def _cubic(x, a=-0.5):
    """Return the weights of Keys' cubic convolution, with the parameter that Pillow takes."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


_FILTERS: dict[str, Any] = {"bilinear": _triangle, "bicubic": _cubic}
_MODES = ("center", "squash")


# ----------------------------------------------------------------------------------------------- texts


def exported_texts(backbone, n_classes):
    """Return what a graph of texts takes: tokens, padded on the right.

    Parameters
    ----------
    backbone : TextBackbone
    n_classes : int
    """
    tokenizer, preprocess = backbone.tokenizer, backbone.preprocess
    names = ["input_ids", "attention_mask"]
    listed = () if backbone.n_read is None else (n_classes,)
    types = "token_type_ids"
    if not listed and types in backbone.features.arguments and types in tokenizer.model_input_names:
        names.append(types)
    example = {name: torch.ones(2, *listed, LENGTH, dtype=torch.int64) for name in names}
    example["attention_mask"][1, ..., LENGTH - 2 :] = 0
    if preprocess["mask_token_id"] is not None:
        example["input_ids"][:, 1] = preprocess["mask_token_id"]
    axes = {name: {0: _BATCH, 1 + len(listed): "length"} for name in names}
    shape = "".join(f"{n}, " for n in listed)
    described = {name: f"int64, ({_BATCH}, {shape}length)" for name in names}
    if listed:
        example["scored"] = torch.tensor([2, 3]).repeat(2, n_classes, 1)
        axes["scored"] = {0: _BATCH, 2: "n_scored"}
        described["scored"] = (
            f"int64, ({_BATCH}, {shape}n_scored): places of each choice's tokens behind the prompt, and -1 behind "
            f"these; prompts with fewer choices repeat the first, of which nothing is scored"
        )
    if preprocess["choices"] is not None:
        example["impossible"] = torch.zeros(2, n_classes, dtype=torch.bool)
        axes["impossible"] = {0: _BATCH}
        described["impossible"] = f"bool, ({_BATCH}, {n_classes}): classes that a text does not list"
    kept = ("max_length", "truncation_side", "mask_token_id", "label_words", "choices", "pooling")
    settings = {
        "tokenizer": {
            **{name: preprocess[name] for name in kept},
            "padding_side": "right",
            "pad_token_id": pad_token(tokenizer),
            "equal_lengths_only": not backbone.ignores_padding,
            "definition": _definition(tokenizer),
        }
    }
    return ExportedInputs(example, axes, described, settings)


def _definition(tokenizer):
    """Return a fast tokenizer as the package tokenizers, in any language, reads it; None for slow ones."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else json.loads(backend.to_str())
