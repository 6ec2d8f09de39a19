"""From a backbone and parameters to the ensemble that is trained: layers, members, arithmetic."""

import dataclasses
import types

import numpy as np
import pytest
import torch
from torch import nn

from skve._ensembles import HEAD
from skve._runtime.randomness import Seeds
from skve._training import build
from tests.toys import Tied, TinyMLP, TinyTransformer, make_backbone, toy_inputs

DESIGN = build.Design(
    ensemble="sve",
    ensemble_params=None,
    n_members=3,
    layers="all",
    init_scale=0.01,
    train_bias=False,
    batch_size=4,
    precision="float32",
    early_stopping=False,
    activation_checkpointing=False,
)


NO_NOVELTY = types.SimpleNamespace()  # nothing is kept of the training data


class Inputs:
    """A pipeline of prepared inputs."""

    mean_size = 1.0

    def __init__(self, n=8):
        self.inputs = toy_inputs(n)

    def __len__(self):
        return len(self.inputs)

    def size(self, indices):
        return len(indices)

    def load(self, indices):
        return self.inputs[indices]

    def prepare(self, raw, generator):
        return raw


class HasUnused(TinyMLP):
    """A layer that is there, but not in the features."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(12, 12)


def made(module=None, start=None, seed=0, **changes):
    design = dataclasses.replace(DESIGN, **changes)
    backbone = make_backbone(TinyMLP() if module is None else module)
    return build.new_ensemble(design, backbone, Inputs(), 3, Seeds(seed), start)


def tensors_of(ensemble, index):
    return {key: tensor.detach().numpy() for key, tensor in ensemble.member(index).items()}


def test__new_ensemble__members_and_state_to_be__of_the_selected_layers():
    ensemble, plan = made(layers=["fc1"])
    assert plan.layers == ("fc1",)
    assert plan.arrays == {}
    assert (plan.n_features, plan.n_classes, plan.ensemble, plan.n_epochs) == (12, 3, "sve", 0)
    assert len(ensemble.members) == 3
    assert set(tensors_of(ensemble, 0)) == {"log_ratios.fc1", HEAD + "weight", HEAD + "bias"}
    assert ensemble(toy_inputs(4)).shape == (3, 4, 3)


def test__new_ensemble__another_number_of_members__the_first_ones_stay():
    (two, _), (four, _) = made(n_members=2), made(n_members=4)
    for index in range(2):
        for key, value in tensors_of(two, index).items():
            assert np.array_equal(tensors_of(four, index)[key], value)
    assert not np.array_equal(tensors_of(two, 0)[HEAD + "weight"], tensors_of(two, 1)[HEAD + "weight"])


@pytest.mark.parametrize(("ensemble", "n_sites"), [("sve", 2), ("head", 0), ("deep", 0)])
def test__select_layers__rules_without_a_choice_of_layers__none(ensemble, n_sites):
    selection = build.select_layers(dataclasses.replace(DESIGN, ensemble=ensemble), make_backbone(TinyMLP()))
    assert [site.layer for site in selection.candidates] == ["fc1", "fc2"]
    assert len(selection.sites) == n_sites


def test__trace_layers__a_layer_without_effect__left_as_it_is_with_a_warning():
    with pytest.warns(UserWarning, match=r"not adapted: unused \(the features do not depend on it\)\.$"):
        _, plan = made(HasUnused())
    assert plan.layers == ("fc1", "fc2")


def test__trace_layers__only_layers_without_effect__value_error():
    with pytest.raises(ValueError, match=r"layers must select a layer .* got \['unused'\], .* Choose others\.$"):
        made(HasUnused(), layers=["unused"])


def test__trace_layers__layers_that_cannot_be_selected__named_only_where_all_were_asked_for(recwarn):
    assert build.select_layers(DESIGN, make_backbone(Tied())).skipped.keys() == {"first", "second"}
    with pytest.warns(UserWarning, match="not adapted: first, second"):
        made(Tied())
    recwarn.clear()
    made(Tied(), layers=["free"])
    assert not recwarn.list


def test__trace_layers__backbone_that_fails__value_error_that_names_it():
    class Fails(TinyMLP):
        def forward(self, x):
            raise TypeError("no such thing")

    with pytest.raises(
        ValueError, match=r"The backbone 'toy' must take a batch of .* got the error: no such thing\.$"
    ):
        made(Fails())


def test__make_members__snapshots__share_the_tensors_of_the_one_that_trains():
    ensemble, _ = made(ensemble="snapshot")
    trained = ensemble.member(2)
    for index in range(2):
        assert all(np.shares_memory(t.detach(), trained[key].detach()) for key, t in ensemble.member(index).items())
    assert list(ensemble.trained) == [2]


def test__make_members__earlier_fit__its_members_and_epochs():
    first, plan = made(seed=1)
    state = plan.fitted(first.arrays(), 5, None, NO_NOVELTY, True)
    again, later = made(start=state, seed=2)
    for index in range(3):
        for key, value in tensors_of(first, index).items():
            assert np.array_equal(tensors_of(again, index)[key], value)
    assert later.n_epochs == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_members": 2}, "n_members must stay 3 .*, got 2"),
        ({"ensemble": "scale"}, "ensemble must stay 'sve' .*, got 'scale'"),
        ({"ensemble_params": {"basis": "random"}}, "ensemble_params must stay {} "),
        ({"module": TinyMLP(seed=1)}, "backbone must have the same weights"),
    ],
    ids=["members", "ensemble", "options", "weights"],
)
def test__make_members__earlier_fit_of_another_kind__value_error(changes, message):
    first, plan = made()
    state = plan.fitted(first.arrays(), 1, None, NO_NOVELTY, True)
    with pytest.raises(ValueError, match=message):
        made(start=state, **changes)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)], ids=["float32", "bfloat16"]
)
def test__assemble__precision__arithmetic_of_the_backbone_alone(precision, dtype):
    ensemble, _ = made(precision=precision)
    assert ensemble.dtype == dtype
    assert ensemble(toy_inputs(4)).dtype == torch.float32


def test__assemble__checkpointing_without_blocks__warning():
    with pytest.warns(UserWarning, match=r"activation_checkpointing=True has no effect: the backbone 'toy' has no"):
        made(activation_checkpointing=True)


def test__assemble__checkpointing__same_logits():
    plain, _ = made(TinyTransformer())
    checkpointed, _ = made(TinyTransformer(), activation_checkpointing=True)
    torch.testing.assert_close(checkpointed(toy_inputs(4)), plain(toy_inputs(4)))
