"""Diversity of members against closed forms and plain loops."""

from itertools import combinations, permutations

import numpy as np
import pytest

from skve import metrics


@pytest.fixture
def members():
    return np.random.default_rng(0).dirichlet(np.ones(4), size=(3, 200))


@pytest.fixture
def y_true():
    return np.random.default_rng(1).integers(0, 4, size=200)


def test__pairwise_disagreement__random__loop_over_pairs(members):
    votes = members.argmax(2)
    expected = np.mean([(votes[i] != votes[j]).mean() for i, j in combinations(range(3), 2)])
    assert metrics.pairwise_disagreement(members) == pytest.approx(expected)


def test__average_kl__random__loop_over_pairs(members):
    pairs = [(members[i] * np.log(members[i] / members[j])).sum(1).mean() for i, j in permutations(range(3), 2)]
    assert metrics.average_kl(members) == pytest.approx(np.mean(pairs))


def test__q_statistic__random__loop_over_pairs(members, y_true):
    right = members.argmax(2) == y_true
    values = []
    for i, j in combinations(range(3), 2):
        n11, n00 = (right[i] & right[j]).sum(), (~right[i] & ~right[j]).sum()
        n10, n01 = (right[i] & ~right[j]).sum(), (~right[i] & right[j]).sum()
        values.append((n11 * n00 - n01 * n10) / (n11 * n00 + n01 * n10))
    assert metrics.q_statistic(y_true, members) == pytest.approx(np.mean(values))


def test__error_correlation__random__numpy_corrcoef(members, y_true):
    matrix = np.corrcoef(members.argmax(2) != y_true)
    expected = matrix[np.triu_indices(3, 1)].mean()
    assert metrics.error_correlation(y_true, members) == pytest.approx(expected)


def test__diversity__identical_members__extremes(members, y_true):
    same = np.repeat(members[:1], 3, axis=0)
    assert metrics.pairwise_disagreement(same) == 0
    assert metrics.average_kl(same) == pytest.approx(0, abs=1e-12)
    assert metrics.q_statistic(y_true, same) == 1
    assert metrics.error_correlation(y_true, same) == pytest.approx(1)


def test__diversity__members_without_errors__nan(members):
    same = np.repeat(members[:1], 2, axis=0)
    y_true = same[0].argmax(1)
    assert np.isnan(metrics.q_statistic(y_true, same))
    assert np.isnan(metrics.error_correlation(y_true, same))


def test__error_correlation__one_perfect_member__its_pairs_left_out(members, y_true):
    perfect = np.eye(4)[y_true][None]
    expected = metrics.error_correlation(y_true, members[:2])
    assert metrics.error_correlation(y_true, np.concatenate([members[:2], perfect])) == pytest.approx(expected)


@pytest.mark.parametrize("n_features", [5, 400])
def test__linear_cka__random__kernel_form(n_features):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(60, n_features))
    b = a[:, :3] @ rng.normal(size=(3, 7)) + rng.normal(size=(60, 7))
    centring = np.eye(60) - 1 / 60
    k, l = (centring @ x @ x.T @ centring for x in (a, b))  # noqa: E741
    expected = (k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum())
    assert metrics.linear_cka(a, b) == pytest.approx(expected)


def test__linear_cka__rotated_scaled_shifted__one():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(60, 5))
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    assert metrics.linear_cka(a, 3 * a @ rotation + 2) == pytest.approx(1)


def test__member_cka__random__linear_cka_of_each_pair():
    features = np.random.default_rng(0).normal(size=(3, 40, 6))
    matrix = metrics.member_cka(features)
    for i in range(3):
        for j in range(3):
            assert matrix[i, j] == pytest.approx(metrics.linear_cka(features[i], features[j]))


@pytest.mark.parametrize("value", [1.0, 0.1, 1e6 / 3])
def test__cka__constant_features__nan(value):
    features = np.random.default_rng(0).normal(size=(2, 40, 6))
    features[1] = value
    assert np.isnan(metrics.linear_cka(*features))
    assert np.isnan(metrics.member_cka(features)).tolist() == [[False, True], [True, True]]


# Bad input


@pytest.mark.parametrize("metric", [metrics.pairwise_disagreement, metrics.average_kl])
@pytest.mark.parametrize("shape", [(1, 5), (2, 0)])
def test__diversity__too_few__value_error(metric, shape):
    with pytest.raises(ValueError, match="at least two members and one sample"):
        metric(np.full((*shape, 2), 0.5))


@pytest.mark.parametrize("metric", [metrics.q_statistic, metrics.error_correlation])
def test__diversity__bad_labels_and_lengths__value_error(metric, members, y_true):
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        metric(y_true[:-1], members)
    with pytest.raises(ValueError, match="among labels"):
        metric(y_true + 1, members, labels=range(4))
    with pytest.raises(ValueError, match="sums to"):
        metric(y_true, members * 2)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.ones(3), np.ones((3, 2)), "features_a must have shape"),
        (np.ones((3, 2)), np.ones((4, 2)), "features_b must have 3 samples like features_a, got 4"),
        (np.ones((3, 2)), np.full((3, 2), np.nan), "features_b must be finite, got NaN"),
    ],
)
def test__linear_cka__bad_input__value_error(a, b, message):
    with pytest.raises(ValueError, match=message):
        metrics.linear_cka(a, b)


def test__member_cka__bad_shape__value_error():
    with pytest.raises(ValueError, match="member_features must have shape"):
        metrics.member_cka(np.ones((3, 2)))
