"""SVETextClassifier: its contract on toy models, and what it does with a pretrained one."""

import copy
import dataclasses
import gc
import json
import math
import pickle
import re
import subprocess
import sys
import warnings

import joblib
import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer

import skve
from skve import SVETextClassifier
from skve._backbones import cache, network
from skve._ensembles import Ensemble, forms
from skve._fitted.saving import LOCK, document_hash
from skve._training import step
from skve.datasets import load_intents
from skve.testing import check_text_estimator, make_toy_text_backbone
from tests.toys import arrays_of

pytest.importorskip("transformers")
pd = pytest.importorskip("pandas")

TEXTS = ["a fine day", "what a bore", "so fine", "a bore again", "fine and good", "bore me not"] * 4
LABELS = ["good", "bad"] * 12
INTENTS = ["balance", "transfer", "report_fraud", "credit_score", "pin_change"]


def toy(family="bert", lm=False, **parameters):
    options = {"n_members": 2, "max_epochs": 2, "batch_size": 8, "random_state": 0, **parameters}
    return SVETextClassifier(make_toy_text_backbone(family, lm=lm), **options)


@pytest.fixture(scope="module")
def intents():
    """Five intents: (training texts, labels, test texts, labels, out-of-scope texts)."""
    data = load_intents()
    train = np.concatenate([np.flatnonzero(data.target == name)[:10] for name in INTENTS])
    test = np.flatnonzero(np.isin(data.target_test, INTENTS))[::3]
    return (
        [data.texts[i] for i in train],
        data.target[train],
        [data.texts_test[i] for i in test],
        data.target_test[test],
        data.texts_ood[:50],
    )


@pytest.fixture(scope="module")
def fitted(intents):
    """MiniLM fitted on five intents."""
    return SVETextClassifier(n_members=2, max_epochs=4, batch_size=16, head_lr=5e-3, random_state=0).fit(*intents[:2])


CHECKED = {
    "bert": toy("bert", max_epochs=1),
    "gpt2": toy("gpt2", max_epochs=1),
    "t5, deep": toy("t5", max_epochs=1, ensemble="deep"),
    "bert, head": toy("bert", max_epochs=1, ensemble="head"),
    "llama, single, bfloat16": toy("llama", max_epochs=1, ensemble="single", backbone_dtype="bfloat16"),
}
# Checks of many fits, whose subject is the same for every backbone and ensemble.
LONG_CHECKS = ("check_containers", "check_labels")
CHECKS = [
    pytest.param(
        clf,
        check,
        id=f"{name}-{check.args[0].__name__}",
        marks=[pytest.mark.slow] if name != "bert" and check.args[0].__name__ in LONG_CHECKS else [],
    )
    for name, clf in CHECKED.items()
    for _, check in check_text_estimator(clf, generate_only=True)
]


@pytest.mark.parametrize(("clf", "check"), CHECKS)
def test__text_classifier__check__passes(clf, check):
    check(clf)


# ------------------------------------------------------------------------------------- a real backbone


def test__minilm__few_intents__learned_and_out_of_scope_noticed(fitted, intents):
    _, _, X_test, y_test, out_of_scope = intents
    assert fitted.score(X_test, y_test) > 0.9
    inside, outside = (fitted.predict_uncertainty(X).total for X in (X_test, out_of_scope))
    is_outside = np.repeat([0, 1], [len(inside), len(outside)])
    assert roc_auc_score(is_outside, np.concatenate([inside, outside])) > 0.9
    assert len(fitted.ratios_) == 36  # 6 blocks of query, key, value, output, and two of the MLP
    n_ratios = 36 * 384 + 5 * (384 + 1)
    assert fitted.n_member_parameters_ == n_ratios
    assert fitted.preprocess_["max_length"] == 256


@pytest.mark.parametrize("include_backbone", [False, True])
def test__minilm__saved_and_loaded__same_bits(fitted, intents, include_backbone, tmp_path, empty_cache, monkeypatch):
    fitted.save(tmp_path, include_backbone=include_backbone)
    names = sorted(path.name.split("-")[0] for path in tmp_path.iterdir() if path.name != LOCK)
    assert names == ["backbone"] * include_backbone + ["members", "skve.json"] + ["tokenizer"] * include_backbone + [
        "training"
    ]
    if include_backbone:
        monkeypatch.setattr("skve._backbones.sources.importlib.util.find_spec", lambda name: None)
    loaded = skve.load(tmp_path)
    np.testing.assert_array_equal(loaded.predict_proba(intents[2]), fitted.predict_proba(intents[2]))
    assert type(loaded) is SVETextClassifier
    assert loaded.preprocess_ == fitted.preprocess_


