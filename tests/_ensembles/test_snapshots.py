"""Snapshots of one fine-tune, at the end of each cycle of the learning rate."""

import numpy as np
import pytest
from skorch.callbacks import Callback

import skve
from skve._training import schedule
from tests.toys import (
    TinyCNN,
    TinyMLP,
    arrays_of,
    pooled_nll,
    same_arrays,
    toy_classifier,
)


def test__snapshot__members__network_at_the_end_of_each_cycle(images):
    states = States()
    classifier = toy_classifier(TinyCNN(), ensemble="snapshot", n_members=3, max_epochs=4, callbacks=[states])
    classifier.fit(*images)
    ends = [3, 6, 8]  # of eight steps
    assert schedule.cycle_starts(8, 3)[1:] == ends
    for key, value in arrays_of(classifier).items():
        assert len(value) == 3
        for member, end in zip(value, ends, strict=True):
            assert np.array_equal(member, states.states[end - 1][key]), key
    assert len(classifier.predict_proba_members(images[0])) == 3


def test__snapshot__one_cycle__single_fine_tune(images):
    snapshot = toy_classifier(TinyCNN(), ensemble="snapshot", n_members=1).fit(*images)
    assert same_arrays(snapshot, toy_classifier(TinyCNN(), ensemble="single").fit(*images))


def test__snapshot__fewer_steps_than_members__value_error(images):
    with pytest.raises(
        ValueError, match=r"n_members must be at most .* snapshots, got 5 for 4 steps\. Lower n_members"
    ):
        toy_classifier(TinyMLP(), ensemble="snapshot", n_members=5).fit(*images)


def test__snapshot__ended_early__remaining_members_are_the_last_network(images):
    class Stop(Callback):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 3:
                raise KeyboardInterrupt

    classifier = toy_classifier(TinyMLP(), ensemble="snapshot", n_members=4, max_epochs=8, callbacks=[Stop()])
    classifier.fit(*images)
    weights = arrays_of(classifier)["weights.fc1.weight"]
    assert not np.array_equal(weights[0], weights[1])  # kept after four of sixteen steps
    assert np.array_equal(weights[1], weights[3])


def test__snapshot__validation_and_warm_start__go_on_from_the_last_network(images, validation):
    classifier = toy_classifier(TinyMLP(), ensemble="snapshot", n_members=2, warm_start=True, schedule="constant")
    classifier.fit(*images, X_val=validation[0], y_val=validation[1])
    assert classifier.history_["valid_nll"][-1] == pytest.approx(pooled_nll(classifier, *validation), rel=1e-5)
    states, before = States(), arrays_of(classifier)
    classifier.set_params(callbacks=[states], member_lr=1e-30, head_lr=1e-30).fit(*images)
    for key, value in arrays_of(classifier).items():
        np.testing.assert_allclose(value, np.stack([before[key][-1]] * 2), atol=1e-6, err_msg=key)


@pytest.mark.filterwarnings("ignore:not saved, since")
def test__snapshot__save_and_load__same_bits(images, tmp_path):
    module = TinyMLP()
    classifier = toy_classifier(module, ensemble="snapshot", n_members=3).fit(*images)
    classifier.save(tmp_path)
    loaded = skve.load(tmp_path, backbone=module)
    assert np.array_equal(loaded.predict_proba_members(images[0]), classifier.predict_proba_members(images[0]))


class States(Callback):
    """Collect the weights that train after each step."""

    def on_train_begin(self, net, **kwargs):
        self.states = []

    def on_batch_end(self, net, training=False, **kwargs):
        if training:
            member = net.module_.member(net.module_.trained[0])
            self.states.append({key: tensor.detach().numpy().copy() for key, tensor in member.items()})
