r"""Calibration, selective prediction and out-of-distribution detection, with and without temperature scaling.

Reads the members' probabilities that the tables of quality keep:

    python examples/benchmarks/image_quality.py table --data-dir DATA --csv docs/data/image_quality.csv \
        --per-class 10 --classes-in 17 --predictions PREDICTIONS
    python examples/benchmarks/text_quality.py table --data-dir DATA --csv docs/data/text_quality.csv \
        --predictions PREDICTIONS
    python examples/benchmarks/decisions.py --predictions PREDICTIONS --csv docs/data/decisions.csv

A temperature is fitted on the pooled prediction of validation samples: ten images a class, or 500 texts, of the
training split that no fit sees. Intervals are of the difference in negative log-likelihood and in calibration
error to the SVE without temperature, from 2,000 paired resamples of test samples and seeds: below zero, the row is
better.
"""

import argparse
import itertools
import pathlib

import numpy as np
from _common import SHIFTS, Table, measures
from sklearn.metrics import log_loss

from skve._ensembles import Likelihood
from skve._fitted.temperature import fit_temperature
from skve.metrics import expected_calibration_error, paired_bootstrap
from skve.uncertainty import mutual_information

# Row -> (ensemble of the fit, members that count, whether temperature is fitted)
ROWS = {
    "SVE": ("sve", 4, False),
    "SVE + temperature": ("sve", 4, True),
    "single": ("deep", 1, False),
    "single + temperature": ("deep", 1, True),
    "deep": ("deep", 4, False),
    "deep + temperature": ("deep", 4, True),
}


def read(folder, data, row, seed):
    """Return (pooled predictions by group, epistemic uncertainty by group, temperature, true labels, classes)."""
    ensemble, n_members, calibrated = ROWS[row]
    with np.load(pathlib.Path(folder) / f"{data}_{ensemble}_{seed}.npz") as kept:
        members = {name.removeprefix("members_"): kept[name][:n_members] for name in kept if "members" in name}
        truth, classes = {name: kept[f"y_{name}"] for name in ("valid", "test")}, kept["classes"]
    pooled, temperature = {name: proba.mean(axis=0) for name, proba in members.items()}, 1.0
    if calibrated:
        codes = np.searchsorted(classes, truth["valid"])
        temperature = fit_temperature(pooled["valid"], codes, np.ones(len(codes)))
    pooled = {name: Likelihood(proba.shape[1]).temper(proba, temperature) for name, proba in pooled.items()}
    # The members are as they are: temperature changes the pooled prediction only.
    epistemic = {} if n_members == 1 or calibrated else {k: mutual_information(m) for k, m in members.items()}
    return pooled, epistemic, temperature, truth["test"], classes


def less_than_sve(metric, truth, proba, of_sve, classes):
    """Return "estimate (low to high)" of the metric less that of the SVE."""
    found = paired_bootstrap(metric, truth, proba, of_sve, labels=classes, n_resamples=2000, random_state=0)
    return f"{found.estimate:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def main(arguments):
    out = Table(arguments.csv, ("data", "row", "seed"))
    folder = pathlib.Path(arguments.predictions)
    for data in sorted({path.stem.rsplit("_", 2)[0] for path in folder.glob("*.npz")}):
        seeds = sorted(int(path.stem.rsplit("_", 1)[1]) for path in folder.glob(f"{data}_deep_*.npz"))
        lines, of_sve = [], None
        for row in ROWS:
            runs = [read(folder, data, row, seed) for seed in seeds]
            truth, classes = runs[0][3:]
            if any(not np.array_equal(run[3], truth) for run in runs):
                raise SystemExit(f"{data}: the test samples differ between seeds, so that fits cannot be paired")
            proba = np.stack([run[0]["test"] for run in runs])
            of_sve = proba if of_sve is None else of_sve
            measured = [measures(*run[:2], *run[3:]) for run in runs]
            for seed, values, run in zip(seeds, measured, runs, strict=True):
                cell = {"data": data, "row": row, "seed": seed}
                if cell not in out:
                    out.add({**cell, **values, "temperature": run[2]})
            mean = {name: np.mean([values[name] for values in measured]) for name in measured[0]}
            line = {
                data: row,
                "accuracy %": f"{100 * mean['accuracy']:.1f}",
                "NLL": f"{mean['nll']:.3f}",
                "NLL less SVE's": less_than_sve(log_loss, truth, proba, of_sve, classes),
                "ECE": f"{mean['ece']:.3f}",
                "ECE less SVE's": less_than_sve(expected_calibration_error, truth, proba, of_sve, classes),
                "AURC %": f"{100 * mean['aurc']:.2f}",
            }
            for shift, measure in itertools.product(SHIFTS, ("total", "epistemic", "fpr95")):
                line[f"{shift}, {measure}"] = f"{mean[f'{shift}_{measure}']:.3f}".replace("nan", "")
            lines.append({**line, "temperature": f"{np.mean([run[2] for run in runs]):.2f}"})
        shown = [name for name in lines[0] if any(line[name] for line in lines)]
        print(f"\n| {' | '.join(shown)} |\n" + "|---" * len(shown) + "|")
        for line in lines:
            print(f"| {' | '.join(line[name] for name in shown)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", required=True, help="folder of kept probabilities")
    parser.add_argument("--csv", required=True)
    main(parser.parse_args())
