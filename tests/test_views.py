"""Views of Jacobians in place of whole ones: as an objective, as samples, as a start."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from planted import layer as planted_layer
from planted import random, seeded
from torch import Tensor, nn

from tenflex.bases import BSpline, Monomial, Monotone, Smooth
from tenflex.compress import compress
from tenflex.coordinates import PerOutput, Sensitivity, Standardize, Whiten
from tenflex.decouple import decouple
from tenflex.factors import Activations, Factors
from tenflex.objective.coefficients import Activated, CoefficientSystem
from tenflex.objective.equal import EqualTerm
from tenflex.objective.objective import Objective
from tenflex.objective.sketch import sketched_gauss_newton
from tenflex.objective.tensor import JacobianTensor
from tenflex.objective.viewed import ViewTerm
from tenflex.planning.plan import Block, Plan
from tenflex.problem import Problem, determined
from tenflex.reduction import Reduction
from tenflex.samples import Samples
from tenflex.sampling.jacobian import sample, whole_jacobians
from tenflex.sampling.memory import Budget
from tenflex.sampling.views import Aim, directions_like, pilot_outputs, products, views_for
from tenflex.sampling.views import sample_views as sampled
from tenflex.solution import load_solution
from tenflex.solvers import (
    Chain,
    ConstrainedALS,
    GaussNewton,
    JacobianCPD,
    LayeredALS,
    Leading,
    Lifted,
    MultiStart,
    Refine,
    SketchedNewton,
    default_solver,
    prepare,
)

S, M, N, R = 9, 5, 4, 3


def layers(generator, deep: bool = False) -> Factors:
    basis = Monomial(3)
    inner = (random(generator, M, 2), random(generator, 2, R))
    one = Activations(random(generator, R, 3), random(generator, R), basis)
    if not deep:
        return Factors((inner, (random(generator, R, N),)), (one,), random(generator, N))
    maps = inner, (0.3 * random(generator, R, 2),), (random(generator, 2, N),)
    return Factors(maps, (one, Activations(random(generator, 2, 3), random(generator, 2), basis)), random(generator, N))


def whole_samples(generator, count: int = S) -> Samples:
    return Samples(random(generator, count, M), random(generator, count, N), random(generator, count, N, M))


def seen(samples: Samples, directions: Tensor) -> Samples:
    """The same samples through views."""
    return replace(samples, jacobians=directions @ samples.jacobians, directions=directions)


def frames(count: int, k: int) -> Tensor:
    return directions_like(torch.zeros(N, dtype=torch.float64), count, k, seeded(3))


both = pytest.mark.parametrize("deep", [False, True], ids=["one layer", "two layers"])


def sample_views(network, x: Tensor, y: Tensor, k: int | None, **settings) -> Samples:
    return sampled(network, x, y, Budget(2**30, y.shape[1], x.shape[1], k), **settings)


# ---- the objective ----


@both
@pytest.mark.parametrize("exact", [False, True])
def test_as_many_orthogonal_views_as_outputs_are_whole_jacobians(deep: bool, exact: bool) -> None:
    samples, factors = whole_samples(seeded(0)), layers(seeded(1), deep)
    whole, views = (Objective(one, 3.0) for one in (samples, seen(samples, frames(S, N))))
    torch.testing.assert_close(views.value(factors, exact)[0], whole.value(factors, exact)[0])
    assert views.errors(factors) == pytest.approx(whole.errors(factors))


@both
def test_the_mean_over_directions_is_the_error_of_whole_jacobians(deep: bool) -> None:
    """Over the axes, stretched so that the mean of u u^T is the identity."""
    samples, factors = whole_samples(seeded(0)), layers(seeded(1), deep)
    axes = N**0.5 * torch.eye(N, dtype=torch.float64)
    seen_along = [Objective(seen(samples, u.expand(S, 1, N).contiguous()), 1.0) for u in axes]
    errors = sum(float(one.value(factors)[0] * one.size_j) for one in seen_along) / N
    expected = samples.jacobians - factors.jacobians(samples.inputs)
    assert errors == pytest.approx(float(expected.square().sum()))


def test_directions_are_orthogonal_and_their_second_moment_is_the_identity() -> None:
    u = directions_like(torch.zeros(6, dtype=torch.float64), 4000, 2, seeded(0))
    torch.testing.assert_close(u @ u.mT, 6 * torch.eye(2, dtype=u.dtype).expand(4000, 2, 2))
    moment = (u.mT @ u).mean(0) / 2
    assert (moment - torch.eye(6, dtype=u.dtype)).abs().max() < 0.1
    assert u.mean((0, 1)).abs().max() < 0.1


@both
@pytest.mark.parametrize("exact", [False, True])
def test_gradients_are_those_of_residuals(deep: bool, exact: bool) -> None:
    samples, factors = seen(whole_samples(seeded(0)), frames(S, 2)), layers(seeded(1), deep)
    objective = Objective(samples, 0.0)
    tensors = [one.clone().requires_grad_() for one in factors.tensors()]
    found = torch.autograd.grad(objective.value(factors.with_tensors(tensors), exact)[0], tensors)

    def error(*tensors: Tensor) -> Tensor:
        model = torch.func.vmap(torch.func.jacrev(lambda x: factors.with_tensors(tensors).outputs(x[None])[0]))
        left = samples.jacobians - samples.directions @ model(samples.inputs)
        return left.square().sum() / samples.jacobians.square().sum()

    expected = torch.func.grad(error, argnums=tuple(range(len(tensors))))(*factors.tensors())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("k", [1, N])
def test_every_step_is_a_minimum(k: int) -> None:
    generator = seeded(0)
    samples, u = whole_samples(generator, 40), frames(40, k)
    term = ViewTerm(u, u @ samples.jacobians)
    V, W, H = random(generator, M, R), random(generator, N, R), random(generator, 40, R)
    gram, right, weight = torch.eye(R, dtype=V.dtype), random(generator, N, R), torch.tensor(0.7, dtype=V.dtype)
    error = lambda V, W, H: term.misfit((V,), W, H, exact=True)  # noqa: E731

    def outputs(W: Tensor) -> Tensor:
        return weight * error(V, W, H) + (W @ gram * W).sum() - 2 * (right * W).sum()

    minima = {
        "V": (lambda V: error(V, W, H), term.input_map(V, W, H)),
        "H": (lambda H: error(V, W, H), term.slopes(V, W)),
        "W": (outputs, term.output_map(V, W, H, weight, gram, right)),
    }
    for name, (value, at) in minima.items():
        slope = torch.func.grad(value)(at)
        assert slope.abs().max() < 1e-5 * torch.func.grad(value)(at + 1).abs().max(), name


def test_the_coefficients_equations_are_those_of_whole_jacobians() -> None:
    generator = seeded(0)
    samples, u = whole_samples(generator), frames(S, N)
    V, W = random(generator, M, R), random(generator, N, R)
    activated = Activated(random(generator, S, R, 2), random(generator, S, R, 2))
    nothing, none = torch.zeros(R, R, dtype=V.dtype), torch.zeros(S, R, dtype=V.dtype)
    system, weight = CoefficientSystem(activated, nothing, nothing, none, none), torch.tensor(0.7, dtype=V.dtype)
    whole = EqualTerm(JacobianTensor(samples.jacobians)).joined(system, V, W, weight)
    views = ViewTerm(u, u @ samples.jacobians).joined(system, V, W, weight)
    torch.testing.assert_close(views.dense(), whole.dense())
    torch.testing.assert_close(views.right(), whole.right())


def test_with_outputs_only_the_jacobians_cost_nothing() -> None:
    samples, factors = whole_samples(seeded(0)), layers(seeded(1))
    whole, views = (Objective(one, 3.0) for one in (samples, seen(samples, frames(S, N)[:, :0])))
    assert views.errors(factors) == (0.0, pytest.approx(whole.errors(factors)[1]))


def test_a_descent_on_outputs_alone_never_holds_all_activations(monkeypatch) -> None:
    """The error of Jacobians is nought then, which asks for residuals elsewhere; here nothing cancels."""
    samples, factors = whole_samples(seeded(0)), layers(seeded(1))
    alone, kind = Objective(seen(samples, frames(S, N)[:, :0]), 2.0), type(factors.only.basis)
    expected = alone.total(*alone.value(factors, exact=True))
    rows, curves = [], kind.curves
    monkeypatch.setattr("tenflex.sums.CHUNK", 16 * N * 4)
    monkeypatch.setattr(kind, "curves", lambda self, t, c: rows.append(len(t)) or curves(self, t, c))
    torch.testing.assert_close(alone.loss(factors, exact=True), expected)
    assert 0 < max(rows) < S


def test_a_sketch_sees_what_the_samples_hold() -> None:
    """With all outputs in view, and so many rows that chance is small, the two estimates are alike."""
    x = random(seeded(0), 60, M)
    factors = layers(seeded(1)).full()
    samples = Samples(x, factors.outputs(x), factors.jacobians(x) + random(seeded(3), 60, N, M))
    problems = [
        prepare(Problem(one, R, Monomial(3), held_out=0, coupling=0.0))[0]
        for one in (samples, seen(samples, frames(60, N)))
    ]
    factors = layers(seeded(2)).full()
    grams = [sketched_gauss_newton(one, factors, 0.0, 6000, seeded(4)) for one in problems]
    sizes = [torch.linalg.eigvalsh(one).amax() for one in grams]
    assert sizes[0] / sizes[1] == pytest.approx(1, rel=0.1)


# ---- samples ----


class Network(nn.Module):
    def __init__(self, m: int = 6, n: int = 4, width: int = 3) -> None:
        super().__init__()
        generator = seeded(0)
        self.V = nn.Parameter(random(generator, m, width) / m**0.5, requires_grad=False)
        self.W = nn.Parameter(random(generator, width, n), requires_grad=False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        t = x @ self.V
        return (t**3 + t**2 - t) @ self.W


def inputs(count: int = 300, m: int = 6) -> Tensor:
    return random(seeded(5), count, m)


def test_products_are_those_with_whole_jacobians() -> None:
    network, x = Network(), inputs(7)
    u = random(seeded(6), 7, 3, 4)
    torch.testing.assert_close(products(network, x, u), u @ whole_jacobians(network, x, 4))


@pytest.mark.parametrize("rule", [Sensitivity(), Whiten(), PerOutput(), PerOutput(Sensitivity())], ids=repr)
def test_views_are_products_in_reduced_coordinates(rule) -> None:
    network, x = Network(), inputs()
    samples = sample_views(network, x, network(x), 2, coordinates=rule)
    reduction = samples.reduction
    J = reduction.jacobians(whole_jacobians(network, samples.original_inputs, 4))
    torch.testing.assert_close(samples.jacobians, samples.directions @ J)
    torch.testing.assert_close(samples.original_outputs, network(samples.original_inputs))
    pilot = samples.pilot
    assert pilot is not None
    back = reduction.mean + pilot.inputs @ reduction.up.mT
    torch.testing.assert_close(pilot.jacobians, reduction.jacobians(whole_jacobians(network, back, 4)))


def test_whole_jacobians_are_reduced_row_by_row() -> None:
    network, x = Network(), inputs()
    samples = sample_views(network, x, network(x), None)
    reduction = samples.reduction
    assert samples.views is None
    assert samples.pilot is None
    expected = reduction.jacobians(whole_jacobians(network, samples.original_inputs, 4))
    torch.testing.assert_close(samples.jacobians, expected)


def test_samples_pass_a_network_together_however_wide_they_are(monkeypatch) -> None:
    monkeypatch.setattr("tenflex.sums.CHUNK", 32)
    passed = []

    class Listening(Network):
        def forward(self, x: Tensor) -> Tensor:
            passed.append(len(x))
            return super().forward(x)

    network, x = Listening(), inputs(256)
    sample_views(network, x, Network()(x), 1)
    assert min(passed) >= 26  # of 218 fitted samples, and of all
    assert max(passed) == 64


def test_reducing_views_is_reducing_jacobians() -> None:
    samples = sample(Network(), inputs(40))
    u = directions_like(samples.outputs[0], 40, 2, seeded(0))
    reduction = Standardize().choose(samples.inputs, samples.outputs)
    expected = u @ samples.reduced(reduction).jacobians
    found = seen(samples, u).reduced(reduction, torch.arange(10, 20))
    torch.testing.assert_close(found.jacobians, expected[10:20])
    with pytest.raises(ValueError, match="one unit for all outputs"):
        seen(samples, u).reduced(PerOutput().choose(samples.inputs, samples.outputs, samples.jacobians))


def test_very_many_outputs_have_no_matrix(monkeypatch) -> None:
    """The reduction is the same with the diagonals of its output maps as with matrices."""
    samples = sample(Network(), inputs(40))
    whole = Standardize().choose(samples.inputs, samples.outputs)
    monkeypatch.setattr("tenflex.coordinates.base.WIDEST_OUTPUTS", 3)
    monkeypatch.setattr("tenflex.sampling.views.WIDEST_OUTPUTS", 3)
    wide = Standardize().choose(samples.inputs, samples.outputs)
    assert wide.output_down.ndim == wide.output_up.ndim == 1
    factors = planted_layer(random(seeded(0), 6, 2), random(seeded(1), 4, 2), random(seeded(2), 2, 3), *TWO)
    for name, value in {
        "outputs": lambda one: one.outputs(samples.outputs),
        "back": lambda one: one.original_outputs(samples.outputs),
        "jacobians": lambda one: one.jacobians(samples.jacobians),
        "expanded": lambda one: one.expand(factors).outputs(samples.inputs),
        "narrowed": lambda one: one.narrow(factors).outputs(samples.inputs),
    }.items():
        torch.testing.assert_close(value(wide), value(whole), msg=name)
    network, x = Network(), inputs()
    found = sample_views(network, x, network(x), 1)
    assert found.reduction.output_down.ndim == 1
    solution = decouple(Problem(found, 3, Monomial(3)))
    assert solution.output_error < 1e-6
    assert solution.errors.fitted.outputs < 1e-6


TWO = torch.zeros(2, dtype=torch.float64), torch.zeros(4, dtype=torch.float64), Monomial(3)


def test_samples_that_do_not_fit_are_refused() -> None:
    samples = whole_samples(seeded(0))
    u = frames(S, 2)
    with pytest.raises(ValueError, match=r"directions must have the shape \(S, k, n\) = \(9, 2, 4\)"):
        Samples(samples.inputs, samples.outputs, u @ samples.jacobians, directions=u[..., :3])
    with pytest.raises(ValueError, match="directions must be finite"):
        Samples(samples.inputs, samples.outputs, u @ samples.jacobians, directions=u / 0)
    with pytest.raises(ValueError, match="a pilot stands beside views"):
        replace(samples, pilot=samples)
    with pytest.raises(ValueError, match="stand beside whole Jacobians"):
        replace(seen(samples, u), hessians=random(seeded(0), S, N, M, M))
    with pytest.raises(ValueError, match="a pilot must have whole Jacobians"):
        replace(seen(samples, u), pilot=seen(samples, u))


def test_views_determine_fewer_nodes() -> None:
    assert determined((100, 10, 20)) == determined((100, 10, 20), 10) == 100 * 10 * 21 // 30
    assert determined((100, 10, 20), 0) == 100 * 10 // 30
    assert determined((100, 10, 20), 0, 4, 5) == (100 * 10 - 4 * 20 - 5 * 10) // 9
    samples = whole_samples(seeded(0))
    with pytest.raises(ValueError, match="rank must be at most 4"):
        Problem(seen(samples, frames(S, N)[:, :0]), 5, held_out=0)


# ---- solving ----


@pytest.mark.parametrize("k", [0, 1, 2, 9])
def test_a_planted_layer_is_found(k: int) -> None:
    network, x = Network(), inputs()
    samples = sample_views(network, x, network(x), k)
    assert samples.views == min(k, 4)
    solution = decouple(Problem(samples, 3, Monomial(3)))
    assert solution.output_error < 1e-6
    fresh = random(seeded(8), 50, 6)
    torch.testing.assert_close(solution.factors.outputs(fresh), network(fresh), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("k", [0, 2])
def test_a_descent_is_in_single_precision_while_errors_are_large(k: int) -> None:
    """Then in double precision, to errors that no product in single precision would see."""
    network, x = Network(), inputs()
    prepared, _ = prepare(Problem(sample_views(network, x, network(x), k), 3, Monomial(3)))
    start = Lifted(JacobianCPD(2))
    state = start.init(prepared, seeded(0))
    solver, roughly, errors = Refine(400, tolerance=1e-9), [], []
    state = solver.resume(prepared, state)
    while not solver.finished(prepared, state) and state.taken < 40:
        state = solver.step(prepared, state)
        roughly.append(state.memory is not None and state.memory.rough)
        errors.append(prepared.fitted.total(state.jacobian_error, state.output_error))
    assert roughly[0]
    assert not roughly[-1]
    assert roughly == sorted(roughly, reverse=True)  # never back
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-12


@pytest.mark.parametrize("k", [0, 2])
def test_where_no_layer_is_exact_single_precision_leads_as_low_as_double(k: int) -> None:
    network, x = Network(), inputs()
    y = network(x) + 0.3 * torch.sin(3 * x[:, :4])
    samples = sample_views(lambda one: network(one) + 0.3 * torch.sin(3 * one[:, :4]), x, y, k)
    problem = Problem(samples, 3, Monomial(3))
    single, double = (
        decouple(problem, Chain((MultiStart(Lifted(JacobianCPD(20)), 3), Refine(600, tolerance=1e-7, single=one))))
        for one in (None, False)
    )
    assert double.output_error > 0.02  # far from rounding
    assert single.output_error == pytest.approx(double.output_error, rel=1e-3)


def test_whole_jacobians_are_in_double_precision_unless_told() -> None:
    network, x = Network(), inputs()
    prepared, _ = prepare(Problem(sample_views(network, x, network(x), None), 3, Monomial(3)))
    state = JacobianCPD(1).init(prepared, seeded(0))
    for single, rough in ((None, False), (True, True), (False, False)):
        solver = Refine(10, single=single)
        assert solver.step(prepared, solver.resume(prepared, state)).memory.rough is rough
    with pytest.raises(ValueError, match="single must be True, False or None, got 1"):
        Refine(single=1)


def test_a_factored_layer_is_found() -> None:
    network, x = Network(width=2), inputs()
    samples = sample_views(network, x, network(x), 1)
    problem = Problem(samples, 2, Monomial(3), factor=2, output_factor=2)
    solution = decouple(problem, Chain((Leading(MultiStart(Lifted(JacobianCPD(20)), 3)), Refine(60))))
    assert solution.output_error < 1e-6


def test_two_layers_are_refined() -> None:
    network, x = Network(), inputs()
    problem = Problem(sample_views(network, x, network(x), 1), (3, 3), Smooth(BSpline(8), 0.1))
    solution = decouple(problem, Chain((Lifted(LayeredALS(3)), Refine(30))))
    assert solution.output_error < 0.3
    assert solution.history[-1].jacobian_error < solution.history[0].jacobian_error


def test_monotone_activations_stay_so_with_views() -> None:
    network, x = Network(), inputs()
    problem = Problem(sample_views(network, x, network(x), 1), 3, Monotone(BSpline(8)))
    solution = decouple(problem, Chain((Lifted(ConstrainedALS(2)), Refine(20))))
    one = solution.factors.only
    t = torch.linspace(-1, 1, 50, dtype=torch.float64)[:, None].expand(-1, 3)
    assert (one.curves(t)[1] > -1e-9).all()


def test_without_a_pilot_alternating_least_squares_begins() -> None:
    network, x = Network(), inputs(120)
    samples = replace(sample_views(network, x, network(x), 1), pilot=None)
    problem = Problem(samples, 3, Monomial(3))
    assert decouple(problem).output_error < 0.05
    start = decouple(problem, ConstrainedALS(3))
    assert decouple(problem, start=start.factors).output_error <= start.output_error
    newton = Chain((ConstrainedALS(3), SketchedNewton(3)))
    assert decouple(problem, newton).output_error < start.output_error


@pytest.mark.parametrize("solver", [JacobianCPD(), Chain((ConstrainedALS(), GaussNewton()))], ids=repr)
def test_what_needs_whole_jacobians_says_so(solver) -> None:
    network, x = Network(), inputs()
    samples = sample_views(network, x, network(x), 1)
    with pytest.raises(ValueError, match="needs whole Jacobians, but the samples hold 1 view of each: put"):
        decouple(Problem(samples, 3, Monomial(3)), solver)
    with pytest.raises(ValueError, match="LayeredALS needs whole Jacobians"):
        decouple(Problem(samples, (3, 3), Monomial(3)), LayeredALS())
    none = replace(sample_views(network, x, network(x), 0), pilot=None)
    with pytest.raises(ValueError, match="ConstrainedALS needs whole Jacobians, but the samples hold outputs only"):
        decouple(Problem(none, 3, Monomial(3)))
    with pytest.raises(ValueError, match="but these have none"):
        decouple(Problem(none, 3, Monomial(3)), Lifted(JacobianCPD()))


def test_lifting_whole_jacobians_changes_nothing() -> None:
    problem = Problem(sample(Network(), inputs(60)), 3, Monomial(3))
    plain, inside = (decouple(problem, one) for one in (JacobianCPD(20), Lifted(JacobianCPD(20))))
    assert torch.equal(plain.factors.flat(), inside.factors.flat())


def test_leading_views_are_views_of_the_leading_block() -> None:
    """The mean over the axes of what is seen of the restricted problem is the whole one, and a constant."""
    samples = sample_views(Network(), inputs(), Network()(inputs()), 4)
    problem, _ = prepare(Problem(samples, 3, Monomial(3), factor=3, output_factor=2))
    state = Leading(Lifted(JacobianCPD(10))).init(problem, seeded(0))
    small = state.memory.problem.fitted.samples
    assert small.sizes[1:] == (2, 3)
    assert small.directions.shape[1:] == (4, 2)
    assert torch.equal(small.jacobians, problem.fitted.samples.jacobians[..., :3])
    assert small.pilot.sizes[2] == 3


@pytest.mark.parametrize(
    ("samples", "active", "outputs"), [(512, 100, 64), (512, 1024, 32), (512, 2048, 16), (64, 4096, 64)]
)
def test_a_pilot_is_of_bounded_size(samples: int, active: int, outputs: int) -> None:
    assert pilot_outputs(samples, active) == outputs
    assert samples * active * outputs <= 2**24


def test_the_recipe_begins_with_the_pilot() -> None:
    network, x = Network(), inputs()
    problem, _ = prepare(Problem(sample_views(network, x, network(x), 1), 3, Monomial(3)))
    assert "Lifted(solver=JacobianCPD" in repr(default_solver(problem))


# ---- reading ----


def test_errors_of_all_views_are_those_of_jacobians() -> None:
    network, x = Network(), inputs()
    factors = planted_layer(random(seeded(0), 6, 2), random(seeded(1), 4, 2), random(seeded(2), 2, 3), *TWO)
    solution = decouple(Problem(sample_views(network, x, network(x), 4), 2, Monomial(3)), start=factors, seed=0)
    problem = solution.problem
    seen = solution.errors.fitted
    assert seen.jacobians == pytest.approx(solution.jacobian_error)
    assert seen.each_jacobian == ()
    raw = sample(network, x)
    u = directions_like(raw.outputs[0], len(x), 4, seeded(0))
    views = replace(raw, jacobians=u @ raw.jacobians, directions=u)
    found = [
        replace(solution, problem=replace(problem, samples=one, held_out=0)).errors.fitted.jacobians
        for one in (raw, views)
    ]
    assert found[0] == pytest.approx(found[1])
    assert "relative errors of" in str(solution)


def test_a_solution_on_views_is_saved_and_loaded(tmp_path) -> None:
    network, x = Network(), inputs(60)
    solution = decouple(Problem(sample_views(network, x, network(x), 1), 2, Monomial(3)))
    solution.save(tmp_path / "solution.safetensors")
    again = load_solution(tmp_path / "solution.safetensors")
    samples, loaded = solution.problem.samples, again.problem.samples
    assert torch.equal(loaded.directions, samples.directions)
    assert torch.equal(loaded.pilot.jacobians, samples.pilot.jacobians)
    assert str(again) == str(solution)


def test_aim_counts_no_output_twice() -> None:
    """Views along the axes of the reduced outputs are the rows of the reduced Jacobian."""
    network, x = Network(), inputs(20)
    reduction: Reduction = PerOutput().choose(x, network(x), whole_jacobians(network, x, 4))
    aim = Aim(network, reduction, seeded(0))
    axes = torch.eye(4, dtype=torch.float64).expand(20, 4, 4)
    torch.testing.assert_close(aim.along(x, axes), reduction.jacobians(whole_jacobians(network, x, 4)))


# ---- the choice ----


def test_whole_jacobians_are_kept_where_they_are_few_numbers() -> None:
    """And where views would be no fewer: LeNet-300-100 has ten outputs."""
    assert all(views_for(count, 10, 784, 40, 4 * 2**30) is None for count in (109, 436, 1_700, 6_800, 40_000))
    assert views_for(600, 384, 384, 64, 4 * 2**30) == 16


def test_no_views_are_kept_where_outputs_are_plenty() -> None:
    found = [views_for(count, 384, 384, 64, 2**34) for count in (600, 2047, 2048, 9600)]
    assert found == [16, 16, 0, 0]


def test_few_views_are_kept_where_outputs_are_plenty_and_samples_not_very_many() -> None:
    """They tell as much as whole Jacobians, which would take most of the time."""
    found = [views_for(count, 64, 64, 24, 2**34) for count in (200, 700, 1_400, 8_000, 9_000)]
    assert found == [None, None, 4, 4, 0]
    assert views_for(8_000, 10, 80, 20, 2**34) == 4
    assert views_for(8_000, 10, 80, 20, 2**34, layers=2) is None  # whose recipe goes further with whole ones
    assert views_for(9_000, 12, 12, 3, 2**34) is None  # four views of so few outputs are hardly fewer numbers


def test_views_that_do_not_fit_are_not_chosen() -> None:
    count, n, m = 1000, 400, 400
    assert views_for(count, n, m, 60, 2**34) == 16
    tight = 60 * 2**20
    found = views_for(count, n, m, 60, tight)
    assert found is not None
    assert 0 < found < 16
    assert Budget(tight, n, m, found).fitting(m) >= count > Budget(tight, n, m, found + 1).fitting(m)


@pytest.mark.parametrize("views", ["some", -1, 1.5, True])
def test_a_plan_asks_for_whole_jacobians_or_a_number(views) -> None:
    with pytest.raises(ValueError, match="views must be 'whole'"):
        Plan({"": Block(2)}, views=views)


@pytest.mark.parametrize("views", ["whole", 2, None])
def test_a_block_is_sampled_as_the_plan_says(views) -> None:
    network, x = Network(), inputs()
    result = compress(network, x, {"": Block(3)}, views=views, solver=None, basis=Monomial(3))
    assert result.solutions[""].problem.samples.views == (2 if views == 2 else None)
    assert result.report.blocks[0].output_error < 1e-6
    assert Plan.from_dict(result.plan.to_dict()) == result.plan


def test_a_solver_that_is_named_gets_whole_jacobians(monkeypatch) -> None:
    monkeypatch.setattr("tenflex.sampling.views.WHOLE", 0)
    network, x = Network(), inputs()
    found = [
        compress(network, x, {"": Block(3)}, basis=Monomial(3), solver=solver).solutions[""].problem.samples.views
        for solver in (None, ConstrainedALS(2))
    ]
    assert found == [0, None]


def test_what_does_not_fit_is_refused_before_any_work() -> None:
    network, x = Network(), inputs()
    with pytest.raises(ValueError, match="the views of the Jacobians of 300 samples, 4 outputs and 1 active inputs"):
        compress(network, x, {"": Block(3)}, views=2, memory=30_000)
    with pytest.raises(ValueError, match=r"rank must be at most 1\d\d"):
        compress(network, x, {"": Block(200)}, views=0)


def test_the_memory_of_views_is_held() -> None:
    """What is kept of views is what is counted."""
    network, x = Network(), inputs()
    samples = sample_views(network, x, network(x), 2)
    active = samples.inputs.shape[1]
    kept, counted = samples.bytes_of_jacobians, Budget(2**30, 4, 6, 2)
    assert kept == 300 * 2 * (active + 4) * 8 < counted.taken(300, active) - counted.room
