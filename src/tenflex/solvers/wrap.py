"""Solvers made of solvers: one after another, several starts, the best state seen, a start without weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from tenflex.checks import require_whole
from tenflex.factors import Factors
from tenflex.objective.objective import Objective
from tenflex.objective.prepared import Prepared
from tenflex.result import Result
from tenflex.solvers.base import Solver, State, measured, require_solver


def around(inside: State, taken: int, stopped: Result | None = None, **memory: Any) -> State:
    """The state of a wrapper: what the wrapped solver shows, and the wrapper's own count and memory."""
    return replace(inside, taken=taken, stopped=stopped, memory={"inside": inside, **memory})


def score(problem: Prepared, factors: Factors, of: Literal["both", "outputs"] = "both") -> float:
    """The error by which states are compared: on held-out samples, where there are any; infinite when it is NaN."""
    objective = problem.held_out or problem.fitted
    jacobian_error, output_error = objective.errors(factors)
    coupling = float(objective.weight_f * objective.size_f)
    total = output_error if of == "outputs" else jacobian_error + coupling * output_error
    return total if total == total else float("inf")


@dataclass(frozen=True)
class Chain(Solver):
    """One solver after another, each from where the one before it stopped.

    Args:
        solvers: The solvers in their order; the first starts from nothing.

    Raises:
        TypeError: if it is not a tuple of solvers.
        ValueError: if there is none.
    """

    solvers: tuple[Solver, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.solvers, tuple):
            raise TypeError(f"a Chain takes a tuple, as in Chain((ConstrainedALS(), Refine())), got {self.solvers!r}")
        if not self.solvers:
            raise ValueError("a Chain needs at least one solver, got none")
        for one in self.solvers:
            require_solver("each part of a Chain", one)

    def total(self, problem: Prepared) -> int:
        return sum(one.total(problem) for one in self.solvers)

    def parts(self) -> tuple[Solver, ...]:
        return tuple(part for one in self.solvers for part in one.parts())

    def init(self, problem: Prepared, generator: torch.Generator) -> State:
        return around(self.solvers[0].init(problem, generator), 0, link=0)

    def resume(self, problem: Prepared, state: State) -> State:
        return around(self.solvers[0].resume(problem, state), 0, link=0)

    def step(self, problem: Prepared, state: State) -> State:
        inside, link = state.memory["inside"], state.memory["link"]
        if self.solvers[link].finished(problem, inside):
            link += 1
            inside = self.solvers[link].resume(problem, inside)
        inside = self.solvers[link].step(problem, inside)
        last = link == len(self.solvers) - 1
        stopped = inside.stopped if last or inside.stopped is Result.DIVERGED else None
        return around(inside, state.taken + 1, stopped, link=link)

    def finished(self, problem: Prepared, state: State) -> bool:
        last = len(self.solvers) - 1
        at_last = state.memory["link"] == last
        return state.stopped is not None or (at_last and self.solvers[last].finished(problem, state.memory["inside"]))


@dataclass(frozen=True)
class MultiStart(Solver):
    """Several starts of one solver; the one with the least held-out error is kept.

    Args:
        solver: The solver to start.
        starts: How many times.

    Raises:
        TypeError: if `solver` is not a solver.
        ValueError: if `starts` is not a whole number of at least 1.
    """

    solver: Solver
    starts: int = 3

    def __post_init__(self) -> None:
        require_solver("solver", self.solver)
        require_whole("starts", self.starts, at_least=1)

    def total(self, problem: Prepared) -> int:
        return self.starts * self.solver.total(problem)

    def parts(self) -> tuple[Solver, ...]:
        return self.solver.parts()

    def init(self, problem: Prepared, generator: torch.Generator) -> State:
        inside = self.solver.init(problem, generator)
        return around(inside, 0, best=None, least=float("inf"), begun=1, generator=generator)

    def step(self, problem: Prepared, state: State) -> State:
        memory = dict(state.memory)
        inside = memory.pop("inside")
        if self.solver.finished(problem, inside):
            inside = self.solver.init(problem, memory["generator"])
            memory["begun"] += 1
        inside = self.solver.step(problem, inside)
        shown, stopped = inside, None
        if self.solver.finished(problem, inside):
            reached = score(problem, inside.factors)
            if memory["best"] is None or reached < memory["least"]:
                memory.update(best=inside, least=reached)
            if memory["begun"] == self.starts or inside.stopped is Result.EXACT:
                shown = memory["best"]
                stopped = shown.stopped or Result.MOST_STEPS
        memory["inside"] = inside
        return replace(shown, taken=state.taken + 1, stopped=stopped, memory=memory)

    def finished(self, problem: Prepared, state: State) -> bool:
        return state.stopped is not None


