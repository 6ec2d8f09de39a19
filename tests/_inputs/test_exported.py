"""The preparation of images inside a graph, against the estimator's own."""

import numpy as np
import pytest
import torch
from PIL import Image

from skve._inputs.exported import ImagePreparation, exported_images
from skve._inputs.image_pipeline import ImagePipeline
from skve._inputs.images import check_images

PREPROCESS = {
    "input_size": [3, 24, 24],
    "interpolation": "bicubic",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "crop_pct": 0.875,
    "crop_mode": "center",
}
LEVEL = 1 / 255 / 0.224  # of one pixel, after the normalisation


def pictures(height, width, channels=3):
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    noisy = np.asarray(smooth, float) + rng.normal(0, 20, (height, width, 3))
    return noisy.clip(0, 255).astype(np.uint8)[None, ..., :channels]


@pytest.mark.parametrize("size", [(24, 24), (27, 27), (16, 16), (90, 61), (40, 133)])
@pytest.mark.parametrize(
    "changes",
    [{}, {"interpolation": "bilinear"}, {"crop_mode": "squash"}, {"crop_pct": 1.0}],
    ids=["bicubic", "bilinear", "squash", "whole"],
)
def test__image_preparation__any_size__pixels_of_the_pipeline(size, changes):
    preprocess = {**PREPROCESS, **changes}
    images = pictures(*size)
    pipeline = ImagePipeline(check_images(images), preprocess, torch.device("cpu"))
    expected = pipeline.prepare(pipeline.load(np.arange(1)), None)
    found = ImagePreparation(preprocess, resize=True)(torch.tensor(images))
    assert found.shape == expected.shape
    difference = (found - expected).abs()
    assert difference.max() < 1.01 * LEVEL
    assert (difference > 0.5 * LEVEL).float().mean() < 0.08


def test__image_preparation__without_resize__normalises_alone():
    images = pictures(24, 24)
    found = ImagePreparation(PREPROCESS, resize=False)(torch.tensor(images))
    mean, std = np.array(PREPROCESS["mean"]), np.array(PREPROCESS["std"])
    expected = ((images / 255 - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interpolation": "lanczos"}, "interpolation .* got 'lanczos'"),
        ({"crop_mode": "border"}, "crop_mode .* got 'border'"),
        ({"crop_pct": 1.5}, "crop_pct=1.5"),
        ({"input_size": [3, 24, 32]}, "24 x 32 pixels"),
    ],
)
def test__exported_images__resize_that_a_graph_cannot_do__says_what_works(changes, message):
    preprocess = {**PREPROCESS, **changes}
    with pytest.raises(ValueError, match=rf"^resize must be False where .*{message}"):
        exported_images(preprocess, resize=True)
    assert exported_images(preprocess, resize=False).settings["preprocess"]["inside_graph"] == [
        "scaling to 0..1",
        "normalisation",
    ]
