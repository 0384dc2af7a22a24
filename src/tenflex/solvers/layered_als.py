"""Constrained alternating least squares for two flexible layers: the start that random weights do not give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases.base import positive, quadrature
from tenflex.bases.orthonormal import Orthonormal
from tenflex.checks import require_number, require_whole
from tenflex.layered import LayeredFactors, downstream
from tenflex.objective.coefficients import DENSE, RIDGE, Activated, CoefficientSystem
from tenflex.objective.linear import conjugate_gradients, solve_positive
from tenflex.objective.prepared import Prepared
from tenflex.objective.roughness import choose_smoothing
from tenflex.objective.weighted import WeightedSystem
from tenflex.solvers.base import Solver, State, measured
from tenflex.solvers.gradients import gradient_directions
from tenflex.sums import chunks


@dataclass(frozen=True)
class LayeredALS(Solver):
    r"""Alternate over V, C, U, C' and W of :math:`W g(U h(V^\top x + a) + a') + b`, each by least squares.

    With the slopes D and D' of all other nodes held fixed, the Jacobians :math:`W D'_s U D_s V^\top` are linear in each
    of the five: this is alternating least squares for the ParaTuck-2 decomposition, with the slopes of either layer
    constrained to its basis. The outputs enter where they are linear too, in C' and W. It is not monotone: wrap it in
    `BestSoFar`, and let `Refine` follow, in which nothing is held fixed.

    References:
        De Jonghe, Usevich, Dreesen, Ishteva, "Compressing neural networks with two-layer decoupling", 2023,
        https://doi.org/10.1109/CAMSAP58249.2023.10403509
        Harshman, Lundy, "Uniqueness proof for a family of models sharing features of Tucker's three-mode factor
        analysis and PARAFAC/CANDECOMP", 1996, https://doi.org/10.1007/BF02294322

    Args:
        sweeps: The number of sweeps over all five.
        bend: How far the first activations are from straight lines, relative to them. Nodes that start alike stay
            alike; starts that bend more are more different from each other, which is worth it where one of many starts
            will do, as for maps with an exact answer.

    Raises:
        ValueError: if `sweeps` is not a whole number of at least 1, or `bend` is negative.
    """

    layers: ClassVar[tuple[int, ...]] = (2,)

    sweeps: int = 15
    bend: float = 0.3

    def __post_init__(self) -> None:
        require_whole("sweeps", self.sweeps, at_least=1)
        require_number("bend", self.bend, at_least=0)

    def total(self, problem: Prepared) -> int:
        return self.sweeps

    def init(self, problem: Prepared, generator: torch.Generator) -> State:
        factors = random_layers(problem, self.bend, generator)
        return settled(problem, factors, 0.0, repeats=3)

    def resume(self, problem: Prepared, state: State) -> State:
        return replace(state, taken=0, stopped=None, stage="layered ALS", memory=None)

    def step(self, problem: Prepared, state: State) -> State:
        factors, smoothing = state.factors, state.smoothing
        second = factors.slopes(problem.fitted.inputs)[1]
        factors = with_input_map(problem, factors, second)
        factors = with_first_coefficients(problem, factors, second, smoothing)
        factors = with_hidden_map(problem, factors, second)
        return replace(settled(problem, factors, smoothing, repeats=1), taken=state.taken + 1)


def random_layers(problem: Prepared, bend: float, generator: torch.Generator) -> LayeredFactors:
    """Directions in which the map changes, random ones between the layers, and activations that bend."""
    objective = problem.fitted
    first, second = problem.ranks
    V = gradient_directions(objective, first, generator)[0]

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=V.dtype).to(V)

    line = straight_line(problem.basis).to(V)
    coefficients = [line + bend * line.norm() * draw(rank, len(line)) for rank in problem.ranks]
    factors = LayeredFactors(
        inner=(V,),
        hidden=draw(second, first),
        outer=(draw(objective.centred.shape[1], second),),
        coefficients=(coefficients[0], coefficients[1]),
        shifts=(V.new_zeros(first), V.new_zeros(second)),
        bias=objective.mean,
        bases=(problem.basis, problem.basis),
    )
    return placed_between(problem, placed_first(problem, factors, V))


def straight_line(basis: Orthonormal) -> Float[Tensor, " d"]:
    """The coefficients of `g(t) = t`, or of what is nearest to it."""
    nodes, weights = quadrature(basis.interval)
    return (weights * nodes) @ basis.value(nodes)


def placed_first(problem: Prepared, factors: LayeredFactors, V: Float[Tensor, "m r1"]) -> LayeredFactors:
    """The layers with directions V, scaled to the interval of the first basis."""
    t = problem.fitted.inputs @ V
    scale, shift = problem.basis.place(t)
    basis = problem.basis.fit(t * scale + shift)
    return replace(factors, inner=(V * scale,), shifts=(shift, factors.shifts[1]), bases=(basis, factors.bases[1]))


def placed_between(problem: Prepared, factors: LayeredFactors) -> LayeredFactors:
    """The layers with the rows of U scaled to the interval of the second basis."""
    first = factors.bases[0].combine(factors.project(problem.fitted.inputs), factors.coefficients[0])
    t = first @ factors.hidden.mT
    scale, shift = problem.basis.place(t)
    basis = problem.basis.fit(t * scale + shift)
    hidden = factors.hidden * scale[:, None]
    return replace(factors, hidden=hidden, shifts=(factors.shifts[0], shift), bases=(factors.bases[0], basis))


def with_input_map(problem: Prepared, factors: LayeredFactors, second: Float[Tensor, "S r2"]) -> LayeredFactors:
    """V by least squares, then brought to unit columns and placed."""
    J = problem.fitted.jacobians.entries
    first = factors.slopes(problem.fitted.inputs)[0]
    rank = first.shape[1]
    gram, right = J.new_zeros(rank, rank), J.new_zeros(rank, J.shape[2])
    for part in chunks(len(J), J.shape[1] * rank):
        A = downstream(factors.W, second[part], factors.hidden, first[part]).flatten(0, 1)
        gram += A.mT @ A
        right += A.mT @ J[part].flatten(0, 1)
    V = solve_positive(gram, right).mT
    return placed_first(problem, factors, V / positive(V.norm(dim=0)))


def with_first_coefficients(
    problem: Prepared, factors: LayeredFactors, second: Float[Tensor, "S r2"], smoothing: float
) -> LayeredFactors:
    """C by least squares, of unit rows, with their sizes in the columns of U."""
    objective, V = problem.fitted, factors.V
    J, slope = objective.jacobians.entries, factors.bases[0].derivative(factors.project(objective.inputs))
    gram, right = empty_system(slope)
    for part in chunks(len(J), max(slope.shape[1] * slope[0].numel(), J.shape[1] * slope.shape[1])):
        A = (factors.W * second[part, None]) @ factors.hidden
        gram += mixed_gram(slope[part], (A.mT @ A) * (V.mT @ V))
        right += torch.einsum("sl,sld->ld", (A * (J[part] @ V)).sum(1), slope[part])
    # The outputs are not linear in C and add nothing. Where the second basis has its interval U is placed, so its
    # sizes are relative, and roughness counts as U carries it on.
    carried = objective.weight_f * torch.diag(factors.hidden.square().sum(0))
    system = slope_system(problem, slope, carried, gram, right)
    coefficients = system.solve(factors.coefficients[0], smoothing)
    size = positive(coefficients.norm(dim=1))
    unit = coefficients / size[:, None]
    return replace(factors, coefficients=(unit, factors.coefficients[1]), hidden=factors.hidden * size)


def with_hidden_map(problem: Prepared, factors: LayeredFactors, second: Float[Tensor, "S r2"]) -> LayeredFactors:
    """U by least squares, placed: a dense system of up to 2,000 unknowns, else by conjugate gradients."""
    J, V = problem.fitted.jacobians.entries, factors.V
    first = factors.slopes(problem.fitted.inputs)[0]
    right = torch.zeros_like(factors.hidden)
    for part in chunks(len(J), J.shape[1] * max(factors.rank)):
        left = factors.W * second[part, None]
        right += left.flatten(0, 1).mT @ ((J[part] @ V) * first[part, None]).flatten(0, 1)
    solve = dense_hidden if right.numel() <= DENSE else iterated_hidden
    return placed_between(problem, replace(factors, hidden=solve(factors, first, second, right)))


def dense_hidden(factors: LayeredFactors, first: Tensor, second: Tensor, right: Tensor) -> Float[Tensor, "r2 r1"]:
    """The normal equations in U, formed."""
    gram = right.new_zeros(right.numel(), right.numel())
    for part in chunks(len(first), right.numel()):
        both = (second[part, :, None] * first[part, None]).flatten(1)
        gram += both.mT @ both
    gram *= torch.kron(factors.W.mT @ factors.W, factors.V.mT @ factors.V)
    return solve_positive(gram, right.reshape(-1, 1), RIDGE).view_as(right)


def iterated_hidden(factors: LayeredFactors, first: Tensor, second: Tensor, right: Tensor) -> Float[Tensor, "r2 r1"]:
    """The same by products only."""
    gram_w, gram_v = factors.W.mT @ factors.W, factors.V.mT @ factors.V
    diagonal = (second.square().mT @ first.square()) * gram_w.diagonal()[:, None] * gram_v.diagonal()
    ridge = RIDGE * diagonal.mean()

    def apply(hidden: Tensor) -> Tensor:
        total = ridge * hidden
        for part in chunks(len(first), right.numel()):
            inside = (second[part, :, None] * hidden * first[part, None]) @ gram_v
            total = total + ((gram_w @ inside) * second[part, :, None] * first[part, None]).sum(0)
        return total

    return conjugate_gradients(apply, right, factors.hidden, lambda left: left / (diagonal + ridge))


def settled(problem: Prepared, factors: LayeredFactors, smoothing: float, repeats: int) -> State:
    """The layers with C' and W by coupled least squares, `repeats` times, and their errors."""
    objective = problem.fitted
    t = factors.between(objective.inputs)
    value = factors.bases[1].value(t)
    activated = Activated(value - value.mean(0), factors.bases[1].derivative(t))
    for _ in range(repeats):
        system = second_system(problem, factors, activated)
        smoothing = choose_smoothing(problem, system)
        coefficients = system.solve(factors.coefficients[1], smoothing)
        factors = replace(factors, coefficients=(factors.coefficients[0], coefficients))
        factors = replace(factors, outer=(output_map(problem, factors, activated, smoothing),))
    factors = factors.balanced()
    return measured(problem, State(factors, 0.0, 0.0, smoothing=smoothing, stage="layered ALS"), factors)


