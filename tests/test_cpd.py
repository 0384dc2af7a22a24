"""Decompositions of derivatives: planted layers, the algebra behind each solver, and what they refuse."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise, product

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
    random,
    seeded,
    state_at,
    width_of,
)
from torch import Tensor

from tenflex.bases import BSpline, Monomial, Monotone
from tenflex.decouple import decouple
from tenflex.factors import Factors
from tenflex.objective.decomposition import Decomposition, improved_directions
from tenflex.objective.differences import Differences, differences
from tenflex.objective.filtered import FilterSystem
from tenflex.objective.line_search import longest_step, overlap, squared_norm
from tenflex.objective.multilinear import multilinear_svd
from tenflex.objective.steps import normalized
from tenflex.objective.tensor import JacobianTensor
from tenflex.problem import Problem
from tenflex.result import Result
from tenflex.samples import Samples
from tenflex.sampling.jacobian import sample
from tenflex.solvers import (
    Chain,
    FilteredCPD,
    GaussNewton,
    GeneralizedEigenvalues,
    HessianCPD,
    JacobianCPD,
    Leading,
    MultiStart,
    StructuredCPD,
    prepare,
)
from tenflex.solvers.cpd import Swept, random_directions
from tenflex.solvers.pencil import decomposed, eigenvectors, sliced_mode
from tenflex.solvers.published.zniyed2021_structured import on_span

EXACT_CASES = {"cubic": CUBIC, "skew": SKEW, "sum and difference": SUM_AND_DIFFERENCE}
"""Test problems whose plain decomposition is unique."""


def with_hessians(planted: Planted, **settings) -> Problem:
    """The problem of a planted layer, sampled with its second derivatives."""
    factors = planted.factors
    samples = sample(lambda x: factors.outputs(x[None])[0], planted.inputs, order=2)
    form = {"rank": factors.ranks[0], "basis": factors.only.basis, "factor": width_of(factors.maps[0])}
    return Problem(samples, **{**form, **settings})


def unrelated(m: int = 4, n: int = 3, rank: int = 3, seed: int = 0, count: int = 40) -> Problem:
    """Samples that no layer fits."""
    generator = seeded(seed)
    x, F, J = random(generator, count, m), random(generator, count, n), random(generator, count, n, m)
    T = random(generator, count, n, m, m)
    return Problem(Samples(x, F, J, hessians=T + T.mT), rank, BSpline(6), held_out=0)


def noisy(planted: Planted, level: float, seed: int = 0, **settings) -> Problem:
    """A planted layer with noise on its Jacobians and outputs, relative to their size."""
    generator, samples = seeded(seed), planted.problem().samples
    F, J = samples.outputs, samples.jacobians
    F = F + level * F.std() * random(generator, *F.shape)
    J = J + level * J.square().mean().sqrt() * random(generator, *J.shape)
    return Problem(Samples(samples.inputs, F, J), planted.factors.ranks[0], planted.factors.only.basis, **settings)


def states(solver, problem: Problem, seed: int = 0) -> list:
    prepared, _ = prepare(problem)
    with torch.no_grad():
        seen = [solver.init(prepared, seeded(seed))]
        while not solver.finished(prepared, seen[-1]):
            seen.append(solver.step(prepared, seen[-1]))
    assert [state.taken for state in seen] == list(range(len(seen)))
    assert len(seen) - 1 <= solver.total(prepared)
    return seen


def successes(problem: Problem, solver, planted: Planted, runs: int) -> int:
    """How many runs find the planted directions, the outputs and the Jacobians to eight digits."""

    def found(seed: int) -> bool:
        solution = decouple(problem, solver, seed=seed)
        close = (
            solution.jacobian_error < 1e-8 and output_error(solution.factors, planted.factors, planted.inputs) < 1e-8
        )
        return close and direction_error(solution.factors, planted.factors) < 1e-8

    return sum(map(found, range(runs)))


# ---- planted layers ----


@pytest.mark.parametrize("case", EXACT_CASES)
@pytest.mark.parametrize(
    "solver",
    [JacobianCPD(), StructuredCPD(), Chain((GeneralizedEigenvalues(), JacobianCPD())), HessianCPD()],
    ids=["JacobianCPD", "StructuredCPD", "eigenvalues and JacobianCPD", "HessianCPD"],
)
def test_single_starts_find_planted_layers(solver, case):
    planted = EXACT_CASES[case]
    assert successes(with_hessians(planted), solver, planted, runs=4) >= 3


# Two inputs and five outputs have slices along the inputs, the other way around along the outputs.
@pytest.mark.parametrize(
    ("planted", "sliced"),
    [
        (CUBIC, {0, 1, 2}),
        (SKEW, {0, 1, 2}),
        (SUM_AND_DIFFERENCE, {0, 1, 2}),
        (factored(5, 4, 3, None, None, seed=0), {0, 1, 2}),
        (factored(2, 5, 3, None, None, seed=0), {2}),
        (factored(5, 2, 3, None, None, seed=0), {1}),
        (factored(8, 6, 6, None, None, seed=0), {0, 1, 2}),
        (factored(6, 2, 5, None, None, seed=0), {1}),
        (factored(3, 3, 1, None, None, seed=0), {0, 1, 2}),
    ],
    ids=["cubic", "skew", "sum and difference", "5 4 3", "2 5 3", "5 2 3", "8 6 6", "6 2 5", "one node"],
)
def test_eigenvalues_are_exact_without_noise(planted, sliced):
    prepared, _ = prepare(planted.problem())
    assert sliced_mode(multilinear_svd(prepared.fitted.jacobians, prepared.rank), prepared.rank) in sliced
    for seed in range(3):
        solution = decouple(planted.problem(), GeneralizedEigenvalues(), seed=seed)
        assert solution.jacobian_error < 1e-12
        assert direction_error(solution.factors, planted.factors) < 1e-10
        assert solution.result is Result.EXACT or len(solution.history) == 5


@pytest.mark.parametrize(
    ("solver", "least"),
    [
        (Chain((StructuredCPD(50), GaussNewton(60))), 3),
        (Chain((FilteredCPD(20), GaussNewton(60))), 3),
        (Chain((HessianCPD(50), GaussNewton(60))), 2),
    ],
    ids=["structured", "filtered", "Hessians"],
)
def test_more_nodes_than_inputs_and_outputs_are_found_with_structure(solver, least):
    assert successes(with_hessians(MORE_NODES), solver, MORE_NODES, runs=4) >= least


def test_the_plain_decomposition_of_more_nodes_than_inputs_and_outputs_is_not_unique():
    """Its error vanishes, yet its directions are others."""
    found = [states(JacobianCPD(), MORE_NODES.problem(held_out=0), seed)[-1] for seed in range(3)]
    assert all(state.memory.error < 1e-10 for state in found)
    _, true = state_at(MORE_NODES.problem(held_out=0), MORE_NODES.factors)
    assert all(direction_error(state.factors, true.factors) > 1e-2 for state in found)


@pytest.mark.parametrize(
    "planted",
    [
        factored(2, 1, 2, None, None, seed=0),
        factored(3, 1, 3, None, None, seed=0),
        factored(6, 1, 5, None, None, seed=0),
    ],
    ids=["2 1 2", "3 1 3", "6 1 5"],
)
def test_one_output_is_decoupled_by_hessians(planted):
    """Jacobians of one output are a matrix. Hessians are enough, and they do not show the linear parts."""
    assert planted.factors.only.coefficients[:, 0].abs().min() > 1e-2
    assert successes(with_hessians(planted), HessianCPD(), planted, runs=3) == 3
    assert successes(with_hessians(planted), Chain((HessianCPD(), GaussNewton())), planted, runs=3) == 3


@pytest.mark.slow
def test_one_output_with_more_nodes_than_inputs():
    planted = factored(3, 1, 4, None, None, seed=1)
    assert successes(with_hessians(planted), Chain((HessianCPD(), GaussNewton())), planted, runs=20) >= 8


def test_hessians_are_restricted_to_the_leading_axes():
    planted = factored(8, 1, 2, 2, None, seed=0)
    problem = with_hessians(planted)
    solution = decouple(problem, Leading(HessianCPD()))
    assert solution.jacobian_error < 1e-8
    assert direction_error(solution.factors, planted.factors) < 1e-8


@pytest.mark.parametrize("solver", [JacobianCPD(20), StructuredCPD(20), HessianCPD(20)], ids=repr)
@pytest.mark.parametrize("case", EXACT_CASES)
def test_a_planted_layer_stays_where_it_is(solver, case):
    prepared, state = state_at(with_hessians(EXACT_CASES[case]), EXACT_CASES[case].factors)
    inside = solver.resume(prepared, state)
    for _ in range(2):
        inside = solver.step(prepared, inside)
        assert inside.jacobian_error < 1e-20
        assert inside.output_error < 1e-20
    assert direction_error(inside.factors, state.factors) < 1e-10


@pytest.mark.parametrize(
    "solver", [JacobianCPD(30), StructuredCPD(30), FilteredCPD(10), GeneralizedEigenvalues()], ids=repr
)
def test_noise_moves_the_directions_by_as_much(solver):
    """Complex pairs among the eigenvalues, and nothing exact: the layer is found as well as the data say."""
    planted = factored(5, 4, 3, None, None, seed=0, count=300)
    errors = [
        min(
            direction_error(decouple(noisy(planted, level), solver, seed=seed).factors, planted.factors)
            for seed in range(3)
        )
        for level in (1e-3, 1e-1)
    ]
    assert errors[0] < 2e-2
    assert errors[0] < errors[1] < 0.6


# ---- each step is the exact minimum of what it says, and the error never rises ----


def dense_error(tensor: JacobianTensor, V: Tensor, W: Tensor, H: Tensor) -> Tensor:
    """The relative squared error by its definition."""
    J = tensor.entries
    return (J - torch.einsum("sr,nr,mr->snm", H, W, V)).square().sum() / J.square().sum()


@pytest.fixture
def standing():
    """A tensor with factors in the middle of nowhere."""
    prepared, _ = prepare(unrelated())
    tensor = prepared.fitted.jacobians
    V, W = random_directions(tensor, 3, seeded(1))
    return tensor, Decomposition(V, W, tensor.slopes(V, W))


def test_the_error_is_that_of_the_residuals(standing):
    tensor, parts = standing
    assert parts.error(tensor) == pytest.approx(dense_error(tensor, parts.V, parts.W, parts.H).item(), rel=1e-12)
    near = JacobianTensor(torch.einsum("sr,nr,mr->snm", parts.H, parts.W, parts.V) + 1e-10 * tensor.entries)
    assert near.entries.shape == tensor.entries.shape
    expected = dense_error(near, parts.V, parts.W, parts.H).item()
    assert 1e-22 < expected < 1e-18
    assert parts.error(near) == pytest.approx(expected, rel=1e-6)


def test_every_factor_is_optimal_for_the_others(standing):
    """The gradient of the error in each factor vanishes at its update, the others as they were."""
    tensor, parts = standing

    def slope(factors: dict[str, Tensor], name: str) -> float:
        with torch.enable_grad():
            free = {**factors, name: factors[name].clone().requires_grad_()}
            return torch.autograd.grad(dense_error(tensor, **free), free[name])[0].abs().max().item()

    start = {"V": parts.V, "W": parts.W, "H": parts.H}
    assert slope(start, "H") < 1e-12 < 1e-3 < slope(start, "V")
    V, W = improved_directions(tensor, parts)
    # The columns come with unit norm: their best lengths are found again by least squares.
    for name, found, others in (("V", V, {"W": parts.W, "H": parts.H}), ("W", W, {"V": V, "H": parts.H})):
        unit = {**others, name: found}
        design = torch.stack(
            [torch.einsum("s,n,m->snm", unit["H"][:, k], unit["W"][:, k], unit["V"][:, k]).flatten() for k in range(3)],
            1,
        )
        lengths = torch.linalg.lstsq(design, tensor.entries.flatten()[:, None]).solution[:, 0]
        assert slope({**others, name: found * lengths}, name) < 1e-12


@settings(max_examples=8)
@given(seed=st.integers(0, 1000), m=st.integers(2, 5), n=st.integers(2, 4), rank=st.integers(1, 5))
def test_the_error_of_a_free_decomposition_never_rises(seed, m, n, rank):
    for solver in (JacobianCPD(12, stride=1, tolerance=0.0), HessianCPD(6, stride=1, tolerance=0.0)):
        errors = [state.memory.error for state in states(solver, unrelated(m, n, rank, seed), seed)]
        assert all(later <= earlier * (1 + 1e-9) + 1e-20 for earlier, later in pairwise(errors))


def test_the_line_search_is_along_the_polynomial_of_the_error(standing):
    tensor, parts = standing
    V, W = improved_directions(tensor, parts)
    start, end = (parts.V, parts.W, parts.H), (V, W, tensor.slopes(V, W))
    moves = tuple(after - before for before, after in zip(start, end, strict=True))
    energy = tensor.entries.square().sum()
    coefficients = (squared_norm(start, moves) - 2 * overlap(tensor, start, moves)) / energy

    def error(rho: float) -> float:
        return dense_error(tensor, *(before + rho * move for before, move in zip(start, moves, strict=True))).item()

    for rho in (0.0, 1.0, 3.7):
        powers = rho ** torch.arange(7, dtype=torch.float64)
        assert 1 + float(coefficients @ powers) == pytest.approx(error(rho))
    best = longest_step(tensor, start, end)
    assert best >= 1
    assert all(error(best) <= error(rho) + 1e-12 for rho in (1.0, 1.5, 2.0, 4.0, 8.0))


def test_the_line_search_resolves_changes_next_to_a_solution():
    """An exact tensor, and a sweep that made a tenth of the way: the step is ten, however near it was."""
    generator = seeded(0)
    true = tuple(random(generator, size, 3) for size in (5, 4, 60))
    tensor = JacobianTensor(torch.einsum("mr,nr,sr->snm", *true))
    moves = tuple(random(generator, *one.shape) for one in true)
    for distance in (1e-3, 1e-9):
        start = tuple(one - distance * move for one, move in zip(true, moves, strict=True))
        end = tuple(one - 0.9 * distance * move for one, move in zip(true, moves, strict=True))
        assert longest_step(tensor, start, end) == pytest.approx(10, rel=0.05)


def test_sweeps_make_strides():
    problem = replace(unrelated(), basis=Monomial(2))
    fine = states(JacobianCPD(24, stride=6, tolerance=0.0), problem)
    coarse = states(JacobianCPD(24, stride=12, tolerance=0.0), problem)
    short = states(JacobianCPD(20, stride=12, tolerance=0.0), problem)
    assert [len(fine), len(coarse), len(short)] == [5, 3, 3]
    torch.testing.assert_close(fine[-1].factors.V, coarse[-1].factors.V)
    assert short[1].memory.error == coarse[1].memory.error
    assert short[2].memory.error > coarse[2].memory.error


def test_a_decomposition_that_is_not_a_number_is_never_shown():
    prepared, _ = prepare(unrelated())
    for solver in (JacobianCPD(), StructuredCPD(), FilteredCPD(stride=1)):
        state = solver.init(prepared, seeded(0))
        parts = state.memory.parts if isinstance(state.memory, Swept) else state.memory
        broken = replace(parts, H=torch.full_like(parts.H, torch.nan))
        memory = replace(state.memory, parts=broken) if isinstance(state.memory, Swept) else broken
        after = solver.step(prepared, replace(state, memory=memory))
        assert after.stopped is Result.DIVERGED
        assert torch.equal(after.factors.V, state.factors.V)


@pytest.mark.parametrize(
    "solver", [JacobianCPD(20), StructuredCPD(20), FilteredCPD(3), GeneralizedEigenvalues()], ids=repr
)
def test_layers_obey_the_constraints_of_the_problem(solver):
    """The decomposition knows nothing of them; the activations fitted to it do."""
    planted = factored(4, 3, 2, None, None, seed=3)
    solution = decouple(planted.problem(basis=Monotone(BSpline(6))), solver)
    t = torch.linspace(-1, 1, 200, dtype=torch.float64)[:, None].expand(-1, 2)
    slopes = solution.factors.only.curves(t)[1]
    assert slopes.min() > -1e-8
    assert slopes.max() > 1e-3


# ---- structure ----


def test_projected_slopes_are_the_nearest_in_their_span(generator):
    slope, H = random(generator, 30, 3, 4), random(generator, 30, 3)
    near = on_span(slope, H)
    torch.testing.assert_close(on_span(slope, near), near)
    torch.testing.assert_close(
        torch.einsum("srd,sr->rd", slope, H - near), torch.zeros(3, 4).double(), atol=1e-10, rtol=0
    )
    inside = torch.einsum("srd,rd->sr", slope, random(generator, 3, 4))
    torch.testing.assert_close(on_span(slope, inside), inside)
    assert (H - near).norm() > 1


@pytest.mark.parametrize("basis", [Monomial(3), BSpline(6)], ids=repr)
def test_structured_slopes_are_those_of_activations(basis):
    """Each column of H is a combination of the basis' derivatives at its own projected inputs; a free one is not."""

    def distance(state) -> float:
        parts, factors = state.memory.parts, state.factors
        slope = factors.only.basis.derivative(factors.arguments(prepared.fitted.inputs)[0])
        return ((parts.H - on_span(slope, parts.H)).norm() / parts.H.norm()).item()

    problem = replace(unrelated(), basis=basis)
    prepared, _ = prepare(problem)
    assert distance(states(StructuredCPD(10), problem)[-1]) < 1e-8
    assert distance(states(JacobianCPD(10), problem)[-1]) > 0.1


