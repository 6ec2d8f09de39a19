"""Exported graphs: what they compute, against the estimator; files; what cannot be exported."""

import json
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from torch import nn

import skve
from skve import SVEClassifier, SVETextClassifier
from skve._ensembles import RULES
from skve._fitted import exporting
from skve.exceptions import BackboneError
from skve.testing import ToyClassifier, make_toy_backbone, make_toy_text_backbone
from tests.toys import SIDE, TinyCNN, TinyTransformer, TorchEncoder, toy_classifier, toy_images

writes_onnx = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14), reason="torch 2.6 cannot write open axes to ONNX"
)
IMAGES, LABELS = toy_images(per_class=4)
TEXTS = ["to be", "or not", "to be so", "or not so to be or"] * 3
ANSWERS = ["yes", "no"] * 6
OTHERS = ["be", "not so or be to be so", "or or or"]
CLOSE = 1e-4
RESIZED = 0.02  # where the graph resizes: a level of a few pixels, and novelty changes most


def images_of(ensemble="sve", backbone=None, **parameters):
    backbone = TinyCNN() if backbone is None else backbone
    return toy_classifier(backbone, ensemble=ensemble, **{"max_steps": 3, "max_epochs": None, **parameters}).fit(
        IMAGES, LABELS
    )


def texts_of(ensemble="sve", family="bert", **parameters):
    settings = {"n_members": 2, "max_steps": 3, "device": "cpu", "random_state": 0, "predict_precision": "float32"}
    backbone = make_toy_text_backbone(family, lm=parameters.get("head") == "lm")
    return SVETextClassifier(backbone, ensemble=ensemble, **{**settings, **parameters}).fit(TEXTS, ANSWERS)


def graph_of(classifier):
    """The module that is exported, of images without resizing."""
    state = classifier._state
    backbone = classifier._load_backbone(state.spec, classifier.preprocess_)
    inputs = classifier._exported_inputs(backbone, resize=False)
    return exporting.Graph(state, backbone, inputs.prepare, classifier.temperature_).eval()


def pipeline_of(classifier, samples):
    backbone = classifier._load_backbone(classifier._state.spec, classifier.preprocess_)
    items = classifier._check_inputs(samples, reset=False)
    return classifier._make_pipeline(items, backbone, torch.device("cpu"), training=False)


def tokens_of(classifier, texts):
    """What a program with the tokenizer would hand over."""
    pipeline = pipeline_of(classifier, texts)
    return pipeline.prepare(pipeline.load(np.arange(len(texts))), None)


def pixels_of(classifier, images):
    """What a program that resizes and crops as the estimator does would hand over."""
    return pipeline_of(classifier, images).load(np.arange(len(images))).permute(0, 2, 3, 1).contiguous()


def assert_same(outputs, classifier, X, tolerance=CLOSE):
    """Assert that a graph's outputs are the estimator's predictions."""
    uncertainty = classifier.predict_uncertainty(X)
    expected = {"member_proba": classifier.predict_proba_members(X), "proba": classifier.predict_proba(X)}
    expected |= {name: getattr(uncertainty, name) for name in ("total", "aleatoric", "epistemic", "novelty")}
    assert set(outputs) == set(expected)
    for name, values in expected.items():
        found = np.asarray(outputs[name])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, values, rtol=0, atol=tolerance, err_msg=name)


def run_onnx(path, inputs):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {name: values.numpy() for name, values in inputs.items()}
    assert set(feed) >= {value.name for value in session.get_inputs()}
    feed = {value.name: feed[value.name] for value in session.get_inputs()}
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, feed), strict=True))


# ------------------------------------------------------------------------------------- what graphs compute


@pytest.mark.parametrize("ensemble", RULES)
def test__graph__images__predictions_of_each_ensemble(ensemble):
    classifier = images_of(ensemble)
    assert_same(graph_of(classifier)(pixels_of(classifier, IMAGES)), classifier, IMAGES)


@pytest.mark.parametrize("ensemble", RULES)
def test__graph__texts__predictions_of_each_ensemble(ensemble):
    classifier = texts_of(ensemble)
    assert_same(graph_of(classifier)(tokens_of(classifier, OTHERS)), classifier, OTHERS)


@pytest.mark.parametrize("backbone", [TinyTransformer, TorchEncoder])
@pytest.mark.parametrize("ensemble", ["sve", "bias", "deep"])
def test__graph__torchs_own_attention__predictions(backbone, ensemble):
    classifier = images_of(ensemble, backbone(), train_bias=True)
    assert_same(graph_of(classifier)(pixels_of(classifier, IMAGES)), classifier, IMAGES)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("ensemble", ["sve", "scale", "bias", "lora", "head"])
