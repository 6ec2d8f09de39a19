"""The training loop: rates, clipping, decay, weights, steps, how fits end and go on, callbacks and output."""

import pickle
import signal

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback, EarlyStopping

import skve
from skve import _ensembles
from skve._ensembles import Defaults, SingularValues
from skve._runtime import progress
from skve._training import schedule
from skve._training.schedule import learning_rate_factor
from tests.toys import TinyCNN, TinyMLP, arrays_of, assert_members_close, pooled_nll, same_arrays, toy_classifier

# ---------------------------------------------------------------------------------------- learning rates


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
    assert_members_close(one_batch().fit(X[8:], y[8:]), one_batch().fit(X, y, sample_weight=weights))


def test__sample_weight__whole_numbers__sample_repeated(images):
    X, y = images
    weights = np.ones(len(X))
    weights[:6] = 3
    repeated = np.concatenate([np.arange(len(X)), np.arange(6), np.arange(6)])
    assert_members_close(one_batch().fit(X[repeated], y[repeated]), one_batch().fit(X, y, sample_weight=weights))


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
    assert_members_close(balanced, by_sample, atol=1e-6)
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
    with pytest.raises(ValueError, match=r"y_val must hold labels that are among the classes .*, got 9"):
        toy_classifier().fit(*images, X_val=validation[0], y_val=np.where(validation[1] == 0, 9, validation[1]))


def test__early_stopping__too_few_samples__value_error_with_the_remedy(images):
    X, y = images
    few = [int(np.flatnonzero(y == label)[0]) for label in range(3)]
    with pytest.raises(ValueError, match=r"holds out 0 of \d+. Pass more samples"):
        toy_classifier(early_stopping=True).fit(X[few], y[few])


# ------------------------------------------------------------------------------------------------ steps


def test__max_steps__as_many_steps_whatever_the_epochs(images, validation):
    rates = Rates()
    classifier = toy_classifier(max_epochs=None, max_steps=7, schedule="linear", warmup=0.0, callbacks=[rates])
    classifier.fit(*images, X_val=validation[0], y_val=validation[1])
    assert len(rates.rates) == 7
    factor = learning_rate_factor("linear", 0.0, 7)
    np.testing.assert_allclose([r[1] for r in rates.rates], [1e-2 * factor(step) for step in range(7)], rtol=1e-12)
    assert classifier.history_["epoch"] == [1, 2, 3, 3.5]  # epochs of two steps
    assert classifier.n_iter_ == len(classifier.history_["loss"]) == 4
    assert np.isfinite(classifier.history_["valid_nll"]).all()


def test__max_steps__whole_epochs__same_bits_as_max_epochs(images):
    by_steps = toy_classifier(max_epochs=None, max_steps=12).fit(*images)
    assert same_arrays(by_steps, toy_classifier(max_epochs=6).fit(*images))


def test__neither_epochs_nor_steps__steps_of_the_schedule(images, monkeypatch):
    monkeypatch.setattr(schedule, "LEAST_STEPS", 30)
    classifier = toy_classifier(max_epochs=None, batch_size=32).fit(*images)
    assert classifier.history_["epoch"] == list(range(2, 31, 2))  # at most twenty rounds


def test__max_steps_and_max_epochs__value_error(images):
    with pytest.raises(ValueError, match="max_epochs and max_steps must not both be given"):
        toy_classifier(max_epochs=2, max_steps=3).fit(*images)


def test__max_steps__early_stopping__counts_rounds(images, validation):
    X_val, y_val = validation
    settings = {"max_epochs": None, "max_steps": 400, "head_lr": 0.05, "schedule": "constant"}
    classifier = toy_classifier(early_stopping=True, n_iter_no_change=2, **settings)
    classifier.fit(*images, X_val=X_val, y_val=(y_val + 1) % 3)
    assert classifier.n_iter_ == 1 + int(np.argmin(classifier.history_["valid_nll"])) + 2 < 20


def test__head_weight_decay__none__default_of_the_rule(images, monkeypatch):
    defaults = {"image": Defaults(5e-2, 1e-2, head_weight_decay=20.0)}
    explicit = toy_classifier(head_weight_decay=20.0).fit(*images)
    monkeypatch.setattr(SingularValues, "defaults", defaults)
    assert same_arrays(toy_classifier(head_weight_decay=None).fit(*images), explicit)
    # What a step takes from a head is kept: the product with the learning rate.
    slow = toy_classifier(head_lr=5e-3, head_weight_decay=40.0).fit(*images)
    assert same_arrays(toy_classifier(head_lr=5e-3, head_weight_decay=None).fit(*images), slow)


