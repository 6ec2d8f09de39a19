"""How long training and prediction wait for JPEG files, with threads that read ahead and without.

    python examples/benchmarks/decoding.py
    python examples/benchmarks/decoding.py --data flowers17_160px.npz

The files are 500 x 375 pixels: the images of an npz (see `_common.load_jpegs`), enlarged, or without one the bundled
clothes, enlarged and with the noise of a photograph, so that they take as long to decode.
EfficientNet-Lite0 at 128 pixels, four members. Waiting is the time in which the loop asks for a batch and has none;
decoded images are kept, so that the first epoch is the one that waits. Both ways run in turn; shares are medians.
"""

import argparse
import io
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np
import torch
from _common import load_jpegs, machine, require_idle
from PIL import Image
from skorch.callbacks import Callback

import skve
from skve import vision
from skve._runtime import device as device_module
from skve.datasets import load_fashion

SIZE = (500, 375)
QUALITY = 90


def images(data, n):
    """Return n PIL images of the size, and their labels."""
    if data is not None:
        found, labels, classes = load_jpegs(data, "train")
        chosen = np.random.default_rng(0).permutation(len(found))[:n]
        return [found[i].resize(SIZE) for i in chosen], classes[labels[chosen]]
    fashion, rng = load_fashion(), np.random.default_rng(0)
    enlarged = [Image.fromarray(image).convert("RGB").resize(SIZE) for image in fashion.images[:n]]
    noisy = [np.asarray(image) + rng.normal(0, 16, (SIZE[1], SIZE[0], 3)) for image in enlarged]
    return [Image.fromarray(np.uint8(image.clip(0, 255))) for image in noisy], fashion.target[:n]


def write(found, folder):
    paths = []
    for index, image in enumerate(found):
        paths.append(folder / f"{index}.jpg")
        image.save(paths[-1], quality=QUALITY)
    return paths


class Waiting:
    """Seconds that passed while the loop asked the pipeline for batches."""

    def __init__(self):
        self.seconds, self._load_each = 0.0, vision.ImagePipeline.load_each
        vision.ImagePipeline.load_each = lambda pipeline, *args: self._timed(self._load_each(pipeline, *args))

    def _timed(self, batches):
        try:
            while True:
                start = time.perf_counter()
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                finally:
                    self.seconds += time.perf_counter() - start
                yield batch
        finally:
            batches.close()


class Epochs(Callback):
    """The share of each epoch that was waiting, and the cores that it used."""

    def __init__(self, waiting):
        self.waiting, self.shares, self.seconds, self.cores = waiting, [], [], []

    def on_epoch_begin(self, net, **kwargs):
        self.start = time.perf_counter(), time.process_time(), self.waiting.seconds

    def on_epoch_end(self, net, **kwargs):
        wall = time.perf_counter() - self.start[0]
        self.seconds.append(wall)
        self.cores.append((time.process_time() - self.start[1]) / wall)
        self.shares.append((self.waiting.seconds - self.start[2]) / wall)


def fit(paths, labels, layers, waiting, epochs):
    seen = Epochs(waiting)
    clf = skve.SVEClassifier(image_size=128, layers=layers, max_epochs=epochs, random_state=0, callbacks=[seen])
    return clf.fit(paths, labels), seen


def measure(paths, labels, layers, rounds, epochs):
    """Print the waiting of both ways in training and in prediction."""
    waiting, results = Waiting(), {}
    ways = {"read ahead": device_module.reader_threads, "in turn": lambda device: 0}
    for repeat in range(rounds + 1):
        for name, threads in ways.items():
            vision.reader_threads = threads
            clf, seen = fit(paths, labels, layers, waiting, epochs)
            before, start = waiting.seconds, time.perf_counter()
            proba = clf.predict_proba(paths)
            wall = time.perf_counter() - start
            row = {
                "wait, epoch 1": seen.shares[0],
                "wait, later": statistics.mean(seen.shares[1:]),
                "seconds, epoch 1": seen.seconds[0],
                "seconds, later": statistics.mean(seen.seconds[1:]),
                "cores, epoch 1": seen.cores[0],
                "wait, predict": (waiting.seconds - before) / wall,
                "seconds, predict": wall,
            }
            if repeat > 0:  # the first round warms up
                results.setdefault(name, []).append((row, proba))
    vision.ImagePipeline.load_each, vision.reader_threads = waiting._load_each, device_module.reader_threads
    for name, rows in results.items():
        figures = {key: statistics.median(row[key] for row, _ in rows) for key in rows[0][0]}
        print(f"layers={layers!r}, {name}: " + ", ".join(f"{key} {value:.3f}" for key, value in figures.items()))
    same = all(np.array_equal(proba, results["in turn"][0][1]) for rows in results.values() for _, proba in rows)
    print(f"layers={layers!r}: predictions of all fits have the same bits: {same}")


def decode_alone(paths):
    start = time.perf_counter()
    for path in paths:
        Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    return (time.perf_counter() - start) / len(paths)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="npz with JPEG bytes; the bundled images without it")
    parser.add_argument("--n", type=int, default=512, help="number of files")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", nargs="*", default=["all", "last:3"])
    parser.add_argument("--force", action="store_true", help="run on a busy machine; the figures mean nothing then")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    require_idle(arguments.force)
    sys.stdout.reconfigure(line_buffering=True)
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        found, labels = images(arguments.data, arguments.n)
        paths = write(found, pathlib.Path(folder))
        size = statistics.mean(path.stat().st_size for path in paths)
        readers = device_module.reader_threads(torch.device("cpu"))
        print(
            f"{len(paths)} files of {size / 1000:.0f} kB, {1000 * decode_alone(paths):.1f} ms each to decode; "
            f"{readers} reading thread(s) beside {arguments.threads} of torch's"
        )
        for layers in arguments.layers:
            measure(paths, labels, layers, arguments.rounds, arguments.epochs)