def test__graph__quantised_weights__in_float_and_predictions_of_the_members(ensemble, dtype):
    classifier = images_of(ensemble, TinyTransformer(), backbone_dtype=dtype)
    assert_same(graph_of(classifier)(pixels_of(classifier, IMAGES)), classifier, IMAGES)
    classifier = texts_of(ensemble, backbone_dtype=dtype)
    assert_same(graph_of(classifier)(tokens_of(classifier, OTHERS)), classifier, OTHERS)


@pytest.mark.parametrize("data", [None, TEXTS])
def test__graph__student__one_network_and_its_predictions(data):
    classifier = texts_of(n_members=3).distill(data)
    graph = graph_of(classifier)
    assert len(graph.bodies) == 1
    assert (graph.frozen is None) == (data is not None)
    assert_same(graph(tokens_of(classifier, OTHERS)), classifier, OTHERS)


def test__graph__temperature_and_regression__calibrated_prediction():
    X, y = load_iris(return_X_y=True)
    X = X.astype(np.float32)
    settings = {"n_members": 3, "ensemble_params": {"folds": 3}, "random_state": 0, "head_lr": 1e-3, "max_steps": 20}
    classifier = ToyClassifier(**settings).fit(X, y)
    assert classifier.temperature_ != 1
    assert classifier.regression_share_ > 0
    assert_same(graph_of(classifier)(torch.tensor(X)), classifier, X)


@pytest.mark.parametrize("temperature", [0.3, 4.0])
def test__graph__temperature__as_the_estimator(temperature):
    classifier = images_of()
    classifier.temperature_ = temperature
    assert_same(graph_of(classifier)(pixels_of(classifier, IMAGES)), classifier, IMAGES)


def test__graph__multiple_choice__impossible_classes_have_none():
    classifier, prompts = letters_of()
    inputs = tokens_of(classifier, prompts)
    assert inputs["impossible"].sum() == 3
    assert_same(graph_of(classifier)(inputs), classifier, prompts)


QUESTIONS = [("to be", ["or", "not to be"]), ("to", ["be so", "not", "or"]), ("so not", ["be", "or", "to", "is"])] * 2


def choices_of(**parameters):
    settings = {"n_members": 2, "max_steps": 2, "device": "cpu", "random_state": 0, "predict_precision": "float32"}
    backbone = make_toy_text_backbone("llama", lm=True)
    return SVETextClassifier(backbone, head="likelihood", **{**settings, **parameters}).fit(QUESTIONS, [0, 2, 3] * 2)


@pytest.mark.parametrize("parameters", [{}, {"ensemble": "head"}, {"backbone_dtype": "int8"}])
def test__graph__choices_scored_by_their_texts__predictions(parameters):
    classifier = choices_of(**parameters)
    assert_same(graph_of(classifier)(tokens_of(classifier, QUESTIONS)), classifier, QUESTIONS)


def test__graph__student_of_choices__its_predictions():
    classifier = choices_of(n_members=3).distill(QUESTIONS)
    assert_same(graph_of(classifier)(tokens_of(classifier, QUESTIONS)), classifier, QUESTIONS)


@writes_onnx
@pytest.mark.slow
def test__export__onnx_of_choices__runs_in_onnxruntime_for_any_length(tmp_path):
    classifier = choices_of()
    classifier.export(tmp_path / "model.onnx")
    longer = [("to be or not to be", ["so", "or not so to be", "be", "to"])]
    for questions in (QUESTIONS, longer):
        assert_same(run_onnx(tmp_path / "model.onnx", tokens_of(classifier, questions)), classifier, questions)
    document = json.loads((tmp_path / "model.json").read_text())
    assert set(document["inputs"]) == {"input_ids", "attention_mask", "scored", "impossible"}
    assert document["tokenizer"]["choices"] == 4


def test__export__torch_of_choices__reads_back_and_predicts(tmp_path):
    classifier = choices_of()
    classifier.export(tmp_path / "model.pt2", format="torch")
    graph = torch.export.load(tmp_path / "model.pt2").module()
    assert_same(graph(tokens_of(classifier, QUESTIONS)), classifier, QUESTIONS)


# --------------------------------------------------------------------------------------------- the files


