"""Steps and predictions in parts that fit the memory."""

import re

import numpy as np
import pytest
import torch

from skve import SVETextClassifier, _ensembles
from skve._backbones import backbone, cache, decomposition
from skve._runtime.memory import is_out_of_memory
from skve._training import step as step_module
from skve._training.fitting_parts import FittingParts
from skve.testing import make_toy_text_backbone
from tests.toys import TinyCNN, TinyMLP, assert_members_close, same_arrays, toy_classifier

CPU_MESSAGE = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
ERRORS = [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU_MESSAGE), MemoryError()]


@pytest.mark.parametrize(
    ("error", "expected"),
    [(error, True) for error in ERRORS]
    + [
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (KeyboardInterrupt(), False),
    ],
    ids=repr,
)
def test__is_out_of_memory__errors_of_all_allocators__told_from_others(error, expected):
    assert is_out_of_memory(error) is expected


@pytest.fixture
def limited(monkeypatch):
    """Return a function that lets passes of more than `largest` members times samples fail, and lists all passes."""

    def limit(largest, error=ERRORS[0], after_backward=False):
        passes, original = [], _ensembles.Ensemble.chunk_logits

        def chunk_logits(self, inputs, indices):
            n_samples = len(inputs) if isinstance(inputs, torch.Tensor) else len(inputs["input_ids"])
            passes.append((len(indices), n_samples))
            too_large = len(indices) * n_samples > largest
            if too_large and not after_backward:
                raise error
            logits = original(self, inputs, indices)
            if too_large:
                logits.register_hook(lambda gradient: (_ for _ in ()).throw(error))
            return logits

        monkeypatch.setattr(_ensembles.Ensemble, "chunk_logits", chunk_logits)
        return passes

    return limit


SETTINGS = {"n_members": 4, "member_lr": 1e-3, "grad_clip": None, "label_smoothing": 0.1}


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test__fit__memory_for_one_member_and_five_samples__same_members_and_the_size_is_kept(
    images, train_in_chunks, limited, error
):
    weights = np.linspace(0.5, 1.5, 24)
    expected = toy_classifier(TinyCNN(), **SETTINGS).fit(*images, weights)
    train_in_chunks(4)
    passes = limited(5, error)
    assert_members_close(expected, toy_classifier(TinyCNN(), **SETTINGS).fit(*images, weights))
    assert passes[:4] == [(4, 16), (2, 16), (1, 16), (1, 8)]
    assert set(passes[4:]) == {(1, 4)}
    assert len(passes[4:]) == 2 * 4 * (4 + 2)  # epochs, members, parts of 16 and of 8 samples


@pytest.mark.parametrize("ensemble", ["sve", "deep", "bias"])
def test__fit__fails_in_the_backward_pass__half_done_gradients_are_not_counted(images, limited, ensemble):
    settings = {**SETTINGS, "ensemble": ensemble}
    expected = toy_classifier(**settings).fit(*images)
    passes = limited(6, after_backward=True)
    assert_members_close(expected, toy_classifier(**settings).fit(*images))
    assert (1, 8) in passes


@pytest.mark.parametrize(
    "options", [{"order": "own", "bootstrap": True}, {"bootstrap": True}, {"diversity": 0.5}], ids=str
)
def test__fit__members_that_differ_in_parts__same_members(images, train_in_chunks, limited, options):
    settings = {**SETTINGS, "ensemble_params": options}
    expected = toy_classifier(TinyMLP(), **settings).fit(*images)
    train_in_chunks(4)
    passes = limited(5)
    assert_members_close(expected, toy_classifier(TinyMLP(), **settings).fit(*images))
    assert {n_members for n_members, _ in passes[-4:]} == {1}
    assert max(n_samples for _, n_samples in passes[-4:]) <= 4  # fewer where a bootstrap gave samples no weight