def second_system(problem: Prepared, factors: LayeredFactors, activated: Activated) -> CoefficientSystem:
    """The normal equations in C', of Jacobians and outputs."""
    objective, W, slope = problem.fitted, factors.W, activated.slope
    gram, right = empty_system(slope)
    for part, mix, along in arriving(problem, factors, slope.shape[1] * slope[0].numel()):
        gram += mixed_gram(slope[part], mix * (W.mT @ W))
        right += torch.einsum("sk,skd->kd", (along * W).sum(1), slope[part])
    system = slope_system(problem, slope, objective.weight_f * W.mT @ W, gram, right)
    return replace(system, activated=activated, to_g=objective.weight_f * objective.centred @ W)


def output_map(
    problem: Prepared, factors: LayeredFactors, activated: Activated, smoothing: float
) -> Float[Tensor, "n r2"]:
    """W by coupled least squares; a node pays for its roughness with the size of its column."""
    objective, C = problem.fitted, factors.coefficients[1]
    G, H = activated.curves(C)
    gram, right = G.mT @ G * objective.weight_f, objective.centred.mT @ G * objective.weight_f
    if problem.penalty is not None:
        gram += torch.diag(smoothing * objective.weight_f * torch.einsum("rd,de,re->r", C, problem.penalty, C))
    for part, mix, along in arriving(problem, factors, max(factors.rank)):
        gram += objective.weight_j * torch.einsum("skj,sk,sj->kj", mix, H[part], H[part])
        right += objective.weight_j * (along * H[part, None]).sum(0)
    return solve_positive(gram, right.mT).mT


