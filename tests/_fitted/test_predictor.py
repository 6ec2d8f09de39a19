"""What a fitted estimator predicts with: built once, found again, dropped, shared by threads; its arithmetic."""

import copy
import gc
import os
import pathlib
import pickle
import threading
import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn

import skve
from skve._backbones import cache
from skve._backbones.network import Network
from skve._fitted import predictor as predictor_module
from skve._runtime import device as device_module
from skve._runtime.device import resolve_prediction_dtype
from skve.testing import ToyClassifier, make_toy_backbone
from tests.toys import TinyCNN, TinyMLP, toy_classifier, toy_images

CPU = torch.device("cpu")
X = np.random.default_rng(0).normal(size=(12, 3))
y = np.arange(12) % 2


@pytest.fixture(autouse=True)
def _empty_cache(empty_cache):
    pass


@pytest.fixture
def built(monkeypatch):
    """The predictors that are built, and the networks of members."""
    found = {"predictors": 0, "networks": 0}
    init, networks = predictor_module.Predictor.__init__, predictor_module.Predictor._networks

    def counted_init(*args):
        found["predictors"] += 1
        init(*args)

    def counted_networks(*args):
        found["networks"] += 1
        return networks(*args)

    monkeypatch.setattr(predictor_module.Predictor, "__init__", counted_init)
    monkeypatch.setattr(predictor_module.Predictor, "_networks", counted_networks)
    return found


def fit(backbone=None, **parameters):
    settings = {"n_members": 2, "max_steps": 2, "random_state": 0, "device": "cpu", **parameters}
    return ToyClassifier(backbone, **settings).fit(X, y)


def test__predict__several_calls_and_methods__built_once(built):
    clf = fit()
    expected = clf.predict_proba(X)
    for _ in range(3):
        assert np.array_equal(clf.predict_proba(X), expected)
        clf.predict(X)
        clf.predict_uncertainty(X)
    assert built == {"predictors": 1, "networks": 1}


def test__predict__second_call__neither_hashes_nor_folds_nor_finds_layers(monkeypatch):
    clf = fit(make_toy_backbone(3))
    expected = clf.predict_proba(X)

    def forbidden(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr("skve._backbones.backbone.weights_hash", forbidden)
    monkeypatch.setattr("skve._backbones.layer_selection.find_sites", forbidden)
    monkeypatch.setattr("skve._ensembles.forms.fold", forbidden)
    monkeypatch.setattr(Network, "__init__", forbidden)
    assert np.array_equal(clf.predict_proba(X), expected)


def test__predict__callable__called_by_the_first_prediction_alone(images):
    calls = []

    def make():
        calls.append(1)
        return TinyMLP()

    clf = toy_classifier(make, max_epochs=1).fit(*images)
    clf.predict(images[0])
    n_calls = len(calls)
    clf.predict(images[0])
    clf.predict_uncertainty(images[0])
    assert len(calls) == n_calls


def test__predict__module_written_to_after_the_fit__error_until_it_is_as_it_was():
    module = make_toy_backbone(3)
    clf = fit(module)
    expected = clf.predict_proba(X)
    kept = copy.deepcopy(module.state_dict())
    with torch.no_grad():
        module[0].bias.add_(1)
    for _ in range(2):
        with pytest.raises(ValueError, match="have changed since"):
            clf.predict_proba(X)
    module.load_state_dict(kept)
    assert np.array_equal(clf.predict_proba(X), expected)


def test__predict__other_parameter_in_place_of_one__error():
    module = make_toy_backbone(3)
    clf = fit(module)
    clf.predict(X)
    module[0].weight = nn.Parameter(torch.ones_like(module[0].weight))
    with pytest.raises(ValueError, match="have changed since"):
        clf.predict(X)


def test__predict__weights_of_inference_mode__found_again(built):
    with torch.inference_mode():
        module = make_toy_backbone(3)
    clf = fit(module)
    clf.predict(X)
    clf.predict(X)
    assert built["predictors"] == 1


def test__refit__former_predictor_dropped_and_a_new_one_built(built):
    clf = fit()
    before = clf.predict_proba(X)
    clf.set_params(random_state=1).fit(X, y)
    gc.collect()
    assert len(cache._predictors) == 0
    assert not np.array_equal(clf.predict_proba(X), before)
    assert built["predictors"] == 2
    assert len(cache._predictors) == 1


def test__estimator_deleted__predictor_dropped():
    clf = fit()
    clf.predict(X)
    del clf
    gc.collect()
    assert len(cache._predictors) == 0


def test__clear_cache__predictor_dropped_and_the_same_prediction():
    clf = fit()
    expected = clf.predict_proba(X)
    skve.clear_cache()
    assert len(cache._predictors) == 0
    assert np.array_equal(clf.predict_proba(X), expected)


def test__pickle_and_copy__hold_nothing_of_the_predictor(built):
    clf = fit()
    size = len(pickle.dumps(clf))
    expected = clf.predict_proba(X)
    assert len(pickle.dumps(clf)) == size
    assert np.array_equal(pickle.loads(pickle.dumps(clf)).predict_proba(X), expected)
    copy.copy(clf).predict(X)  # the same fitted state
    assert built["predictors"] == 2


def test__threads__more_at_once_than_networks__each_has_its_own_and_all_are_right(built, monkeypatch):
    clf = fit(n_members=3)
    expected = clf.predict_proba(X)
    barrier, results = threading.Barrier(4), [None] * 4

    def wait(self, inputs, index, compute=predictor_module.Ensemble.member_logits):
        if index == 0:
            barrier.wait(timeout=60)  # all four are in the midst of a prediction
        return compute(self, inputs, index)

    monkeypatch.setattr(predictor_module.Ensemble, "member_logits", wait)

    def work(place):
        results[place] = clf.predict_proba(X)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(result, expected) for result in results)
    assert built == {"predictors": 1, "networks": 4}


