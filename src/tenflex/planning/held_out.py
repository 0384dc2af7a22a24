"""Settings that held-out samples choose: how much outputs count beside Jacobians, and how far beside the samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tenflex.coordinates.sensitivity import reshrunk
from tenflex.decouple import decouple
from tenflex.problem import Problem
from tenflex.progress import OnProgress
from tenflex.result import Result
from tenflex.solution import Solution
from tenflex.solvers import BestSoFar, Refine
from tenflex.sums import any_of

TYPICAL, MOST = 200, 10.0
"""So many samples are worth as much as a coupling of one, which is the least at the beginning; the most is ten."""

FACTOR = 3.0
"""A trial has so many times the coupling or the shrinkage that stands, or as many times less."""

TRIAL = BestSoFar(Refine(60), of="outputs", patience=2)
"""What a trial is: some iterations from the layer that stands, as long as the validation samples gain."""

VIEWED = 4
"""Trials in one direction for the coupling beside views, which are uncertain: in the end outputs count alone."""

COPIES = 20
"""Bytes for each number of the Jacobians, when they stand in two coordinates and are solved with."""


@dataclass(frozen=True)
class Choice:
    """What may be chosen.

    Args:
        coupling: Whether the coupling may.
        shrinkage: That of the samples' coordinates at the beginning, where it may; else None.
        most_memory: The bytes that Jacobians and solvers may take; in less than twice their size no other shrinkage is
            tried.
        seed: Of all random choices.
    """

    coupling: bool
    shrinkage: float | None
    most_memory: int
    seed: int = 0


@dataclass(frozen=True)
class Chosen:
    """A solution, and the settings with which it was found.

    Args:
        solution: The layers.
        settings: Those that were chosen, by name: "coupling", "shrinkage".
    """

    solution: Solution
    settings: Mapping[str, float]


def typical_coupling(count: int) -> float:
    """The coupling at the beginning: the more samples there are, the less of the outputs' error is chance."""
    return min(max(1.0, count / TYPICAL), MOST)


def chosen(solution: Solution, choice: Choice, report: OnProgress) -> Chosen:
    """Go on from a solution with other settings, and keep what lowers the error of the validation samples.

    More is tried first, and less where that was in vain: of the coupling, then of the shrinkage. The layer that stands
    is where a trial begins, so each takes a small part of the time that the solution took. Where the layer is exact, or
    is none, there is nothing to choose.
    """
    if not len(solution.problem.split.validation) or solution.result in (Result.EXACT, Result.DIVERGED):
        return Chosen(solution, {})
    settings = {"coupling": solution.problem.coupling} if choice.coupling else {}
    if choice.shrinkage is not None:
        settings["shrinkage"] = choice.shrinkage
    best = Chosen(solution, settings)
    if choice.coupling:
        best = _either_way(best, "coupling", choice, report, VIEWED if solution.problem.samples.views else 1)
    large = COPIES * solution.problem.samples.jacobians.numel() > choice.most_memory
    if choice.shrinkage is not None and not any_of(large):
        best = _either_way(best, "shrinkage", choice, report)
    return best


def _either_way(best: Chosen, name: str, choice: Choice, report: OnProgress, most: int = 1) -> Chosen:
    """The better of what stands and of a trial with more or, if that is none, with less; so on as long as it gains."""
    for factor in (FACTOR, 1 / FACTOR):
        found = best
        for _ in range(most):
            ahead = _trial(found, name, factor, choice, report)
            if ahead is None:
                break
            found = ahead
        if found is not best:
            return found
    return best


def _trial(best: Chosen, name: str, factor: float, choice: Choice, report: OnProgress) -> Chosen | None:
    """What a setting that is a multiple leads to; None if held-out samples do not gain."""
    start, settings = best.solution, best.settings
    problem = CHANGES[name](start.problem, factor)
    found = decouple(problem, TRIAL, start=start.factors, seed=choice.seed, on_progress=report)
    if found.validation_error >= start.validation_error:
        return None
    longer = replace(found, history=(*start.history, *found.history))
    return Chosen(longer, {**settings, name: factor * settings[name]})


def _recoupled(problem: Problem, factor: float) -> Problem:
    return replace(problem, coupling=factor * problem.coupling)


def _reshrunk(problem: Problem, factor: float) -> Problem:
    return replace(problem, samples=reshrunk(problem.samples, slice(len(problem.split.fitted)), factor))


CHANGES = {"coupling": _recoupled, "shrinkage": _reshrunk}
"""What makes a problem with a setting that is a multiple of its own."""
