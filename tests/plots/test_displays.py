"""Displays: their data, scikit-learn's conventions, and pictures compared with stored references.

The references are small greyscale images without text, in a fixed place, so that other fonts and versions of
matplotlib pass. After a wanted change, look at the pictures and store them anew with
``python -m tests.plots.test_displays``.
"""

import builtins
import io
import os
import typing
from pathlib import Path

import numpy as np
import pytest

mpl = pytest.importorskip("matplotlib")
mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from PIL import Image  # noqa: E402
from sklearn.datasets import load_digits, load_iris  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.naive_bayes import GaussianNB  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402

import skve  # noqa: E402
from skve import metrics, plots  # noqa: E402
from skve.uncertainty import Uncertainty  # noqa: E402
from tests.plots.cases import CASES, COLUMN_HEIGHT  # noqa: E402
from tests.uncertainty.test_uncertainty import MeanOfMembers  # noqa: E402

REFERENCES = Path(__file__).parent / "reference_images"
# Grey levels of 255, root mean square. Matplotlib 3.8 differs from 3.11 by up to 2.6; most curves by more.
TOLERANCE = 3.0


@pytest.fixture(autouse=True)
def plain_style():
    with mpl.rc_context():
        mpl.rcdefaults()
        yield
    plt.close("all")


def picture(name):
    """The display at a column's width, as a small greyscale image without what depends on fonts."""
    figure, ax = plt.subplots(figsize=(3.3, COLUMN_HEIGHT.get(name, 3.6)))
    CASES[name](ax)
    for artist in figure.findobj(lambda artist: isinstance(artist, (mpl.text.Text, mpl.legend.Legend))):
        artist.set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    plt.close(figure)
    return Image.open(buffer).convert("L").reduce(4)


def difference(a, b):
    return np.sqrt(np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2))


@pytest.mark.parametrize("name", CASES)
def test__display__at_column_width__looks_like_reference(name):
    reference = Image.open(REFERENCES / f"{name}.png")
    actual = picture(name)
    assert actual.size == reference.size
    assert difference(actual, reference) < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test__display__own_figure__conventions_of_scikit_learn(name):
    display = CASES[name]()
    assert isinstance(display.ax_, mpl.axes.Axes)
    assert display.figure_ is display.ax_.figure
    _, ax = plt.subplots()
    assert display.plot(ax, name="another name") is display
    assert display.figure_ is ax.figure
    texts = [text.get_text() for text in display.figure_.findobj(mpl.text.Text)]
    assert any("another name" in text for text in texts)


@pytest.mark.parametrize("name", CASES)
def test__display__plain_figure__no_warning(name, recwarn):
    _, ax = plt.subplots()
    CASES[name](ax).figure_.canvas.draw()
    assert not [str(warning.message) for warning in recwarn]


def test__plots__imported__no_matplotlib():
    import subprocess
    import sys

    code = "import sys, skve.plots; assert not any(m.startswith('matplotlib') for m in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", CASES)
