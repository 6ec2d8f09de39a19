"""Models that earlier versions saved, one folder a version: they load, and predict what they predicted then.

The folders are never written anew; `saved_models/make.py` makes that of another version. Only public names are used
here, since these tests have to outlive what is behind them.
"""

import json
import pathlib

import numpy as np
import pytest
import timm
import torch

import skve
from tests.saved_models import make

FOLDER = pathlib.Path(__file__).parents[1] / "saved_models"
VERSIONS = sorted(path.name for path in FOLDER.iterdir() if (path / "inputs-and-predictions.npz").is_file())
MODELS = [
    pytest.param(version, path.parent.name, id=f"{version}-{path.parent.name}")
    for version in VERSIONS
    for path in sorted((FOLDER / version).glob("*/skve.json"))
]
CLOSE = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(scope="module")
def kept():
    """Return the inputs and predictions that each version left, by version."""
    found = {}
    for version in VERSIONS:
        with np.load(FOLDER / version / "inputs-and-predictions.npz", allow_pickle=False) as arrays:
            found[version] = dict(arrays)
        found[version]["models"] = json.loads(str(found[version]["models"]))
    return found


def load(version, name, arrays):
    """Load a model; one that was fitted on a module and saved without it is given its module again."""
    if name != "image-module":
        return skve.load(FOLDER / version / name)
    module = timm.create_model(make.ARCHITECTURE)
    start = "module/"
    module.load_state_dict({k.removeprefix(start): torch.tensor(v) for k, v in arrays.items() if k.startswith(start)})
    return skve.load(FOLDER / version / name, backbone=module.eval())


def assert_predicts_the_same(model, name, arrays):
    """Assert that a model predicts what is kept of the model `name`."""
    says = arrays["models"][name]
    X = arrays[f"inputs/{says['inputs']}"]
    np.testing.assert_allclose(model.predict_proba_members(X), arrays[f"{name}/predict_proba_members"], **CLOSE)
    np.testing.assert_allclose(model.predict_proba(X), arrays[f"{name}/predict_proba"], **CLOSE)
    assert model.predict(X).tolist() == says["predict"]


@pytest.mark.parametrize(("version", "name"), MODELS)
def test__saved_by_an_earlier_version__loads_and_predicts_within_1e_6(version, name, kept):
    arrays = kept[version]
    assert_predicts_the_same(load(version, name, arrays), name, arrays)


@pytest.mark.parametrize(("version", "name"), MODELS)
def test__saved_by_an_earlier_version__says_the_same_of_itself(version, name, kept):
    arrays = kept[version]
    says, model = arrays["models"][name], load(version, name, arrays)
    assert type(model) is getattr(skve, says["class"])
    assert model.get_params()["ensemble"] == says["ensemble"]
    assert model.classes_.tolist() == says["classes_"]
    assert [type(label) for label in model.classes_.tolist()] == [type(label) for label in says["classes_"]]
    assert model.classes_.dtype.str == says["dtype"]
    assert model.temperature_ == says["temperature_"]
    assert model.n_member_parameters_ == says["n_member_parameters_"]
    assert model.n_iter_ == says["n_iter_"] == len(model.history_["loss"])
    assert {layer: ratios.shape[1] for layer, ratios in model.ratios_.items()} == says["ratios_"]
    if says["ratios_"]:
        ratios = np.concatenate([model.ratios_[layer] for layer in says["ratios_"]], axis=1)
        np.testing.assert_allclose(ratios, arrays[f"{name}/ratios_"], **CLOSE)


@pytest.mark.parametrize(("version", "name"), [model for model in MODELS if "image-module" not in model.values])
def test__saved_by_an_earlier_version__saved_anew__predicts_the_same(version, name, kept, tmp_path):
    load(version, name, kept[version]).save(tmp_path)
    assert_predicts_the_same(skve.load(tmp_path), name, kept[version])


@pytest.mark.parametrize("version", VERSIONS)
def test__saved_models__every_ensemble_of_images_and_of_texts(version, kept):
    says = kept[version]["models"]
    assert sorted(says) == sorted(path.parent.name for path in (FOLDER / version).glob("*/skve.json"))
    ensembles = {"sve", "sve+lora", "scale", "bias", "lora", "batch", "dropout", "snapshot", "single", "deep", "head"}
    for name in ("SVEClassifier", "SVETextClassifier"):
        assert ensembles <= {entry["ensemble"] for entry in says.values() if entry["class"] == name}
    assert "0.1" in VERSIONS
