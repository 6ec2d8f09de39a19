"""SVEClassifier on images with real pretrained weights, at a small size."""

import gc
import random
import threading

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone

from skve import SVEClassifier
from skve.datasets import load_fashion
from skve.vision import ImagePipeline, augment
from tests.toys import TinyCNN, TinyMLP, same_arrays, toy_classifier, toy_images

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


def test__predict_uncertainty__and_score_samples__of_the_members(fitted, data):
    uncertainty = fitted.predict_uncertainty(data[2])
    proba = fitted.predict_proba(data[2])
    entropy = -(proba * np.log(proba)).sum(axis=1)
    np.testing.assert_allclose(uncertainty.total, entropy, atol=1e-12)
    np.testing.assert_allclose(uncertainty.aleatoric + uncertainty.epistemic, uncertainty.total, atol=1e-12)
    np.testing.assert_allclose(fitted.score_samples(data[2]), -entropy, atol=1e-12)
    assert not hasattr(fitted, "decision_function")


def test__predict_proba__twice__same_bits(fitted, data):
    assert np.array_equal(fitted.predict_proba(data[2]), fitted.predict_proba(data[2]))


@pytest.mark.parametrize("ensemble", ["sve", "head", "deep"])
def test__predict_proba__subsets_and_single_images__as_in_the_whole(data, ensemble):
    classifier = small(ensemble=ensemble, max_epochs=1).fit(data[0], data[1])
    X = data[2]
    whole = classifier.predict_proba(X)
    for part in ([3], [7, 2], list(range(29, -1, -1)), list(range(17))):
        np.testing.assert_allclose(classifier.predict_proba(X[part]), whole[part], rtol=0, atol=2e-6)


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
    classifier = small(warm_start=True, schedule="constant").fit(data[0], data[1])
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

    def fit(seed):
        how = noisy if kind == "callable" else kind
        return toy_classifier(TinyCNN(), augment=how, random_state=seed, max_epochs=4, batch_size=4).fit(X, y)

    parallel = joblib.Parallel(n_jobs=4, backend="threading")(joblib.delayed(fit)(seed) for seed in range(8))
    for seed, classifier in enumerate(parallel):
        assert same_arrays(classifier, fit(seed)), seed


# ------------------------------------------------------------------------------------------ augmentation


def batch_of_images(n=6, side=20):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["light", "strong"])
def test__augment__kinds__other_images_of_the_same_shape_and_range(kind):
    images = batch_of_images()
    changed = augment(images, kind, torch.Generator().manual_seed(1))
    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert all(not torch.allclose(one, other) for one, other in zip(changed, images, strict=True))
    again = augment(images, kind, torch.Generator().manual_seed(1))
    assert torch.equal(again, changed)
    assert not torch.equal(augment(images, kind, torch.Generator().manual_seed(2)), changed)
    assert torch.equal(images, batch_of_images())  # the original stays


def test__augment__light__flips_about_half_and_moves_little():
    ramp = torch.linspace(0.2, 0.8, 40).expand(200, 3, 40, 40)  # brighter to the right
    changed = augment(ramp, "light", torch.Generator().manual_seed(0))
    rising = (changed[:, 0, 20, 30] > changed[:, 0, 20, 10]).float().mean()
    assert 0.4 < rising < 0.6
    middle = changed[:, 0, 20, 20]
    assert (middle - 0.5).abs().max() < 0.6 * 0.08  # at most six hundredths of the side
    assert middle.std() > 0.005


def test__augment__strong__colours_and_size_vary():
    grey = torch.full((100, 3, 8, 8), 0.5)
    brightness = augment(grey, "strong", torch.Generator().manual_seed(0)).mean((1, 2, 3))
    assert brightness.min() < 0.4
    assert brightness.max() > 0.6
    stripes = ((torch.arange(64) % 16) < 8).float().expand(100, 3, 64, 64)
    crossings = augment(stripes, "strong", torch.Generator().manual_seed(0))[:, 0, 32].diff(dim=-1).abs().sum(-1)
    assert crossings.std() > 0.5


