"""The verb, and the only loop."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor

from tenflex.bases import Basis
from tenflex.bases.orthonormal import Orthonormal
from tenflex.bases.shaped import orders
from tenflex.factors import Factors
from tenflex.layered import Layer
from tenflex.problem import Problem
from tenflex.progress import OnProgress, Progress, silent
from tenflex.result import Record, Result
from tenflex.solution import Solution
from tenflex.solvers import Prepared, Solver, State, default_solver, prepare
from tenflex.solvers.base import measured, require_covariance_used
from tenflex.solvers.leading import truncated


def decouple(
    problem: Problem,
    solver: Solver | None = None,
    *,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Solution:
    """Find the flexible layer that a problem asks for.

    Args:
        problem: Samples, rank, basis and the rest.
        solver: The algorithm; None for the recipe of `tenflex.solvers.default_solver`.
        seed: Of all random choices. The same seed on the same machine gives the same bits.
        on_progress: Called after every step.

    Returns:
        The solution; a numerical failure is a value, `solution.result`, with the best layer seen.

    Raises:
        TypeError: if `problem` or `solver` is something else.
        ValueError: if the solver cannot start from nothing or is not made for such a problem, or if the outputs vary at
            held-out samples only.
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"expected a tenflex.Problem, got {type(problem).__name__}")
    if solver is not None and not isinstance(solver, Solver):
        raise TypeError(f"expected a solver such as ConstrainedALS(), got {solver!r}")
    if solver is not None:
        _require_as_many_layers(problem, solver)
        _require_constraints_kept(problem, solver)
    with torch.inference_mode(False), torch.no_grad():
        return _decouple(problem, solver, seed, on_progress or silent)


def _decouple(problem: Problem, solver: Solver | None, seed: int, report: OnProgress) -> Solution:
    prepared, reduction = prepare(problem)
    solver = solver or default_solver(prepared, exact=problem.samples.reduction is None)
    require_covariance_used(prepared, solver)
    began = time.perf_counter()
    total = solver.total(prepared)
    state = solver.init(prepared, torch.Generator().manual_seed(seed))
    history = [_record(prepared, state, began)]
    while not solver.finished(prepared, state):
        state = solver.step(prepared, state)
        history.append(_record(prepared, state, began))
        report(Progress(state.stage, state.taken, total, state.output_error))
    factors = truncated(prepared, state.factors)
    if factors is not state.factors:
        state = measured(prepared, state, factors)
        history.append(_record(prepared, state, began))
    expanded = reduction.expand(_without_recombination(state.factors))
    return Solution(expanded, problem, state.stopped or Result.MOST_STEPS, tuple(history))


def _require_as_many_layers(problem: Problem, solver: Solver) -> None:
    """Raise ValueError if an algorithm of the solver is made for another number of layers."""
    asked = len(problem.ranks)
    for part in solver.parts():
        if asked not in part.layers:
            cure = "LayeredALS" if asked == 2 else "ConstrainedALS"
            raise ValueError(
                f"{type(part).__name__} cannot find {asked} layer{'s' * (asked > 1)}, as rank={problem.rank} asks "
                f"for: use {cure} and Refine, or leave the solver out"
            )


def _require_constraints_kept(problem: Problem, solver: Solver) -> None:
    """Raise ValueError if activations must have a shape that an algorithm of the solver knows nothing of."""
    careless = [part for part in solver.parts() if not part.keeps_constraints]
    if careless and orders(problem.basis):
        raise ValueError(
            f"{type(careless[0]).__name__} does not keep the constraints of {problem.basis!r}: use ConstrainedALS and "
            f"Refine, or leave the solver out"
        )


def _record(prepared: Prepared, state: State, began: float) -> Record:
    held_out = None if prepared.held_out is None else prepared.held_out.errors(state.factors)[1]
    return Record(state.stage, state.jacobian_error, state.output_error, held_out, time.perf_counter() - began)


def _without_recombination(factors: Layer) -> Layer:
    """The coefficients of the basis that the user named, not of its orthonormal form."""
    if isinstance(factors, Factors):
        coefficients, basis = _named(factors.coefficients, factors.basis)
        return replace(factors, coefficients=coefficients, basis=basis)
    first, second = map(_named, factors.coefficients, factors.bases)
    return replace(factors, coefficients=(first[0], second[0]), bases=(first[1], second[1]))


def _named(coefficients: Tensor, basis: Basis) -> tuple[Tensor, Basis]:
    if not isinstance(basis, Orthonormal):
        return coefficients, basis
    return coefficients @ basis.matrix(coefficients).mT, basis.basis
