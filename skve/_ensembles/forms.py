"""The exact forms of an adapted layer, and the rule that chooses one."""

import torch
import torch.nn.functional as F
import torch.utils.checkpoint

from skve._backbones.decomposition import from_matrix


def fold(weight, kind, factors, log_ratios):
    """Build a member's weight, `W + U diag(sigma * expm1(delta)) V^T`: `W` bit for bit at `delta = 0`.

    Parameters
    ----------
    weight : torch.Tensor
        Pretrained weight, in the layout of its module.
    kind : {"linear", "transposed", "convolution"}
    factors : Factors
    log_ratios : torch.Tensor of shape (r,)
        `delta`, the logarithm of each singular value's ratio to its pretrained value.

    Returns
    -------
    torch.Tensor
        Same shape, dtype and memory layout as `weight`.
    """
    return add_change(weight, kind, (factors.U * (factors.sigma * torch.expm1(log_ratios))) @ factors.Vt)


def add_change(weight, kind, change):
    """Return a weight plus a (d_out, d_in) matrix, in the weight's shape, dtype and memory layout."""
    # The sum takes the memory layout of its first term.
    folded = (weight + from_matrix(change, kind, weight.shape)).to(weight.dtype)
    if kind == "convolution" and weight.shape[2:] == (1, 1):
        # Memory cannot tell the layouts of a pointwise kernel apart, strides do, and the sum forgets them. Those of
        # channels_last, in which backbones are kept: others make torch take another kernel, with another rounding.
        return folded.flatten(1)[:, None, None, :].permute(0, 3, 1, 2)
    return folded


def scale_channels(weight, kind, *, inputs=None, outputs=None):
    """Return a weight with its input channels, its output channels or both multiplied by one factor each.

    Parameters
    ----------
    weight : torch.Tensor
        In the layout of its module.
    kind : {"linear", "transposed", "convolution"}
    inputs : torch.Tensor of shape (n_inputs,), or None
    outputs : torch.Tensor of shape (n_outputs,), or None

    Returns
    -------
    torch.Tensor
        Same shape, dtype and memory layout as `weight`.
    """
    scaled = weight
    input_axis = 0 if kind == "transposed" else 1
    for factors, axis in ((inputs, input_axis), (outputs, 1 - input_axis)):
        if factors is not None:
            shape = [1] * weight.dim()
            shape[axis] = -1
            scaled = scaled * factors.reshape(shape)
    return scaled.to(weight.dtype)


def two_factor(inputs, factors, log_ratios, bias=None):
    """Apply a member's linear layer without building its weight: `U((sigma * exp(delta)) * (V^T x)) + b`."""
    scaled = F.linear(inputs, factors.Vt) * (factors.sigma * torch.exp(log_ratios)).to(inputs.dtype)
    return F.linear(scaled, factors.U, bias)


def one_sided(inputs, weight, factors, log_ratios, bias=None):
    """Apply a linear layer as the pretrained one plus a member's change: `W x + U((sigma * expm1(delta)) * V^T x)`.

    Unlike in `two_factor`, the factors need not make up the whole weight (d_out, d_in).
    """
    scaled = F.linear(inputs, factors.Vt) * (factors.sigma * torch.expm1(log_ratios)).to(inputs.dtype)
    return F.linear(inputs, weight, bias) + F.linear(scaled, factors.U)


def choose_form(kind, d_out, d_in, n_positions, *, training):
    """Choose the cheaper form of a layer, by counting multiply-adds.

    With N positions and r = min(d), a training step costs `4 N r (d_out + d_in)` in two-factor form and
    `6 N d_out d_in + 4 r d_out d_in` folded. The closed rule: two-factor where the weight is at least twice as
    long as wide or the positions are few. Feature maps have many positions and narrow weights: always folded.
    In prediction a folded weight serves all positions, and only few of them do not pay for folding.

    Parameters
    ----------
    kind : {"linear", "transposed", "convolution"}
    d_out, d_in : int
    n_positions : float
        Rows (samples times tokens) that the layer multiplies between two changes of its weight.
    training : bool

    Returns
    -------
    {"folded", "two_factor"}
    """
    short, long = min(d_out, d_in), max(d_out, d_in)
    if kind == "convolution":
        return "folded"
    if not training:
        return "folded" if n_positions > long else "two_factor"
    return "two_factor" if long >= 2 * short or n_positions < 2 * short else "folded"


def one_sided_pays(d_out, d_in, k, n_positions, *, training):
    """Say whether a linear layer is cheaper one-sided, with k directions, than folded, by counting multiply-adds.

    With N positions a training step costs `4 N d_out d_in + 4 N k (d_out + d_in)` one-sided and
    `6 N d_out d_in + 4 k d_out d_in` folded; a prediction saves the folding, `2 k d_out d_in`, and pays
    `2 N k (d_out + d_in)`.
    """
    extra, folding = n_positions * k * (d_out + d_in), k * d_out * d_in
    return 2 * extra < n_positions * d_out * d_in + 2 * folding if training else extra < folding
