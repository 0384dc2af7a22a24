"""Increasing and non-negative activations: which functions are allowed, the best of them, and the solvers that obey."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from planted import Planted, direction_error, polynomial, random, sampled, seeded, uniform
from scipy.optimize import LinearConstraint, minimize, nnls
from torch import Tensor, nn

from tenflex.bases import (
    Basis,
    BSpline,
    Chebyshev,
    Hinge,
    Monomial,
    Monotone,
    NonNegative,
    PositiveHinge,
    Smooth,
    TwoSidedHinge,
    basis_from_dict,
    basis_to_dict,
)
from tenflex.bases.bernstein import bernstein_rows
from tenflex.bases.cone import cone_of, nonnegative_least_squares
from tenflex.bases.orthonormal import Orthonormal
from tenflex.bases.shaped import orders
from tenflex.bases.wrapped import demands, plain
from tenflex.cli.blocks import parse_basis
from tenflex.compress import compress
from tenflex.decouple import decouple
from tenflex.factors import Factors
from tenflex.objective import coefficients
from tenflex.objective.coefficients import RIDGE, Activated
from tenflex.objective.inequalities import QuadraticProgramme
from tenflex.objective.steps import activate, coefficient_system, likely_signs
from tenflex.objective.walls import within_walls
from tenflex.planning.plan import Block
from tenflex.problem import Problem
from tenflex.samples import Samples
from tenflex.solvers import (
    BestSoFar,
    Chain,
    ConstrainedALS,
    GaussNewton,
    Leading,
    MultiStart,
    ProjectedALS,
    Refine,
    Solver,
    Truncate,
    default,
    default_solver,
    prepare,
)
from tenflex.solvers.base import penalized
from tenflex.storage.network import load


def quantile(count: int = 7, degree: int = 3) -> Basis:
    """Knots where the inputs of three nodes are."""
    return BSpline(count, degree, "quantile").fit(
        torch.stack([torch.linspace(-1, 1, 60).double() ** k for k in (1, 3, 5)], 1)
    )


FAMILIES = [
    BSpline(8),
    BSpline(7, degree=2),
    BSpline(6, degree=1),
    quantile(),
    quantile(6, 1),
    Monomial(6),
    Chebyshev(5),
    Hinge(5),
    PositiveHinge(4),
    TwoSidedHinge(4),
]
FREE = [
    NonNegative(one) if order == 0 else Monotone(one)
    for one in FAMILIES
    for order in (0, 1)
    if (one, order) != (Chebyshev(5), 0)
]
SHAPES = [
    *FREE,
    Monotone(NonNegative(BSpline(8))),
    Monotone(NonNegative(Smooth(TwoSidedHinge(4)))),
    NonNegative(Monotone(Hinge(5))),
]


def name(value: object) -> str:
    """The settings, with the many knots left out."""
    return f"{type(value).__name__}({name(value.basis)})" if hasattr(value, "basis") else f"{value!r:.60}"


shapes = pytest.mark.parametrize("basis", SHAPES, ids=name)


def curves(basis: Basis, order: int, c: Tensor, low: float, high: float) -> Tensor:
    """The activations or their slopes at 10,001 points."""
    t = torch.linspace(low, high, 10_001, dtype=torch.float64)[:, None].expand(-1, len(c))
    return basis.curves(t, c)[order]


def allowed(basis: Basis, asked: Basis, c: Tensor, tolerance: float = 1e-10) -> bool:
    """Whether activations are what is asked of them, slopes also far outside of the interval of a piecewise basis."""
    low, high = basis.interval
    far = 0.0 if isinstance(plain(asked), (Monomial, Chebyshev)) else 2.0
    bounds = [curves(basis, order, c, low - order * far, high + order * far) for order in orders(asked)]
    return all((one >= -tolerance * c.norm(dim=1)).all() for one in bounds)


def recombination(basis: Basis) -> Orthonormal:
    """The coordinates of solvers; a basis with fitted knots is recombined as it was before."""
    return Orthonormal(basis, None if basis.nodes is None else replace(basis, knots=None))


# ---- what is allowed ----


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("basis", FAMILIES, ids=name)
def test_the_bounds_are_below_the_function_and_near_to_it(basis, order, generator):
    c = random(generator, 3, basis.size)
    rows = bernstein_rows(basis, order).expand(3, -1, -1)
    bound = torch.einsum("rqd,rd->rq", rows, c).amin(1)
    values = curves(basis, order, c, *basis.interval)
    least, width = values.amin(0), values.amax(0) - values.amin(0)
    assert (bound <= least + 1e-12).all()
    assert (bound >= least - 4e-3 * width).all()  # these curves are as rough as can be
    if basis.pieces()[1] - order < 2:  # up to linear pieces nothing is lost but what is between the points
        torch.testing.assert_close(bound, least, rtol=0, atol=1e-3 * float(width.max()))


@shapes
def test_what_is_in_the_cone_has_the_shape_and_some_of_it_is_in_the_interior(basis, generator):
    recombined = recombination(plain(basis))
    cone = cone_of(recombined, orders(basis))
    nodes = basis.nodes or 3
    goal = random(generator, nodes, cone.span.shape[1])
    y, _ = QuadraticProgramme(torch.eye(goal.numel()).double(), goal, cone.rows).solve()
    c = y @ cone.span.mT @ recombined.matrix(y).mT
    assert c.norm() > 0.1  # the projection of a random point: not all is zero
    assert allowed(plain(basis), basis, c)
    inside, _ = QuadraticProgramme(
        torch.eye(goal.numel()).double(), cone.rows.expand(nodes, -1, -1).sum(1), cone.rows
    ).solve()
    assert (cone.slack(inside @ cone.span.mT) > 0).any(1).all()
    torch.testing.assert_close(cone.span.mT @ cone.span, torch.eye(cone.span.shape[1]).double())


def test_inequalities_that_can_only_be_equalities_take_dimensions_away(generator):
    """A non-negative polynomial with g(0) = 0 has g'(0) = 0; an increasing two-sided hinge is flat on the left."""
    for basis, without in ((NonNegative(Monomial(5)), 0), (Monotone(NonNegative(TwoSidedHinge(4))), 0)):
        recombined = Orthonormal(plain(basis))
        cone = cone_of(recombined, orders(basis))
        assert cone.span.shape == (basis.size, basis.size - 1)
        c = cone.span.mT @ recombined.matrix(cone.span).mT
        torch.testing.assert_close(c[:, without], torch.zeros_like(c[:, without]))
    assert cone_of(Orthonormal(BSpline(8)), (0, 1)).span.shape == (8, 8)


