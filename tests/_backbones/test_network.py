"""Private networks over one frozen backbone, sharing what members have in common, and the trace."""

import itertools
import threading

import pytest
import torch
from torch import nn

from skve import _ensembles
from skve._backbones import layer_selection, trace
from skve._backbones import network as network_module
from tests.toys import TinyCNN, TinyMLP, TinyTransformer, make_backbone, toy_inputs

# ---------------------------------------------------------------------------------------------- Network


def test__network__replaced_tensor__backbone_untouched():
    backbone = make_backbone(TinyMLP())
    inputs = toy_inputs()
    before = backbone.features(backbone.module, inputs).clone()
    network = network_module.Network(backbone)
    network.set_tensor("fc2.weight", torch.zeros(12, 20))
    assert torch.equal(network.features(inputs), backbone.module.fc2.bias.expand(4, 12))
    assert torch.equal(backbone.features(backbone.module, inputs), before)
    assert isinstance(backbone.module.fc2.weight, nn.Parameter)


def test__network__many_views__share_all_tensors():
    backbone = make_backbone(TinyCNN())
    views = [network_module.Network(backbone) for _ in range(2)]
    for name, tensor in [*backbone.module.named_parameters(), *backbone.module.named_buffers()]:
        assert all(dict(v.module.state_dict(keep_vars=True))[name] is tensor for v in views)
    assert views[0].module is not views[1].module


def test__network__threads_with_networks_of_their_own__serial_bits():
    backbone = make_backbone(TinyTransformer())
    sites, _ = layer_selection.find_sites(backbone.module)
    rule = _ensembles.SingularValues(backbone, sites, init_scale=0.3, train_bias=False)
    members = [rule.new_member(torch.Generator().manual_seed(i)) for i in range(6)]
    inputs = toy_inputs()

    def run(member):
        network = network_module.Network(backbone)
        own = _ensembles.SingularValues(backbone, sites, init_scale=0.3, train_bias=False)
        outputs = []
        with torch.no_grad():
            for _ in range(5):
                own.install(network, member)
                outputs.append(network.features(inputs))
        return outputs

    serial = [run(member)[0] for member in members]
    results = [None] * len(members)

    def work(index):
        results[index] = run(members[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(members))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, outputs in zip(serial, results, strict=True):
        assert all(torch.equal(output, expected) for output in outputs)
    assert len({tuple(output.flatten().tolist()) for output in serial}) == len(members)


# -------------------------------------------------------------------------------------- share and trace


def count_calls(network, layers):
    """Count the forwards that are really computed, below what `share` puts on top of them."""
    counts = dict.fromkeys(layers, 0)

    def counting(layer, forward):
        def wrapped(*args):
            counts[layer] += 1
            return forward(*args)

        return wrapped

    for layer in layers:
        network._modules[layer].forward = counting(layer, network._modules[layer].forward)
    return counts


def test__share__modules_before_the_first_adapted_layer__once_a_batch():
    backbone = make_backbone(TinyCNN())
    inputs = toy_inputs()
    changed = ["pointwise.weight", "dilated.weight"]
    traced = trace.trace(backbone, changed, inputs, len(inputs))
    assert {"stem", "depthwise", "bn2"} <= set(traced.shareable)
    assert not {"pointwise", "dilated", ""} & set(traced.shareable)
    network = network_module.Network(backbone)
    counts = count_calls(network, ["depthwise", "bn2", "pointwise"])
    network.share(traced.shareable)
    for _ in range(3):  # batches
        network.new_batch()
        for _ in range(4):  # members
            network.features(inputs)
    assert counts == {"depthwise": 3, "bn2": 3, "pointwise": 12}


def test__share__inplace_write_after_a_shared_module__right_result_for_every_member():
    class WritesInPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3)
            self.head = nn.Conv2d(4, 5, 1)

        def forward(self, x):
            x = self.stem(x)
            x.mul_(0.5).add_(1)  # twice on the same tensor would be another result
            return self.head(x)

    backbone = make_backbone(WritesInPlace())
    inputs = toy_inputs()
    expected = backbone.features(backbone.module, inputs)
    traced = trace.trace(backbone, ["head.weight"], inputs, len(inputs))
    assert traced.shareable == ["stem"]
    network = network_module.Network(backbone)
    network.share(traced.shareable)
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(network.features(inputs), expected)


def test__share__inplace_activations__every_member_as_without_sharing():
    backbone = make_backbone(TinyCNN())
    inputs = toy_inputs()
    traced = trace.trace(backbone, ["pointwise.weight"], inputs, len(inputs))
    assert "act1" in traced.shareable  # nn.ReLU(inplace=True) writes into bn1's output
    network = network_module.Network(backbone)
    network.share(traced.shareable)
    expected = backbone.features(backbone.module, inputs)
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(network.features(inputs), expected)


def test__share__new_batch__not_the_outputs_of_the_last():
    backbone = make_backbone(TinyCNN())
    one, other = toy_inputs(seed=0), toy_inputs(seed=1)
    network = network_module.Network(backbone)
    network.share(trace.trace(backbone, ["dilated.weight"], one, 4).shareable)
    network.features(one)
    network.new_batch()
    assert torch.equal(network.features(other), backbone.features(backbone.module, other))


def test__share__nothing_changes__whole_network_once():
    backbone = make_backbone(TinyMLP())
    assert trace.trace(backbone, [], toy_inputs(), 4).shareable == [""]


