"""Member rules: what members own, that they do not feel one another, and that the backbone stays frozen."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from skve import _ensembles
from skve._backbones import backbone as backbone_module
from skve._backbones import decomposition, from_timm, layer_selection, trace
from skve._backbones import network as network_module
from tests.toys import (
    TOYS,
    Tied,
    TinyCNN,
    TinyMLP,
    TinyTransformer,
    arrays_of,
    make_backbone,
    same_arrays,
    toy_classifier,
    toy_inputs,
)

ENSEMBLES = [
    ("sve", None),
    ("head", None),
    ("laplace", None),
    ("single", None),
    ("single", {"train_batch_norm": True}),
    ("deep", None),
    ("deep", {"train_batch_norm": True}),
    ("sve", {"basis": "random"}),
    ("sve", {"rank": 3}),
    ("scale", None),
    ("bias", None),
    ("lora", {"gain": 1.0}),
    ("batch", None),
    ("dropout", None),
    ("snapshot", None),
    ("sve+lora", {"gain": 1.0}),
]


# ------------------------------------------------------------------------- members do not feel one another


@pytest.mark.parametrize("toy", [TinyCNN, TinyTransformer])
@pytest.mark.parametrize("ensemble", ["sve", "deep", "head", "laplace", "scale", "bias", "lora", "batch", "sve+lora"])
def test__member__alone_and_among_eight__same_bits(images, ensemble, toy):
    fits = {
        n: arrays_of(toy_classifier(toy(), ensemble=ensemble, n_members=n, augment="strong").fit(*images))
        for n in (1, 3, 8)
    }
    for key, among_eight in fits[8].items():
        assert np.array_equal(fits[1][key][0], among_eight[0]), key
        assert np.array_equal(fits[3][key], among_eight[:3]), key
        assert not np.array_equal(among_eight[0], among_eight[1]), key


def test__single__and_first_member_of_deep__same_bits(images):
    single = toy_classifier(TinyCNN(), ensemble="single", n_members=5).fit(*images)
    deep = toy_classifier(TinyCNN(), ensemble="deep", n_members=2).fit(*images)
    for key, value in arrays_of(single).items():
        assert np.array_equal(value[0], arrays_of(deep)[key][0]), key


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("toy", TOYS)
def test__sve__members_together_or_in_turn__equal(images, train_in_chunks, toy):
    settings = {"n_members": 5, "train_bias": True, "max_epochs": 1, "member_lr": 1e-3}
    in_turn = toy_classifier(toy(), **settings).fit(*images)
    for chunk in (2, 5):
        train_in_chunks(chunk)
        together = toy_classifier(toy(), **settings).fit(*images)
        np.testing.assert_allclose(
            together.predict_proba_members(images[0]), in_turn.predict_proba_members(images[0]), rtol=0, atol=1e-4
        )
        for key, value in arrays_of(in_turn).items():
            np.testing.assert_allclose(arrays_of(together)[key], value, rtol=0, atol=1e-4, err_msg=key)


@pytest.mark.parametrize(
    ("ensemble", "options"), [("bias", None), ("deep", None), ("deep", {"train_batch_norm": True})]
)
def test__other_ensembles__members_together_or_in_turn__equal(images, train_in_chunks, ensemble, options):
    settings = {"n_members": 3, "ensemble": ensemble, "ensemble_params": options, "member_lr": 1e-6}
    in_turn = toy_classifier(TinyCNN(), **settings).fit(*images)
    train_in_chunks(3)
    together = toy_classifier(TinyCNN(), **settings).fit(*images)
    for key, value in arrays_of(in_turn).items():
        np.testing.assert_allclose(arrays_of(together)[key], value, rtol=0, atol=2e-4, err_msg=key)


def make_ensemble(toy, n_members, **options):
    backbone = make_backbone(toy())
    sites, _ = layer_selection.find_sites(backbone.module)
    rule = _ensembles.SingularValues(backbone, sites, init_scale=0.2, train_bias=True)

    traced = trace.trace(backbone, rule.changed, toy_inputs(), 4)
    head = _ensembles.Head.on(backbone, traced.n_features, 3)
    members = []
    for index in range(n_members):
        generator = torch.Generator().manual_seed(index)
        members.append({**head.new_member(generator, torch.device("cpu")), **rule.new_member(generator)})
    return _ensembles.Ensemble(rule, head, members, traced, 4, training=True, **options)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("toy", TOYS)
def test__chunk_logits__several_members__each_as_alone_with_gradients(toy):
    ensemble, inputs = make_ensemble(toy, 3), toy_inputs()
    together = ensemble.chunk_logits(inputs, [0, 1, 2])
    together.square().sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in ensemble.named_parameters()}
    ensemble.zero_grad()
    ensemble.network.new_batch()
    alone = torch.cat([ensemble.chunk_logits(inputs, [index]) for index in range(3)])
    alone.square().sum().backward()
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    for name, parameter in ensemble.named_parameters():
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-5 * max(scale, 1e-3))


def test__ensemble__state_dict__members_only():
    ensemble = make_ensemble(TinyCNN, 2)
    assert all(name.startswith("members.") for name in ensemble.state_dict())
    assert all(name.startswith("members.") for name, _ in ensemble.named_parameters())


def test__ensemble__train_mode__backbone_stays_in_evaluation():
    ensemble = make_ensemble(TinyCNN, 2)
    ensemble.train()
    assert not any(module.training for module in ensemble.network.module.modules())


# -------------------------------------------------------------------------------------- frozen backbone


@pytest.mark.parametrize(("ensemble", "options"), ENSEMBLES)
def test__fit__any_ensemble__backbone_and_users_module_unchanged(images, empty_cache, ensemble, options):
    module = TinyCNN().train()
    before = copy.deepcopy(module.state_dict())
    classifier = toy_classifier(module, ensemble=ensemble, ensemble_params=options, train_bias=True)
    cached = classifier._load_backbone(module)
    checksum = backbone_module.weights_hash(cached.module)
    classifier.fit(*images).predict(images[0])
    assert backbone_module.weights_hash(cached.module) == checksum == cached.description["sha256"]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize(("ensemble", "options"), ENSEMBLES)
def test__fit__any_ensemble__learns_the_toy_task(images, ensemble, options):
    classifier = toy_classifier(
        TinyCNN(), ensemble=ensemble, ensemble_params=options, max_epochs=25, member_lr=5e-3, head_lr=5e-2
    )
    assert classifier.fit(*images).score(*images) > 0.8
    untrained = np.log(3)  # what equal probabilities cost
    assert classifier.history_["loss"][-1] < 0.7 * max(classifier.history_["loss"][0], untrained)


def test__train_batch_norm__on_and_off__running_statistics_move_or_not(images):
    still = toy_classifier(TinyCNN(), ensemble="deep").fit(*images)
    moved = toy_classifier(TinyCNN(), ensemble="deep", ensemble_params={"train_batch_norm": True}).fit(*images)
    assert not any("running" in key for key in arrays_of(still))
    start = TinyCNN().bn1.running_mean.numpy()
    for member in arrays_of(moved)["weights.bn1.running_mean"]:
        assert np.abs(member - start).max() > 1e-3


def test__train_batch_norm__prediction__does_not_depend_on_the_batch(images):
    classifier = toy_classifier(TinyCNN(), ensemble="deep", ensemble_params={"train_batch_norm": True})
    classifier.fit(*images)
    whole = classifier.predict_proba(images[0])
    np.testing.assert_allclose(classifier.predict_proba(images[0][:3]), whole[:3], atol=1e-6)


def test__deep__tied_weights__stay_tied():
    backbone = make_backbone(Tied())
    rule = _ensembles.FullFineTuning(backbone, [], init_scale=0, train_bias=False)
    member = {key: value + 0.1 for key, value in rule.new_member(torch.Generator()).items()}

    network = network_module.Network(backbone)
    rule.install(network, member)
    expected = Tied()
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter.add_(0.1)
        assert expected.second.weight is expected.first.weight
        torch.testing.assert_close(network.features(toy_inputs()), expected(toy_inputs()))


# ---------------------------------------------------------------------------------- what a member owns


def expected_parameters(module, n_features, *, train_bias, n_classes=3):
    own = 0
    for site in layer_selection.find_sites(module)[0]:
        weight = module.get_parameter(site.parameter)
        own += min(decomposition.as_matrix(weight, site.kind).shape)
        if train_bias and site.bias:
            own += weight.shape[1 if site.kind == "transposed" else 0]
    return own + n_classes * (n_features + 1)


@pytest.mark.parametrize("train_bias", [False, True])
@pytest.mark.parametrize("toy", TOYS)
def test__n_member_parameters__sve__sum_of_smaller_sides_and_biases_and_head(images, toy, train_bias):
    classifier = toy_classifier(toy(), train_bias=train_bias, max_epochs=1).fit(*images)
    n_features = classifier._state.n_features
    assert classifier.n_member_parameters_ == expected_parameters(toy(), n_features, train_bias=train_bias)


def test__n_member_parameters__rivals__head_only_and_all_weights(images):
    n_all = sum(parameter.numel() for parameter in TinyCNN().parameters())
    head = toy_classifier(TinyCNN(), ensemble="head", max_epochs=1).fit(*images)
    deep = toy_classifier(TinyCNN(), ensemble="deep", max_epochs=1).fit(*images)
    norm = toy_classifier(TinyCNN(), ensemble="single", ensemble_params={"train_batch_norm": True}, max_epochs=1).fit(
        *images
    )
    assert head.n_member_parameters_ == 3 * 11
    assert deep.n_member_parameters_ == n_all + 3 * 11
    assert norm.n_member_parameters_ == n_all + 3 * 11


def test__ratios__fitted__for_each_layer_and_member(images):
    classifier = toy_classifier(TinyMLP(), n_members=3, layers=["fc2"]).fit(*images)
    assert {layer: ratios.shape for layer, ratios in classifier.ratios_.items()} == {"fc2": (3, 12)}
    assert (classifier.ratios_["fc2"] > 0).all()
    assert not np.allclose(classifier.ratios_["fc2"], 1)


def test__ratios__channel_scales__factors_of_the_input_channels(images):
    settings = {"ensemble": "scale", "n_members": 2, "layers": ["fc2"], "max_epochs": 2}
    classifier = toy_classifier(TinyMLP(), **settings).fit(*images)
    np.testing.assert_array_equal(classifier.ratios_["fc2"], np.exp(arrays_of(classifier)["log_scales.fc2"]))
    for name in ("ratio_spread", "gradient_norm"):
        assert {layer: len(values) for layer, values in classifier.history_[name].items()} == {"fc2": 2}


@pytest.mark.parametrize("ensemble", ["head", "batch", "bias", "lora", "single"])
def test__ratios__ensembles_without_factors__none(images, ensemble):
    classifier = toy_classifier(TinyMLP(), ensemble=ensemble, max_epochs=1).fit(*images)
    assert classifier.ratios_ == classifier.history_["ratio_spread"] == classifier.history_["gradient_norm"] == {}


def test__new_member__init_scale__standard_deviation_of_the_log_ratios():
    module = nn.Sequential(nn.Linear(400, 400), nn.Linear(400, 300))
    backbone = make_backbone(module)
    sites, _ = layer_selection.find_sites(module)
    for scale in (0.01, 0.5):
        rule = _ensembles.SingularValues(backbone, sites, init_scale=scale, train_bias=True)
        member = rule.new_member(torch.Generator().manual_seed(0))
        log_ratios = torch.cat([value for key, value in member.items() if key.startswith("log_ratios.")])
        assert float(log_ratios.std()) == pytest.approx(scale, rel=0.1)
        assert float(log_ratios.mean()) == pytest.approx(0, abs=0.15 * scale)
        assert not member["bias_offsets.0"].any()


def test__train_bias__off_and_on__biases_stay_or_move(images):
    off = toy_classifier(TinyMLP(), layers=["fc2"]).fit(*images)
    on = toy_classifier(TinyMLP(), layers=["fc2"], train_bias=True).fit(*images)
    assert not any(key.startswith("bias_offsets.") for key in arrays_of(off))
    assert {key for key in arrays_of(on) if key.startswith("bias_offsets.")} == {"bias_offsets.fc2"}
    assert np.abs(arrays_of(on)["bias_offsets.fc2"]).max() > 1e-3
    assert not same_arrays(on, off)


def test__single__n_members__ignored(images):
    one, five = (toy_classifier(TinyMLP(), ensemble="single", n_members=n).fit(*images) for n in (1, 5))
    assert five.predict_proba_members(images[0]).shape == (1, 24, 3)
    assert same_arrays(one, five)


@pytest.mark.parametrize(
    ("ensemble", "options", "message"),
    [
        (
            "sve",
            {"train_batch_norm": True},
            r"must be among \['basis', 'bootstrap', .*, got \['train_batch_norm'\]\.",
        ),
        ("head", {"rank": 4}, r"The options in ensemble_params of ensemble='head' must be among .*, got \['rank'\]"),
        (
            "deep",
            {"train_norm": True},
            r"must be among \['bootstrap', 'diversity', 'folds', 'order', 'train_batch_norm'\], got",
        ),
        ("single", {"order": "own"}, r"must be among \['train_batch_norm'\], got \['order'\]"),
    ],
)
def test__ensemble_params__unknown_option__value_error(images, ensemble, options, message):
    with pytest.raises(ValueError, match=message):
        toy_classifier(TinyMLP(), ensemble=ensemble, ensemble_params=options).fit(*images)


@pytest.mark.parametrize(
    ("ensemble", "options", "message"),
    [
        ("lora", {"rank": 0}, r"'rank' parameter of ensemble_params of ensemble='lora' must be an int in .* Got 0"),
        ("lora", {"rank": 2.5}, r"'rank' parameter .* Got 2.5"),
        ("lora", {"gain": -1}, r"'gain' parameter"),
        (
            "batch",
            {"init": "zeros"},
            r"'init' parameter .* must be a str among \{('normal', 'signs'|'signs', 'normal')\}",
        ),
        ("dropout", {"rate": 1.0}, r"'rate' parameter .* in the range \(0.0, 1.0\)"),
        ("dropout", {"order": "own"}, r"must be among \['rate'\], got \['order'\]"),
        ("sve", {"basis": "fourier"}, r"'basis' parameter"),
        ("sve", {"rank": 0}, r"'rank' parameter .* Got 0"),
        ("sve", {"directions": "middle"}, r"'directions' parameter"),
        ("sve", {"directions": "trailing"}, r"rank in ensemble_params must say how many .* got None"),
        ("scale", {"rank": 4}, r"must be among \['bootstrap', 'diversity', 'folds', 'order'\], got \['rank'\]"),
        ("sve", {3: 4}, r"must be among .*, got \[3\]"),
    ],
)
def test__ensemble_params__bad_value__value_error_that_lists_what_fits(images, ensemble, options, message):
    with pytest.raises(ValueError, match=message):
        toy_classifier(TinyMLP(), ensemble=ensemble, ensemble_params=options).fit(*images)


def test__ensemble__unknown__value_error_lists_the_known(images):
    with pytest.raises(ValueError, match=r"'ensemble' parameter .*'lora'.* Got 'bagging'"):
        toy_classifier(TinyMLP(), ensemble="bagging").fit(*images)


def test__fit__layers_that_cannot_be_adapted__one_warning_with_names_and_reasons(images):
    with pytest.warns(UserWarning, match=r"first, second \(its weight is tied: first, second share it\)") as caught:
        classifier = toy_classifier(Tied(), max_epochs=1).fit(*images)
    assert len(caught) == 1
    assert set(classifier.ratios_) == {"free"}


def test__fit__layer_without_effect__left_out_with_a_warning(images):
    class WithUnused(TinyMLP):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(3, 3)

    with pytest.warns(UserWarning, match=r"unused \(the features do not depend on it\)"):
        classifier = toy_classifier(WithUnused(), max_epochs=1).fit(*images)
    assert set(classifier.ratios_) == {"fc1", "fc2"}
    with pytest.raises(ValueError, match=r"features depend on, got \['unused'\]"):
        toy_classifier(WithUnused(), layers=["unused"]).fit(*images)


class CountsCalls(TinyMLP):
    """Counts its forward passes in a list that all copies share."""

    calls: list = []

    def forward(self, x):
        CountsCalls.calls.append(len(x))
        return super().forward(x)


@pytest.mark.parametrize("ensemble", ["head", "laplace"])
def test__solved_heads__any_number_of_members__features_once(images, ensemble, empty_cache):
    CountsCalls.calls.clear()
    classifier = toy_classifier(CountsCalls(), ensemble=ensemble, n_members=6, max_epochs=3).fit(*images)
    assert len(CountsCalls.calls) == 1 + 2  # a trace, then two batches
    CountsCalls.calls.clear()
    classifier.predict(images[0])
    assert not CountsCalls.calls
    classifier.predict(255 - images[0])
    assert len(CountsCalls.calls) == 2


@pytest.mark.parametrize("norm", [{"track_running_stats": False}, {"affine": False}, {"momentum": None}])
def test__fit__unusual_batch_normalisation__as_with_a_plain_network(images, norm):
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, **norm), nn.ReLU(), nn.Conv2d(6, 5, 1))
    backbone = make_backbone(copy.deepcopy(module))
    sites, _ = layer_selection.find_sites(backbone.module)
    rule = _ensembles.SingularValues(backbone, sites, init_scale=0.0, train_bias=False)
    traced = trace.trace(backbone, rule.changed, toy_inputs(), 4)
    network = network_module.Network(backbone)
    rule.prepare(network, traced, 4, training=True)
    with torch.no_grad():
        rule.install(network, rule.new_member(torch.Generator().manual_seed(0)))
        expected = backbone.features(backbone.module, toy_inputs())
        torch.testing.assert_close(network.features(toy_inputs()), expected, rtol=1e-5, atol=1e-5)
    toy_classifier(module, max_epochs=1).fit(*images)


def test__simplified_batch_normalisation__real_network__equal_to_rounding():
    backbone = from_timm.load_image_backbone("bundled:efficientnet_lite0")
    inputs = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    network = network_module.Network(backbone)
    network.simplify_batch_norms()
    with torch.no_grad():
        expected = backbone.features(backbone.module, inputs)
        torch.testing.assert_close(network.features(inputs), expected, rtol=1e-4, atol=1e-4)
