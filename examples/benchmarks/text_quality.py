"""Accuracy, likelihood, calibration and out-of-scope detection with few examples, on all-MiniLM-L6-v2.

50 intents of CLINC150 with 10 examples each, and SST-2 with 200 examples a class; tests of about 1,000 texts.

    python examples/benchmarks/text_quality.py tune  --data-dir DATA --csv docs/data/text_tuning.csv
    python examples/benchmarks/text_quality.py table --data-dir DATA --csv docs/data/text_quality.csv
    python examples/benchmarks/text_quality.py show  --csv docs/data/text_quality.csv

`tune` tries eight settings of each method, judged by the negative log-likelihood on 500 texts of the training split
that no fit sees; `table` takes the best of them (from `--tuning`) and reads the test split. Both go on where they
were stopped.

DATA holds `clinc150_full.jsonl.gz` (records `{split, text, label}` of `data_full.json`, splits train, val, test,
oos_train, oos_val, oos_test, from https://github.com/clinc/oos-eval) and `sst2.jsonl.gz` (records
`{split, text, label}` of the Stanford Sentiment Treebank's binary task, splits train, dev and test).
"""

import argparse
import gzip
import itertools
import json
import time

import numpy as np
import torch
from _common import Table
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from skve import SVETextClassifier
from skve.metrics import expected_calibration_error
from skve.uncertainty import Uncertainty

RATES = ("member_lr", "head_lr", "max_epochs")
TRIALS = {
    "sve": [
        (1e-2, 1e-3, 6),
        (3e-2, 1e-3, 6),
        (1e-2, 5e-3, 6),
        (3e-2, 5e-3, 6),
        (3e-2, 1e-3, 12),
        (3e-2, 5e-3, 12),
        (3e-2, 3e-3, 6),
        (3e-2, 1e-2, 12),
    ],
    "single": [
        (5e-5, 1e-3, 6),
        (1e-4, 1e-3, 6),
        (5e-5, 5e-3, 6),
        (1e-4, 5e-3, 6),
        (1e-4, 1e-3, 12),
        (1e-4, 5e-3, 12),
        (1e-4, 3e-3, 6),
        (1e-4, 1e-2, 12),
    ],
    "head": [
        (None, 3e-3, 12),
        *((None, lr, epochs) for lr, epochs in itertools.product((5e-3, 1e-2, 3e-2), (12, 30))),
    ],
}
# Name -> (ensemble, members, whose setting it takes)
METHODS = {
    "SVE 4": ("sve", 4, "sve"),
    "SVE 8": ("sve", 8, "sve"),
    "head 4": ("head", 4, "head"),
    "single": ("single", 1, "single"),
    "deep 4": ("deep", 4, "single"),
}


def read(path):
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def load(dataset, data_dir, seed):
    """Return the parts "train", "validation" and "test" as (texts, labels), and the out-of-scope texts."""
    rng = np.random.default_rng(seed)
    rows = read(f"{data_dir}/{'clinc150_full' if dataset == 'clinc' else 'sst2'}.jsonl.gz")
    labels = sorted({str(row["label"]) for row in rows if row["split"] == "train"})
    labels, per_class = (labels[::3][:50], 10) if dataset == "clinc" else (labels, 200)
    train, rest = [], []
    for label in labels:
        own = [row for row in rows if row["split"] == "train" and str(row["label"]) == label]
        order = rng.permutation(len(own))
        train += [own[i] for i in order[:per_class]]
        rest += [own[i] for i in order[per_class:]]
    validation = [rest[i] for i in rng.permutation(len(rest))[:500]]
    test = [row for row in rows if row["split"] == "test" and str(row["label"]) in labels]
    test = [test[i] for i in np.random.default_rng(0).permutation(len(test))[:1000]]  # the same for all seeds
    parts = {"train": train, "validation": validation, "test": test}
    parts = {
        name: ([r["text"] for r in part], np.array([str(r["label"]) for r in part])) for name, part in parts.items()
    }
    return parts, [row["text"] for row in rows if row["split"] == "oos_test"]


