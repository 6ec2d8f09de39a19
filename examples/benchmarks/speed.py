"""What an ensemble of four costs: predictions, one item, one item after `load`, fits, memory.

    python examples/benchmarks/speed.py            # writes docs/data/speed.csv; a quarter of an hour
    python examples/benchmarks/speed.py --memory   # writes docs/data/speed_memory.csv; two minutes

Predictions against four plain float32 passes of the backbone over the same batches; fits against `ensemble="deep"`
with the same batches, precision and number of steps, in two (ViT: one) batches of samples, as few labels are. All of
it runs in one process and in turn; ratios are medians over the rounds. all-MiniLM-L6-v2 with texts of 16 tokens,
EfficientNet-Lite0 with images of 128 pixels, an untrained `vit_small_patch16_224`. Requires an idle machine.

Memory: the peak of a fit, or of a prediction, in a process of its own, less what it held with the backbone loaded.
"""

import argparse
import copy
import csv
import dataclasses
import multiprocessing
import pathlib
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from _common import forget_peak, machine, memory, require_idle
from image_speed import images, in_turn, seconds
from text_speed import texts_of

import skve

N_MEMBERS, N_TOKENS = 4, 16
DATA = pathlib.Path(__file__).parents[2] / "docs/data"
# Without folds: otherwise members leave samples out, and are asked about them after the training.
COMMON = {"n_members": N_MEMBERS, "random_state": 0, "device": "cpu", "calibrate": None}
COMMON |= {"ensemble_params": {"folds": None}, "precision": "float32"}
DEEP = "fit of deep, as many steps"


@dataclasses.dataclass(frozen=True)
class Case:
    """A backbone with inputs.

    Attributes
    ----------
    make : callable
        `make(n_items)` returns a classifier and items.
    fits : dict of str to dict
        Parameters of the fits that are compared with `DEEP`.
    batch, items, steps, samples, rounds : int
        Of a batch; of a prediction; of a fit; rounds of fits.
    """

    make: Callable
    fits: dict
    batch: int = 32
    items: int = 128
    steps: int = 6
    samples: int = 64
    rounds: int = 3


def make_text(n_items):
    clf = skve.SVETextClassifier(**COMMON)
    tokenizer = clf._load_backbone(clf.backbone, classes=np.arange(2)).tokenizer
    return clf, texts_of(tokenizer, n_items, N_TOKENS)


def make_images(n_items):
    return skve.SVEClassifier(image_size=128, augment=None, **COMMON), images(n_items, 128)[0]


def make_vit(n_items):
    import timm

    module = timm.create_model("vit_small_patch16_224", pretrained=False)
    return skve.SVEClassifier(module, augment=None, **COMMON), images(n_items, 224)[0]


RANK = {"ensemble_params": {"folds": None, "rank": 32}}
CASES = {
    f"MiniLM, {N_TOKENS} tokens": Case(
        make_text,
        {"fit, all layers": {}, "fit, rank 32": RANK, "fit, last half of the blocks": {"layers": "last:3"}},
    ),
    "EfficientNet-Lite0, 128 px": Case(
        make_images, {"fit, all layers": {}, "fit, last half of the blocks": {"layers": "last:8"}}, rounds=2
    ),
    "ViT-S/16, 224 px": Case(
        make_vit,
        {"fit, all layers": {}, "fit, last half of the blocks": {"layers": "last:6"}},
        batch=8,
        items=16,
        steps=2,
        samples=8,
        rounds=2,
    ),
}


def plain_passes(clf, X):
    """Return a function that takes the items through the backbone once for each member, in float32."""
    backbone = clf._load_backbone(clf._state.spec, clf.preprocess_)

    def run():
        pipeline = clf._make_pipeline(
            clf._check_inputs(X, reset=False), backbone, torch.device("cpu"), training=False
        )
        with torch.no_grad():
            for rows in pipeline.batches(clf.batch_size, None):
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
        given = {} if isinstance(clf.backbone, str) else {"backbone": clf.backbone}  # a module is not saved
        loaded = skve.load(folder, **given)
        sides = {reference: plain_passes(clf, one)}
        sides |= {f"one item, {name}": predicting(clf, one, name) for name in ("float32", "bfloat16")}
        sides["one item after load, second call"] = predicting(loaded, one, "float32")
        _, times = in_turn({name: repeated(function, 10) for name, function in sides.items()}, rounds)
    yield from ((name, reference, times[name], times[reference]) for name in list(sides)[1:])