def test__augment__callable__own_random_stream_and_global_one_untouched(images, global_state):
    seen = []

    def noisy(batch):
        assert (batch.min() >= 0) & (batch.max() <= 1)
        seen.append(torch.rand(1).item())
        return (batch + 0.05 * torch.randn(batch.shape)).clamp(0, 1)

    before = global_state()
    first = toy_classifier(augment=noisy, random_state=0).fit(*images)
    assert global_state() == before
    draws = list(seen)
    assert len(set(draws)) == len(draws) == 4
    torch.manual_seed(123)
    assert same_arrays(toy_classifier(augment=noisy, random_state=0).fit(*images), first)
    assert seen[4:] == draws
    assert not same_arrays(toy_classifier(augment=noisy, random_state=1).fit(*images), first)


def test__augment__callable_with_numpy_and_python_numbers__global_ones_untouched(images, global_state):
    def noisy(batch):
        return (batch + 0.1 * random.random() * np.random.rand()).clamp(0, 1)  # noqa: NPY002 - what users write

    before = global_state()
    first = toy_classifier(augment=noisy).fit(*images)
    assert global_state() == before
    assert same_arrays(toy_classifier(augment=noisy).fit(*images), first)


@pytest.mark.parametrize(
    ("bad", "message"),
    [(lambda batch: batch[:1], r"shape"), (lambda batch: batch.numpy(), "ndarray"), (lambda batch: None, "NoneType")],
)
def test__augment__callable_that_returns_something_else__error_says_what_is_wanted(images, bad, message):
    with pytest.raises((TypeError, ValueError), match=rf"augment=.*{message}"):
        toy_classifier(augment=bad).fit(*images)


def test__augment__none__prediction_and_validation_see_the_images_as_they_are(images):
    calls = []
    classifier = toy_classifier(augment=lambda batch: calls.append(len(batch)) or batch, early_stopping=True)
    classifier.fit(*images)
    n_training = len(calls)
    classifier.predict(images[0])
    assert len(calls) == n_training
    assert sum(calls) == 2 * (24 - 2)  # two epochs over all but the validation part


# --------------------------------------------------------------------------------------------- pipeline


PREPROCESS = {
    "input_size": [3, 16, 16],
    "interpolation": "bilinear",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.5, 0.25, 0.2],
    "crop_pct": 1.0,
    "crop_mode": "center",
}


def pipeline_of(images, **options):
    from skve._inputs import check_images

    return ImagePipeline(check_images(images), PREPROCESS, torch.device("cpu"), **options)


def test__image_pipeline__image_of_the_right_size__only_normalised():
    images, _ = toy_images()
    pipeline = pipeline_of(images)
    got = pipeline.prepare(pipeline.load(np.arange(3)), None)
    mean, std = np.array(PREPROCESS["mean"]), np.array(PREPROCESS["std"])
    expected = np.moveaxis((images[:3] / 255 - mean) / std, -1, 1)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("side", [8, 16, 40])
def test__image_pipeline__any_size__brought_to_the_networks(side):
    images, _ = toy_images(side=side)
    assert pipeline_of(images).load(np.arange(2)).shape == (2, 3, 16, 16)
    assert pipeline_of(images).load(np.arange(2)).dtype == torch.uint8
    assert pipeline_of([images[0], images[1][: side // 2]]).load(np.arange(2)).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("keep", [True, False])
def test__image_pipeline__keep__decodes_once_or_each_time(keep, monkeypatch):
    from skve._inputs import ImageSequence

    decoded, original = [], ImageSequence.__getitem__
    monkeypatch.setattr(ImageSequence, "__getitem__", lambda self, i: decoded.append(i) or original(self, i))
    pipeline = pipeline_of(toy_images()[0], keep=keep)
    first, second = (pipeline.load(np.arange(4)) for _ in range(2))
    assert torch.equal(first, second)
    assert len(decoded) == (4 if keep else 8)


def test__image_pipeline__batches__all_indices_once():
    pipeline = pipeline_of(toy_images()[0])
    plain = list(pipeline.batches(7, None))
    assert [len(batch) for batch in plain] == [7, 7, 7, 3]
    assert np.concatenate(plain).tolist() == list(range(24))
    mixed = np.concatenate(list(pipeline.batches(7, torch.Generator().manual_seed(0))))
    assert sorted(mixed.tolist()) == list(range(24))
    assert mixed.tolist() != list(range(24))


# ----------------------------------------------------------------------------------------------- memory


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.skipif(not hasattr(__import__("os"), "sched_getaffinity"), reason="reads Linux's /proc")
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