def test__fit__one_step_in_parts__gradient_of_the_unsplit_step(images):
    """To rounding: the optimizer, which hides the size of a gradient, is left out."""
    gradients = []

    class StopError(Exception):
        pass

    def clip(step):
        gradients.append({k: t.grad.clone() for m in range(2) for k, t in step.ensemble.member(m).items()})
        raise StopError

    for largest in (None, 5, 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(step_module.Step, "clip", clip)
            patch.setattr(FittingParts, "slices", lambda self, n, largest=largest: parts(n, largest or n))
            with pytest.raises(StopError):
                toy_classifier(TinyCNN(), batch_size=13).fit(*images, np.linspace(0.1, 2, 24))
    for other in gradients[1:]:
        for key, value in gradients[0].items():
            torch.testing.assert_close(other[key], value, rtol=1e-4, atol=1e-6)


def parts(n, largest):
    return [slice(start, start + largest) for start in range(0, n, largest)]


def test__fit__texts_in_parts__same_members(limited):
    texts, labels = ["yes it is", "no", "yes yes", "it is not so", "yes", "no no no"], [1, 0, 1, 0, 1, 0]
    settings = {"n_members": 2, "max_epochs": 2, "batch_size": 6, "random_state": 0, "precision": "float32"}

    def fit():
        return SVETextClassifier(make_toy_text_backbone("bert"), **settings).fit(texts, labels)

    expected = fit()
    passes = limited(2)
    assert_members_close(expected, fit())
    assert (1, 2) in passes


def test__fit__validation_in_parts__same_likelihood(images, validation, limited):
    val = {"X_val": validation[0], "y_val": validation[1]}
    expected = toy_classifier().fit(*images, **val)
    limited(4)
    other = toy_classifier().fit(*images, **val)
    np.testing.assert_allclose(other.history_["valid_nll"], expected.history_["valid_nll"], rtol=1e-5)


def test__fit__batch_statistics_cannot_be_split__error_says_so(images, limited):
    limited(8)
    classifier = toy_classifier(TinyCNN(), ensemble="deep", ensemble_params={"train_batch_norm": True})
    with pytest.raises(torch.OutOfMemoryError, match="a batch of 16, whose statistics train_batch_norm=True keeps"):
        classifier.fit(*images)


def test__fit__batch_statistics_and_too_many_members__statistics_move_once(images, train_in_chunks, limited):
    settings = {"ensemble": "deep", "ensemble_params": {"train_batch_norm": True}, "max_epochs": 1}
    expected = toy_classifier(TinyCNN(), **settings).fit(*images)
    train_in_chunks(2)
    passes = limited(16, after_backward=True)
    assert_members_close(expected, toy_classifier(TinyCNN(), **settings).fit(*images))
    assert passes[:3] == [(2, 16), (1, 16), (1, 16)]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test__fit__nothing_fits__error_with_sizes_and_remedies_and_estimator_as_it_was(images, limited, error):
    limited(0, error)
    classifier = toy_classifier(batch_size=8)
    before = dict(vars(classifier))
    with pytest.raises(torch.OutOfMemoryError) as caught:
        classifier.fit(*images)
    message = str(caught.value)
    assert re.search(r"Out of memory in fit on device='cpu' with batch_size=8, image_size=16, .*n_members=2", message)
    assert "Remedies: a smaller batch_size; a smaller image_size" in message
    assert "layers='last:2'; precision='bfloat16'; a smaller n_members" in message
    assert "one member and one sample of shape (1, 3, 16, 16)" in message
    assert str(error) in message
    assert vars(classifier) == before


def test__fit__texts_nothing_fits__remedies_of_texts(limited):
    limited(0)
    with pytest.raises(torch.OutOfMemoryError, match=r"a smaller max_length; .*activation_checkpointing=True"):
        SVETextClassifier(make_toy_text_backbone("bert"), max_epochs=1).fit(["a", "b", "c"], [0, 1, 0])


@pytest.mark.parametrize("where", ["decompose", "move", "trace"])
def test__fit__memory_short_before_the_first_step__explained_and_nothing_poisoned(
    images, monkeypatch, empty_cache, where
):
    expected = toy_classifier().fit(*images)
    cache.clear_cache()

    def fail(*args, **kwargs):
        raise RuntimeError(CPU_MESSAGE)

    with monkeypatch.context() as patch:
        target = {
            "decompose": (decomposition, "decompose"),
            "move": (backbone.Backbone, "on"),
            "trace": (TinyMLP, "forward"),
        }
        patch.setattr(*target[where], fail)
        with pytest.raises(torch.OutOfMemoryError, match=r"Out of memory in fit .* can't allocate memory"):
            toy_classifier().fit(*images)
    assert same_arrays(toy_classifier().fit(*images), expected)


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test__predict__batch_too_large__halved_and_the_same(images, monkeypatch, error):
    classifier = toy_classifier(TinyCNN(), batch_size=10).fit(*images)
    expected = classifier.predict_proba_members(images[0])
    original, sizes = _ensembles.Ensemble.member_logits, []

    def member_logits(self, inputs, index):
        sizes.append(len(inputs))
        if len(inputs) > 3:
            raise error
        return original(self, inputs, index)

    monkeypatch.setattr(_ensembles.Ensemble, "member_logits", member_logits)
    np.testing.assert_allclose(classifier.predict_proba_members(images[0]), expected, atol=1e-6)
    assert sizes[:3] == [10, 5, 3]
    assert max(sizes[3:]) == 3
    monkeypatch.setattr(_ensembles.Ensemble, "member_logits", lambda *args: (_ for _ in ()).throw(error))
    with pytest.raises(torch.OutOfMemoryError, match=r"Out of memory in predict .*batch_size=10.*one member and one"):
        classifier.predict(images[0])


def test__predict__other_error__raised_at_once(images, monkeypatch):
    classifier = toy_classifier().fit(*images)
    calls = []

    def member_logits(*args):
        calls.append(1)
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(_ensembles.Ensemble, "member_logits", member_logits)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        classifier.predict(images[0])
    assert len(calls) == 1


@pytest.mark.parametrize("ensemble", ["dropout", "snapshot"])
def test__fit__memory_short_once__same_as_without(images, monkeypatch, ensemble):
    settings = {**SETTINGS, "ensemble": ensemble, "max_epochs": 4, "batch_size": 64}
    expected = toy_classifier(TinyMLP(), **settings).fit(*images)
    original, failed = _ensembles.Ensemble.chunk_logits, []

    def fails_once(self, inputs, indices):
        logits = original(self, inputs, indices)
        if not failed:
            failed.append(indices)
            raise ERRORS[0]
        return logits

    monkeypatch.setattr(_ensembles.Ensemble, "chunk_logits", fails_once)
    monkeypatch.setattr(FittingParts, "slices", lambda self, n_samples: [slice(0, n_samples)])
    again = toy_classifier(TinyMLP(), **settings).fit(*images)
    assert failed
    assert same_arrays(again, expected)


def test__fit__own_orders_and_no_memory__no_attempt_twice(images, limited):
    passes = limited(0)
    clf = toy_classifier(TinyMLP(), **{**SETTINGS, "ensemble_params": {"order": "own"}, "batch_size": 16})
    with pytest.raises(torch.OutOfMemoryError, match="Out of memory in fit"):
        clf.fit(*images)
    assert passes == [(1, 16), (1, 8), (1, 4), (1, 2), (1, 1)]
