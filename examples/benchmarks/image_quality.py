"""Accuracy, likelihood, calibration and out-of-distribution detection of four ensembles of image classifiers.

Backbones: EfficientNet-Lite0 with ImageNet weights, or a vision transformer: any `--backbone` that `SVEClassifier`
takes; `vit_weights.py` makes a file of weights for one. Data: Oxford 17 Flowers
(https://www.robots.ox.ac.uk/~vgg/data/flowers/17/) and CIFAR-10 (https://www.cs.toronto.edu/~kriz/cifar.html), as
`flowers17_160px.npz` with the keys that `_common.load_jpegs` describes, and `cifar10_small.npz` with arrays
`x_train`, `y_train`, `x_test`, `y_test`, `classes`. Each is the far out-of-distribution data of the other.

    python examples/benchmarks/image_quality.py tune  --data-dir DATA --csv docs/data/image_tuning.csv
    python examples/benchmarks/image_quality.py table --data-dir DATA --csv docs/data/image_quality.csv
    python examples/benchmarks/image_quality.py epochs --data-dir DATA --csv docs/data/image_epochs.csv --epochs 5 10
    python examples/benchmarks/image_quality.py show  --csv docs/data/image_quality.csv

A transformer instead: `--backbone vit_small_patch14_dinov2@vit_s14.safetensors --image-size 98`; CIFAR-10 instead:
`--data cifar10 --classes-in 5 --per-class 20`. The classes that are not learned are near out-of-distribution images.

`tune` tries eight settings of each method, ten training images a class, judged by the negative log-likelihood on ten
other images a class of the training split. `table` reads the test split. Both go on where they were stopped.
"""

import argparse
import itertools
import pathlib
import time

import numpy as np
import torch
from _common import Table, keep_predictions, load_jpegs, measures
from sklearn.metrics import accuracy_score, log_loss

import skve
from skve.metrics import expected_calibration_error
from skve.uncertainty import mutual_information

HEAD_RATES = (3e-3, 1e-2)
SVE = [{"member_lr": m, "head_lr": h} for m, h in itertools.product((5e-3, 1e-2, 2e-2, 5e-2), HEAD_RATES)]
# 1e-5 was added for the transformer, whose best was the lowest of the others.
FULL = [{"member_lr": m, "head_lr": h} for m, h in itertools.product((1e-5, 3e-5, 1e-4, 3e-4, 1e-3), HEAD_RATES)]
HEAD = [{"head_lr": h} for h in (5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2, 5e-2)]
TRIALS = {"sve": SVE, "single": FULL, "head": HEAD}  # "deep" takes the rates of "single"
# The best of each method's trials on flowers: docs/data/image_tuning.csv. "deep" takes the rates of "single".
CHOSEN = {
    "efficientnet_lite0": {
        "head": {"head_lr": 5e-3},
        "sve": {"member_lr": 5e-2, "head_lr": 1e-2},
        "single": {"member_lr": 1e-4, "head_lr": 3e-3},
    },
    "vit_small_patch14_dinov2": {
        "head": {"head_lr": 2e-2},
        "sve": {"member_lr": 2e-2, "head_lr": 1e-2},
        "single": {"member_lr": 3e-5, "head_lr": 1e-2},
    },
}