def evaluate(clf, parts, part, out_of_scope=()):
    """Fit on the training part and return the measures on another one."""
    start = time.perf_counter()
    clf.fit(*parts["train"])
    seconds = time.perf_counter() - start
    X, y = parts[part]
    members = clf.predict_proba_members(X)
    proba = members.mean(0)
    row = {
        "accuracy": accuracy_score(y, clf.classes_[proba.argmax(1)]),
        "nll": log_loss(y, proba, labels=clf.classes_),
        "ece": expected_calibration_error(y, proba, labels=clf.classes_),
        "auroc_total": "",
        "auroc_epistemic": "",
        "seconds": seconds,
    }
    if len(out_of_scope):
        inside, outside = Uncertainty.from_members(members), clf.predict_uncertainty(out_of_scope)
        is_outside = np.repeat([0, 1], [len(y), len(out_of_scope)])
        for kind in ("total", "epistemic"):
            scores = np.concatenate([getattr(inside, kind), getattr(outside, kind)])
            row[f"auroc_{kind}"] = roc_auc_score(is_outside, scores)
    return row


def tune(arguments):
    table = Table(arguments.csv, ("dataset", "method", *RATES, "seed"))
    for dataset, (method, trials) in itertools.product(arguments.datasets, TRIALS.items()):
        parts, _ = load(dataset, arguments.data_dir, 100)
        for trial in trials:
            setting = dict(zip(RATES, trial, strict=True))
            cell = {"dataset": dataset, "method": method, **setting, "seed": 100}
            if {name: f"{v:.6g}" if isinstance(v, float) else v for name, v in cell.items()} in table:
                continue
            n_members = {"sve": 2, "single": 1, "head": 4}[method]
            clf = SVETextClassifier(ensemble=method, n_members=n_members, random_state=100, **setting)
            table.add({**cell, **evaluate(clf, parts, "validation")})
            print(table.rows[-1], flush=True)


def chosen(tuning, dataset, method):
    """Return the setting with the smallest loss on validation data."""
    rows = [row for row in Table(tuning, ()).rows if (row["dataset"], row["method"]) == (dataset, method)]
    if len(rows) < len(TRIALS[method]):
        raise SystemExit(
            f"{tuning} has {len(rows)} of {len(TRIALS[method])} trials of {method} on {dataset}: run tune"
        )
    best = min(rows, key=lambda row: float(row["nll"]))
    return {name: None if best[name] == "None" else float(best[name]) for name in RATES[:2]} | {
        "max_epochs": int(best["max_epochs"])
    }


def table(arguments):
    out = Table(arguments.csv, ("dataset", "method", "seed"))
    for seed, dataset, method in itertools.product(arguments.seeds, arguments.datasets, METHODS):
        cell = {"dataset": dataset, "method": method, "seed": seed}
        if cell in out:
            continue
        parts, out_of_scope = load(dataset, arguments.data_dir, seed)
        ensemble, n_members, tuned = METHODS[method]
        setting = chosen(arguments.tuning, dataset, tuned)
        clf = SVETextClassifier(ensemble=ensemble, n_members=n_members, random_state=seed, **setting)
        out.add({**cell, **setting, **evaluate(clf, parts, "test", out_of_scope)})
        print(out.rows[-1], flush=True)


def show(arguments):
    rows = Table(arguments.csv, ()).rows
    print("| data | method | seeds | accuracy % | NLL | ECE % | AUROC total | AUROC epistemic |")
    print("|---|---|---|---|---|---|---|---|")
    for dataset, method in itertools.product(("clinc", "sst2"), METHODS):
        cell = [row for row in rows if (row["dataset"], row["method"]) == (dataset, method)]
        if not cell:
            continue
        shown = []
        for name, scale, digits in (("accuracy", 100, 1), ("nll", 1, 3), ("ece", 100, 1)):
            shown.append(_spread([row[name] for row in cell], scale, digits))
        for name in ("auroc_total", "auroc_epistemic"):
            shown.append(_spread([row[name] for row in cell], 1, 3))
        print(f"| {dataset} | {method} | {len(cell)} | {' | '.join(shown)} |")


def _spread(values, scale, digits):
    if "" in values:
        return ""
    values = np.array(values, float) * scale
    deviation = values.std(ddof=1) if len(values) > 1 else 0.0
    return f"{values.mean():.{digits}f} ± {deviation:.{digits}f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["tune", "table", "show"])
    parser.add_argument("--data-dir")
    parser.add_argument("--csv", required=True)
    parser.add_argument("--tuning", default="docs/data/text_tuning.csv")
    parser.add_argument("--datasets", nargs="+", choices=["clinc", "sst2"], default=["clinc", "sst2"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    {"tune": tune, "table": table, "show": show}[parsed.stage](parsed)
