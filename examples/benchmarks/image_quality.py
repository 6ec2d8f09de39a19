"""Accuracy, likelihood, calibration and out-of-distribution detection of four ensembles on 17 kinds of flowers.

Backbone: EfficientNet-Lite0 with ImageNet weights at 128 pixels. Data: Oxford 17 Flowers
(https://www.robots.ox.ac.uk/~vgg/data/flowers/17/), far out-of-distribution images from CIFAR-10
(https://www.cs.toronto.edu/~kriz/cifar.html), as `flowers17_160px.npz` and `cifar10_small.npz` with the keys that
`_common.load_jpegs` describes.

    python examples/benchmarks/image_quality.py tune  --data-dir DATA --csv docs/data/image_tuning.csv
    python examples/benchmarks/image_quality.py table --data-dir DATA --csv docs/data/image_quality.csv
    python examples/benchmarks/image_quality.py show  --csv docs/data/image_quality.csv

`tune` tries six settings of each method, ten training images a class, judged by the negative log-likelihood on ten
other images a class of the training split. `table` reads the test split. Both go on where they were stopped.
"""

import argparse
import itertools
import time

import numpy as np
import torch
from _common import Table, load_jpegs
from sklearn.metrics import accuracy_score, log_loss

import skve
from skve.metrics import expected_calibration_error, ood_auroc

SVE = [{"member_lr": m, "head_lr": h} for m, h in itertools.product((2e-2, 5e-2, 1e-1), (3e-3, 1e-2))]
FULL = [{"member_lr": m, "head_lr": h} for m, h in itertools.product((1e-4, 3e-4, 1e-3), (3e-3, 1e-2))]
HEAD = [{"head_lr": h} for h in (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2)]
TRIALS = {"sve": SVE, "single": FULL, "head": HEAD}  # "deep" takes the rates of "single"
CHOSEN = {}


