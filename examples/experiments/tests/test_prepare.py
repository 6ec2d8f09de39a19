"""The data of the paper's studies: what prepare.py writes is what these studies read."""

import inspect
import json

import numpy as np
import pytest
import timm
from experiment_cases import STUDIES, write_lines
from PIL import Image
from torchvision import datasets

import _data  # isort: skip
import _fits  # isort: skip
import prepare  # isort: skip
from _study import Study  # isort: skip

PAPER = [path for path in STUDIES if path.stem.startswith("paper_")]
IMAGES = [path for path in PAPER if Study(path).data["loader"] == "folders"]
ARC_EASY = next(path for path in PAPER if path.stem == "paper_arc_easy_llama2")
N_ITEMS = {"train": 4, "trainval": 4, "val": 3, "test": 2}


class Fake:
    """Images of two classes with pixels that only their split has."""

    def __init__(self, split, download):
        assert download
        self.split = split

    def __len__(self):
        return N_ITEMS[self.split]

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(i)
        return Image.fromarray(pixels(self.split, i)), i % 2


class FakeCIFAR(Fake):
    def __init__(self, root, train=True, transform=None, target_transform=None, download=False):
        assert type(train) is bool
        super().__init__("train" if train else "test", download)


class FakeFlowers(Fake):
    def __init__(self, root, split="train", transform=None, target_transform=None, download=False):
        assert split in ("train", "val", "test")
        super().__init__(split, download)


class FakePets(Fake):
    def __init__(
        self,
        root,
        split="trainval",
        target_types="category",
        transforms=None,
        transform=None,
        target_transform=None,
        download=False,
    ):
        assert split in ("trainval", "test")
        super().__init__(split, download)


FAKES = {"Flowers102": FakeFlowers, "OxfordIIITPet": FakePets, "CIFAR100": FakeCIFAR, "CIFAR10": FakeCIFAR}


def pixels(split, i):
    seed = [list(N_ITEMS).index(split), i]
    return np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)


def start(name, folder):
    prepare.main([name, "--raw", str(folder / "raw"), "--data-dir", str(folder / "data")])
    return folder / "data"


# --------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("name", prepare.IMAGES)
def test__prepare__images__every_split_has_its_own_pixels_without_loss(name, tmp_path, monkeypatch):
    for kind, fake in FAKES.items():
        monkeypatch.setattr(datasets, kind, fake)
    path = start(name, tmp_path) / name
    sources = {"train": "trainval" if name == "pets" else "train", "test": "test"}
    sources |= {"val": "val"} if name == "flowers102" else {}
    assert {folder.name for folder in path.iterdir()} == set(sources)
    for split, source in sources.items():
        files, labels = _data.read_split("folders", path, split)
        found = sorted((np.asarray(Image.open(f)).tolist(), label) for f, label in zip(files, labels, strict=True))
        expected = [(pixels(source, i).tolist(), f"{i % 2:03}") for i in range(N_ITEMS[source])]
        assert found == sorted(expected)


@pytest.mark.parametrize("name", prepare.IMAGES)
def test__prepare__options_of_images__torchvision_takes_them_as_the_stubs_do(name, tmp_path):
    kind, splits = prepare.IMAGES[name]
    real, fake = (set(inspect.signature(source).parameters) for source in (getattr(datasets, kind), FAKES[kind]))
    assert fake <= real
    for options in splits.values():
        with pytest.raises(RuntimeError, match="not found"):  # an unknown split is a ValueError
            getattr(datasets, kind)(tmp_path, download=False, **options)


def test__prepare__stopped_half_way__nothing_under_the_final_name_and_the_next_run_is_whole(tmp_path, monkeypatch):
    class Stopped(FakeCIFAR):
        def __getitem__(self, i):
            if i == 1:
                raise KeyboardInterrupt
            return super().__getitem__(i)

    monkeypatch.setattr(datasets, "CIFAR10", Stopped)
    with pytest.raises(KeyboardInterrupt):
        start("cifar10", tmp_path)
    assert not (tmp_path / "data" / "cifar10").exists()
    monkeypatch.setattr(datasets, "CIFAR10", FakeCIFAR)
    path = start("cifar10", tmp_path) / "cifar10"
    assert len(_data.read_split("folders", path, "train")[0]) == 4
    assert [folder.name for folder in path.parent.iterdir()] == ["cifar10"]


# ---------------------------------------------------------------------------------------------- texts


def test__prepare__sst2__sentences_with_quotation_marks_and_labels_of_two_splits(tmp_path):
    folder = tmp_path / "raw" / "SST-2"
    folder.mkdir(parents=True)
    (folder / "train.tsv").write_text('sentence\tlabel\n" a fine film \t1\nit \'s "dull \t0\n', encoding="utf-8")
    (folder / "dev.tsv").write_text("sentence\tlabel\ncafé noir . \t1\n", encoding="utf-8")
    (folder / "test.tsv").write_text("index\tsentence\n0\tno label\n", encoding="utf-8")
    path = start("sst2", tmp_path) / "glue_sst2.jsonl.gz"
    texts, labels = _data.read_split("jsonl", path, "train")
    assert (texts, labels.tolist()) == (['" a fine film', "it 's \"dull"], ["1", "0"])
    texts, labels = _data.read_split("jsonl", path, "dev")
    assert (texts, labels.tolist()) == (["café noir ."], ["1"])
    with pytest.raises(ValueError, match="nothing in the split 'test'"):
        _data.read_split("jsonl", path, "test")