def choose(y, per_class, seed, classes):
    """Return the indices of `per_class` random images of each class, and those of all others."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(y))
    chosen = np.concatenate([order[y[order] == c][:per_class] for c in classes])
    return chosen, np.setdiff1d(np.flatnonzero(np.isin(y, classes)), chosen)


def load(arguments, data, split):
    """Return (images, labels, class names) of a split."""
    if data == "flowers":
        images, y, names = load_jpegs(f"{arguments.data_dir}/flowers17_160px.npz", split)
        return images, y, names
    file = np.load(f"{arguments.data_dir}/cifar10_small.npz")
    return list(file[f"x_{split}"]), file[f"y_{split}"], file["classes"]


def name_of(backbone):
    """Return how tables name a backbone: without where it comes from."""
    return backbone.removeprefix("bundled:").partition("@")[0]


def classifier(arguments, method, seed, epochs, **options):
    return skve.SVEClassifier(
        arguments.backbone,
        ensemble=method,
        image_size=arguments.image_size,
        max_epochs=epochs,
        random_state=seed,
        **options,
    )


def tune(arguments):
    images, y, names = load(arguments, "flowers", "train")
    table = Table(arguments.csv, ("backbone", "image_size", "method", "member_lr", "head_lr", "epochs", "seed"))
    setting = {"backbone": name_of(arguments.backbone), "image_size": arguments.image_size}
    train, rest = choose(y, 10, 100, range(len(names)))
    valid = rest[choose(y[rest], 10, 101, range(len(names)))[0]]
    for epochs in arguments.epochs:
        for method, trials in TRIALS.items():
            for rates in trials:
                cell = {**setting, "method": method, "member_lr": None, **rates, "epochs": epochs, "seed": 100}
                if cell in table:
                    continue
                start = time.perf_counter()
                clf = classifier(arguments, method, 100, epochs, n_members=arguments.members, **rates)
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
    images, y, names = load(arguments, arguments.data, "train")
    test_images, test_y, _ = load(arguments, arguments.data, "test")
    # In random order, since the tests are cut short.
    order = np.random.default_rng(0).permutation(len(test_y))
    test_images, test_y = [test_images[i] for i in order], test_y[order]
    other = "flowers" if arguments.data == "cifar10" else "cifar10"
    far = load(arguments, other, "test")[0][: arguments.n_test]
    setting = {"backbone": name_of(arguments.backbone), "data": arguments.data, "image_size": arguments.image_size}
    out = Table(arguments.csv, (*setting, "method", "per_class", "classes_in", "seed"))
    cells = itertools.product(arguments.seeds, arguments.classes_in, arguments.per_class, ("head", "sve", "deep"))
    for seed, classes_in, per_class, method in cells:
        cell = {**setting, "method": method, "per_class": per_class, "classes_in": classes_in, "seed": seed}
        if cell in out:
            continue
        # The classes that are left out differ between seeds.
        classes = np.random.default_rng(seed).permutation(len(names))[:classes_in]
        train, rest = choose(y, per_class, seed, classes)
        known = np.isin(test_y, classes)
        inside, outside = np.flatnonzero(known)[: arguments.n_test], np.flatnonzero(~known)[: arguments.n_test]
        rates = CHOSEN[setting["backbone"]]["single" if method == "deep" else method]
        start = time.perf_counter()
        clf = classifier(arguments, method, seed, arguments.epochs[0], **rates)
        clf.fit([images[i] for i in train], names[y[train]])
        seconds = time.perf_counter() - start
        groups = {"in": [test_images[i] for i in inside], "far": far}
        if len(outside):
            groups["near"] = [test_images[i] for i in outside]
        members = {name: clf.predict_proba_members(group) for name, group in groups.items()}
        truth = names[test_y[inside]]
        if arguments.predictions is not None:
            valid = rest[choose(y[rest], 10, seed, classes)[0]]
            kept = {"test": members["in"], "valid": clf.predict_proba_members([images[i] for i in valid])}
            kept |= {name: proba for name, proba in members.items() if name != "in"}
            labels = {"test": truth, "valid": names[y[valid]]}
            name = f"{arguments.data} {per_class} of {classes_in}_{method}_{seed}.npz"
            keep_predictions(pathlib.Path(arguments.predictions) / name, kept, labels, clf.classes_)
        if method == "deep":  # its first member is the single fine-tune, bit for bit: see the tests
            first = {name: proba[:1] for name, proba in members.items()}
            out.add({**cell, "method": "single", **quality(first, truth, clf.classes_), "seconds": float("nan")})
        out.add({**cell, **quality(members, truth, clf.classes_), "seconds": seconds})
        print(out.rows[-1], flush=True)


def epochs(arguments):
    """Compare SVE and one fine-tune after several numbers of epochs: 30 images a class, judged on 10 others."""
    images, y, names = load(arguments, "flowers", "train")
    classes = np.random.default_rng(0).permutation(len(names))[:12]
    train, valid = choose(y, 30, 0, classes)
    out = Table(arguments.csv, ("method", "epochs"))
    for n_epochs, method in itertools.product(arguments.epochs, ("single", "sve")):
        if {"method": method, "epochs": n_epochs} in out:
            continue
        clf = classifier(arguments, method, 0, n_epochs, **CHOSEN["efficientnet_lite0"][method])
        clf.fit([images[i] for i in train], names[y[train]])
        members, truth = clf.predict_proba_members([images[i] for i in valid]), names[y[valid]]
        each = [log_loss(truth, proba, labels=clf.classes_) for proba in members]
        row = {"training_loss": clf.history_["loss"][-1], "nll_of_a_member": float(np.mean(each))}
        row["nll"] = log_loss(truth, members.mean(0), labels=clf.classes_)
        out.add({"method": method, "epochs": n_epochs, **row})
        print(out.rows[-1], flush=True)


def quality(members, truth, classes):
    """Return the measures of members' probabilities on test images and on images of no known class."""
    members = {"test" if name == "in" else name: group for name, group in members.items()}
    several = len(members["test"]) > 1
    epistemic = {name: mutual_information(group) for name, group in members.items()} if several else {}
    found = measures({name: group.mean(0) for name, group in members.items()}, epistemic, truth, classes)
    columns = ("accuracy", "nll", "ece", "far_total", "far_epistemic", "near_total", "near_epistemic")
    return {name: found[name] for name in columns}


