"""Time and memory of the metrics on 1,000,000 x 100 probabilities.

Target: top-label ECE, entropy and AURC each under 3 s and under twice the array's memory (the array itself
included), on one thread. Every metric runs in a fresh process; run the script without arguments on an
idle machine::

    python examples/benchmarks/metrics_speed.py
"""

import multiprocessing
import os
import resource
import sys
import time

import numpy as np

N_SAMPLES, N_CLASSES = 1_000_000, 100
MAX_SECONDS, MAX_MEMORY = 3.0, 2.0
MAX_LOAD = 0.5
METRICS = ("expected_calibration_error", "entropy", "aurc")


def make_data(n_samples, n_classes, seed=0):
    """Random probabilities (float64) and labels drawn from them, made in pieces to keep the peak low."""
    rng = np.random.default_rng(seed)
    y_proba = np.empty((n_samples, n_classes))
    y_true = np.empty(n_samples, dtype=np.int64)
    for start in range(0, n_samples, 10_000):
        rows = slice(start, min(start + 10_000, n_samples))
        piece = rng.standard_gamma(0.1, size=(rows.stop - rows.start, n_classes))
        piece /= piece.sum(axis=1, keepdims=True)
        y_proba[rows] = piece
        drawn = rng.uniform(size=(len(piece), 1))
        y_true[rows] = np.minimum((piece.cumsum(axis=1) < drawn).sum(axis=1), n_classes - 1)
    return y_true, y_proba


def measure(name):
    """Return the seconds that a metric takes, and its peak memory as a multiple of the array's."""
    from skve import metrics, uncertainty

    warm_up = make_data(1000, 10)
    y_true, y_proba = make_data(N_SAMPLES, N_CLASSES)
    labels = np.arange(N_CLASSES)

    def run(y_true, y_proba, labels):
        if name == "entropy":
            return uncertainty.entropy(y_proba)
        return getattr(metrics, name)(y_true, y_proba, labels=labels)

    run(*warm_up, np.arange(10))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    run(y_true, y_proba, labels)
    seconds = time.perf_counter() - start
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return seconds, 1 + added / y_proba.nbytes


def main():
    """Measure every metric and say whether it meets the target."""
    load = os.getloadavg()[0]
    if load > MAX_LOAD:
        sys.exit(f"The machine is busy: its load is {load:.2f}, and times mean something only below {MAX_LOAD}.")
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"  # for the fresh processes
    missed = False
    print(f"{N_SAMPLES:,} x {N_CLASSES} probabilities, float64, one thread")
    for name in METRICS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, memory = pool.apply(measure, (name,))
        met = seconds < MAX_SECONDS and memory < MAX_MEMORY
        missed |= not met
        print(f"{name:28} {seconds:5.2f} s  {memory:4.2f} x the array  {'met' if met else 'MISSED'}")
    sys.exit(missed)


if __name__ == "__main__":
    main()
