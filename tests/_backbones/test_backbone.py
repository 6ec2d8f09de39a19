"""Frozen modules, their decompositions and copies, and the keys of users' modules."""

import copy
import dataclasses
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from sklearn.base import clone
from torch import nn

from skve._backbones import backbone as backbone_module
from skve._backbones import decomposition, from_timm, layer_selection
from skve._backbones.from_timm import load_image_backbone
from skve._backbones.network import Network
from skve.exceptions import BackboneError
from tests.toys import TinyCNN, TinyMLP, make_backbone, toy_classifier, toy_inputs


@pytest.fixture(autouse=True)
def _empty_cache(empty_cache):
    pass


@pytest.fixture
def counts(monkeypatch):
    """Count how often a backbone is frozen and how often a weight is decomposed."""
    numbers = {"loads": 0, "decompositions": 0}
    freeze, decompose = backbone_module.freeze, decomposition.decompose

    def counted_freeze(*args, **options):
        numbers["loads"] += 1
        return freeze(*args, **options)

    def counted_decompose(*args):
        numbers["decompositions"] += 1
        return decompose(*args)

    for module in (backbone_module, from_timm):
        monkeypatch.setattr(module, "freeze", counted_freeze)
    monkeypatch.setattr(decomposition, "decompose", counted_decompose)
    return numbers


def test__from_module__equal_modules__one_entry(counts):
    module = TinyCNN()
    first = load_image_backbone(module, 16)
    for equal in (module, copy.deepcopy(module), TinyCNN(), clone(toy_classifier(module)).backbone):
        assert load_image_backbone(equal, 16) is first
    assert counts["loads"] == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda module: module.stem.weight.data.mul_(1.5),
        lambda module: module.bn1.running_mean.add_(1),
        lambda module: setattr(module.bn1, "eps", 0.5),
        lambda module: setattr(module.dilated, "dilation", (1, 1)),
        lambda module: setattr(module, "act1", nn.Tanh()),
    ],
)
def test__from_module__anything_changed__another_entry(change):
    module = TinyCNN()
    first = load_image_backbone(module, 16)
    before = first.features(first.module, toy_inputs())
    change(module)
    second = load_image_backbone(module, 16)
    assert second is not first
    assert not torch.allclose(second.features(second.module, toy_inputs()), before)
    assert torch.equal(first.features(first.module, toy_inputs()), before)


def test__from_module__class_defined_anew_under_the_same_name__another_entry(monkeypatch):
    """As in a notebook, where a cell is edited and run again."""
    from tests import toys

    class Net(TinyMLP):
        pass

    Edited = type("Net", (TinyMLP,), {"forward": lambda self, x: -TinyMLP.forward(self, x)})
    entries = []
    for cls in (Net, Edited):
        cls.__module__, cls.__qualname__ = "tests.toys", "Net"
        monkeypatch.setattr(toys, "Net", cls, raising=False)
        entries.append(load_image_backbone(cls(), 16))
    features = [entry.features(entry.module, toy_inputs()) for entry in entries]
    torch.testing.assert_close(features[1], -features[0])