@writes_onnx
def test__export__onnx_of_images__runs_in_onnxruntime(tmp_path):
    classifier = images_of()
    classifier.export(tmp_path / "model.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.onnx"]
    larger = np.repeat(np.repeat(IMAGES[:1], 3, axis=1), 2, axis=2)  # another number of samples and another size
    for images in (IMAGES, larger):
        outputs = run_onnx(tmp_path / "model.onnx", {"images": torch.tensor(images)})
        assert_same(outputs, classifier, images, RESIZED)
    document = json.loads((tmp_path / "model.json").read_text())
    assert document["classes"] == [0, 1, 2]
    assert document["preprocess"]["inside_graph"][0] == "resizing"
    assert document["thresholds"] == {"familiar_up_to_novelty": 0.95}
    assert document["opset"] == 18


@writes_onnx
def test__export__onnx_without_resize__equal(tmp_path):
    classifier = images_of()
    classifier.export(tmp_path / "model.onnx", resize=False)
    for images in (IMAGES, IMAGES[:1]):
        outputs = run_onnx(tmp_path / "model.onnx", {"images": pixels_of(classifier, images)})
        assert_same(outputs, classifier, images)


@writes_onnx
@pytest.mark.slow
def test__export__onnx_of_texts__runs_in_onnxruntime_for_any_length(tmp_path):
    classifier = texts_of()
    classifier.export(tmp_path / "model.onnx")
    for texts in (OTHERS, OTHERS[:1], OTHERS[1:2]):
        assert_same(run_onnx(tmp_path / "model.onnx", tokens_of(classifier, texts)), classifier, texts)
    document = json.loads((tmp_path / "model.json").read_text())
    assert set(document["inputs"]) == set(tokens_of(classifier, OTHERS))
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(document["tokenizer"]["definition"]))
    expected = tokens_of(classifier, OTHERS[:1])["input_ids"][0].tolist()
    assert tokenizer.encode(OTHERS[0]).ids == expected


@pytest.mark.slow
@pytest.mark.parametrize("ensemble", RULES)
@pytest.mark.parametrize("kind", ["images", "texts"])
def test__export__onnx_of_each_ensemble__runs_in_onnxruntime(ensemble, kind, tmp_path):
    classifier = images_of(ensemble) if kind == "images" else texts_of(ensemble)
    samples = IMAGES if kind == "images" else OTHERS
    inputs = {"images": pixels_of(classifier, IMAGES)} if kind == "images" else tokens_of(classifier, OTHERS)
    for one in (classifier, *(() if ensemble in ("single", "head", "laplace") else (classifier.distill(samples),))):
        one.export(tmp_path / "model.onnx", resize=False)
        assert_same(run_onnx(tmp_path / "model.onnx", inputs), one, samples)


def letters_of():
    prompts = ["to\nbe. to be\nor. or not\nnot. so", "to\nbe. be\nor. not"] * 3
    backbone = make_toy_text_backbone("gpt2", lm=True)
    settings = {"n_members": 2, "max_steps": 2, "device": "cpu", "random_state": 0, "predict_precision": "float32"}
    words = {"label_words": [" be", " not", " or"], "multiple_choice": True}
    classifier = SVETextClassifier(backbone, head="lm", **words, **settings)
    return classifier.fit(prompts, ["n", "o"] * 2 + ["b", "o"]), prompts


@pytest.mark.slow
@pytest.mark.parametrize("ensemble", ["sve", "scale"])
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test__export__onnx_of_quantised_weights__runs_in_onnxruntime(ensemble, dtype, tmp_path):
    classifier = texts_of(ensemble, backbone_dtype=dtype)
    classifier.export(tmp_path / "model.onnx")
    assert_same(run_onnx(tmp_path / "model.onnx", tokens_of(classifier, OTHERS)), classifier, OTHERS)


