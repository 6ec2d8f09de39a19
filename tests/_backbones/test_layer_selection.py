"""Which weights are found and selected."""

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrizations

from skve._backbones import decomposition, layer_selection
from tests.toys import HuggingFaceStyle, ReadsWeight, Tied, TinyCNN, TinyMLP, TinyTransformer


@pytest.fixture(scope="module")
def models():
    """Timm models without weights, each built once."""
    made = {}

    def get(name, **options):
        if name not in made:
            made[name] = timm.create_model(name, pretrained=False, num_classes=0, **options)
        return made[name]

    return get


SWINV2 = {"img_size": 64, "window_size": 4}
BEIT = {"img_size": 64, "depth": 3}


def selected(model, layers):
    sites, _ = layer_selection.find_sites(model)
    return [site.layer for site in layer_selection.select_sites(model, sites, layers)]


# ------------------------------------------------------------------------------------------ find_sites


@pytest.mark.parametrize(
    ("name", "options", "n_sites"),
    [
        ("tf_efficientnet_lite0", {}, 33),  # 49 convolutions, 16 of them depthwise
        ("vit_tiny_patch16_224", {}, 48),
        ("resnet18", {}, 20),
    ],
)
def test__find_sites__timm_model__every_ungrouped_weight_once(models, name, options, n_sites):
    model = models(name, **options)
    sites, skipped = layer_selection.find_sites(model)
    expected = {
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
        if "patch_embed" not in path
    }
    assert len(sites) == n_sites
    assert {site.layer for site in sites} == expected
    assert skipped == {}


def test__find_sites__cnn__stem_and_last_convolution_included(models):
    layers = [site.layer for site in layer_selection.find_sites(models("tf_efficientnet_lite0"))[0]]
    assert layers[0] == "conv_stem"
    assert layers[-1] == "conv_head"
    assert not any("conv_dw" in layer for layer in layers)


def test__find_sites__vit__no_patch_embedding_and_qkv_is_one(models):
    layers = [site.layer for site in layer_selection.find_sites(models("vit_tiny_patch16_224"))[0]]
    assert layers[:4] == ["blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2"]


def test__find_sites__beit_and_swinv2__layers_whose_weight_is_read_are_found(models):
    beit = [site.layer for site in layer_selection.find_sites(models("beit_base_patch16_224", **BEIT))[0]]
    swin = [
        site.layer
        for site in layer_selection.find_sites(models("swinv2_cr_tiny_ns_224", img_size=64, window_size=2))[0]
    ]
    assert "blocks.0.attn.qkv" in beit
    assert any(layer.endswith("attn.qkv") for layer in swin)
    assert not any("patch_embed" in layer for layer in beit + swin)


def test__find_sites__timm_backbone_lists__names_and_shapes_agree(models):
    for name, options in (("convnext_atto", {}), ("swinv2_tiny_window8_256", SWINV2)):
        model = models(name, **options)
        parameters = dict(model.named_parameters())
        sites, _ = layer_selection.find_sites(model)
        assert sites
        for site in sites:
            weight = parameters[site.parameter]
            assert decomposition.as_matrix(weight, site.kind).dim() == 2
            assert site.bias is None or parameters[site.bias].shape == (weight.shape[0],)


def test__find_sites__depthwise_and_grouped__left_out():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 4, 1))
    sites, skipped = layer_selection.find_sites(model)
    assert [site.layer for site in sites] == ["2"]
    assert skipped == {}


def test__find_sites__names_of_embeddings_poolers_and_heads__never_adapted():
    model = nn.ModuleDict(
        {
            "token_embedding": nn.Linear(4, 4),
            "pooler": nn.ModuleDict({"dense": nn.Linear(4, 4)}),
            "lm_head": nn.Linear(4, 4),
            "attn_pool": nn.Linear(4, 4),
            "wte": nn.Linear(4, 4),
            "dense": nn.Linear(4, 4),
        }
    )
    sites, _ = layer_selection.find_sites(model)
    assert [site.layer for site in sites] == ["dense"]