def test__minilm__mean_of_batch__long_and_short_texts_as_alone(fitted):
    texts = ["hi", "what is my balance " * 20, "", "transfer money please"]
    for precision, tolerance in (("float32", 1e-5), ("bfloat16", 0.01)):
        clf = copy.copy(fitted).set_params(predict_precision=precision)
        together = clf.predict_proba(texts)
        alone = np.concatenate([clf.predict_proba([text]) for text in texts])
        np.testing.assert_allclose(together, alone, rtol=0, atol=tolerance)


def test__verbose_0__fit_and_predict__nothing_printed(intents, empty_cache):
    code = (
        "from skve import SVETextClassifier;"
        "clf = SVETextClassifier(n_members=1, max_epochs=1, layers='last:1');"
        "clf.fit(['a', 'b', 'c', 'd'], [0, 1, 0, 1]).predict(['a'])"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


# ----------------------------------------------------------------------------------------- scikit-learn


def clean(texts):
    return [text.strip().lower() for text in texts]


def test__pipeline__cleaning_step__uncertainty_seen_through():
    pipe = make_pipeline(FunctionTransformer(clean), toy()).fit(TEXTS, LABELS)
    uncertainty = skve.predict_uncertainty(pipe, ["  A FINE day "])
    wanted = pipe[-1].predict_uncertainty(["a fine day"])
    np.testing.assert_array_equal(uncertainty.total, wanted.total)


def test__column_transformer__text_column__passed_on():
    frame = pd.DataFrame({"id": range(24), "text": TEXTS})
    columns = ColumnTransformer([("text", "passthrough", ["text"])])
    pipe = Pipeline([("columns", columns), ("clf", toy())]).fit(frame, LABELS)
    np.testing.assert_array_equal(pipe.predict_proba(frame), toy().fit(TEXTS, LABELS).predict_proba(TEXTS))


@pytest.mark.parametrize("n_jobs", [1, 2])
def test__grid_search__members_layers_and_rate__all_tried(n_jobs):
    grid = {"n_members": [1, 2], "layers": ["all", "last:1"], "member_lr": [1e-2, 3e-2]}
    search = GridSearchCV(toy(max_epochs=1), grid, cv=2, n_jobs=n_jobs, error_score="raise")
    with joblib.parallel_backend("threading"):
        search.fit(TEXTS, LABELS)
    assert len(search.cv_results_["params"]) == 8
    assert skve.predict_uncertainty(search, TEXTS[:2]).total.shape == (2,)


@pytest.mark.slow
def test__grid_search__processes__same_as_in_turn():
    grid = {"layers": ["all", "last:1"]}
    searches = [GridSearchCV(toy(max_epochs=1), grid, cv=2, n_jobs=n).fit(TEXTS, LABELS) for n in (1, 2)]
    np.testing.assert_array_equal(*(search.cv_results_["mean_test_score"] for search in searches))


def test__cross_val_score__processes__same_as_in_turn():
    scores = [cross_val_score(toy(), np.array(TEXTS), LABELS, cv=2, n_jobs=n) for n in (1, 2)]
    np.testing.assert_array_equal(*scores)


def test__calibration__frozen_and_cross_validated__probabilities():
    clf = toy().fit(TEXTS, LABELS)
    for inner in (FrozenEstimator(clf), clone(clf)):
        calibrated = CalibratedClassifierCV(inner, method="temperature", cv=2).fit(TEXTS, LABELS)
        proba = calibrated.predict_proba(TEXTS)
        np.testing.assert_allclose(proba.sum(1), 1)


def test__joblib__dump_and_load__same_bits(tmp_path):
    clf = toy().fit(TEXTS, LABELS)
    joblib.dump(clf, tmp_path / "clf")
    np.testing.assert_array_equal(joblib.load(tmp_path / "clf").predict_proba(TEXTS), clf.predict_proba(TEXTS))


def test__fitted__its_dict__no_network_inside():
    clf = SVETextClassifier(n_members=1, max_epochs=1, layers="last:1").fit(TEXTS, LABELS)
    assert not re.search(rb"torch\.nn|transformers\.|tokenizers", pickle.dumps(clf))


def test__tags__texts__declared():
    tags = toy().__sklearn_tags__().input_tags
    assert (tags.string, tags.one_d_array, tags.two_d_array) == (True, True, False)


# -------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("early_stopping", [False, True])
def test__validation__given_or_set_aside__in_the_history(early_stopping):
    clf = toy(early_stopping=early_stopping, validation_fraction=0.25)
    validation = {} if early_stopping else {"X_val": TEXTS[:6], "y_val": LABELS[:6]}
    clf.fit(TEXTS, LABELS, **validation)
    assert np.isfinite(clf.history_["valid_nll"]).all()


def test__truncation__long_texts_and_validation_part__one_warning():
    clf = toy(max_length=6, early_stopping=True, validation_fraction=0.25)
    with pytest.warns(UserWarning, match="of 24 texts are longer than max_length=6") as caught:
        clf.fit(TEXTS, LABELS)
    assert len(caught) == 1


@pytest.mark.parametrize("columns", [["text", "label"], ["label", "text"]])
@pytest.mark.parametrize("labels", [["yes", "no", "yes", "no"], [1, 0, 1, 0]])
def test__fit__table_with_its_labels__refused(labels, columns):
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame({"text": ["a", "b", "c", "d"], "label": [str(label) for label in labels]})[columns]
    with pytest.raises(ValueError, match=r"No text of a pair may be its label.*table\['text'\]"):
        toy("bert").fit(table, labels)
    assert toy("bert").fit(table, [str(label) for label in labels[::-1]]).predict(table).shape == (4,)


def test__pairs__decoder__where_the_first_text_ends_matters():
    clf = toy("gpt2", max_epochs=1).fit([(text, "so") for text in TEXTS], LABELS)
    one, two = clf.predict_proba([("ab", "c"), ("a", "bc")])
    assert not np.allclose(one, two, atol=1e-6)


def test__truncation__fit_and_two_predictions__each_warns_at_its_own_line():
    clf = toy(max_length=6, max_epochs=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        clf.fit(TEXTS, LABELS)
        clf.predict(TEXTS)
        clf.predict(TEXTS)
    assert [warning.filename for warning in caught] == [__file__] * 3


def test__members__trained_with_others_or_alone__same_bits():
    two, three = (toy(n_members=n).fit(TEXTS, LABELS).predict_proba_members(TEXTS) for n in (2, 3))
    np.testing.assert_array_equal(two, three[:2])


@pytest.mark.parametrize("family", ["bert", "gpt2", "deberta-v2"])
def test__members__in_one_pass__as_in_turn(family, train_in_chunks):
    in_turn = toy(family, precision="float32").fit(TEXTS, LABELS).predict_proba_members(TEXTS)
    train_in_chunks(2)
    together = toy(family, precision="float32").fit(TEXTS, LABELS).predict_proba_members(TEXTS)
    np.testing.assert_allclose(together, in_turn, atol=1e-4)


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
@pytest.mark.parametrize("ensemble", ["sve", "deep"])
def test__activation_checkpointing__every_block__twice_in_a_step_and_same_result(family, ensemble, monkeypatch):
    calls = []
    original = network.Network.checkpoint

    def counting(self, layers):
        original(self, layers)
        for layer in layers:
            forward = self.forward_of(layer)
            self.set_forward(layer, lambda *args, own=forward, **kwargs: calls.append(1) or own(*args, **kwargs))

    monkeypatch.setattr(network.Network, "checkpoint", counting)
    clf = toy(family, ensemble=ensemble, activation_checkpointing=True, max_epochs=1, precision="float32")
    clf.fit(TEXTS, LABELS)
    n_steps, n_blocks = 3 * 2, 2  # batches times members
    assert len(calls) == 2 * n_steps * n_blocks
    kept = clone(clf).set_params(activation_checkpointing=False).fit(TEXTS, LABELS)
    assert len(calls) == 2 * n_steps * n_blocks
    np.testing.assert_allclose(clf.predict_proba(TEXTS), kept.predict_proba(TEXTS), atol=1e-6)


def test__members__what_vmap_cannot_do__one_after_another(train_in_chunks):
    train_in_chunks(2)
    clf = toy("deberta-v2", precision="bfloat16")  # under vmap its attention masks with float32's smallest number
    assert clf.fit(TEXTS, LABELS).n_iter_ == 2


def test__last_blocks__t5_with_parts_in_a_list__whole_blocks():
    layers = list(toy("t5", layers="last:1", max_epochs=1).fit(TEXTS, LABELS).ratios_)
    assert layers == [f"block.1.layer.0.SelfAttention.{x}" for x in "qkvo"] + [
        f"block.1.layer.1.DenseReluDense.{x}" for x in ("wi", "wo")
    ]


def test__activation_checkpointing__training__fewer_bytes_kept():
    def bytes_kept(checkpointing):
        kept = []
        clf = toy(activation_checkpointing=checkpointing, n_members=1, max_epochs=1, precision="float32")
        original = step.Step._member_losses

        def losses(self, *args):
            with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
                return original(self, *args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(step.Step, "_member_losses", losses)
            clf.fit(TEXTS, LABELS)
        return sum(kept)

    assert bytes_kept(True) < 0.5 * bytes_kept(False)


def test__forms__texts_of_varying_length__chosen_by_mean_tokens(monkeypatch):
    seen = []
    original = forms.choose_form

    def choose(kind, d_out, d_in, n_positions, *, training):
        seen.append((training, n_positions))
        return original(kind, d_out, d_in, n_positions, training=training)

    monkeypatch.setattr(forms, "choose_form", choose)
    texts = ["a", "b" * 40] * 12  # 3 and 42 tokens
    clf = toy("bert", max_epochs=1, pooling="cls").fit(texts, LABELS)
    clf.predict(texts[:10])
    assert {n for training, n in seen if not training} == {math.inf}  # weights are kept
    seen[:] = [one for one in seen if one[0]]
    monkeypatch.setenv(cache.LIMIT, "0")
    cache.clear_cache()
    clf.predict(texts[:10])
    assert {round(n) for training, n in seen if training} == {round(8 * 22.5)}
    assert {round(n) for training, n in seen if not training} == {round(10 * 22.5)}


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"label_words": [" a", " b"]}, ValueError, "require head='lm'"),
        ({"multiple_choice": True}, ValueError, "require head='lm'"),
        ({"head": "lm", "label_words": [" good", " great"]}, ValueError, "begin with the same token"),
        ({"head": "lm", "label_words": [" a"]}, ValueError, "one word for each of the 2 classes .*, got 1"),
        ({"head": "lm", "label_words": {"good": " g"}}, ValueError, r"a word for each class, got none for 'bad'"),
        ({"head": "lm", "label_words": [1, 2]}, TypeError, r"must be strings, got \[1, 2\]"),
        ({"head": "lm", "multiple_choice": True}, ValueError, r"X\[0\] must list its choices"),
        ({"max_length": 65}, ValueError, "max_length must not exceed 64"),
        ({"max_length": 0}, ValueError, "'max_length' parameter"),
        ({"pooling": "max"}, ValueError, "'pooling' parameter"),
        ({"truncation_side": "both"}, ValueError, "'truncation_side' parameter"),
        ({"backbone_dtype": "float16"}, ValueError, "'backbone_dtype' parameter"),
        ({"head": "mlp"}, ValueError, "'head' parameter"),
        ({"layers": "last:3"}, ValueError, "from 1 to 2"),
    ],
)
def test__parameters__wrong__named_with_remedy(parameters, error, message):
    with pytest.raises(error, match=message):
        toy("gpt2", lm=True, **parameters).fit(TEXTS, LABELS)


