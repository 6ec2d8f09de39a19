import csv

import numpy as np
import pytest
import timm
from experiment_cases import SMALL

import run  # isort: skip
import stacked  # isort: skip
from skve import SVEClassifier
from tests.toys import toy_images

METHODS = """
[methods.sve]
ensemble = "sve"
trials = { member_lr = [1e-2, 1e-1], head_weight_decay = [0.0, 10.0] }

[methods.apart]
ensemble = "scale"
ensemble_params = { order = "own" }
trials = { head_lr = [1e-1, 1e-2, 3e-2, 3e-3] }
"""


@pytest.fixture(scope="module")
def backbone():
    return timm.create_model("test_resnet", pretrained=False, num_classes=0)


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize(
    ("ensemble", "folds"),
    [("sve", 2), ("deep", "auto"), *(pytest.param(name, None, marks=pytest.mark.slow) for name in ("sve", "bias"))],
)
def test__fit_stacked__each_setting_is_what_a_fit_of_its_own_gives(ensemble, folds, backbone):
    X, y = toy_images(per_class=6, n_classes=3, seed=0)
    common = {
        "backbone": backbone,
        "ensemble": ensemble,
        "n_members": 2,
        "image_size": 32,
        "batch_size": 8,
    }
    common |= {"max_epochs": 3, "random_state": 0, "precision": "float32", "ensemble_params": {"folds": folds}}
    settings = [{"member_lr": 1e-2, "head_weight_decay": 5.0}, {"member_lr": 1e-3, "head_lr": 5e-2}]
    classifiers = [SVEClassifier(**common, **own) for own in settings]
    found = stacked.fit_stacked(classifiers, X, y, X)
    assert found.shape == (2, 2, len(X), 3)
    assert np.abs(found[0] - found[1]).max() > 1e-3
    for clf, own in zip(classifiers, found, strict=True):
        np.testing.assert_allclose(own, clf.fit(X, y).predict_proba_members(X), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{"bootstrap": True}, {"order": "own"}, {"folds": 2, "order": "own"}])
def test__fit_stacked__members_with_data_of_their_own__value_error(options, backbone):
    X, y = toy_images(per_class=4, n_classes=2, seed=0)
    clf = SVEClassifier(backbone, n_members=2, image_size=32, ensemble_params=options, random_state=0)
    with pytest.raises(ValueError, match="on batches that all share"):
        stacked.fit_stacked([clf, clf], X, y, X)


def test__main__rows_of_the_tuning__those_of_run__which_goes_on_with_them(data_dir, tmp_path, capsys):
    study = tmp_path / "small.toml"
    study.write_text(SMALL.partition("[methods.deep]")[0] + METHODS)
    arguments = [str(study), "--data-dir", str(data_dir), "--csv"]
    assert stacked.main([*arguments, str(tmp_path / "stacked.csv")]) == 0
    assert "stacked.py: apart is left to run.py: The members of 'scale' must" in capsys.readouterr().err
    assert run.main([*arguments, str(tmp_path / "run.csv")]) == 0
    found = rows_of(tmp_path / "stacked.csv")
    singly = [row for row in rows_of(tmp_path / "run.csv") if row["stage"] == "tune"]
    by_settings = {row["settings"]: row for row in singly}
    assert {row["settings"] for row in found} == {row["settings"] for row in singly if row["method"] == "sve"}
    assert len(found) == 4
    for row in found:
        for name in ("nll", "brier"):
            assert float(row[name]) == pytest.approx(float(by_settings[row["settings"]][name]), abs=1e-4)
    assert stacked.main([*arguments, str(tmp_path / "stacked.csv")]) == 0
    assert run.main([*arguments, str(tmp_path / "stacked.csv")]) == 0
    rows = rows_of(tmp_path / "stacked.csv")
    assert [row["stage"] for row in rows].count("tune") == 8
    assert [row["stage"] for row in rows].count("test") == 4
