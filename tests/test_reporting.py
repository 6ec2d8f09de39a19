"""The report of a model: its figures, its page, and what it does with difficult input."""

import html
import html.parser
import json
import re

import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib").use("Agg")
from sklearn.calibration import CalibratedClassifierCV  # noqa: E402
from sklearn.datasets import load_iris  # noqa: E402
from sklearn.frozen import FrozenEstimator  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.metrics import accuracy_score, log_loss  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402

import skve  # noqa: E402
from skve import reporting  # noqa: E402
from skve.testing import ToyClassifier  # noqa: E402
from skve.uncertainty import predictive_entropy  # noqa: E402
from tests.toys import image_files, toy_classifier, toy_images  # noqa: E402

NASTY = ["<script>alert(1)</script>", "a & b", "$\\frac{1}{2}$ 😀"]


class Page(html.parser.HTMLParser):
    """The tags of a page, which have to close one another, and its text."""

    EMPTY = {"meta", "img", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.sources = [], [], "", []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if self.open[-1:] != ["style"] else ""


class Texts:
    """An ensemble of two members for texts: the length of a text decides, and members differ a little."""

    def __init__(self, classes=NASTY):
        self.classes_ = np.array(classes)

    def predict_proba_members(self, X):
        lengths = np.array([len(text) for text in X])
        logits = np.stack([np.eye(len(self.classes_))[lengths % len(self.classes_)] * (2 + lengths[:, None] % 5)] * 2)
        logits[1] *= 0.5
        return np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)

    def predict_proba(self, X):
        return self.predict_proba_members(X).mean(axis=0)


def texts(n=40, classes=NASTY):
    X = [f"<b>text</b> {'x' * (i % 7)} & {i}" for i in range(n)]
    y = np.array(classes)[[(len(text) + (i % 4 == 0)) % len(classes) for i, text in enumerate(X)]]
    return X, y


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    clf = ToyClassifier(n_members=2, max_steps=20, random_state=0).fit(X[::2], y[::2])
    return clf, X[1::2], y[1::2]


def test__report__calibrated_model__threshold_cards_and_table_have_one_entropy(iris):
    clf, X, y = iris
    calibrated = CalibratedClassifierCV(FrozenEstimator(clf), method="temperature").fit(X, y)
    made = skve.report(calibrated, X, y)
    table, found = made.to_frame(), made.to_dict()["selective"]
    np.testing.assert_allclose(table["entropy"], predictive_entropy(calibrated.predict_proba(X)[None]))
    assert not np.allclose(table["entropy"], table["total"], atol=1e-3)
    assert (table["entropy"] <= found["threshold"]).mean() == pytest.approx(found["coverage"])
    uncertain = made.html.partition("The most uncertain items")[2].partition("<h2>")[0]
    shown = re.findall(r"entropy (\d\.\d\d)", uncertain)
    assert shown == [f"{value:.2f}" for value in sorted(table["entropy"], reverse=True)[: len(shown)]]


def test__report__training_data__the_regression_learned_from_them(iris):
    clf, X, y = iris
    data = load_iris()
    train = {"X_train": data.data[::2], "y_train": data.target[::2]}
    page = Page(skve.report(clf, X, y, **train).html).text
    assert "on X_train" in page
    assert "cross-validated" not in page
    assert "X_train=X_train, y_train=y_train" in page
    assert "cross-validated" in Page(skve.report(clf, X, y).html).text
    with pytest.raises(ValueError, match="y_train"):
        skve.report(clf, X, y, X_train=data.data[::2])


def test__report__figures__those_of_the_metrics(iris):
    clf, X, y = iris
    found = skve.report(clf, X, y).to_dict()
    proba = clf.predict_proba(X)
    assert found["metrics"]["accuracy"]["estimate"] == pytest.approx(accuracy_score(y, proba.argmax(axis=1)))
    assert found["metrics"]["NLL"]["estimate"] == pytest.approx(log_loss(y, proba))
    for value in found["metrics"].values():
        assert value["low"] <= value["estimate"] <= value["high"] or value["estimate"] < 0.2  # ECE is biased
    assert json.loads(json.dumps(found, allow_nan=False))["model"]["classes"] == ["0", "1", "2"]
    assert found["foreign"] is None
    assert sum(one["n_samples"] for one in found["confusions"]) == (proba.argmax(axis=1) != y).sum()


