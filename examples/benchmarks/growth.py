"""Time and memory of fits and predictions as items, classes and members grow, and what 64 GPUs would make of a step.

    python examples/benchmarks/growth.py             # docs/data/growth.csv and docs/pictures/growth.png, some minutes
    python examples/benchmarks/growth.py --items 1e6 # up to so many paths
    python examples/benchmarks/growth.py --plot      # the picture again, from the table
    python examples/benchmarks/growth.py --gpus      # the table of simulated scaling

Runs on an idle machine. Each point runs in a process of its own: one pass of training over paths of images of 16
pixels, which are not decoded, with a network of two small layers; then a prediction of all. So what grows is what
skve does, and not the network. Memory is the peak less what the process held before.
"""

import argparse
import csv
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from _common import machine, require_idle

ROOT = pathlib.Path(__file__).parents[2]
DATA, PICTURE = ROOT / "docs/data/growth.csv", ROOT / "docs/pictures/growth.png"
START = {"items": 2000, "classes": 10, "members": 4}
STEPS = {"items": [1e3, 1e4, 1e5, 1e6], "classes": [10, 100, 1000, 5000, 20000], "members": [1, 4, 16, 64]}
FIELDS = ["axis", "value", "fit_seconds", "predict_seconds", "fit_mb", "predict_mb"]
SIDE = 16
# Of the simulation: one H100 and what connects it with others.
TFLOPS, GB_A_SECOND, SECONDS_A_MESSAGE, UTILISATION = 990, 50, 30e-6, 0.4


def measure(items, classes, members):
    """Print the seconds and the peaks of a fit and a prediction."""
    import numpy as np
    import torch
    from torch import nn

    import skve
    from skve._inputs.image_pipeline import ImagePipeline
    from skve.testing import ToyClassifier, make_toy_backbone

    def load(self, indices):
        return torch.zeros(len(indices), 3, SIDE, SIDE, dtype=torch.uint8)

    def load_each(self, batches, ahead):
        yield from map(self.load, batches)

    ImagePipeline.load, ImagePipeline.load_each = load, load_each
    torch.set_num_threads(1)
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), make_toy_backbone(48, width=32))
    settings = {"n_members": members, "batch_size": 256, "max_epochs": 1, "calibrate": None, "device": "cpu"}
    clf = skve.SVEClassifier(backbone, image_size=SIDE, random_state=0, **settings)
    ToyClassifier(max_steps=2).fit(np.eye(4), [0, 1, 0, 1])  # libraries
    n = max(items, classes)
    with tempfile.TemporaryDirectory() as folder:
        target = pathlib.Path(folder) / "image"
        target.write_bytes(b"not decoded")
        paths = [f"{folder}/{index}.png" for index in range(n)]
        for path in paths:
            os.symlink(target, path)
        y = np.arange(n) % classes
        found = []
        for work in (lambda: clf.fit(paths, y), lambda: clf.predict_uncertainty(paths)):
            pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            before, start = resident("VmRSS"), time.perf_counter()
            work()
            found += [time.perf_counter() - start, (resident("VmHWM") - before) / 1e6]
    print(json.dumps(found))


def resident(name):
    """Return a figure of /proc/self/status in bytes: VmRSS, or VmHWM, its peak."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def rows(most_items):
    for axis, values in STEPS.items():
        for value in map(int, values):
            if axis == "items" and value > most_items:
                continue
            point = START | {axis: value}
            command = [sys.executable, __file__, "--measure", *map(str, point.values())]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            fit_seconds, fit_mb, predict_seconds, predict_mb = json.loads(done.stdout.splitlines()[-1])
            row = (axis, value, fit_seconds, predict_seconds, fit_mb, predict_mb)
            print(*row, flush=True)
            yield row


def plot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = list(csv.DictReader(DATA.open()))
    fig, axes = plt.subplots(2, 3, figsize=(10, 5.4), layout="constrained", sharex="col")
    for column, axis in enumerate(STEPS):
        own = [row for row in found if row["axis"] == axis]
        x = [float(row["value"]) for row in own]
        for place, unit in enumerate(("seconds", "mb")):
            ax = axes[place, column]
            for name in ("fit", "predict"):
                y = [float(row[f"{name}_{unit}"]) for row in own]
                ax.loglog(x, y, marker="o", label=name)
            last = max(float(row[f"fit_{unit}"]) for row in own)
            ax.loglog(x, [last * value / x[-1] for value in x], color="grey", ls=":", label="linear")
            ax.spines[["top", "right"]].set_visible(False)
        axes[1, column].set_xlabel(axis)
    axes[0, 0].set_ylabel("Seconds")
    axes[1, 0].set_ylabel("Peak memory in MB")
    axes[0, 0].legend(frameon=False)
    fig.savefig(PICTURE, dpi=120)


def simulate():
    """Print what a step would take on 1 to 64 GPUs that share out its batch: its products, and a sum around a ring.

    For each member, weight and token a step takes 6 floating-point operations, of `sve` in its dearest form 8.
    Reading, clipping and the optimizer are left out. Gradients are sent in float32, for what members own: a ratio
    for each of the 768 or 4,096 directions of the 4 or 7 linear layers of a block, and in ViT-B/16 a head for 100
    classes.
    """
    backbones = {
        "ViT-B/16, 197 tokens": (86e6, 197, 12 * 4 * 768 + 100 * 769),
        "LLaMA-2-7B, 256 tokens": (6.6e9, 256, 32 * 7 * 4096),
    }
    members, batch = 16, 512
    print(f"{members} members, {batch} samples a step; a GPU of {TFLOPS} TFLOP/s at {UTILISATION:.0%}, {GB_A_SECOND}")
    print(f"GB/s between GPUs, {SECONDS_A_MESSAGE * 1e6:.0f} microseconds a message of the ring.")
    columns = ("backbone", "ensemble", "GPUs", "MB sent", "computing, s", "sending, s", "speed-up")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name, (n_weights, tokens, n_own) in backbones.items():
        for ensemble, operations, n_sent in (("sve", 8, n_own), ("deep", 6, n_weights)):
            alone = members * operations * n_weights * tokens * batch / (TFLOPS * 1e12 * UTILISATION)
            for gpus in (1, 8, 64):
                n_bytes = 4 * members * n_sent
                computing, messages = alone / gpus, 2 * (gpus - 1)
                sending = messages * (n_bytes / gpus / (GB_A_SECOND * 1e9) + SECONDS_A_MESSAGE)
                cells = (name, ensemble, gpus, f"{n_bytes / 1e6:,.0f}", f"{computing:.3f}", f"{sending:.3f}")
                print(f"| {' | '.join(map(str, cells))} | {alone / (computing + sending):.1f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=float, default=1e5, help="the largest number of paths")
    parser.add_argument("--plot", action="store_true")
    parser.add_argument("--gpus", action="store_true")
    parser.add_argument("--force", action="store_true", help="measure on a busy machine")
    parser.add_argument("--measure", type=int, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure)
    elif options.plot:
        plot()
    elif options.gpus:
        simulate()
    else:
        require_idle(options.force)
        print(machine())
        table = list(rows(options.items))
        with DATA.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([FIELDS, *table])
        plot()


if __name__ == "__main__":
    main()
