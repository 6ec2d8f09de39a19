"""Toy text backbones, and the checks that any text classifier of skve's kind passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from skve.testing import common_checks
from skve.testing.common_checks import LABELS, raises, same

if TYPE_CHECKING:
    import transformers

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


def make_toy_tokenizer(*, encoder: bool = True, pad: bool = True) -> transformers.PreTrainedTokenizerFast:
    """Make a small tokenizer for any text: its tokens are bytes, and letters with a space in front.

    Parameters
    ----------
    encoder : bool, default=True
        Whether it adds [CLS] and [SEP], like the tokenizers of encoders.
    pad : bool, default=True
        Whether it has a padding token.

    Returns
    -------
    tokenizer : transformers.PreTrainedTokenizerFast
        A tokenizer for at most 64 tokens.

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
    special: dict[str, Any] = {"eos_token": "[EOS]", "bos_token": "[BOS]", **({"pad_token": "[PAD]"} if pad else {})}
    if encoder:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(name, names.index(name)) for name in ("[CLS]", "[SEP]")],
        )
        special |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    else:  # as decoders' own tokenizers; GPT-2 would add an embedding of the types that transformers 4 gives
        special["model_input_names"] = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special)


def make_toy_text_backbone(
    family: str = "bert", *, lm: bool = False, seed: int = 0, **options: Any
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerFast]:
    """Make a small untrained model of a family of transformers, with a tokenizer.

    Parameters
    ----------
    family : str, default="bert"
        One of `FAMILIES`: a model type of transformers.
    lm : bool, default=False
        Whether the model has its language-model head.
    seed : int, default=0
        Seed of the weights. The global random state of torch does not change.
    **options
        Entries of the model's configuration.

    Returns
    -------
    backbone : tuple of (transformers.PreTrainedModel, transformers.PreTrainedTokenizerFast)
        The pair that `SVETextClassifier(backbone=...)` accepts.

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


def check_text_estimator(
    estimator: Any, *, generate_only: bool = False
) -> list[tuple[Any, Callable[[Any], None]]] | None:
    """Check that a text classifier keeps the contract of `SVETextClassifier`, over all text containers.

    It does for estimators of texts what `sklearn.utils.estimator_checks.check_estimator` does for estimators of
    tables, and checks the same properties as `check_image_estimator`.

    Parameters
    ----------
    estimator : estimator
        An unfitted estimator with a `random_state`, quick to fit. It is cloned for each check.
    generate_only : bool, default=False
        Whether to return the checks instead of running them, for `pytest.mark.parametrize`.

    Returns
    -------
    checks : list of tuple, or None
        With `generate_only`, pairs (estimator, check), each to be run as `check(estimator)`.

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
    return common_checks.run_or_list(estimator, _CHECKS, _SAMPLES, generate_only)


_TEXTS = ["a fine day", "what a bore", "", "  ", "naïve café, 3.5 €", "again and again " * 3] * 3


def _containers():
    """Yield (name, X, no parameters) for each container whose package is installed."""
    yield "tuple", tuple(_TEXTS), {}
    yield "array of objects", np.array(_TEXTS, dtype=object), {}
    yield "array of str", np.array(_TEXTS), {}
    yield "column", np.array(_TEXTS, dtype=object)[:, None], {}
    if hasattr(np.dtypes, "StringDType"):
        yield "array of StringDType", np.array(_TEXTS, dtype=np.dtypes.StringDType()), {}
    try:
        import pandas as pd

        yield "pandas Series", pd.Series(_TEXTS, index=range(5, 5 + len(_TEXTS))), {}
        yield "pandas DataFrame", pd.DataFrame({"text": _TEXTS}), {}
        yield "pandas categories", pd.Series(_TEXTS, dtype="category"), {}
    except ImportError:
        pass
    try:
        import polars as pl

        yield "polars Series", pl.Series(_TEXTS), {}
        yield "polars DataFrame", pl.DataFrame({"text": _TEXTS}), {}
    except ImportError:
        pass


def _upper(texts):
    return [text.upper() for text in texts]


_SAMPLES = common_checks.Samples(
    X=_TEXTS,
    containers=_containers,
    fingerprint=str,
    clean=_upper,
    bad_items=[(bad, []) for bad in (None, float("nan"), 3, b"bytes", ["a", "list"], {"a": 1})],
    bad_inputs=[
        ("one text", ["X must be a list", "one str"]),
        (b"one text", ["X must be a list", "one bytes"]),
        ([], ["X must have at least one"]),
        (3, ["X must be", "got a int"]),
        (None, ["X must be", "got a NoneType"]),
        (np.zeros((3, 2)), ["float64"]),
        (np.array([["a", "b", "c"]]), ["(1, 3)"]),
        ({"a": "b"}, ["X must be", "got a dict"]),
        ((text for text in _TEXTS), ["X must be", "got a generator"]),
        ([["tokens", "of"], ["a", "text"]], ["X[0]", "join"]),
    ],
)


def check_sentence_pairs(estimator, samples):
    """Pairs are tuples or rows of two texts, and both texts count."""
    pairs = list(zip(samples.X, samples.X[::-1], strict=True))
    estimator.fit(pairs, LABELS)
    expected = estimator.predict_proba(pairs)
    same(estimator.predict_proba(np.array(pairs)), expected, "array of shape (n, 2)")
    assert not np.allclose(expected, estimator.predict_proba([(a, "another") for a, _ in pairs])), (
        "second texts matter"
    )
    raises(ValueError, ["single texts", "pairs"], estimator.predict, samples.X)
    raises(TypeError, ["X[1]"], estimator.predict, [pairs[0], "alone"])
    raises(ValueError, ["X[0]", "3"], estimator.predict, [("a", "b", "c")])


_CHECKS = (*common_checks.CHECKS, check_sentence_pairs)