def choose(y, per_class, seed, classes):
    """Return the indices of `per_class` random images of each class, and those of all others."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(y))
    chosen = np.concatenate([order[y[order] == c][:per_class] for c in classes])
    return chosen, np.setdiff1d(np.flatnonzero(np.isin(y, classes)), chosen)


def classifier(method, seed, epochs, **rates):
    return skve.SVEClassifier(ensemble=method, image_size=128, max_epochs=epochs, random_state=seed, **rates)


def tune(arguments):
    images, y, names = load_jpegs(f"{arguments.data_dir}/flowers17_160px.npz", "train")
    table = Table(arguments.csv, ("method", "member_lr", "head_lr", "epochs", "seed"))
    train, rest = choose(y, 10, 100, range(len(names)))
    valid = rest[choose(y[rest], 10, 101, range(len(names)))[0]]
    for epochs in arguments.epochs:
        for method, trials in TRIALS.items():
            for rates in trials:
                cell = {"method": method, "member_lr": None, **rates, "epochs": epochs, "seed": 100}
                if cell in table:
                    continue
                start = time.perf_counter()
                clf = classifier(method, 100, epochs, **rates)
                clf.fit([images[i] for i in train], names[y[train]])
                proba = clf.predict_proba([images[i] for i in valid])
                truth = names[y[valid]]
                table.add(
                    {
                        **cell,
                        "accuracy": accuracy_score(truth, clf.classes_[proba.argmax(1)]),
                        "nll": log_loss(truth, proba, labels=clf.classes_),
                        "ece": expected_calibration_error(truth, proba, labels=clf.classes_),
                        "seconds": time.perf_counter() - start,
                    }
                )
                print(table.rows[-1], flush=True)


def table(arguments):
    folder = arguments.data_dir
    images, y, names = load_jpegs(f"{folder}/flowers17_160px.npz", "train")
    test_images, test_y, _ = load_jpegs(f"{folder}/flowers17_160px.npz", "test")
    far = load_jpegs(f"{folder}/cifar10_small.npz", "test")[0][:500]
    out = Table(arguments.csv, ("method", "per_class", "classes_in", "seed"))
    cells = itertools.product(arguments.seeds, arguments.per_class, (17, 12), ("head", "sve", "deep"))
    for seed, per_class, classes_in, method in cells:
        cell = {"method": method, "per_class": per_class, "classes_in": classes_in, "seed": seed}
        if cell in out:
            continue
        # The classes that are left out differ between seeds.
        classes = np.random.default_rng(seed).permutation(len(names))[:classes_in]
        train, _ = choose(y, per_class, seed, classes)
        inside = np.flatnonzero(np.isin(test_y, classes))
        everything = classes_in == len(names)
        others = far if everything else [test_images[i] for i in np.flatnonzero(~np.isin(test_y, classes))]
        start = time.perf_counter()
        clf = classifier(method, seed, arguments.epochs[0], **CHOSEN[method])
        clf.fit([images[i] for i in train], names[y[train]])
        seconds = time.perf_counter() - start
        here = clf.predict_proba_members([test_images[i] for i in inside])
        there = clf.predict_proba_members(others)
        ood = "far (CIFAR-10)" if everything else "near (5 other flowers)"
        if method == "deep":  # its first member is the single fine-tune, bit for bit: see the tests
            single = quality(here[:1], there[:1], names[test_y[inside]], clf.classes_)
            out.add({**cell, "method": "single", "ood": ood, **single, "seconds": float("nan")})
        out.add({**cell, "ood": ood, **quality(here, there, names[test_y[inside]], clf.classes_), "seconds": seconds})
        print(out.rows[-1], flush=True)


def quality(here, there, truth, classes):
    """Return the measures of members' probabilities on test images and on images of no known class."""
    proba = here.mean(0)
    inside, outside = (skve.uncertainty.Uncertainty.from_members(members) for members in (here, there))
    return {
        "accuracy": accuracy_score(truth, classes[proba.argmax(1)]),
        "nll": log_loss(truth, proba, labels=classes),
        "ece": expected_calibration_error(truth, proba, labels=classes),
        "auroc_total": ood_auroc(inside.total, outside.total),
        "auroc_epistemic": ood_auroc(inside.epistemic, outside.epistemic) if len(here) > 1 else float("nan"),
    }


def show(arguments):
    rows = Table(arguments.csv, ()).rows
    print("| images a class | method | seeds | accuracy % | NLL | ECE % | OOD | AUROC total | AUROC epistemic |")
    print("|---|---|---|---|---|---|---|---|---|")
    keys = dict.fromkeys((r["classes_in"], r["per_class"], r["method"], r["ood"]) for r in rows)
    for classes_in, per_class, method, ood in sorted(keys, key=lambda k: (-int(k[0]), int(k[1]))):
        cell = [r for r in rows if (r["classes_in"], r["per_class"], r["method"]) == (classes_in, per_class, method)]

        def shown(name, scale=1, digits=3, cell=cell):
            values = np.array([float(r[name]) for r in cell]) * scale
            return f"{values.mean():.{digits}f} ± {values.std(ddof=1) if len(values) > 1 else 0:.{digits}f}"

        quality = f"{shown('accuracy', 100, 1)} | {shown('nll')} | {shown('ece', 100, 1)}"
        detection = f"{ood} | {shown('auroc_total')} | {shown('auroc_epistemic')}"
        print(f"| {per_class} of {classes_in} classes | {method} | {len(cell)} | {quality} | {detection} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["tune", "table", "show"])
    parser.add_argument("--data-dir")
    parser.add_argument("--csv", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--per-class", type=int, nargs="+", default=[10, 40])
    parser.add_argument("--epochs", type=int, nargs="+", default=[5])
    parser.add_argument("--threads", type=int, default=2)
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    {"tune": tune, "table": table, "show": show}[parsed.stage](parsed)
