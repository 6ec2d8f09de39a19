"""How exact decompositions are, and what their fingerprints notice."""

import pytest
import torch
from torch import nn

from skve._backbones import decomposition

WEIGHTS = [
    ("linear", (7, 5)),
    ("linear", (5, 7)),
    ("transposed", (5, 7)),
    ("convolution", (6, 4, 3, 3)),
    ("convolution", (9, 4, 1, 1)),
]


def random_weight(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("kind", "shape"), WEIGHTS)
def test__decompose__any_kind__factors_rebuild_the_weight(kind, shape):
    weight = random_weight(shape)
    factors = decomposition.decompose(weight, kind)
    rebuilt = decomposition.from_matrix((factors.U * factors.sigma) @ factors.Vt, kind, weight.shape)
    torch.testing.assert_close(rebuilt, weight, rtol=0, atol=2e-6)
    assert len(factors.sigma) == min(decomposition.as_matrix(weight, kind).shape)
    assert (factors.sigma.diff() <= 0).all()
    assert factors.U.dtype == factors.sigma.dtype == factors.Vt.dtype == torch.float32


@pytest.mark.parametrize(("kind", "shape"), WEIGHTS)
def test__as_matrix__and_back__same_weight(kind, shape):
    weight = random_weight(shape)
    assert torch.equal(decomposition.from_matrix(decomposition.as_matrix(weight, kind), kind, weight.shape), weight)


def test__decompose__ill_conditioned_weight__as_exact_as_float64():
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=torch.float64))
    sigma = 1 + 1e-4 * torch.arange(40, 0, -1, dtype=torch.float64)  # nearly equal: float32 mixes such vectors
    weight = (left * sigma @ right.T).float()
    factors = decomposition.decompose(weight, "linear")
    exact_U, exact_sigma, _ = torch.linalg.svd(weight.double(), full_matrices=False)
    torch.testing.assert_close(factors.sigma.double(), exact_sigma, rtol=1e-7, atol=0)
    torch.testing.assert_close(factors.U.double().abs(), exact_U.abs(), rtol=0, atol=1e-7)


def test__decompose__channels_last_weight__same_factors():
    weight = random_weight((6, 4, 3, 3))
    plain = decomposition.decompose(weight, "convolution")
    other = decomposition.decompose(weight.contiguous(memory_format=torch.channels_last), "convolution")
    assert torch.equal(plain.U, other.U)
    assert torch.equal(plain.Vt, other.Vt)


def test__decompose__weight_that_needs_a_gradient__factors_do_not():
    factors = decomposition.decompose(nn.Linear(4, 3).weight, "linear")
    assert not any(tensor.requires_grad for tensor in (factors.U, factors.sigma, factors.Vt))


def test__fingerprint__shared_signs__unchanged():
    factors = decomposition.decompose(random_weight((8, 6)), "linear")
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0, 1.0])
    flipped = decomposition.Factors(factors.U * signs, factors.sigma, factors.Vt * signs[:, None])
    assert decomposition.fingerprint(flipped) == pytest.approx(decomposition.fingerprint(factors), abs=1e-12)


@pytest.mark.parametrize("pair", [(0, 1), (2, 3), (4, 5)])
def test__fingerprint__rotated_singular_vectors__changes(pair):
    factors = decomposition.decompose(random_weight((8, 6)), "linear")
    angle = torch.tensor(0.3)
    rotation = torch.eye(6)
    i, j = pair
    rotation[i, i] = rotation[j, j] = torch.cos(angle)
    rotation[i, j], rotation[j, i] = -torch.sin(angle), torch.sin(angle)
    rotated = decomposition.Factors(factors.U @ rotation, factors.sigma, rotation.T @ factors.Vt)
    assert abs(decomposition.fingerprint(rotated) - decomposition.fingerprint(factors)) > 1e-3


def test__fingerprint__sign_of_one_side__changes():
    factors = decomposition.decompose(random_weight((8, 6)), "linear")
    flipped = decomposition.Factors(-factors.U, factors.sigma, factors.Vt)
    assert abs(decomposition.fingerprint(flipped) - decomposition.fingerprint(factors)) > 1e-3


def test__fingerprint__scaled_weight__unchanged():
    weight = random_weight((8, 6))
    one, ten = (decomposition.fingerprint(decomposition.decompose(scale * weight, "linear")) for scale in (1, 10))
    assert ten == pytest.approx(one, abs=1e-5)


def test__fingerprint__zero_weight__finite():
    assert decomposition.fingerprint(decomposition.decompose(torch.zeros(4, 3), "linear")) == pytest.approx(
        0, abs=1e-6
    )
