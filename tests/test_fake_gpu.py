"""Whole fits and predictions on CUDA devices that are not there: torch raises where two devices would meet."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from packaging.version import Version
from sklearn.base import clone
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_any, tree_leaves, tree_map

from skve import SVETextClassifier
from skve._backbones import cache
from skve.testing import make_toy_text_backbone
from tests.toys import TinyCNN, TinyMLP, TinyTransformer, toy_classifier

pytestmark = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.14"),
    reason="written against the fake tensors of torch 2.14; those of 2.6 start a CUDA driver and lose the device",
)

GPU, OTHER_GPU = torch.device("cuda:0"), torch.device("cuda:1")
CPU = torch.device("cpu")
NARROW = (torch.bfloat16, torch.float16)


def is_fake(value):
    return isinstance(value, FakeTensor)


def is_on_gpu(value):
    return is_fake(value) and value.fake_device.type == "cuda"


def to_cpp(device):
    """Return what autograd is told instead of a GPU: it would ask a CUDA driver for the device's stream."""
    return torch.device("meta", device.index) if device.type == "cuda" else device


def from_cpp(value):
    is_meta = isinstance(value, torch.device) and value.type == "meta"
    return torch.device("cuda", value.index or 0) if is_meta else value


class FakeGPU(FakeTensorMode):
    """Tensors on GPUs are fake ones; each has its numbers, `value`, on the CPU, where all is real.

    Autocast casts nothing here, since it takes the fake tensors for those of another device. The numbers are never
    narrower than float32, so that those of different dtypes go together.
    """

    avoid_device_init = True

    def __init__(self):
        super().__init__()
        self.inside = False
        self.on_gpu = set()  # dtypes that were there
        self.used = set()  # devices

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.inside:
            return super().__torch_dispatch__(func, types, args, kwargs)
        if func is torch.ops.prim.device.default:
            return to_cpp(args[0].fake_device)
        args, kwargs = tree_map(from_cpp, (args, kwargs))

        def of_gpu(value):
            return is_fake(value) or (isinstance(value, torch.device) and value.type == "cuda")

        def as_fake(value):
            return self.from_tensor(value) if isinstance(value, torch.Tensor) and not is_fake(value) else value

        def as_real(value):
            if is_fake(value):
                return value.value
            if isinstance(value, torch.dtype) and value in NARROW:
                return torch.float32
            return CPU if isinstance(value, torch.device) else value

        if not tree_any(of_gpu, (args, kwargs)):
            return func(*args, **kwargs)
        real_args, real_kwargs = tree_map(as_real, (args, kwargs))
        if func is torch.ops.aten._local_scalar_dense.default:
            return func(*real_args, **real_kwargs)
        if func is torch.ops.aten.copy_.default and not is_fake(args[0]):
            return func(*real_args, **real_kwargs)
        self.inside = True
        try:
            fake = super().__torch_dispatch__(func, types, *tree_map(as_fake, (args, kwargs)))
        finally:
            self.inside = False
        numbers = iter(tree_leaves(func(*real_args, **real_kwargs)))

        def with_numbers(value):
            number = next(numbers)
            if number is None:  # attention's weights, where they are not asked for
                return None
            if not is_on_gpu(value):
                return number.to(value.dtype) if is_fake(value) else number
            value.value = number.float() if number.dtype in NARROW else number
            self.on_gpu.add(value.dtype)
            self.used.add(value.fake_device)
            return value

        return tree_map(with_numbers, fake)


