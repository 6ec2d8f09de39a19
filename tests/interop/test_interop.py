"""Image classifiers inside scikit-learn's pipelines, searches, calibration and ensembles."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer

import skve
from skve._backbones import backbone as backbone_module
from skve._backbones import cache, decomposition, from_timm
from skve.metrics import get_scorer
from skve.testing import make_toy_image_backbone


@pytest.fixture(scope="module")
def data():
    """Bright and dark noise images with string labels: two classes that any backbone can tell apart."""
    rng = np.random.default_rng(0)
    y = np.array(["dark", "light"])[np.arange(36) % 2]
    base = np.where(y == "dark", 60, 190)[:, None, None, None]
    return np.clip(base + rng.normal(0, 30, (36, 12, 12, 3)), 0, 255).astype(np.uint8), y


@pytest.fixture(scope="module")
def clf():
    return skve.SVEClassifier(
        make_toy_image_backbone(),
        n_members=2,
        max_epochs=20,
        batch_size=12,
        head_lr=0.3,
        head_weight_decay=0.0,
        image_size=8,
        augment=None,
        device="cpu",
        random_state=0,
    )


def invert(X):
    return 255 - np.asarray(X)


def test__clone__fitted_estimator__is_unfitted_with_same_parameters(clf, data):
    fitted = clone(clf).fit(*data)
    copy = clone(fitted)
    assert not hasattr(copy, "classes_")
    assert copy.get_params().keys() == fitted.get_params().keys()
    assert np.array_equal(copy.fit(*data).predict_proba(data[0]), fitted.predict_proba(data[0]))


def test__pipeline__function_transformer__predicts_and_gives_uncertainty(clf, data):
    X, y = data
    pipe = make_pipeline(FunctionTransformer(invert), clone(clf)).fit(X, y)
    assert pipe.score(X, y) > 0.9
    assert set(pipe.predict(X)) == {"dark", "light"}
    through = skve.predict_uncertainty(pipe, X)
    direct = pipe[-1].predict_uncertainty(invert(X))
    assert np.array_equal(through.total, direct.total)


def test__grid_search__n_members_and_layers__refits_best(clf, data):
    X, y = data
    grid = {"n_members": [1, 2], "layers": ["all", "last:1"], "member_lr": [1e-2, 5e-2]}
    search = GridSearchCV(
        clone(clf).set_params(max_epochs=2), grid, cv=2, scoring="neg_log_loss", error_score="raise"
    )
    search.fit(X, y)
    assert len(search.cv_results_["params"]) == 8
    assert search.best_estimator_.predict(X).shape == y.shape
    assert len(skve.predict_uncertainty(search, X).total) == len(X)


def test__grid_search__two_processes__same_scores_as_in_one(clf, data):
    scores = []
    for n_jobs in (None, 2):
        search = GridSearchCV(clone(clf).set_params(max_epochs=2), {"n_members": [1, 2]}, cv=2, n_jobs=n_jobs)
        scores.append(search.fit(*data).cv_results_["mean_test_score"])
    assert np.allclose(*scores)


@pytest.mark.parametrize("n_jobs", [None, 2])
def test__grid_search__settings_and_folds__loads_and_decomposes_once(clf, data, n_jobs, monkeypatch, tmp_path):
    """Every process notes its loads and decompositions in files; a clone or a fold must add none."""
    search = GridSearchCV(clone(clf).set_params(max_epochs=1), {"n_members": [1, 2, 3]}, cv=3, n_jobs=n_jobs)
    if n_jobs is None:
        cache.clear_cache()
        counts = {"freeze": 0, "decompose": 0}
        for module, name in ((backbone_module, "freeze"), (decomposition, "decompose")):
            original = getattr(module, name)

            def counting(*args, _name=name, _original=original, **kwargs):
                counts[_name] += 1
                return _original(*args, **kwargs)

            monkeypatch.setattr(module, name, counting)
        search.fit(*data)
        assert counts == {"freeze": 1, "decompose": 2}  # two layers can be adapted
    else:
        backbone = CountingBackbone(tmp_path)
        search.set_params(estimator__backbone=backbone)
        search.fit(*data)
        made = list(tmp_path.iterdir())
        processes = {path.name.split("-")[0] for path in made}
        assert len(made) == len(processes) <= 3  # two workers and the refit here


class CountingBackbone:
    """Makes the toy backbone, and a file for every time that its weights were not in the process cache."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self):
        import os
        import uuid

        module = make_toy_image_backbone()
        before = set(cache._cache)
        from_timm.load_image_backbone(module, 8)
        if set(cache._cache) != before:
            (self.folder / f"{os.getpid()}-{uuid.uuid4().hex}").touch()
        return module