def test__report__recommended_threshold__halves_the_error_rate(iris):
    clf, X, y = iris
    noisy = np.where(np.arange(len(y)) % 5 == 0, (y + 1) % 3, y)
    found = skve.report(clf, X, noisy).to_dict()
    chosen, total = found["selective"], clf.predict_uncertainty(X).total
    answered = total <= chosen["threshold"]
    right = (clf.predict(X) == noisy)[answered]
    assert answered.mean() == pytest.approx(chosen["coverage"])
    assert right.mean() == pytest.approx(chosen["accuracy"])
    assert 1 - right.mean() <= (1 - found["metrics"]["accuracy"]["estimate"]) / 2 + 1e-12


def test__report__samples__each_read_once(iris, monkeypatch):
    clf, X, y = iris
    rows = []
    original = ToyClassifier._make_pipeline

    def counting(self, items, *args, **options):
        rows.append(len(items))
        return original(self, items, *args, **options)

    monkeypatch.setattr(ToyClassifier, "_make_pipeline", counting)
    skve.report(clf, X, y, X_ood=X[:9] + 50).html  # noqa: B018 - the page is made when it is asked for
    assert rows == [len(X), 9]


def test__report__page__parses_and_needs_no_other_file(iris, tmp_path):
    clf, X, y = iris
    path = tmp_path / "report.html"
    made = skve.report(clf, X, y, X_ood=X[:9] + 50, path=path)
    page = Page(path.read_text("utf-8"))
    assert all(source.startswith("data:image/") for source in page.sources)
    assert page.tags.count("img") == 3
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert path.stat().st_size < 3e6
    for heading in ("How good is it?", "Does it detect foreign inputs?", "The most confident errors", "Versions"):
        assert heading in page.text
    assert "accuracy" in repr(made)
    assert made._repr_html_().startswith("<iframe srcdoc=")


def test__report__images__thumbnails_and_names_of_files(tmp_path):
    images, labels = toy_images(per_class=4)
    clf = toy_classifier(max_epochs=1).fit(images, labels)
    paths = image_files(images, tmp_path)
    made = skve.report(clf, paths, labels, X_ood=[paths[0]])
    assert Page(made.html).tags.count("img") > 12
    names = re.findall(r'<br><span class="soft">(.*?)</span>', made.html)
    assert set(names[:12]) <= {path.name for path in paths}
    table = made.to_frame()
    assert table["X"].tolist() == [str(path) for path in [*paths, paths[0]]]
    assert table["is_foreign"].tolist() == [False] * len(paths) + [True]
    assert table["y"].tolist()[:-1] == labels.tolist()
    made = skve.report(clf, images, labels)
    assert Page(made.html).tags.count("img") > 12
    assert "X" not in made.to_frame()


def test__report__html_and_emoji_in_classes_and_texts__escaped(recwarn):
    X, y = texts()
    made = skve.report(Texts(), X, y, X_ood=["<i>foreign</i>"])
    page = Page(made.html)
    assert not {"script", "i"} & set(page.tags)
    for piece in ("<b>text</b>", "a & b", "😀", "<i>foreign</i>", "$\\frac{1}{2}$"):
        assert piece in page.text
    assert len(made.to_frame()) == len(X) + 1
    assert [str(one.message) for one in recwarn if "Glyph" in str(one.message)] == []


def test__report__more_samples_than_the_limit__a_part_and_said(monkeypatch):
    X, y = texts(200)
    monkeypatch.setattr(reporting, "_MAX_SAMPLES", 50)
    made = skve.report(Texts(), X, y, X_ood=X[:60])
    assert made.to_dict()["data"]["n_samples"] == 50
    assert made.to_dict()["data"]["n_given"] == 200
    text = " ".join(Page(made.html).text.split())
    assert "50 samples, drawn at random from 200" in text
    assert "50 foreign samples, drawn at random from 60" in text
    table = made.to_frame()
    assert table["X"].tolist()[:50] == [X[i] for i in table.index[:50]]
    assert table["y"].tolist()[:50] == [y[i] for i in table.index[:50]]


def test__report__one_hundred_thousand_items__small_page():
    X = [f"text {i}" for i in range(100_000)]
    made = skve.report(Texts([*"abc"]), X, np.array(list("abc"))[np.arange(len(X)) % 3])
    assert made.to_dict()["data"]["n_samples"] == 10_000
    assert len(made.html) < 3e6