# ---- eigenvalues ----


def test_the_core_holds_all_of_a_tensor_of_low_rank(generator):
    V, W, H = random(generator, 9, 4), random(generator, 7, 4), random(generator, 50, 4)
    tensor = JacobianTensor(torch.einsum("sr,nr,mr->snm", H, W, V))
    core = multilinear_svd(tensor, 4)
    assert core.entries.shape == (4, 4, 4)
    assert core.ranks() == [4, 4, 4]
    torch.testing.assert_close(core.entries.norm(), tensor.entries.norm())
    for axes, factor in zip(core.axes, (W, V), strict=True):
        torch.testing.assert_close(axes @ (axes.mT @ factor), factor)
    small = torch.einsum("snm,na,mb->sab", tensor.entries, *core.axes)
    torch.testing.assert_close(
        torch.einsum("cab,cde->abde", core.entries, core.entries), torch.einsum("sab,sde->abde", small, small)
    )


def test_few_samples_are_compressed_as_well(generator):
    """Fewer samples than entries: the other Gram matrix, the same core."""
    V, W, H = random(generator, 6, 5), random(generator, 6, 5), random(generator, 7, 5)
    tensor = JacobianTensor(torch.einsum("sr,nr,mr->snm", H, W, V))
    parts = decomposed(tensor, multilinear_svd(tensor, 5), 5, 0, generator)
    assert parts.error(tensor) < 1e-20


