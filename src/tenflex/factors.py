"""The flexible layer as a set of matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases import Basis


@dataclass(frozen=True)
class Factors:
    r"""A flexible layer :math:`f(x) \approx W g(V^\top x + a) + b` with :math:`g_k(t) = \sum_j c_{kj} \phi_j(t)`.

    Either linear map may be stored as a product of two thin matrices, `V = B A` and `W = D E`.

    Args:
        inner: `(V,)` with V `(m, r)`, or `(B, A)` with `(m, q)` and `(q, r)`.
        outer: `(W,)` with W `(n, r)`, or `(D, E)` with `(n, p)` and `(p, r)`.
        coefficients: C, `(r, d)`.
        shift: a, `(r,)`; brings each node to the interval of the basis.
        bias: b, `(n,)`.
        basis: The functions that C combines.
    """

    inner: tuple[Tensor, ...]
    outer: tuple[Tensor, ...]
    coefficients: Float[Tensor, "r d"]
    shift: Float[Tensor, " r"]
    bias: Float[Tensor, " n"]
    basis: Basis

    @property
    def V(self) -> Float[Tensor, "m r"]:
        """The input map; its column k is the direction of node k."""
        return reduce(torch.matmul, self.inner)

    @property
    def W(self) -> Float[Tensor, "n r"]:
        """The output map; its column k is where node k acts."""
        return reduce(torch.matmul, self.outer)

    def tensors(self) -> tuple[Tensor, ...]:
        """Everything that is solved for, in a fixed order: all but the bias, whose best value follows from the rest."""
        return (*self.inner, *self.outer, self.shift, self.coefficients)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Factors:
        """The layer with these in the place of `tensors()`."""
        cut = len(self.inner)
        inner, outer = tuple(tensors[:cut]), tuple(tensors[cut:-2])
        return replace(self, inner=inner, outer=outer, shift=tensors[-2], coefficients=tensors[-1])

    def layers(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """The coefficients of each layer of activations, with the map that carries them on: `(C, W)`."""
        return ((self.coefficients, self.W),)

    def shifted(self, by: Float[Tensor, " r"]) -> Factors:
        """The layer with something added to what arrives at its activations."""
        return replace(self, shift=self.shift + by)

    def influence(self, inputs: Float[Tensor, "S m"]) -> tuple[Float[Tensor, " r"], Float[Tensor, " r"]]:
        """How much columns of V, and of W, would count in the Jacobians at the inputs, if they were of unit norm."""
        slopes = self.basis.curves(self.project(inputs), self.coefficients)[1]
        activity = slopes.square().mean(0).sqrt()
        return activity * self.W.norm(dim=0), activity * self.V.norm(dim=0)

    def balanced(self) -> Factors:
        """The same layer with coefficients and output columns of equal norm, which is a free choice."""
        W, coefficients = equal_sizes(self.W, self.coefficients)
        return replace(self, outer=(W,), coefficients=coefficients)

    @property
    def rank(self) -> int:
        """The number of nodes, r."""
        return len(self.shift)

    def project(self, inputs: Float[Tensor, "S m"]) -> Float[Tensor, "S r"]:
        """What arrives at the activations, `V^T x + a`."""
        return reduce(torch.matmul, self.inner, inputs) + self.shift

    def activations(self, inputs: Float[Tensor, "S m"]) -> Float[Tensor, "S r"]:
        """G: the activations `g_k(v_k . x_s + a_k)`."""
        return self.basis.combine(self.project(inputs), self.coefficients)

    def outputs(self, inputs: Float[Tensor, "S m"]) -> Float[Tensor, "S n"]:
        """The layer itself, `W g(V^T x + a) + b`."""
        return self.activations(inputs) @ self.W.mT + self.bias

    def jacobians(self, inputs: Float[Tensor, "S m"]) -> Float[Tensor, "S n m"]:
        """The Jacobians `W diag(g'(V^T x + a)) V^T`, in full: `S n m` numbers."""
        slopes = self.basis.curves(self.project(inputs), self.coefficients)[1]
        return torch.einsum("nr,sr,mr->snm", self.W, slopes, self.V)


def equal_sizes(
    W: Float[Tensor, "n r"], coefficients: Float[Tensor, "r d"]
) -> tuple[Float[Tensor, "n r"], Float[Tensor, "r d"]]:
    """Coefficients and columns of W of equal norm with the same products; those of dead nodes stay."""
    size_w, size_c = W.norm(dim=0), coefficients.norm(dim=1)
    alive = (size_w > 0) & (size_c > 0)
    ratio = torch.where(alive, size_w / size_c, torch.ones_like(size_w)).nan_to_num(1.0).sqrt()
    return W / ratio, coefficients * ratio[:, None]
