"""How an image becomes a batch: decoding, resizing, augmentation, normalisation."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from skve._inputs.image_augmentation import augment
from skve._inputs.image_pipeline import ImagePipeline
from skve._inputs.images import ImageSequence, check_images
from tests.toys import same_arrays, toy_classifier, toy_images

# ------------------------------------------------------------------------------------------ augmentation


def batch_of_images(n=6, side=20):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["light", "strong"])
def test__augment__kinds__other_images_of_the_same_shape_and_range(kind):
    images = batch_of_images()
    changed = augment(images, kind, torch.Generator().manual_seed(1))
    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert all(not torch.allclose(one, other) for one, other in zip(changed, images, strict=True))
    again = augment(images, kind, torch.Generator().manual_seed(1))
    assert torch.equal(again, changed)
    assert not torch.equal(augment(images, kind, torch.Generator().manual_seed(2)), changed)
    assert torch.equal(images, batch_of_images())  # the original stays


def test__augment__light__flips_about_half_and_moves_little():
    ramp = torch.linspace(0.2, 0.8, 40).expand(200, 3, 40, 40)  # brighter to the right
    changed = augment(ramp, "light", torch.Generator().manual_seed(0))
    rising = (changed[:, 0, 20, 30] > changed[:, 0, 20, 10]).float().mean()
    assert 0.4 < rising < 0.6
    middle = changed[:, 0, 20, 20]
    assert (middle - 0.5).abs().max() < 0.6 * 0.08  # at most six hundredths of the side
    assert middle.std() > 0.005


def test__augment__strong__colours_and_size_vary():
    grey = torch.full((100, 3, 8, 8), 0.5)
    brightness = augment(grey, "strong", torch.Generator().manual_seed(0)).mean((1, 2, 3))
    assert brightness.min() < 0.4
    assert brightness.max() > 0.6
    stripes = ((torch.arange(64) % 16) < 8).float().expand(100, 3, 64, 64)
    crossings = augment(stripes, "strong", torch.Generator().manual_seed(0))[:, 0, 32].diff(dim=-1).abs().sum(-1)
    assert crossings.std() > 0.5


def test__augment__callable__own_random_stream_and_global_one_untouched(images, global_state):
    seen = []

    def noisy(batch):
        assert (batch.min() >= 0) & (batch.max() <= 1)
        seen.append(torch.rand(1).item())
        return (batch + 0.05 * torch.randn(batch.shape)).clamp(0, 1)

    classifier = toy_classifier(augment=noisy, random_state=0)
    before = global_state()
    first = classifier.fit(*images)
    assert global_state() == before
    draws = list(seen)
    assert len(set(draws)) == len(draws) == 4
    torch.manual_seed(123)
    assert same_arrays(toy_classifier(augment=noisy, random_state=0).fit(*images), first)
    assert seen[4:] == draws
    assert not same_arrays(toy_classifier(augment=noisy, random_state=1).fit(*images), first)


def test__augment__callable_with_numpy_and_python_numbers__global_ones_untouched(images, global_state):
    def noisy(batch):
        return (batch + 0.1 * random.random() * np.random.rand()).clamp(0, 1)  # noqa: NPY002 - what users write

    classifier = toy_classifier(augment=noisy)
    before = global_state()
    first = classifier.fit(*images)
    assert global_state() == before
    assert same_arrays(toy_classifier(augment=noisy).fit(*images), first)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda batch: batch[:1], r"tensor of shape \(16, 3, 16, 16\), got \(1, 3, 16, 16\)"),
        (lambda batch: batch.numpy(), "ndarray"),
        (lambda batch: None, "NoneType"),
    ],
)
def test__augment__callable_that_returns_something_else__error_says_what_is_wanted(images, bad, message):
    with pytest.raises((TypeError, ValueError), match=rf"augment must return .*{message}"):
        toy_classifier(augment=bad).fit(*images)


def test__augment__none__prediction_and_validation_see_the_images_as_they_are(images):
    calls = []
    classifier = toy_classifier(augment=lambda batch: calls.append(len(batch)) or batch, early_stopping=True)
    classifier.fit(*images)
    n_training = len(calls)
    classifier.predict(images[0])
    assert len(calls) == n_training
    assert sum(calls) == 2 * (24 - 2)  # two epochs over all but the validation part


# --------------------------------------------------------------------------------------------- pipeline


PREPROCESS = {
    "input_size": [3, 16, 16],
    "interpolation": "bilinear",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.5, 0.25, 0.2],
    "crop_pct": 1.0,
    "crop_mode": "center",
}


def pipeline_of(images, **options):
    return ImagePipeline(check_images(images), PREPROCESS, torch.device("cpu"), **options)


def test__image_pipeline__image_of_the_right_size__only_normalised():
    images, _ = toy_images()
    pipeline = pipeline_of(images)
    got = pipeline.prepare(pipeline.load(np.arange(3)), None)
    mean, std = np.array(PREPROCESS["mean"]), np.array(PREPROCESS["std"])
    expected = np.moveaxis((images[:3] / 255 - mean) / std, -1, 1)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("side", [8, 16, 40])
def test__image_pipeline__any_size__brought_to_the_networks(side):
    images, _ = toy_images(side=side)
    assert pipeline_of(images).load(np.arange(2)).shape == (2, 3, 16, 16)
    assert pipeline_of(images).load(np.arange(2)).dtype == torch.uint8
    assert pipeline_of([images[0], images[1][: side // 2 + 1]]).load(np.arange(2)).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("keep", [True, False])
def test__image_pipeline__keep__decodes_once_or_each_time(keep, monkeypatch):
    decoded, original = [], ImageSequence.__getitem__
    monkeypatch.setattr(ImageSequence, "__getitem__", lambda self, i: decoded.append(i) or original(self, i))
    pipeline = pipeline_of(toy_images()[0], keep=keep)
    first, second = (pipeline.load(np.arange(4)) for _ in range(2))
    assert torch.equal(first, second)
    assert len(decoded) == (4 if keep else 8)


def test__image_pipeline__batches__all_indices_once():
    pipeline = pipeline_of(toy_images()[0])
    plain = list(pipeline.batches(7, None))
    assert [len(batch) for batch in plain] == [7, 7, 7, 3]
    assert np.concatenate(plain).tolist() == list(range(24))
    mixed = np.concatenate(list(pipeline.batches(7, torch.Generator().manual_seed(0))))
    assert sorted(mixed.tolist()) == list(range(24))
    assert mixed.tolist() != list(range(24))


NETWORK = {
    "input_size": [3, 224, 224], "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.875,
    "crop_mode": "center",
}  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 100_000), (60_000, 1), (2, 2_000)])
@pytest.mark.parametrize("kind", ["PNG", "array", "rows"])
def test__load__image_far_longer_than_wide__refused_before_it_is_resized(shape, kind):
    pixels = np.zeros(shape, np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    X, options = {
        "PNG": ([file.getvalue()], {}),
        "array": (pixels[None], {}),
        "rows": (pixels.reshape(1, -1), {"image_shape": shape}),
    }[kind]
    pipeline = ImagePipeline(check_images(X, **options), NETWORK, torch.device("cpu"))
    with pytest.raises(
        ValueError, match=rf"X\[0\] must have at most 16777216 pixels .*, got .* {shape[1]} x {shape[0]},"
    ):
        pipeline.load([0])


def test__load__panorama__read():
    pipeline = ImagePipeline(check_images(np.zeros((1, 20, 1000), np.uint8)), NETWORK, torch.device("cpu"))
    assert pipeline.load([0]).shape == (1, 3, 224, 224)


def test__image_pipeline__crop_pct_of_next_to_nothing__value_error():
    with pytest.raises(ValueError, match=r"crop_pct.* got 1e-09"):
        ImagePipeline(check_images(np.zeros((1, 8, 8), np.uint8)), {**NETWORK, "crop_pct": 1e-9}, torch.device("cpu"))
