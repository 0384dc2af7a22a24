"""Solutions that people read: canonical nodes, formulas, text and errors say what the layer computes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import sympy
import torch
from planted import CUBIC, MORE_NODES, SKEW, Planted, placed, random, sampled, seeded
from torch import Tensor

import tenflex
from tenflex.bases import Basis
from tenflex.coordinates.active import to_active_axes
from tenflex.coordinates.per_output import PerOutput
from tenflex.coordinates.whiten import Whiten
from tenflex.factors import Activations, Factors
from tenflex.reading.nodes import canonical_layers, leading_entries
from tenflex.reading.polynomials import polynomials
from tenflex.reading.summary import WIDTH, error_table, polynomial_text, sum_text
from tenflex.result import Record, Result
from tenflex.solution import Solution

BASES = [
    tenflex.Monomial(4),
    tenflex.Chebyshev(5),
    tenflex.Smooth(tenflex.Chebyshev(3), 0.1),
    tenflex.BSpline(7),
    tenflex.BSpline(6, degree=1),
    tenflex.BSpline(7, degree=2, spacing="quantile"),
    tenflex.Smooth(tenflex.BSpline(6, spacing="quantile")),
    tenflex.Hinge(4),
    tenflex.bases.PositiveHinge(1),
    tenflex.bases.TwoSidedHinge(5),
]


def solution_of(factors: Factors, inputs: Tensor, **settings: Any) -> Solution:
    """A solution as if a solver had found these factors, from samples of them."""
    problem = tenflex.Problem(sampled(factors, inputs), max(factors.ranks), factors.activations[0].basis, **settings)
    return Solution(factors, problem, Result.CONVERGED, (Record("by hand", 0.0, 0.0, 0.0, 0.0),))


def shifted(planted: Planted) -> Planted:
    """The same kind of layer with inputs that are not centred, so that zero is at the edge of the samples."""
    factors, inputs = planted.factors, planted.inputs + 1.5
    return Planted(factors.shifted(-1.5 * factors.V.sum(0)), inputs)


def two_layers(bases: tuple[Basis, Basis] = (tenflex.Monomial(2), tenflex.Chebyshev(2))) -> Factors:
    generator = seeded(5)
    V, U, W = random(generator, 3, 2), random(generator, 4, 2), random(generator, 2, 4)
    coefficients = tuple(random(generator, rank, one.size) for rank, one in zip((2, 4), bases, strict=True))
    shifts = (0.3 * random(generator, 2), 0.3 * random(generator, 4))
    activations = tuple(map(Activations, coefficients, shifts, bases))
    return Factors(((V,), (U.mT,), (W.mT,)), activations, random(generator, 2))


def three_layers(basis: Basis = tenflex.Monomial(2)) -> Factors:  # noqa: B008 - a value that never changes
    generator = seeded(7)
    sizes = [3, 2, 3, 2, 2]
    maps = tuple((random(generator, *pair) / pair[0] ** 0.5,) for pair in pairwise(sizes))
    activations = tuple(
        Activations(random(generator, rank, basis.size), 0.3 * random(generator, rank), basis) for rank in sizes[1:-1]
    )
    return Factors(maps, activations, random(generator, 2))


# --- canonical nodes ---


@pytest.mark.parametrize("basis", BASES, ids=repr)
def test_canonical_nodes_are_the_layer(basis: Basis) -> None:
    planted = shifted(placed(basis, m=4, r=5))
    [nodes] = canonical_layers(planted.factors, planted.inputs)
    torch.testing.assert_close(nodes.outputs(planted.inputs), planted.factors.outputs(planted.inputs))
    for columns in (nodes.V, nodes.W):
        torch.testing.assert_close(leading_entries(columns), torch.ones(5).double(), rtol=0, atol=0)
        assert columns.abs().max() == 1
    assert not nodes.activations(torch.zeros(1, 5).double()).any()
    assert list(nodes.sizes[list(nodes.order)]) == sorted(nodes.sizes, reverse=True)


def test_canonical_nodes_do_not_depend_on_scales_signs_and_constants() -> None:
    factors, inputs = SKEW.factors, SKEW.inputs
    alpha, gain = torch.tensor([-0.3, 7.0]).double(), torch.tensor([5.0, -0.2]).double()
    powers = alpha[:, None] ** torch.arange(1, 4)
    coefficients = gain[:, None] * powers * factors.only.coefficients
    other = factors.with_map(0, factors.V / alpha).with_map(-1, (factors.W / gain).mT)
    other = other.with_activations(0, coefficients=coefficients)
    torch.testing.assert_close(other.outputs(inputs), factors.outputs(inputs))
    [ours], [theirs] = canonical_layers(factors, inputs), canonical_layers(other, inputs)
    for name in ("V", "W", "bias", "sizes"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
    tables = [polynomials(one.scales, one.shifts, one.coefficients, one.basis) for one in (ours, theirs)]
    torch.testing.assert_close(*tables)


def test_the_first_of_equal_entries_leads() -> None:
    columns = torch.tensor([[-1.0, 0.5, 0.0], [1 + 1e-9, -2.0, 0.0]], dtype=torch.float64)
    assert leading_entries(columns).tolist() == [-1.0, -2.0, 1.0]


def test_sizes_are_shares_of_the_outputs() -> None:
    factors, inputs = CUBIC.factors, CUBIC.inputs
    [nodes] = canonical_layers(factors, inputs)
    F, G = factors.outputs(inputs), factors.only.values(factors.arguments(inputs)[0])
    for k in range(2):
        part = torch.outer(G[:, k] - G[:, k].mean(), factors.W[:, k])
        assert nodes.sizes[k].item() == pytest.approx((part.norm() / (F - F.mean(0)).norm()).item())


@pytest.mark.parametrize("basis", [tenflex.Monomial(2), tenflex.BSpline(5)], ids=repr)
def test_canonical_nodes_of_three_layers_are_the_layers(basis: Basis) -> None:
    factors, inputs = three_layers(basis), random(seeded(6), 40, 3)
    layers, x = canonical_layers(factors, inputs), inputs
    assert [len(nodes.sizes) for nodes in layers] == [2, 3, 2]
    for k, (nodes, one, t) in enumerate(zip(layers, factors.activations, factors.arguments(inputs), strict=True)):
        assert not nodes.activations(torch.zeros(1, len(nodes.sizes)).double()).any()
        torch.testing.assert_close(leading_entries(nodes.V), torch.ones_like(nodes.sizes), rtol=0, atol=0)
        torch.testing.assert_close(nodes.deviations, x.std(0, correction=0))
        G = one.values(t) - one.values(t).mean(0)
        parts = G.norm(dim=0) * factors.map(k + 1).norm(dim=1)  # what each adds to the arguments of the next layer
        torch.testing.assert_close(nodes.sizes, parts / (G @ factors.map(k + 1)).norm())
        x = nodes.outputs(x)
    torch.testing.assert_close(x, factors.outputs(inputs))
    for nodes in layers[:-1]:  # their activations are what the next layer is given
        assert torch.equal(nodes.W, torch.eye(len(nodes.sizes)).double())
        assert not nodes.bias.any()


def test_a_dead_node_stays_dead() -> None:
    factors = CUBIC.factors.with_map(0, CUBIC.factors.V * torch.tensor([1.0, 0.0]))
    [nodes] = canonical_layers(factors, CUBIC.inputs)
    assert nodes.order == (0, 1)
    assert nodes.sizes[1] == 0
    torch.testing.assert_close(nodes.outputs(CUBIC.inputs), factors.outputs(CUBIC.inputs))


def test_inputs_must_fit() -> None:
    with pytest.raises(ValueError, match=r"inputs must have the shape \(S, 2\) for this layer, got \(9, 3\)"):
        canonical_layers(CUBIC.factors, torch.zeros(9, 3))
    with pytest.raises(TypeError, match="inputs must be real floating-point numbers"):
        canonical_layers(CUBIC.factors, torch.zeros(9, 2, dtype=torch.int64))


# --- polynomials ---


@pytest.mark.parametrize("basis", [tenflex.Monomial(6), tenflex.Chebyshev(6), tenflex.Chebyshev(1)], ids=repr)
def test_shift_and_scale_are_folded_as_numpy_composes(basis: Any, generator: torch.Generator) -> None:
    C = random(generator, 3, basis.size)
    scales, shifts = random(generator, 3), random(generator, 3)
    table = polynomials(scales, shifts, C, basis)
    family = np.polynomial.Polynomial if isinstance(basis, tenflex.Monomial) else np.polynomial.Chebyshev
    for k in range(3):
        outer = family([0.0, *C[k].tolist()]).convert(kind=np.polynomial.Polynomial)
        composed = outer(np.polynomial.Polynomial([shifts[k].item(), scales[k].item()]))
        np.testing.assert_allclose(table[k], composed.coef, rtol=1e-12, atol=1e-12)


def test_splines_are_no_polynomials() -> None:
    one = torch.ones(1).double()
    assert polynomials(one, one, torch.ones(1, 5).double(), tenflex.BSpline(5)) is None


# --- formulas ---


def evaluated(formulas: Any, expressions: Any, inputs: Tensor) -> Tensor:
    """Expressions in the inputs, by numpy."""
    f = sympy.lambdify(formulas.inputs, expressions, "numpy")
    columns = [np.broadcast_to(one, len(inputs)) for one in f(*inputs.numpy().T)]
    return torch.as_tensor(np.stack(columns, 1))


@pytest.mark.parametrize("basis", BASES, ids=repr)
def test_formulas_are_the_layer(basis: Basis) -> None:
    planted = shifted(placed(basis))
    solution = solution_of(planted.factors, planted.inputs)
    formulas, inputs = solution.to_sympy(), planted.inputs * 1.5  # beyond the samples too
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(evaluated(formulas, formulas.outputs, inputs), planted.factors.outputs(inputs), **close)
    [nodes] = solution.layers
    t = nodes.arguments(inputs)
    torch.testing.assert_close(evaluated(formulas, formulas.arguments, inputs), t, **close)
    for k, activation in enumerate(formulas.activations):
        assert activation.free_symbols == {formulas.argument}
        g = sympy.lambdify(formulas.argument, activation, "numpy")(t[:, k].numpy())
        torch.testing.assert_close(torch.as_tensor(g), nodes.activations(t)[:, k], **close)


def test_formulas_of_a_known_map() -> None:
    """g1 = 2 t^2 - 3 t + 1 at t = -2 a - 2 b, g2 = t^3 - t at t = 3 a - b, in canonical form."""
    formulas = solution_of(CUBIC.factors, CUBIC.inputs).to_sympy()
    t, (a, b) = formulas.argument, formulas.inputs
    assert formulas.inputs == sympy.symbols("x1 x2")
    assert formulas.activations == (-24 * t**2 - 18 * t, 54 * t**3 - 6 * t)
    assert formulas.arguments[0] == a + b
    f1 = 54 * a**3 - 54 * a**2 * b + 8 * a**2 + 18 * a * b**2 + 16 * a * b - 2 * b**3 + 8 * b**2 + 8 * b + 1
    left = sympy.Poly(formulas.expanded()[0] - f1, a, b)
    assert max(map(abs, left.coeffs())) < 1e-13


@pytest.mark.parametrize(
    "bases", [(tenflex.Monomial(2), tenflex.Chebyshev(2)), (tenflex.BSpline(5), tenflex.Hinge(3))], ids=repr
)
def test_formulas_of_two_layers(bases: tuple[Basis, Basis]) -> None:
    factors, inputs = two_layers(bases), random(seeded(6), 40, 3)
    solution = solution_of(factors, inputs)
    formulas, close = solution.to_sympy(), {"rtol": 1e-10, "atol": 1e-10}
    h = evaluated(formulas.before, formulas.before.outputs, inputs)
    torch.testing.assert_close(evaluated(formulas, formulas.outputs, h), factors.outputs(inputs), **close)
    first, second = solution.layers
    torch.testing.assert_close(h, first.outputs(inputs), **close)
    torch.testing.assert_close(second.outputs(h), factors.outputs(inputs), **close)
    assert [str(one) for one in formulas.before.inputs] == ["x1", "x2", "x3"]
    assert [str(one) for one in formulas.inputs] == ["h1", "h2"]


def test_two_layers_of_polynomials_expand_to_one_polynomial() -> None:
    factors, inputs = two_layers(), random(seeded(6), 40, 3)
    formulas = solution_of(factors, inputs).to_sympy()
    found = evaluated(formulas.before, formulas.expanded(), inputs)
    torch.testing.assert_close(found, factors.outputs(inputs), rtol=1e-10, atol=1e-10)
    assert sympy.Poly(formulas.expanded()[0]).total_degree() == 4


@pytest.mark.parametrize("basis", [tenflex.Monomial(2), tenflex.BSpline(4)], ids=repr)
def test_formulas_of_three_layers(basis: Basis) -> None:
    factors, inputs = three_layers(basis), random(seeded(6), 40, 3)
    solution = solution_of(factors, inputs)
    last, close = solution.to_sympy(), {"rtol": 1e-10, "atol": 1e-10}
    chain = [last.before.before, last.before, last]
    assert chain[0].before is None
    assert [[str(one) for one in formulas.inputs] for formulas in chain] == [
        ["x1", "x2", "x3"],
        ["h1_1", "h1_2"],
        ["h2_1", "h2_2", "h2_3"],
    ]
    x = inputs
    for formulas, nodes in zip(chain, solution.layers, strict=True):
        t = nodes.arguments(x)
        torch.testing.assert_close(evaluated(formulas, formulas.arguments, x), t, **close)
        for k, activation in enumerate(formulas.activations):
            g = sympy.lambdify(formulas.argument, activation, "numpy")(t[:, k].numpy())
            torch.testing.assert_close(torch.as_tensor(g), nodes.activations(t)[:, k], **close)
        x = evaluated(formulas, formulas.outputs, x)
    torch.testing.assert_close(x, factors.outputs(inputs), **close)


def test_three_layers_of_polynomials_expand_to_one_polynomial() -> None:
    factors, inputs = three_layers(), random(seeded(6), 40, 3)
    formulas = solution_of(factors, inputs).to_sympy()
    found = evaluated(formulas.before.before, formulas.expanded(), inputs)
    torch.testing.assert_close(found, factors.outputs(inputs), rtol=1e-10, atol=1e-10)
    assert sympy.Poly(formulas.expanded()[0]).total_degree() == 8


def test_other_families_have_no_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    solution = solution_of(CUBIC.factors, CUBIC.inputs)
    monkeypatch.setattr("tenflex.reading.formulas.polynomials", lambda *given: None)
    with pytest.raises(TypeError, match="formulas are known for polynomials, splines and hinges, got Monomial"):
        solution.to_sympy()


# --- text ---


def test_text_of_a_known_map() -> None:
    lines = str(solution_of(CUBIC.factors, CUBIC.inputs)).splitlines()
    assert lines[:2] == ["Solution: 2 inputs, 2 outputs, 2 nodes, Monomial(degree=3)", Result.CONVERGED.value]
    assert lines[-8:-5] == ["f1 = g2(t2) - 0.3333 g1(t1) + 1", "f2 = -0.5 g2(t2) + g1(t1) - 3", ""]
    assert lines[-5] == "g2(t) = 54 t^3 - 6 t"
    assert lines[-4].startswith("    t2 = x1 - 0.3333 x2, from -1.047 to 1.152; size 0.699")
    assert lines[-2] == "g1(t) = -24 t^2 - 18 t"
    assert lines[-1].startswith("    t1 = x1 + x2, from ")


def test_text_does_not_show_rounding_noise() -> None:
    factors = CUBIC.factors
    noise = 1e-12 * random(seeded(1), 2, 3)
    noisy = factors.with_map(0, factors.V + 1e-12 * random(seeded(0), 2, 2)).shifted(1e-13 * torch.ones(2).double())
    noisy = noisy.with_activations(0, coefficients=factors.only.coefficients + noise)
    one, other = (str(solution_of(each, CUBIC.inputs)).splitlines()[-8:] for each in (factors, noisy))
    assert one == other
    assert any(one.as_coefficients_dict()[1] for one in solution_of(noisy, CUBIC.inputs).to_sympy().expanded())


def test_terms_are_noise_by_what_they_add_not_by_their_coefficients() -> None:
    assert polynomial_text([0.0, 1.0, 1e-10], reach=1.0) == "t"
    assert polynomial_text([0.0, 1.0, 1e-10], reach=1e6) == "1e-10 t^2 + t"
    assert sum_text([1e-10, 1.0], ["a", "b"], sizes=[1.0, 1.0]) == "1e-10 a + b"


@pytest.mark.parametrize(
    ("coefficients", "expected"),
    [
        ([2.0, -0.5], "2 a - 0.5 b"),
        ([-1.0, 1.0], "-a + b"),
        ([0.0, 1e-12], "1e-12 b"),
        ([0.0, 0.0], "0"),
        ([1.0, 0.99999], "a + b"),
        ([0.1, -3.0, 2.0], "-3 b + 2 c + ..."),
    ],
)
def test_sums(coefficients: list[float], expected: str) -> None:
    assert sum_text(coefficients, ["a", "b", "c"][: len(coefficients)], most=2) == expected


def test_constants_are_numbers() -> None:
    assert sum_text([1.0, -1.0], ["t", ""]) == "t - 1"


@pytest.mark.parametrize("basis", [tenflex.Monomial(15), tenflex.BSpline(9, spacing="quantile")], ids=repr)
@pytest.mark.parametrize(("m", "n", "r"), [(2, 1, 1), (3, 3, 8), (60, 40, 30)])
def test_lines_are_narrow_and_few(basis: Basis, m: int, n: int, r: int) -> None:
    planted = placed(basis, m, n, r, count=80)
    text = str(solution_of(planted.factors.with_map(0, 1e-5 * planted.factors.V), planted.inputs))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert len(text.splitlines()) < 60
    assert f"{m} inputs" in text
    if r > 8:
        assert f"and {r - 8} smaller nodes" in text


def test_text_of_two_layers() -> None:
    text = str(solution_of(two_layers(), random(seeded(6), 40, 3)))
    assert "2-4 nodes in two layers" in text
    assert "f1 = g" in text
    assert "    u1 = h1(t1)" in text or "    u1 = " in text
    assert "h2(t) = " in text


def test_text_of_three_layers() -> None:
    factors, inputs = three_layers(), random(seeded(6), 40, 3)
    solution = solution_of(factors, inputs)
    lines = str(solution).splitlines()
    assert lines[0] == "Solution: 3 inputs, 2 outputs, 2-3-2 nodes in 3 layers, Monomial(degree=2)"
    text = dict(line.strip().split(" = ", 1) for line in lines if " = " in line)
    heads = ["f1", "f2"]
    for nodes, node, argument in zip(reversed(solution.layers), ("g", "h2_", "h1_"), ("u", "t2_", "t1_"), strict=True):
        for k in nodes.order:
            heads += [f"{node}{k + 1}", f"{argument}{k + 1}"]
    assert [name.split("(")[0] for name in text] == heads
    for k in range(2):
        assert "g1(u1)" in text[f"f{k + 1}"]
        assert "h2_1(t2_1)" in text[f"u{k + 1}"]
        assert "x1" in text[f"t1_{k + 1}"]
    assert all("h1_1(t1_1)" in text[f"t2_{k + 1}"] for k in range(3))


# --- errors ---


@pytest.fixture(scope="module")
def noisy() -> Solution:
    """A fit of noisy samples, so that errors are far from rounding."""
    samples, generator = sampled(MORE_NODES.factors, MORE_NODES.inputs * torch.tensor([1.0, 20.0])), seeded(3)
    F = samples.outputs + samples.outputs.std() * 0.1 * random(generator, 100, 2)
    J = samples.jacobians * (1 + 0.2 * random(generator, 100, 2, 2))
    problem = tenflex.Problem(tenflex.Samples(samples.inputs, F, J), 2, tenflex.Monomial(2))
    return tenflex.decouple(problem, tenflex.solvers.ConstrainedALS(5))


def test_errors_are_those_of_the_history(noisy: Solution) -> None:
    errors = noisy.errors
    assert errors.held_out is not None
    assert errors.held_out.outputs == pytest.approx(noisy.output_error)
    assert errors.fitted.jacobians == pytest.approx(noisy.jacobian_error)
    assert errors.fitted.outputs == pytest.approx(noisy.history[-1].output_error ** 0.5)
    assert (errors.fitted.count, errors.held_out.count) == (85, 7)


def test_errors_of_each_output(noisy: Solution) -> None:
    samples, factors = noisy.problem.samples, noisy.factors
    fitted, _, test = noisy.problem.split
    mean, deviation = samples.outputs[fitted].mean(0), samples.inputs[fitted].std(0, correction=0)
    for index, found in ((fitted, noisy.errors.fitted), (test, noisy.errors.held_out)):
        F, J, x = samples.outputs[index], samples.jacobians[index], samples.inputs[index]
        J, J_hat = (one * deviation for one in (J, factors.jacobians(x)))
        for i in range(2):
            error = (F - factors.outputs(x))[:, i].norm() / (F - mean)[:, i].norm()
            assert found.each_output[i] == pytest.approx(error.item())
            assert found.each_jacobian[i] == pytest.approx(((J - J_hat)[:, i].norm() / J[:, i].norm()).item())


def test_errors_with_the_names_of_outputs(noisy: Solution) -> None:
    """The numbers are the same in the same order, and columns stay below each other however long a name is."""
    n = len(noisy.errors.fitted.each_output)
    names = [f"a name of output {i + 1}" for i in range(n)]
    plain, named = error_table(noisy.errors), error_table(noisy.errors, names)
    numbered = {f"f{i + 1}": name for i, name in enumerate(names)}
    for before, after in zip(plain[3 : 3 + n], named[3 : 3 + n], strict=True):
        label, numbers = before.split(maxsplit=1)
        assert after.split() == [*numbered[label].split(), *numbers.split()]
    assert len({len(line) for line in named[3:]}) == 1
    assert [line.split() for line in plain[3 + n :]] == [line.split() for line in named[3 + n :]]


def test_errors_of_samples_that_are_reduced() -> None:
    """What counts is in original outputs for each of them, in reduced coordinates for all together."""
    full = sampled(MORE_NODES.factors, MORE_NODES.inputs)
    fitted = full.split(0.15).fitted
    whole = Whiten().choose(full.inputs[fitted], full.outputs[fitted])
    reduced, reduction = to_active_axes(full.reduced(whole), whole, 1e-12, fitted)
    off = MORE_NODES.factors.with_activations(0, coefficients=1.1 * MORE_NODES.factors.only.coefficients)
    basis = off.only.basis
    problems = [tenflex.Problem(full, 3, basis, coordinates=Whiten()), tenflex.Problem(reduced, 3, basis)]
    direct, through = (Solution(off, one, Result.MOST_STEPS, ()).errors.fitted for one in problems)
    assert reduction.up.shape == (2, 2)
    for name in ("outputs", "jacobians", "each_output", "each_jacobian"):
        assert getattr(direct, name) == pytest.approx(getattr(through, name))
    assert str(Solution(off, problems[1], Result.MOST_STEPS, ())).endswith(
        str(Solution(off, problems[0], Result.MOST_STEPS, ()))[-200:]
    )


def test_errors_count_outputs_as_the_problem_does(noisy: Solution) -> None:
    problem = replace(noisy.problem, coordinates=PerOutput())
    solution = tenflex.decouple(problem, tenflex.solvers.ConstrainedALS(5))
    assert solution.errors.fitted.jacobians == pytest.approx(solution.jacobian_error)
    assert solution.errors.held_out.outputs == pytest.approx(solution.output_error)


def test_all_samples_fitted(noisy: Solution) -> None:
    solution = tenflex.decouple(replace(noisy.problem, held_out=0), tenflex.solvers.ConstrainedALS(2))
    assert solution.errors.held_out is None
    assert solution.errors.fitted.outputs == pytest.approx(solution.output_error)
    assert "held out" not in str(solution)


def test_an_output_that_never_changes_has_an_absolute_error() -> None:
    W = torch.cat([CUBIC.factors.W, torch.zeros(1, 2).double()])
    factors = replace(CUBIC.factors.with_map(-1, W.mT), bias=torch.tensor([1.0, -3.0, 5.0]).double())
    solution = solution_of(factors, CUBIC.inputs)
    off = replace(solution, factors=replace(factors, bias=factors.bias + 0.5)).errors.fitted
    assert off.each_output[2] == pytest.approx(0.5 * off.count**0.5)
    assert solution.errors.fitted.each_output[2] == 0
