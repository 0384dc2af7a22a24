"""The smallest rank that will do, from a path on which every rank starts where the one before ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum

import torch

from tenflex.checks import require_number, require_whole
from tenflex.decouple import decouple, inside
from tenflex.factors import Factors
from tenflex.problem import Problem
from tenflex.progress import OnProgress, Progress, listening
from tenflex.solution import Solution
from tenflex.solvers import Chain, GaussNewton, MultiStart, Solver, prepare
from tenflex.solvers.default import refinement
from tenflex.solvers.grow import Grow

PATIENCE = 3
"""The path ends after so many ranks in a row that did not lower the error."""

MARGIN = 1.05
"""Held-out errors whose ratio is below this count as the same."""

ROUNDING = 1e-12
"""A relative error that more nodes cannot lower."""


class PathEnd(Enum):
    """Why a path over ranks ended; the value says what it means for the user."""

    WITHIN = "within the tolerance: no smaller rank of the path is"
    FLAT = (
        "more nodes no longer lower the held-out error, which stays above the tolerance: the samples are noisy or too "
        "few, or the basis is too small; the smallest rank that is as good as the best is chosen"
    )
    MOST = (
        "the largest rank was reached above the tolerance: allow more nodes, pass more samples or take a richer basis; "
        "the smallest rank that is as good as the best is chosen"
    )


@dataclass(frozen=True)
class RankStep:
    """One rank of a path.

    Args:
        solution: The better one of what was grown from the rank before and of what fresh starts found.
        grown: Whether it is the former.
        seconds: The time it took to find both.
    """

    solution: Solution
    grown: bool
    seconds: float

    @property
    def rank(self) -> int | tuple[int, ...]:
        """The number of nodes; of several layers, those of each."""
        return self.solution.problem.rank

    @property
    def error(self) -> float:
        """The relative error of the outputs of the validation samples, on which ranks are chosen."""
        return self.solution.validation_error

    @property
    def parameters(self) -> int:
        """The numbers that the layer stores."""
        return self.solution.factors.stored_numbers()


@dataclass(frozen=True)
class RankPath:
    """Solutions of growing rank, and the one that was chosen; `str()` is a table.

    Args:
        steps: One for each rank, from the smallest on.
        chosen: The place of the chosen one among them.
        end: Why the path ended; `end.value` is advice.
        tolerance: The held-out error that was asked for.

    Example:
        >>> path = choose_rank(problem, tolerance=1e-6)
        >>> path.steps[path.chosen].rank
        2
    """

    steps: tuple[RankStep, ...]
    chosen: int
    end: PathEnd
    tolerance: float

    @property
    def solution(self) -> Solution:
        """The solution of the chosen rank."""
        return self.steps[self.chosen].solution

    @property
    def rank(self) -> int | tuple[int, ...]:
        """The chosen rank."""
        return self.steps[self.chosen].rank

    def __str__(self) -> str:
        lines = ["  rank  validation error  parameters  seconds"]
        for index, step in enumerate(self.steps):
            mark = ">" if index == self.chosen else " "
            lines.append(
                f"{mark} {_written(step.rank):>4}  {step.error:16.3g}  {step.parameters:10,d}  {step.seconds:7.2f}"
                f"{'' if step.grown else '  fresh start'}"
            )
        return "\n".join([*lines, f"{self.end.value} (tolerance {self.tolerance:.3g})"])


def choose_rank(
    problem: Problem,
    *,
    tolerance: float = 0.01,
    most: int | None = None,
    solver: Solver | Callable[[Problem], Solver | None] | None = None,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> RankPath:
    r"""Find the smallest rank whose error on held-out samples is within a tolerance.

    The ranks are tried one by one; those of several layers grow together, each from nothing. One layer starts from the
    nodes of the one before and a new node where the Jacobians that are left are largest (`tenflex.solvers.grow.Grow`),
    refined over everything; unless that is within the tolerance, the problem is also solved from nothing, so that a bad
    path is not inherited, and the better of the two is kept. The error is that of the outputs, relatively,
    :math:`\|F - \hat F\| / \|F - \bar F\|` on the held-out samples.

    The path ends at the first rank within the tolerance, when three more nodes have not lowered the error by 5 %, or at
    `most`. In the two latter cases the smallest rank whose error is within 5 % of the least is chosen. Where samples
    are noisy and few, chance alone lowers errors by as much, and ranks come out too large: hold out more of the samples
    then, as by `Problem(held_out=0.3)`.

    Args:
        problem: Samples, basis and the rest; its rank is the first that is tried, so 1 is usual, or `(1, 1)`.
        tolerance: The relative error of held-out outputs that is small enough; at least 0.
        most: The largest rank that is tried, of any layer; None for the largest that the samples determine.
        solver: What solves a rank from nothing, or a function that says so for the problem of every rank; None for the
            recipe of `tenflex.solvers.default_solver`. More starts make it rarer that the rank of an exact map is
            passed over.
        seed: Of all random choices. The same seed on the same machine, with the same number of threads
            (`torch.get_num_threads()`), gives the same bits.
        on_progress: Called after every step; the task is "rank 3, grown" or "rank 3, fresh".

    Returns:
        All solutions, the chosen one among them, and why the path ended.

    Raises:
        TypeError: if `problem` or `solver` is something else.
        ValueError: if no samples are held out, or a number is out of range.

    Example:
        >>> x = torch.rand(60, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> f = lambda x: torch.stack([(x[0] + x[1]) ** 2, (x[0] - x[1]) ** 3])
        >>> choose_rank(Problem(sample(f, x), rank=1, basis=Monomial(3))).rank
        2
    """
    most = _checked(problem, tolerance, most)
    report = listening(on_progress)
    steps: list[RankStep] = []
    for here in _growing(problem, most):
        steps.append(_solved(here, steps[-1] if steps else None, tolerance, solver, seed, report))
        if steps[-1].error <= max(tolerance, ROUNDING):
            return RankPath(tuple(steps), len(steps) - 1, PathEnd.WITHIN, tolerance)
        if _flat(steps):
            return RankPath(tuple(steps), _simplest(steps), PathEnd.FLAT, tolerance)
    return RankPath(tuple(steps), _simplest(steps), PathEnd.MOST, tolerance)


def _checked(problem: Problem, tolerance: float, most: int | None) -> int:
    """The largest rank to try, when all that was passed makes sense."""
    if not isinstance(problem, Problem):
        raise TypeError(f"expected a tenflex.Problem, got {type(problem).__name__}")
    require_number("tolerance", tolerance, at_least=0)
    if len(problem.split.validation) == 0:
        raise ValueError(
            f"ranks are compared on held-out samples, but none of the {len(problem.samples)} is held out: pass "
            f"held_out=0.15 and at least 8 samples"
        )
    largest = problem.largest_rank
    if most is None:
        return largest
    require_whole("most", most, at_least=max(problem.ranks))
    if most > largest:
        raise ValueError(f"most must be at most {largest}, which these samples determine, got {most}: pass more inputs")
    return most


def _growing(problem: Problem, most: int) -> Iterator[Problem]:
    """The problem with ever more nodes, one more in every layer each time."""
    first = problem.ranks
    for more in range(most - max(first) + 1):
        ranks = tuple(one + more for one in first)
        yield replace(problem, rank=ranks if len(ranks) > 1 else ranks[0])


def _written(rank: int | tuple[int, ...]) -> str:
    return "-".join(map(str, rank)) if isinstance(rank, tuple) else str(rank)


def _solved(
    problem: Problem,
    before: RankStep | None,
    tolerance: float,
    solver: Solver | Callable[[Problem], Solver | None] | None,
    seed: int,
    report: OnProgress,
) -> RankStep:
    """One rank: grown from the one before, and from nothing unless that is good enough."""
    began = time.perf_counter()

    def solve(how: str, chosen: Solver | None) -> Solution:
        def tell(progress: Progress) -> None:
            report(replace(progress, task=f"rank {_written(problem.rank)}, {how}"))

        return decouple(problem, chosen, seed=seed, on_progress=tell)

    found, warm = [], before is not None and len(problem.ranks) == 1
    if before is not None and warm:
        found.append(solve("grown", _grown(problem, before.solution.factors)))
    if not found or not found[0].validation_error <= max(tolerance, ROUNDING):
        named = solver if isinstance(solver, Solver) or not callable(solver) else solver(problem)
        found.append(solve("fresh", named))
    best = min(found, key=lambda one: _comparable(one.validation_error))
    return RankStep(best, warm and best is found[0], time.perf_counter() - began)


def _grown(problem: Problem, factors: Factors) -> Solver:
    """The refinement of a layer with one node more."""
    with torch.no_grad():
        prepared, reduction = prepare(problem)
        grow = Grow(inside(prepared, reduction, factors))
    after = refinement(prepared)
    if isinstance(after, GaussNewton):  # cheap enough for several tries
        return Chain((MultiStart(Chain((grow, GaussNewton(60, tolerance=1e-2))), 3), after))
    return Chain((grow, after))


def _flat(steps: list[RankStep]) -> bool:
    """Whether the last ranks did not lower the error."""
    if len(steps) <= PATIENCE:
        return False
    before = min(_comparable(step.error) for step in steps[:-PATIENCE])
    return before < MARGIN * min(_comparable(step.error) for step in steps[-PATIENCE:])


def _simplest(steps: list[RankStep]) -> int:
    """The first that is as good as the best."""
    errors = [_comparable(step.error) for step in steps]
    return next(index for index, error in enumerate(errors) if error <= MARGIN * min(errors))


def _comparable(error: float) -> float:
    return error if error == error else float("inf")
