"""OOD metrics against scikit-learn, a plain loop and torch-uncertainty."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from skve import metrics


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    return rng.normal(size=300).round(2), (rng.normal(size=200) + 1).round(2)


def fpr_by_loop(scores_in, scores_out, tpr):
    for threshold in np.sort(scores_out)[::-1]:
        if (scores_out >= threshold).mean() >= tpr:
            return (scores_in >= threshold).mean()
    raise AssertionError


def test__ood__auroc_and_aupr__scikit_learn(scores):
    foreign = np.repeat([0, 1], [300, 200])
    joined = np.concatenate(scores)
    assert metrics.ood_auroc(*scores) == roc_auc_score(foreign, joined)
    assert metrics.ood_aupr(*scores) == average_precision_score(foreign, joined)
    assert metrics.ood_aupr(*scores, positive="in") == average_precision_score(1 - foreign, -joined)


@pytest.mark.parametrize("tpr", [0.5, 0.8, 0.95, 1.0])
def test__ood__fpr_at_tpr__same_as_loop(scores, tpr):
    assert metrics.ood_fpr_at_tpr(*scores, tpr=tpr) == pytest.approx(fpr_by_loop(*scores, tpr))
    swapped = fpr_by_loop(-scores[1], -scores[0], tpr)
    assert metrics.ood_fpr_at_tpr(*scores, tpr=tpr, positive="in") == pytest.approx(swapped)


def test__ood__separated_and_constant__best_and_chance():
    assert metrics.ood_auroc([0, 1], [2, 3]) == 1
    assert metrics.ood_aupr([0, 1], [2, 3]) == 1
    assert metrics.ood_fpr_at_tpr([0, 1], [2, 3]) == 0
    assert metrics.ood_auroc([1, 1], [1, 1]) == 0.5
    assert metrics.ood_fpr_at_tpr([1, 1], [1, 1]) == 1


def test__ood__torch_uncertainty__same_fpr95(scores):
    torch = pytest.importorskip("torch")
    peer = pytest.importorskip("torch_uncertainty.metrics")
    metric = peer.FPR95(pos_label=1)
    metric.update(torch.as_tensor(np.concatenate(scores)), torch.as_tensor(np.repeat([0, 1], [300, 200])))
    assert metrics.ood_fpr_at_tpr(*scores) == pytest.approx(float(metric.compute()), abs=1e-6)


@pytest.mark.parametrize("metric", [metrics.ood_auroc, metrics.ood_aupr, metrics.ood_fpr_at_tpr])
def test__ood__integer_weights__same_as_repetition(metric, scores):
    rng = np.random.default_rng(1)
    weight_in, weight_out = rng.integers(0, 3, size=300), rng.integers(0, 3, size=200)
    expected = metric(np.repeat(scores[0], weight_in), np.repeat(scores[1], weight_out))
    actual = metric(*scores, sample_weight_in=weight_in, sample_weight_out=weight_out)
    assert actual == pytest.approx(expected, abs=1e-9)
    assert metric(*scores, sample_weight_in=np.ones(300)) == pytest.approx(metric(*scores))


@pytest.mark.parametrize("metric", [metrics.ood_auroc, metrics.ood_aupr, metrics.ood_fpr_at_tpr])
@pytest.mark.parametrize(
    ("scores_in", "scores_out", "options", "message"),
    [
        ([], [1.0], {}, "scores_in must have at least one sample"),
        ([1.0], [], {}, "scores_out must have at least one sample"),
        ([np.nan], [1.0], {}, "scores_in must be finite, got NaN"),
        ([1.0], [np.inf], {}, "scores_out must be finite, got NaN or infinity"),
        ([[1.0]], [1.0], {}, "scores_in must be real numbers of shape"),
        ([1.0], ["a"], {}, "scores_out must be real numbers"),
        ([1.0], [1.0], {"sample_weight_in": [1, 1]}, "sample_weight_in must have shape"),
        ([1.0], [1.0], {"sample_weight_out": [0]}, "sample_weight_out must be above 0"),
    ],
)
def test__ood__bad_input__value_error_says_what(metric, scores_in, scores_out, options, message):
    with pytest.raises(ValueError, match=message):
        metric(scores_in, scores_out, **options)


def test__ood__bad_option__value_error():
    with pytest.raises(ValueError, match="positive must be one of"):
        metrics.ood_aupr([0.0], [1.0], positive="both")
    with pytest.raises(ValueError, match="tpr must be in"):
        metrics.ood_fpr_at_tpr([0.0], [1.0], tpr=95)
