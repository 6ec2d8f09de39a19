"""Steps: under the loss scale of float16, and without the samples that have no weight."""

import numpy as np
import pytest

from skve._ensembles import Ensemble
from skve._training import step as step_module
from tests.toys import TinyCNN, TinyMLP, arrays_of, assert_members_close, same_arrays, toy_classifier


@pytest.mark.parametrize("ensemble", ["sve", "deep", "bias"])
def test__fit__float16__close_to_float32(images, ensemble):
    settings = {"ensemble": ensemble, "max_epochs": 5, "member_lr": 1e-3, "head_lr": 1e-2}
    single = toy_classifier(TinyCNN(), **settings).fit(*images)
    half = toy_classifier(TinyCNN(), precision="float16", **settings).fit(*images)
    assert not same_arrays(single, half)
    assert {value.dtype for value in half._state.arrays.values()} == {np.dtype("float32")}
    np.testing.assert_allclose(half.predict_proba(images[0]), single.predict_proba(images[0]), atol=0.05)
    np.testing.assert_allclose(half.history_["loss"], single.history_["loss"], rtol=0.05)
    for name, norms in single.history_["gradient_norm"].items():  # without the loss scale
        np.testing.assert_allclose(half.history_["gradient_norm"][name], norms, rtol=0.2)


def overflow(monkeypatch, in_step):
    """Let member 0 overflow in the steps for which `in_step(step)`; return the scales of both members."""
    original, scales = step_module.Step.clip, []

    def clip(self):
        if in_step(len(scales)):
            next(iter(self.ensemble.members[0].parameters())).grad.fill_(float("inf"))
        original(self)
        scales.append([scaler.get_scale() for scaler in self.scalers])

    monkeypatch.setattr(step_module.Step, "clip", clip)
    return scales


def test__fit__float16_overflow_in_one_step__only_that_member_misses_it(images, monkeypatch):
    settings = {"precision": "float16", "max_epochs": 3}
    expected = toy_classifier(**settings).fit(*images)
    scales = overflow(monkeypatch, lambda step: step == 2)
    other = toy_classifier(**settings).fit(*images)
    assert scales[1:3] == [[65536.0, 65536.0], [32768.0, 65536.0]]
    for key, value in arrays_of(expected).items():
        assert np.array_equal(arrays_of(other)[key][1], value[1])
        assert not np.array_equal(arrays_of(other)[key][0], value[0])
    assert all(np.isfinite(norms).all() for norms in other.history_["gradient_norm"].values())


def test__fit__float16_overflow_in_the_first_step__no_complaint_about_missing_gradients(images, monkeypatch):
    overflow(monkeypatch, lambda step: step == 0)
    assert toy_classifier(precision="float16").fit(*images).n_iter_ == 2


def test__fit__float16_overflow_in_every_step__diverged_and_the_remedy(images, monkeypatch):
    scales = overflow(monkeypatch, lambda step: True)
    with pytest.raises(ValueError, match=r"training diverged: a gradient became .* or precision='float16', whose"):
        toy_classifier(precision="float16", max_epochs=40).fit(*images)
    assert len(scales) == step_module.MOST_SKIPPED


def test__fit__float16_overflow_before_the_first_step__repeated_and_other_members_the_same(images, monkeypatch):
    expected = toy_classifier(precision="float16").fit(*images)
    scales = overflow(monkeypatch, lambda step: step < 5)
    other = toy_classifier(precision="float16").fit(*images)
    assert [own for own, _ in scales[:6]] == [2.0**15, 2.0**14, 2.0**13, 2.0**12, 2.0**11, 2.0**11]
    assert len(scales) == 5 + 4  # five attempts, and as many steps as without
    for key, value in arrays_of(expected).items():
        np.testing.assert_allclose(arrays_of(other)[key], value, rtol=0, atol=2e-3, err_msg=key)
        assert np.array_equal(arrays_of(other)[key][1], value[1])


def test__partial_fit__float16_overflow_in_its_one_step__trained_all_the_same(images, monkeypatch):
    overflow(monkeypatch, lambda step: step < 3)
    classifier = toy_classifier(precision="float16", batch_size=64)
    with pytest.warns(UserWarning, match="precision='float16' is emulated on this processor"):
        classifier.partial_fit(*images, classes=np.unique(images[1]))
    assert classifier.n_iter_ == 1


def test__fit__float16_members__the_same_whatever_their_number(images, train_in_chunks):
    one = toy_classifier(precision="float16", n_members=1).fit(*images)
    three = toy_classifier(precision="float16", n_members=3).fit(*images)
    for key, value in arrays_of(one).items():
        assert np.array_equal(arrays_of(three)[key][0], value[0])


def members_and_counts(images, monkeypatch, skips, backbone=TinyCNN, **parameters):
    """Fit with or without leaving samples out of the steps; return the classifier and how many each member saw."""
    counts, original = {}, Ensemble.chunk_logits

    def counting(self, inputs, indices):
        for index in indices:
            counts[index] = counts.get(index, 0) + len(inputs)
        return original(self, inputs, indices)

    with monkeypatch.context() as patched:
        patched.setattr(Ensemble, "chunk_logits", counting)
        if not skips:
            patched.setattr(step_module, "_shares_layers", lambda ensemble: True)
        classifier = toy_classifier(backbone(), calibrate=None, **parameters).fit(*images)
    return classifier, counts


@pytest.mark.parametrize("ensemble", ["sve", "bias", "deep"])
def test__fit__samples_without_weight_for_a_member__not_computed_and_the_same_members(images, monkeypatch, ensemble):
    settings = {"ensemble": ensemble, "ensemble_params": {"folds": 4}, "n_members": 4}
    plain, all_samples = members_and_counts(images, monkeypatch, skips=False, **settings)
    classifier, counts = members_and_counts(images, monkeypatch, skips=True, **settings)
    assert set(all_samples.values()) == {48}  # two epochs of 24
    assert set(counts.values()) == {36}
    assert_members_close(classifier, plain, atol=1e-5)


def test__fit__batches_without_a_weight__steps_of_momentum_as_before(images, monkeypatch):
    settings = {"n_members": 1, "max_epochs": 4, "batch_size": 1}
    weights = np.repeat([1.0, 0.0], 12)
    fits = []
    for skips in (True, False):
        X_y_weights = (*images, weights)
        fits.append(members_and_counts(X_y_weights, monkeypatch, skips, TinyMLP, **settings))
    (classifier, counts), (plain, all_samples) = fits
    assert counts == all_samples == {0: 96}
    assert_members_close(classifier, plain, atol=1e-6)


def test__fit__members_share_layers__all_samples_pass_together(images, monkeypatch):
    settings = {"ensemble_params": {"folds": 2}, "max_epochs": 1, "layers": ["fc2"]}
    _, counts = members_and_counts(images, monkeypatch, True, TinyMLP, **settings)
    assert counts == {0: 24, 1: 24}


def test__fit__diversity_and_samples_without_weight__all_pass(images, monkeypatch):
    settings = {"ensemble_params": {"diversity": 0.5}, "max_epochs": 1}
    weighted = (*images, np.arange(24) % 2)
    _, counts = members_and_counts(weighted, monkeypatch, True, TinyMLP, **settings)
    assert counts == {0: 48, 1: 48}
