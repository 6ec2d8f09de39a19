"""Hostile inputs, at least 200, with the error that each gets: the single source of docs/data/hostile_inputs.csv.

    python -m tests.hostile.inputs

writes the table; `tests/hostile/test_hostile.py` checks that it is up to date and that each message names what is
wrong and what to do.
"""

import contextlib
import csv
import dataclasses
import functools
import hashlib
import importlib.metadata
import io
import json
import pathlib
import platform
import re
import tempfile
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import safetensors.numpy
import torch
from PIL import Image
from torch import nn

import skve
from skve._fitted import saving
from skve.datasets import load_image_folder
from skve.testing import make_toy_text_backbone
from tests._inputs import test_images as test_inputs
from tests._inputs import test_labels
from tests.hostile import test_bad_input
from tests.toys import TinyCNN, TinyMLP, toy_classifier, toy_images

TABLE = pathlib.Path(__file__).parents[2] / "docs" / "data" / "hostile_inputs.csv"
COLUMNS = ("group", "case", "call", "error", "message")
PACKAGES = (
    "pillow",
    "scikit-learn",
    "numpy",
    "torch",
    "timm",
    "transformers",
    "safetensors",
)  # whose words are quoted
VERSIONS = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}
X, Y = toy_images(per_class=2)
TEXTS, LABELS = ["to be", "or not", "to be so", "or not so"], ["yes", "no", "yes", "no"]


@dataclasses.dataclass(frozen=True)
class Case:
    """One hostile input.

    Attributes
    ----------
    group, name, call : str
        What it is, and the call that gets it.
    argument : str
        What the message must name: a regular expression.
    run : callable
        Makes the call, given a folder of its own.
    """

    group: str
    name: str
    call: str
    argument: str
    run: Callable

    def row(self):
        """Make the call; return a row of the table, with paths and addresses the same everywhere."""
        error, message = "none", ""
        with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    self.run(pathlib.Path(name))
            except Exception as caught:
                error, message = type(caught).__name__, " ".join(str(caught).replace(name, "FOLDER").split())
        message = message.replace(str(TABLE.parents[2]), "REPOSITORY")
        message = re.sub(r"0x[0-9a-f]+", "0x...", message)
        message = re.sub(r"\{('[^{}:]*')\}", lambda found: f"{{{', '.join(sorted(found[1].split(', ')))}}}", message)
        message = re.sub(r"-[0-9a-f]{16}\.safetensors", "-HASH.safetensors", message)
        return dict(zip(COLUMNS, (self.group, self.name, self.call, error, message), strict=True))


@functools.cache
def fitted():
    return toy_classifier(max_epochs=1).fit(X, Y)


# ------------------------------------------------------------------------------------ images and labels


def image_cases():
    found = {**test_inputs.VALUE_ERRORS, **test_inputs.TYPE_ERRORS}
    for name, (bad, _) in found.items():

        def fit(folder, bad=bad):
            bad = bad * 2 if isinstance(bad, list) and len(bad) == 1 else bad
            toy_classifier(max_epochs=1).fit(bad, np.arange(len(bad) if hasattr(bad, "__len__") else 3) % 2)

        yield Case("images", name, "fit(X, y)", r"\bX\b", fit)
    later = {
        "floats to 255 after a fit on floats to 1": lambda: (
            toy_classifier(max_epochs=1).fit(X / 255, Y).predict(X * 1.0)
        ),
        "floats to 1 after a fit on floats to 255": lambda: (
            toy_classifier(max_epochs=1).fit(X * 1.0, Y).predict(X / 255)
        ),
        "validation images with NaN": lambda: toy_classifier().fit(X, Y, X_val=np.full((6, 8, 8), np.nan), y_val=Y),
        "validation images without labels": lambda: toy_classifier().fit(X, Y, X_val=X),
        "prediction of nothing": lambda: fitted().predict([]),
        "prediction of None": lambda: fitted().predict_proba(None),
        "uncertainty of one path": lambda: fitted().predict_uncertainty("image.png"),
    }
    for name, run in later.items():
        yield Case(
            "images",
            name,
            "predict(X)" if "valid" not in name else "fit(X, y, X_val=...)",
            r"X\b|X_val",
            ignoring(run),
        )
    for shape in ((8, 11), (240,), (-8, -10, 3), (8.0, 10, 3), "ab", 5, (16, 16, 2), (256, 3)):
        yield Case(
            "images", f"image_shape={shape!r}", "fit(X, y)", "image_shape|^X must have shape",
            ignoring(lambda s=shape: toy_classifier(image_shape=s).fit(X.reshape(6, -1), Y)),
        )  # fmt: skip


