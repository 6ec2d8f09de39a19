"""Each member rule against its definition: single layers, rebuilt plain networks, and what a fit makes of it."""

import copy
import hashlib

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from torch import nn

import skve
from skve import _ensembles
from skve._backbones import decomposition, layer_selection, trace
from skve._backbones import network as network_module
from skve._ensembles import forms
from tests.toys import (
    TOYS,
    HuggingFaceStyle,
    ReadsWeight,
    TinyCNN,
    TinyMLP,
    TinyTransformer,
    arrays_of,
    make_backbone,
    same_arrays,
    seeded,
    toy_classifier,
    toy_inputs,
)

LAYER_RULES = [
    ("scale", {}),
    ("bias", {}),
    ("lora", {"rank": 2, "scale": 0.7, "gain": 1.0}),
    ("batch", {"init": "normal"}),
    ("batch", {"init": "signs"}),
    ("sve", {"basis": "random"}),
    ("sve+lora", {"rank": 2, "gain": 1.0}),
]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def network_of(module, ensemble, options, *, training=True, n_positions=4, train_bias=True, init_scale=0.3):
    """A rule, its network and a random member, on a module that is given away."""
    backbone = make_backbone(module)
    sites, _ = layer_selection.find_sites(backbone.module)
    settings = {"init_scale": init_scale, "train_bias": train_bias, "ensemble_params": options}
    rule = _ensembles.make_rule(ensemble, backbone, sites, **settings)
    rule.noise = torch.Generator().manual_seed(7)
    traced = trace.trace(backbone, rule.changed, toy_inputs(), 4, rule.added)
    assert {rule.main_parameter(site) for site in sites} <= traced.used
    network = network_module.Network(backbone)
    if training:
        network.avoid_fast_paths()
    rule.prepare(network, traced, n_positions, training=training)
    generator = torch.Generator().manual_seed(1)
    member = rule.new_member(generator)
    for key, value in member.items():
        if key.startswith(("up.", "bias_offsets.")):  # what starts at zero
            member[key] = 0.3 * torch.randn(value.shape, generator=generator)
    return rule, network, member


def along(vector, weight, kind, side):
    """A vector of a weight's input or output channels, in a shape that broadcasts over the weight."""
    if kind == "convolution":
        return vector[None, :, None, None] if side == "inputs" else vector[:, None, None, None]
    return vector[None, :] if (side == "inputs") != (kind == "transposed") else vector[:, None]


def rebuilt(ensemble, options, rule, site, member):
    """The weight of one layer by the definition of the ensemble."""
    weight, layer, kind = rule.backbone.module.get_parameter(site.parameter), site.layer, site.kind
    if ensemble == "scale":
        return weight * along(member[f"log_scales.{layer}"].exp(), weight, kind, "inputs")
    if ensemble == "batch":
        r, s = 1 + member[f"input_offsets.{layer}"], 1 + member[f"output_offsets.{layer}"]
        return weight * along(r, weight, kind, "inputs") * along(s, weight, kind, "outputs")
    matrix = weight.T if kind == "transposed" else weight.flatten(1)
    if ensemble == "lora":
        changed = matrix + options["scale"] * member[f"up.{layer}"] @ member[f"down.{layer}"]
    elif ensemble == "sve+lora":
        U, sigma, Vt = torch.linalg.svd(matrix, full_matrices=False)
        U, Vt = rule.factors(site).U, rule.factors(site).Vt  # of the same signs and order
        ratios = member[f"log_ratios.{layer}"].exp()
        changed = U @ torch.diag(sigma * ratios) @ Vt + member[f"up.{layer}"] @ member[f"down.{layer}"]
    elif ensemble == "sve":
        Q = rule.factors(site).Vt.T
        changed = matrix + matrix @ Q @ torch.diag(member[f"log_ratios.{layer}"].expm1()) @ Q.T
    else:
        changed = matrix
    return changed.T if kind == "transposed" else changed.reshape(weight.shape)


