"""Gauss-Newton for small problems: quadratic convergence to planted layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from tenflex.checks import require_number, require_whole
from tenflex.factors import Factors
from tenflex.objective.normal_equations import normal_equations
from tenflex.objective.prepared import Prepared
from tenflex.result import Result
from tenflex.solvers.base import EXACT, Solver, State, judged, measured, penalized, unfit

MOST_UNKNOWNS = 3000
"""The normal equations are dense: beyond this, `Refine`."""


@dataclass(frozen=True)
class GaussNewton(Solver[float]):
    r"""Levenberg-Marquardt on the exact objective, over V, the shifts, C and W together.

    .. math:: (D^\top D + \mu \, \mathrm{diag}(D^\top D)) \, \delta = D^\top e

    with e all residuals and D their exact Jacobian, accumulated over chunks of samples: `S n m p^2` operations and
    `p^2` numbers for p unknowns. The objective never rises. For full maps; put it inside `Leading` for factored ones.

    References:
        Marquardt, "An algorithm for least-squares estimation of nonlinear parameters", 1963,
        https://doi.org/10.1137/0111030

    Args:
        iterations: The most steps, each tried with growing damping until it lowers the objective.
        tolerance: It has converged when a step lowers the objective by less than this share.

    Raises:
        ValueError: if a number is out of its range, or the problem has more than 3,000 unknowns.

    Example:
        >>> from tenflex.solvers import Chain, GaussNewton, JacobianCPD
        >>> solution = decouple(problem, Chain((JacobianCPD(20), GaussNewton(20))))
        >>> solution.validation_error < 1e-3
        True
    """

    iterations: int = 100
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        require_whole("iterations", self.iterations, at_least=1)
        require_number("tolerance", self.tolerance, at_least=0)

    def total(self, problem: Prepared) -> int:
        return self.iterations

    def init(self, problem: Prepared, generator: torch.Generator) -> State[float]:
        raise ValueError(
            "GaussNewton starts from a layer: put a solver before it, as in Chain((ConstrainedALS(), GaussNewton()))"
        )

    def refusal(self, problem: Prepared) -> str | None:
        return unfit(self, problem, layers=None, weights=True)

    def resume(self, problem: Prepared, state: State[Any]) -> State[float]:
        require_few_unknowns(type(self).__name__, state.factors)
        return state.holding(1e-3, factors=state.factors.full(), taken=0, stopped=None, stage="Gauss-Newton")

    def step(self, problem: Prepared, state: State[float]) -> State[float]:
        here = state.factors
        gram, slope = normal_equations(problem, here, state.smoothing)
        diagonal = gram.diagonal()
        floor = 1e-12 * diagonal.amax()
        damping, before = state.memory, penalized(problem, state)
        while damping < 1e8:
            damped = gram + torch.diag(damping * diagonal.clamp(min=floor))
            lower, failed = torch.linalg.cholesky_ex(damped)
            if not failed:
                there = here.with_flat(here.flat() + torch.cholesky_solve(slope[:, None], lower)[:, 0])
                after = measured(problem, state, there.balanced(), taken=state.taken + 1)
                reached = penalized(problem, after)
                if reached < before:
                    return judged(replace(after, memory=max(damping / 5, 1e-15)), before, reached, self.tolerance)
            damping *= 4
        return replace(state, taken=state.taken + 1, stopped=Result.CONVERGED if before > EXACT else Result.EXACT)


def require_few_unknowns(solver: str, factors: Factors) -> None:
    """Raise ValueError if there are too many for a dense matrix."""
    unknowns = factors.full().flat().numel()
    if unknowns > MOST_UNKNOWNS:
        raise ValueError(f"{solver} takes at most {MOST_UNKNOWNS} unknowns, this problem has {unknowns}: use Refine")
