"""How an image becomes a batch: decoding, resizing, augmentation, normalisation."""

import io
import random
import signal
import subprocess
import sys
import threading
import time

import joblib
import numpy as np
import pytest
import torch
from PIL import Image
from skorch.callbacks import Callback

from skve._inputs import image_pipeline
from skve._inputs.image_augmentation import augment
from skve._inputs.image_pipeline import ImagePipeline
from skve._inputs.images import ImageSequence, check_images
from skve._runtime import device as device_module
from tests.toys import image_files, same_arrays, toy_classifier, toy_images

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


@pytest.fixture
def files(images, tmp_path):
    """The paths of 24 images, and their labels."""
    return image_files(images[0], tmp_path), images[1]


@pytest.fixture
def use_threads(monkeypatch):
    """Return a function that sets the number of reading threads."""
    return lambda n: monkeypatch.setattr(image_pipeline, "reader_threads", lambda device: n)


@pytest.fixture
def readers(monkeypatch):
    """The list of threads that have read an image, by name."""
    names, original = [], ImageSequence.__getitem__

    def read(self, index):
        names.append(threading.current_thread().name)
        return original(self, index)

    monkeypatch.setattr(ImageSequence, "__getitem__", read)
    return names


def living_readers():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("skve-reader")]


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("n_threads", [0, 1, 4])
def test__load_each__any_number_of_threads__what_load_returns(files, use_threads, n_threads, keep):
    use_threads(n_threads)
    paths = files[0]
    mixed = [*paths[:20], np.asarray(Image.open(paths[20])), *(Image.open(path) for path in paths[21:])]
    pipeline, plain = pipeline_of(mixed, keep=keep), pipeline_of(mixed)
    for seed in range(3):
        batches = pipeline.batches(7, torch.Generator().manual_seed(seed))
        got = list(pipeline.load_each(batches, 2))
        assert [len(batch) for batch in got] == [7, 7, 7, 3]
        assert all(torch.equal(one, plain.load(batch)) for one, batch in zip(got, batches, strict=True))


def test__fit_and_predict__with_and_without_threads__same_bits(files, use_threads, readers):
    fits = []
    for n_threads in (0, 3):
        use_threads(n_threads)
        readers.clear()
        fits.append(toy_classifier(early_stopping=True, augment="light", batch_size=5).fit(*files))
        fits[-1].proba = fits[-1].predict_proba(files[0])
        assert any(name.startswith("skve-reader") for name in readers) == (n_threads > 0)
    assert same_arrays(*fits)
    assert np.array_equal(fits[0].proba, fits[1].proba)


def wait_for(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to that")


def test__load_each__consumer_computes__the_next_batches_and_no_more_are_read(files, use_threads, readers):
    use_threads(1)
    reading = pipeline_of(files[0]).load_each([np.arange(i, i + 4) for i in range(0, 24, 4)], 2)
    next(reading)
    wait_for(lambda: len(readers) == 12)
    assert set(readers[4:]) == {"skve-reader_0"}
    next(reading)
    wait_for(lambda: len(readers) == 16)
    time.sleep(0.05)
    assert len(readers) == 16
    reading.close()
    assert living_readers() == []


def test__load_each__arrays_or_kept_images__no_thread(images, files, use_threads):
    use_threads(2)
    for pipeline in (pipeline_of(images[0]), pipeline_of(files[0], keep=True)):
        if pipeline._keep:
            pipeline.load(np.arange(24))
        reading = pipeline.load_each([np.arange(4), np.arange(4, 8)], 1)
        next(reading)
        assert living_readers() == []
        reading.close()


@pytest.mark.parametrize("n_threads", [0, 1, 4])
@pytest.mark.parametrize("broken", [[0], [11], [23], [9, 8, 10], [23, 5]])
def test__fit_and_predict__broken_files__named_error_of_the_first_and_no_thread_left(
    files, use_threads, broken, n_threads
):
    use_threads(n_threads)
    paths, y = files
    classifier = toy_classifier(max_epochs=1, batch_size=6).fit(paths, y)
    for index in broken:
        paths[index].write_bytes(b"this is no image")
    message = rf"X\[{min(broken)}\] = '.*/{min(broken)}\.png' must be an image file"
    with pytest.raises(ValueError, match=message) as predicting:
        classifier.predict(paths)
    with pytest.raises(ValueError, match=message) as fitting:  # the novelty's features read X in its order
        toy_classifier(max_epochs=1, batch_size=6).fit(paths, y)
    assert predicting.value is not fitting.value
    assert living_readers() == []


class Raises(Callback):
    def __init__(self, error):
        self.error = error

    def on_batch_end(self, net, training=False, **kwargs):
        if training:
            raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("from a callback")])
