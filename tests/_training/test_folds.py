"""Members that leave out a fold: what they train on, and the out-of-fold probabilities that they give."""

import numpy as np
import pytest
import torch

from skve._training.folds import split_folds
from tests.toys import TinyMLP, arrays_of, assert_members_close, same_arrays, toy_classifier

FOLDS = {"n_members": 4, "ensemble_params": {"folds": 4}, "max_epochs": 3, "member_lr": 1e-2}


def folds_of(codes, n_folds, n_members=4, seed=0):
    return split_folds(np.array(codes), n_folds, n_members, torch.Generator().manual_seed(seed))


def test__split_folds__classes_of_any_size__even_folds_of_even_classes():
    codes = np.repeat(np.arange(4), [17, 1, 6, 3])
    folds = folds_of(codes, 4)
    assert np.ptp(np.bincount(folds.of_samples, minlength=4)) <= 1
    for label in range(4):
        assert np.ptp(np.bincount(folds.of_samples[codes == label], minlength=4)) <= 1
    assert not np.array_equal(folds.of_samples, folds_of(codes, 4, seed=1).of_samples)


def test__split_folds__fewer_samples_than_folds__value_error():
    with pytest.raises(ValueError, match=r"folds .* at most the number of training samples, got 4 for 3\."):
        folds_of([0, 1, 2], 4)


def test__kept__weights_by_member__zero_for_the_fold_alone():
    folds = folds_of([0, 0, 1, 1], 2, n_members=3)
    kept = folds.kept(np.array([1.0, 2.0, 3.0, 4.0]))
    assert kept.shape == (3, 4)
    assert np.array_equal(kept[0], kept[2])
    assert np.array_equal(kept[0] + kept[1], [1, 2, 3, 4])
    assert (kept[0] == 0).tolist() == (folds.of_samples == 0).tolist()


def test__fit__folds__each_member_as_if_its_fold_had_no_weight(images):
    X, y = images
    classifier = toy_classifier(TinyMLP(), **FOLDS).fit(X, y)
    own = np.isclose(proba_of(classifier, X), classifier.oof_proba_, rtol=0, atol=1e-6).all(-1)
    left_out = [np.flatnonzero(rows) for rows in own]
    assert sorted(np.concatenate(left_out)) == list(range(24))
    assert [len(rows) for rows in left_out] == [6] * 4
    assert all(np.bincount(y[rows]).tolist() == [2, 2, 2] for rows in left_out)
    for member, rows in enumerate(left_out):
        weights = np.ones(24)
        weights[rows] = 0
        alone = toy_classifier(TinyMLP(), **{**FOLDS, "ensemble_params": None}).fit(X, y, weights)
        for key, value in arrays_of(alone).items():
            np.testing.assert_allclose(arrays_of(classifier)[key][member], value[member], atol=1e-6, err_msg=key)


def proba_of(classifier, X):
    return classifier.predict_proba_members(X)


def test__oof_proba__several_members_a_fold__their_mean(images):
    X, y = images
    classifier = toy_classifier(TinyMLP(), **{**FOLDS, "ensemble_params": {"folds": 2}}).fit(X, y)
    members = proba_of(classifier, X)
    pools = np.stack([members[::2].mean(0), members[1::2].mean(0)])
    assert classifier.oof_proba_.dtype == np.float32
    is_one = np.isclose(classifier.oof_proba_, pools, atol=1e-6).all(-1)
    assert is_one.any(0).all()


@pytest.mark.parametrize(
    "options", [{"order": "own"}, {"bootstrap": True}, {"order": "own", "bootstrap": True}], ids=str
)
def test__fit__folds_with_other_differences__probabilities_of_every_sample(images, options):
    settings = {**FOLDS, "ensemble_params": {"folds": 2, **options}}
    classifier = toy_classifier(TinyMLP(), **settings).fit(*images)
    np.testing.assert_allclose(classifier.oof_proba_.sum(1), 1, atol=1e-6)


def test__fit__folds_and_chunks__same_members(images, train_in_chunks):
    expected = toy_classifier(TinyMLP(), **FOLDS).fit(*images)
    train_in_chunks(4)
    assert_members_close(toy_classifier(TinyMLP(), **FOLDS).fit(*images), expected)


def test__oof_proba__samples_set_aside__nan(images):
    X, y = images
    classifier = toy_classifier(TinyMLP(), early_stopping=True, validation_fraction=0.25, **FOLDS).fit(X, y)
    aside = np.isnan(classifier.oof_proba_).all(1)
    assert aside.sum() == 6
    assert np.isfinite(classifier.oof_proba_[~aside]).all()


def test__fit__one_sample_of_a_class__left_out_by_one_fold(images):
    X, y = images
    rare = np.where(np.arange(24) == 3, 9, y)
    assert np.isfinite(toy_classifier(TinyMLP(), **FOLDS).fit(X, rare).oof_proba_).all()


def test__warm_start__folds__the_same_ones(images):
    X, y = images
    classifier = toy_classifier(TinyMLP(), warm_start=True, **FOLDS)
    rows = []
    for _ in range(2):
        classifier.fit(X, y)
        rows.append(
            [np.isclose(classifier.oof_proba_, p, atol=1e-6).all(1).tolist() for p in proba_of(classifier, X)]
        )
    assert rows[0] == rows[1]


def test__refit__without_folds__no_out_of_fold_probabilities_left(images):
    classifier = toy_classifier(TinyMLP(), **FOLDS).fit(*images)
    assert not hasattr(classifier.set_params(ensemble_params=None).fit(*images), "oof_proba_")


def test__folds__more_than_members__value_error(images):
    with pytest.raises(ValueError, match=r"folds in ensemble_params must be at most n_members=2.*, got 3\."):
        toy_classifier(TinyMLP(), ensemble_params={"folds": 3}).fit(*images)


@pytest.mark.parametrize("ensemble", ["single", "dropout", "snapshot"])
def test__folds__one_network__value_error(images, ensemble):
    with pytest.raises(ValueError, match=r"ensemble_params .*, got \['folds'\]"):
        toy_classifier(TinyMLP(), ensemble=ensemble, ensemble_params={"folds": 2}).fit(*images)


def test__folds__all_weight_in_one_fold__value_error_names_the_member(images):
    X, y = images
    weights = (np.arange(24) == 0).astype(float)
    with pytest.raises(ValueError, match=r"samples that member \d keeps"):
        toy_classifier(TinyMLP(), **FOLDS).fit(X, y, weights)


def test__calibrate__with_folds__no_sample_set_aside_and_a_temperature(images):
    X, y = images
    plain = toy_classifier(TinyMLP(), **FOLDS).fit(X, y)
    calibrated = toy_classifier(TinyMLP(), calibrate="temperature", **FOLDS).fit(X, y)
    assert same_arrays(plain, calibrated)
    assert calibrated.temperature_ != 1.0
    assert np.array_equal(plain.oof_proba_, calibrated.oof_proba_)


def test__partial_fit__folds_and_calibration__temperature_of_the_call(images):
    classifier = toy_classifier(TinyMLP(), calibrate="temperature", **FOLDS)
    classifier.partial_fit(*images, classes=[0, 1, 2])
    assert classifier.oof_proba_.shape == (24, 3)
    assert classifier.temperature_ != 1.0