def test__from_module__tied_or_equal_weights__two_entries():
    tied, equal = (nn.Sequential(nn.Flatten(), nn.Linear(768, 9), nn.Linear(9, 9), nn.Linear(9, 9)) for _ in range(2))
    tied[3].weight = tied[2].weight
    equal.load_state_dict(tied.state_dict())
    assert load_image_backbone(tied, 16) is not load_image_backbone(equal, 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test__from_module__plain_tensor_attribute__part_of_the_key(dtype):
    entries = []
    for value in (1, 1, 2):
        module = TinyMLP()
        module.scale = torch.tensor([value], dtype=dtype)
        entries.append(load_image_backbone(module, 16))
    assert entries[0] is entries[1]
    assert entries[0] is not entries[2]


def test__from_module__other_image_size__another_entry():
    module = TinyCNN()
    assert load_image_backbone(module, 16) is not load_image_backbone(module, 24)


def test__from_module__weights_that_are_not_in_memory__error():
    module = TinyMLP()
    module.fc2.to("meta")
    with pytest.raises(
        BackboneError, match="backbone must have all its weights in memory, got a TinyMLP with weights"
    ):
        load_image_backbone(module, 16)


def test__from_module__cannot_be_pickled__still_cached():
    module = TinyMLP()
    module.hook = lambda x: x
    first = load_image_backbone(module, 16)
    assert load_image_backbone(module, 16) is first
    module.fc1.weight.data.add_(1)
    assert load_image_backbone(module, 16) is not first


def test__from_module__used__original_never_mutated(images):
    module = TinyCNN().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    toy_classifier(module).fit(*images).predict(images[0])
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def small_backbone(size):
    return make_backbone(nn.Linear(size, 250, bias=False))  # 1000 * size bytes


def test__nbytes__decompositions__count(monkeypatch):
    backbone = small_backbone(2)
    before = backbone.nbytes
    site = layer_selection.find_sites(backbone.module)[0][0]
    factors = backbone.factors(site)
    assert before == 2000
    assert backbone.nbytes == before + factors.nbytes
    assert factors.nbytes == 4 * (250 * 2 + 2 + 2 * 2)


def test__factors__many_threads__one_decomposition(counts):
    backbone = small_backbone(40)
    site = layer_selection.find_sites(backbone.module)[0][0]
    results = []
    threads = [threading.Thread(target=lambda: results.append(backbone.factors(site))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts["decompositions"] == 1
    assert all(result is results[0] for result in results)


# ---------------------------------------------------------------------------- readings, copies on devices


META = torch.device("meta")


def test__replace__other_preprocessing__same_module_and_decompositions():
    backbone = small_backbone(3)
    site = layer_selection.find_sites(backbone.module)[0][0]
    other = dataclasses.replace(backbone, preprocess={"mean": [0.5]})
    assert other.factors(site) is backbone.factors(site)
    assert other.on(META).module is backbone.on(META).module
    assert other.on(META).preprocess == {"mean": [0.5]}
    assert backbone.preprocess == {}


def test__replace__another_module__decompositions_of_its_own():
    backbone, another = small_backbone(3), make_backbone(nn.Linear(3, 250, bias=False))
    site = layer_selection.find_sites(backbone.module)[0][0]
    factors = backbone.factors(site)
    other = dataclasses.replace(backbone, frozen=another.frozen)
    assert other.factors(site) is not factors
    assert other.fingerprint(site) != backbone.fingerprint(site)
    with pytest.raises(dataclasses.FrozenInstanceError):
        backbone.frozen = another.frozen


def test__on__same_device__the_module_itself_else_one_copy_with_its_own_factors():
    backbone = small_backbone(3)
    site = layer_selection.find_sites(backbone.module)[0][0]
    assert backbone.on("cpu").module is backbone.module
    there = backbone.on(META)
    assert there.device.type == "meta"
    assert there.module is backbone.on("meta").module is not backbone.module
    assert there.frozen.nbytes == there.module.weight.nbytes
    assert backbone.nbytes == 2 * there.nbytes
    assert backbone.factors(site).U.device.type == "cpu"
    assert there.frozen._factors == {}


class Numbered(nn.Module):
    """Stands for a module on a machine with several GPUs: it says where it was moved to."""

    def __init__(self, device):
        super().__init__()
        self.device = torch.device(device)
        self.register_buffer("weight", torch.zeros(2))

    def to(self, device):
        self.device = device
        return self


@pytest.mark.parametrize(
    ("lies_on", "asked_for", "moves"),
    [
        ("cuda:0", "cuda:1", True),
        ("cuda:1", "cuda", True),
        ("cuda:0", "cuda", False),
        ("cuda:0", "cuda:0", False),
        ("mps:0", "mps", False),
        ("cpu", "cuda:1", True),
    ],
)
def test__on__several_gpus__moved_unless_it_is_there(lies_on, asked_for, moves, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    devices = property(lambda self: (self.module.device,), lambda self, found: None)
    monkeypatch.setattr(backbone_module.FrozenModule, "devices", devices, raising=False)
    frozen = backbone_module.FrozenModule(Numbered(lies_on))
    there = frozen.on(asked_for)
    assert (there is not frozen) == moves
    assert frozen.on(asked_for) is there
    assert frozen.device == torch.device(lies_on)
    if moves:
        assert there.device == torch.device("cuda:0" if asked_for == "cuda" else asked_for)


def test__on__module_without_tensors__stays():
    backbone = make_backbone(nn.Flatten())
    assert backbone.on(META).module is backbone.module


# ------------------------------------------------------------------------------------------ memory layouts


def test__freeze__convolution_of_one_pixel_with_stride__same_output_and_gradient_without_a_stride():
    module = nn.Sequential(nn.Conv2d(3, 48, 1, stride=(2, 3), bias=False), nn.Conv2d(48, 4, 1, stride=2))
    images = toy_inputs()
    expected = module(images)
    expected.square().sum().backward()
    frozen = make_backbone(copy.deepcopy(module)).module
    network = Network(make_backbone(copy.deepcopy(module)))
    weight = module[0].weight.detach().clone().requires_grad_()
    network.set_tensor("0.weight", weight)
    found = network.module(images)
    found.square().sum().backward()
    torch.testing.assert_close(frozen(images), expected)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(weight.grad, module[0].weight.grad, rtol=1e-4, atol=1e-4)
    assert [part.stride for part in frozen] == [(1, 1), (2, 2)]  # enough channels: left as it is


@pytest.mark.parametrize("side", [224, pytest.param(256, marks=pytest.mark.slow)])
def test__fit__convolution_that_overwrites_memory_in_channels_last__in_a_process_of_its_own(side):
    script = f"""
        import torch
        from torch import nn
        from tests.toys import make_backbone
        from skve._backbones.network import Network
        network = Network(make_backbone(nn.Conv2d(3, 48, 1, stride=2, bias=False)))
        weight = network.module.weight.detach().clone().requires_grad_()
        network.set_tensor("weight", weight)
        images = torch.randn(2, 3, {side}, {side}).to(memory_format=torch.channels_last)
        for _ in range(10):
            network.features(images).square().mean().backward()
        assert torch.isfinite(weight.grad).all()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
