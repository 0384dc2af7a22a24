"""Solvers: what one step does, which planted layers they find, and how they are put together."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import (
    CUBIC,
    MORE_NODES,
    SKEW,
    SUM_AND_DIFFERENCE,
    Planted,
    direction_error,
    factored,
    output_error,
    placed,
    random,
    sampled,
    seeded,
    state_at,
)
from torch import Tensor
from torch.func import jacrev

from tenflex import solvers
from tenflex.bases import BSpline, Chebyshev, Hinge, Monomial, Monotone, PositiveHinge, Smooth, TwoSidedHinge
from tenflex.decouple import decouple
from tenflex.factors import Factors
from tenflex.objective import coefficients
from tenflex.objective.coefficients import Activated, CoefficientSystem
from tenflex.objective.gradients import gradient_directions
from tenflex.objective.linear import conjugate_gradients, solve_positive
from tenflex.objective.normal_equations import normal_equations
from tenflex.objective.roughness import GRID, choose_smoothing
from tenflex.objective.steps import activate, coefficient_system, output_step
from tenflex.problem import Problem
from tenflex.result import Result
from tenflex.samples import Samples
from tenflex.sampling.jacobian import sample
from tenflex.solution import Solution
from tenflex.solvers import (
    BestSoFar,
    Chain,
    ConstrainedALS,
    FilteredCPD,
    GaussNewton,
    GeneralizedEigenvalues,
    Growing,
    HessianCPD,
    JacobianCPD,
    LayeredALS,
    Leading,
    Lifted,
    MultiStart,
    ProjectedALS,
    ProjectedLayeredALS,
    Refine,
    SketchedNewton,
    Solver,
    State,
    StructuredCPD,
    Truncate,
    Unweighted,
    WeightedCPD,
    default_solver,
    gauss_newton,
    prepare,
)
from tenflex.solvers.base import measured, penalized
from tenflex.solvers.default import has_pencil
from tenflex.solvers.leading import leading_pair
from tenflex.solvers.published import zniyed2021
from tenflex.solvers.wrap import pooled_score, score

# ---- planted layers ----

CASES = {
    "cubic": CUBIC,
    "skew": SKEW,
    "more nodes than outputs": MORE_NODES,
    "sum and difference": SUM_AND_DIFFERENCE,
    "three nodes": factored(5, 4, 3, None, None, seed=0),
    "more nodes than inputs and outputs": factored(3, 2, 4, None, None, seed=0),
    "factored inputs": factored(8, 4, 3, 2, None, seed=0),
    "factored outputs": factored(4, 8, 3, None, 2, seed=0),
    "factored both": factored(8, 6, 3, 2, 3, seed=5),
}
FEW_NODES = ("cubic", "sum and difference", "three nodes")
UNFACTORED = (*FEW_NODES, "skew", "more nodes than outputs", "more nodes than inputs and outputs")

# A new solver is one row: several starts, since one is not enough for any, and the cases it solves.
SOLVERS = {
    "ConstrainedALS": (MultiStart(ConstrainedALS(80), 2), FEW_NODES),
    "ProjectedALS": (MultiStart(ProjectedALS(60), 2), (*FEW_NODES, "skew")),
    "Refine": (MultiStart(Chain((ConstrainedALS(30), Refine(400, tolerance=1e-7))), 4), FEW_NODES),
    "GaussNewton": (MultiStart(Chain((ConstrainedALS(10), GaussNewton(60))), 12), UNFACTORED),
    "JacobianCPD": (MultiStart(JacobianCPD(), 2), (*FEW_NODES, "skew")),
    "StructuredCPD": (MultiStart(StructuredCPD(), 2), (*FEW_NODES, "skew")),
    "StructuredCPD, GaussNewton": (MultiStart(Chain((StructuredCPD(50), GaussNewton(60))), 4), UNFACTORED),
    "GeneralizedEigenvalues": (GeneralizedEigenvalues(), (*FEW_NODES, "skew")),
    "FilteredCPD": (MultiStart(Chain((FilteredCPD(10), GaussNewton(60))), 4), UNFACTORED),
    "Lifted": (Lifted(MultiStart(JacobianCPD(), 2)), FEW_NODES),
    "Leading": (Leading(MultiStart(Chain((ConstrainedALS(10), GaussNewton(60))), 12)), CASES),
    "Leading, eigenvalues": (
        Leading(GeneralizedEigenvalues()),
        ("factored inputs", "factored outputs", "factored both"),
    ),
    "default": (None, CASES),
}
ROWS = [
    pytest.param(solver, CASES[case], id=f"{name}, {case}")
    for name, (solver, cases) in SOLVERS.items()
    for case in cases
]


@pytest.mark.parametrize(("solver", "planted"), ROWS)
def test_planted_layers_are_found_up_to_order_and_scale(solver, planted):
    solution = decouple(planted.problem(), solver)
    assert solution.jacobian_error < 1e-8
    assert solution.output_error < 1e-8
    found = solution.factors
    assert output_error(found, planted.factors, planted.inputs) < 1e-8
    assert direction_error(found, planted.factors) < 1e-7
    assert [one.shape for one in found.tensors()] == [one.shape for one in planted.factors.tensors()]


@pytest.mark.parametrize("case", CASES)
def test_a_planted_layer_is_recognized_in_any_order_and_scale(case, generator):
    """The measure of the test above: zero for the same layer, large for another one."""
    true = CASES[case].factors
    order = torch.randperm(*true.ranks, generator=generator)
    scale = random(generator, *true.ranks).exp()
    (*first, to_nodes), (from_nodes, *last) = true.maps
    moved = true.with_map(0, *first, to_nodes[:, order] * scale)
    moved = moved.with_map(-1, -from_nodes[order] / scale[:, None], *last)
    assert direction_error(moved, true) < 1e-12
    other = random(generator, *to_nodes.shape)
    assert direction_error(true.with_map(0, *first, other), true) > 1e-2


def test_the_cubic_case_is_the_published_polynomial():
    a, b = CUBIC.inputs.T
    first = 54 * a**3 - 54 * a**2 * b + 8 * a**2 + 18 * a * b**2 + 16 * a * b - 2 * b**3 + 8 * b**2 + 8 * b + 1
    second = -27 * a**3 + 27 * a**2 * b - 24 * a**2 - 9 * a * b**2 - 48 * a * b - 15 * a
    second = second + b**3 - 24 * b**2 - 19 * b - 3
    torch.testing.assert_close(CUBIC.factors.outputs(CUBIC.inputs), torch.stack([first, second], 1))
    numbers = CUBIC.factors.outputs(torch.tensor([[-0.2, 0.0], [0.5, 0.25]], dtype=torch.float64))
    expected = torch.tensor([[0.888, -0.744], [11.4063, -30.7032]], dtype=torch.float64)
    torch.testing.assert_close(numbers, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_constrained_als_needs_many_sweeps_on_the_skew_case():
    solution = decouple(SKEW.problem(), MultiStart(ConstrainedALS(1000), 4))
    assert solution.jacobian_error < 1e-8
    assert direction_error(solution.factors, SKEW.factors) < 1e-7


SMOOTH_BASES = [
    BSpline(6),
    BSpline(6, degree=2),
    BSpline(5, degree=1),
    BSpline(6, spacing="quantile"),
    Chebyshev(4),
    Monomial(4),
]
KINKED_BASES = [Hinge(4), PositiveHinge(4), TwoSidedHinge(4)]


def layer_of(basis) -> Planted:
    """One whose nodes are placed by the samples, so that its kinks are those that a solver would choose."""
    return placed(basis)


@pytest.mark.parametrize("basis", SMOOTH_BASES, ids=repr)
def test_layers_of_every_smooth_basis_are_found_by_alternation(basis):
    planted = layer_of(basis)
    solution = decouple(planted.problem(basis=basis, held_out=0), MultiStart(ConstrainedALS(60), 2))
    assert solution.jacobian_error < 1e-8
    assert solution.output_error < 1e-8
    assert direction_error(solution.factors, planted.factors) < 1e-7
    assert solution.factors.only.basis.size == basis.size


@pytest.mark.parametrize("basis", [*SMOOTH_BASES, *KINKED_BASES], ids=repr)
def test_a_planted_layer_stays_where_it_is(basis):
    planted = layer_of(basis)
    prepared, state = state_at(planted.problem(basis=basis, held_out=0), planted.factors)
    assert state.jacobian_error < 1e-24
    assert state.output_error < 1e-24
    for solver in (ConstrainedALS(3), Refine(20), GaussNewton(5)):
        inside = solver.resume(prepared, state)
        for _ in range(3):
            inside = solver.step(prepared, inside)
            assert inside.jacobian_error < 1e-16
            assert inside.output_error < 1e-16


def test_projection_leaves_a_planted_layer_of_more_nodes_than_outputs_and_constrained_als_does_not():
    """F W^+ is not G for r > n, once the outputs have their full weight; the exact coefficients are the layer's own."""
    for planted, stays in ((MORE_NODES, False), (CUBIC, True)):
        prepared, state = state_at(planted.problem(), planted.factors)
        moved = ProjectedALS(50).step(prepared, replace(state, taken=40))
        assert (moved.jacobian_error < 1e-16) == stays
        if not stays:
            assert moved.jacobian_error > 1e-3
            assert moved.output_error > 1e-3
        kept = ConstrainedALS(50).step(prepared, ConstrainedALS(50).resume(prepared, state))
        assert kept.jacobian_error < 1e-20
        assert kept.output_error < 1e-20


