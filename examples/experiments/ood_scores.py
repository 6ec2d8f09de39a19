"""Which part of the uncertainty detects foreign items, and why: a table from kept predictions.

    python examples/experiments/ood_scores.py PREDICTIONS/main_sst2

PREDICTIONS is the folder that `run.py --predictions` filled. For each method, means over seeds of

* the AUROC of foreign against known items by total, aleatoric and epistemic uncertainty (mutual information), and by
  the entropy of the first member, which needs no ensemble;
* that of total and of epistemic uncertainty with two members, all pairs of them averaged: what grows with the number
  of members was noisy;
* that of epistemic uncertainty against only those known items that are answered wrongly;
* the epistemic share of the total uncertainty, in known and in foreign items.
"""

import argparse
import itertools
import pathlib

import numpy as np
from sklearn.metrics import roc_auc_score

from skve.uncertainty import entropy, mutual_information

COLUMNS = ["total", "aleatoric", "epistemic", "first member", "total, 2 members", "epistemic, 2 members"]
COLUMNS += ["epistemic, against wrong answers", "epistemic share, known %", "foreign %"]


def total(members):
    return entropy(members.mean(axis=0))


def aleatoric(members):
    return np.mean([entropy(member) for member in members], axis=0)


def auroc(score, known, foreign):
    """Return the AUROC of a score; `known` and `foreign` hold probabilities (n_members, n_samples, n_classes)."""
    truth = np.repeat([0, 1], [known.shape[1], foreign.shape[1]])
    return roc_auc_score(truth, np.concatenate([score(known), score(foreign)]))


def tell(known, foreign, right):
    """Return the figures of one fit, by column; `right` says which known items are answered right."""
    pairs = [list(pair) for pair in itertools.combinations(range(len(known)), 2)]
    figures = [auroc(score, known, foreign) for score in (total, aleatoric, mutual_information)]
    figures.append(auroc(total, known[:1], foreign[:1]))
    for score in (total, mutual_information):
        figures.append(np.mean([auroc(score, known[pair], foreign[pair]) for pair in pairs]))
    figures.append(auroc(mutual_information, known[:, ~right], foreign) if not right.all() else np.nan)
    figures += [100 * mutual_information(items).mean() / total(items).mean() for items in (known, foreign)]
    return figures


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=pathlib.Path, help="folder of one study")
    folder = parser.parse_args(arguments).predictions
    groups = {}
    for file in sorted(folder.glob("*.npz")):
        name, _, setting = file.stem.rsplit("_", 2)
        with np.load(file) as kept:
            members = {key.removeprefix("members_"): kept[key] for key in kept if key.startswith("members_")}
            right = kept["classes"][members["test"].mean(axis=0).argmax(axis=1)] == kept["y_test"]
        for shift in members.keys() & {"near", "far"}:
            if len(members[shift]) > 1:
                groups.setdefault((shift, name.replace("_", " "), setting), []).append(
                    tell(members["test"], members[shift], right)
                )
    if not groups:
        parser.error(f"{folder}: there are no predictions of several members with foreign items")
    print(f"| foreign | data, method | {' | '.join(COLUMNS)} |")
    print("|---" * (2 + len(COLUMNS)) + "|")
    for (shift, name, _), found in sorted(groups.items()):
        means = np.mean(found, axis=0)
        cells = [f"{mean:.3f}" for mean in means[:-2]] + [f"{mean:.1f}" for mean in means[-2:]]
        print(f"| {shift} | {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
