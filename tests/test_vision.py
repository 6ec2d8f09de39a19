"""SVEClassifier on images with real pretrained weights, at a small size."""

import gc
import pathlib
import threading

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone

from skve import SVEClassifier
from skve.datasets import load_fashion
from tests.toys import TinyCNN, TinyMLP, same_arrays, toy_classifier

SETTINGS = {
    "n_members": 2,
    "layers": "last:2",
    "image_size": 32,
    "max_epochs": 2,
    "batch_size": 16,
    "device": "cpu",
    "precision": "float32",
    "random_state": 0,
}


def small(**parameters):
    return SVEClassifier(**{**SETTINGS, **parameters})


@pytest.fixture(scope="module")
def data():
    """40 training and 30 test images of three kinds of clothes, whose names are not in the order of a class index."""
    fashion = load_fashion()
    names = ["Trouser", "Bag", "Ankle boot"]
    train, test = np.isin(fashion.target, names), np.isin(fashion.target_test, names)
    return (
        fashion.images[train][:40],
        fashion.target[train][:40],
        fashion.images_test[test][:30],
        fashion.target_test[test][:30],
    )


@pytest.fixture(scope="module")
def fitted(data):
    return small().fit(data[0], data[1])


# ------------------------------------------------------------------------------------------ predictions


def test__predict_proba__contract__float64_rows_sum_to_one_in_order_of_classes(fitted, data):
    proba = fitted.predict_proba(data[2])
    assert (proba.dtype, proba.shape) == (np.float64, (30, 3))
    assert proba.flags.c_contiguous
    assert (proba >= 0).all()
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=0, atol=1e-12)
    assert fitted.classes_.tolist() == ["Ankle boot", "Bag", "Trouser"]
    assert np.array_equal(fitted.predict(data[2]), fitted.classes_[proba.argmax(axis=1)])


def test__fit__real_weights__learns_clothes(fitted, data):
    assert fitted.score(data[2], data[3]) > 0.8


def test__predict_proba_members__their_mean__is_predict_proba(fitted, data):
    members = fitted.predict_proba_members(data[2])
    assert (members.dtype, members.shape) == (np.float64, (2, 30, 3))
    np.testing.assert_allclose(members.sum(axis=-1), 1, rtol=0, atol=1e-12)
    assert np.array_equal(members.mean(axis=0), fitted.predict_proba(data[2]))
    assert not np.allclose(members[0], members[1])


def test__predict_uncertainty__is_of_the_members(fitted, data):
    uncertainty = fitted.predict_uncertainty(data[2])
    proba = fitted.predict_proba(data[2])
    entropy = -(proba * np.log(proba)).sum(axis=1)
    np.testing.assert_allclose(uncertainty.total, entropy, atol=1e-12)
    np.testing.assert_allclose(uncertainty.aleatoric + uncertainty.epistemic, uncertainty.total, atol=1e-12)
    assert not hasattr(fitted, "decision_function")


def test__predict_uncertainty__return_proba__both_in_one_pass(fitted, data, monkeypatch):
    passes = []
    predict = SVEClassifier._predict_blocks
    monkeypatch.setattr(SVEClassifier, "_predict_blocks", lambda *arguments: passes.append(1) or predict(*arguments))
    uncertainty, proba = fitted.predict_uncertainty(data[2], return_proba=True)
    assert len(passes) == 1
    assert np.array_equal(proba, fitted.predict_proba(data[2]))
    assert np.array_equal(uncertainty.total, fitted.predict_uncertainty(data[2]).total)
    assert uncertainty.confidence == pytest.approx(proba.max(axis=1))


def test__predict_proba__twice__same_bits(fitted, data):
    assert np.array_equal(fitted.predict_proba(data[2]), fitted.predict_proba(data[2]))


@pytest.mark.parametrize("ensemble", ["sve", "head", "deep"])
def test__predict_proba__subsets_and_single_images__as_in_the_whole(data, ensemble):
    classifier = small(ensemble=ensemble, max_epochs=1).fit(data[0], data[1])
    X = data[2]
    whole = classifier.predict_proba(X)
    for part in ([3], [7, 2], list(range(29, -1, -1)), list(range(17))):
        np.testing.assert_allclose(classifier.predict_proba(X[part]), whole[part], rtol=0, atol=1e-5)


def test__predict_proba__transformer_with_few_tokens__as_in_the_whole(images):
    """One image takes the two-factor form, many the folded one."""
    from tests.toys import TorchEncoder

    classifier = toy_classifier(TorchEncoder(), member_lr=0.2, init_scale=0.3).fit(*images)
    whole = classifier.predict_proba(images[0])
    single = np.concatenate([classifier.predict_proba(images[0][[i]]) for i in range(24)])
    np.testing.assert_allclose(single, whole, rtol=0, atol=2e-6)


def test__batch_size__one_and_larger_than_the_data__fit_and_predict(images):
    X, y = images
    for batch_size in (1, 5, 1000):
        classifier = toy_classifier(TinyCNN(), batch_size=batch_size, max_epochs=1).fit(X, y)
        np.testing.assert_allclose(classifier.predict_proba(X).sum(axis=1), 1, atol=1e-12)
        assert classifier.predict(X[:1]).shape == (1,)


def test__batch_size__last_batch_of_one__batch_normalisation_in_training_survives(images):
    X, y = images
    classifier = toy_classifier(
        TinyCNN(), ensemble="single", ensemble_params={"train_batch_norm": True}, batch_size=23, max_epochs=1
    )
    assert np.isfinite(classifier.fit(X, y).predict_proba(X)).all()


