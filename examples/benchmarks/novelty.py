"""Which distance detects foreign inputs, on features of frozen backbones: AUROC, false alarms and size kept.

    python examples/benchmarks/novelty.py measure --data-dir DATA --features FOLDER --csv docs/data/novelty.csv
    python examples/benchmarks/novelty.py members --data-dir DATA --csv docs/data/novelty.csv --seeds 1
    python examples/benchmarks/novelty.py show    --csv docs/data/novelty.csv

`measure` computes the features once (kept in FOLDER), draws training samples of 5, 20 and 100 a class with three
seeds, and compares scores of foreign inputs: "near" ones from a quarter of the classes that are held out, "oos"
(CLINC150's questions out of scope), "far" ones from the other data sets of the modality. Only training and validation
parts are read. It goes on where it was stopped.

`members` fits `sve` on 10 training samples a class of three data sets, and compares the distance on features of the
frozen backbone with that on features of the members: their mean, and all of them one after another.

DATA holds texts as records `{split, text, label}`: `emotion.jsonl.gz` (TweetEval, github.com/cardiffnlp/tweeteval),
`sst2.jsonl.gz` (Stanford Sentiment Treebank), `clinc150_full.jsonl.gz` (github.com/clinc/oos-eval) and
`ag_news_test7600.jsonl.gz` (the test part of AG News, whose first 5,600 lines are read); images as JPEG bytes, which
`_common.load_jpegs` reads, or arrays `x_S`, `y_S` of each split S: `flowers17_160px.npz` (Oxford 17 Flowers),
`sign_digits_100px.npz` (Mavi 2020, arXiv 2011.08927), `cifar10_small.npz` and `fashion_mnist_small.npz`.
"""

import argparse
import pathlib

import numpy as np
from _common import Table, load_jpegs, read_jsonl
from scipy.stats import betabinom
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import normalize

from skve import SVEClassifier, SVETextClassifier
from skve._fitted.novelty import Novelty

TEXTS = {
    "emotion": ("emotion.jsonl.gz", ("train", "val")),
    "sst2": ("sst2.jsonl.gz", ("train", "dev")),
    "ag_news": ("ag_news_test7600.jsonl.gz", (None,)),
    "clinc150": ("clinc150_full.jsonl.gz", ("train", "val", "oos_train", "oos_val")),
}
IMAGES = {
    "flowers17": "flowers17_160px.npz",
    "sign_digits": "sign_digits_100px.npz",
    "cifar10": "cifar10_small.npz",
    "fashion": "fashion_mnist_small.npz",
}
LARGEST = {"sst2": 3000, "ag_news": 5600, "cifar10": 3000, "fashion": 3000}  # items that are read
PER_CLASS = (5, 20, 100)
N_TEST = 800
MEMBERS, OF_MEMBERS, N_FEW = "features of sve: ", ("emotion", "sst2", "sign_digits"), 300


def read(name, data_dir):
    """Return a data set's items and their labels."""
    path = pathlib.Path(data_dir)
    if name in TEXTS:
        file, splits = TEXTS[name]
        records = [r for r in read_jsonl(path / file) if r.get("split") in splits]
        records = records[-LARGEST[name] :] if name == "sst2" else records[: LARGEST.get(name)]
        return [r["text"] for r in records], np.array([str(r["label"]) for r in records])
    data = np.load(path / IMAGES[name])
    if "x_train" in data:
        return list(data["x_train"][: LARGEST[name]]), data["y_train"][: LARGEST[name]].astype(str)
    X, y, _ = load_jpegs(path / IMAGES[name], "train")
    return X, y.astype(str)


def make(name, **parameters):
    """Return an estimator for a data set's items."""
    if name in TEXTS:
        return SVETextClassifier(random_state=0, **parameters)
    return SVEClassifier(image_size=96, random_state=0, **parameters)


def features(name, data_dir, folder):
    """Return the frozen backbone's features of a data set's items, and their labels."""
    path = pathlib.Path(folder) / f"{name}.npz"
    if not path.exists():
        X, y = read(name, data_dir)
        clf = make(name, ensemble="head")
        some = np.random.default_rng(0).permutation(len(y))[:64]
        clf.fit([X[i] for i in some], y[some])
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, F=clf.transform(X), y=y)
    with np.load(path) as kept:
        return kept["F"].astype(np.float64), kept["y"]