@pytest.mark.parametrize("kind", ["images", pytest.param("texts", marks=pytest.mark.slow)])
def test__export__weights_in_eight_bits__smaller_and_close(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_LARGEST_FLOAT_MATRIX", 64)
    classifier = images_of() if kind == "images" else texts_of()
    samples = IMAGES if kind == "images" else OTHERS
    inputs = pixels_of(classifier, IMAGES) if kind == "images" else tokens_of(classifier, OTHERS)
    n_bytes, found, before = {}, {}, classifier.predict_proba_members(samples)
    for dtype in ("float32", "int8"):
        classifier.export(tmp_path / "model.pt2", format="torch", resize=False, weight_dtype=dtype)
        assert json.loads((tmp_path / "model.json").read_text())["weight_dtype"] == dtype
        program = torch.export.load(tmp_path / "model.pt2")
        n_bytes[dtype] = sum(tensor.nbytes for tensor in program.state_dict.values())
        found[dtype] = program.module()(inputs)["member_proba"].numpy()
    assert n_bytes["int8"] < 0.7 * n_bytes["float32"]  # the matrices of toys are small beside all else
    np.testing.assert_allclose(found["int8"], before, atol=0.05)
    assert np.array_equal(classifier.predict_proba_members(samples), before)  # only the file is in eight bits
    assert np.abs(found["int8"] - found["float32"]).max() > 1e-6


@writes_onnx
def test__export__onnx_in_eight_bits__a_quarter_of_the_size_and_runs_in_onnxruntime(tmp_path):
    onnx = pytest.importorskip("onnx")
    X, y = load_iris(return_X_y=True)
    backbone = make_toy_backbone(4, width=128)
    classifier = ToyClassifier(backbone, n_members=2, max_steps=3, random_state=0).fit(X, y)
    sizes = {}
    for dtype in ("float32", "int8"):
        classifier.export(tmp_path / f"{dtype}.onnx", weight_dtype=dtype)
        classifier.export(tmp_path / f"{dtype}.pt2", format="torch", weight_dtype=dtype)
        weights = onnx.load(tmp_path / f"{dtype}.onnx").graph.initializer
        sizes[dtype] = {len(one.raw_data) for one in weights if list(one.dims) == [128, 128]}
        outputs = torch.export.load(tmp_path / f"{dtype}.pt2").module()(torch.tensor(X).float())
        (name,) = json.loads((tmp_path / f"{dtype}.json").read_text())["inputs"]
        for output, values in run_onnx(tmp_path / f"{dtype}.onnx", {name: torch.tensor(X).float()}).items():
            np.testing.assert_allclose(values, outputs[output].numpy(), atol=CLOSE, err_msg=output)
        np.testing.assert_allclose(outputs["proba"].numpy(), classifier.predict_proba(X), atol=0.02)
    assert 4 * 128 * 128 in sizes["float32"] - sizes["int8"]
    assert 128 * 128 in sizes["int8"]


def test__eight_bits__shared_weights__stay_shared(monkeypatch):
    monkeypatch.setattr(exporting, "_LARGEST_FLOAT_MATRIX", 0)
    shared = nn.Linear(3, 4)
    graph = nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 4), nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)])
    graph[0].weight = graph[1].weight = shared.weight
    weights = [part.weight.detach().clone() for part in graph]
    exporting._keep_in_eight_bits(graph)
    assert graph[0].parametrizations.weight.original is graph[1].parametrizations.weight.original
    for part, weight in zip(graph, weights, strict=True):
        rows = weight.flatten(1) if weight.dim() > 1 else weight[:, None]
        error = (part.weight - weight).abs().view_as(rows).amax(1)
        bound = rows.abs().amax(1) / 127 / 2 if weight.dim() > 1 else torch.zeros(3)
        assert (error <= bound * 1.001).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["letters", "student without samples", "student of choices"])
def test__export__onnx_of_choices_and_students__runs_in_onnxruntime(kind, tmp_path):
    if kind == "letters":
        classifier, samples = letters_of()
    elif kind == "student of choices":
        classifier, samples = choices_of(n_members=3).distill(QUESTIONS), QUESTIONS
    else:
        classifier, samples = texts_of(n_members=3).distill(), OTHERS
    classifier.export(tmp_path / "model.onnx")
    assert_same(run_onnx(tmp_path / "model.onnx", tokens_of(classifier, samples)), classifier, samples)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "distilbert", "roberta", "llama", "t5"])
def test__export__onnx_of_each_family__runs_in_onnxruntime(family, tmp_path):
    classifier = texts_of(family=family)
    classifier.export(tmp_path / "model.onnx")
    assert_same(run_onnx(tmp_path / "model.onnx", tokens_of(classifier, OTHERS)), classifier, OTHERS)


@pytest.mark.slow
def test__export__pretrained_images__runs_in_onnxruntime(tmp_path):
    from skve.datasets import load_fashion

    data = load_fashion()
    classifier = SVEClassifier(n_members=2, image_size=32, max_steps=4, device="cpu", random_state=0)
    classifier.fit(data.images[:40], data.target[:40])
    classifier.export(tmp_path / "model.onnx")
    images = np.repeat(data.images_test[:5, ..., None], 3, axis=-1)
    outputs = run_onnx(tmp_path / "model.onnx", {"images": torch.tensor(images)})
    assert_same(outputs, classifier, images, RESIZED)
    classifier.export(tmp_path / "exact.onnx", resize=False)
    inputs = {"images": pixels_of(classifier, images)}
    assert_same(run_onnx(tmp_path / "exact.onnx", inputs), classifier, images)