def test__report__no_errors__no_empty_pictures_and_no_undefined_figures():
    page = Page(skve.report(Texts([*"abc"]), ["x" * 4] * 20, ["b"] * 20).html)
    text = " ".join(page.text.split())
    assert "img" not in page.tags
    assert "All answers are right, and the mean confidence is 95.2" in text
    assert "AUROC of" not in text
    assert "not defined" not in text.partition("Does it show a known failure?")[0]


def test__report__healthy_model__measurements_are_no_advice():
    text = " ".join(Page(skve.report(Texts([*"abc"]), ["x" * 4] * 20, ["b"] * 20).html).text.split())
    fixed, _, measured = text.partition("Does it show a known failure?")[2].partition("What else was measured?")
    assert fixed.strip().startswith("No: none of the ")
    assert "gain of the ensemble" not in fixed
    assert "gain of the ensemble" in measured


class Undefined(Texts):
    """An ensemble about which little is known."""

    history_ = {"epoch": [2], "loss": [float("nan")]}
    temperature_ = float("nan")


@pytest.mark.parametrize(
    ("X", "y", "X_ood"),
    [(["x" * 4], ["b"], None), (["x" * 4], ["a"], ["y"]), (["x"] * 3, ["b"] * 3, ["x"] * 3)],
    ids=["one sample", "one wrong sample", "all the same"],
)
def test__report__figures_that_are_nan__none_and_said(X, y, X_ood):
    made = skve.report(Undefined([*"abc"]), X, y, X_ood=X_ood)
    found = made.to_dict()
    json.dumps(found, allow_nan=False)
    assert found["model"]["training_loss"] is None
    assert found["model"]["temperature"] is None
    assert found["selective"]["AUROC of errors"] is None
    text = Page(made.html).text
    assert not re.search(r"\bnan\b|\binf\b|\bNone\b", text)
    assert "Training2 epochsParameters" in text


@pytest.mark.parametrize("right", [True, False])
def test__report__one_class__said_and_defined(right):
    X = ["x" * (4 if right else 3)] * 20
    made = skve.report(Texts([*"abc"]), X, ["b"] * 20)
    page = Page(made.html)
    assert "All samples are of one class" in page.text
    assert f"No threshold is recommended: {'all answers are' if right else 'no answer is'} right." in page.text
    assert made.to_dict()["selective"]["AUROC of errors"] is None


def test__report__most_certain_answers_wrong__no_threshold():
    X = ["x" * 9] * 3 + ["x" * 5] * 3  # "a", more certain, and "c"
    made = skve.report(Texts([*"abc"]), X, ["b"] * 3 + ["c"] * 3)
    assert made.to_dict()["selective"]["threshold"] is None
    assert "does not halve the error rate" in Page(made.html).text


def test__report__without_novelty__by_total_uncertainty():
    X, y = texts()
    made = skve.report(Texts(), X, y, X_ood=X[:5])
    assert list(made.to_dict()["foreign"]["by"]) == ["total", "epistemic"]
    assert "novelty is not known" in Page(made.html).text


def test__report__reference__its_row_and_the_difference(iris):
    clf, X, y = iris
    other = LogisticRegression().fit(X, y)
    made = skve.report(clf, X, y, reference=other)
    row = made.to_dict()["reference"]
    assert row["name"] == "LogisticRegression"
    assert row["metrics"]["NLL"]["estimate"] == pytest.approx(log_loss(y, other.predict_proba(X)))
    own = made.to_dict()["metrics"]["NLL"]["estimate"]
    assert row["NLL difference"]["estimate"] == pytest.approx(own - row["metrics"]["NLL"]["estimate"])
    assert "LogisticRegression" in Page(made.html).text


def test__report__no_reference__logistic_regression_of_diagnose(iris):
    clf, X, y = iris
    made = skve.report(clf, X, y)
    assert "logistic regression" in made.to_dict()["reference"]["name"]
    assert made.to_dict()["diagnosis"]["measured"]["gain of the ensemble"] in html.unescape(made.html)


def test__report__inside_wrappers__of_the_whole(iris):
    clf, X, y = iris
    inside = make_pipeline(StandardScaler(), ToyClassifier(n_members=2, max_steps=4, random_state=0)).fit(X, y)
    assert skve.report(inside, X, y).to_dict()["model"]["inside"] == "Pipeline"
    calibrated = CalibratedClassifierCV(FrozenEstimator(clf), method="temperature").fit(X, y)
    found = skve.report(calibrated, X, y).to_dict()
    assert found["metrics"]["NLL"]["estimate"] == pytest.approx(log_loss(y, calibrated.predict_proba(X)))


