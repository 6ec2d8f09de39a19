"""Members beside quantised weights: their forward, their gradients, and estimators with `backbone_dtype`."""

import json
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.base import clone

import skve
from skve import SVEClassifier, SVETextClassifier
from skve._backbones import cache, layer_selection, quantized
from skve._backbones.trace import trace
from skve._ensembles import RULES, Ensemble, Head, Likelihood, forms, make_rule
from skve.exceptions import BackboneError
from skve.testing import make_toy_text_backbone
from tests._backbones.test_quantized import DTYPES, frozen
from tests.toys import SIDE, ReadsWeight, TinyCNN, TinyMLP, TinyTransformer, TorchEncoder, toy_classifier, toy_inputs

TEXTS = ["a fine day", "what a bore", "so fine", "a bore again", "fine and good", "bore me not"] * 4
LABELS = ["good", "bad"] * 12
OF_LAYERS = [
    ("sve", {}),
    ("sve", {"basis": "random"}),
    ("sve", {"rank": 1}),
    ("sve+lora", {"rank": 2, "gain": 1.0}),
    ("lora", {"rank": 2, "gain": 1.0}),
    ("scale", {}),
    ("batch", {}),
    ("bias", {}),
]
WITHOUT_WEIGHTS = [name for name, rule in RULES.items() if not rule.owns_weights]


def members_of(backbone, ensemble="sve", options=None, *, train_bias=False, n_members=2, training=True):
    """Build an ensemble whose members lie far from the start, so that what they own counts."""
    sites, _ = layer_selection.find_sites(backbone.module)
    rule = make_rule(ensemble, backbone, sites, init_scale=0.3, train_bias=train_bias, ensemble_params=options or {})
    traced = trace(backbone, rule.changed, toy_inputs(2), 2, rule.added)
    head = Head(traced.n_features, Likelihood(3))
    members = []
    for seed in range(n_members):
        generator = torch.Generator().manual_seed(seed)
        member = rule.new_member(generator)
        member = {key: value + 0.1 * torch.randn(value.shape, generator=generator) for key, value in member.items()}
        members.append({**head.new_member(generator, torch.device("cpu")), **member})
    return Ensemble(rule, head, members, traced, 4, training=training)


def explicit(ensemble, index):
    """Return the module of a member, with the weights that its layers would have in float."""
    backbone, member = ensemble.rule.backbone, ensemble.member(index)
    plain = backbone.dequantized()
    rule = type(ensemble.rule)(
        plain,
        layer_selection.find_sites(plain.module)[0],
        init_scale=0.0,
        train_bias=ensemble.rule.train_bias,
        **{name: value for name, value in ensemble.rule.options.items() if name in ensemble.rule.takes},
    )
    for site in rule.sites:
        weight = plain.module.get_parameter(site.parameter)
        own = {prefix: member[prefix + site.layer] for prefix in rule.prefixes}
        if own:
            weight.data = rule.fold(site, weight.detach(), own).detach()
        if rule.bias_name(site):
            plain.module.get_parameter(site.bias).data += member["bias_offsets." + site.layer].detach()
    return plain.module


# ------------------------------------------------------------------------------------- forward, gradients


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("ensemble", "options"), OF_LAYERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test__forward__each_rule__that_of_the_explicit_dequantised_weight(dtype, ensemble, options, training):
    members = members_of(frozen(TinyMLP(), dtype), ensemble, options, train_bias=True, training=training)
    inputs = toy_inputs()
    with torch.no_grad():
        untouched = members.rule.backbone.module(inputs)
        for index in range(2):
            members.install(index)
            features = members.features(inputs)
            torch.testing.assert_close(features, explicit(members, index)(inputs), rtol=1e-4, atol=1e-4)
            assert (features - untouched).abs().max() > 0.05


