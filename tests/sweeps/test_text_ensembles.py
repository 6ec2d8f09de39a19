"""Every ensemble on toy text models: fits, bfloat16 weights, recomputed activations."""

import pickle
import warnings

import numpy as np
import pytest

from skve import SVETextClassifier
from skve._ensembles import RULES
from skve.testing import make_toy_text_backbone

pytest.importorskip("transformers")

TEXTS = ["a fine day", "what a bore", "so fine", "a bore again", "fine and good", "bore me not"] * 4
LABELS = ["good", "bad"] * 12


def toy(family, ensemble, lm=False, **parameters):
    options = {"n_members": 2, "max_epochs": 2, "batch_size": 8, "random_state": 0, **parameters}
    return SVETextClassifier(make_toy_text_backbone(family, lm=lm), ensemble=ensemble, **options)


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
@pytest.mark.parametrize("ensemble", RULES)
def test__text_ensembles__fit__predict_and_pickle(family, ensemble):
    clf = toy(family, ensemble, train_bias=True).fit(TEXTS, LABELS)
    proba = clf.predict_proba_members(TEXTS)
    assert proba.shape == (1 if ensemble == "single" else 2, 24, 2)
    np.testing.assert_allclose(clf.predict_proba_members(TEXTS[:3]), proba[:, :3], atol=1e-5)
    assert np.array_equal(pickle.loads(pickle.dumps(clf)).predict_proba_members(TEXTS), proba)


@pytest.mark.parametrize("ensemble", RULES)
def test__text_ensembles__bfloat16_weights__close_to_float32(ensemble):
    settings = {"precision": "float32", "max_epochs": 1}
    full, half = (
        toy("llama", ensemble, backbone_dtype=dtype, **settings).fit(TEXTS, LABELS)
        for dtype in ("float32", "bfloat16")
    )
    np.testing.assert_allclose(half.predict_proba(TEXTS), full.predict_proba(TEXTS), atol=0.1)
    assert not np.array_equal(half.predict_proba(TEXTS), full.predict_proba(TEXTS))


@pytest.mark.parametrize("ensemble", ["dropout", "lora", "sve+lora", "batch", "scale", "bias"])
def test__text_ensembles__activation_checkpointing__same_result(ensemble):
    plain, again = (
        toy("bert", ensemble, activation_checkpointing=on, precision="float32").fit(TEXTS, LABELS)
        for on in (False, True)
    )
    for key, value in plain._state.arrays.items():
        np.testing.assert_allclose(again._state.arrays[key], value, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("ensemble", RULES)
def test__text_ensembles__bfloat16_arithmetic__finite_and_trained(ensemble):
    clf = toy("bert", ensemble, precision="bfloat16").fit(TEXTS, LABELS)
    assert np.isfinite(clf.history_["loss"]).all()
    assert np.isfinite(clf.predict_proba(TEXTS)).all()


# ------------------------------------------------------------------------------------ members that start alike

SEVERAL = sorted(RULES.keys() - {"single"})
ALIKE = ["deep", "bias"]  # with a language model's head nothing of their members is drawn
LM = {"lm": True, "head": "lm", "precision": "float32"}


def members_are_equal(clf):
    first, second = clf.predict_proba_members(TEXTS)
    return np.allclose(first, second, atol=1e-7)


@pytest.mark.parametrize("head", ["linear", "lm"])
@pytest.mark.parametrize("ensemble", SEVERAL)
def test__text_ensembles__short_fit__members_differ(ensemble, head):
    settings = {**LM, "head": head, "member_lr": 1e-2, "head_lr": 1e-2, "max_epochs": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        clf = toy("gpt2", ensemble, **settings).fit(TEXTS, LABELS)
    assert not members_are_equal(clf)
    assert clf.predict_uncertainty(TEXTS).epistemic.max() > 1e-8


def test__text_ensembles__no_scale_of_the_start__members_differ():
    assert not members_are_equal(toy("gpt2", "sve", init_scale=0.0, **LM).fit(TEXTS, LABELS))


@pytest.mark.parametrize("ensemble", ALIKE)
def test__own_orders_by_default__one_member_and_two__first_is_the_same(ensemble):
    one, two = (toy("gpt2", ensemble, n_members=n, **LM).fit(TEXTS, LABELS) for n in (1, 2))
    for key, value in two._state.arrays.items():
        assert np.array_equal(one._state.arrays[key][0], value[0]), key


@pytest.mark.parametrize(
    ("ensemble", "settings", "remedy"),
    [
        ("deep", {"ensemble_params": {"order": "shared"}}, r"order='own' \(and no diversity\) in ensemble_params,"),
        ("bias", {"ensemble_params": {"diversity": 0.5}}, r"order='own' \(and no diversity\) in ensemble_params,"),
        ("deep", {"batch_size": 24}, r"a batch_size below the 24 samples, which are one batch, or bootstrap"),
        ("sve", {"ensemble_params": {"order": "shared"}, "init_scale": 0.0}, r"order='own'"),
    ],
)
def test__same_start_and_same_batches__warning_that_members_will_be_one(ensemble, settings, remedy):
    with pytest.warns(UserWarning, match=rf"All 2 members start alike and see the same batches: .*\. Set {remedy}"):
        clf = toy("gpt2", ensemble, **LM, **settings).fit(TEXTS, LABELS)
    assert members_are_equal(clf)


@pytest.mark.parametrize(
    ("ensemble", "settings"),
    [
        ("deep", {"ensemble_params": {"order": "shared"}, "n_members": 1}),
        ("deep", {"ensemble_params": {"order": "shared", "bootstrap": True}}),
        ("lora", {"ensemble_params": {"order": "shared"}}),
        ("batch", {"ensemble_params": {"order": "shared", "init": "signs"}, "init_scale": 0.0}),
        ("deep", {"ensemble_params": {"order": "shared"}, "head": "linear"}),
    ],
)
def test__something_sets_members_apart__no_warning(ensemble, settings):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        clf = toy("gpt2", ensemble, **{**LM, **settings}).fit(TEXTS, LABELS)
    assert clf.n_members == 1 or not members_are_equal(clf)
