"""Time and memory of image ensembles: fits against a deep ensemble, predictions against plain forward passes.

    python examples/benchmarks/image_speed.py

Backbones: EfficientNet-Lite0 at 128 pixels (ImageNet weights) and timm's vit_small_patch16_224 at 224 pixels (random
weights, which take the same time). Both sides run the same loop on the same images with the same batches, precision
and number of threads, in one process, in turn; ratios are medians over the rounds. Decompositions are made before the
clock starts and their time is printed. The floor is the ratio of the multiply-adds that one training step needs.

Memory is the peak of a fresh process during the fit, minus what it held after the imports and the backbone's loading.
"""

import argparse
import math
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from _common import forget_peak, machine, memory, require_idle
from torch.utils.flop_counter import FlopCounterMode

import skve
from skve._backbones import decomposition, from_timm, layer_selection


def vit():
    import timm

    torch.manual_seed(0)
    return timm.create_model("vit_small_patch16_224", num_classes=0)


CASES = {
    "EfficientNet-Lite0, 128 px": {"backbone": "bundled:efficientnet_lite0", "image_size": 128, "batch_size": 32},
    "ViT-S/16, 224 px": {"backbone": vit, "image_size": 224, "batch_size": 8},
}


def make(case, ensemble, **options):
    return skve.SVEClassifier(ensemble=ensemble, n_members=4, random_state=0, **{**CASES[case], **options})


def images(n, size):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8), np.arange(n) % 10


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_turn(sides, rounds):
    """Run each side once to warm up, then in turn; return the median time of each and all times."""
    times = {name: [] for name in sides}
    for function in sides.values():
        function()
    for _ in range(rounds):
        for name, function in sides.items():
            times[name].append(seconds(function))
    return {name: statistics.median(values) for name, values in times.items()}, times


def ratio(times, name, reference):
    return statistics.median(a / b for a, b in zip(times[name], times[reference], strict=True))


def convolution_backward(
    grad_out, inputs, weight, bias, stride, padding, dilation, transposed, pad, groups, mask, **_
):
    """Count the backward of a convolution; torch's own count takes grouped ones for full."""
    return 2 * math.prod(grad_out) * math.prod(weight[1:]) * (mask[0] + mask[1])


def flops(function):
    with FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: convolution_backward}
    ) as counter:
        function()
    return counter.get_total_flops()


def time_fits(case, rounds, n_batches, epochs, precision):
    size, batch = CASES[case]["image_size"], CASES[case]["batch_size"]
    X, y = images(n_batches * batch, size)
    common = {"max_epochs": epochs, "precision": precision, "augment": None}
    sides = {
        "sve": lambda: make(case, "sve", **common).fit(X, y),
        "deep": lambda: make(case, "deep", **common).fit(X, y),
    }
    if "EfficientNet" in case:
        trained = {"ensemble_params": {"train_batch_norm": True}, **common}
        sides["deep, trained batch statistics"] = lambda: make(case, "deep", **trained).fit(X, y)
    medians, times = in_turn(sides, rounds)
    for name in sides:
        per_step = medians[name] / (n_batches * epochs)
        print(f"{case}, {precision}, {name}: {per_step:.3f} s a step, {ratio(times, name, 'deep'):.3f} of deep")
    print_floor(case, precision)


def print_floor(case, precision):
    """Print the multiply-adds of one training step of SVE, relative to the deep ensemble's."""
    size, batch = CASES[case]["image_size"], CASES[case]["batch_size"]
    X, y = images(batch, size)
    one = {"max_epochs": 1, "precision": precision, "augment": None}
    counted = {e: flops(lambda e=e: make(case, e, **one).fit(X[:batch], y[:batch])) for e in ("sve", "deep")}
    print(f"{case}: floor (multiply-adds of a step, sve / deep): {counted['sve'] / counted['deep']:.3f}")


