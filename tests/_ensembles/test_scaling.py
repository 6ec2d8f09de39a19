"""Members that scale channels or train the biases: how they start, and which layers they own."""

import numpy as np
import pytest
import torch
from torch import nn

from tests._ensembles.test_base import rule_of_linear
from tests.toys import (
    ReadsWeight,
    TinyCNN,
    TinyTransformer,
    arrays_of,
    seeded,
    toy_classifier,
)


def test__batch__init__signs_or_normal_around_one():
    for init, check in (("signs", lambda r: set(r.tolist()) == {-1.0, 1.0}), ("normal", is_normal_around_one)):
        rule, _, _ = rule_of_linear(nn.Sequential(nn.Linear(2000, 3000)), "batch", {"init": init})
        member = rule.new_member(torch.Generator().manual_seed(0))
        assert check(1 + member["input_offsets.0"])
        assert check(1 + member["output_offsets.0"])
        assert member["input_offsets.0"].shape == (2000,)
        assert member["output_offsets.0"].shape == (3000,)


def is_normal_around_one(values):
    return abs(float(values.mean()) - 1) < 0.05 and abs(float(values.std()) - 0.5) < 0.05


def test__bias__layer_without_one__gets_one(images):
    classifier = toy_classifier(TinyCNN(), ensemble="bias", member_lr=1e-2).fit(*images)
    owned = {key for key in arrays_of(classifier) if key.startswith("bias_offsets.")}
    assert owned == {f"bias_offsets.{layer}" for layer in ("stem", "pointwise", "dilated")}
    assert np.abs(arrays_of(classifier)["bias_offsets.stem"]).max() > 1e-3  # TinyCNN's stem has none


def test__bias__attention_without_biases__projection_alone_gets_one(images):
    module = TinyTransformer()
    for block in module.blocks:
        block.attn = seeded(nn.MultiheadAttention(12, 2, batch_first=True, bias=False))
    layers = ["blocks.0.attn", "blocks.1.attn"]
    classifier = toy_classifier(module, ensemble="bias", layers=layers, member_lr=1e-2).fit(*images)
    assert np.isfinite(classifier.predict_proba(images[0])).all()
    assert {key for key in arrays_of(classifier) if key.startswith("bias")} == {f"bias_offsets.{x}" for x in layers}


def test__bias__bias_that_is_not_read__left_out_with_a_warning(images):
    class ReadsNoBias(ReadsWeight):
        def forward(self, x):
            return self.out(torch.tanh(nn.functional.linear(self.pool(x).flatten(1), self.lin.weight)))

    with pytest.warns(UserWarning, match=r"lin \(the features do not depend on it\)"):
        classifier = toy_classifier(ReadsNoBias(), ensemble="bias", max_epochs=1).fit(*images)
    assert "bias_offsets.lin" not in arrays_of(classifier)
