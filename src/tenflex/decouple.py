"""The verb, and the only loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from tenflex.bases.orthonormal import Orthonormal
from tenflex.bases.wrapped import plain
from tenflex.checks import require_seed
from tenflex.factors import Factors
from tenflex.objective.prepared import Prepared, prepare
from tenflex.objective.redundancy import redundant
from tenflex.objective.walls import within_walls
from tenflex.problem import Problem
from tenflex.progress import OnProgress, Progress, listening
from tenflex.reduction import Reduction
from tenflex.result import Record, Result
from tenflex.solution import Solution
from tenflex.solvers.base import Solver, State, measured
from tenflex.solvers.default import default_solver, refinement
from tenflex.solvers.leading import truncated


def decouple(
    problem: Problem,
    solver: Solver[Any] | None = None,
    *,
    start: Factors | None = None,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Solution:
    """Find the flexible layers that a problem asks for.

    Args:
        problem: Samples, rank, basis and the rest.
        solver: The algorithm; None for the recipe of `tenflex.solvers.default_solver`, or, from a start, for its
            refinement.
        start: Layers to begin with, in the coordinates of a solution's factors, such as those of an earlier solution;
            None to begin from nothing.
        seed: Of all random choices. The same seed on the same machine, with the same number of threads
            (`torch.get_num_threads()`), gives the same bits.
        on_progress: Called after every step.

    Returns:
        The solution; a numerical failure is a value, `solution.result`, with the best layers seen.

    Raises:
        TypeError: if `problem`, `solver`, `start` or `on_progress` is something else.
        ValueError: if the seed is no whole number from 0 to below 2^63, the solver cannot start from nothing or is not
            made for such a problem, the start has other sizes than the problem, or the outputs vary at held-out samples
            only.

    Example:
        >>> samples = sample(lambda x: torch.stack([(x[0] + x[1]) ** 2, x[1] ** 3]), torch.rand(60, 2))
        >>> problem = Problem(samples, rank=2, basis=Monomial(3))
        >>> first = decouple(problem)
        >>> decouple(problem, start=first.factors).output_error <= first.output_error
        True
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"expected a tenflex.Problem, got {type(problem).__name__}")
    if solver is not None and not isinstance(solver, Solver):
        raise TypeError(f"expected a solver such as ConstrainedALS(), got {solver!r}")
    require_seed(seed)
    return solve(problem, solver, start, seed, listening(on_progress))


Keep = Callable[[int, Callable[[], Factors]], None]
"""Told how many steps were taken, and how to get at the layers as they are then, in the coordinates of a solution."""


@torch.inference_mode(False)
@torch.no_grad()
def solve(
    problem: Problem,
    solver: Solver[Any] | None,
    start: Factors | None,
    seed: int,
    report: OnProgress,
    keep: Keep | None = None,
) -> Solution:
    """What `decouple` does with arguments that were checked; `keep` may look at the layers after every step."""
    if start is not None:
        require_start(problem, start)
    prepared, reduction = prepare(problem)
    if solver is None:
        exact = problem.samples.reduction is None
        solver = default_solver(prepared, exact=exact) if start is None else refinement(prepared)
    refusal = solver.refusal(prepared)
    if refusal is not None:
        raise ValueError(refusal)
    began = time.perf_counter()
    if start is None:
        state = solver.init(prepared, torch.Generator().manual_seed(seed))
    else:
        state = solver.resume(prepared, standing(prepared, inside(prepared, reduction, start)))
    history = [_record(prepared, state, began)]
    while not solver.finished(prepared, state):
        state = solver.step(prepared, state)
        history.append(_record(prepared, state, began))
        report(Progress(state.stage, state.taken, solver.total(prepared), state.output_error))
        if keep is not None:
            keep(state.taken, partial(_expanded, reduction, state))
    factors = truncated(prepared, state.factors)
    if factors is not state.factors:  # what was exact is no longer
        stopped = None if state.stopped is Result.EXACT else state.stopped
        state = measured(prepared, state, factors, stopped=stopped)
        history.append(_record(prepared, state, began))
    test_error = None if prepared.test is None else prepared.test.errors(state.factors)[1] ** 0.5
    return Solution(_expanded(reduction, state), problem, diagnosed(prepared, state), tuple(history), test_error)


