"""Whether a common start is enough: one member for half of the steps, four that go on from it for the other half.

    python examples/benchmarks/late_phase.py --data-dir DATA --csv docs/data/late_phase.csv

The negative log-likelihood of 300 validation items, which no fit learns from, of

* "full": four members, 160 steps each, which is the default;
* "late": one member for 80 steps, then four for 80 more at half of the rates, which start from its numbers with noise
  of their own; "late, same rates" does not halve them;
* "short": four members for 100 steps each, which is as much work as "late".

All members learn from all labels, without a temperature. What the CSV has is not run again. The data are those of
`time_to_quality.py`.
"""

import argparse
import dataclasses
import pathlib
import time

import numpy as np
import torch
from _common import Table, machine
from sklearn.metrics import log_loss
from time_to_quality import SETS, load

import skve

N_MEMBERS, N_STEPS, NOISE = 4, 160, 0.01
RATES = {  # the defaults
    skve.SVEClassifier: {"member_lr": 5e-2, "head_lr": 1e-2},
    skve.SVETextClassifier: {"member_lr": 1e-2, "head_lr": 1e-2},
}


def classifier(name, seed, n_members, n_steps):
    given = {"n_members": n_members, "max_steps": n_steps, "random_state": seed, "device": "cpu", "calibrate": None}
    given["ensemble_params"] = {"folds": None}
    if SETS[name][0].endswith(".npz"):
        return skve.SVEClassifier(image_size=64, **given)
    return skve.SVETextClassifier(**given)


def late(name, seed, X, y, share=0.5):
    trunk = classifier(name, seed, 1, N_STEPS // 2).fit(X, y)
    clf = classifier(name, seed, N_MEMBERS, 1).fit(X, y)
    noise = np.random.default_rng(seed)

    def branched(key, value):
        common = trunk._state.arrays[key]
        if len(value) == 1:
            return common
        return (common + NOISE * noise.standard_normal(value.shape)).astype(value.dtype)

    arrays = {key: branched(key, value) for key, value in clf._state.arrays.items()}
    clf._state = dataclasses.replace(clf._state, arrays=arrays)
    rates = {name: share * rate for name, rate in RATES[type(clf)].items()}
    return clf.set_params(warm_start=True, max_steps=N_STEPS // 2, **rates).fit(X, y)


WAYS = {
    "full": lambda name, seed, X, y: classifier(name, seed, N_MEMBERS, N_STEPS).fit(X, y),
    "late": late,
    "late, same rates": lambda name, seed, X, y: late(name, seed, X, y, 1.0),
    "short": lambda name, seed, X, y: classifier(name, seed, N_MEMBERS, N_STEPS * 5 // 8).fit(X, y),
}


def main(options):
    torch.set_num_threads(options.threads)
    print(machine())
    table = Table(options.csv, ("data", "seed", "way"))
    for seed in options.seeds:
        for name in options.sets:
            X, y, X_valid, y_valid = load(name, options.data_dir, seed)
            for way, fit in WAYS.items():
                cell = {"data": name, "seed": seed, "way": way}
                if cell in table:
                    continue
                start = time.process_time()
                clf = fit(name, seed, X, y)
                seconds = time.process_time() - start
                proba = clf.predict_proba(X_valid)
                members = clf.predict_proba_members(X_valid)
                each = [log_loss(y_valid, member, labels=clf.classes_) for member in members]
                row = {**cell, "nll": log_loss(y_valid, proba, labels=clf.classes_), "mean_member": np.mean(each)}
                table.add({**row, "cpu_seconds": seconds})
                print(*table.rows[-1].values(), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=pathlib.Path, required=True)
    parser.add_argument("--csv", type=pathlib.Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=["digits", "emotion"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--threads", type=int, default=1)
    main(parser.parse_args())