def test__fit__stopped_while_threads_read__no_thread_left(files, use_threads, error):
    use_threads(2)
    with pytest.raises(type(error)) as caught:  # which keeps the frames, and what they hold, alive
        toy_classifier(callbacks=[Raises(error)], batch_size=4, early_stopping=True).fit(*files)
    assert caught.value is error
    assert living_readers() == []


class CountsReaders(Callback):
    def __init__(self):
        self.most = 0

    def on_batch_end(self, net, training=False, **kwargs):
        self.most = max(self.most, len(living_readers()))


def test__fit__orders_of_their_own__one_pool_for_all_members_and_the_bits_of_no_thread(files, use_threads):
    options = {"ensemble_params": {"order": "own"}, "n_members": 4, "batch_size": 4, "augment": "light"}
    fits = []
    for n_threads in (0, 2):
        use_threads(n_threads)
        counts = CountsReaders()
        fits.append(toy_classifier(callbacks=[counts], **options).fit(*files))
        assert counts.most == n_threads
    assert living_readers() == []
    assert same_arrays(*fits)


def test__fit__orders_of_their_own_stopped_while_threads_read__no_thread_left(files, use_threads):
    use_threads(2)
    with pytest.raises(RuntimeError, match="stop") as caught:  # which keeps the frames, and what they hold, alive
        toy_classifier(callbacks=[Raises(RuntimeError("stop"))], batch_size=4, ensemble_params={"order": "own"}).fit(
            *files
        )
    assert caught.value.__traceback__ is not None
    assert living_readers() == []


def test__fit_and_predict__done__no_thread_left(files, use_threads):
    before = set(threading.enumerate())
    use_threads(2)
    toy_classifier(early_stopping=True, calibrate="temperature").fit(*files).predict(files[0])
    assert living_readers() == []
    assert {thread.name for thread in set(threading.enumerate()) - before} == set()


SLOW = """
import sys, time
from skve._inputs import image_pipeline, images
from tests.toys import toy_classifier
image_pipeline.reader_threads = lambda device: 2
original = images.ImageSequence.__getitem__
def read(self, index):
    if index == 5:
        print("reading", flush=True)
    time.sleep(0.05)
    return original(self, index)
images.ImageSequence.__getitem__ = read
toy_classifier(batch_size=2, max_epochs=100).fit(sys.argv[1:], [0, 1] * 12)
"""


def test__fit__ctrl_c_while_threads_read__ends_with_keyboard_interrupt(files):
    command = [sys.executable, "-c", SLOW, *map(str, files[0])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "reading\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert errors.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.parametrize("n_cores", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("n_torch", [1, 2, 5, 64])
def test__reader_threads__any_machine__with_torchs_threads_no_more_than_cores(monkeypatch, n_cores, n_torch):
    monkeypatch.setattr(joblib, "cpu_count", lambda: n_cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_torch)
    n_threads = device_module.reader_threads(torch.device("cpu"))
    assert n_threads * n_torch <= n_cores
    assert (n_threads + 1) * n_torch > n_cores
    assert device_module.reader_threads(torch.device("cuda")) == n_cores  # torch's threads wait for the GPU


def cpu_readers():
    return device_module.reader_threads(torch.device("cuda"))


@pytest.mark.parametrize("backend", [pytest.param("loky", marks=pytest.mark.slow), "threading", "multiprocessing"])
def test__reader_threads__in_a_worker_of_joblib__none(backend):
    assert cpu_readers() > 0
    assert joblib.Parallel(2, backend=backend)(joblib.delayed(cpu_readers)() for _ in range(3)) == [0, 0, 0]


def test__reader_threads__in_another_thread__none():
    found = []
    thread = threading.Thread(target=lambda: found.append(cpu_readers()))
    thread.start()
    thread.join()
    assert found == [0]
