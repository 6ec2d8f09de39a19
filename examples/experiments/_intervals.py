"""Paired bootstrap intervals of differences between methods, from kept predictions."""

import csv
import pathlib

import numpy as np
from _fits import predictions_of
from _study import show

from skve.uncertainty import entropy

N_RESAMPLES = 2000
COLUMNS = ["study", "data", "factors", "method", "against", "metric", "estimate", "low", "high", "n_seeds", "n_items"]


def write_intervals(path, study, cells, predictions):
    """Write 95 % intervals of each method's figures less those of the study's references, in place of older ones.

    Test items and seeds are drawn anew together, the same ones for all methods; so what makes an item hard for both
    cancels. Only seeds that both methods have count.

    Parameters
    ----------
    path : path
        CSV file; rows of other studies stay.
    study : Study
    cells : list of Cell
        Finished tests.
    predictions : path
        Folder of kept predictions; cells whose file is not there are left out.
    """
    path, rows = pathlib.Path(path), []
    if path.exists():
        with open(path, newline="") as stream:
            rows = [row for row in csv.DictReader(stream) if row["study"] != study.name]
    groups = {}
    for cell in cells:
        folder, name = predictions_of(study.name, cell.data["name"], show(cell.factors))
        file = pathlib.Path(predictions) / folder / f"{name}_{cell.method}_{cell.seed}.npz"
        if file.is_file():
            groups.setdefault(show(cell.factors), {}).setdefault(cell.method, {})[cell.seed] = file
    for factors, methods in groups.items():
        paired = set()
        losses = {method: {seed: read(file) for seed, file in files.items()} for method, files in methods.items()}
        for against in study.test["against"]:
            for method in losses:
                pair = frozenset((method, against))
                if len(pair) < 2 or pair in paired or against not in losses:
                    continue
                paired.add(pair)
                known = {"study": study.name, "data": study.data["name"], "factors": factors}
                for found in differences(losses[method], losses[against]):
                    rows.append({**known, "method": method, "against": against, **found})
    if not rows:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def read(file):
    """Return what the figures are means of, for the items of one fit."""
    with np.load(file) as kept:
        members = {name.removeprefix("members_"): kept[name] for name in kept if name.startswith("members_")}
        truth, classes = kept["y_test"], kept["classes"]
    proba = members["test"].mean(axis=0)
    codes = np.searchsorted(classes, truth)
    confidence, correct = proba.max(axis=1), proba.argmax(axis=1) == codes
    likelihood = np.maximum(proba[np.arange(len(codes)), codes], np.finfo(float).eps)
    uncertain = {name: entropy(group.mean(axis=0)) for name, group in members.items() if name != "valid"}
    return {
        "truth": truth,
        "accuracy": correct.astype(float),
        "nll": -np.log(likelihood),
        "brier": (np.square(proba).sum(axis=1) - 2 * likelihood + 1),
        "ece": (np.ceil(confidence * 15).astype(int) - 1, correct - confidence),
        **{f"{shift}_total": (uncertain["test"], uncertain[shift]) for shift in uncertain if shift != "test"},
    }


def differences(one, other):
    """Return the rows of all metrics of one method less another, each {seed: what `read` returns}."""
    seeds = sorted(set(one) & set(other))
    if not seeds:
        return []
    truth = one[seeds[0]]["truth"]
    if any(not np.array_equal(method[seed]["truth"], truth) for method in (one, other) for seed in seeds):
        raise ValueError("the test items differ between seeds or methods, so that fits cannot be paired")
    metrics = [name for name in one[seeds[0]] if name != "truth" and name in other[seeds[0]]]
    rng = np.random.default_rng(0)
    items, runs = _draws(rng, len(truth)), _draws(rng, len(seeds))
    rows = []
    for metric in metrics:
        foreign = {}  # the draws of foreign items: the same for both methods
        found = []
        for seed in seeds:
            values = []
            for method in (one, other):
                kept = method[seed][metric]
                if metric.endswith("_total"):
                    n = len(kept[1])
                    draws = foreign.setdefault(n, _draws(np.random.default_rng(1), n))
                    values.append(_auroc(kept, items, draws))
                else:
                    values.append(_ece(kept, items) if metric == "ece" else items @ kept)
            found.append(values[0] - values[1])
        drawn = (np.stack(found, axis=1) * runs).sum(axis=1)
        low, high = np.quantile(drawn[1:], [0.025, 0.975])
        row = {"metric": metric, "estimate": drawn[0], "low": low, "high": high}
        row = {name: f"{value:.6g}" if name != "metric" else value for name, value in row.items()}
        rows.append({**row, "n_seeds": len(seeds), "n_items": len(truth)})
    return rows


def _draws(rng, n):
    """Return how often each of `n` items is drawn, as shares (1 + N_RESAMPLES, n); the first row is each once."""
    counts = rng.multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES)
    return np.concatenate([np.ones((1, n)), counts]) / n


def _ece(kept, items):
    bins, gaps = kept
    return np.abs(items @ (gaps[:, None] * (bins[:, None] == np.arange(15)))).sum(axis=1)


def _auroc(kept, items, foreign):
    inside, outside = kept
    higher = (outside > inside[:, None]) + 0.5 * (outside == inside[:, None])
    return ((items @ higher) * foreign).sum(axis=1)
