"""Tune the methods of a study with all trials of a method trained at once, as members of one ensemble.

    python examples/experiments/stacked.py examples/experiments/studies/main_sst2.toml --data-dir DATA --csv CSV

Made for GPUs, which small fits leave idle most of the time. The rows are those that the tuning of `run.py` writes,
which goes on with the tests: each trial has the members and the batches of a fit of its own. Trials of a method may
differ in `RATES` only; methods whose members do not share their batches are left to `run.py`.
"""

import argparse
import os
import sys
import time

import numpy as np
import torch
from _data import load
from _fits import judge, make_classifier, row_of
from _study import Study, show
from run import Record
from skorch.callbacks import LRScheduler
from torch.optim.lr_scheduler import LambdaLR

from skve._ensembles import Head
from skve._fitted import prediction
from skve._runtime.device import neutral_modes, resolve_device
from skve._runtime.randomness import Seeds
from skve._training import build, loop
from skve._training.batches import training_batches
from skve._training.folds import split_folds
from skve._training.schedule import learning_rate_factor, plan_course

RATES = ("member_lr", "head_lr", "weight_decay", "head_weight_decay")


class NotStackedError(ValueError):
    """The members of an estimator cannot be trained beside those of another one."""


class StackedNet(loop.Net):
    """The training loop of members that have rates and decays of their own.

    Parameters
    ----------
    ensemble : Ensemble
        As many members for each of the settings, one after another.
    each : list of Settings
        They differ in `RATES`.
    course : Course
    callbacks : list
    chunk : int
    """

    def __init__(self, ensemble, each, course, callbacks, chunk):
        super().__init__(ensemble, each[0], course, callbacks, chunk)
        self.each = each

    def parameter_groups(self):
        parts = np.array_split(self.module_.trained, len(self.each))
        return [
            g for part, own in zip(parts, self.each, strict=True) for g in loop.groups_of(self.module_, part, own)
        ]


def fit_stacked(classifiers, X, y, X_test):
    """Train estimators that differ in `RATES` only, as one ensemble.

    Parameters
    ----------
    classifiers : list of estimators
    X, y : sequence
        Training samples.
    X_test : sequence

    Returns
    -------
    ndarray of shape (n_classifiers, n_members, n_samples, n_classes)
        Members' probabilities of `X_test`.
    """
    clf, each = classifiers[0], [clf._settings(False, None, has_validation=False) for clf in classifiers]
    data, classes = clf._check_training_data(X, y, None, None, None)
    seeds, device, design = Seeds(clf.random_state), resolve_device(clf.device), clf._design(False)
    backbone = clf._load_backbone(clf.backbone, classes=classes).on(device)
    n_folds = clf._n_folds(data.targets, False)
    part = clf._split(data, None, None, classes, seeds, False, n_folds).train
    pipeline = clf._make_pipeline(part.items, backbone, device, training=True)
    selection = build.select_layers(design, backbone)
    rule, traced, selection = build.trace_layers(design, backbone, pipeline, selection)
    coupled = rule.options["bootstrap"] or rule.options["diversity"] or len(rule.trained(2)) < 2
    if rule.order != "shared" or coupled or clf.n_members % (n_folds or 1):
        raise NotStackedError(
            f"The members of {clf.ensemble!r} must train by themselves, on batches that all share, "
            f"and be a multiple of the folds."
        )
    rule.noise = seeds.generator("noise")
    head = Head.on(backbone, traced.n_features, len(classes))
    start = build.make_members(design, rule, head, None, seeds, None, n_samples=len(pipeline))
    members = [{key: tensor.clone() for key, tensor in member.items()} for _ in each for member in start]
    ensemble = build.assemble(design, rule, head, members, traced, selection, pipeline)
    folds = n_folds and split_folds(part.targets, n_folds, len(members), seeds.generator("split"))
    batches = training_batches(part, pipeline, ensemble, seeds, clf.batch_size, folds)
    course = plan_course(len(batches), each[0].max_epochs, each[0].max_steps)
    factor = learning_rate_factor(each[0].schedule, each[0].warmup, course.n_steps)
    rates = ("learning_rate", LRScheduler(policy=LambdaLR, lr_lambda=factor, step_every="batch"))
    chunk = 1 if device.type == "cpu" else len(members)
    with neutral_modes(device):
        StackedNet(ensemble, each, course, [rates], chunk).train(batches, None)
        tests = clf._make_pipeline(clf._check_inputs(X_test, reset=False), backbone, device, training=False)
        ensemble.eval().dtype = torch.float32
        found = np.stack(prediction.collect(prediction.probability_passes(ensemble), tests, clf.batch_size, device))
    return found.reshape(len(each), len(start), *found.shape[1:])


def tune(cells, options):
    """Return the rows of cells that are trained at once."""
    parts = load(cells[0].data, options["data_dir"], cells[0].seed, cells[0].judged_on)
    start = time.perf_counter()
    classifiers = [make_classifier(cell, options) for cell in cells]
    members = fit_stacked(classifiers, parts.X_train, parts.y_train, parts.X_test)
    seconds = time.perf_counter() - start
    sizes = {"n_train": len(parts.y_train), "n_valid": len(parts.y_valid), "n_test": len(parts.y_test)}
    truth, classes = {"test": parts.y_test, "valid": parts.y_test}, np.unique(parts.y_train)
    rows = []
    for cell, own in zip(cells, members, strict=True):
        values = judge({"test": own, "valid": own}, truth, classes, calibrated=False)
        values |= sizes | {"status": "ok", "error": "", "fit_seconds": seconds / len(cells)}
        rows.append(row_of(cell, values, options))
    return rows


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="a TOML file")
    parser.add_argument("--data-dir", required=True, help="folder that the paths of data start from")
    parser.add_argument("--weights", help='folder that "{weights}" in a backbone stands for; default: --data-dir')
    parser.add_argument("--csv", required=True, help="table of cells; several studies may share it")
    parsed = parser.parse_args(arguments)
    record, study = Record(parsed.csv), Study(parsed.study)
    options = {"data_dir": parsed.data_dir, "weights": parsed.weights or parsed.data_dir}
    options |= {"threads": torch.get_num_threads(), "jobs": 1}
    options["sitting"] = f"{time.strftime('%Y-%m-%dT%H:%M:%S')}-{os.getpid()}"
    groups = {}
    for cell in study.cells("tune"):
        if not record.finished(cell):
            common = {name: value for name, value in cell.parameters.items() if name not in RATES}
            groups.setdefault((cell.method, show(cell.factors), cell.seed, repr(common)), []).append(cell)
    for cells in groups.values():
        try:
            rows = tune(cells, options)
        except NotStackedError as error:
            print(f"stacked.py: {cells[0].method} is left to run.py: {error}", file=sys.stderr)
            continue
        for row in rows:
            record.add(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