def show(arguments):
    rows = Table(arguments.csv, ()).rows
    columns = {"accuracy": 100, "nll": 1, "ece": 100, "far_total": 1, "far_epistemic": 1, "near_total": 1}
    columns["near_epistemic"] = 1
    settings = ("data", "backbone", "image_size", "classes_in", "per_class", "method")
    print(
        "| data | backbone | pixels | classes | images a class | method | seeds | accuracy % | NLL | ECE % ", end=""
    )
    print("| far, total | far, epistemic | near, total | near, epistemic |")
    print("|---" * 14 + "|")
    order = {"head": 0, "single": 1, "sve": 2, "deep": 3}
    keys = dict.fromkeys(tuple(row[name] for name in settings) for row in rows)
    for key in sorted(keys, key=lambda k: (k[0], k[1], *map(int, k[2:5]), order[k[5]])):
        cell = [row for row in rows if tuple(row[name] for name in settings) == key]
        shown = []
        for name, scale in columns.items():
            values = np.array([float(r[name]) for r in cell]) * scale
            spread = f" ± {values.std(ddof=1):.{1 if scale == 100 else 3}f}" if len(values) > 1 else ""
            shown.append("" if np.isnan(values).any() else f"{values.mean():.{1 if scale == 100 else 3}f}{spread}")
        print("| " + " | ".join([*key, str(len(cell)), *shown]) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["tune", "table", "epochs", "show"])
    parser.add_argument("--data-dir")
    parser.add_argument("--csv", required=True)
    parser.add_argument("--backbone", default="bundled:efficientnet_lite0")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--data", choices=["flowers", "cifar10"], default="flowers")
    parser.add_argument("--members", type=int, default=4, help="members in `tune`")
    parser.add_argument("--n-test", type=int, default=500, help="test images at most: of learned classes, near, far")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--per-class", type=int, nargs="+", default=[10, 40])
    parser.add_argument("--classes-in", type=int, nargs="+", default=[12, 17])
    parser.add_argument("--epochs", type=int, nargs="+", default=[5])
    parser.add_argument("--predictions", help="folder to keep members' probabilities in, for decisions.py")
    parser.add_argument("--threads", type=int, default=2)
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    {"tune": tune, "table": table, "epochs": epochs, "show": show}[parsed.stage](parsed)