def test__display__no_matplotlib__clear_import_error(name, monkeypatch):
    real_import = builtins.__import__

    def no_matplotlib(module, *args, **kwargs):
        if module.startswith("matplotlib"):
            raise ImportError(module)
        return real_import(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    with pytest.raises(ImportError, match=r"Display requires matplotlib, .* pip install matplotlib\."):
        CASES[name]()


# Reliability


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    names = load_iris().target_names
    return X, names[y], GaussianNB().fit(X, names[y])


def test__reliability__from_estimator__data_of_the_metric(iris):
    X, y, model = iris
    display = plots.ReliabilityDisplay.from_estimator(model, X, y, n_bins=5)
    proba = model.predict_proba(X)
    assert display.ece == metrics.expected_calibration_error(y, proba, n_bins=5)
    bins = metrics.calibration_bins(y, proba, n_bins=5)
    np.testing.assert_array_equal(display.bins["top label"].accuracy, bins.accuracy)
    filled = bins.weight > 0
    np.testing.assert_array_equal(display.lines_[0].get_ydata(), bins.accuracy[filled])
    assert display.name == "GaussianNB"


@pytest.mark.parametrize("classes", ["all", ["setosa", "virginica"]])
def test__reliability__classes__one_curve_each(classes, iris):
    X, y, model = iris
    display = plots.ReliabilityDisplay.from_estimator(model, X, y, classes=classes)
    expected = list(model.classes_) if classes == "all" else classes
    assert list(display.bins) == expected
    assert len(display.lines_) == len(expected)


def test__reliability__too_many_classes__value_error():
    X, y = load_digits(return_X_y=True)
    with pytest.raises(ValueError, match="classes must name 1 to 6 classes to be legible, got 10"):
        plots.ReliabilityDisplay.from_estimator(GaussianNB().fit(X, y), X, y, classes="all")


def test__reliability__band__wilson_interval():
    from skve.plots.calibration import _wilson

    low, high = _wilson(np.array([0.0, 0.5, 1.0]), np.array([10.0, 10.0, 10.0]), 0.95)
    np.testing.assert_allclose(low, [0, 0.2366, 0.7225], atol=1e-4)
    np.testing.assert_allclose(high, [0.2775, 0.7634, 1], atol=1e-4)


# Risk and coverage, uncertainty


def test__risk_coverage__from_estimator__data_of_the_metric(iris):
    X, y, model = iris
    display = plots.RiskCoverageDisplay.from_estimator(model, X, y, uncertainty="confidence")
    proba = model.predict_proba(X)
    assert display.aurc == metrics.aurc(y, proba)
    best = metrics.aurc(y, proba) - metrics.excess_aurc(y, proba)
    assert display.best_risk.mean() == pytest.approx(best)
    np.testing.assert_array_equal(display.line_.get_ydata(), display.risk)


def test__risk_coverage__several_on_one_axes__told_apart_and_one_legend_entry_for_the_best(iris):
    X, y, model = iris
    first = plots.RiskCoverageDisplay.from_estimator(model, X, y)
    second = plots.RiskCoverageDisplay.from_estimator(model, X, y, name="again", ax=first.ax_)
    assert first.line_.get_color() != second.line_.get_color()
    assert first.line_.get_linestyle() != second.line_.get_linestyle()
    labels = [text.get_text() for text in first.ax_.get_legend().get_texts()]
    assert labels[-1] == "best ranking"
    assert [label.split(" (")[0] for label in labels[:-1]] == ["GaussianNB", "again"]


def test__risk_coverage__from_estimator__one_prediction(iris):
    X, y, _ = iris
    calls = []

    class Counting(GaussianNB):
        def predict_proba(self, X):
            calls.append(len(X))
            return super().predict_proba(X)

    plots.RiskCoverageDisplay.from_estimator(Counting().fit(X, y), X, y, uncertainty="margin")
    assert calls == [len(X)]


def test__risk_coverage__no_errors__drawn():
    display = plots.RiskCoverageDisplay.from_predictions([0, 1], [[0.9, 0.1], [0.1, 0.9]])
    assert display.aurc == 0


def test__uncertainty_display__from_estimator__scores_and_unit(iris):
    X, _, _ = iris
    y = load_iris().target
    model = LogisticRegression().fit(X[:100], y[:100])
    display = plots.UncertaintyDisplay.from_estimator(model, X[:100], X[100:])
    assert display.auroc == metrics.make_ood_scorer(X[100:])(model, X[:100])
    assert display.ax_.get_xlabel() == "Total uncertainty (nats)"


def test__uncertainty_display__constant_scores__drawn():
    assert plots.UncertaintyDisplay.from_predictions([0.5] * 3, [0.5] * 2).auroc == 0.5


def test__from_estimator__bad_measure__value_error(iris):
    X, y, model = iris
    with pytest.raises(ValueError, match="uncertainty must be a callable or one of"):
        plots.UncertaintyDisplay.from_estimator(model, X, X, uncertainty="all")
    with pytest.raises(ValueError, match="uncertainty must be a callable or one of"):
        plots.RiskCoverageDisplay.from_estimator(model, X, y, uncertainty="all")


# Members


def test__members__from_pipeline__members_of_the_transformed_samples():
    X, y = load_iris(return_X_y=True)
    X, y = X[:100], y[:100]
    pipeline = make_pipeline(StandardScaler(), MeanOfMembers()).fit(X, y)
    display = plots.MembersDisplay.from_estimator(pipeline, X[48:52], y[48:52])
    expected = pipeline[-1].predict_proba_members(pipeline[0].transform(X[48:52]))
    np.testing.assert_array_equal(display.member_proba, expected)
    assert display.axes_.shape == (4, 1)  # rows of numbers are not shown


def test__members__true_class__bold():
    display = plots.MembersDisplay.from_members([[[0.9, 0.1]]], classes=["a", "b"], y_true=["b"])
    weights = {tick.get_text(): tick.get_fontweight() for tick in display.axes_[0, 0].get_yticklabels()}
    assert weights == {"a": "normal", "b": "bold"}


def test__members__true_class_outside_the_most_probable__a_row_of_its_own():
    proba = np.full((2, 1, 10), 0.02)
    proba[..., :3] = 0.3, 0.29, 0.27
    display = plots.MembersDisplay.from_members(proba, y_true=[7])
    assert [tick.get_text() for tick in display.axes_[0, 0].get_yticklabels()] == ["0", "1", "2", "7"]
    assert display.axes_[0, 0].get_yticklabels()[-1].get_fontweight() == "bold"
    assert [bar.get_width() for bar in display.axes_[0, 0].patches][-1] == pytest.approx(0.02)


def test__members__legend__one_entry_for_the_mean_and_each_member():
    display = plots.MembersDisplay.from_members(np.full((3, 2, 2), 0.5))
    assert [text.get_text() for text in display.legend_.get_texts()] == ["member 1", "member 2", "member 3", "mean"]


def test__members__more_than_there_are_colours__each_has_a_mark_of_its_own():
    display = plots.MembersDisplay.from_members(np.full((12, 1, 2), 0.5))
    marks = display.axes_[0, 0].collections
    looks = {(tuple(mark.get_facecolor()[0]), mark.get_paths()[0].vertices.tobytes()) for mark in marks}
    assert len(marks) == len(looks) == 12


# Ready predictions


class Predicted(MeanOfMembers):
    """Counts what it predicts, and is as foreign as the first feature is large."""

    calls: typing.ClassVar[list] = []

    def predict_proba_members(self, X):
        self.calls.append(len(X))
        return super().predict_proba_members(X)

    def predict_uncertainty(self, X):
        return Uncertainty.from_members(self.predict_proba_members(X), novelty=X[:, 0], classes=self.classes_)


@pytest.fixture
def predicted():
    """A fitted ensemble, its samples and classes, and what it has predicted; then it counts."""
    X, y = (part[:100] for part in load_iris(return_X_y=True))
    model = Predicted().fit(X, y)
    ready = model.predict_proba(X), model.predict_proba_members(X), model.predict_uncertainty(X)
    Predicted.calls.clear()
    return model, X, y, *ready


READY = {
    "reliability": lambda model, X, y, proba, members, u: plots.ReliabilityDisplay.from_estimator(
        model, X, y, y_proba=proba
    ),
    "risk, total": lambda model, X, y, proba, members, u: plots.RiskCoverageDisplay.from_estimator(
        model, X, y, y_proba=proba
    ),
    "risk, Uncertainty": lambda model, X, y, proba, members, u: plots.RiskCoverageDisplay.from_estimator(
        model, X, y, y_proba=proba, uncertainty=u
    ),
    "risk, scores": lambda model, X, y, proba, members, u: plots.RiskCoverageDisplay.from_estimator(
        model, X, y, y_proba=proba, uncertainty=u.epistemic
    ),
    "uncertainty": lambda model, X, y, proba, members, u: plots.UncertaintyDisplay.from_estimator(
        model, u[:50], u[50:], uncertainty="epistemic"
    ),
    "members": lambda model, X, y, proba, members, u: plots.MembersDisplay.from_estimator(
        model, X[:3], y[:3], member_proba=members[:, :3]
    ),
    "scorer": lambda model, X, y, proba, members, u: metrics.make_ood_scorer(u[50:], uncertainty="novelty")(
        model, u[:50]
    ),
}


@pytest.mark.parametrize("name", READY)
def test__ready_predictions__nothing_predicted_anew(name, predicted):
    READY[name](*predicted)
    assert Predicted.calls == []


def test__ready_predictions__same_picture_as_predicted_anew(predicted):
    model, X, y, proba, members, u = predicted
    ready = plots.RiskCoverageDisplay.from_estimator(model, X, y, y_proba=proba, uncertainty=u.epistemic)
    anew = plots.RiskCoverageDisplay.from_estimator(model, X, y, uncertainty="epistemic")
    np.testing.assert_array_equal(ready.risk, anew.risk)
    ready = plots.UncertaintyDisplay.from_estimator(model, u[:50], u[50:], uncertainty="novelty")
    anew = plots.UncertaintyDisplay.from_estimator(model, X[:50], X[50:], uncertainty="novelty")
    np.testing.assert_array_equal(ready.scores_out, anew.scores_out)
    assert ready.auroc == metrics.make_ood_scorer(X[50:], uncertainty="novelty")(model, X[:50])
    ready = plots.ReliabilityDisplay.from_estimator(model, X, y, y_proba=proba)
    assert ready.ece == plots.ReliabilityDisplay.from_estimator(model, X, y).ece
    ready = plots.MembersDisplay.from_estimator(model, X[:3], y[:3], member_proba=members[:, :3])
    np.testing.assert_array_equal(ready.member_proba, model.predict_proba_members(X[:3]))


@pytest.mark.parametrize(
    "kind", ["array", "float", "channels first", "grey", "pil", "palette", "path", "str path", "bytes"]
)
def test__members__images_of_any_kind__shown(kind, tmp_path):
    image = np.random.default_rng(0).integers(0, 255, size=(9, 8, 3)).astype(np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    sample = {
        "array": image,
        "float": image / 255,
        "channels first": image.transpose(2, 0, 1),
        "grey": image[..., 0],
        "pil": Image.fromarray(image),
        "palette": Image.fromarray(image).convert("P"),
        "path": path,
        "str path": os.fspath(path),
        "bytes": path.read_bytes(),
    }[kind]
    display = plots.MembersDisplay.from_members([[[0.9, 0.1]]], samples=[sample])
    (shown,) = display.axes_[0, 0].get_images()
    assert shown.get_array().shape == ((9, 8) if kind == "grey" else (9, 8, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": ["a"]}, "samples must have 2 entries"),
        ({"classes": ["a"]}, "classes must have 2 entries"),
        ({"y_true": [1, 1, 1]}, "y_true must have 2 entries"),
        ({"member_proba": np.empty((3, 0, 2))}, "must have at least one sample"),
        ({"member_proba": np.ones((3, 2, 2))}, "sums to 2"),
        ({"n_top": 0}, "n_top must be a positive integer, got 0"),
        ({"n_top": -1}, "n_top must be a positive integer, got -1"),
    ],
)
def test__members__bad_input__value_error(options, message):
    arguments = {"member_proba": np.full((3, 2, 2), 0.5)} | options
    with pytest.raises(ValueError, match=message):
        plots.MembersDisplay.from_members(**arguments)


def shown_texts(samples):
    display = plots.MembersDisplay.from_members(np.full((2, len(samples), 2), 0.5), samples=samples)
    if display.axes_.shape[1] == 1:
        return []
    return [" ".join(text.get_text() for text in ax.texts) for ax in display.axes_[:, 0]]


@pytest.mark.parametrize("kind", ["list", "array", "object column", "series", "frame", "column"])
def test__members__texts_in_any_container__shown(kind):
    texts = ["fine", "so so"]
    if kind in ("series", "frame"):
        pd = pytest.importorskip("pandas")
    samples = {
        "list": lambda: texts,
        "array": lambda: np.array(texts),
        "object column": lambda: np.array(texts, dtype=object)[:, None],
        "series": lambda: pd.Series(texts, index=[7, 3]),
        "frame": lambda: pd.DataFrame({"text": texts}, index=[7, 3]),
        "column": lambda: np.array(texts)[:, None],
    }[kind]()
    assert shown_texts(samples) == texts


@pytest.mark.parametrize("kind", ["tuples", "array", "frame"])
def test__members__pairs_of_texts__joined(kind):
    pairs = [("a man", "he sleeps"), ("a dog", "it barks")]
    if kind == "frame":
        samples = pytest.importorskip("pandas").DataFrame(pairs, columns=["first", "second"])
    else:
        samples = pairs if kind == "tuples" else np.array(pairs, dtype=object)
    assert shown_texts(samples) == ["a man  |  he sleeps", "a dog  |  it barks"]


def test__members__prompt_with_choices__one_line_each():
    (text,) = shown_texts(["Which one?\nA. cat\nB. dog"])
    assert text == "Which one?\nA. cat\nB. dog"


def test__members__table_of_numbers__nothing_shown():
    pd = pytest.importorskip("pandas")
    assert shown_texts(pd.DataFrame([[0.1, 0.2], [0.3, 0.4]])) == []


# Dollar signs in what comes from data


@pytest.mark.parametrize("text", ["transfer $50 from savings and $20", r"$\frac$", "b_$c^^$"])
def test__display__dollar_signs_in_texts_and_classes__drawn_as_they_are(text):
    labels = np.array(["a", text])
    proba = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    y_true = labels[[0, 1, 1]]
    displays = [
        plots.MembersDisplay.from_members(proba[None], samples=[text] * 3, classes=labels, y_true=y_true),
        plots.ReliabilityDisplay.from_predictions(y_true, proba, classes="all", labels=labels),
        plots.LayersDisplay.from_ratios({"a": np.ones((2, 3)), text: np.ones((2, 3))}),
    ]
    for display in displays:
        display.figure_.canvas.draw()
        drawn = [artist for artist in display.figure_.findobj(mpl.text.Text) if "$" in artist.get_text()]
        assert drawn
        assert not any(artist.get_parse_math() for artist in drawn)


# Training and layers


class Trained:
    def __init__(self, history=None, ratios=None):
        self.history_ = history
        self.ratios_ = ratios


HISTORY = {"epoch": [1, 2], "loss": [1.0, 0.5], "valid_nll": [1.1, 0.9], "ratio_spread": {"a": [0.1, 0.2]}}


def test__contact_sheet__from_estimator__most_uncertain_first(iris):
    X, y = iris[0][:100], iris[1][:100]
    model = MeanOfMembers().fit(X, y)
    display = plots.ContactSheetDisplay.from_estimator(model, X, y, n_items=5)
    total = skve.predict_uncertainty(model, X).total
    assert display.uncertainty.total.tolist() == sorted(total, reverse=True)[:5]
    assert display.samples == [None] * 5  # rows of numbers are not shown


def test__contact_sheet__files__names_and_wrong_answers_in_the_captions(tmp_path):
    paths = []
    for name in ("first.png", "second.png"):
        paths.append(str(tmp_path / name))
        Image.new("RGB", (4, 4)).save(paths[-1])
    u = Uncertainty.from_members([[[0.9, 0.1], [0.2, 0.8]]], classes=["a$", "b"], novelty=[0.25, 0.5])
    display = plots.ContactSheetDisplay.from_predictions(u, paths, y_true=["a$", "a$"], indices=[1, 0])
    assert display.names == ["second.png", "first.png"]
    captions = [panel.get_title(loc="left") for panel in display.axes_.flat]
    assert captions[0] == "b\ntrue: a$\nconfidence 0.80\ntotal 0.50 nats\nnovelty 0.50\nsecond.png"
    assert captions[1] == "a$\n \nconfidence 0.90\ntotal 0.33 nats\nnovelty 0.25\nfirst.png"


def test__contact_sheet__texts__one_below_another_and_cut_to_their_place(recwarn):
    u = Uncertainty.from_members([[[0.9, 0.1], [0.2, 0.8]]], classes=["good", "bad"])
    display = plots.ContactSheetDisplay.from_predictions(u, ["costs $5 or $6", "long " * 300], indices=[0, 1])
    display.figure_.canvas.draw()
    first, second = (panel.texts[0].get_text() for panel in display.axes_[:, 0])
    assert first == "costs $5 or $6"
    assert second.startswith("long long")
    assert second.endswith("…")
    assert len(recwarn) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": ["a"]}, "samples must have 2 entries like uncertainty, got 1"),
        ({"y_true": ["a"]}, "y_true must have 2 entries like uncertainty, got 1"),
        ({"indices": []}, "indices must choose at least one item"),
        ({"n_items": 0}, "n_items must be a positive integer, got 0"),
        ({"sort_by": "novelty"}, "sort_by must be a measure that is known, got 'novelty'"),
        ({"sort_by": "nothing"}, "must be a callable or one of"),
        ({"uncertainty": Uncertainty.from_members([[[0.5, 0.5]] * 2])}, "must know the predicted classes"),
    ],
)
def test__contact_sheet__bad_input__value_error(options, message):
    u = Uncertainty.from_members([[[0.5, 0.5]] * 2], classes=["a", "b"])
    with pytest.raises(ValueError, match=message):
        plots.ContactSheetDisplay.from_predictions(**{"uncertainty": u, "samples": ["a", "b"]} | options)


