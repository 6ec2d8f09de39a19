"""The training loop: schedules, clipping, decay, weights of samples and classes, early stopping."""

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback

from skve._training.schedule import learning_rate_factor
from tests.toys import TinyCNN, arrays_of, members_close, pooled_nll, same_arrays, toy_classifier

# ---------------------------------------------------------------------------------------- learning rates


def test__learning_rate_factor__warmup__rises_linearly_and_never_starts_at_zero():
    factor = learning_rate_factor("cosine", 0.4, 10)
    assert [factor(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize(("schedule", "middle", "end"), [("cosine", 0.5, 0), ("linear", 0.5, 0), ("constant", 1, 1)])
def test__learning_rate_factor__schedules__from_one_to_their_end(schedule, middle, end):
    factor = learning_rate_factor(schedule, 0.0, 100)
    assert factor(0) == 1
    assert factor(50) == pytest.approx(middle)
    assert factor(100) == pytest.approx(end)
    assert factor(1000) == pytest.approx(end)
    assert (np.diff([factor(step) for step in range(101)]) <= 0).all()


class Rates(Callback):
    """Collect the learning rates of both parameter groups at each step."""

    def on_train_begin(self, net, **kwargs):
        self.rates = []

    def on_batch_begin(self, net, training=False, **kwargs):
        if training:
            self.rates.append([group["lr"] for group in net.optimizer_.param_groups])


def test__fit__rates__follow_the_schedule_for_members_and_heads(images):
    rates = Rates()
    toy_classifier(
        max_epochs=5, schedule="linear", warmup=0.2, member_lr=0.5, head_lr=0.1, grad_clip=1e-9, callbacks=[rates]
    ).fit(*images)
    factor = learning_rate_factor("linear", 0.2, 10)
    expected = [[0.5 * factor(step), 0.1 * factor(step)] for step in range(10)]
    np.testing.assert_allclose(rates.rates, expected, rtol=1e-12)


def test__fit__member_lr_none__default_of_the_ensemble(images):
    for ensemble, expected in (("sve", 5e-2), ("deep", 1e-4)):
        rates = Rates()
        toy_classifier(ensemble=ensemble, schedule="constant", warmup=0.0, callbacks=[rates]).fit(*images)
        assert rates.rates[0][0] == expected


def test__fit__schedules_differ__other_members(images):
    fits = [toy_classifier(schedule=schedule).fit(*images) for schedule in ("cosine", "linear", "constant")]
    assert not same_arrays(fits[0], fits[1])
    assert not same_arrays(fits[1], fits[2])


# --------------------------------------------------------------------------------------- gradient clipping


class Gradients(Callback):
    """Collect the norm of each member's gradient as the optimizer sees it."""

    def on_train_begin(self, net, **kwargs):
        self.norms = []

    def on_batch_end(self, net, training=False, **kwargs):
        if training:
            members = net.module_.members
            self.norms.append(
                [torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in m.parameters()])) for m in members]
            )


def gradient_norms(images, **parameters):
    collected = Gradients()
    toy_classifier(TinyCNN(), n_members=3, callbacks=[collected], **parameters).fit(*images)
    return np.array(collected.norms)


def test__clipping__small_limit__each_member_at_the_limit(images):
    free, clipped = gradient_norms(images, grad_clip=None), gradient_norms(images, grad_clip=0.01)
    assert (free > 0.05).all()
    np.testing.assert_allclose(clipped, 0.01, rtol=1e-3)


def test__clipping__limit_between_two_members__only_the_larger_one_is_clipped(images):
    free = gradient_norms(images, grad_clip=None)[0]
    limit = float((np.sort(free)[1] + np.sort(free)[2]) / 2)
    clipped = gradient_norms(images, grad_clip=limit)[0]
    np.testing.assert_allclose(clipped, np.minimum(free, limit), rtol=1e-4)


