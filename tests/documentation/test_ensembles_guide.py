"""The guide and the docstrings name every ensemble and option, with the numbers that the code counts."""

import pathlib
import re

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.metrics import log_loss

import skve
from skve import _ensembles
from skve._backbones import decomposition, from_timm, from_transformers, layer_selection
from skve._ensembles.fine_tuning import FullFineTuning
from skve.testing import ToyClassifier

GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "guide" / "ensembles.md"


def rows():
    """The table's cells by ensemble."""
    lines = [line for line in GUIDE.read_text("utf-8").splitlines() if line.startswith('| `"')]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip('`"'): row for row in cells if len(row) == 6}


def count(ensemble, backbone):
    """Numbers that a member owns beside its head, from the shapes of the weights."""
    rule = _ensembles.RULES[ensemble]
    sites = layer_selection.find_sites(backbone.module)[0] if rule.selects_layers else []
    shapes = [decomposition.as_matrix(backbone.module.get_parameter(s.parameter), s.kind).shape for s in sites]
    singular = sum(map(min, shapes))
    if ensemble == "sve":  # without a decomposition
        return singular
    settings = {"init_scale": 0.0, "train_bias": False, "ensemble_params": None}
    rule = _ensembles.make_rule("lora" if ensemble == "sve+lora" else ensemble, backbone, sites, **settings)
    member = rule.new_member(torch.Generator())
    own = sum(tensor.numel() for key, tensor in member.items() if _ensembles.is_trained(key))
    return own + (singular if ensemble == "sve+lora" else 0)


def test__guide__table__every_ensemble_with_its_options_and_defaults():
    assert rows().keys() == _ensembles.RULES.keys()
    shared = _ensembles.MemberRule.takes
    for name, row in rows().items():
        takes = {k: default for k, (default, _) in _ensembles.RULES[name].takes.items()}
        takes = {k: default for k, default in takes.items() if k not in shared or default != shared[k][0]}
        listed = dict(re.findall(r"`(\w+)=([^`]+)`", row[4]))
        if name == "sve+lora":
            assert listed == {"lora_lr": "1e-4"}
            takes = {"lora_lr": takes["lora_lr"]}
        assert {key: str(value) for key, value in takes.items()} == {
            key: str(float(value)) if value[0].isdigit() and "e" in value else value.strip('"')
            for key, value in listed.items()
        }, name


def test__guide__default_rates__those_of_the_estimators():
    listed = {}
    table = GUIDE.read_text("utf-8").partition("`member_lr` by default")[2].partition("\n\n")[0]
    for line in table.splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        listed |= dict.fromkeys(re.findall(r'`"([^"]+)"`', cells[0]), tuple(map(float, cells[1:])))
    solved = {name for name, rule in _ensembles.RULES.items() if rule.is_solved}
    assert listed.keys() == _ensembles.RULES.keys() - solved
    for ensemble in _ensembles.RULES:
        image, text = skve.SVEClassifier(ensemble=ensemble), skve.SVETextClassifier(ensemble=ensemble)
        if ensemble not in solved:
            assert listed[ensemble] == (image._defaults().member_lr, text._defaults().member_lr)
            assert image._defaults().head_lr == text._defaults().head_lr == 0.01
            assert (image._defaults().head_weight_decay, text._defaults().head_weight_decay) == (30.0, 3.0)


@pytest.mark.parametrize(
    ("place", "load"),
    [
        (0, lambda: from_timm.load_image_backbone("bundled:efficientnet_lite0")),
        (1, lambda: from_transformers.load_text_backbone("bundled:all-MiniLM-L6-v2", head="linear", dtype="float32")),
    ],
    ids=["EfficientNet-Lite0", "MiniLM"],
)
def test__guide__numbers_a_member__as_counted(place, load):
    if place == 1:
        pytest.importorskip("transformers")
    backbone = load()
    for name, row in rows().items():
        told = int(row[2].split(" for all")[0].split(" / ")[place].replace(",", ""))
        assert told == count(name, backbone), name


def test__guide__recipe__blend_not_worse_than_either_out_of_fold():
    recipe = GUIDE.read_text("utf-8").partition("### Blending")[2].partition("```python\n")[2].partition("```")[0]
    X, y = load_iris(return_X_y=True)
    names = {"X": X[::2], "y": y[::2], "clf": ToyClassifier(n_members=2, max_epochs=5, random_state=0)}
    exec(recipe, names)
    assert min(names["losses"]) <= min(names["losses"][0], names["losses"][-1])
    voters = [estimator.predict_proba(X) for estimator in names["blend"].estimators_]
    expected = names["share"] * voters[0] + (1 - names["share"]) * voters[1]
    np.testing.assert_allclose(names["blend"].predict_proba(X), expected)
    assert log_loss(y, names["blend"].predict_proba(X)) < 0.2


def test__guide__recipe__sets_without_validation_samples__contain_the_truth():
    page = (GUIDE.parent / "uncertainty.md").read_text("utf-8")
    recipe = page.partition("**Without validation samples.**")[2].partition("```python\n")[2].partition("```")[0]
    X, y = load_iris(return_X_y=True)
    clf = ToyClassifier(n_members=4, ensemble_params={"folds": 4}, max_epochs=20, random_state=0).fit(X[::2], y[::2])
    names = {"np": np, "clf": clf, "y": y[::2], "X_test": X[1::2]}
    exec(recipe, names)
    contained = names["sets"][np.arange(75), y[1::2]].mean()
    assert 0.8 < contained < 1
    assert names["sets"].sum(axis=1).mean() < 1.5


@pytest.mark.parametrize("estimator", [skve.SVEClassifier, skve.SVETextClassifier])
def test__docstring__ensembles__all_named_with_their_options(estimator):
    text = estimator.__doc__
    for name, rule in _ensembles.RULES.items():
        assert f'`"{name}"`' in text, name
        assert all(f"`{option}`" in text for option in rule.takes), name


@pytest.mark.parametrize("estimator", [skve.SVEClassifier, skve.SVETextClassifier])
def test__docstring__member_lr__default_of_each_ensemble(estimator):
    sentence = re.search(r"member_lr : float.*?None: (.*?)\.\n", estimator.__doc__, flags=re.DOTALL)[1]
    parts = re.split(r"(\d+e-\d+)", sentence)  # "", rate, whose it is, rate, whose it is, ...
    listed = {}
    for rate, whose in zip(parts[1::2], parts[2::2], strict=True):
        names = re.findall(r'`"([^"]+)"`', whose) + ["fine-tunes"] * ("fine-tunes" in whose)
        listed |= dict.fromkeys(names or ["others"], float(rate))
    for name, rule in _ensembles.RULES.items():
        if not rule.is_solved:
            kind = "fine-tunes" if issubclass(rule, FullFineTuning) else "others"
            assert listed.get(name, listed.get(kind)) == estimator(ensemble=name)._defaults().member_lr, name
