"""Write the data of the paper's studies (`studies/paper_*.toml`) in the form in which run.py reads them.

    python examples/experiments/prepare.py flowers102 --raw RAW --data-dir DATA

Images: torchvision downloads them to RAW; they become DATA/NAME/split/class/n.png, without loss. Texts have to lie in
RAW already, and become JSON lines:

* sst2: unzip https://dl.fbaipublicfiles.com/glue/data/SST-2.zip (of https://gluebenchmark.com) in RAW, which makes
  RAW/SST-2; becomes DATA/glue_sst2.jsonl.gz. There is no test split: GLUE keeps its labels to itself.
* arc_easy: unzip https://ai2-public-datasets.s3.amazonaws.com/arc/ARC-V1-Feb2018.zip (of
  https://allenai.org/data/arc) in RAW, which makes RAW/ARC-V1-Feb2018-2; becomes DATA/arc_easy.jsonl.gz.
"""

import argparse
import csv
import gzip
import json
import pathlib
import sys

from tqdm import tqdm

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "benchmarks"))
from _common import LETTERS, read_jsonl

# Class of torchvision.datasets, and what it takes for each split.
CIFAR = {"train": {"train": True}, "test": {"train": False}}
IMAGES = {
    "flowers102": ("Flowers102", {split: {"split": split} for split in ("train", "val", "test")}),
    "pets": ("OxfordIIITPet", {"train": {"split": "trainval"}, "test": {"split": "test"}}),
    "cifar100": ("CIFAR100", CIFAR),
    "cifar10": ("CIFAR10", CIFAR),
}


def write_images(name, raw, folder):
    """Write every image of a data set of torchvision as `folder`/split/class/n.png; classes are numbers."""
    from torchvision import datasets

    kind, splits = IMAGES[name]
    for split, options in splits.items():
        images = getattr(datasets, kind)(raw, download=True, **options)
        for i in tqdm(range(len(images)), desc=f"{name}, {split}"):
            image, label = images[i]
            path = folder / split / f"{int(label):03}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.convert("RGB").save(path, compress_level=1)


def read_sst2(raw):
    """Return the records {split, text, label} of GLUE's SST-2."""
    records = []
    for split in ("train", "dev"):
        with open(raw / "SST-2" / f"{split}.tsv", newline="", encoding="utf-8") as stream:
            # Quotation marks are text, and most have no partner.
            for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE):
                records.append({"split": split, "text": row["sentence"].strip(), "label": int(row["label"])})
    return records


def read_arc_easy(raw):
    """Return the records {split, question, choices, label} of ARC-Easy; the label counts the choices from 0."""
    records = []
    for split in ("train", "dev", "test"):
        file = raw / "ARC-V1-Feb2018-2" / "ARC-Easy" / f"ARC-Easy-{split.capitalize()}.jsonl"
        for record in read_jsonl(file):
            question = record["question"]
            names = [choice["label"] for choice in question["choices"]]  # letters, or digits from 1
            if record["answerKey"] not in names or len(names) > len(LETTERS):
                raise ValueError(f"{file}: {record.get('id')} has the answer {record['answerKey']!r} of {names}")
            records.append(
                {
                    "split": split,
                    "question": question["stem"],
                    "choices": [choice["text"] for choice in question["choices"]],
                    "label": names.index(record["answerKey"]),
                }
            )
    return records


TEXTS = {"sst2": ("glue_sst2.jsonl.gz", read_sst2), "arc_easy": ("arc_easy.jsonl.gz", read_arc_easy)}


def main(arguments=None):
    """Write one data set, which appears in the data folder when it is complete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*IMAGES, *TEXTS])
    parser.add_argument("--raw", type=pathlib.Path, required=True, help="folder of what was downloaded")
    parser.add_argument("--data-dir", type=pathlib.Path, required=True, help="that of run.py")
    parsed = parser.parse_args(arguments)
    target = parsed.data_dir / (TEXTS[parsed.name][0] if parsed.name in TEXTS else parsed.name)
    if target.exists():
        parser.error(f"{target} is there already; to write it anew, delete it")
    parsed.data_dir.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    if parsed.name in IMAGES:
        write_images(parsed.name, parsed.raw, part)
    else:
        try:
            records = TEXTS[parsed.name][1](parsed.raw)
        except FileNotFoundError as error:
            parser.error(f"there is no {error.filename}; --help says where it comes from")
        with gzip.open(part, "wt", encoding="utf-8") as stream:
            stream.writelines(json.dumps(record) + "\n" for record in records)
    part.rename(target)


if __name__ == "__main__":
    main()