def write_arc(folder, **splits):
    folder = folder / "raw" / "ARC-V1-Feb2018-2" / "ARC-Easy"
    folder.mkdir(parents=True)
    for split, questions in splits.items():
        records = [
            {
                "id": "x",
                "question": {
                    "stem": f"{split}?",
                    "choices": [{"text": text, "label": name} for name, text in zip(names, texts, strict=True)],
                },
                "answerKey": answer,
            }
            for names, texts, answer in questions
        ]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"ARC-Easy-{split}.jsonl").write_text(lines, encoding="utf-8")


def test__prepare__arc_easy__answers_by_letter_and_by_digit_become_the_prompts_of_the_study(tmp_path):
    letters, digits = ("ABCDE", ["p", "q", "r", "s", "t"], "E"), ("1234", ["p", "q", "r", "s"], "3")
    write_arc(tmp_path, Train=[letters, digits], Dev=[("ABC", ["x", "y", "z"], "A")], Test=[("1234", "wxyz", "4")])
    path = start("arc_easy", tmp_path) / "arc_easy.jsonl.gz"
    prompts, answers = _data.read_split("jsonl", path, "train")
    assert prompts[0] == "Question: Train?\nA. p\nB. q\nC. r\nD. s\nE. t\nAnswer:"
    assert prompts[1] == "Question: Train?\nA. p\nB. q\nC. r\nD. s\nAnswer:"
    assert answers.tolist() == ["E", "C"]
    assert _data.read_split("jsonl", path, "dev")[1].tolist() == ["A"]
    assert _data.read_split("jsonl", path, "test")[1].tolist() == ["D"]


@pytest.mark.parametrize("wrong", [("ABC", "xyz", "4"), ("ABCDEF", "uvwxyz", "A")])
def test__prepare__arc_easy_with_an_answer_or_choice_that_prompts_lack__value_error_names_it(wrong, tmp_path):
    write_arc(tmp_path, Train=[wrong], Dev=[], Test=[])
    with pytest.raises(ValueError, match=r"ARC-Easy-Train.jsonl: x has the answer '[4A]' of \['A', 'B', 'C'"):
        start("arc_easy", tmp_path)


@pytest.mark.parametrize(("name", "missing"), [("sst2", "train.tsv"), ("arc_easy", "ARC-Easy-Train.jsonl")])
def test__prepare__texts_that_are_not_there__error_names_the_file(name, missing, tmp_path, capsys):
    with pytest.raises(SystemExit):
        start(name, tmp_path)
    assert f"{missing}; --help says where it comes from" in capsys.readouterr().err


def test__prepare__data_that_are_there__left_as_they_are(tmp_path, capsys):
    path = tmp_path / "data" / "glue_sst2.jsonl.gz"
    path.parent.mkdir()
    path.write_bytes(b"kept")
    with pytest.raises(SystemExit):
        start("sst2", tmp_path)
    assert "is there already" in capsys.readouterr().err
    assert path.read_bytes() == b"kept"


# ---------------------------------------------------------------------------------------- the studies


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test__paper_study__paths_and_splits__prepare_writes_them(path):
    written = {name: set(splits) for name, (_, splits) in prepare.IMAGES.items()}
    written |= {"glue_sst2.jsonl.gz": {"train", "dev"}, "arc_easy.jsonl.gz": {"train", "dev", "test"}}
    data = Study(path).data
    assert {data["train"], data["test"], data["valid"] or data["train"]} <= written[data["path"]]
    assert data["near"] is None or data["near"]["split"] in written[data["near"]["path"]]


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test__paper_study__backbone_of_images__timm_has_pretrained_weights(path):
    backbone = Study(path).common["backbone"]
    assert timm.is_model(backbone.partition(".")[0])
    assert timm.get_pretrained_cfg(backbone, allow_unregistered=False).hf_hub_id


def test__paper_arc_easy__five_choices_are_rare__all_training_items_are_trained_on(tmp_path):
    counts = {"train": [60, 60, 60, 60, 2], "dev": [20, 20, 20, 20, 1], "test": [5, 5, 5, 5, 1]}
    records = [
        {"split": split, "question": f"{i}?", "choices": list("pqrst"), "label": label}
        for split, of_labels in counts.items()
        for label, n in enumerate(of_labels)
        for i in range(n)
    ]
    write_lines(tmp_path / "arc_easy.jsonl.gz", records)
    parts = _data.load(Study(ARC_EASY).data, tmp_path, 0)
    assert [len(items) for items in (parts.X_train, parts.X_valid, parts.X_test)] == [242, 81, 21]


def test__paper_arc_easy__deep__members_differ(data_dir):
    changes = [f"common.backbone={data_dir / 'decoder'}", "common.max_epochs=2", "common.max_length=64"]
    study = Study(ARC_EASY, [*changes, "methods.deep.n_members=2"])
    cell = next(cell for cell in study.cells("test") if cell.method == "deep")
    parts = _data.load(cell.data, data_dir, 0)
    clf = _fits.make_classifier(cell, {"weights": data_dir}).fit(parts.X_train, parts.y_train)
    first, second = clf.predict_proba_members(parts.X_test)
    assert np.abs(first - second).max() > 1e-6
