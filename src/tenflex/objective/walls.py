"""Inequalities as terms of the objective: they keep a descent over everything near the activations allowed."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tenflex.bases.cone import Cone
from tenflex.factors import Factors
from tenflex.objective.prepared import Prepared
from tenflex.objective.steps import activate, coefficient_system

STIFFNESS = 10.0
"""The curvature of a wall relative to that of the objective in the coefficients."""


@dataclass(frozen=True, eq=False)
class Walls:
    r"""The augmented Lagrangian of the inequalities `A c_k >= 0`.

    .. math:: \sum_k \frac{1}{2 \rho} \left\| \max(0, \lambda_k - \rho \, \|w_k\| A c_k) \right\|^2

    The slack is that of :math:`\|w_k\| g_k`, so moving scale between an activation and its column of W, which changes
    nothing, changes nothing here.

    References:
        Rockafellar, "The multiplier method of Hestenes and Powell applied to convex programming", 1973,
        https://doi.org/10.1007/BF00934777

    Args:
        cone: The activations that are allowed.
        multipliers: lambda, `(r, q)`.
        stiffness: rho.
    """

    cone: Cone
    multipliers: Float[Tensor, "r q"]
    stiffness: Float[Tensor, ""]

    def price(self, factors: Factors) -> Float[Tensor, ""]:
        """What the descent pays, differentiable in W and C."""
        slack = sizes(factors)[:, None] * self.cone.slack(factors.only.coefficients)
        return (self.multipliers - self.stiffness * slack).clamp(min=0).square().sum() / (2 * self.stiffness)


def sizes(factors: Factors) -> Float[Tensor, " r"]:
    """The norms of the columns of W, with a gradient where they are zero."""
    return factors.W.square().sum(0).clamp(min=1e-30).sqrt()


def within_walls(problem: Prepared, factors: Factors, smoothing: float) -> tuple[Factors, Walls | None]:
    """The layer with the best coefficients that are allowed, and the walls that hold a descent there.

    A problem without inequalities has no walls, and its layer stays as it is.
    """
    cone = problem.cone(factors.only.basis) if problem.nonnegative else None
    if cone is None:
        return factors, None
    one = factors.only
    activated = activate(one.basis, problem.fitted, factors.V, one.shift)
    system = coefficient_system(problem, activated, factors.V, factors.W)
    coefficients, multipliers = system.solve_within(cone, one.coefficients, smoothing)
    size = sizes(factors)
    curvature = system.diagonal().mean() / size.square().mean()
    # The system is half of the objective's gradient.
    walls = Walls(cone, 2 * multipliers / size[:, None], 2 * STIFFNESS * curvature)
    return factors.with_activations(0, coefficients=coefficients), walls
