"""How samples of any kind become something that a picture can show."""

import os

import numpy as np
import pytest
from PIL import Image

from skve.plots._samples import names_of_samples, shown_samples


def test__shown_samples__text_that_is_also_the_name_of_a_file__the_text(tmp_path, monkeypatch):
    (tmp_path / "notes").write_text("no image")
    monkeypatch.chdir(tmp_path)
    assert shown_samples(["notes"]) == ["notes"]


def test__shown_samples__path_of_a_file_that_is_no_image__value_error_names_it(tmp_path):
    (tmp_path / "notes").write_text("no image")
    with pytest.raises(ValueError, match="notes"):
        shown_samples([tmp_path / "notes"])


@pytest.mark.parametrize(
    "sample",
    [
        lambda path: path,
        lambda path: str(path),
        lambda path: bytes(path.read_bytes()),
        lambda path: Image.open(path),
        lambda path: (str(path),),
    ],
    ids=["path", "string", "bytes", "opened", "only column"],
)
def test__shown_samples__photograph_in_any_form__its_pixels(tmp_path, sample):
    pixels = np.random.default_rng(0).integers(0, 255, (6, 5, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    np.testing.assert_array_equal(shown_samples([sample(tmp_path / "photo.png")])[0], pixels)


def test__shown_samples__channels_first__channels_last():
    assert shown_samples([np.zeros((3, 6, 5))])[0].shape == (6, 5, 3)


@pytest.mark.parametrize("form", [str, lambda path: path, lambda path: (str(path),)], ids=["str", "path", "column"])
def test__names_of_samples__files_of_one_name__differ_by_their_folders(tmp_path, form):
    for folder in ("cat", "dog"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").touch()
    files = [form(tmp_path / folder / "1.jpg") for folder in ("cat", "dog")]
    assert names_of_samples(files, np.array([1, 0])) == [os.path.join("dog", "1.jpg"), os.path.join("cat", "1.jpg")]
    assert names_of_samples(files[:1], np.array([0])) == ["1.jpg"]


def test__names_of_samples__absolute_and_relative_paths__as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1.jpg").touch()
    files = ["1.jpg", str(tmp_path / "1.jpg")]
    assert names_of_samples(files, np.arange(2)) == files


def test__names_of_samples__no_files__their_places():
    assert names_of_samples(["a text", "another"], np.array([1])) == ["sample 1"]
    assert names_of_samples(np.zeros((2, 4, 4)), np.array([0]), places=np.array([7, 9])) == ["sample 7"]