@pytest.fixture
def gpu(monkeypatch, empty_cache):
    """Let torch report two CUDA devices, and yield the mode in which they exist."""
    original = FakeTensor.__torch_dispatch__.__func__

    def dispatch(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default:
            return to_cpp(args[0].fake_device)
        return original(cls, func, types, args, kwargs or {})

    monkeypatch.setattr(FakeTensor, "__torch_dispatch__", classmethod(dispatch))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    with FakeGPU() as mode:
        yield mode


def image_classifier(toy=TinyCNN, **parameters):
    return toy_classifier(toy(), **{"device": "cuda:0", "max_epochs": 1, **parameters})


def check(mode, classifier, X, y, **kwargs):
    """Fit and predict, and see that the network was on the GPU."""
    classifier.fit(X, y, **kwargs)
    n_members = 1 if classifier.ensemble == "single" else classifier.n_members
    proba = classifier.predict_proba_members(X[:5])
    assert proba.shape == (n_members, 5, len(classifier.classes_))
    assert all(isinstance(value, np.ndarray) for value in classifier._state.arrays.values())
    assert torch.float32 in mode.on_gpu
    return classifier


def test__fake_gpu__two_devices_meet__raises(gpu):
    weight = torch.zeros(3, 3, device=GPU, requires_grad=True)
    (torch.zeros(3, 3).to(GPU) @ weight).sum().backward()
    assert weight.grad.device == GPU
    assert (weight + 2).cpu().tolist() == [[2.0] * 3] * 3
    with pytest.raises(RuntimeError, match=r"same device|two devices"):
        weight @ torch.zeros(3, 3)


@pytest.mark.parametrize(
    ("toy", "ensemble"),
    [(TinyCNN, "sve"), (TinyCNN, "single"), (TinyTransformer, "sve"), (TinyTransformer, "deep"), (TinyMLP, "head")],
)
def test__fit_and_predict__images_on_a_gpu__no_tensor_left_behind(gpu, images, toy, ensemble):
    check(gpu, image_classifier(toy, ensemble=ensemble, precision="auto"), *images)


RIVALS = ["scale", "bias", "lora", "batch", "sve+lora", "dropout", "snapshot"]


@pytest.mark.parametrize("ensemble", RIVALS)
def test__fit_and_predict__other_ensembles_on_a_gpu__no_tensor_left_behind(gpu, images, ensemble):
    for toy in (TinyCNN, TinyTransformer):
        check(gpu, image_classifier(toy, ensemble=ensemble, n_members=2, train_bias=True), *images)
    assert torch.float64 not in gpu.on_gpu


@pytest.mark.parametrize(
    "options",
    [{"order": "own", "bootstrap": True}, {"bootstrap": True}, {"diversity": 0.5}, {"basis": "random"}],
    ids=str,
)
def test__fit_and_predict__members_that_differ_on_a_gpu__no_tensor_left_behind(gpu, images, options):
    check(gpu, image_classifier(TinyMLP, n_members=3, ensemble_params=options), *images)


@pytest.mark.parametrize("chunk", [1, 2])
def test__fit_and_predict__chunks_of_members__no_tensor_left_behind(gpu, images, train_in_chunks, chunk):
    train_in_chunks(chunk)
    check(gpu, image_classifier(n_members=3, train_bias=True), *images)


@pytest.mark.parametrize(
    "options",
    [
        {"ensemble": "deep", "ensemble_params": {"train_batch_norm": True}},
        {"augment": "strong", "early_stopping": True, "validation_fraction": 0.3},
        {"precision": "bfloat16"},
        {"precision": "float16"},
    ],
    ids=str,
)
def test__fit_and_predict__options_on_a_gpu__no_tensor_left_behind(gpu, images, options):
    check(gpu, image_classifier(n_members=2, **options), *images)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test__fit_and_predict__quantised_weights_on_a_gpu__no_tensor_left_behind(gpu, images, train_in_chunks, dtype):
    for chunk in (1, 2):  # under torch.vmap, and without
        train_in_chunks(chunk)
        check(gpu, image_classifier(TinyTransformer, n_members=2, backbone_dtype=dtype), *images)
    assert torch.int8 in gpu.on_gpu


def test__fit__validation_and_going_on__no_tensor_left_behind(gpu, images, validation):
    classifier = image_classifier(warm_start=True)
    check(gpu, classifier, *images, X_val=validation[0], y_val=validation[1])
    check(gpu, classifier, *images)
    classifier.partial_fit(*images)


@pytest.mark.parametrize("form", ["folded", "two_factor"])
def test__fit_and_predict__both_forms_on_a_gpu__no_tensor_left_behind(gpu, images, monkeypatch, form):
    from skve._ensembles import forms

    monkeypatch.setattr(forms, "choose_form", lambda *args, **kwargs: form)
    check(gpu, image_classifier(TinyMLP), *images)


TEXTS = ["yes it is", "no", "yes yes", "it is not so", "yes", "no no no", "yes, so it is", "not"] * 2
LABELS = [1, 0, 1, 0, 1, 0, 1, 0] * 2


@pytest.mark.parametrize("options", [{"ensemble": "deep"}, {"activation_checkpointing": True}])
def test__fit_and_predict__texts_on_a_gpu__no_tensor_left_behind(gpu, options):
    classifier = SVETextClassifier(
        make_toy_text_backbone("bert"), n_members=2, max_epochs=1, batch_size=8, device="cuda:0", **options
    )
    check(gpu, classifier, TEXTS, LABELS)


def test__fit_and_predict__language_model_head_on_a_gpu__no_tensor_left_behind(gpu):
    classifier = SVETextClassifier(
        make_toy_text_backbone("gpt2", lm=True),
        head="lm",
        label_words={0: " no", 1: " yes"},
        n_members=2,
        max_epochs=1,
        batch_size=8,
        device="cuda:0",
    )
    check(gpu, classifier, TEXTS, LABELS)


@pytest.mark.parametrize("ensemble", ["sve", "deep"])
def test__fit_and_predict__float64__only_on_the_cpu(gpu, images, validation, ensemble):
    """Apple's MPS has no float64."""
    classifier = image_classifier(ensemble=ensemble, calibrate="temperature", augment="strong")
    check(gpu, classifier, *images, X_val=validation[0], y_val=validation[1])
    assert torch.float64 not in gpu.on_gpu


def test__out_of_memory__on_a_gpu__parts_of_the_batch_and_no_tensor_left_behind(gpu, images, monkeypatch):
    from skve import _ensembles

    original, sizes = _ensembles.Ensemble.chunk_logits, []

    def chunk_logits(self, inputs, indices):
        sizes.append((len(indices), len(inputs)))
        if len(indices) * len(inputs) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, inputs, indices)

    monkeypatch.setattr(_ensembles.Ensemble, "chunk_logits", chunk_logits)
    check(gpu, image_classifier(n_members=2), *images)
    assert sizes[:4] == [(2, 16), (1, 16), (1, 8), (1, 8)]
    assert (1, 16) not in sizes[2:]


