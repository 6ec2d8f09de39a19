"""Every ensemble on toy text models: fits, bfloat16 weights, recomputed activations."""

import pickle

import numpy as np
import pytest

from skve import SVETextClassifier
from skve._ensembles import RULES
from skve.testing import make_toy_text_backbone

pytest.importorskip("transformers")

TEXTS = ["a fine day", "what a bore", "so fine", "a bore again", "fine and good", "bore me not"] * 4
LABELS = ["good", "bad"] * 12


def toy(family, ensemble, **parameters):
    options = {"n_members": 2, "max_epochs": 2, "batch_size": 8, "random_state": 0, **parameters}
    return SVETextClassifier(make_toy_text_backbone(family), ensemble=ensemble, **options)


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
