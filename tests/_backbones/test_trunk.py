"""Where a pass is resumed behind the layers in front of the first adapted one, and fits that compute these once."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from skve import SVETextClassifier
from skve._backbones import layer_selection, trace, trunk
from skve._training import loop
from skve.testing import make_toy_text_backbone
from tests.toys import (
    TinyBlock,
    TinyCNN,
    TinyMLP,
    TinyTransformer,
    assert_members_close,
    make_backbone,
    seeded,
    toy_classifier,
    toy_inputs,
)

TEXTS = ["a b c", "d", "e f", "a c e g i", "b", "h h h", "i f", "c"] * 2
LABELS = np.arange(16) % 2


class Stack(nn.Module):
    """Three layers, whose first output goes through `between`, a function of no module."""

    def __init__(self, between=torch.tanh):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 5, 1)
        self.between = between
        seeded(self)

    def forward(self, x):
        return self.third(F.relu(self.second(self.between(self.first(x)))))


def found(module, layers, inputs=None, dtype=torch.float32):
    backbone = make_backbone(module)
    sites, _ = layer_selection.find_sites(backbone.module)
    changed = [site.parameter for site in layer_selection.select_sites(backbone.module, sites, layers)]
    inputs = toy_inputs() if inputs is None else inputs
    traced = trace.trace(backbone, changed, inputs, len(inputs))
    return trunk.find_trunk(backbone, traced.shareable, inputs, dtype)


def read_of(of):
    """The modules whose outputs are kept, with the shape of a sample's row."""
    leaves = {
        name: [row.shape for row in trunk._leaves(output) if row.is_read] for name, output in of.outputs.items()
    }
    return {name: shapes for name, shapes in leaves.items() if shapes}


def cut_at_random(x):
    return F.dropout(x, 0.5, training=True)


def less_the_mean_of_the_batch(x):
    return x - x.mean(0)


def test__find_trunk__transformer__the_last_block_in_front_is_kept_and_no_other_computed():
    module = TinyTransformer()
    module.blocks.append(TinyBlock(12))
    seeded(module)
    of = found(module, "last:1")
    assert read_of(of) == {"blocks.1": [(16, 12)]}
    assert {"patch_embed", "blocks.0", "blocks.1"} == set(of.outputs)  # the norm behind is computed
    assert of.nbytes == 16 * 12 * 4


def test__find_trunk__convolutions__normalisation_and_activation_in_place_computed_anew():
    of = found(TinyCNN(), ["pointwise", "dilated"])
    assert read_of(of) == {"stem": [(8, 8, 8)]}


def test__find_trunk__bfloat16__rows_in_the_arithmetic_of_the_training():
    of = found(TinyCNN(), ["dilated"], dtype=torch.bfloat16)
    assert of.nbytes == 2 * sum(np.prod(shape) for shapes in read_of(of).values() for shape in shapes)


@pytest.mark.parametrize("layers", ["all", ["first"]])
def test__find_trunk__nothing_that_could_be_adapted_in_front__none(layers):
    assert found(Stack(), layers) is None


@pytest.mark.parametrize("between", [cut_at_random, less_the_mean_of_the_batch])
def test__find_trunk__what_lies_behind_draws_or_mixes_samples__none(between):
    module = Stack(between)
    assert found(module, ["third"]) is None


def test__find_trunk__what_lies_behind_writes_into_it__none():
    assert read_of(found(Stack(torch.tanh), ["second", "third"])) == {"first": [(4, 14, 14)]}
    assert found(Stack(torch.tanh_), ["second", "third"]) is None


def test__find_trunk__random_front__generators_as_they_were(global_state):
    backbone, inputs = make_backbone(Stack(cut_at_random)), toy_inputs()
    traced = trace.trace(backbone, ["third.weight"], inputs, len(inputs))
    before = global_state()
    assert trunk.find_trunk(backbone, traced.shareable, inputs) is None
    assert global_state() == before


