"""Known failures, each produced on purpose, and what `skve.diagnose` says of them and of healthy fits.

    python examples/experiments/signatures.py run  --csv docs/data/signatures.csv --jobs 2 --models FOLDER
    python examples/experiments/signatures.py show --csv docs/data/signatures.csv --page docs/studies.md

The data and the weights are bundled: 20 photographs of each kind of clothes (Fashion-MNIST) at 48 pixels, and 10
questions of each of a bank's intents. `diagnose` sees 300 other items and foreign ones. A row is a fit with one thing
wrong ("setting") or a healthy one, whose findings are false alarms. That of overconfidence is none if the temperature
that the 300 items ask for lowers the NLL of 200 more items: `nll` is as it is, `nll_tempered` with the temperature.
What the CSV has is not run again.
FOLDER keeps the fitted models, for this script and for diversity.py.
"""

import argparse
import collections
import pathlib
import sys

import numpy as np
import torch
from joblib import Parallel, delayed
from sklearn.metrics import log_loss

import skve
from skve._ensembles import Likelihood
from skve._fitted.temperature import fit_temperature
from skve.datasets import load_fashion, load_intents

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "benchmarks"))
from _common import Table
from table import fill, markdown

# Failure -> what produces it. The first four are those that the paper warns of.
ILL = {
    "ratios hardly moved": {"member_lr": 1e-6},
    "ratios ran away": {"member_lr": 3.0, "grad_clip": None},
    "init_scale too large": {"init_scale": 1.5},
    "members collapsed": {"ensemble": "head", "ensemble_params": {"bootstrap": False}},
    "training stopped too early": {"max_steps": 10},
    "overconfident": {"head_weight_decay": 0.0, "calibrate": None, "ensemble_params": {"folds": None}},
}
HEALTHY = ("sve", "scale", "deep", "lora", "batch")
SEEDS = {"fashion": range(3), "intents": range(1)}  # a fit of 250 questions takes longest
N_JUDGED, N_MORE = 300, 200
KEY = ("data", "setting", "ensemble", "seed")


def load(data, seed):
    """Return training items and labels, those that judge and more, and foreign items."""
    rng = np.random.default_rng(seed)
    if data == "fashion":
        found, n_each = load_fashion(), 20
        X, y, X_test, y_test = found.images, found.target, found.images_test, found.target_test
        foreign = found.images_ood[:N_JUDGED]
    else:
        found, n_each = load_intents(), 10
        X, y, X_test, y_test = found.texts, found.target, found.texts_test, found.target_test
        foreign = found.texts_ood[:N_JUDGED]
    order = rng.permutation(len(y))
    train = np.concatenate([order[y[order] == label][:n_each] for label in np.unique(y)])
    judged = rng.permutation(len(y_test))[: N_JUDGED + N_MORE]
    return [X[i] for i in train], y[train], [X_test[i] for i in judged], y_test[judged], list(foreign)


def cells(data):
    """Return the cells of a data set, each with the parameters of its estimator."""
    found = [
        ({"data": data, "setting": failure, "ensemble": own.get("ensemble", "sve"), "seed": seed}, own)
        for failure, own in ILL.items()
        for seed in SEEDS[data]
    ]
    for ensemble in HEALTHY:
        for seed in SEEDS[data]:
            own = {"data": data, "setting": "healthy", "ensemble": ensemble, "seed": seed}
            found.append((own, {"ensemble": ensemble}))
    return found


def fit(cell, parameters, X, y, models):
    """Return the fitted estimator of a cell, from the folder of models if it is there."""
    folder = models / "-".join(str(cell[name]) for name in KEY)
    if folder.is_dir():
        return skve.load(folder)
    if cell["data"] == "fashion":
        clf = skve.SVEClassifier(image_size=48, random_state=cell["seed"], **parameters)
    else:
        clf = skve.SVETextClassifier(random_state=cell["seed"], **parameters)
    clf.fit(X, y).save(folder)
    return clf


