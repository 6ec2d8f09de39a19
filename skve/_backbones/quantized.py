"""Linear layers whose weights are kept in eight or four bits, and products with such weights."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

from skve._backbones import decomposition
from skve._runtime.device import dtype_of_products
from skve.exceptions import BackboneError

BITS = {"int8": 8, "int4": 4}
GROUP = 32  # inputs of an output that share a scale in four bits; in eight bits all of them do
_ROUNDS = 3  # of least squares, behind which the scales of four bits hardly move
_TILE = 2**20  # numbers of a weight that a product unpacks at a time
SHARE = 4  # members' directions may take one part in so many of a layer's multiply-adds


def quantize(module, sites, dtype):
    """Keep the weights of a module's linear layers in few bits, in place.

    All else stays as it is: embeddings, normalisations, convolutions, poolers and heads, layers of other classes such
    as `MultiheadAttention`, and those with hooks.

    Parameters
    ----------
    module : torch.nn.Module
        In float32, on the CPU.
    sites : list of Site
        The weights that can be adapted.
    dtype : {"int8", "int4"}

    Raises
    ------
    BackboneError
        If no layer can be kept in few bits, or a weight is not finite.
    """
    n_quantized = 0
    for site in sites:
        layer = module.get_submodule(site.layer)
        is_plain = type(layer) is nn.Linear or site.kind == "transposed"
        if layer is module or not is_plain or _has_hooks(layer):
            continue
        weight = decomposition.as_matrix(layer.weight.detach(), site.kind)
        if not bool(weight.is_meta or torch.isfinite(weight).all()):
            raise BackboneError(
                f"backbone must have finite weights for backbone_dtype={dtype!r}, got NaN or infinity in "
                f"{site.layer!r}. Replace a damaged copy of the weights."
            )
        parent, _, name = site.layer.rpartition(".")
        setattr(module.get_submodule(parent), name, QuantizedLinear(weight, layer.bias, BITS[dtype]))
        n_quantized += 1
    if not n_quantized:
        raise BackboneError(
            f"backbone must have linear layers whose weights can be kept in {BITS[dtype]} bits for "
            f"backbone_dtype={dtype!r}, got a {type(module).__name__}, which has none. Convolutions, embeddings and "
            f"normalisations stay float: use backbone_dtype='float32'."
        )


def float_layers(module):
    """Return the names of the modules that have float matrices."""
    return [
        name
        for name, part in module.named_modules()
        if not isinstance(part, QuantizedLinear)
        and any(parameter.dim() > 1 for parameter in part.parameters(recurse=False))
    ]


def _has_hooks(layer):
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)


def dequantize(module):
    """Give a module plain linear layers with float32 weights in place of quantised ones; return it."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, QuantizedLinear):
            plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
            plain.weight = nn.Parameter(layer.weight.dequantized(), requires_grad=False)
            plain.bias = layer.bias
            parent, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(parent), attribute, plain.eval())
    return module