def time_predictions(case, rounds, n):
    size, batch = CASES[case]["image_size"], CASES[case]["batch_size"]
    X, y = images(n, size)
    clf = make(case, "sve", max_epochs=1, layers="all").fit(X[:batch], y[:batch])
    backbone = from_timm.load_image_backbone(CASES[case]["backbone"], size)
    pipeline = clf._make_pipeline(clf._check_inputs(X, reset=False), backbone, "cpu", training=False)

    def plain():
        with torch.no_grad():
            for indices in pipeline.batches(batch, None):
                inputs = pipeline.prepare(pipeline.load(indices), None)
                for _ in range(4):
                    backbone.features(backbone.module, inputs)

    medians, times = in_turn({"predict": lambda: clf.predict_proba(X), "plain": plain}, rounds)
    shown = f"predict {n} images {medians['predict']:.2f} s, four plain passes {medians['plain']:.2f} s"
    print(f"{case}: {shown}, ratio {ratio(times, 'predict', 'plain'):.3f}")


def time_decomposition(case):
    backbone = from_timm.load_image_backbone(CASES[case]["backbone"], CASES[case]["image_size"])
    sites = layer_selection.find_sites(backbone.module)[0]
    weights = dict(backbone.module.named_parameters())
    taken = seconds(lambda: [decomposition.decompose(weights[site.parameter], site.kind) for site in sites])
    print(f"{case}: decomposition of {len(sites)} layers, once a process: {taken:.2f} s")


def peak_of_fit(case, kind):
    """Print the memory that a fit takes, in MiB; runs in a process of its own."""
    size, batch = CASES[case]["image_size"], CASES[case]["batch_size"]
    X, y = images(4 * batch, size)
    backbone = from_timm.load_image_backbone(CASES[case]["backbone"], size)
    before = memory("VmRSS")
    forget_peak()
    if kind == "plain":
        plain_fine_tune(backbone, X, y, batch)
    else:
        make(case, kind, max_epochs=2, augment=None, precision="float32").fit(X, y)
    print(memory("VmHWM") - before)


def plain_fine_tune(backbone, X, y, batch):
    """Fine-tune one network without skve's loop: what anybody would write."""
    import copy

    network = copy.deepcopy(backbone.module).requires_grad_(True)
    head = torch.nn.Linear(backbone.features(network, torch.zeros(1, 3, *X.shape[1:3])).shape[1], 10)
    optimizer = torch.optim.AdamW([*network.parameters(), *head.parameters()], lr=1e-4)
    inputs = torch.from_numpy(X).permute(0, 3, 1, 2).float() / 255
    for _ in range(2):
        for start in range(0, len(X), batch):
            part = inputs[start : start + batch].contiguous(memory_format=torch.channels_last)
            logits = head(backbone.features(network, part))
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y[start : start + batch]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def compare_memory(case, threads):
    peaks = {}
    for kind in ("plain", "single", "sve"):
        command = [sys.executable, __file__, "--memory", case, kind, "--threads", str(threads), "--force"]
        peaks[kind] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(
        f"{case}: peak memory of a fit: sve {peaks['sve']:.0f} MiB, one full fine-tune {peaks['single']:.0f} MiB "
        f"(plain torch loop {peaks['plain']:.0f} MiB): {peaks['sve'] / peaks['single']:.2f} of it "
        f"({peaks['sve'] / peaks['plain']:.2f} of the plain loop)"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--force", action="store_true", help="run on a busy machine; the figures mean nothing then")
    parser.add_argument("--only", choices=["fit", "predict", "memory"])
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        peak_of_fit(*arguments.memory)
        sys.exit()
    require_idle(arguments.force)
    sys.stdout.reconfigure(line_buffering=True)
    print(machine())
    efficientnet, transformer = CASES
    for case in CASES:
        time_decomposition(case)
    if arguments.only in (None, "memory"):
        for case in CASES:
            compare_memory(case, arguments.threads)
    if arguments.only in (None, "predict"):
        time_predictions(efficientnet, arguments.rounds, 512)
        time_predictions(transformer, min(3, arguments.rounds), 64)
    if arguments.only in (None, "fit"):
        time_fits(efficientnet, arguments.rounds, 3, 2, "float32")
        time_fits(transformer, min(3, arguments.rounds), 2, 1, "float32")
        time_fits(transformer, min(3, arguments.rounds), 2, 1, "bfloat16")