def text_inputs(family, texts):
    model = make_toy_text_backbone(family)
    clf = SVETextClassifier(model)
    backbone = clf._load_backbone(model, classes=np.arange(2))
    items = clf._check_inputs(texts, reset=True)
    pipeline = clf._make_pipeline(items, backbone, torch.device("cpu"), training=True)
    return backbone, pipeline.prepare(pipeline.load(np.arange(len(texts))), None)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "distilbert"])
def test__find_trunk__texts__rows_of_each_length_and_padding_without_effect(family):
    backbone, inputs = text_inputs(family, TEXTS[:4])
    sites, _ = layer_selection.find_sites(backbone.module)
    changed = [site.parameter for site in layer_selection.select_sites(backbone.module, sites, "last:1")]
    shareable = trace.trace(backbone, changed, inputs, 4).shareable
    of = trunk.find_trunk(backbone, shareable, inputs)
    ((name, shapes),) = read_of(of).items()
    assert name.endswith(".0")
    assert shapes == [(16,)]
    hidden = torch.randn(*inputs["input_ids"].shape, 16)
    outputs = {layer: trunk._mapped(output, lambda row: hidden) for layer, output in of.outputs.items()}
    rows = of.split(outputs, inputs)
    assert [len(row) for ((row,),) in rows] == inputs["attention_mask"].sum(1).tolist()
    joined = trunk._leaves(of.join(rows, inputs)[name])[0]
    mask = inputs["attention_mask"][..., None] > 0
    assert torch.equal(joined, hidden * mask)


@pytest.mark.parametrize("family", ["t5", "fnet"])
def test__find_trunk__texts__what_is_not_of_one_text__none(family):
    backbone, inputs = text_inputs(family, TEXTS[:4])
    sites, _ = layer_selection.find_sites(backbone.module)
    changed = [site.parameter for site in layer_selection.select_sites(backbone.module, sites, "last:1")]
    assert trunk.find_trunk(backbone, trace.trace(backbone, changed, inputs, 4).shareable, inputs) is None


# ------------------------------------------------------------------------------------------------- fits


@pytest.fixture
def fit_both(monkeypatch):
    """Return a function that fits with and without a kept trunk, and says how many were kept."""

    def fit(classifier, X, y, **others):
        kept, original = [], loop.keep_trunk

        def noting(*args):
            kept.append(original(*args))
            return kept[-1]

        with monkeypatch.context() as patched:
            patched.setattr(loop, "keep_trunk", noting)
            one = copy.copy(classifier).fit(X, y, **others)
            patched.setattr(loop, "keep_trunk", lambda *args: None)
            other = copy.copy(classifier).fit(X, y, **others)
        return one, other, [each is not None for each in kept]

    return fit


@pytest.mark.parametrize(
    ("backbone", "layers", "parameters"),
    [
        (TinyTransformer, "last:1", {}),
        (TinyMLP, ["fc2"], {"ensemble_params": {"folds": 2}, "max_epochs": 4}),
        (TinyMLP, ["fc2"], {"ensemble_params": {"order": "own"}}),
        (TinyCNN, ["pointwise", "dilated"], {"ensemble": "lora"}),
        (TinyTransformer, "last:1", {"precision": "bfloat16"}),
    ],
)
def test__fit__kept_trunk__the_same_members(images, fit_both, backbone, layers, parameters):
    one, other, kept = fit_both(toy_classifier(backbone(), layers=layers, **parameters), *images)
    assert kept == [True]
    assert_members_close(one, other, atol=1e-3 if "precision" in parameters else 1e-6)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test__fit__texts__kept_trunk__the_same_members(fit_both, family):
    classifier = SVETextClassifier(
        make_toy_text_backbone(family),
        layers="last:1",
        max_epochs=3,
        batch_size=8,
        n_members=4,
        precision="float32",
        random_state=0,
    )
    one, other, kept = fit_both(classifier, TEXTS, LABELS)
    assert kept == [True]
    assert_members_close(one, other, atol=1e-6)


