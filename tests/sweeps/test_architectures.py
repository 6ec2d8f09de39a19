"""Families of image models of timm and torchvision from small configurations; the list is that of the docs' table."""

import copy
import csv
import os
import pathlib
import runpy
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
import timm
import torch
from torch import nn

from skve._backbones import from_timm, layer_selection
from skve._backbones.from_timm import load_image_backbone
from tests.sweeps import sweeps
from tests.toys import make_backbone, seeded, toy_classifier

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "examples" / "benchmarks" / "architectures.py"))
FAMILIES = {family.model: family for family in SCRIPT["FAMILIES"]}


def built(family, num_classes=5):
    """A small module with random weights, a classifier on it."""
    if ":" not in family.model and not timm.is_model(family.model):
        pytest.skip(f"timm {timm.__version__} has no {family.model}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return seeded(family.build(small=True, num_classes=num_classes))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(family, id=family.model, marks=[pytest.mark.slow] if family.slow else [])
        for family in FAMILIES.values()
    ],
)
def case(request):
    """(backbone, batch of two images): pytest runs all tests of a family in a row, on one decomposition."""
    family = request.param
    backbone = load_image_backbone(built(family), family.side)
    return backbone, torch.randn(2, 3, family.side, family.side, generator=torch.Generator().manual_seed(0))


def test__family__zero_log_ratios__plain_output_bit_for_bit(case):
    sweeps.check_zero_log_ratios_give_the_plain_output(*case, 2)


@pytest.mark.parametrize(("training", "n_positions"), [(True, 1), (False, 10**6)], ids=["two factors", "folded"])
def test__family__changed_ratios__as_rebuilt_weights(case, training, n_positions):
    sweeps.check_changed_ratios_give_the_rebuilt_weights(*case, 2, training=training, n_positions=n_positions)


def test__family__one_step__every_ratio_gets_a_gradient(case):
    backbone, batch = case
    sweeps.check_every_ratio_gets_a_gradient(
        sweeps.ensemble_of(backbone, batch, 2, training=True, n_positions=2), batch
    )


def test__family__fine_tuned_members__as_modules_of_their_own(case):
    sweeps.check_fine_tuned_members_are_modules_of_their_own(*case)


@pytest.mark.slow
def test__family__members_in_one_pass__as_one_by_one(case):
    """Where torch.vmap cannot, training falls back to one member after another."""
    try:
        sweeps.check_members_in_one_pass_are_as_one_by_one(*case, 2)
    except RuntimeError as error:
        pytest.skip(f"no vmap: {error}")


# -------------------------------------------------------------------------------- fitted through the estimator


def fit(model, **parameters):
    """Fit a family's small module on ten images; return the classifier and the warnings of skve."""
    family = FAMILIES[model]
    images = np.random.default_rng(0).integers(0, 256, (10, family.side, family.side, 3)).astype(np.uint8)
    classifier = toy_classifier(built(family), image_size=family.side, max_epochs=1, **parameters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        classifier.fit(images, [0, 1] * 5).predict_proba(images)
    return classifier, [str(one.message) for one in caught if one.category is UserWarning and "torch" not in str(one)]


@pytest.mark.parametrize(
    ("model", "reasons"),
    [
        ("coat_tiny", ["its weight is tied"]),
        ("sequencer2d_s", ["a LSTM: only linear layers and 2-D convolutions are adapted"]),
        pytest.param(
            "tf_efficientnet_cc_b0_4e",
            ["a CondConv2d: only linear layers and 2-D convolutions are adapted"],
            marks=pytest.mark.slow,
        ),
        pytest.param("torchvision:googlenet", ["the features do not depend on it"], marks=pytest.mark.slow),
    ],
)
def test__fit__layers_that_cannot_be_adapted__named_in_one_warning(model, reasons):
    classifier, messages = fit(model)
    row = next(row for row in table() if row["model"] == model)
    (message,) = [message for message in messages if "These layers are not adapted" in message]
    assert all(reason in message for reason in reasons)
    module = load_image_backbone(built(FAMILIES[model]), FAMILIES[model].side).module
    skipped = {site.layer for site in layer_selection.find_sites(module)[0]} - set(classifier.ratios_)
    skipped |= set(layer_selection.find_sites(module)[1])
    assert skipped
    assert int(row["skipped_layers"])
    assert all(layer in message for layer in skipped)


@pytest.mark.parametrize(
    "model",
    [
        "deit_small_distilled_patch16_224",
        "vit_small_patch14_reg4_dinov2",
        "resnet50_clip",
        "nf_resnet50",
        "levit_128s",
    ],
)
@pytest.mark.parametrize("ensemble", ["sve", "deep"])
def test__fit__family_that_adapts_fully__no_warning(model, ensemble):
    assert fit(model, ensemble=ensemble)[1] == []


@pytest.mark.parametrize("model", ["resnet50_clip", "vit_base_patch16_siglip_224"])
def test__attention_pooling__image_towers__never_adapted(model):
    module = built(FAMILIES[model], num_classes=0)
    pools = [name for name, part in module.named_modules() if "AttentionPool" in type(part).__name__]
    assert pools
    inside = [
        name for name, part in module.named_modules() if name.startswith(pools[0]) and isinstance(part, nn.Linear)
    ]
    assert inside
    assert not set(inside) & {site.layer for site in layer_selection.find_sites(module)[0]}


# ------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    "model",
    [
        "vit_small_patch16_224",
        "vit_small_patch16_dinov3",
        "beit_base_patch16_224",
        "eva02_small_patch14_224",
        "swinv2_tiny_window8_256",
        "maxvit_tiny_tf_224",
        "vit_base_patch16_siglip_224",
    ],
)
def test__module__fixed_image_size__own_by_default_and_changed_on_request(model):
    family = FAMILIES[model]
    module = built(family)
    before = {name: tensor.shape for name, tensor in module.state_dict().items()}
    for size, wanted in ((None, family.side), (2 * family.side, 2 * family.side)):
        backbone = load_image_backbone(module, size)
        assert backbone.preprocess["input_size"] == [3, wanted, wanted]
        assert backbone.features(backbone.module, torch.zeros(2, 3, wanted, wanted)).dim() == 2
    assert {name: tensor.shape for name, tensor in module.state_dict().items()} == before  # the user's stays