def test_least_squares_over_non_negative_numbers_is_that_of_scipy(generator):
    for rows, columns in ((5, 9), (11, 60), (30, 12)):
        M, b = random(generator, rows, columns), random(generator, rows)
        expected = torch.from_numpy(nnls(M.numpy(), b.numpy())[0])
        torch.testing.assert_close(nonnegative_least_squares(M, b), expected, rtol=0, atol=1e-10)


# ---- quadratic programmes ----


def programme(basis: Basis, nodes: int, condition: float, seed: int = 0) -> QuadraticProgramme:
    """A random one with the inequalities of a basis."""
    cone = cone_of(Orthonormal(plain(basis)), orders(basis))
    size, generator = nodes * cone.span.shape[1], seeded(seed)
    scale = torch.logspace(0, -np.log10(condition) / 2, size).double()
    X = random(generator, size + 5, size) * scale
    return QuadraticProgramme(X.mT @ X, (random(generator, size) * scale).view(nodes, -1), cone.rows)


def by_duality(problem: QuadraticProgramme) -> Tensor:
    """The minimum from the dual, a least-squares problem over non-negative multipliers."""
    lower = np.linalg.cholesky(problem.gram.numpy())
    A = torch.block_diag(*problem.rows.expand(len(problem.right), -1, -1)).numpy()
    free, columns = np.linalg.solve(lower, problem.right.flatten().numpy()), np.linalg.solve(lower, A.T)
    multipliers = nnls(columns, -free, maxiter=100_000)[0]
    return torch.from_numpy(np.linalg.solve(lower.T, free + columns @ multipliers)).view_as(problem.right)


