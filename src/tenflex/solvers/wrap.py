"""Solvers made of solvers: one after another, several starts, the best state seen, a start without weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from tenflex.checks import require_whole
from tenflex.factors import Factors
from tenflex.objective.objective import Objective
from tenflex.objective.prepared import Prepared
from tenflex.result import Result
from tenflex.solvers.base import Solver, State, measured, require_solver

Inner = Solver[Any]
"""A solver inside of another one."""


def score(problem: Prepared, factors: Factors, of: Literal["both", "outputs"] = "both") -> float:
    """The error by which states are compared: on held-out samples, where there are any; infinite when it is NaN."""
    objective = problem.validation or problem.fitted
    jacobian_error, output_error = objective.errors(factors)
    total: float = output_error if of == "outputs" else objective.total(jacobian_error, output_error)
    return total if total == total else float("inf")


def pooled_score(problem: Prepared, factors: Factors) -> float:
    """The error by which starts are compared: on fitted and validation samples, each counting alike.

    All starts are as free, so the fitted samples tell, too, which of them went further, where few validation samples
    tell it by chance.
    """
    told = [one for one in (problem.fitted, problem.validation) if one is not None]
    total: float = sum(one.count * one.total(*one.errors(factors)) for one in told) / sum(one.count for one in told)
    return total if total == total else float("inf")


@dataclass(frozen=True)
class Link:
    """Where a chain stands.

    Args:
        inside: The state of the solver at work.
        number: Which one that is, from 0.
    """

    inside: State[Any]
    number: int


@dataclass(frozen=True)
class Chain(Solver[Link]):
    """One solver after another, each from where the one before it stopped.

    Args:
        solvers: The solvers in their order; the first starts from nothing.

    Raises:
        TypeError: if it is not a tuple of solvers.
        ValueError: if there is none.

    Example:
        >>> from tenflex.solvers import Chain, ConstrainedALS, Refine
        >>> chain = Chain((ConstrainedALS(10), Refine(100)))
        >>> alone, both = (decouple(problem, one) for one in (ConstrainedALS(10), chain))
        >>> both.validation_error < alone.validation_error
        True
    """

    solvers: tuple[Inner, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.solvers, tuple):
            raise TypeError(f"a Chain takes a tuple, as in Chain((ConstrainedALS(), Refine())), got {self.solvers!r}")
        if not self.solvers:
            raise ValueError("a Chain needs at least one solver, got none")
        for one in self.solvers:
            require_solver("each part of a Chain", one)

    def total(self, problem: Prepared) -> int:
        return sum(one.total(problem) for one in self.solvers)

    def refusal(self, problem: Prepared) -> str | None:
        return next(filter(None, (one.refusal(problem) for one in self.solvers)), None)

    def init(self, problem: Prepared, generator: torch.Generator) -> State[Link]:
        inside = self.solvers[0].init(problem, generator)
        return inside.holding(Link(inside, 0), taken=0, stopped=None)

    def resume(self, problem: Prepared, state: State[Any]) -> State[Link]:
        inside = self.solvers[0].resume(problem, state)
        return inside.holding(Link(inside, 0), taken=0, stopped=None)

    def step(self, problem: Prepared, state: State[Link]) -> State[Link]:
        inside, number = state.memory.inside, state.memory.number
        if self.solvers[number].finished(problem, inside):
            number += 1
            inside = self.solvers[number].resume(problem, inside)
        inside = self.solvers[number].step(problem, inside)
        last = number == len(self.solvers) - 1
        stopped = inside.stopped if last or inside.stopped is Result.DIVERGED else None
        return inside.holding(Link(inside, number), taken=state.taken + 1, stopped=stopped)

    def finished(self, problem: Prepared, state: State[Link]) -> bool:
        last = len(self.solvers) - 1
        at_last = state.memory.number == last
        return state.stopped is not None or (at_last and self.solvers[last].finished(problem, state.memory.inside))


@dataclass(frozen=True)
class Starts:
    """How far several starts have come.

    Args:
        inside: The state of the present one.
        best: The end of the best one so far.
        least: Its score.
        begun: How many were begun.
    """

    inside: State[Any]
    best: State[Any] | None
    least: float
    begun: int


@dataclass(frozen=True)
class MultiStart(Solver[Starts]):
    """Several starts of one solver; the one with the least error on fitted and validation samples is kept.

    Args:
        solver: The solver to start.
        starts: How many times.
        first: Another solver that makes the first of these starts; None for the same one.

    Raises:
        TypeError: if `solver` or `first` is not a solver.
        ValueError: if `starts` is not a whole number of at least 1.

    Example:
        >>> from tenflex.solvers import ConstrainedALS, MultiStart
        >>> solution = decouple(problem, MultiStart(ConstrainedALS(10), starts=2))
        >>> solution.validation_error < 1e-3
        True
    """

    solver: Inner
    starts: int = 3
    first: Inner | None = None

    def __post_init__(self) -> None:
        require_solver("solver", self.solver)
        if self.first is not None:
            require_solver("first", self.first)
        require_whole("starts", self.starts, at_least=1)

    def _at(self, number: int) -> Inner:
        """The solver of a start, from 1."""
        return self.first if self.first is not None and number == 1 else self.solver

    def total(self, problem: Prepared) -> int:
        return self._at(1).total(problem) + (self.starts - 1) * self.solver.total(problem)

    def refusal(self, problem: Prepared) -> str | None:
        return self._at(1).refusal(problem) or self.solver.refusal(problem)

    def init(self, problem: Prepared, generator: torch.Generator) -> State[Starts]:
        inside = self._at(1).init(problem, generator)
        starts, stopped = Starts(inside, None, float("inf"), 1), None
        if self._at(1).finished(problem, inside):  # a start without steps, such as an exact one by linear algebra
            starts = replace(starts, best=inside, least=pooled_score(problem, inside.factors))
            stopped = inside.stopped if self.starts == 1 or inside.stopped is Result.EXACT else None
        return inside.holding(starts, taken=0, stopped=stopped, randomness=generator.get_state())

    def step(self, problem: Prepared, state: State[Starts]) -> State[Starts]:
        starts, randomness = self._begun(problem, state)
        present = self._at(starts.begun)
        shown = inside = present.step(problem, starts.inside)
        starts, stopped = replace(starts, inside=inside), None
        if present.finished(problem, inside):
            reached = pooled_score(problem, inside.factors)
            if starts.best is None or reached < starts.least:
                starts = replace(starts, best=inside, least=reached)
            if starts.begun == self.starts or inside.stopped is Result.EXACT:
                shown = starts.best or inside
                stopped = shown.stopped or Result.MOST_STEPS
        if inside.randomness is not None:  # starts within starts have drawn
            randomness = inside.randomness
        return shown.holding(starts, taken=state.taken + 1, stopped=stopped, randomness=randomness)

    def _begun(self, problem: Prepared, state: State[Starts]) -> tuple[Starts, Tensor | None]:
        """The present start, or the next one if that is over, and where random numbers stand."""
        starts = state.memory
        if state.randomness is None or not self._at(starts.begun).finished(problem, starts.inside):
            return starts, state.randomness
        generator = torch.Generator()
        generator.set_state(state.randomness)
        inside = self.solver.init(problem, generator)
        return replace(starts, inside=inside, begun=starts.begun + 1), generator.get_state()

    def finished(self, problem: Prepared, state: State[Starts]) -> bool:
        return state.stopped is not None


@dataclass(frozen=True)
class Within:
    """The state of a solver that is shown another problem.

    Args:
        inside: Its state.
        problem: What it is shown.
    """

    inside: State[Any]
    problem: Prepared


@dataclass(frozen=True)
class Unweighted(Solver[Within]):
    """A solver that is shown the problem without the covariance of the Jacobians, as a start of a weighted one.

    For `Chain((Unweighted(ProjectedALS()), GaussNewton()))`; the errors of its states are the weighted ones.

    Args:
        solver: The solver.

    Raises:
        TypeError: if `solver` is not a solver.

    Example:
        >>> from tenflex.solvers import JacobianCPD, Unweighted
        >>> solution = decouple(problem, Unweighted(JacobianCPD(50)))
        >>> solution.validation_error < 1e-3
        True
    """

    solver: Inner

    def __post_init__(self) -> None:
        require_solver("solver", self.solver)

    def total(self, problem: Prepared) -> int:
        return self.solver.total(problem)

    def refusal(self, problem: Prepared) -> str | None:
        return self.solver.refusal(unweighted(problem))

    def init(self, problem: Prepared, generator: torch.Generator) -> State[Within]:
        plain = unweighted(problem)
        return self._shown(problem, plain, self.solver.init(plain, generator), 0)

    def resume(self, problem: Prepared, state: State[Any]) -> State[Within]:
        plain = unweighted(problem)
        within = measured(plain, state, state.factors)
        return self._shown(problem, plain, self.solver.resume(plain, within), 0)

    def step(self, problem: Prepared, state: State[Within]) -> State[Within]:
        plain = state.memory.problem
        return self._shown(problem, plain, self.solver.step(plain, state.memory.inside), state.taken + 1)

    def _shown(self, problem: Prepared, plain: Prepared, inside: State[Any], taken: int) -> State[Within]:
        return measured(problem, inside.holding(Within(inside, plain), taken=taken), inside.factors)

    def finished(self, problem: Prepared, state: State[Within]) -> bool:
        return self.solver.finished(state.memory.problem, state.memory.inside)


def unweighted(problem: Prepared) -> Prepared:
    """The problem without the covariance of the Jacobians."""

    def without(objective: Objective) -> Objective:
        return objective.on(objective.samples.unweighted())

    validation = None if problem.validation is None else without(problem.validation)
    return replace(problem, fitted=without(problem.fitted), validation=validation)


@dataclass(frozen=True)
class Watched:
    """A solver that is watched.

    Args:
        inside: Its state.
        least: The best score seen.
        since: How many steps ago that was.
    """

    inside: State[Any]
    least: float
    since: int = 0


@dataclass(frozen=True)
class BestSoFar(Solver[Watched]):
    """A solver that need not be monotone, of which the best state seen is kept.

    Args:
        solver: The solver to watch.
        of: The error that decides, on held-out samples where there are any: that of "both" terms or of the "outputs".
        patience: It stops when so many steps in a row have not been better; None to go on to the end.

    Raises:
        TypeError: if `solver` is not a solver.
        ValueError: if `of` is neither, or `patience` is not a whole number of at least 1.

    Example:
        >>> from tenflex.solvers import BestSoFar, ConstrainedALS
        >>> solution = decouple(problem, BestSoFar(ConstrainedALS(25)))
        >>> solution.validation_error < 1e-3
        True
    """

    solver: Inner
    of: Literal["both", "outputs"] = "both"
    patience: int | None = None

    def __post_init__(self) -> None:
        require_solver("solver", self.solver)
        if self.patience is not None:
            require_whole("patience", self.patience, at_least=1)
        if self.of not in ("both", "outputs"):
            raise ValueError(f"of must be 'both' or 'outputs', got {self.of!r}")

    def total(self, problem: Prepared) -> int:
        return self.solver.total(problem)

    def refusal(self, problem: Prepared) -> str | None:
        return self.solver.refusal(problem)

    def init(self, problem: Prepared, generator: torch.Generator) -> State[Watched]:
        return self._watch(problem, self.solver.init(problem, generator), 0, None)

    def resume(self, problem: Prepared, state: State[Any]) -> State[Watched]:
        return self._watch(problem, self.solver.resume(problem, state), 0, None)

    def step(self, problem: Prepared, state: State[Watched]) -> State[Watched]:
        inside = self.solver.step(problem, state.memory.inside)
        return self._watch(problem, inside, state.taken + 1, state)

    def _watch(
        self, problem: Prepared, inside: State[Any], taken: int, before: State[Watched] | None
    ) -> State[Watched]:
        best, watched = inside, Watched(inside, score(problem, inside.factors, self.of))
        if before is not None and not watched.least < before.memory.least:
            best, watched = before, Watched(inside, before.memory.least, before.memory.since + 1)
        in_vain = self.patience is not None and watched.since >= self.patience
        stopped = inside.stopped or (Result.CONVERGED if in_vain else None)
        return best.holding(watched, taken=taken, stage=inside.stage, stopped=stopped, randomness=inside.randomness)

    def finished(self, problem: Prepared, state: State[Watched]) -> bool:
        return state.stopped is not None or self.solver.finished(problem, state.memory.inside)
