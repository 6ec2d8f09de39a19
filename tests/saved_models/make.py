"""Save a fitted model of each kind, with its predictions: ``python tests/saved_models/make.py FOLDER``.

The folder of a version, as ``tests/saved_models/0.1``, is made once, by that version, and never again: it shows that
later versions read what this one saved. Backbones are toys with random weights, embedded in each model if possible.

Run it with the lowest version of transformers that pyproject.toml promises (0.1: 4.57.1): version 4 does not read the
tokenizers that version 5 writes, version 5 reads both.
"""

import contextlib
import json
import pathlib
import sys
import tempfile
import warnings

import numpy as np
import safetensors.torch
import timm
import torch
from timm.models import register_model
from torch import nn

SIDE = 16  # of the images, in pixels
ARCHITECTURE = "skve_saved_toy"  # what the saved models name: it stays as it is


@register_model
def skve_saved_toy(pretrained=False, **options):
    """Make a small convolutional network with random weights; timm knows it by this name, so that it embeds."""
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 12, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 10),
        nn.Tanh(),
    )
    module.pretrained_cfg = {"architecture": ARCHITECTURE, "input_size": (3, SIDE, SIDE), "crop_pct": 1.0}
    return module


ENSEMBLES = {
    "sve": {"ensemble": "sve"},
    "sve-random-basis": {"ensemble": "sve", "ensemble_params": {"basis": "random"}},
    "sve-biases": {"ensemble": "sve", "train_bias": True},
    "sve-temperature": {"ensemble": "sve", "calibrate": "temperature", "validation_fraction": 0.3, "max_epochs": 1},
    "sve-lora": {"ensemble": "sve+lora", "ensemble_params": {"rank": 2, "lora_lr": 0.02}, "train_bias": True},
    "scale": {"ensemble": "scale"},
    "bias": {"ensemble": "bias"},
    "lora": {"ensemble": "lora", "ensemble_params": {"rank": 2, "scale": 0.5}},
    "batch": {"ensemble": "batch", "ensemble_params": {"init": "signs"}},
    "dropout": {"ensemble": "dropout", "ensemble_params": {"rate": 0.2}},
    "snapshot": {"ensemble": "snapshot"},
    "single": {"ensemble": "single"},
    "deep": {"ensemble": "deep", "ensemble_params": {"diversity": 0.5}},
    "head": {"ensemble": "head", "ensemble_params": {"order": "own", "bootstrap": True}},
}
LABELS = {
    "str": np.array(["bag é", "boot", "shirt"]),
    "object": np.array(["x", "yy", "zzz"], dtype=object),
    "int8": np.array([-3, 5, 70], dtype=np.int8),
    "float": np.array([1.0, 2.0, 7.0]),
    "bool": np.array([False, True]),
}


def data():
    """Return the inputs by name, and codes of three classes for each."""
    rng = np.random.default_rng(0)
    codes = rng.permutation(np.repeat(np.arange(3), 10))
    colours = np.array([[180, 80, 80], [80, 180, 80], [80, 80, 180]])[codes]
    images = (colours[:, None, None] + rng.normal(0, 60, (30, SIDE, SIDE, 3))).clip(0, 255).astype(np.uint8)
    words = [["fine", "joy", "good"], ["dull", "bore", "bad"], ["so-so", "café", "3.5 €"]]
    texts = np.array([" ".join(rng.choice(words[code] + ["a", "the"], 4)) for code in codes])
    lists = ["\nA. x\nB. y" + ("\nC. z" if code == 2 else "") + "\nAnswer:" for code in codes]
    inputs = {
        "images": images,
        "floats": images.astype(np.float32) / np.float32(255),
        "rows": images.reshape(30, -1),
        "texts": texts,
        "pairs": np.stack([texts, texts[::-1]], axis=1),
        "masks": np.array([f"{text} [MASK]" for text in texts]),
        "choices": np.array([text[:16] + choices for text, choices in zip(texts, lists, strict=True)]),
    }
    return inputs, codes