# ----------------------------------------------------------------------------------------------- state


def test__set_params__after_fit__predictions_as_fitted():
    clf = toy().fit(TEXTS, LABELS)
    proba = clf.predict_proba(TEXTS)
    clf.set_params(pooling="cls", max_length=5, truncation_side="left", backbone_dtype="bfloat16")
    np.testing.assert_array_equal(clf.predict_proba(TEXTS), proba)


def test__saved__without_backbone__asks_for_the_pair_and_checks_its_tokenizer(tmp_path):
    clf = toy().fit(TEXTS, LABELS)
    with pytest.warns(UserWarning, match=r"not saved.*backbone"):
        clf.save(tmp_path)
    with pytest.raises(ValueError, match=r"skve.load\(folder, backbone=...\)"):
        skve.load(tmp_path)
    model, tokenizer = make_toy_text_backbone()
    loaded = skve.load(tmp_path, backbone=(model, tokenizer))
    np.testing.assert_array_equal(loaded.predict_proba(TEXTS), clf.predict_proba(TEXTS))
    tokenizer.add_tokens(["fine"])
    with pytest.raises(ValueError, match=r"The tokenizer of the backbone .* must be the one of the fit"):
        skve.load(tmp_path, backbone=(model, tokenizer)).predict(TEXTS)


