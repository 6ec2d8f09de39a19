"""Exact singular value decompositions of weights, and other bases of the same space. Pure functions."""

import dataclasses
import hashlib
import math

import numpy as np
import torch

ORTHONORMAL = 1e-7  # largest product of two of the vectors that is taken for 0: what float32 leaves of it


@dataclasses.dataclass(frozen=True)
class Factors:
    """Thin singular value decomposition of a (d_out, d_in) weight: `U @ diag(sigma) @ Vt`, r = min(d)."""

    U: torch.Tensor  # (d_out, r)
    sigma: torch.Tensor  # (r,), descending
    Vt: torch.Tensor  # (r, d_in)

    def to(self, where):
        """Return the factors on a device, or singular vectors in a dtype."""
        sigma = self.sigma if isinstance(where, torch.dtype) else self.sigma.to(where)
        return Factors(self.U.to(where), sigma, self.Vt.to(where))

    def chosen(self, k, which="leading", name=""):
        """Return the factors of k directions, or of all if there are no more.

        Parameters
        ----------
        k : int or None
            None for all.
        which : {"leading", "trailing", "random"}
            Those of the largest or smallest singular values, or some drawn by `name`.
        name : str
        """
        r = len(self.sigma)
        if k is None or k >= r:
            return self
        picked: slice | np.ndarray = slice(k) if which == "leading" else slice(-k, None)
        if which == "random":  # of a generator whose numbers never change, as saved ratios belong to these directions
            picked = np.sort(np.random.RandomState(_seed(name) % 2**32).permutation(r)[:k])
        return Factors(self.U[:, picked].contiguous(), self.sigma[picked], self.Vt[picked].contiguous())

    @property
    def nbytes(self):
        return self.U.nbytes + self.sigma.nbytes + self.Vt.nbytes


def as_matrix(weight, kind):
    """View a weight as the (d_out, d_in) matrix that is decomposed."""
    if kind == "transposed":
        return weight.T
    return weight.flatten(1) if kind == "convolution" else weight


def from_matrix(matrix, kind, shape):
    """Undo `as_matrix`: give a (d_out, d_in) matrix the shape of its weight."""
    if kind == "transposed":
        return matrix.T
    return matrix.reshape(shape) if kind == "convolution" else matrix


def decompose(weight, kind):
    """Decompose one weight in float64 and return the factors in float32 on the CPU.

    In float32 the singular vectors of nearly equal singular values depend on the linear-algebra library, and
    a model saved on one machine would predict something else on another.

    The eigenvectors of the smaller Gram matrix take a half to an eighth of the time of a singular value
    decomposition, which is the way where they are not exact enough: for weights that are almost singular.
    """
    matrix = as_matrix(weight.detach().cpu().double(), kind)
    U, sigma, Vt = _by_eigenvectors(matrix) or torch.linalg.svd(matrix, full_matrices=False)
    return Factors(U.float().contiguous(), sigma.float(), Vt.float().contiguous())


def _by_eigenvectors(matrix):
    """Return `U, sigma, Vt` from the eigenvectors of the smaller Gram matrix, or None if they are not orthonormal.

    One of the two bases is orthonormal to rounding, and the product is the matrix to rounding. Vectors of the other
    basis can be at fault by the precision of float64, over two of the singular values relative to the largest.
    """
    is_wide = matrix.shape[0] <= matrix.shape[1]
    wide = matrix if is_wide else matrix.T
    basis = torch.linalg.eigh(wide @ wide.T).eigenvectors
    other = basis.T @ wide
    sigma, order = torch.linalg.vector_norm(other, dim=1).sort(descending=True)
    basis, other = basis[:, order], other[order] / sigma[:, None]
    error = (other @ other.T).diagonal_scatter(torch.zeros_like(sigma)).abs().max()
    if not error < ORTHONORMAL:  # nor where a singular value is 0
        return None
    return (basis, sigma, other) if is_wide else (other.T, sigma, basis.T)


def random_basis(weight, kind, name, Vt):
    """Return the factors of a weight in a random basis of its row space: U = W Q, sigma = 1, Vt = Q^T.

    Q = V R has r = min(d_out, d_in) orthonormal columns: the right singular vectors V (d_in, r), given as `Vt`,
    turned by a rotation or reflection R (r, r), uniform among all such and seeded by `name`. With Q = V,
    `U diag(sigma) Vt` would be the thin singular value decomposition.
    """
    matrix = as_matrix(weight.detach().cpu().double(), kind)
    generator = torch.Generator().manual_seed(_seed(name))
    V = Vt.cpu().double().T
    normal = torch.randn(V.shape, generator=generator, dtype=torch.float64)
    # V^T normal is a Gaussian (r, r) that turns with V: Q depends on the row space alone, not on the signs of
    # singular vectors or on what a library makes of equal singular values.
    R, triangle = torch.linalg.qr(V.T @ normal)
    R = R * triangle.diagonal().sign()  # the one decomposition with a positive diagonal, whatever the library
    Q = V @ R
    ones = torch.ones(Q.shape[1], dtype=torch.float32)
    return Factors((matrix @ Q).float().contiguous(), ones, Q.T.float().contiguous())


def _seed(name):
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7])


def fingerprint(factors):
    """Return one number that changes when the singular vectors do: a fixed bilinear form of a fixed scaling.

    Relative to the largest singular value and therefore comparable between layers. Signs that U and V share
    do not matter, as they do not matter to an adapted weight.
    """

    def wave(n, frequency):
        return torch.cos(frequency * torch.arange(1, n + 1, dtype=torch.float64)) * math.sqrt(2 / n)

    scaled = factors.sigma.double() / factors.sigma[0].double().clamp_min(1e-30)
    scaled = scaled * (1 + wave(len(scaled), 0.7) * math.sqrt(len(scaled)))
    left = wave(factors.U.shape[0], 1.3) @ factors.U.double()
    right = factors.Vt.double() @ wave(factors.Vt.shape[1], 1.9)
    return float((left * scaled * right).sum())