def test__forward__members_in_one_pass__as_one_after_another():
    members = members_of(frozen(TinyMLP(), "int4"))
    with torch.no_grad():
        together = members.chunk_logits(toy_inputs(), [0, 1])
        alone = [members.chunk_logits(toy_inputs(), [index])[0] for index in (0, 1)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("toy", [TinyTransformer, TorchEncoder])
def test__forward__float_and_quantised_layers_side_by_side__both_adapted(toy):
    members = members_of(frozen(toy(), "int8"))
    with torch.no_grad():
        members.install(0)
        output = members.network.module(toy_inputs())
        torch.testing.assert_close(output, explicit(members, 0)(toy_inputs()), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test__gradients__log_ratios__float64_differences_through_the_dequantised_weight(dtype):
    backbone = frozen(TinyMLP(), dtype)
    members = members_of(backbone, n_members=1)
    inputs, targets = toy_inputs(), torch.tensor([0, 1, 2, 0])
    F.cross_entropy(members.chunk_logits(inputs, [0])[0], targets).backward()
    member = members.member(0)
    wide = {key: value.detach().double() for key, value in member.items()}
    plain = backbone.dequantized()
    sites = {site.layer: site for site in layer_selection.find_sites(plain.module)[0]}

    def loss(ratios, layer):
        hidden = inputs.double().flatten(1)
        for name, activation in (("fc1", torch.relu), ("fc2", lambda x: x)):
            own = ratios if name == layer else wide["log_ratios." + name]
            factors = plain.factors(sites[name], "singular").to(torch.float64)
            part = plain.module.get_submodule(name)
            weight = forms.fold(part.weight.double(), "linear", factors, own)
            hidden = activation(F.linear(hidden, weight, part.bias.double()))
        return F.cross_entropy(F.linear(hidden, wide["head.weight"], wide["head.bias"]), targets)

    for layer in sites:
        key, step = "log_ratios." + layer, 1e-6
        ratios = wide[key]
        differences = torch.stack(
            [
                (loss(ratios + step * unit, layer) - loss(ratios - step * unit, layer)) / (2 * step)
                for unit in torch.eye(len(ratios), dtype=torch.float64)
            ]
        )
        assert differences.abs().max() > 1e-3
        torch.testing.assert_close(member[key].grad.double(), differences, rtol=1e-3, atol=1e-5)


def test__training_step__graph__keeps_no_weight_in_float():
    backbone = frozen(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 200), torch.nn.Linear(200, 200)), "int8"
    )
    members = members_of(backbone, n_members=1)
    kept = []

    def pack(tensor):
        kept.append((tensor.numel(), tensor.dtype))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        members.chunk_logits(toy_inputs(), [0])
    assert (200 * 200, torch.int8) in kept
    assert not [dtype for numel, dtype in kept if numel >= 200 * 200 and dtype != torch.int8]


def test__layers__read_and_not_called__left_out_and_named(images):
    with pytest.warns(UserWarning, match=r"not adapted: lin \(its quantised weight is read"):
        clf = toy_classifier(ReadsWeight(), backbone_dtype="int8").fit(*images)
    assert list(clf.ratios_) == ["out"]


# --------------------------------------------------------------------------------------------- estimators


@pytest.fixture(scope="module", params=DTYPES)
def fitted(request, images):
    return toy_classifier(TinyTransformer(), backbone_dtype=request.param, max_epochs=2).fit(*images)


@pytest.fixture(scope="module", params=DTYPES)
def fitted_text(request):
    return SVETextClassifier(
        make_toy_text_backbone("bert"), n_members=2, max_steps=4, backbone_dtype=request.param, random_state=0
    ).fit(TEXTS, LABELS)


def test__images__fit_and_predict__as_the_contract_says(fitted, images):
    proba = fitted.predict_proba(images[0])
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=0, atol=1e-12)
    assert fitted.predict_uncertainty(images[0]).epistemic.max() > 0
    assert fitted.preprocess_["dtype"] == fitted.backbone_dtype
    assert fitted.float_layers_ == [
        "patch_embed",
        *(f"blocks.{i}.attn{part}" for i in (0, 1) for part in ("", ".out_proj")),
    ]
    ratios = fitted.ratios_
    assert ratios["blocks.0.fc1"].shape == (2, quantized.n_directions((24, 12)))
    assert ratios["blocks.0.attn"].shape == (2, 12)  # float, and adapted in all directions


def test__texts__fit_and_predict__as_the_contract_says(fitted_text):
    assert fitted_text.predict_proba(TEXTS[:6]).shape == (6, 2)
    assert "embeddings.word_embeddings" in fitted_text.float_layers_
    assert not any(name.endswith("query") for name in fitted_text.float_layers_)
    assert fitted_text.preprocess_["dtype"] == fitted_text.backbone_dtype


def test__predictions__kept_network_and_a_fresh_one__same_bits(fitted, images):
    first = fitted.predict_proba_members(images[0])
    assert np.array_equal(fitted.predict_proba_members(images[0]), first)
    cache.clear_cache()
    assert np.array_equal(fitted.predict_proba_members(images[0]), first)
    assert not np.array_equal(first[0], first[1])


def test__predictions__without_room_in_the_cache__same_bits(fitted_text, monkeypatch):
    first = fitted_text.predict_proba_members(TEXTS)
    cache.clear_cache()
    monkeypatch.setenv(cache.LIMIT, "0")
    assert np.array_equal(fitted_text.predict_proba_members(TEXTS), first)
    cache.clear_cache()


def test__same_seed__two_fits__same_bits(fitted, images):
    again = clone(fitted).fit(*images)
    assert np.array_equal(again.predict_proba_members(images[0]), fitted.predict_proba_members(images[0]))


def test__set_params__after_fit__predictions_stay_those_of_the_fit(fitted_text):
    before = fitted_text.predict_proba(TEXTS[:4])
    other = pickle.loads(pickle.dumps(fitted_text)).set_params(backbone_dtype="float32")
    assert np.array_equal(other.predict_proba(TEXTS[:4]), before)


def test__float_layers__of_a_float_backbone__no_such_attribute(images):
    assert not hasattr(toy_classifier(max_epochs=1).fit(*images), "float_layers_")
    assert not hasattr(toy_classifier(backbone_dtype="int8"), "float_layers_")


