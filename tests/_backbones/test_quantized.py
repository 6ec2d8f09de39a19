"""Weights in eight and four bits: what is quantised, how well, and products with such weights."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from skve._backbones import backbone as backbone_module
from skve._backbones import layer_selection, quantized
from skve._backbones.quantized import QuantizedLinear
from skve.exceptions import BackboneError
from tests.toys import (
    SIDE,
    HuggingFaceStyle,
    ReadsWeight,
    TinyCNN,
    TinyMLP,
    TinyTransformer,
    TorchEncoder,
    seeded,
    toy_inputs,
)

DTYPES = ["int8", "int4"]
LARGEST_ERROR = {"int8": 0.02, "int4": 0.15}  # of a weight of normal numbers, relative


def frozen(module, dtype):
    """Freeze a toy with quantised weights."""
    description = {"kind": "module", "name": "toy", "architecture": None}
    return backbone_module.freeze(module, description, {}, lambda module, inputs: module(inputs), dtype=dtype)


def layer(dtype, d_out=10, d_in=70, seed=0, bias=True):
    plain = seeded(nn.Linear(d_in, d_out, bias=bias), seed)
    return QuantizedLinear(plain.weight.detach(), plain.bias, quantized.BITS[dtype]), plain


# ------------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d_in", [1, 16, 32, 33, 64, 70])
def test__weight__any_number_of_inputs__close_to_the_float_one(dtype, d_in):
    own, plain = layer(dtype, d_in=d_in)
    kept = own.weight.dequantized()
    assert kept.shape == plain.weight.shape == own.weight.shape
    error = torch.linalg.matrix_norm(kept - plain.weight) / torch.linalg.matrix_norm(plain.weight)
    assert error < LARGEST_ERROR[dtype]


@pytest.mark.parametrize(("dtype", "n_levels"), [("int8", 255), ("int4", 16)])
def test__weight__levels_in_a_group__as_many_as_the_bits_have(dtype, n_levels):
    own, _ = layer(dtype, d_out=1, d_in=quantized.GROUP)
    assert len(own.weight.dequantized().unique()) <= min(n_levels, quantized.GROUP)
    steps = own.weight.dequantized() / own.scales.float()
    torch.testing.assert_close(steps, steps.round())


def test__four_bits__scales_of_least_squares__closer_than_those_of_the_largest_number():
    own, plain = layer("int4", d_out=50, d_in=320)
    groups = plain.weight.detach().unflatten(1, (-1, quantized.GROUP))
    scales = groups.abs().amax(2, keepdim=True) / 7
    simple = ((groups / scales).round() * scales).flatten(1)
    assert (own.weight.dequantized() - plain.weight).norm() < 0.9 * (simple - plain.weight).norm()


@pytest.mark.parametrize("dtype", DTYPES)
def test__weight__zeros_and_huge_and_tiny_rows__finite_and_in_proportion(dtype):
    weight = torch.randn(4, 40, generator=torch.Generator().manual_seed(0))
    weight[0], weight[1], weight[2] = 0, weight[1] * 1e30, weight[2] * 1e-30
    kept = QuantizedLinear(weight, None, quantized.BITS[dtype]).weight.dequantized()
    assert torch.equal(kept[0], weight[0])
    kept, weight = kept.double(), weight.double()
    assert ((kept - weight).norm(dim=1)[1:] < LARGEST_ERROR[dtype] * weight.norm(dim=1)[1:]).all()


@pytest.mark.parametrize(("dtype", "most"), [("int8", 0.26), ("int4", 0.15)])
def test__bytes__of_a_wide_layer__a_quarter_and_a_seventh_of_float32(dtype, most):
    own, plain = layer(dtype, d_out=256, d_in=512, bias=False)
    assert sum(tensor.nbytes for tensor in own.state_dict().values()) < most * plain.weight.nbytes


# ----------------------------------------------------------------------------------------------- products


@pytest.mark.parametrize("tile", [2**20, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test__product__float32__that_of_the_dequantised_weight_with_its_gradient(monkeypatch, dtype, tile):
    monkeypatch.setattr(quantized, "_TILE", tile)
    own, _ = layer(dtype, d_out=37)
    inputs = torch.randn(2, 5, 70, dtype=torch.float32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    weight = own.weight.dequantized()
    output, expected = own(inputs), F.linear(inputs, weight, own.bias)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    (found,) = torch.autograd.grad(output.square().sum(), inputs)
    (wanted,) = torch.autograd.grad(expected.square().sum(), inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test__product__in_autocast__bfloat16_near_float32_and_gradients_of_the_inputs_dtype(dtype):
    own, _ = layer(dtype)
    inputs = torch.randn(5, 70, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = own(inputs)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), own(inputs), rtol=0.02, atol=0.05)
    output.float().sum().backward()
    assert inputs.grad.dtype == torch.float32
    torch.testing.assert_close(inputs.grad, own.weight.dequantized().sum(0).expand(5, -1), rtol=0.02, atol=0.05)


@pytest.mark.parametrize("dtype", DTYPES)
def test__product__under_vmap__each_as_alone(dtype):
    own, _ = layer(dtype)
    inputs = torch.randn(3, 5, 70, generator=torch.Generator().manual_seed(1))
    gradient = torch.func.vmap(torch.func.grad(lambda one: own(one).square().sum()))
    torch.testing.assert_close(torch.func.vmap(own)(inputs), own(inputs))
    inputs.requires_grad_()
    (expected,) = torch.autograd.grad(own(inputs).square().sum(), inputs)
    torch.testing.assert_close(gradient(inputs.detach()), expected)


def test__product__graph__keeps_no_unpacked_weight():
    own, plain = layer("int8", d_out=64, d_in=64)
    kept = []

    def pack(tensor):
        kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        own(torch.randn(2, 64).requires_grad_())
    assert 0 < sum(kept) < plain.weight.nbytes


@pytest.mark.parametrize("dtype", DTYPES)
def test__weight__used_in_any_other_way__as_the_dequantised_tensor(dtype):
    own, _ = layer(dtype)
    weight, dense = own.weight, own.weight.dequantized()
    inputs = torch.randn(5, 70)
    assert torch.equal(inputs @ weight.T, inputs @ dense.T)
    assert torch.equal(torch.matmul(inputs, weight.t()), inputs @ dense.t())
    assert torch.equal(weight[:3], dense[:3])
    assert torch.equal(2 * weight - weight * inputs[0], 2 * dense - dense * inputs[0])
    assert torch.equal(weight @ inputs.T, dense @ inputs.T)
    assert len(weight) == len(dense)
    assert torch.equal(torch.cat([weight, weight]), torch.cat([dense, dense]))
    assert torch.equal(F.linear(weight, dense), F.linear(dense, dense))
    assert (weight.dtype, weight.dim(), weight.numel()) == (dense.dtype, dense.dim(), dense.numel())
    assert weight.device == dense.device
    assert torch.equal(copy.deepcopy(weight).dequantized(), dense)


# -------------------------------------------------------------------------------------- what is quantised


QUANTIZED = {
    TinyMLP: ["fc1", "fc2"],
    TinyTransformer: ["blocks.0.fc1", "blocks.0.fc2", "blocks.1.fc1", "blocks.1.fc2"],
    TorchEncoder: ["layer.linear1", "layer.linear2"],
    ReadsWeight: ["lin", "out"],
    HuggingFaceStyle: ["c_fc", "c_proj"],
}
FLOAT = {
    TinyTransformer: ["patch_embed"] + [f"blocks.{i}.attn{part}" for i in (0, 1) for part in ("", ".out_proj")],
    TorchEncoder: ["patch_embed", "layer.self_attn", "layer.self_attn.out_proj"],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("toy", QUANTIZED)
def test__freeze__layers__plain_linear_ones_quantised_and_all_others_named(toy, dtype):
    backbone = frozen(toy(), dtype)
    modules = dict(backbone.module.named_modules())
    assert [name for name in modules if isinstance(modules[name], QuantizedLinear)] == QUANTIZED[toy]
    assert sorted(backbone.description["float_layers"]) == sorted(FLOAT.get(toy, []))
    sites = {site.layer: site for site in layer_selection.find_sites(backbone.module)[0]}
    assert sites.keys() >= set(QUANTIZED[toy])
    assert all(sites[name].kind == "linear" for name in QUANTIZED[toy])


@pytest.mark.parametrize("toy", QUANTIZED)
def test__forward__all_toys__that_of_the_float_module_with_dequantised_weights(toy):
    backbone = frozen(toy(), "int8")
    plain = backbone.dequantized().module
    assert not any(isinstance(part, QuantizedLinear) for part in plain.modules())
    with torch.no_grad():
        output, expected = backbone.module(toy_inputs()), plain(toy_inputs())
        original = toy().eval()(toy_inputs())
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output, original, rtol=0.1, atol=0.1)


def test__freeze__layers_with_hooks_and_of_subclasses__stay_float():
    class Own(nn.Linear):
        pass

    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), Own(8, 8))
    module[0].register_forward_hook(lambda module, args, output: 2 * output)
    backbone = frozen(module, "int8")
    assert backbone.description["float_layers"] == ["0", "2"]
    assert isinstance(backbone.module[1], QuantizedLinear)


@pytest.mark.parametrize("module", [TinyCNN(), nn.Linear(4, 4), nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4))])
def test__freeze__no_layer_to_quantise__says_what_stays_float(module):
    with pytest.raises(BackboneError, match=r"8 bits for backbone_dtype='int8', got a .* which has none.*='float32'"):
        frozen(copy.deepcopy(module), "int8")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test__freeze__weights_that_are_not_finite__named(value):
    module = TinyMLP()
    with torch.no_grad():
        module.fc2.weight[1, 2] = value
    with pytest.raises(BackboneError, match="finite weights for backbone_dtype='int4', got NaN or infinity in 'fc2'"):
        frozen(module, "int4")


def test__hash__of_one_changed_value__another():
    first = frozen(TinyMLP(), "int8")
    second = frozen(TinyMLP(), "int8")
    other = frozen(TinyMLP(seed=1), "int8")
    assert first.description["sha256"] == second.description["sha256"] != other.description["sha256"]


# --------------------------------------------------------------------------------------------- directions


@pytest.mark.parametrize("shape", [(384, 384), (1536, 384), (384, 1536), (4096, 11008), (8, 8), (1, 1), (2, 300)])
def test__n_directions__their_products__a_quarter_of_the_layers(shape):
    d_out, d_in = shape
    k = quantized.n_directions(shape)
    assert 1 <= k <= min(shape)
    assert k == 1 or k * (d_out + d_in) <= d_out * d_in / 4 < (k + 1) * (d_out + d_in)


@pytest.mark.parametrize("basis", ["singular", "random"])
def test__factors__of_a_quantised_weight__the_leading_ones_of_the_dequantised_weight(basis):
    backbone = frozen(TinyMLP(), "int8")
    plain = backbone.dequantized()
    for site in layer_selection.find_sites(backbone.module)[0]:
        weight = backbone.weight(site).dequantized()
        factors = backbone.factors(site, basis)
        k = quantized.n_directions(weight.shape)
        assert (factors.U.dtype, factors.U.shape) == (torch.bfloat16, (len(weight), k))
        assert factors.Vt.shape == (k, weight.shape[1])
        # W V = U diag(sigma), for the decomposition and for any other orthonormal basis.
        image = weight @ factors.Vt.float().T
        torch.testing.assert_close(factors.U.float() * factors.sigma, image, rtol=0.02, atol=0.02)
        wide = plain.factors(site, basis)
        assert torch.equal(wide.U, factors.U.float())
        if basis == "singular":
            torch.testing.assert_close(factors.sigma, torch.linalg.svdvals(weight)[:k], rtol=1e-4, atol=1e-5)


def test__memory__weights_and_factors__an_eighth_of_those_in_float32():
    module = nn.Sequential(nn.Linear(96, 96, bias=False), nn.Tanh(), nn.Linear(96, 96, bias=False))
    sizes = {}
    for dtype in ("float32", *DTYPES):
        backbone = frozen(copy.deepcopy(module), dtype)
        for site in layer_selection.find_sites(backbone.module)[0]:
            backbone.factors(site)
        sizes[dtype] = backbone.nbytes
    assert sizes["int8"] < 0.13 * sizes["float32"]
    assert sizes["int4"] < 0.1 * sizes["float32"]


def test__copy_on_another_device__weight__there():
    backbone = frozen(TinyMLP(), "int4")
    moved = copy.deepcopy(backbone.module).to("meta")
    assert (moved.fc1.weight.device.type, backbone.module.fc1.weight.device.type) == ("meta", "cpu")
    assert moved.fc1.weight.dequantized().shape == (20, 3 * SIDE * SIDE)
    assert repr(moved.fc1).endswith("bits=4)")


def test__dequantized__factors__are_not_computed_again(monkeypatch):
    backbone = frozen(TinyTransformer(), "int8")
    known = {site.layer: backbone.factors(site) for site in layer_selection.find_sites(backbone.module)[0]}
    monkeypatch.setattr(backbone_module.decomposition, "decompose", None)  # fails where it is called
    wide = backbone.dequantized()
    found = {site.layer: wide.factors(site) for site in layer_selection.find_sites(wide.module)[0]}
    assert found.keys() == known.keys()
    assert all(torch.equal(found[layer].U, known[layer].U.float()) for layer in known)
