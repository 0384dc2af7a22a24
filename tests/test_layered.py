"""Several flexible layers: the matrices, the objective, the solvers, the module."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from planted import random, seeded
from torch import Tensor, nn

import tenflex
from tenflex import Block, BSpline, Monomial, Problem, Smooth
from tenflex.bases import Basis
from tenflex.factors import Activations, Factors, one_layer, transposed
from tenflex.identify import identify
from tenflex.nn import FlexibleLayer
from tenflex.objective import paratuck
from tenflex.objective.normal_equations import normal_equations
from tenflex.objective.objective import Objective
from tenflex.objective.paratuck import coefficient_system, hidden_map, influence, input_map, output_map
from tenflex.samples import Samples
from tenflex.solvers import (
    BestSoFar,
    Chain,
    ConstrainedALS,
    GaussNewton,
    LayeredALS,
    Leading,
    MultiStart,
    ProjectedLayeredALS,
    Refine,
    Truncate,
    Unweighted,
    default_solver,
    prepare,
)
from tenflex.solvers.base import measured
from tenflex.solvers.published.dejonghe2026 import placed, with_unit_activations

S, M, N = 40, 5, 4
MAPS = {"full": (None, None), "factored inputs": (2, None), "factored both": (2, 2)}
CUBICS = Monomial(3)
maps = pytest.mark.parametrize("widths", MAPS.values(), ids=MAPS)
bases = pytest.mark.parametrize("basis", [Monomial(3), BSpline(6)], ids=repr)
depths = pytest.mark.parametrize("ranks", [(3, 2), (3, 2, 3)], ids=["two", "three"])


def layers(basis: Basis = CUBICS, widths=(None, None), seed: int = 0, ranks=(3, 2), m: int = M, n: int = N) -> Factors:
    """Layers with numbers of moderate size, whose nodes lie about the interval of the basis."""
    generator = seeded(seed)
    q, p = widths

    def draw(*shape: int) -> Tensor:
        return random(generator, *shape) / shape[0] ** 0.5

    first, last = ranks[0], ranks[-1]
    inner = (draw(m, first) / 2,) if q is None else (draw(m, q) / 2, draw(q, first))
    outer = (draw(n, last),) if p is None else (draw(n, p), draw(p, last))
    coefficients, shifts = [draw(r, basis.size) for r in ranks], [draw(r) / 10 for r in ranks]
    activations = tuple(Activations(C, a, basis) for C, a in zip(coefficients, shifts, strict=True))
    hidden = [(draw(after, before).mT / 2,) for before, after in pairwise(ranks)]
    return Factors((inner, *hidden, transposed(outer)), activations, draw(n))


def samples_of(factors: Factors, count: int = S, seed: int = 1) -> Samples:
    x = random(seeded(seed), count, len(factors.V))
    return Samples(x, factors.outputs(x), factors.jacobians(x))


def unrelated(m: int = M, n: int = N, covariance: bool = False) -> Samples:
    generator = seeded(3)
    J = random(generator, S, n, m)
    noise = 1 + random(generator, S, n, m).square() if covariance else None
    return Samples(random(generator, S, m), random(generator, S, n), J, covariance=noise)


# ---- the layers as matrices ----


@bases
@maps
@depths
def test_jacobians_are_those_of_the_outputs(basis, widths, ranks):
    factors, x = layers(basis, widths, ranks=ranks), random(seeded(2), S, M)
    exact = torch.func.vmap(torch.func.jacrev(factors.outputs))(x)
    torch.testing.assert_close(factors.jacobians(x), exact)
    torch.testing.assert_close(factors.upstream(factors.slopes(x)) @ factors.V.mT, exact)


@maps
@depths
def test_tensors_are_all_that_is_solved_for(widths, ranks):
    factors, x = layers(widths=widths, ranks=ranks), random(seeded(2), S, M)
    other = replace(layers(widths=widths, ranks=ranks, seed=9), bias=factors.bias)
    assert torch.equal(other.with_tensors(factors.tensors()).outputs(x), factors.outputs(x))
    back = other.with_flat(factors.flat())
    assert all(map(torch.equal, back.tensors(), factors.tensors()))
    torch.testing.assert_close(back.jacobians(x), factors.jacobians(x), rtol=1e-12, atol=1e-14)  # strides differ
    torch.testing.assert_close(factors.full().outputs(x), factors.outputs(x))


@depths
def test_balancing_and_shifting_keep_what_they_should(ranks):
    factors, x = layers(ranks=ranks), random(seeded(2), S, M)
    even = factors.balanced()
    torch.testing.assert_close(even.outputs(x), factors.outputs(x))
    torch.testing.assert_close(even.W.norm(dim=0), even.activations[-1].coefficients.norm(dim=1))
    by = random(seeded(4), ranks[0])
    moved = x + torch.linalg.lstsq(factors.V.mT, by).solution
    torch.testing.assert_close(factors.shifted(by).outputs(x), factors.outputs(moved))


@pytest.mark.parametrize("ranks", [(3,), (3, 2), (3, 2, 3)])
def test_influence_is_the_energy_of_unit_columns(ranks):
    """The Jacobians that a column of V brings are its own norm times its influence; likewise for W."""
    factors, samples = layers(ranks=ranks), unrelated()
    x = samples.inputs
    for_inner, for_outer = influence(Objective(samples, 1.0), factors)
    for node in range(ranks[0]):
        J = factors.upstream(factors.slopes(x))[..., node : node + 1] @ factors.V[:, node : node + 1].mT
        energy = J.square().sum((1, 2)).mean().sqrt()
        torch.testing.assert_close(for_inner[node] * factors.V[:, node].norm(), energy)
    for node in range(ranks[-1]):
        only = torch.zeros_like(factors.W)
        only[:, node] = factors.W[:, node]
        energy = factors.with_map(-1, only.mT).jacobians(x).square().sum((1, 2)).mean().sqrt()
        torch.testing.assert_close(for_outer[node] * factors.W[:, node].norm(), energy)


# ---- the objective ----


@bases
@maps
@depths
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_value_is_the_dense_one(basis, widths, ranks, exact, weighted):
    samples, factors = unrelated(covariance=weighted), layers(basis, widths, ranks=ranks)
    left = samples.outputs - factors.outputs(samples.inputs)
    left = left - left.mean(0)
    weights = 1 / samples.covariance if weighted else torch.ones_like(samples.jacobians)
    misfit = (weights * (samples.jacobians - factors.jacobians(samples.inputs)).square()).sum()
    value = Objective(samples, 2.0).value(factors, exact)
    torch.testing.assert_close(value[0], misfit / (weights * samples.jacobians.square()).sum())
    centred = samples.outputs - samples.outputs.mean(0)
    torch.testing.assert_close(value[1], left.square().sum() / centred.square().sum())


@bases
@maps
@depths
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_of_the_value_are_exact(basis, widths, ranks, exact, weighted):
    target, factors = Objective(unrelated(covariance=weighted), 2.0), layers(basis, widths, ranks=ranks)

    def loss(*tensors: Tensor) -> Tensor:
        errors = target.value(factors.with_tensors(tensors), exact)
        return errors[0] + 2 * errors[1]

    assert torch.autograd.gradcheck(loss, [one.clone().requires_grad_() for one in factors.tensors()])


@depths
@pytest.mark.parametrize("basis", [Monomial(2), Smooth(BSpline(5), 0.3)], ids=repr)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunk", [1, 10**6])
def test_normal_equations_are_those_of_the_exact_residuals(ranks, basis, weighted, chunk, monkeypatch):
    """`D^T e` is minus half the gradient of the objective."""
    monkeypatch.setattr("tenflex.sums.CHUNK", chunk)
    plain = basis.basis if isinstance(basis, Smooth) else basis
    prepared, _ = prepare(Problem(unrelated(covariance=weighted), ranks, basis, held_out=0))
    state = BestSoFar(LayeredALS(1)).init(prepare(Problem(unrelated(), ranks, plain, held_out=0))[0], seeded(0))
    state = measured(prepared, replace(state, smoothing=0.3), state.factors)
    gram, slope = normal_equations(prepared, state.factors, 0.3)
    factors, objective = state.factors, prepared.fitted
    vector = factors.flat().requires_grad_()
    with torch.enable_grad():
        moving = factors.with_flat(vector)
        total = objective.total(*objective.value(moving, exact=True))
        if prepared.penalty is not None:
            for k, one in enumerate(moving.activations):
                price = torch.einsum("rd,de,re->r", one.coefficients, prepared.penalty, one.coefficients)
                total = total + 0.3 * objective.weight_f * (moving.map(k + 1).square().sum(1) * price).sum()
        (gradient,) = torch.autograd.grad(total, vector)
    torch.testing.assert_close(slope, -gradient / 2, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gram, gram.mT)


@depths
def test_the_gram_matrix_is_the_hessian_where_nothing_is_left(ranks):
    planted = layers(Monomial(2), ranks=ranks)
    prepared, _ = prepare(Problem(samples_of(planted), ranks, Monomial(2), held_out=0))
    state, objective = LayeredALS(1).init(prepared, seeded(0)), prepared.fitted
    here = Samples(objective.inputs, state.factors.outputs(objective.inputs), state.factors.jacobians(objective.inputs))
    prepared = replace(prepared, fitted=Objective(here, 2.0))

    def misfit(vector: Tensor) -> Tensor:
        moved = state.factors.with_flat(vector)
        F = here.outputs - moved.outputs(here.inputs)
        J = here.jacobians - moved.jacobians(here.inputs)
        left = (F - F.mean(0)).square().sum() * prepared.fitted.weight_f
        return left + J.square().sum() * prepared.fitted.weight_j

    half = torch.func.hessian(misfit)(state.factors.flat()) / 2
    torch.testing.assert_close(normal_equations(prepared, state.factors, 0.0)[0], half, rtol=1e-6, atol=1e-8)


# ---- the steps of alternating least squares ----


def prepared_state(ranks: tuple[int, ...], sweeps: int = 2):
    prepared, _ = prepare(Problem(unrelated(), ranks, Monomial(3), held_out=0))
    state = LayeredALS(3).init(prepared, seeded(0))
    for _ in range(sweeps):
        state = LayeredALS(3).step(prepared, state)
    return prepared, state


def frozen_misfit(objective: Objective, factors: Factors, slopes) -> Tensor:
    """The squared error of the Jacobians with all slopes given."""
    return (objective.jacobians.entries - factors.upstream(slopes) @ factors.V.mT).square().sum()


def stationary(loss, at: Tensor) -> bool:
    """Whether the gradient is rounding beside the curvature."""
    gradient, hessian = torch.func.grad(loss)(at), torch.func.hessian(loss)(at).reshape(at.numel(), -1)
    return bool(gradient.norm() < 1e-6 * hessian.norm() * at.norm())


@depths
@pytest.mark.parametrize("chunk", [1, 10**6])
@pytest.mark.parametrize("dense", [0, 2000])
def test_each_linear_map_is_a_least_squares_step(ranks, chunk, dense, monkeypatch):
    """V, and each map between two layers, with the slopes of all nodes held fixed."""
    monkeypatch.setattr("tenflex.sums.CHUNK", chunk)
    monkeypatch.setattr(paratuck, "DENSE", dense)
    prepared, state = prepared_state(ranks)
    factors, objective = state.factors, prepared.fitted
    slopes = factors.slopes(objective.inputs)
    V = input_map(objective, factors, slopes)
    assert stationary(lambda V: frozen_misfit(objective, factors.with_map(0, V), slopes), V)
    for layer in range(1, len(ranks)):
        found = hidden_map(objective, factors, slopes, layer)
        assert stationary(lambda M, k=layer: frozen_misfit(objective, factors.with_map(k, M), slopes), found)


@depths
@pytest.mark.parametrize("chunk", [1, 10**6])
def test_coefficients_before_the_last_are_a_least_squares_step(ranks, chunk, monkeypatch):
    """The slopes of a layer are linear in its coefficients, those of all others held fixed."""
    monkeypatch.setattr("tenflex.sums.CHUNK", chunk)
    prepared, state = prepared_state(ranks)
    factors, objective = state.factors, prepared.fitted
    slopes = factors.slopes(objective.inputs)
    for layer in range(len(ranks) - 1):
        one, t = factors.activations[layer], factors.arguments(objective.inputs)[layer]
        slope = one.basis.derivative(t)
        C = coefficient_system(prepared, factors, slopes, layer).solve(one.coefficients)

        def loss(C: Tensor, layer=layer, slope=slope) -> Tensor:
            moved = (*slopes[:layer], torch.einsum("srd,rd->sr", slope, C), *slopes[layer + 1 :])
            return frozen_misfit(objective, factors, moved)

        assert stationary(loss, C)


@depths
@pytest.mark.parametrize("chunk", [1, 10**6])
def test_the_last_coefficients_and_output_map_are_the_best(ranks, chunk, monkeypatch):
    monkeypatch.setattr("tenflex.sums.CHUNK", chunk)
    prepared, state = prepared_state(ranks)
    factors, objective = state.factors, prepared.fitted
    slopes = factors.slopes(objective.inputs)
    C = coefficient_system(prepared, factors, slopes, len(ranks) - 1).solve(factors.activations[-1].coefficients)
    factors = factors.with_activations(-1, coefficients=C)

    def loss(one: Factors) -> Tensor:
        F = one.outputs(objective.inputs) - one.bias
        F = objective.centred - (F - F.mean(0))
        J = objective.jacobians.entries - one.jacobians(objective.inputs)
        return objective.weight_j * J.square().sum() + objective.weight_f * F.square().sum()

    assert stationary(lambda C: loss(factors.with_activations(-1, coefficients=C)), C)
    G, H, _ = factors.activations[-1].curves(factors.arguments(objective.inputs)[-1])
    W = output_map(prepared, factors, (*slopes[:-1], H), G - G.mean(0), objective.weight_f)
    assert stationary(lambda W: loss(factors.with_map(-1, W.mT)), W)


@depths
def test_sizes_move_between_activations_and_the_map_behind_them(ranks):
    prepared, state = prepared_state(ranks)
    factors, x = state.factors, prepared.fitted.inputs
    for layer in range(len(ranks) - 1):
        larger = 3 * factors.activations[layer].coefficients
        same = with_unit_activations(factors.with_map(layer + 1, factors.map(layer + 1) / 3), larger, layer)
        torch.testing.assert_close(same.outputs(x), factors.outputs(x))
        torch.testing.assert_close(same.activations[layer].coefficients.norm(dim=1), torch.ones(ranks[layer]).double())
        arriving = placed(prepared, factors, layer).arguments(x)[layer]
        low, high = prepared.basis.interval
        assert arriving.min() >= low - 1e-9
        assert arriving.max() <= high + 1e-9


# ---- planted layers ----


@pytest.mark.parametrize("start", [LayeredALS(25), ProjectedLayeredALS(25)], ids=["constrained", "projected"])
def test_alternating_least_squares_leads_near_planted_layers(start):
    planted = layers(Monomial(3), ranks=(3, 2))
    problem = Problem(samples_of(planted, 200), (3, 2), Monomial(3), held_out=0)
    solver = Chain((BestSoFar(start), Refine(100)))
    assert any(tenflex.decouple(problem, solver, seed=seed).jacobian_error < 0.02 for seed in range(3))


def composition(x: Tensor) -> Tensor:
    """Test problem of two layers: quadratics of quadratics."""
    t = x @ torch.tensor([[-2.0, -3.0], [-2.0, 1.0]], dtype=x.dtype)
    h = torch.stack([2 * t[..., 0] + 3 * t[..., 0] ** 2, t[..., 1] ** 2], -1)
    u = h @ torch.tensor([[1.0, -3.0], [2.0, -1.0]], dtype=x.dtype)
    g = torch.stack([-(u[..., 0] ** 2) - 2 * u[..., 0], -3 * u[..., 1] + u[..., 1] ** 2], -1)
    return g @ torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=x.dtype)


@pytest.mark.slow
def test_the_problem_of_two_layers_is_recovered():
    """Both layers up to order, scale and constants: each g_k and h_l is a quadratic, known by its directions."""
    x = 0.5 * (2 * torch.rand(200, 2, generator=seeded(0), dtype=torch.float64) - 1)
    solution = tenflex.decouple(Problem(tenflex.sample(composition, x), (2, 2), Monomial(2)))
    assert solution.jacobian_error < 1e-10
    factors = solution.factors
    V, W = torch.tensor([[-2.0, -3.0], [-2.0, 1.0]]).double(), torch.tensor([[1.0, 2.0], [2.0, 1.0]]).double()
    for found, true in ((factors.V, V), (factors.W, W)):
        cosines = (found / found.norm(dim=0)).mT @ (true / true.norm(dim=0))
        sines = (1 - cosines.square().amax(1)).clamp(min=0).sqrt()
        assert sines.max() < 1e-7
    # U, where the scales of h and of its rows are free: the ratios of u_kl times the curvature of h_l.
    curvature = factors.activations[0].coefficients[:, 1] * factors.V.square().sum(0)
    carried = factors.map(1).mT * curvature
    order = ((factors.V / factors.V.norm(dim=0)).mT @ (V / V.norm(dim=0))).abs().argmax(1)
    true = torch.tensor([[1.0, 2.0], [-3.0, -1.0]]).double() * torch.tensor([3.0, 1.0]) * V.square().sum(0)
    true = true[:, order]
    cosines = (carried / carried.norm(dim=1, keepdim=True)) @ (true / true.norm(dim=1, keepdim=True)).mT
    assert (1 - cosines.square().amax(1)).abs().max() < 1e-8


def test_one_input_and_one_output():
    planted = layers(Monomial(2), ranks=(1, 1), m=1, n=1)
    solution = tenflex.decouple(Problem(samples_of(planted, 60), (1, 1), Monomial(2), held_out=0))
    assert solution.jacobian_error < 1e-8


@pytest.mark.parametrize(
    "solver",
    [
        pytest.param(None, marks=pytest.mark.slow),
        Chain((Leading(LayeredALS(3)), Refine(20))),
        Chain((LayeredALS(3), Truncate(), Refine(20))),
    ],
    ids=["default", "Leading", "Truncate"],
)
def test_factored_maps_have_the_widths_asked_for(solver):
    problem = Problem(unrelated(), (3, 3), Monomial(2), factor=2, output_factor=2)
    factors = tenflex.decouple(problem, solver).factors
    assert [one.shape for one in factors.maps[0]] == [(M, 2), (2, 3)]
    assert [one.shape for one in factors.maps[-1]] == [(3, 2), (2, N)]


def test_the_answer_is_in_the_coordinates_of_the_samples():
    planted = layers()
    samples = samples_of(planted, 100)
    other = Samples(3 * samples.inputs + 5, 100 * samples.outputs - 7, 100 / 3 * samples.jacobians)
    solution = tenflex.decouple(Problem(other, (2, 2), Monomial(2), held_out=0), Chain((LayeredALS(3), Refine(30))))
    F, found = other.outputs, solution.factors.outputs(other.inputs)
    assert ((F - found).norm() / (F - F.mean(0)).norm()).item() == pytest.approx(solution.output_error)
    torch.testing.assert_close(
        solution.factors.jacobians(other.inputs),
        torch.func.vmap(torch.func.jacrev(solution.factors.outputs))(other.inputs),
    )
    assert [one.basis for one in solution.factors.activations] == [Monomial(2), Monomial(2)]


def test_refining_never_raises_the_objective():
    problem = Problem(unrelated(), (3, 2), Smooth(BSpline(6), 0.2), held_out=0)
    history = tenflex.decouple(problem, Chain((LayeredALS(2), Refine(60, tolerance=0)))).history
    errors = [one.jacobian_error + 3 * one.output_error for one in history if one.stage == "refine"]
    assert all(after <= before * (1 + 1e-2) for before, after in pairwise(errors))
    assert errors[-1] < errors[0]


def test_the_same_seed_gives_the_same_bits():
    problem = Problem(unrelated(), (3, 2), Monomial(3))
    one, two = (tenflex.decouple(problem, Chain((LayeredALS(2), Refine(20))), seed=4).factors for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.tensors(), two.tensors(), strict=True))


# ---- the module, and in a network ----


@maps
@bases
@depths
def test_the_module_is_the_factors(basis, widths, ranks):
    factors, x = layers(basis, widths, ranks=ranks), random(seeded(2), S, M)
    module = FlexibleLayer.from_factors(factors)
    torch.testing.assert_close(module(x), factors.outputs(x))
    again = module.factors()
    assert all(torch.equal(a, b) for a, b in zip(again.tensors(), factors.tensors(), strict=True))
    empty = FlexibleLayer.from_dict(module.to_dict())
    empty.double().load_state_dict(module.state_dict())
    assert torch.equal(empty(x), module(x))
    assert empty.to_dict() == module.to_dict()


def test_shapes_of_the_module():
    module = FlexibleLayer.from_factors(layers(m=6, n=4), (2, 3), (4, 1))
    assert module(random(seeded(0), 7, 2, 3)).shape == (7, 4, 1)
    with pytest.raises(ValueError, match=r"the factors map 6 numbers to 4: expected shapes of as many, got \(5,\)"):
        FlexibleLayer.from_factors(layers(m=6, n=4), (5,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": [3]}, r"rank and basis must be lists of one a layer, got \[3\] and"),
        ({"basis": "Monomial"}, "rank and basis must be lists of one a layer"),
        ({"rank": [3, 0]}, "rank must be a whole number of at least 1, got 0"),
        ({"factor": 0}, "factor must be a whole number of at least 1, got 0"),
    ],
)
def test_damaged_settings_are_refused(changes, message):
    saved = FlexibleLayer.from_factors(layers()).to_dict()
    with pytest.raises(ValueError, match=message):
        FlexibleLayer.from_dict({**saved, **changes})


@pytest.mark.parametrize(
    ("rank", "bases", "message"),
    [
        (3, (CUBICS, CUBICS), "expected one basis or 1, one for each layer, got 2"),
        ((3, 2, 1), (CUBICS, CUBICS), "expected one basis or 3, one for each layer, got 2"),
        ((), CUBICS, r"rank must be one number of nodes a layer, got \(\)"),
        ((3, 0), (CUBICS, CUBICS), "rank must be a whole number of at least 1, got 0"),
    ],
)
def test_modules_need_as_many_bases_as_layers(rank, bases, message):
    with pytest.raises(ValueError, match=message):
        FlexibleLayer((3,), (2,), rank, bases)


@pytest.fixture
def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = [nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)]
        return nn.Sequential(*parts).eval()


def test_a_block_becomes_two_layers(network, tmp_path):
    x = torch.randn(200, 8, generator=seeded(1))
    result = tenflex.compress(
        network,
        x,
        {"2:6": Block(rank=(4, 3), factor=3)},
        basis=Monomial(3),
        solver=Chain((Leading(LayeredALS(3)), Refine(10))),
    )
    assert result.report.blocks[0].after.parameters == 3 * (8 + 4) + 4 + 4 * 3 + 4 * 3 + 3 + 3 * 3 + 3 * 3 + 3
    result.save(tmp_path / "small")
    again = tenflex.load(tmp_path / "small", network)
    assert torch.equal(again(x), result.model(x))
    plan = tenflex.Plan.from_dict(result.plan.to_dict())
    assert plan == result.plan
    assert plan.blocks["2:6"].rank == (4, 3)


@pytest.mark.slow
def test_two_layers_are_nearer_than_one_of_as_many_nodes(network):
    x = torch.randn(300, 8, generator=seeded(1))
    two = Chain((MultiStart(BestSoFar(LayeredALS(15)), 2), Refine(300, history=100)))
    errors = [
        tenflex.compress(network, x, {"2:6": Block(rank=rank)}, solver=solver).report.blocks[0].output_error
        for rank, solver in ((6, None), ((6, 6), two))
    ]
    assert errors[1] < 0.9 * errors[0]


# ---- bad input ----


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        ((), r"rank must be one number of nodes a layer, got \(\)"),
        ((2, 0), "rank must be a whole number of at least 1, got 0"),
        ((2, 2.5), "rank must be a whole number of at least 1, got 2.5"),
        ((2, 1000), "rank must be at most"),
        ([2, 2], r"rank must be a whole number of at least 1, got \[2, 2\]"),
    ],
)
def test_bad_ranks_are_refused(rank, message):
    with pytest.raises(ValueError, match=message):
        Problem(unrelated(), rank)


def test_solvers_are_refused_other_numbers_of_layers():
    two, one = Problem(unrelated(), (2, 2)), Problem(unrelated(), 2)
    with pytest.raises(ValueError, match=r"ConstrainedALS cannot find 2 layers, as rank=\(2, 2\) asks for"):
        tenflex.decouple(two, MultiStart(Chain((ConstrainedALS(), Refine()))))
    with pytest.raises(ValueError, match="LayeredALS cannot find 1 layer, as rank=2 asks for: use ConstrainedALS"):
        tenflex.decouple(one, LayeredALS())
    with pytest.raises(ValueError, match="sweeps must be a whole number of at least 1, got 0"):
        LayeredALS(0)
    with pytest.raises(ValueError, match="bend must be a finite number of at least 0, got -1"):
        LayeredALS(bend=-1)


def test_what_knows_one_layer_says_so():
    solution = tenflex.decouple(Problem(unrelated(), (2, 2), Monomial(2)), LayeredALS(1))
    with pytest.raises(ValueError, match="got 2 of 2 and 2 nodes"):
        identify(solution)
    with pytest.raises(ValueError, match="a verb knows one layer, got 2 of 3 and 2 nodes"):
        one_layer(layers(), "a verb knows")
    with pytest.raises(ValueError, match="several layers with Monotone or NonNegative activations cannot be found"):
        tenflex.decouple(Problem(unrelated(), (2, 2), tenflex.bases.Monotone(Monomial(2))))


def test_a_covariance_is_not_ignored():
    problem = Problem(unrelated(covariance=True), (2, 2), Monomial(2))
    with pytest.raises(ValueError, match="LayeredALS does not use the covariance"):
        tenflex.decouple(problem, LayeredALS())
    weighted = Chain((Unweighted(LayeredALS(2)), Refine(20)))
    assert tenflex.decouple(problem, weighted).factors.ranks == (2, 2)
    prepared = prepare(problem)[0]
    assert default_solver(prepared).refusal(prepared) is None


# ---- three layers ----


def test_a_block_becomes_three_layers(network, tmp_path):
    x = torch.randn(200, 8, generator=seeded(1))
    solver = Chain((LayeredALS(3), Refine(10)))
    result = tenflex.compress(network, x, {"2:6": Block(rank=(4, 3, 2))}, basis=Monomial(3), solver=solver)
    size = 8 * 4 + 4 * 3 + 3 * 2 + 2 * 3 + (4 + 3 + 2) * (1 + 3) + 3
    assert result.report.blocks[0].after.parameters == size
    assert result.solutions["2:6"].factors.stored_numbers() == size
    result.save(tmp_path / "small")
    again = tenflex.load(tmp_path / "small", network)
    assert torch.equal(again(x), result.model(x))


def test_three_layers_of_one_node_each_are_found_from_nothing():
    planted = layers(Monomial(2), ranks=(1, 1, 1), m=1, n=1)
    solution = tenflex.decouple(Problem(samples_of(planted, 60), (1, 1, 1), Monomial(2), held_out=0))
    assert solution.jacobian_error < 1e-8


def test_three_planted_layers_are_found_from_nearby():
    planted = layers(Monomial(2), ranks=(3, 2, 3))
    near = planted.with_flat(planted.flat() * (1 + 0.02 * random(seeded(5), planted.flat().numel())))
    problem = Problem(samples_of(planted, 150), (3, 2, 3), Monomial(2), held_out=0)
    solution = tenflex.decouple(problem, GaussNewton(100), start=near)
    assert solution.history[0].jacobian_error ** 0.5 > 1e-2
    assert solution.jacobian_error < 1e-7


@pytest.mark.slow
def test_three_layers_of_quadratics_are_found_from_nothing():
    """Two inputs, three layers of two nodes that bend about as much as they slope, two outputs."""

    def matrix(*rows: list[float]) -> Tensor:
        return torch.tensor(rows, dtype=torch.float64)

    maps = (
        matrix([0.9, 0.3], [-0.4, 0.8]),
        matrix([0.5, -0.3], [0.4, 0.6]),
        matrix([0.6, 0.5], [-0.5, 0.7]),
        matrix([1.0, 0.4], [-0.6, 1.0]),
    )
    bends = matrix([1.0, 0.8], [0.9, -0.7]), matrix([1.0, -0.9], [0.8, 0.7]), matrix([0.9, 0.7], [1.0, -0.8])
    nothing = torch.zeros(2, dtype=torch.float64)
    activations = tuple(Activations(C, nothing, Monomial(2)) for C in bends)
    planted = Factors(tuple((one,) for one in maps), activations, nothing)
    x = 2 * torch.rand(150, 2, generator=seeded(0), dtype=torch.float64) - 1
    samples = Samples(x, planted.outputs(x), planted.jacobians(x))
    factors = tenflex.decouple(Problem(samples, (2, 2, 2), Monomial(2))).factors
    fresh = 2 * torch.rand(400, 2, generator=seeded(1), dtype=torch.float64) - 1
    torch.testing.assert_close(factors.jacobians(fresh), planted.jacobians(fresh), rtol=1e-7, atol=1e-8)
    for found, true in ((factors.V, planted.V), (factors.W, planted.W)):
        cosines = (found / found.norm(dim=0)).mT @ (true / true.norm(dim=0))
        assert (1 - cosines.square().amax(1)).clamp(min=0).sqrt().max() < 1e-7