def test__predict__many_batches__as_in_one(images):
    """More batches than are kept while members take turns."""
    X, y = np.concatenate([images[0]] * 3), np.concatenate([images[1]] * 3)
    classifier = toy_classifier(TinyCNN(), n_members=3, batch_size=2).fit(*images)
    proba = classifier.predict_proba_members(X)
    np.testing.assert_allclose(proba[:, :24], proba[:, 48:], rtol=0, atol=1e-12)
    whole = toy_classifier(TinyCNN(), n_members=3, batch_size=2).fit(*images)
    whole.batch_size = 1000
    np.testing.assert_allclose(whole.predict_proba_members(X), proba, rtol=0, atol=2e-6)
    assert len(y) == 72


def test__predict__under_no_grad_and_inference_mode__same_bits(fitted, data):
    expected = fitted.predict_proba(data[2])
    with torch.no_grad():
        assert np.array_equal(fitted.predict_proba(data[2]), expected)
    with torch.inference_mode():
        assert np.array_equal(fitted.predict_proba(data[2]), expected)


def test__fit__after_a_prediction_in_inference_mode__cache_can_be_trained(images, empty_cache):
    from skve._backbones import cache

    classifier = toy_classifier(TinyCNN()).fit(*images)
    cache.clear_cache()
    with torch.inference_mode():
        classifier.predict(images[0])
    assert same_arrays(toy_classifier(TinyCNN()).fit(*images), classifier)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert same_arrays(toy_classifier(TinyCNN()).fit(*images), classifier)


# -------------------------------------------------------------------------------------- repeated fits


def test__fit__same_seed__same_bits(fitted, data):
    again = small().fit(data[0], data[1])
    assert same_arrays(again, fitted)
    assert again.history_["loss"] == fitted.history_["loss"]


def test__fit__twice_on_one_estimator__same_bits(fitted, data):
    classifier = small().fit(data[0][:20], data[1][:20])
    assert same_arrays(classifier.fit(data[0], data[1]), fitted)


def test__clone__fitted__fits_to_the_same_bits(fitted, data):
    copied = clone(fitted)
    assert copied.get_params() == fitted.get_params()
    assert not hasattr(copied, "classes_")
    assert same_arrays(copied.fit(data[0], data[1]), fitted)


def test__fit__inputs_and_parameters__unchanged(data):
    X, y = data[0].copy(), data[1].copy()
    layers = ["blocks.6.0.conv_pw"]
    classifier = small(layers=layers, max_epochs=1)
    parameters = classifier.get_params()
    classifier.fit(X, y).predict(X)
    assert np.array_equal(X, data[0])
    assert np.array_equal(y, data[1])
    assert classifier.get_params() == parameters
    assert classifier.layers is layers


def test__warm_start__real_weights__goes_on(data):
    classifier = small(warm_start=True, schedule="constant", head_weight_decay=0.0).fit(data[0], data[1])
    loss = classifier.history_["loss"][-1]
    assert classifier.fit(data[0], data[1]).history_["loss"][0] < loss + 0.05
    assert classifier.n_iter_ == 2


def test__partial_fit__real_weights__batch_after_batch(data):
    classifier = small()
    for start in (0, 20):
        classifier.partial_fit(
            data[0][start : start + 20], data[1][start : start + 20], classes=["Bag", "Ankle boot", "Trouser"]
        )
    assert classifier.predict_proba(data[2]).shape == (30, 3)


def test__image_shape__rows_of_pixels__as_images(fitted, data):
    rows = small(image_shape=(28, 28)).fit(data[0].reshape(40, -1), data[1])
    assert same_arrays(rows, fitted)
    assert np.array_equal(rows.predict_proba(data[2].reshape(30, -1)), fitted.predict_proba(data[2]))


# ------------------------------------------------------------------------------------------- threads


def in_threads(n, work):
    results, errors = [None] * n, []

    def run(index):
        try:
            results[index] = work(index)
        except BaseException as error:  # shown in the main thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def test__predict__eight_threads_on_one_estimator__serial_bits(fitted, data):
    parts = [data[2][index : index + 12] for index in range(8)]
    serial = [fitted.predict_proba_members(part) for part in parts]
    for expected, got in zip(serial, in_threads(8, lambda i: fitted.predict_proba_members(parts[i])), strict=True):
        assert np.array_equal(got, expected)


@pytest.mark.parametrize("kind", ["light", "callable"])
def test__fit__joblib_threads__serial_bits(images, empty_cache, kind):
    X, y = images

    def noisy(batch):
        return (batch + 0.1 * torch.rand(batch.shape)).clamp(0, 1)

    how, module = noisy if kind == "callable" else kind, TinyCNN()

    def fit(seed):
        return toy_classifier(module, augment=how, random_state=seed, max_epochs=4, batch_size=4).fit(X, y)

    parallel = joblib.Parallel(n_jobs=4, backend="threading")(joblib.delayed(fit)(seed) for seed in range(8))
    for seed, classifier in enumerate(parallel):
        assert same_arrays(classifier, fit(seed)), seed


# ----------------------------------------------------------------------------------------------- memory


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test__fit__thirty_times__memory_stays_flat(images):
    X, y = images

    def fit(index):
        toy_classifier(TinyMLP(), random_state=index, n_members=4).fit(X, y).predict(X)

    for index in range(5):
        fit(index)
    gc.collect()
    before, objects = resident_bytes(), len(gc.get_objects())
    for index in range(30):
        fit(index)
    gc.collect()
    assert resident_bytes() - before < 30e6
    assert len(gc.get_objects()) - objects < 3000