def draw(name, sets, per_class, seed):
    """Return training features and labels, features of familiar test samples, and of foreign ones by kind.

    `sets` has the features, or the items themselves, as an array, and the labels of each data set.
    """
    F, y = sets[name]
    rng = np.random.default_rng(seed)
    classes = rng.permutation(np.unique(y[y != "oos"]))
    n_held_out = len(classes) // 4 if len(classes) > 2 else 0
    train, rest = [], []
    for label in classes[n_held_out:]:
        own = rng.permutation(np.flatnonzero(y == label))
        n = min(per_class, len(own) - 5)
        train.append(own[:n])
        rest.append(own[n:])
    train, rest = np.concatenate(train), rng.permutation(np.concatenate(rest))[:N_TEST]
    foreign = {}
    if n_held_out:
        foreign["near"] = F[rng.permutation(np.flatnonzero(np.isin(y, classes[:n_held_out])))[:N_TEST]]
    if (y == "oos").any():
        foreign["oos"] = F[y == "oos"]
    same = TEXTS if name in TEXTS else IMAGES
    others = [sets[other][0] for other in same if other != name]
    foreign["far"] = np.concatenate([other[rng.permutation(len(other))[:300]] for other in others])
    return F[train], y[train], F[rest], foreign


def cosine(train, k, change=lambda units: units):
    """Return the score 1 - mean cosine similarity to the k nearest of `train`."""
    kept = normalize(change(train))

    def score(X):
        similarity = normalize(change(X)) @ kept.T
        return 1 - np.partition(similarity, -min(k, len(kept)), axis=1)[:, -min(k, len(kept)) :].mean(axis=1)

    return score


def candidates(train, y):
    """Return score functions by name, higher where more foreign."""
    units = normalize(train)
    mean, spread = train.mean(axis=0), train.std(axis=0) + 1e-6
    covariance = LedoitWolf().fit(units)
    labels, codes = np.unique(y, return_inverse=True)
    centres = np.stack([units[codes == code].mean(axis=0) for code in range(len(labels))])
    within = LedoitWolf(assume_centered=True).fit(units - centres[codes])
    root = np.linalg.cholesky(within.precision_)
    low_rank = PCA(min(64, *(np.array(units.shape) - 1))).fit(units)

    def of_classes(X):
        X, kept = normalize(X) @ root, centres @ root
        return ((X**2).sum(1)[:, None] - 2 * X @ kept.T + (kept**2).sum(1)).min(axis=1)

    def residual(X):
        X = normalize(X)
        return ((X - low_rank.inverse_transform(low_rank.transform(X))) ** 2).sum(axis=1)

    novelty = Novelty.of_training(train, n_classes=len(labels))
    return {
        "cosine, 1 nearest": cosine(train, 1),
        "cosine, 5 nearest": cosine(train, 5),
        "cosine, 10 nearest": cosine(train, 10),
        "cosine, 5 nearest, centred": cosine(train, 5, lambda X: X - mean),
        "cosine, 5 nearest, standardised": cosine(train, 5, lambda X: (X - mean) / spread),
        "cosine, 5 nearest, whitened": cosine(train, 5, lambda X: (normalize(X) - units.mean(axis=0)) @ root),
        "Mahalanobis, one Gaussian": lambda X: covariance.mahalanobis(normalize(X)),
        "Mahalanobis, nearest class": of_classes,
        "residual of 64 components": residual,
        "u.novelty": lambda X: novelty.shares(novelty.distances_of(X)),
    }, novelty


def measure(args):
    """Fill the table."""
    table = Table(args.csv, ("data", "per_class", "seed", "score"))
    sets = {name: features(name, args.data_dir, args.features) for name in (*TEXTS, *IMAGES)}
    for name in sets:
        for per_class in PER_CLASS:
            for seed in range(args.seeds):
                cell = {"data": name, "per_class": per_class, "seed": seed}
                if {**cell, "score": "u.novelty"} in table:
                    continue
                train, y, familiar, foreign = draw(name, sets, per_class, seed)
                scores, novelty = candidates(train, y)
                kept = sum(array.nbytes for array in vars(novelty).values())
                for score, function in scores.items():
                    inside = function(familiar)
                    row = {**cell, "score": score, "n_train": len(train), "n_test": len(familiar)}
                    for kind in ("near", "oos", "far"):
                        row[kind] = float("nan")
                        if kind in foreign:
                            outside = function(foreign[kind])
                            truth = np.repeat([0, 1], [len(inside), len(outside)])
                            row[kind] = roc_auc_score(truth, np.concatenate([inside, outside]))
                    own = score == "u.novelty"
                    row["false_alarms"] = float(np.mean(inside > 0.95)) if own else float("nan")
                    row["bytes"] = kept if own else ""
                    if {**cell, "score": score} not in table:
                        table.add(row)