def test_complex_pairs_become_two_real_vectors_of_the_same_span(generator):
    turn = torch.tensor([[1.0, -2.0], [2.0, 1.0]], dtype=torch.float64)
    basis = random(generator, 5, 5)
    matrix = (
        basis @ torch.block_diag(turn, torch.diag(torch.tensor([3.0, -1.0, 0.5]).double())) @ torch.linalg.inv(basis)
    )
    vectors = eigenvectors(matrix)
    assert torch.linalg.matrix_rank(vectors) == 5
    torch.testing.assert_close(vectors.norm(dim=0), torch.ones(5).double())
    blocks = torch.linalg.solve(vectors, matrix @ vectors)
    assert sorted((blocks.abs() > 1e-9).sum(0).tolist()) == [1, 1, 1, 2, 2]


def test_further_pencils_only_lower_the_error():
    planted = factored(5, 4, 3, None, None, seed=0)
    seen = states(GeneralizedEigenvalues(6), noisy(planted, 0.1))
    assert len(seen) == 7
    errors = [state.memory.least for state in seen]
    assert all(later <= earlier for earlier, later in pairwise(errors))
    assert errors[-1] < errors[0]
    assert seen[-1].stopped is Result.CONVERGED


@pytest.mark.parametrize("level", [1e-3, 0.1])
def test_least_squares_goes_on_from_eigenvalues(level):
    problem = noisy(factored(5, 4, 3, None, None, seed=0), level, held_out=0)
    prepared, _ = prepare(problem)
    first = states(GeneralizedEigenvalues(), problem)[-1]
    state = JacobianCPD().resume(prepared, first)
    after = JacobianCPD().step(prepared, state)
    best = min(states(JacobianCPD(), problem, seed)[-1].memory.error for seed in range(2))
    assert best * (1 - 1e-6) < after.memory.error < state.memory.error
    assert after.memory.error < 1.01 * best


