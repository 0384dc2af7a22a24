"""Alternating least squares for several flexible layers: the start that random weights do not give."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases.base import positive, quadrature
from tenflex.bases.orthonormal import Orthonormal
from tenflex.checks import require_number, require_whole
from tenflex.factors import Activations, Factors
from tenflex.objective.coefficients import Activated
from tenflex.objective.gradients import gradient_directions
from tenflex.objective.paratuck import (
    Slopes,
    coefficient_system,
    free_slopes,
    hidden_map,
    input_map,
    output_map,
)
from tenflex.objective.prepared import Prepared
from tenflex.objective.roughness import choose_smoothing, node_prices
from tenflex.objective.steps import project
from tenflex.result import Result
from tenflex.solvers.base import Solver, State, measured, unfit
from tenflex.solvers.published.zniyed2021 import Growing
from tenflex.sums import centred


@dataclass(frozen=True)
class ParaTuckALS(Solver[None]):
    """Alternate over all linear maps and coefficients of several layers, from the inputs to the outputs.

    Args:
        sweeps: The number of sweeps over everything.
        bend: How far the first activations are from straight lines, relative to them. Nodes that start alike stay
            alike; starts that bend more are more different from each other, which is worth it where one of many starts
            will do, as for maps with an exact answer.

    Raises:
        ValueError: if `sweeps` is not a whole number of at least 1, or `bend` is negative.
    """

    sweeps: int = 15
    bend: float = 0.3

    def __post_init__(self) -> None:
        require_whole("sweeps", self.sweeps, at_least=1)
        require_number("bend", self.bend, at_least=0)

    def total(self, problem: Prepared) -> int:
        return self.sweeps

    def refusal(self, problem: Prepared) -> str | None:
        return unfit(self, problem, layers=tuple(range(2, len(problem.ranks) + 1)))

    def init(self, problem: Prepared, generator: torch.Generator) -> State[None]:
        factors = random_layers(problem, self.bend, generator)
        return self.settled(problem, State(factors, None), repeats=3)

    def resume(self, problem: Prepared, state: State[Any]) -> State[None]:
        return state.holding(None, taken=0, stopped=None, stage=self.stage)

    def step(self, problem: Prepared, state: State[None]) -> State[None]:
        objective, factors = problem.fitted, state.factors
        above = factors.slopes(objective.inputs)  # a sweep goes up: what stands above is as the last one left it
        V = input_map(objective, factors, above)
        factors = placed(problem, factors.with_map(0, V / positive(V.norm(dim=0))), 0)
        for layer in range(len(above) - 1):
            slopes = (*factors.slopes(objective.inputs)[: layer + 1], *above[layer + 1 :])
            coefficients = self.coefficients(problem, replace(state, factors=factors), slopes, layer)
            factors = with_unit_activations(factors, coefficients, layer)
            slopes = (*factors.slopes(objective.inputs)[: layer + 1], *above[layer + 1 :])
            hidden = hidden_map(objective, factors, slopes, layer + 1)
            factors = placed(problem, factors.with_map(layer + 1, hidden), layer + 1)
        after = self.settled(problem, replace(state, factors=factors, taken=state.taken + 1), repeats=1)
        if not after.jacobian_error + after.output_error < float("inf"):
            return replace(state, taken=state.taken + 1, stopped=Result.DIVERGED)
        return after

    @property
    @abstractmethod
    def stage(self) -> str:
        """The name of the algorithm, for progress."""

    @abstractmethod
    def coefficients(self, problem: Prepared, state: State[None], slopes: Slopes, layer: int) -> Float[Tensor, "r d"]:
        """The coefficients of a layer that is not the last one, from the Jacobians."""

    @abstractmethod
    def settled(self, problem: Prepared, state: State[None], repeats: int) -> State[None]:
        """The layers with the last coefficients and W from outputs and Jacobians, `repeats` times, and their errors."""


@dataclass(frozen=True)
class LayeredALS(ParaTuckALS):
    r"""Alternate over everything in :math:`W g_L(\cdots U_2^\top g_2(U_1^\top g_1(V^\top x)))`, each by least squares.

    With the slopes of all other nodes held fixed, the Jacobians :math:`W D_L \cdots U_1^\top D_1 V^\top` are linear in
    each linear map and in each layer's coefficients: this is alternating least squares for the ParaTuck-L
    decomposition, with the slopes of every layer constrained to its basis. The outputs enter where they are linear too,
    in the last coefficients and W. It is not monotone: wrap it in `BestSoFar`, and let `Refine` follow, in which
    nothing is held fixed. For two layers and more.

    References:
        De Jonghe, Usevich, Dreesen, Ishteva, "Tensor-based multi-layer decoupling", 2026,
        https://arxiv.org/abs/2604.10858
        De Jonghe, Usevich, Dreesen, Ishteva, "Compressing neural networks with two-layer decoupling", 2023,
        https://doi.org/10.1109/CAMSAP58249.2023.10403509
        Harshman, Lundy, "Uniqueness proof for a family of models sharing features of Tucker's three-mode factor
        analysis and PARAFAC/CANDECOMP", 1996, https://doi.org/10.1007/BF02294322

    Args:
        sweeps: The number of sweeps over everything.
        bend: How far the first activations are from straight lines, relative to them. Nodes that start alike stay
            alike; starts that bend more are more different from each other, which is worth it where one of many starts
            will do, as for maps with an exact answer.

    Raises:
        ValueError: if `sweeps` is not a whole number of at least 1, or `bend` is negative.

    Example:
        >>> from tenflex.solvers import Chain, LayeredALS, Refine
        >>> two = Problem(problem.samples, rank=(2, 2), basis=Monomial(2))
        >>> decouple(two, Chain((LayeredALS(10), Refine(100)))).validation_error < 0.3
        True
    """

    @property
    def stage(self) -> str:
        return "layered ALS"

    def coefficients(self, problem: Prepared, state: State[None], slopes: Slopes, layer: int) -> Float[Tensor, "r d"]:
        system = coefficient_system(problem, state.factors, slopes, layer)
        return system.solve(state.factors.activations[layer].coefficients, state.smoothing)

    def settled(self, problem: Prepared, state: State[None], repeats: int) -> State[None]:
        factors, smoothing, inputs = state.factors, state.smoothing, problem.fitted.inputs
        t = factors.arguments(inputs)[-1]
        for _ in range(repeats):
            slopes = factors.slopes(inputs)
            system = coefficient_system(problem, factors, slopes, len(slopes) - 1)
            smoothing = choose_smoothing(problem, system)
            C = system.solve(factors.activations[-1].coefficients, smoothing)
            factors = factors.with_activations(-1, coefficients=C)
            G, H, _ = factors.activations[-1].curves(t)
            weight_f, prices = problem.fitted.weight_f, None
            if problem.penalty is not None:
                prices = smoothing * weight_f * node_prices(problem, C)
            W = output_map(problem, factors, (*slopes[:-1], H), centred(G, problem.fitted.count), weight_f, prices)
            factors = factors.with_map(-1, W.mT)
        return measured(problem, replace(state, smoothing=smoothing, stage=self.stage), factors.balanced())


@dataclass(frozen=True)
class ProjectedLayeredALS(ParaTuckALS):
    r"""Alternate over the ParaTuck-L decomposition of the Jacobians with free slopes, projected on the basis.

    The slopes of a layer are found by least squares, free in every sample, and then projected on the derivatives of its
    basis; those of the last layer together with :math:`G = F W^+`, weighted by a coupling that grows: of several layers
    what `ProjectedALS` is of one. (The paper balances the two by bilevel optimisation; here the schedule is that of
    2021.) Neither the coupling of the problem is used nor the roughness penalty of a smooth basis. It is not monotone:
    wrap it in `BestSoFar`, and let `Refine` or `GaussNewton` follow. For two layers and more.

    References:
        De Jonghe, Usevich, Dreesen, Ishteva, "Tensor-based multi-layer decoupling", 2026,
        https://arxiv.org/abs/2604.10858

    Args:
        sweeps: The number of sweeps over everything.
        bend: How far the first activations are from straight lines, relative to them.
        coupling: The schedule of the outputs' weight, in relative units.

    Raises:
        TypeError: if `coupling` is not a `Growing`.
        ValueError: if `sweeps` is not a whole number of at least 1, or `bend` is negative.

    Example:
        >>> from tenflex.solvers import Chain, ProjectedLayeredALS, Refine
        >>> two = Problem(problem.samples, rank=(2, 2), basis=Monomial(2))
        >>> decouple(two, Chain((ProjectedLayeredALS(10), Refine(100)))).validation_error < 0.3
        True
    """

    coupling: Growing = field(default_factory=Growing)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.coupling, Growing):
            raise TypeError(f"coupling must be a schedule such as Growing(1e-6, 9.0), got {self.coupling!r}")

    @property
    def stage(self) -> str:
        return "projected layered ALS"

    def coefficients(self, problem: Prepared, state: State[None], slopes: Slopes, layer: int) -> Float[Tensor, "r d"]:
        H = free_slopes(problem.fitted, state.factors, slopes, layer)
        return projected(problem, state.factors, layer, torch.zeros_like(H), H, 0.0)

    def settled(self, problem: Prepared, state: State[None], repeats: int) -> State[None]:
        objective, factors = problem.fitted, state.factors
        coupling, last = self.coupling.at(state.taken), len(factors.activations) - 1
        slopes = factors.slopes(objective.inputs)
        for _ in range(repeats):
            H = free_slopes(objective, factors, slopes, last)
            G = objective.centred @ torch.linalg.pinv(factors.W, rcond=1e-12).mT
            C = projected(problem, factors, last, G, H, coupling)
            factors = factors.with_activations(-1, coefficients=C)
            G, H, _ = factors.activations[-1].curves(factors.arguments(objective.inputs)[-1])
            slopes = (*slopes[:-1], H)
            W = output_map(problem, factors, slopes, centred(G, objective.count), coupling / objective.size_f)
            factors = factors.with_map(-1, W.mT)
        # The penalty's weight is for a refinement that may follow.
        return measured(
            problem, replace(state, smoothing=problem.smoothing or 0.0, stage=self.stage), factors.balanced()
        )


def projected(
    problem: Prepared, factors: Factors, layer: int, G: Float[Tensor, "S r"], H: Float[Tensor, "S r"], coupling: float
) -> Float[Tensor, "r d"]:
    """The coefficients of a layer nearest to given activations and slopes."""
    t, basis = factors.arguments(problem.fitted.inputs)[layer], factors.activations[layer].basis
    activated = Activated(centred(basis.value(t), problem.fitted.count), basis.derivative(t))
    return project(activated, G, H, coupling)


def random_layers(problem: Prepared, bend: float, generator: torch.Generator) -> Factors:
    """Directions in which the map changes, random ones between the layers, and activations that bend."""
    objective, ranks = problem.fitted, problem.ranks
    V = gradient_directions(objective, ranks[0], generator)[0]

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=V.dtype, device="cpu").to(V)

    line = straight_line(problem.basis).to(V)
    coefficients = [line + bend * line.norm() * draw(rank, len(line)) for rank in ranks]
    hidden = [draw(after, before).mT for before, after in pairwise(ranks)]
    W = draw(objective.centred.shape[1], ranks[-1])
    maps = tuple((one,) for one in (V, *hidden, W.mT))
    activations = tuple(Activations(C, V.new_zeros(len(C)), problem.basis) for C in coefficients)
    factors = Factors(maps, activations, objective.mean)
    for layer in range(len(ranks)):
        factors = placed(problem, factors, layer)
    return factors


def straight_line(basis: Orthonormal) -> Float[Tensor, " d"]:
    """The coefficients of `g(t) = t`, or of what is nearest to it."""
    nodes, weights = quadrature(basis.interval)
    return (weights * nodes) @ basis.value(nodes)


def placed(problem: Prepared, factors: Factors, layer: int) -> Factors:
    """The layers with the directions of one of them scaled to the interval of its basis."""
    one = factors.activations[layer]
    t = factors.arguments(problem.fitted.inputs)[layer] - one.shift
    scale, shift = problem.basis.place(t)
    basis = problem.basis.fit(t * scale + shift)
    scaled = factors.with_map(layer, factors.map(layer) * scale)
    return scaled.with_activations(layer, shift=shift, basis=basis)


def with_unit_activations(factors: Factors, coefficients: Float[Tensor, "r d"], layer: int) -> Factors:
    """The layers with other coefficients in one of them, of unit rows: their sizes go into the map that follows."""
    size = positive(coefficients.norm(dim=1))
    carried = factors.with_map(layer + 1, size[:, None] * factors.map(layer + 1))
    return carried.with_activations(layer, coefficients=coefficients / size[:, None])
