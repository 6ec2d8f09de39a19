"""Students: what they start from, what they learn, one pass, and what cannot be distilled."""

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError

import skve
from skve import SVETextClassifier
from skve._backbones.network import Network
from skve._ensembles import RULES
from skve._ensembles.low_rank import DOWN, UP
from skve._training import distillation
from skve.testing import ToyClassifier, make_toy_text_backbone
from tests.toys import TinyCNN, arrays_of, same_arrays, toy_classifier

X, Y = load_iris(return_X_y=True)
ALREADY_ONE = {"single", "head", "laplace"}
TEXTS = ["to be", "or not", "to be so", "or not so"] * 4
ANSWERS = ["yes", "no"] * 8


def make(ensemble="sve", **parameters):
    settings = {"n_members": 3, "head_lr": 0.1, "head_weight_decay": 0.0, "device": "cpu", "random_state": 0}
    return ToyClassifier(ensemble=ensemble, **{**settings, **parameters})


@pytest.fixture(scope="module")
def blended():
    """A classifier that blends its prediction with a regression, at a temperature."""
    classifier = make(ensemble_params={"folds": 3}, head_lr=1e-3, max_steps=20).fit(X, Y)
    assert 0 < classifier.regression_share_ <= 1
    return classifier


@pytest.fixture(scope="module")
def student(blended):
    return blended.distill(X)


@pytest.fixture
def count_passes(monkeypatch):
    """Count the passes of batches through a network."""
    counted = []
    features = Network.features

    def count(network, inputs):
        counted.append(network)
        return features(network, inputs)

    monkeypatch.setattr(Network, "features", count)
    return counted


@pytest.mark.parametrize("ensemble", sorted(set(RULES) - ALREADY_ONE))
def test__distill__each_ensemble__one_pass_and_all_predictions(ensemble, count_passes):
    classifier = make(ensemble, max_steps=30).fit(X[::3], Y[::3])
    student = classifier.distill(X[::3])
    assert type(student) is ToyClassifier
    assert student.n_members == 1
    assert student.ensemble == (RULES[ensemble].student or ensemble)
    foreign = X[:20] + 0.01  # features of other samples are not kept
    student.predict(foreign)
    count_passes.clear()
    uncertainty = student.predict_uncertainty(foreign)
    assert len(count_passes) == 1
    np.testing.assert_allclose(uncertainty.total, uncertainty.aleatoric + uncertainty.epistemic)
    assert (uncertainty.epistemic > 0).all()
    assert student.predict_proba_members(foreign).shape == (3, 20, 3)
    assert student.score_samples(foreign).shape == (20,)
    difference = np.abs(student.predict_proba(X) - classifier.predict_proba(X)).mean()
    assert difference < 0.05


@pytest.mark.parametrize("ensemble", sorted(ALREADY_ONE))
def test__distill__one_pass_already__says_so(ensemble):
    classifier = make(ensemble, max_steps=2).fit(X, Y)
    with pytest.raises(ValueError, match=r"^distill requires an ensemble of several networks, got .* one pass"):
        classifier.distill(X)


def test__distill__student__is_one_already(blended):
    with pytest.raises(ValueError, match="got 3 heads on one network"):
        blended.distill().distill()


def test__distill__batch_of_signs__says_what_works():
    classifier = make("batch", ensemble_params={"init": "signs"}, max_steps=2).fit(X, Y)
    with pytest.raises(ValueError, match="init in ensemble_params must be 'normal' for distill, got 'signs'"):
        classifier.distill()


def test__distill__not_fitted__says_so():
    with pytest.raises(NotFittedError):
        make().distill()


def test__distill__without_samples__average_of_bodies_and_heads_as_they_are(blended):
    student = blended.distill()
    for key, value in arrays_of(blended).items():
        expected = value if key.startswith("head.") else value.mean(axis=0, keepdims=True)
        np.testing.assert_allclose(arrays_of(student)[key], expected, atol=1e-7)
    assert student.regression_share_ == blended.regression_share_
    np.testing.assert_array_equal(student.score_samples(X[:9]), blended.score_samples(X[:9]))
    assert np.abs(student.predict_proba(X) - blended.predict_proba(X)).mean() < 0.05


