"""What other arithmetic changes in predictions: bfloat16, and int8 by torch.ao's dynamic kernels.

    python examples/benchmarks/precision.py sst2.jsonl.gz emotion.jsonl.gz --csv docs/data/precision.csv

Each file has lines of JSON with "text" and "label". An ensemble of four on all-MiniLM-L6-v2 is fitted on 20 texts a
class and predicts other texts in float32, in bfloat16 and in int8 (weights per channel, activations per tensor). What
the CSV has is not run again.
"""

import argparse
import copy
import gzip
import json
import pathlib
import time
import warnings

import numpy as np
import torch
from _common import Table, machine

from skve import SVETextClassifier
from skve._ensembles import Likelihood
from skve._fitted.predictor import Predictor


def texts_of(path, n_per_class, n_test):
    """Return training texts and labels, and test texts and labels, shuffled."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    texts, labels = np.array([row["text"] for row in rows], object), np.array([str(row["label"]) for row in rows])
    order = np.random.default_rng(0).permutation(len(texts))
    train = np.concatenate([order[labels[order] == c][:n_per_class] for c in np.unique(labels)])
    test = order[~np.isin(order, train)][:n_test]
    return list(texts[train]), labels[train], list(texts[test]), labels[test]


def int8_proba(clf, X):
    """Return the prediction of members whose linear layers are quantised, weights first."""
    backbone = clf._load_backbone(clf._state.spec, clf.preprocess_)
    pipeline = clf._make_pipeline(clf._check_inputs(X, reset=False), backbone, torch.device("cpu"), training=False)
    scheme = {torch.nn.Linear: torch.ao.quantization.per_channel_dynamic_qconfig}
    proba = np.zeros((clf.n_members, len(X), len(clf.classes_)))
    with Predictor(clf._state, backbone, "float32", None).lend(pipeline) as networks, torch.no_grad():
        ensemble = networks.ensemble
        for index in range(clf.n_members):
            ensemble.install(index)
            module = copy.deepcopy(backbone.module)
            for name, tensor in ensemble.network.replaced.items():
                module.get_parameter(name).data = tensor.clone()
            module = torch.ao.quantization.quantize_dynamic(module, scheme, dtype=torch.qint8)
            for rows in pipeline.batches(clf.batch_size, None):
                features = backbone.features(module, pipeline.prepare(pipeline.load(rows), None))
                logits = ensemble.head.logits(features, ensemble.member(index))
                proba[index, rows] = ensemble.head.likelihood.proba(logits).numpy()
    return Likelihood(len(clf.classes_)).temper(proba.mean(axis=0), clf.temperature_)


def main(options):
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # torch.ao is deprecated
    print(machine())
    print("data, arithmetic: NLL, its difference to float32, largest difference of a probability, processor seconds")
    table = Table(options.csv, ("data", "arithmetic"))
    for path in options.files:
        data = pathlib.Path(path).name.partition(".")[0]
        if {"data": data, "arithmetic": "int8"} in table:  # the last of its rows
            continue
        X, y, X_test, y_test = texts_of(path, options.per_class, options.test)
        clf = SVETextClassifier(n_members=4, max_steps=options.steps, random_state=0).fit(X, y)
        truth = np.arange(len(X_test)), np.searchsorted(clf.classes_, y_test)
        exact = None
        for name in ("float32", "bfloat16", "int8"):
            start = time.process_time()
            if name == "int8":
                proba = int8_proba(clf, X_test)
            else:
                proba = copy.copy(clf).set_params(predict_precision=name).predict_proba(X_test)
            seconds = time.process_time() - start
            exact = proba if exact is None else exact
            nll, base = -np.log(proba[truth]).mean(), -np.log(exact[truth]).mean()
            row = {"data": data, "arithmetic": name, "nll": float(nll), "difference": float(nll - base)}
            row |= {"largest": float(np.abs(proba - exact).max()), "cpu_seconds": seconds}
            if {"data": data, "arithmetic": name} not in table:
                table.add(row)
            print(*(f"{v:.5f}" if isinstance(v, float) else v for v in row.values()), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--csv", type=pathlib.Path, required=True)
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--test", type=int, default=600)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--threads", type=int, default=2)
    main(parser.parse_args())
