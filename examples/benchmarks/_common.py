"""What the benchmark scripts share: an idle machine, images from files, resumable tables."""

import csv
import io
import itertools
import os
import pathlib
import platform
import sys

import numpy as np
from PIL import Image


def require_idle(force=False):
    """Stop unless nothing else runs: a timing on a busy machine is no timing."""
    load = os.getloadavg()[0]
    if load > 0.5 and not force:
        sys.exit(f"the load is {load:.2f}; timings want an idle machine (below 0.5)")


def machine():
    """Return one line that says what was measured on."""
    import torch

    model = platform.processor()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = found[0].split(":")[1].strip() if found else model
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}, {platform.platform()}"


def load_jpegs(path, split):
    """Return (list of PIL images, labels, class names) of an npz with JPEG bytes.

    Image i is `jpeg_S[off_S[i]:off_S[i + 1]]` of split S, its label `y_S[i]`.
    """
    data = np.load(path)
    jpeg, offsets = data[f"jpeg_{split}"].tobytes(), data[f"off_{split}"]
    images = [Image.open(io.BytesIO(jpeg[a:b])).convert("RGB") for a, b in itertools.pairwise(offsets)]
    return images, data[f"y_{split}"], data["classes"]


def keep_predictions(folder, data, method, seed, members, truth, classes):
    """Write members' probabilities, for tables that need more than one figure of a fit.

    Parameters
    ----------
    folder : path or None
        None keeps nothing.
    data, method : str
    seed : int
    members : dict of str to ndarray of shape (n_members, n_samples, n_classes)
        Of "valid", "test" and groups of no known class.
    truth : dict of str to ndarray of shape (n_samples,)
        Labels of "valid" and "test".
    classes : ndarray of shape (n_classes,)
    """
    if folder is None:
        return
    path = pathlib.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    arrays = {f"members_{name}": proba for name, proba in members.items()}
    arrays |= {f"y_{name}": labels.astype(str) for name, labels in truth.items()}
    np.savez_compressed(path / f"{data}_{method}_{seed}.npz", classes=classes.astype(str), **arrays)


class Table:
    """Rows of a CSV file that survive a kill: finished cells are read back and skipped.

    Parameters
    ----------
    path : path
    key : tuple of str
        Columns that tell cells apart.
    """

    def __init__(self, path, key):
        self.path, self.key = pathlib.Path(path), key
        self.rows = []
        if self.path.exists():
            with open(self.path, newline="") as stream:
                self.rows = list(csv.DictReader(stream))

    def __contains__(self, cell):
        return any(all(str(cell[k]) == row[k] for k in self.key) for row in self.rows)

    def add(self, row):
        """Append a row to the file at once."""
        row = {name: f"{v:.6g}" if isinstance(v, float) else str(v) for name, v in row.items()}
        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)
        self.rows.append(row)
