"""What an ensemble of four costs: predictions, one item, one item after `load`, fits.

    python examples/benchmarks/speed.py                  # writes docs/data/speed.csv; under six minutes

Predictions against four plain float32 passes of the backbone over the same batches; fits against `ensemble="deep"`
with the same batches, precision and number of steps. Everything runs in one process and in turn; ratios are medians
over the rounds. all-MiniLM-L6-v2 with texts of 16 tokens, EfficientNet-Lite0 with images of 128 pixels. Requires an
idle machine.
"""

import argparse
import copy
import csv
import pathlib
import tempfile
import time

import numpy as np
import torch
from _common import machine, require_idle
from image_speed import images, in_turn
from text_speed import texts_of

import skve

N_MEMBERS, BATCH, N_TOKENS, SIDE = 4, 32, 16, 128
TABLE = pathlib.Path(__file__).parents[2] / "docs/data/speed.csv"
# Without folds: otherwise members leave samples out, and are asked about them after the training.
COMMON = {"n_members": N_MEMBERS, "batch_size": BATCH, "random_state": 0, "device": "cpu", "calibrate": None}
COMMON |= {"ensemble_params": {"folds": None}, "precision": "float32"}


def text_case(n_items):
    """Return a classifier with all layers, the `layers` of its last half, and items."""
    clf = skve.SVETextClassifier(**COMMON)
    tokenizer = clf._load_backbone(clf.backbone, classes=np.arange(2)).tokenizer
    return clf, "last:3", texts_of(tokenizer, n_items, N_TOKENS)


def image_case(n_items):
    """Return a classifier with all layers, the `layers` of its last half, and items."""
    return skve.SVEClassifier(image_size=SIDE, augment=None, **COMMON), "last:8", images(n_items, SIDE)[0]


def plain_passes(clf, X):
    """Return a function that takes the items through the backbone once for each member, in float32."""
    backbone = clf._load_backbone(clf._state.spec, clf.preprocess_)

    def run():
        pipeline = clf._make_pipeline(
            clf._check_inputs(X, reset=False), backbone, torch.device("cpu"), training=False
        )
        with torch.no_grad():
            for rows in pipeline.batches(BATCH, None):
                inputs = pipeline.prepare(pipeline.load(rows), None)
                for _ in range(N_MEMBERS):
                    backbone.features(backbone.module, inputs)

    return run


def predicting(clf, X, precision):
    """Return a function that predicts items in a precision; the first call prepares, and is not timed."""
    clf = copy.copy(clf).set_params(predict_precision=precision)
    return lambda: clf.predict_proba(X)


def repeated(function, times):
    return lambda: [function() for _ in range(times)]


def prediction_rows(clf, X, rounds):
    """Yield (what, reference, seconds of both in each round) of predictions; `clf` is fitted."""
    reference = "four plain float32 passes"
    sides = {reference: plain_passes(clf, X)}
    sides |= {f"predict_proba, {name}": predicting(clf, X, name) for name in ("float32", "bfloat16")}
    _, times = in_turn(sides, rounds)
    yield from ((name, reference, times[name], times[reference]) for name in list(sides)[1:])

    reference = "four plain float32 passes of one item"
    one = X[:1]
    with tempfile.TemporaryDirectory() as folder:
        clf.save(folder)
        loaded = skve.load(folder)
        sides = {reference: plain_passes(clf, one)}
        sides |= {f"one item, {name}": predicting(clf, one, name) for name in ("float32", "bfloat16")}
        sides["one item after load, second call"] = predicting(loaded, one, "float32")
        _, times = in_turn({name: repeated(function, 10) for name, function in sides.items()}, rounds)
    yield from ((name, reference, times[name], times[reference]) for name in list(sides)[1:])


def fit_rows(clf, half, X, rounds, n_steps):
    """Yield (what, reference, seconds of both in each round) of fits."""
    reference = "fit of deep, as many steps"
    X, y = X[: BATCH * n_steps], np.arange(len(X[: BATCH * n_steps])) % 2
    settings = {reference: {"ensemble": "deep"}, "fit, all layers": {}, f"fit, layers={half!r}": {"layers": half}}

    def fit(parameters):
        return copy.copy(clf).set_params(max_steps=n_steps, **parameters).fit(X, y)

    sides = {name: lambda parameters=parameters: fit(parameters) for name, parameters in settings.items()}
    _, times = in_turn(sides, rounds)
    yield from ((name, reference, times[name], times[reference]) for name in list(sides)[1:])


def rows_of(case, clf, half, X, options):
    fitted = copy.copy(clf).set_params(max_steps=1).fit(X[:BATCH], np.arange(BATCH) % 2)
    found = list(prediction_rows(fitted, X[: options.items], options.rounds))
    found += fit_rows(clf, half, X, options.fit_rounds, options.steps)
    for what, reference, taken, of_reference in found:
        ratios = np.array(taken) / np.array(of_reference)
        yield {
            "case": case,
            "what": what,
            "reference": reference,
            "ratio": f"{np.median(ratios):.3f}",
            "lowest": f"{ratios.min():.3f}",
            "highest": f"{ratios.max():.3f}",
            "seconds": f"{np.median(taken):.4f}",
            "seconds_of_reference": f"{np.median(of_reference):.4f}",
        }


def main(options):
    require_idle(options.force)
    torch.set_num_threads(options.threads)
    start, table = time.perf_counter(), []
    print(machine())
    n_items = max(options.items, BATCH * options.steps)
    cases = {
        f"MiniLM, {N_TOKENS} tokens": text_case,
        f"EfficientNet-Lite0, {SIDE} px": image_case,
    }
    for case, make in cases.items():
        for row in rows_of(case, *make(n_items), options):
            table.append(row)
            print(f"{case:28} {row['what']:34} {row['ratio']} ({row['lowest']} to {row['highest']})", flush=True)
    options.csv.parent.mkdir(parents=True, exist_ok=True)
    with open(options.csv, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    print(f"{time.perf_counter() - start:.0f} s; the table is in {options.csv}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=pathlib.Path, default=TABLE)
    parser.add_argument("--items", type=int, default=128, help="items of a prediction")
    parser.add_argument("--steps", type=int, default=4, help="training steps of a fit")
    parser.add_argument("--rounds", type=int, default=5, help="of predictions")
    parser.add_argument("--fit-rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--force", action="store_true", help="run on a busy machine; the figures mean nothing then")
    main(parser.parse_args())
