"""Displays and diagnosis of real ensembles: bundled weights, clothes and intents."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

mpl = pytest.importorskip("matplotlib")
mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from PIL import Image  # noqa: E402
from sklearn.calibration import CalibratedClassifierCV  # noqa: E402
from sklearn.frozen import FrozenEstimator  # noqa: E402
from sklearn.metrics import log_loss, roc_auc_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import FunctionTransformer  # noqa: E402

from skve import SVEClassifier, SVETextClassifier, diagnose, plots  # noqa: E402
from skve.datasets import load_fashion, load_intents  # noqa: E402

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("plot_*.py"))


def images():
    data = load_fashion()
    return SimpleNamespace(
        clf=SVEClassifier(n_members=3, layers="last:1", image_size=32, max_epochs=4, random_state=0),
        train=(data.images[::4], data.target[::4]),
        validation=(data.images[1::4], data.target[1::4]),
        X=data.images_test[::2],
        y=data.target_test[::2],
        X_ood=data.images_ood[:100],
        disguise=np.invert,
        findings=[],
    )


def texts():
    data = load_intents()
    few = [np.flatnonzero(np.isin(target, data.target_names[:6])) for target in (data.target, data.target_test)]
    train, validation, test = few[0][::8], few[0][1::12], few[1][::2]
    return SimpleNamespace(
        # In float32, so that a text has the same probabilities alone and among others.
        clf=SVETextClassifier(
            n_members=2, layers="last:1", max_epochs=12, predict_precision="float32", random_state=0
        ),
        train=([data.texts[i] for i in train], data.target[train]),
        validation=([data.texts[i] for i in validation], data.target[validation]),
        X=[data.texts_test[i] for i in test],
        y=data.target_test[test],
        X_ood=data.texts_ood[:60],
        disguise=lambda X: [text[::-1] for text in X],
        findings=["worse than logistic regression"],  # six easy intents: right, but less certain than it could be
    )


@pytest.fixture(scope="module", params=[images, texts])
def case(request):
    """A fitted ensemble, its data, and what it predicts."""
    case = request.param()
    X_val, y_val = case.validation
    case.clf.fit(*case.train, X_val=X_val, y_val=y_val)
    case.members = case.clf.predict_proba_members(case.X)
    case.members_ood = case.clf.predict_proba_members(case.X_ood)
    case.proba = case.members.mean(axis=0)
    # Undoes the disguise, which is its own inverse.
    case.pipeline = make_pipeline(FunctionTransformer(case.disguise), case.clf)
    return case


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    plt.close("all")


def entropy(proba):
    return -(proba * np.log(proba)).sum(axis=-1)


def epistemic(members):
    return entropy(members.mean(axis=0)) - entropy(members).mean(axis=0)


def top_label(case, proba):
    """Confidence, and whether the prediction is right."""
    return proba.max(axis=1), case.clf.classes_[proba.argmax(axis=1)] == case.y


# Displays


def test__reliability__real_ensemble__bins_counted_by_hand(case):
    display = plots.ReliabilityDisplay.from_estimator(case.clf, case.X, case.y, n_bins=5)
    confidence, right = top_label(case, case.proba)
    place = np.digitize(confidence, [0.2, 0.4, 0.6, 0.8])
    filled = np.unique(place)
    accuracy = [right[place == i].mean() for i in filled]
    gap = [abs(right[place == i].mean() - confidence[place == i].mean()) for i in filled]
    share = [np.mean(place == i) for i in filled]
    np.testing.assert_allclose(display.lines_[0].get_ydata(), accuracy, rtol=1e-6)
    assert display.ece == pytest.approx(np.dot(share, gap), rel=1e-5)
    heights = [bar.get_height() for bar in display.histogram_ax_.patches]
    np.testing.assert_allclose([heights[i] for i in filled], share)


def test__reliability__calibrated_pipeline__its_own_probabilities(case):
    disguised = case.disguise(case.X)
    calibrated = CalibratedClassifierCV(FrozenEstimator(case.pipeline), method="temperature")
    calibrated.fit(case.disguise(case.validation[0]), case.validation[1])
    display = plots.ReliabilityDisplay.from_estimator(calibrated, disguised, case.y)
    confidence, right = top_label(case, calibrated.predict_proba(disguised))
    bins = display.bins["top label"]
    filled = bins.weight > 0
    assert np.dot(bins.weight[filled], bins.confidence[filled]) == pytest.approx(confidence.sum(), rel=1e-6)
    assert np.dot(bins.weight[filled], bins.accuracy[filled]) == pytest.approx(right.sum())
    assert confidence.sum() != pytest.approx(case.proba.max(axis=1).sum(), rel=1e-3)
    assert display.name == "CalibratedClassifierCV"


@pytest.mark.parametrize("measure", ["total", "epistemic"])
@pytest.mark.parametrize("piped", [False, True])
def test__risk_coverage__real_ensemble__errors_counted_in_order_of_uncertainty(case, measure, piped):
    model, X = (case.pipeline, case.disguise(case.X)) if piped else (case.clf, case.X)
    display = plots.RiskCoverageDisplay.from_estimator(model, X, case.y, uncertainty=measure)
    score = entropy(case.proba) if measure == "total" else epistemic(case.members)
    wrong = ~top_label(case, case.proba)[1]
    rank = np.arange(1, len(wrong) + 1)
    np.testing.assert_allclose(display.coverage, rank / len(wrong))
    # Samples whose scores differ by rounding alone may change places: rarely, and by one error each.
    difference = np.abs(display.risk - np.cumsum(wrong[np.argsort(score)]) / rank) * rank
    assert difference.max() <= 1 + 1e-9
    assert (difference > 1e-9).mean() < 0.02
    assert display.aurc == pytest.approx(display.risk.mean())


@pytest.mark.parametrize("piped", [False, True])
def test__uncertainty_display__real_ensemble__scores_and_auroc_by_hand(case, piped):
    model, X, X_ood = case.clf, case.X, case.X_ood
    if piped:
        model, X, X_ood = case.pipeline, case.disguise(X), case.disguise(X_ood)
    display = plots.UncertaintyDisplay.from_estimator(model, X, X_ood, uncertainty="epistemic")
    known, foreign = epistemic(case.members), epistemic(case.members_ood)
    np.testing.assert_allclose(display.scores_in, known, atol=1e-5)
    np.testing.assert_allclose(display.scores_out, foreign, atol=1e-5)
    is_foreign = np.repeat([0, 1], [len(known), len(foreign)])
    assert display.auroc == pytest.approx(roc_auc_score(is_foreign, np.concatenate([known, foreign])), abs=1e-3)


@pytest.mark.parametrize("piped", [False, True])
def test__members__real_ensemble__members_means_and_samples(case, piped):
    few, y = case.X[:3], case.y[:3]
    model, given = (case.pipeline, case.disguise(few)) if piped else (case.clf, few)
    display = plots.MembersDisplay.from_estimator(model, given, y=y)
    np.testing.assert_allclose(display.member_proba, case.members[:, :3], atol=1e-5)
    assert display.axes_.shape == (3, 2)
    for (left, right), sample, proba, label in zip(display.axes_, given, case.proba[:3], y, strict=True):
        top = np.argsort(-proba)[:3]
        np.testing.assert_allclose([bar.get_width() for bar in right.patches], proba[top], atol=1e-5)
        bold = [tick.get_fontweight() == "bold" for tick in right.get_yticklabels()]
        assert bold == list(case.clf.classes_[top] == label)
        if isinstance(sample, str):
            assert left.texts[0].get_text().replace("\n", " ").startswith(sample[:10])
        else:
            np.testing.assert_array_equal(left.get_images()[0].get_array(), sample)


@pytest.mark.parametrize("wrapped", [False, True])
def test__training__real_ensemble__losses_of_the_epochs(case, wrapped):
    model = FrozenEstimator(case.pipeline) if wrapped else case.clf
    display = plots.TrainingDisplay.from_estimator(model)
    loss, validation = display.axes_[0].lines
    assert list(loss.get_xdata()) == list(range(1, case.clf.max_epochs + 1))
    np.testing.assert_array_equal(loss.get_ydata(), case.clf.history_["loss"])
    X_val, y_val = case.validation
    nll = log_loss(y_val, case.clf.predict_proba(X_val), labels=case.clf.classes_)
    assert validation.get_ydata()[-1] == pytest.approx(nll, rel=5e-3)  # training may compute in bfloat16
    assert len(display.axes_[1].lines) == len(case.clf.ratios_)


@pytest.mark.parametrize("wrapped", [False, True])
def test__layers__real_ensemble__ratios_of_the_members(case, wrapped):
    model = FrozenEstimator(case.pipeline) if wrapped else case.clf
    display = plots.LayersDisplay.from_estimator(model)
    assert display.change.shape == (len(case.clf.ratios_), case.clf.n_members)
    for change, ratios in zip(display.change, case.clf.ratios_.values(), strict=True):
        np.testing.assert_allclose(change, [np.sqrt(np.mean(np.log(member) ** 2)) for member in ratios], rtol=1e-5)
    medians = [np.median(ratios) for ratios in case.clf.ratios_.values()]
    np.testing.assert_allclose(display.axes_[1].lines[1].get_xdata(), medians, rtol=1e-6)


# Diagnosis


def names(diagnosis):
    return [finding.name for finding in diagnosis]


def test__diagnose__real_ensemble__no_false_alarm(case):
    diagnosis = diagnose(case.clf, case.X, case.y, X_ood=case.X_ood)
    assert names(diagnosis) == case.findings
    assert {"ratios hardly moved", "members collapsed", "OOD score near one half"} <= set(diagnosis.checked)


def test__diagnose__labels_of_real_ensemble_shuffled__uncertainty_does_not_rise_with_error(case):
    found = [names(diagnose(case.clf, case.X, np.random.default_rng(seed).permutation(case.y))) for seed in range(3)]
    # By chance an order may fit a few items.
    assert sum("uncertainty does not rise with error" in each for each in found) >= 2


@pytest.mark.parametrize(
    ("settings", "finding"),
    [
        ({"member_lr": 1e-6}, "ratios hardly moved"),
        ({"member_lr": 3.0}, "ratios ran away"),
        ({"init_scale": 0.5, "layers": "all"}, "init_scale too large"),
    ],
)
def test__diagnose__real_ensemble_badly_set__failure_found(settings, finding):
    case = images()
    clf = case.clf.set_params(n_members=2, max_epochs=1, **settings).fit(*case.train)
    assert finding in names(diagnose(clf, case.X[::2], case.y[::2]))


# Examples


@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test__example__given_a_path__saves_its_picture(script, tmp_path):
    path = tmp_path / "picture.png"
    subprocess.run([sys.executable, script, path], check=True, env=os.environ | {"MPLBACKEND": "agg"})
    with Image.open(path) as picture:
        assert min(picture.size) >= 300
        grey = np.asarray(picture.convert("L"))
    # Something is drawn in every quarter, not axes alone.
    for half in np.array_split(grey, 2):
        for quarter in np.array_split(half, 2, axis=1):
            assert (quarter < 200).mean() > 0.01
