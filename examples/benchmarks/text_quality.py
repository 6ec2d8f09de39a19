"""How well do singular value ensembles of a small text encoder do with few examples?

50 intents of CLINC150 with 10 examples each, and SST-2 with 200 examples a class, on all-MiniLM-L6-v2:
accuracy, negative log-likelihood, calibration error, and how well uncertainty tells out-of-scope questions.

Hyper-parameters are chosen by `--stage search`, one seed, eight settings for each method, by the negative
log-likelihood on a part of the training split that no fit sees; `--stage table` reads the test split. Finished
cells are rows of the CSV files in `--out`; a second run skips them.

    python examples/benchmarks/text_quality.py --data-dir DATA --stage search
    python examples/benchmarks/text_quality.py --data-dir DATA --stage table

DATA holds `clinc150_full.jsonl.gz` (records `{split, text, label}` of `data_full.json`, splits train, val, test,
oos_train, oos_val, oos_test, from https://github.com/clinc/oos-eval) and `sst2.jsonl.gz` (records
`{split, text, label}` of the Stanford Sentiment Treebank's binary task, splits train, val and test).
"""

import argparse
import csv
import gzip
import itertools
import json
import pathlib
import time

import numpy as np
import torch
from sklearn.metrics import log_loss, roc_auc_score

from skve import SVETextClassifier

N_INTENTS, PER_INTENT, PER_SENTIMENT, N_VALIDATION, N_TEST = 50, 10, 200, 500, 1000
METHODS = {  # name -> (ensemble, members, members in the search)
    "sve4": ("sve", 4, 2),
    "sve8": ("sve", 8, None),  # takes the setting of sve4
    "head": ("head", 4, 4),
    "single": ("single", 1, 1),
    "deep": ("deep", 4, 2),
}
GRIDS = {
    "sve": {"member_lr": [1e-2, 3e-2], "head_lr": [1e-3, 5e-3], "max_epochs": [5, 10]},
    "single": {"member_lr": [5e-5, 1e-4], "head_lr": [1e-3, 5e-3], "max_epochs": [5, 10]},
    "deep": {"member_lr": [5e-5, 1e-4], "head_lr": [1e-3, 5e-3], "max_epochs": [5, 10]},
    "head": {"member_lr": [1e-4], "head_lr": [1e-3, 5e-3, 1e-2, 3e-2], "max_epochs": [10, 30]},
}


def read(path):
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def load(dataset, data_dir, seed):
    """Return texts and labels of the parts train, validation and test, and out-of-scope texts of the test."""
    rng = np.random.default_rng(seed)
    if dataset == "clinc":
        rows, per_class = read(data_dir / "clinc150_full.jsonl.gz"), PER_INTENT
        labels = sorted({row["label"] for row in rows if row["split"] == "train"})[::3][:N_INTENTS]
    else:
        rows, per_class = read(data_dir / "sst2.jsonl.gz"), PER_SENTIMENT
        labels = sorted({row["label"] for row in rows})
    by_split = {split: [r for r in rows if r["split"] == split] for split in {row["split"] for row in rows}}
    train, rest = [], []
    for label in labels:
        own = [row for row in by_split["train"] if row["label"] == label]
        order = rng.permutation(len(own))
        train += [own[i] for i in order[:per_class]]
        rest += [own[i] for i in order[per_class:]]
    validation = [rest[i] for i in rng.permutation(len(rest))[:N_VALIDATION]]
    test = [row for row in by_split["test"] if row["label"] in labels]
    fixed = np.random.default_rng(0).permutation(len(test))[:N_TEST]  # the same test items for all seeds
    parts = {"train": train, "validation": validation, "test": [test[i] for i in fixed]}
    parts = {name: ([r["text"] for r in part], np.array([r["label"] for r in part])) for name, part in parts.items()}
    return parts, [row["text"] for row in by_split.get("oos_test", [])]


def calibration_error(proba, correct, n_bins=15):
    confidence = proba.max(1)
    bins = np.ceil(confidence * n_bins).astype(int)
    gaps = [abs((confidence - correct)[bins == b].sum()) for b in np.unique(bins)]
    return sum(gaps) / len(correct)


def cell(dataset, data_dir, method, seed, setting, n_members, part):
    parts, out_of_scope = load(dataset, data_dir, seed)
    ensemble = METHODS[method][0]
    clf = SVETextClassifier(ensemble=ensemble, n_members=n_members, random_state=seed, **setting)
    started = time.perf_counter()
    clf.fit(*parts["train"])
    seconds = time.perf_counter() - started
    X, y = parts[part]
    uncertainty = clf.predict_uncertainty(X)
    proba = clf.predict_proba(X)
    correct = clf.classes_[proba.argmax(1)] == y
    row = {"dataset": dataset, "method": method, "n_members": n_members, "seed": seed, **setting}
    row |= {
        "accuracy": f"{correct.mean():.4f}",
        "nll": f"{log_loss(y, proba, labels=clf.classes_):.4f}",
        "ece": f"{calibration_error(proba, correct):.4f}",
        "auroc_total": "",
        "auroc_epistemic": "",
        "n": len(y),
        "fit_seconds": f"{seconds:.1f}",
    }
    if part == "test" and out_of_scope:
        outside = clf.predict_uncertainty(out_of_scope)
        is_outside = np.r_[np.zeros(len(y)), np.ones(len(out_of_scope))]
        for kind in ("total", "epistemic"):
            score = np.r_[getattr(uncertainty, kind), getattr(outside, kind)]
            row[f"auroc_{kind}"] = f"{roc_auc_score(is_outside, score):.4f}"
    return row


def finished(path):
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def append(path, row):
    is_new = not path.is_file()
    with open(path, "a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, row, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)
    print(row, flush=True)


def same(row, **values):
    return all(str(row[name]) == str(value) for name, value in values.items())


def search(args, path):
    for dataset, method in itertools.product(args.datasets, args.methods):
        ensemble, _, n_members = METHODS[method]
        if n_members is None:
            continue
        for values in itertools.product(*GRIDS[ensemble].values()):
            setting = dict(zip(GRIDS[ensemble], values, strict=True))
            if not any(same(row, dataset=dataset, method=method, **setting) for row in finished(path)):
                append(path, cell(dataset, args.data_dir, method, 100, setting, n_members, "validation"))


def chosen(path, dataset, method):
    """Return the setting of the smallest validation loss."""
    rows = [row for row in finished(path) if same(row, dataset=dataset, method=method)]
    if not rows:
        raise SystemExit(f"no search results for {method} on {dataset}: run --stage search first")
    best = min(rows, key=lambda row: float(row["nll"]))
    return {
        "member_lr": float(best["member_lr"]),
        "head_lr": float(best["head_lr"]),
        "max_epochs": int(best["max_epochs"]),
    }


def table(args, path, search_path):
    for seed, dataset, method in itertools.product(args.seeds, args.datasets, args.methods):
        if any(same(row, dataset=dataset, method=method, seed=seed) for row in finished(path)):
            continue
        setting = chosen(search_path, dataset, "sve4" if method == "sve8" else method)
        append(path, cell(dataset, args.data_dir, method, seed, setting, METHODS[method][1], "test"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/data"))
    parser.add_argument("--stage", choices=["search", "table"], required=True)
    parser.add_argument("--datasets", nargs="+", choices=["clinc", "sst2"], default=["clinc", "sst2"])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    search_path = args.out / "text_quality_search.csv"
    if args.stage == "search":
        search(args, search_path)
    else:
        table(args, args.out / "text_quality.csv", search_path)


if __name__ == "__main__":
    main()
