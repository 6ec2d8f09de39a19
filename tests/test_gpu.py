"""The contract on a CUDA device; `pytest -m gpu` where there is one."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV

import skve
from skve import SVETextClassifier, _ensembles
from skve.testing import make_toy_text_backbone
from tests.toys import TinyCNN, TinyMLP, TinyTransformer, assert_members_close, same_arrays, toy_classifier

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TOYS = [TinyMLP, TinyCNN, TinyTransformer]
SMALL_RATES = {"member_lr": 1e-3, "head_lr": 1e-3}


@pytest.mark.parametrize("ensemble", ["sve", "single", "deep", "head"])
@pytest.mark.parametrize("toy", TOYS)
def test__fit__float32__members_and_predictions_as_on_the_cpu(images, toy, ensemble):
    on_cpu = toy_classifier(toy(), ensemble=ensemble, **SMALL_RATES).fit(*images)
    on_gpu = toy_classifier(toy(), ensemble=ensemble, device="cuda", **SMALL_RATES).fit(*images)
    assert_members_close(on_cpu, on_gpu, atol=5e-3)
    np.testing.assert_allclose(on_gpu.predict_proba(images[0]), on_cpu.predict_proba(images[0]), atol=5e-3)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test__fit__quantised_weights__members_and_predictions_as_on_the_cpu(images, dtype):
    on_cpu = toy_classifier(TinyMLP(), backbone_dtype=dtype, **SMALL_RATES).fit(*images)
    on_gpu = toy_classifier(TinyMLP(), backbone_dtype=dtype, device="cuda", **SMALL_RATES).fit(*images)
    assert_members_close(on_cpu, on_gpu, atol=5e-3)
    np.testing.assert_allclose(on_gpu.predict_proba(images[0]), on_cpu.predict_proba(images[0]), atol=5e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("ensemble", ["sve", "deep", "head"])
def test__fit__blocks_on_two_devices__predictions_as_on_the_cpu(images, ensemble):
    on_cpu, on_gpus = (
        toy_classifier(TinyTransformer(), ensemble=ensemble, device=device, **SMALL_RATES).fit(*images)
        for device in ("cpu", ["cuda:0", "cuda:1"])
    )
    np.testing.assert_allclose(on_gpus.predict_proba(images[0]), on_cpu.predict_proba(images[0]), atol=5e-3)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("toy", TOYS)
def test__fit__half_precision__close_to_float32_and_stored_in_float32(images, toy, precision):
    settings = {"device": "cuda", "max_epochs": 5, "member_lr": 1e-3, "head_lr": 1e-2}
    single = toy_classifier(toy(), **settings).fit(*images)
    half = toy_classifier(toy(), **settings | {"precision": precision}).fit(*images)
    assert {value.dtype for value in half._state.arrays.values()} == {np.dtype("float32")}
    np.testing.assert_allclose(half.predict_proba(images[0]), single.predict_proba(images[0]), atol=0.05)


def test__fit__same_seed__same_bits(images):
    one, other = (toy_classifier(TinyMLP(), device="cuda").fit(*images) for _ in range(2))
    assert same_arrays(one, other)


def test__fit__members_in_chunks_or_in_turn__the_same(images, train_in_chunks):
    together = toy_classifier(TinyCNN(), device="cuda", n_members=3, **SMALL_RATES).fit(*images)
    train_in_chunks(1)
    in_turn = toy_classifier(TinyCNN(), device="cuda", n_members=3, **SMALL_RATES).fit(*images)
    assert_members_close(together, in_turn, atol=1e-3)


def test__fit__real_shortage_of_memory__same_members(images, monkeypatch):
    """A pass of more than eight samples asks for more memory than any device has."""
    expected = toy_classifier(TinyCNN(), device="cuda", **SMALL_RATES).fit(*images)
    original, sizes = _ensembles.Ensemble.chunk_logits, []

    def chunk_logits(self, inputs, indices):
        sizes.append((len(indices), len(inputs)))
        if len(indices) * len(inputs) > 8:
            torch.empty(2**50, dtype=torch.uint8, device=inputs.device)
        return original(self, inputs, indices)

    monkeypatch.setattr(_ensembles.Ensemble, "chunk_logits", chunk_logits)
    assert_members_close(expected, toy_classifier(TinyCNN(), device="cuda", **SMALL_RATES).fit(*images), atol=1e-3)
    assert sizes[:3] == [(2, 16), (1, 16), (1, 8)]


def test__pickle_and_save__fitted_on_a_gpu__predicts_on_a_cpu(images, tmp_path, monkeypatch):
    fitted = toy_classifier("bundled:efficientnet_lite0", device="cuda", image_size=32, layers="last:1").fit(*images)
    expected = fitted.predict_proba(images[0])
    fitted.save(tmp_path)
    content = pickle.dumps(fitted)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for other in (pickle.loads(content).set_params(device="cpu"), skve.load(tmp_path)):
        np.testing.assert_allclose(other.predict_proba(images[0]), expected, atol=1e-3)


def test__grid_search__two_jobs_on_one_gpu__scores_as_in_turn(images):
    grid = {"member_lr": [1e-3, 1e-2]}
    scores = [
        GridSearchCV(toy_classifier(TinyMLP(), device="cuda"), grid, cv=2, n_jobs=n_jobs, error_score="raise")
        .fit(*images)
        .cv_results_["mean_test_score"]
        for n_jobs in (1, 2)
    ]
    assert np.array_equal(*scores)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test__fit__texts__learns_on_a_gpu(precision):
    texts, labels = ["yes it is", "no", "yes yes", "it is not so", "yes", "no no no"] * 4, [1, 0] * 12
    classifier = SVETextClassifier(
        make_toy_text_backbone("bert"), device="cuda", precision=precision, max_epochs=10, random_state=0
    ).fit(texts, labels)
    assert classifier.history_["loss"][-1] < classifier.history_["loss"][0]
    assert classifier.predict_proba(texts).shape == (24, 2)