def test__cache__copy_on_a_gpu__one_for_all_fits(gpu, images):
    for ensemble in ("sve", "head"):
        check(gpu, image_classifier(ensemble=ensemble), *images)
    (backbone,) = cache._cache.values()
    assert list(backbone.frozen._copies) == [(GPU,)]
    assert {parameter.device.type for parameter in backbone.module.parameters()} == {"cpu"}


# ------------------------------------------------------------------------------------ a backbone on two GPUs

BOTH = ["cuda:0", "cuda:1"]


def assert_alike(classifier, expected, X):
    """Compare two fits. Not member by member: where a gradient is zero but for rounding, AdamW goes anywhere."""
    np.testing.assert_allclose(classifier.history_["loss"], expected.history_["loss"], atol=1e-4)
    np.testing.assert_allclose(classifier.predict_proba(X), expected.predict_proba(X), atol=1e-3)
    np.testing.assert_allclose(classifier.transform(X), expected.transform(X), atol=1e-5)


def assert_as_on_cpu(mode, classifier, X, y):
    """Fit on both GPUs and on the CPU, and compare."""
    expected = clone(classifier).set_params(device="cpu").fit(X, y)
    check(mode, classifier.set_params(device=BOTH), X, y)
    assert mode.used == {GPU, OTHER_GPU}
    assert_alike(classifier, expected, X)


