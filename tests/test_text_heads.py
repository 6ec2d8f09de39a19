"""Pretrained language-model heads: label words, multiple choice, and their backbones fitted anew."""

import pickle

import numpy as np
import pytest

import skve
from skve.testing import make_toy_text_backbone
from tests.test_text import LABELS, TEXTS, toy

pytest.importorskip("transformers")


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "bert", "modernbert"])
def test__lm_head__label_words__learned_and_stored(family, tmp_path):
    is_encoder = family in ("bert", "modernbert")
    texts = [text + (" [MASK]" if is_encoder else " It was") for text in TEXTS]
    clf = toy(family, lm=True, head="lm", label_words={"good": " good", "bad": " bad"}, max_epochs=1)
    clf.fit(texts, LABELS)
    assert clf.preprocess_["label_words"] == [" bad", " good"]
    proba = clf.predict_proba(texts)
    clf.save(tmp_path, include_backbone=True)
    np.testing.assert_array_equal(skve.load(tmp_path).predict_proba(texts), proba)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(clf)).predict_proba(texts), proba)


def test__lm_head__no_words_given__names_of_the_classes():
    assert toy("gpt2", lm=True, head="lm", max_epochs=1).fit(TEXTS, LABELS).preprocess_["label_words"] == [
        " bad",
        " good",
    ]


def test__multiple_choice__absent_letters__probability_zero_and_others_trained():
    letters = "ABCD"
    prompts, answers = [], []
    for i in range(24):
        n = 2 + i % 3
        prompts.append("Q?\n" + "\n".join(f"{letter}. {letter * 3}" for letter in letters[:n]) + "\nAnswer:")
        answers.append(letters[i % n])
    clf = toy("gpt2", lm=True, head="lm", multiple_choice=True, label_smoothing=0.1).fit(prompts, answers)
    members = clf.predict_proba_members(prompts)
    n_choices = 2 + np.arange(24) % 3
    absent = np.arange(4) >= n_choices[:, None]
    assert (members[:, absent] == 0).all()
    assert (members[:, ~absent] > 0).all()
    np.testing.assert_allclose(members.sum(-1), 1)
    assert np.isfinite(clf.history_["loss"]).all()
    assert np.isfinite(clf.predict_uncertainty(prompts).total).all()


@pytest.mark.parametrize("where", ["X", "X_val"])
def test__multiple_choice__label_that_its_text_does_not_list__named_by_index(where):
    prompts, answers = ["A. x\nB. y\nAnswer:", "A. x\nB. y\nC. z\nAnswer:"] * 4, ["A", "C"] * 4
    wrong = [*answers[:2], "C", *answers[3:]]
    data = (prompts, wrong) if where == "X" else (prompts, answers)
    clf = toy("gpt2", lm=True, head="lm", multiple_choice=True, label_words=[" A", " C"])
    with pytest.raises(ValueError, match=rf"{where}\[2\] does not list its label 'C'; .* begins with 'C.'"):
        clf.fit(*data, X_val=prompts, y_val=wrong)


@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": False}])
def test__lm_head__loaded_with_its_backbone_and_fitted_anew__same_bits(options, tmp_path):
    pair = make_toy_text_backbone("gpt2", lm=True, **options)
    clf = toy(lm=True, head="lm", max_epochs=1).set_params(backbone=pair).fit(TEXTS, LABELS)
    clf.save(tmp_path, include_backbone=True)
    again = skve.load(tmp_path).fit(TEXTS, LABELS)
    np.testing.assert_array_equal(again.predict_proba(TEXTS), clf.predict_proba(TEXTS))
    with pytest.raises(ValueError, match=r"head='linear': .* was embedded for head='lm'"):
        again.set_params(head="linear").fit(TEXTS, LABELS)


def test__warm_start__other_label_words__refused():
    clf = toy("gpt2", lm=True, head="lm", label_words=[" a", " b"], warm_start=True, max_epochs=1).fit(TEXTS, LABELS)
    with pytest.raises(ValueError, match=r"label_words was \[' a', ' b'\] and is \[' c', ' d'\] now; set warm_start"):
        clf.set_params(label_words=[" c", " d"]).fit(TEXTS, LABELS)