def test__cross_validate__several_scorers__finite(clf, data):
    scoring = {"nll": "neg_log_loss", "accuracy": "accuracy", "ece": get_scorer("neg_expected_calibration_error")}
    result = cross_validate(clone(clf), *data, cv=2, scoring=scoring, error_score="raise")
    for name in scoring:
        assert np.isfinite(result[f"test_{name}"]).all()


@pytest.mark.parametrize("method", ["sigmoid", "isotonic", "temperature"])
def test__calibration__cross_validated_and_prefit__valid_probabilities(clf, data, method):
    X, y = data
    refit = CalibratedClassifierCV(clone(clf).set_params(max_epochs=2), method=method, cv=2).fit(X, y)
    prefit = CalibratedClassifierCV(FrozenEstimator(clone(clf).fit(X, y)), method=method).fit(X, y)
    for calibrated in (refit, prefit):
        proba = calibrated.predict_proba(X)
        assert np.allclose(proba.sum(1), 1)
        assert list(calibrated.classes_) == ["dark", "light"]


def test__calibration__temperature__never_worse_than_uncalibrated_on_its_own_data(clf, data):
    X, y = data
    fitted = clone(clf).set_params(max_epochs=2).fit(X, y)
    calibrated = CalibratedClassifierCV(FrozenEstimator(fitted), method="temperature").fit(X, y)
    before, after = (log_loss(y, e.predict_proba(X), labels=fitted.classes_) for e in (fitted, calibrated))
    assert after <= before + 1e-6


def test__predict_uncertainty__wrapped_estimators__seen_through_or_refused(clf, data):
    X, y = data
    fitted = clone(clf).fit(X, y)
    direct = fitted.predict_uncertainty(X).total
    assert np.array_equal(skve.predict_uncertainty(FrozenEstimator(fitted), X).total, direct)
    prefit = CalibratedClassifierCV(FrozenEstimator(fitted), method="sigmoid").fit(X, y)
    assert np.array_equal(skve.predict_uncertainty(prefit, X).total, direct)
    for wrapped in (fitted, FrozenEstimator(fitted), prefit):
        uncertainty, proba = skve.predict_uncertainty(wrapped, X, return_proba=True)
        assert np.array_equal(proba, wrapped.predict_proba(X))
        assert np.array_equal(uncertainty.confidence, proba.max(axis=1))
    several = CalibratedClassifierCV(clone(clf).set_params(max_epochs=1), cv=2, ensemble=True).fit(X, y)
    with pytest.raises(ValueError, match=r"must hold one fitted model .* with 2"):
        skve.predict_uncertainty(several, X)
    with pytest.raises(TypeError, match="predict_uncertainty"):
        skve.predict_uncertainty(LogisticRegression().fit(X.reshape(len(X), -1), y), X.reshape(len(X), -1))


def test__voting_and_stacking__with_another_classifier__fit(clf, data):
    X, y = data
    flat = make_pipeline(FunctionTransformer(flatten), LogisticRegression())
    members = [("sve", clone(clf).set_params(max_epochs=2)), ("linear", flat)]
    assert VotingClassifier(members, voting="soft").fit(X, y).score(X, y) > 0.9
    assert StackingClassifier(members, cv=2).fit(X, y).score(X, y) > 0.9


def flatten(X):
    return np.asarray(X).reshape(len(X), -1)


def test__column_transformer__path_column__passes_paths(clf, data, tmp_path):
    pd = pytest.importorskip("pandas")
    from PIL import Image

    X, y = data
    paths = [tmp_path / f"{i}.png" for i in range(len(X))]
    for path, pixels in zip(paths, X, strict=True):
        Image.fromarray(pixels).save(path)
    frame = pd.DataFrame({"photo": [str(path) for path in paths], "price": np.arange(len(X))})
    pipe = Pipeline([("photo", ColumnTransformer([("photo", "passthrough", ["photo"])])), ("clf", clone(clf))])
    pipe.fit(frame, y)
    direct = clone(clf).fit(frame[["photo"]], y)
    assert np.array_equal(pipe.predict_proba(frame), direct.predict_proba(frame["photo"]))
    assert np.array_equal(direct.predict_proba(paths), direct.predict_proba(X))  # PNG is lossless


def test__sample_weight__through_search_routing__is_used(clf, data):
    X, y = data
    weights = np.where(y == "dark", 1.0, 1e-6)
    search = GridSearchCV(clone(clf), {"n_members": [1]}, cv=2).fit(X, y, sample_weight=weights)
    plain = GridSearchCV(clone(clf), {"n_members": [1]}, cv=2).fit(X, y)
    dark = [list(s.best_estimator_.classes_).index("dark") for s in (search, plain)]
    weighted, unweighted = (s.predict_proba(X)[:, d].mean() for s, d in zip((search, plain), dark, strict=True))
    assert weighted > unweighted + 0.2
