"""What a solver is: a first state, and a step to the next one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from tenflex.factors import Factors
from tenflex.objective.prepared import Prepared
from tenflex.objective.roughness import roughness
from tenflex.result import Result

EXACT = 1e-26
"""A relative squared error that is rounding and nothing else."""

Memory = TypeVar("Memory")
"""What a solver keeps between steps."""


@dataclass(frozen=True, eq=False)
class State(Generic[Memory]):
    """Where a solver stands. Nothing in it ever changes: a step from the same state gives the same bits twice.

    Args:
        factors: The layers, in the prepared coordinates.
        memory: What the solver keeps between steps; only the solver reads it.
        jacobian_error: The relative squared error of the Jacobians of the fitted samples.
        output_error: The same of the outputs.
        smoothing: The weight of the roughness penalty in use.
        taken: The steps taken by the solver.
        stopped: Why it stopped, or None while it goes on.
        stage: The name of the algorithm at work, for progress.
        randomness: Where the generator of random numbers stands, a tensor of bytes, for what begins anew; None if
            nothing does.

    Example:
        >>> from tenflex.solvers import ConstrainedALS
        >>> prepared, _ = tenflex.solvers.prepare(problem)
        >>> state = ConstrainedALS(5).init(prepared, torch.Generator().manual_seed(0))
        >>> state.taken, state.stopped
        (0, None)
    """

    factors: Factors
    memory: Memory
    jacobian_error: float = 0.0
    output_error: float = 0.0
    smoothing: float = 0.0
    taken: int = 0
    stopped: Result | None = None
    stage: str = ""
    randomness: Tensor | None = None

    def holding(self, memory: Any, **changes: Any) -> State[Any]:
        """The state with the memory of another solver, and other changes."""
        return replace(self, memory=memory, **changes)


class Solver(ABC, Generic[Memory]):
    """An algorithm as a first state and a step. The loop, the history and the failures are in `decouple`.

    Example:
        >>> from tenflex.solvers import ConstrainedALS
        >>> solver = ConstrainedALS(5)
        >>> prepared, _ = tenflex.solvers.prepare(problem)
        >>> state = solver.init(prepared, torch.Generator().manual_seed(0))
        >>> solver.step(prepared, state).taken, solver.total(prepared)
        (1, 5)
    """

    @abstractmethod
    def init(self, problem: Prepared, generator: torch.Generator) -> State[Memory]:
        """A first state from nothing; all randomness comes from `generator`."""

    @abstractmethod
    def step(self, problem: Prepared, state: State[Memory]) -> State[Memory]:
        """The next state, with `taken` one higher; `stopped` is set when there is no use in going on."""

    @abstractmethod
    def total(self, problem: Prepared) -> int:
        """The most steps it will take."""

    @abstractmethod
    def refusal(self, problem: Prepared) -> str | None:
        """Why the problem cannot be given to this solver, and what to do instead; None if it can."""

    def resume(self, problem: Prepared, state: State[Any]) -> State[Memory]:
        """A first state from what another solver left, or from factors that were given."""
        raise ValueError(
            f"{type(self).__name__} starts from nothing: put it first in a Chain, and take Refine() from known layers"
        )

    def finished(self, problem: Prepared, state: State[Memory]) -> bool:
        """Whether it stopped by itself or has taken all its steps."""
        return state.stopped is not None or state.taken >= self.total(problem)


def unfit(
    solver: Solver[Any],
    problem: Prepared,
    *,
    layers: tuple[int, ...] | None = (1,),
    weights: bool = False,
    shapes: bool = False,
    views: bool = False,
) -> str | None:
    """Why a problem asks for more than an algorithm knows of; None if it does not.

    Args:
        solver: The algorithm.
        problem: What it is asked for.
        layers: How many layers of activations it can find; None for any number.
        weights: Whether it weights the errors of the Jacobians by the inverse of their covariance.
        shapes: Whether the activations of every state are what `Monotone` and `NonNegative` ask for.
        views: Whether views will do in the place of whole Jacobians.
    """
    name, asked = type(solver).__name__, len(problem.ranks)
    if layers is not None and asked not in layers:
        cure, rank = ("LayeredALS", problem.ranks) if asked > 1 else ("ConstrainedALS", problem.rank)
        return (
            f"{name} cannot find {asked} layer{'s' * (asked > 1)}, as rank={rank} asks for: use {cure} and "
            f"Refine, or leave the solver out"
        )
    if problem.nonnegative and asked > 1:
        return (
            "several layers with Monotone or NonNegative activations cannot be found: use one layer, rank=r, or a "
            "basis without these constraints"
        )
    if problem.nonnegative and not shapes:
        return (
            f"{name} does not keep activations monotone or non-negative, as the basis asks for: use ConstrainedALS and "
            f"Refine, or leave the solver out"
        )
    if problem.fitted.samples.views is not None and not views:
        return (
            f"{name} needs whole Jacobians, but the samples hold {_seen(problem.fitted.samples.views)}: put it into "
            f"Lifted({name}()), which begins with the pilot, use Refine from a start, or sample whole Jacobians"
        )
    if problem.fitted.samples.covariance is not None and not weights:
        return (
            f"{name} does not use the covariance of the Jacobians: use WeightedCPD, ConstrainedALS, Refine or "
            f"GaussNewton, or drop it with samples.unweighted() or, for a start only, with Unweighted(solver)"
        )
    return None


def _seen(views: int) -> str:
    """What samples hold that have no whole Jacobians."""
    return f"{views} view{'s' * (views > 1)} of each" if views else "outputs only"


def require_solver(name: str, value: object) -> None:
    """Raise TypeError unless `value` is a solver."""
    if not isinstance(value, Solver):
        raise TypeError(f"{name} must be a solver such as ConstrainedALS(), got {value!r}")


def measured(problem: Prepared, state: State[Memory], factors: Factors, **changes: Any) -> State[Memory]:
    """`state` with new factors, their errors on the fitted samples, and other changes."""
    factors, jacobian_error, output_error = problem.fitted.measured(factors)
    return replace(state, factors=factors, jacobian_error=jacobian_error, output_error=output_error, **changes)


def penalized(problem: Prepared, state: State[Any]) -> float:
    """The objective of a state, with the roughness penalty in use."""
    error: float = problem.fitted.total(state.jacobian_error, state.output_error)
    if problem.penalty is None:
        return error
    return error + float(roughness(problem, state.factors, state.smoothing))


def judged(after: State[Memory], old: float, new: float, tolerance: float) -> State[Memory]:
    """A state whose objective is `new`, after one where it was `old`: stopped if there is no use in going on."""
    if new < EXACT:
        return replace(after, stopped=Result.EXACT)
    return replace(after, stopped=Result.CONVERGED) if old - new < tolerance * old else after
