"""Seconds until a prediction is as good as others: to a negative log-likelihood, on three data sets.

    python examples/benchmarks/time_to_quality.py run  --data-dir DATA --csv docs/data/time_to_quality.csv
    python examples/benchmarks/time_to_quality.py show --csv docs/data/time_to_quality.csv

`run` fits the singular value ensemble and the deep ensemble, each with the defaults of its kind of inputs, and
logistic regression on features of the frozen backbone (C by cross-validation). The clock starts before the backbone
is loaded; reading, decompositions and selection count. 300 validation items, which no fit learns from, judge each
round; the time that this takes is left out. A fit runs in a process of its own; what the CSV has is not run again.

`show` asks for the seconds until the NLL that all reach, and until the one that the two ensembles reach: the largest
of their lowest. `--version LABEL` names another version of skve, which PYTHONPATH puts in front.

Data: SST-2 and the emotions of TweetEval, lines of JSON with "split", "text" and "label", and Sign Language Digits
(https://github.com/ardamavi/Sign-Language-Digits-Dataset) as an npz with JPEG bytes, see `_common.load_jpegs`.
"""

import argparse
import csv
import multiprocessing
import pathlib
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from _common import Table, load_jpegs, machine, read_jsonl, require_idle

N_VALID = 300
SETS = {"emotion": ("emotion.jsonl.gz", 20), "sst2": ("sst2.jsonl.gz", 100), "digits": ("sign_digits_100px.npz", 10)}
METHODS = ("sve", "deep", "regression")
KEY = ("data", "method", "version", "seed")


def load(name, data_dir, seed):
    """Return training items and labels, and those for validation."""
    path, per_class = SETS[name]
    if path.endswith(".npz"):
        items, codes, classes = load_jpegs(data_dir / path, "train")
        labels = np.asarray(classes)[codes].astype(str)
    else:
        rows = [row for row in read_jsonl(data_dir / path) if row["split"] == "train"]
        items, labels = [row["text"] for row in rows], np.array([str(row["label"]) for row in rows])
    order = np.random.default_rng(seed).permutation(len(items))
    train = np.concatenate([order[labels[order] == label][:per_class] for label in np.unique(labels)])
    valid = order[~np.isin(order, train)][:N_VALID]
    return [items[i] for i in train], labels[train], [items[i] for i in valid], labels[valid]


def clock():
    """Return a callback that notes the seconds of each round, without those of the validation."""
    from skorch.callbacks import Callback

    class Clock(Callback):
        def __init__(self):
            self.left_out, self.seconds, self.start = 0.0, [], time.perf_counter()

        def on_batch_end(self, net, training, **kwargs):
            self.last = time.perf_counter() if training else self.last

        def on_epoch_end(self, net, **kwargs):
            now = time.perf_counter()
            self.left_out += now - self.last
            self.seconds.append(self.last - self.start - (self.left_out - (now - self.last)))

    return Clock()


def fit(name, method, options):
    """Return a list of (seconds, NLL), one for each round."""
    import torch
    from sklearn.metrics import log_loss

    import skve

    torch.set_num_threads(options.threads)
    X, y, X_valid, y_valid = load(name, options.data_dir, options.seed)
    parameters = {"n_members": 4, "random_state": options.seed, "device": "cpu", "calibrate": None}
    classifier = skve.SVETextClassifier
    if SETS[name][0].endswith(".npz"):
        classifier, parameters["image_size"] = skve.SVEClassifier, 96
    timer = clock()
    if method == "regression":
        parameters |= {"ensemble": "head", "n_members": 1, "ensemble_params": {"bootstrap": False}}
        clf = classifier(**parameters).fit(X, y)
        seconds = time.perf_counter() - timer.start
        return [(seconds, log_loss(y_valid, clf.predict_proba(X_valid), labels=clf.classes_))]
    clf = classifier(ensemble=method, callbacks=[timer], **parameters)
    clf.fit(X, y, X_val=X_valid, y_val=y_valid)
    return list(zip(timer.seconds, clf.history_["valid_nll"], strict=True))


def run(options):
    require_idle(options.force)
    print(machine())
    table, context = Table(options.csv, KEY), multiprocessing.get_context("spawn")
    for name in options.sets:
        for method in options.methods:
            cell = {"data": name, "method": method, "version": options.version, "seed": options.seed}
            if cell in table:
                continue
            with ProcessPoolExecutor(1, context) as fresh:
                rounds = fresh.submit(fit, name, method, options).result()
            # One row for a fit, so that a kill leaves whole fits.
            columns = zip(*rounds, strict=True)
            seconds, nll = (" ".join(f"{value:.4g}" for value in column) for column in columns)
            table.add({**cell, "threads": options.threads, "seconds": seconds, "nll": nll})
            print(
                f"{name:8} {method:10} {seconds.split()[-1]:>8} s, NLL {min(map(float, nll.split())):.4f}", flush=True
            )


def show(options):
    with open(options.csv, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    print(
        "| data | version | method | lowest NLL | seconds to it | to what all reach | to what the ensembles reach |"
    )
    print("|---|---|---|---|---|---|---|")
    for data in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == data]
        curves = [
            (row, *(np.array([float(value) for value in row[name].split()]) for name in ("seconds", "nll")))
            for row in own
        ]
        targets = [
            max(nll.min() for row, _, nll in curves if row["method"] != left_out) for left_out in (None, "regression")
        ]
        for row, seconds, nll in curves:
            times = [seconds[nll <= target].min(initial=np.inf) for target in targets]
            shown = [
                f"{t:.1f} ({target:.3f})" if t < np.inf else "not reached"
                for t, target in zip(times, targets, strict=True)
            ]
            best = f"{nll.min():.3f} | {seconds[nll.argmin()]:.1f}"
            print(f"| {data} | {row['version']} | {row['method']} | {best} | {' | '.join(shown)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["run", "show"])
    parser.add_argument("--data-dir", type=pathlib.Path)
    parser.add_argument("--csv", type=pathlib.Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--version", default="0.2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--force", action="store_true", help="run on a busy machine; the figures mean nothing then")
    given = parser.parse_args()
    run(given) if given.stage == "run" else show(given)