def test__history__gradient_norm_and_ratio_spread__for_each_layer_and_epoch(images):
    classifier = toy_classifier(TinyCNN(), max_epochs=3).fit(*images)
    layers = set(classifier.ratios_)
    for name in ("gradient_norm", "ratio_spread"):
        assert set(classifier.history_[name]) == layers
        assert all(len(values) == 3 and min(values) > 0 for values in classifier.history_[name].values())
    spread = {layer: np.exp(np.log(ratios)).std() for layer, ratios in classifier.ratios_.items()}
    for layer, values in classifier.history_["ratio_spread"].items():
        assert values[-1] == pytest.approx(spread[layer], rel=1e-5)
    assert classifier.history_["epoch"] == [1, 2, 3]
    assert np.isnan(classifier.history_["valid_nll"]).all()


# ---------------------------------------------------------------------------------- decay, losses, weights


def test__weight_decay__on_log_ratios__pulls_to_the_pretrained_weight(images):
    settings = {"init_scale": 0.5, "member_lr": 1e-2, "max_epochs": 20, "schedule": "constant"}
    free = toy_classifier(**settings).fit(*images)
    decayed = toy_classifier(**settings, weight_decay=20.0).fit(*images)
    spread = {
        name: np.abs(np.log(np.concatenate([r.ravel() for r in fit.ratios_.values()]))).mean()
        for name, fit in {"free": free, "decayed": decayed}.items()
    }
    assert spread["free"] > 0.2
    assert spread["decayed"] < 0.2 * spread["free"]


def test__weight_decay__and_head_weight_decay__each_on_its_own(images):
    plain = toy_classifier(max_epochs=8, schedule="constant").fit(*images)
    heads = toy_classifier(max_epochs=8, schedule="constant", head_weight_decay=20.0).fit(*images)
    norm = {
        name: np.linalg.norm(arrays_of(fit)["head.weight"]) for name, fit in {"plain": plain, "heads": heads}.items()
    }
    assert norm["heads"] < 0.7 * norm["plain"]
    own = toy_classifier(max_epochs=8, schedule="constant", weight_decay=1.0).fit(*images)
    assert np.linalg.norm(arrays_of(own)["head.weight"]) > 0.9 * norm["plain"]


def test__label_smoothing__strong__less_certain(images):
    settings = {"max_epochs": 30, "head_lr": 0.1, "schedule": "constant"}
    sharp = toy_classifier(**settings).fit(*images).predict_proba(images[0])
    smooth = toy_classifier(**settings, label_smoothing=0.5).fit(*images).predict_proba(images[0])
    assert sharp.max(1).mean() > 0.95
    assert 0.5 < smooth.max(1).mean() < 0.8


def one_batch(**parameters):
    return toy_classifier(TinyCNN(), batch_size=64, max_epochs=6, member_lr=1e-2, **parameters)


def test__sample_weight__zero__sample_absent(images):
    X, y = images
    weights = np.ones(len(X))
    weights[:8] = 0
    members_close(one_batch().fit(X[8:], y[8:]), one_batch().fit(X, y, sample_weight=weights))


def test__sample_weight__whole_numbers__sample_repeated(images):
    X, y = images
    weights = np.ones(len(X))
    weights[:6] = 3
    repeated = np.concatenate([np.arange(len(X)), np.arange(6), np.arange(6)])
    members_close(one_batch().fit(X[repeated], y[repeated]), one_batch().fit(X, y, sample_weight=weights))


def test__sample_weight__constant__as_none(images):
    X, y = images
    weighted = one_batch().fit(X, y, sample_weight=np.full(len(X), 7.5))
    assert same_arrays(weighted, one_batch().fit(X, y))


def test__sample_weight__other_than_constant__other_members(images):
    X, y = images
    weighted = one_batch().fit(X, y, sample_weight=np.linspace(0.1, 1, len(X)))
    assert not same_arrays(weighted, one_batch().fit(X, y))


@pytest.mark.parametrize(
    ("weights", "message"),
    [(np.zeros(24), "zero"), (-np.ones(24), "[Nn]egative"), (np.ones(23), "sample_weight")],
)
def test__sample_weight__bad__value_error(images, weights, message):
    with pytest.raises(ValueError, match=message):
        one_batch().fit(*images, sample_weight=weights)


def test__class_weight__all_zero__value_error(images):
    with pytest.raises(ValueError, match="class_weight must be above 0 for at least one sample"):
        one_batch(class_weight={0: 0, 1: 0, 2: 0}).fit(*images)