def ignoring(run):
    """Let a call without arguments pass for one that gets a folder."""
    return lambda folder: run()


FILES = {
    "no image": b"this is no image",
    "empty": b"",
    "first bytes of a PNG": b"\x89PNG\r\n\x1a\n",
    "PostScript called .png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    "PDF called .png": b"%PDF-1.4\n",
    "SVG called .png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "pickle called .png": b"\x80\x04\x95.",
    "HTML called .png": b"<html></html>",
    "GIF of 65535 x 65535 pixels": b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\0;",
    "PPM of 10^5 x 10^5 pixels": b"P6 100000 100000 255\n",
    "PPM of 10^4 x 10^4 pixels": b"P6 10000 10000 255\n",
    "PPM of letters": b"P6 a b c\n",
    "BMP of negative width": b"BM"
    + bytes(12)
    + (40).to_bytes(4, "little")
    + b"\xff\xff\xff\xff\1\0\0\0\1\0\x18\0"
    + bytes(24),
    "TIFF with a directory nowhere": b"II*\0\xff\xff\xff\x7f",
    "WebP without data": b"RIFF\x1c\0\0\0WEBPVP8L" + bytes(20),
    "ICO of no image": b"\0\0\1\0\0\0",
}


def file_cases():
    for name, content in FILES.items():
        for kind in ("file", "bytes"):

            def fit(folder, content=content, kind=kind):
                path = folder / "image.png"
                path.write_bytes(content)
                toy_classifier().fit([X[0], path if kind == "file" else content], [0, 1])

            yield Case("files", f"{kind}: {name}", "fit(X, y)", r"X\[1\]", fit)

    def write(folder, image, name="image.png"):
        image.save(folder / name)
        return folder / name

    def truncated(folder):
        path = write(folder, Image.effect_noise((64, 64), 50))
        path.write_bytes(path.read_bytes()[:1000])
        return path

    paths = {
        "folder": lambda folder: folder,
        "no such file": lambda folder: folder / "nowhere.png",
        "link to nowhere": lambda folder: link(folder / "link.png", folder / "nowhere.png"),
        "link to itself": lambda folder: link(folder / "link.png", folder / "link.png"),
        "home that is not expanded": lambda folder: "~/image.png",
        "device": lambda folder: "/dev/zero",
        "empty name": lambda folder: "",
        "name with a zero byte": lambda folder: "image\0.png",
        "name of 5000 letters": lambda folder: "x" * 5000,
        "address on the web": lambda folder: "https://example.org/image.png",
        "truncated PNG": truncated,
        "32-bit TIFF": lambda folder: write(folder, Image.fromarray(np.ones((8, 8), np.int32)), "image.tiff"),
        "float TIFF": lambda folder: write(folder, Image.fromarray(np.ones((8, 8), np.float32)), "image.tiff"),
    }
    for name, path in paths.items():
        yield Case(
            "files", name, "fit(X, y)", r"X\[1\]", lambda f, path=path: toy_classifier().fit([X[0], path(f)], [0, 1])
        )
    folders = {
        "folder that does not exist": lambda folder: load_image_folder(folder / "nowhere"),
        "file instead of a folder": lambda folder: load_image_folder(write(folder, Image.new("L", (8, 8)))),
        "empty folder": load_image_folder,
        "images without class folders": lambda folder: (
            write(folder, Image.new("L", (8, 8))),
            load_image_folder(folder),
        ),
        "class folders without images": lambda folder: ((folder / "cat").mkdir(), load_image_folder(folder)),
    }
    for name, run in folders.items():
        yield Case("files", name, "load_image_folder(path)", "path", run)
    for path in (None, b"x", 5):
        yield Case("files", f"path={path!r}", "load_image_folder(path)", "^path must", ignoring(
            lambda p=path: load_image_folder(p)))  # fmt: skip
    for extensions in (".png", [1], ["."], 5):
        yield Case(
            "files", f"extensions={extensions!r}", "load_image_folder(path)", "extensions",
            lambda folder, e=extensions: load_image_folder(folder, extensions=e),
        )  # fmt: skip


