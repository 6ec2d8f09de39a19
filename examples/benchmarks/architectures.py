"""Which layers of which architectures are adapted, and what a member of an ensemble costs.

Builds every architecture of the list below with random weights on torch's meta device, in its full size, without
any download; prints the table, and writes it to docs/data/architectures.csv and docs/guide/architectures.md. The
tests sweep over the same list, most of it in small configurations::

    python examples/benchmarks/architectures.py
"""

import collections
import csv
import dataclasses
import pathlib
import sys
from collections.abc import Callable

import timm
import torch
import torchvision
from timm.models import mlp_mixer as mixer
from torch import nn

from skve._backbones import backbone as backbone_module
from skve._backbones import decomposition, from_timm, layer_selection, trace

DOCS = pathlib.Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- table: written by examples/benchmarks/architectures.py -->", "<!-- end of the table -->"


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of architectures.

    Attributes
    ----------
    name : str
    model : str
        A name of timm, or "torchvision:" and a name of torchvision.
    small : dict or callable
        Options that make it small enough for the tests, or what makes it so from a number of classes.
    side : int
        Side of the tests' images in pixels.
    slow : bool
        Whether the tests leave it out unless asked for slow ones: it takes seconds, or others are much alike.
    """

    name: str
    model: str
    small: dict | Callable = dataclasses.field(default_factory=dict)
    side: int = 32
    slow: bool = False

    def build(self, *, small=False, num_classes=0):
        """Return the module with random weights; torchvision's always have a classifier."""
        if small and callable(self.small):
            return self.small(num_classes)
        options = self.small if small else {}
        library, _, name = self.model.rpartition(":")
        if library == "torchvision":
            if small:
                options = {"num_classes": max(num_classes, 1), **options}
            if name == "googlenet":
                options = {"init_weights": True, **options}  # it warns otherwise
            return torchvision.models.get_model(name, weights=None, **options)
        return timm.create_model(name, num_classes=num_classes, **options)


VIT = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}
VIT14 = {**VIT, "img_size": 28}
SWIN = {"img_size": 32, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4}
STAGES = {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 16, 32), "num_heads": (1, 2, 2, 2)}
PIT = {"img_size": 32, "base_dims": (8, 8, 8), "depth": (1, 1, 1), "heads": (2, 2, 2)}
MAXXVIT = {"img_size": 64, "stem_width": 16, "embed_dim": (32,) * 4, "depths": (1,) * 4, "head_hidden_size": None}
RESNET = {"layers": (1, 1, 1, 1), "channels": (8, 16, 16, 32)}
REGNET = {"depth": 8, "w0": 8, "wa": 8.0, "wm": 2.0, "group_size": 8}


def _small_mixer(num_classes, **options):
    return mixer.MlpMixer(num_classes, img_size=32, embed_dim=32, num_blocks=2, **options)


def _small_clip_resnet(num_classes):
    from timm.models.byobnet import ByoBlockCfg

    blocks = tuple(ByoBlockCfg("bottle", d=1, c=c, s=s, br=0.25) for c, s in ((32, 1), (32, 2), (64, 2), (64, 2)))
    return timm.create_model("resnet50_clip", num_classes=num_classes, img_size=64, blocks=blocks, stem_chs=16)


def _small_torchvision_vit(num_classes):
    return torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=num_classes)


def _small_torchvision_swin(num_classes):
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

    return torchvision.models.SwinTransformer(
        [4, 4],
        16,
        [1, 1],
        [2, 2],
        [4, 4],
        num_classes=num_classes,
        block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
    )


def _small_torchvision_maxvit(num_classes):
    return torchvision.models.MaxVit((32, 32), 8, 4, [8, 16], [1, 1], 8, 0.0, num_classes=num_classes)


def _small_torchvision_convnext(num_classes):
    from torchvision.models.convnext import CNBlockConfig

    return torchvision.models.ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=num_classes)


