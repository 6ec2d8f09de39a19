"""The data that ships with the package."""

import importlib.resources

import numpy as np

from skve.datasets import load_intents


def test__load_intents__sizes__as_documented():
    data = load_intents()
    names, counts = np.unique(data.target, return_counts=True)
    assert names.tolist() == data.target_names.tolist()
    assert set(counts) == {60}
    assert set(np.unique(data.target_test, return_counts=True)[1]) == {30}
    assert (len(data.texts), len(data.texts_test), len(data.texts_ood)) == (1500, 750, 500)
    assert not set(data.texts) & set(data.texts_test)
    assert all(text.strip() == text and text for text in [*data.texts, *data.texts_test, *data.texts_ood])


def test__load_intents__licence__attribution_and_size():
    folder = importlib.resources.files("skve") / "data" / "intents"
    text = (folder / "LICENSE").read_text("utf-8")
    assert "creativecommons.org/licenses/by/3.0" in text
    assert "Larson" in text
    assert "CC BY" in text
    assert "CLINC150" in load_intents().DESCR
    assert len((folder / "intents.csv").read_bytes()) < 300_000