def measure_members(args):
    """Add the rows of members' features to the table."""
    table = Table(args.csv, ("data", "per_class", "seed", "score"))
    sets = {}
    for name in (*TEXTS, *IMAGES):
        X, y = read(name, args.data_dir)
        items = np.empty(len(X), object)
        items[:] = X
        sets[name] = items, y
    for name in OF_MEMBERS:
        for seed in range(args.seeds):
            cell = {"data": name, "per_class": 10, "seed": seed}
            if {**cell, "score": MEMBERS + "all"} in table:
                continue
            train, y, familiar, foreign = draw(name, sets, 10, seed)
            clf = make(name).fit(list(train), y)
            for score, kind in (("frozen", "backbone"), ("mean", "mean"), ("all", "members")):
                clf.set_params(features=kind)
                distance = cosine(clf.transform(list(train)), 5)
                inside = distance(clf.transform(list(familiar[:N_FEW])))
                row = {**cell, "score": MEMBERS + score, "n_train": len(train), "n_test": len(inside)}
                for other in ("near", "oos", "far"):
                    row[other] = float("nan")
                    if other in foreign:
                        some = np.random.default_rng(seed).permutation(len(foreign[other]))[:N_FEW]
                        outside = distance(clf.transform(list(foreign[other][some])))
                        truth = np.repeat([0, 1], [len(inside), len(outside)])
                        row[other] = roc_auc_score(truth, np.concatenate([inside, outside]))
                table.add({**row, "false_alarms": float("nan"), "bytes": ""})


def show(args):
    """Print the tables of docs/benchmarks.md."""
    rows = Table(args.csv, ()).rows
    of_members = [row for row in rows if row["score"].startswith(MEMBERS)]
    rows = [row for row in rows if row not in of_members]

    def mean(kind, **where):
        chosen = [float(r[kind]) for r in rows if all(r[name] == str(value) for name, value in where.items())]
        return np.nanmean(chosen) if np.isfinite(chosen).any() else np.nan

    data = list(dict.fromkeys(row["data"] for row in rows))
    print("| score | " + " | ".join(f"{name}, far / near" for name in data) + " | all, far / near |")
    print("|---" * (len(data) + 2) + "|")
    for score in dict.fromkeys(row["score"] for row in rows):
        cells = [f"{mean('far', score=score, data=d):.3f} / {mean('near', score=score, data=d):.3f}" for d in data]
        cells.append(f"{mean('far', score=score):.3f} / {mean('near', score=score):.3f}")
        print(f"| {score} | " + " | ".join(cells) + " |")
    print("\n| data | labels a class | false alarms, % | 95 % interval of one fit, % | largest loss of AUROC | kB |")
    print("|---|---|---|---|---|---|")
    for name in data:
        for per_class in dict.fromkeys(row["per_class"] for row in rows):
            cell = [row for row in rows if (row["data"], row["per_class"]) == (name, per_class)]
            own = [row for row in cell if row["score"] == "u.novelty"]
            full = {row["seed"]: row for row in cell if row["score"] == "cosine, 5 nearest"}
            loss = max(
                float(full[row["seed"]][kind]) - float(row[kind])
                for row in own
                for kind in ("near", "oos", "far")
                if row[kind] != "nan"
            )
            n, n_test = int(own[0]["n_train"]), int(own[0]["n_test"])
            above = max(1, n + 1 - int(np.ceil(0.95 * (n + 1))))
            low, high = betabinom(n_test, above, n + 1 - above).ppf([0.025, 0.975]) / n_test
            alarms = np.mean([float(row["false_alarms"]) for row in own])
            size = max(int(row["bytes"]) for row in own) / 1000
            interval = f"{100 * low:.1f} to {100 * high:.1f}"
            print(f"| {name} | {per_class} | {100 * alarms:.1f} | {interval} | {loss:.3f} | {size:.0f} |")
    alarms = [float(row["false_alarms"]) for row in rows if row["score"] == "u.novelty"]
    print(f"\nMean of the false alarms: {100 * np.mean(alarms):.2f} %")
    print("\n| data | features | near | oos | far |\n|---|---|---|---|---|")
    for name, score in dict.fromkeys((row["data"], row["score"]) for row in of_members):
        cell = [row for row in of_members if (row["data"], row["score"]) == (name, score)]
        means = [np.mean([float(row[kind]) for row in cell]) for kind in ("near", "oos", "far")]
        print(f"| {name} | {score} | " + " | ".join(f"{value:.3f}" for value in means) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["measure", "members", "show"])
    parser.add_argument("--data-dir")
    parser.add_argument("--features", help="folder where the features are kept")
    parser.add_argument("--csv", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    {"measure": measure, "members": measure_members, "show": show}[arguments.command](arguments)
