"""What one forward pass finds out about a backbone."""

import torch.nn.functional as F
from torch import nn

from skve._backbones import trace
from tests.toys import ReadsWeight, TinyCNN, TinyTransformer, make_backbone, toy_inputs


def test__trace__module_called_twice__not_shared():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice = nn.Conv2d(3, 3, 1)
            self.last = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.last(self.twice(self.twice(x)))

    traced = trace.trace(make_backbone(Twice()), ["last.weight"], toy_inputs(), 4)
    assert traced.shareable == []


def test__trace__bypassed_layer__found_as_used():
    backbone = make_backbone(ReadsWeight())
    traced = trace.trace(backbone, ["lin.weight", "out.weight"], toy_inputs(), 4)
    assert traced.used == {"lin.weight", "out.weight"}
    assert set(traced.positions) >= {"out"}
    assert "lin" not in traced.positions
    assert not {"lin", "out", ""} & set(traced.shareable)


def test__trace__bypassed_layer_comes_first__nothing_after_it_is_shared():
    class Bypass(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Conv2d(3, 3, 1)
            self.norm = nn.BatchNorm2d(3)
            self.last = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.last(self.norm(F.conv2d(x, self.lin.weight, self.lin.bias)))

    traced = trace.trace(make_backbone(Bypass()), ["lin.weight"], toy_inputs(), 4)
    assert traced.shareable == []


def test__trace__unused_layer__not_used():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = nn.Conv2d(3, 3, 1)
            self.unused = nn.Conv2d(3, 3, 1)
            self.without_effect = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            self.without_effect(x)
            return self.used(x)

    changed = ["used.weight", "unused.weight", "without_effect.weight"]
    assert trace.trace(make_backbone(Unused()), changed, toy_inputs(), 4).used == {"used.weight"}


def test__trace__tokens__positions_for_each_sample():
    traced = trace.trace(make_backbone(TinyTransformer()), ["blocks.0.fc1.weight"], toy_inputs(), 4)
    assert traced.positions["blocks.0.fc1"] == 16
    assert traced.n_features == 12


def test__trace__backbone__frozen_and_without_hooks_afterwards():
    backbone = make_backbone(TinyCNN())
    trace.trace(backbone, ["stem.weight"], toy_inputs(), 4)
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())
    assert not any(module._forward_hooks for module in backbone.module.modules())
