"""Ensembles of one fine-tune: dropout's passes with fixed masks, and the snapshots of a cyclic learning rate."""

import copy

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from torch import nn

import skve
from skve import _ensembles
from skve._backbones import layer_selection
from skve._training import schedule
from tests._ensembles.test_member_rules import CLOSE, along, network_of
from tests.toys import (
    TOYS,
    TinyCNN,
    TinyMLP,
    TinyTransformer,
    arrays_of,
    make_backbone,
    pooled_nll,
    same_arrays,
    toy_classifier,
    toy_inputs,
)

# ---------------------------------------------------------------------------------------------- dropout


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


# --------------------------------------------------------------------------------------------- snapshots


@pytest.mark.parametrize(("n_steps", "n_cycles"), [(10, 3), (7, 7), (100, 4), (5, 1)])
def test__cycle_starts__any_numbers__cycles_as_equal_as_can_be(n_steps, n_cycles):
    starts = schedule.cycle_starts(n_steps, n_cycles)
    lengths = np.diff(starts)
    assert (starts[0], starts[-1], len(starts)) == (0, n_steps, n_cycles + 1)
    assert lengths.max() - lengths.min() <= 1


def test__learning_rate_factor__cycles__each_runs_through_warm_up_and_schedule():
    factor = schedule.learning_rate_factor("cosine", 0.2, 30, 3)
    once = schedule.learning_rate_factor("cosine", 0.2, 10)
    assert [factor(step) for step in range(30)] == pytest.approx([once(step) for step in range(10)] * 3)
    assert factor(30) == pytest.approx(0)


class States(Callback):
    """Collect the weights that train after each step."""

    def on_train_begin(self, net, **kwargs):
        self.states = []

    def on_batch_end(self, net, training=False, **kwargs):
        if training:
            member = net.module_.member(net.module_.trained[0])
            self.states.append({key: tensor.detach().numpy().copy() for key, tensor in member.items()})


def test__snapshot__members__network_at_the_end_of_each_cycle(images):
    states = States()
    classifier = toy_classifier(TinyCNN(), ensemble="snapshot", n_members=3, max_epochs=4, callbacks=[states])
    classifier.fit(*images)
    ends = [3, 6, 8]  # of eight steps
    assert schedule.cycle_starts(8, 3)[1:] == ends
    for key, value in arrays_of(classifier).items():
        assert len(value) == 3
        for member, end in zip(value, ends, strict=True):
            assert np.array_equal(member, states.states[end - 1][key]), key
    assert len(classifier.predict_proba_members(images[0])) == 3


def test__snapshot__one_cycle__single_fine_tune(images):
    snapshot = toy_classifier(TinyCNN(), ensemble="snapshot", n_members=1).fit(*images)
    assert same_arrays(snapshot, toy_classifier(TinyCNN(), ensemble="single").fit(*images))


def test__snapshot__fewer_steps_than_members__value_error(images):
    with pytest.raises(
        ValueError, match=r"n_members must be at most .* snapshots, got 5 for 4 steps\. Lower n_members"
    ):
        toy_classifier(TinyMLP(), ensemble="snapshot", n_members=5).fit(*images)


def test__snapshot__ended_early__remaining_members_are_the_last_network(images):
    class Stop(Callback):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 3:
                raise KeyboardInterrupt

    classifier = toy_classifier(TinyMLP(), ensemble="snapshot", n_members=4, max_epochs=8, callbacks=[Stop()])
    classifier.fit(*images)
    weights = arrays_of(classifier)["weights.fc1.weight"]
    assert not np.array_equal(weights[0], weights[1])  # kept after four of sixteen steps
    assert np.array_equal(weights[1], weights[3])


def test__snapshot__validation_and_warm_start__go_on_from_the_last_network(images, validation):
    classifier = toy_classifier(TinyMLP(), ensemble="snapshot", n_members=2, warm_start=True, schedule="constant")
    classifier.fit(*images, X_val=validation[0], y_val=validation[1])
    assert classifier.history_["valid_nll"][-1] == pytest.approx(pooled_nll(classifier, *validation), rel=1e-5)
    states, before = States(), arrays_of(classifier)
    classifier.set_params(callbacks=[states], member_lr=1e-30, head_lr=1e-30).fit(*images)
    for key, value in arrays_of(classifier).items():
        np.testing.assert_allclose(value, np.stack([before[key][-1]] * 2), atol=1e-6, err_msg=key)


@pytest.mark.filterwarnings("ignore:not saved, since")
def test__snapshot__save_and_load__same_bits(images, tmp_path):
    module = TinyMLP()
    classifier = toy_classifier(module, ensemble="snapshot", n_members=3).fit(*images)
    classifier.save(tmp_path)
    loaded = skve.load(tmp_path, backbone=module)
    assert np.array_equal(loaded.predict_proba_members(images[0]), classifier.predict_proba_members(images[0]))
