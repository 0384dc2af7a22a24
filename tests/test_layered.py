"""Two flexible layers: the matrices, the objective, the solvers, the module."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from planted import random, seeded
from torch import Tensor, nn

import tenflex
from tenflex import Block, BSpline, Chain, ConstrainedALS, Monomial, Problem, Refine, Smooth
from tenflex.bases import Basis
from tenflex.identify import identify
from tenflex.layered import LayeredFactors, downstream, one_layer
from tenflex.nn import FlexibleLayers, layer_from_dict, layer_from_factors
from tenflex.objective.derivatives import flat, with_flat
from tenflex.objective.normal_equations import normal_equations
from tenflex.objective.objective import Objective
from tenflex.samples import Samples
from tenflex.solvers import (
    BestSoFar,
    LayeredALS,
    Leading,
    MultiStart,
    Truncate,
    Unweighted,
    default_solver,
    layered_als,
    prepare,
)
from tenflex.solvers.base import measured

S, M, N, R1, R2 = 40, 5, 4, 3, 2
MAPS = {"full": (None, None), "factored inputs": (2, None), "factored both": (2, 2)}
CUBICS = Monomial(3)
maps = pytest.mark.parametrize("widths", MAPS.values(), ids=MAPS)
bases = pytest.mark.parametrize("basis", [Monomial(3), BSpline(6)], ids=repr)


def layers(basis: Basis = CUBICS, widths=(None, None), seed: int = 0, ranks=(R1, R2), m: int = M, n: int = N):
    """Layers with numbers of moderate size, whose nodes lie about the interval of the basis."""
    generator = seeded(seed)
    (q, p), (r1, r2) = widths, ranks

    def draw(*shape: int) -> Tensor:
        return random(generator, *shape) / shape[0] ** 0.5

    inner = (draw(m, r1) / 2,) if q is None else (draw(m, q) / 2, draw(q, r1))
    outer = (draw(n, r2),) if p is None else (draw(n, p), draw(p, r2))
    d = basis.size
    C = draw(r1, d), draw(r2, d)
    shifts = draw(r1) / 10, draw(r2) / 10
    return LayeredFactors(inner, draw(r2, r1) / 2, outer, C, shifts, draw(n), (basis, basis))


def samples_of(factors: LayeredFactors, count: int = S, seed: int = 1) -> Samples:
    x = random(seeded(seed), count, len(factors.inner[0]))
    return Samples(x, factors.outputs(x), factors.jacobians(x))


def unrelated(m: int = M, n: int = N, covariance: bool = False) -> Samples:
    generator = seeded(3)
    J = random(generator, S, n, m)
    noise = 1 + random(generator, S, n, m).square() if covariance else None
    return Samples(random(generator, S, m), random(generator, S, n), J, covariance=noise)


# ---- the layers as matrices ----


@bases
@maps
def test_jacobians_are_those_of_the_outputs(basis, widths):
    factors, x = layers(basis, widths), random(seeded(2), S, M)
    exact = torch.func.vmap(torch.func.jacrev(factors.outputs))(x)
    torch.testing.assert_close(factors.jacobians(x), exact)
    first, second = factors.slopes(x)
    torch.testing.assert_close(downstream(factors.W, second, factors.U, first) @ factors.V.mT, exact)


@maps
def test_tensors_are_all_that_is_solved_for(widths):
    factors, x = layers(widths=widths), random(seeded(2), S, M)
    again = replace(layers(widths=widths, seed=9), bias=factors.bias).with_tensors(factors.tensors())
    assert torch.equal(again.outputs(x), factors.outputs(x))
    assert torch.equal(with_flat(layers(widths=widths, seed=9), flat(factors)).jacobians(x), factors.jacobians(x))


def test_balancing_and_shifting_keep_what_they_should():
    factors, x = layers(), random(seeded(2), S, M)
    torch.testing.assert_close(factors.balanced().outputs(x), factors.outputs(x))
    even = factors.balanced()
    torch.testing.assert_close(even.W.norm(dim=0), even.coefficients[1].norm(dim=1))
    by = random(seeded(4), R1)
    moved = x + torch.linalg.lstsq(factors.V.mT, by).solution
    torch.testing.assert_close(factors.shifted(by).outputs(x), factors.outputs(moved))


def test_influence_is_the_energy_of_unit_columns():
    """The Jacobians that a column of V brings are its own norm times its influence; likewise for W."""
    factors, x = layers(), random(seeded(2), S, M)
    of_inner, of_outer = factors.influence(x)
    for node in range(R1):
        only = torch.zeros_like(factors.V)
        only[:, node] = factors.V[:, node]
        first, second = factors.slopes(x)
        J = downstream(factors.W, second, factors.U, first) @ only.mT
        energy = J.square().sum((1, 2)).mean().sqrt()
        torch.testing.assert_close(of_inner[node] * factors.V[:, node].norm(), energy)
    for node in range(R2):
        only = torch.zeros_like(factors.W)
        only[:, node] = factors.W[:, node]
        energy = replace(factors, outer=(only,)).jacobians(x).square().sum((1, 2)).mean().sqrt()
        torch.testing.assert_close(of_outer[node] * factors.W[:, node].norm(), energy)


# ---- the objective ----


@bases
@maps
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_value_is_the_dense_one(basis, widths, exact, weighted):
    samples, factors = unrelated(covariance=weighted), layers(basis, widths)
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
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_of_the_value_are_exact(basis, widths, exact, weighted):
    target, factors = Objective(unrelated(covariance=weighted), 2.0), layers(basis, widths)

    def loss(*tensors: Tensor) -> Tensor:
        errors = target.value(factors.with_tensors(tensors), exact)
        return errors[0] + 2 * errors[1]

    assert torch.autograd.gradcheck(loss, [one.clone().requires_grad_() for one in factors.tensors()])


@pytest.mark.parametrize("basis", [Monomial(2), Smooth(BSpline(5), 0.3)], ids=repr)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunk", [1, 10**6])
def test_normal_equations_are_those_of_the_exact_residuals(basis, weighted, chunk, monkeypatch):
    """`D^T e` is minus half the gradient of the objective."""
    monkeypatch.setattr("tenflex.sums.CHUNK", chunk)
    plain = basis.basis if isinstance(basis, Smooth) else basis
    prepared, _ = prepare(Problem(unrelated(covariance=weighted), (R1, R2), basis, held_out=0))
    state = BestSoFar(LayeredALS(1)).init(prepare(Problem(unrelated(), (R1, R2), plain, held_out=0))[0], seeded(0))
    state = measured(prepared, replace(state, smoothing=0.3), with_dimensions(state.factors, prepared))
    gram, slope = normal_equations(prepared, state)
    factors, objective = state.factors, prepared.fitted
    vector = flat(factors).requires_grad_()
    with torch.enable_grad():
        errors = objective.value(with_flat(factors, vector), exact=True)
        total = errors[0] + objective.coupling * errors[1]
        if prepared.penalty is not None:
            for C, carrying in zip(with_flat(factors, vector).coefficients, (factors.U, factors.W), strict=True):
                price = torch.einsum("rd,de,re->r", C, prepared.penalty, C)
                total = total + 0.3 * objective.weight_f * (carrying.square().sum(0) * price).sum()
        (gradient,) = torch.autograd.grad(total, vector)
    torch.testing.assert_close(slope, -gradient / 2, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gram, gram.mT)


def with_dimensions(factors: LayeredFactors, prepared) -> LayeredFactors:
    """The layers with as many inputs as the problem: a covariance keeps it from dropping and turning directions."""
    assert len(factors.V) == prepared.fitted.inputs.shape[1]
    return factors


def test_the_gram_matrix_is_the_hessian_where_nothing_is_left():
    planted = layers(Monomial(2))
    prepared, _ = prepare(Problem(samples_of(planted), (R1, R2), Monomial(2), held_out=0))
    state = LayeredALS(1).init(prepared, seeded(0))
    objective = prepared.fitted
    here = samples_of(replace(state.factors, bias=objective.mean))
    here = Samples(objective.inputs, state.factors.outputs(objective.inputs), state.factors.jacobians(objective.inputs))
    prepared = replace(prepared, fitted=Objective(here, 2.0))

    def misfit(vector: Tensor) -> Tensor:
        moved = with_flat(state.factors, vector)
        F = here.outputs - moved.outputs(here.inputs)
        J = here.jacobians - moved.jacobians(here.inputs)
        left = (F - F.mean(0)).square().sum() * prepared.fitted.weight_f
        return left + J.square().sum() * prepared.fitted.weight_j

    half = torch.func.hessian(misfit)(flat(state.factors)) / 2
    torch.testing.assert_close(normal_equations(prepared, state)[0], half, rtol=1e-6, atol=1e-8)


# ---- the steps of alternating least squares ----


def prepared_state(sweeps: int = 2):
    prepared, _ = prepare(Problem(unrelated(), (R1, R2), Monomial(3), held_out=0))
    state = LayeredALS(3).init(prepared, seeded(0))
    for _ in range(sweeps):
        state = LayeredALS(3).step(prepared, state)
    return prepared, state


def frozen_misfit(prepared, V: Tensor, U: Tensor, W: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The squared error of the Jacobians with all slopes given."""
    return (prepared.fitted.jacobians.entries - downstream(W, second, U, first) @ V.mT).square().sum()