def test__find_sites__class_name_says_embedding__never_adapted():
    class PatchEmbed(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Conv2d(3, 8, 4)

    model = nn.ModuleDict({"stem": PatchEmbed(), "conv": nn.Conv2d(8, 8, 1)})
    assert [site.layer for site in layer_selection.find_sites(model)[0]] == ["conv"]


def test__find_sites__tied_weight__skipped_with_both_names():
    sites, skipped = layer_selection.find_sites(Tied())
    assert [site.layer for site in sites] == ["free"]
    assert set(skipped) == {"first", "second"}
    assert "first, second" in skipped["first"]


def test__find_sites__module_used_under_two_names__counts_as_tied():
    layer = nn.Linear(4, 4)
    sites, skipped = layer_selection.find_sites(nn.ModuleDict({"a": layer, "b": layer, "c": nn.Linear(4, 3)}))
    assert [site.layer for site in sites] == ["c"]
    assert set(skipped) == {"a", "b"}


def test__find_sites__linear_tied_to_token_embedding__skipped():
    model = nn.ModuleDict({"tokens": nn.Embedding(7, 4), "out": nn.Linear(4, 7)})
    model["out"].weight = model["tokens"].weight
    sites, skipped = layer_selection.find_sites(model)
    assert sites == []
    assert "tied" in skipped["out"]


def test__find_sites__parametrised_weight__skipped_with_a_reason():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    sites, skipped = layer_selection.find_sites(model)
    assert [site.layer for site in sites] == ["1"]
    assert "parametrised" in skipped["0"]


def test__find_sites__integer_weight__skipped_with_its_type():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    sites, skipped = layer_selection.find_sites(model)
    assert [site.layer for site in sites] == ["1"]
    assert "torch.int8" in skipped["0"]


def test__find_sites__multihead_attention__fused_and_output_projection():
    found = {site.parameter: site for site in layer_selection.find_sites(TinyTransformer())[0]}
    fused = found["blocks.0.attn.in_proj_weight"]
    assert (fused.layer, fused.bias, fused.kind) == ("blocks.0.attn", "blocks.0.attn.in_proj_bias", "linear")
    assert found["blocks.0.attn.out_proj.weight"].layer == "blocks.0.attn.out_proj"
    assert not any(name.startswith("patch_embed") for name in found)


def test__find_sites__attention_with_separate_projections__said_to_be_skipped():
    attention = nn.MultiheadAttention(4, 2, kdim=6, vdim=6)
    sites, skipped = layer_selection.find_sites(nn.ModuleDict({"attn": attention}))
    assert [site.layer for site in sites] == ["attn.out_proj"]
    assert "attn" in skipped


def test__find_sites__huggingface_conv1d__transposed():
    sites, _ = layer_selection.find_sites(HuggingFaceStyle())
    assert [(site.layer, site.kind) for site in sites] == [("c_fc", "transposed"), ("c_proj", "transposed")]


def test__find_sites__module_is_itself_a_layer__named_by_the_empty_string():
    sites, _ = layer_selection.find_sites(nn.Linear(3, 2))
    assert [(site.layer, site.parameter, site.bias) for site in sites] == [("", "weight", "bias")]


# ---------------------------------------------------------------------------------------- select_sites


def test__select_sites__all__every_candidate(models):
    model = models("vit_tiny_patch16_224")
    assert selected(model, "all") == [site.layer for site in layer_selection.find_sites(model)[0]]


def test__select_sites__attention_and_mlp__split_a_vit_in_two(models):
    model = models("vit_tiny_patch16_224")
    attention, mlp = selected(model, "attention"), selected(model, "mlp")
    assert {layer.split(".")[2] for layer in attention} == {"attn"}
    assert {layer.split(".")[2] for layer in mlp} == {"mlp"}
    assert len(attention) == len(mlp) == 24


def test__select_sites__beit_and_swinv2__attention_found(models):
    beit = selected(models("beit_base_patch16_224", **BEIT), "attention")
    swin = selected(models("swinv2_tiny_window8_256", **SWINV2), "attention")
    assert len(beit) == 2 * BEIT["depth"]
    assert any(layer.endswith("attn.qkv") for layer in swin)
    assert not any(".mlp." in layer for layer in beit + swin)


def test__select_sites__mlp_without_a_telling_name__rest_of_the_attention_block():
    assert selected(TinyTransformer(), "mlp") == ["blocks.0.fc1", "blocks.0.fc2", "blocks.1.fc1", "blocks.1.fc2"]


def test__select_sites__last_k__whole_blocks_from_the_end(models):
    vit = models("vit_tiny_patch16_224")
    assert {layer.split(".")[1] for layer in selected(vit, "last:2")} == {"10", "11"}
    resnet = selected(models("resnet18"), "last:1")
    assert resnet == ["layer4.1.conv1", "layer4.1.conv2"]
    assert selected(models("convnext_atto"), "last:1") == ["stages.3.blocks.1.mlp.fc1", "stages.3.blocks.1.mlp.fc2"]
    lite = selected(models("tf_efficientnet_lite0"), "last:1")
    assert lite == ["blocks.6.0.conv_pw", "blocks.6.0.conv_pwl"]


def test__select_sites__last_k_of_all_blocks__nothing_outside_blocks(models):
    model = models("tf_efficientnet_lite0")
    layers = selected(model, "last:16")
    assert "conv_stem" not in layers
    assert len(layers) == 31


def test__select_sites__last_k_of_a_plain_stack__single_layers():
    assert selected(TinyMLP(), "last:1") == ["fc2"]
    assert selected(TinyCNN(), "last:2") == ["pointwise", "dilated"]


def test__select_sites__numbered_parts_inside_a_block__block_is_the_whole():
    def part():
        return nn.ModuleDict({"dense": nn.Linear(4, 4)})

    def block():
        return nn.ModuleDict({"parts": nn.Sequential(part(), part()), "out": nn.Linear(4, 4)})

    model = nn.ModuleDict({"layers": nn.ModuleList([block(), block()])})
    names = ["layers.1.parts.0.dense", "layers.1.parts.1.dense", "layers.1.out"]
    assert selected(model, "last:1") == names


@pytest.mark.parametrize("layers", ["last:0", "last:13", "last:", "last:-1", "last:two", "last:1.0"])
def test__select_sites__last_k_out_of_range__names_the_number_of_blocks(models, layers):
    with pytest.raises(ValueError, match=r"layers='last:k' must have an integer k from 1 to 12"):
        selected(models("vit_tiny_patch16_224"), layers)


def test__select_sites__regular_expression__searched_in_names(models):
    layers = selected(models("vit_tiny_patch16_224"), r"blocks\.(0|3)\.mlp\.fc1$")
    assert layers == ["blocks.0.mlp.fc1", "blocks.3.mlp.fc1"]


def test__select_sites__list_of_names__in_the_order_of_the_model():
    assert selected(TinyMLP(), ["fc2", "fc1"]) == ["fc1", "fc2"]
    assert selected(TinyMLP(), ("fc2",)) == ["fc2"]


@pytest.mark.parametrize("layers", ["nothing_like_it", ["fc1", "fc7"], [], "attention", "mlp"])
def test__select_sites__nothing_matches__lists_the_candidates(layers):
    with pytest.raises(ValueError, match="The layers are fc1, fc2"):
        selected(TinyMLP(), layers)


def test__select_sites__many_candidates__list_is_cut(models):
    with pytest.raises(ValueError, match="and 38 more"):
        selected(models("vit_tiny_patch16_224"), "nothing_like_it")


def test__select_sites__no_candidate_at_all__says_so():
    with pytest.raises(ValueError, match="no linear layer or ungrouped convolution"):
        selected(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)), "all")