def plain_features(module, ensemble, options, rule, member):
    """Features of a plain copy of the module whose weights and biases are those of the member."""
    plain = copy.deepcopy(module).eval()
    for site in rule.sites:
        owner = plain.get_submodule(site.layer)
        weight_name = site.parameter.rpartition(".")[2]
        setattr(owner, weight_name, nn.Parameter(rebuilt(ensemble, options, rule, site, member)))
        offset = member.get(f"bias_offsets.{site.layer}")
        if offset is not None:
            name = weight_name.removesuffix("weight") + "bias"
            start = getattr(owner, name)
            setattr(owner, name, nn.Parameter(offset if start is None else start + offset))
    with torch.no_grad():
        return rule.backbone.features(plain, toy_inputs())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("ensemble", "options"), LAYER_RULES)
@pytest.mark.parametrize("toy", TOYS)
def test__layer_rule__random_member__features_of_the_rebuilt_network(toy, ensemble, options, training):
    module = toy()
    rule, network, member = network_of(copy.deepcopy(module), ensemble, options, training=training)
    with torch.no_grad():
        start = rule.backbone.features(rule.backbone.module, toy_inputs())
        rule.install(network, member)
        features = network.features(toy_inputs())
    expected = plain_features(module, ensemble, options, rule, member)
    torch.testing.assert_close(features, expected, **CLOSE)
    assert (features - start).abs().max() > 0.01


@pytest.mark.parametrize(("ensemble", "options"), LAYER_RULES)
@pytest.mark.parametrize("toy", [TinyTransformer, HuggingFaceStyle])
def test__layer_rule__called_and_folded__same_gradients(toy, ensemble, options):
    gradients = []
    for n_positions in (1, 10**9):
        training = n_positions == 1  # in training layers are called, in prediction of many positions folded
        rule, network, member = network_of(toy(), ensemble, options, training=training, n_positions=n_positions)
        assert bool(rule._called) == (training and ensemble != "bias")
        network.avoid_fast_paths()
        leaves = {key: value.requires_grad_() for key, value in member.items()}
        rule.install(network, leaves)
        network.features(toy_inputs()).square().sum().backward()
        gradients.append({key: leaf.grad for key, leaf in leaves.items()})
    for key, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, key
        torch.testing.assert_close(gradient, gradients[1][key], rtol=1e-3, atol=1e-3)


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


@pytest.mark.parametrize(
    ("ensemble", "options", "init_scale"),
    [
        ("lora", {}, 0.3),
        ("sve+lora", {}, 0.0),
        ("bias", {}, 0.3),
        ("scale", {}, 0.0),
        ("batch", {}, 0.0),
        ("sve", {"basis": "random"}, 0.0),
    ],
)
@pytest.mark.parametrize("toy", [TinyCNN, TinyTransformer, ReadsWeight])
def test__layer_rule__untrained_member__pretrained_network_bit_for_bit(toy, ensemble, options, init_scale):
    settings = {"training": False, "n_positions": 10**9, "init_scale": init_scale}
    rule, network, _ = network_of(toy(), ensemble, options, **settings)
    with torch.no_grad():
        rule.install(network, rule.new_member(torch.Generator().manual_seed(0)))
        expected = rule.backbone.features(rule.backbone.module, toy_inputs())
        assert torch.equal(network.features(toy_inputs()), expected)


# ------------------------------------------------------------------------------------ how members start


