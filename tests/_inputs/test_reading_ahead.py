"""Files are read by threads while the network computes: the same bits, the same errors, and no thread is left."""

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
from skve._inputs.image_pipeline import ImagePipeline
from skve._inputs.images import ImageSequence, check_images
from skve._runtime import device as device_module
from tests._inputs.test_image_pipeline import PREPROCESS
from tests.toys import image_files, same_arrays, toy_classifier


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


def pipeline_of(X, **options):
    return ImagePipeline(check_images(X), PREPROCESS, torch.device("cpu"), **options)


# ------------------------------------------------------------------------------------------- same bits


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


# --------------------------------------------------------------------------------------------- errors


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


# ------------------------------------------------------------------------------------ number of threads


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
