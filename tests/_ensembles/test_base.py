"""Each member rule against its definition: single layers, rebuilt plain networks, and what a fit makes of it."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import skve
from skve import _ensembles
from skve._backbones import layer_selection, trace
from skve._backbones import network as network_module
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
    ("sve", {"rank": 3}),
    ("sve", {"rank": 3, "directions": "trailing"}),
    ("sve", {"rank": 2, "directions": "random"}),
    ("sve+lora", {"rank": 2, "gain": 1.0}),
]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def network_of(
    module, ensemble, options, *, training=True, n_positions=4, train_bias=True, init_scale=0.3, folded=True
):
    """A rule, its network and a random member, on a module that is given away."""
    backbone = make_backbone(module)
    sites, _ = layer_selection.find_sites(backbone.module)
    settings = {"init_scale": init_scale, "train_bias": train_bias, "ensemble_params": options}
    rule = _ensembles.make_rule(ensemble, backbone, sites, **settings)
    rule.noise = torch.Generator().manual_seed(7)
    traced = trace.trace(backbone, rule.changed, toy_inputs(), 4, rule.added)
    traced = traced if folded else dataclasses.replace(traced, normalised={})
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
    for n_positions in (0.01, 10**9):
        training = n_positions < 1  # in training layers are called, in prediction of many positions folded
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


@pytest.mark.parametrize(
    ("ensemble", "options", "init_scale"),
    [
        ("lora", {}, 0.3),
        ("sve+lora", {}, 0.0),
        ("bias", {}, 0.3),
        ("scale", {}, 0.0),
        ("batch", {}, 0.0),
        ("sve", {"basis": "random"}, 0.0),
        ("sve", {"rank": 3}, 0.0),
    ],
)
@pytest.mark.parametrize("toy", [TinyCNN, TinyTransformer, ReadsWeight])
def test__layer_rule__untrained_member__pretrained_network_bit_for_bit(toy, ensemble, options, init_scale):
    settings = {"training": False, "n_positions": 10**9, "init_scale": init_scale, "folded": False}
    rule, network, _ = network_of(toy(), ensemble, options, **settings)
    with torch.no_grad():
        rule.install(network, rule.new_member(torch.Generator().manual_seed(0)))
        expected = rule.backbone.features(rule.backbone.module, toy_inputs())
        assert torch.equal(network.features(toy_inputs()), expected)


def rule_of_linear(module, ensemble, options, init_scale=0.5):
    backbone = make_backbone(module)
    sites, _ = layer_selection.find_sites(backbone.module)
    settings = {"init_scale": init_scale, "train_bias": False, "ensemble_params": options}
    return _ensembles.make_rule(ensemble, backbone, sites, **settings), backbone, sites


# ----------------------------------------------------------------------------------------------- in fits

SMALL = [
    ("scale", None),
    ("bias", None),
    ("lora", {"gain": 1.0}),
    ("batch", None),
    ("sve", {"basis": "random"}),
    ("sve", {"rank": 3}),
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
    with pytest.raises(ValueError, match=r"got 'nothing', which matches none"):
        toy_classifier(TinyMLP(), layers="nothing", **settings).fit(*images)


@pytest.mark.parametrize("directions", ["leading", "trailing", "random"])
def test__sve__directions__those_that_members_scale(directions):
    module = nn.Sequential(nn.Linear(12, 10))
    rule, backbone, (site,) = rule_of_linear(module, "sve", {"rank": 3, "directions": directions})
    sigma = backbone.frozen.factors(site, "singular").sigma
    places = [sigma.tolist().index(value) for value in rule.factors(site).sigma.tolist()]
    # Saved ratios belong to the random ones of this name, in every version of torch and NumPy.
    assert places == {"leading": [0, 1, 2], "trailing": [7, 8, 9], "random": [6, 7, 9]}[directions]
    own = rule.new_member(torch.Generator().manual_seed(0))
    weight = module[0].weight.detach()
    moved = rule.fold(site, weight, {key.split(".")[0] + ".": value for key, value in own.items()})
    U, _, Vt = torch.linalg.svd(weight, full_matrices=False)
    change = (U.T @ (moved - weight) @ Vt.T).diagonal().abs()
    assert (change > 1e-6).nonzero().flatten().tolist() == places


def expected_numbers(ensemble, options):
    d = [(20, 768), (12, 20)]
    return {
        "scale": sum(d_in for _, d_in in d),
        "bias": sum(d_out for d_out, _ in d),
        "lora": sum(8 * (d_out + d_in) for d_out, d_in in d),
        "batch": sum(d_out + d_in for d_out, d_in in d),
        "sve": sum(min(*shape, (options or {}).get("rank", 768)) for shape in d),
        "sve+lora": sum(min(shape) + 8 * sum(shape) for shape in d),
    }[ensemble]


@pytest.mark.parametrize(("ensemble", "options"), SMALL)
def test__n_member_parameters__layer_rules__as_counted(images, ensemble, options):
    classifier = toy_classifier(TinyMLP(), ensemble=ensemble, ensemble_params=options, max_epochs=1).fit(*images)
    assert classifier.n_member_parameters_ == expected_numbers(ensemble, options) + 3 * 13


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


def test__ensemble__tied_weights_in_bfloat16__converted_once_for_both_names():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.one, self.other = nn.Conv2d(3, 4, 3), nn.Linear(4, 4), nn.Linear(4, 4)
            self.other.weight = self.one.weight

        def forward(self, x):
            return self.other(self.one(self.first(x).mean((2, 3))))

    clf = toy_classifier(Tied(), max_epochs=1, layers=["first"]).fit(np.zeros((8, 16, 16, 3), "uint8"), [0, 1] * 4)
    proba = clf.predict_proba(np.zeros((2, 16, 16, 3), "uint8"))
    half = clf.set_params(predict_precision="bfloat16").predict_proba(np.zeros((2, 16, 16, 3), "uint8"))
    assert np.allclose(half, proba, atol=0.02)