def test__lora__start__xavier_with_gain_and_zeros():
    module = nn.Sequential(nn.Linear(600, 400))
    rule, _, _ = network_of_linear(module, "lora", {"rank": 8, "gain": 10.0})
    member = rule.new_member(torch.Generator().manual_seed(0))
    down, bound = member["down.0"], 10 * (6 / 608) ** 0.5
    assert down.shape == (8, 600)
    assert float(down.abs().max()) == pytest.approx(bound, rel=0.01)
    assert float(down.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    assert member["up.0"].shape == (400, 8)
    assert not member["up.0"].any()


def network_of_linear(module, ensemble, options, init_scale=0.5):
    backbone = make_backbone(module)
    sites, _ = layer_selection.find_sites(backbone.module)
    settings = {"init_scale": init_scale, "train_bias": False, "ensemble_params": options}
    return _ensembles.make_rule(ensemble, backbone, sites, **settings), backbone, sites


def test__lora__rank_above_the_smaller_side__that_side():
    rule, _, _ = network_of_linear(nn.Sequential(nn.Linear(20, 3)), "lora", {"rank": 8})
    assert rule.new_member(torch.Generator())["down.0"].shape == (3, 20)


def test__batch__init__signs_or_normal_around_one():
    for init, check in (("signs", lambda r: set(r.tolist()) == {-1.0, 1.0}), ("normal", is_normal_around_one)):
        rule, _, _ = network_of_linear(nn.Sequential(nn.Linear(2000, 3000)), "batch", {"init": init})
        member = rule.new_member(torch.Generator().manual_seed(0))
        assert check(1 + member["input_offsets.0"])
        assert check(1 + member["output_offsets.0"])
        assert member["input_offsets.0"].shape == (2000,)
        assert member["output_offsets.0"].shape == (3000,)


def is_normal_around_one(values):
    return abs(float(values.mean()) - 1) < 0.05 and abs(float(values.std()) - 0.5) < 0.05


def random_basis(weight, name="fc", kind="linear"):
    return decomposition.random_basis(weight, kind, name, decomposition.decompose(weight, kind).Vt)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (6, 6), (4, 3, 3, 3), (40, 3, 3, 3)])
