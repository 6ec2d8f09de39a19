"""What `skve.estimate_memory` says beside measured peaks of a fit and of predictions, on this machine's processor.

    python examples/benchmarks/memory_estimates.py --vit vit_s14.safetensors --gguf gemma-3-270m.gguf
    python examples/benchmarks/memory_estimates.py --llama     # estimates alone, of the study paper_arc_easy_llama2

Each row runs in a process of its own. The peak is the largest resident size less what the process held before it
read the backbone, with all libraries loaded: a toy of the same kind was fitted before. Batches are full, and texts
have the length that the estimate is told. The allocator of glibc is told to return what is freed
(`MALLOC_MMAP_THRESHOLD_`): by default it keeps holes, and a fit takes up to three times the memory.
"""

import argparse
import gc
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from _common import machine

MINILM, VIT = "bundled:all-MiniLM-L6-v2", "vit_small_patch14_dinov2"
COMMON = {"max_steps": 3, "random_state": 0, "calibrate": None, "device": "cpu"}
COMMON_OF_TOYS = {"random_state": 0, "calibrate": None, "device": "cpu", "precision": "float32"}
NO_FOLDS = {"ensemble_params": {"folds": None}}
N_CLASSES = 3
COLUMNS = ("frozen_weights", "factors", "members", "optimizer", "activations")
ALONE = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}
# name -> kind, length of the texts, parameters
CASES = {
    "MiniLM, sve, 4 members, 32 x 64 tokens": ("text", 64, {"precision": "float32", **NO_FOLDS}),
    "MiniLM, sve, 4 members, 32 x 256 tokens": ("text", 256, {"precision": "float32", **NO_FOLDS}),
    "MiniLM, sve, 16 members, 8 x 128 tokens": (
        "text",
        128,
        {"precision": "float32", "n_members": 16, "batch_size": 8, **NO_FOLDS},
    ),
    "MiniLM, lora, 4 members, 32 x 128 tokens": (
        "text",
        128,
        {"precision": "float32", "ensemble": "lora", **NO_FOLDS},
    ),
    "MiniLM, deep, 4 members, 32 x 128 tokens": (
        "text",
        128,
        {"precision": "float32", "ensemble": "deep", **NO_FOLDS},
    ),
    "MiniLM, sve, checkpointed, 32 x 256 tokens": (
        "text",
        256,
        {"precision": "float32", "activation_checkpointing": True, **NO_FOLDS},
    ),
    "EfficientNet-Lite0, sve, 4 members, 32 x 128 pixels": (
        "image",
        None,
        {"precision": "float32", "image_size": 128},
    ),
    "ViT-S/14, sve, 4 members, 32 x 112 pixels": ("vit", None, {"precision": "float32", "image_size": 112}),
    "ViT-S/14, sve, 4 members, 16 x 224 pixels": (
        "vit",
        None,
        {"precision": "float32", "image_size": 224, "batch_size": 16},
    ),
    "ViT-S/14, deep, 2 members, 16 x 112 pixels": (
        "vit",
        None,
        {"precision": "float32", "image_size": 112, "batch_size": 16, "ensemble": "deep", "n_members": 2},
    ),
    "Gemma 3 270M, sve, last block, 8 x 64 tokens": (
        "gguf",
        64,
        {"precision": "float32", "layers": "last:1", "batch_size": 8, **NO_FOLDS},
    ),
}


def classifier(kind, parameters, files):
    import skve

    parameters = COMMON | parameters
    if kind in ("text", "gguf"):
        return skve.SVETextClassifier(MINILM if kind == "text" else files["gguf"], **parameters)
    backbone = {"backbone": f"{VIT}@{files['vit']}"} if kind == "vit" else {}
    return skve.SVEClassifier(**backbone, **parameters)


def data(clf, length):
    """Return two full batches of inputs, and their labels."""
    n, rng = 2 * clf.batch_size, np.random.default_rng(0)
    if length is None:
        side = clf.image_size
        X = rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    else:
        clf.set_params(max_length=length)
        X = [" ".join(rng.choice(["one", "two", "three", "many"], 2 * length)) for _ in range(n)]
    return X, np.arange(n) % N_CLASSES


