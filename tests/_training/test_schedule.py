"""How long a training is, its rounds, and the course of the learning rates."""

import numpy as np
import pytest

from skve._training import schedule
from skve._training.schedule import default_steps, learning_rate_factor, plan_course


def test__learning_rate_factor__warmup__rises_linearly_and_never_starts_at_zero():
    factor = learning_rate_factor("cosine", 0.4, 10)
    assert [factor(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize(("schedule", "middle", "end"), [("cosine", 0.5, 0), ("linear", 0.5, 0), ("constant", 1, 1)])
def test__learning_rate_factor__schedules__from_one_to_their_end(schedule, middle, end):
    factor = learning_rate_factor(schedule, 0.0, 100)
    assert factor(0) == 1
    assert factor(50) == pytest.approx(middle)
    assert factor(100) == pytest.approx(end)
    assert factor(1000) == pytest.approx(end)
    assert (np.diff([factor(step) for step in range(101)]) <= 0).all()


def test__default_steps__few_and_many_samples__the_larger_of_steps_and_epochs(monkeypatch, default_length):
    monkeypatch.setattr(schedule, "LEAST_STEPS", default_length[0])
    monkeypatch.setattr(schedule, "LEAST_EPOCHS", default_length[1])
    assert default_steps(1) == default_steps(26) == 160
    assert default_steps(27) == 162
    assert default_steps(1, least_steps=40) == 40


def test__plan_course__epochs__a_round_each():
    course = plan_course(7, max_epochs=3)
    assert (course.n_steps, course.n_rounds) == (21, 3)
    assert [course.epochs(n) for n in (1, 2, 3)] == [1, 2, 3]
    assert isinstance(course.epochs(1), int)


@pytest.mark.parametrize(
    ("steps_per_epoch", "max_steps", "steps_per_round", "n_rounds"),
    [(1, 160, 8, 20), (5, 160, 8, 20), (16, 160, 16, 10), (500, 160, 32, 5), (4, 1, 1, 1), (4, 3, 1, 3)],
)
def test__plan_course__steps__an_epoch_a_round_within_limits(steps_per_epoch, max_steps, steps_per_round, n_rounds):
    course = plan_course(steps_per_epoch, max_steps=max_steps)
    assert (course.n_steps, course.steps_per_round, course.n_rounds) == (max_steps, steps_per_round, n_rounds)
    assert course.epochs(course.n_rounds) == pytest.approx(max_steps / steps_per_epoch)


@pytest.mark.parametrize(("n_steps", "n_cycles"), [(10, 3), (7, 7), (100, 4), (5, 1)])
def test__cycle_starts__any_numbers__cycles_as_equal_as_can_be(n_steps, n_cycles):
    starts = schedule.cycle_starts(n_steps, n_cycles)
    lengths = np.diff(starts)
    assert (starts[0], starts[-1], len(starts)) == (0, n_steps, n_cycles + 1)
    assert lengths.max() - lengths.min() <= 1


def test__learning_rate_factor__cycles__each_runs_through_warm_up_and_schedule():
    factor = schedule.learning_rate_factor("cosine", 0.2, 30, 3)
    once = schedule.learning_rate_factor("cosine", 0.2, 10)
    assert [factor(step) for step in range(30)] == pytest.approx([once(step) for step in range(10)] * 3)
    assert factor(30) == pytest.approx(0)