def test__fit__snapshots_with_early_stopping__value_error_with_the_remedy(images):
    with pytest.raises(ValueError, match=r"early_stopping must be False for snapshots, .*, got True"):
        toy_classifier(ensemble="snapshot", early_stopping=True).fit(*images)


# -------------------------------------------------------------------------------------- how fits may end


class InterruptAt(Callback):
    """Press Ctrl-C in the middle of an epoch."""

    def __init__(self, epoch, batch=1):
        self.epoch, self.batch = epoch, batch

    def on_batch_end(self, net, training=False, **kwargs):
        if training and len(net.history) == self.epoch and len(net.history[-1, "batches"]) == self.batch:
            raise KeyboardInterrupt


def test__keyboard_interrupt__in_the_third_epoch__second_one_is_the_fitted_state(images):
    settings = {"max_epochs": 9, "schedule": "constant", "warmup": 0.0}
    classifier = toy_classifier(**settings, callbacks=[InterruptAt(epoch=3)])
    with pytest.raises(KeyboardInterrupt):
        classifier.fit(*images)
    assert classifier.n_iter_ == 2
    assert same_arrays(classifier, toy_classifier(**settings | {"max_epochs": 2}).fit(*images))
    assert classifier.predict(images[0]).shape == (24,)


def test__keyboard_interrupt__before_the_first_epoch_is_complete__estimator_as_it_was(images):
    classifier = toy_classifier(callbacks=[InterruptAt(epoch=1)])
    before = dict(vars(classifier))
    with pytest.raises(KeyboardInterrupt):
        classifier.fit(*images)
    assert vars(classifier) == before
    fitted = toy_classifier().fit(*images)
    state = fitted._state
    fitted.set_params(callbacks=[InterruptAt(epoch=1)])
    with pytest.raises(KeyboardInterrupt):
        fitted.fit(*images)
    assert fitted._state is state


def test__keyboard_interrupt__in_a_grid_search__search_stops(images):
    search = GridSearchCV(toy_classifier(callbacks=[InterruptAt(epoch=2)]), {"n_members": [1, 2]}, cv=2)
    with pytest.raises(KeyboardInterrupt):
        search.fit(*images)


def test__keyboard_interrupt__with_early_stopping__best_complete_epoch(images, validation):
    X_val, y_val = validation
    classifier = toy_classifier(
        early_stopping=True, max_epochs=9, schedule="constant", head_lr=0.05, callbacks=[InterruptAt(epoch=4)]
    )
    with pytest.raises(KeyboardInterrupt):
        classifier.fit(*images, X_val=X_val, y_val=(y_val + 1) % 3)
    nll = classifier.history_["valid_nll"]
    assert len(nll) == classifier.n_iter_ == 3
    assert pooled_nll(classifier, X_val, (y_val + 1) % 3) == pytest.approx(min(nll), rel=1e-5)


def test__diverging_loss__value_error_with_the_remedies_and_estimator_usable(images):
    classifier = toy_classifier(TinyCNN(), max_epochs=30, member_lr=1e4, grad_clip=None, schedule="constant")
    before = dict(vars(classifier))
    with pytest.raises(ValueError, match=r"training diverged: the loss became .* in step \d+\. Lower member_lr=1"):
        classifier.fit(*images)
    assert vars(classifier) == before
    assert classifier.set_params(member_lr=1e-2).fit(*images).predict(images[0]).shape == (24,)


def test__no_gradient__bypassed_layer__value_error_names_it(images, monkeypatch):
    def install_nothing_in_fc1(self, network, member):
        original(self, network, {**member, "log_ratios.fc1": member["log_ratios.fc1"].detach()})

    original = _ensembles.SingularValues.install
    monkeypatch.setattr(_ensembles.SingularValues, "install", install_nothing_in_fc1)
    with pytest.raises(ValueError, match=r"Gradients must reach .*, got none for fc1: .* Exclude them"):
        toy_classifier().fit(*images)


def fail_for_large_chunks(monkeypatch, largest, error):
    """Let a forward pass of more than `largest` members fail; return the sizes that were tried."""
    original, tried = _ensembles.Ensemble.chunk_logits, []

    def chunk_logits(self, inputs, indices):
        tried.append(len(indices))
        if len(indices) > largest:
            raise error
        return original(self, inputs, indices)

    monkeypatch.setattr(_ensembles.Ensemble, "chunk_logits", chunk_logits)
    return tried