def test__training__from_pipeline__history_of_the_estimator():
    pipeline = make_pipeline(StandardScaler(), Trained(HISTORY))
    display = plots.TrainingDisplay.from_estimator(pipeline)
    assert display.history is HISTORY
    assert display.axes_.shape == (2,)
    assert len(display.axes_[0].lines) == 2


def test__training__no_validation_and_no_layers__one_curve_one_panel():
    history = HISTORY | {"valid_nll": [np.nan, np.nan], "ratio_spread": {}}
    display = plots.TrainingDisplay.from_history(history)
    assert display.axes_.shape == (1,)
    assert len(display.axes_[0].lines) == 1


def test__training__one_epoch__drawn():
    history = {"epoch": [1], "loss": [1.0], "valid_nll": [0.9], "ratio_spread": {"a": [0.1]}}
    display = plots.TrainingDisplay.from_history(history)
    display.figure_.canvas.draw()
    assert any(len(line.get_xdata()) == 1 for ax in display.figure_.axes for line in ax.get_lines())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": []}, "at least one epoch, got none"),
        ({"loss": [1.0]}, "2 values of 'loss', as many as epochs, got 1"),
        ({"ratio_spread": {"a": [0.1]}}, "2 values of 'a', as many as epochs, got 1"),
    ],
)
def test__training__bad_history__value_error(change, message):
    with pytest.raises(ValueError, match=message):
        plots.TrainingDisplay.from_history(HISTORY | change)
    with pytest.raises(ValueError, match=r"got none of the name \['epoch', 'loss'"):
        plots.TrainingDisplay.from_history({})