# ---- finite differences ----


def scattered(seed: int = 0) -> Tensor:
    """Points at any distances, some of which coincide; the last column hardly moves."""
    t = random(seeded(seed), 40, 4)
    t[5], t[7], t[11] = t[3], t[3], t[30]
    t[:, 2] = t[:, 2].round()
    t[:, 3] = 1.0
    return t


def chords_of(t: Tensor, curve) -> Tensor:
    """The slopes of the chords of a function between neighbouring distinct points."""
    p = torch.zeros(len(t) - 1, t.shape[1], dtype=t.dtype)
    for k in range(t.shape[1]):
        points = t[:, k].unique()
        p[: len(points) - 1, k] = curve(points).diff() / points.diff()
    return p


@pytest.mark.parametrize("seed", range(3))
def test_differences_are_exact_for_quadratic_functions(seed):
    t = scattered(seed)
    t[1, 0] = t[0, 0] + 1e-3  # near, but not the same
    filtered = differences(t)
    p = chords_of(t, lambda x: 1.5 * x**2 - 0.7 * x + 3)
    G, slope = 1.5 * t**2 - 0.7 * t, 3 * t - 0.7
    slope[:, 3] = 0  # one point has no slope
    torch.testing.assert_close(filtered.values(p), G - G.mean(0))
    torch.testing.assert_close(filtered.slopes(p), slope, rtol=1e-9, atol=1e-9)
    rough = (p * filtered.roughen(p)).sum(0)
    for k in range(3):  # the integral of the squared second derivative, 9, between the middles of the outer chords
        points = t[:, k].unique()
        assert rough[k].item() == pytest.approx(9 * ((points[-1] + points[-2] - points[0] - points[1]) / 2).item())