@pytest.mark.slow
def test_projected_als_does_not_find_more_nodes_than_outputs():
    problem = MORE_NODES.problem()
    projected = decouple(problem, MultiStart(ProjectedALS(300), 10))
    constrained = decouple(problem, MultiStart(ConstrainedALS(300), 10))
    assert projected.output_error > 1e-2
    assert direction_error(projected.factors, MORE_NODES.factors) > 0.3
    assert constrained.output_error < 1e-3
    assert direction_error(constrained.factors, MORE_NODES.factors) < 0.03


# L-BFGS: the line search of torch resolves steps down to 1e-9, so the objective down to about 1e-18.
@pytest.mark.parametrize(("solver", "reached"), [(GaussNewton(30), 1e-26), (Refine(1000, tolerance=1e-9), 1e-13)])
@pytest.mark.parametrize("planted", [CUBIC, SKEW, MORE_NODES, SUM_AND_DIFFERENCE], ids=["1", "2", "3", "7"])
def test_refinement_is_exact_from_nearby(solver, reached, planted, generator):
    (V,), C = planted.factors.maps[0], planted.factors.only.coefficients
    near = planted.factors.with_map(0, V * (1 + 1e-3 * random(generator, *V.shape)))
    near = near.with_activations(0, coefficients=C + 1e-3 * random(generator, *C.shape))
    prepared, state = state_at(planted.problem(), near)
    assert penalized(prepared, state) > 1e-8
    state = solver.resume(prepared, state)
    while not solver.finished(prepared, state):
        state = solver.step(prepared, state)
    assert penalized(prepared, state) < reached
    if isinstance(solver, GaussNewton):
        assert state.stopped is Result.EXACT
        assert state.taken < 12  # quadratic convergence


# ---- each step is the exact minimum of what it says ----


def unrelated(basis=None, m=4, n=3, rank=3, count=40, seed=0, **settings) -> Problem:
    """Samples that no layer fits."""
    generator = seeded(seed)
    samples = Samples(random(generator, count, m), random(generator, count, n), random(generator, count, n, m))
    return Problem(samples, rank, basis or BSpline(6), **settings)


def activated_at(prepared, factors: Factors) -> Activated:
    return activate(factors.only.basis, prepared.fitted, factors.V, factors.only.shift)


def system_at(prepared, factors: Factors) -> CoefficientSystem:
    """The normal equations in the coefficients of a layer."""
    return coefficient_system(prepared, activated_at(prepared, factors), factors.V, factors.W)


@pytest.fixture(params=[BSpline(6), Monomial(3), TwoSidedHinge(4), Smooth(BSpline(7), 0.3)], ids=repr)
def standing(request):
    """A problem with a state in the middle of nowhere."""
    prepared, _ = prepare(unrelated(request.param))
    return prepared, ConstrainedALS(2).init(prepared, seeded(1))


def gradients(prepared, factors: Factors, smoothing: float, *, jacobian_only: bool = False) -> dict[str, Tensor]:
    """The gradient of the objective in every unknown, by autograd through dense sums."""
    objective, basis = prepared.fitted, factors.only.basis
    unknowns = {"V": factors.V, "W": factors.W, "C": factors.only.coefficients, "shift": factors.only.shift}
    unknowns = {key: one.clone().requires_grad_() for key, one in unknowns.items()}
    with torch.enable_grad():
        t = objective.inputs @ unknowns["V"] + unknowns["shift"]
        G = torch.einsum("srd,rd->sr", basis.value(t), unknowns["C"])
        H = torch.einsum("srd,rd->sr", basis.derivative(t), unknowns["C"])
        J = torch.einsum("sr,nr,mr->snm", H, unknowns["W"], unknowns["V"])
        total = (objective.jacobians.entries - J).square().sum() / objective.size_j
        left = objective.centred - (G - G.mean(0)) @ unknowns["W"].mT
        if not jacobian_only:
            total = total + objective.coupling * left.square().sum() / objective.size_f
        if prepared.penalty is not None:
            price = torch.einsum("rd,de,re->r", unknowns["C"], prepared.penalty, unknowns["C"])
            sizes = unknowns["W"].square().sum(0)
            total = total + smoothing * objective.coupling / objective.size_f * (sizes * price).sum()
        slopes = torch.autograd.grad(total, list(unknowns.values()))
    return dict(zip(unknowns, slopes, strict=True))


