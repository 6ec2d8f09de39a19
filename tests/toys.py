"""Small backbones and small data for the tests: every shape of architecture that matters, in milliseconds."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from skve import SVEClassifier
from skve._backbones import backbone as backbone_module
from skve._backbones import from_timm

SIDE = 16


def seeded(module, seed=0):
    """Draw a module's floating-point tensors anew from a seed, without touching torch's global generator."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not parameter.is_floating_point():
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
            is_norm_weight = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.1 * noise if is_norm_weight else noise * (0.1 if fan_in == 1 else fan_in**-0.5))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return module


class TinyMLP(nn.Module):
    """Two linear layers on the pixels: (n, 3, 16, 16) to (n, 12)."""

    def __init__(self, seed=0, side=SIDE):
        super().__init__()
        self.fc1 = nn.Linear(3 * side * side, 20)
        self.fc2 = nn.Linear(20, 12)
        seeded(self, seed)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


class TinyCNN(nn.Module):
    """A stem, a depthwise and a pointwise convolution with batch normalisation and in-place activations."""

    def __init__(self, seed=0):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.act1 = nn.ReLU(inplace=True)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.bn2 = nn.BatchNorm2d(8)
        self.pointwise = nn.Conv2d(8, 12, 1)
        self.dilated = nn.Conv2d(12, 10, 3, dilation=2, padding=1)
        seeded(self, seed)

    def forward(self, x):
        x = self.act1(self.bn1(self.stem(x)))
        x = torch.relu(self.bn2(self.depthwise(x)))
        return self.dilated(torch.relu(self.pointwise(x)))


class TinyBlock(nn.Module):
    def __init__(self, width, dropout=0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 2, dropout=dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class TinyTransformer(nn.Module):
    """Patches, two blocks with nn.MultiheadAttention: (n, 3, 16, 16) to (n, 16, 12)."""

    def __init__(self, seed=0, width=12, dropout=0.0):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 4, stride=4)
        self.blocks = nn.Sequential(TinyBlock(width, dropout), TinyBlock(width, dropout))
        self.norm = nn.LayerNorm(width)
        seeded(self, seed)

    def forward(self, x):
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2)
        return self.norm(self.blocks(tokens))


class TorchEncoder(nn.Module):
    """torch's own encoder layer, whose fast path reads its children's weights and does not call them."""

    def __init__(self, seed=0, width=12):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 4, stride=4)
        self.layer = nn.TransformerEncoderLayer(width, 2, 32, dropout=0.0, batch_first=True)
        seeded(self, seed)

    def forward(self, x):
        return self.layer(self.patch_embed(x).flatten(2).transpose(1, 2))


class ReadsWeight(nn.Module):
    """Reads a linear layer's weight and does not call the layer, as BEiT, EVA and SwinV2 of timm do."""

    def __init__(self, seed=0):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.lin = nn.Linear(48, 10)
        self.out = nn.Linear(10, 12)
        seeded(self, seed)

    def forward(self, x):
        return self.out(torch.tanh(F.linear(self.pool(x).flatten(1), self.lin.weight, self.lin.bias)))


class HuggingFaceStyle(nn.Module):
    """Two transposed linear layers as in GPT-2 of transformers."""

    def __init__(self, seed=0):
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.pool = nn.AdaptiveAvgPool2d(4)
        self.c_fc = Conv1D(20, 48)
        self.c_proj = Conv1D(12, 20)
        seeded(self, seed)

    def forward(self, x):
        return self.c_proj(torch.tanh(self.c_fc(self.pool(x).flatten(1))))


class Tied(nn.Module):
    """Two linear layers that share one weight, and a free one."""

    def __init__(self, seed=0):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.first = nn.Linear(12, 12)
        self.second = nn.Linear(12, 12)
        self.second.weight = self.first.weight
        self.free = nn.Linear(12, 9)
        seeded(self, seed)

    def forward(self, x):
        return self.free(torch.tanh(self.second(torch.tanh(self.first(self.pool(x).flatten(1))))))


class PlainTextModel(torch.nn.Module):
    """A text model of no family of transformers and without blocks; returns hidden states or a tuple with them."""

    def __init__(self, returns="tensor"):
        super().__init__()
        self.returns = returns
        self.embedding = torch.nn.Embedding(400, 8)
        self.layer = torch.nn.Linear(8, 8)

    def forward(self, input_ids, attention_mask):
        hidden = torch.tanh(self.layer(self.embedding(input_ids)))
        return (hidden, None) if self.returns == "tuple" else hidden


TOYS = [TinyMLP, TinyCNN, TinyTransformer, TorchEncoder, ReadsWeight, HuggingFaceStyle]


def make_backbone(module):
    """Freeze a module, which the caller gives away, without preprocessing and without the cache."""
    return backbone_module.freeze(module, {"kind": "module", "name": "toy", "architecture": None}, {}, _features)


def _features(module, images):
    return from_timm.image_features(module, images)


def toy_inputs(n=4, seed=0, dtype=torch.float32):
    return torch.randn(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def toy_images(per_class=8, n_classes=3, seed=0, side=SIDE):
    """Images of noise over a class's own colour; uint8 (n, side, side, 3) and labels in a fixed shuffled order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(n_classes), per_class))
    colours = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [200, 200, 60], [60, 200, 200]])[:n_classes]
    images = colours[labels][:, None, None, :] + rng.normal(0, 40, (len(labels), side, side, 3))
    return images.clip(0, 255).astype(np.uint8), labels


def toy_classifier(backbone=None, **parameters):
    """A classifier on a toy backbone that fits in a fraction of a second and repeats itself bit for bit."""
    settings = {
        "n_members": 2,
        "max_epochs": 2,
        "batch_size": 16,
        "image_size": SIDE,
        "augment": None,
        "head_weight_decay": 0.0,
        "precision": "float32",
        "device": "cpu",
        "random_state": 0,
        **parameters,
    }
    return SVEClassifier(TinyMLP() if backbone is None else backbone, **settings)


def same_arrays(one, other):
    """Say whether two fitted classifiers hold the same bits."""
    first, second = one._state.arrays, other._state.arrays
    return first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)


def arrays_of(classifier):
    """The members' tensors of a fitted classifier, as NumPy arrays (n_members, ...)."""
    return classifier._state.arrays


def assert_members_close(one, other, atol=2e-4):
    """Assert that two estimators have the same members to rounding."""
    assert arrays_of(one).keys() == arrays_of(other).keys()
    for key, value in arrays_of(one).items():
        np.testing.assert_allclose(arrays_of(other)[key], value, rtol=0, atol=atol, err_msg=key)


def pooled_nll(classifier, X, y):
    return -np.log(classifier.predict_proba(X)[np.arange(len(y)), np.searchsorted(classifier.classes_, y)]).mean()


def image_files(images, folder):
    """Write images as PNG files and return their paths."""
    paths = [folder / f"{index}.png" for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths
