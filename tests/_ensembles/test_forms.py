"""The exact forms against explicitly rebuilt weights: single layers, whole networks, and the rule that chooses."""

import copy

import pytest
import timm
import torch
from torch import nn

from skve import _ensembles
from skve._backbones import decomposition, layer_selection, trace
from skve._backbones import network as network_module
from skve._ensembles import forms
from tests._ensembles.test_base import CLOSE
from tests.toys import TOYS, HuggingFaceStyle, ReadsWeight, make_backbone, toy_inputs

EXACT = {"rtol": 0, "atol": 1e-10}


def exact_factors(weight, kind):
    """Factors in float64, so that forms can be compared far below float32's rounding."""
    return decomposition.Factors(
        *torch.linalg.svd(decomposition.as_matrix(weight, kind).detach().double(), full_matrices=False)
    )


def rebuilt(factors, log_ratios, kind, shape):
    """The weight by the definition: U diag(sigma * exp(delta)) V^T."""
    return decomposition.from_matrix(
        factors.U @ torch.diag(factors.sigma * log_ratios.exp()) @ factors.Vt, kind, shape
    )


def draw(*shape, seed=1, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def huggingface_conv1d(d_out, d_in):
    from transformers.pytorch_utils import Conv1D

    return Conv1D(d_out, d_in)


LAYERS = {
    "linear wide": (lambda: nn.Linear(7, 5), "linear", (6, 7)),
    "linear tall": (lambda: nn.Linear(5, 9), "linear", (2, 3, 5)),
    "linear without bias": (lambda: nn.Linear(4, 4, bias=False), "linear", (6, 4)),
    "Conv1D": (lambda: huggingface_conv1d(8, 5), "transposed", (2, 3, 5)),
    "1x1": (lambda: nn.Conv2d(4, 6, 1), "convolution", (2, 4, 5, 5)),
    "3x3 padded": (lambda: nn.Conv2d(3, 5, 3, padding=1), "convolution", (2, 3, 6, 6)),
    "strided": (lambda: nn.Conv2d(3, 5, 3, stride=2), "convolution", (2, 3, 7, 7)),
    "dilated": (lambda: nn.Conv2d(3, 5, 3, dilation=2, padding=2), "convolution", (2, 3, 7, 7)),
    "reflected": (lambda: nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"), "convolution", (2, 3, 6, 6)),
    "wide kernel": (lambda: nn.Conv2d(2, 3, (1, 5)), "convolution", (2, 2, 6, 8)),
}


def forward_and_gradients(layer, weight, inputs, log_ratios):
    """Output of a layer with another weight, and the gradients of a fixed function of it."""
    output = torch.func.functional_call(layer, {"weight": weight}, (inputs,))
    loss = (output * torch.cos(torch.arange(output.numel(), dtype=torch.float64)).reshape(output.shape)).sum()
    return output, *torch.autograd.grad(loss, (inputs, log_ratios))


@pytest.fixture(params=LAYERS)
def case(request):
    make, kind, shape = LAYERS[request.param]
    layer = make().double()
    with torch.no_grad():
        layer.weight.copy_(draw(*layer.weight.shape, seed=3))
    layer.weight.requires_grad_(False)
    factors = exact_factors(layer.weight, kind)
    inputs = draw(*shape, seed=5).requires_grad_()
    log_ratios = draw(len(factors.sigma), seed=7, scale=0.5).requires_grad_()
    return layer, kind, factors, inputs, log_ratios


# ------------------------------------------------------------------------------------- the exact forms


def test__fold__any_layer__equals_the_rebuilt_weight_with_gradients(case):
    layer, kind, factors, inputs, log_ratios = case
    expected = forward_and_gradients(
        layer, rebuilt(factors, log_ratios, kind, layer.weight.shape), inputs, log_ratios
    )
    folded = forms.fold(layer.weight, kind, factors, log_ratios)
    for got, wanted in zip(forward_and_gradients(layer, folded, inputs, log_ratios), expected, strict=True):
        torch.testing.assert_close(got, wanted, **EXACT)


def test__two_factor__linear_layers__equals_the_rebuilt_weight_with_gradients(case):
    layer, kind, factors, inputs, log_ratios = case
    if kind == "convolution":
        assert forms.choose_form(kind, 4, 4, 1, training=True) == "folded"  # never in this form
        return
    expected = forward_and_gradients(
        layer, rebuilt(factors, log_ratios, kind, layer.weight.shape), inputs, log_ratios
    )
    output = forms.two_factor(inputs, factors, log_ratios, layer.bias)
    loss = (output * torch.cos(torch.arange(output.numel(), dtype=torch.float64)).reshape(output.shape)).sum()
    got = (output, *torch.autograd.grad(loss, (inputs, log_ratios)))
    for one, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(one, wanted, **EXACT)


def test__fold__zero__weight_bit_for_bit(case):
    layer, kind, _, _, log_ratios = case
    weight = layer.weight.float()
    folded = forms.fold(weight, kind, decomposition.decompose(weight, kind), torch.zeros_like(log_ratios).float())
    assert torch.equal(folded, weight)


def test__fold__channels_last_weight__stays_channels_last():
    weight = torch.randn(6, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    factors = decomposition.decompose(weight, "convolution")
    folded = forms.fold(weight, "convolution", factors, 0.1 * torch.ones(6))
    assert folded.is_contiguous(memory_format=torch.channels_last)


def test__fold__few_directions__others_stay_exact():
    weight = draw(6, 5)
    factors = exact_factors(weight, "linear")
    first = decomposition.Factors(factors.U[:, :2], factors.sigma[:2], factors.Vt[:2])
    log_ratios = torch.tensor([0.3, -0.2], dtype=torch.float64)
    full = torch.cat([log_ratios, torch.zeros(3, dtype=torch.float64)])
    folded = forms.fold(weight, "linear", first, log_ratios)
    torch.testing.assert_close(folded, rebuilt(factors, full, "linear", weight.shape), **EXACT)


# ---------------------------------------------------------------------------------------- choose_form


@pytest.mark.parametrize(
    ("kind", "d_out", "d_in", "n_positions", "training", "form"),
    [
        ("linear", 384, 384, 1000, True, "folded"),
        ("linear", 384, 384, 767, True, "two_factor"),  # fewer positions than 2 min(d)
        ("linear", 384, 384, 768, True, "folded"),
        ("linear", 384, 1536, 10**6, True, "two_factor"),  # long and narrow
        ("linear", 1536, 384, 10**6, True, "two_factor"),
        ("linear", 384, 767, 10**6, True, "folded"),
        ("linear", 384, 768, 10**6, True, "two_factor"),
        ("transposed", 384, 1536, 10**6, True, "two_factor"),
        ("linear", 384, 1536, 1537, False, "folded"),
        ("linear", 384, 1536, 1536, False, "two_factor"),
        ("linear", 384, 384, 10, False, "two_factor"),
        ("convolution", 64, 1024, 1, True, "folded"),
        ("convolution", 64, 1024, 1, False, "folded"),
    ],
)
def test__choose_form__by_counting__cheaper_form(kind, d_out, d_in, n_positions, training, form):
    assert forms.choose_form(kind, d_out, d_in, n_positions, training=training) == form


@pytest.mark.parametrize(
    ("k", "n_positions", "training", "expected"),
    [(32, 512, True, True), (96, 512, True, True), (384, 512, True, False), (96, 10, True, True)]
    + [(32, 512, False, False), (32, 100, False, True)],
)
def test__one_sided_pays__by_counting__where_it_multiplies_less(k, n_positions, training, expected):
    d_out = d_in = 384
    plain, own = n_positions * d_out * d_in, n_positions * k * (d_out + d_in)
    one_sided = 4 * plain + 4 * own if training else 2 * plain + 2 * own
    folded = (6 if training else 2) * plain + (4 if training else 2) * k * d_out * d_in
    assert (one_sided < folded) is expected
    assert forms.one_sided_pays(d_out, d_in, k, n_positions, training=training) is expected


# ---------------------------------------------------------------------------- whole networks, all forms


def adapted(module, inputs, *, n_samples, training, dtype=torch.float64, scale=0.3, train_bias=True):
    """Return (rule, network, member, sites) with a random member installed; float64 factors throughout."""
    backbone = make_backbone(module.to(dtype))
    sites, _ = layer_selection.find_sites(backbone.module)
    parameters = dict(backbone.module.named_parameters())
    for site in sites:
        exact = exact_factors(parameters[site.parameter], site.kind)
        backbone.frozen._factors[site.layer, "singular"] = decomposition.Factors(
            exact.U.to(dtype), exact.sigma.to(dtype), exact.Vt.to(dtype)
        )
    rule = _ensembles.SingularValues(backbone, sites, init_scale=0.0, train_bias=train_bias)
    traced = trace.trace(backbone, rule.changed, inputs, len(inputs))
    network = network_module.Network(backbone)
    rule.prepare(network, traced, n_samples, training=training)
    network.share(traced.shareable)
    member = rule.new_member(torch.Generator().manual_seed(0))
    member = {
        key: (scale * draw(*tensor.shape, seed=seed)).to(dtype).requires_grad_()
        for seed, (key, tensor) in enumerate(member.items())
    }
    return rule, network, member, sites


def rebuilt_module(rule, member, sites, module):
    """Return weights and biases of a member by the definition, as replacements for `functional_call`."""
    parameters = dict(module.named_parameters())
    replaced = {}
    for site in sites:
        factors = rule.backbone.factors(site)
        weight = parameters[site.parameter]
        log_ratios = member["log_ratios." + site.layer]
        replaced[site.parameter] = rebuilt(factors, log_ratios, site.kind, weight.shape)
        if site.bias:
            replaced[site.bias] = parameters[site.bias] + member["bias_offsets." + site.layer]
    return replaced


FORMS = {"training, many": (10**6, True), "training, few": (1, True), "prediction, many": (10**6, False)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("toy", TOYS)
def test__singular_values__whole_network__equals_rebuilt_weights_with_gradients(toy, form):
    n_samples, training = FORMS[form]
    inputs = toy_inputs(dtype=torch.float64)
    module = toy().double().eval()
    rule, network, member, sites = adapted(copy.deepcopy(module), inputs, n_samples=n_samples, training=training)
    rule.install(network, member)
    got = network.features(inputs)
    output = torch.func.functional_call(module, rebuilt_module(rule, member, sites, module), (inputs,))
    wanted = output.mean((2, 3)) if output.dim() == 4 else output.mean(1) if output.dim() == 3 else output
    torch.testing.assert_close(got, wanted, **EXACT)
    weights = torch.sin(torch.arange(got.numel(), dtype=torch.float64)).reshape(got.shape)
    leaves = list(member.values())
    for one, other in zip(
        torch.autograd.grad((got * weights).sum(), leaves),
        torch.autograd.grad((wanted * weights).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other, **EXACT)


@pytest.mark.parametrize("toy", TOYS)
def test__singular_values__prediction_of_one_sample__equals_prediction_of_many(toy):
    """Few positions take the two-factor form; torch's encoder has a fast path that would bypass it."""
    inputs = toy_inputs(dtype=torch.float64)
    features = []
    for n_samples in (1, 10**6):
        rule, network, member, _ = adapted(toy().double(), inputs, n_samples=n_samples, training=False)
        with torch.no_grad():
            rule.install(network, member)
            features.append(network.features(inputs))
    torch.testing.assert_close(features[0], features[1], **EXACT)


@pytest.mark.parametrize("toy", TOYS)
def test__singular_values__zero_in_folded_form__network_bit_for_bit(toy):
    inputs = toy_inputs()
    module = toy().eval()
    rule, network, member, _ = adapted(
        copy.deepcopy(module), inputs, n_samples=10**6, training=False, dtype=torch.float32, scale=0.0
    )
    plain = make_backbone(copy.deepcopy(module))
    with torch.no_grad():
        rule.install(network, member)
        expect_equal(network, network.features(inputs), plain.features(plain.module, inputs))


def expect_equal(network, features, expected):
    """Bit for bit, or to rounding where convolutions have taken over the normalisations behind them."""
    if network.folded:
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    else:
        assert torch.equal(features, expected)


@pytest.mark.parametrize(
    ("name", "size"), [("tf_efficientnet_lite0", 64), ("vit_tiny_patch16_224", 224), ("test_resnet", 64)]
)
def test__singular_values__zero_on_a_timm_model__network_bit_for_bit(name, size):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = make_backbone(timm.create_model(name, pretrained=False, num_classes=0))
    inputs = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    sites, _ = layer_selection.find_sites(backbone.module)
    rule = _ensembles.SingularValues(backbone, sites, init_scale=0.0, train_bias=True)
    traced = trace.trace(backbone, rule.changed, inputs, len(inputs))
    assert {site.parameter for site in sites} <= traced.used
    network = network_module.Network(backbone)
    rule.prepare(network, traced, 10**6, training=False)
    with torch.no_grad():
        rule.install(network, rule.new_member(torch.Generator().manual_seed(0)))
        expect_equal(network, network.features(inputs), backbone.features(backbone.module, inputs))
    assert network.folded == ("vit" not in name)


def test__singular_values__layer_read_and_not_called__never_in_two_factor_form():
    inputs = toy_inputs(dtype=torch.float64)
    rule, network, _, _ = adapted(ReadsWeight(), inputs, n_samples=1, training=True)
    assert set(rule._called) == {"out"}
    assert network.forward_of("out") is rule._called["out"]


def test__singular_values__huggingface_conv1d_with_few_positions__two_factor_form():
    rule, _, _, _ = adapted(HuggingFaceStyle(), toy_inputs(dtype=torch.float64), n_samples=1, training=True)
    assert set(rule._called) == {"c_fc", "c_proj"}


def test__fold__pointwise_convolution__strides_of_channels_last():
    weight = nn.Conv2d(6, 4, 1).to(memory_format=torch.channels_last).weight.detach()
    folded = forms.fold(weight, "convolution", decomposition.decompose(weight, "convolution"), torch.zeros(4))
    assert torch.equal(folded, weight)
    assert folded.stride() == weight.stride() == (6, 1, 6, 6)


CONVOLUTIONS = {
    "strided": lambda: nn.Conv2d(3, 5, 3, stride=2),
    "dilated": lambda: nn.Conv2d(3, 5, 3, dilation=2, padding=2),
    "reflected": lambda: nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"),
    "wide kernel": lambda: nn.Conv2d(3, 4, (1, 5)),
}


@pytest.mark.parametrize("make", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test__scale_channels__convolution__as_scaled_inputs_and_outputs(make):
    layer = make()
    r, s = torch.rand(3) + 0.5, torch.rand(layer.out_channels) + 0.5
    scaled = forms.scale_channels(layer.weight, "convolution", inputs=r, outputs=s)
    x = toy_inputs()
    plain = layer(x * r[:, None, None]) - layer.bias[:, None, None]
    expected = plain * s[:, None, None] + layer.bias[:, None, None]
    torch.testing.assert_close(torch.func.functional_call(layer, {"weight": scaled}, (x,)), expected, **CLOSE)


@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(7, 5), lambda: HuggingFaceStyle().c_proj], ids=["linear", "Conv1D"]
)
def test__scale_channels__linear__as_scaled_inputs_and_outputs(make):
    layer = make()
    kind = "linear" if isinstance(layer, nn.Linear) else "transposed"
    d_out, d_in = decomposition.as_matrix(layer.weight, kind).shape
    r, s, x = torch.rand(d_in) + 0.5, torch.rand(d_out) + 0.5, torch.randn(6, d_in)
    scaled = forms.scale_channels(layer.weight, kind, inputs=r, outputs=s)
    expected = (layer(x * r) - layer.bias) * s + layer.bias
    torch.testing.assert_close(torch.func.functional_call(layer, {"weight": scaled}, (x,)), expected, **CLOSE)


def test__scale_channels__channels_last_and_ones__same_layout_and_bits():
    weight = torch.randn(6, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    scaled = forms.scale_channels(weight, "convolution", inputs=torch.ones(4), outputs=torch.ones(6))
    assert scaled.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(scaled, weight)
