"""Low-rank members: how they start, and the rank of narrow layers."""

import pytest
import torch
from torch import nn

from tests._ensembles.test_base import rule_of_linear


def test__lora__start__xavier_with_gain_and_zeros():
    module = nn.Sequential(nn.Linear(600, 400))
    rule, _, _ = rule_of_linear(module, "lora", {"rank": 8, "gain": 10.0})
    member = rule.new_member(torch.Generator().manual_seed(0))
    down, bound = member["down.0"], 10 * (6 / 608) ** 0.5
    assert down.shape == (8, 600)
    assert float(down.abs().max()) == pytest.approx(bound, rel=0.01)
    assert float(down.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    assert member["up.0"].shape == (400, 8)
    assert not member["up.0"].any()


def test__lora__rank_above_the_smaller_side__that_side():
    rule, _, _ = rule_of_linear(nn.Sequential(nn.Linear(20, 3)), "lora", {"rank": 8})
    assert rule.new_member(torch.Generator())["down.0"].shape == (3, 20)