@pytest.mark.parametrize("condition", [1.0, 1e4])
@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize(
    "basis", [Monotone(BSpline(8)), NonNegative(Monomial(6)), Monotone(NonNegative(Hinge(5)))], ids=name
)
def test_quadratic_programmes_are_solved_to_rounding(basis, nodes, condition):
    problem = programme(basis, nodes, condition)
    y, multipliers = problem.solve()
    torch.testing.assert_close(y, by_duality(problem), rtol=0, atol=1e-8 * float(y.abs().max()))
    slack = torch.einsum("rqe,re->rq", problem.rows.expand(nodes, -1, -1), y)
    size = problem.right.norm()
    assert slack.min() >= -1e-13 * y.norm()
    assert multipliers.min() >= 0
    assert (slack * multipliers).sum() < 1e-11 * size * y.norm()
    left = problem.gram @ y.flatten() - problem.right.flatten()
    back = torch.einsum("rqe,rq->re", problem.rows.expand(nodes, -1, -1), multipliers).flatten()
    torch.testing.assert_close(left, back, rtol=0, atol=1e-8 * float(size))


def test_quadratic_programmes_agree_with_a_general_method():
    problem = programme(Monotone(BSpline(6)), 1, 10.0)
    Q, b, A = problem.gram.numpy(), problem.right[0].numpy(), problem.rows[0].numpy()
    found = minimize(
        lambda y: y @ Q @ y / 2 - b @ y,
        np.zeros(len(b)),
        jac=lambda y: Q @ y - b,
        method="SLSQP",
        constraints=LinearConstraint(A, 0, np.inf),
        options={"ftol": 1e-14, "maxiter": 500},
    )
    y, _ = problem.solve()
    torch.testing.assert_close(y[0], torch.from_numpy(found.x), rtol=0, atol=1e-6)


def test_a_free_minimum_that_is_allowed_is_the_answer():
    problem = programme(Monotone(BSpline(6)), 2, 1.0)
    line = torch.linalg.solve(Orthonormal(BSpline(6)).matrix(problem.right), torch.linspace(-1, 1, 6).double())
    inside = torch.stack([line, 3 * line])
    y, multipliers = replace(problem, right=(problem.gram @ inside.flatten()).view(2, -1)).solve()
    torch.testing.assert_close(y, inside)
    assert not multipliers.any()
    nothing, _ = replace(problem, right=torch.zeros_like(inside)).solve()
    assert not nothing.any()


def activated_at(prepared, factors: Factors) -> Activated:
    return activate(factors.only.basis, prepared.fitted, factors.V, factors.only.shift)


def wavy(seed: int = 0, r: int = 2, count: int = 60) -> Samples:
    """A map whose nodes rise and fall."""
    generator = seeded(seed)
    x, V, W = random(generator, count, 3), random(generator, 3, r) / 2, random(generator, 3, r)
    t = x @ V
    return Samples(x, torch.sin(3 * t) @ W.mT, torch.einsum("nr,sr,mr->snm", W, 3 * torch.cos(3 * t), V))


