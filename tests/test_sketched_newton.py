"""Derivatives along views, the Gauss-Newton matrix estimated from them, and L-BFGS in its coordinates."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from planted import random, seeded
from test_solvers import unrelated
from torch import Tensor
from torch.func import jacrev

from tenflex import BSpline, Chebyshev, Monomial, Problem, Smooth, decouple
from tenflex.bases import Monotone, TwoSidedHinge
from tenflex.objective import sketch
from tenflex.objective.derivatives import Derivatives, Views, all_entries, all_outputs
from tenflex.objective.normal_equations import normal_equations
from tenflex.objective.objective import Objective
from tenflex.objective.prepared import Prepared
from tenflex.objective.sketch import random_views, sketched_gauss_newton
from tenflex.result import Result
from tenflex.samples import Samples
from tenflex.solvers import (
    BestSoFar,
    Chain,
    ConstrainedALS,
    LayeredALS,
    Leading,
    Refine,
    SketchedNewton,
    State,
    default_solver,
    gauss_newton,
    prepare,
)
from tenflex.solvers.base import measured, penalized
from tenflex.solvers.sketched_newton import triangle

STARTS = {3: ConstrainedALS(2), (3, 2): LayeredALS(2)}
ranks = pytest.mark.parametrize("rank", STARTS, ids=["one layer", "two layers"])


def standing(rank, basis=None, **settings) -> tuple[Prepared, State]:
    """A problem that no layer fits, with a state in the middle of nowhere."""
    prepared, _ = prepare(unrelated(basis or BSpline(6), rank=rank, held_out=0, **settings))
    return prepared, STARTS[rank].init(prepared, seeded(1))


def scaled(prepared: Prepared, state: State) -> Tensor:
    """A triangle L with which `L^-1 D^T D L^-T` is the identity, but for directions in which nothing changes."""
    gram = normal_equations(prepared, state.factors.full(), state.smoothing)[0]
    return torch.linalg.cholesky(gram + 1e-3 * torch.diag(gram.diagonal()))


def solved(prepared: Prepared, state: State, solver) -> State:
    state = solver.resume(prepared, state)
    while not solver.finished(prepared, state):
        state = solver.step(prepared, state)
    return state


# ---- derivatives ----


@ranks
@pytest.mark.parametrize("basis", [BSpline(6), Monomial(3)], ids=repr)
def test_derivatives_are_those_of_the_combinations(rank, basis):
    prepared, state = standing(rank, basis)
    factors, z = state.factors.full(), prepared.fitted.inputs
    generator = seeded(2)
    s, a, b = torch.tensor([4, 0, 4]), random(generator, 3, len(factors.W)), random(generator, 3, len(factors.V))
    derivatives, here = Derivatives(z, factors), factors.flat()

    def outputs(unknowns: Tensor) -> Tensor:
        return (a * factors.with_flat(unknowns).outputs(z[s])).sum(1)

    def slopes(unknowns: Tensor) -> Tensor:
        return torch.einsum("qn,qnm,qm->q", a, factors.with_flat(unknowns).jacobians(z[s]), b)

    torch.testing.assert_close(derivatives.of_outputs(Views(s, a, b)), jacrev(outputs)(here))
    torch.testing.assert_close(derivatives.of_jacobians(Views(s, a, b)), jacrev(slopes)(here))


def test_views_of_everything_are_in_the_order_of_the_tensors():
    z, F, J = random(seeded(0), 6, 4), random(seeded(1), 6, 3), random(seeded(2), 6, 3, 4)
    part = slice(2, 5)
    views = all_outputs(part, z, 3)
    assert torch.equal((views.along_outputs * F[views.samples]).sum(1), F[part].flatten())
    views = all_entries(part, z, 3)
    seen = torch.einsum("qn,qnm,qm->q", views.along_outputs, J[views.samples], views.along_inputs)
    assert torch.equal(seen, J[part].flatten())


# ---- the estimate ----


@ranks
def test_directions_have_the_identity_as_second_moment(rank):
    prepared, _ = standing(rank)
    views = list(random_views(prepared.fitted, 20_000, 10, seeded(0)))
    for name in ("along_outputs", "along_inputs"):
        every = torch.cat([getattr(one, name) for one in views])
        torch.testing.assert_close(every.square().sum(1), torch.full_like(every[:, 0], every.shape[1]))
        identity = torch.eye(every.shape[1], dtype=every.dtype)
        torch.testing.assert_close(every.mT @ every / len(every), identity, rtol=0, atol=0.05)
    counts = torch.cat([one.samples for one in views]).bincount()
    assert counts.max() - counts.min() <= 1  # every sample is seen as often


@ranks
@pytest.mark.parametrize("basis", [BSpline(6), Smooth(Monomial(4), 0.3)], ids=repr)
def test_the_estimate_tends_to_the_gauss_newton_matrix(rank, basis):
    """In the coordinates of the matrix itself, with an error that falls as the root of the number of rows."""
    prepared, state = standing(rank, basis)
    exact, lower = normal_equations(prepared, state.factors.full(), state.smoothing)[0], scaled(prepared, state)

    def error(rows: int) -> float:
        difference = sketched_gauss_newton(prepared, state.factors.full(), state.smoothing, rows, seeded(0)) - exact
        inside = torch.linalg.solve_triangular(lower, difference, upper=False)
        return torch.linalg.matrix_norm(torch.linalg.solve_triangular(lower, inside.mT, upper=False), 2).item()

    few, many = error(1_000), error(100_000)
    assert many < 0.12
    assert 4 < few / many < 25


def test_no_group_of_views_takes_more_memory_than_a_chunk(monkeypatch):
    prepared, _ = standing((3, 2))
    monkeypatch.setattr("tenflex.sums.CHUNK", 500)
    sizes = [len(one.samples) for one in random_views(prepared.fitted, 205, 50, seeded(0))]
    assert sum(sizes) == 205
    assert max(sizes) == 10


@ranks
def test_the_estimate_is_made_in_pieces(rank, monkeypatch):
    """The directions are drawn piece by piece, so with one row in a piece they are others; the products are not."""
    prepared, state = standing(rank)
    factors = state.factors.full()
    views = list(random_views(prepared.fitted, 50, 1, seeded(0)))
    monkeypatch.setattr(sketch, "random_views", lambda *_: iter(views))
    whole = sketched_gauss_newton(prepared, factors, 0.0, 50, seeded(0))
    one_by_one = [
        Views(*group)
        for view in views
        for group in zip(*(x.split(1) for x in (view.samples, view.along_outputs, view.along_inputs)), strict=True)
    ]
    monkeypatch.setattr(sketch, "random_views", lambda *_: iter(one_by_one))
    torch.testing.assert_close(
        sketched_gauss_newton(prepared, factors, 0.0, 50, seeded(0)), whole, rtol=1e-4, atol=1e-4
    )


# ---- the triangle ----


def test_a_matrix_that_is_not_positive_gets_more_damping():
    gram = torch.tensor([[1.0, 1 + 1e-6], [1 + 1e-6, 1.0]]).double()
    lower = triangle(gram, 0.0)
    torch.testing.assert_close(lower @ lower.mT, gram, rtol=0, atol=1e-4)
    assert torch.linalg.cholesky_ex(gram).info  # none without


def test_a_matrix_that_is_not_finite_is_left_out():
    assert torch.equal(triangle(torch.full((3, 3), torch.nan), 1e-3), torch.eye(3))


# ---- the solver ----


@ranks
@pytest.mark.parametrize("basis", [BSpline(6), Smooth(BSpline(7), 0.3)], ids=repr)
def test_the_objective_never_rises(rank, basis):
    prepared, state = standing(rank, basis)
    solver = SketchedNewton(6, iterations=5, tolerance=0)
    state, errors = solver.resume(prepared, state), [penalized(prepared, state)]
    for _ in range(6):
        state = solver.step(prepared, state)
        errors.append(penalized(prepared, state))
    assert all(after <= before for before, after in pairwise(errors))
    assert errors[-1] < 0.95 * errors[0]


def near_planted(rank) -> tuple[Prepared, State]:
    """Samples of a layer, and another layer that is near it."""
    prepared, state = standing(rank, Monomial(3))
    inputs, factors = prepared.fitted.inputs, state.factors
    planted = Samples(inputs, factors.outputs(inputs), factors.jacobians(inputs))
    prepared = replace(prepared, fitted=Objective(planted, 3.0))
    here = factors.flat()
    near = factors.with_flat(here + 0.02 * random(seeded(5), here.numel()) * here.square().mean().sqrt())
    return prepared, measured(prepared, state, near)


@ranks
def test_it_leads_from_nearby_to_planted_layers_exactly(rank):
    prepared, near = near_planted(rank)
    found = solved(prepared, near, SketchedNewton(60, tolerance=1e-6))
    assert found.stopped is Result.EXACT
    assert found.jacobian_error < 1e-20


@ranks
def test_it_needs_fewer_iterations_than_without_the_matrix(rank):
    prepared, near = near_planted(rank)
    plain = solved(prepared, near, Refine(60, tolerance=0))
    scaled = solved(prepared, near, SketchedNewton(3, iterations=20, tolerance=0))
    assert penalized(prepared, scaled) < 1e-2 * penalized(prepared, plain)


@ranks
def test_the_same_start_gives_the_same_bits(rank):
    prepared, state = standing(rank)
    one, two = (solved(prepared, state, SketchedNewton(3, iterations=4)).factors for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.tensors(), two.tensors(), strict=True))


def test_it_stops_when_nothing_gets_better():
    prepared, state = standing((3, 2))
    state = solved(prepared, state, SketchedNewton(100, tolerance=0.5))
    assert state.stopped is not None
    assert state.taken < 100


def test_factored_maps_are_solved_in_their_leading_directions():
    problem = unrelated(BSpline(6), rank=(3, 2), factor=2)
    solution = decouple(problem, Chain((Leading(Chain((LayeredALS(2), SketchedNewton(3)))), Refine(10))))
    assert [tuple(one.shape) for one in solution.factors.maps[0]] == [(4, 2), (2, 3)]


# ---- bad input ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 0}, "rounds must be a whole number of at least 1, got 0"),
        ({"iterations": 2.5}, "iterations must be a whole number of at least 1, got 2.5"),
        ({"rows": -1}, "rows must be a whole number of at least 1, got -1"),
        ({"damping": -1}, "damping must be"),
        ({"tolerance": float("nan")}, "tolerance must be"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SketchedNewton(**settings)


def test_it_starts_from_a_layer():
    with pytest.raises(ValueError, match="SketchedNewton starts from a layer: put a solver before it"):
        decouple(unrelated(rank=(3, 2)), SketchedNewton())


def test_problems_that_are_too_large_are_refused(monkeypatch):
    monkeypatch.setattr(gauss_newton, "MOST_UNKNOWNS", 10)
    with pytest.raises(ValueError, match=r"SketchedNewton takes at most 10 unknowns, this problem has \d+: use Refine"):
        decouple(unrelated(), Chain((ConstrainedALS(1), SketchedNewton(5))))


def test_what_it_would_ignore_is_refused():
    problem = unrelated(Monomial(3))
    noise = torch.ones_like(problem.samples.jacobians)
    uncertain = Samples(problem.samples.inputs, problem.samples.outputs, problem.samples.jacobians, covariance=noise)
    solver = BestSoFar(Chain((ConstrainedALS(1), SketchedNewton(2))))
    with pytest.raises(ValueError, match="SketchedNewton does not use the covariance of the Jacobians"):
        decouple(Problem(uncertain, 3, Monomial(3)), solver)
    with pytest.raises(ValueError, match="SketchedNewton"):
        decouple(unrelated(Monotone(BSpline(6))), solver)


# ---- where the default recipe takes it ----


@pytest.mark.parametrize(
    ("basis", "taken"),
    [
        (Smooth(BSpline(6), 0.01), True),
        (Monomial(3), True),
        (Chebyshev(3), True),
        (BSpline(6), False),
        (Smooth(BSpline(6), 0), False),
        (TwoSidedHinge(6), False),
    ],
    ids=repr,
)
def test_the_default_recipe_takes_it_where_activations_are_held_beyond_the_samples(basis, taken):
    prepared, _ = prepare(unrelated(basis, rank=(3, 2)))
    assert ("SketchedNewton" in repr(default_solver(prepared, exact=False))) == taken


def test_the_default_recipe_takes_it_up_to_its_most_unknowns(monkeypatch):
    prepared, _ = prepare(unrelated(Monomial(3), rank=(3, 2)))
    monkeypatch.setattr("tenflex.solvers.default.MOST_UNKNOWNS", 10)
    assert "SketchedNewton" not in repr(default_solver(prepared, exact=False))