def link(path, target):
    path.symlink_to(target)
    return path


def label_cases():
    for name, (y, _) in {**test_labels.MISSING, **test_labels.OTHER}.items():
        yield Case("labels", name, "fit(X, y)", r"\by\b", ignoring(lambda y=y: toy_classifier().fit(X[:3], y)))
    others = {
        "one class": [1] * 6,
        "too few": [0, 1],
        "too many": [0, 1] * 4,
        "empty": [],
        "a string": "abcdef",
        "a dictionary": {"a": 1},
        "two columns of a frame": pd.DataFrame({"a": Y, "b": Y}),
        "one-hot": np.eye(3)[Y],
        "a label for no sample": 3,
        "complex": np.array([1j, 2, 1j, 2, 1j, 2]),
    }
    for name, y in others.items():
        yield Case(
            "labels",
            name,
            "fit(X, y)",
            r"\by\b|samples|shape|target",
            ignoring(lambda y=y: toy_classifier().fit(X, y)),
        )
    partial = {
        "no classes at first": lambda: toy_classifier().partial_fit(X, Y),
        "classes lack a label": lambda: toy_classifier().partial_fit(X, Y, classes=[0, 1]),
        "classes of another type": lambda: toy_classifier().partial_fit(X, Y, classes=["a", "b"]),
        "other classes later": lambda: (
            toy_classifier().partial_fit(X, Y, classes=[0, 1, 2]).partial_fit(X, Y, classes=[0, 1])
        ),
        "calibrate": lambda: toy_classifier(calibrate="temperature").partial_fit(X, Y, classes=[0, 1, 2]),
    }
    for name, run in partial.items():
        yield Case("labels", name, "partial_fit(X, y, classes)", "classes|calibrate", ignoring(run))
    yield Case("labels", "y_val of an unknown class", "fit(X, y, X_val=..., y_val=...)", "y_val", ignoring(
        lambda: toy_classifier().fit(X, Y, X_val=X, y_val=Y + 5)))  # fmt: skip
    yield Case("labels", "y_val without X_val", "fit(X, y, y_val=...)", "y_val", ignoring(
        lambda: toy_classifier().fit(X, Y, y_val=Y)))  # fmt: skip
    weights = {
        "negative": [-1.0, 1, 1, 1, 1, 1],
        "NaN": [np.nan, 1, 1, 1, 1, 1],
        "infinity": [np.inf, 1, 1, 1, 1, 1],
        "all zero": np.zeros(6),
        "too few": [1.0, 1.0],
        "two columns": np.ones((6, 2)),
        "strings": ["a"] * 6,
        "complex": np.full(6, 1j),
    }
    for name, weight in weights.items():
        names = "sample_weight|[Cc]omplex|string|convert"
        yield Case("sample_weight", name, "fit(X, y, sample_weight)", names, ignoring(
            lambda w=weight: toy_classifier().fit(X, Y, sample_weight=w)))  # fmt: skip


# --------------------------------------------------------------------------------- parameters, backbones


