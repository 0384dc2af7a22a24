"""Quadratic programmes in the coefficients: the least-squares step when activations must have a given shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.objective.linear import solve_positive

STEPS = 60
"""The most steps; ten to twenty-five are usual."""


EXACT = 1e-13
"""It has converged when what is left of the optimality conditions is this share of the right-hand side."""


BACK = 0.995
"""The share of the way to the boundary that a step goes."""


@dataclass(frozen=True, eq=False)
class Point:
    """Where the method stands.

    Args:
        y: The unknowns, `(r, e)`.
        slack: `A y` when it has converged, above zero, `(r, q)`.
        multipliers: Of the inequalities, above zero, `(r, q)`.
    """

    y: Float[Tensor, "r e"]
    slack: Float[Tensor, "r q"]
    multipliers: Float[Tensor, "r q"]

    def gap(self) -> Float[Tensor, ""]:
        """The mean of slack times multiplier: zero at the minimum."""
        return (self.slack * self.multipliers).mean()


@dataclass(frozen=True, eq=False)
class QuadraticProgramme:
    r"""The least :math:`\tfrac12 y^\top Q y - b^\top y` subject to :math:`A_k y_k \ge 0` for every node k.

    A primal-dual interior-point method with Mehrotra's corrector. One Cholesky factorization a step, of Q plus a block
    for every node, whatever the number of inequalities; an accuracy near rounding in ten to twenty-five steps, and
    never more than 60. The inequalities must have an interior (`tenflex.bases.cone` sees to that).

    References:
        Mehrotra, "On the implementation of a primal-dual interior point method", 1992,
        https://doi.org/10.1137/0802028

    Args:
        gram: Q, positive definite, `(r e, r e)`.
        right: b, `(r, e)`.
        rows: A, unit rows, `(r, q, e)` or `(1, q, e)`.
    """

    gram: Float[Tensor, "re re"]
    right: Float[Tensor, "r e"]
    rows: Float[Tensor, "r_or_1 q e"]

    def solve(self) -> tuple[Float[Tensor, "r e"], Float[Tensor, "r q"]]:
        """The minimum and the multipliers of the inequalities, `Q y - b = A^T multipliers`."""
        size = self.gram.diagonal().mean()
        length = self.right.norm()
        if not length > 0:
            return torch.zeros_like(self.right), self._forms(self.right)
        unit = QuadraticProgramme(self.gram / size, self.right / length, self.rows)
        y, multipliers = unit._from_within()
        return y * (length / size), multipliers * length

    def _from_within(self) -> tuple[Tensor, Tensor]:
        """The solution when Q and b are of unit size."""
        y = solve_positive(self.gram, self.right.reshape(-1, 1)).view_as(self.right)
        slack = self._forms(y)
        if slack.min() >= 0:
            return y, torch.zeros_like(slack)
        margin = slack.abs().mean()
        point = Point(y, slack.clamp(min=margin), torch.full_like(slack, float(margin)))
        off = self._off(point)
        best, least = point, left_at(point, off)
        for _ in range(STEPS):
            further = None if least < EXACT else self._step(point, off)
            if further is None:
                break
            point, off = further, self._off(further)
            left = left_at(point, off)
            if left < least:  # where rounding says how near it comes, later points may be far away
                best, least = point, left
        return best.y, best.multipliers

    def _off(self, at: Point) -> tuple[Tensor, Tensor]:
        """By how much the gradient is not that of the multipliers, and forms are not the slack."""
        dual = (self.gram @ at.y.flatten()).view_as(at.y) - self.right - self._back(at.multipliers)
        return dual, self._forms(at.y) - at.slack

    def _step(self, at: Point, off: tuple[Tensor, Tensor]) -> Point | None:
        """Predict without centring, correct with as much as the prediction deserves; None when it is of no use."""
        off_dual, off_primal = off
        gap = at.gap()
        weights = at.multipliers / at.slack
        lower = factorized(self.gram + self._blocks(weights))
        if lower is None:
            return None

        def direction(products: Tensor) -> Point:
            """The Newton direction to where the products, besides what is off, are zero."""
            right = -off_dual - self._back(products / at.slack + weights * off_primal)
            y = torch.cholesky_solve(right.reshape(-1, 1), lower).view_as(right)
            slack = self._forms(y) + off_primal
            return Point(y, slack, -products / at.slack - weights * slack)

        products = at.slack * at.multipliers
        predicted = direction(products)
        centring = (moved(at, predicted, 1.0).gap() / gap) ** 3
        after = moved(at, direction(products + predicted.slack * predicted.multipliers - centring * gap), BACK)
        return after if after.y.isfinite().all() and after.gap().isfinite() else None

    def _blocks(self, weights: Tensor) -> Float[Tensor, "re re"]:
        """`A^T diag(weights) A`."""
        return torch.block_diag(*((self.rows * weights[..., None]).mT @ self.rows))

    def _forms(self, y: Tensor) -> Tensor:
        """`A y`."""
        return torch.einsum("rqe,re->rq", self.rows.expand(len(y), -1, -1), y)

    def _back(self, forms: Tensor) -> Tensor:
        """`A^T z`."""
        return torch.einsum("rqe,rq->re", self.rows.expand(len(forms), -1, -1), forms)


def left_at(at: Point, off: tuple[Tensor, Tensor]) -> float:
    """What is left of the optimality conditions at a point, with what is off there."""
    return float(max(off[0].norm(), off[1].norm(), at.gap() * at.slack.numel()))


def factorized(matrix: Float[Tensor, "p p"]) -> Float[Tensor, "p p"] | None:
    """The Cholesky factor; near the end, where weights differ by many orders, of the matrix with a ridge of rounding.

    What is left of the optimality conditions is measured without it, so it only shortens the last steps.
    """
    diagonal = matrix.diagonal()
    for ridge in (0.0, 1e-15, 1e-13):
        lower, failed = torch.linalg.cholesky_ex(matrix + torch.diag(ridge * diagonal))
        if not failed:
            return lower
    return None


def moved(at: Point, direction: Point, share: float) -> Point:
    """The point after a step that goes `share` of the way to the boundary, slack and multipliers each on its own."""
    primal = longest(at.slack, direction.slack, share)
    dual = longest(at.multipliers, direction.multipliers, share)
    length = torch.minimum(primal, dual)
    return Point(
        at.y + length * direction.y,
        at.slack + length * direction.slack,
        at.multipliers + length * direction.multipliers,
    )


def longest(values: Tensor, direction: Tensor, share: float) -> Tensor:
    """The longest step, at most 1, that goes `share` of the way to where a value becomes zero."""
    return (-share * values / direction.clamp(max=-1e-300)).amin().clamp(max=1)
