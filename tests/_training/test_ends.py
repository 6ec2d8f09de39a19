"""Every way a fit can end, callbacks, what is printed, and going on from an earlier fit."""

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback, EarlyStopping

from skve import _ensembles
from skve._runtime import progress
from tests.toys import TinyCNN, TinyMLP, arrays_of, members_close, pooled_nll, same_arrays, toy_classifier

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
    with pytest.raises(ValueError, match=r"no gradient reached what members own of fc1: .* leave them out"):
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
    members_close(expected, toy_classifier(toy(), **settings).fit(*images))
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
    members_close(expected, toy_classifier(**settings).fit(*images))
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
        with pytest.raises(KeyboardInterrupt):
            toy_classifier(verbose=1, callbacks=[InterruptAt(epoch=1)]).fit(*images)
    assert [bar.disable for bar in bars] == [True]


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


def test__partial_fit__part_of_the_classes__columns_for_all(images):
    X, y = images
    classifier = toy_classifier().partial_fit(X[y < 2], y[y < 2], classes=[2, 1, 0, 7])
    assert classifier.classes_.tolist() == [0, 1, 2, 7]
    assert classifier.predict_proba(X).shape == (24, 4)
    assert classifier.partial_fit(X[y == 2], y[y == 2]).classes_.tolist() == [0, 1, 2, 7]
