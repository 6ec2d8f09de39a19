"""Toy text backbones, and the checks that any text classifier of skve's kind passes."""

import copy
import functools
import pickle
import random
import tempfile
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

FAMILIES = (
    "bert",
    "roberta",
    "distilbert",
    "deberta",
    "deberta-v2",
    "modernbert",
    "gpt2",
    "llama",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "t5",
)
_ENCODERS = ("bert", "roberta", "distilbert", "deberta", "deberta-v2", "modernbert")
_SPECIAL = ["[PAD]", "[BOS]", "[EOS]", "[CLS]", "[SEP]", "[MASK]"]


def make_toy_tokenizer(*, encoder=True, pad=True):
    """Make a tokenizer that knows every text: bytes, and letters with a space in front.

    Parameters
    ----------
    encoder : bool, default=True
        Whether it adds [CLS] and [SEP], as those of encoders do.
    pad : bool, default=True
        Whether it has a padding token.

    Returns
    -------
    tokenizer : transformers.PreTrainedTokenizerFast

    Examples
    --------
    >>> from skve.testing import make_toy_tokenizer
    >>> len(make_toy_tokenizer()("to be")["input_ids"])
    6
    """
    import string

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", letter) for letter in string.ascii_letters]
    names = _SPECIAL + alphabet + ["Ġ" + letter for letter in string.ascii_letters]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"eos_token": "[EOS]", "bos_token": "[BOS]", **({"pad_token": "[PAD]"} if pad else {})}
    if encoder:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(name, names.index(name)) for name in ("[CLS]", "[SEP]")],
        )
        special |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special)