def test__saved__with_backbone__no_pickle_and_plain_json(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        toy().fit(TEXTS, LABELS).save(tmp_path, include_backbone=True)
    assert {path.suffix for path in tmp_path.iterdir() if path.name != LOCK} == {".json", ".safetensors"}
    assert json.loads((tmp_path / "skve.json").read_text())["class"] == "SVETextClassifier"


def test__warm_start__second_fit__goes_on():
    clf = toy(warm_start=True, max_epochs=1).fit(TEXTS, LABELS)
    first = clf.ratios_
    clf.fit(TEXTS, LABELS)
    assert any(not np.array_equal(first[name], ratios) for name, ratios in clf.ratios_.items())


def test__warm_start__pair_with_another_tokenizer__refused():
    clf = toy(warm_start=True, max_epochs=1).fit(TEXTS, LABELS)
    model, tokenizer = make_toy_text_backbone()
    tokenizer.add_tokens(["unused"])
    with pytest.raises(ValueError, match=r"tokenizer_sha256 must stay .* Set warm_start=False"):
        clf.set_params(backbone=(model, tokenizer)).fit(TEXTS, LABELS)


def test__loaded__fitted_anew__from_the_embedded_backbone(tmp_path):
    clf = toy("gpt2", max_epochs=1).fit(TEXTS, LABELS)
    clf.save(tmp_path / "one", include_backbone=True)
    loaded = skve.load(tmp_path / "one")
    again = clone(loaded).fit(TEXTS, LABELS)
    assert loaded.get_params()["backbone"] is again.backbone
    assert "embedded backbone 'GPT2Model'" in repr(loaded)
    assert list(again.ratios_) == list(clf.ratios_)
    again.save(tmp_path / "two")
    for one in (again, skve.load(tmp_path / "two"), pickle.loads(pickle.dumps(again))):
        np.testing.assert_array_equal(one.predict_proba(TEXTS), clf.predict_proba(TEXTS))


def test__cache__clones_and_folds__one_backbone(empty_cache):
    clf = SVETextClassifier(n_members=1, max_epochs=1, layers="last:1")
    for pooling in ("mean", "cls"):
        clone(clf).set_params(pooling=pooling).fit(TEXTS, LABELS)
    gc.collect()
    assert len(skve._backbones.cache._cache) == 1


@pytest.mark.parametrize("changed", [{"hidden_act": "relu"}, {"num_attention_heads": 4}], ids=str)
def test__embedded__same_weights_and_another_configuration__each_its_own_answer(changed, tmp_path, empty_cache):
    clf = toy(n_members=1, max_epochs=1).fit(TEXTS, LABELS)
    for name in ("right", "other"):
        clf.save(tmp_path / name, include_backbone=True)
    path = tmp_path / "other" / "skve.json"
    document = json.loads(path.read_text())
    document["state"]["backbone"]["config"] |= changed
    path.write_text(json.dumps({**document, "sha256": document_hash(document)}))
    right, other = (skve.load(tmp_path / name) for name in ("right", "other"))
    wanted = clf.predict_proba(TEXTS)
    for order in ((other, right), (right, other)):
        cache.clear_cache()
        proba = {loaded: loaded.predict_proba(TEXTS) for loaded in order}
        np.testing.assert_array_equal(proba[right], wanted)
        assert not np.allclose(proba[other], wanted)


@pytest.mark.parametrize("content", [b"{", b"\xff"], ids=["no JSON", "no Unicode"])
def test__embedded_tokenizer__broken__value_error_names_the_backbone(tmp_path, content):
    toy(n_members=1, max_epochs=1).fit(TEXTS, LABELS).save(tmp_path, include_backbone=True)
    loaded = skve.load(tmp_path)
    files = {**loaded._state.spec.files, "tokenizer.json": content}
    loaded._state = dataclasses.replace(loaded._state, spec=dataclasses.replace(loaded._state.spec, files=files))
    with pytest.raises(
        ValueError, match=r"(?i)the embedded backbone .* could not be rebuilt with .* Use a complete copy"
    ):
        loaded.predict(TEXTS)


# --------------------------------------------------------------------- pretrained language-model heads


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
    with pytest.raises(ValueError, match=rf"{where}\[2\] must list its label 'C' .* begins with 'C.'"):
        clf.fit(*data, X_val=prompts, y_val=wrong)


@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": False}])
def test__lm_head__loaded_with_its_backbone_and_fitted_anew__same_bits(options, tmp_path):
    pair = make_toy_text_backbone("gpt2", lm=True, **options)
    clf = toy(lm=True, head="lm", max_epochs=1).set_params(backbone=pair).fit(TEXTS, LABELS)
    clf.save(tmp_path, include_backbone=True)
    again = skve.load(tmp_path).fit(TEXTS, LABELS)
    np.testing.assert_array_equal(again.predict_proba(TEXTS), clf.predict_proba(TEXTS))
    with pytest.raises(
        ValueError, match=r"head must be 'lm' or 'likelihood' for the backbone .*, which was embedded"
    ):
        again.set_params(head="linear").fit(TEXTS, LABELS)


def test__warm_start__other_label_words__refused():
    clf = toy("gpt2", lm=True, head="lm", label_words=[" a", " b"], warm_start=True, max_epochs=1).fit(TEXTS, LABELS)
    with pytest.raises(
        ValueError, match=r"label_words must stay \[' a', ' b'\] .*, got \[' c', ' d'\]. Set warm_start"
    ):
        clf.set_params(label_words=[" c", " d"]).fit(TEXTS, LABELS)


# ------------------------------------------------------------------------ choices scored by their texts

QUESTIONS = [
    ("the sky is", ["blue", "green"]),
    ("to be or", ["not to be", "so", "be it"]),
    ("", ["a", "bb", "ccc", "dd dd"]),
    ("a fine", ["day", "bore again"]),
] * 3
INDICES = [0, 2, 3, 1] * 3
N_CHOICES = [2, 3, 4, 2] * 3
UNTOUCHED = {"n_members": 1, "init_scale": 0.0, "member_lr": 1e-12, "head_lr": 1e-12, "max_epochs": 1}


def scoring(family="llama", **parameters):
    settings = {"head": "likelihood", "precision": "float32", "predict_precision": "float32", "member_lr": 0.1}
    return toy(family, lm=True, **{**settings, **parameters})


def log_likelihoods(family, questions):
    """The mean log-likelihood of each choice by transformers, one text after another; -inf where there is none."""
    model, tokenizer = make_toy_text_backbone(family, lm=True)
    scores = np.full((len(questions), 4), -np.inf)
    for row, (prompt, choices) in enumerate(questions):
        n_prompt = len(tokenizer(prompt)["input_ids"])
        for column, choice in enumerate(choices):
            ids = tokenizer(f"{prompt} {choice}" if prompt else choice)["input_ids"]
            ids, start = (ids, n_prompt) if prompt else ([tokenizer.bos_token_id, *ids], 1)
            with torch.no_grad():
                log_proba = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
            scores[row, column] = np.mean([float(log_proba[i - 1, ids[i]]) for i in range(start, len(ids))])
    return scores


@pytest.fixture(scope="module")
def scored():
    return scoring(max_epochs=6, n_members=3).fit(QUESTIONS, INDICES)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "qwen3", "gemma3_text"])