@pytest.mark.parametrize("ensemble", ["sve", "deep", "single", "head", *RIVALS])
def test__fit_and_predict__blocks_on_two_gpus__as_on_the_cpu(gpu, images, ensemble):
    clf = image_classifier(TinyTransformer, ensemble=ensemble, train_bias=True)
    assert_as_on_cpu(gpu, clf, *images)


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("options", [{"ensemble_params": {"diversity": 0.5}}, {"backbone_dtype": "int4"}], ids=str)
def test__fit_and_predict__options_on_two_gpus__as_on_the_cpu(gpu, images, train_in_chunks, options, chunk):
    train_in_chunks(chunk)
    assert_as_on_cpu(gpu, image_classifier(TinyTransformer, n_members=2, **options), *images)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {}),
        pytest.param("llama", {"activation_checkpointing": True}, marks=pytest.mark.slow),
        ("llama", {"layers": "last:1"}),
        ("bert", {}),
        *(pytest.param(kind, {}, marks=pytest.mark.slow) for kind in ("gpt2", "t5", "gemma2")),
    ],
    ids=str,
)
def test__fit_and_predict__texts_on_two_gpus__as_on_the_cpu(gpu, kind, options):
    clf = SVETextClassifier(
        make_toy_text_backbone(kind),
        n_members=2,
        max_steps=3,
        batch_size=8,
        precision="float32",
        random_state=0,
        **options,
    )
    assert_as_on_cpu(gpu, clf, TEXTS, LABELS)


def test__fit_and_predict__blocks_on_two_gpus__each_with_its_members_numbers(gpu, images):
    clf = image_classifier(TinyTransformer, device=BOTH, warm_start=True)
    clf.fit(*images).partial_fit(*images)
    (backbone,) = cache._cache.values()
    (there,) = backbone.frozen._copies.values()
    assert there.devices == (GPU, OTHER_GPU)
    (member, *_) = clf._state.members(dataclasses.replace(backbone, frozen=there))
    found = {key.partition(".")[2]: tensor.device for key, tensor in member.items()}
    assert {name: found[name] for name in ("blocks.0.fc1", "blocks.1.fc1", "weight")} == {
        "blocks.0.fc1": GPU,
        "blocks.1.fc1": OTHER_GPU,
        "weight": GPU,
    }


@pytest.mark.slow
def test__fit_and_predict__choices_scored_on_two_gpus__as_on_the_cpu(gpu):
    for tied in (False, True):
        clf = SVETextClassifier(
            make_toy_text_backbone("llama", lm=True, tie_word_embeddings=tied),
            head="likelihood",
            n_members=2,
            max_steps=3,
            batch_size=8,
            precision="float32",
            random_state=0,
        )
        X = [("what", ["yes", "no it is"]), ("not so", ["it is", "no"])] * 8
        assert_as_on_cpu(gpu, clf, X, [0, 1] * 8)


def test__fit__more_gpus_than_blocks__error(gpu, images):
    with pytest.raises(ValueError, match=r"must have a block .* for each of the 2 devices, got 0 blocks"):
        image_classifier(TinyMLP, device=BOTH).fit(*images)


def test__fit__model_that_accelerate_spread__whole_and_without_its_hooks(gpu):
    """As transformers loads it with a `device_map`."""
    accelerate = pytest.importorskip("accelerate")
    model, tokenizer = make_toy_text_backbone("bert")
    settings = {"n_members": 2, "max_steps": 3, "batch_size": 8, "precision": "float32", "random_state": 0}
    expected = SVETextClassifier((model, tokenizer), device="cpu", **settings).fit(TEXTS, LABELS)
    places = {"embeddings": "cuda:0", "encoder.layer.0": "cuda:0", "encoder.layer.1": "cuda:1", "pooler": "cuda:1"}
    spread = accelerate.dispatch_model(copy.deepcopy(model), places, main_device="cuda:0", force_hooks=True)
    clf = SVETextClassifier((spread, tokenizer), device=BOTH, **settings).fit(TEXTS, LABELS)
    assert_alike(clf, expected, TEXTS)