FAMILIES = [
    # transformers
    Family("ViT", "vit_small_patch16_224", VIT),
    Family("DeiT III", "deit3_small_patch16_224", VIT, slow=True),
    Family("DeiT, distilled", "deit_small_distilled_patch16_224", VIT),
    Family("DINOv2", "vit_small_patch14_dinov2", VIT14, 28),
    Family("DINOv2, registers", "vit_small_patch14_reg4_dinov2", VIT14, 28),
    Family("DINOv3", "vit_small_patch16_dinov3", VIT),
    Family("CLIP ViT", "vit_base_patch32_clip_224", {**VIT, "img_size": 64}, 64),
    Family("SigLIP", "vit_base_patch16_siglip_224", VIT),
    Family("SigLIP 2, NaFlex", "naflexvit_base_patch16_siglip", {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    Family("AIMv2", "aimv2_large_patch14_224", VIT14, 28, slow=True),
    Family("SAM ViT", "samvit_base_patch16_224", VIT, slow=True),
    Family("BEiT", "beit_base_patch16_224", VIT),
    Family("BEiT v2", "beitv2_base_patch16_224", VIT, slow=True),
    Family("BEiT-3", "beit3_base_patch16_224", VIT, slow=True),
    Family("EVA-02", "eva02_small_patch14_224", VIT14, 28),
    Family("Swin", "swin_tiny_patch4_window7_224", SWIN, slow=True),
    Family("Swin V2", "swinv2_tiny_window8_256", SWIN),
    Family("Swin V2-CR", "swinv2_cr_tiny_ns_224", {**SWIN, "img_size": 64}, 64, slow=True),
    Family("CaiT", "cait_xxs24_224", VIT),
    Family("XCiT", "xcit_nano_12_p16_224", {"embed_dim": 32, "depth": 1, "num_heads": 2}, slow=True),
    Family("PVT v2", "pvt_v2_b0", STAGES, slow=True),
    Family("Twins-PCPVT", "twins_pcpvt_small", STAGES, slow=True),
    Family("Twins-SVT", "twins_svt_small", {**STAGES, "wss": (4, 4, 4, 4)}, slow=True),
    Family("MViTv2", "mvitv2_tiny", slow=True),
    Family(
        "Hiera",
        "hiera_tiny_224",
        {"img_size": (64, 64), "embed_dim": 16, "num_heads": 1, "stages": (1, 1, 1, 1)},
        64,
        slow=True,
    ),
    Family(
        "CoaT",
        "coat_tiny",
        {"img_size": 64, "embed_dims": (64,) * 4, "serial_depths": (1,) * 4, "parallel_depth": 1},
        64,
    ),
    Family(
        "CrossViT",
        "crossvit_9_240",
        {"img_size": 48, "img_scale": (1.0, 1.0), "embed_dim": (16, 32), "depth": ((1, 1, 0),), "num_heads": (2, 2)},
        48,
        slow=True,
    ),
    Family(
        "TNT",
        "tnt_s_patch16_224",
        {"img_size": 32, "embed_dim": 32, "inner_dim": 16, "depth": 1, "num_heads_inner": 2, "num_heads_outer": 2},
        slow=True,
    ),
    Family(
        "NesT",
        "nest_tiny",
        lambda n: timm.models.nest.Nest(32, 3, 4, 3, (16, 16, 32), (1, 2, 2), (1, 1, 1), num_classes=n),
        slow=True,
    ),
    Family("PiT", "pit_ti_224", PIT, slow=True),
    Family("PiT, distilled", "pit_ti_distilled_224", PIT, slow=True),
    Family(
        "VOLO",
        "volo_d1_224",
        lambda n: timm.models.volo.VOLO((1,) * 4, 32, embed_dims=(16, 32, 32, 32), num_heads=(2,) * 4, num_classes=n),
        slow=True,
    ),
    Family("DaViT", "davit_tiny", STAGES, slow=True),
    Family(
        "GCViT",
        "gcvit_xxtiny",
        lambda n: timm.models.gcvit.GlobalContextVit(
            img_size=64, depths=(1,) * 4, num_heads=(1,) * 4, embed_dim=8, num_classes=n
        ),
        64,
        slow=True,
    ),
    # transformers with convolutions
    Family("ViT on a ResNet", "vit_base_r50_s16_224", {**VIT, "img_size": 64, "depth": 1}, 64, slow=True),
    Family("ViTamin", "vitamin_small_224", {"img_size": 64}, 64, slow=True),
    Family(
        "Visformer",
        "visformer_tiny",
        {"img_size": 64, "init_channels": 8, "embed_dim": 32, "depth": (1, 1, 1), "num_heads": 2},
        64,
        slow=True,
    ),
    Family(
        "LeViT",
        "levit_128s",
        {"img_size": 64, "embed_dim": (16, 16, 32), "num_heads": (1, 2, 2), "depth": (1, 1, 1)},
        64,
    ),
    Family("MobileViT", "mobilevit_xxs"),
    Family("MobileViTv2", "mobilevitv2_050", slow=True),
    Family("MaxViT", "maxvit_tiny_tf_224", MAXXVIT, 64),
    Family("CoAtNet", "coatnet_0_rw_224", MAXXVIT, 64, slow=True),
    Family(
        "EfficientFormer",
        "efficientformer_l1",
        {"embed_dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1)},
        224,
        slow=True,
    ),
    Family(
        "EfficientFormer V2",
        "efficientformerv2_s0",
        {"img_size": 64, "embed_dims": (8, 8, 16, 16), "depths": (1, 1, 2, 2), "num_vit": 1},
        64,
        slow=True,
    ),
    Family("TinyViT", "tiny_vit_5m_224", {**STAGES, "window_sizes": (4, 4, 4, 4)}, slow=True),
    Family(
        "EfficientViT (MIT)",
        "efficientvit_b0",
        {"widths": (8, 8, 8, 16, 16), "depths": (1,) * 5, "head_dim": 8, "head_widths": (16, 32)},
        slow=True,
    ),
    Family(
        "EfficientViT (MSRA)",
        "efficientvit_m0",
        {"img_size": 64, "embed_dim": (16, 32, 48), "depth": (1, 1, 1), "num_heads": (2, 2, 2)},
        64,
        slow=True,
    ),
    Family("FastViT", "fastvit_t8", {"layers": (1, 1, 1, 1), "embed_dims": (8, 8, 16, 16)}, slow=True),
    Family(
        "EdgeNeXt",
        "edgenext_xx_small",
        {"depths": (1, 1, 2, 1), "dims": (8, 16, 16, 32), "heads": (2, 2, 2, 2)},
        slow=True,
    ),
    Family("SwiftFormer", "swiftformer_xs", {"layers": (1, 1, 1, 1), "embed_dims": (8, 8, 16, 16)}, slow=True),
    Family("Next-ViT", "nextvit_small", {"depths": (1, 1, 5, 1)}, slow=True),
    Family("SHViT", "shvit_s1", {"embed_dim": (16, 16, 32), "depth": (1, 1, 1), "partial_dim": (8, 8, 8)}, slow=True),
    Family("BoTNet", "botnet26t_256", {"img_size": 64}, 64, slow=True),
    Family("LambdaNet", "lambda_resnet26t", slow=True),
    # perceptrons and others
    Family("MLP-Mixer", "mixer_s16_224", _small_mixer),
    Family(
        "ResMLP",
        "resmlp_12_224",
        lambda n: _small_mixer(n, mlp_ratio=4, block_layer=mixer.ResBlock, norm_layer=mixer.Affine),
        slow=True,
    ),
    Family(
        "gMLP",
        "gmlp_s16_224",
        lambda n: _small_mixer(n, mlp_ratio=6, block_layer=mixer.SpatialGatingBlock, mlp_layer=timm.layers.GatedMlp),
        slow=True,
    ),
    Family(
        "PoolFormer",
        "poolformer_s12",
        lambda n: timm.models.metaformer.MetaFormer(depths=(1, 1), dims=(16, 32), num_classes=n),
        slow=True,
    ),
    Family(
        "Sequencer",
        "sequencer2d_s",
        {"img_size": 28, "layers": (1,) * 4, "embed_dims": (16,) * 4, "hidden_sizes": (4,) * 4},
        28,
    ),
    Family(
        "ConvMixer",
        "convmixer_768_32",
        lambda n: timm.models.convmixer.ConvMixer(dim=16, depth=2, num_classes=n),
        slow=True,
    ),
    Family("MambaOut", "mambaout_femto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}, slow=True),
    # convolutional networks
    Family("ResNet", "resnet50", RESNET),
    Family("CLIP ResNet", "resnet50_clip", _small_clip_resnet),
    Family("ResNet, BiT (standardised weights)", "resnetv2_50x1_bit", {"channels": (128,) * 4, "stem_chs": 32}, 96),
    Family(
        "NF-ResNet",
        "nf_resnet50",
        {"channels": (16, 16, 32, 32), "depths": (1, 1, 1, 1), "stem_chs": 8},
    ),
    Family("RegNetX", "regnetx_004", REGNET, slow=True),
    Family("RegNetY", "regnety_004", REGNET),
    Family("ConvNeXt", "convnext_tiny", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}),
    Family("ConvNeXt V2", "convnextv2_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}, slow=True),
    Family("MobileNetV3", "mobilenetv3_small_100"),
    Family("MobileNetV4", "mobilenetv4_conv_small", slow=True),
    Family("EfficientNet", "efficientnet_b0", slow=True),
    Family("EfficientNetV2", "tf_efficientnetv2_s", slow=True),
    Family("EfficientNet-Lite", "tf_efficientnet_lite0", slow=True),
    Family("CondConv-EfficientNet", "tf_efficientnet_cc_b0_4e", slow=True),
    Family("GhostNet", "ghostnet_100", slow=True),
    Family("ReXNet", "rexnet_100", slow=True),
    Family("RepVGG", "repvgg_a0", slow=True),
    Family("RepViT", "repvit_m1", {"embed_dim": (8, 8, 16, 16), "depth": (1, 1, 1, 1)}, slow=True),
    Family("MobileOne", "mobileone_s0", slow=True),
    Family("StarNet", "starnet_s1", {"base_dim": 8, "depths": (1, 1, 1, 1)}, slow=True),
    Family("DenseNet", "densenet121", {"growth_rate": 8, "block_config": (2, 2)}, slow=True),
    Family("DPN", "dpn68", {"k_r": 16, "groups": 4, "k_sec": (1, 1, 1, 1), "inc_sec": (8, 8, 8, 8)}, slow=True),
    Family("HRNet", "hrnet_w18_small", slow=True),
    Family("HGNet", "hgnet_tiny", slow=True),
    Family("Inception v3", "inception_v3", {}, 75, slow=True),
    Family("Inception-ResNet", "inception_resnet_v2", {}, 75, slow=True),
    Family("Res2Net", "res2net50_26w_4s", {**RESNET, "base_width": 16}, slow=True),
    Family("ResNeSt", "resnest14d", {"channels": (8, 8, 16, 16), "stem_width": 8}, slow=True),
    Family("SKNet", "skresnet18", {"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 32)}, slow=True),
    Family("TResNet", "tresnet_m", {"layers": (1, 1, 1, 1), "width_factor": 0.25}, slow=True),
    Family("CSPNet", "cspresnet50", slow=True),
    # torchvision, passed as modules
    Family("torchvision ViT (nn.MultiheadAttention)", "torchvision:vit_b_16", _small_torchvision_vit),
    Family("torchvision Swin V2", "torchvision:swin_v2_t", _small_torchvision_swin),
    Family("torchvision MaxViT", "torchvision:maxvit_t", _small_torchvision_maxvit, slow=True),
    Family("torchvision ConvNeXt", "torchvision:convnext_tiny", _small_torchvision_convnext),
    Family("torchvision ResNet", "torchvision:resnet18", slow=True),
    Family("torchvision MobileNetV3", "torchvision:mobilenet_v3_small", slow=True),
    Family("torchvision EfficientNet", "torchvision:efficientnet_b0", slow=True),
    Family("torchvision GoogLeNet", "torchvision:googlenet", slow=True),
]


def describe(family):
    """Return a row of the table: what `layers="all"` adapts of the full-size architecture, and what not, and why."""
    with torch.device("meta"):
        module = family.build().eval().requires_grad_(False)
        preprocess = from_timm.image_preprocess(module)
        inputs = torch.empty(2, *preprocess["input_size"])
    backbone = backbone_module.Backbone(
        backbone_module.FrozenModule(module), {}, preprocess, from_timm.image_features
    )
    sites, skipped = layer_selection.find_sites(module)
    traced = trace.trace(backbone, [site.parameter for site in sites], inputs, len(inputs))
    skipped |= {site.layer: "the features do not depend on it" for site in sites if site.parameter not in traced.used}
    adapted = [site for site in sites if site.layer not in skipped]
    shapes = [decomposition.as_matrix(module.get_parameter(site.parameter), site.kind).shape for site in adapted]
    known = {site.layer for site in sites} | set(skipped)
    frozen = [m for name, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and name not in known]
    grouped = sum(getattr(layer, "groups", 1) > 1 for layer in frozen)
    reasons = collections.Counter(reason.partition(":")[0] for reason in skipped.values())
    return {
        "family": family.name,
        "model": family.model,
        "image_size": preprocess["input_size"][-1],
        "backbone_parameters": sum(p.numel() for p in module.parameters()),
        "adapted_layers": len(adapted),
        "ratios_a_member": sum(min(shape) for shape in shapes),
        "features": traced.n_features,
        "frozen_embeddings_and_poolers": len(frozen) - grouped,
        "frozen_grouped_convolutions": grouped,
        "skipped_layers": len(skipped),
        "skipped_because": "; ".join(f"{reason} ({count})" for reason, count in reasons.items()),
    }


def markdown(rows):
    """Return the table of the guide."""
    lines = [
        "| family | model | backbone | adapted layers | ratios a member | frozen by rule | skipped |",
        "|---|---|--:|--:|--:|---|---|",
    ]
    for row in rows:
        rule = [
            f"{row[column]} {what}"
            for column, what in (
                ("frozen_embeddings_and_poolers", "embedding or pooling"),
                ("frozen_grouped_convolutions", "grouped"),
            )
            if int(row[column])
        ]
        share = 100 * int(row["ratios_a_member"]) / int(row["backbone_parameters"])
        cells = (
            row["family"],
            f"`{row['model']}`",
            f"{int(row['backbone_parameters']) / 1e6:.1f} M",
            row["adapted_layers"],
            f"{int(row['ratios_a_member']):,} ({share:.2f} %)",
            ", ".join(rule),
            row["skipped_because"],
        )
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def main():
    rows = []
    for family in FAMILIES:
        rows.append(describe(family))
        print(f"{family.model}: {rows[-1]['adapted_layers']} layers", file=sys.stderr)
    with open(DOCS / "data" / "architectures.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    page = DOCS / "guide" / "architectures.md"
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n\n{markdown(rows)}\n\n{END}{rest.partition(END)[2]}")
    print(markdown(rows))


if __name__ == "__main__":
    main()