def arriving(
    problem: Prepared, factors: LayeredFactors, width: int
) -> Iterator[tuple[slice, Float[Tensor, "s r2 r2"], Float[Tensor, "s n r2"]]]:
    """The directions `N = U D V^T` of the second layer's nodes in each sample: `N N^T`, and J along them."""
    J, V = problem.fitted.jacobians.entries, factors.V
    first = factors.slopes(problem.fitted.inputs)[0]
    gram = V.mT @ V
    for part in chunks(len(J), max(width, J.shape[1] * max(factors.rank))):
        moved = factors.hidden * first[part, None]
        yield part, moved @ gram @ moved.mT, (J[part] @ V) @ moved.mT


def empty_system(slope: Float[Tensor, "S r d"]) -> tuple[Float[Tensor, "r d r d"], Float[Tensor, "r d"]]:
    """Sums that samples will be added to."""
    _, r, d = slope.shape
    return slope.new_zeros(r, d, r, d), slope.new_zeros(r, d)


def slope_system(
    problem: Prepared, slope: Float[Tensor, "S r d"], mix_f: Float[Tensor, "r r"], gram: Tensor, right: Tensor
) -> WeightedSystem:
    """The normal equations of the Jacobians, in which the slopes of the nodes are mixed differently in every sample."""
    weight, (r, d) = problem.fitted.weight_j, right.shape
    nothing, no_mix = slope.new_zeros(len(slope), r), slope.new_zeros(r, r)
    no_value = slope.new_zeros(()).expand_as(slope)
    return WeightedSystem(
        Activated(no_value, slope),
        mix_f,
        no_mix,
        nothing,
        nothing,
        penalty=problem.penalty,
        gram=weight * gram.view(r * d, r * d),
        to_c=weight * right,
    )


def mixed_gram(slope: Float[Tensor, "s r d"], mix: Float[Tensor, "s r r"]) -> Float[Tensor, "r d r d"]:
    """`sum_s mix_kl phi'_ki phi'_lj`: one product for every node k."""
    _, r, d = slope.shape
    each = (mix.unsqueeze(-1) * slope.unsqueeze(1)).flatten(2).transpose(0, 1)
    return (slope.permute(1, 2, 0) @ each).view(r, d, r, d)
