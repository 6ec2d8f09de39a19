"""Memory from shapes alone, beside arithmetic and what tensors really take."""

import copy
import math

import numpy as np
import pytest
import torch

import skve
from skve import SVEClassifier, SVETextClassifier
from skve._backbones import cache
from skve.testing import make_toy_text_backbone
from tests.toys import TinyCNN, TinyMLP, TinyTransformer

N_CLASSES = 3


def estimate(backbone=None, **parameters):
    settings = {"image_size": 16, "n_members": 2, "batch_size": 8, "precision": "float32", "device": "cpu"}
    clf = SVEClassifier(TinyMLP() if backbone is None else backbone, **settings | parameters)
    return skve.estimate_memory(clf, n_classes=N_CLASSES)


def n_bytes(tensors):
    return sum(4 * tensor.numel() for tensor in tensors)


def test__estimate_memory__sve__parts_as_by_hand():
    module, found = TinyMLP(), estimate().training
    shapes = [module.fc1.weight.shape, module.fc2.weight.shape]
    ranks = sum(map(min, shapes))
    head = 4 * N_CLASSES * (12 + 1)
    assert found.frozen_weights == n_bytes(module.parameters())
    assert found.factors == sum(4 * (min(shape) * (sum(shape) + 1)) for shape in shapes)
    assert found.members == 2 * 4 * ranks
    assert found.heads == 2 * head
    assert found.optimizer == 4 * (found.members + found.heads)  # gradient, two moments, the last round
    assert found.activations > 8 * 4 * (20 + 12)
    assert found.total == sum(getattr(found, name) for name in vars(found))


def test__estimate_memory__thousands_of_classes__the_probabilities_of_a_block_count():
    clf = SVEClassifier(TinyMLP(), image_size=16, n_members=4, batch_size=256, device="cpu")
    few, many = (skve.estimate_memory(clf, n_classes=n).prediction.activations for n in (3, 5000))
    assert few < 20e6
    assert 8 * 4 * 5000 * 256 * 6 < many < 3 * 2**28  # blocks of 6 batches, a copy and what entropy takes


def test__estimate_memory__deep__every_member_has_all_weights():
    module, found = TinyCNN(), estimate(TinyCNN(), ensemble="deep", n_members=3).training
    assert found.members == 3 * n_bytes(module.parameters())
    assert found.optimizer == 4 * (found.members + found.heads)
    assert found.factors == 0


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test__estimate_memory__quantised_weights__take_less(dtype):
    wide, narrow = estimate(TinyTransformer()).training, estimate(TinyTransformer(), backbone_dtype=dtype).training
    assert narrow.frozen_weights < wide.frozen_weights
    assert narrow.factors < wide.factors


def test__estimate_memory__early_stopping__another_state():
    without, with_best = estimate().training, estimate(early_stopping=True).training
    assert with_best.optimizer - without.optimizer == without.members + without.heads


@pytest.mark.parametrize("ensemble", ["head", "laplace"])
def test__estimate_memory__solved__no_optimizer(ensemble):
    found = estimate(ensemble=ensemble).training
    assert (found.members, found.optimizer) == (0, 0)
    assert found.heads == 2 * 4 * N_CLASSES * 13


def test__estimate_memory__dropout__one_network():
    one, four = (estimate(ensemble="dropout", n_members=n).training for n in (1, 4))
    assert four.members - one.members < 0.1 * one.members  # masks
    assert four.optimizer < 1.1 * one.optimizer


@pytest.mark.parametrize("backbone", [TinyMLP, TinyCNN, TinyTransformer])
def test__estimate_memory__batch__activations_grow_with_it(backbone):
    few, many = (estimate(backbone(), batch_size=n).training for n in (64, 256))
    assert 2.5 < many.activations / few.activations <= 4.01
    assert many.factors == few.factors


def test__estimate_memory__gpu_that_is_not_there__members_pass_together():
    parameters = {"batch_size": 256, "n_members": 4}
    apart = estimate(**parameters).training
    clf = SVEClassifier(TinyMLP(), image_size=16, precision="float32", **parameters)
    together = skve.estimate_memory(clf, n_classes=N_CLASSES, device="cuda").training
    assert together.activations > 1.5 * apart.activations


def test__estimate_memory__checkpointing__fewer_activations():
    config = pytest.importorskip("transformers").AutoConfig.for_model(
        "bert", hidden_size=64, intermediate_size=128, num_hidden_layers=6, num_attention_heads=2, vocab_size=50
    )
    found = [
        skve.estimate_memory(
            SVETextClassifier(config, activation_checkpointing=on, precision="float32", device="cpu"), length=64
        )
        for on in (False, True)
    ]
    assert found[1].training.activations < 0.6 * found[0].training.activations


def test__estimate_memory__model_larger_than_the_machine__in_seconds_without_weights():
    config = pytest.importorskip("transformers").AutoConfig.for_model("llama", num_hidden_layers=1)
    clf = SVETextClassifier(config, backbone_dtype="bfloat16", batch_size=2, n_members=2)
    found = skve.estimate_memory(clf, length=16, device="cuda").training
    layer = 4 * 4096 * 4096 + 3 * 4096 * 11008
    assert found.frozen_weights == pytest.approx(2 * (layer + 32000 * 4096), rel=0.001)
    assert found.factors == pytest.approx(4 * (4 * 2 * 4096**2 + 3 * 4096 * (4096 + 11008)), rel=0.001)


def test__estimate_memory__module__neither_changed_nor_needs_weights(monkeypatch):
    module = TinyTransformer()
    before = copy.deepcopy(module.state_dict())
    found = estimate(module)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert estimate(TinyTransformer().to("meta")) == found


