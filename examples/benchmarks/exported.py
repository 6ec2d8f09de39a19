"""Exported models: size, time, and what eight bits change.

    python examples/benchmarks/exported.py

Fits four members of "sve" with the defaults on bundled data: 20 pictures of each kind of clothes (EfficientNet-Lite0,
64 pixels), and 10 questions of each of a bank's intents (MiniLM). The ensemble and its student are exported to ONNX
in float32 and int8. onnxruntime, in batches of 32 as examples/serving.py runs it, and `predict_uncertainty` with
`return_proba=True` take turns on 256 test samples, on all cores, each with the preparation of its inputs. The NLL is
that of all bundled test samples, and differences are those to skve in float32. Requires the extras `export`,
`offline` and `text`.
"""

import argparse
import pathlib
import runpy
import tempfile
import time

import numpy as np
import torch
from _common import machine, require_idle

import skve
from skve.datasets import load_fashion, load_intents

N_TIMED, N_BATCH, N_ROUNDS = 256, 32, 5
SERVING = pathlib.Path(__file__).parents[1] / "serving.py"


def fits():
    """Yield (name, fitted estimator, training samples, test samples, test labels)."""
    clothes, intents = load_fashion(), load_intents()
    images = [np.repeat(part[..., None], 3, axis=-1) for part in (clothes.images, clothes.images_test)]
    of_clothes = (images[0], clothes.target, images[1], clothes.target_test, 20)
    of_intents = (intents.texts, intents.target, intents.texts_test, intents.target_test, 10)
    for name, clf, (X, y, X_test, y_test, n_each) in (
        ("clothes", skve.SVEClassifier(image_size=64), of_clothes),
        ("intents", skve.SVETextClassifier(), of_intents),
    ):
        order = np.random.default_rng(0).permutation(len(y))
        train = np.concatenate([order[y[order] == label][:n_each] for label in np.unique(y)])
        X = [X[i] for i in train]
        yield name, clf.set_params(random_state=0).fit(X, y[train]), X, list(X_test), y_test


def in_onnxruntime(path):
    """Return a function that predicts with an exported file as examples/serving.py does, batch by batch."""
    exported = runpy.run_path(str(SERVING))["Exported"](path, n_threads=torch.get_num_threads())

    def predict(X):
        batches = [X[start : start + N_BATCH] for start in range(0, len(X), N_BATCH)]
        if exported.reads_images:
            outputs = [exported._run({"images": np.stack(batch)}) for batch in batches]
        else:
            outputs = [exported(batch)[0] for batch in batches]
        return np.concatenate([output["proba"] for output in outputs])

    return predict


def compare(name, model, folder, X, y, classes):
    """Print a row of the table for each way to predict with a model."""
    model.save(folder / "saved")
    exact = skve.load(folder / "saved").set_params(predict_precision="float32")
    ways = {
        "skve": lambda X: model.predict_uncertainty(X, return_proba=True)[1],
        "skve, float32": lambda X: exact.predict_uncertainty(X, return_proba=True)[1],
    }
    sizes = dict.fromkeys(ways, sum(file.stat().st_size for file in (folder / "saved").iterdir()) / 1e6)
    for dtype in ("float32", "int8"):
        path, way = folder / f"{dtype}.onnx", f"onnxruntime, {dtype}"
        model.export(path, weight_dtype=dtype)
        ways[way], sizes[way] = in_onnxruntime(path), path.stat().st_size / 1e6
    seconds: dict = {way: [] for way in ways}
    for _ in range(N_ROUNDS + 1):
        for way, predict in ways.items():
            start = time.perf_counter()
            predict(X[:N_TIMED])
            seconds[way].append(time.perf_counter() - start)
    probas = {way: predict(X) for way, predict in ways.items()}
    base = np.median(seconds["skve"][1:])
    for way, proba in probas.items():
        nll = -np.log(proba[np.arange(len(y)), np.searchsorted(classes, y)]).mean()
        took, differs = np.median(seconds[way][1:]), np.abs(proba - probas["skve, float32"]).max()
        print(
            f"| {name} | {way} | {sizes[way]:.1f} | {took:.2f} | {took / base:.2f} | {differs:.4f} | {nll:.4f} |",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--force", action="store_true", help="measure on a busy machine, too")
    require_idle(parser.parse_args().force)
    print(machine())
    print("| model | predicts | MB | seconds | of skve's | largest difference of a probability | NLL |")
    print("|---|---|---|---|---|---|---|")
    for data, clf, X, X_test, y_test in fits():
        for kind, model in (("ensemble", clf), ("student", clf.distill(X))):
            with tempfile.TemporaryDirectory() as folder:
                compare(f"{data}, {kind}", model, pathlib.Path(folder), X_test, y_test, clf.classes_)


if __name__ == "__main__":
    main()