def fit_rows(case, clf, X):
    """Yield (what, reference, seconds of both in each round) of fits."""
    settings = {DEEP: {"ensemble": "deep"}, **case.fits}

    def fit(parameters, n_steps):
        return copy.copy(clf).set_params(max_steps=n_steps, **parameters).fit(X, np.arange(len(X)) % 2)

    for parameters in settings.values():
        fit(parameters, 1)  # decompositions
    times = {name: [] for name in settings}
    for _ in range(case.rounds):
        for name, parameters in settings.items():
            times[name].append(seconds(lambda parameters=parameters: fit(parameters, case.steps)))
    yield from ((name, DEEP, times[name], times[DEEP]) for name in case.fits)


def speed_rows(options):
    for name, case in CASES.items():
        clf, X = case.make(max(case.items, case.samples))
        clf.set_params(batch_size=case.batch)
        fitted = copy.copy(clf).set_params(max_steps=1).fit(X[: case.batch], np.arange(case.batch) % 2)
        found = list(prediction_rows(fitted, X[: case.items], options.rounds))
        found += fit_rows(case, clf, X[: case.samples])
        for what, reference, taken, of_reference in found:
            ratios = np.array(taken) / np.array(of_reference)
            row = {
                "case": name,
                "what": what,
                "reference": reference,
                "ratio": f"{np.median(ratios):.3f}",
                "lowest": f"{ratios.min():.3f}",
                "highest": f"{ratios.max():.3f}",
                "seconds": f"{np.median(taken):.4f}",
                "seconds_of_reference": f"{np.median(of_reference):.4f}",
            }
            print(f"{name:28} {what:34} {row['ratio']} ({row['lowest']} to {row['highest']})", flush=True)
            yield row


def peak(name, what, parameters, threads):
    """Return the MiB that a fit, or a prediction, takes at its peak."""
    torch.set_num_threads(threads)
    case = CASES[name]
    clf, X = case.make(case.samples)
    y = np.arange(len(X)) % 2
    clf.set_params(batch_size=case.batch, max_steps=case.steps, **parameters)
    clf._load_backbone(clf.backbone, classes=np.arange(2))
    if what.startswith("predict"):
        clf.set_params(max_steps=1).fit(X, y)
    forget_peak()
    before = memory("VmRSS")
    clf.predict_proba(X) if what.startswith("predict") else clf.fit(X, y)
    return memory("VmHWM") - before


def memory_rows(options):
    context = multiprocessing.get_context("spawn")
    for name, case in CASES.items():
        sides = {
            DEEP: {"ensemble": "deep"},
            "fit of one fine-tune": {"ensemble": "single"},
            **case.fits,
            "predict": {},
        }
        for what, parameters in sides.items():
            with ProcessPoolExecutor(1, context) as fresh:
                found = fresh.submit(peak, name, what, parameters, options.threads).result()
            row = {"case": name, "what": what, "peak_mib": f"{found:.0f}"}
            print(f"{name:28} {what:34} {row['peak_mib']} MiB", flush=True)
            yield row


def main(options):
    require_idle(options.force)
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    print(machine())
    table = list(memory_rows(options) if options.memory else speed_rows(options))
    path = options.csv or DATA / ("speed_memory.csv" if options.memory else "speed.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    print(f"{time.perf_counter() - start:.0f} s; the table is in {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true", help="peak memory in place of times")
    parser.add_argument("--csv", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3, help="of predictions")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--force", action="store_true", help="run on a busy machine; the figures mean nothing then")
    main(parser.parse_args())
