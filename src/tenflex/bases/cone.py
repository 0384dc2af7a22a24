"""The activations that are allowed: a cone of coefficients, given by linear inequalities."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenflex.bases.bernstein import bernstein_rows
from tenflex.bases.orthonormal import Orthonormal

NOTHING = 1e-10
"""A row of this share of the largest is zero, and so is a multiplier of this share."""

FLAT = 1e-7
"""A cone whose rows come so near to cancelling each other has no interior."""


@dataclass(frozen=True, eq=False)
class Cone:
    r"""The coefficients :math:`c = N y` with :math:`A y \ge 0`.

    Args:
        rows: A, unit rows, `(r, q, e)`, or `(1, q, e)` when all nodes share them.
        span: N, orthonormal columns, `(d, e)`: the smallest subspace that holds the cone, so the cone has an interior
            in y. It is smaller than the whole space where inequalities can only hold as equalities, such as
            `g'(0) = 0` for a non-negative polynomial with `g(0) = 0`.
    """

    rows: Float[Tensor, "r_or_1 q e"]
    span: Float[Tensor, "d e"]

    def to(self, like: Tensor) -> Cone:
        """The cone with the dtype and device of `like`."""
        return Cone(self.rows.to(like), self.span.to(like))

    def among(self, nodes: Int[Tensor, " some"]) -> Cone:
        """The cone of some nodes."""
        return self if len(self.rows) == 1 else Cone(self.rows[nodes], self.span)

    def slack(self, coefficients: Float[Tensor, "r d"]) -> Float[Tensor, "r q"]:
        """`A y` for the part of `c` in the span: the cone is where no entry is negative."""
        return torch.einsum("rqe,re->rq", self.rows.expand(len(coefficients), -1, -1), coefficients @ self.span)

    def leaning(self, coefficients: Float[Tensor, "r d"]) -> Float[Tensor, " r"]:
        """For each activation, 1 or -1: the sign with which it comes nearer to the cone."""
        slack = self.slack(coefficients)
        return torch.where(slack.clamp(min=0).norm(dim=1) >= slack.clamp(max=0).norm(dim=1), 1.0, -1.0).to(slack)


@lru_cache(maxsize=256)
def cone_of(basis: Orthonormal, orders: tuple[int, ...]) -> Cone:
    """The cone in which the derivatives of some orders, at least one, are non-negative."""
    template = Orthonormal(basis.template or basis.basis)
    span = spanned(recombined(template, orders)[0])
    rows = recombined(basis, orders) @ span
    size = rows.norm(dim=2, keepdim=True)
    alive = (size > NOTHING * size.amax()).any(0)[:, 0]
    return Cone(rows[:, alive] / size[:, alive], span)


def recombined(basis: Orthonormal, orders: tuple[int, ...]) -> Float[Tensor, "r_or_1 q d"]:
    """The inequalities of the basis inside, in orthonormal coordinates."""
    rows = torch.cat([bernstein_rows(basis.basis, order) for order in orders], 1)
    return rows @ basis.matrix(rows)


def spanned(rows: Float[Tensor, "q d"]) -> Float[Tensor, "d e"]:
    r"""Orthonormal columns that span the cone `A c >= 0`.

    By Gordan's theorem the cone has an interior unless :math:`A^\top \mu = 0` for some :math:`\mu \ge 0` that is not
    zero; then the rows with :math:`\mu_i > 0` vanish on all of the cone, and are taken out one after another.
    """
    span = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    largest = rows.norm(dim=1).amax()
    while span.shape[1]:
        within = rows @ span
        size = within.norm(dim=1)
        within = within[size > NOTHING * largest] / size[size > NOTHING * largest, None]
        if not len(within):
            break
        hull = torch.cat([within.mT, within.new_ones(1, len(within))])
        goal = hull.new_zeros(len(hull))
        goal[-1] = 1
        weights = nonnegative_least_squares(hull, goal)
        if (hull @ weights - goal).norm() > FLAT:
            break
        tight = within[weights > NOTHING * weights.amax()]
        _, sizes, axes = torch.linalg.svd(tight)
        span = span @ axes[int((sizes > FLAT * sizes[0]).sum()) :].mT
    return span


def nonnegative_least_squares(matrix: Float[Tensor, "p q"], right: Float[Tensor, " p"]) -> Float[Tensor, " q"]:
    """The least `|M x - b|` over `x >= 0`, for small problems, by an active set.

    References:
        Lawson, Hanson, "Solving least squares problems", 1974, chapter 23.
    """
    x = matrix.new_zeros(matrix.shape[1])
    free = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    enough = 1e-13 * matrix.norm() * right.norm()
    for _ in range(3 * len(x)):
        slope = matrix.mT @ (right - matrix @ x)
        slope[free] = -torch.inf
        if slope.max() <= enough:
            break
        free[slope.argmax()] = True
        x = towards(matrix, right, x, free)
    return x


def towards(matrix: Tensor, right: Tensor, x: Tensor, free: Tensor) -> Tensor:
    """Least squares over the free unknowns, each of which is fixed at zero when it would fall below; `free` changes."""
    while True:
        best = torch.zeros_like(x)
        best[free] = torch.linalg.pinv(matrix[:, free], rcond=1e-13) @ right
        below = free & (best <= 0)
        if not below.any():
            return best
        share = (x[below] / (x[below] - best[below])).min()
        x = torch.where(free, x + share * (best - x), 0.0)
        free &= x > 1e-15 * x.abs().amax()
        x = torch.where(free, x, 0.0)
