"""Backbones that come with saved models: a stranger's skve.json decides neither memory nor time nor files."""

import json
import re

import numpy as np
import pytest
import timm
import torch
from torch import nn

from skve._backbones import embedded, from_transformers
from skve._backbones.embedded import EmbeddedBackbone, misfit
from skve._backbones.from_timm import load_image_backbone
from skve._backbones.from_transformers import load_text_backbone
from skve.exceptions import BackboneError
from skve.testing import make_toy_text_backbone

LIMIT = 2**24  # bytes of a tensor: no toy has a larger one


@pytest.fixture
def no_large_tensors(monkeypatch):
    """Fail where a tensor with memory of its own is made that no toy needs."""
    original = embedded._Bounded.__torch_function__

    def checked(self, func, types, args=(), kwargs=None):
        result = original(self, func, types, args, kwargs)
        assert not isinstance(result, torch.Tensor) or result.is_meta or result.nbytes < LIMIT
        return result

    monkeypatch.setattr(embedded._Bounded, "__torch_function__", checked)
    for name in ("from_transformers", "from_timm"):  # nothing is built beside the check
        monkeypatch.setattr(f"skve._backbones.{name}.freeze", lambda *args: pytest.fail("was built"))


def arrays_of(module):
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


@pytest.fixture(scope="module")
def image_spec():
    module = timm.create_model("test_vit", num_classes=0)
    description = {"kind": "timm", "name": "test_vit", "architecture": "test_vit", "sha256": ""}
    return description, {"input_size": [3, 160, 160]}, arrays_of(module)


@pytest.fixture(scope="module")
def text_spec():
    backbone = load_text_backbone(make_toy_text_backbone("bert"))
    return backbone.description, backbone.preprocess, backbone.arrays(), backbone.files()


# --------------------------------------------------------------------------------------------- misfit


def test__misfit__own_arrays__none():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert misfit(lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), arrays_of(module)) == ""


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: nn.Linear(3, 5), r"bias must have shape \(5,\), got shape \(4,\)"),
        (lambda: nn.Linear(3, 4, bias=False), r"bias must have none, got shape \(4,\)"),
        (lambda: nn.Linear(10**6, 10**6), "larger than all weights together"),
        (lambda: nn.Sequential(*(nn.Linear(1, 1) for _ in range(10**9))), "more layers than there are weights"),
    ],
    ids=["wider", "without bias", "huge", "deep"],
)
def test__misfit__other_network__said_without_memory_for_it(build, words):
    found = misfit(build, arrays_of(nn.Linear(3, 4)))
    assert re.search(words, found), found


def test__misfit__every_kind_of_timm_network__built_within_the_bounds():
    """Swin computes masks, EfficientNet has many small convolutions, ViT interpolates."""
    for name in ("test_vit", "test_efficientnet", "swin_tiny_patch4_window7_224", "levit_128s"):
        arrays = {key: value.numpy() for key, value in timm.create_model(name, num_classes=0).state_dict().items()}
        assert misfit(lambda name=name: timm.create_model(name, num_classes=0), arrays) == ""


# --------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("architecture", ["vit_7b_patch16_dinov3", "vit_giant_patch14_dinov2", "test_vit2"])
def test__image__architecture_that_the_arrays_do_not_fit__refused_before_it_is_built(
    architecture, image_spec, no_large_tensors
):
    description, preprocess, arrays = image_spec
    spec = EmbeddedBackbone({**description, "architecture": architecture}, preprocess, arrays)
    with pytest.raises(BackboneError, match=r"The embedded weights must fit .*, got others: .*\."):
        load_image_backbone(spec)


def test__image__size_of_a_stranger__refused_before_it_is_built(image_spec, no_large_tensors):
    description, _, arrays = image_spec
    spec = EmbeddedBackbone(description, {"input_size": [3, 16384, 16384]}, arrays)
    with pytest.raises(BackboneError, match="The embedded weights must fit"):
        load_image_backbone(spec)


