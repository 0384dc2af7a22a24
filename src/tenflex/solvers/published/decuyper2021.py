"""The decomposition without a basis: activations by their values, slopes by finite differences."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.checks import require_number, require_whole
from tenflex.objective.decomposition import Decomposition
from tenflex.objective.filtered import FilterSystem
from tenflex.objective.prepared import Prepared
from tenflex.objective.steps import coupled_directions, normalized
from tenflex.result import Result
from tenflex.solvers.base import EXACT, Solver, State, unfit
from tenflex.solvers.constrained_als import fitted_layer
from tenflex.solvers.cpd import random_directions


@dataclass(frozen=True)
class FilteredCPD(Solver["Curves"]):
    r"""A decomposition in which the slopes are a finite-difference filter of the values, without any basis.

    .. math:: \min_{V, W, G} \frac{\|J - [[D(V) \, G, W, V]]\|^2}{\|J\|^2}
        + \lambda \frac{\|F - G W^\top - b\|^2}{\|F - \bar F\|^2}
        + \mu \sum_k \frac{\|w_k\|^2 \|v_k\|^2}{\|J\|^2} \, S \, |I_k| \int_{I_k} g_k''(t)^2 \, dt

    D(V) takes three-point differences, for points at any distances, along the sorted :math:`v_k \cdot x_s`; the
    integral, over the range of these points, is made of second divided differences. By alternating least squares: G by
    conjugate gradients, then W, then V. That the filter moves with V is left out of the steps, so the objective may
    rise. After every step the layer has the problem's basis, its coefficients fitted to F and J for these directions.

    Of Decuyper and others: the values G as unknowns and the filter between them and the Jacobians, which also finds
    nodes where the plain decomposition is not unique. Ours: the coupling to F, chords as the unknowns in place of
    values, and the weight of smoothness in units of the slopes, so that one number suits all maps.

    With noise, smoothness should grow; the held-out error of a solution, `output_error`, says which value is best:
    `min((decouple(problem, FilteredCPD(smoothness=mu)) for mu in weights), key=lambda one: one.output_error)`.

    References:
        Decuyper, Tiels, Weiland, Schoukens, "Decoupling multivariate functions using a non-parametric filtered CPD
        approach", 2021, https://arxiv.org/abs/2105.08518
        Decuyper, Tiels, Weiland, Runacres, Schoukens, "Decoupling multivariate functions using a nonparametric filtered
        tensor decomposition", 2022, https://arxiv.org/abs/2205.11153

    Args:
        sweeps: The most sweeps over G, W and V.
        stride: The sweeps that make one step of the loop.
        smoothness: mu, above 0: differences alone do not see values that go up and down from point to point.
        tolerance: It has converged when a step changes the objective by less than this share.

    Raises:
        ValueError: if a number is out of its range.

    Example:
        >>> from tenflex.solvers import Chain, FilteredCPD, Refine
        >>> solution = decouple(problem, Chain((FilteredCPD(50), Refine(100))))
        >>> solution.factors.ranks
        (2,)
    """

    sweeps: int = 100
    stride: int = 10
    smoothness: float = 1e-5
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        require_whole("sweeps", self.sweeps, at_least=1)
        require_whole("stride", self.stride, at_least=1)
        require_number("smoothness", self.smoothness, above=0)
        require_number("tolerance", self.tolerance, at_least=0)

    def refusal(self, problem: Prepared) -> str | None:
        return unfit(self, problem, shapes=True)  # of the layers; the values know nothing of them

    def total(self, problem: Prepared) -> int:
        return -(-self.sweeps // self.stride)

    def init(self, problem: Prepared, generator: torch.Generator) -> State[Curves]:
        return self._begin(problem, *random_directions(problem.fitted.jacobians, problem.rank, generator))

    def resume(self, problem: Prepared, state: State[Any]) -> State[Curves]:
        return self._begin(problem, normalized(state.factors.V), state.factors.W)

    def _begin(self, problem: Prepared, V: Tensor, W: Tensor) -> State[Curves]:
        H = problem.fitted.jacobians.slopes(V, W)
        return self._layer(problem, self._curves(problem, V, W, H))

    def step(self, problem: Prepared, state: State[Curves]) -> State[Curves]:
        before, objective = state.memory, problem.fitted
        after = before
        for _ in range(min(self.stride, self.sweeps - self.stride * state.taken)):
            V, W = coupled_directions(objective, after.V, after.G, after.H, objective.weight_f, after.prices)
            after = self._curves(problem, V, W, after.H)
        if not math.isfinite(after.objective):
            return replace(state, taken=state.taken + 1, stopped=Result.DIVERGED)
        change = abs(before.objective - after.objective)
        settled = after.objective < EXACT or change < self.tolerance * before.objective
        stopped = Result.CONVERGED if settled else None
        return replace(self._layer(problem, after), taken=state.taken + 1, stopped=stopped)

    def _curves(self, problem: Prepared, V: Tensor, W: Tensor, H: Tensor) -> Curves:
        """The best activations for given directions, `H` being near their slopes."""
        system = FilterSystem.at(problem, V, W, self.smoothness)
        p = system.solve(system.filter.chords(H))
        G, H, objective = system.filter.values(p), system.filter.slopes(p), problem.fitted
        error = objective.total(Decomposition(V, W, H).error(objective.jacobians), objective.output_error(G, W))
        prices = system.costs(p)
        return Curves(V, W, G, H, prices, float(error + (prices * W.square().sum(0)).sum()))

    def _layer(self, problem: Prepared, curves: Curves) -> State[Curves]:
        state = fitted_layer(problem, curves.V, curves.W, None, repeats=1)
        return state.holding(curves, stage="filtered CPD")


@dataclass(frozen=True, eq=False)
class Curves:
    """Directions with the values of every activation at the samples and its slopes there.

    Args:
        V: `(m, r)`, of unit norm.
        W: `(n, r)`.
        G: Centred, `(S, r)`.
        H: `(S, r)`.
        prices: What the roughness of each activation costs with a column of W of unit norm, `(r,)`.
        objective: The objective, with the prices.
    """

    V: Float[Tensor, "m r"]
    W: Float[Tensor, "n r"]
    G: Float[Tensor, "S r"]
    H: Float[Tensor, "S r"]
    prices: Float[Tensor, " r"]
    objective: float