@dataclass(frozen=True)
class Unweighted(Solver):
    """A solver that is shown the problem without the covariance of the Jacobians, as a start of a weighted one.

    For `Chain((Unweighted(ProjectedALS()), GaussNewton()))`; the errors of its states are the weighted ones.

    Args:
        solver: The solver.

    Raises:
        TypeError: if `solver` is not a solver.
    """

    uses_covariance: ClassVar[bool] = True  # by leaving it out, as its name says
    solver: Solver

    def __post_init__(self) -> None:
        require_solver("solver", self.solver)
        parts = self.solver.parts()  # in all else it can what the solver can
        object.__setattr__(self, "keeps_constraints", all(part.keeps_constraints for part in parts))
        object.__setattr__(self, "layers", tuple(n for n in (1, 2) if all(n in part.layers for part in parts)))

    def total(self, problem: Prepared) -> int:
        return self.solver.total(problem)

    def init(self, problem: Prepared, generator: torch.Generator) -> State:
        plain = unweighted(problem)
        return self._shown(problem, plain, self.solver.init(plain, generator), 0)

    def resume(self, problem: Prepared, state: State) -> State:
        plain = unweighted(problem)
        within = measured(plain, state, state.factors)
        return self._shown(problem, plain, self.solver.resume(plain, within), 0)

    def step(self, problem: Prepared, state: State) -> State:
        plain = state.memory["plain"]
        return self._shown(problem, plain, self.solver.step(plain, state.memory["inside"]), state.taken + 1)

    def _shown(self, problem: Prepared, plain: Prepared, inside: State, taken: int) -> State:
        return measured(problem, around(inside, taken, inside.stopped, plain=plain), inside.factors)

    def finished(self, problem: Prepared, state: State) -> bool:
        return self.solver.finished(state.memory["plain"], state.memory["inside"])


def unweighted(problem: Prepared) -> Prepared:
    """The problem without the covariance of the Jacobians."""

    def without(objective: Objective) -> Objective:
        return Objective(objective.samples.unweighted(), objective.coupling)

    held_out = None if problem.held_out is None else without(problem.held_out)
    return replace(problem, fitted=without(problem.fitted), held_out=held_out)


@dataclass(frozen=True)
class BestSoFar(Solver):
    """A solver that need not be monotone, of which the best state seen is kept.

    Args:
        solver: The solver to watch.
        of: The error that decides, on held-out samples where there are any: that of "both" terms or of the "outputs".

    Raises:
        TypeError: if `solver` is not a solver.
        ValueError: if `of` is neither.
    """

    solver: Solver
    of: Literal["both", "outputs"] = "both"

    def __post_init__(self) -> None:
        require_solver("solver", self.solver)
        if self.of not in ("both", "outputs"):
            raise ValueError(f"of must be 'both' or 'outputs', got {self.of!r}")

    def total(self, problem: Prepared) -> int:
        return self.solver.total(problem)

    def parts(self) -> tuple[Solver, ...]:
        return self.solver.parts()

    def init(self, problem: Prepared, generator: torch.Generator) -> State:
        return self._watch(problem, self.solver.init(problem, generator), 0, None)

    def resume(self, problem: Prepared, state: State) -> State:
        return self._watch(problem, self.solver.resume(problem, state), 0, None)

    def step(self, problem: Prepared, state: State) -> State:
        inside = self.solver.step(problem, state.memory["inside"])
        return self._watch(problem, inside, state.taken + 1, state)

    def _watch(self, problem: Prepared, inside: State, taken: int, before: State | None) -> State:
        reached = score(problem, inside.factors, self.of)
        best, least = inside, reached
        if before is not None and not reached < before.memory["least"]:
            best, least = before, before.memory["least"]
        shown = replace(best, stage=inside.stage)
        return replace(shown, taken=taken, stopped=inside.stopped, memory={"inside": inside, "least": least})

    def finished(self, problem: Prepared, state: State) -> bool:
        return self.solver.finished(problem, state.memory["inside"])
