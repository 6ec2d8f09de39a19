"""Students against their ensembles: quality, uncertainty, time and size.

    python examples/benchmarks/students.py measure --data-dir DATA --models FOLDER --csv docs/data/students.csv
    python examples/benchmarks/students.py show    --csv docs/data/students.csv

`measure` fits an ensemble of four members with the defaults of "sve" (kept in FOLDER, saved), distils it without
samples, on its training samples, and on these with 1,000 unlabelled ones, and compares them on 400 other samples of
the training split and 200 foreign inputs. It goes on where it was stopped.

DATA is that of examples/benchmarks/novelty.py, whose docstring says where anybody gets it.
"""

import argparse
import csv
import pathlib
import time

import numpy as np
from _common import Table, load_jpegs, measures, read_jsonl
from scipy.stats import spearmanr
from sklearn.metrics import log_loss

import skve
from skve.metrics import ood_auroc

# name -> file, labelled samples a class, side of images
TEXTS = {"emotion": ("emotion.jsonl.gz", 20), "sst2": ("sst2.jsonl.gz", 100)}
IMAGES = {
    "fashion": ("fashion_mnist_small.npz", 20, 48),
    "sign_digits": ("sign_digits_100px.npz", 10, 64),
    "cifar10": ("cifar10_small.npz", 20, 64),
}
N_TEST, N_UNLABELLED, N_FOREIGN = 400, 1000, 200
KEY = ("data", "seed", "model")


def read(name, data_dir):
    """Return a data set's items, their labels and foreign items."""
    path = pathlib.Path(data_dir)
    if name in TEXTS:
        records = [record for record in read_jsonl(path / TEXTS[name][0]) if record["split"] == "train"]
        foreign = [r["text"] for r in read_jsonl(path / "clinc150_full.jsonl.gz") if r["split"] == "val"]
        return [r["text"] for r in records], np.array([str(r["label"]) for r in records]), foreign[:N_FOREIGN]
    if name == "sign_digits":
        X, y, _ = load_jpegs(path / IMAGES[name][0], "train")
    else:
        arrays = np.load(path / IMAGES[name][0])
        X, y = list(arrays["x_train"]), arrays["y_train"]
    if name == "fashion":
        foreign = skve.datasets.load_fashion().images_ood
    else:
        foreign = np.load(path / IMAGES["fashion"][0])["x_train"]
    return X, y.astype(str), list(foreign[:N_FOREIGN])


def split(X, y, n_each, seed):
    """Return the rows of training, test and unlabelled samples."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(X))
    train = np.concatenate([order[y[order] == label][:n_each] for label in np.unique(y)])
    rest = rng.permutation(np.setdiff1d(order, train))
    return train, rest[:N_TEST], rest[N_TEST : N_TEST + N_UNLABELLED]


def make(name, seed):
    """Return the estimator for a data set."""
    if name in TEXTS:
        return skve.SVETextClassifier(random_state=seed)
    return skve.SVEClassifier(image_size=IMAGES[name][2], random_state=seed)


def row_of(model, X, y, foreign, reference):
    """Return the measures of a model, and how its epistemic uncertainty goes with the ensemble's."""
    start = time.perf_counter()
    u = model.predict_uncertainty(X)
    seconds = time.perf_counter() - start
    v = model.predict_uncertainty(foreign)
    pooled = {"test": model.predict_proba(X), "far": model.predict_proba(foreign)}
    row = measures(pooled, {"test": u.epistemic, "far": v.epistemic}, y, model.classes_)
    wrong = model.classes_[pooled["test"].argmax(axis=1)] != y
    members = [log_loss(y, proba, labels=model.classes_) for proba in model.predict_proba_members(X)]
    return {
        "accuracy": row["accuracy"],
        "nll": row["nll"],
        "nll_mean_member": float(np.mean(members)),
        "ece": row["ece"],
        "errors_total": ood_auroc(u.total[~wrong], u.total[wrong]),
        "foreign_total": row["far_total"],
        "foreign_novelty": ood_auroc(u.novelty, v.novelty),
        "epistemic_mean": float(u.epistemic.mean()),
        "epistemic_correlation": float(spearmanr(u.epistemic, reference.epistemic)[0]),
        "seconds_of_prediction": seconds,
    }


def measure(arguments):
    table = Table(arguments.csv, KEY)
    for name in arguments.data:
        X, y, foreign = read(name, arguments.data_dir)
        n_each = (TEXTS.get(name) or IMAGES[name])[1]
        for seed in arguments.seeds:
            train, test, unlabelled = split(X, y, n_each, seed)
            folder = arguments.models / f"{name}-{seed}"
            if not folder.exists():
                make(name, seed).fit([X[i] for i in train], y[train]).save(folder)
            ensemble = skve.load(folder)
            held_out = [X[i] for i in test]
            reference = ensemble.predict_uncertainty(held_out)
            students = {"no samples": (), "training samples": train, "and unlabelled": (*train, *unlabelled)}
            for model in ("ensemble", *students):
                if (cell := {"data": name, "seed": seed, "model": model}) in table:
                    continue
                start = time.perf_counter()
                one = ensemble
                if model in students:
                    one = ensemble.distill([X[i] for i in students[model]] or None)
                seconds = time.perf_counter() - start
                measured = row_of(one, held_out, y[test], foreign, reference)
                table.add({**cell, **measured, "seconds_of_distilling": seconds})


def show(arguments):
    with open(arguments.csv, encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    columns = [name for name in rows[0] if name not in KEY]
    print("| data | model | seeds | " + " | ".join(columns) + " |\n" + "|---" * (3 + len(columns)) + "|")
    for data, model in dict.fromkeys((row["data"], row["model"]) for row in rows):
        own = [row for row in rows if (row["data"], row["model"]) == (data, model)]
        means = [np.mean([float(row[name]) for row in own]) for name in columns]
        print(f"| {data} | {model} | {len(own)} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=["measure", "show"])
    parser.add_argument("--csv", default="docs/data/students.csv")
    parser.add_argument("--data-dir")
    parser.add_argument("--models", type=pathlib.Path)
    parser.add_argument("--data", nargs="+", default=[*TEXTS, *IMAGES])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments = parser.parse_args()
    {"measure": measure, "show": show}[arguments.command](arguments)


if __name__ == "__main__":
    main()