def test__likelihood__untouched_model__softmax_of_mean_log_likelihoods_by_transformers(family):
    clf = scoring(family, **UNTOUCHED).fit(QUESTIONS, INDICES)
    scores = log_likelihoods(family, QUESTIONS)
    expected = softmax(scores, axis=1)
    np.testing.assert_allclose(clf.predict_proba_members(QUESTIONS)[0], expected, rtol=0, atol=1e-5)
    assert np.ptp(expected[1:2, :3]) > 0.01  # else any number would do
    np.testing.assert_allclose(clf.transform(QUESTIONS)[0, :2], scores[0, :2], atol=1e-4)


def test__likelihood__classes__indices_of_the_largest_number_of_choices():
    clf = scoring(max_epochs=1, multiple_choice=True).fit(QUESTIONS, np.zeros(12, int))
    assert clf.classes_.tolist() == [0, 1, 2, 3]
    proba = clf.predict_proba_members(QUESTIONS)
    assert (proba[:, np.arange(4) >= np.array(N_CHOICES)[:, None]] == 0).all()
    np.testing.assert_allclose(proba.sum(-1), 1)
    assert clf.predict(QUESTIONS).max() < 4
    assert clf.preprocess_["choices"] == 4


def test__likelihood__one_question_or_many__same_prediction(scored):
    together = scored.predict_proba(QUESTIONS[:4])
    alone = np.concatenate([scored.predict_proba([question]) for question in QUESTIONS[:4]])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)