def test__class_weight__dictionary__as_sample_weight(images):
    X, y = images
    by_class = one_batch(class_weight={0: 4.0, 1: 1.0, 2: 0.5}).fit(X, y)
    by_sample = one_batch().fit(X, y, sample_weight=np.array([4.0, 1.0, 0.5])[y])
    assert same_arrays(by_class, by_sample)


def test__class_weight__balanced__as_inverse_frequency(images):
    X, y = images
    kept = np.concatenate([np.flatnonzero(y == 0)[:2], np.flatnonzero(y != 0)])
    X, y = X[kept], np.array(["a", "b", "c"])[y[kept]]
    counts = {"a": 2, "b": 8, "c": 8}
    balanced = one_batch(class_weight="balanced").fit(X, y)
    by_sample = one_batch().fit(X, y, sample_weight=[18 / (3 * counts[label]) for label in y])
    members_close(balanced, by_sample, atol=1e-6)
    assert not same_arrays(balanced, one_batch().fit(X, y))


# ----------------------------------------------------------------------------------------- early stopping


def test__history__valid_nll__of_the_mean_prediction(images, validation):
    X_val, y_val = validation
    classifier = toy_classifier(TinyCNN(), n_members=3, init_scale=0.5, batch_size=7)
    classifier.fit(*images, X_val=X_val, y_val=y_val)
    assert classifier.history_["valid_nll"][-1] == pytest.approx(pooled_nll(classifier, X_val, y_val), rel=1e-5)
    members = classifier.predict_proba_members(X_val)
    each = -np.log(members[:, np.arange(len(y_val)), y_val]).mean()
    assert abs(each - classifier.history_["valid_nll"][-1]) > 1e-4  # the mean of the members' own losses is another


def test__early_stopping__getting_worse__best_state_restored(images, validation):
    X_val, y_val = validation
    wrong = (y_val + 1) % 3  # the better the fit, the worse on these labels
    classifier = toy_classifier(
        early_stopping=True, n_iter_no_change=3, max_epochs=50, head_lr=0.05, schedule="constant"
    )
    classifier.fit(*images, X_val=X_val, y_val=wrong)
    nll = classifier.history_["valid_nll"]
    best = int(np.argmin(nll))
    assert classifier.n_iter_ == len(nll) == best + 1 + 3 < 50
    assert pooled_nll(classifier, X_val, wrong) == pytest.approx(nll[best], rel=1e-5)
    assert nll[-1] > nll[best] + 1e-3


def test__early_stopping__last_epoch_is_not_the_best__best_state_restored(images, validation):
    X_val, y_val = validation
    wrong = (y_val + 1) % 3
    classifier = toy_classifier(
        early_stopping=True, n_iter_no_change=100, max_epochs=6, head_lr=0.05, schedule="constant"
    )
    classifier.fit(*images, X_val=X_val, y_val=wrong)
    nll = classifier.history_["valid_nll"]
    assert classifier.n_iter_ == 6
    assert np.argmin(nll) < 5
    assert pooled_nll(classifier, X_val, wrong) == pytest.approx(min(nll), rel=1e-5)


def test__early_stopping__own_part__is_not_trained_on(images):
    X, y = images
    classifier = toy_classifier(early_stopping=True, validation_fraction=0.25, max_epochs=3).fit(X, y)
    assert np.isfinite(classifier.history_["valid_nll"]).all()
    assert not same_arrays(classifier, toy_classifier(max_epochs=3).fit(X, y))


def test__validation__only_one_of_the_two__value_error(images, validation):
    with pytest.raises(ValueError, match="X_val and y_val must be given together"):
        toy_classifier().fit(*images, X_val=validation[0])


def test__validation__unknown_label__value_error(images, validation):
    with pytest.raises(ValueError, match=r"y_val must hold labels that are among the classes .*, got \[9\]"):
        toy_classifier().fit(*images, X_val=validation[0], y_val=np.where(validation[1] == 0, 9, validation[1]))


def test__early_stopping__too_few_samples__value_error_with_the_remedy(images):
    X, y = images
    few = [int(np.flatnonzero(y == label)[0]) for label in range(3)]
    with pytest.raises(ValueError, match=r"sets 0 of \d+ aside. Pass more samples"):
        toy_classifier(early_stopping=True).fit(X[few], y[few])