def test__share__outputs_swapped__those_of_the_batch_come_back():
    backbone = make_backbone(TinyMLP())
    network = network_module.Network(backbone)
    network.share([""])
    first = network.features(toy_inputs(seed=0))
    kept = network.shared_outputs
    network.shared_outputs = {}
    second = network.features(toy_inputs(seed=1))
    network.shared_outputs = kept
    assert torch.equal(network.features(toy_inputs(seed=1)), first)
    assert not torch.equal(first, second)


# ------------------------------------------------------------------- replaced, checkpointed, shared forwards


CHANGES = {
    "batch norms": lambda network, layers: network.simplify_batch_norms(),
    "checkpoint": lambda network, layers: network.checkpoint(layers),
    "share": lambda network, layers: network.share(layers),
}


@pytest.mark.parametrize("order", list(itertools.permutations(CHANGES)), ids=" ".join)
def test__forwards__changed_in_any_order__batch_norm_replaced_once_a_batch_and_again_in_backward(order):
    backbone = make_backbone(TinyCNN())
    inputs = toy_inputs().requires_grad_()
    network = network_module.Network(backbone)
    for change in order:
        CHANGES[change](network, ["bn2"])
    simple, calls = network.forward_of("bn2"), []
    assert isinstance(simple, network_module._FrozenBatchNorm)
    network.set_forward("bn2", lambda x: calls.append(1) or simple(x))
    for _ in range(2):  # members
        features = network.features(inputs)
    assert len(calls) == 1
    torch.testing.assert_close(features, backbone.features(backbone.module, inputs), rtol=1e-5, atol=1e-5)
    features.sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize("change", ["tensor", "mode"])
def test__simplify_batch_norms__statistics_replaced_afterwards__computed_anew(change):
    backbone = make_backbone(TinyCNN())
    inputs = toy_inputs()
    networks = [network_module.Network(backbone) for _ in range(2)]
    networks[1].simplify_batch_norms()
    for network in networks:
        if change == "tensor":
            network.set_tensor("bn1.running_mean", torch.ones(8))
        else:
            network.set_tensor("bn1.running_mean", torch.zeros(8))
            network.set_tensor("bn2.running_mean", torch.zeros(8))
            network.train_batch_norms(True)
    with torch.no_grad():
        expected, found = (network.features(inputs) for network in networks)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


class Convolutions(nn.Module):
    """Convolutions before normalisations, with and without a bias, and one whose output is used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.depthwise, self.norm2 = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6)
        self.twice, self.norm3 = nn.Conv2d(6, 5, 1), nn.BatchNorm2d(5)
        self.act = nn.SiLU(inplace=True)
        for norm in (self.norm1, self.norm2, self.norm3):
            nn.init.normal_(norm.weight, 1, 0.3)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = self.act(self.norm1(self.first(x)))
        x = self.twice(self.act(self.norm2(self.depthwise(x))))
        return (x + self.norm3(x)).mean((2, 3))


def test__trace__convolutions_before_normalisations__found_where_nothing_else_reads_them():
    traced = trace.trace(make_backbone(Convolutions()), ["first.weight"], toy_inputs(), 4)
    assert traced.normalised == {"norm1": "first", "norm2": "depthwise"}
    traced = trace.trace(make_backbone(Convolutions()), ["twice.weight"], toy_inputs(), 4)
    assert traced.normalised == {}  # those in front of the changed one are computed once for all members


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changed", ["first.weight", "depthwise.bias"])
def test__fold_batch_norms__weights_and_biases_set_later__as_without(changed, dtype):
    backbone = make_backbone(Convolutions())
    traced = trace.trace(backbone, ["first.weight"], toy_inputs(), 4)
    networks = [network_module.Network(backbone) for _ in range(2)]
    networks[1].fold_batch_norms(traced.normalised)
    networks[1].avoid_copies()
    results = []
    for network in networks:
        leaf = (1.3 * dict(backbone.module.named_parameters())[changed]).detach().requires_grad_()
        network.set_tensor(changed, leaf)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            features = network.features(toy_inputs())
        features.float().square().sum().backward()
        results.append((features.float(), leaf.grad))
        network.put(dict(network.replaced))  # what is in place stays what it is
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            assert torch.equal(network.features(toy_inputs()), features)
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(one.detach().abs().max()))


def test__fold_batch_norms__normalisation_changes_afterwards__error():
    backbone = make_backbone(Convolutions())
    network = network_module.Network(backbone)
    network.fold_batch_norms({"norm1": "first"})
    with pytest.raises(RuntimeError, match="norm1 is part of a convolution"):
        network.set_tensor("norm1.bias", torch.zeros(6))


def test__fold_batch_norms__standardised_weights__left_alone():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    module = Convolutions()
    module.first = Standardised(3, 6, 3, padding=1, bias=False)
    network = network_module.Network(make_backbone(module))
    network.fold_batch_norms({"norm1": "first"})
    assert not network.folded


def doubled(module):
    module.first.register_forward_hook(lambda module, args, output: 2 * output)


def normed(module):
    torch.nn.utils.spectral_norm(module.depthwise)


def read_aside(module):
    own = module.forward
    seen = []
    module.first.register_forward_hook(lambda module, args, output: seen.append(output.detach().mean()))
    module.forward = lambda x: own(x) + seen.pop()


@pytest.mark.parametrize("change", [doubled, normed, read_aside])
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
def test__trace__graph_does_not_show_who_reads_a_convolution__nothing_folded(change):
    module = Convolutions().eval()
    change(module)
    assert trace.trace(make_backbone(module), ["first.weight"], toy_inputs(), 4).normalised == {}
