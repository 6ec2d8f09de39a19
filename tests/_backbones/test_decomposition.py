"""How exact decompositions are, and what their fingerprints notice."""

import hashlib

import pytest
import torch
from torch import nn

from skve._backbones import decomposition
from skve._ensembles import forms
from tests._ensembles.test_base import CLOSE

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


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
@pytest.mark.parametrize(("smallest", "by_svd"), [(1e-1, False), (1e-3, False), (1e-11, True), (0.0, True)])
def test__decompose__condition_of_the_weight__orthonormal_and_the_product(shape, smallest, by_svd, monkeypatch):
    r, generator = min(shape), torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(d, r, generator=generator, dtype=torch.float64)).Q for d in shape)
    sigma = torch.linspace(1, smallest, r, dtype=torch.float64)
    weight, calls, svd = left * sigma @ right.T, [], torch.linalg.svd

    def counted(*args, **kwargs):
        calls.append(1)
        return svd(*args, **kwargs)

    monkeypatch.setattr(torch.linalg, "svd", counted)
    factors = decomposition.decompose(weight, "linear")
    assert bool(calls) == by_svd
    U, Vt = factors.U.double(), factors.Vt.double()
    identity = torch.eye(r, dtype=torch.float64)
    torch.testing.assert_close(U.T @ U, identity, rtol=0, atol=5e-7)
    torch.testing.assert_close(Vt @ Vt.T, identity, rtol=0, atol=5e-7)
    torch.testing.assert_close(U * factors.sigma.double() @ Vt, weight, rtol=0, atol=2e-7)
    torch.testing.assert_close(factors.sigma.double(), sigma, rtol=0, atol=1e-7)


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


def random_basis(weight, name="fc", kind="linear"):
    return decomposition.random_basis(weight, kind, name, decomposition.decompose(weight, kind).Vt)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (6, 6), (4, 3, 3, 3), (40, 3, 3, 3)])
def test__random_basis__any_weight__orthonormal_in_the_row_space_and_seeded_by_name(shape):
    weight, kind = torch.randn(shape), "linear" if len(shape) == 2 else "convolution"
    matrix = decomposition.as_matrix(weight, kind)
    r = min(matrix.shape)
    factors = random_basis(weight, kind=kind)
    torch.testing.assert_close(factors.Vt @ factors.Vt.T, torch.eye(r), **CLOSE)
    torch.testing.assert_close(factors.U, matrix @ factors.Vt.T, **CLOSE)
    torch.testing.assert_close(factors.U @ factors.Vt, matrix, **CLOSE)  # nothing of the row space is left out
    folded = decomposition.as_matrix(forms.fold(weight, kind, factors, torch.randn(r)), kind)
    assert torch.linalg.matrix_rank(torch.cat([matrix, folded]), rtol=1e-4) == r
    assert not torch.allclose(factors.Vt.abs(), decomposition.decompose(weight, kind).Vt.abs(), atol=0.1)
    assert torch.equal(random_basis(weight, kind=kind).Vt, factors.Vt)
    assert not torch.allclose(random_basis(weight, "other", kind).Vt.abs(), factors.Vt.abs(), atol=0.1)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test__random_basis__layer__as_in_a_dense_computation(shape):
    weight, log_ratios = torch.randn(shape), 0.3 * torch.randn(6)
    W = weight.double()
    seed = int.from_bytes(hashlib.sha256(b"fc").digest()[:7])
    normal = torch.randn((shape[1], 6), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    Q, triangle = torch.linalg.qr(torch.linalg.pinv(W) @ W @ normal)  # without a singular vector
    Q = Q * triangle.diagonal().sign()
    expected = (W + W @ Q @ torch.diag(log_ratios.double().expm1()) @ Q.T).float()
    torch.testing.assert_close(forms.fold(weight, "linear", random_basis(weight), log_ratios), expected, **CLOSE)


def test__random_basis__singular_vectors_of_another_library__same():
    weight = torch.randn(6, 9)
    Vt = decomposition.decompose(weight, "linear").Vt
    turned = Vt.clone()
    turned[::2] *= -1
    turned[1:3] = torch.tensor([[0.6, 0.8], [-0.8, 0.6]]) @ turned[1:3]  # as if two singular values were equal
    torch.testing.assert_close(
        decomposition.random_basis(weight, "linear", "fc", turned).Vt, random_basis(weight).Vt, **CLOSE
    )


def test__random_basis__right_singular_vectors_in_its_place__singular_value_ensemble():
    weight, log_ratios = torch.randn(6, 9), 0.3 * torch.randn(6)
    factors = decomposition.decompose(weight, "linear")
    V = factors.Vt.T
    in_place = decomposition.Factors(weight @ V, torch.ones(6), factors.Vt)
    expected = factors.U @ torch.diag(factors.sigma * log_ratios.exp()) @ factors.Vt
    torch.testing.assert_close(forms.fold(weight, "linear", in_place, log_ratios), expected, **CLOSE)
    x = torch.randn(5, 9)
    torch.testing.assert_close(forms.one_sided(x, weight, in_place, log_ratios), x @ expected.T, **CLOSE)


@pytest.mark.parametrize("which", ["leading", "trailing", "random"])
def test__chosen_directions__all_of_them__the_weight(which):
    weight = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    factors = decomposition.decompose(weight, "linear")
    assert factors.chosen(6, which, "fc") is factors
    assert factors.chosen(None, which, "fc") is factors
    some = factors.chosen(2, which, "fc")
    picked = [factors.sigma.tolist().index(value) for value in some.sigma.tolist()]
    assert picked == sorted(set(picked))
    assert which == "random" or picked == {"leading": [0, 1], "trailing": [4, 5]}[which]
    assert torch.equal(some.U, factors.U[:, picked])
    assert torch.equal(some.Vt, factors.Vt[picked])


def test__random_directions__names__draw_them():
    factors = decomposition.decompose(torch.randn(30, 40, generator=torch.Generator().manual_seed(0)), "linear")
    chosen = [factors.chosen(3, "random", name).sigma.tolist() for name in ("a", "a", "b")]
    assert chosen[0] == chosen[1] != chosen[2]
