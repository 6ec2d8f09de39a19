"""Time of fitting and predicting with singular value ensembles of all-MiniLM-L6-v2, four members, two threads.

    python examples/benchmarks/text_speed.py

Against `ensemble="deep"` with the same texts, batches, precision and steps, in one process and in turn; ratios are
medians over the repetitions. Prediction against four plain passes of the backbone over the same batches. Beside each
ratio stands its floor: the ratio of multiply-adds in linear layers and attention. Wants an idle machine.
"""

import argparse
import time

import numpy as np
import torch
from _common import machine, require_idle

from skve import SVETextClassifier
from skve._backbones.decomposition import as_matrix
from skve._backbones.layer_selection import find_sites
from skve._ensembles.forms import choose_form

N_MEMBERS, BATCH = 4, 32


def texts_of(tokenizer, n_texts, n_tokens):
    """Return random texts of exactly `n_tokens` tokens, the two special ones included."""
    words = sorted(word for word in tokenizer.get_vocab() if word.isalpha() and word.isascii() and len(word) > 3)
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(words, n_tokens - 2)) for _ in range(n_texts)]


def floors(module, n_tokens):
    """Return the ratios of multiply-adds: fit with all layers, fit with `last:2`, prediction.

    Of one step of one member; the optimizer, normalisations and activations are left out on both sides.
    """
    config, n = module.config, BATCH * n_tokens
    attention = 4 * n * n_tokens * config.hidden_size * config.num_hidden_layers  # scores and their weighted sum
    blocks: dict[str, list[float]] = {}
    for site in find_sites(module)[0]:
        d_out, d_in = as_matrix(module.get_parameter(site.parameter), site.kind).shape
        weight, r = d_out * d_in, min(d_out, d_in)
        adapted = 4 * n * r * (d_out + d_in)
        if choose_form(site.kind, d_out, d_in, n, training=True) == "folded":
            adapted = 6 * n * weight + 4 * r * weight
        index = int(site.layer.split(".")[2])
        blocks.setdefault(index, []).append((2 * n * weight, adapted, 2 * r * weight))
    plain, adapted, fold = (np.array([sum(s[i] for s in sites) for sites in blocks.values()]) for i in range(3))
    deep = 3 * (plain.sum() + attention)
    share = attention / len(blocks)
    last = (plain[:-2].sum() + share * (len(blocks) - 2)) / N_MEMBERS + adapted[-2:].sum() + 3 * share * 2
    predict = (plain.sum() + attention + fold.sum() / 16) / (plain.sum() + attention)  # folded for 16 batches
    return (adapted.sum() + 3 * attention) / deep, last / deep, predict


def seconds(run, *args):
    start = time.perf_counter()
    run(*args)
    return time.perf_counter() - start


def main(arguments):
    require_idle(arguments.force)
    torch.set_num_threads(arguments.threads)
    print(machine())
    options = {"n_members": N_MEMBERS, "batch_size": BATCH, "max_epochs": 1, "random_state": 0, "device": "cpu"}
    options["precision"] = arguments.precision
    rivals = {
        "all layers": SVETextClassifier(**options),
        "last:2": SVETextClassifier(layers="last:2", **options),
        "deep": SVETextClassifier(ensemble="deep", **options),
    }
    backbone = rivals["deep"]._load_backbone("bundled:all-MiniLM-L6-v2", classes=np.arange(2))
    print(f"precision {arguments.precision}, batch {BATCH}, {arguments.texts} texts, {N_MEMBERS} members")
    print("tokens  what                    ratio  floor  repetitions")
    for n_tokens in arguments.tokens:
        texts = texts_of(backbone.tokenizer, arguments.texts, n_tokens)
        labels = np.arange(len(texts)) % 2
        for clf in rivals.values():
            clf.fit(texts[:BATCH], labels[:BATCH])  # decompositions, caches
        taken = {name: [] for name in [*rivals, "predict", "plain"]}
        for _ in range(arguments.repetitions):
            for name, clf in rivals.items():
                taken[name].append(seconds(clf.fit, texts, labels))
            taken["predict"].append(seconds(rivals["all layers"].predict_proba_members, texts))
            taken["plain"].append(seconds(plain_passes, rivals["deep"], backbone, texts))
        bounds = floors(backbone.module, n_tokens)
        for what, one, other, floor in (
            ("fit, all layers / deep", "all layers", "deep", bounds[0]),
            ("fit, last:2 / deep", "last:2", "deep", bounds[1]),
            ("predict / plain passes", "predict", "plain", bounds[2]),
        ):
            ratios = np.array(taken[one]) / np.array(taken[other])
            spread = " ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"{n_tokens:6}  {what:22} {np.median(ratios):6.2f} {floor:6.2f}  {spread}", flush=True)


def plain_passes(clf, backbone, texts):
    """Run the backbone once for each member over the batches of a prediction."""
    pipeline = clf._make_pipeline(
        clf._check_inputs(texts, reset=False), backbone, torch.device("cpu"), training=False
    )
    with torch.no_grad():
        batches = [pipeline.prepare(pipeline.load(rows), None) for rows in pipeline.batches(BATCH, None)]
        for _ in range(N_MEMBERS):
            for batch in batches:
                backbone.features(backbone.module, batch)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--precision", choices=["float32", "bfloat16", "auto"], default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--force", action="store_true", help="run on a busy machine; the figures are worthless then")
    main(parser.parse_args())