def parameter_cases():
    more = [
        {"max_epochs": 1.5}, {"max_steps": 0}, {"max_steps": 5}, {"batch_size": "16"}, {"batch_size": 2.0},
        {"batch_size": -1},
        {"n_members": "4"}, {"n_members": None}, {"n_members": -1}, {"n_members": np.nan}, {"member_lr": np.nan},
        {"member_lr": "fast"}, {"head_lr": 0}, {"init_scale": np.nan}, {"init_scale": None}, {"warmup": -0.1},
        {"label_smoothing": -0.1}, {"class_weight": {7: 1.0}}, {"class_weight": [1, 2, 3]}, {"layers": "last:0"},
        {"layers": "last:99"}, {"layers": "["}, {"layers": []}, {"layers": ["nothing"]}, {"layers": None},
        {"ensemble": None}, {"ensemble_params": {"alpha": 4}}, {"augment": 1}, {"augment": lambda batch: None},
        {"image_size": 0}, {"image_size": (16, 16)}, {"device": "cuda:99"}, {"device": "meta"}, {"device": 1.5},
        {"calibrate": "isotonic"}, {"precision": "float64"}, {"callbacks": [print]}, {"verbose": "loud"},
        {"member_lr": 1e30, "max_epochs": 3}, {"backbone_dtype": "int2"},
        {"backbone_dtype": "int8", "ensemble": "deep"},
    ]  # fmt: skip
    for parameters in [*test_bad_input.BAD_PARAMETERS, *more]:
        shown = ", ".join(f"{name}={'<function>' if callable(v) else repr(v)}" for name, v in parameters.items())
        yield Case(
            "parameters", shown, "fit(X, y)", next(iter(parameters)),
            ignoring(lambda p=parameters: toy_classifier(TinyMLP(), **p).fit(X, Y)),
        )  # fmt: skip


class Nothing(nn.Module):
    def forward(self, images):
        return None


class Scalar(nn.Module):
    def forward(self, images):
        return images.mean()


BACKBONES = {
    "None": None,
    "a number": 3,
    "a list": [TinyMLP()],
    "a dictionary": {"name": "resnet18"},
    "a class": TinyMLP.__bases__[0],
    "a callable that returns a string": lambda: "resnet18",
    "a callable that wants arguments": lambda name: None,
    "an empty name": "",
    "a misspelt name": "resnet_18",
    "a misspelt name of bundled weights": "bundled:efficientnet",
    "a name without weights": "test_vit.nothing",
    "a folder that does not exist": "local-dir:/nowhere/model",
    "a file that does not exist": "resnet18@/nowhere/weights.safetensors",
    "a file of no architecture": "resnet_x@" + __file__,
    "a file without an architecture": __file__,
    "a file that holds no weights": "resnet18@" + __file__,
    "a module that returns None": Nothing(),
    "a module that returns a number": Scalar(),
    "a module for another size": nn.Sequential(nn.Flatten(), nn.Linear(7, 4)),
    "a module for texts": nn.Embedding(10, 4),
}


def backbone_cases():
    for name, backbone in BACKBONES.items():
        yield Case("backbones", name, "fit(X, y)", "backbone|argument", ignoring(
            lambda b=backbone: skve.SVEClassifier(b, image_size=16, max_epochs=1).fit(X, Y)))  # fmt: skip

    yield Case("backbones", "convolutions alone, in int8", "fit(X, y)", "backbone", ignoring(
        lambda: toy_classifier(TinyCNN(), backbone_dtype="int8").fit(X, Y)))  # fmt: skip

    def pickled(folder):
        import pickle

        (folder / "weights.pth").write_bytes(pickle.dumps({"a": print}))
        skve.SVEClassifier(f"resnet18@{folder / 'weights.pth'}").fit(X, Y)

    def other(folder):
        safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, folder / "weights.safetensors")
        skve.SVEClassifier(f"test_vit@{folder / 'weights.safetensors'}").fit(X, Y)

    yield Case("backbones", "a pickle with code", "fit(X, y)", "backbone", pickled)
    yield Case("backbones", "weights of another architecture", "fit(X, y)", "backbone", other)
    yield Case(
        "backbones", "an empty folder", "fit(X, y)", "backbone", lambda f: skve.SVEClassifier(str(f)).fit(X, Y)
    )


