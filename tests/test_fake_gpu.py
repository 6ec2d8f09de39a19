"""Whole fits and predictions on a CUDA device that is not there: torch raises where two devices would meet."""

import numpy as np
import pytest
import torch
from packaging.version import Version
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

GPU = torch.device("cuda:0")
TO_CPP = torch.device("meta")  # what autograd is told, which would ask a CUDA driver for the device's stream


def is_fake(value):
    return isinstance(value, FakeTensor)


def is_device(value, device):
    return isinstance(value, torch.device) and value == device


class FakeGPU(FakeTensorMode):
    """Tensors on the GPU have shapes and no values; on the CPU all is real, and what comes from the GPU is ones.

    Autocast casts nothing here, since it takes the fake tensors for those of another device.
    """

    avoid_device_init = True

    def __init__(self):
        super().__init__()
        self.inside = False
        self.on_gpu = set()  # dtypes that were there

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.inside:
            return super().__torch_dispatch__(func, types, args, kwargs)
        if func is torch.ops.prim.device.default:
            return TO_CPP
        args, kwargs = tree_map(lambda value: GPU if is_device(value, TO_CPP) else value, (args, kwargs))
        if func is torch.ops.aten._local_scalar_dense.default and is_fake(args[0]):
            return args[0].new_ones((), device="cpu").item()
        if func is torch.ops.aten.copy_.default and not is_fake(args[0]) and is_fake(args[1]):
            return args[0].fill_(1)
        if not tree_any(lambda value: is_fake(value) or is_device(value, GPU), (args, kwargs)):
            return func(*args, **kwargs)

        def as_fake(value):
            return self.from_tensor(value) if isinstance(value, torch.Tensor) and not is_fake(value) else value

        def as_real(value):
            return (
                torch.ones(value.shape, dtype=value.dtype) if is_fake(value) and value.device.type == "cpu" else value
            )

        self.inside = True
        try:
            out = super().__torch_dispatch__(func, types, *tree_map(as_fake, (args, kwargs)))
        finally:
            self.inside = False
        self.on_gpu |= {t.dtype for t in tree_leaves(out) if is_fake(t) and t.device == GPU}
        return tree_map(as_real, out)


@pytest.fixture
def gpu(monkeypatch, empty_cache):
    """Let torch report one CUDA device, and yield the mode in which it exists."""
    original = FakeTensor.__torch_dispatch__.__func__

    def dispatch(cls, func, types, args=(), kwargs=None):
        return TO_CPP if func is torch.ops.prim.device.default else original(cls, func, types, args, kwargs or {})

    monkeypatch.setattr(FakeTensor, "__torch_dispatch__", classmethod(dispatch))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
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
    assert weight.cpu().tolist() == [[1.0] * 3] * 3
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
    assert list(backbone.frozen._copies) == [GPU]
    assert {parameter.device.type for parameter in backbone.module.parameters()} == {"cpu"}
