"""Fill in the tables of docs/evidence.md: the defaults on ten data sets, and what they are compared with.

    python examples/experiments/defaults.py --data docs/data --page docs/evidence.md

Reads `defaults_evidence.csv` (one row a fit, rule and split) and `defaults_intervals.csv` (paired differences). Means
are taken over the seeds of a data set first, then over data sets. An interval is in bold where it leaves zero out.
"""

import argparse
import csv
import pathlib

import numpy as np
from table import fill, markdown

KINDS = {
    "texts": {
        "emotion": "emotion",
        "sst2": "SST-2",
        "agnews": "AG News",
        "clinc25": "25 intents",
        "domain10": "10 domains",
    },
    "images": {
        "flowers": "flowers",
        "signs": "signs",
        "cifar10": "CIFAR-10",
        "fashion": "Fashion",
        "digits": "digits",
    },
}
# Columns in which rows of one fit agree
FIT = (
    "data",
    "shots",
    "seed",
    "method",
    "scheme",
    "member_lr",
    "head_lr",
    "head_weight_decay",
    "label_smoothing",
    "steps",
)
METRICS = {
    "nll": ("NLL", 1, 3),
    "accuracy": ("accuracy %", 100, 1),
    "ece": ("ECE %", 100, 1),
    "auroc_error": ("AUROC, errors", 1, 3),
    "auroc_foreign": ("AUROC, foreign", 1, 3),
    "auroc_foreign_5nn": ("5-NN distance", 1, 3),
}


def tested(path):
    with open(path, newline="", encoding="utf-8") as stream:
        return [row for row in csv.DictReader(stream) if row["split"] == "test"]


def read(path):
    """Return the test rows that the tables show, of seeds that "sve" has: {method: {data: rows, one a seed}}."""
    rows, found = tested(path), {}
    for name, wanted in {
        "sve": {"method": "sve", "defaults": "0.2"},
        "sve, blended": {"method": "sve blended", "defaults": "0.2"},
        "scale": {"method": "scale", "defaults": "0.2"},
        "bias": {"method": "bias", "defaults": "0.2"},
        "deep": {"method": "deep", "defaults": "0.2"},
        "sve and biases": {"method": "sve+bias", "members": "4", "scheme": "folds", "prior_sd": "0.5"},
        "sve, defaults of 0.1": {"method": "sve", "defaults": "0.1"},
        "LogReg": {"method": "logreg"},
    }.items():
        for row in rows:
            if all(row[key] == value for key, value in wanted.items()):
                found.setdefault(name, {}).setdefault(row["data"], []).append(row)
    seeds = {data: {row["seed"] for row in own} for data, own in found["sve"].items()}
    return {
        name: {data: [row for row in own if row["seed"] in seeds[data]] for data, own in sets.items()}
        for name, sets in found.items()
    }


def figure(fits, metric):
    """Return a mean as it is shown, over the data sets of lists of rows; empty where a row has none."""
    _, factor, digits = METRICS[metric]
    if not fits or any(row[metric] == "" for rows in fits for row in rows):
        return ""
    return f"{factor * np.mean([np.mean([float(row[metric]) for row in rows]) for rows in fits]):.{digits}f}"


def summary(methods, kind):
    """Return the lines of the table of one kind of data: each metric as the mean over its data sets."""
    lines = []
    for method, found in methods.items():
        own = [found[data] for data in KINDS[kind] if data in found]
        if len(own) == len(KINDS[kind]):
            lines.append([method, *(figure(own, metric) for metric in METRICS), str(sum(map(len, own)))])
    return markdown([kind, *(title for title, _, _ in METRICS.values()), "fits"], lines)


def each(methods, kind, metrics):
    """Return the lines of the table of one kind of data, data set by data set, as means over seeds."""
    lines = []
    for metric in metrics:
        for method, found in methods.items():
            shown = [figure([found[data]] if data in found else [], metric) for data in KINDS[kind]]
            if any(shown):
                lines.append([METRICS[metric][0], method, *shown])
    return markdown(["", "", *KINDS[kind].values()], lines)


def first_members(methods, rows, kind):
    """Return the lines of the table of the first members of the same fits, as they are before a temperature."""
    plain = {}
    for row in rows:
        if row["temperature_rule"] == "none":
            plain[row["members"], *(row[name] for name in FIT)] = row
    lines = []
    for method in ("sve", "scale", "deep", "bias"):
        means = []
        for metric, members in (("nll", "1"), ("nll", "2"), ("nll", "4"), ("mean_member_nll", "4")):
            sets = [
                np.mean(
                    [float(plain[members, *(row[name] for name in FIT)][metric]) for row in methods[method][data]]
                )
                for data in KINDS[kind]
            ]
            means.append(np.mean(sets))
        lines.append([method, *(f"{mean:.3f}" for mean in means), f"{means[2] - means[3]:+.3f}"])
    return markdown(
        [f"NLL of {kind}", "first member", "first two", "four", "mean member", "four less mean member"], lines
    )


def differences(rows, pairs, columns):
    """Return the lines of the table of paired differences in NLL; `columns` maps values of "data" to titles."""
    found = {(row["method"], row["against"], row["data"]): row for row in rows}
    lines = []
    for method, against in pairs:
        cells = []
        for column in columns:
            row = found.get((method, against, column))
            low, high = (float(row["low"]), float(row["high"])) if row else (0, 0)
            text = f"{float(row['estimate']):+.3f} ({low:+.3f} to {high:+.3f})" if row else ""
            cells.append(f"**{text}**" if low > 0 or high < 0 else text)
        lines.append([f"{method} less {against.replace('logreg', 'LogReg')}", *cells])
    return markdown(["difference in NLL", *columns.values()], lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=pathlib.Path, help="folder of the two CSV files")
    parser.add_argument("--page", required=True, type=pathlib.Path)
    parsed = parser.parse_args(arguments)
    methods, rows = read(parsed.data / "defaults_evidence.csv"), tested(parsed.data / "defaults_evidence.csv")
    with open(parsed.data / "defaults_intervals.csv", newline="", encoding="utf-8") as stream:
        paired = list(csv.DictReader(stream))
    rivals = [("sve", rival) for rival in ("logreg", "sve (0.1)", "deep", "bias", "scale")]
    blended = [("sve blended", rival) for rival in ("logreg", "sve", "deep", "bias", "scale")]
    members = [(method, f"{method} mean member") for method in ("sve", "scale", "deep", "bias")]
    overall = {"all": "all ten", "texts": "texts", "images": "images"}
    parts = {"differences": differences(paired, [*rivals, *blended], overall)}
    parts["members"] = differences(paired, [*members, ("sve eight", "sve")], overall)
    for kind, sets in KINDS.items():
        parts[f"first members of {kind}"] = first_members(methods, rows, kind)
        parts[f"summary of {kind}"] = summary(methods, kind)
        parts[f"NLL of {kind}"] = each(methods, kind, ["nll"])
        parts[f"other measures of {kind}"] = each(methods, kind, [name for name in METRICS if name != "nll"])
        parts[f"differences of {kind}"] = differences(paired, [*rivals, *(blended if kind == "texts" else [])], sets)
    page = parsed.page.read_text(encoding="utf-8")
    for name, lines in parts.items():
        page = fill(page, name, "\n".join(lines))
    parsed.page.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