def test_the_coefficients_are_optimal(standing):
    prepared, state = standing
    factors = state.factors
    assert gradients(prepared, factors, state.smoothing)["C"].abs().max() > 1e-4
    best = system_at(prepared, factors).solve(torch.zeros_like(factors.only.coefficients), state.smoothing)
    slope = gradients(prepared, factors.with_activations(0, coefficients=best), state.smoothing)["C"]
    assert slope.abs().max() < 1e-9


def test_the_output_map_is_optimal(standing):
    prepared, state = standing
    factors = state.factors
    moved = factors.only.coefficients * 1.3
    activated = activated_at(prepared, factors)
    W = output_step(prepared, activated, factors.V, factors.W, moved, state.smoothing).W
    after = factors.with_map(-1, W.mT).with_activations(0, coefficients=moved)
    assert gradients(prepared, after.with_map(-1, 2 * W.mT), state.smoothing)["W"].abs().max() > 1e-2
    assert gradients(prepared, after, state.smoothing)["W"].abs().max() < 1e-9


def test_the_system_in_the_coefficients_is_the_dense_one(standing):
    prepared, state = standing
    factors, C = state.factors, state.factors.only.coefficients
    system = system_at(prepared, factors)
    torch.testing.assert_close(system.dense() @ C.flatten(), system.apply(C).flatten())
    # The gradient of the objective at C is 2 (A C - right).
    slope = gradients(prepared, factors, state.smoothing)["C"]
    price = (state.smoothing * system.dense_penalty() @ C.flatten()).view_as(C)
    torch.testing.assert_close(2 * (system.apply(C) + price - system.right()), slope, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(
        system.diagonal_blocks(),
        torch.stack(system.dense().view(3, C.shape[1], 3, -1).diagonal(dim1=0, dim2=2).unbind(-1)),
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_conjugate_gradients_give_the_dense_solution(standing, smoothing, monkeypatch):
    prepared, state = standing
    C = state.factors.only.coefficients
    system = system_at(prepared, state.factors)
    dense = system.solve(torch.zeros_like(C), smoothing)
    monkeypatch.setattr(coefficients, "FORMED", 0)
    for start in (torch.zeros_like(dense), C, dense):
        torch.testing.assert_close(system.solve(start, smoothing), dense, rtol=1e-5, atol=1e-6)


def test_large_problems_are_solved_by_conjugate_gradients_to_the_same_end(monkeypatch):
    planted = CASES["three nodes"]
    monkeypatch.setattr(coefficients, "FORMED", 0)
    solution = decouple(planted.problem(), MultiStart(ConstrainedALS(80), 2))
    assert solution.jacobian_error < 1e-6
    assert direction_error(solution.factors, planted.factors) < 1e-5


@pytest.mark.parametrize("basis", [BSpline(6), Monomial(3), Chebyshev(4), Smooth(BSpline(7), 0.3)], ids=repr)
def test_normal_equations_are_those_of_the_exact_residuals(basis, monkeypatch):
    prepared, _ = prepare(unrelated(basis, m=3, n=2, count=15))
    state = ConstrainedALS(1).init(prepared, seeded(2))
    factors, objective = state.factors, prepared.fitted
    basis, shapes = factors.only.basis, factors.tensors()
    flat = torch.cat([one.flatten() for one in shapes])

    def residuals(flat: Tensor) -> Tensor:
        pieces = flat.split([one.numel() for one in shapes])
        V, outer, shift, C = (piece.view_as(one) for piece, one in zip(pieces, shapes, strict=True))
        t, W = objective.inputs @ V + shift, outer.mT
        G = torch.einsum("srd,rd->sr", basis.value(t), C)
        H = torch.einsum("srd,rd->sr", basis.derivative(t), C)
        J = objective.jacobians.entries - torch.einsum("sr,nr,mr->snm", H, W, V)
        F = objective.centred - (G - G.mean(0)) @ W.mT
        rest = []
        if prepared.penalty is not None:
            root = torch.linalg.cholesky(prepared.penalty + 1e-12 * torch.eye(len(prepared.penalty)))
            weight = (state.smoothing * objective.weight_f).sqrt()
            rest = [weight * torch.einsum("nr,rd->nrd", W, C @ root).flatten()]
        return torch.cat([objective.weight_j.sqrt() * J.flatten(), objective.weight_f.sqrt() * F.flatten(), *rest])

    D, e = jacrev(residuals)(flat), residuals(flat)
    for chunk in (2**22, 1):
        monkeypatch.setattr("tenflex.sums.CHUNK", chunk)
        gram, slope = normal_equations(prepared, factors, state.smoothing)
        torch.testing.assert_close(gram, D.mT @ D, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(slope, -D.mT @ e, rtol=1e-6, atol=1e-9)


def test_starts_are_compared_on_fitted_and_validation_samples_each_counting_alike():
    prepared, _ = prepare(Problem(unrelated(count=40).samples, 2, Monomial(2), held_out=0.2))
    factors = ConstrainedALS(1).init(prepared, seeded(0)).factors
    parts = prepared.fitted, prepared.validation
    sums = [one.count * one.total(*one.errors(factors)) for one in parts]
    assert pooled_score(prepared, factors) == pytest.approx(sum(sums) / sum(one.count for one in parts))
    assert score(prepared, factors) == pytest.approx(sums[1] / parts[1].count)


@pytest.mark.parametrize("basis", [Smooth(BSpline(7), 1.0), Smooth(Monomial(4), 10.0)], ids=repr)
def test_gauss_newton_ends_where_nothing_lowers_the_penalized_objective(basis):
    """The price of roughness moves with W, too: once it was counted as if only coefficients moved it."""
    problem = Problem(sample(bent, 2 * torch.rand(80, 2, dtype=torch.float64, generator=seeded(0)) - 1), 2, basis)
    first = decouple(problem, Chain((JacobianCPD(), GaussNewton(400, tolerance=1e-12))))
    further = decouple(problem, Refine(2000, tolerance=1e-12), start=first.factors)
    assert promised(further) == pytest.approx(promised(first), rel=2e-4)


def promised(solution: Solution) -> float:
    """The objective of the docstring of `Smooth`, on the fitted samples."""
    problem, W, C = solution.problem, solution.factors.W, solution.factors.only.coefficients
    F = problem.samples.outputs[problem.split.fitted]
    rough = (W.square().sum(0) * torch.einsum("rd,de,re->r", C, problem.basis.roughness(), C)).sum()
    penalty = problem.basis.weight * rough / (F - F.mean(0)).square().sum()
    return solution.jacobian_error**2 + problem.coupling * (solution.history[-1].output_error + float(penalty))


def bent(z: Tensor) -> Tensor:
    """Two outputs that no two nodes reproduce."""
    return torch.stack([torch.sin(3 * z[0] + z[1]) + 0.2 * z[0] * z[1], torch.exp(z[1] - z[0])])


def test_starts_are_gradient_directions_of_unit_norm(generator):
    """Large gradients are drawn more often: here all of the energy lies in one row of one sample."""
    problem = unrelated(count=30)
    J = torch.full_like(problem.samples.jacobians, 1e-12)
    prepared, _ = prepare(problem)
    objective = prepared.fitted
    V, W = gradient_directions(objective, 5, generator)
    for one in (V, W):
        torch.testing.assert_close(one.norm(dim=0), torch.ones(5, dtype=one.dtype))
    J = torch.zeros_like(objective.jacobians.entries)
    row = random(generator, J.shape[2])
    J[7, 1] = row
    samples = Samples(objective.inputs, objective.samples.outputs, J)
    V, W = gradient_directions(type(objective)(samples, 1.0), 4, generator)
    torch.testing.assert_close(
        (V * (row / row.norm())[:, None]).sum(0), torch.ones(4, dtype=V.dtype), rtol=1e-4, atol=0
    )
    torch.testing.assert_close(W.abs(), torch.eye(J.shape[1], dtype=W.dtype)[1][:, None].expand(-1, 4))


# ---- linear systems ----


def test_positive_systems_are_solved(generator):
    root, right = random(generator, 8, 8), random(generator, 8, 3)
    gram = root @ root.mT + torch.eye(8)
    torch.testing.assert_close(solve_positive(gram, right), torch.linalg.solve(gram, right))


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_singular_systems_have_the_least_solution(generator, scale):
    """What the matrix maps to nothing stays zero, as with a pseudo-inverse, and the ridge leaves no bias."""
    root = random(generator, 8, 4)
    gram, right = scale * root @ root.mT, scale * root @ random(generator, 4, 2)
    expected = torch.linalg.pinv(gram / scale, hermitian=True) @ (right / scale)
    torch.testing.assert_close(solve_positive(gram, right, 1e-9), expected, rtol=1e-6, atol=1e-6)


def test_what_has_no_solution_still_ends():
    for broken in (torch.zeros(3, 3), -torch.eye(3), torch.full((3, 3), torch.nan)):
        assert solve_positive(broken.double(), torch.ones(3, 1, dtype=torch.float64)).shape == (3, 1)


def test_conjugate_gradients_take_as_many_steps_as_there_are_eigenvalues(generator):
    axes = torch.linalg.qr(random(generator, 30, 30))[0]
    values = torch.tensor([1.0, 5.0, 100.0], dtype=torch.float64).repeat(10)
    gram, right = axes * values @ axes.mT, random(generator, 30)
    calls = []
    found = conjugate_gradients(
        lambda x: (calls.append(1), gram @ x)[1], right, torch.zeros(30, dtype=torch.float64), lambda x: x
    )
    torch.testing.assert_close(found, torch.linalg.solve(gram, right))
    assert len(calls) <= 5
    zero = torch.zeros(30, dtype=torch.float64)
    assert torch.equal(conjugate_gradients(lambda x: gram @ x, zero, zero, lambda x: x), zero)


# ---- the objective never rises ----


def noisy(seed: int, noise: float, basis, **settings) -> Problem:
    """Samples of a smooth map with noise on outputs and Jacobians."""
    generator = seeded(seed)
    m, n = 3, 2
    A, B, x = random(generator, m, 5), random(generator, 5, n), random(generator, 30, m)
    F, J = torch.tanh(x @ A) @ B, torch.einsum("hn,sh,mh->snm", B, 1 - torch.tanh(x @ A) ** 2, A)
    samples = Samples(x, F + noise * random(generator, *F.shape), J + noise * random(generator, *J.shape))
    return Problem(samples, 3, basis, **settings)


BASES = [BSpline(6), Monomial(3), Hinge(4), Smooth(BSpline(6), 0.1), Smooth(BSpline(6)), Smooth(Monomial(4), 10.0)]


@settings(max_examples=25)
@given(
    seed=st.integers(0, 1000),
    noise=st.sampled_from([0.0, 0.1, 3.0]),
    basis=st.sampled_from(BASES),
    coupling=st.sampled_from([0.0, 0.1, 3.0, 100.0]),
    widths=st.sampled_from([(None, None), (2, None), (None, 1), (2, 2)]),
    solver=st.sampled_from([Refine(21, stride=7), GaussNewton(4)]),
)
def test_refinements_never_raise_the_objective(seed, noise, basis, coupling, widths, solver):
    problem = noisy(seed, noise, basis, coupling=coupling, factor=widths[0], output_factor=widths[1])
    prepared, _ = prepare(problem)
    with torch.no_grad():
        state = Truncate().step(prepared, ConstrainedALS(2).init(prepared, seeded(seed)))
        state = solver.resume(prepared, state)
        before = objective_of(prepared, state)
        while not solver.finished(prepared, state):
            state = solver.step(prepared, state)
            after = objective_of(prepared, state)
            assert after <= before * (1 + 1e-9)
            before = after


def objective_of(prepared, state) -> float:
    """The objective, by its definition; the roughness is priced as `Smooth` says."""
    jacobian_error, output_error_ = prepared.fitted.errors(state.factors)
    total = jacobian_error + prepared.fitted.coupling * output_error_
    if prepared.penalty is not None:
        C, W = state.factors.only.coefficients, state.factors.W
        price = (
            sum(W[:, k].square().sum() * (C[k] @ prepared.penalty @ C[k]) for k in range(prepared.rank))
            / prepared.fitted.size_f
        )
        total += state.smoothing * prepared.fitted.coupling * float(price)
    assert math.isfinite(total)
    return total


@pytest.mark.parametrize("refine", [Refine(40), GaussNewton(20)], ids=["Refine", "GaussNewton"])
@pytest.mark.parametrize("basis", [BSpline(6), Monomial(3), Hinge(4)], ids=repr)
def test_the_history_of_a_refinement_never_rises(refine, basis):
    solution = decouple(noisy(4, 0.1, basis), Chain((ConstrainedALS(5), refine)))
    errors = [one.jacobian_error + 3.0 * one.output_error for one in solution.history[5:]]
    assert len(errors) > 2
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise(errors))
    assert errors[-1] < 0.999 * errors[0]


@pytest.mark.parametrize("weight", [0.0, 0.1, 10.0])
def test_a_step_of_constrained_als_lowers_the_objective_at_its_place(weight):
    """After W, the coefficients are found anew for the same V: alternating them only lowers the penalized objective."""
    prepared, _ = prepare(noisy(0, 0.1, Smooth(BSpline(6), weight)))
    state = ConstrainedALS(1).init(prepared, seeded(0))
    factors = state.factors
    activated = activated_at(prepared, factors)
    before = objective_of(prepared, state)
    for _ in range(5):
        C = system_at(prepared, factors).solve(factors.only.coefficients, weight)
        factors = factors.with_activations(0, coefficients=C)
        state = measured(prepared, state, factors)
        W = output_step(prepared, activated, factors.V, factors.W, C, weight).W
        after = objective_of(prepared, state)
        assert after <= before * (1 + 1e-12)
        before = after
        factors = factors.with_map(-1, W.mT)
        after = objective_of(prepared, measured(prepared, state, factors))
        assert after <= before * (1 + 1e-12)
        before = after


# ---- smoothing ----


def wiggly(noise: float, seed: int = 0) -> Problem:
    """One input, one output: a smooth curve with noise."""
    generator = seeded(seed)
    x = 2 * torch.rand(80, 1, generator=generator, dtype=torch.float64) - 1
    F = (3 * x).sin() + noise * random(generator, 80, 1)
    J = 3 * (3 * x).cos()[:, None] + 10 * noise * random(generator, 80, 1, 1)
    return Problem(Samples(x, F, J), 1, Smooth(BSpline(12)), held_out=0)


def chosen_weight(problem: Problem) -> float:
    prepared, _ = prepare(problem)
    return ConstrainedALS(5).init(prepared, seeded(0)).smoothing


@pytest.mark.parametrize("seed", range(4))
def test_noisier_data_are_smoothed_more(seed):
    weights = [chosen_weight(wiggly(noise, seed)) for noise in (0.0, 0.1, 1.0)]
    assert weights == sorted(weights)
    assert weights[0] < 1e-2 * weights[-1]


@pytest.mark.parametrize(("noise", "seed"), [(0.03, 0), (0.1, 1), (0.5, 0), (1.0, 0), (2.0, 2)])
def test_the_weight_is_that_of_generalized_cross_validation(noise, seed):
    """For one node the diagonal block is the whole system: the score by its formula, with dense matrices."""
    prepared, _ = prepare(wiggly(noise, seed))
    state = ConstrainedALS(5).init(prepared, seeded(0))
    objective, system = prepared.fitted, system_at(prepared, state.factors)
    A, R, right = system.dense(), system.dense_penalty(), system.right().flatten()

    def cross_validation(weight: float) -> float:
        hat = torch.linalg.pinv(A + weight * R, hermitian=True)
        c = hat @ right
        error = 1 + objective.coupling - 2 * c @ right + c @ A @ c
        return float(error / (1 - torch.trace(hat @ A) / objective.centred.numel()) ** 2)

    assert choose_smoothing(prepared, system) == min(GRID, key=cross_validation)


def test_a_given_weight_is_used_and_a_plain_basis_has_none():
    prepared, _ = prepare(noisy(0, 0.1, Smooth(BSpline(6), 0.7)))
    assert ConstrainedALS(2).init(prepared, seeded(0)).smoothing == 0.7
    assert ProjectedALS(2).init(prepared, seeded(0)).smoothing == 0.7
    assert Refine(10).resume(prepared, ConstrainedALS(2).init(prepared, seeded(0))).smoothing == 0.7
    prepared, _ = prepare(noisy(0, 0.1, BSpline(6)))
    assert ConstrainedALS(2).init(prepared, seeded(0)).smoothing == 0.0
    assert prepared.penalty is None


@pytest.mark.parametrize("solver", [ConstrainedALS(10), Chain((ConstrainedALS(5), Refine(30)))], ids=["ALS", "Refine"])
def test_activations_become_straight_under_a_heavy_penalty(solver):
    def roughness(weight: float) -> float:
        solution = decouple(noisy(0, 0.1, Smooth(BSpline(8), weight)), solver)
        assert solution.factors.only.basis == BSpline(8)  # the layer stores the plain basis
        C = solution.factors.only.coefficients
        second = C[:, 2:] - 2 * C[:, 1:-1] + C[:, :-2]
        return float((second.square().sum(1) * solution.factors.W.square().sum(0)).sum())

    prices = [roughness(weight) for weight in (0.0, 0.1, 10.0, 1e6)]
    assert prices == sorted(prices, reverse=True)
    assert prices[-1] < 1e-6 * prices[0]


# ---- solvers made of solvers ----


def run(solver: Solver, prepared, seed: int = 0) -> list:
    """All states of a solver."""
    with torch.no_grad():
        states = [solver.init(prepared, seeded(seed))]
        while not solver.finished(prepared, states[-1]):
            states.append(solver.step(prepared, states[-1]))
    assert [state.taken for state in states] == list(range(len(states)))
    assert len(states) - 1 <= solver.total(prepared)
    return states


WRAPPED = {
    "BestSoFar": BestSoFar(ProjectedALS(6)),
    "BestSoFar of outputs": BestSoFar(ConstrainedALS(3), of="outputs"),
    "MultiStart": MultiStart(ConstrainedALS(3), 3),
    "Chain": Chain((ConstrainedALS(3), Refine(20), GaussNewton(3))),
    "Chain of wrappers": Chain((MultiStart(Chain((ConstrainedALS(2), GaussNewton(2))), 2), BestSoFar(Refine(20)))),
    "MultiStart of BestSoFar": MultiStart(BestSoFar(Chain((ConstrainedALS(2), Refine(10)))), 2),
    "Leading": Leading(ConstrainedALS(3)),
    "Leading of a decomposition": Chain((Leading(StructuredCPD(4, stride=2)), Refine(10))),
    "Chain of decompositions": Chain((FilteredCPD(2, stride=1), BestSoFar(StructuredCPD(4, stride=2)), Truncate())),
    "Leading of MultiStart": Chain((Leading(MultiStart(ConstrainedALS(2), 2)), Refine(10))),
    "Truncate": Chain((ConstrainedALS(2), Truncate(), Refine(10))),
    "MultiStart of Leading": MultiStart(Chain((Leading(ConstrainedALS(2)), Refine(10))), 2),
}


@pytest.mark.parametrize("solver", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("widths", [(None, None), (2, None), (None, 1), (2, 1)])
def test_wrappers_compose(solver, widths):
    """The last state's errors are those of its layer, and the last layer has the form that was asked for."""
    problem = noisy(1, 0.1, BSpline(6), factor=widths[0], output_factor=widths[1])
    prepared, _ = prepare(problem)
    last = run(solver, prepared)[-1]
    errors = prepared.fitted.errors(last.factors)
    assert (last.jacobian_error, last.output_error) == pytest.approx(errors, rel=1e-6)
    solution = decouple(problem, solver)
    inner, outer = solution.factors.maps
    assert [one.shape for one in inner] == ([(3, 3)] if widths[0] is None else [(3, 2), (2, 3)])
    assert [one.shape for one in outer] == ([(3, 2)] if widths[1] is None else [(3, 1), (1, 2)])


@pytest.mark.parametrize("of", ["both", "outputs"])
@pytest.mark.parametrize("held_out", [0.0, 0.3])
def test_the_best_state_so_far_is_kept(of, held_out):
    """Projected ALS goes up and down on more nodes than outputs."""
    prepared, _ = prepare(MORE_NODES.problem(held_out=held_out))
    plain = run(ProjectedALS(40), prepared)
    watched = run(BestSoFar(ProjectedALS(40), of=of), prepared)
    scores = [score(prepared, state.factors, of) for state in plain]
    assert min(scores) < 0.99 * scores[-1]
    for index, state in enumerate(watched):
        assert score(prepared, state.factors, of) == min(scores[: index + 1])
    reference = prepared.validation or prepared.fitted
    jacobian_error, error = reference.errors(watched[-1].factors)
    assert min(scores) == pytest.approx(error if of == "outputs" else jacobian_error + 3.0 * error)


def test_a_state_that_is_nan_is_never_the_best(monkeypatch):
    prepared, _ = prepare(CUBIC.problem())
    original, calls = zniyed2021.project, []

    def broken(*args):
        calls.append(1)
        return original(*args) * (torch.nan if len(calls) == 4 else 1.0)

    monkeypatch.setattr(zniyed2021, "project", broken)
    for solver in (ProjectedALS(10), BestSoFar(ProjectedALS(10))):
        calls.clear()
        last = run(solver, prepared)[-1]
        assert last.stopped is Result.DIVERGED
        assert last.taken == 3
        assert last.factors.only.coefficients.isfinite().all()
        assert math.isfinite(last.jacobian_error)
    calls.clear()
    solution = decouple(CUBIC.problem(), Chain((ProjectedALS(10), Refine(10))))
    assert solution.result is Result.DIVERGED
    assert "the best state seen is returned" in solution.result.value
    assert solution.factors.outputs(CUBIC.inputs).isfinite().all()


def test_of_several_starts_the_one_with_the_least_held_out_error_is_kept():
    prepared, _ = prepare(noisy(2, 0.3, BSpline(6), held_out=0.3))
    generator = seeded(5)
    solver, alone = ConstrainedALS(4), []
    for _ in range(4):
        state = solver.init(prepared, generator)
        while not solver.finished(prepared, state):
            state = solver.step(prepared, state)
        alone.append((score(prepared, state.factors), state))
    best = min(alone, key=lambda one: one[0])[1]
    kept = run(MultiStart(solver, 4), prepared, seed=5)
    assert len(kept) - 1 == 16
    assert torch.equal(kept[-1].factors.V, best.factors.V)
    assert torch.equal(kept[-1].factors.only.coefficients, best.factors.only.coefficients)
    assert len({one[0] for one in alone}) == 4
    assert kept[-1].stopped is Result.MOST_STEPS


def test_no_further_start_is_made_after_an_exact_one():
    prepared, _ = prepare(CUBIC.problem())
    solver = Chain((ConstrainedALS(10), GaussNewton(60)))
    states = run(MultiStart(solver, 10), prepared)
    assert states[-1].stopped is Result.EXACT
    assert len(states) < solver.total(prepared)


def test_a_chain_goes_on_where_the_one_before_stopped():
    prepared, _ = prepare(noisy(1, 0.1, BSpline(6)))
    first = run(ConstrainedALS(4), prepared)
    whole = run(Chain((ConstrainedALS(4), Refine(20))), prepared)
    for one, other in zip(first, whole, strict=False):
        assert torch.equal(one.factors.V, other.factors.V)
    refine = Refine(20)
    with torch.no_grad():
        after = refine.step(prepared, refine.resume(prepared, first[-1]))
    assert torch.equal(whole[5].factors.V, after.factors.V)
    assert [state.stage for state in whole] == ["constrained ALS"] * 5 + ["refine"] * 2


def test_leading_solves_in_the_most_active_directions():
    """A map that needs two of its eight inputs' directions is found in those two, exactly."""
    planted = CASES["factored inputs"]
    prepared, _ = prepare(planted.problem())
    state = run(Leading(Chain((ConstrainedALS(5), GaussNewton(5)))), prepared)[3]
    small = state.memory.problem
    assert small.fitted.inputs.shape[1] == 2
    assert small.factor is None
    B = state.factors.maps[0][0]
    assert torch.equal(B, torch.eye(len(B), 2, dtype=B.dtype))


def test_leading_is_the_solver_itself_when_nothing_is_factored():
    prepared, _ = prepare(noisy(1, 0.1, BSpline(6)))
    for one, other in zip(run(Leading(ConstrainedALS(3)), prepared), run(ConstrainedALS(3), prepared), strict=True):
        assert torch.equal(one.factors.V, other.factors.V)


def test_truncation_is_the_best_of_its_width(generator):
    """Eckart and Young: what is lost are the smallest singular values of the weighted matrix."""
    matrix, weights = random(generator, 9, 6), random(generator, 6).exp()
    B, A = leading_pair(matrix, weights, 2)
    lost = ((matrix - B @ A) * weights).square().sum()
    torch.testing.assert_close(lost, torch.linalg.svdvals(matrix * weights)[2:].square().sum())
    torch.testing.assert_close(B.mT @ B, torch.eye(2, dtype=B.dtype))


def test_truncation_loses_nothing_of_a_layer_that_has_the_width():
    planted = CASES["factored both"]
    prepared, state = state_at(planted.problem(), planted.factors.full())
    assert list(map(len, state.factors.maps)) == [1, 1]
    after = Truncate().step(prepared, Truncate().resume(prepared, state))
    assert list(map(len, after.factors.maps)) == [2, 2]
    assert after.jacobian_error < 1e-24
    assert after.output_error < 1e-24


@pytest.mark.parametrize(("m", "rank", "n", "count"), [(10, 8, 10, 1000), (12, 10, 12, 500), (4, 6, 9, 1000)])
@pytest.mark.parametrize("seed", [0, 1])
def test_what_linear_algebra_finds_the_default_recipe_finds(m, rank, n, count, seed):
    """Of problems where steps are dear, too: three starts by the CPD ended at errors up to 0.05."""
    generator = seeded(seed)
    V, W, x = random(generator, m, rank), random(generator, n, rank), random(generator, count, m)
    u = x @ V
    outputs, slopes = (u**3 / 6 + u**2 / 3) @ W.mT, u**2 / 2 + 2 * u / 3
    jacobians = torch.einsum("nr,sr,mr->snm", W, slopes, V)
    solution = decouple(Problem(Samples(x, outputs, jacobians), rank=rank, basis=Monomial(3)))
    assert solution.validation_error < 1e-8


def test_a_start_of_another_kind_comes_first_and_the_best_is_kept():
    problem = CUBIC.problem()
    prepared, _ = prepare(problem)
    poor = JacobianCPD(1, stride=1)
    both = MultiStart(poor, 3, first=GeneralizedEigenvalues(2))
    assert both.total(prepared) == 2 + 2 * poor.total(prepared)
    assert decouple(problem, both).validation_error < 1e-8
    alone = decouple(problem, MultiStart(poor, 3))
    assert alone.validation_error > 1e-8
    again = decouple(problem, MultiStart(poor, 3, first=poor))
    assert again.validation_error == alone.validation_error
    with pytest.raises(TypeError, match="first must be a solver"):
        MultiStart(poor, 3, first="CPD")


def test_there_is_no_pencil_where_it_would_be_refused():
    """Ranks along two modes are needed: more nodes than inputs and outputs have none, nor has one output."""
    assert has_pencil(prepare(CUBIC.problem())[0])
    few = unrelated(BSpline(4), m=3, n=3, rank=5, count=4)
    assert not has_pencil(prepare(few)[0])
    assert not has_pencil(prepare(unrelated(BSpline(4), m=4, n=1, rank=2, count=30))[0])


def test_the_default_recipe_depends_on_the_size():
    small = default_solver(prepare(CUBIC.problem())[0])
    assert isinstance(small.solvers[-1], GaussNewton)
    inexact = default_solver(prepare(CUBIC.problem())[0], exact=False)
    assert isinstance(inexact.solvers[-1], BestSoFar)
    factored_one = default_solver(prepare(CASES["factored both"].problem())[0])
    assert isinstance(factored_one.solvers[0], Leading)
    large = default_solver(prepare(unrelated(BSpline(10), m=40, n=30, rank=20, count=100))[0])
    assert isinstance(large.solvers[-1], BestSoFar)


def test_the_published_schedule_of_the_coupling():
    """Its square root starts at 0.001 and is tripled every five sweeps until it passes 1."""
    roots = [math.sqrt(Growing().at(sweep)) for sweep in range(60)]
    assert roots[:5] == pytest.approx([0.001] * 5)
    assert roots[5:10] == pytest.approx([0.003] * 5)
    assert roots[35] == pytest.approx(2.187)
    assert roots[-1] == pytest.approx(2.187)
    assert Growing(1.0, 1.0, 1, 1.0).at(1000) == 1.0


# ---- states that never change, problems that are refused ----

# A new solver is one row, with few steps.
EXPORTED: dict[str, Solver] = {
    "BestSoFar": BestSoFar(ConstrainedALS(2)),
    "Chain": Chain((ConstrainedALS(2), Refine(20, stride=5))),
    "ConstrainedALS": ConstrainedALS(4),
    "FilteredCPD": FilteredCPD(4, stride=1),
    "GaussNewton": GaussNewton(4),
    "GeneralizedEigenvalues": GeneralizedEigenvalues(4),
    "HessianCPD": HessianCPD(16, stride=4),
    "JacobianCPD": JacobianCPD(16, stride=4),
    "LayeredALS": LayeredALS(4),
    "Lifted": Lifted(JacobianCPD(16, stride=4)),
    "Leading": Leading(MultiStart(ConstrainedALS(2), 2)),
    "MultiStart": MultiStart(ConstrainedALS(2), 3),
    "ProjectedALS": ProjectedALS(4),
    "ProjectedLayeredALS": ProjectedLayeredALS(4),
    "Refine": Refine(20, stride=5),
    "SketchedNewton": SketchedNewton(4),
    "StructuredCPD": StructuredCPD(16, stride=4),
    "Truncate": Truncate(),
    "Unweighted": Unweighted(ProjectedALS(4)),
    "WeightedCPD": WeightedCPD(16, stride=4),
}
exported = pytest.mark.parametrize("name", EXPORTED)


def test_every_solver_has_a_row():
    found = [name for name in solvers.__all__ if isinstance(getattr(solvers, name), type)]
    assert sorted(EXPORTED) == sorted(
        name for name in found if issubclass(getattr(solvers, name), Solver) and name != "Solver"
    )
    assert all(type(solver).__name__ == name for name, solver in EXPORTED.items())


def asking(kind: str, layers: int = 1) -> Problem:
    """Samples that no layer fits, with Hessians, and what not every solver can be asked for."""
    generator = seeded(3)
    x, F, J, T = (random(generator, 30, *shape) for shape in ((4,), (3,), (3, 4), (3, 4, 4)))
    covariance = 0.1 + random(generator, 30, 3, 4).square() if kind == "a covariance" else None
    basis = Monotone(BSpline(6)) if kind == "monotone activations" else BSpline(6)
    samples = Samples(x, F, J, hessians=T + T.mT, covariance=covariance)
    return Problem(samples, (3, 2) if layers == 2 else 3, basis)


def begun(solver: Solver, prepared) -> State:
    """The first state: from nothing, or from a layer where the solver needs one."""
    if not isinstance(solver, (GaussNewton, Refine, SketchedNewton, Truncate)):
        return solver.init(prepared, seeded(1))
    first = LayeredALS(1) if len(prepared.ranks) > 1 else ConstrainedALS(1)
    return solver.resume(prepared, first.init(prepared, seeded(1)))


REFUSED = {
    "two layers": r"\w+ cannot find 2 layers, as rank=\(3, 2\) asks for: use LayeredALS and Refine, or leave .* out",
    "one layer": r"\w+ cannot find 1 layer, as rank=3 asks for: use ConstrainedALS and Refine, or leave .* out",
    "monotone activations": r"(\w+ does not keep activations monotone or non-negative, .*: use ConstrainedALS and "
    r"|several layers with Monotone or NonNegative activations cannot be found: use one layer)",
    "a covariance": r"(\w+ does not use the covariance of the Jacobians: use|Leading takes the axes .*: use Truncate) ",
}
ABLE = {
    "two layers": {"GaussNewton", "LayeredALS", "ProjectedLayeredALS", "Refine", "SketchedNewton", "Truncate"},
    "one layer": set(EXPORTED) - {"LayeredALS", "ProjectedLayeredALS"},
    "monotone activations": set(EXPORTED)
    - {
        "GaussNewton",
        "LayeredALS",
        "ProjectedALS",
        "ProjectedLayeredALS",
        "SketchedNewton",
        "Unweighted",
        "WeightedCPD",
    },
    "a covariance": {
        *("BestSoFar", "Chain", "ConstrainedALS", "GaussNewton", "MultiStart", "Refine", "Truncate", "Unweighted"),
        "WeightedCPD",
    },
}
"""What can be asked of whom; solvers made of solvers are as able as their parts."""


@exported
@pytest.mark.parametrize("kind", REFUSED)
def test_solvers_refuse_what_they_cannot_do_and_do_the_rest(name, kind):
    several = kind == "two layers" or (name.endswith("LayeredALS") and kind != "one layer")
    solver, problem = EXPORTED[name], asking(kind, 1 + several)
    prepared, _ = prepare(problem)
    reason = solver.refusal(prepared)
    assert (reason is None) == (name in ABLE[kind])
    if reason is None:
        with torch.no_grad():
            after = solver.step(prepared, begun(solver, prepared))
        assert after.taken == 1
        assert all(one.isfinite().all() for one in after.factors.tensors())
    else:
        assert re.match(REFUSED[kind], reason)
        with pytest.raises(ValueError, match=re.escape(reason)):
            decouple(problem, solver)


REPEATED = {
    **{name: (solver, "nothing", 1 + name.endswith("LayeredALS")) for name, solver in EXPORTED.items()},
    **{f"{name}, two layers": (EXPORTED[name], "nothing", 2) for name in ("GaussNewton", "Refine", "SketchedNewton")},
    **{f"{name}, monotone": (EXPORTED[name], "monotone activations", 1) for name in ("ConstrainedALS", "Refine")},
    **{f"{name}, weighted": (EXPORTED[name], "a covariance", 1) for name in ("Refine", "Unweighted", "WeightedCPD")},
    **{f"{name}, wrapped": (solver, "nothing", 1) for name, solver in WRAPPED.items()},
    **{f"{name}, planted": (solver, "nothing", 1) for name, (solver, _) in SOLVERS.items()},
}


@pytest.mark.parametrize(("solver", "kind", "layers"), REPEATED.values(), ids=REPEATED)
def test_a_step_from_the_same_state_gives_the_same_bits_twice(solver, kind, layers):
    """Also after the solver has gone on from there, and every state stays what it was."""
    prepared, _ = prepare(asking(kind, layers))
    solver = solver or default_solver(prepared)
    with torch.no_grad():
        states, flat = [begun(solver, prepared)], []
        while not solver.finished(prepared, states[-1]) and len(flat) < 40:
            flat.append(states[-1].factors.flat())
            states.append(solver.step(prepared, states[-1]))
        for number in range(0, len(flat), max(1, len(flat) // 8)):
            again, first = solver.step(prepared, states[number]), states[number + 1]
            assert torch.equal(again.factors.flat(), first.factors.flat())
            assert torch.equal(again.factors.bias, first.factors.bias)
            assert (again.jacobian_error, again.output_error) == (first.jacobian_error, first.output_error)
            assert (again.taken, again.stopped) == (first.taken, first.stopped)
    assert flat
    assert all(torch.equal(state.factors.flat(), one) for state, one in zip(states, flat, strict=False))


# ---- refusals ----


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ConstrainedALS(0), ValueError, r"sweeps must be a whole number of at least 1, got 0"),
        (lambda: ProjectedALS(2.5), ValueError, r"sweeps must be a whole number of at least 1, got 2.5"),
        (lambda: ProjectedALS(5, 0.1), TypeError, r"coupling must be a schedule such as Growing\(1e-6, 9.0\), got 0.1"),
        (lambda: Growing(0.0), ValueError, r"start must be a finite number above 0, got 0.0"),
        (lambda: Growing(factor=0.5), ValueError, r"factor must be a finite number of at least 1, got 0.5"),
        (lambda: Growing(every=0), ValueError, r"every must be a whole number of at least 1, got 0"),
        (lambda: Growing(end=-1.0), ValueError, r"end must be a finite number above 0, got -1.0"),
        (lambda: Refine(0), ValueError, r"iterations must be a whole number of at least 1, got 0"),
        (lambda: Refine(10, stride=0), ValueError, r"stride must be a whole number of at least 1, got 0"),
        (lambda: Refine(10, history=-1), ValueError, r"history must be a whole number of at least 1, got -1"),
        (lambda: Refine(10, tolerance=-1.0), ValueError, r"tolerance must be a finite number of at least 0, got -1.0"),
        (lambda: GaussNewton(True), ValueError, r"iterations must be a whole number of at least 1, got True"),
        (lambda: GaussNewton(9, math.nan), ValueError, r"tolerance must be a finite number of at least 0, got nan"),
        (lambda: Chain(()), ValueError, r"a Chain needs at least one solver, got none"),
        (lambda: Chain(ConstrainedALS()), TypeError, r"a Chain takes a tuple, as in Chain\(\(ConstrainedALS\(\), Ref"),
        (lambda: Chain((ConstrainedALS,)), TypeError, r"each part of a Chain must be a solver such as"),
        (lambda: MultiStart(ConstrainedALS(), 0), ValueError, r"starts must be a whole number of at least 1, got 0"),
        (lambda: MultiStart(3), TypeError, r"solver must be a solver such as ConstrainedALS\(\), got 3"),
        (
            lambda: BestSoFar(ConstrainedALS),
            TypeError,
            r"solver must be a solver such as ConstrainedALS\(\), got <class",
        ),
        (lambda: BestSoFar(ConstrainedALS(), of="all"), ValueError, r"of must be 'both' or 'outputs', got 'all'"),
        (lambda: Leading(None), TypeError, r"solver must be a solver such as ConstrainedALS\(\), got None"),
    ],
)
def test_bad_settings_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (Refine(), r"Refine starts from a layer: put a solver before it, as in Chain\(\(ConstrainedALS\(\), Refine"),
        (GaussNewton(), r"GaussNewton starts from a layer: put a solver before it"),
        (Truncate(), r"Truncate cuts a layer down: put a solver before it"),
        (Chain((ConstrainedALS(1), ProjectedALS(1))), r"ProjectedALS starts from nothing: put it first in a Chain"),
        (Chain((ConstrainedALS(1), MultiStart(Refine(10), 2))), r"MultiStart starts from nothing: put it first"),
        (Chain((ConstrainedALS(1), Leading(Refine(10)))), r"Leading starts from nothing: put it first"),
        (MultiStart(Refine(10), 2), r"Refine starts from a layer"),
    ],
)
def test_solvers_in_the_wrong_place_are_refused(solver, message):
    with pytest.raises(ValueError, match=message):
        decouple(CUBIC.problem(), solver)


def test_gauss_newton_refuses_problems_that_are_too_large(monkeypatch):
    monkeypatch.setattr(gauss_newton, "MOST_UNKNOWNS", 10)
    with pytest.raises(ValueError, match=r"GaussNewton takes at most 10 unknowns, this problem has 16: use Refine"):
        decouple(CUBIC.problem(), Chain((ConstrainedALS(1), GaussNewton(5))))


def test_systems_without_a_penalty_have_none(generator):
    prepared, _ = prepare(unrelated())
    state = ConstrainedALS(1).init(prepared, generator)
    system = system_at(prepared, state.factors)
    assert isinstance(system, CoefficientSystem)
    assert not system.dense_penalty().any()
    assert float(system.freedom(0.0)) == pytest.approx(
        3 * torch.linalg.matrix_rank(system.diagonal_blocks()[0]).item(), abs=1e-2
    )


def test_sampled_cases_are_exact():
    """The cases above are what they claim: their own layer has no error."""
    for planted in CASES.values():
        problem = planted.problem()
        again = sampled(planted.factors, planted.inputs)
        assert torch.equal(problem.samples.outputs, again.outputs)
        prepared, state = state_at(problem, planted.factors)
        assert penalized(prepared, state) < 1e-24