def test_groups_of_nodes_lower_the_objective_to_where_all_together_do(monkeypatch):
    prepared, _ = prepare(Problem(wavy(r=3), 3, Monotone(BSpline(6))))
    state = ConstrainedALS(2).init(prepared, seeded(0))
    factors = state.factors
    cone = prepared.cone(factors.only.basis)
    system = coefficient_system(prepared, activated_at(prepared, factors), factors.V, factors.W)

    def value(c: Tensor) -> float:
        return float((c * system.apply(c)).sum() / 2 - (c * system.right()).sum())

    start = torch.zeros_like(factors.only.coefficients)
    together, pressing = system.solve_within(cone, start)
    monkeypatch.setattr(coefficients, "DENSE", 0)
    monkeypatch.setattr(coefficients, "GROUP", 12)
    values = []
    for rounds in (1, 3, 60):
        monkeypatch.setattr(coefficients, "ROUNDS", rounds)
        c, multipliers = system.solve_within(cone, start)
        assert cone.slack(c).min() > -1e-12
        values.append(value(c))
    assert 0 > values[0] > values[1] > values[2] >= value(together) - 1e-12
    assert values[2] - value(together) < 1e-3 * (values[0] - value(together))
    torch.testing.assert_close(c, together, rtol=0, atol=0.02 * float(together.abs().max()))
    # Many inequalities meet in one point, so the multipliers are not unique; what they do together is.
    pushes, pushed = (torch.einsum("rqe,rq->re", cone.rows.expand(len(c), -1, -1), z) for z in (multipliers, pressing))
    torch.testing.assert_close(pushes, pushed, rtol=0, atol=0.02 * float(pushed.abs().max()))


# ---- the best activation of a shape ----


@pytest.mark.parametrize(
    ("basis", "function"),
    [
        (Monotone(BSpline(8)), lambda t: torch.sin(3 * t)),
        (Monotone(Hinge(6)), lambda t: torch.cos(3 * t)),
        (NonNegative(Monomial(5)), lambda t: torch.sin(2 * t)),
        (Monotone(Monomial(7)), lambda t: torch.sin(4 * t) + t),
    ],
    ids=lambda one: name(one) if isinstance(one, Basis) else "",
)
def test_one_node_has_the_best_function_of_its_shape(basis, function):
    """Against a dense least-squares problem with the sign asked for at 2,001 points, and with either sign of W."""
    t = torch.linspace(-1, 1, 80, dtype=torch.float64)[:, None].requires_grad_()
    F = function(t)
    J = torch.autograd.grad(F.sum(), t)[0]
    samples = Samples(t.detach(), F.detach(), J[:, None])
    solution = decouple(Problem(samples, 1, basis, held_out=0), ConstrainedALS(3))
    factors = solution.factors
    assert allowed(factors.only.basis, basis, factors.only.coefficients)
    u = factors.arguments(samples.inputs)[0][:, 0]
    value, slope = plain(basis).value(u), plain(basis).derivative(u) * factors.V[0, 0]
    value, target = value - value.mean(0), (F - F.mean()).detach()
    weight_f, weight_j = (3**0.5 / target.norm()), 1 / J.norm()
    M = torch.cat([weight_f * value, weight_j * slope]).numpy()
    b = torch.cat([weight_f * target[:, 0], weight_j * J[:, 0]]).numpy()
    grid = torch.linspace(*basis.interval, 2001, dtype=torch.float64)
    A = (plain(basis).value, plain(basis).derivative)[orders(basis)[0]](grid).numpy()
    gram = torch.from_numpy(M.T @ M)
    ridge = 1e-10 * gram.diagonal().mean() * torch.eye(len(gram)).double()
    rows = torch.from_numpy(A)[None]
    best = min(
        float(
            np.square(
                M
                @ by_duality(QuadraticProgramme(gram + ridge, torch.from_numpy(sign * M.T @ b)[None], rows))[0].numpy()
                - sign * b
            ).sum()
        )
        for sign in (1, -1)
    )
    reached = solution.history[-1].jacobian_error + 3 * solution.history[-1].output_error
    assert best - 1e-6 <= reached <= 1.002 * best + 1e-6
    free = decouple(Problem(samples, 1, plain(basis), held_out=0), ConstrainedALS(3))
    assert free.history[-1].output_error < 0.5 * solution.history[-1].output_error


def test_a_node_that_starts_with_the_wrong_sign_is_turned():
    x = uniform(60, 2, -1, 1)
    planted = polynomial([[1.0], [2.0]], [[1.0], [0.5]], [0], [[1, 0, 1]], x)
    prepared, _ = prepare(planted.problem(basis=Monotone(BSpline(6)), held_out=0))
    factors = ConstrainedALS(1).init(prepared, seeded(0)).factors
    activated, basis = activated_at(prepared, factors), factors.only.basis
    assert likely_signs(prepared, activated, basis, factors.V, factors.W) == 1
    assert likely_signs(prepared, activated, basis, factors.V, -factors.W) == -1


