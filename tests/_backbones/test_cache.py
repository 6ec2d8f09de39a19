"""The process cache of backbones: what is loaded and decomposed once, the bound, threads."""

import threading

import pytest
from sklearn.model_selection import GridSearchCV
from torch import nn

import skve
from skve._backbones import backbone as backbone_module
from skve._backbones import cache, decomposition, from_timm
from skve._backbones.cache import cached
from tests.toys import TinyCNN, make_backbone, toy_classifier

LITE = "bundled:efficientnet_lite0"


@pytest.fixture(autouse=True)
def _empty_cache(empty_cache):
    pass


@pytest.fixture
def counts(monkeypatch):
    """Count how often a backbone is frozen and how often a weight is decomposed."""
    numbers = {"loads": 0, "decompositions": 0}
    freeze, decompose = backbone_module.freeze, decomposition.decompose

    def counted_freeze(*args, **options):
        numbers["loads"] += 1
        return freeze(*args, **options)

    def counted_decompose(*args):
        numbers["decompositions"] += 1
        return decompose(*args)

    for module in (backbone_module, from_timm):
        monkeypatch.setattr(module, "freeze", counted_freeze)
    monkeypatch.setattr(decomposition, "decompose", counted_decompose)
    return numbers


def test__grid_search__three_settings_and_three_folds__one_load_and_one_decomposition(images, counts):
    grid = {"member_lr": [1e-3, 1e-2, 5e-2]}
    GridSearchCV(toy_classifier(TinyCNN(), max_epochs=1), grid, cv=3).fit(*images).predict(images[0])
    assert counts == {"loads": 1, "decompositions": 3}  # stem, pointwise, dilated


def test__grid_search__bundled_backbone__one_load_and_one_decomposition(images, counts):
    classifier = toy_classifier(LITE, image_size=32, layers="last:1", n_members=1, max_epochs=1)
    GridSearchCV(classifier, {"init_scale": [0.0, 0.01, 0.1]}, cv=3).fit(*images).predict(images[0])
    assert counts == {"loads": 1, "decompositions": 2}


def test__fit_and_predict__no_image_size__still_one_load(images, counts):
    X, y = images
    classifier = toy_classifier(LITE, image_size=None, layers="last:1", n_members=1, max_epochs=1, batch_size=3)
    classifier.fit(X[:6], y[:6]).predict(X[:2])
    assert classifier.preprocess_["input_size"] == [3, 224, 224]
    assert counts == {"loads": 1, "decompositions": 2}


def test__fit__head_ensemble__decomposes_nothing(images, counts):
    toy_classifier(ensemble="head").fit(*images).predict(images[0])
    assert counts == {"loads": 1, "decompositions": 0}


def test__fit__some_layers__decomposes_only_these(images, counts):
    toy_classifier(layers=["fc2"]).fit(*images)
    assert counts["decompositions"] == 1


def small_backbone(size):
    return make_backbone(nn.Linear(size, 250, bias=False))  # 1000 * size bytes


def test__cached__over_the_limit__least_recently_used_goes(monkeypatch):
    monkeypatch.setenv(cache.LIMIT, "3500")
    kept = {name: cached((name,), lambda: small_backbone(1)) for name in "abc"}
    assert cached(("a",), lambda: small_backbone(1)) is kept["a"]  # a is used; b is the oldest now
    cached(("d",), lambda: small_backbone(1))
    assert list(cache._cache) == [("c",), ("a",), ("d",)]
    assert cached(("b",), lambda: small_backbone(1)) is not kept["b"]
    assert sum(backbone.nbytes for backbone in cache._cache.values()) <= 3500


def test__cached__one_entry_over_the_limit__is_kept(monkeypatch):
    monkeypatch.setenv(cache.LIMIT, "100")
    large = cached(("large",), lambda: small_backbone(5))
    assert cached(("large",), lambda: small_backbone(5)) is large
    cached(("other",), lambda: small_backbone(1))
    assert list(cache._cache) == [("other",)]


def test__cached__many_threads__built_once():
    built, results, barrier = [], [None] * 8, threading.Barrier(8)

    def build():
        built.append(1)
        return small_backbone(1)

    def work(index):
        barrier.wait()
        results[index] = cached(("key",), build)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert all(result is results[0] for result in results)


def test__cached__failing_build__nothing_is_kept():
    def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cached(("key",), fail)
    assert list(cache._cache) == []


def test__cached__build_draws_random_weights__global_generator_untouched(global_state):
    before = global_state()
    cached(("random",), lambda: make_backbone(nn.Linear(5, 5)))
    assert global_state() == before


@pytest.mark.parametrize(
    ("text", "limit"), [("0", 0), ("3500", 3500), ("500M", 500 * 2**20), ("1.5 gb", 1.5 * 2**30), (None, 2 * 2**30)]
)
def test__cache_limit__environment_variable__bytes_with_or_without_a_unit(text, limit, monkeypatch):
    monkeypatch.delenv(cache.LIMIT, raising=False)
    if text is not None:
        monkeypatch.setenv(cache.LIMIT, text)
    assert cache.cache_limit() == limit


@pytest.mark.parametrize("text", ["", "much", "-1", "1X", "nan"])
def test__cache_limit__no_number__value_error_says_how(text, monkeypatch, images):
    monkeypatch.setenv("SKVE_CACHE_LIMIT", text)
    with pytest.raises(ValueError, match=r"SKVE_CACHE_LIMIT must be a number of bytes, .* Set it as in"):
        toy_classifier().fit(*images)


def test__clear_cache__public_name__backbones_released_and_estimators_valid(images):
    classifier = toy_classifier().fit(*images)
    before = classifier.predict_proba(images[0])
    assert len(cache._cache) == 1
    skve.clear_cache()
    assert len(cache._cache) == 0
    assert (classifier.predict_proba(images[0]) == before).all()