def test__report__bad_input__clear_errors(iris, tmp_path):
    clf, X, y = iris
    with pytest.raises(ValueError, match="X must have at least one sample, got none"):
        skve.report(clf, X[:0], y[:0])
    with pytest.raises(ValueError, match="y must have one label for each of the 75 samples, got 74"):
        skve.report(clf, X, y[:-1])
    with pytest.raises(ValueError, match=r"est\.classes_"):
        skve.report(clf, X, y + 1)
    with pytest.raises(TypeError, match="predict_proba_members"):
        skve.report(LogisticRegression().fit(X, y), X, y)


def test__report__unwritable_path__error_before_any_prediction(iris, tmp_path, monkeypatch):
    clf, X, y = iris
    monkeypatch.setattr(ToyClassifier, "_make_pipeline", None)
    with pytest.raises(IsADirectoryError, match="path must be a file, got the folder"):
        skve.report(clf, X, y, path=tmp_path)
    with pytest.raises(FileNotFoundError, match="path must lie in a folder that exists"):
        skve.report(clf, X, y, path=tmp_path / "none" / "report.html")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="path must be writable"):
        skve.report(clf, X, y, path=tmp_path / "report.html")


def test__report__no_jinja__says_what_to_install(iris, monkeypatch):
    clf, X, y = iris
    find = reporting.importlib.util.find_spec
    monkeypatch.setattr(reporting.importlib.util, "find_spec", lambda name: None if name == "jinja2" else find(name))
    with pytest.raises(ImportError, match=re.escape('pip install ".[report]"')):
        skve.report(clf, X, y)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.full((4, 4, 3), 0.5), 128),
        (np.full((4, 4, 3), 51.0), 51),
        (np.ones((4, 4), bool), 255),
        (np.full((4, 4, 3), 257 * 9, np.uint16), 9),
        (np.full((4, 4, 1), 7, np.uint8), 7),
    ],
    ids=["0 to 1", "0 to 255", "bool", "16 bits", "one channel"],
)
def test__report__pixels_of_any_kind__thumbnails_of_8_bits(pixels, expected):
    import base64
    import io

    from PIL import Image

    source = reporting._thumbnail(pixels)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))
    assert np.abs(shown.astype(int) - expected).max() <= 1


def test__report__more_classes_than_are_legible__no_confusion_matrix():
    X = np.random.default_rng(0).normal(size=(60, 4))
    y = np.arange(60) % 30
    model = ToyClassifier(n_members=2, max_epochs=1, random_state=0).fit(X, y)
    assert "Confusion matrix" not in skve.report(model, X, y)._repr_html_()


def test__report__figures_that_stand_elsewhere_too__are_the_same():
    X, y = load_iris(return_X_y=True)
    model = ToyClassifier(n_members=4, ensemble_params={"folds": 4}, max_steps=60, random_state=0).fit(X[::2], y[::2])
    page = skve.report(model, X[1::2], y[1::2])
    found = page.to_dict()
    assert model.temperature_ != 1
    selective = skve.SelectiveClassifier(model, prefit=True, accuracy=found["selective"]["goal"]).fit(
        X[1::2], y[1::2]
    )
    assert found["selective"]["threshold"] == pytest.approx(selective.threshold_)
    difference = found["reference"]["NLL difference"]
    text = f"difference {difference['estimate']:.3f} ({difference['low']:.3f} to {difference['high']:.3f})"
    assert text in page.diagnosis.measured["comparison"]
    assert "each time on 60 samples" in found["reference"]["name"]
    assert found["model"]["n_epochs"] == model.history_["epoch"][-1]


def test__report__all_answers_right__interval_of_the_accuracy_is_none_of_certainty():
    X, y = load_iris(return_X_y=True)
    X, y = X[:100], y[:100]
    model = ToyClassifier(n_members=2, max_steps=60, random_state=0).fit(X, y)
    accuracy = skve.report(model, X[::10], y[::10]).to_dict()["metrics"]["accuracy"]
    assert accuracy["estimate"] == 1
    assert 0.6 < accuracy["low"] < 0.8  # Wilson's interval of 10 of 10: 0.72 to 1
    assert accuracy["high"] == 1