@pytest.mark.slow
def test__export__pretrained_texts__runs_in_onnxruntime(tmp_path):
    classifier = SVETextClassifier(
        n_members=2, layers="last:1", max_steps=4, device="cpu", random_state=0, predict_precision="float32"
    ).fit(TEXTS, ANSWERS)
    classifier.export(tmp_path / "model.onnx")
    assert_same(run_onnx(tmp_path / "model.onnx", tokens_of(classifier, OTHERS)), classifier, OTHERS)
    size = (tmp_path / "model.onnx").stat().st_size
    assert size < 1.3 * 91e6  # the weights that members share stand in it once


def test__export__torch__reads_back_and_predicts(tmp_path):
    classifier = texts_of()
    classifier.export(tmp_path / "model.pt2", format="torch")
    graph = torch.export.load(tmp_path / "model.pt2").module()
    for texts in (OTHERS, OTHERS[:1]):
        assert_same(graph(tokens_of(classifier, texts)), classifier, texts)
    assert json.loads((tmp_path / "model.json").read_text())["format"] == "torch"


def test__export__selective__thresholds_in_the_settings(tmp_path):
    selective = skve.SelectiveClassifier(images_of(), coverage=0.5, prefit=True, abstention="ask a person")
    selective.fit(IMAGES, LABELS)
    selective.export(tmp_path / "model.pt2", format="torch")
    thresholds = json.loads((tmp_path / "model.json").read_text())["thresholds"]
    assert thresholds["threshold"] == selective.threshold_
    assert thresholds["uncertainty"] == "total"
    assert thresholds["computed_from"] == "proba"
    assert thresholds["abstention"] == "ask a person"


# ------------------------------------------------------------------------------------- what cannot be exported


class Untraceable(nn.Module):
    """A forward with a branch that depends on the values of its input."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, rows):
        return self.layer(rows) if bool((rows > 0).any()) else self.layer(-rows)


@pytest.fixture(scope="module")
def small():
    return ToyClassifier(n_members=2, max_steps=2, random_state=0).fit(*load_iris(return_X_y=True))


def untraceable_images():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 4), Untraceable())


@pytest.mark.parametrize("format", ["torch", "onnx"])
def test__export__callable_whose_module_cannot_be_traced__named_with_what_works(tmp_path, format):
    classifier = toy_classifier(untraceable_images, max_steps=1, max_epochs=None).fit(IMAGES, LABELS)
    with pytest.raises(BackboneError, match=r"torch\.export can trace, got .*skve\.load"):
        classifier.export(tmp_path / f"model.{'pt2' if format == 'torch' else format}", format=format)
    assert not list(tmp_path.iterdir())


def test__export__untraceable_backbone__named_with_what_works(tmp_path):
    classifier = ToyClassifier(Untraceable(), n_members=2, max_steps=2).fit(*load_iris(return_X_y=True))
    with pytest.raises(BackboneError, match=r"torch\.export can trace, got 'Untraceable', .*skve\.load"):
        classifier.export(tmp_path / "model.pt2", format="torch")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("opset", [11, 17, "18", True, 1000])
def test__export__opset__named(small, tmp_path, opset):
    with pytest.raises(ValueError, match=rf"^opset must be .* got {opset!r}"):
        small.export(tmp_path / "model.onnx", opset=opset)


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test__export__package_missing__says_what_to_install(small, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"without {package}\. Install them: pip install '.\[export\]'"):
        small.export(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("path", "settings", "error", "message"),
    [
        ("model.pb", {}, ValueError, "path must end in '.onnx'"),
        ("model.onnx", {"format": "torch"}, ValueError, "path must end in '.pt2'"),
        ("model.onnx", {"format": "tflite"}, ValueError, "format must be one of"),
        (None, {}, TypeError, "path must be a path, got None"),
    ],
)
def test__export__path_and_format__named(small, path, settings, error, message):
    with pytest.raises(error, match=message):
        small.export(path, **settings)


def test__export__too_large_for_onnx__says_what_works(small, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_LARGEST_ONNX", 1000)
    with pytest.raises(ValueError, match=r"less than 2 GiB, got .* format='torch'"):
        small.export(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test__export__not_fitted__says_so(tmp_path):
    with pytest.raises(NotFittedError):
        ToyClassifier().export(tmp_path / "model.onnx")


def test__export__fails_halfway__older_files_stay(small, tmp_path, monkeypatch):
    small.export(tmp_path / "model.pt2", format="torch")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def broken(program, path):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch.export, "save", broken)
    with pytest.raises(OSError, match="No space"):
        small.export(tmp_path / "model.pt2", format="torch")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