def resident(name):
    """Return a figure of /proc/self/status in bytes: VmRSS, or VmHWM, its peak."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def load_libraries(kind):
    """Fit a toy of the same kind and predict with it, and forget it."""
    import skve
    from skve.testing import make_toy_image_backbone, make_toy_text_backbone

    if kind in ("text", "gguf"):
        if kind == "gguf":
            import gguf  # noqa: F401
        family = "bert" if kind == "text" else "gemma3_text"
        toy, X = skve.SVETextClassifier(make_toy_text_backbone(family)), ["one two", "three"] * 8
    else:
        import timm

        module = timm.create_model("test_vit", num_classes=0) if kind == "vit" else make_toy_image_backbone()
        toy, X = skve.SVEClassifier(module), np.zeros((16, 160, 160, 3), np.uint8)
    toy.set_params(n_members=2, max_steps=2, **COMMON_OF_TOYS).fit(X, [0, 1] * 8).predict_proba(X)
    skve.clear_cache()
    gc.collect()


def measure(case, files, model):
    """Measure one case: the fit, or the predictions of the model that it saved."""
    import torch

    import skve

    torch.set_num_threads(1)
    kind, length, parameters = CASES[case]
    clf = classifier(kind, parameters, files)
    X, y = data(clf, length)
    many = np.concatenate([X] * 8)  # 16 batches: as many as members take turns in
    load_libraries(kind)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    if model.exists():
        loaded = skve.load(model)
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # reading the file takes its size for a moment
        loaded.predict_proba(many)
        print(json.dumps(resident("VmHWM") - before))
    else:
        clf.fit(X, y)
        print(json.dumps(resident("VmHWM") - before))
        clf.save(model)


def estimate_llama():
    """Print a table of what `"sve"` of the study paper_arc_easy_llama2 takes, on one GPU and on two."""
    from transformers import AutoConfig

    import skve

    study = {"n_members": 16, "batch_size": 16, "activation_checkpointing": True, "head": "lm"}
    columns = (
        "backbone_dtype",
        "layers",
        "GPUs",
        "tokens",
        *(name.replace("_", " ") for name in COLUMNS),
        "training",
        "prediction",
    )
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for dtype, layers in (("bfloat16", "all"), ("bfloat16", "attention"), ("int8", "all"), ("int4", "all")):
        for n_gpus, length in itertools.product((1, 2), (128, 512)):
            clf = skve.SVETextClassifier(
                AutoConfig.for_model("llama", architectures=["LlamaForCausalLM"]),
                backbone_dtype=dtype,
                layers=layers,
                device=[f"cuda:{index}" for index in range(n_gpus)],
                **study,
            )
            found = skve.estimate_memory(clf, n_classes=5, length=length, device="cuda")
            parts = [getattr(found.training, name) for name in COLUMNS]
            cells = [f"{size / 1e9:.1f}" for size in (*parts, found.training.total, found.prediction.total)]
            print(f"| {dtype} | {layers} | {n_gpus} | {length} | {' | '.join(cells)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vit", help="file of DINOv2 ViT-S/14's weights")
    parser.add_argument("--gguf", help="file of Gemma 3 270M")
    parser.add_argument("--llama", action="store_true", help="estimate a model of 7 billion parameters instead")
    parser.add_argument("--only", default="", help="part of a row's name")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    files = {"vit": options.vit, "gguf": options.gguf}
    if options.llama:
        estimate_llama()
        return
    if options.measure:
        measure(options.measure[0], files, pathlib.Path(options.measure[1]))
        return
    import skve

    print(machine())
    columns = ("fit", "training: estimate, measured, MB", "ratio", "prediction: estimate, measured, MB", "ratio")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for case, (kind, length, parameters) in CASES.items():
        if options.only not in case or (kind in files and not files[kind]):
            continue
        clf = classifier(kind, parameters, files)
        estimate = skve.estimate_memory(clf, n_classes=N_CLASSES, length=length or 1, device="cpu")
        cells = []
        with tempfile.TemporaryDirectory() as folder:
            for part in (estimate.training, estimate.prediction):
                command = [sys.executable, __file__, "--measure", case, f"{folder}/model"]
                command += [text for name, file in files.items() if file for text in (f"--{name}", file)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | ALONE)
                peak = json.loads(done.stdout.splitlines()[-1])
                cells += [f"{part.total / 1e6:,.0f}, {peak / 1e6:,.0f}", f"{part.total / peak:.2f}"]
        print(f"| {case} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
