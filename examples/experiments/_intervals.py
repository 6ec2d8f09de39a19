"""Paired bootstrap intervals of differences between methods, from kept predictions."""

import csv
import os
import pathlib

import numpy as np
from _fits import predictions_of, temperature_of
from _study import show

from skve._ensembles import Likelihood
from skve.uncertainty import entropy

N_RESAMPLES = 2000
COLUMNS = [
    *("study", "data", "factors", "method", "against", "metric", "estimate", "low", "high", "n_seeds", "n_items"),
    "settings",
]


def write_intervals(path, study, cells, predictions):
    """Write 95 % intervals of each method's figures less those of the study's references, in place of older ones.

    Test items and seeds are drawn anew together, the same ones for all methods; so what makes an item hard for both
    cancels. Only seeds that both methods have count.

    Parameters
    ----------
    path : path
        CSV file; rows of other pairs stay.
    study : Study
    cells : list of Cell
        Finished tests.
    predictions : path
        Folder of kept predictions; cells whose file is not there are left out.
    """
    path, groups, digests, found = pathlib.Path(path), {}, {}, {}
    for cell in cells:
        file = predictions_of(predictions, cell)
        if file.is_file():
            groups.setdefault(show(cell.factors), {}).setdefault(cell.method, {})[cell.seed] = file
            digests[show(cell.factors), cell.method] = cell.digest
    for factors, methods in groups.items():
        losses = {
            method: {seed: read(file, study.test["on"] == "test") for seed, file in files.items()}
            for method, files in methods.items()
        }
        for against in study.test["against"]:
            for method in losses:
                pair = (study.name, factors, frozenset((method, against)))
                if method == against or against not in losses or pair in found:
                    continue
                known = {"study": study.name, "data": study.data["name"], "factors": factors}
                known |= {"method": method, "against": against}
                known["settings"] = f"{digests[factors, method]} {digests[factors, against]}"
                found[pair] = [{**known, **row} for row in differences(losses[method], losses[against])]
    kept = []
    if path.exists():
        with open(path, newline="") as stream:
            kept = list(csv.DictReader(stream))
    pairs = [(row["study"], row["factors"], frozenset((row["method"], row["against"]))) for row in kept]
    rows = [row for row, pair in zip(kept, pairs, strict=True) if pair not in found]
    rows += [row for new in found.values() for row in new]
    if rows:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.unfinished")
        with open(unfinished, "w", newline="") as stream:  # a kill leaves the old file whole
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(unfinished, path)


def read(file, calibrated=True):
    """Return what the figures are means of, for the items of one fit.

    With `calibrated` after a temperature, too: the validation items are others than those that judge.
    """
    with np.load(file) as kept:
        members = {name.removeprefix("members_"): kept[name] for name in kept if name.startswith("members_")}
        truth, classes, y_valid = kept["y_test"], kept["classes"], kept["y_valid"]
        fitted = float(kept["temperature"]) if "temperature" in kept else 1.0  # files of skve 0.1 have none
    temper = Likelihood(len(classes)).temper
    proba = temper(members["test"].mean(axis=0), fitted)
    codes = np.searchsorted(classes, truth)
    confidence, correct = proba.max(axis=1), proba.argmax(axis=1) == codes
    likelihood = _likelihood(proba, codes)
    tempered = {}
    if calibrated:
        more = temperature_of(temper(members["valid"].mean(axis=0), fitted), y_valid, classes)
        tempered["nll_temperature"] = -np.log(_likelihood(temper(proba, more), codes))
    uncertain = {name: entropy(group.mean(axis=0)) for name, group in members.items() if name != "valid"}
    return {
        "truth": truth,
        "accuracy": correct.astype(float),
        "nll": -np.log(likelihood),
        **tempered,
        "brier": (np.square(proba).sum(axis=1) - 2 * likelihood + 1),
        "ece": (np.ceil(confidence * 15).astype(int) - 1, correct - confidence),
        **{f"{shift}_total": (uncertain["test"], uncertain[shift]) for shift in uncertain if shift != "test"},
    }


def _likelihood(proba, codes):
    return np.maximum(proba[np.arange(len(codes)), codes], np.finfo(float).eps)


def differences(one, other):
    """Return the rows of all metrics of one method less another, each {seed: what `read` returns}."""
    seeds = sorted(set(one) & set(other))
    if not seeds:
        return []
    truth = one[seeds[0]]["truth"]
    if any(not np.array_equal(one[seed]["truth"], other[seed]["truth"]) for seed in seeds):
        raise ValueError("the test items of the two methods differ, so that their fits cannot be paired")
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
