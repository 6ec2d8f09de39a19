"""A small study, and a handful of data for it and for all others, that the tests of the experiment runner share."""

import gzip
import io
import json
import pathlib
import sys

import numpy as np
from PIL import Image

from skve.testing import make_toy_text_backbone
from tests.toys import toy_images

EXAMPLES = pathlib.Path(__file__).parents[2]
STUDIES = sorted((EXAMPLES / "experiments" / "studies").glob("*.toml"))
for folder in ("experiments", "benchmarks"):  # the scripts are no package
    if str(EXAMPLES / folder) not in sys.path:
        sys.path.insert(0, str(EXAMPLES / folder))

SMALL = """
question = "Does the runner work?"

[data]
name = "toys"
loader = "arrays"
path = "cifar10_small.npz"
per_class = 3
near_classes = 1
n_valid = 8
n_test = 12

[common]
backbone = "random:test_resnet"
image_size = 32
n_members = 2
max_epochs = 1
augment = "light"

[test]
seeds = [0, 1]

[methods.deep]
ensemble = "deep"
trials = { head_lr = [1e-2, 1e-1] }

[methods.single]
ensemble = "single"
trials = { head_lr = [1e-2, 1e-1] }

[methods.head]
ensemble = "head"
trials = { head_lr = [1e-2, 1e-1] }
"""


def jpeg(image):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG")
    return stream.getvalue()


def write_lines(path, records):
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(record) + "\n" for record in records)


def write_data(folder):
    """Write a handful of images and texts in every format that loaders read, under the names that studies have."""
    parts = {split: toy_images(per_class=n, n_classes=5, seed=n) for split, n in (("train", 8), ("test", 5))}
    names = np.array(["iris", "crocus", "tulip", "daisy", "lily"])
    flat = {f"{k}_{split}": v for split, (x, y) in parts.items() for k, v in (("x", x), ("y", y))}
    np.savez(folder / "cifar10_small.npz", classes=names, **flat)
    arrays = {"classes": names}
    for split, (x, y) in parts.items():
        files = [jpeg(image) for image in x]
        arrays[f"off_{split}"] = np.cumsum([0, *map(len, files)])
        arrays[f"jpeg_{split}"] = np.frombuffer(b"".join(files), np.uint8)
        arrays[f"y_{split}"] = y.astype(np.uint8)
    np.savez(folder / "flowers17_160px.npz", **arrays)
    for root in ("flowers102", "pets", "cifar100", "cifar10"):
        for split, source in (("train", "train"), ("val", "test"), ("test", "test")):
            for i, (image, code) in enumerate(zip(*parts[source], strict=True)):
                path = folder / root / split / names[code] / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path)
    words = ["left", "right", "good", "bad"]
    texts = [
        {"split": split, "text": f"{word} {i}", "label": word}
        for split, n in (("train", 8), ("val", 5), ("dev", 5), ("test", 5))
        for word in words
        for i in range(n)
    ]
    strangers = [{"split": "oos_test", "text": f"what is {i}", "label": "oos"} for i in range(6)]
    write_lines(folder / "clinc150_full.jsonl.gz", texts + strangers)
    for name in ("sst2", "glue_sst2"):
        write_lines(folder / f"{name}.jsonl.gz", [t | {"label": int(t["label"] == "good")} for t in texts])
    questions = [
        {"split": split, "question": f"{i} and 1?", "choices": ["two", "three", "four"], "label": i % 3}
        for split, n in (("train", 24), ("dev", 9), ("test", 9))
        for i in range(n)
    ]
    write_lines(folder / "arc_easy.jsonl.gz", questions)
    for name, family, lm in (("encoder", "bert", False), ("decoder", "llama", True)):
        for part in make_toy_text_backbone(family, lm=lm):
            part.save_pretrained(folder / name)