@pytest.mark.parametrize("toy", [TinyMLP, TinyCNN])
def test__out_of_memory__several_members_at_once__half_as_many_and_the_same_result(
    images, train_in_chunks, monkeypatch, toy
):
    settings = {"n_members": 4, "member_lr": 1e-3}
    expected = toy_classifier(toy(), **settings).fit(*images)
    train_in_chunks(4)
    tried = fail_for_large_chunks(monkeypatch, 2, torch.OutOfMemoryError("injected"))
    assert_members_close(expected, toy_classifier(toy(), **settings).fit(*images))
    assert tried == [4] + [2, 2] * 4  # once too many, then two halves for each of the four steps


def test__out_of_memory__after_a_backward_pass__gradients_are_not_counted_twice(images, train_in_chunks, monkeypatch):
    settings = {"n_members": 4, "member_lr": 1e-3, "grad_clip": None}
    expected = toy_classifier(**settings).fit(*images)
    train_in_chunks(4)
    original, calls = torch.Tensor.backward, []

    def backward(self, *args, **kwargs):
        original(self, *args, **kwargs)
        calls.append(1)
        if len(calls) == 2:  # not in the first step, in which Adam does not feel the size of a gradient
            raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    assert_members_close(expected, toy_classifier(**settings).fit(*images))
    assert len(calls) == 2 + 2 + 2 * 2


def test__out_of_memory__one_member__is_raised_and_estimator_as_it_was(images, monkeypatch):
    fail_for_large_chunks(monkeypatch, 0, torch.OutOfMemoryError("injected"))
    classifier = toy_classifier()
    before = dict(vars(classifier))
    with pytest.raises(torch.OutOfMemoryError):
        classifier.fit(*images)
    assert vars(classifier) == before


def test__operation_without_a_batching_rule__one_member_at_a_time(images, train_in_chunks, monkeypatch):
    train_in_chunks(4)
    tried = fail_for_large_chunks(monkeypatch, 1, RuntimeError("vmap: no batching rule"))
    toy_classifier(n_members=4, max_epochs=1).fit(*images)
    assert tried == [4] + [1] * 8


def test__runtime_error_of_one_member__is_raised(images, train_in_chunks, monkeypatch):
    train_in_chunks(4)
    fail_for_large_chunks(monkeypatch, 0, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        toy_classifier(n_members=4).fit(*images)


# ------------------------------------------------------------------------------------ callbacks and output


class Recorder(Callback):
    def initialize(self):
        self.events = []
        return self

    def on_train_begin(self, net, **kwargs):
        self.events.append("train begin")

    def on_epoch_end(self, net, **kwargs):
        self.events.append(f"epoch {len(net.history)}")

    def on_train_end(self, net, **kwargs):
        self.events.append("train end")


def test__callbacks__of_skorch__are_called_in_order(images):
    recorder = Recorder()
    toy_classifier(callbacks=[recorder]).fit(*images)
    assert recorder.events == ["train begin", "epoch 1", "epoch 2", "train end"]


def test__callbacks__early_stopping_of_skorch__ends_the_fit_without_an_interrupt(images):
    stop = EarlyStopping("train_loss", patience=2, threshold=10.0, threshold_mode="abs", sink=lambda message: None)
    classifier = toy_classifier(max_epochs=20, callbacks=[stop]).fit(*images)
    assert classifier.n_iter_ == 3


def test__callbacks__stop_from_inside_a_generator__ends_the_fit_without_an_interrupt(images):
    class Stops(Callback):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 2:
                (_ for _ in ()).throw(KeyboardInterrupt)

    before = signal.getsignal(signal.SIGINT)
    assert toy_classifier(max_epochs=9, callbacks=[Stops()]).fit(*images).n_iter_ == 2
    assert signal.getsignal(signal.SIGINT) is before


def test__callbacks__named_pair__is_called(images):
    recorder = Recorder()
    toy_classifier(callbacks=[("mine", recorder)]).fit(*images)
    assert recorder.events[-1] == "train end"


def test__verbose__zero__nothing_is_printed(images, validation, capfd):
    X_val, y_val = validation
    classifier = toy_classifier(early_stopping=True, n_iter_no_change=1, max_epochs=20, head_lr=0.5)
    classifier.fit(*images, X_val=X_val, y_val=(y_val + 1) % 3).predict(images[0])
    assert classifier.n_iter_ < 20
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test__verbose__one__bar_with_epoch_losses_and_time(images, capfd):
    toy_classifier(verbose=1, early_stopping=True).fit(*images)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "100%" in captured.err
    assert "epoch=2/2" in captured.err
    assert "loss=" in captured.err
    assert "valid_nll=" in captured.err
    assert "batch/s" in captured.err or "s/batch" in captured.err


def test__verbose__one_and_a_failing_fit__bar_is_closed(images):
    bars = []

    class Bar(progress.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            bars.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "tqdm", Bar)
        patch.setattr(progress, "_is_live", lambda: True)
        with pytest.raises(KeyboardInterrupt):
            toy_classifier(verbose=1, callbacks=[InterruptAt(epoch=1)]).fit(*images)
    assert bars
    assert all(bar.disable for bar in bars)


# ---------------------------------------------------------------------------------------- going on


def test__warm_start__two_fits__go_on_from_the_first(images):
    settings = {"schedule": "constant", "warmup": 0.0, "warm_start": True, "max_epochs": 4}
    classifier = toy_classifier(**settings).fit(*images)
    first, loss = arrays_of(classifier), classifier.history_["loss"]
    classifier.fit(*images)
    assert classifier.history_["loss"][0] < loss[0]
    assert not np.array_equal(first["head.weight"], arrays_of(classifier)["head.weight"])
    cold = toy_classifier(**settings | {"warm_start": False}).fit(*images)
    assert np.array_equal(first["head.weight"], arrays_of(cold)["head.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_members": 3}, "n_members must stay 2 .*, got 3"),
        ({"layers": ["fc1"]}, r"layers must stay \('fc1', 'fc2'\)"),
        ({"ensemble": "head"}, "ensemble must stay 'sve'"),
        ({"train_bias": True}, "train_bias must stay False"),
        ({"backbone": TinyMLP(seed=5)}, "backbone must have the same weights"),
    ],
)
def test__warm_start__other_ensemble__value_error_and_old_state_kept(images, change, message):
    classifier = toy_classifier(warm_start=True).fit(*images)
    state = classifier._state
    with pytest.raises(ValueError, match=message):
        classifier.set_params(**change).fit(*images)
    assert classifier._state is state