@pytest.mark.parametrize("order", ["shared", "own"])
def test__fit__prompts_with_choices__kept_trunk__the_same_members(fit_both, order):
    questions = [("to be", ["or", "not to be"]), ("to", ["be so", "not", "or"]), ("so not", ["be", "or", "to", "is"])]
    classifier = SVETextClassifier(
        make_toy_text_backbone("llama", lm=True),
        head="likelihood",
        layers="last:1",
        ensemble_params={"order": order},
        max_epochs=3,
        batch_size=4,
        n_members=2,
        member_lr=0.1,
        precision="float32",
        random_state=0,
    )
    one, other, kept = fit_both(classifier, questions * 4, [0, 2, 3] * 4)
    assert kept == [True]
    assert_members_close(one, other, atol=1e-5)


def test__fit__validation__of_a_kept_trunk_as_well(images, validation, fit_both):
    classifier = toy_classifier(TinyTransformer(), layers="last:1", early_stopping=True)
    one, other, kept = fit_both(classifier, *images, X_val=validation[0], y_val=validation[1])
    assert kept == [True, True]
    np.testing.assert_allclose(one.history_["valid_nll"], other.history_["valid_nll"], rtol=1e-6)


def test__fit__members_in_one_pass__kept_trunk__the_same_members(images, fit_both, train_in_chunks):
    train_in_chunks(2)
    one, other, kept = fit_both(toy_classifier(TinyTransformer(), layers="last:1"), *images)
    assert kept == [True]
    assert_members_close(one, other, atol=1e-6)


@pytest.mark.parametrize(
    "parameters", [{"augment": "light"}, {"max_epochs": 1}, {"layers": "all"}, {"ensemble": "deep"}]
)
def test__fit__inputs_that_change_or_nothing_in_front__nothing_kept(images, fit_both, parameters):
    _, _, kept = fit_both(toy_classifier(TinyTransformer(), **{"layers": "last:1", **parameters}), *images)
    assert not any(kept)


def test__fit__trunk_beyond_the_bound__nothing_kept(images, fit_both, monkeypatch):
    needed = 24 * 16 * 12 * 4
    for limit, expected in [(2 * needed, True), (2 * needed - 2, False)]:
        monkeypatch.setenv("SKVE_CACHE_LIMIT", str(limit))
        _, _, kept = fit_both(toy_classifier(TinyTransformer(), layers="last:1"), *images)
        assert kept == [expected]


def test__fit__memory_ends_while_the_trunk_is_computed__fit_without_it(images, monkeypatch):
    def short(self, *args):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    expected = toy_classifier(TinyTransformer(), layers="last:1").fit(*images)
    monkeypatch.setattr(trunk.Trunk, "split", short)
    monkeypatch.setattr(trunk, "_resumes", lambda *args: True)
    assert_members_close(toy_classifier(TinyTransformer(), layers="last:1").fit(*images), expected, atol=1e-6)


class CountingBlock(TinyBlock):
    seen: list = []  # of the class: networks copy modules

    def forward(self, x):
        self.seen.append(len(x))
        return super().forward(x)


class CountingTransformer(TinyTransformer):
    def __init__(self):
        super().__init__()
        self.blocks[0] = CountingBlock(12)
        seeded(self)


@pytest.mark.parametrize("order", ["shared", "own"])
def test__fit__more_epochs_and_members__each_sample_once_through_the_front(images, empty_cache, order):
    X, y = images
    counts = []
    for n_epochs, n_members in [(2, 1), (2, 3), (6, 3)]:
        classifier = toy_classifier(
            CountingTransformer(),
            layers="last:1",
            max_epochs=n_epochs,
            n_members=n_members,
            ensemble_params={"order": order},
        ).fit(X, y)
        CountingBlock.seen.clear()
        classifier.fit(X, y)  # again: novelty has the features of the frozen backbone
        counts.append(sum(n for n in CountingBlock.seen if n > 2))  # without the few on which it is tried
    assert counts == [len(X)] * 3
