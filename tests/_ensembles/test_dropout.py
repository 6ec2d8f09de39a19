"""Members as passes of one fine-tune with fixed dropout masks: the masks, training and prediction."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from skve import _ensembles
from skve._backbones import layer_selection
from tests._ensembles.test_base import CLOSE, along, network_of
from tests.toys import (
    TOYS,
    TinyCNN,
    TinyMLP,
    TinyTransformer,
    arrays_of,
    make_backbone,
    pooled_nll,
    toy_classifier,
    toy_inputs,
)


@pytest.mark.parametrize("toy", TOYS)
def test__dropout__prediction__network_with_masked_weights(toy):
    module = toy()
    rule, network, member = network_of(copy.deepcopy(module), "dropout", {"rate": 0.25}, training=False)
    with torch.no_grad():
        rule.install(network, member)
        features = network.features(toy_inputs())
        plain = copy.deepcopy(module).eval()
        n_dropped = 0
        for site in rule.sites:
            mask = member[f"masks.{site.layer}"]
            weight = plain.get_parameter(site.parameter)
            few = len(mask) <= 4
            assert mask.all() or not few
            n_dropped += int((~mask).sum())
            weight.mul_(along(mask / (1.0 if few else 0.75), weight, site.kind, "inputs"))
        torch.testing.assert_close(features, rule.backbone.features(plain, toy_inputs()), **CLOSE)
    assert n_dropped > 0


def test__dropout__training__whole_channels_of_each_sample_at_the_rate():
    rule, network, member = network_of(TinyTransformer(), "dropout", {"rate": 0.25}, training=True)
    rule.set_training(network, True)
    seen = []
    dropper = network.forward_of("blocks.0.fc2")
    dropper.forward = lambda inputs: seen.append(inputs) or inputs[..., :12]
    ones = torch.ones(2000, 5, 24)
    rule.install(network, member)
    network._modules["blocks.0.fc2"](ones)
    network._modules["blocks.0.fc2"](ones)  # as a checkpointed block does: the same channels again
    rule.install(network, member)
    network._modules["blocks.0.fc2"](ones)
    first, again, other = seen
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first, first[:, :1].expand(-1, 5, -1))  # at all positions alike
    assert not torch.equal(first[0], first[1])
    assert first.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert float((first == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    rule.set_training(network, False)
    network._modules["blocks.0.fc2"](ones)
    assert torch.equal(seen[-1], ones)


@pytest.mark.parametrize("toy", TOYS)
def test__dropout__training__every_layer_random(toy):
    rule, network, member = network_of(toy(), "dropout", {"rate": 0.5}, training=True)
    rule.set_training(network, True)
    outputs = []
    for _ in range(3):
        rule.install(network, member)
        outputs.append(network.features(toy_inputs()))
    assert not torch.allclose(outputs[0], outputs[1])
    rule.set_training(network, False)
    rule.install(network, member)
    fixed = network.features(toy_inputs())
    rule.install(network, member)
    assert torch.equal(network.features(toy_inputs()), fixed)


def test__dropout__no_rate__less_in_convolutions():
    module = nn.Sequential(nn.Conv2d(4000, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4000))
    module.append(nn.Linear(4000, 5))
    backbone = make_backbone(module)
    rule = _ensembles.Dropout(backbone, layer_selection.find_sites(module)[0], init_scale=0, train_bias=False)
    member = rule.new_member(torch.Generator().manual_seed(0))
    assert float((~member["masks.0"]).float().mean()) == pytest.approx(0.01, abs=0.005)
    assert float((~member["masks.4"]).float().mean()) == pytest.approx(0.1, abs=0.02)


def test__dropout__fit__one_network_and_members_by_masks(images):
    settings = {"ensemble": "dropout", "ensemble_params": {"rate": 0.2}}
    two, five = (toy_classifier(TinyCNN(), n_members=n, **settings).fit(*images) for n in (2, 5))
    for key, value in arrays_of(five).items():
        assert len(value) == (5 if key.startswith("masks.") else 1)
        assert np.array_equal(value[:2], arrays_of(two)[key]), key
    proba = five.predict_proba_members(images[0])
    assert len(proba) == 5
    assert np.array_equal(proba[:2], two.predict_proba_members(images[0]))
    assert np.abs(proba[0] - proba[1]).max() > 1e-4
    np.testing.assert_allclose(five.predict_proba_members(images[0][:3]), proba[:, :3], atol=1e-6)
    assert five.n_member_parameters_ == sum(p.numel() for p in TinyCNN().parameters()) + 3 * 11


def test__dropout__warm_start__same_masks_other_weights(images):
    classifier = toy_classifier(TinyMLP(), ensemble="dropout", n_members=3, warm_start=True).fit(*images)
    before = arrays_of(classifier)
    classifier.fit(*images)
    for key, value in arrays_of(classifier).items():
        assert np.array_equal(value, before[key]) == key.startswith("masks."), key


def test__dropout__validation__mean_of_the_passes(images, validation):
    classifier = toy_classifier(TinyMLP(), ensemble="dropout", n_members=3, ensemble_params={"rate": 0.5})
    classifier.fit(*images, X_val=validation[0], y_val=validation[1])
    assert classifier.history_["valid_nll"][-1] == pytest.approx(pooled_nll(classifier, *validation), rel=1e-5)