def diagnose(cell, parameters, models):
    """Fit, and return the row of a cell."""
    torch.set_num_threads(1)
    X, y, X_test, y_test, foreign = load(cell["data"], cell["seed"])
    try:
        clf = fit(cell, parameters, X, y, models)
        judged = X_test[:N_JUDGED], y_test[:N_JUDGED]
        found = skve.diagnose(clf, *judged, X_train=X, y_train=y, X_ood=foreign)
        names = [finding.name for finding in found.findings]
        losses = tempered(clf, X_test, y_test)
    except ValueError as error:  # training that diverges stops with the remedy
        names, losses = [f"error: {error}"], ("", "")
    return {**cell, "findings": "; ".join(names), "nll": losses[0], "nll_tempered": losses[1]}


def tempered(clf, X, y):
    """Return the NLL of all items but the first 300, as it is and with the temperature that these ask for."""
    proba, codes = clf.predict_proba(X), np.searchsorted(clf.classes_, y)
    temperature = fit_temperature(proba[:N_JUDGED], codes[:N_JUDGED], np.ones(len(codes[:N_JUDGED])))
    more = proba[N_JUDGED:]
    both = more, Likelihood(len(clf.classes_)).temper(more, temperature)
    return [log_loss(codes[N_JUDGED:], own, labels=range(len(clf.classes_))) for own in both]


def run(options):
    table = Table(options.csv, KEY)
    todo = [one for data in ("fashion", "intents") for one in cells(data) if one[0] not in table]
    for row in Parallel(options.jobs, return_as="generator_unordered")(
        delayed(diagnose)(*one, options.models) for one in todo
    ):
        table.add(row)
        print(*row.values(), sep=" | ", flush=True)


def show(options):
    """Return a table of how many fits with each failure were found out, and of what else was found."""
    groups, gains = collections.defaultdict(list), collections.defaultdict(list)
    for row in Table(options.csv, KEY).rows:
        names = row["findings"].split("; ") if row["findings"] else []
        groups[row["data"], row["setting"]].append(names)
        if "overconfident" in names:
            gains[row["data"], row["setting"]].append(float(row["nll_tempered"]) - float(row["nll"]))
    lines = []
    for (data, setting), findings in groups.items():
        hits = sum(setting in own for own in findings)
        found = f"{hits} of {len(findings)}" if setting != "healthy" else ""
        others = collections.Counter(name for own in findings for name in own if name != setting)
        shown = ", ".join(f"{name} ({n})" for name, n in others.most_common())
        gain = gains[data, setting]
        change = f"{np.mean(gain):+.3f} ({min(gain):+.3f} to {max(gain):+.3f})" if gain else ""
        lines.append([data, setting, str(len(findings)), found, shown, change])
    titles = [
        "data",
        "what was done",
        "fits",
        "found",
        "also found",
        "NLL of overconfident ones, tempered less as it is",
    ]
    return markdown(titles, lines)


def parser_of(description):
    """Return the parser of the arguments that this script and diversity.py share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["run", "show"])
    parser.add_argument("--csv", type=pathlib.Path, required=True)
    parser.add_argument("--models", type=pathlib.Path, help="folder that keeps fitted models, for run")
    parser.add_argument("--jobs", type=int, default=1, help="fits at a time, one thread each")
    parser.add_argument("--page", type=pathlib.Path, help="file to put tables in, for show; else they are printed")
    return parser


def start(parser, arguments, name, run, show):
    """Run the stage that the arguments name; tables go between <!-- name --> and <!-- end of name --> of a page."""
    options = parser.parse_args(arguments)
    if options.stage == "run":
        if options.models is None:
            parser.error("run requires --models")
        run(options)
        return
    for file in (options.csv, options.page):
        if file is not None and not file.is_file():
            parser.error(f"there is no {file}")
    text = "\n".join(show(options))
    if options.page is None:
        print(text)
        return
    try:
        page = fill(options.page.read_text(encoding="utf-8"), name, text)
    except ValueError as error:
        parser.error(f"--page {options.page}: {error}")
    options.page.write_text(page, encoding="utf-8")


def main(arguments=None):
    start(parser_of(__doc__), arguments, "signatures", run, show)


if __name__ == "__main__":
    main()