# --------------------------------------------------------------------------------------- saved folders


def edit(folder, change, seal=True):
    document = json.loads((folder / "skve.json").read_text())
    change(document)
    if seal:
        document["sha256"] = saving.document_hash(document)
    (folder / "skve.json").write_text(json.dumps(document))


def put(*path, value):
    """Return a change of skve.json that puts a value at a path."""

    def change(document):
        for part in path[:-1]:
            document = document[part]
        document[path[-1]] = value

    return lambda folder: edit(folder, change)


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def members(change):
    """Return a change of the file of members, with hashes that fit."""

    def apply(folder):
        path = next(folder.glob("members-*"))
        data = change(path.read_bytes())
        path.write_bytes(data)
        put("files", "members", "sha256", value=hashlib.sha256(data).hexdigest())(folder)

    return apply


def arrays(change):
    return members(lambda data: safetensors.numpy.save(change(safetensors.numpy.load(data))))


def remove_members(folder):
    next(folder.glob("members-*")).unlink()


def cut_members(folder):
    path = next(folder.glob("members-*"))
    path.write_bytes(path.read_bytes()[:-1])


SAVED = {
    "skve.json missing": lambda folder: (folder / "skve.json").unlink(),
    "skve.json empty": write("skve.json", b""),
    "skve.json cut": lambda folder: (folder / "skve.json").write_bytes((folder / "skve.json").read_bytes()[:20]),
    "skve.json of 100000 nested lists": write("skve.json", b"[" * 100_000),
    "skve.json of a number of 10000 digits": write("skve.json", b"9" * 10_000),
    "skve.json that is a list": write("skve.json", b"[]"),
    "skve.json of other bytes": write("skve.json", b"\xff\xfe"),
    "skve.json of 2 TiB": lambda folder: open(folder / "skve.json", "wb").truncate(2**41),  # noqa: SIM115
    "label changed without the hash": lambda folder: edit(
        folder, lambda document: document["classes"]["values"].reverse(), seal=False
    ),
    "newer format": lambda folder: edit(
        folder, lambda document: document.update(format_version=99, versions={"skve": "9.9"})
    ),
    "unknown class": put("class", value="os.system"),
    "members missing": remove_members,
    "members cut": cut_members,
    "members outside the folder": put("files", "members", "file", value="../members.safetensors"),
    "members at an absolute path": put("files", "members", "file", value="/etc/passwd"),
    "members with a header of 2^62 bytes": members(lambda data: (2**62).to_bytes(8, "little") + data[8:]),
    "members that are no safetensors": members(lambda data: b"\x80\x04."),
    "members with NaN": arrays(lambda a: {k: np.full_like(v, np.nan) for k, v in a.items()}),
    "members of float64": arrays(lambda a: {k: v.astype(np.float64) for k, v in a.items()}),
    "members of other shapes": arrays(lambda a: {k: v[..., :1].copy() for k, v in a.items()}),
    "members that overflow": arrays(lambda a: {k: np.full_like(v, 3e38) for k, v in a.items()}),
    "members of no head": arrays(lambda a: {k: v for k, v in a.items() if "head" not in k}),
    "members of another layer": arrays(lambda a: {**a, "log_ratios.x": a["head.bias"]}),
    "labels missing": put("classes", "values", value=[0, 1]),
    "labels twice": put("classes", "values", value=[0, 0, 1]),
    "labels of a type of 1 GB": put("classes", "dtype", value="U268435455"),
    "temperature of 0": put("temperature", value=0.0),
    "images of 10^6 pixels": put("preprocess", "input_size", value=[3, 10**6, 10**6]),
    "unknown interpolation": put("preprocess", "interpolation", value="fastest"),
    "deviation of 0": put("preprocess", "std", value=[0, 0, 0]),
    "unknown ensemble": put("state", "ensemble", value="pickle"),
    "negative batch": put("state", "batch_size", value=-1),
    "layer without fingerprint": put("state", "fingerprints", value={}),
    "features of neither kind": put("state", "own_features", value="yes"),
    "shared layer that is not there": put("state", "shareable", value=["os.system"]),
    "parameter that is not there": put("parameters", "shell", value="rm"),
    "parameter of another type": put("parameters", "n_members", value="four"),
    "attribute that replaces a method": put("fitted", "predict", value="x"),
    "backbone of other weights": put("state", "backbone", "sha256", value="0" * 64),
}  # fmt: skip