def test__error_in_a_prediction__its_networks_are_not_lent_again(built, monkeypatch):
    clf = fit()
    expected = clf.predict_proba(X)
    with monkeypatch.context() as patch:
        patch.setattr(predictor_module.Ensemble, "member_logits", _fail)
        with pytest.raises(RuntimeError, match="half-way"):
            clf.predict(X)
    assert np.array_equal(clf.predict_proba(X), expected)
    assert built == {"predictors": 1, "networks": 2}


def _fail(*args):
    raise RuntimeError("half-way")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test__fork__child_predicts_with_what_the_parent_prepared():
    clf = fit()
    expected = clf.predict_proba(X)
    child = os.fork()
    if child == 0:
        try:
            same = np.allclose(clf.predict_proba(X), expected, rtol=0, atol=1e-6)
            os._exit(0 if same else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("limit", ["0", "2000"])
def test__no_room__nothing_kept_and_the_same_prediction(monkeypatch, limit, built):
    clf = fit()
    expected = clf.predict_proba(X)
    skve.clear_cache()
    monkeypatch.setenv(cache.LIMIT, limit)
    for _ in range(2):
        np.testing.assert_allclose(clf.predict_proba(X), expected, rtol=0, atol=1e-6)
    assert len(cache._predictors) == 0


def test__limit__predictors_go_before_backbones_and_the_least_recently_used_first(monkeypatch):
    first, second, third = (fit(random_state=seed) for seed in range(3))
    first.predict(X)
    second.predict(X)
    first.predict(X)
    monkeypatch.setenv(cache.LIMIT, str(cache._kept_bytes()))  # room for two
    third.predict(X)
    owners = [owner() for _, owner in cache._predictors.values()]
    assert len(owners) == 2
    assert owners[0] is first._state
    assert owners[1] is third._state
    assert len(cache._cache) == 1
    fit(make_toy_backbone(3, seed=1))  # another backbone, for which they make room
    assert len(cache._cache) == 2
    assert len(cache._predictors) < 2


# ------------------------------------------------------------------------------------------ arithmetic


@pytest.fixture
def has_bfloat16(monkeypatch):
    """Let the processor multiply bfloat16 natively, or not."""
    native = {True: [torch.float32, torch.bfloat16], False: [torch.float32]}
    return lambda has: monkeypatch.setattr(device_module, "native_dtypes", lambda device: native[has])


WIDE, NARROW, KERNEL = torch.empty(256, 128), torch.empty(64, 4096), torch.empty(256, 256, 3, 3)


@pytest.mark.parametrize(
    ("precision", "weights", "native", "dtype"),
    [
        ("auto", [WIDE], True, torch.bfloat16),
        ("auto", [WIDE], False, torch.float32),
        ("auto", [NARROW], True, torch.float32),
        ("auto", [WIDE, KERNEL], True, torch.float32),
        ("auto", [WIDE.bfloat16()], True, torch.float32),
        ("auto", [], True, torch.float32),
        ("float32", [WIDE], True, torch.float32),
        ("bfloat16", [KERNEL], False, torch.bfloat16),
    ],
)
def test__resolve_prediction_dtype__cpu(precision, weights, native, dtype, has_bfloat16):
    has_bfloat16(native)
    assert resolve_prediction_dtype(precision, CPU, weights) == dtype


def test__resolve_prediction_dtype__mps__float32_or_an_error():
    mps = torch.device("mps")
    assert resolve_prediction_dtype("auto", mps, [WIDE]) == torch.float32
    with pytest.raises(ValueError, match="must be 'float32' or 'auto' on MPS"):
        resolve_prediction_dtype("bfloat16", mps, [WIDE])


@pytest.mark.parametrize("wrong", ["int8", "float16", None])
def test__predict_precision__unknown_value__error_in_fit_and_predict(wrong):
    with pytest.raises(ValueError, match="'predict_precision' parameter of ToyClassifier must be a str among"):
        fit(predict_precision=wrong)
    with pytest.raises(ValueError, match="'predict_precision' parameter of ToyClassifier must be a str among"):
        fit().set_params(predict_precision=wrong).predict(X)


@pytest.mark.parametrize("ensemble", ["sve", "lora", "scale", "bias", "deep", "dropout"])
def test__bfloat16__close_to_float32_and_the_same_for_one_sample_as_for_all(ensemble):
    clf = fit(make_toy_backbone(3, width=32), ensemble=ensemble, layers=["2"] if ensemble == "sve" else "all")
    exact = clf.set_params(predict_precision="float32").predict_proba_members(X)
    found = clf.set_params(predict_precision="bfloat16").predict_proba_members(X)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found.sum(-1), 1, rtol=0, atol=1e-12)
    assert 0 < np.abs(found - exact).max() < 0.01
    alone = np.concatenate([clf.predict_proba_members(X[i : i + 1]) for i in range(len(X))], axis=1)
    np.testing.assert_allclose(alone, found, rtol=0, atol=2e-3)
    assert np.array_equal(clf.set_params(predict_precision="float32").predict_proba_members(X), exact)


