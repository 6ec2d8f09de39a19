"""What quantised weights change: memory, time and likelihood with `backbone_dtype` float32, bfloat16, int8 and int4.

    python examples/benchmarks/quantised.py --data-dir DATA --csv docs/data/quantised.csv
    python examples/benchmarks/quantised.py --csv docs/data/quantised.csv --show

An ensemble on all-MiniLM-L6-v2 is fitted on few texts a class and predicts other texts, those of the test split where
there is one. Each fit, and each prediction by the saved model, is a process of its own, whose peak of memory and time
it is; libraries are loaded before. `kept_mb` is what the process keeps of the backbone: its weights and singular
vectors. Besides "sve", `--ensembles` takes others, which show what is due to the weights and what to the directions.
What the CSV has is not run again.

DATA holds `sst2.jsonl.gz` (records `{split, text, label}` of the Stanford Sentiment Treebank's binary task),
`emotion.jsonl.gz` (likewise, of TweetEval's emotions) and `ag_news_test7600.jsonl.gz` (`{text, label}` of AG News).
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from _common import Table, forget_peak, machine, memory, read_jsonl

PER_CLASS = {"sst2": 100, "emotion": 20, "ag_news_test7600": 15}
DTYPES = ("float32", "bfloat16", "int8", "int4")
KEY = ("data", "ensemble", "dtype", "seed", "steps", "members", "test", "backbone")


def load(data, data_dir, seed, n_test):
    """Return training texts and labels, and test texts and labels, the latter the same for all seeds."""
    rows = read_jsonl(f"{data_dir}/{data}.jsonl.gz")
    fixed = np.random.default_rng(0).permutation(len(rows))
    is_test = np.array([row.get("split", "") == "test" for row in rows])
    if not is_test.any():
        is_test[fixed[:n_test]] = True
    labels = np.array([str(row["label"]) for row in rows])
    order = np.random.default_rng(seed).permutation(len(rows))
    train = np.concatenate(
        [order[(labels[order] == c) & ~is_test[order]][: PER_CLASS[data]] for c in np.unique(labels)]
    )
    test = fixed[is_test[fixed]][:n_test]
    return [rows[i]["text"] for i in train], labels[train], [rows[i]["text"] for i in test], labels[test]


def load_code():
    """Fit and predict once on a toy, so that no figure counts the code of libraries."""
    import skve
    from skve.testing import make_toy_text_backbone

    X, y = ["a", "b c", "a b", "c"], [0, 1, 0, 1]
    skve.SVETextClassifier(make_toy_text_backbone("bert"), n_members=1, max_steps=1).fit(X, y).predict_proba(X)
    skve.clear_cache()


def fit(options, folder):
    """Fit, save, and return memory and time."""
    from skve import SVETextClassifier

    X, y, *_ = load(options.data, options.data_dir, options.seed, options.test)
    clf = SVETextClassifier(
        options.backbone,
        ensemble=options.ensemble,
        n_members=options.members,
        max_steps=options.steps,
        backbone_dtype=options.dtype,
        random_state=options.seed,
    )
    load_code()
    forget_peak()
    before, start = memory("VmRSS"), time.perf_counter()
    clf.fit(X, y)
    seconds, peak = time.perf_counter() - start, memory("VmHWM") - before
    clf.save(folder)
    kept = clf._load_backbone(clf._state.spec, clf.preprocess_).nbytes / 2**20
    return {"kept_mb": kept, "fit_mb": peak, "fit_s": seconds}


def predict(options, folder):
    """Load, predict twice, and return memory, time and measures."""
    import skve
    from skve.metrics import expected_calibration_error

    *_, X, y = load(options.data, options.data_dir, options.seed, options.test)
    load_code()
    forget_peak()
    before = memory("VmRSS")
    clf = skve.load(folder)
    clf.predict_proba(X[:1])  # loads and decomposes the backbone
    start = time.perf_counter()
    proba = clf.predict_proba(X)
    seconds, peak = time.perf_counter() - start, memory("VmHWM") - before
    nll = -np.log(proba[np.arange(len(y)), np.searchsorted(clf.classes_, y)]).mean()
    measures = {"nll": float(nll), "accuracy": float(np.mean(clf.classes_[proba.argmax(axis=1)] == y))}
    measures["ece"] = float(expected_calibration_error(y, proba, labels=clf.classes_))
    return {"predict_mb": peak, "predict_s": seconds, **measures}


def measure(options, cell):
    """Run a fit and a prediction in processes of their own, and return the row of a cell."""
    arguments = [f"--{name}={value}" for name, value in cell.items()]
    row = dict(cell)
    with tempfile.TemporaryDirectory() as folder:
        for step in ("fit", "predict"):
            command = [sys.executable, __file__, step, f"--folder={folder}/model", f"--data-dir={options.data_dir}"]
            found = subprocess.run([*command, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout
            row |= json.loads(found.splitlines()[-1])
    return row


def show(table):
    """Print means over seeds, and the differences to float32 of the same ensemble and seed."""
    groups: dict = {}
    for row in table.rows:
        groups.setdefault((row["data"], row["ensemble"], row["steps"], row["members"]), {}).setdefault(
            row["dtype"], {}
        )[row["seed"]] = row
    columns = ("nll", "accuracy", "kept_mb", "fit_mb", "fit_s", "predict_mb", "predict_s")
    print("data, ensemble, steps, members, dtype, seeds,", ", ".join(columns), "and the difference of nll to float32")
    for group, dtypes in groups.items():
        for dtype, rows in dtypes.items():
            means = [np.mean([float(row[name]) for row in rows.values()]) for name in columns]
            both = rows.keys() & dtypes.get("float32", {}).keys()
            pairs = [float(rows[seed]["nll"]) - float(dtypes["float32"][seed]["nll"]) for seed in sorted(both)]
            shown = [*(f"{value:.4g}" for value in means), f"{np.mean(pairs):+.4f}" if pairs else ""]
            print(*group, dtype, len(rows), *shown, sep=", ")


def main(options):
    table = Table(options.csv, KEY)
    if options.show:
        show(table)
        return
    print(machine(), file=sys.stderr)
    for seed in range(options.seeds):
        for data in options.datasets:
            for ensemble in options.ensembles:
                for dtype in options.dtypes:
                    values = (
                        data,
                        ensemble,
                        dtype,
                        seed,
                        options.steps,
                        options.members,
                        options.test,
                        options.backbone,
                    )
                    cell = dict(zip(KEY, values, strict=True))
                    if cell not in table:
                        table.add(measure(options, cell))
                        print(*table.rows[-1].values(), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", nargs="?", choices=("fit", "predict"), help=argparse.SUPPRESS)
    for name in ("data", "ensemble", "dtype", "folder"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--data-dir")
    parser.add_argument("--csv", type=pathlib.Path)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--datasets", nargs="+", choices=PER_CLASS, default=list(PER_CLASS))
    parser.add_argument("--ensembles", nargs="+", default=["sve"])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--backbone", default="bundled:all-MiniLM-L6-v2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--test", type=int, default=1000)
    given = parser.parse_args()
    if given.step is None:
        main(given)
    else:
        print(json.dumps({"fit": fit, "predict": predict}[given.step](given, given.folder)))