@pytest.mark.parametrize("rank", [1, 8])
def test__average__low_rank__product_is_the_mean_of_products(rank):
    """With rank 8, the concatenated pairs have more rows than a layer of 16 units has directions."""
    classifier = make("lora", ensemble_params={"rank": rank}, max_steps=10, member_lr=0.05).fit(X, Y)
    body = distillation.average(classifier._state).arrays
    arrays = arrays_of(classifier)
    ups = [key for key in arrays if key.startswith(UP)]
    assert len(ups) == 2
    for key in ups:
        down = DOWN + key.removeprefix(UP)
        expected = np.mean(arrays[key] @ arrays[down], axis=0)
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose((body[key] @ body[down])[0], expected, atol=1e-6)


def test__distill__blended_prediction__regression_reads_the_students_features(blended, student, count_passes):
    proba = student.predict_proba(X[:20] + 0.02)
    assert len(count_passes) == 1
    assert student.regression_share_ == blended.regression_share_
    assert student.temperature_ == blended.temperature_
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    assert np.abs(student.predict_proba(X) - blended.predict_proba(X)).mean() < 0.03


def test__distill__training__brings_the_student_nearer():
    classifier = make(max_steps=40, member_lr=0.1).fit(X[::3], Y[::3])
    members = classifier.predict_proba_members(X)
    untrained, trained = (classifier.distill(data).predict_proba_members(X) for data in (None, X[::3]))
    assert np.abs(trained - members).mean() < 0.7 * np.abs(untrained - members).mean()


def test__distill__same_seed__same_bits_and_untouched_teacher(blended, student, global_state):
    before, arrays = global_state(), {key: value.copy() for key, value in arrays_of(blended).items()}
    assert same_arrays(blended.distill(X), student)
    assert global_state() == before
    assert all(np.array_equal(value, arrays[key]) for key, value in arrays_of(blended).items())
    assert blended.n_members == 3


def test__distill__foreign_samples_among_X__stay_foreign(blended):
    foreign = np.tile([[-50.0, 60.0, -70.0, 80.0]], (30, 1)) * np.linspace(0.5, 2, 30)[:, None]
    student = blended.distill(np.concatenate([X, foreign]))
    assert (student.predict_uncertainty(foreign).novelty > 0.95).all()
    assert np.mean(student.predict_uncertainty(X).novelty > 0.95) < 0.1
    with pytest.raises(ValueError, match="X must have a sample of the kind of the training data"):
        blended.distill(foreign)


@pytest.mark.filterwarnings("ignore:not saved")
@pytest.mark.parametrize("trained", [False, True])
def test__save__student_of_images__loaded_predicts_the_same(images, tmp_path, trained):
    backbone = TinyCNN()
    student = toy_classifier(backbone, n_members=3).fit(*images).distill(images[0] if trained else None)
    student.save(tmp_path / "model")
    loaded = skve.load(tmp_path / "model", backbone=backbone)
    np.testing.assert_array_equal(loaded.predict_proba(images[0]), student.predict_proba(images[0]))
    for name, values in vars(student.predict_uncertainty(images[0])).items():
        np.testing.assert_array_equal(getattr(loaded.predict_uncertainty(images[0]), name), values)


@pytest.mark.parametrize(
    "settings",
    [
        {"backbone": make_toy_text_backbone()},
        {"backbone": make_toy_text_backbone("gpt2", lm=True), "head": "lm", "label_words": [" not", " be"]},
    ],
    ids=["linear", "lm"],
)
def test__distill__texts__one_pass(settings, count_passes):
    classifier = SVETextClassifier(n_members=2, max_steps=6, device="cpu", random_state=0, **settings)
    classifier.fit(TEXTS, ANSWERS)
    student = classifier.distill(TEXTS)
    count_passes.clear()
    student.predict_uncertainty(["be not", "not to be"])
    assert len(count_passes) == 1
    assert np.abs(student.predict_proba(TEXTS) - classifier.predict_proba(TEXTS)).mean() < 0.1


def test__distill__choices_scored_by_their_texts__one_pass(count_passes):
    questions = [("to be", ["or", "not to be"]), ("to", ["be so", "not", "or"])] * 6
    classifier = SVETextClassifier(
        make_toy_text_backbone("llama", lm=True), head="likelihood", n_members=2, max_steps=6, random_state=0
    ).fit(questions, [0, 2] * 6)
    student = classifier.distill(questions)
    count_passes.clear()
    uncertainty = student.predict_uncertainty([("be", ["to", "so"])])
    assert len(count_passes) == 1
    assert (uncertainty.epistemic > 0).all()
    assert np.abs(student.predict_proba(questions) - classifier.predict_proba(questions)).mean() < 0.05


def test__distill__other_kind_of_input__named(blended):
    with pytest.raises(ValueError, match="4 features"):
        blended.distill(X[:, :3])