def test__layers__from_estimator__rms_of_log_ratios():
    ratios = {"a": np.exp([[0.1, -0.1], [0.2, 0.2]]), "b": np.ones((2, 3))}
    display = plots.LayersDisplay.from_estimator(Trained(ratios=ratios))
    np.testing.assert_allclose(display.change, [[0.1, 0.2], [0, 0]], atol=1e-12)


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ({}, "at least one layer, got none"),
        ({"a": np.ones(3)}, "ratios must hold arrays of shape"),
        ({"a": np.ones((2, 3)), "b": np.ones((3, 3))}, "in 'b'"),
        ({"a": np.zeros((2, 3))}, "ratios must be positive, got 0 in 'a'"),
    ],
)
def test__layers__bad_ratios__value_error(ratios, message):
    with pytest.raises(ValueError, match=message):
        plots.LayersDisplay.from_ratios(ratios)


def test__from_estimator__nothing_to_draw__type_error():
    model = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
    with pytest.raises(TypeError, match="has no history_"):
        plots.TrainingDisplay.from_estimator(model)
    with pytest.raises(TypeError, match="has no ratios_"):
        plots.LayersDisplay.from_estimator(model)
    with pytest.raises(TypeError, match="has no predict_proba_members"):
        plots.MembersDisplay.from_estimator(model, [[0.0]])


@pytest.mark.parametrize("display", [plots.TrainingDisplay, plots.LayersDisplay])
@pytest.mark.parametrize("wrap", [lambda model: model, make_pipeline])
def test__from_estimator__not_fitted__not_fitted_error(display, wrap):
    with pytest.raises(NotFittedError, match="MeanOfMembers instance is not fitted"):
        display.from_estimator(wrap(MeanOfMembers()))


def test__panels__axes_without_a_place_in_a_grid__value_error():
    ax = plt.figure().add_axes((0.1, 0.1, 0.8, 0.8))
    with pytest.raises(ValueError, match=r"ax must come from .* for the panels of TrainingDisplay"):
        plots.TrainingDisplay.from_history(HISTORY, ax=ax)


if __name__ == "__main__":
    REFERENCES.mkdir(exist_ok=True)
    mpl.rcdefaults()
    for case in CASES:
        picture(case).save(REFERENCES / f"{case}.png", optimize=True)
