"""The path over ranks: which rank it ends at and why, and what a node that is added knows of what is left."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from planted import (
    CUBIC,
    MORE_NODES,
    SKEW,
    SUM_AND_DIFFERENCE,
    Planted,
    direction_error,
    factored,
    random,
    sampled,
    seeded,
    state_at,
)
from torch import Tensor

from tenflex import rank as rank_module
from tenflex.bases import BSpline, Chebyshev, Monomial, Monotone, Smooth, TwoSidedHinge
from tenflex.decouple import inside
from tenflex.factors import Activations, Factors
from tenflex.objective.prepared import NO_LOSS
from tenflex.objective.rest import Rest
from tenflex.problem import Problem
from tenflex.rank import MARGIN, PathEnd, RankPath, RankStep, choose_rank
from tenflex.samples import Samples
from tenflex.solvers import Chain, ConstrainedALS, GaussNewton, Leading, MultiStart, Refine, prepare
from tenflex.solvers.base import penalized
from tenflex.solvers.grow import Grow

FEW = MultiStart(Chain((ConstrainedALS(10), GaussNewton(60, tolerance=1e-3))), 3)
"""A solver for tests that must be fast: fewer starts than the default."""


NOISY = ((4, 4, 4, 0.02), (4, 4, 4, 0.1), (5, 3, 3, 0.02), (5, 3, 3, 0.1))


ONE = Chain((ConstrainedALS(10), GaussNewton(40, tolerance=1e-3)))
"""A single start."""


def noisy(planted: Planted, level: float, seed: int = 0) -> Samples:
    """Samples of a layer with noise, relative to the size of what varies."""
    samples, generator = planted.problem().samples, seeded(100 + seed)
    F, J = samples.outputs, samples.jacobians
    F = F + level * (F - F.mean(0)).square().mean().sqrt() * random(generator, *F.shape)
    return Samples(samples.inputs, F, J + level * J.square().mean().sqrt() * random(generator, *J.shape))


# ---- the rank that is found ----


@pytest.mark.parametrize("planted", [CUBIC, SKEW, MORE_NODES, SUM_AND_DIFFERENCE], ids=["1", "2", "3", "7"])
def test_the_rank_of_the_published_polynomials_is_found(planted):
    path = choose_rank(planted.problem(rank=1), tolerance=1e-6, solver=FEW)
    assert (path.rank,) == planted.factors.ranks
    assert path.end is PathEnd.WITHIN
    assert [step.rank for step in path.steps] == list(range(1, path.rank + 1))
    assert all(step.error > 1e-3 for step in path.steps[:-1])
    assert path.solution is path.steps[-1].solution
    assert path.solution.output_error < 1e-8
    assert direction_error(path.solution.factors, planted.factors) < 1e-7


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_the_rank_of_a_random_layer_is_found(rank):
    planted = factored(4, 3, rank, None, None, seed=rank)
    path = choose_rank(planted.problem(rank=1), tolerance=1e-6, solver=FEW)
    assert path.rank == rank
    assert path.solution.jacobian_error < 1e-7


@pytest.mark.slow
def test_the_rank_of_most_random_layers_is_found():
    """Recovery goes through several starts, and no number of them makes it certain: two of 72 are missed."""
    missed = []
    for m, n in ((3, 3), (4, 4), (5, 3)):
        for rank in range(1, 7):
            for seed in range(4):
                path = choose_rank(factored(m, n, rank, None, None, seed).problem(rank=1), tolerance=1e-6)
                assert path.rank >= rank
                missed += [(m, n, rank, seed)] * (path.rank != rank)
    assert len(missed) <= 3, missed


@pytest.mark.parametrize(
    ("m", "n", "rank", "level"),
    [(3, 3, 2, 0.02), (3, 2, 2, 0.1), *(pytest.param(*case, marks=pytest.mark.slow) for case in NOISY)],
)
def test_noise_ends_the_path_at_the_true_rank(m, n, rank, level):
    """With three tenths held out: half of these choose, and of fewer chance lowers the error of larger ranks."""
    samples = noisy(factored(m, n, rank, None, None, seed=1), level)
    path = choose_rank(Problem(samples, 1, Monomial(3), held_out=0.3), tolerance=1e-3, solver=ONE)
    assert path.end is PathEnd.FLAT
    assert path.rank == rank
    assert len(path.steps) <= rank + 4
    assert level / 3 < path.steps[path.chosen].error < 3 * level


@pytest.mark.parametrize("basis", [BSpline(6), Chebyshev(4), BSpline(6, spacing="quantile"), Smooth(BSpline(6), 1e-6)])
def test_every_basis_takes_part(basis):
    x = random(seeded(2), 100, 3)
    V, W = random(seeded(3), 3, 2) / 2, random(seeded(4), 3, 2)
    t = x @ V
    samples = Samples(x, t.sin() @ W.mT, torch.einsum("nr,sr,mr->snm", W, t.cos(), V))
    path = choose_rank(Problem(samples, 1, basis), tolerance=0.2, most=3, solver=FEW)
    assert path.rank == 2
    assert path.end is PathEnd.WITHIN


@pytest.mark.parametrize("widths", [(2, None), (None, 2), pytest.param((2, 2), marks=pytest.mark.slow)])
def test_factored_layers_grow_within_their_factors(widths):
    planted = factored(6, 5, 3, *widths, seed=3, count=60)
    solver = Chain((Leading(ONE), Refine(20)))
    path = choose_rank(planted.problem(rank=2), tolerance=0.0, most=3, solver=solver)
    assert path.steps[1].error < 0.5 * path.steps[0].error
    factors = path.steps[1].solution.factors
    assert [one.shape for maps in factors.maps for one in maps] == [
        one.shape for maps in planted.factors.maps for one in maps
    ]


def test_shaped_activations_stay_shaped():
    x, V, W = random(seeded(2), 60, 3), random(seeded(3), 3, 2), random(seeded(4), 3, 2)
    t = x @ V
    samples = Samples(x, t.tanh() @ W.mT, torch.einsum("nr,sr,mr->snm", W, 1 - t.tanh() ** 2, V))
    solver = Chain((ConstrainedALS(5), Refine(20)))
    path = choose_rank(Problem(samples, 1, Monotone(BSpline(5))), tolerance=0.0, most=2, solver=solver)
    factors = path.solution.factors
    assert path.rank == 2
    assert factors.slopes(x)[0].min() > -1e-9


# ---- why it ends ----


def test_a_tolerance_out_of_reach_gives_the_best_and_the_reason():
    path = choose_rank(CUBIC.problem(rank=1, basis=Monomial(1)), tolerance=0.01, most=2, solver=FEW)
    assert path.end is PathEnd.MOST
    errors = [step.error for step in path.steps]
    assert min(errors) > 0.01
    assert errors[path.chosen] <= MARGIN * min(errors)
    assert path.chosen == 0  # a linear map needs no second node here, or it would be far better
    assert "the largest rank was reached above the tolerance: allow more nodes" in str(path)


def test_the_first_rank_is_that_of_the_problem():
    path = choose_rank(MORE_NODES.problem(rank=2), tolerance=0.5, solver=FEW)
    assert path.rank == 2
    assert len(path.steps) == 1
    assert not path.steps[0].grown


def test_exact_layers_end_the_path_whatever_the_tolerance():
    path = choose_rank(SUM_AND_DIFFERENCE.problem(rank=1), tolerance=0.0, solver=FEW)
    assert path.rank == 2
    assert path.end is PathEnd.WITHIN


@pytest.mark.parametrize(
    ("errors", "chosen", "flat"),
    [
        ([0.5, 0.1, 0.099, 0.098, 0.0975], 1, True),
        ([0.5, 0.1, 0.099, 0.098, 0.094], 3, False),
        ([0.5, 0.1, 0.1], 1, False),
        ([0.5, float("nan"), 0.2, 0.2], 2, False),
        ([0.5, float("nan"), float("nan"), float("nan")], 0, True),
    ],
)
def test_errors_that_differ_little_count_as_the_same(errors, chosen, flat):
    solution = choose_rank(CUBIC.problem(rank=2), solver=FEW).solution

    def step(error: float) -> RankStep:
        last = replace(solution.history[-1], held_out_error=error**2)
        return RankStep(replace(solution, history=(last,)), False, 0.0)

    steps = [step(error) for error in errors]
    assert rank_module._simplest(steps) == chosen
    assert rank_module._flat(steps) == flat


def test_a_bad_path_is_not_inherited(monkeypatch):
    """Where the node that is added is of no use, the fresh starts of a rank are kept."""
    monkeypatch.setattr(rank_module, "_grown", lambda problem, factors: ConstrainedALS(1))
    path = choose_rank(MORE_NODES.problem(rank=1), tolerance=1e-6, solver=FEW)
    assert path.rank == 3
    assert not path.steps[-1].grown


def test_a_path_needs_no_luck_where_it_grows(monkeypatch):
    """Where the fresh starts are of no use, the nodes that were found are kept, and the new one is found."""
    path = choose_rank(factored(4, 3, 3, None, None, seed=0).problem(rank=1), tolerance=1e-6, solver=ConstrainedALS(1))
    assert path.rank == 3
    assert [step.grown for step in path.steps] == [False, True, True]


def test_the_same_seed_gives_the_same_bits(unchanged_rng):
    problem = CUBIC.problem(rank=1)
    with unchanged_rng():
        one, other = (choose_rank(problem, tolerance=0.01, solver=FEW, seed=3).solution for _ in range(2))
    assert torch.equal(one.factors.V, other.factors.V)
    assert torch.equal(one.factors.only.coefficients, other.factors.only.coefficients)


def test_the_solver_may_depend_on_the_rank():
    asked = []

    def solver(problem):
        asked.append(problem.rank)
        return ConstrainedALS(problem.rank)

    path = choose_rank(MORE_NODES.problem(rank=1), tolerance=1e-6, most=2, solver=solver)
    assert asked == [1, 2]
    assert len(path.steps[0].solution.history) == 2


# ---- what is shown ----


def test_the_table_has_a_row_for_every_rank():
    told = []
    path = choose_rank(CUBIC.problem(rank=1), tolerance=1e-6, solver=FEW, on_progress=told.append)
    lines = str(path).splitlines()
    assert lines[0].split() == ["rank", "validation", "error", "parameters", "seconds"]
    assert re.fullmatch(r"   + 1 +\d\.\d+ +10 +\d+\.\d\d  fresh start", lines[1])
    assert re.fullmatch(r"> + 2 +[\d.]+e-1\d +18 +\d+\.\d\d", lines[2])
    assert lines[3] == "within the tolerance: no smaller rank of the path is (tolerance 1e-06)"
    assert {one.task for one in told} == {"rank 1, fresh", "rank 2, grown"}
    assert path.steps[1].seconds > 0


def test_stored_knots_are_counted():
    """V, W, C, shifts, bias, and two knots of its own."""
    samples = CUBIC.problem().samples
    path = choose_rank(Problem(samples, 1, BSpline(6, spacing="quantile")), tolerance=1e3, solver=ConstrainedALS(1))
    assert path.steps[0].parameters == 2 + 2 + 6 + 1 + 2 + 2


# ---- the node that is added ----


def known(planted: Planted, nodes: list[int], **settings) -> tuple[Problem, object, object]:
    """The problem of a planted layer, and a state at some of its nodes."""
    factors, C, shift = planted.factors, planted.factors.only.coefficients, planted.factors.only.shift
    some = factors.with_map(0, factors.V[:, nodes]).with_map(-1, factors.W[:, nodes].mT)
    some = some.with_activations(0, coefficients=C[nodes], shift=shift[nodes])
    return state_at(planted.problem(**settings), some)


def dense(state, prepared) -> Tensor:
    return prepared.fitted.samples.jacobians - state.factors.jacobians(prepared.fitted.inputs)


def test_what_is_left_is_that_of_the_dense_tensor(generator):
    prepared, state = known(factored(3, 2, 4, None, None, seed=0), [0, 2])
    rest, R = Rest(prepared.fitted, state.factors), dense(state, prepared)
    V, W = random(generator, 3, 3), random(generator, 2, 3)
    torch.testing.assert_close(rest._onto(V, W), torch.einsum("nc,snm,mc->sc", W, R, V))
    H = random(generator, len(R), 3)
    to_v, to_w = rest._unfold(V, W, H)
    torch.testing.assert_close(to_v, torch.einsum("snm,nc,sc->mc", R, W, H))
    torch.testing.assert_close(to_w, torch.einsum("snm,mc,sc->nc", R, V, H))
    torch.testing.assert_close(rest._part(slice(3, 9)), R[3:9])


def test_the_node_that_is_missing_is_found():
    """What is left of a layer without one of its nodes has the directions of that node, and no others."""
    planted = factored(5, 4, 3, None, None, seed=0)
    for missing in range(3):
        prepared, state = known(planted, [node for node in range(3) if node != missing])
        whole = state_at(planted.problem(), planted.factors)[1].factors
        grown = Grow(state.factors).init(prepared, seeded(0)).factors
        for found, true in ((grown.V[:, -1], whole.V[:, missing]), (grown.W[:, -1], whole.W[:, missing])):
            cosine = (found @ true) / (found.norm() * true.norm())
            assert abs(cosine) == pytest.approx(1.0, abs=1e-10)
        after = Grow(state.factors).step(prepared, Grow(state.factors).init(prepared, seeded(0)))
        assert after.jacobian_error < 1e-14
        assert after.output_error < 1e-14


@pytest.mark.parametrize("basis", [BSpline(6), TwoSidedHinge(4), Monomial(3), Smooth(BSpline(7), 0.3)], ids=repr)
def test_a_node_that_is_added_never_raises_the_objective(basis):
    problem = Problem(noisy(factored(4, 3, 4, None, None, seed=0), 0.3), 3, basis)
    prepared, _ = prepare(problem)
    with torch.no_grad():
        state = ConstrainedALS(3).init(replace(prepared, ranks=(2,)), seeded(0))
        grow = Grow(state.factors)
        began = grow.init(prepared, seeded(1))
        after = grow.step(prepared, began)
    assert (began.jacobian_error, began.output_error) == pytest.approx((state.jacobian_error, state.output_error))
    assert began.factors.ranks == (3,)
    assert penalized(prepared, replace(after, smoothing=0.3)) < penalized(prepared, replace(began, smoothing=0.3))


def test_the_gain_of_a_node_is_the_fall_of_the_objective():
    """Alone, with its best coefficients: exactly what adding it to the layer with the others fixed gives."""
    prepared, _ = prepare(Problem(noisy(factored(4, 3, 4, None, None, seed=0), 0.3), 1, Monomial(3)))
    state = ConstrainedALS(1).init(prepared, seeded(0))
    factors = state.factors.with_map(-1, state.factors.W.mT / state.factors.W.norm())
    nothing = factors.with_activations(0, coefficients=torch.zeros_like(factors.only.coefficients))
    gain = Rest(prepared.fitted, nothing).gains(prepared, factors.V, factors.W, factors.only.shift)
    best = Grow(nothing).step(prepared, replace(state, factors=nothing))
    total = 1 + prepared.fitted.coupling
    left = best.jacobian_error + prepared.fitted.coupling * best.output_error
    assert float(gain) == pytest.approx(total - left, rel=1e-6)


@pytest.mark.parametrize("widths", [(None, None), (2, None), (2, 3)])
def test_solutions_are_brought_back_into_their_coordinates(widths):
    """What `expand` leads back from: the same layer, up to what expanding it again shows."""
    planted = factored(5, 4, 3, *widths, seed=1)
    prepared, reduction = prepare(planted.problem())
    within = inside(prepared, reduction, planted.factors)
    assert sum(prepared.fitted.errors(within)) < 1e-20
    again = reduction.expand(within)
    torch.testing.assert_close(again.V, planted.factors.V)
    torch.testing.assert_close(again.outputs(planted.inputs), planted.factors.outputs(planted.inputs))


def test_directions_without_effect_do_not_come_back():
    """An input that the map ignores is dropped before solving, and its weights stay zero on the path."""
    x = random(seeded(0), 100, 3)
    samples = SUM_AND_DIFFERENCE.problem().samples
    F, J = samples.outputs, torch.cat([samples.jacobians, torch.zeros(100, 2, 1, dtype=torch.float64)], 2)
    samples = Samples(torch.cat([samples.inputs, x[:, :1]], 1), F, J)
    assert prepare(Problem(samples, 1, Monomial(3)))[0].fitted.inputs.shape[1] == 2
    path = choose_rank(Problem(samples, 1, Monomial(3)), tolerance=1e-6, solver=FEW)
    assert path.rank == 2
    assert path.solution.factors.V[2].abs().max() < 1e3 * NO_LOSS**0.5


# ---- refusals ----


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({"held_out": 0}, {}, r"ranks are compared on held-out samples, but none of the 50 is held out: pass held_out"),
        ({}, {"tolerance": -0.1}, r"tolerance must be a finite number of at least 0, got -0.1"),
        ({}, {"tolerance": float("nan")}, r"tolerance must be a finite number of at least 0, got nan"),
        ({"rank": 3}, {"most": 2}, r"most must be a whole number of at least 3, got 2"),
        ({}, {"most": 1000}, r"most must be at most 63, which these samples determine, got 1000: pass more inputs"),
    ],
)
def test_what_cannot_be_asked_is_refused(settings, arguments, message):
    with pytest.raises(ValueError, match=message):
        choose_rank(CUBIC.problem(**{"rank": 1, **settings}), **arguments)


def test_other_things_than_problems_and_solvers_are_refused():
    with pytest.raises(TypeError, match=r"expected a tenflex.Problem, got Samples"):
        choose_rank(CUBIC.problem().samples)
    with pytest.raises(TypeError, match=r"expected a solver such as ConstrainedALS\(\), got 3"):
        choose_rank(CUBIC.problem(rank=1), solver=3)


def test_few_samples_hold_none_out():
    samples = CUBIC.problem().samples.select(torch.arange(7))
    with pytest.raises(ValueError, match=r"none of the 7 is held out: pass held_out=0.15 and at least 8 samples"):
        choose_rank(Problem(samples, 1, Monomial(3)))


def test_a_layer_grows_by_one_node():
    prepared, state = known(factored(5, 4, 3, None, None, seed=0), [0])
    with pytest.raises(ValueError, match=r"Grow adds one node to a layer of 1, got a problem of rank 3: set rank to 2"):
        Grow(state.factors).init(prepared, seeded(0))
    with pytest.raises(ValueError, match=r"candidates must be a whole number of at least 1, got 0"):
        Grow(state.factors, 0)


def test_the_path_is_a_value():
    path = choose_rank(CUBIC.problem(rank=2), solver=FEW)
    assert isinstance(path, RankPath)
    with pytest.raises(AttributeError):
        path.chosen = 1


@pytest.mark.slow
def test_the_ranks_of_several_layers_grow_together():
    """Two layers of two quadratics each: one node each is too few."""
    generator = seeded(0)
    maps = ((torch.eye(2, dtype=torch.float64),), (random(generator, 2, 2),), (random(generator, 2, 2),))
    bends = torch.tensor([[1.0, 0.8], [0.9, -0.7]], dtype=torch.float64)
    activations = tuple(Activations(C, torch.zeros(2).double(), Monomial(2)) for C in (bends, bends.flip(0)))
    planted = Factors(maps, activations, torch.zeros(2).double())
    samples = sampled(planted, random(seeded(1), 40, 2) / 2)
    path = choose_rank(Problem(samples, rank=(1, 1), basis=Monomial(2)), tolerance=1e-5)
    assert path.rank == (2, 2)
    assert [step.rank for step in path.steps] == [(1, 1), (2, 2)]
    assert not any(step.grown for step in path.steps)
    assert "2-2" in str(path)
    assert path.steps[1].parameters == path.solution.factors.stored_numbers()
