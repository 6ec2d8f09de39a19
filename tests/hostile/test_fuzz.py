"""Mutated images and saved models end in a named error or the right result; see `tests.hostile.fuzz`."""

import csv
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.hostile import fuzz

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def run(n, seed):
    """Run the script in a process of its own, which a hang or a crash may end; return what it prints last."""
    command = [sys.executable, "-m", "tests.hostile.fuzz", "--n", str(n), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("n", "seed"),
    [(700, 0), pytest.param(8000, 3, marks=pytest.mark.slow), pytest.param(8000, 4, marks=pytest.mark.slow)],
)
def test__fuzz__mutations__named_error_or_right_result_in_little_memory(n, seed):
    total = run(n, seed)
    assert total["cases"] > 0.95 * n
    assert total["failed"] == 0
    assert total["refused"] + total["right_result"] + total["another_model"] == total["cases"]
    assert total["another_model"] > 0
    assert total["right_result"] > 0.05 * n  # many mutations reach the decoder
    assert total["peak_mib"] < 2500


def test__fuzz__table_in_the_docs__all_targets_and_at_least_10000_cases():
    with open(DOCS / "data" / "fuzz.csv", newline="") as stream:
        rows = {row["target"]: row for row in csv.DictReader(stream)}
    assert {*fuzz.DRAWN, *(f"image: {name}" for name in fuzz.image_seeds())} <= rows.keys()
    assert int(rows["total"]["cases"]) >= 10_000
    assert all(row["failed"] == "0" for row in rows.values())
    guide = (DOCS / "guide" / "images.md").read_text("utf-8")
    for column in ("cases", "refused", "right_result", "another_model"):
        assert f"{int(rows['total'][column]):,}" in guide


WATCHED = """
import pickle, subprocess, tempfile
from tests.hostile import fuzz
events = []
fuzz.watch(tempfile.mkdtemp(), events)
subprocess.run(["true"])
pickle.loads(pickle.dumps(dict))
try:
    open("/folder_of_nobody/file", "w")
except OSError:
    pass
print(sorted({event.split()[0] for event in events}))
"""


def test__fuzz_watch__forbidden_events__are_seen():
    done = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['open', 'pickle.find_class', 'subprocess.Popen']"


def test__mutate__bytes__same_for_the_same_seed_and_mostly_changed():
    data = bytes(range(256)) * 4
    changed = [fuzz.mutate(data, np.random.default_rng(seed)) for seed in range(200)]
    assert changed == [fuzz.mutate(data, np.random.default_rng(seed)) for seed in range(200)]
    assert sum(mutated != data for mutated in changed) > 180