# ---- solvers ----

RISING = polynomial([[1, 2], [-3, 1]], [[-2, 3], [-2, 1]], [0, 0], [[1, 0, 2], [3, 1, 1]], uniform(50, 2, -1, 1))
"""g1 = 2 t^3 + t, g2 = t^3 + t^2 + 3t: increasing."""

CUPS = polynomial([[1, 2], [-3, 1]], [[-2, 3], [-2, 1]], [0, 0], [[0, 2, 1], [0, 1, 0]], uniform(50, 2, -0.4, 0.4))
"""g1 = t^3 + 2 t^2, g2 = t^2: not negative where they are seen, |t| < 1.7."""

KEEPING: dict[str, Solver | None] = {
    "ConstrainedALS": MultiStart(ConstrainedALS(2), 2),
    "Refine": Chain((ConstrainedALS(2), Refine(15))),
    "BestSoFar": BestSoFar(Chain((ConstrainedALS(2), Refine(9, stride=3)))),
    "Leading": Chain((Leading(ConstrainedALS(2)), Refine(10))),
    "Truncate": Chain((ConstrainedALS(2), Truncate(), Refine(10))),
}
ASKED = [
    Monotone(BSpline(7)),
    Monotone(BSpline(6, spacing="quantile")),
    NonNegative(Monomial(5)),
    Monotone(NonNegative(Smooth(BSpline(7)))),
    Monotone(NonNegative(TwoSidedHinge(4))),
]


@pytest.mark.parametrize("basis", ASKED, ids=name)
@pytest.mark.parametrize("solver", KEEPING.values(), ids=KEEPING)
def test_every_state_of_every_solver_that_keeps_constraints_does(solver, basis):
    """For a map that no such layer fits; `Refine` besides never lets the objective rise."""
    prepared, _ = prepare(Problem(wavy(count=25), 2, basis, factor=2, held_out=0.2))
    state = solver.init(prepared, seeded(0))
    states = [state]
    while not solver.finished(prepared, state):
        state = solver.step(prepared, state)
        states.append(state)
    for one in states:
        recombined, C = one.factors.only.basis, one.factors.only.coefficients
        assert allowed(recombined.basis, basis, C @ recombined.matrix(C).mT)
    refined = [penalized(prepared, one) for one in states if one.stage == "refine"]
    if not isinstance(solver, BestSoFar):
        assert all(after <= before for before, after in pairwise(refined))
    assert states[-1].factors.only.coefficients.norm() > 1e-3


@pytest.mark.parametrize("basis", [Monotone(BSpline(7)), Monotone(NonNegative(BSpline(7)))], ids=name)
def test_refinement_lowers_the_objective_about_as_far_as_without_the_constraint_that_holds_anyway(basis):
    planted = sampled(RISING.factors, RISING.inputs)
    prepared, _ = prepare(Problem(planted, 2, basis))
    free, _ = prepare(Problem(planted, 2, plain(basis)))
    start = ConstrainedALS(5).init(prepared, seeded(1))
    reached = []
    for problem in (prepared, free):
        solver = Refine(50)
        state = solver.resume(problem, start)
        while not solver.finished(problem, state):
            state = solver.step(problem, state)
        reached.append(penalized(problem, state))
    assert reached[0] < 1e-2 * penalized(prepared, start)
    assert reached[0] < 3 * reached[1] + 1e-6


