"""How long a training is, and the course of the learning rates over it."""

import bisect
import dataclasses
import itertools
import math

# The default length: enough steps for few samples, whose epochs are short, and enough epochs for many.
LEAST_STEPS = 160
LEAST_EPOCHS = 6
# Rounds of a training whose length is given in steps; each ends with validation and an entry of the history.
FEWEST_ROUNDS, MOST_ROUNDS = 5, 20


@dataclasses.dataclass(frozen=True)
class Course:
    """The length of a training, and of its rounds.

    Attributes
    ----------
    n_steps, steps_per_round, steps_per_epoch : int
        The last round may be shorter.
    """

    n_steps: int
    steps_per_round: int
    steps_per_epoch: int

    @property
    def n_rounds(self):
        return -(-self.n_steps // self.steps_per_round)

    def steps(self, n_rounds):
        """Return the steps of the first rounds."""
        return min(n_rounds * self.steps_per_round, self.n_steps)

    def epochs(self, n_rounds):
        """Return the passes over the training data in the first rounds: an int where they are whole."""
        n_steps = self.steps(n_rounds)
        whole, rest = divmod(n_steps, self.steps_per_epoch)
        return n_steps / self.steps_per_epoch if rest else whole


def default_steps(steps_per_epoch, least_steps=None):
    """Return the number of training steps where the user gives none.

    The larger of `LEAST_STEPS` steps and `LEAST_EPOCHS` epochs: with few samples an epoch has few steps, and the
    number of steps decides how well members and heads are fitted; with many samples each should be seen a few times.

    Parameters
    ----------
    steps_per_epoch : int
        Batches of the training data: samples divided by the batch size, rounded up.
    least_steps : int, default=None
        In place of `LEAST_STEPS`.

    Returns
    -------
    int
    """
    return max(LEAST_STEPS if least_steps is None else least_steps, LEAST_EPOCHS * steps_per_epoch)


def plan_course(steps_per_epoch, max_epochs=None, max_steps=None, least_steps=None):
    """Return the `Course` of a training of `max_epochs` epochs, of `max_steps` steps, or of the default length.

    A round is an epoch where the length is given in epochs. Else it is an epoch as long as that makes 5 to 20 rounds,
    and a fifth or a twentieth of the training where epochs are longer or shorter.
    """
    if max_epochs is not None:
        return Course(max_epochs * steps_per_epoch, steps_per_epoch, steps_per_epoch)
    n_steps = default_steps(steps_per_epoch, least_steps) if max_steps is None else max_steps
    shortest, longest = -(-n_steps // MOST_ROUNDS), -(-n_steps // FEWEST_ROUNDS)
    return Course(n_steps, min(max(steps_per_epoch, shortest), longest), steps_per_epoch)


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
