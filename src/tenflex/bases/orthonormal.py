"""Any basis, recombined to be orthonormal: the coordinates in which systems are solved."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases.base import Basis, quadrature
from tenflex.bases.wrapped import Wrapped


@dataclass(frozen=True)
class Orthonormal(Wrapped):
    r"""The same span, with functions that are orthonormal on the reference interval.

    Hinges and monomials are badly conditioned, B-splines are not, yet two bases of one span should give one answer.
    Solving in these coordinates makes the answer, a ridge included, a property of the span.

    .. math:: \psi = Q^\top \phi, \quad \int \psi \psi^\top dt = I, \quad c_\phi = Q c_\psi

    Args:
        basis: The basis to recombine.
        template: The basis that Q is made for, when `basis` is that one with its knots moved to the data (Q is then
            nearly orthonormalising, which is all that conditioning asks for).
    """

    template: Basis | None = None

    def matrix(self, like: Tensor) -> Float[Tensor, "d d"]:
        """Q, with the dtype and device of `like`."""
        return _recombination(self.template or self.basis).to(like)

    def value(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        return self.basis.value(t) @ self.matrix(t)

    def derivative(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        return self.basis.derivative(t) @ self.matrix(t)

    def second_derivative(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        return self.basis.second_derivative(t) @ self.matrix(t)

    def combine(self, t: Float[Tensor, "*batch r"], coefficients: Float[Tensor, "r d"]) -> Float[Tensor, "*batch r"]:
        return self.basis.combine(t, coefficients @ self.matrix(t).mT)

    def curves(
        self, t: Float[Tensor, "S r"], coefficients: Float[Tensor, "r d"]
    ) -> tuple[Float[Tensor, "S r"], Float[Tensor, "S r"], Float[Tensor, "S r"]]:
        return self.basis.curves(t, coefficients @ self.matrix(t).mT)

    def pull(
        self, t: Float[Tensor, "S r"], to_g: Float[Tensor, "S r"], to_h: Float[Tensor, "S r"]
    ) -> Float[Tensor, "r d"]:
        return self.basis.pull(t, to_g, to_h) @ self.matrix(t)

    def fit(self, t: Float[Tensor, "S r"]) -> Basis:
        return Orthonormal(self.basis.fit(t), self.template or self.basis)

    def roughness(self) -> Float[Tensor, "d d"]:
        q = _recombination(self.template or self.basis)
        return q.mT @ self.basis.roughness() @ q


@lru_cache(maxsize=256)
def _recombination(basis: Basis) -> Float[Tensor, "d d"]:
    nodes, weights = quadrature(basis.interval)
    _, upper = torch.linalg.qr(weights.sqrt()[:, None] * basis.value(nodes))
    eye = torch.eye(len(upper), dtype=upper.dtype, device=upper.device)
    return torch.linalg.solve_triangular(upper, eye, upper=True)