def models():
    """Yield (name, unfitted classifier, name of its inputs, labels or None) of each model."""
    import skve
    from skve.testing import make_toy_text_backbone, make_toy_tokenizer

    settings = {"n_members": 2, "max_epochs": 2, "batch_size": 5, "member_lr": 0.05, "head_lr": 0.1}
    settings |= {"precision": "float32", "device": "cpu", "random_state": 0}

    def image(backbone=f"{ARCHITECTURE}@toy.safetensors", **parameters):
        return skve.SVEClassifier(backbone, augment=None, **{**settings, "image_size": SIDE, **parameters})

    size = {"hidden_size": 4, "num_hidden_layers": 1, "intermediate_size": 8, "max_position_embeddings": 64}
    gpt2 = {"n_embd": 4, "n_layer": 1, "n_positions": 64}

    def text(family="bert", **parameters):
        options = gpt2 if family == "gpt2" else size
        lm = parameters.get("head") == "lm"
        tokenizer = small(make_toy_tokenizer(encoder=family == "bert"))
        model, _ = make_toy_text_backbone(family, lm=lm, vocab_size=len(tokenizer), **options)
        return skve.SVETextClassifier((model, tokenizer), **{**settings, **parameters})

    for name, parameters in ENSEMBLES.items():
        yield f"image-{name}", image(**parameters), "images", None
        yield f"text-{name}", text(**parameters), "texts", None
    for kind, labels in LABELS.items():
        yield f"image-labels-{kind}", image(ensemble="head"), "images", labels
    yield "image-floats", image(ensemble="head"), "floats", None
    yield "image-rows", image(image_shape=(SIDE, SIDE, 3), ensemble="head"), "rows", None
    yield "image-batch-norm", image(ensemble="deep", ensemble_params={"train_batch_norm": True}), "images", None
    yield "image-module", image(toy_module(1)), "images", None
    yield "text-pairs", text(), "pairs", None
    yield "text-gpt2", text("gpt2"), "texts", None
    words = {"head": "lm", "label_words": [" A", " B", " C"], "head_lr": 1e-3}
    yield "text-lm-bert", text(**words), "masks", None
    yield "text-lm-gpt2", text("gpt2", multiple_choice=True, truncation_side="left", **words), "choices", None


def small(tokenizer):
    """Return a toy tokenizer that knows the bytes of the texts here only: the whole alphabet takes much room."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    inputs, _ = data()
    texts = [" A B C", *inputs["texts"], *inputs["masks"], *inputs["choices"]]
    pieces = {name for text in texts for name in tokenizer.tokenize(text)}
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model, special = content["model"], [token["content"] for token in content["added_tokens"]]
    pieces |= {letter for piece in pieces - set(special) for letter in piece}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in pieces]
    kept = [name for name in model["vocab"] if name in pieces or name in special]
    model["vocab"] = {name: index for index, name in enumerate(kept)}
    options = {**tokenizer.special_tokens_map, "model_max_length": 64}
    options["model_input_names"] = list(tokenizer.model_input_names)
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), **options)


def toy_module(seed):
    """Make the toy of images with weights from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = timm.create_model(ARCHITECTURE)
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.data *= 2  # torch draws weights so small that little shows
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.1)
                part.running_var.uniform_(0.5, 1.5)
        return module.eval()


def make(folder):
    """Write the folders of all models and inputs-and-predictions.npz into a new folder."""
    folder = pathlib.Path(folder).resolve()
    folder.mkdir(parents=True)
    inputs, codes = data()
    arrays = {f"inputs/{name}": X[:5] for name, X in inputs.items()}
    arrays |= {f"module/{name}": tensor.numpy() for name, tensor in toy_module(1).state_dict().items()}
    says = {}
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):  # the models name the file of weights
        safetensors.torch.save_file(toy_module(0).state_dict(), "toy.safetensors")
        for name, model, kind, labels in models():
            y = codes if labels is None else labels[codes % len(labels)]
            model.fit(inputs[kind], y)
            if name == "image-module":
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "not saved, since they are no plain values", UserWarning)
                    model.save(folder / name)
            else:
                model.save(folder / name, include_backbone=True)
            X = inputs[kind][:5]
            says[name] = {"inputs": kind, "predict": model.predict(X).tolist(), **what_it_says(model)}
            arrays[f"{name}/predict_proba"] = model.predict_proba(X)
            arrays[f"{name}/predict_proba_members"] = model.predict_proba_members(X)
            if model.ratios_:
                arrays[f"{name}/ratios_"] = np.concatenate(list(model.ratios_.values()), axis=1)
    arrays["models"] = np.array(json.dumps(says))
    np.savez_compressed(folder / "inputs-and-predictions.npz", **arrays, allow_pickle=False)


def what_it_says(model):
    """Return what a fitted model says of itself, as plain values."""
    return {
        "class": type(model).__name__,
        "ensemble": model.ensemble,
        "classes_": model.classes_.tolist(),
        "dtype": model.classes_.dtype.str,
        "temperature_": model.temperature_,
        "n_member_parameters_": model.n_member_parameters_,
        "n_iter_": model.n_iter_,
        "ratios_": {layer: ratios.shape[1] for layer, ratios in model.ratios_.items()},
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    make(sys.argv[1])