def test__likelihood__choices_in_another_order__their_probabilities_in_that_order(scored):
    prompt, choices = QUESTIONS[2]
    one, other = scored.predict_proba([(prompt, choices), (prompt, choices[::-1])])
    np.testing.assert_allclose(other, one[::-1], rtol=0, atol=1e-3)  # but for the heads, which hardly move


def test__likelihood__training__members_learn_and_differ(scored):
    untouched = scoring(**UNTOUCHED).fit(QUESTIONS, INDICES)
    rows = np.arange(12)
    before, after = (-np.log(clf.predict_proba(QUESTIONS)[rows, INDICES]).mean() for clf in (untouched, scored))
    assert after < 0.7 * before
    assert all(min(norms) > 0 for norms in scored.history_["gradient_norm"].values())
    assert (scored.predict_uncertainty(QUESTIONS).epistemic > 0).all()
    heads = arrays_of(scored)["head.weight"]
    assert heads.shape == (3, 4, 4)
    np.testing.assert_allclose(heads, np.broadcast_to(np.eye(4), heads.shape), atol=1e-3)


def test__likelihood__members__trained_with_others_or_alone__same_bits(scored):
    two = scoring(max_epochs=6, n_members=2).fit(QUESTIONS, INDICES)
    np.testing.assert_array_equal(two.predict_proba_members(QUESTIONS), scored.predict_proba_members(QUESTIONS)[:2])


