"""A start from whole Jacobians of a few outputs at a few samples, for samples that hold views of them only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from tenflex.factors import Factors
from tenflex.objective.linear import solve_positive
from tenflex.objective.prepared import Prepared
from tenflex.objective.steps import output_moments
from tenflex.solvers.base import Solver, State, measured, require_solver

RIDGE = 1e-6
"""Of the last least squares, relative to the mean diagonal: nodes that were alike for the pilot stay bounded."""


@dataclass(frozen=True)
class Lifted(Solver[State[Any]]):
    """Solve for the pilot of samples that hold views, and take the nodes over to all samples and outputs.

    The pilot has whole Jacobians of some combinations of the outputs at some of the samples, so solvers that need whole
    ones can start there. Directions and activations are theirs; the output map is found by least squares on all
    outputs. A refinement over everything should follow. A problem with whole Jacobians is solved as it is.

    Args:
        solver: The solver for the pilot.

    Raises:
        TypeError: if `solver` is not a solver.

    Example:
        >>> from tenflex.solvers import JacobianCPD, Lifted
        >>> decouple(problem, Lifted(JacobianCPD(50))).validation_error < 1e-3
        True
    """

    solver: Solver[Any]

    def __post_init__(self) -> None:
        require_solver("solver", self.solver)

    def total(self, problem: Prepared) -> int:
        return self.solver.total(problem)

    def refusal(self, problem: Prepared) -> str | None:
        samples = problem.fitted.samples
        if samples.views is not None and samples.pilot is None:
            return (
                "Lifted begins with the pilot of samples that hold views of their Jacobians, but these have none: give "
                "them one, begin with ConstrainedALS, or with layers that are known, decouple(problem, start=...)"
            )
        return self.solver.refusal(pilot_problem(problem))

    def init(self, problem: Prepared, generator: torch.Generator) -> State[State[Any]]:
        return self._lift(problem, self.solver.init(pilot_problem(problem), generator), 0)

    def step(self, problem: Prepared, state: State[State[Any]]) -> State[State[Any]]:
        return self._lift(problem, self.solver.step(pilot_problem(problem), state.memory), state.taken + 1)

    def _lift(self, problem: Prepared, inside: State[Any], taken: int) -> State[State[Any]]:
        state = inside.holding(inside, taken=taken)
        if problem.fitted.samples.views is None:
            return state
        return measured(problem, state, lifted(problem, inside.factors))

    def finished(self, problem: Prepared, state: State[State[Any]]) -> bool:
        return self.solver.finished(pilot_problem(problem), state.memory)


def pilot_problem(problem: Prepared) -> Prepared:
    """The problem for full maps on the pilot of its samples; the problem itself where Jacobians are whole."""
    pilot = problem.fitted.pilot
    if pilot is None:
        return problem
    return replace(problem, fitted=pilot, validation=None, test=None, factor=None, output_factor=None)


def lifted(problem: Prepared, factors: Factors) -> Factors:
    """Layers that were found for other outputs of the same samples, with the best output map for all of these."""
    objective = problem.fitted
    gram, right = output_moments(objective, factors)
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return replace(factors.with_map(-1, solve_positive(gram + ridge, right)), bias=objective.mean).balanced()
