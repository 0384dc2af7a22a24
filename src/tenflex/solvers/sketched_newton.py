"""L-BFGS that sees the scales of a Gauss-Newton matrix: for layers that plain L-BFGS improves for too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases.base import positive
from tenflex.checks import require_number, require_whole
from tenflex.factors import Factors
from tenflex.objective.cancellation import CANCELLATION
from tenflex.objective.prepared import Prepared
from tenflex.objective.sketch import sketched_gauss_newton
from tenflex.objective.valley import Valley
from tenflex.result import Result
from tenflex.solvers.base import Solver, State, judged, measured, penalized, unfit
from tenflex.solvers.gauss_newton import require_few_unknowns
from tenflex.solvers.refine import Descent


@dataclass(frozen=True)
class SketchedNewton(Solver[None]):
    r"""The exact joint refinement by L-BFGS, in coordinates in which an estimated Gauss-Newton matrix is the identity.

    .. math:: x = x_0 + L^{-\top} y, \qquad
        L L^\top = \tilde D^\top \tilde D + \mu \, \mathrm{diag}(\tilde D^\top \tilde D)

    with :math:`\tilde D` the derivatives of random combinations of the residuals. Values and gradients are exact, and
    the objective never rises. Each step of the loop takes a new estimate, for `2 rows p^3` multiply-adds and `p^2`
    numbers for p unknowns, whatever the number of samples, and then `iterations` evaluations of the objective. The
    objective of two layers has long and narrow valleys, along which `Refine` creeps; here they are round. For full
    maps; put it inside `Leading` for factored ones. Let splines be `Smooth`, if only a little: it finds the lowest
    error, also by coefficients that no sample tells much about, as those at the end of an interval.

    References:
        Pilanci, Wainwright, "Newton sketch: a near linear-time optimization algorithm with linear-quadratic
        convergence", 2017, https://doi.org/10.1137/15M1021106
        Jiang, Byrd, Eskow, Schnabel, "A preconditioned L-BFGS algorithm with application to molecular energy
        minimization", 2004 (L-BFGS in coordinates from a second matrix)

    Args:
        rounds: The most estimates; each makes one step of the loop.
        iterations: The iterations of L-BFGS with one of them.
        rows: The random combinations of outputs, and as many of Jacobians, for every unknown.
        damping: mu.
        tolerance: It has converged when a step lowers the objective by less than this share.

    Raises:
        ValueError: if a number is out of its range, or the problem has more than 3,000 unknowns.

    Example:
        >>> from tenflex.solvers import Chain, JacobianCPD, SketchedNewton
        >>> solution = decouple(problem, Chain((JacobianCPD(20), SketchedNewton(rounds=3))))
        >>> solution.validation_error < 1e-3
        True
    """

    rounds: int = 40
    iterations: int = 25
    rows: int = 4
    damping: float = 1e-3
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("rounds", "iterations", "rows"):
            require_whole(name, getattr(self, name), at_least=1)
        for name in ("damping", "tolerance"):
            require_number(name, getattr(self, name), at_least=0)

    def total(self, problem: Prepared) -> int:
        return self.rounds

    def init(self, problem: Prepared, generator: torch.Generator) -> State[None]:
        raise ValueError(
            "SketchedNewton starts from a layer: put a solver before it, as in Chain((LayeredALS(), SketchedNewton()))"
        )

    def refusal(self, problem: Prepared) -> str | None:
        return unfit(self, problem, layers=None, views=True)

    def resume(self, problem: Prepared, state: State[Any]) -> State[None]:
        require_few_unknowns(type(self).__name__, state.factors)
        return state.holding(None, factors=state.factors.full(), taken=0, stopped=None, stage="sketched Newton")

    def step(self, problem: Prepared, state: State[None]) -> State[None]:
        generator = torch.Generator().manual_seed(state.taken)
        count = self.rows * state.factors.flat().numel()
        gram = sketched_gauss_newton(problem, state.factors, state.smoothing, count, generator)
        exact, old = state.jacobian_error < CANCELLATION, penalized(problem, state)
        lower = triangle(gram, self.damping)
        valley = ScaledValley(problem, state.factors, state.smoothing, old, exact, lower=lower)
        ahead = Descent.at(valley, self.iterations, history=self.iterations).advanced()
        after = measured(problem, state, ahead.factors.balanced(), taken=state.taken + 1)
        new = penalized(problem, after)
        if not new <= old:
            return replace(state, taken=after.taken, stopped=Result.CONVERGED)
        return judged(after, old, new, self.tolerance)


def triangle(gram: Float[Tensor, "p p"], damping: float) -> Float[Tensor, "p p"]:
    """The Cholesky factor of the damped matrix, with as much more damping as it takes to have one."""
    diagonal = gram.diagonal()
    floored = torch.maximum(diagonal, 1e-9 * positive(diagonal.amax()))
    while True:
        lower, failed = torch.linalg.cholesky_ex(gram + torch.diag(damping * floored))
        if not failed:
            return lower
        if damping > 1:  # not a matter of rounding: some entry is not finite
            return torch.diag(torch.ones_like(diagonal))
        damping = max(10 * damping, 1e-12)


@dataclass(frozen=True, eq=False, kw_only=True)
class ScaledValley(Valley):
    """The same in y, with all unknowns at `x_0 + L^-T y`.

    Args:
        lower: L, `(p, p)`.
    """

    lower: Float[Tensor, "p p"]

    def start(self) -> Sequence[Tensor]:
        return [self.lower.new_zeros(len(self.lower))]

    def layer(self, parameters: Sequence[Tensor]) -> Factors:
        (y,) = parameters
        step = torch.linalg.solve_triangular(self.lower.mT, y[:, None], upper=True)[:, 0]
        return self.factors.with_flat(self.factors.flat() + step)
