"""Edges that a review found: each of these went wrong once."""

import types

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

import skve
from skve._backbones import cache, layer_selection
from skve._ensembles import Likelihood
from skve._inputs.weights import to_mean_one
from skve._training.batches import Batch, Group
from skve._training.fitting_parts import FittingParts
from skve._training.loop import Net
from skve.testing import make_toy_image_backbone
from tests.toys import toy_classifier, toy_images


@pytest.fixture
def data():
    return toy_images(per_class=8)


def test__fit__divergence_in_the_last_step__is_an_error(data):
    clf = toy_classifier(member_lr=1e4, max_epochs=1, warmup=0.0, schedule="constant", batch_size=24, grad_clip=None)
    with pytest.raises(ValueError, match="diverged"):
        clf.fit(*data)
    assert not hasattr(clf, "classes_")


@pytest.mark.parametrize("overshoot", [1.0, 1.0000001, 1.0005])
def test__float_scale__slight_overshoot_of_one__still_zero_to_one(data, overshoot):
    X, y = data
    floats = X / 255
    floats[0, 0, 0] = overshoot
    assert toy_classifier(max_epochs=1).fit(floats, y)._float_scale == 1


def test__float_scale__zero_to_one_after_a_fit_on_255__is_refused(data):
    X, y = data
    clf = toy_classifier(max_epochs=1).fit(X.astype(float), y)
    with pytest.raises(ValueError, match="Multiply them by 255"):
        clf.predict(X / 255)


def test__float_scale__after_a_fit_on_uint8__each_image_judged_by_itself(data):
    X, y = data
    clf = toy_classifier(max_epochs=1).fit(X, y)
    mixed = [X[0] / 255, X[1].astype(float)]
    together, alone = clf.predict_proba(mixed), clf.predict_proba(mixed[:1])
    assert np.allclose(together[0], alone[0], atol=1e-6)
    assert np.allclose(together, clf.predict_proba(X[:2]), atol=1e-6)


def test__float_scale__digits_from_0_to_16__warns(data):
    X, y = data
    with pytest.warns(UserWarning, match="nearly black"):
        toy_classifier(max_epochs=1).fit(X / 16.0, y)


def test__bool_images__are_black_and_white(data):
    X, y = data
    clf = toy_classifier(max_epochs=1).fit(X > 128, y)
    assert np.array_equal(clf.predict_proba(X > 128), clf.predict_proba(((X > 128) * 255).astype(np.uint8)))


def orders(clf, fits):
    from skorch.callbacks import Callback

    seen = []

    class Note(Callback):
        def on_batch_begin(self, net, batch=None, training=False, **kwargs):
            if training:
                seen.append(batch.groups[0].targets.tolist())

    clf.set_params(callbacks=[Note()])
    for fit in fits:
        fit()
    return seen


def test__partial_fit__several_calls__different_orders(data):
    X, y = data
    clf = toy_classifier(batch_size=24)
    seen = orders(clf, [lambda: clf.partial_fit(X, y, classes=np.unique(y))] * 3)
    assert len({tuple(order) for order in seen}) == 3


def test__warm_start__second_fit__goes_on_with_other_orders_and_repeats_with_the_seed(data):
    X, y = data

    def two_fits():
        clf = toy_classifier(batch_size=24, max_epochs=2, warm_start=True)
        seen = orders(clf, [lambda: clf.fit(X, y)] * 2)
        return seen, clf.predict_proba(X)

    (first, proba), (again, proba_again) = two_fits(), two_fits()
    assert len({tuple(order) for order in first}) == 4
    assert first == again
    assert np.array_equal(proba, proba_again)


def test__warm_start__other_ensemble_params__named_in_the_error(data):
    clf = toy_classifier(make_toy_image_backbone(), ensemble="deep", max_epochs=1, warm_start=True).fit(*data)
    with pytest.raises(ValueError, match="ensemble_params"):
        clf.set_params(ensemble_params={"train_batch_norm": True}).fit(*data)


def test__validation_nll__unequal_weights_and_ragged_batches__is_the_weighted_mean():
    weights = to_mean_one(np.arange(1.0, 8.0) ** 2, "validation part")
    logits = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    pooled = torch.log_softmax(logits.double(), -1).logsumexp(0) - np.log(2)
    expected = float((-pooled[torch.arange(7), targets] * torch.from_numpy(weights)).mean())

    class Fixed(nn.Module):
        members, trained, dtype = nn.ModuleList(), range(0), torch.float32
        head = types.SimpleNamespace(likelihood=Likelihood(3))

        def forward(self, inputs, trunk=None):
            return logits[:, inputs]

    total = 0.0
    net = object.__new__(Net)
    net._set_training = lambda mode: None
    net.module_ = Fixed()
    net.parts = FittingParts(net.module_, chunk=1)
    net.step = types.SimpleNamespace(state=lambda: None)
    net.valid_nll = []
    for part in (torch.arange(0, 4), torch.arange(4, 7)):
        batch = Batch((Group(range(2), part, targets[part], torch.from_numpy(weights).float()[part]),))
        total += float(net.validation_step(batch)["loss"]) * len(part)
    assert np.isclose(total / 7, expected, rtol=1e-6)