def saved_cases():
    for name, change in SAVED.items():

        def load(folder, change=change):
            target = folder / "model"
            fitted().save(target)
            change(target)
            skve.load(target, backbone=fitted().backbone).predict(X)

        yield Case(
            "saved folders",
            name,
            "skve.load(folder)",
            r"skve\.json|members|backbone|X\[0\]|of layer",
            load,
        )
    others = {
        "folder that does not exist": lambda folder: skve.load(folder / "nowhere"),
        "empty folder": skve.load,
        "file instead of a folder": lambda folder: fitted().save((folder / "x").open("w").name),
        "model without its module": lambda folder: (fitted().save(folder), skve.load(folder)),
        "another module": lambda folder: (fitted().save(folder), skve.load(folder, backbone=TinyMLP(seed=1))),
        "something else as module": lambda folder: (fitted().save(folder), skve.load(folder, backbone=3)),
        "module that cannot be embedded": lambda folder: fitted().save(folder, include_backbone=True),
        "save before fit": lambda folder: toy_classifier().save(folder),
        "prediction before fit": lambda folder: toy_classifier().predict(X),
    }
    for name, run in others.items():
        call = {"file": "save(folder)", "modu": "save(folder, include_backbone=True)", "save": "save(folder)"}.get(
            name[:4], "predict(X)" if "prediction" in name else "skve.load(folder)"
        )
        yield Case("saved folders", name, call, "folder|fitted|backbone|skve|file", run)


# ----------------------------------------------------------------------------------------------- texts

BAD_TEXTS = {
    "one text": "to be",
    "empty list": [],
    "None": None,
    "numbers": [1, 2, 3, 4],
    "missing text": ["a", "b", None, "c"],
    "NaN": ["a", "b", float("nan"), "c"],
    "bytes": [b"a", b"b", b"c", b"d"],
    "tokens": [["a", "b"]] * 4,
    "pairs and texts": ["a", "b", ("c", "d"), "e"],
    "triples": [("a", "b", "c")] * 4,
    "three columns": pd.DataFrame({"a": TEXTS, "b": TEXTS, "c": TEXTS}),
    "broken Unicode": ["a", "b", "\ud800", "c"],
    "array of numbers": np.arange(4),
    "images": np.zeros((4, 8, 8)),
}
TEXT_PARAMETERS = [
    {"max_length": 0}, {"max_length": 10**6}, {"pooling": "max"}, {"truncation_side": "both"}, {"head": "mlp"},
    {"backbone_dtype": "float16"}, {"label_words": [" a", " b"]}, {"multiple_choice": True}, {"layers": "last:9"},
    {"head": "lm", "label_words": [" a"]}, {"backbone_dtype": "int4", "ensemble": "single"},
]  # fmt: skip
TEXT_BACKBONES = {
    "a module without tokenizer": lambda: pair()[0],
    "a pair in the wrong order": lambda: pair()[::-1],
    "a number": lambda: 3,
    "a folder that does not exist": lambda: "/nowhere/model",
    "a file": lambda: __file__,
    "a misspelt name of bundled weights": lambda: "bundled:MiniLM",
}