def _expanded(reduction: Reduction, state: State[Any]) -> Factors:
    """The layers of a state in the coordinates of a solution."""
    return reduction.expand(without_recombination(state.factors))


def diagnosed(prepared: Prepared, state: State[Any]) -> Result:
    """Why the solver stopped, unless what it left says more: numbers that are not finite, or nodes in vain."""
    if not math.isfinite(state.jacobian_error + state.output_error):
        return Result.DIVERGED
    if state.stopped is not Result.DIVERGED and redundant(
        prepared.fitted, state.factors, exact=state.stopped is Result.EXACT
    ):
        return Result.SINGULAR
    return state.stopped or Result.MOST_STEPS


def require_start(problem: Problem, start: object) -> None:
    """Raise unless layers have the sizes and bases that a problem asks for."""
    if not isinstance(start, Factors):
        raise TypeError(f"start must be the factors of layers, such as solution.factors, got {type(start).__name__}")
    samples = problem.samples
    m = samples.inputs.shape[1] if samples.reduction is None else len(samples.reduction.mean)
    found, asked = (len(start.V), *start.ranks, len(start.W)), (m, *problem.ranks, samples.outputs.shape[1])
    if found != asked:
        raise ValueError(f"start must have the sizes {asked} (inputs, nodes of each layer, outputs), got {found}")
    basis = plain(problem.basis)
    for one in start.activations:
        if not one.basis.fitted_from(basis):
            raise ValueError(f"start must have the basis of the problem, {basis!r}, got {one.basis!r}")
    ends = ("factor", problem.factor, start.maps[0]), ("output_factor", problem.output_factor, start.maps[-1])
    for name, width, maps in ends:
        if width is not None and len(maps) == 2 and maps[0].shape[1] != width:
            raise ValueError(f"start must have {name}={width}, as the problem, or a full map, got {maps[0].shape[1]}")


def standing(prepared: Prepared, factors: Factors) -> State[None]:
    """A state at layers that are known, in the form that the problem asks for."""
    if prepared.factor is None:
        factors = factors.with_map(0, factors.map(0))
    if prepared.output_factor is None:
        factors = factors.with_map(-1, factors.map(-1))
    factors = truncated(prepared, factors)
    smoothing = prepared.smoothing or 0.0
    if prepared.nonnegative:
        factors, _ = within_walls(prepared, factors, smoothing)
    return measured(prepared, State(factors, None, smoothing=smoothing, stage="start"), factors)


def inside(prepared: Prepared, reduction: Reduction, factors: Factors) -> Factors:
    """The layers of a solution in the coordinates in which it was solved: what `Reduction.expand` leads back from."""
    like = prepared.fitted.inputs
    factors = replace(factors.with_tensors([one.to(like) for one in factors.tensors()]), bias=factors.bias.to(like))
    narrow = reduction.narrow(factors)
    for k, one in enumerate(factors.activations):
        basis = Orthonormal(one.basis, prepared.basis.basis)
        coefficients = torch.linalg.solve(basis.matrix(one.coefficients), one.coefficients.mT).mT
        narrow = narrow.with_activations(k, coefficients=coefficients, basis=basis)
    return narrow


def without_recombination(factors: Factors) -> Factors:
    """The layers with the coefficients of the basis that the user named, not of its orthonormal form."""
    for k, one in enumerate(factors.activations):
        if isinstance(one.basis, Orthonormal):
            coefficients = one.coefficients @ one.basis.matrix(one.coefficients).mT
            factors = factors.with_activations(k, coefficients=coefficients, basis=one.basis.basis)
    return factors


def _record(prepared: Prepared, state: State[Any], began: float) -> Record:
    validation = None if prepared.validation is None else prepared.validation.errors(state.factors)[1]
    return Record(state.stage, state.jacobian_error, state.output_error, validation, time.perf_counter() - began)
