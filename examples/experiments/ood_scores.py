"""Which part of the uncertainty tells foreign items: AUROC of total, aleatoric and epistemic, from kept predictions.

    python examples/experiments/ood_scores.py PREDICTIONS/main_sst2

PREDICTIONS is the folder that `run.py --predictions` filled. For each method, over seeds: the AUROC of each part; how
many times higher foreign items score than known ones on average; and the AUROC of the first member's entropy, which
needs no ensemble.
"""

import argparse
import pathlib
import re

import numpy as np
from sklearn.metrics import roc_auc_score

from skve.uncertainty import entropy, mutual_information

SCORES = {
    "total": lambda members: entropy(members.mean(axis=0)),
    "aleatoric": lambda members: np.mean([entropy(member) for member in members], axis=0),
    "epistemic": mutual_information,
    "first member alone": lambda members: entropy(members[0]),
}


def tell(inside, outside):
    """Return {score: (AUROC, mean of foreign items over mean of known ones)}."""
    truth = np.repeat([0, 1], [inside.shape[1], outside.shape[1]])
    found = {}
    for name, score in SCORES.items():
        known, foreign = score(inside), score(outside)
        found[name] = roc_auc_score(truth, np.concatenate([known, foreign])), foreign.mean() / known.mean()
    return found


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=pathlib.Path, help="folder of one study")
    folder = parser.parse_args(arguments).predictions
    groups = {}
    for file in sorted(folder.glob("*.npz")):
        name = file.stem.rsplit("_", 2)[0]
        with np.load(file) as kept:
            members = {key.removeprefix("members_"): kept[key] for key in kept if key.startswith("members_")}
        for shift in members.keys() & {"near", "far"}:
            if len(members[shift]) > 1:
                groups.setdefault((shift, name), []).append(tell(members["test"], members[shift]))
    if not groups:
        parser.error(f"{folder}: there are no predictions of several members with foreign items")
    print(f"| foreign | fits | {' | '.join(SCORES)} | {' | '.join(f'{name}, ratio' for name in list(SCORES)[:3])} |")
    print("|---" * (2 + 2 * len(SCORES) - 1) + "|")
    for (shift, name), found in sorted(groups.items()):
        mean = {score: np.mean([one[score] for one in found], axis=0) for score in SCORES}
        cells = [f"{mean[score][0]:.3f}" for score in SCORES] + [f"{mean[s][1]:.1f}" for s in list(SCORES)[:3]]
        print(f"| {shift} | {re.sub('_', ' ', name)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
