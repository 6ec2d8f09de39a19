"""Time a training step in 1, 2, ... processes on this machine, one core each, and what they send to one another.

    python examples/benchmarks/processes.py --processes 1 2
    python examples/benchmarks/processes.py --jobs 1 2       # whole fits with n_jobs instead, whose jobs are there

Runs on an idle machine. Each process computes with one thread. The steps are those of `SVEClassifier` on
the bundled EfficientNet-Lite0 at 64 pixels and of `SVETextClassifier` on MiniLM, four members, 32 samples a step.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

from _common import machine, require_idle
from skorch.callbacks import Callback


class Clock(Callback):
    """Notes when each step ended."""

    def __init__(self):
        self.times = []

    def on_batch_end(self, net, training=False, **kwargs):
        if training:
            self.times.append(time.perf_counter())


def fits(n_steps):
    from skve import SVEClassifier, SVETextClassifier
    from skve.datasets import load_fashion, load_intents

    common = {"n_members": 4, "max_steps": n_steps, "random_state": 0, "precision": "float32", "calibrate": None}
    images, texts = load_fashion(), load_intents()
    yield "EfficientNet-Lite0, 64 pixels", SVEClassifier(image_size=64, **common), images.images, images.target
    folds = {"ensemble_params": {"folds": None}}
    yield "MiniLM, bank questions", SVETextClassifier(**common, **folds), texts.texts, texts.target


def work(n_steps):
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    for name, clf, X, y in fits(n_steps):
        clock = Clock()
        clf.set_params(callbacks=[clock]).fit(X, y)
        if distributed.get_rank() == 0:
            n_sent = sum(array.size for array in clf._state.arrays.values())
            times = clock.times
            print(json.dumps([name, (times[-1] - times[1]) / (len(times) - 2), 4 * n_sent]), flush=True)
    distributed.destroy_process_group()


def compare_jobs(jobs, n_steps):
    """Print the seconds of whole fits by the number of jobs, of the second fit each: the jobs' processes stay."""
    import torch

    torch.set_num_threads(1)
    print("| backbone | n_jobs | seconds | speed-up |\n|---|---|---|---|")
    for name, clf, X, y in fits(n_steps):
        alone = None
        for n in jobs:
            clf.set_params(n_jobs=n).fit(X, y)
            start = time.perf_counter()
            clf.fit(X, y)
            seconds = time.perf_counter() - start
            alone = alone or seconds
            print(f"| {name} | {n} | {seconds:.1f} | {alone / seconds:.2f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--jobs", type=int, nargs="+", help="n_jobs of whole fits")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--force", action="store_true", help="measure on a busy machine")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.work:
        work(parsed.steps)
        return
    require_idle(parsed.force)
    print(machine())
    if parsed.jobs:
        compare_jobs(parsed.jobs, parsed.steps)
        return
    alone = {}
    print("| backbone | processes | seconds a step | speed-up | kB sent a step |\n|---|---|---|---|---|")
    for n in parsed.processes:
        run = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]
        script = [str(pathlib.Path(__file__)), "--work", "--steps", str(parsed.steps)]
        done = subprocess.run(
            [*run, *script], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        if done.returncode:
            sys.exit(done.stderr)
        for line in done.stdout.splitlines():
            if line.startswith("["):
                name, seconds, sent = json.loads(line)
                alone.setdefault(name, seconds)
                print(f"| {name} | {n} | {seconds:.3f} | {alone[name] / seconds:.2f} | {sent / 1000 * (n > 1):.0f} |")


if __name__ == "__main__":
    main()