def test__save__with_the_weights_elsewhere__same_predictions(fitted, images, tmp_path):
    with pytest.warns(UserWarning, match="not saved"):
        fitted.save(tmp_path)
    loaded = skve.load(tmp_path, backbone=TinyTransformer())
    assert np.array_equal(loaded.predict_proba(images[0]), fitted.predict_proba(images[0]))
    assert (loaded.backbone_dtype, loaded.float_layers_) == (fitted.backbone_dtype, fitted.float_layers_)
    with pytest.raises(BackboneError, match="must have the weights that the model was fitted on"):
        skve.load(tmp_path, backbone=TinyTransformer(seed=1))


def test__save__texts_with_their_backbone__small_and_predicts_the_same(fitted_text, tmp_path):
    fitted_text.save(tmp_path, include_backbone=True)
    sizes = {path.name.partition("-")[0]: path.stat().st_size for path in tmp_path.iterdir()}
    cache.clear_cache()
    loaded = skve.load(tmp_path)
    assert np.array_equal(loaded.predict_proba(TEXTS), fitted_text.predict_proba(TEXTS))
    float_weights = sum(p.nbytes for p in make_toy_text_backbone("bert")[0].parameters())
    assert sizes["backbone"] < float_weights
    # What was embedded is in few bits: other weights cannot be had from it.
    with pytest.raises(BackboneError, match=rf"must be '{fitted_text.backbone_dtype}' for .*, got 'float32'"):
        loaded.set_params(backbone_dtype="float32").fit(TEXTS, LABELS)


def test__save__altered_values__refused(fitted_text, tmp_path):
    fitted_text.save(tmp_path, include_backbone=True)
    path = tmp_path / "skve.json"
    document = json.loads(path.read_text())
    document["preprocess"]["dtype"] = "int2"
    from skve._fitted.saving import document_hash

    document["sha256"] = document_hash(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="'dtype'"):
        skve.load(tmp_path)


def test__images__embedded_in_eight_bits__same_predictions(images, tmp_path):
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(0)
        timm.create_model("test_vit").eval()
        torch.save(timm.create_model("test_vit", pretrained=False).state_dict(), tmp_path / "vit.pth")
    clf = toy_classifier(f"test_vit@{tmp_path / 'vit.pth'}", backbone_dtype="int8", image_size=32, max_epochs=1)
    clf.fit(*images).save(tmp_path / "model", include_backbone=True)
    cache.clear_cache()
    loaded = skve.load(tmp_path / "model")
    assert np.array_equal(loaded.predict_proba(images[0]), clf.predict_proba(images[0]))


def test__partial_fit_and_warm_start__go_on(fitted, images):
    more = pickle.loads(pickle.dumps(fitted)).set_params(backbone=TinyTransformer(), warm_start=True, max_epochs=1)
    more.fit(*images).partial_fit(*images)
    assert more._state.n_epochs == 4
    with pytest.raises(ValueError, match="same weights if a fit continues"):
        more.set_params(backbone_dtype="float32").fit(*images)


@pytest.mark.parametrize("ensemble", WITHOUT_WEIGHTS)
def test__every_rule_without_own_weights__fits_and_predicts(images, ensemble):
    clf = toy_classifier(TinyMLP(), ensemble=ensemble, backbone_dtype="int4", max_epochs=1).fit(*images)
    assert clf.predict_proba_members(images[0]).shape == (2, 24, 3)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test__precisions__training_and_prediction__close_to_one_another(images, precision):
    clf = toy_classifier(
        TinyMLP(), backbone_dtype="int8", precision=precision, predict_precision=precision, head_lr=1e-3
    ).fit(*images)
    wide = pickle.loads(pickle.dumps(clf)).set_params(predict_precision="float32")
    np.testing.assert_allclose(clf.predict_proba(images[0]), wide.predict_proba(images[0]), atol=0.03)


def test__distill__student__beside_the_same_weights(fitted, images):
    student = fitted.distill(images[0])
    assert student.predict_proba_members(images[0]).shape == (2, 24, 3)
    assert student.float_layers_ == fitted.float_layers_


# -------------------------------------------------------------------------------------------- bad requests


@pytest.mark.parametrize("ensemble", sorted(RULES.keys() - set(WITHOUT_WEIGHTS)))
def test__fine_tunes__quantised_weights__refused_before_anything_is_loaded(images, ensemble):
    clf = toy_classifier("no such backbone", ensemble=ensemble, backbone_dtype="int8")
    with pytest.raises(ValueError, match=rf"float type for ensemble='{ensemble}'.*got 'int8'.*'sve'.*'lora'"):
        clf.fit(*images)


def test__convolutions_alone__quantised_weights__refused(images):
    with pytest.raises(BackboneError, match=r"must have linear layers.*TinyCNN, which has none.*'float32'"):
        toy_classifier(TinyCNN(), backbone_dtype="int4").fit(*images)


@pytest.mark.parametrize("value", ["int2", "bfloat16", None, 8])
def test__images__unknown_dtype__refused(images, value):
    with pytest.raises(ValueError, match="'backbone_dtype' parameter of SVEClassifier"):
        SVEClassifier(TinyMLP(), image_size=SIDE, backbone_dtype=value).fit(*images)
