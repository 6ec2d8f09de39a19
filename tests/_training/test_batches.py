"""How members come to differ: orders of their own, bootstrap weights, a diversity term; and what does not fit."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback

from skve import _ensembles
from skve._runtime.randomness import Seeds
from tests.toys import TinyCNN, TinyMLP, arrays_of, assert_members_close, same_arrays, toy_classifier

OWN, BOOTSTRAP, DIVERSE = {"order": "own"}, {"bootstrap": True}, {"diversity": 0.5}


# ------------------------------------------------------------------------------------ order and bootstrap


@pytest.mark.parametrize("ensemble", ["sve", "deep", "scale", "lora", "batch"])
@pytest.mark.parametrize("options", [OWN, BOOTSTRAP, {**OWN, **BOOTSTRAP}])
def test__own_order_and_bootstrap__alone_and_among_others__same_bits(images, ensemble, options):
    settings = {"ensemble": ensemble, "ensemble_params": options, "augment": "strong"}
    one, three = (toy_classifier(TinyCNN(), n_members=n, **settings).fit(*images) for n in (1, 3))
    plain = toy_classifier(TinyCNN(), ensemble=ensemble, n_members=3, augment="strong").fit(*images)
    for key, value in arrays_of(three).items():
        assert np.array_equal(arrays_of(one)[key][0], value[0]), key
        assert not np.array_equal(arrays_of(plain)[key][1], value[1]), key
        assert np.array_equal(arrays_of(plain)[key][0], value[0]) == (options == OWN), key  # the first draws the same


def test__own_order__two_members_from_one_start__come_to_differ(images, monkeypatch):
    new_member = _ensembles.Head.new_member
    same = torch.Generator().manual_seed(0).get_state()

    def same_head(self, generator, device, start=None):
        return new_member(self, torch.Generator().set_state(same), device, start)

    monkeypatch.setattr(_ensembles.Head, "new_member", same_head)
    start = {"init_scale": 0.0, "member_lr": 1e-2, "n_members": 2}
    spread = {}
    for order in ("shared", "own"):
        classifier = toy_classifier(TinyMLP(), ensemble_params={"order": order}, **start).fit(*images)
        spread[order] = np.abs(np.diff(classifier.ratios_["fc2"], axis=0)).max()
    assert spread["shared"] == 0
    assert spread["own"] > 1e-3


def test__bootstrap__weights__as_sample_weights_of_the_drawn_counts(images):
    X, y = images
    settings = {"n_members": 1, "batch_size": 64, "max_epochs": 4, "member_lr": 1e-2}
    drawn = torch.randint(24, (24,), generator=Seeds(0).generator("bootstrap", 0)).numpy()
    counts = np.bincount(drawn, minlength=24)
    bootstrapped = toy_classifier(TinyCNN(), ensemble_params=BOOTSTRAP, **settings).fit(X, y)
    weighted = toy_classifier(TinyCNN(), **settings).fit(X, y, sample_weight=counts)
    assert_members_close(weighted, bootstrapped, atol=1e-6)
    assert not same_arrays(toy_classifier(TinyCNN(), **settings).fit(X, y), bootstrapped)


def test__bootstrap__members_together_or_in_turn__equal(images, train_in_chunks):
    settings = {"n_members": 3, "ensemble_params": BOOTSTRAP, "max_epochs": 1, "member_lr": 1e-3}
    in_turn = toy_classifier(TinyMLP(), **settings).fit(*images)
    train_in_chunks(3)
    assert_members_close(toy_classifier(TinyMLP(), **settings).fit(*images), in_turn)


# --------------------------------------------------------------------------------------------- diversity


def objective(logits, targets, diversity):
    """The loss by its definition, (1 - diversity) sum of the members' losses + diversity n_members pooled loss."""
    own = torch.stack([F.cross_entropy(member, targets) for member in logits]).sum()
    pooled = F.nll_loss(torch.softmax(logits, -1).mean(0).log(), targets)
    return (1 - diversity) * own + diversity * len(logits) * pooled


class Definition(Callback):
    """Note the first step's gradients, and those of the definition; the learning rates keep the members in place."""

    def __init__(self, diversity):
        self.diversity = diversity

    def on_batch_end(self, net, batch, training=False, **kwargs):
        ensemble = net.module_
        self.got = {name: p.grad.clone() for name, p in ensemble.named_parameters()}
        ensemble.zero_grad()
        (group,) = batch.groups
        logits = torch.cat([ensemble.chunk_logits(group.inputs, [index]) for index in range(3)])
        loss = objective(logits, group.targets, self.diversity)
        loss.backward()
        self.loss = loss.item() / 3
        self.wanted = {name: p.grad.clone() for name, p in ensemble.named_parameters()}


@pytest.mark.parametrize("diversity", [0.3, 1.0])
def test__diversity__gradients_and_loss__of_the_definition(images, diversity):
    noted = Definition(diversity)
    settings = {"n_members": 3, "batch_size": 64, "max_epochs": 1, "init_scale": 0.5, "grad_clip": None}
    settings |= {"member_lr": 1e-30, "head_lr": 1e-30, "callbacks": [noted]}
    classifier = toy_classifier(TinyMLP(), ensemble_params={"diversity": diversity}, **settings).fit(*images)
    for name, wanted in noted.wanted.items():
        torch.testing.assert_close(noted.got[name], wanted, rtol=1e-4, atol=1e-5)
    assert classifier.history_["loss"][0] == pytest.approx(noted.loss, rel=1e-5)