def test__module__size_that_cannot_be_changed__refused_with_both_sizes():
    classifier = toy_classifier(built(FAMILIES["cait_xxs24_224"]), image_size=64)
    with pytest.raises(ValueError, match=r"\(2, 3, 64, 64\).*64.*32"):
        classifier.fit(np.zeros((4, 8, 8, 3), np.uint8), [0, 1, 0, 1])


# ------------------------------------------------------------------------------------------- table


def table():
    with open(ROOT / "docs" / "data" / "architectures.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def test__table__docs__rows_of_the_list_and_the_same_in_the_guide():
    rows = table()
    assert [row["model"] for row in rows] == list(FAMILIES)
    assert len(rows) >= 20
    guide = (ROOT / "docs" / "guide" / "architectures.md").read_text()
    assert SCRIPT["markdown"](rows) in guide


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(model, marks=[] if model in ("vit_small_patch16_224", "resnet50_clip") else [pytest.mark.slow])
        for model in FAMILIES
    ],
)
def test__table__architecture_in_full_size__figures_as_written(model):
    row = next(row for row in table() if row["model"] == model)
    assert {name: str(value) for name, value in SCRIPT["describe"](FAMILIES[model]).items()} == row


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test__family__at_its_own_size__fits_in_a_process_of_its_own(name):
    """A crash of a library, which small images may not provoke, ends that process and not the tests."""
    script = f"""
        import runpy
        import torch
        from skve._backbones.from_timm import load_image_backbone
        from tests.sweeps import sweeps
        families = runpy.run_path("examples/benchmarks/architectures.py")["FAMILIES"]
        family = next(family for family in families if family.model == {name!r})
        backbone = load_image_backbone(family.build())
        images = torch.randn(2, *backbone.preprocess["input_size"]).to(memory_format=torch.channels_last)
        sites = sweeps.layer_selection.find_sites(backbone.module)[0]
        network = sweeps.network_module.Network(backbone)
        for site in sites:
            weight = backbone.module.get_parameter(site.parameter).detach().clone().requires_grad_()
            network.set_tensor(site.parameter, weight)
        for _ in range(3):
            network.features(images).square().mean().backward()
    """
    if ":" not in name and not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-2000:]


def distinct_convolutions():
    """Return what each distinct convolution of the families at their own size is: arguments, height and width."""
    found = {}
    for family in FAMILIES.values():
        if ":" not in family.model and not timm.is_model(family.model):
            continue
        with torch.device("meta"):
            module = family.build().eval()
            images = torch.empty(2, *from_timm.image_preprocess(module)["input_size"])

        def note(part, args):
            padding = part.padding if isinstance(part.padding, str) else tuple(part.padding)
            key = (part.in_channels, part.out_channels, part.kernel_size, part.stride, padding, part.dilation)
            found[(*key, part.groups, part.bias is not None, tuple(args[0].shape[2:]))] = None

        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                part.register_forward_pre_hook(note)
        module(images)
    return list(found)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="each convolution runs in a fork")
def test__every_distinct_convolution__forward_and_backward__no_crash_and_the_gradient_of_the_contiguous_layout():
    """Some 1300; backward passes that overwrite memory crash, or are found by their gradients."""
    failed = []
    for *arguments, size in distinct_convolutions():
        child = os.fork()
        if child == 0:
            os._exit(gradients_differ(nn.Conv2d(*arguments), size))
        if os.waitpid(child, 0)[1]:
            failed.append((*arguments, size))
    assert failed == []


def gradients_differ(plain, size):
    torch.set_num_threads(1)
    images = torch.randn(2, plain.in_channels, *size)
    plain(images).square().mean().backward()
    network = sweeps.network_module.Network(make_backbone(copy.deepcopy(plain)))
    weight = network.module.weight.detach().clone().requires_grad_()
    network.set_tensor("weight", weight)
    for needed in (True, False):
        weight.grad = None
        inputs = images.to(memory_format=torch.channels_last).requires_grad_(needed)
        network.module(inputs).square().mean().backward()
        expected = plain.weight.grad
        if not (weight.grad - expected).abs().max() <= 1e-3 * expected.abs().max():
            return 1
    return 0
