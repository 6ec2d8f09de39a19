"""Which blocks of a module lie on which device; whole fits are in tests/test_fake_gpu.py."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from skve._backbones.split import split
from skve.exceptions import BackboneError
from tests.toys import TinyMLP, TinyTransformer, toy_inputs

CPU, META = torch.device("cpu"), torch.device("meta")


def devices_of(module):
    """Return the kinds of the devices of a module's parameters and buffers, by name."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor.device.type for name, tensor in tensors.items()}


def test__split__transformer__blocks_in_their_order_and_the_rest_beside_them():
    module = TinyTransformer()
    found = devices_of(split(module, [CPU, META]))
    assert found.keys() == dict(module.named_parameters()).keys()
    for name, kind in found.items():
        assert kind == ("cpu" if name.startswith(("patch_embed", "blocks.0", "norm")) else "meta"), name
    assert set(devices_of(module).values()) == {"cpu"}


def test__split__pass__each_block_brings_its_inputs_and_the_whole_its_output():
    other, seen = torch.device("cpu", 1), []
    with FakeTensorMode():
        there = split(TinyTransformer(), [CPU, other])
        for block in there.blocks:
            block.register_forward_hook(lambda block, args, output: seen.append(output.device))
        assert there(toy_inputs()).device == CPU
    assert seen == [CPU, other]


def test__split__large_layer_in_front__counts_and_stays_whole():
    module = nn.Module()
    module.words, module.positions = nn.Embedding(1000, 12), nn.Embedding(9, 12)
    module.blocks = TinyTransformer().blocks
    found = devices_of(split(module, [CPU, META]))
    assert found["words.weight"] == found["positions.weight"] == "cpu"
    assert {kind for name, kind in found.items() if "blocks" in name} == {"meta"}


def test__split__layer_between_blocks__beside_the_first_of_them():
    module = TinyTransformer()
    module.stages = nn.Sequential(module.blocks[0], nn.LayerNorm(12), module.blocks[1])
    del module.blocks
    found = devices_of(split(module, [CPU, META]))
    assert found["stages.1.weight"] == found["stages.0.fc1.weight"] == "cpu"
    assert found["stages.2.fc1.weight"] == "meta"


def test__split__blocks_within_a_block__stay_together():
    module = TinyTransformer()
    for block in module.blocks:
        block.experts = nn.ModuleList(nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12)) for _ in range(3))
    found = devices_of(split(module, [CPU, META]))
    assert {found[name] for name in found if name.startswith("blocks.0")} == {"cpu"}
    assert {found[name] for name in found if name.startswith("blocks.1")} == {"meta"}


def test__split__tied_weights__one_tensor():
    module = TinyTransformer()
    module.blocks[1].fc1.weight = module.blocks[1].fc2.weight
    there = split(module, [CPU, META])
    assert there.blocks[1].fc1.weight is there.blocks[1].fc2.weight


@pytest.mark.parametrize(("module", "n"), [(TinyMLP, 0), (TinyTransformer, 2)])
def test__split__fewer_blocks_than_devices__error(module, n):
    with pytest.raises(BackboneError, match=f"must have a block .* for each of the 3 devices, got {n} blocks"):
        split(module(), [CPU, META, torch.device("cuda")])
