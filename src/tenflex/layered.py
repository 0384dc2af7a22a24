"""Two flexible layers as a set of matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases import Basis
from tenflex.factors import Factors, equal_sizes


@dataclass(frozen=True)
class LayeredFactors:
    r"""Two flexible layers, :math:`f(x) \approx W g(U h(V^\top x + a) + a') + b`.

    Every node of either layer has its own activation, :math:`h_l(t) = \sum_j c_{lj} \phi_j(t)` and
    :math:`g_k(t) = \sum_j c'_{kj} \phi'_j(t)`. The Jacobians :math:`W D'_s U D_s V^\top`, with D and D' the diagonal
    matrices of the slopes, have the structure of a ParaTuck-2 decomposition. V and W may be stored as products.

    References:
        De Jonghe, Usevich, Dreesen, Ishteva, "Compressing neural networks with two-layer decoupling", 2023,
        https://doi.org/10.1109/CAMSAP58249.2023.10403509

    Args:
        inner: `(V,)` with V `(m, r1)`, or `(B, A)` with `(m, q)` and `(q, r1)`.
        hidden: U, `(r2, r1)`.
        outer: `(W,)` with W `(n, r2)`, or `(D, E)` with `(n, p)` and `(p, r2)`.
        coefficients: C `(r1, d)` and C' `(r2, d')`.
        shifts: a `(r1,)` and a' `(r2,)`; they bring each node to the interval of its basis.
        bias: b, `(n,)`.
        bases: The functions that C and C' combine.
    """

    inner: tuple[Tensor, ...]
    hidden: Float[Tensor, "r2 r1"]
    outer: tuple[Tensor, ...]
    coefficients: tuple[Tensor, Tensor]
    shifts: tuple[Tensor, Tensor]
    bias: Float[Tensor, " n"]
    bases: tuple[Basis, Basis]

    @property
    def V(self) -> Float[Tensor, "m r1"]:
        """The input map; its column l is the direction of node l of the first layer."""
        return reduce(torch.matmul, self.inner)

    @property
    def U(self) -> Float[Tensor, "r2 r1"]:
        """The map between the layers; its row k is the direction of node k of the second layer."""
        return self.hidden

    @property
    def W(self) -> Float[Tensor, "n r2"]:
        """The output map; its column k is where node k of the second layer acts."""
        return reduce(torch.matmul, self.outer)

    def balanced(self) -> LayeredFactors:
        """The same layers with C' and the columns of W of equal norm, which is a free choice."""
        W, second = equal_sizes(self.W, self.coefficients[1])
        return replace(self, outer=(W,), coefficients=(self.coefficients[0], second))

    @property
    def rank(self) -> tuple[int, int]:
        """The numbers of nodes, r1 and r2."""
        return len(self.shifts[0]), len(self.shifts[1])

    def tensors(self) -> tuple[Tensor, ...]:
        """Everything that is solved for, in a fixed order: all but the bias, whose best value follows from the rest."""
        return (*self.inner, self.hidden, *self.outer, *self.shifts, *self.coefficients)

    def with_tensors(self, tensors: Sequence[Tensor]) -> LayeredFactors:
        """The layers with these in the place of `tensors()`."""
        cut = len(self.inner)
        shifts, coefficients = (tensors[-4], tensors[-3]), (tensors[-2], tensors[-1])
        inner, outer = tuple(tensors[:cut]), tuple(tensors[cut + 1 : -4])
        return replace(self, inner=inner, hidden=tensors[cut], outer=outer, shifts=shifts, coefficients=coefficients)

    def layers(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """The coefficients of each layer of activations, with the map that carries them on: `(C, U)` and `(C', W)`."""
        return (self.coefficients[0], self.hidden), (self.coefficients[1], self.W)

    def shifted(self, by: Float[Tensor, " r1"]) -> LayeredFactors:
        """The layers with something added to what arrives at the activations of the first."""
        return replace(self, shifts=(self.shifts[0] + by, self.shifts[1]))

    def influence(self, inputs: Float[Tensor, "S m"]) -> tuple[Float[Tensor, " r1"], Float[Tensor, " r2"]]:
        """How much columns of V, and of W, would count in the Jacobians at the inputs, if they were of unit norm."""
        first, second = self.slopes(inputs)
        after = downstream(self.W, second, self.hidden, first)
        before = (second[:, :, None] * self.hidden * first[:, None]) @ self.V.mT
        return after.square().sum(1).mean(0).sqrt(), before.square().sum(2).mean(0).sqrt()

    def project(self, inputs: Float[Tensor, "S m"]) -> Float[Tensor, "S r1"]:
        """What arrives at the activations of the first layer, `V^T x + a`."""
        return reduce(torch.matmul, self.inner, inputs) + self.shifts[0]

    def between(self, inputs: Float[Tensor, "S m"]) -> Float[Tensor, "S r2"]:
        """What arrives at the activations of the second layer, `U h(V^T x + a) + a'`."""
        first = self.bases[0].combine(self.project(inputs), self.coefficients[0])
        return first @ self.hidden.mT + self.shifts[1]

    def outputs(self, inputs: Float[Tensor, "S m"]) -> Float[Tensor, "S n"]:
        """The layers themselves, `W g(U h(V^T x + a) + a') + b`."""
        return self.bases[1].combine(self.between(inputs), self.coefficients[1]) @ self.W.mT + self.bias

    def slopes(self, inputs: Float[Tensor, "S m"]) -> tuple[Float[Tensor, "S r1"], Float[Tensor, "S r2"]]:
        """The slopes of all activations at the samples: the diagonals of D and D'."""
        first = self.bases[0].curves(self.project(inputs), self.coefficients[0])[1]
        return first, self.bases[1].curves(self.between(inputs), self.coefficients[1])[1]

    def jacobians(self, inputs: Float[Tensor, "S m"]) -> Float[Tensor, "S n m"]:
        """The Jacobians `W D' U D V^T`, in full: `S n m` numbers."""
        first, second = self.slopes(inputs)
        return downstream(self.W, second, self.hidden, first) @ self.V.mT


def downstream(
    W: Float[Tensor, "n r2"], second: Float[Tensor, "S r2"], U: Float[Tensor, "r2 r1"], first: Float[Tensor, "S r1"]
) -> Float[Tensor, "S n r1"]:
    """`W D' U D`: how the outputs move with what arrives at the first layer."""
    return ((W * second[:, None]) @ U) * first[:, None]


def one_layer(factors: Factors | LayeredFactors, verb: str) -> Factors:
    """The factors, if they are those of one layer.

    Raises:
        ValueError: if they are those of two; `verb` says what cannot be done with them.
    """
    if isinstance(factors, LayeredFactors):
        raise ValueError(f"{verb} one layer, got two of {factors.rank[0]} and {factors.rank[1]} nodes")
    return factors


Layer = TypeVar("Layer", Factors, LayeredFactors)
"""One layer or two, and whichever it is, the same again."""
