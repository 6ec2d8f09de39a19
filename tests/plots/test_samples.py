"""How samples of any kind become something that a picture can show."""

import numpy as np
import pytest
from PIL import Image

from skve.plots._samples import name_of_sample, shown_samples


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


def test__name_of_sample__only_column_of_a_table__the_file(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "photo.png")
    assert name_of_sample((str(tmp_path / "photo.png"),), 4) == "photo.png"
    assert name_of_sample(np.array([str(tmp_path / "photo.png")]), 4) == "photo.png"
    assert name_of_sample("a text", 4) == "sample 4"
