"""Accuracy, likelihood, calibration and out-of-scope detection with few examples, on all-MiniLM-L6-v2.

50 intents of CLINC150 with 10 examples each, and SST-2 with 200 examples a class; tests of about 1,000 texts.

    python examples/benchmarks/text_quality.py tune  --data-dir DATA --csv docs/data/text_tuning.csv
    python examples/benchmarks/text_quality.py tune  --data-dir DATA --csv docs/data/text_defaults.csv --candidates
    python examples/benchmarks/text_quality.py table --data-dir DATA --csv docs/data/text_quality.csv
    python examples/benchmarks/text_quality.py show  --csv docs/data/text_quality.csv

`tune` tries nine settings of each method, judged by the negative log-likelihood on 500 texts of the training split
that no fit sees; `table` takes the best of them (from `--tuning`) and reads the test split. Both go on where they
were stopped.

DATA holds `clinc150_full.jsonl.gz` (records `{split, text, label}` of `data_full.json`, splits train, val, test,
oos_train, oos_val, oos_test, from https://github.com/clinc/oos-eval) and `sst2.jsonl.gz` (records
`{split, text, label}` of the Stanford Sentiment Treebank's binary task, splits train, dev and test).
"""

import argparse
import itertools
import pathlib
import time

import numpy as np
import torch
from _common import Table, keep_predictions, read_jsonl
from sklearn.metrics import accuracy_score, log_loss

from skve import SVETextClassifier
from skve.metrics import expected_calibration_error, ood_auroc
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
        (1e-2, 1e-2, 6),
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
        (5e-5, 1e-2, 6),
    ],
    "head": [
        (None, 3e-3, 12),
        *((None, lr, epochs) for lr, epochs in itertools.product((5e-3, 1e-2, 3e-2, 1e-1), (12, 30))),
    ],
}
# For the defaults alone, which are to serve both data sets with one setting: no table takes them.
CANDIDATES = {"sve": [(2e-2, 5e-3, 6), (1e-2, 5e-3, 10)], "head": [(None, 1e-2, 6), (None, 3e-2, 6)]}
# Ensemble -> (members, whose setting it takes, rows of the table by how many of its members they count). The first
# members of a fit are those of a fit with fewer, and the first of "deep" is the single fine-tune, bit for bit.
FITS = {
    "sve": (8, "sve", {"SVE 4": 4, "SVE 8": 8}),
    "head": (4, "head", {"head 4": 4}),
    "deep": (4, "single", {"single": 1, "deep 4": 4}),
}
METHODS = [row for _, _, rows in FITS.values() for row in rows]


def load(dataset, data_dir, seed):
    """Return the parts "train", "valid" and "test" as (texts, labels), and the out-of-scope texts."""
    rng = np.random.default_rng(seed)
    rows = read_jsonl(f"{data_dir}/{'clinc150_full' if dataset == 'clinc' else 'sst2'}.jsonl.gz")
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
    parts = {"train": train, "valid": validation, "test": test}
    parts = {
        name: ([r["text"] for r in part], np.array([str(r["label"]) for r in part])) for name, part in parts.items()
    }
    intents = rows if dataset == "clinc" else read_jsonl(f"{data_dir}/clinc150_full.jsonl.gz")
    return parts, [row["text"] for row in intents if row["split"] == "oos_test"]


def quality(classes, y, members, out_of_scope=None):
    """Return the measures of members' probabilities on samples and, if given, on texts out of scope."""
    proba = members.mean(0)
    row = {
        "accuracy": accuracy_score(y, classes[proba.argmax(1)]),
        "nll": log_loss(y, proba, labels=classes),
        "ece": expected_calibration_error(y, proba, labels=classes),
        "auroc_total": "",
        "auroc_epistemic": "",
    }
    if out_of_scope is not None:
        inside, outside = Uncertainty.from_members(members), Uncertainty.from_members(out_of_scope)
        row["auroc_total"] = ood_auroc(inside.total, outside.total)
        if len(members) > 1:
            row["auroc_epistemic"] = ood_auroc(inside.epistemic, outside.epistemic)
    return row


def tune(arguments):
    table = Table(arguments.csv, ("dataset", "method", *RATES, "seed"))
    listed = CANDIDATES if arguments.candidates else TRIALS
    for dataset, (method, trials) in itertools.product(arguments.datasets, listed.items()):
        parts, _ = load(dataset, arguments.data_dir, 100)
        for trial in trials:
            setting = dict(zip(RATES, trial, strict=True))
            cell = {"dataset": dataset, "method": method, **setting, "seed": 100}
            if {name: f"{v:.6g}" if isinstance(v, float) else v for name, v in cell.items()} in table:
                continue
            n_members = {"sve": 2, "single": 1, "head": 4}[method]
            clf = SVETextClassifier(ensemble=method, n_members=n_members, random_state=100, **setting)
            start = time.perf_counter()
            clf.fit(*parts["train"])
            seconds = time.perf_counter() - start
            X, y = parts["valid"]
            table.add({**cell, **quality(clf.classes_, y, clf.predict_proba_members(X)), "seconds": seconds})
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
    for seed, dataset, ensemble in itertools.product(arguments.seeds, arguments.datasets, FITS):
        n_members, tuned, methods = FITS[ensemble]
        cells = {name: {"dataset": dataset, "method": name, "seed": seed} for name in methods}
        if all(cell in out for cell in cells.values()):
            continue
        parts, out_of_scope = load(dataset, arguments.data_dir, seed)
        setting = chosen(arguments.tuning, dataset, tuned)
        clf = SVETextClassifier(ensemble=ensemble, n_members=n_members, random_state=seed, **setting)
        start = time.perf_counter()
        clf.fit(*parts["train"])
        seconds = time.perf_counter() - start
        members = {name: clf.predict_proba_members(parts[name][0]) for name in ("valid", "test")}
        shift = "near" if dataset == "clinc" else "far"  # the same questions: out of the bank's scope, no reviews
        members[shift] = clf.predict_proba_members(out_of_scope)
        truth = {name: parts[name][1] for name in ("valid", "test")}
        if arguments.predictions is not None:
            path = pathlib.Path(arguments.predictions) / f"{dataset}_{ensemble}_{seed}.npz"
            keep_predictions(path, members, truth, clf.classes_)
        for name, count in methods.items():
            measured = quality(clf.classes_, truth["test"], members["test"][:count], members[shift][:count])
            out.add({**cells[name], **setting, **measured, "seconds_of_fit": seconds})
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
    if "" in values:  # no epistemic uncertainty without several members
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
    parser.add_argument("--candidates", action="store_true", help="tune: try those for the defaults")
    parser.add_argument("--datasets", nargs="+", choices=["clinc", "sst2"], default=["clinc", "sst2"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--predictions", help="folder to keep members' probabilities in, for decisions.py")
    parser.add_argument("--threads", type=int, default=2)
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    {"tune": tune, "table": table, "show": show}[parsed.stage](parsed)
