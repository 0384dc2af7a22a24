"""Factored maps: solve in the leading directions first, or cut a full map down."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tenflex.factors import Factors, transposed
from tenflex.objective.objective import Objective
from tenflex.objective.paratuck import influence
from tenflex.objective.prepared import Prepared
from tenflex.samples import Samples
from tenflex.solvers.base import Solver, State, measured, require_solver, unfit
from tenflex.solvers.wrap import Within


@dataclass(frozen=True)
class Leading(Solver[Within]):
    r"""Solve a factored problem in the leading active directions, where it is small.

    With `V = B A` of width q, the inputs that matter are q numbers. B starts as the q most active directions of the
    map, A and the rest are found in those coordinates by a solver for full maps; likewise D for the outputs. A
    refinement over everything should follow. A problem that is not factored is solved as it is.

    References:
        Constantine, "Active subspaces", 2015, https://doi.org/10.1137/1.9781611973860

    Args:
        solver: The solver for the small problem.

    Raises:
        TypeError: if `solver` is not a solver.

    Example:
        >>> from tenflex.solvers import ConstrainedALS, Leading
        >>> thin = Problem(problem.samples, rank=2, basis=Monomial(3), factor=1)
        >>> decouple(thin, Leading(ConstrainedALS(10))).factors.ranks
        (2,)
    """

    solver: Solver[Any]

    def __post_init__(self) -> None:
        require_solver("solver", self.solver)

    def total(self, problem: Prepared) -> int:
        return self.solver.total(problem)

    def refusal(self, problem: Prepared) -> str | None:
        if problem.fitted.samples.covariance is not None:
            return (
                "Leading takes the axes along which plain Jacobians are largest, not those of Jacobians with a "
                "covariance: use Truncate after a solver for full maps, or drop it with samples.unweighted()"
            )
        return self.solver.refusal(problem)

    def init(self, problem: Prepared, generator: torch.Generator) -> State[Within]:
        small = restricted(problem)
        return self._embed(problem, small, self.solver.init(small, generator), 0)

    def step(self, problem: Prepared, state: State[Within]) -> State[Within]:
        small = state.memory.problem
        return self._embed(problem, small, self.solver.step(small, state.memory.inside), state.taken + 1)

    def _embed(self, problem: Prepared, small: Prepared, inside: State[Any], taken: int) -> State[Within]:
        """The inner state on all axes; what lies off the leading ones is error, and at the end it is measured."""
        state = inside.holding(Within(inside, small), taken=taken)
        factors = embedded(problem, inside.factors)
        if self.solver.finished(small, inside):
            return measured(problem, state, factors)
        share_j = float(small.fitted.size_j / problem.fitted.size_j)
        share_f = float(small.fitted.size_f / problem.fitted.size_f)
        return replace(
            state,
            factors=problem.fitted.with_best_bias(factors),
            jacobian_error=1 - share_j * (1 - inside.jacobian_error),
            output_error=1 - share_f * (1 - inside.output_error),
        )

    def finished(self, problem: Prepared, state: State[Within]) -> bool:
        return self.solver.finished(state.memory.problem, state.memory.inside)


def restricted(problem: Prepared) -> Prepared:
    """The problem on its leading input and output axes, for full maps."""

    def lead(objective: Objective) -> Objective:
        samples = objective.samples
        if samples.directions is not None:
            return objective.on(lead_views(samples, samples.directions))
        F, J = (
            samples.outputs[:, : problem.output_factor],
            samples.jacobians[:, : problem.output_factor, : problem.factor],
        )
        T = samples.hessians
        if T is not None:
            T = T[:, : problem.output_factor, : problem.factor, : problem.factor]
        return objective.on(Samples(samples.inputs[:, : problem.factor], F, J, hessians=T))

    def lead_views(samples: Samples, directions: Tensor) -> Samples:
        """What the other outputs add to a view stays in it, as noise of mean zero."""
        inputs, pilot = slice(problem.factor), samples.pilot
        if pilot is not None:
            pilot = replace(pilot, inputs=pilot.inputs[:, inputs], jacobians=pilot.jacobians[..., inputs])
        F, u = samples.outputs[:, : problem.output_factor], directions[..., : problem.output_factor]
        return Samples(samples.inputs[:, inputs], F, samples.jacobians[..., inputs], directions=u, pilot=pilot)

    validation = None if problem.validation is None else lead(problem.validation)
    return replace(problem, fitted=lead(problem.fitted), validation=validation, factor=None, output_factor=None)


def embedded(problem: Prepared, factors: Factors) -> Factors:
    """Layers on the leading axes as factored layers on all of them."""
    samples = problem.fitted.samples
    if problem.factor is not None:
        factors = factors.with_map(0, leading_axes(samples.inputs, problem.factor), factors.map(0))
    if problem.output_factor is not None:
        factors = factors.with_map(-1, factors.map(-1), leading_axes(samples.outputs, problem.output_factor).mT)
    return replace(factors, bias=problem.fitted.mean)


def leading_axes(like: Tensor, width: int) -> Tensor:
    """The first `width` columns of the identity on the columns of `like`."""
    return torch.eye(like.shape[1], width, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class Truncate(Solver[None]):
    """Cut full maps down to the widths of a factored problem, by the SVD weighted with the nodes' influence; one step.

    For `Chain((ConstrainedALS(), Refine(), Truncate(), Refine()))`: the alternative to `Leading`.

    Example:
        >>> from tenflex.solvers import Chain, JacobianCPD, Refine, Truncate
        >>> thin = Problem(problem.samples, rank=2, basis=Monomial(3), factor=1)
        >>> decouple(thin, Chain((JacobianCPD(20), Truncate(), Refine(20)))).factors.maps[0][0].shape
        torch.Size([2, 1])
    """

    def total(self, problem: Prepared) -> int:
        return 1

    def refusal(self, problem: Prepared) -> str | None:
        return unfit(self, problem, layers=None, weights=True, shapes=True, views=True)  # it reads no Jacobians

    def init(self, problem: Prepared, generator: torch.Generator) -> State[None]:
        raise ValueError(
            "Truncate cuts a layer down: put a solver before it, as in Chain((ConstrainedALS(), Truncate()))"
        )

    def resume(self, problem: Prepared, state: State[Any]) -> State[None]:
        return state.holding(None, taken=0, stopped=None, stage="truncate")

    def step(self, problem: Prepared, state: State[None]) -> State[None]:
        return measured(problem, state, truncated(problem, state.factors), taken=state.taken + 1)


def truncated(problem: Prepared, factors: Factors) -> Factors:
    """The factors with V and W in the form that the problem asks for."""
    cut_inner = problem.factor is not None and len(factors.maps[0]) == 1
    cut_outer = problem.output_factor is not None and len(factors.maps[-1]) == 1
    if not cut_inner and not cut_outer:
        return factors
    of_inner, of_outer = influence(problem.fitted, factors)
    V, W = factors.V, factors.W
    if cut_inner:
        factors = factors.with_map(0, *leading_pair(V, of_inner, problem.factor))
    if cut_outer:
        factors = factors.with_map(-1, *transposed(leading_pair(W, of_outer, problem.output_factor)))
    return factors


def leading_pair(matrix: Tensor, weights: Tensor, width: int | None) -> tuple[Tensor, Tensor]:
    """`(B, B^T M)` with B the leading left singular vectors of M with weighted columns."""
    B = torch.linalg.svd(matrix * weights, full_matrices=False)[0][:, :width].contiguous()
    return B, B.mT @ matrix