def test_the_walls_make_the_best_allowed_coefficients_a_stationary_point():
    prepared, _ = prepare(Problem(wavy(), 2, Monotone(BSpline(7)), held_out=0))
    state = ConstrainedALS(3).init(prepared, seeded(0))
    factors, walls = within_walls(prepared, state.factors, 0.0)
    c = factors.only.coefficients.clone().requires_grad_()
    with torch.enable_grad():
        errors = prepared.fitted.value(factors.with_activations(0, coefficients=c))
        error = errors[0] + 3 * errors[1]
        price = walls.price(factors.with_activations(0, coefficients=c))
        falls, pushes = torch.autograd.grad(error, c, retain_graph=True)[0], torch.autograd.grad(price, c)[0]
    assert falls.norm() > 1e-2  # the constraint is what stops it
    # The programme has the ridge of all systems in the coefficients.
    system = coefficient_system(prepared, activated_at(prepared, factors), factors.V, factors.W)
    ridge = 2 * RIDGE * system.dense().diagonal().mean() * c.detach()
    assert (falls + ridge + pushes).norm() < 1e-6 * falls.norm()


@pytest.mark.parametrize(
    ("planted", "basis", "starts"),
    [
        pytest.param(RISING, Monotone(Monomial(3)), 2, id="rising"),
        pytest.param(CUPS, NonNegative(Monomial(3)), 10, id="cups", marks=pytest.mark.slow),
    ],
)
def test_planted_layers_are_found(planted: Planted, basis: Basis, starts: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(default, "STARTS", starts)
    solution = decouple(planted.problem(basis=basis))
    assert solution.output_error < 1e-4
    assert direction_error(solution.factors, planted.factors) < 1e-3
    assert allowed(solution.factors.only.basis, basis, solution.factors.only.coefficients)
    assert solution.factors.only.basis == Monomial(3)


def noisy_and_rising(seed: int) -> tuple[Samples, Tensor, Tensor]:
    """Few samples of a saturating node with much noise; inputs that were not seen, and what is true there."""
    generator = seeded(seed)
    x, unseen = (2 * torch.rand(count, 2, generator=generator).double() - 1 for count in (25, 500))
    v, w, shift = random(generator, 2, 1), random(generator, 3, 1), random(generator, 1) / 3
    g, v = (lambda t: torch.tanh(4 * t - shift)), v / v.norm()
    F, J = g(x @ v) @ w.mT, torch.einsum("nr,sr,mr->snm", w, 4 * (1 - g(x @ v) ** 2), v)
    F = F + 0.3 * F.std() * random(generator, *F.shape)
    return Samples(x, F, J + J.std() * random(generator, *J.shape)), unseen, g(unseen @ v) @ w.mT


@pytest.mark.slow
@pytest.mark.parametrize("basis", [BSpline(10), Smooth(BSpline(10), 0.1)], ids=name)
def test_knowing_that_activations_increase_helps_against_noise(basis):
    """The descent is the one without coordinates: from so few samples theirs gains less by it."""
    solver = Chain((ConstrainedALS(8), Refine(30, renewal=0)))
    ratios = []
    for seed in range(6):
        samples, unseen, true = noisy_and_rising(seed)
        found = [decouple(Problem(samples, 1, one), solver).factors.outputs(unseen) for one in (Monotone(basis), basis)]
        errors = [(one - true).norm().item() for one in found]
        ratios.append(errors[0] / errors[1])
    assert sum(ratio < 1 for ratio in ratios) >= 5
    assert sum(ratios) / len(ratios) < 0.97


def test_the_order_of_the_demands_does_not_matter():
    problem = Problem(wavy(count=20), 2)
    results = []
    for order in permutations((Monotone, NonNegative, lambda basis: Smooth(basis, 0.1))):
        basis: Basis = BSpline(4)
        for wrap in order:
            basis = wrap(basis)
        assert plain(basis) == BSpline(4)
        assert len(demands(basis)) == 3
        solution = decouple(replace(problem, basis=basis), Chain((ConstrainedALS(1), Refine(5))))
        results.append(solution.factors.flat())
    for one in results[1:]:
        assert torch.equal(one, results[0])


# ---- solvers that do not keep them ----


@pytest.mark.parametrize(
    ("solver", "culprit"),
    [
        (ProjectedALS(5), "ProjectedALS"),
        (Chain((ConstrainedALS(5), GaussNewton(5))), "GaussNewton"),
        (BestSoFar(MultiStart(Leading(Chain((ConstrainedALS(5), GaussNewton(5)))), 2)), "GaussNewton"),
    ],
    ids=["alone", "in a chain", "deep inside"],
)
def test_solvers_that_do_not_keep_constraints_are_refused(solver, culprit):
    problem = Problem(wavy(), 2, Smooth(Monotone(BSpline(6))))
    with pytest.raises(
        ValueError, match=rf"{culprit} does not keep activations monotone or .*: use ConstrainedALS and"
    ):
        decouple(problem, solver)
    decouple(replace(problem, basis=Smooth(BSpline(6), 0.1)), solver)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("factor", [None, 2])
def test_the_default_keeps_them(exact, factor):
    prepared, _ = prepare(Problem(wavy(), 2, Monotone(BSpline(6)), factor=factor))
    assert default_solver(prepared, exact).refusal(prepared) is None


# ---- what is asked, what is stored ----


@shapes
def test_demands_are_saved_and_written_with_the_basis(basis):
    assert basis_from_dict(json.loads(json.dumps(basis_to_dict(basis)))) == basis
    if basis.nodes is None:
        assert basis_from_dict(parse_basis(repr(basis))) == basis


class Cosine(nn.Module):
    """An activation that rises and falls."""

    def forward(self, t: Tensor) -> Tensor:
        return torch.cos(3 * t)


def test_a_block_of_a_network_gets_monotone_activations_and_keeps_them_on_disk(tmp_path):
    model = nn.Sequential(nn.Linear(6, 12), Cosine(), nn.Linear(12, 3)).eval()
    x = torch.randn(50, 6)
    asked = Monotone(Smooth(BSpline(6), 0.1))
    solver = Chain((Leading(ConstrainedALS(5)), Refine(20)))
    result = compress(model, x, {"0:2": Block(rank=2, factor=2)}, basis=asked, solver=solver)
    own = compress(model, x, {"0:2": Block(rank=2, factor=2, basis=asked)}, solver=solver)
    assert torch.equal(own.model(x), result.model(x))
    result.save(tmp_path / "small")
    again = load(tmp_path / "small", model)
    assert torch.equal(again(x), result.model(x))
    (activations,) = (one.factors.only for one in result.solutions.values())
    assert activations.basis == BSpline(6)
    assert allowed(BSpline(6), asked, activations.coefficients)
    assert result.plan.basis == asked
    free = compress(model, x, {"0:2": Block(rank=2, factor=2)}, basis=Smooth(BSpline(6), 0.1), solver=solver)
    (activations,) = (one.factors.only for one in free.solutions.values())
    assert not allowed(BSpline(6), asked, activations.coefficients, 1e-2)


class Sines(Basis):
    """Functions that are not polynomials."""

    size = 1
    operations = 1

    def value(self, t: Tensor) -> Tensor:
        return t.sin().unsqueeze(-1)

    derivative = second_derivative = value


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Monotone(3), TypeError, r"basis must be a plain basis such as BSpline\(10\), got 3"),
        (lambda: Monotone(Monotone(BSpline())), TypeError, "without Monotone, got .*: leave one Monotone out"),
        (lambda: Monotone(Smooth(NonNegative(Monotone(BSpline())))), TypeError, "without Monotone"),
        (lambda: Smooth(Monotone(Smooth(BSpline()))), TypeError, "basis must be a plain basis or one without Smooth"),
        (lambda: NonNegative(Chebyshev(4)), ValueError, r"no function but zero is left by NonNegative\(.*Chebyshev"),
        (lambda: NonNegative(Monomial(1)), ValueError, "take a basis that contains the constants"),
        (lambda: Monotone(NonNegative(Monomial(6))), ValueError, "no function but zero is left by Monotone"),
        (lambda: NonNegative(Smooth(Monotone(Monomial(6)))), ValueError, "no function but zero is left by NonNeg"),
        (lambda: Monotone(Sines()), TypeError, "expected functions made of polynomials, got .*Sines"),
    ],
)
def test_what_cannot_be_asked_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