def test__likelihood__members_in_one_pass__as_in_turn(scored, train_in_chunks):
    train_in_chunks(3)
    together = clone(scored).fit(QUESTIONS, INDICES)
    np.testing.assert_allclose(
        together.predict_proba_members(QUESTIONS), scored.predict_proba_members(QUESTIONS), atol=1e-4
    )


def test__likelihood__gradients__those_of_finite_differences():
    clf = scoring(**UNTOUCHED, layers="last:1").fit(QUESTIONS, INDICES)

    def loss(step, key, place):
        state = clf._state
        arrays = {name: value.copy() for name, value in state.arrays.items()}
        arrays[key].reshape(-1)[place] += step
        moved = copy.copy(clf)
        moved._state = dataclasses.replace(state, arrays=arrays)
        return -np.log(moved.predict_proba_members(QUESTIONS)[0][np.arange(12), INDICES]).mean()

    gradients = gradients_of(clf)
    key = max(gradients, key=lambda name: np.abs(gradients[name]).max())
    place = int(np.abs(gradients[key]).argmax())
    difference = (loss(0.02, key, place) - loss(-0.02, key, place)) / 0.04
    np.testing.assert_allclose(gradients[key].reshape(-1)[place], difference, rtol=0.02)


def gradients_of(clf):
    """Return the gradients of the loss in the log ratios of the first member."""
    state, cpu = clf._state, torch.device("cpu")
    backbone = clf._load_backbone(state.spec, clf.preprocess_)
    pipeline = clf._make_pipeline(clf._check_inputs(QUESTIONS, reset=False), backbone, cpu, training=True)
    head, members = state.head_on(backbone), state.members(backbone)
    ensemble = Ensemble(state.rule_on(backbone), head, members, state.traced, math.inf, training=True)
    logits = ensemble(pipeline.prepare(pipeline.load(np.arange(len(QUESTIONS))), None))
    head.likelihood.losses(logits, torch.tensor(INDICES)).mean().backward()
    return {key: t.grad.numpy() for key, t in ensemble.member(0).items() if key.startswith("log_ratios.")}


@pytest.mark.parametrize("ensemble", ["deep", "lora", "batch", "bias", "head", "laplace", "dropout"])
def test__likelihood__each_kind_of_ensemble__predicts(ensemble):
    clf = scoring(ensemble=ensemble, max_steps=2, max_epochs=None, member_lr=None).fit(QUESTIONS, INDICES)
    assert clf.predict_proba_members(QUESTIONS).shape == (2, 12, 4)


@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": False}])
def test__likelihood__saved_pickled_and_cloned__same_bits(options, tmp_path):
    clf = scoring("gpt2", max_epochs=1)
    clf.set_params(backbone=make_toy_text_backbone("gpt2", lm=True, **options)).fit(QUESTIONS, INDICES)
    proba = clf.predict_proba(QUESTIONS)
    clf.save(tmp_path, include_backbone=True)
    loaded = skve.load(tmp_path)
    assert ("lm_head.weight" in loaded._state.spec.arrays) == bool(options)  # a tied one stands in the file once
    np.testing.assert_array_equal(loaded.predict_proba(QUESTIONS), proba)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(clf)).predict_proba(QUESTIONS), proba)
    for again in (clone(clf), loaded):
        np.testing.assert_array_equal(again.fit(QUESTIONS, INDICES).predict_proba(QUESTIONS), proba)
    with pytest.raises(ValueError, match=r"head must be 'lm' or 'likelihood' for the backbone .*, got 'linear'"):
        loaded.set_params(head="linear").fit(TEXTS, LABELS)


def test__likelihood__set_params_after_fit__predictions_as_fitted(scored):
    changed = copy.copy(scored).set_params(head="linear")
    np.testing.assert_array_equal(changed.predict_proba(QUESTIONS), scored.predict_proba(QUESTIONS))


def test__likelihood__folds__calibrated_and_blended_prediction():
    clf = scoring(n_members=4, ensemble_params={"folds": 2}, max_epochs=2).fit(QUESTIONS * 4, INDICES * 4)
    proba = clf.predict_proba(QUESTIONS)
    np.testing.assert_allclose(proba.sum(1), 1)
    assert (proba[:, 2:][np.array(N_CHOICES) == 2] == 0).all()
    assert np.isfinite(clf.oof_proba_).all()


