"""Fixtures that the tests share."""

import random
import signal

import numpy as np
import pytest
import torch

from skve import _backbones
from tests.toys import toy_images


@pytest.fixture(scope="session")
def images():
    """24 small images of three classes, and their labels 0 to 2."""
    return toy_images()


@pytest.fixture(scope="session")
def validation():
    """18 other images of the same classes, and their labels."""
    return toy_images(per_class=6, seed=1)


@pytest.fixture
def empty_cache():
    """An empty cache of backbones before the test, and none of the test's entries after it."""
    _backbones.clear_cache()
    yield
    _backbones.clear_cache()


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


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder with a handful of data for every study of the experiment runner."""
    from tests.experiment_cases import write_data

    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture
def small(tmp_path):
    """The file of a small study."""
    from tests.experiment_cases import SMALL

    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def train_in_chunks(monkeypatch):
    """Return a function that lets the following fits pass `chunk` members through the network together."""
    from skve import _training

    original = _training.train

    def use(chunk):
        def train(*args, **kwargs):
            return original(*args, **{**kwargs, "chunk": chunk})

        monkeypatch.setattr(_training, "train", train)

    return use


def pytest_configure():
    # A shell's background jobs ignore Ctrl-C, which some tests send to themselves.
    signal.signal(signal.SIGINT, signal.default_int_handler)