def test__select_sites__broken_regular_expression__says_so():
    with pytest.raises(ValueError, match="is no valid regular expression"):
        selected(TinyMLP(), "fc(1")


# ------------------------------------------------------------------------------------------- decompose


# ----------------------------------------------------------------------------------------- fingerprint


def test__find_sites__reads_weight_module__both_layers_found():
    assert [site.layer for site in layer_selection.find_sites(ReadsWeight())[0]] == ["lin", "out"]


@pytest.mark.parametrize(
    "module", [nn.LSTM(4, 4), nn.Conv1d(4, 4, 3), nn.Conv3d(4, 4, 1), nn.ConvTranspose2d(4, 4, 2)]
)
def test__find_sites__layer_of_another_kind__skipped_with_its_class(module):
    sites, skipped = layer_selection.find_sites(nn.ModuleDict({"other": module, "linear": nn.Linear(3, 3)}))
    assert [site.layer for site in sites] == ["linear"]
    assert skipped == {"other": f"a {type(module).__name__}: only linear layers and 2-D convolutions are adapted"}


def test__find_sites__embeddings_norms_and_single_rows__not_worth_a_warning():
    parts = [nn.Embedding(9, 4), nn.LayerNorm((3, 4)), nn.Conv1d(1, 1, 3), nn.Conv1d(4, 4, 3, groups=4), nn.PReLU()]
    assert layer_selection.find_sites(nn.ModuleList(parts)) == ([], {})
