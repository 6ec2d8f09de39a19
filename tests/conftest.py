"""Fixtures that the tests share."""

import random
import signal

import numpy as np
import pytest
import torch

from skve._backbones import cache
from skve._training import schedule
from tests.toys import toy_images


@pytest.fixture(scope="session")
def images():
    """24 small images of three classes, and their labels 0 to 2."""
    return toy_images()


@pytest.fixture(scope="session")
def validation():
    """18 other images of the same classes, and their labels."""
    return toy_images(per_class=6, seed=1)


@pytest.fixture(autouse=True, scope="session")
def default_length():
    """Shorten the trainings to which a test gives no length; return the least steps and epochs of the package.

    The suite trains a thousand models, most of which need not be good. A test whose claim depends on the length gives
    `max_steps` or `max_epochs`.
    """
    least = schedule.LEAST_STEPS, schedule.LEAST_EPOCHS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "LEAST_STEPS", 12)
        patch.setattr(schedule, "LEAST_EPOCHS", 2)
        yield least


@pytest.fixture
def empty_cache():
    """An empty cache of backbones before the test, and none of the test's entries after it."""
    cache.clear_cache()
    yield
    cache.clear_cache()


@pytest.fixture
def global_state():
    """Return a function that tells the state of all global random generators."""

    def state():
        numpy_state = np.random.get_state()  # noqa: NPY002 - the legacy global state is what must not move
        return (
            torch.get_rng_state().numpy().tobytes(),
            numpy_state[1].tobytes(),
            numpy_state[2:],
            random.getstate(),
        )

    return state


@pytest.fixture
def train_in_chunks(monkeypatch):
    """Return a function that lets the following fits pass `chunk` members through the network together."""
    from skve._training import loop

    original = loop.train

    def use(chunk):
        def train(*args, **kwargs):
            return original(*args, **{**kwargs, "chunk": chunk})

        monkeypatch.setattr(loop, "train", train)

    return use


def pytest_configure():
    # A shell's background jobs ignore Ctrl-C, which some tests send to themselves.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    # Workers of pytest-xdist refuse to run unless all of them collect the same names.
    addresses = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if addresses:
        raise pytest.UsageError(f"names of tests must not contain addresses of objects: {addresses}")