def test__diversity__full__members_differ_more(images):
    settings = {"n_members": 3, "max_epochs": 15, "head_lr": 0.05, "schedule": "constant"}
    epistemic = {}
    for diversity in (0.0, 1.0):
        classifier = toy_classifier(TinyMLP(), ensemble_params={"diversity": diversity}, **settings).fit(*images)
        epistemic[diversity] = classifier.predict_uncertainty(images[0]).epistemic.mean()
    assert epistemic[1.0] > 1.2 * epistemic[0.0]


def test__diversity__zero__same_bits_as_without(images):
    assert same_arrays(toy_classifier(ensemble_params={"diversity": 0.0}).fit(*images), toy_classifier().fit(*images))


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"n_members": 1}, DIVERSE, r"n_members must be at least 2 where diversity=0.5 compares members .*, got 1"),
        ({}, {**DIVERSE, **OWN}, r"order in ensemble_params must be 'shared' .*, got 'own'"),
        ({}, {**DIVERSE, **BOOTSTRAP}, r"bootstrap in ensemble_params must be False .*, got True"),
        ({}, {**DIVERSE, "folds": 2}, r"folds in ensemble_params must be None .*, got 2"),
        (
            {"ensemble": "deep"},
            {**DIVERSE, "train_batch_norm": True},
            r"train_batch_norm .* must be False .*, got True",
        ),
        ({"ensemble": "single"}, DIVERSE, r"must be among \['train_batch_norm'\], got \['diversity'\]"),
        ({}, {"diversity": 1.5}, r"'diversity' parameter .* in the range \[0.0, 1.0\]"),
        ({}, {"order": "random"}, r"'order' parameter .* must be a str among"),
        ({}, {"bootstrap": "yes"}, r"'bootstrap' parameter"),
    ],
)
def test__differences__bad__value_error_that_lists_what_fits(images, settings, options, message):
    with pytest.raises(ValueError, match=message):
        toy_classifier(TinyMLP(), ensemble_params=options, **settings).fit(*images)


# -------------------------------------------------------------------------------------- batch statistics


def test__batch_statistics__last_batch_of_one_sample__joins_another_one(images):
    X, y = images
    module = torch.nn.Sequential(TinyMLP(), torch.nn.BatchNorm1d(12))
    settings = {"ensemble": "deep", "ensemble_params": {"train_batch_norm": True}, "batch_size": 23, "max_epochs": 2}
    sizes = Sizes()
    toy_classifier(module, callbacks=[sizes], **settings).fit(X, y)
    assert sizes.sizes == [24, 24]
    toy_classifier(TinyMLP(), batch_size=23, callbacks=[sizes], max_epochs=1).fit(X, y)
    assert sizes.sizes == [23, 1]


class Sizes(Callback):
    def on_train_begin(self, net, **kwargs):
        self.sizes = []

    def on_batch_end(self, net, batch, training=False, **kwargs):
        self.sizes.append(len(batch))


# ------------------------------------------------------------------------------------ memory, and a search


def test__deep__more_memory_than_there_is__value_error_with_the_numbers_before_it_starts(images, monkeypatch):
    from skve._ensembles import fine_tuning

    n_weights = sum(p.numel() for p in TinyMLP().parameters())
    monkeypatch.setattr(fine_tuning, "available_memory", lambda device: 4 * n_weights * 6 * 3)
    monkeypatch.setattr(_ensembles.FullFineTuning, "new_member", None)  # nothing is made in vain
    numbers = rf"n_members=4 fine-tunes of {n_weights:,} weights must fit into .* Lower n_members"
    with pytest.raises(ValueError, match=numbers):
        toy_classifier(TinyMLP(), ensemble="deep", n_members=4).fit(*images)
    monkeypatch.setattr(fine_tuning, "available_memory", lambda device: 4 * n_weights * 5)
    for ensemble in ("single", "dropout"):  # one network, whatever n_members is
        with pytest.raises(ValueError, match=r"^A fine-tune of .* are free on cpu, got .* Use an ensemble whose"):
            toy_classifier(TinyMLP(), ensemble=ensemble, n_members=4).fit(*images)
    monkeypatch.undo()
    monkeypatch.setattr(fine_tuning, "available_memory", lambda device: 4 * n_weights * 6 * 3)
    toy_classifier(TinyMLP(), ensemble="deep", n_members=3, max_epochs=1).fit(*images)
    toy_classifier(TinyMLP(), ensemble="dropout", n_members=50, max_epochs=1).fit(*images)
    toy_classifier(TinyMLP(), ensemble="snapshot", n_members=5, max_epochs=3).fit(*images)
    with pytest.raises(ValueError, match=r"n_members=6 fine-tunes"):
        toy_classifier(TinyMLP(), ensemble="snapshot", n_members=6, max_epochs=4).fit(*images)
    stopping = {"early_stopping": True, "validation_fraction": 0.25}  # keeps the best epoch, too
    with pytest.raises(ValueError, match=r"n_members=3 fine-tunes"):
        toy_classifier(TinyMLP(), ensemble="deep", n_members=3, **stopping).fit(*images)
    toy_classifier(TinyMLP(), ensemble="deep", n_members=2, max_epochs=1, **stopping).fit(*images)


def test__grid_search__ensembles__compared_by_their_likelihood(images):
    search = GridSearchCV(
        toy_classifier(TinyMLP()), {"ensemble": list(_ensembles.RULES)}, scoring="neg_log_loss", cv=2
    )
    search.fit(*images)
    scores = search.cv_results_["mean_test_score"]
    assert np.isfinite(scores).all()
    assert len(set(np.round(scores, 6))) == len(_ensembles.RULES)
    assert search.best_estimator_.ensemble == search.best_params_["ensemble"]
