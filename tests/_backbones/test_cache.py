"""The process cache of backbones and decompositions: counted, bounded, shared, never mutated."""

import copy
import threading

import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import nn

from skve._backbones import backbone as backbone_module
from skve._backbones import cache, decomposition, from_timm, layer_selection
from skve._backbones.cache import cached
from skve._backbones.from_timm import load_image_backbone
from tests.toys import TinyCNN, TinyMLP, make_backbone, toy_classifier, toy_inputs

LITE = "bundled:efficientnet_lite0"


@pytest.fixture(autouse=True)
def _empty_cache(empty_cache):
    pass


@pytest.fixture
def counts(monkeypatch):
    """Count how often a backbone is frozen and how often a weight is decomposed."""
    numbers = {"loads": 0, "decompositions": 0}
    freeze, decompose = backbone_module.freeze, decomposition.decompose

    def counted_freeze(*args):
        numbers["loads"] += 1
        return freeze(*args)

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


def test__from_module__equal_modules__one_entry(counts):
    module = TinyCNN()
    first = load_image_backbone(module, 16)
    for equal in (module, copy.deepcopy(module), TinyCNN(), clone(toy_classifier(module)).backbone):
        assert load_image_backbone(equal, 16) is first
    assert counts["loads"] == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda module: module.stem.weight.data.mul_(1.5),
        lambda module: module.bn1.running_mean.add_(1),
        lambda module: setattr(module.bn1, "eps", 0.5),
        lambda module: setattr(module.dilated, "dilation", (1, 1)),
        lambda module: setattr(module, "act1", nn.Tanh()),
    ],
)
def test__from_module__anything_changed__another_entry(change):
    module = TinyCNN()
    first = load_image_backbone(module, 16)
    before = first.features(first.module, toy_inputs())
    change(module)
    second = load_image_backbone(module, 16)
    assert second is not first
    assert not torch.allclose(second.features(second.module, toy_inputs()), before)
    assert torch.equal(first.features(first.module, toy_inputs()), before)


def test__from_module__class_defined_anew_under_the_same_name__another_entry(monkeypatch):
    """As in a notebook, where a cell is edited and run again."""
    from tests import toys

    class Net(TinyMLP):
        pass

    Edited = type("Net", (TinyMLP,), {"forward": lambda self, x: -TinyMLP.forward(self, x)})
    entries = []
    for cls in (Net, Edited):
        cls.__module__, cls.__qualname__ = "tests.toys", "Net"
        monkeypatch.setattr(toys, "Net", cls, raising=False)
        entries.append(load_image_backbone(cls(), 16))
    features = [entry.features(entry.module, toy_inputs()) for entry in entries]
    torch.testing.assert_close(features[1], -features[0])


def test__from_module__tied_or_equal_weights__two_entries():
    tied, equal = (nn.Sequential(nn.Flatten(), nn.Linear(768, 9), nn.Linear(9, 9), nn.Linear(9, 9)) for _ in range(2))
    tied[3].weight = tied[2].weight
    equal.load_state_dict(tied.state_dict())
    assert load_image_backbone(tied, 16) is not load_image_backbone(equal, 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test__from_module__plain_tensor_attribute__part_of_the_key(dtype):
    entries = []
    for value in (1, 1, 2):
        module = TinyMLP()
        module.scale = torch.tensor([value], dtype=dtype)
        entries.append(load_image_backbone(module, 16))
    assert entries[0] is entries[1]
    assert entries[0] is not entries[2]


def test__from_module__other_image_size__another_entry():
    module = TinyCNN()
    assert load_image_backbone(module, 16) is not load_image_backbone(module, 24)


def test__from_module__cannot_be_pickled__still_cached():
    module = TinyMLP()
    module.hook = lambda x: x
    first = load_image_backbone(module, 16)
    assert load_image_backbone(module, 16) is first
    module.fc1.weight.data.add_(1)
    assert load_image_backbone(module, 16) is not first


def test__from_module__used__original_never_mutated(images):
    module = TinyCNN().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    toy_classifier(module).fit(*images).predict(images[0])
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def small_backbone(size):
    return make_backbone(nn.Linear(size, 250, bias=False))  # 1000 * size bytes


def test__cached__over_the_limit__least_recently_used_goes(monkeypatch):
    monkeypatch.setattr(cache, "CACHE_BYTES", 3500)
    kept = {name: cached((name,), lambda: small_backbone(1)) for name in "abc"}
    assert cached(("a",), lambda: small_backbone(1)) is kept["a"]  # a is used; b is the oldest now
    cached(("d",), lambda: small_backbone(1))
    assert list(cache._cache) == [("c",), ("a",), ("d",)]
    assert cached(("b",), lambda: small_backbone(1)) is not kept["b"]
    assert sum(backbone.nbytes for backbone in cache._cache.values()) <= 3500


def test__cached__one_entry_over_the_limit__is_kept(monkeypatch):
    monkeypatch.setattr(cache, "CACHE_BYTES", 100)
    large = cached(("large",), lambda: small_backbone(5))
    assert cached(("large",), lambda: small_backbone(5)) is large
    cached(("other",), lambda: small_backbone(1))
    assert list(cache._cache) == [("other",)]


def test__nbytes__decompositions__count(monkeypatch):
    backbone = small_backbone(2)
    before = backbone.nbytes
    site = layer_selection.find_sites(backbone.module)[0][0]
    factors = backbone.factors(site)
    assert before == 2000
    assert backbone.nbytes == before + factors.nbytes
    assert factors.nbytes == 4 * (250 * 2 + 2 + 2 * 2)


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


def test__factors__many_threads__one_decomposition(counts):
    backbone = small_backbone(40)
    site = layer_selection.find_sites(backbone.module)[0][0]
    results = []
    threads = [threading.Thread(target=lambda: results.append(backbone.factors(site))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts["decompositions"] == 1
    assert all(result is results[0] for result in results)