def test__estimate_memory__predictions__kept_weights_within_the_bound_of_the_cache(monkeypatch):
    kept = estimate(n_members=4, predict_precision="float32").prediction
    assert kept.members > 4 * n_bytes([TinyMLP().fc1.weight, TinyMLP().fc2.weight])
    monkeypatch.setenv(cache.LIMIT, "0")
    assert estimate(n_members=4, predict_precision="float32").prediction.members < 0.1 * kept.members


def test__estimate_memory__print__a_table():
    rows = str(estimate()).splitlines()
    assert rows[0].split() == ["MB", "training", "prediction"]
    assert rows[-1].startswith("total")


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"n_classes": 0}, ValueError, "n_classes must be a positive integer, got 0"),
        ({"length": 1.5}, ValueError, r"length must be a positive integer, got 1\.5"),
        ({"device": "tpu"}, ValueError, "device must be one of .*, got 'tpu'"),
    ],
)
def test__estimate_memory__bad_parameter__error(parameters, error, message):
    with pytest.raises(error, match=message):
        skve.estimate_memory(SVEClassifier(TinyMLP()), **parameters)


def test__estimate_memory__no_classifier__type_error():
    with pytest.raises(TypeError, match="estimator must be an SVEClassifier or an SVETextClassifier, got str"):
        skve.estimate_memory("bundled:all-MiniLM-L6-v2")


@pytest.mark.parametrize("clf", [SVEClassifier("resnet_of_nobody"), SVETextClassifier("/no/such/folder")])
def test__estimate_memory__backbone_without_a_configuration__value_error(clf):
    with pytest.raises(ValueError, match="so that its memory can be estimated without weights, got"):
        skve.estimate_memory(clf)


@pytest.mark.slow
def test__estimate_memory__real_step__as_torch_counts_it():
    """The largest sum of what torch's own profiler saw allocated and freed in a real fit."""
    import numpy as np

    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 256, (128, 16, 16, 3), dtype=np.uint8), np.arange(128) % N_CLASSES
    clf = SVEClassifier(
        TinyTransformer(),
        image_size=16,
        batch_size=128,
        precision="float32",
        device="cpu",
        max_steps=2,
        calibrate=None,
    )
    clf.fit(X, y)  # what is computed once
    with torch.profiler.profile(profile_memory=True) as profile:
        clf.fit(X, y)
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    found = skve.estimate_memory(clf, n_classes=N_CLASSES).training
    assert math.isclose(found.activations, peak, rel_tol=0.15)


@pytest.mark.parametrize("kind", ["image", "text"])
def test__estimate_memory__embedded_backbone__as_before_it_was_saved(kind, tmp_path):
    settings = {"n_members": 2, "max_epochs": 1, "device": "cpu"}
    if kind == "image":
        clf = SVEClassifier("bundled:efficientnet_lite0", image_size=32, layers="last:1", **settings)
        X = np.zeros((8, 32, 32, 3), "uint8")
    else:
        clf = SVETextClassifier(make_toy_text_backbone(), **settings)
        X = ["a few words", "other words"] * 4
    clf.fit(X, [0, 1] * 4).save(tmp_path / "model", include_backbone=True)
    loaded = skve.load(tmp_path / "model")
    found, expected = (skve.estimate_memory(each, length=16).training for each in (loaded, clf))
    assert found.frozen_weights == expected.frozen_weights
    assert found.total == pytest.approx(expected.total, rel=0.05)


def test__estimate_memory__more_tokens_than_positions__error():
    with pytest.raises(ValueError, match="length must be at most 64, the positions of the backbone, got 65"):
        skve.estimate_memory(SVETextClassifier(make_toy_text_backbone()), length=65)


def test__estimate_memory__choices_scored_by_their_texts__their_number_and_the_vocabulary_count():
    model, tokenizer = make_toy_text_backbone("llama", lm=True)
    clf = SVETextClassifier((model, tokenizer), head="likelihood", batch_size=4, n_members=2, device="cpu")
    few, many = (skve.estimate_memory(clf, n_classes=n, length=16) for n in (2, 4))
    assert many.training.activations > 1.5 * few.training.activations
    n_scored = 4 * 4 * 8  # half of each sequence
    assert many.prediction.activations > 4 * n_scored * len(tokenizer)
    assert few.training.heads == 2 * 4 * (2 * 2 + 2)


# --------------------------------------------------------------------------------------- several devices

BLOCKS = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "vocab_size": 50}
GPUS = ["cuda:0", "cuda:1"]


def of_llama(device="auto", **parameters):
    """Estimate for a small LLaMA of four blocks, beside which the embeddings are small."""
    config = pytest.importorskip("transformers").AutoConfig.for_model("llama", num_hidden_layers=4, **BLOCKS)
    settings = {"batch_size": 4, "n_members": 4, "precision": "float32", **parameters}
    return skve.estimate_memory(SVETextClassifier(config, device=device, **settings), length=16, device="cuda")


@pytest.mark.parametrize(
    "parameters",
    [{}, pytest.param({"backbone_dtype": "int4"}, marks=pytest.mark.slow), {"activation_checkpointing": True}],
    ids=str,
)
def test__estimate_memory__two_devices__each_a_half(parameters):
    one, two = of_llama(**parameters), of_llama(GPUS, **parameters)
    for name in ("frozen_weights", "factors", "members"):
        whole, part = getattr(one.training, name), getattr(two.training, name)
        assert 0.4 * whole < part < 0.65 * whole, name
    assert two.training.activations < one.training.activations
    assert two.training.total < 0.75 * one.training.total
    assert two.prediction.total < one.prediction.total


def test__estimate_memory__deep_on_two_devices__each_half_of_all_weights():
    one, two = of_llama(ensemble="deep"), of_llama(GPUS, ensemble="deep")
    assert two.training.optimizer < 0.6 * one.training.optimizer
