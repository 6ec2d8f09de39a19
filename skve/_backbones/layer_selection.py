"""Which weights of a backbone are adapted. Pure functions."""

import dataclasses
import re

from torch import nn

from skve._backbones.quantized import QuantizedLinear
from skve._runtime.wording import listed

# A module of such a name or class embeds the input, pools, or is a language-model head: never adapted.
_EMBED = re.compile(r"embed", re.IGNORECASE)
_NEVER = re.compile(r"pooler|attn_pool|attention_pool|lm_head|^vocab_|^wte$|^wpe$", re.IGNORECASE)
_NEVER_CLASS = re.compile(r"(Prediction|LM)Head$|AttentionPool|AttnPool")
_ATTENTION = re.compile(r"attn|attention|qkv", re.IGNORECASE)
_MLP = re.compile(r"mlp|ffn|feed_?forward|intermediate|densereludense", re.IGNORECASE)


_LAYERS = "'all', 'attention', 'mlp', 'last:k' (the last k blocks), a regular expression or a list of names"


@dataclasses.dataclass(frozen=True)
class Site:
    """One weight of a backbone that can be adapted.

    Attributes
    ----------
    layer : str
        Name of the module, as in `named_modules()`; what users see and select.
    parameter : str
        Full name of the weight; of a quantised one, of its scales, which gradients can flow to.
    bias : str or None
        Full name of the bias that belongs to it.
    kind : {"linear", "transposed", "convolution"}
        How the weight becomes a (d_out, d_in) matrix: as it is, transposed (Hugging Face's Conv1D), or
        flattened to (out, in * kh * kw).
    """

    layer: str
    parameter: str
    bias: str | None
    kind: str


def is_huggingface_conv1d(module):
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


def _weight_of(module):
    """Return (attribute of the weight, attribute of the bias, kind) of a module that holds one, else None."""
    if isinstance(module, nn.MultiheadAttention):
        return ("in_proj_weight", "in_proj_bias", "linear")
    if isinstance(module, QuantizedLinear):
        return ("scales", "bias", "linear")
    if isinstance(module, nn.Linear):
        return ("weight", "bias", "linear")
    if isinstance(module, nn.Conv2d):
        return ("weight", "bias", "convolution") if module.groups == 1 else None
    return ("weight", "bias", "transposed") if is_huggingface_conv1d(module) else None


def _multiplies_otherwise(module):
    """Say whether a module of another kind multiplies by matrices: recurrent layers, Conv1d, CondConv2d, ..."""
    if isinstance(module, nn.Conv2d | nn.Embedding | nn.EmbeddingBag) or "Norm" in type(module).__name__:
        return False
    weights = [p for name, p in module._parameters.items() if p is not None and name.startswith("weight")]
    # A weight of one row or column (a convolution along the channels) has one singular value: little is lost.
    return getattr(module, "groups", 1) == 1 and any(p.dim() >= 2 and min(p.flatten(1).shape) > 1 for p in weights)


def find_sites(model):
    """Find every weight that may be adapted, and the layers that look like it but cannot be.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    sites : list of Site
        In the order of `named_modules()`.
    skipped : dict of str to str
        Layer name to the reason why it cannot be adapted (a parametrised, quantised or tied weight, a recurrent
        layer, ...).
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    owners: dict[int, list[str]] = {}
    for name, module in modules.items():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(name)
    sites, skipped = [], {}
    for name, module in modules.items():
        found = _weight_of(module)
        if found is None:
            if _multiplies_otherwise(module) and not _is_never_adapted(name, modules):
                skipped[name] = f"a {type(module).__name__}: only linear layers and 2-D convolutions are adapted"
            continue
        if _is_never_adapted(name, modules):
            continue
        weight_name, bias_name, kind = found
        weight = module._parameters.get(weight_name)
        if weight is None:
            if getattr(module, weight_name, None) is not None:
                skipped[name] = "its weight is parametrised or not an ordinary parameter"
            elif isinstance(module, nn.MultiheadAttention):
                skipped[name] = "its query, key and value projections are three weights"
        elif not weight.is_floating_point() or weight.dim() < 2:
            skipped[name] = f"its weight is stored as {weight.dtype}"
        elif len(owners[id(weight)]) > 1:
            skipped[name] = f"its weight is tied: {', '.join(owners[id(weight)])} share it"
        else:
            prefix = f"{name}." if name else ""
            has_bias = module._parameters.get(bias_name) is not None
            sites.append(Site(name, prefix + weight_name, prefix + bias_name if has_bias else None, kind))
    return sites, skipped


def _ancestors(name):
    """Yield the module names on the path to `name`, itself included, outermost first."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        yield ".".join(parts[:end])


