"""What a solver is: a first state, and a step to the next one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from tenflex.objective.prepared import Prepared, with_best_bias
from tenflex.objective.roughness import roughness
from tenflex.result import Result


@dataclass(frozen=True)
class State:
    """Where a solver stands.

    Args:
        factors: The layer (`Factors`), or the two (`LayeredFactors`), in the prepared coordinates.
        jacobian_error: The relative squared error of the Jacobians of the fitted samples.
        output_error: The same of the outputs.
        smoothing: The weight of the roughness penalty in use.
        taken: The steps taken by the solver.
        stopped: Why it stopped, or None while it goes on.
        stage: The name of the algorithm at work, for progress.
        memory: What the solver keeps between steps; only the solver reads it.
    """

    factors: Any
    jacobian_error: float
    output_error: float
    smoothing: float = 0.0
    taken: int = 0
    stopped: Result | None = None
    stage: str = ""
    memory: Any = None


class Solver(ABC):
    """An algorithm as a first state and a step. The loop, the history and the failures are in `decouple`."""

    keeps_constraints: ClassVar[bool] = False
    """Whether the activations of every state are what `Monotone` and `NonNegative` ask for; others are refused."""

    layers: ClassVar[tuple[int, ...]] = (1,)
    """How many layers of activations it can find; problems that ask for others are refused."""

    uses_covariance: ClassVar[bool] = False
    """Whether the Jacobians' errors are weighted by the inverse of their covariance; others are refused one."""

    @abstractmethod
    def init(self, problem: Prepared, generator: torch.Generator) -> State:
        """A first state from nothing; all randomness comes from `generator`."""

    @abstractmethod
    def step(self, problem: Prepared, state: State) -> State:
        """The next state, with `taken` one higher; `stopped` is set when there is no use in going on."""

    @abstractmethod
    def total(self, problem: Prepared) -> int:
        """The most steps it will take."""

    def resume(self, problem: Prepared, state: State) -> State:
        """A first state from what another solver left."""
        raise ValueError(f"{type(self).__name__} starts from nothing: put it first in a Chain")

    def finished(self, problem: Prepared, state: State) -> bool:
        """Whether it stopped by itself or has taken all its steps."""
        return state.stopped is not None or state.taken >= self.total(problem)

    def parts(self) -> tuple[Solver, ...]:
        """The algorithms at work: those inside for a solver made of solvers, else the solver itself."""
        return (self,)


def require_solver(name: str, value: object) -> None:
    """Raise TypeError unless `value` is a solver."""
    if not isinstance(value, Solver):
        raise TypeError(f"{name} must be a solver such as ConstrainedALS(), got {value!r}")


def require_covariance_used(problem: Prepared, solver: Solver) -> None:
    """Raise ValueError if the Jacobians have a covariance that a part of the solver would ignore."""
    ignoring = next((part for part in solver.parts() if not part.uses_covariance), None)
    if ignoring is not None and problem.fitted.samples.covariance is not None:
        raise ValueError(
            f"{type(ignoring).__name__} does not use the covariance of the Jacobians: use WeightedCPD, ConstrainedALS, "
            f"Refine or GaussNewton, or drop it with samples.unweighted() or, for a start only, with Unweighted(solver)"
        )


def measured(problem: Prepared, state: State, factors: Any, **changes: Any) -> State:
    """`state` with new factors, their errors on the fitted samples, and other changes."""
    factors = with_best_bias(problem.fitted, factors)
    jacobian_error, output_error = problem.fitted.errors(factors)
    return replace(state, factors=factors, jacobian_error=jacobian_error, output_error=output_error, **changes)


EXACT = 1e-26
"""A relative squared error that is rounding and nothing else."""


def judged(after: State, old: float, new: float, tolerance: float) -> State:
    """A state whose objective is `new`, after one where it was `old`: stopped if there is no use in going on."""
    if new < EXACT:
        return replace(after, stopped=Result.EXACT)
    return replace(after, stopped=Result.CONVERGED) if old - new < tolerance * old else after


def penalized(problem: Prepared, state: State) -> float:
    """The objective of a state, with the roughness penalty in use."""
    objective = problem.fitted
    error = state.jacobian_error + float(objective.weight_f * objective.size_f) * state.output_error
    if problem.penalty is None:
        return error
    return error + float(roughness(problem, state.factors, state.smoothing))