def make_toy_text_backbone(family="bert", *, lm=False, seed=0, **options):
    """Make a small untrained model of a family of transformers, with a tokenizer.

    Parameters
    ----------
    family : str, default="bert"
        One of `FAMILIES`, the names of their model types.
    lm : bool, default=False
        Whether the model has its language-model head.
    seed : int, default=0
        The global random state of torch is left as it was.
    **options
        Of the model's configuration.

    Returns
    -------
    backbone : tuple of (transformers.PreTrainedModel, transformers.PreTrainedTokenizerFast)
        What `SVETextClassifier(backbone=...)` takes.

    Examples
    --------
    >>> from skve.testing import make_toy_text_backbone
    >>> model, tokenizer = make_toy_text_backbone("gpt2")
    >>> type(model).__name__
    'GPT2Model'
    """
    import torch
    import transformers

    auto: Any = transformers.AutoModel
    if lm:
        auto = transformers.AutoModelForMaskedLM if family in _ENCODERS else transformers.AutoModelForCausalLM
    tokenizer = make_toy_tokenizer(encoder=family in _ENCODERS)
    size = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
    }
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 3, "sep_token_id": 4}
    if family == "gpt2":
        size = {"vocab_size": len(tokenizer), "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    elif family == "distilbert":
        size |= {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    elif family == "t5":
        size = {"vocab_size": len(tokenizer), "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    elif family in ("llama", "qwen3", "gemma", "gemma2", "gemma3_text"):
        size |= {"num_key_value_heads": 1, "head_dim": 8}
    elif family == "roberta":
        size["max_position_embeddings"] = 66
    elif family.startswith("deberta"):
        options = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], **options}
    config = transformers.AutoConfig.for_model(family, **{**size, **tokens, **options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(config).eval()
        for parameter in model.parameters():  # transformers draws weights so small that little shows
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        return model, tokenizer


# ------------------------------------------------------------------------------------------- checks

_TEXTS = ["a fine day", "what a bore", "", "  ", "naïve café, 3.5 €", "again and again " * 3] * 3
_LABELS = np.array(["no", "yes"] * 9)


def check_text_estimator(estimator, *, generate_only=False):
    """Check that a text classifier keeps the contract of `SVETextClassifier`, over all text containers.

    What `sklearn.utils.estimator_checks.check_estimator` is for rows of numbers; it skips nearly all of its checks
    for estimators of texts.

    Parameters
    ----------
    estimator : estimator
        Not fitted; with a `random_state`, and quick to fit. It is cloned for each check.
    generate_only : bool, default=False
        Whether to return pairs (estimator, check) instead, each to be run as `check(estimator)`, for
        `pytest.mark.parametrize`.

    Returns
    -------
    checks : list of tuple, or None

    Raises
    ------
    AssertionError
        If the estimator fails a check.

    Examples
    --------
    >>> from skve import SVETextClassifier
    >>> from skve.testing import check_text_estimator, make_toy_text_backbone
    >>> clf = SVETextClassifier(make_toy_text_backbone(), n_members=2, max_epochs=1, random_state=0)
    >>> _, check = check_text_estimator(clf, generate_only=True)[0]
    >>> check(clf)
    """
    checks = [(estimator, functools.partial(_run, check)) for check in _CHECKS]
    if generate_only:
        return checks
    for _, check in checks:
        check(estimator)
    return None


def _run(check, estimator):
    check(clone(estimator))


def _same(one, other, what, tolerance=0.0):
    np.testing.assert_allclose(one, other, rtol=0, atol=tolerance, err_msg=what)


def _raises(error, parts, call, *args):
    """Assert that a call raises `error` with a message that has all `parts`."""
    message = None
    try:
        call(*args)
    except error as raised:
        message = str(raised)
    assert message is not None, f"{call} raised nothing; wanted {error}"
    missing = [part for part in parts if part not in message]
    assert not missing, f"{call}: the message {message!r} lacks {missing}"


def _containers(texts):
    """Yield (name, X) for each container whose package is installed."""
    yield "tuple", tuple(texts)
    yield "array of objects", np.array(texts, dtype=object)
    yield "array of str", np.array(texts)
    yield "column", np.array(texts, dtype=object)[:, None]
    if hasattr(np.dtypes, "StringDType"):
        yield "array of StringDType", np.array(texts, dtype=np.dtypes.StringDType())
    try:
        import pandas as pd

        yield "pandas Series", pd.Series(texts, index=range(5, 5 + len(texts)))
        yield "pandas DataFrame", pd.DataFrame({"text": texts})
        yield "pandas categories", pd.Series(texts, dtype="category")
    except ImportError:
        pass
    try:
        import polars as pl

        yield "polars Series", pl.Series(texts)
        yield "polars DataFrame", pl.DataFrame({"text": texts})
    except ImportError:
        pass


def check_containers(estimator):
    """Every container gives what a list gives, and is left as it was."""
    wanted = clone(estimator).fit(_TEXTS, _LABELS).predict_proba(_TEXTS)
    for name, X in _containers(_TEXTS):
        before = copy.deepcopy(X)
        _same(clone(estimator).fit(X, _LABELS).predict_proba(X), wanted, name)
        assert str(X) == str(before), f"{name} was changed"


def check_sentence_pairs(estimator):
    """Pairs are tuples or rows of two texts, and both texts count."""
    pairs = list(zip(_TEXTS, _TEXTS[::-1], strict=True))
    estimator.fit(pairs, _LABELS)
    wanted = estimator.predict_proba(pairs)
    _same(estimator.predict_proba(np.array(pairs)), wanted, "array of shape (n, 2)")
    assert not np.allclose(wanted, estimator.predict_proba([(a, "another") for a, _ in pairs])), "second texts matter"
    _raises(ValueError, ["single texts", "pairs"], estimator.predict, _TEXTS)
    _raises(TypeError, ["X[1]"], estimator.predict, [pairs[0], "alone"])
    _raises(ValueError, ["X[0]", "3"], estimator.predict, [("a", "b", "c")])


def check_labels(estimator):
    """Labels of any kind come back; missing ones, and one class alone, are errors."""
    for labels in (_LABELS, _LABELS.astype(object), np.array([0, 2] * 9), np.array([False, True] * 9)):
        estimator.fit(_TEXTS, labels)
        assert list(estimator.classes_) == sorted(set(labels.tolist()))
        predicted = estimator.predict(_TEXTS)
        assert predicted.shape == (len(_TEXTS),)
        assert set(predicted) <= set(labels)
    missing: list[list] = [["one"] * 18, [None] + ["a", "b"] * 8 + ["a"], [float("nan"), 1.0] * 9]
    for wrong in missing:
        _raises(ValueError, [], estimator.fit, _TEXTS, wrong)
    _raises(ValueError, ["18", "2"], estimator.fit, _TEXTS, ["a", "b"])


def check_probabilities(estimator):
    """Probabilities are float64 rows that sum to one, the mean of the members', and uncertainty fits them."""
    estimator.fit(_TEXTS, _LABELS)
    members, proba = estimator.predict_proba_members(_TEXTS), estimator.predict_proba(_TEXTS)
    assert proba.dtype == np.float64
    assert proba.flags.c_contiguous
    assert proba.shape == (18, 2)
    assert members.shape[1:] == proba.shape
    _same(proba.sum(1), 1.0, "rows sum to one", 1e-12)
    _same(members.mean(0), proba, "mean of the members", 1e-12)
    assert (estimator.predict(_TEXTS) == estimator.classes_[proba.argmax(1)]).all()
    uncertainty = estimator.predict_uncertainty(_TEXTS)
    _same(uncertainty.total, uncertainty.aleatoric + uncertainty.epistemic, "parts of the uncertainty", 1e-9)
    _same(estimator.score_samples(_TEXTS), -uncertainty.total, "score_samples")
    assert not hasattr(estimator, "decision_function")


def check_order_and_company(estimator):
    """A text's prediction depends neither on its place nor on the texts beside it; empty texts are texts."""
    estimator.fit(_TEXTS, _LABELS)
    proba = estimator.predict_proba(_TEXTS)
    assert np.isfinite(proba).all()
    order = np.random.default_rng(0).permutation(18)
    _same(estimator.predict_proba([_TEXTS[i] for i in order]), proba[order], "another order", 1e-5)
    for index in range(6):
        _same(estimator.predict_proba([_TEXTS[index]])[0], proba[index], f"{_TEXTS[index]!r} alone", 1e-5)


def check_repeatable(estimator):
    """Same seed, same bits; the global random states stay as they are, and so do the parameters."""
    import torch

    numpy_state = np.random.get_state
    before = torch.get_rng_state().tolist(), repr(numpy_state()), random.getstate()
    parameters = {name: repr(value) for name, value in estimator.get_params().items()}
    one = clone(estimator).fit(_TEXTS, _LABELS).predict_proba_members(_TEXTS)
    _same(estimator.fit(_TEXTS, _LABELS).predict_proba_members(_TEXTS), one, "a second fit")
    assert before == (torch.get_rng_state().tolist(), repr(numpy_state()), random.getstate())
    assert parameters == {name: repr(value) for name, value in estimator.get_params().items()}


def check_stored(estimator):
    """Pickles, and folders with the backbone inside, predict the same bits."""
    import skve

    proba = estimator.fit(_TEXTS, _LABELS).predict_proba(_TEXTS)
    _same(pickle.loads(pickle.dumps(estimator)).predict_proba(_TEXTS), proba, "pickle")
    with tempfile.TemporaryDirectory() as folder:
        estimator.save(folder, include_backbone=True)
        loaded = skve.load(folder)
        _same(loaded.predict_proba(_TEXTS), proba, "save and load")
        assert (loaded.classes_ == estimator.classes_).all()


def check_bad_inputs(estimator):
    """What is no text is named by its index; a failed fit leaves the estimator as it was."""
    _raises(NotFittedError, [], estimator.predict, _TEXTS)
    estimator.fit(_TEXTS, _LABELS)
    state = dict(vars(estimator))
    X: Any
    for bad in (None, float("nan"), 3, b"bytes", ["a", "list"], {"a": 1}):
        for X in (list(_TEXTS), np.array(_TEXTS, dtype=object)):
            X[4] = bad
            _raises((TypeError, ValueError), ["X[4]"], estimator.predict, X)
            _raises((TypeError, ValueError), ["X[4]"], estimator.fit, X, _LABELS)
    wrong: list[tuple[Any, list[str]]] = [
        ("one text", ["X is one str"]),
        (b"one text", ["X is one bytes"]),
        ([], ["X is empty"]),
        (3, ["X is a int"]),
        (None, ["X is a NoneType"]),
        (np.zeros((3, 2)), ["float64"]),
        (np.array([["a", "b", "c"]]), ["(1, 3)"]),
        ({"a": "b"}, ["X is a dict"]),
        ((text for text in _TEXTS), ["X is a generator"]),
        ([["tokens", "of"], ["a", "text"]], ["X[0]", "join"]),
    ]
    for anything, parts in wrong:
        _raises((TypeError, ValueError), parts, estimator.predict, anything)
        _raises((TypeError, ValueError), parts, estimator.fit, anything, _LABELS)
    assert vars(estimator).keys() == state.keys()
    assert vars(estimator)["classes_"] is state["classes_"]


def check_incremental(estimator):
    """`partial_fit` starts with all classes and goes on; weights are taken."""
    estimator.partial_fit(_TEXTS[:6], _LABELS[:6], classes=["maybe", "no", "yes"])
    before = estimator.predict_proba(_TEXTS)
    assert before.shape == (18, 3)
    estimator.partial_fit(_TEXTS, _LABELS, sample_weight=np.linspace(0, 1, 18))
    assert not np.array_equal(estimator.predict_proba(_TEXTS), before)


def check_pipeline(estimator):
    """A cleaning step in front of the classifier does what cleaning by hand does."""
    upper = [text.upper() for text in _TEXTS]
    wanted = clone(estimator).fit(upper, _LABELS).predict_proba(upper)
    cleaned = make_pipeline(FunctionTransformer(_upper), estimator).fit(_TEXTS, _LABELS)
    _same(cleaned.predict_proba(_TEXTS), wanted, "behind a cleaning step")


def _upper(texts):
    return [text.upper() for text in texts]


_CHECKS = (
    check_containers,
    check_sentence_pairs,
    check_labels,
    check_probabilities,
    check_order_and_company,
    check_repeatable,
    check_stored,
    check_bad_inputs,
    check_incremental,
    check_pipeline,
)