# ---------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"hidden_size": 120_000}, "must fit the configuration|larger than all weights"),
        ({"vocab_size": 10**9}, "larger than all weights|must fit"),
        ({"num_hidden_layers": 9_000}, "more layers than there are weights"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers of the embedded backbone must not exceed 10000"),
        ({"max_position_embeddings": 10**12}, "larger than all weights"),
        (
            {"model_type": "timm_wrapper", "architecture": "resnet18"},
            "of a type that skve rebuilds, got 'timm_wrapper'",
        ),
        ({"model_type": "timm_backbone", "backbone": "resnet18"}, "got 'timm_backbone'"),
        ({"model_type": "vision-encoder-decoder"}, "got 'vision-encoder-decoder'"),
        ({"text_config": {"model_type": "timm_wrapper"}}, "got 'timm_wrapper'"),
        ({"model_type": "nothing\x1b[2J"}, r"got 'nothing\\x1b\[2J'"),
    ],
    ids=str,
)
def test__text__configuration_of_a_stranger__refused_before_it_is_built(changed, words, text_spec, no_large_tensors):
    description, preprocess, arrays, files = text_spec
    config = {**description["config"], **changed}
    spec = EmbeddedBackbone({**description, "config": config}, preprocess, arrays, files)
    with pytest.raises(BackboneError, match=words):
        load_text_backbone(spec)


def test__text__labels_of_a_stranger__never_made(text_spec):
    """A configuration makes a dict of as many labels."""
    description, preprocess, arrays, files = text_spec
    spec = EmbeddedBackbone(
        {**description, "config": {**description["config"], "num_labels": 10**12}}, preprocess, arrays, files
    )
    assert load_text_backbone(spec).description["sha256"] == description["sha256"]


def test__text__rebuilding__asks_no_hub(text_spec, monkeypatch):
    from huggingface_hub import constants

    original, seen = from_transformers._rebuild, []
    transformers = pytest.importorskip("transformers")
    load = transformers.AutoTokenizer.from_pretrained

    def watched(folder, **options):
        seen.append((constants.HF_HUB_OFFLINE, options["local_files_only"]))
        return load(folder, **options)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", watched)
    before = constants.HF_HUB_OFFLINE
    spec = EmbeddedBackbone(*text_spec)
    original(spec, "linear", "float32", transformers)
    assert seen == [(True, True)]
    assert before == constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("name", ["tokenizer_file", "vocab_file", "added_tokens_file", "fast_tokenizer_files"])
def test__text__tokenizer_that_names_files_elsewhere__its_own_are_read(name, text_spec, tmp_path, empty_cache):
    description, preprocess, arrays, files = text_spec
    (tmp_path / "mine").write_text("mine")
    settings = json.loads(files["tokenizer_config.json"]) | {name: str(tmp_path / "mine"), "auto_map": {"x": "y"}}
    spec = EmbeddedBackbone(
        description, preprocess, arrays, {**files, "tokenizer_config.json": json.dumps(settings).encode()}
    )
    assert load_text_backbone(spec).preprocess["tokenizer_sha256"] == preprocess["tokenizer_sha256"]


def test__text__saved_with_another_transformers__versions_are_named(text_spec, empty_cache):
    description, preprocess, arrays, files = text_spec
    config = {**description["config"], "transformers_version": "99.0\x1b[2J", "hidden_act": "unheard of"}
    spec = EmbeddedBackbone({**description, "config": config}, preprocess, arrays, files)
    with pytest.raises(BackboneError, match=r"saved with transformers 99.0\\x1b\[2J, could not be rebuilt with \d"):
        load_text_backbone(spec)


# --------------------------------------------------------------------------------------------- content


def test__content__any_part_changed__another():
    parts = ({"name": "a"}, {"size": 1}, {"w": np.zeros((2, 3), np.float32)}, {"f": b"x"})
    others = [
        ({"name": "b"}, *parts[1:]),
        (parts[0], {"size": 2}, *parts[2:]),
        (*parts[:2], {"w": np.zeros((3, 2), np.float32)}, parts[3]),
        (*parts[:2], {"w": np.ones((2, 3), np.float32)}, parts[3]),
        (*parts[:3], {"f": b"y"}),
    ]
    contents = [EmbeddedBackbone(*each).content for each in (parts, *others)]
    assert len(set(contents)) == len(contents)
    assert EmbeddedBackbone(*parts).content == contents[0]