def test__warm_start__start_is_not_changed_by_the_second_fit(images):
    classifier = toy_classifier(warm_start=True).fit(*images)
    state, copies = classifier._state, {key: value.copy() for key, value in arrays_of(classifier).items()}
    classifier.fit(*images)
    assert all(np.array_equal(state.arrays[key], value) for key, value in copies.items())


def test__partial_fit__called_again__goes_on_for_one_epoch_each(images):
    classifier = toy_classifier(head_lr=0.1)
    losses = []
    for _ in range(10):
        classifier.partial_fit(*images, classes=[0, 1, 2])
        assert classifier.n_iter_ == 1
        losses += classifier.history_["loss"]
    assert losses[-1] < 0.5 * losses[0]


def saved(clf, folder):
    with pytest.warns(UserWarning, match="not saved"):
        clf.save(folder / "model")
    return skve.load(folder / "model", backbone=clf.backbone)


@pytest.mark.parametrize("through", [lambda clf, _: clf, lambda clf, _: pickle.loads(pickle.dumps(clf)), saved])
def test__partial_fit__after_fit__low_rates_and_the_fit_is_kept(images, tmp_path, through):
    X, y = images
    rates = Rates()
    fitted = toy_classifier(TinyCNN(), member_lr=0.05, head_lr=0.1, max_epochs=30).fit(X, y)
    clf = through(fitted, tmp_path).set_params(callbacks=[rates])
    loss = log_loss(y, clf.predict_proba(X))
    for _ in range(2):
        clf.partial_fit(X[::3], y[::3])
        np.testing.assert_allclose(rates.rates, [[0.001, 0.002]])
    assert log_loss(y, clf.predict_proba(X)) < loss + 0.05


def test__partial_fit__never_fitted_or_at_constant_rates__full_rates(images):
    rates = Rates()
    options = {"member_lr": 0.05, "head_lr": 0.1, "callbacks": [rates]}
    toy_classifier(**options).partial_fit(*images, classes=[0, 1, 2]).partial_fit(*images)
    np.testing.assert_allclose(rates.rates, [[0.05, 0.1]] * 2)
    toy_classifier(schedule="constant", **options).fit(*images).partial_fit(*images)
    np.testing.assert_allclose(rates.rates, [[0.05, 0.1]] * 2)


def test__partial_fit__part_of_the_classes__columns_for_all(images):
    X, y = images
    classifier = toy_classifier().partial_fit(X[y < 2], y[y < 2], classes=[2, 1, 0, 7])
    assert classifier.classes_.tolist() == [0, 1, 2, 7]
    assert classifier.predict_proba(X).shape == (24, 4)
    assert classifier.partial_fit(X[y == 2], y[y == 2]).classes_.tolist() == [0, 1, 2, 7]
