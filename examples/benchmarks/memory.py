"""Memory over 200 fits in one process: resident size and open files after each fit and prediction.

Three ways to name the same small backbone, each in a process of its own: the bundled name, a fresh equal module in
every fit, and a fresh callable in every fit. A fourth gives every fit a module with other weights, which fills the
process cache until it drops the least recently used; its bound is set to 200 MB there, so that the figure shows both.

    python examples/benchmarks/memory.py                 # writes docs/data/memory_fits.csv
    python examples/benchmarks/memory.py --plot          # draws docs/guide/pictures/memory_fits.png from it
"""

import argparse
import copy
import csv
import functools
import gc
import os
import pathlib
import subprocess
import sys
import threading

ROOT = pathlib.Path(__file__).parents[2]
DATA, PICTURE = ROOT / "docs/data/memory_fits.csv", ROOT / "docs/guide/pictures/memory_fits.png"
WAYS = {
    "name": "the bundled name",
    "module": "a fresh, equal module in each fit",
    "callable": "a fresh callable in each fit",
    "other": "other weights in each fit, cache bounded by 200 MB",
}


def make_module(scale=1.0):
    """Build EfficientNet-Lite0 with the bundled weights, the stem's scaled."""
    import torch

    from skve._backbones.from_timm import load_image_backbone

    module = copy.deepcopy(load_image_backbone("bundled:efficientnet_lite0", 32).module)
    with torch.no_grad():
        module.conv_stem.weight.mul_(scale)
    return module


def measure(way, n_fits):
    """Fit and predict `n_fits` times and print a row after each."""
    from skve import SVEClassifier
    from skve._backbones import cache
    from skve.datasets import load_fashion

    if way == "other":
        os.environ[cache.LIMIT] = "200000000"
    data = load_fashion()
    X, y, X_test = data.images[:32], data.target[:32], data.images_test[:32]
    for index in range(n_fits):
        backbone = {
            "name": lambda: "bundled:efficientnet_lite0",
            "module": make_module,
            "callable": lambda: functools.partial(make_module),
            "other": lambda index=index: make_module(1 + index / 1000),
        }[way]()
        clf = SVEClassifier(backbone, n_members=2, layers="last:1", image_size=32, max_epochs=1, random_state=index)
        clf.fit(X, y).predict_proba(X_test)
        del clf, backbone
        gc.collect()
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        files = len(list(pathlib.Path("/proc/self/fd").iterdir()))
        print(way, index + 1, round(pages * 4096 / 1e6, 1), files, threading.active_count(), sep=",", flush=True)


def plot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = list(csv.DictReader(DATA.open()))
    fig, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for way, label in WAYS.items():
        own = [row for row in rows if row["way"] == way]
        ax.plot([int(row["fit"]) for row in own], [float(row["rss_mb"]) for row in own], label=label)
    ax.set(xlabel="Fits in one process", ylabel="Resident memory in MB", ylim=(0, None))
    ax.legend(frameon=False, loc="lower right")
    ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(PICTURE, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fits", type=int, default=200)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--plot", action="store_true")
    options = parser.parse_args()
    if options.plot:
        plot()
    elif options.way:
        measure(options.way, options.fits)
    else:
        rows = ["way,fit,rss_mb,open_files,threads\n"]
        for way in WAYS:
            command = [sys.executable, __file__, "--way", way, "--fits", str(options.fits)]
            rows.append(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        DATA.write_text("".join(rows))


if __name__ == "__main__":
    main()