@functools.cache
def pair():
    return make_toy_text_backbone("bert")


def text(backbone=None, **parameters):
    settings = {"n_members": 1, "max_epochs": 1, "batch_size": 4, "device": "cpu", "random_state": 0, **parameters}
    return skve.SVETextClassifier(pair() if backbone is None else backbone, **settings)


def text_cases():
    for name, bad in BAD_TEXTS.items():
        yield Case("texts", name, "fit(X, y)", r"\bX\b", ignoring(lambda b=bad: text().fit(b, LABELS)))
    for parameters in TEXT_PARAMETERS:
        name = ", ".join(f"{key}={value!r}" for key, value in parameters.items())
        names = "|".join(parameters)
        yield Case("texts", name, "fit(X, y)", names, ignoring(lambda p=parameters: text(**p).fit(TEXTS, LABELS)))
    for name, backbone in TEXT_BACKBONES.items():
        yield Case("texts", f"backbone: {name}", "fit(X, y)", "backbone", ignoring(
            lambda b=backbone: text(b()).fit(TEXTS, LABELS)))  # fmt: skip
    yield Case("texts", "pairs after single texts", "predict(X)", r"\bX\b", ignoring(
        lambda: text().fit(TEXTS, LABELS).predict([("a", "b")])))  # fmt: skip


# ------------------------------------------------------------------------------------------ deployment


class Branching(TinyMLP):
    """A forward with a branch on the values of a tensor, which no graph can hold."""

    def forward(self, x):
        return super().forward(x if bool(x.mean() > 0) else -x)


def deployment_cases():
    def with_ensemble(ensemble, **parameters):
        return toy_classifier(ensemble=ensemble, max_epochs=1, **parameters).fit(X, Y)

    distilled = {
        "one member": lambda: with_ensemble("sve", n_members=1).distill(X),
        "heads on the frozen backbone": lambda: with_ensemble("head").distill(X),
        "a student": lambda: fitted().distill(X).distill(X),
        "members with random signs": lambda: with_ensemble("batch", ensemble_params={"init": "signs"}).distill(X),
        "samples of another kind": lambda: fitted().distill(["a text"]),
    }
    for name, run in distilled.items():
        yield Case("deployment", f"distill: {name}", "distill(X)", r"^distill|init|\bX\b", ignoring(run))
    exported = {
        "opset=11": lambda folder: fitted().export(folder / "model.onnx", opset=11),
        "opset=True": lambda folder: fitted().export(folder / "model.onnx", opset=True),
        "weight_dtype='int4'": lambda folder: fitted().export(folder / "model.onnx", weight_dtype="int4"),
        "format='pickle'": lambda folder: fitted().export(folder / "model.onnx", format="pickle"),
        "a file of another kind": lambda folder: fitted().export(folder / "model.pkl"),
        "path=3": lambda folder: fitted().export(3),
        "a forward with a branch": lambda folder: (
            toy_classifier(Branching(), max_epochs=1).fit(X, Y).export(folder / "model.pt2", format="torch")
        ),
    }
    for name, run in exported.items():
        yield Case(
            "deployment", f"export: {name}", "export(path)", "^(opset|weight_dtype|format|path|backbone) must", run
        )


CASES = [
    *image_cases(),
    *file_cases(),
    *label_cases(),
    *parameter_cases(),
    *backbone_cases(),
    *saved_cases(),
    *text_cases(),
    *deployment_cases(),
]


def note():
    """Return what the messages depend on."""
    return ", ".join(f"{name} {version}" for name, version in VERSIONS.items())


if __name__ == "__main__":
    torch.set_num_threads(1)
    with open(TABLE, "w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(case.row() for case in CASES)
        writer.writerow(dict.fromkeys(COLUMNS, "") | {"group": "written with", "message": note()})
    print(f"{len(CASES)} cases")
