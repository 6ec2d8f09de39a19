"""Fixtures that the tests of experiments share."""

import pytest


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder with a handful of data for every study of the experiment runner."""
    from experiment_cases import write_data

    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture
def small(tmp_path):
    """The file of a small study."""
    from experiment_cases import SMALL

    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path
