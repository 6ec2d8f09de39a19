"""The course of the learning rates over a training."""

import bisect
import itertools
import math


def cycle_starts(n_steps, n_cycles):
    """Return the steps at which each of the cycles, as equal as can be, starts, and `n_steps`."""
    return [-(-n_steps * cycle // n_cycles) for cycle in range(n_cycles + 1)]


def learning_rate_factor(schedule, warmup, n_steps, n_cycles=1):
    """Return the function step -> factor of the learning rate: a linear warm-up, then the schedule to zero.

    Each of several cycles runs through both.
    """
    if n_cycles > 1:
        starts = cycle_starts(n_steps, n_cycles)
        factors = [learning_rate_factor(schedule, warmup, end - start) for start, end in itertools.pairwise(starts)]

        def cyclic(step):
            cycle = min(bisect.bisect_right(starts, step), n_cycles) - 1
            return factors[cycle](step - starts[cycle])

        return cyclic
    n_warm = round(warmup * n_steps)

    def factor(step):
        if step < n_warm:
            return (step + 1) / (n_warm + 1)
        done = min(1.0, (step - n_warm) / max(1, n_steps - n_warm))
        if schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        return 1.0 if schedule == "constant" else 1.0 - done

    return factor