def n_directions(shape):
    """Return how many directions of a weight (d_out, d_in) members own: as many as the bound of `SHARE` allows.

    They take `k (d_out + d_in)` multiply-adds for each row, the layer itself `d_out d_in`. The bound decides, and not
    their energy: the leading directions that it allows hold a third to two thirds of a transformer's, and 90 % take
    three times as many.
    """
    d_out, d_in = shape
    return max(1, d_out * d_in // (SHARE * (d_out + d_in)))


class QuantizedLinear(nn.Linear):
    """A linear layer whose `weight` is a `QuantizedWeight`.

    Attributes
    ----------
    values : torch.Tensor of int8
        Eight bits: (d_out, d_in). Four bits: (d_out, n_groups, GROUP / 2), two values in each byte.
    scales : torch.nn.Parameter of shape (d_out, n_groups)
        What the values are multiplied by. Gradients of it are never wanted, but tell what depends on the layer.
    """

    values: torch.Tensor
    scales: nn.Parameter

    def __init__(self, weight, bias, bits):
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.bits = bits
        values, scales = (in_eight_bits if bits == 8 else _in_four_bits)(weight)
        self.register_buffer("values", values)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.bias = bias

    @property
    def weight(self):  # type: ignore[override]  # nobody writes to it
        """The weight as it is at present."""
        return QuantizedWeight(self.values, self.scales, (self.out_features, self.in_features))

    def extra_repr(self):
        return f"{super().extra_repr()}, bits={self.bits}"


class QuantizedWeight:
    """What a `QuantizedLinear` has for a weight: `linear` multiplies by it part by part, all else unpacks it at once.

    So it works in whatever a network makes of `layer.weight`.

    Parameters
    ----------
    values, scales : torch.Tensor
        See `QuantizedLinear`.
    shape : tuple of int
        (d_out, d_in).
    """

    dtype = torch.float32

    def __init__(self, values, scales, shape):
        self.values, self.scales, self.shape = values, scales, torch.Size(shape)

    @property
    def device(self):
        return self.values.device

    def dim(self):
        return len(self.shape)

    def numel(self):
        return self.shape.numel()

    def dequantized(self):
        """Return the weight as a float32 matrix (d_out, d_in)."""
        return _unpack(self.values, self.scales, self.shape[1], torch.float32)

    def product(self, inputs, bias=None):
        """Return `inputs @ W^T + bias`, in the dtype in which matrices are multiplied at present."""
        inputs = inputs.to(dtype_of_products(inputs.device, inputs.dtype))
        output = _Product.apply(inputs, self.values, self.scales)
        return output if bias is None else output + bias.to(output.dtype)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            return _linear(*args, **(kwargs or {}))

        def unpacked(value):
            return value.dequantized() if isinstance(value, QuantizedWeight) else value

        args, kwargs = pytree.tree_map(unpacked, (args, kwargs or {}))
        return func(*args, **kwargs)

    def __getattr__(self, name):
        if name.startswith("__"):  # copies and pickles of this object itself
            raise AttributeError(name)
        return getattr(self.dequantized(), name)


for _operator in (
    "getitem",
    "len",
    "add",
    "radd",
    "sub",
    "rsub",
    "mul",
    "rmul",
    "truediv",
    "neg",
    "matmul",
    "rmatmul",
):

    def _apply(self, *args, name=f"__{_operator}__"):  # Python looks these up in the class only
        return getattr(self.dequantized(), name)(*args)

    setattr(QuantizedWeight, f"__{_operator}__", _apply)


def _linear(input, weight, bias=None):
    if isinstance(weight, QuantizedWeight) and isinstance(input, torch.Tensor):
        return weight.product(input, bias)
    wide = (value.dequantized() if isinstance(value, QuantizedWeight) else value for value in (input, weight, bias))
    return F.linear(*wide)


class _Product(torch.autograd.Function):
    """`x @ W^T`, whose graph keeps the weight as it is kept and not unpacked."""

    generate_vmap_rule = True

    @staticmethod
    def forward(inputs, values, scales):
        d_in = inputs.shape[-1]
        tiles = _tiles(values, scales, d_in)
        parts = [inputs @ _unpack(own, steps, d_in, inputs.dtype).T for own, steps in tiles]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.d_in = inputs[0].shape[-1]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx, gradient):
        if not ctx.needs_input_grad[0]:
            return None, None, None
        values, scales = ctx.saved_tensors
        total, start = 0, 0
        for own, steps in _tiles(values, scales, ctx.d_in):
            part = gradient[..., start : start + len(own)]
            total = total + part @ _unpack(own, steps, ctx.d_in, gradient.dtype)
            start += len(own)
        return total, None, None


def _tiles(values, scales, d_in):
    """Split a weight by its outputs into parts (values, scales)."""
    n_rows = max(1, _TILE // d_in)
    return list(zip(values.split(n_rows), scales.split(n_rows), strict=True))


def _unpack(values, scales, d_in, dtype):
    """Return rows of a weight as numbers (n_rows, d_in)."""
    if values.dim() == 2:
        return values.to(dtype) * scales.to(dtype)
    low, high = (values << 4) >> 4, values >> 4  # the shift to the right keeps the sign
    groups = torch.cat([low, high], -1).to(dtype) * scales.to(dtype)[:, :, None]
    return groups.flatten(1)[:, :d_in]


def in_eight_bits(weight):
    """Return the int8 values of a matrix (d_out, d_in), and the scale of each row, (d_out, 1)."""
    scales = (weight.abs().amax(1, keepdim=True) / 127).clamp_min(torch.finfo(torch.float32).tiny)
    return (weight / scales).round().clamp(-127, 127).to(torch.int8), scales


def _in_four_bits(weight):
    """Return values and scales, of which each group has the one that leaves the least squares of errors.

    It starts where the number of the largest magnitude becomes -8, the value without a counterpart.
    """
    groups = F.pad(weight, (0, -weight.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    scales = -groups.gather(2, groups.abs().argmax(2, keepdim=True)) / 8
    for _ in range(_ROUNDS):
        values = _rounded(groups, scales)
        squares = values.square().sum(2, keepdim=True)
        scales = torch.where(squares > 0, (groups * values).sum(2, keepdim=True) / squares, scales)
    scales = scales.to(torch.bfloat16)
    values = _rounded(groups, scales.float()).to(torch.int8)
    low, high = values.chunk(2, 2)
    return (low & 15) | (high << 4), scales.squeeze(2)


def _rounded(groups, scales):
    return torch.where(scales == 0, 0.0, groups / scales).round().clamp(-8, 7)
