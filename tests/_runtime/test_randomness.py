"""Random streams that repeat themselves and that nobody else feels."""

import random
import threading

import numpy as np
import pytest
import torch

from skve._backbones.cache import cached
from skve._runtime import randomness
from skve._runtime.randomness import PURPOSES, Seeds
from tests.toys import TinyCNN, make_backbone, same_arrays, toy_classifier


def stream(generator):
    return tuple(torch.rand(4, generator=generator, dtype=torch.float64).tolist())


def test__seeds__purposes_and_members__all_streams_differ():
    seeds = Seeds(0)
    streams = {stream(seeds.generator(purpose, member)) for purpose in PURPOSES for member in range(20)}
    assert len(streams) == 20 * len(PURPOSES)


def test__seeds__neighbouring_seeds__no_stream_in_common():
    streams = {stream(Seeds(seed).generator(p, m)) for seed in range(20) for p in PURPOSES for m in range(4)}
    assert len(streams) == 20 * 4 * len(PURPOSES)


def test__seeds__same_seed__same_streams_in_any_order():
    one, other = Seeds(7), Seeds(7)
    first = [stream(one.generator("member", index)) for index in range(3)]
    second = [stream(other.generator("member", index)) for index in (2, 1, 0)]
    assert first == second[::-1]


def test__seeds__numpy_integer__as_the_integer():
    assert stream(Seeds(np.int64(5)).generator("order")) == stream(Seeds(5).generator("order"))


def test__seeds__random_state__repeatable_and_moves_on():
    one, other = np.random.RandomState(3), np.random.RandomState(3)
    first, second = Seeds(one), Seeds(one)
    assert stream(first.generator("order")) != stream(second.generator("order"))
    assert stream(Seeds(other).generator("order")) == stream(first.generator("order"))


def test__seeds__none__fresh_each_time_whatever_the_global_state():
    streams = []
    for _ in range(2):
        np.random.seed(0)  # noqa: NPY002 - None must not depend on it
        torch.manual_seed(0)
        streams.append(stream(Seeds(None).generator("order")))
    assert streams[0] != streams[1]


def test__own_global_generators__cuda_not_yet_initialised__no_seed_waits_there(monkeypatch, global_state):
    seeds, before = [], global_state()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    with randomness.own_global_generators(3):
        drawn = torch.rand(4)
    assert torch.equal(drawn, torch.rand(4, generator=torch.Generator().manual_seed(3)))
    assert seeds == []
    assert global_state() == before


def test__own_draws__functions_and_methods__from_a_generator_of_the_thread(global_state):
    before, wanted = global_state(), torch.Generator().manual_seed(3)
    with randomness.OwnDraws(3):
        drawn = [torch.rand(4), torch.empty(4).normal_(), torch.randperm(4), torch.nn.Linear(2, 2).weight.detach()]
    assert global_state() == before
    assert torch.equal(drawn[0], torch.rand(4, generator=wanted))
    assert torch.equal(drawn[1], torch.empty(4).normal_(generator=wanted))
    assert torch.equal(drawn[2], torch.randperm(4, generator=wanted))
    with randomness.OwnDraws(3):
        assert torch.equal(torch.rand(4), drawn[0])


def test__loading_a_backbone__other_thread_seeds_and_draws_meanwhile__its_numbers_are_its_own(empty_cache):
    """A state that is put back afterwards would undo the other thread's seed."""

    def build():
        module = torch.nn.Linear(3, 3)  # draws
        thread = threading.Thread(target=lambda: (np.random.seed(5), random.seed(5), torch.manual_seed(5)))  # noqa: NPY002
        thread.start()
        thread.join()
        return make_backbone(module)

    first = cached(("a",), build).module.weight
    assert (np.random.rand(), random.random(), torch.rand(1).item()) == (  # noqa: NPY002
        np.random.RandomState(5).rand(),
        random.Random(5).random(),
        torch.rand(1, generator=torch.Generator().manual_seed(5)).item(),
    )
    assert torch.equal(cached(("b",), build).module.weight, first)


@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize("ensemble", ["sve", "deep"])
def test__fit_and_predict__global_generators__untouched(images, global_state, empty_cache, ensemble, seed):
    random.seed(1)
    classifier = toy_classifier(
        TinyCNN(),
        ensemble=ensemble,
        random_state=seed,
        augment="strong",
        early_stopping=True,
        validation_fraction=0.3,
    )
    before = global_state()
    classifier.fit(*images)
    assert global_state() == before
    classifier.predict(images[0])
    classifier.partial_fit(*images)
    assert global_state() == before


def test__fit__global_seeds__do_not_matter(images):
    fits = []
    for seed in (1, 2):
        np.random.seed(seed)  # noqa: NPY002 - it must not matter
        torch.manual_seed(seed)
        random.seed(seed)
        fits.append(toy_classifier(augment="light").fit(*images))
    assert same_arrays(*fits)


@pytest.mark.parametrize("seeds", [(0, 1), (None, None)])
def test__fit__other_seed_or_none__other_members(images, seeds):
    first, second = (toy_classifier(random_state=seed).fit(*images) for seed in seeds)
    assert not same_arrays(first, second)


def test__fit__random_state_object__repeatable(images):
    fits = [toy_classifier(random_state=np.random.RandomState(4)).fit(*images) for _ in range(2)]
    assert same_arrays(*fits)


def test__purposes__order__fixed():
    """The streams of a seed hang on it: new purposes come at the end."""
    assert randomness.PURPOSES == ("split", "order", "augment", "member", "noise", "bootstrap", "novelty")
