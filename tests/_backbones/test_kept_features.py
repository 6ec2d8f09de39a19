"""Features that a frozen backbone computes once for each item, and the bound of what is kept."""

import dataclasses
import os

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

import skve
from skve._backbones.kept_features import KeptFeatures
from skve.testing import ToyClassifier
from tests.toys import TinyMLP, image_files, make_backbone, toy_classifier

N_TRACED = 2  # samples that pass through the backbone when a fit looks at its layers
rng = np.random.default_rng(0)
X = rng.normal(size=(30, 4))
y = np.arange(30) % 3


class Counting(torch.nn.Module):
    """Counts the items of all passes, those of copies included."""

    n_items = 0

    def __init__(self, n_inputs=4, seed=0):
        super().__init__()
        self.layer = torch.nn.Linear(n_inputs, 6)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(seed)
            self.layer.weight.copy_(torch.randn(self.layer.weight.shape, generator=generator))

    def forward(self, inputs):
        Counting.n_items += len(inputs)
        return torch.tanh(self.layer(inputs.flatten(1)))


@pytest.fixture(autouse=True)
def count(empty_cache):
    Counting.n_items = 0


def make(**parameters):
    return ToyClassifier(Counting(), **{"ensemble": "head", "n_members": 2, "random_state": 0, **parameters})


def test__grid_search__heads__each_item_passes_through_the_backbone_once():
    grid = {"label_smoothing": [0.0, 0.1]}
    search = GridSearchCV(make(n_members=1), grid, cv=3, scoring="neg_log_loss").fit(X, y)
    search.predict_proba(X)
    n_fits = 2 * 3 + 1
    assert Counting.n_items == len(X) + N_TRACED * n_fits


@pytest.mark.parametrize("ensemble", ["head", "laplace", "sve"])
def test__fit__transform_and_novelty__share_one_pass(ensemble):
    clf = make(ensemble=ensemble, max_steps=1).fit(X, y)
    before = Counting.n_items
    clf.transform(X)
    clf.score_samples(X[::-1])
    assert Counting.n_items == before
    clf.predict_uncertainty(X)
    assert Counting.n_items == before + (2 * len(X) if ensemble == "sve" else 0)  # of the members alone


def test__pipeline__folds_of_a_regression_on_features__one_pass():
    pipeline = make_pipeline(make(), LogisticRegression())
    GridSearchCV(pipeline, {"logisticregression__C": [0.1, 1.0]}, cv=3, refit=False).fit(X, y)
    assert Counting.n_items == len(X) + N_TRACED * 6


def test__predict__some_items_known__only_the_others_pass():
    clf = make().fit(X[:20], y[:20])
    before = Counting.n_items
    proba = clf.predict_proba(X)
    assert Counting.n_items == before + 10
    skve.clear_cache()
    np.testing.assert_allclose(clf.predict_proba(X), proba, atol=1e-6)
    assert Counting.n_items == before + 10 + 30


def test__features__from_the_cache__are_those_computed():
    clf = make().fit(X, y)
    kept = clf.transform(X)
    skve.clear_cache()
    np.testing.assert_allclose(clf.transform(X), kept, atol=1e-6)
    changed = X.copy()
    changed[3] += 1e-9
    changed[5] += 1
    assert not np.array_equal(clf.transform(changed)[5], kept[5])


def test__another_module__has_features_of_its_own():
    first, second = make().fit(X, y), ToyClassifier(Counting(seed=1), ensemble="head", random_state=0).fit(X, y)
    assert not np.allclose(first.transform(X), second.transform(X))


def test__limit_of_zero__nothing_is_kept(monkeypatch):
    monkeypatch.setenv("SKVE_CACHE_LIMIT", "0")
    clf = make().fit(X, y)
    before = Counting.n_items
    clf.transform(X)
    clf.transform(X)
    assert Counting.n_items == before + 2 * len(X)


def test__keep__beyond_the_limit__least_recently_used_dropped(monkeypatch):
    kept, keys = KeptFeatures(), [bytes([place]) for place in range(4)]
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    monkeypatch.setattr("skve._backbones.kept_features.feature_limit", lambda: 3 * (12 + 400))
    kept.keep("reading", keys[:3], rows[:3])
    kept.find("reading", keys[:1], 3)
    kept.keep("reading", keys[3:], rows[3:])
    features, missing = kept.find("reading", keys, 3)
    assert missing.tolist() == [False, True, False, False]
    assert np.array_equal(features[~missing], rows[~missing])
    assert kept.find("other", keys, 3)[1].all()
    assert kept.nbytes == 3 * (12 + 400)


def test__keep__no_key__not_kept():
    kept = KeptFeatures()
    kept.keep("reading", [None, b"a"], np.ones((2, 3), np.float32))
    assert kept.find("reading", [None, b"a"], 3)[1].tolist() == [True, False]


def pictures(kind, images, folder):
    paths = image_files(images, folder)
    if kind == "paths":
        return paths
    if kind == "bytes":
        return [path.read_bytes() for path in paths]
    if kind == "opened":
        return [Image.open(path) for path in paths]
    return images.astype(np.float32) / 255 if kind == "floats" else images


@pytest.mark.parametrize("kind", ["paths", "bytes", "opened", "arrays", "floats"])
def test__images_of_each_kind__pass_once(kind, images, tmp_path):
    found, labels = pictures(kind, images[0], tmp_path), images[1]
    clf = toy_classifier(Counting(3 * 16 * 16), ensemble="head", n_members=1).fit(found, labels)
    before = Counting.n_items
    assert before == len(labels) + N_TRACED
    clf.transform(found)
    clf.predict(found[:5])
    assert Counting.n_items == before


def test__images__file_written_anew__computed_again(images, tmp_path):
    paths, labels = image_files(images[0], tmp_path), images[1]
    clf = toy_classifier(Counting(3 * 16 * 16), ensemble="head", n_members=1).fit(paths, labels)
    features = clf.transform(paths)
    times = os.stat(paths[0])
    Image.fromarray(255 - images[0][0]).save(paths[0])
    os.utime(paths[0], ns=(times.st_atime_ns, times.st_mtime_ns))  # as an archive's tool does
    again = clf.transform(paths)
    assert not np.allclose(again[0], features[0])
    assert np.array_equal(again[1:], features[1:])


def test__reading__other_preprocessing_or_pooling__another_one():
    backbone = make_backbone(TinyMLP())
    assert dataclasses.replace(backbone).reading == backbone.reading
    assert dataclasses.replace(backbone, preprocess={"mean": [0.5]}).reading != backbone.reading
    assert dataclasses.replace(backbone, features=np.mean).reading != backbone.reading


def test__images__large_ones_in_memory__computed_each_time(images, monkeypatch):
    monkeypatch.setattr("skve._inputs.image_pipeline.LARGEST_KEYED", 0.99)
    clf = toy_classifier(Counting(3 * 16 * 16), ensemble="head", n_members=1).fit(*images)
    before = Counting.n_items
    clf.transform(images[0])
    assert Counting.n_items == before + len(images[0])