def test_differences_are_of_second_order():
    """For a sine, four times the points have a sixteenth of the error inside."""

    def error(count: int) -> float:
        t = torch.linspace(-2, 2, count, dtype=torch.float64)[:, None]
        return (differences(t).slopes(chords_of(t, torch.sin)) - t.cos())[2:-2].abs().max().item()

    assert error(400) == pytest.approx(error(100) / 16, rel=0.1)


def test_straight_lines_are_not_rough_and_everything_else_is(generator):
    filtered = differences(random(generator, 30, 2))
    p = random(generator, 29, 2)
    assert filtered.roughen(torch.ones_like(p)).abs().max() < 1e-9
    assert (p * filtered.roughen(p)).sum() > 0
    q = random(generator, 29, 2)
    torch.testing.assert_close((q * filtered.roughen(p)).sum(), (p * filtered.roughen(q)).sum())


def dense(operator, filtered: Differences) -> Tensor:
    """The matrix of a linear operator on the chords."""
    unit = torch.eye(filtered.gaps.numel(), dtype=torch.float64)
    return torch.stack([operator(one.view_as(filtered.gaps)).flatten() for one in unit], 1)


def test_adjoints_and_diagonals_are_those_of_the_dense_operators():
    filtered = differences(scattered())
    values, slopes, rough = (dense(one, filtered) for one in (filtered.values, filtered.slopes, filtered.roughen))
    u, v = random(seeded(1), 40, 4), random(seeded(2), 40, 4)
    expected = (values.mT @ u.flatten() + slopes.mT @ v.flatten()).view_as(filtered.gaps)
    torch.testing.assert_close(filtered.pull(u, v), expected)
    for found, matrix in zip(filtered.diagonals(), (values.mT @ values, slopes.mT @ slopes, rough), strict=True):
        torch.testing.assert_close(found.flatten(), matrix.diagonal(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("smoothness", [1e-6, 1e-2])
def test_the_curves_are_optimal(smoothness):
    """The gradient of the filtered objective in the chords, by autograd through dense sums, vanishes."""
    prepared, _ = prepare(unrelated(count=25))
    objective = prepared.fitted
    V, W = random_directions(objective.jacobians, 3, seeded(0))
    t = objective.inputs @ V
    filtered = differences(t)

    def slope(p: Tensor) -> Tensor:
        with torch.enable_grad():
            p = p.clone().requires_grad_()
            G, H = filtered.values(p), filtered.slopes(p)
            rough = ((t.amax(0) - t.amin(0)) * (p * filtered.roughen(p)).sum(0)).sum()
            total = dense_error(objective.jacobians, V, W, H) + smoothness * len(t) * rough / objective.size_j
            total = total + objective.coupling * (objective.centred - G @ W.mT).square().sum() / objective.size_f
            return torch.autograd.grad(total, p)[0]

    start = filtered.chords(objective.jacobians.slopes(V, W))
    found = FilterSystem.at(prepared, V, W, smoothness).solve(start)
    assert slope(found).abs().max() < 1e-4 * slope(torch.zeros_like(found)).abs().max()


def test_a_filtered_decomposition_comes_nearer_with_more_samples():
    errors = []
    for count in (40, 240):
        planted = replace(CUBIC, inputs=2 * torch.rand(count, 2, generator=seeded(1), dtype=torch.float64) - 1)
        found = decouple(planted.problem(), Chain((GeneralizedEigenvalues(), FilteredCPD(20, smoothness=1e-7))))
        errors.append(direction_error(found.factors, planted.factors))
    assert errors[0] < 1e-2
    assert errors[1] < errors[0] / 5


def test_smoother_curves_are_less_rough():
    problem = noisy(CUBIC, 0.1)
    prepared, _ = prepare(problem)
    rough = []
    for smoothness in (1e-6, 1e-4, 1e-2, 1.0):
        state = FilteredCPD(5, smoothness=smoothness).init(prepared, seeded(0))
        curves = state.memory
        roughness = curves.prices / FilterSystem.at(prepared, curves.V, curves.W, smoothness).prices
        rough.append((roughness * curves.W.square().sum(0)).sum().item())
    assert rough == sorted(rough, reverse=True)
    assert rough[-1] < 0.1 * rough[0]


# ---- refusals ----


def plane(count: int = 30) -> Samples:
    """One output of two inputs, without Hessians."""
    x = random(seeded(0), count, 2)
    return Samples(x, x.square().sum(1, keepdim=True), 2 * x[:, None])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: JacobianCPD(0), r"sweeps must be a whole number of at least 1, got 0"),
        (lambda: StructuredCPD(stride=2.5), r"stride must be a whole number of at least 1, got 2.5"),
        (lambda: HessianCPD(tolerance=-1.0), r"tolerance must be a finite number of at least 0, got -1.0"),
        (lambda: GeneralizedEigenvalues(0), r"redraws must be a whole number of at least 1, got 0"),
        (lambda: FilteredCPD(sweeps=True), r"sweeps must be a whole number of at least 1, got True"),
        (lambda: FilteredCPD(smoothness=0.0), r"smoothness must be a finite number above 0, got 0.0"),
        (lambda: FilteredCPD(tolerance=math.nan), r"tolerance must be a finite number of at least 0, got nan"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("solver", [JacobianCPD(), GeneralizedEigenvalues()], ids=repr)
def test_matrices_have_no_unique_decomposition(solver):
    message = rf"{type(solver).__name__} needs at least 2 outputs and 2 inputs .* got 1 and 2: .* use HessianCPD\(\) or"
    with pytest.raises(ValueError, match=message):
        decouple(Problem(plane(), 2, Monomial(3)), solver)
    one = decouple(Problem(plane(), 1, Monomial(3)), solver)  # one node is a matrix of rank one
    assert one.factors.ranks == (1,)


def test_hessians_that_are_missing_or_zero_are_refused():
    with pytest.raises(ValueError, match=r"needs samples with Hessians, got none: take them with .*order=2"):
        decouple(Problem(plane(), 2, Monomial(3)), HessianCPD())
    x = random(seeded(0), 20, 2)
    affine = sample(lambda one: torch.stack([one.sum(), one[0] - one[1]]), x, order=2)
    with pytest.raises(ValueError, match=r"all Hessians are zero, so the map is affine"):
        decouple(Problem(affine, 1, Monomial(2)), HessianCPD())


def test_ranks_that_eigenvalues_cannot_reach_are_refused():
    message = (
        r"needs a Jacobian tensor of rank 3, that of the problem, along two of its modes and of at least 2 along the "
        r"third, got 3 along the samples, 2 along the outputs, 2 along the inputs .* lower the rank, or start from"
    )
    with pytest.raises(ValueError, match=message):
        decouple(MORE_NODES.problem(), GeneralizedEigenvalues())


def test_an_affine_map_has_no_pencil():
    """Slices that are all alike: two modes of rank one only."""
    x = random(seeded(0), 30, 3)
    A = random(seeded(1), 3, 3)
    samples = Samples(x, x @ A.mT, A.expand(30, 3, 3).clone())
    with pytest.raises(ValueError, match=r"got 1 along the samples, 3 along the outputs, 3 along the inputs"):
        decouple(Problem(samples, 3, Monomial(2)), GeneralizedEigenvalues())


# ---- together with the other solvers ----


def test_several_starts_of_a_decomposition_stop_at_an_exact_one():
    seen = states(MultiStart(Chain((JacobianCPD(), GaussNewton(30))), 10), CUBIC.problem())
    assert seen[-1].stopped is Result.EXACT
    assert len(seen) < 60


def test_directions_of_zero_stay():
    """A dead column makes no NaN."""
    prepared, _ = prepare(unrelated())
    V, W = random_directions(prepared.fitted.jacobians, 3, seeded(0))
    V[:, 1] = 0
    assert normalized(V)[:, 1].abs().max() == 0
    for solver in (JacobianCPD(4), StructuredCPD(4), FilteredCPD(4)):
        state = solver._begin(prepared, V, W)
        for _ in range(2):
            state = solver.step(prepared, replace(state, taken=0))
        assert isinstance(state.factors, Factors)
        assert all(one.isfinite().all() for one in state.factors.tensors())


def test_each_decomposition_is_the_same_for_the_same_seed():
    problem = with_hessians(CUBIC)
    for solver, seed in product((JacobianCPD(9), StructuredCPD(9), FilteredCPD(2), HessianCPD(9)), (0, 1)):
        one, other = (decouple(problem, solver, seed=seed).factors for _ in range(2))
        assert torch.equal(one.V, other.V)
        assert torch.equal(one.only.coefficients, other.only.coefficients)
