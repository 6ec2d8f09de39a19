"""What an ensemble of four costs: predictions, one item, one item after `load`, fits, memory.

    python examples/benchmarks/speed.py --csv docs/data/speed.csv                  # a quarter of an hour
    python examples/benchmarks/speed.py --csv docs/data/speed_memory.csv --memory  # two minutes

What the CSV has is not run again; `--cases` and `--parts` choose.

Predictions against four plain float32 passes of the backbone over the same batches; fits against `ensemble="deep"`
with the same batches, precision and number of steps, in two (ViT: one) batches of samples, as few labels are. All of
it runs in one process and in turn; ratios are medians over the rounds. all-MiniLM-L6-v2 with texts of 16 tokens,
EfficientNet-Lite0 with images of 128 pixels, an untrained `vit_small_patch16_224`. Requires an idle machine.

Two rows say where the floor is. The plain passes in bfloat16 are what the hardware gains by that precision. The
passes of four networks read four sets of weights, as an ensemble must, where those of one network find its weights
in the processor's cache.

Memory: the peak of a fit in a process of its own, less what the process held with the backbone loaded.
"""

import argparse
import contextlib
import copy
import dataclasses
import itertools
import multiprocessing
import pathlib
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from _common import Table, forget_peak, machine, memory, require_idle
from image_speed import images, in_turn, seconds
from text_speed import texts_of

import skve

N_MEMBERS, N_TOKENS = 4, 16
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
    "minilm": Case(
        make_text,
        {"fit, all layers": {}, "fit, rank 32": RANK, "fit, last half of the blocks": {"layers": "last:3"}},
    ),
    "efficientnet": Case(
        make_images, {"fit, all layers": {}, "fit, last half of the blocks": {"layers": "last:8"}}, rounds=2
    ),
    "vit": Case(
        make_vit,
        {"fit, all layers": {}, "fit, last half of the blocks": {"layers": "last:6"}},
        batch=8,
        items=16,
        steps=2,
        samples=8,
        rounds=2,
    ),
}


def plain_passes(clf, X, bfloat16=False, copied=False):
    """Return a function that takes the items through the backbone, or through copies of it, once for each member."""
    backbone = clf._load_backbone(clf._state.spec, clf.preprocess_)
    modules = [copy.deepcopy(backbone.module) if copied else backbone.module for _ in range(N_MEMBERS)]

    def run():
        pipeline = clf._make_pipeline(
            clf._check_inputs(X, reset=False), backbone, torch.device("cpu"), training=False
        )
        casts = torch.autocast("cpu", torch.bfloat16) if bfloat16 else contextlib.nullcontext()
        with torch.no_grad(), casts:
            for rows in pipeline.batches(clf.batch_size, None):
                inputs = pipeline.prepare(pipeline.load(rows), None)
                for module in modules:
                    backbone.features(module, inputs)

    return run


def predicting(clf, X, precision):
    """Return a function that predicts items in a precision; the first call prepares, and is not timed."""
    clf = copy.copy(clf).set_params(predict_precision=precision)
    return lambda: clf.predict_proba(X)


def repeated(function, times):
    return lambda: [function() for _ in range(times)]


def prediction_rows(clf, X, rounds):
    """Yield (what, reference, seconds of both in each round) of predictions."""
    reference = "four plain float32 passes"
    sides = {reference: plain_passes(clf, X)}
    sides |= {f"predict_proba, {name}": predicting(clf, X, name) for name in ("float32", "bfloat16")}
    sides["floor: four plain bfloat16 passes"] = plain_passes(clf, X, bfloat16=True)
    _, times = in_turn(sides, rounds)
    yield from ((name, reference, times[name], times[reference]) for name in list(sides)[1:])


def one_item_rows(clf, X, rounds):
    """Yield the same of one item; before and after `load`."""
    reference = "four plain float32 passes of one item"
    one = X[:1]
    with tempfile.TemporaryDirectory() as folder:
        clf.save(folder)
        given = {} if isinstance(clf.backbone, str) else {"backbone": clf.backbone}  # a module is not saved
        loaded = skve.load(folder, **given)
        sides = {reference: plain_passes(clf, one)}
        sides |= {f"one item, {name}": predicting(clf, one, name) for name in ("float32", "bfloat16")}
        sides["one item after load, second call"] = predicting(loaded, one, "float32")
        sides["floor: passes of four networks, one item"] = plain_passes(clf, one, copied=True)
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


PARTS = {
    "predict": lambda case, clf, X, options: prediction_rows(clf, X[: case.items], options.rounds),
    "one": lambda case, clf, X, options: one_item_rows(clf, X, options.rounds),
    "fit": lambda case, clf, X, options: fit_rows(case, clf, X[: case.samples]),
}


def speed_rows(options, table):
    for name, part in itertools.product(options.cases, options.parts):
        if {"case": name, "part": part} in table:
            continue
        case = CASES[name]
        clf, X = case.make(max(case.items, case.samples))
        clf.set_params(batch_size=case.batch)
        if part != "fit":
            clf.set_params(max_steps=1).fit(X[: case.batch], np.arange(case.batch) % 2)
        for what, reference, taken, of_reference in PARTS[part](case, clf, X, options):
            ratios = np.array(taken) / np.array(of_reference)
            yield {
                "case": name,
                "part": part,
                "what": what,
                "reference": reference,
                "ratio": f"{np.median(ratios):.3f}",
                "lowest": f"{ratios.min():.3f}",
                "highest": f"{ratios.max():.3f}",
                "seconds": f"{np.median(taken):.4f}",
                "seconds_of_reference": f"{np.median(of_reference):.4f}",
            }


def peak(name, parameters, threads):
    """Return the MiB that a fit takes at its peak."""
    torch.set_num_threads(threads)
    case = CASES[name]
    clf, X = case.make(case.samples)
    clf.set_params(batch_size=case.batch, max_steps=case.steps, **parameters)
    clf._load_backbone(clf.backbone, classes=np.arange(2))
    forget_peak()
    before = memory("VmRSS")
    clf.fit(X, np.arange(len(X)) % 2)
    return memory("VmHWM") - before


def memory_rows(options, table):
    context = multiprocessing.get_context("spawn")
    for name in options.cases:
        sides = {
            DEEP: {"ensemble": "deep"},
            "fit of one fine-tune": {"ensemble": "single", "ensemble_params": None},
            **CASES[name].fits,
        }
        for what, parameters in sides.items():
            cell = {"case": name, "part": "memory", "what": what}
            if cell not in table:
                with ProcessPoolExecutor(1, context) as fresh:
                    found = fresh.submit(peak, name, parameters, options.threads).result()
                yield {**cell, "peak_mib": f"{found:.0f}"}


def main(options):
    if not options.memory:
        require_idle(options.force)
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    print(machine())
    rows = memory_rows if options.memory else speed_rows
    table = Table(options.csv, ("case", "part", "what") if options.memory else ("case", "part"))
    for row in rows(options, table):
        table.add(row)
        print(*row.values(), sep=" | ", flush=True)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=pathlib.Path, required=True)
    parser.add_argument("--memory", action="store_true", help="peak memory in place of times, also on a busy machine")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3, help="of predictions")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--force", action="store_true", help="run on a busy machine; the figures mean nothing then")
    main(parser.parse_args())
