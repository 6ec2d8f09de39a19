"""The fitted state: arrays and plain values, pickled and rebuilt, and refused where the backbone is another."""

import dataclasses
import io
import pickle

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from skve import _ensembles
from skve._backbones import cache
from tests.toys import TinyCNN, TinyMLP, same_arrays, toy_classifier

LITE = "bundled:efficientnet_lite0"
ENSEMBLES = list(_ensembles.RULES)


@pytest.fixture(scope="module", params=ENSEMBLES)
def fitted(request, images):
    classifier = toy_classifier(TinyCNN(), ensemble=request.param, train_bias=True)
    return classifier.fit(images[0], np.array(["a", "b", "c"])[images[1]])


def plain(value):
    """Say whether a value consists of NumPy arrays and plain Python values only."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(plain(item) for item in value)
    return value is None or isinstance(value, np.ndarray | np.generic | str | int | float | bool)


def test__fitted_attributes__any_ensemble__arrays_and_plain_values_only(fitted):
    parameters = fitted.get_params()
    learned = {name: value for name, value in vars(fitted).items() if name not in parameters}
    state = {f.name: getattr(learned["_state"], f.name) for f in dataclasses.fields(learned["_state"])}
    assert state.pop("spec") is fitted.backbone
    assert plain({**learned, "_state": state})


def test__fitted_attributes__names__as_documented(fitted):
    for name in ("classes_", "history_", "n_iter_", "ratios_", "n_member_parameters_", "preprocess_"):
        assert hasattr(fitted, name), name
    assert fitted.preprocess_["input_size"] == [3, 16, 16]
    assert fitted.n_iter_ == (1 if fitted.ensemble in ("head", "laplace") else 2)  # these are solved at once


@pytest.mark.parametrize("name", ["ratios_", "n_member_parameters_", "classes_", "history_", "preprocess_"])
def test__fitted_attributes__before_fit__attribute_error(name):
    assert not hasattr(toy_classifier(), name)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_uncertainty", "score_samples"])
def test__predict__before_fit__not_fitted_error(images, method):
    with pytest.raises(NotFittedError, match="not fitted yet"):
        getattr(toy_classifier(), method)(images[0])


def round_trips(classifier):
    buffer = io.BytesIO()
    joblib.dump(classifier, buffer)
    buffer.seek(0)
    return {"pickle": pickle.loads(pickle.dumps(classifier)), "joblib": joblib.load(buffer)}


def test__pickle_and_joblib__any_ensemble__same_bits_with_an_empty_cache(fitted, images):
    expected = fitted.predict_proba_members(images[0])
    for name, copied in round_trips(fitted).items():
        cache.clear_cache()
        assert same_arrays(copied, fitted), name
        assert np.array_equal(copied.predict_proba_members(images[0]), expected), name
        assert np.array_equal(copied.predict(images[0]), fitted.predict(images[0])), name


def test__joblib__arrays_mapped_read_only__same_bits_without_a_warning(fitted, images, tmp_path, recwarn):
    joblib.dump(fitted, tmp_path / "model.joblib")
    mapped = joblib.load(tmp_path / "model.joblib", mmap_mode="r")
    assert not next(iter(mapped._state.arrays.values())).flags.writeable
    assert np.array_equal(mapped.predict_proba_members(images[0]), fitted.predict_proba_members(images[0]))
    assert [str(warning.message) for warning in recwarn] == []


def test__pickle__fitted__no_network_inside(images):
    classifier = toy_classifier(LITE, image_size=32, n_members=4, max_epochs=1)
    X = np.concatenate([images[0]] * 2)[:40]
    classifier.fit(X, np.arange(40) % 20)
    data = pickle.dumps(classifier)
    assert len(data) <= 1_000_000
    assert b"torch" not in data
    assert b"timm" not in data
    loaded = pickle.loads(data)
    assert np.array_equal(loaded.predict_proba(X[:4]), classifier.predict_proba(X[:4]))


def test__skops__round_trip__same_bits_and_nothing_but_skves_own_types(images):
    skops_io = pytest.importorskip("skops.io")
    classifier = toy_classifier(LITE, image_size=32, layers="last:1", max_epochs=1).fit(*images)
    data = skops_io.dumps(classifier)
    untrusted = skops_io.get_untrusted_types(data=data)
    # skops trusts NumPy and scikit-learn; a reader has to trust these two classes of skve, and nothing of torch.
    assert untrusted == ["skve._fitted.state.FittedState", "skve.vision.SVEClassifier"]
    loaded = skops_io.loads(data, trusted=untrusted)
    assert np.array_equal(loaded.predict_proba_members(images[0]), classifier.predict_proba_members(images[0]))
    assert loaded.get_params() == classifier.get_params()


def test__clone__fitted__parameters_only(fitted):
    copied = clone(fitted)
    assert not hasattr(copied, "_state")
    assert copied.ensemble == fitted.ensemble


def test__predict__backbone_file_changed_since__value_error_by_name(images, tmp_path):
    import timm

    for seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / f"{seed}.pth")
    file = tmp_path / "weights.pth"
    file.write_bytes((tmp_path / "0.pth").read_bytes())
    classifier = toy_classifier(f"test_resnet@{file}", image_size=32, layers="last:1", max_epochs=1).fit(*images)
    expected = classifier.predict_proba(images[0])
    file.write_bytes((tmp_path / "1.pth").read_bytes())
    with pytest.raises(
        ValueError, match=r"backbone 'test_resnet@.* must have the weights of the fit .* have changed since"
    ):
        classifier.predict(images[0])
    file.write_bytes((tmp_path / "0.pth").read_bytes())
    assert np.array_equal(classifier.predict_proba(images[0]), expected)


def test__predict__module_changed_since__value_error(images):
    module = TinyMLP()
    classifier = toy_classifier(module).fit(*images)
    with torch.no_grad():
        module.fc1.weight.add_(1)
    with pytest.raises(
        ValueError, match=r"backbone 'TinyMLP' must have the weights of the fit .* have changed since"
    ):
        classifier.predict(images[0])


def test__predict__other_singular_vectors__value_error_names_the_layer(images, monkeypatch):
    classifier = toy_classifier().fit(*images)
    wrong = {**classifier._state.fingerprints, "fc2": classifier._state.fingerprints["fc2"] + 0.1}
    classifier._state = dataclasses.replace(classifier._state, fingerprints=wrong)
    with pytest.raises(
        ValueError,
        match=r"singular vectors of layer 'fc2' must be those of the fit, .* computed on this machine differ",
    ):
        classifier.predict(images[0])


def test__set_params__backbone_after_fit__prediction_stays_with_the_fitted_one(images):
    classifier = toy_classifier(TinyMLP()).fit(*images)
    expected = classifier.predict_proba(images[0])
    classifier.set_params(backbone=TinyCNN(), image_size=8, n_members=7, layers="nothing")
    assert np.array_equal(classifier.predict_proba(images[0]), expected)