def test__likelihood__frames_searches_and_validation__as_other_inputs():
    frame = pd.DataFrame(QUESTIONS, columns=["prompt", "choices"])
    clf = scoring(max_epochs=1).fit(frame, INDICES, X_val=frame[:4], y_val=INDICES[:4])
    np.testing.assert_array_equal(clf.predict_proba(frame), clf.predict_proba(QUESTIONS))
    scores = cross_val_score(scoring(max_epochs=1), QUESTIONS, INDICES, cv=3)
    assert np.isfinite(scores).all()


def test__likelihood__partial_fit__classes_are_all_indices():
    clf = scoring(max_epochs=1)
    clf.partial_fit(QUESTIONS[:2], INDICES[:2], classes=[0, 1, 2, 3]).partial_fit(QUESTIONS, INDICES)
    assert clf.predict_proba(QUESTIONS).shape == (12, 4)
    with pytest.raises(ValueError, match=r"classes must be the indices of the choices .*, got 1, 2\."):
        scoring().partial_fit(QUESTIONS[:1], [1], classes=[1, 2])


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test__likelihood__narrow_weights__near_those_of_float32(scored, dtype):
    narrow = scoring(max_epochs=1, backbone_dtype=dtype, **{"member_lr": 1e-12, "init_scale": 0.0})
    wide = clone(narrow).set_params(backbone_dtype="float32")
    one, other = (clf.fit(QUESTIONS, INDICES).predict_proba(QUESTIONS) for clf in (narrow, wide))
    np.testing.assert_allclose(one, other, atol=0.03)


def test__likelihood__truncation__the_side_is_cut_and_one_warning_says_how_many():
    prompt = "what a fine day it is to be " * 2
    for side in ("left", "right"):
        clf = scoring(max_epochs=1, max_length=20, truncation_side=side)
        with pytest.warns(UserWarning, match=rf"12 of 12 prompts are.* cut on the {side}"):
            clf.fit([(prompt, choices) for _, choices in QUESTIONS], INDICES)


@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        ([0, 2, 3, 4] * 3, ValueError, r"an integer from 0 to 3, got 4\."),
        ([0, 2, 3, -1] * 3, ValueError, r"an integer from 0 to 3, got -1\."),
        (["blue", "so", "a", "day"] * 3, ValueError, r"an integer from 0 to 3, got 'blue'\."),
        ([True, False] * 6, ValueError, r"an integer from 0 to 3, got True\."),
        (
            [0, 2, 3, 2] * 3,
            ValueError,
            r"X\[3\] must have the choice that is its label, got the index 2 for 2 choices",
        ),
    ],
)
def test__likelihood__labels_that_are_no_index_of_a_choice__named(y, error, message):
    with pytest.raises(error, match=message):
        scoring().fit(QUESTIONS, y)


@pytest.mark.parametrize(
    ("settings", "family", "error", "message"),
    [
        ({"label_words": [" a", " b"]}, "llama", ValueError, "require head='lm', got head='likelihood'"),
        ({}, "bert", ValueError, r"must be a decoder for head='likelihood'.* got a BertForMaskedLM"),
    ],
)
def test__likelihood__parameters_and_backbones_that_cannot_score__named(settings, family, error, message):
    with pytest.raises(error, match=message):
        scoring(family, **settings).fit(QUESTIONS, INDICES)


def test__likelihood__model_without_head__says_what_to_pass():
    with pytest.raises(ValueError, match=r"must have a language-model head for head='likelihood'.*CausalLM"):
        toy("llama", head="likelihood").fit(QUESTIONS, INDICES)


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (["a text"], TypeError, r"X must be a list of tuples \(prompt, choices\)"),
        ([("p", ["a"])], ValueError, r"X\[0\]\[1\] must have at least two choices, got 1"),
        ([("p", ["a", ""])], ValueError, r"X\[0\]\[1\]\[1\] must be a text that can be scored, got ''"),
        ([("p", ["a", "b", "c", "d", "e"])], ValueError, r"X\[0\] must have at most 4 choices, as in fit, got 5"),
    ],
)
def test__likelihood__predict__bad_input_named_by_index(scored, X, error, message):
    with pytest.raises(error, match=message):
        scored.predict(X)


def test__choices__without_head_likelihood__says_what_they_require():
    with pytest.raises(TypeError, match=r"X\[0\]\[1\] must be a string.* Lists of choices require head='likelihood'"):
        toy("llama", lm=True).fit(QUESTIONS, INDICES)
