"""The verb: the same bits again, no dependence on units, an honest history, and sane answers to odd questions."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from planted import (
    CUBIC,
    MORE_NODES,
    SKEW,
    direction_error,
    factored,
    output_error,
    placed,
    random,
    sampled,
    seeded,
    width_of,
)
from torch import Tensor, nn

from tenflex.bases import Basis, BSpline, Chebyshev, Hinge, Monomial, Monotone, Smooth, TwoSidedHinge
from tenflex.coordinates.standardize import Standardize
from tenflex.coordinates.whiten import Whiten
from tenflex.decouple import decouple
from tenflex.factors import Activations, Factors
from tenflex.nn import FlexibleLayer
from tenflex.problem import Problem
from tenflex.progress import Progress
from tenflex.result import Result
from tenflex.samples import Samples
from tenflex.sampling.jacobian import sample, sample_block
from tenflex.solvers import (
    BestSoFar,
    Chain,
    ConstrainedALS,
    GaussNewton,
    GeneralizedEigenvalues,
    LayeredALS,
    Leading,
    MultiStart,
    ProjectedALS,
    Refine,
    SketchedNewton,
    Truncate,
    prepare,
)

pytestmark = pytest.mark.usefixtures("few_starts")

SOLVERS = {
    "default": None,
    "ConstrainedALS": ConstrainedALS(5),
    "ProjectedALS": BestSoFar(ProjectedALS(8)),
    "Refine": Chain((MultiStart(ConstrainedALS(3), 2), Refine(30))),
    "GaussNewton": MultiStart(Chain((ConstrainedALS(3), GaussNewton(5))), 2),
    "Leading": Chain((Leading(ConstrainedALS(4)), Refine(20))),
    "Truncate": Chain((ConstrainedALS(4), Truncate(), Refine(20))),
}
solvers = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


def noisy_samples(seed: int = 0, m: int = 3, n: int = 2, count: int = 40) -> Samples:
    """A smooth map, sampled with noise."""
    generator = seeded(seed)
    A, B, x = random(generator, m, 6) / 2, random(generator, 6, n), random(generator, count, m)
    t = torch.tanh(x @ A)
    F, J = t @ B, torch.einsum("hn,sh,mh->snm", B, 1 - t**2, A)
    return Samples(x, F + 0.05 * random(generator, *F.shape), J + 0.05 * random(generator, *J.shape))


def tensors(solution) -> list[Tensor]:
    return [*solution.factors.tensors(), solution.factors.bias]


# ---- the same bits ----


@solvers
@pytest.mark.parametrize("widths", [(None, None), (2, 2)])
@pytest.mark.usefixtures("few_steps")
def test_the_same_seed_gives_the_same_bits(solver, widths, unchanged_rng):
    problem = Problem(noisy_samples(), 3, Smooth(BSpline(6), 0.1), factor=widths[0], output_factor=widths[1])
    with unchanged_rng():
        first = decouple(problem, solver, seed=7)
    torch.rand(3)  # the global generator is not looked at
    second = decouple(problem, solver, seed=7)
    assert all(map(torch.equal, tensors(first), tensors(second)))
    assert [replace(one, seconds=0) for one in first.history] == [replace(one, seconds=0) for one in second.history]
    other = decouple(problem, solver, seed=8)
    assert first.history[0].jacobian_error != other.history[0].jacobian_error


@solvers
@pytest.mark.usefixtures("few_steps")
def test_neither_gradients_nor_inference_mode_matter(solver):
    problem = Problem(noisy_samples(), 3, BSpline(6))
    expected = tensors(decouple(problem, solver))
    with torch.no_grad():
        assert all(map(torch.equal, tensors(decouple(problem, solver)), expected))
    with torch.inference_mode():
        inside = tensors(decouple(problem, solver))
    assert all(map(torch.equal, inside, expected))
    assert not any(one.requires_grad or one.is_inference() for one in inside)


def test_a_layer_can_be_solved_from_samples_that_carry_gradients():
    samples = noisy_samples()
    carried = Samples(*(one.clone().requires_grad_() for one in (samples.inputs, samples.outputs, samples.jacobians)))
    expected = tensors(decouple(Problem(samples, 2, BSpline(5))))
    found = tensors(decouple(Problem(carried, 2, BSpline(5))))
    assert all(map(torch.equal, found, expected))
    assert not any(one.requires_grad for one in found)


def test_the_samples_are_left_alone():
    samples = noisy_samples()
    before = [one.clone() for one in (samples.inputs, samples.outputs, samples.jacobians)]
    decouple(Problem(samples, 2, BSpline(5), factor=1))
    for one, old in zip((samples.inputs, samples.outputs, samples.jacobians), before, strict=True):
        assert torch.equal(one, old)


# ---- no dependence on units ----


def rescaled(samples: Samples, inputs: Tensor | float, outputs: float) -> Samples:
    """The samples of f in other units: `x -> inputs * x`, `f -> outputs * f`."""
    return Samples(inputs * samples.inputs, outputs * samples.outputs, outputs * samples.jacobians / inputs)


@solvers
@pytest.mark.parametrize("coordinates", [Standardize(), Whiten()], ids=repr)
@pytest.mark.usefixtures("few_steps")
def test_units_that_are_powers_of_two_change_no_bit(solver, coordinates):
    samples = noisy_samples()
    settings = {"rank": 3, "basis": BSpline(6), "coordinates": coordinates}
    first = decouple(Problem(samples, **settings), solver)
    second = decouple(Problem(rescaled(samples, 4.0, 128.0), **settings), solver)
    assert torch.equal(first.factors.V, 4 * second.factors.V)
    assert torch.equal(128 * first.factors.W, second.factors.W)
    assert torch.equal(first.factors.only.coefficients, second.factors.only.coefficients)
    assert (first.jacobian_error, first.output_error) == (second.jacobian_error, second.output_error)


PER_INPUT = torch.tensor([1e-3, 1.0, 7e4], dtype=torch.float64)


@pytest.mark.parametrize(
    ("coordinates", "inputs"),
    [(Standardize(), 3.0), (Standardize(), PER_INPUT), (Whiten(), 3.0), (Whiten(1e-9), 3.0)],
    ids=["standardize", "standardize each", "whiten", "whiten all"],
)
@pytest.mark.parametrize("solver", [ConstrainedALS(6), Chain((ConstrainedALS(3), GaussNewton(4)))], ids=["ALS", "GN"])
def test_units_change_nothing_but_rounding(solver, coordinates, inputs):
    samples = noisy_samples()
    settings = {"rank": 3, "basis": BSpline(6), "coordinates": coordinates}
    first = decouple(Problem(samples, **settings), solver)
    other = rescaled(samples, inputs, 100.0)
    second = decouple(Problem(other, **settings), solver)
    assert second.output_error == pytest.approx(first.output_error, rel=1e-5)
    assert second.jacobian_error == pytest.approx(first.jacobian_error, rel=1e-5)
    expected = 100 * first.factors.outputs(samples.inputs)
    torch.testing.assert_close(second.factors.outputs(other.inputs), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("inputs", [1e-6, 1e6])
@pytest.mark.parametrize("outputs", [1e-9, 1e9])
def test_planted_layers_are_found_in_any_units(inputs, outputs):
    samples = rescaled(CUBIC.problem().samples, inputs, outputs)
    solution = decouple(Problem(samples, 2, Monomial(3)))
    assert solution.jacobian_error < 1e-8
    assert solution.output_error < 1e-8
    assert direction_error(solution.factors, CUBIC.factors) < 1e-7


@pytest.mark.parametrize("coordinates", [Standardize(), Whiten(), Whiten(1e-9)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_planted_layers_are_found_in_any_coordinates_and_precision(coordinates, dtype):
    samples = SKEW.problem().samples
    samples = Samples(*(one.to(dtype) for one in (samples.inputs, samples.outputs, samples.jacobians)))
    solution = decouple(Problem(samples, 2, Monomial(3), coordinates=coordinates))
    assert all(one.dtype == torch.float64 for one in tensors(solution))
    assert direction_error(solution.factors, SKEW.factors) < (1e-7 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize(("one", "other"), [(Monomial(4), Chebyshev(4)), (Hinge(4), BSpline(5, degree=1))], ids=repr)
def test_two_bases_of_one_span_give_one_answer(one, other):
    """Hinges and linear splines differ outside of the range that the node is placed on, so all samples are fitted."""
    samples = noisy_samples(m=2, n=2, count=80)
    errors = [decouple(Problem(samples, 2, basis), ConstrainedALS(1)) for basis in (one, other)]
    if isinstance(one, Monomial):
        assert errors[0].output_error == pytest.approx(errors[1].output_error, rel=1e-7)
        assert errors[0].jacobian_error == pytest.approx(errors[1].jacobian_error, rel=1e-7)
    else:  # they are placed by range and by deviation
        assert errors[0].output_error == pytest.approx(errors[1].output_error, rel=0.3)


# ---- what is reported ----


@pytest.mark.parametrize("held_out", [0.0, 0.3])
@pytest.mark.parametrize("solver", [None, ConstrainedALS(4)], ids=["default", "ALS"])
@pytest.mark.parametrize("widths", [(None, None), (2, 1)])
@pytest.mark.usefixtures("few_steps")
def test_the_errors_are_those_of_the_layer(held_out, solver, widths):
    """Computed anew from the layer in the original coordinates, on the samples that the solver did or did not see."""
    samples = noisy_samples()
    problem = Problem(samples, 3, BSpline(6), factor=widths[0], output_factor=widths[1], held_out=held_out)
    solution = decouple(problem, solver)
    count = len(samples)
    fitted, validation, test = problem.split
    mean, deviation = samples.outputs[fitted].mean(0), samples.inputs[fitted].std(0, correction=0)
    assert len(fitted) + len(validation) + len(test) == count

    def relative(select: Tensor) -> float:
        F = samples.outputs[select]
        left = F - solution.factors.outputs(samples.inputs[select])
        return (left.norm() / (F - mean).norm()).item()

    last = solution.history[-1]
    assert last.output_error**0.5 == pytest.approx(relative(fitted), rel=1e-6)
    assert solution.output_error == pytest.approx(relative(test if held_out else fitted), rel=1e-6)
    assert (last.held_out_error is None) == (held_out == 0)
    if held_out:
        assert solution.validation_error == pytest.approx(relative(validation), rel=1e-6)
    # Jacobians in standardized inputs.
    scale = deviation
    J = samples.jacobians[fitted] * scale
    left = J - solution.factors.jacobians(samples.inputs[fitted]) * scale
    assert solution.jacobian_error == pytest.approx((left.norm() / J.norm()).item(), rel=1e-6)
    # The bias is the best one: nothing is left of the mean.
    off = (samples.outputs - solution.factors.outputs(samples.inputs))[fitted].mean(0)
    torch.testing.assert_close(off, torch.zeros(2, dtype=off.dtype), rtol=0, atol=1e-10)


@solvers
@pytest.mark.usefixtures("few_steps")
def test_progress_is_told_after_every_step(solver):
    told: list[Progress] = []
    problem = Problem(noisy_samples(), 3, BSpline(6), factor=2)
    solution = decouple(problem, solver, on_progress=told.append)
    silent = decouple(problem, solver)
    assert all(map(torch.equal, tensors(solution), tensors(silent)))
    assert [one.done for one in told] == list(range(1, len(told) + 1))
    assert all(one.done <= one.total for one in told)
    assert len({one.total for one in told}) == 1
    history = solution.history
    assert len(history) - len(told) in (1, 2)  # the start, and the cut to the factors where the solver made none
    assert [one.error for one in told] == [one.output_error for one in history[1 : len(told) + 1]]
    assert [one.stage for one in told] == [one.stage for one in history[1 : len(told) + 1]]
    seconds = [one.seconds for one in history]
    assert seconds == sorted(seconds)
    assert seconds[0] >= 0


def test_the_result_is_advice():
    exact = decouple(CUBIC.problem())
    assert exact.result is Result.EXACT
    stopped = decouple(CUBIC.problem(), ConstrainedALS(1))
    assert stopped.result is Result.MOST_STEPS
    converged = decouple(Problem(noisy_samples(), 1, Monomial(3)), Chain((ConstrainedALS(3), GaussNewton(300))))
    assert converged.result is Result.CONVERGED
    assert all(": " in result.value or result is Result.MOST_STEPS for result in Result)


def test_solutions_know_their_problem_and_basis():
    problem = CUBIC.problem()
    solution = decouple(problem, ConstrainedALS(1))
    assert solution.problem is problem
    assert solution.factors.only.basis == Monomial(3)
    smooth = Problem(problem.samples, 2, Smooth(Monomial(3), 0.1))
    assert decouple(smooth, ConstrainedALS(1)).factors.only.basis == Monomial(3)


def test_the_answer_holds_between_the_samples(generator):
    solution = decouple(MORE_NODES.problem())
    fresh = 3 * torch.rand(500, 2, generator=generator, dtype=torch.float64) - 1.5
    assert output_error(solution.factors, MORE_NODES.factors, fresh) < 1e-8


# ---- from layers that are known ----

REFINEMENTS = {"default": None, "GaussNewton": GaussNewton(20), "Refine": Refine(20), "watched": BestSoFar(Refine(20))}
refinements = pytest.mark.parametrize("solver", REFINEMENTS.values(), ids=REFINEMENTS)


def objective_of(solution, step: int = -1) -> float:
    """On the fitted samples, without a penalty."""
    one = solution.history[step]
    return one.jacobian_error + solution.problem.coupling * one.output_error


@pytest.mark.parametrize("planted", [CUBIC, SKEW, MORE_NODES, placed(BSpline(6))], ids=["1", "2", "3", "B-spline"])
@refinements
def test_a_planted_layer_to_start_with_stays_exact(planted, solver):
    solution = decouple(planted.problem(held_out=0), solver, start=planted.factors)
    assert solution.jacobian_error < 1e-10
    assert solution.output_error < 1e-10
    assert direction_error(solution.factors, planted.factors) < 1e-7
    assert output_error(solution.factors, planted.factors, planted.inputs) < 1e-10


@pytest.mark.parametrize("coordinates", [Standardize(), Whiten()], ids=repr)
@pytest.mark.parametrize("basis", [BSpline(6), Monomial(3), BSpline(6, spacing="quantile")], ids=repr)
@pytest.mark.parametrize("held_out", [0.0, 0.3])
@refinements
def test_an_earlier_solution_is_where_a_start_begins_and_never_ends_worse(solver, basis, held_out, coordinates):
    problem = Problem(noisy_samples(), 3, basis, coordinates=coordinates, held_out=held_out)
    first = decouple(problem, ConstrainedALS(3))
    again = decouple(problem, solver, start=first.factors)
    assert objective_of(again, 0) == pytest.approx(objective_of(first), rel=1e-9)
    assert objective_of(again) <= objective_of(first) * (1 + 1e-9)
    if held_out == 0:
        assert objective_of(again) < 0.99 * objective_of(first)


def test_a_step_from_a_start_is_the_step_from_the_state_that_led_to_it():
    """Up to the rounding of the coordinates."""
    problem = Problem(noisy_samples(), 3, BSpline(6))
    whole = decouple(problem, Chain((ConstrainedALS(3), GaussNewton(2))))
    halves = decouple(problem, GaussNewton(2), start=decouple(problem, ConstrainedALS(3)).factors)
    torch.testing.assert_close(halves.factors.flat(), whole.factors.flat(), rtol=1e-6, atol=1e-6)


def test_a_start_says_what_is_known_and_nothing_more():
    """The seed does not matter, and the start is left as it was."""
    problem = Problem(noisy_samples(), 3, BSpline(6))
    start = decouple(problem, ConstrainedALS(3)).factors
    before = start.flat()
    one, other = (decouple(problem, Refine(20), start=start, seed=seed) for seed in (0, 1))
    assert all(map(torch.equal, tensors(one), tensors(other)))
    assert torch.equal(start.flat(), before)


@pytest.mark.parametrize("widths", [(2, None), (None, 3), (2, 3)])
@pytest.mark.parametrize("solver", [None, Refine(60)], ids=["default", "Refine"])
def test_factored_layers_are_starts_too(widths, solver):
    planted = factored(8, 6, 3, *widths, seed=5)
    exact = decouple(planted.problem(), solver, start=planted.factors)
    assert exact.output_error < 1e-10
    assert exact.jacobian_error < 1e-10
    assert output_error(exact.factors, planted.factors, planted.inputs) < 1e-10
    problem = Problem(noisy_samples(m=8, n=6), 3, BSpline(6), factor=widths[0], output_factor=widths[1], held_out=0)
    first = decouple(problem, Leading(ConstrainedALS(3)))
    again = decouple(problem, solver, start=first.factors)
    assert objective_of(again) < 0.95 * objective_of(first)
    for solution in (first, again):
        assert [width_of(maps) for maps in solution.factors.maps] == list(widths)


def test_a_full_layer_to_start_a_factored_problem_with_is_cut_down():
    """Nothing is lost of a layer that has the width."""
    planted = factored(8, 6, 3, 2, 3, seed=5)
    for solver in (GaussNewton(5), Chain((Truncate(), Refine(20)))):
        solution = decouple(planted.problem(), solver, start=planted.factors.full())
        assert [width_of(maps) for maps in solution.factors.maps] == [2, 3]
        assert solution.output_error < 1e-10


def test_layers_of_reduced_samples_are_starts_in_the_original_coordinates(generator):
    block = nn.Sequential(nn.Linear(40, 3), nn.Tanh(), nn.Linear(3, 5)).double().eval()
    x = random(generator, 150, 6) @ random(generator, 6, 40) / 6
    with torch.no_grad():
        y = block(x)
    problem = Problem(sample_block(block, x, y), 3, BSpline(8), held_out=0)
    first = decouple(problem, ConstrainedALS(10))
    again = decouple(problem, GaussNewton(50), start=first.factors)
    assert first.factors.V.shape == again.factors.V.shape == (40, 3)
    assert objective_of(again, 0) == pytest.approx(objective_of(first), rel=1e-9)
    assert objective_of(again) < 0.9 * objective_of(first)


@pytest.mark.parametrize(
    "solver", [GaussNewton(5), Refine(40), SketchedNewton(2), LayeredALS(3)], ids=lambda one: type(one).__name__
)
def test_two_layers_are_starts_too(solver, generator):
    V, U, W = random(generator, 4, 3) / 2, random(generator, 3, 2) / 2, random(generator, 2, 3)
    first, second = (Activations(random(generator, r, 3) / 2, random(generator, r) / 5, Monomial(3)) for r in (3, 2))
    planted = Factors(((V,), (U,), (W,)), (first, second), random(generator, 3))
    problem = Problem(sampled(planted, random(generator, 60, 4)), (3, 2), Monomial(3))
    solution = decouple(problem, solver, start=planted)
    assert solution.output_error < 1e-8
    assert solution.jacobian_error < 1e-8
    assert solution.factors.ranks == (3, 2)


@pytest.mark.parametrize(
    ("start", "error", "message"),
    [
        (3, TypeError, r"start must be the factors of layers, such as solution.factors, got int"),
        (CUBIC.problem(), TypeError, r"start must be the factors of layers, such as solution.factors, got Problem"),
        (
            factored(3, 2, 2, None, None, 0).factors,
            ValueError,
            r"start must have the sizes \(2, 2, 2\) \(inputs, nodes of each layer, outputs\), got \(3, 2, 2\)",
        ),
        (MORE_NODES.factors, ValueError, r"sizes \(2, 2, 2\) .*, got \(2, 3, 2\)"),
        (factored(2, 3, 2, None, None, 0).factors, ValueError, r"sizes \(2, 2, 2\) .*, got \(2, 2, 3\)"),
    ],
)
@pytest.mark.parametrize("solver", [None, GaussNewton(5)], ids=["default", "GaussNewton"])
def test_starts_of_other_kinds_and_sizes_are_refused(start, error, message, solver):
    with pytest.raises(error, match=message):
        decouple(CUBIC.problem(), solver, start=start)


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (GeneralizedEigenvalues(), r"GeneralizedEigenvalues starts from nothing: put it first in a Chain"),
        (MultiStart(ConstrainedALS(1), 2), r"MultiStart starts from nothing: put it first in a Chain"),
        (Chain((ProjectedALS(1), GaussNewton(1))), r"ProjectedALS starts from nothing: put it first in a Chain"),
    ],
)
def test_solvers_that_know_no_start_are_refused(solver, message):
    with pytest.raises(ValueError, match=message):
        decouple(CUBIC.problem(), solver, start=CUBIC.factors)


# ---- what the outputs' weight does ----


def test_the_coupling_moves_the_error_from_jacobians_to_outputs():
    """At the least of `E_J + coupling * E_F`, E_F falls with the coupling and E_J rises."""
    samples, solver = noisy_samples(), MultiStart(Chain((ConstrainedALS(10), GaussNewton(50))), 3)
    problems = [Problem(samples, 2, BSpline(6), coupling=coupling, held_out=0) for coupling in (0.0, 1.0, 1000.0)]
    solutions = [decouple(problem, solver) for problem in problems]
    outputs, jacobians = ([getattr(one, key) for one in solutions] for key in ("output_error", "jacobian_error"))
    assert outputs[2] < 0.9 * outputs[0]
    assert outputs == sorted(outputs, reverse=True)
    assert jacobians == sorted(jacobians)


# ---- samples of networks ----


def test_reduced_samples_give_a_layer_in_the_original_coordinates(generator):
    """Forty inputs of which the data excite six directions, and the block looks at three of these."""
    block = nn.Sequential(nn.Linear(40, 3), nn.Tanh(), nn.Linear(3, 5)).double().eval()
    x = random(generator, 150, 6) @ random(generator, 6, 40) / 6
    with torch.no_grad():
        y = block(x)
    samples = sample_block(block, x, y)
    assert samples.inputs.shape[1] == 3
    solution = decouple(Problem(samples, 3, BSpline(8), held_out=0), Chain((ConstrainedALS(10), GaussNewton(100))))
    factors = solution.factors
    assert factors.V.shape == (40, 3)
    assert factors.W.shape == (5, 3)
    relative = (factors.outputs(x) - y).norm() / (y - y.mean(0)).norm()
    assert relative.item() == pytest.approx(solution.output_error, rel=1e-6)
    assert relative < 0.02


# ---- published numbers ----


def sine_and_tanh(x: Tensor) -> Tensor:
    total = x[0] + x[1]
    return torch.stack([2.5 + torch.sin(0.2 * math.pi * total), -5 + torch.tanh(total)])


def test_published_errors_of_a_map_of_one_direction_are_reached(generator):
    """Relative squared errors of F on 50 normal points, for degrees 3, 5 and 10."""
    samples = sample(sine_and_tanh, random(generator, 50, 2))
    reached = []
    for degree, published in ((3, 2.4e-4), (5, 4.1e-5), (10, 6.4e-8)):
        solution = decouple(Problem(samples, 2, Monomial(degree), coupling=100.0, held_out=0))
        left = solution.factors.outputs(samples.inputs) - samples.outputs
        reached.append(float(left.square().sum() / samples.outputs.square().sum()))
        assert reached[-1] < 2 * published  # other points than the published ones
    assert reached == sorted(reached, reverse=True)


# ---- odd questions ----


def relu_once(x: Tensor) -> Tensor:
    """Zero at most samples."""
    return torch.relu(x.sum() - 2.5) * torch.ones(2, dtype=x.dtype)


ODD = {
    "one input": lambda x: torch.stack([x[0] ** 2, x[0].sin()]),
    "one output": lambda x: x.prod()[None],
    "one of each": lambda x: x[:1].exp(),
    "linear": lambda x: torch.stack([x.sum(), x[0] - x[-1]]),
    "ignores an input": lambda x: torch.stack([x[0] ** 2, x[0] ** 3]),
    "an output that never changes": lambda x: torch.stack([x.sum() ** 2, 0 * x[0] + 5]),
    "two outputs alike": lambda x: (x**2).sum() * torch.ones(2, dtype=x.dtype),
    "mostly dead": relu_once,
    "huge": lambda x: 1e12 * torch.stack([x.sum() ** 2, x[0]]),
    "tiny": lambda x: 1e-12 * torch.stack([x.sum() ** 2, x[0]]),
    "far away": lambda x: 1e6 + torch.stack([x.sum() ** 2, x[0]]),
}
ODD_BASES = [BSpline(5), BSpline(6, spacing="quantile"), Monomial(3), TwoSidedHinge(3), Smooth(BSpline(6))]


@pytest.mark.parametrize("f", ODD.values(), ids=ODD)
@pytest.mark.parametrize("basis", ODD_BASES, ids=repr)
def test_odd_maps_have_finite_layers(f, basis, generator):
    m = 1 if f in (ODD["one input"], ODD["one of each"]) else 3
    points = random(generator, 40, m)
    points[5:8] = points[5]  # some samples are alike
    samples = sample(f, points)
    n = samples.outputs.shape[1]
    problem = Problem(samples, min(3, 34 * (m + 1) * n // (m + n)), basis)
    for solver in (BestSoFar(ProjectedALS(5)), Chain((ConstrainedALS(3), Refine(10)))):
        solution = decouple(problem, solver)
        assert all(one.isfinite().all() for one in tensors(solution))
        assert math.isfinite(solution.output_error)
        assert math.isfinite(solution.jacobian_error)
        assert solution.factors.outputs(points).isfinite().all()
    assert solution.jacobian_error < 1  # the refined one, at least, is better than nothing


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_few_samples_are_enough_to_begin(count, generator):
    points = random(generator, count, 3)
    samples = sample(lambda x: torch.stack([x[0] * x[1], x[2] ** 2]), points)
    solution = decouple(Problem(samples, 1, BSpline(5)))
    assert all(one.isfinite().all() for one in tensors(solution))


def test_inputs_that_never_change_do_no_harm(generator):
    points = random(generator, 60, 4)
    points[:, 1], points[:, 3] = 7.7, 0.0
    samples = sample(lambda x: torch.stack([(x[0] + x[2]) ** 2, x[0] ** 2 + 0 * x[3]]), points)
    solution = decouple(Problem(samples, 2, Monomial(2)))
    assert solution.output_error < 1e-8
    assert all(one.isfinite().all() for one in tensors(solution))


def test_more_nodes_than_needed_do_no_harm():
    samples = CUBIC.problem().samples
    solution = decouple(Problem(samples, 4, Monomial(3)))
    assert solution.output_error < 1e-6
    assert all(one.isfinite().all() for one in tensors(solution))


def test_a_factor_wider_than_needed_does_no_harm():
    planted = factored(6, 4, 3, 2, None, seed=1)
    solution = decouple(planted.problem(factor=3))
    assert solution.output_error < 1e-8
    assert torch.linalg.matrix_rank(solution.factors.V, rtol=1e-6) == 2


def test_a_layer_that_needs_more_width_than_asked_is_fitted_as_well_as_it_goes():
    planted = placed(Monomial(3), m=5, n=4, r=3)
    full = decouple(planted.problem())
    narrow = decouple(planted.problem(factor=1))
    wider = decouple(planted.problem(factor=2))
    assert full.output_error < wider.output_error < narrow.output_error < 1.1
    assert [one.shape for one in narrow.factors.maps[0]] == [(5, 1), (1, 3)]


# ---- refusals ----


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((CUBIC.problem().samples,), r"expected a tenflex.Problem, got Samples"),
        ((None,), r"expected a tenflex.Problem, got NoneType"),
        ((CUBIC.problem(), ConstrainedALS), r"expected a solver such as ConstrainedALS\(\), got <class"),
        ((CUBIC.problem(), "als"), r"expected a solver such as ConstrainedALS\(\), got 'als'"),
    ],
)
def test_other_things_are_refused(args, message):
    with pytest.raises(TypeError, match=message):
        decouple(*args)


# ---- starts of other forms ----


def two_layers() -> Factors:
    generator, nothing = seeded(0), torch.zeros(3, dtype=torch.float64)
    maps = ((random(generator, 4, 3) / 2,), (random(generator, 3, 2) / 2,), (random(generator, 2, 3),))
    coefficients = random(generator, 3, 3) / 2, random(generator, 2, 3) / 2
    activations = tuple(Activations(C, nothing[: len(C)], Monomial(3)) for C in coefficients)
    return Factors(maps, activations, nothing)


def test_two_layers_are_refined_from_a_start_by_the_default_recipe():
    planted = two_layers()
    problem = Problem(sampled(planted, random(seeded(1), 60, 4)), (3, 2), Monomial(3))
    near = planted.with_flat(planted.flat() * (1 + 0.01 * random(seeded(2), planted.flat().numel())))
    assert decouple(problem, start=near).jacobian_error < 1e-8


@pytest.mark.parametrize("basis", [BSpline(6), Chebyshev(3), Monomial(4)], ids=repr)
def test_a_start_of_another_basis_is_refused(basis):
    with pytest.raises(ValueError, match=r"start must have the basis of the problem, .*, got Monomial\(degree=3\)"):
        decouple(CUBIC.problem(basis=basis), start=CUBIC.factors)


def test_a_start_with_fitted_knots_is_one_of_its_basis():
    problem = CUBIC.problem(basis=BSpline(6, spacing="quantile"))
    first = decouple(problem, ConstrainedALS(3))
    assert decouple(problem, Refine(20), start=first.factors).jacobian_error <= first.jacobian_error


@dataclass(frozen=True)
class Bent(Basis):
    """A line and a bend, whose width follows from the nodes that it is fitted to."""

    bends: int = 1
    width: float | None = None

    @property
    def size(self) -> int:
        return 1 + self.bends

    operations = 12

    def _at(self, t: Tensor) -> Tensor:
        places = torch.linspace(0, 0.5, self.bends, dtype=t.dtype, device=t.device)
        return torch.tanh((t[..., None] - places) / (self.width or 1.0))

    def value(self, t: Tensor) -> Tensor:
        return torch.cat([t[..., None], self._at(t)], -1)

    def derivative(self, t: Tensor) -> Tensor:
        return torch.cat([torch.ones_like(t)[..., None], (1 - self._at(t) ** 2) / (self.width or 1.0)], -1)

    def second_derivative(self, t: Tensor) -> Tensor:
        y = self._at(t)
        return torch.cat([torch.zeros_like(t)[..., None], -2 * y * (1 - y**2) / (self.width or 1.0) ** 2], -1)

    def fit(self, t: Tensor) -> Basis:
        return replace(self, width=round(float(t.std()), 6))


def test_a_start_of_a_family_of_ones_own_may_be_fitted():
    """What `fit` freezes, only the family knows: one of the same size is taken for fitted, another is refused."""
    problem = CUBIC.problem(basis=Bent())
    first = decouple(problem, ConstrainedALS(3))
    assert first.factors.only.basis.width is not None
    assert decouple(problem, Refine(20), start=first.factors).jacobian_error <= first.jacobian_error
    assert decouple(problem, start=first.factors).factors.only.basis == first.factors.only.basis
    with pytest.raises(ValueError, match=r"start must have the basis of the problem, Bent\(bends=2, width=None\), got"):
        decouple(CUBIC.problem(basis=Bent(2)), start=first.factors)


def test_the_widths_of_a_start_are_those_of_the_problem():
    planted = factored(8, 6, 3, 2, 3, seed=5)
    with pytest.raises(ValueError, match="start must have factor=1, as the problem, or a full map, got 2"):
        decouple(planted.problem(factor=1), Refine(5), start=planted.factors)
    full = decouple(planted.problem(factor=None, output_factor=None), Refine(5), start=planted.factors)
    assert [len(maps) for maps in full.factors.maps] == [1, 1]
    assert full.jacobian_error < 1e-8


def test_a_full_start_is_cut_before_it_is_refined():
    planted = factored(8, 6, 3, None, None, seed=5)
    problem = planted.problem(factor=2)
    cut = decouple(problem, Truncate(), start=planted.factors)
    solution = decouple(problem, Refine(60), start=planted.factors)
    assert [one.shape for one in solution.factors.maps[0]] == [(8, 2), (2, 3)]
    assert solution.jacobian_error < cut.jacobian_error
    assert cut.result is not Result.EXACT


def test_a_start_in_single_precision_is_taken():
    single = FlexibleLayer.from_factors(CUBIC.factors, dtype=torch.float32).factors()
    assert decouple(CUBIC.problem(), start=single).jacobian_error < 1e-8


def test_a_start_is_brought_to_the_shape_that_activations_must_have():
    free = decouple(CUBIC.problem(), ConstrainedALS(5)).factors
    assert free.slopes(CUBIC.inputs)[0].min() < -0.1
    held = decouple(CUBIC.problem(basis=Monotone(Monomial(3))), Refine(1), start=free).factors
    slopes = held.slopes(CUBIC.inputs)[0]
    assert slopes.min() > -1e-6 * slopes.abs().max()


def test_starts_within_starts_are_all_different():
    problem, _ = prepare(factored(5, 4, 3, None, None, seed=0).problem())
    for inner in (MultiStart(ConstrainedALS(1), 3), BestSoFar(MultiStart(ConstrainedALS(1), 3))):
        solver, seen = MultiStart(inner, 3), []
        state = solver.init(problem, seeded(0))
        while not solver.finished(problem, state):
            state = solver.step(problem, state)
            inside = state.memory.inside.memory.inside
            seen.append((inside.memory.inside if isinstance(inner, BestSoFar) else inside).jacobian_error)
        assert len(set(seen)) == len(seen) == 9


# ---- why a solver stopped ----


def mapped(f, count: int = 80) -> Samples:
    return sample(f, 2 * torch.rand(count, 2, generator=seeded(3), dtype=torch.float64) - 1)


def test_nodes_that_cancel_are_told():
    """(x1 x2, x1^2) has no best layer of two squares: the two come ever closer, and ever larger."""
    degenerate = mapped(lambda x: torch.stack([x[0] * x[1], x[0] ** 2]))
    solution = decouple(Problem(degenerate, 2, Monomial(2)))
    assert solution.result is Result.SINGULAR
    assert "lower the rank" in solution.result.value


@pytest.mark.parametrize("rank", [2, 3])
def test_nodes_in_vain_are_told(rank):
    single = mapped(lambda x: torch.stack([(x[0] + 2 * x[1]) ** 3, 2 * (x[0] + 2 * x[1]) ** 3]))
    solution = decouple(Problem(single, rank, Monomial(3)))
    assert solution.output_error < 1e-6
    assert solution.result is Result.SINGULAR
    assert decouple(Problem(single, 1, Monomial(3))).result is Result.EXACT


def test_two_nodes_of_one_direction_with_other_effects_are_none_too_many():
    ridge = mapped(lambda x: torch.stack([(x[0] + x[1]) ** 2, (x[0] + x[1]) ** 3]))
    solution = decouple(Problem(ridge, 2, Monomial(3)))
    assert solution.result is Result.EXACT


@pytest.mark.parametrize("solver", [GaussNewton(3), Refine(10), Refine(10, stride=1)], ids=repr)
def test_a_state_that_is_not_finite_has_diverged(solver):
    broken = CUBIC.factors.with_map(0, torch.full_like(CUBIC.factors.V, torch.nan))
    assert decouple(CUBIC.problem(), solver, start=broken).result is Result.DIVERGED


def test_every_reason_can_be_given():
    """The others are in the tests above."""
    assert decouple(CUBIC.problem(), ConstrainedALS(1)).result is Result.MOST_STEPS
    too_low = CUBIC.problem(basis=Monomial(2))
    assert decouple(too_low, Chain((ConstrainedALS(3), Refine(500, tolerance=1e-2)))).result is Result.CONVERGED