def test__class_weight__validation__does_not_count(data):
    X, y = data
    nlls = []
    for class_weight in (None, {label: 1.0 + 4 * i for i, label in enumerate(np.unique(y))}):
        clf = toy_classifier(max_epochs=1, member_lr=1e-9, head_lr=1e-9, class_weight=class_weight)
        nlls.append(clf.fit(X, y, X_val=X, y_val=y).history_["valid_nll"][0])
    assert np.isclose(*nlls, rtol=1e-4)


def test__sample_weight__all_zero__is_an_error(data):
    X, y = data
    clf = toy_classifier(early_stopping=True, validation_fraction=0.3, max_epochs=1)
    with pytest.raises(ValueError, match="weight"):
        clf.fit(X, y, sample_weight=np.zeros(len(y)))


def test__autocast_of_the_caller__changes_nothing(data):
    X, y = data
    plain = toy_classifier(max_epochs=2).fit(X, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = toy_classifier(max_epochs=2).fit(X, y)
        assert np.array_equal(inside.predict_proba(X), plain.predict_proba(X))
    assert np.array_equal(inside.predict_proba(X), plain.predict_proba(X))


def test__default_dtype_of_the_caller__changes_nothing(data):
    X, y = data
    plain = toy_classifier(max_epochs=2).fit(X, y)
    again = clone(plain)  # its backbone has float32 weights
    torch.set_default_dtype(torch.float64)
    try:
        inside = again.fit(X, y)
        assert np.array_equal(inside.predict_proba(X), plain.predict_proba(X))
    finally:
        torch.set_default_dtype(torch.float32)


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = make_toy_image_backbone()

    @torch.no_grad()
    def forward(self, images):
        return self.inner(images)


@pytest.mark.parametrize("ensemble", ["sve", "deep"])
def test__fit__backbone_that_detaches__is_an_error(data, ensemble):
    with pytest.raises(ValueError, match=r"features depend on|no gradient"):
        toy_classifier(Detached(), ensemble=ensemble, max_epochs=1).fit(*data)


def test__layers__network_named_embedder__is_adapted():
    model = nn.Module()
    model.embedder, model.patch_embed, model.proj = make_toy_image_backbone(), nn.Conv2d(3, 8, 4), nn.Linear(8, 8)
    model.embedder.append(nn.Conv2d(8, 8, 1))
    layers = [site.layer for site in layer_selection.find_sites(model)[0]]
    assert "embedder.0" in layers
    assert "patch_embed" not in layers


def test__one_channel_module__gets_grey_images(data):
    X, y = data
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1))
    clf = toy_classifier(module, max_epochs=1).fit(X, y)
    assert clf.preprocess_["input_size"][0] == 1
    assert clf.predict(X).shape == y.shape


def test__module_that_cannot_take_the_batch__error_names_backbone_and_shape(data):
    module = nn.Sequential(nn.Flatten(), nn.Linear(7, 4))
    with pytest.raises(ValueError, match=r"backbone 'Sequential' must take a batch of shape"):
        toy_classifier(module, max_epochs=1).fit(*data)


def test__module_without_parameters__heads_work_on_it(data):
    clf = toy_classifier(nn.Flatten(), ensemble="head", max_epochs=1).fit(*data)
    assert clf.predict(data[0]).shape == data[1].shape


def test__validation_data__error_says_x_val(data):
    X, y = data
    broken = X.astype(float)
    broken[1, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="X_val"):
        toy_classifier(max_epochs=1).fit(X, y, X_val=broken, y_val=y)


def test__labels__not_a_time__is_missing(data):
    y = np.array(["2026-01-01", "2026-01-02", "NaT"] * 8, dtype="datetime64[D]")
    with pytest.raises(ValueError, match="label for each sample"):
        toy_classifier(max_epochs=1).fit(data[0], y)


def test__loaded_model_with_embedded_backbone__trains_on_without_the_package(data, tmp_path, monkeypatch):
    X, y = data
    clf = skve.SVEClassifier(image_size=32, layers="last:1", n_members=1, max_epochs=1, device="cpu", random_state=0)
    clf.fit(X, y).save(tmp_path, include_backbone=True)
    cache.clear_cache()
    monkeypatch.setattr("skve._backbones.sources.importlib.util.find_spec", lambda name: None)
    loaded = skve.load(tmp_path).partial_fit(X, y)
    loaded.save(tmp_path / "again")
    assert np.array_equal(skve.load(tmp_path / "again").predict_proba(X), loaded.predict_proba(X))