def test__random_basis__any_weight__orthonormal_in_the_row_space_and_seeded_by_name(shape):
    weight, kind = torch.randn(shape), "linear" if len(shape) == 2 else "convolution"
    matrix = decomposition.as_matrix(weight, kind)
    r = min(matrix.shape)
    factors = random_basis(weight, kind=kind)
    torch.testing.assert_close(factors.Vt @ factors.Vt.T, torch.eye(r), **CLOSE)
    torch.testing.assert_close(factors.U, matrix @ factors.Vt.T, **CLOSE)
    torch.testing.assert_close(factors.U @ factors.Vt, matrix, **CLOSE)  # nothing of the row space is left out
    folded = decomposition.as_matrix(forms.fold(weight, kind, factors, torch.randn(r)), kind)
    assert torch.linalg.matrix_rank(torch.cat([matrix, folded]), rtol=1e-4) == r
    assert not torch.allclose(factors.Vt.abs(), decomposition.decompose(weight, kind).Vt.abs(), atol=0.1)
    assert torch.equal(random_basis(weight, kind=kind).Vt, factors.Vt)
    assert not torch.allclose(random_basis(weight, "other", kind).Vt.abs(), factors.Vt.abs(), atol=0.1)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test__random_basis__layer__as_in_a_dense_computation(shape):
    weight, log_ratios = torch.randn(shape), 0.3 * torch.randn(6)
    W = weight.double()
    seed = int.from_bytes(hashlib.sha256(b"fc").digest()[:7])
    normal = torch.randn((shape[1], 6), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    Q, triangle = torch.linalg.qr(torch.linalg.pinv(W) @ W @ normal)  # without a singular vector
    Q = Q * triangle.diagonal().sign()
    expected = (W + W @ Q @ torch.diag(log_ratios.double().expm1()) @ Q.T).float()
    torch.testing.assert_close(forms.fold(weight, "linear", random_basis(weight), log_ratios), expected, **CLOSE)


def test__random_basis__singular_vectors_of_another_library__same():
    weight = torch.randn(6, 9)
    Vt = decomposition.decompose(weight, "linear").Vt
    turned = Vt.clone()
    turned[::2] *= -1
    turned[1:3] = torch.tensor([[0.6, 0.8], [-0.8, 0.6]]) @ turned[1:3]  # as if two singular values were equal
    torch.testing.assert_close(
        decomposition.random_basis(weight, "linear", "fc", turned).Vt, random_basis(weight).Vt, **CLOSE
    )


def test__random_basis__right_singular_vectors_in_its_place__singular_value_ensemble():
    weight, log_ratios = torch.randn(6, 9), 0.3 * torch.randn(6)
    factors = decomposition.decompose(weight, "linear")
    V = factors.Vt.T
    in_place = decomposition.Factors(weight @ V, torch.ones(6), factors.Vt)
    expected = factors.U @ torch.diag(factors.sigma * log_ratios.exp()) @ factors.Vt
    torch.testing.assert_close(forms.fold(weight, "linear", in_place, log_ratios), expected, **CLOSE)
    x = torch.randn(5, 9)
    torch.testing.assert_close(forms.one_sided(x, weight, in_place, log_ratios), x @ expected.T, **CLOSE)


# ----------------------------------------------------------------------------------------------- in fits

SMALL = [
    ("scale", None),
    ("bias", None),
    ("lora", {"gain": 1.0}),
    ("batch", None),
    ("sve", {"basis": "random"}),
    ("sve+lora", {"gain": 1.0, "lora_lr": 1e-4}),
]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(("ensemble", "options"), SMALL)
@pytest.mark.parametrize("toy", TOYS)
def test__layer_rule__members_together_or_in_turn__equal(images, train_in_chunks, toy, ensemble, options):
    settings = {"n_members": 3, "train_bias": True, "max_epochs": 1, "member_lr": 1e-4}
    settings |= {"ensemble": ensemble, "ensemble_params": options}
    in_turn = toy_classifier(toy(), **settings).fit(*images)
    train_in_chunks(3)
    together = toy_classifier(toy(), **settings).fit(*images)
    for key, value in arrays_of(in_turn).items():
        np.testing.assert_allclose(arrays_of(together)[key], value, rtol=0, atol=3e-4, err_msg=key)


@pytest.mark.parametrize(("ensemble", "options"), SMALL)
@pytest.mark.parametrize("toy", [TinyCNN, TinyTransformer])
def test__layer_rule__fit__moves_all_that_members_own(images, toy, ensemble, options):
    settings = {"ensemble": ensemble, "ensemble_params": options, "train_bias": True}
    trained = toy_classifier(toy(), **settings, max_epochs=3).fit(*images)
    start = toy_classifier(toy(), **settings, member_lr=1e-30, head_lr=1e-30, max_epochs=1).fit(*images)
    for key, value in arrays_of(trained).items():
        moved = np.abs(value - arrays_of(start)[key])
        if key == "bias_offsets.blocks.0.attn" or key == "bias_offsets.blocks.1.attn":
            moved = np.delete(moved, np.s_[12:24], axis=1)  # a softmax does not see the bias of its keys
        assert (moved > 0).mean() > 0.9, key


@pytest.mark.parametrize(("ensemble", "options"), SMALL)
def test__layer_rule__layers__only_those_owned(images, ensemble, options):
    settings = {"ensemble": ensemble, "ensemble_params": options, "max_epochs": 1}
    classifier = toy_classifier(TinyMLP(), layers=["fc2"], **settings).fit(*images)
    own = {key.partition(".")[2] for key in arrays_of(classifier) if not key.startswith("head.")}
    assert own == {"fc2"}
    with pytest.raises(ValueError, match=r"layers='nothing' matches no layer"):
        toy_classifier(TinyMLP(), layers="nothing", **settings).fit(*images)


def expected_numbers(ensemble):
    d = [(20, 768), (12, 20)]
    return {
        "scale": sum(d_in for _, d_in in d),
        "bias": sum(d_out for d_out, _ in d),
        "lora": sum(8 * (d_out + d_in) for d_out, d_in in d),
        "batch": sum(d_out + d_in for d_out, d_in in d),
        "sve": sum(min(shape) for shape in d),
        "sve+lora": sum(min(shape) + 8 * sum(shape) for shape in d),
    }[ensemble]


@pytest.mark.parametrize(("ensemble", "options"), SMALL)
def test__n_member_parameters__layer_rules__as_counted(images, ensemble, options):
    classifier = toy_classifier(TinyMLP(), ensemble=ensemble, ensemble_params=options, max_epochs=1).fit(*images)
    assert classifier.n_member_parameters_ == expected_numbers(ensemble) + 3 * 13


@pytest.mark.filterwarnings("ignore:not saved, since")
@pytest.mark.parametrize(("ensemble", "options"), [*SMALL, ("dropout", {"rate": 0.3})], ids=str)
def test__save_and_load__any_rule__same_bits_in_a_small_file(images, tmp_path, ensemble, options):
    module = TinyTransformer()
    classifier = toy_classifier(module, ensemble=ensemble, ensemble_params=options, n_members=3).fit(*images)
    classifier.save(tmp_path)
    loaded = skve.load(tmp_path, backbone=module)
    assert same_arrays(loaded, classifier)
    expected = classifier.predict_proba_members(images[0])
    assert np.array_equal(loaded.predict_proba_members(images[0]), expected)
    assert len(expected) == 3
    size = next(tmp_path.glob("members-*")).stat().st_size
    shared = classifier.n_member_parameters_ * (1 if ensemble == "dropout" else 3)
    assert size < 4 * shared + 12_000  # names, and dropout's masks


def test__hybrid__lora_lr__rate_of_the_pairs_alone(images):
    rates = []

    class Rates(Callback):
        def on_train_begin(self, net, **kwargs):
            rates.extend((group["lr"], len(group["params"])) for group in net.optimizer_.param_groups)

    toy_classifier(
        TinyMLP(),
        ensemble="sve+lora",
        ensemble_params={"lora_lr": 3e-3},
        member_lr=0.2,
        head_lr=0.1,
        warmup=0.0,
        callbacks=[Rates()],
    ).fit(*images)
    assert sorted(rates) == [(3e-3, 8), (0.1, 4), (0.2, 4)]  # two members, two layers


def test__unfit_option__any_backbone__error_before_it_is_read(images):
    def backbone():
        raise AssertionError("read")

    with pytest.raises(ValueError, match=r"ensemble='lora' must be among .*, got"):
        toy_classifier(backbone, ensemble="lora", ensemble_params={"init": "signs"}).fit(*images)


@pytest.mark.parametrize("ensemble", ["sve", "dropout", "deep"])
def test__attention_with_dropout_of_its_own__any_kind__stays_off(images, ensemble):
    with_dropout, without = (
        toy_classifier(TinyTransformer(dropout=rate), ensemble=ensemble, max_epochs=1).fit(*images)
        for rate in (0.5, 0.0)
    )
    for key, array in arrays_of(without).items():
        assert np.array_equal(arrays_of(with_dropout)[key], array), key
    assert np.array_equal(with_dropout.predict_proba(images[0]), without.predict_proba(images[0]))


def test__bias__layer_without_one__gets_one(images):
    classifier = toy_classifier(TinyCNN(), ensemble="bias", member_lr=1e-2).fit(*images)
    owned = {key for key in arrays_of(classifier) if key.startswith("bias_offsets.")}
    assert owned == {f"bias_offsets.{layer}" for layer in ("stem", "pointwise", "dilated")}
    assert np.abs(arrays_of(classifier)["bias_offsets.stem"]).max() > 1e-3  # TinyCNN's stem has none


def test__bias__attention_without_biases__projection_alone_gets_one(images):
    module = TinyTransformer()
    for block in module.blocks:
        block.attn = seeded(nn.MultiheadAttention(12, 2, batch_first=True, bias=False))
    layers = ["blocks.0.attn", "blocks.1.attn"]
    classifier = toy_classifier(module, ensemble="bias", layers=layers, member_lr=1e-2).fit(*images)
    assert np.isfinite(classifier.predict_proba(images[0])).all()
    assert {key for key in arrays_of(classifier) if key.startswith("bias")} == {f"bias_offsets.{x}" for x in layers}


def test__bias__bias_that_is_not_read__left_out_with_a_warning(images):
    class ReadsNoBias(ReadsWeight):
        def forward(self, x):
            return self.out(torch.tanh(nn.functional.linear(self.pool(x).flatten(1), self.lin.weight)))

    with pytest.warns(UserWarning, match=r"lin \(the features do not depend on it\)"):
        classifier = toy_classifier(ReadsNoBias(), ensemble="bias", max_epochs=1).fit(*images)
    assert "bias_offsets.lin" not in arrays_of(classifier)