def stationary(loss, at: Tensor) -> bool:
    """Whether the gradient is rounding beside the curvature."""
    gradient, hessian = torch.func.grad(loss)(at), torch.func.hessian(loss)(at).reshape(at.numel(), -1)
    return bool(gradient.norm() < 1e-6 * hessian.norm() * at.norm())


@pytest.mark.parametrize("chunk", [1, 10**6])
@pytest.mark.parametrize("dense", [0, 2000])
def test_each_step_is_a_least_squares_step(chunk, dense, monkeypatch):
    monkeypatch.setattr("tenflex.sums.CHUNK", chunk)
    monkeypatch.setattr(layered_als, "DENSE", dense)
    prepared, state = prepared_state()
    factors, x = state.factors, prepared.fitted.inputs
    first, second = factors.slopes(x)
    # V: the placed one differs by the scale of its columns, which `placed_first` chose.
    after = layered_als.with_input_map(prepared, factors, second)
    scale = torch.linalg.lstsq(
        downstream(factors.W, second, factors.U, first).flatten(0, 1),
        prepared.fitted.jacobians.entries.flatten(0, 1),
    ).solution.mT
    torch.testing.assert_close(after.V / after.V.norm(dim=0), scale / scale.norm(dim=0), rtol=1e-6, atol=1e-8)
    # C: the slopes of the first layer are linear in it.
    factors = after
    after = layered_als.with_first_coefficients(prepared, factors, second, 0.0)
    slope = factors.bases[0].derivative(factors.project(x))
    U, C = factors.U, after.coefficients[0] * (after.U / factors.U).mean(0)[:, None]
    loss = lambda C: frozen_misfit(  # noqa: E731
        prepared, factors.V, U, factors.W, torch.einsum("srd,rd->sr", slope, C), second
    )
    assert stationary(loss, C)
    # U: rows are rescaled by where the second basis places them.
    factors = after
    first = factors.slopes(x)[0]
    after = layered_als.with_hidden_map(prepared, factors, second)
    ratio = (after.U / after.U.norm(dim=1, keepdim=True)).sign()
    assert ratio.abs().all()
    free = layered_als.dense_hidden if dense else layered_als.iterated_hidden
    right = torch.einsum("sk,sl,nk,snl->kl", second, first, factors.W, prepared.fitted.jacobians.entries @ factors.V)
    solved = free(factors, first, second, right)
    assert stationary(lambda U: frozen_misfit(prepared, factors.V, U, factors.W, first, second), solved)
    torch.testing.assert_close(
        after.U / after.U.norm(dim=1, keepdim=True), solved / solved.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("chunk", [1, 10**6])
def test_the_last_coefficients_and_output_map_are_the_best(chunk, monkeypatch):
    monkeypatch.setattr("tenflex.sums.CHUNK", chunk)
    prepared, state = prepared_state()
    factors, objective = state.factors, prepared.fitted
    t = factors.between(objective.inputs)
    value = factors.bases[1].value(t)
    activated = layered_als.Activated(value - value.mean(0), factors.bases[1].derivative(t))
    C = layered_als.second_system(prepared, factors, activated).solve(factors.coefficients[1])
    factors = replace(factors, coefficients=(factors.coefficients[0], C))

    def loss(one: LayeredFactors) -> Tensor:
        F = one.outputs(objective.inputs) - one.bias
        F = objective.centred - (F - F.mean(0))
        J = objective.jacobians.entries - one.jacobians(objective.inputs)
        return objective.weight_j * J.square().sum() + objective.weight_f * F.square().sum()

    assert stationary(lambda C: loss(replace(factors, coefficients=(factors.coefficients[0], C))), C)
    W = layered_als.output_map(prepared, factors, activated, 0.0)
    assert stationary(lambda W: loss(replace(factors, outer=(W,))), W)


# ---- planted layers ----


def test_alternating_least_squares_leads_near_planted_layers():
    planted = layers(Monomial(3), ranks=(3, 2))
    problem = Problem(samples_of(planted, 200), (3, 2), Monomial(3), held_out=0)
    errors = [
        tenflex.decouple(problem, Chain((BestSoFar(LayeredALS(25)), Refine(100))), seed=seed).jacobian_error
        for seed in range(3)
    ]
    assert min(errors) < 0.02


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
    curvature = factors.coefficients[0][:, 1] * factors.V.square().sum(0)
    carried = factors.U * curvature
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
    assert [one.shape for one in factors.inner] == [(M, 2), (2, 3)]
    assert [one.shape for one in factors.outer] == [(N, 2), (2, 3)]


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
    assert solution.factors.bases == (Monomial(2), Monomial(2))


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


@pytest.mark.parametrize("widths", MAPS.values(), ids=MAPS)
@pytest.mark.parametrize("basis", [Monomial(3), BSpline(6)], ids=repr)
def test_the_module_is_the_factors(basis, widths):
    factors, x = layers(basis, widths), random(seeded(2), S, M)
    module = layer_from_factors(factors)
    assert isinstance(module, FlexibleLayers)
    torch.testing.assert_close(module(x), factors.outputs(x))
    again = module.factors()
    assert all(torch.equal(a, b) for a, b in zip(again.tensors(), factors.tensors(), strict=True))
    empty = layer_from_dict(module.to_dict())
    empty.double().load_state_dict(module.state_dict())
    assert torch.equal(empty(x), module(x))
    assert empty.to_dict() == module.to_dict()


def test_shapes_of_the_module():
    module = layer_from_factors(layers(m=6, n=4), (2, 3), (4, 1))
    assert module(random(seeded(0), 7, 2, 3)).shape == (7, 4, 1)
    with pytest.raises(ValueError, match=r"the factors map 6 numbers to 4: expected shapes of as many, got \(5,\)"):
        layer_from_factors(layers(m=6, n=4), (5,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": [3]}, r"rank must be a list of two, one a layer, got \[3\]"),
        ({"basis": "Monomial"}, "basis must be a list of two"),
        ({"rank": [3, 0]}, "rank must be a whole number of at least 1, got 0"),
        ({"factor": 0}, "factor must be a whole number of at least 1, got 0"),
    ],
)
def test_damaged_settings_are_refused(changes, message):
    saved = layer_from_factors(layers()).to_dict()
    with pytest.raises(ValueError, match=message):
        layer_from_dict({**saved, **changes})


@pytest.mark.parametrize(
    ("rank", "bases", "message"),
    [
        (3, (CUBICS, CUBICS), "rank must be two, one a layer, got 3: use FlexibleLayer for one layer"),
        ((3, 2, 1), (CUBICS, CUBICS), r"rank must be two, one a layer, got \(3, 2, 1\)"),
        ((3, 2), CUBICS, r"bases must be two, one a layer, got Monomial\(degree=3\)"),
        ((3, 0), (CUBICS, CUBICS), "rank must be a whole number of at least 1, got 0"),
    ],
)
def test_modules_of_other_than_two_layers_are_refused(rank, bases, message):
    with pytest.raises(ValueError, match=message):
        FlexibleLayers((3,), (2,), rank, bases)


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
        ((1, 2, 3), r"rank must be one number of nodes, or two for two layers, got \(1, 2, 3\)"),
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
    with pytest.raises(ValueError, match="got two of 2 and 2 nodes"):
        identify(solution)
    with pytest.raises(ValueError, match="a verb knows one layer, got two of 3 and 2 nodes"):
        one_layer(layers(), "a verb knows")
    with pytest.raises(ValueError, match="two layers with Monotone or NonNegative activations cannot be found"):
        tenflex.decouple(Problem(unrelated(), (2, 2), tenflex.bases.Monotone(Monomial(2))))


def test_a_covariance_is_not_ignored():
    problem = Problem(unrelated(covariance=True), (2, 2), Monomial(2))
    with pytest.raises(ValueError, match="LayeredALS does not use the covariance"):
        tenflex.decouple(problem, LayeredALS())
    weighted = Chain((Unweighted(LayeredALS(2)), Refine(20)))
    assert tenflex.decouple(problem, weighted).factors.rank == (2, 2)
    assert any(isinstance(part, Unweighted) for part in default_solver(prepare(problem)[0]).parts())