def _is_never_adapted(name, modules):
    """Say whether a layer embeds, pools or predicts words; a whole network may be named an embedder, though."""
    for path in _ancestors(name):
        own, kind = path.rsplit(".", 1)[-1], type(modules[path]).__name__
        if _NEVER.search(own) or _NEVER_CLASS.search(kind):
            return True
        if (_EMBED.search(own) or _EMBED.search(kind)) and _count_weights(modules[path]) <= 2:
            return True
    return False


def _matches(name, modules, pattern):
    return any(
        pattern.search(path.rsplit(".", 1)[-1]) or pattern.search(type(modules[path]).__name__)
        for path in _ancestors(name)
    )


def _block_of(name, modules):
    """Return the block that a layer belongs to: the innermost numbered module with two weights or more.

    Numbered modules of different classes side by side (attention and MLP of T5) are parts of one block.
    """
    found = None
    for path in _ancestors(name):
        parent = modules[path.rpartition(".")[0]]
        inside_container = isinstance(parent, nn.Sequential | nn.ModuleList)
        is_container = type(modules[path]) in (nn.Sequential, nn.ModuleList)
        if inside_container and not is_container:
            siblings = {type(module) for module in parent if _count_weights(module) >= 2}
            if _count_weights(modules[path]) >= 2 and (found is None or len(siblings) == 1):
                found = path
    return found


def _count_weights(module):
    return sum(isinstance(m, nn.Linear | nn.Conv2d) or is_huggingface_conv1d(m) for m in module.modules())


def blocks(model, sites):
    """Return the names of the blocks (see `select_sites`, "last:k") that hold the sites, in their order."""
    modules = dict(model.named_modules(remove_duplicate=False))
    return list(dict.fromkeys(block for site in sites if (block := _block_of(site.layer, modules)) is not None))


def select_sites(model, sites, layers):
    """Select the weights that `layers` names.

    Parameters
    ----------
    model : torch.nn.Module
    sites : list of Site
        The candidates, from `find_sites`.
    layers : str or list of str
        "all"; "attention"; "mlp"; "last:k", the last k blocks; a regular expression that is searched in the
        layer names; or a list of layer names.

    Returns
    -------
    list of Site

    Raises
    ------
    ValueError
        If nothing matches (the message lists the candidates), a listed name is no candidate, k is not a
        positive number of existing blocks, or the regular expression is broken.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    names = [site.layer for site in sites]
    if not isinstance(layers, str):
        chosen_names = list(layers)
        unknown = [name for name in chosen_names if name not in names]
        if unknown or not chosen_names:
            raise ValueError(
                f"layers must name layers of this backbone that can be adapted, got {unknown!r}. {_candidates(names)}"
            )
        return [site for site in sites if site.layer in set(chosen_names)]
    if layers == "all":
        chosen = sites
    elif layers.startswith("last:"):
        chosen = _select_last_blocks(modules, sites, layers)
    elif layers in ("attention", "mlp"):
        attention = {name for name in names if _matches(name, modules, _ATTENTION)}
        if layers == "attention":
            chosen = [site for site in sites if site.layer in attention]
        else:  # in a transformer block, what is not attention is the MLP, whatever its name
            blocks = {_block_of(name, modules) for name in attention} - {None}
            chosen = [
                site
                for site in sites
                if site.layer not in attention
                and (_matches(site.layer, modules, _MLP) or _block_of(site.layer, modules) in blocks)
            ]
    else:
        try:
            pattern = re.compile(layers)
        except re.error as error:
            raise ValueError(
                f"layers must be {_LAYERS}, got {layers!r}, which is no valid regular expression: {error}."
            ) from error
        chosen = [site for site in sites if pattern.search(site.layer)]
    if not chosen:
        hint = f"Use {_LAYERS}. " if names else ""
        raise ValueError(
            f"layers must match a layer of this backbone, got {layers!r}, which matches none. {hint}"
            f"{_candidates(names)}"
        )
    return chosen


def _select_last_blocks(modules, sites, layers):
    blocks = {site.layer: _block_of(site.layer, modules) for site in sites}
    if not any(blocks.values()):  # a plain stack of layers: each is a block
        blocks = {site.layer: site.layer for site in sites}
    order = list(dict.fromkeys(block for block in blocks.values() if block is not None))
    count = layers.removeprefix("last:")
    if not count.isdigit() or not 1 <= int(count) <= len(order):
        raise ValueError(
            f"layers='last:k' must have an integer k from 1 to {len(order)}, the number of blocks of this backbone, "
            f"got {layers!r}."
        )
    last = set(order[-int(count) :])
    return [site for site in sites if blocks[site.layer] in last]


def _candidates(names):
    if not names:
        return "The backbone has no linear layer or ungrouped convolution that can be adapted."
    return f"The layers are {listed(names, 10)}."