def test__bfloat16__features_and_novelty__those_of_float32():
    clf = fit(predict_precision="float32")
    expected = [clf.transform(X), clf.score_samples(X), clf.set_params(features="members").transform(X)]
    clf.set_params(predict_precision="bfloat16", features="backbone")
    found = [clf.transform(X), clf.score_samples(X), clf.set_params(features="members").transform(X)]
    assert all(np.array_equal(one, other) for one, other in zip(expected, found, strict=True))
    novelty = clf.predict_uncertainty(X).novelty
    assert np.array_equal(novelty, clf.set_params(predict_precision="float32").predict_uncertainty(X).novelty)


def test__load__saved_by_0_1__float32_as_then():
    folder = next((pathlib.Path(__file__).parents[1] / "saved_models/0.1").glob("text*"))
    assert skve.load(folder).predict_precision == "float32"


# ------------------------------------------------------------------------------------------ many items


@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_uncertainty"])
def test__many_items__members_held_for_a_block_only(method, monkeypatch):
    monkeypatch.setenv(cache.LIMIT, "1M")  # else features of items are kept
    n_classes, n_members, rows = 50, 8, np.random.default_rng(0).normal(size=(12_000, 3))
    clf = ToyClassifier(n_members=n_members, max_steps=1, batch_size=16, random_state=0, ensemble="bias")
    clf.fit(np.random.default_rng(0).normal(size=(n_classes, 3)), np.arange(n_classes).astype(str))
    getattr(clf, method)(rows[:1])
    of_members = n_members * len(rows) * n_classes * 8
    tracemalloc.start()
    try:
        getattr(clf, method)(rows)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    pooled = of_members / n_members if method == "predict_proba" else 0
    assert peak < pooled + 0.25 * of_members


def test__folded_convolutions__that_no_member_changes__the_same_for_all_networks():
    clf = toy_classifier(TinyCNN()).fit(*toy_images())
    backbone = clf._load_backbone(clf._state.spec, clf.preprocess_)
    predictor = predictor_module.Predictor(clf._state, backbone, "float32", None)
    networks = [predictor._networks(float("inf")).ensemble.network for _ in range(2)]
    same = set(networks[0].replaced).difference(clf._state.rule_on(backbone).changed)
    assert any(name.endswith(".weight") for name in same)
    assert all(networks[0].replaced[name] is networks[1].replaced[name] for name in same)
