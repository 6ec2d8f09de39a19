"""What benchmarks and experiments share: an idle machine, data from files, measures, resumable tables."""

import csv
import gzip
import io
import itertools
import json
import os
import pathlib
import platform
import re
import sys

import numpy as np
from PIL import Image

LETTERS = "ABCDE"  # of the answers to a question of multiple choice
SHIFTS = ("near", "far")  # groups of no known class


def require_idle(force=False):
    """Stop unless nothing else runs: a timing on a busy machine is no timing."""
    load = os.getloadavg()[0]
    if load > 0.5 and not force:
        sys.exit(f"the load is {load:.2f}; timings require an idle machine (below 0.5)")


def machine():
    """Return one line that says what was measured on."""
    import torch

    model = platform.processor()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = found[0].split(":")[1].strip() if found else model
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}, {platform.platform()}"


def memory(field):
    """Return a figure of this process in MiB: "VmRSS", or its peak "VmHWM", which `forget_peak` starts anew."""
    return int(re.search(rf"{field}:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1024


def forget_peak():
    """Let the peak memory of this process start anew."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def read_jsonl(path):
    """Return the records of a file with one JSON object a line, compressed (.gz) or not."""
    opened = gzip.open if str(path).endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def as_prompt(record):
    """Return (prompt, letter of the answer) of a record `{question, choices, label}` of multiple choice."""
    choices = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, record["choices"], strict=False))
    return f"Question: {record['question']}\n{choices}\nAnswer:", LETTERS[int(record["label"])]


def as_prompt_and_choices(record):
    """Return ((prompt, choices), index of the answer) of a record `{question, choices, label}` of multiple choice."""
    return (f"Question: {record['question']}\nAnswer:", record["choices"]), int(record["label"])


def load_jpegs(path, split):
    """Return (list of PIL images, labels, class names) of an npz with JPEG bytes.

    Image i is `jpeg_S[off_S[i]:off_S[i + 1]]` of split S, its label `y_S[i]`.
    """
    data = np.load(path)
    jpeg, offsets = data[f"jpeg_{split}"].tobytes(), data[f"off_{split}"]
    images = [Image.open(io.BytesIO(jpeg[a:b])).convert("RGB") for a, b in itertools.pairwise(offsets)]
    return images, data[f"y_{split}"], data["classes"]


def measures(pooled, epistemic, truth, classes):
    """Return the measures of a prediction on test samples and on groups of no known class; NaN where there is none.

    Parameters
    ----------
    pooled : dict of str to ndarray of shape (n_samples, n_classes)
        Probabilities of "test", and of those of "near" and "far" that there are.
    epistemic : dict of str to ndarray of shape (n_samples,)
        Epistemic uncertainty of the same groups; empty where there is none.
    truth : ndarray of shape (n_samples,)
        Labels of "test".
    classes : ndarray of shape (n_classes,)
    """
    from sklearn.metrics import log_loss

    from skve.metrics import aurc, expected_calibration_error, ood_auroc, ood_fpr_at_tpr
    from skve.uncertainty import entropy

    proba = pooled["test"]
    row = {
        "accuracy": float(np.mean(classes[proba.argmax(axis=1)] == truth)),
        "nll": log_loss(truth, proba, labels=classes),
        "ece": expected_calibration_error(truth, proba, labels=classes),
        "aurc": aurc(truth, proba, labels=classes),
    }
    total = {name: entropy(group) for name, group in pooled.items()}
    for shift in SHIFTS:
        for kind, scores in (("total", total), ("epistemic", epistemic)):
            known = shift in scores
            row[f"{shift}_{kind}"] = ood_auroc(scores["test"], scores[shift]) if known else float("nan")
        known = shift in total
        row[f"{shift}_fpr95"] = ood_fpr_at_tpr(total["test"], total[shift]) if known else float("nan")
    return row


def keep_predictions(path, members, truth, classes, temperature=1.0):
    """Write members' probabilities, for tables that need more than one figure of a fit.

    Parameters
    ----------
    path : path
        Of an npz file.
    members : dict of str to ndarray of shape (n_members, n_samples, n_classes)
        Of "valid", "test" and groups of no known class.
    truth : dict of str to ndarray of shape (n_samples,)
        Labels of "valid" and "test".
    classes : ndarray of shape (n_classes,)
    temperature : float, default=1.0
        Of the pooled prediction, as the fit found it.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"members_{name}": proba for name, proba in members.items()}
    arrays |= {f"y_{name}": labels.astype(str) for name, labels in truth.items()}
    np.savez_compressed(path, classes=classes.astype(str), temperature=temperature, **arrays)


class Table:
    """Rows of a CSV file that survive a kill: finished cells are read back and skipped.

    A last line that was written only in part does not count, and is cut off when the next row comes.

    Parameters
    ----------
    path : path
    key : tuple of str
        Columns that tell cells apart.
    """

    def __init__(self, path, key):
        self.path, self.key = pathlib.Path(path), key
        self.rows, self.columns = [], None
        if self.path.exists():
            text = self._whole_lines().decode("utf-8")
            reader = csv.DictReader(io.StringIO(text, newline=""))
            self.rows, self.columns = list(reader), reader.fieldnames

    def _whole_lines(self):
        text = self.path.read_bytes()
        return text[: text.rfind(b"\n") + 1]

    def __contains__(self, cell):
        return any(all(str(cell[k]) == row[k] for k in self.key) for row in self.rows)

    def check(self, columns):
        """Raise ValueError if the file has other columns."""
        if self.columns not in (None, list(columns)):
            raise ValueError(f"{self.path} has the columns {self.columns}; a row to be added has {list(columns)}")

    def add(self, row):
        """Append a row to the file at once."""
        row = {name: f"{v:.6g}" if isinstance(v, float) else " ".join(str(v).split()) for name, v in row.items()}
        self.check(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            whole = len(self._whole_lines())
            if whole < self.path.stat().st_size:
                os.truncate(self.path, whole)
        with open(self.path, "a", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(row))
            if self.columns is None:
                writer.writeheader()
            writer.writerow(row)
        self.columns = list(row)
        self.rows.append(row)
