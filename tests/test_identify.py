"""Uniqueness: alignment, closed-form conditions, the local test against dense references, and known cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from math import comb, inf

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.func import jacrev, vmap

import tenflex.identify.local
import tenflex.identify.tangents
from tenflex.bases import Basis, BSpline, Chebyshev, Hinge, Monomial, PositiveHinge, Smooth
from tenflex.coordinates import Coordinates, PerOutput, Sensitivity, Standardize, Whiten
from tenflex.decouple import decouple
from tenflex.factors import Activations, Factors
from tenflex.identify import (
    Uniqueness,
    align,
    compounds,
    deep_monomial,
    distinct_directions,
    identify,
    jacobian_cpd,
    largest_rank,
    live_nodes,
    local_rank,
    monomial_count,
    monomial_kruskal,
    parameter_count,
)
from tenflex.identify.assignment import assign
from tenflex.identify.local import _random_layer, told_rank
from tenflex.identify.tangents import compact, moves
from tenflex.problem import Problem
from tenflex.result import Record, Result
from tenflex.samples import Samples
from tenflex.sampling.jacobian import sample
from tenflex.sampling.polynomial import Polynomial
from tenflex.sampling.regression import sample_table
from tenflex.solution import Solution

LARGEST = {
    (2, 2, 3): 3,
    (2, 2, 4): 4,
    (2, 2, 5): 4,
    (3, 2, 3): 6,
    (3, 3, 2): 4,
    (3, 3, 3): 7,
    (4, 4, 2): 7,
    (4, 4, 3): 15,
    (2, 1, 3): 2,
    (3, 1, 3): 3,
    (4, 2, 3): 8,
    (5, 5, 3): 25,
}
"""For (m, n, d), the largest r whose tangent spaces are independent at generic points."""


def layer(V: object, W: object, C: object, basis: Basis | None = None, shift: object = None) -> Factors:
    V, W, C = (torch.as_tensor(one, dtype=torch.float64) for one in (V, W, C))
    a = torch.zeros(V.shape[1], dtype=torch.float64) if shift is None else torch.as_tensor(shift, dtype=torch.float64)
    bias = torch.zeros(len(W), dtype=torch.float64)
    return Factors.single(V, W, Activations(C, a, basis or Monomial(C.shape[1])), bias)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_layer(m: int, n: int, r: int, basis: Basis, seed: int = 0) -> Factors:
    V = draw(m, r, seed=seed)
    return layer(V / V.norm(dim=0), draw(n, r, seed=seed + 1), draw(r, basis.size, seed=seed + 2), basis)


def cube(count: int, m: int, half: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return half * (2 * torch.rand(count, m, generator=generator, dtype=torch.float64) - 1)


def sampled(function: Callable[[Tensor], Tensor], inputs: Tensor) -> Samples:
    return Samples(inputs, vmap(function)(inputs), vmap(jacrev(function))(inputs))


def samples_of(factors: Factors, inputs: Tensor) -> Samples:
    return Samples(inputs, factors.outputs(inputs), factors.jacobians(inputs))


TWO_NODES = layer([[-2, 3], [-2, -1]], [[1, 2], [-3, -1]], [[-3, 2, 0], [-1, 0, 1]])
"""Test problem 1: two nodes, which the Jacobians alone determine."""

THREE_NODES = layer([[1, 3, 0.5], [2, 1, 3]], [[3, 0.5, -1], [1, 2, 3]], [[0, 0.5, 1], [0, 1, 2], [0, 3, 1]])
"""Test problem 3: more nodes than outputs. The Jacobian tensor has many decompositions, one of them of polynomials."""


# Assignment and alignment


@pytest.mark.parametrize("size", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("kind", ["real", "ties", "negative"])
def test_assignment_is_as_cheap_as_that_of_scipy(size: int, kind: str) -> None:
    for seed in range(5):
        costs = draw(size, size, seed=seed)
        costs = {"real": costs, "ties": costs.round(), "negative": -costs.abs() * 1e6}[kind]
        rows = assign(costs)
        assert sorted(rows) == list(range(size))
        best = costs.numpy()[linear_sum_assignment(costs.numpy())].sum()
        assert costs[list(rows), range(size)].sum().item() == pytest.approx(best, rel=1e-12, abs=1e-12)


def test_assignment_of_a_permutation_matrix_is_that_permutation() -> None:
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    costs = torch.ones(30, 30, dtype=torch.float64)
    costs[order, torch.arange(30)] = 0
    assert assign(costs) == tuple(order.tolist())


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        (torch.zeros(2, 3), r"square matrix \(r, r\), got shape \(2, 3\)"),
        (torch.tensor([[inf]]), "costs must be finite"),
    ],
)
def test_assignment_refuses(costs: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        assign(costs)


def transformed(factors: Factors, order: list[int], scales: Tensor, sizes: Tensor) -> Factors:
    """The same map: nodes in another order, columns of V times `scales`, columns of W times `sizes`."""
    one = factors.only
    powers = scales[:, None] ** torch.arange(1, one.basis.size + 1)
    coefficients = (one.coefficients / powers / sizes[:, None])[order]
    turned = factors.with_map(0, (factors.V * scales)[:, order]).with_map(-1, (factors.W * sizes)[:, order].mT)
    return turned.with_activations(0, coefficients=coefficients, shift=(one.shift * scales)[order])


def test_alignment_undoes_order_scale_and_sign() -> None:
    reference = random_layer(4, 3, 6, Monomial(3))
    scales = torch.tensor([2.0, -0.5, 3.0, -1.0, 0.1, 7.0], dtype=torch.float64)
    sizes = torch.tensor([-1.0, 4.0, 0.25, -3.0, 1.0, 0.5], dtype=torch.float64)
    order = [3, 0, 5, 1, 4, 2]
    other = transformed(reference, order, scales, sizes)
    inputs = cube(50, 4)
    torch.testing.assert_close(other.outputs(inputs), reference.outputs(inputs))
    found = align(other, reference, inputs)
    assert [order[node] for node in found.permutation] == list(range(6))
    assert found.inner_scales == pytest.approx(scales.tolist())
    assert found.outer_scales == pytest.approx(sizes.tolist())
    assert found.factor_error < 1e-14
    assert found.activation_error < 1e-13


def test_error_of_a_direction_is_that_of_the_unit_vectors() -> None:
    reference = layer(torch.eye(2), torch.eye(2), torch.ones(2, 2))
    angle = 0.3
    turned = torch.tensor([[1, -torch.sin(torch.tensor(angle))], [0, torch.cos(torch.tensor(angle))]])
    found = align(reference.with_map(0, 5 * turned.double()), reference)
    assert found.inner_errors == pytest.approx([0, 2 * torch.sin(torch.tensor(angle / 2)).item()], abs=1e-7)
    assert found.outer_error == 0
    assert found.factor_error == found.inner_error
    assert found.activation_error is None


def test_contributions_do_not_see_shifts_and_constants() -> None:
    reference = layer([[1, 2], [0, 1]], [[1, 0], [1, 1]], [[1, 2], [-1, 0.5]])
    a, c = torch.tensor([0.7, -0.4], dtype=torch.float64), reference.only.coefficients
    moved = torch.stack([c[:, 0] - 2 * a * c[:, 1], c[:, 1]], 1)  # c1 (t - a) + c2 (t - a)^2, but for the constant
    found = align(reference.with_activations(0, shift=a, coefficients=moved), reference, cube(20, 2))
    assert found.activation_error < 1e-14


def test_a_wrong_activation_shows_in_the_contributions_only() -> None:
    wrong = TWO_NODES.with_activations(0, coefficients=TWO_NODES.only.coefficients * torch.tensor([[1.0], [1.5]]))
    found = align(wrong, TWO_NODES, cube(20, 2))
    assert found.factor_error == 0
    assert found.activation_errors == pytest.approx([0, 0.5])


def test_alignment_survives_a_dead_node() -> None:
    dead = TWO_NODES.with_map(-1, (TWO_NODES.W * torch.tensor([1.0, 0.0])).mT)
    found = align(dead, TWO_NODES, cube(20, 2))
    assert found.permutation == (0, 1)
    assert found.outer_errors == pytest.approx([0, 1])
    assert found.activation_errors == pytest.approx([0, 1])


def test_alignment_refuses_other_sizes_and_types() -> None:
    with pytest.raises(ValueError, match=r"the same m, n and r .* got \(2, 2, 2\) and \(2, 2, 3\)"):
        align(TWO_NODES, THREE_NODES)
    with pytest.raises(TypeError, match=r"reference must be a tenflex.Factors, got Tensor: use solution.factors"):
        align(TWO_NODES, TWO_NODES.V)
    with pytest.raises(ValueError, match="the columns of factors must be finite"):
        align(TWO_NODES.with_map(0, TWO_NODES.V * torch.nan), TWO_NODES)


# Conditions in closed form


def generic_rank(m: int, n: int, r: int, power: int) -> int:
    """The rank of (W, V) -> sum_k w_k (v_k . x)^d at a random point, by automatic differentiation."""
    V, W, x = draw(m, r, seed=1), draw(n, r, seed=2), draw(2 * comb(m + power, power), m, seed=3)
    parts = jacrev(lambda V, W: (x @ V) ** power @ W.T, argnums=(0, 1))(V, W)
    return int(torch.linalg.matrix_rank(torch.cat([part.flatten(0, 1).flatten(1) for part in parts], 1)))


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("power", [2, 3, 5])
def test_conditions_on_single_powers_agree_with_the_rank(m: int, n: int, power: int) -> None:
    for r in range(1, 7):
        unique = generic_rank(m, n, r, power) == r * (m + n - 1)
        if monomial_kruskal(m, n, r, power).holds:
            assert unique, r
        if not monomial_count(m, n, r, power).holds:
            assert not unique, r


def test_kruskal_condition_is_the_inequality_of_the_degrees() -> None:
    for m, n, r, d in [(2, 2, 3, 4), (2, 2, 3, 3), (5, 1, 4, 2), (5, 1, 4, 3), (3, 7, 3, 1), (3, 7, 3, 2)]:
        assert monomial_kruskal(m, n, r, d).holds == (d * (min(m, r) - 1) >= 2 * r - min(r, n))
    assert monomial_kruskal(1, 1, 1, 2).holds
    assert not monomial_kruskal(1, 5, 2, 100).holds


@pytest.mark.parametrize(("m", "n"), [(2, 2), (3, 2), (3, 3), (4, 4), (6, 6), (1, 4)])
def test_jacobian_condition_is_either_inequality(m: int, n: int) -> None:
    for r in range(1, 40):
        expected = r <= (m - 1) * (n - 1) or 2 * r * (r - 1) <= m * (m - 1) * n * (n - 1)
        assert jacobian_cpd(m, n, r).holds == expected
        assert jacobian_cpd(m, n, r, degree=2).holds == (expected and r <= comb(m + 1, m))


@pytest.mark.parametrize(("m", "n"), [(3, 3), (4, 3), (5, 4)])
def test_jacobian_condition_holds_where_few_enough_matrices_are_of_rank_one(m: int, n: int) -> None:
    """At the border the third factor of the Jacobians is of full rank, and so are the compound matrices below it."""
    r = (1 + int((1 + 2 * m * (m - 1) * n * (n - 1)) ** 0.5)) // 2
    factors = random_layer(m, n, r, Monomial(6))
    assert compounds(factors, cube(200, m)).holds
    assert not compounds(random_layer(m, n, r + 1, Monomial(6)), cube(200, m)).holds


def test_parameter_count_is_never_below_the_largest_rank() -> None:
    for (m, n, degree), largest in LARGEST.items():
        assert parameter_count(m, n, largest, degree).holds
    assert parameter_count(2, 2, 5, 5).proves is False  # 35 parameters, 40 equations, but only 4 linear coefficients
    assert parameter_count(2, 2, 4, 5).proves is None


def test_thresholds_of_deep_networks() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        widths = torch.randint(2, 9, (4,), generator=generator).tolist()
        assert deep_monomial(widths, [2 * width - 1 for width in widths[1:-1]]).holds
        assert deep_monomial(widths, [2 * width + 1 for width in widths[1:-1]], biases=True).holds
    assert deep_monomial([4, 3, 2], [3]).holds == monomial_kruskal(4, 2, 3, 3).holds
    narrow = deep_monomial([2, 4, 4, 2], [7, 3])
    assert narrow.holds is False
    assert "hidden layer 2 has the power 3, and for widths 2, 4, 2 the power 6 is enough" in narrow.reason
    assert deep_monomial([2, 4, 4, 2], [7, 6]).holds
    assert "no power is enough" in deep_monomial([1, 2, 2], [9]).reason


def test_deep_networks_refuse_numbers_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="got 3 widths and 2 degrees"):
        deep_monomial([2, 3, 2], [2, 2])
    with pytest.raises(ValueError, match=r"widths\[1\] must be a whole number of at least 1, got 0"):
        deep_monomial([2, 0, 2], [2])


def minors(columns: Tensor) -> Tensor:
    """The second compound matrix, by its definition."""
    rows, pairs = combinations(range(len(columns)), 2), list(combinations(range(columns.shape[1]), 2))
    return torch.stack([torch.stack([torch.det(columns[list(row)][:, list(pair)]) for pair in pairs]) for row in rows])


@pytest.mark.parametrize("r", [2, 4, 5])
def test_compounds_are_those_of_the_definition(r: int) -> None:
    factors, inputs = random_layer(3, 3, r, Monomial(4)), cube(60, 3)
    product = torch.einsum("ap,bp->abp", minors(factors.W), minors(factors.V)).flatten(0, 1)
    assert compounds(factors, inputs).holds == (torch.linalg.matrix_rank(product) == comb(r, 2))


def test_compounds_need_slopes_of_full_rank() -> None:
    assert "slopes H" in compounds(random_layer(3, 3, 2, Monomial(1)), cube(20, 3)).reason
    assert "slopes H" in compounds(random_layer(3, 3, 3, Monomial(3)), cube(2, 3)).reason
    large = compounds(random_layer(3, 3, 80, Monomial(3)), cube(100, 3))
    assert large.holds is None
    assert large.proves is None
    assert "does not apply" in str(large)


def test_collinear_and_dead_columns_are_named() -> None:
    V = torch.tensor([[1.0, -2.0, 0.0, 0.0], [1.0, -2.0, 1.0, 0.0]], dtype=torch.float64)
    condition = distinct_directions(V)
    assert condition.proves is False
    assert "g1, g2 are collinear" in condition.reason
    assert distinct_directions(V[:, 1:]).proves is None
    factors = layer(V, torch.ones(2, 4), torch.ones(4, 2))
    assert "g4 contributes nothing" in live_nodes(factors, cube(20, 2)).reason
    still = TWO_NODES.with_activations(0, coefficients=TWO_NODES.only.coefficients * torch.tensor([[1.0], [0.0]]))
    assert "g2 contributes" in live_nodes(still, cube(20, 2)).reason
    assert live_nodes(TWO_NODES, cube(20, 2)).holds


# The local test


def values(factors: Factors, inputs: Tensor) -> Tensor:
    """The activations of the only layer at the samples."""
    return factors.only.values(factors.arguments(inputs)[0])


def dense_tangents(factors: Factors, inputs: Tensor) -> Tensor:
    """The derivatives of relative outputs and Jacobians in (V, C, a, W), node after node, by autograd."""
    F = factors.outputs(inputs)
    size_f, size_j = (F - F.mean(0)).norm(), factors.jacobians(inputs).norm()

    def stacked(V: Tensor, C: Tensor, a: Tensor, W: Tensor) -> Tensor:
        moved = factors.with_map(0, V).with_map(-1, W.mT).with_activations(0, coefficients=C, shift=a)
        F = moved.outputs(inputs)
        return torch.cat([((F - F.mean(0)) / size_f)[..., None], moved.jacobians(inputs) / size_j], -1)

    one = factors.only
    parts = jacrev(stacked, argnums=(0, 1, 2, 3))(factors.V, one.coefficients, one.shift, factors.W)
    V, C, a, W = (part.flatten(0, 2) for part in parts)
    return torch.cat([V.transpose(1, 2), C, a[..., None], W.transpose(1, 2)], -1).flatten(1)


BASES = [
    Monomial(1),
    Monomial(3),
    Chebyshev(4),
    BSpline(6),
    BSpline(5, degree=1),
    PositiveHinge(3),
    Smooth(BSpline(5), 0.1),
]


@pytest.mark.parametrize("basis", BASES, ids=repr)
def test_tangents_are_those_of_autograd(basis: Basis) -> None:
    small = compact(random_layer(4, 5, 3, basis), cube(30, 4))
    assert (len(small.factors.V), len(small.factors.W), small.more_inputs, small.more_outputs) == (3, 3, 1, 2)
    torch.testing.assert_close(moves(small).matrix(), dense_tangents(small.factors, small.inputs))


def test_compact_coordinates_are_the_same_layer() -> None:
    factors, inputs = random_layer(6, 5, 3, BSpline(8)).with_activations(0, shift=draw(3)), 2 + cube(40, 6)
    small = compact(factors, inputs)
    torch.testing.assert_close(values(small.factors, small.inputs), values(factors, inputs))


@pytest.mark.parametrize("basis", [Monomial(3), BSpline(6), Hinge(4)], ids=repr)
@pytest.mark.parametrize("sizes", [(2, 2, 2), (4, 3, 2), (5, 1, 2), (1, 4, 1), (2, 2, 4)])
def test_rank_is_that_of_the_dense_matrix(basis: Basis, sizes: tuple[int, int, int]) -> None:
    m, n, r = sizes
    factors, inputs = random_layer(m, n, r, basis), cube(80, m, 1.5)
    test = local_rank(factors, inputs)
    dense = dense_tangents(factors, inputs)
    assert test.rank == torch.linalg.matrix_rank(dense / dense.norm(dim=0), rtol=1e-9)
    alone = [torch.linalg.matrix_rank(one / one.norm(dim=0), rtol=1e-9) for one in dense.chunk(r, 1)]
    assert test.alone == sum(alone)


@pytest.mark.parametrize("seed", range(3))
def test_conditions_are_norms_of_the_pseudo_inverse(seed: int) -> None:
    """The largest relative error of a node is found among all moves of all parameters, in dense algebra."""
    factors, inputs = random_layer(2, 2, 2, BSpline(5), seed), cube(60, 2)
    inputs = (inputs - inputs.mean(0)) / inputs.std(0, correction=0)
    factors = factors.with_map(-1, (factors.W / factors.outputs(inputs).std(0, correction=0)[:, None]).mT)
    dense = dense_tangents(factors, inputs)
    inverse = torch.linalg.pinv(dense, rtol=1e-10)
    F, J = factors.outputs(inputs), factors.jacobians(inputs)
    for node, condition in enumerate(local_rank(factors, inputs).conditions):
        columns = slice(node * dense.shape[1] // 2, (node + 1) * dense.shape[1] // 2)
        only = factors.with_map(-1, (factors.W * (torch.arange(2) == node)).mT)
        part = only.outputs(inputs)
        shares = (part - part.mean(0)).norm() / (F - F.mean(0)).norm(), only.jacobians(inputs).norm() / J.norm()
        grown = torch.linalg.matrix_norm(dense[:, columns] @ inverse[columns], ord=2)
        assert condition == pytest.approx((grown * 2**0.5 / torch.stack(shares).norm()).item(), rel=1e-6)


def test_one_node_is_as_well_known_as_the_samples() -> None:
    assert local_rank(random_layer(5, 4, 1, BSpline(8)), cube(100, 5)).conditions == pytest.approx([1.0])


@pytest.mark.parametrize(("sizes", "largest"), LARGEST.items(), ids=str)
def test_largest_rank(sizes: tuple[int, int, int], largest: int) -> None:
    assert largest_rank(*sizes) == largest
    m, n, degree = sizes
    over = local_rank(*_random_layer(m, n, degree, largest + 1, torch.Generator().manual_seed(5)))
    assert over.exchanges == over.defect > 0


@pytest.mark.parametrize("sizes", [(3, 3, 3, 5), (4, 2, 3, 6), (2, 4, 5, 3), (1, 1, 4, 1)])
@pytest.mark.parametrize("family", [Monomial, Chebyshev])
def test_expected_rank_of_polynomials(
    sizes: tuple[int, int, int, int], family: type[Monomial] | type[Chebyshev]
) -> None:
    m, n, degree, r = sizes
    test = local_rank(random_layer(m, n, r, family(degree)), cube(100, m))
    assert test.expected == r * (m + n + degree - 2)


@pytest.mark.parametrize(
    ("basis", "functions"), [(BSpline(10), 11), (BSpline(6, degree=1), 7), (Hinge(5), 7), (Smooth(BSpline(7), 0.1), 8)]
)
def test_expected_rank_of_piecewise_functions(basis: Basis, functions: int) -> None:
    """The shift and the scale move the knots, so they count; of B-splines the constant does not."""
    test = local_rank(random_layer(3, 4, 2, basis), cube(300, 3, 2.0))
    assert test.expected == 2 * (3 + 4 - 2 + functions)
    assert test.defect == 0


def test_local_test_does_not_see_scale_order_and_units() -> None:
    inputs = cube(100, 2, 1.5)
    before = local_rank(THREE_NODES, inputs)
    scales = torch.tensor([3.0, -0.2, 10.0], dtype=torch.float64)
    sizes = torch.tensor([-5.0, 0.1, 2.0], dtype=torch.float64)
    after = local_rank(transformed(THREE_NODES, [2, 0, 1], scales, sizes), inputs)
    assert (before.rank, before.alone, before.expected) == (after.rank, after.alone, after.expected) == (15, 15, 15)
    assert [before.conditions[node] for node in (2, 0, 1)] == pytest.approx(after.conditions, rel=1e-6)
    units = torch.tensor([1e3, 1e-2], dtype=torch.float64)
    other = local_rank(THREE_NODES.with_map(0, THREE_NODES.V / units[:, None]), inputs * units + 5 * units)
    shifted = local_rank(THREE_NODES, inputs + 5)
    assert other.rank == 15
    assert other.conditions == pytest.approx(shifted.conditions, rel=1e-5)


def test_two_bases_of_one_span_have_one_condition_number() -> None:
    monomials, inputs = random_layer(3, 3, 4, Monomial(3)), cube(100, 3)
    c = monomials.only.coefficients  # t^2 = (T2 + 1) / 2, t^3 = (T3 + 3 T1) / 4
    chebyshev = torch.stack([c[:, 0] + 0.75 * c[:, 2], c[:, 1] / 2, c[:, 2] / 4], 1)
    other = monomials.with_activations(0, basis=Chebyshev(3), coefficients=chebyshev)
    assert local_rank(monomials, inputs).conditions == pytest.approx(local_rank(other, inputs).conditions, rel=1e-6)


def test_random_combinations_keep_rank_and_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    factors, inputs = random_layer(6, 5, 4, BSpline(6)), cube(400, 6, 2.0)
    every = local_rank(factors, inputs)
    monkeypatch.setattr(tenflex.identify.tangents, "NUMBERS", 0)
    assert len(moves(compact(factors, inputs)).matrix()) < 0.1 * 400 * 5 * 7
    some = local_rank(factors, inputs)
    assert (some.rank, some.alone, some.expected) == (every.rank, every.alone, every.expected)
    assert some.conditions == pytest.approx(every.conditions, rel=0.5)


def test_many_inputs_cost_no_more_than_the_span_of_the_nodes() -> None:
    factors, inputs = random_layer(3000, 400, 2, Monomial(3)), draw(50, 3000)
    assert compact(factors, inputs).parameters == 2 * (2 + 2 + 3 + 1)
    test = local_rank(factors, inputs)
    assert test.rank == test.expected == 2 * (3000 + 400 + 3 - 2)


def test_too_few_samples_show_as_a_defect() -> None:
    assert local_rank(THREE_NODES, cube(20, 2)).defect == 0
    assert local_rank(THREE_NODES, cube(2, 2)).defect == 15 - 10  # two samples of 6 numbers, of which 2 are means


def test_local_test_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"at least 2 samples of 2 numbers, \(S, 2\), got shape \(5, 3\)"):
        local_rank(TWO_NODES, cube(5, 3))
    with pytest.raises(ValueError, match="all inputs are the same"):
        local_rank(TWO_NODES, torch.ones(5, 2))
    with pytest.raises(ValueError, match="coefficients must be finite"):
        local_rank(TWO_NODES.with_activations(0, coefficients=TWO_NODES.only.coefficients / 0), cube(5, 2))
    with pytest.raises(TypeError, match="inputs must be real floating-point numbers"):
        local_rank(TWO_NODES, torch.ones(5, 2, dtype=torch.int64))
    monkeypatch.setattr(tenflex.identify.local, "MOST_PARAMETERS", 15)
    with pytest.raises(ValueError, match=r"up to 15 parameters .* got 16: use fewer nodes"):
        local_rank(TWO_NODES, cube(20, 2))
    with pytest.raises(ValueError, match="degree must be a whole number of at least 1, got 0"):
        largest_rank(2, 2, 0)


# Verdicts


def test_problem_1_is_globally_unique() -> None:
    verdict = identify(TWO_NODES, cube(50, 2))
    assert verdict.uniqueness is Uniqueness.GLOBAL
    assert verdict.trusted
    assert verdict.trusted_nodes == (0, 1)
    assert str(verdict).startswith("Trust the nodes.\n  unique: ")
    assert identify(TWO_NODES).uniqueness is Uniqueness.GLOBAL  # polynomials: where the inputs are does not matter


def test_problem_3_is_locally_unique_though_its_jacobian_tensor_is_not() -> None:
    verdict = identify(THREE_NODES, cube(100, 2, 1.5))
    assert verdict.uniqueness is Uniqueness.LOCAL
    assert verdict.trusted
    holds = {condition.name: condition.holds for condition in verdict.conditions}
    assert holds["parameter count"]
    assert not holds["Jacobian CPD"]
    assert not holds["compound matrices"]


@pytest.mark.parametrize(("planted", "half"), [(TWO_NODES, 1.0), (THREE_NODES, 1.5)])
def test_a_solution_that_is_trusted_is_the_planted_truth(planted: Factors, half: float) -> None:
    inputs = cube(100, 2, half)
    solution = decouple(Problem(samples_of(planted, inputs), *planted.ranks, planted.only.basis))
    verdict = identify(solution)
    assert verdict.trusted
    assert verdict.error == pytest.approx(((solution.output_error**2 + solution.jacobian_error**2) / 2) ** 0.5)
    found = align(solution.factors, planted, inputs)
    assert found.factor_error < 1e-6
    assert found.activation_error < 1e-6


def test_problem_4_fits_but_is_not_recovered(generator: torch.Generator) -> None:
    def function(x: Tensor) -> Tensor:
        t = x[0] + x[1]
        return torch.stack([2.5 + torch.sin(0.2 * torch.pi * t), -5 + torch.tanh(t)])

    samples = sampled(function, torch.randn(200, 2, generator=generator, dtype=torch.float64))
    verdict = identify(decouple(Problem(samples, 2, Monomial(5))))
    assert verdict.uniqueness is Uniqueness.NONE
    assert verdict.collinear == ((0, 1),)
    assert verdict.local.exchanges == 2  # w_1 can take from w_2, and w_2 from w_1
    assert not verdict.trusted
    assert "good for fit, not for recovery" in str(verdict)


def test_more_nodes_than_the_largest_rank_are_not_unique() -> None:
    verdict = identify(random_layer(2, 2, 4, Monomial(3)))
    assert verdict.uniqueness is Uniqueness.NONE
    assert verdict.local.exchanges == 2
    assert verdict.local.conditions == (inf,) * 4
    assert next(one for one in verdict.conditions if one.name == "parameter count").proves is False


def test_linear_nodes_are_not_unique() -> None:
    straight = TWO_NODES.with_activations(0, coefficients=torch.tensor([[1.0, 0, 0], [2.0, 0, 0]]).double())
    verdict = identify(straight)
    assert verdict.uniqueness is Uniqueness.NONE
    assert verdict.linear == (0, 1)
    assert "g1, g2 are linear on the samples" in str(verdict)
    one_straight = TWO_NODES.with_activations(0, coefficients=torch.tensor([[1.0, 0, 0], [2.0, 1, 0]]).double())
    assert identify(one_straight).trusted


def test_a_linear_node_of_a_scalar_map_is_not_unique() -> None:
    """x1 + (x1 + x2)^2 = (x1 + c (x1 + x2)) + [(x1 + x2)^2 - c (x1 + x2)]."""
    verdict = identify(layer([[1, 1], [0, 1]], [[1, 1]], [[1, 0], [0, 1]]))
    assert verdict.uniqueness is Uniqueness.NONE
    assert verdict.local.exchanges == 1


@pytest.mark.parametrize("bend", [0.0, 1e-14, 1e-13, 1e-11, 1e-9, 1e-8])
def test_rounding_adds_no_direction(bend: float) -> None:
    """A node that is straight but for rounding moves in the directions of a straight one."""
    coefficients = [[-0.6, 0, 1], [0.5, 1, bend], [2.0, bend, -bend]]
    found = local_rank(layer([[1, 1, 1], [2, -1, -0.9]], [[1, 0, -0.08], [1, 1, 1]], coefficients), cube(60, 2))
    assert (found.rank, found.alone, found.expected) == (14, 15, 15)


# Jacobians that were estimated


@pytest.mark.parametrize("form", ["diagonal", "block", "full"])
def test_a_covariance_that_is_alike_in_all_directions_changes_nothing(form: str) -> None:
    inputs = cube(40, 2)
    plain = local_rank(THREE_NODES, inputs)
    m, n = len(THREE_NODES.V), len(THREE_NODES.W)
    units = THREE_NODES.outputs(inputs).var(0, correction=0)[:, None] / inputs.var(0, correction=0)
    variances = units.expand(40, n, m)  # alike for inputs and outputs of unit variance
    forms = {
        "diagonal": variances,
        "block": torch.diag_embed(variances.flatten(1)),
        "full": torch.diag(variances.flatten()),
    }
    found = told_rank(THREE_NODES, inputs, 7 * forms[form])
    assert (found.rank, found.alone, found.expected) == (plain.rank, plain.alone, plain.expected)
    assert found.conditions == pytest.approx(plain.conditions, rel=1e-6)


def test_what_is_known_does_not_depend_on_units() -> None:
    inputs, units = cube(40, 2), torch.tensor([1e3, 1e-2], dtype=torch.float64)
    mixed = draw(40, 2 * len(THREE_NODES.W), 8)
    covariance = mixed @ mixed.mT
    scale = units.repeat(len(THREE_NODES.W))
    before = told_rank(THREE_NODES, inputs, covariance)
    moved = THREE_NODES.with_map(0, THREE_NODES.V / units[:, None])
    after = told_rank(moved, inputs * units, covariance / scale / scale[:, None])
    assert after.conditions == pytest.approx(before.conditions, rel=1e-6)
    assert told_rank(THREE_NODES, inputs, 100 * covariance).conditions == pytest.approx(before.conditions, rel=1e-6)
    of_outputs = torch.tensor([1e4, 1e-3], dtype=torch.float64)
    scale = of_outputs.repeat_interleave(2)
    after = told_rank(
        THREE_NODES.with_map(-1, THREE_NODES.W.mT * of_outputs), inputs, covariance * scale * scale[:, None]
    )
    assert after.conditions == pytest.approx(before.conditions, rel=1e-6)


@pytest.mark.parametrize("units", [(1.0, 1e6), (1e-6, 1e5)], ids=repr)
@pytest.mark.parametrize("apart", [False, True])
def test_verdicts_do_not_depend_on_units(units, apart) -> None:
    """Directions and strengths were once compared as they stand: nodes of small units were dead, or collinear."""
    of = torch.tensor(units, dtype=torch.float64)

    def f(z: Tensor) -> Tensor:
        u = z / of
        return torch.stack([u[0] ** 2, u[1] ** 3] if apart else [(u[0] + u[1]) ** 2, (u[0] - 2 * u[1]) ** 3])

    verdict = identify(decouple(Problem(sample(f, cube(100, 2) * of), 2, Monomial(3))))
    assert verdict.trusted
    assert (verdict.uniqueness.name, verdict.dead, verdict.collinear) == ("GLOBAL", (), ())


@pytest.mark.parametrize("unit", [1e-9, 1e3, 1e9])
def test_verdicts_do_not_depend_on_units_of_outputs(unit: float) -> None:
    """A small output was once next to nothing beside a large one, so that nodes seemed to move unseen."""
    inputs, units = cube(100, 2, 1.5), torch.tensor([unit, 1.0], dtype=torch.float64)
    scaled = THREE_NODES.with_map(-1, THREE_NODES.W.mT * units)
    plain, found = identify(THREE_NODES, inputs), identify(scaled, inputs)
    assert found.uniqueness is plain.uniqueness is Uniqueness.LOCAL
    assert found.trusted
    assert found.node_errors == pytest.approx(plain.node_errors, rel=1e-6)


@pytest.mark.parametrize("coordinates", [Standardize(), PerOutput(Sensitivity())], ids=repr)
def test_noisy_solutions_are_known_as_well_in_any_units(coordinates: Coordinates) -> None:
    inputs, noise = cube(100, 2, 1.5), draw(100, 2, 3)
    exact = samples_of(THREE_NODES, inputs)
    bounds = []
    for unit in (1.0, 1e6):
        units = torch.tensor([unit, 1.0], dtype=torch.float64)
        rows = 1 + 1e-4 * noise[:, :, :1], 1 + 1e-4 * noise[:, :, 1:]
        samples = Samples(inputs, exact.outputs * rows[0][..., 0] * units, exact.jacobians * rows[1] * units[:, None])
        start = THREE_NODES.with_map(-1, THREE_NODES.W.mT * units)
        problem = Problem(samples, 3, THREE_NODES.only.basis, coordinates=coordinates)
        verdict = identify(decouple(problem, start=start))
        assert verdict.trusted
        bounds.append(max(verdict.node_errors))
    assert max(bounds) < 0.05
    if isinstance(coordinates, PerOutput):
        assert bounds[1] == pytest.approx(bounds[0], rel=0.01)


def test_nodes_that_interpolate_noise_are_not_trusted() -> None:
    """Two samples of nothing are fitted exactly, by nodes that are the only ones; three are not."""
    for count, expected in ((2, True), (3, False)):
        inputs = cube(count, 2)
        samples = Samples(inputs, draw(count, 2, seed=5), draw(count, 2, 2, seed=6))
        verdict = identify(decouple(Problem(samples, 2, Monomial(3), held_out=0)))
        assert verdict.interpolates is expected
        assert not verdict.trusted
    assert "those of any map are fitted" not in str(verdict)


def test_a_constant_output_beside_noise_changes_nothing() -> None:
    inputs, F, J = cube(2, 2), draw(2, 2, seed=5), draw(2, 2, 2, seed=6)
    samples = Samples(inputs, torch.cat([F, torch.ones(2, 1)], 1), torch.cat([J, torch.zeros(2, 1, 2)], 1))
    verdict = identify(decouple(Problem(samples, 2, Monomial(3), held_out=0)))
    assert verdict.interpolates
    assert not verdict.trusted


def test_few_samples_of_inputs_in_a_subspace_are_enough() -> None:
    """Of 200 inputs that are three: ten samples tell more of two nodes than they can adapt to."""
    axes = torch.linalg.qr(draw(200, 3)).Q
    planted = layer(axes @ draw(3, 2, seed=1), draw(2, 2, seed=2), draw(2, 3, seed=3))
    samples = samples_of(planted, draw(12, 3, seed=4) @ axes.mT)
    reduction = Whiten().choose(samples.inputs, samples.outputs, samples.jacobians)
    verdict = identify(decouple(Problem(samples.reduced(reduction), 2, Monomial(3), held_out=0)))
    assert not verdict.interpolates
    assert verdict.trusted


@pytest.mark.parametrize("rounding", [6e-8, 1e-15, 0.0])
def test_outputs_that_are_constant_but_for_rounding_do_not_count(rounding: float) -> None:
    exact = samples_of(TWO_NODES, cube(100, 2))
    third = 1 + rounding * draw(100, 1)
    samples = Samples(
        exact.inputs, torch.cat([exact.outputs, third], 1), torch.cat([exact.jacobians, torch.zeros(100, 1, 2)], 1)
    )
    assert identify(decouple(Problem(samples, 2, TWO_NODES.only.basis))).trusted


@pytest.mark.parametrize("offset", [1e6, 1e7, 1e9])
def test_verdicts_do_not_depend_on_offsets_of_outputs(offset: float) -> None:
    """A large mean leaves little of how an output varies, which is no rounding yet."""
    inputs, bias = cube(100, 2, 1.5), torch.tensor([offset, 0.0], dtype=torch.float64)
    moved = replace(THREE_NODES, bias=bias)
    plain, found = identify(THREE_NODES, inputs), identify(moved, inputs)
    assert found.node_errors == pytest.approx(plain.node_errors, rel=1e-6)
    assert identify(decouple(Problem(samples_of(moved, inputs), 3, THREE_NODES.only.basis))).trusted


def test_directions_that_no_sample_tells_of_are_not_trusted() -> None:
    """On a curve any direction does: what only derivatives across it could tell, nobody knows."""
    i = torch.arange(30, dtype=torch.float64)
    x = torch.stack([i / 10, i * i / 7], 1)
    solution = decouple(Problem(sample_table(x, i[:, None]), rank=1, basis=BSpline()))  # free to bend
    verdict = identify(solution)
    V = solution.factors.V[:, 0] * x.std(0)
    assert not verdict.trusted
    assert verdict.node_errors[0] > abs(float(V[1] / V.norm())) > 0.1
    assert solution.errors.fitted.jacobians > 100 * solution.jacobian_error  # which nothing across the curve enters


def test_nodes_that_cannot_be_exchanged_are_trusted_all_the_same() -> None:
    verdict = identify(layer([[1, 2, 0], [0, 0, 1]], [[1, 0, 1], [0, 1, 3]], [[1, 1, 1], [2, -1, 1], [0, 1, 2]]))
    assert verdict.collinear == ((0, 1),)
    assert verdict.trusted_nodes == (2,)
    assert verdict.advice == "Trust g3 only: the others are good for fit, not for recovery."
    assert "; g3 cannot" in str(verdict)


def test_a_dead_node_is_not_trusted() -> None:
    dead = TWO_NODES.with_map(-1, (TWO_NODES.W * torch.tensor([1.0, 0.0])).mT)
    verdict = identify(dead)
    assert verdict.dead == (1,)
    assert verdict.uniqueness is Uniqueness.NONE
    assert verdict.trusted_nodes == (0,)
    nothing = identify(TWO_NODES.with_map(-1, 0 * TWO_NODES.W.mT))
    assert nothing.dead == (0, 1)
    assert nothing.trusted_nodes == ()


def test_node_errors_bound_the_true_errors() -> None:
    """Splines fit sine and hyperbolic tangent approximately: the error of the fit comes back multiplied."""
    planted, inputs = random_layer(3, 2, 2, BSpline(8)), draw(300, 3)

    def function(x: Tensor) -> Tensor:
        t = x @ planted.V
        return planted.W @ torch.stack([torch.tanh(2 * t[0]), torch.sin(2 * t[1])])

    verdict = identify(solution := decouple(Problem(sampled(function, inputs), 2, BSpline(8))))
    assert verdict.trusted
    t = inputs @ planted.V
    G = torch.stack([torch.tanh(2 * t[:, 0]), torch.sin(2 * t[:, 1])], 1)
    for node, k in enumerate(align(planted, solution.factors).permutation):
        truth = torch.outer(G[:, k] - G[:, k].mean(), planted.W[:, k])
        g = values(solution.factors, inputs)[:, node]
        error = (torch.outer(g - g.mean(), solution.factors.W[:, node]) - truth).norm() / truth.norm()
        assert error < verdict.node_errors[node]


def test_an_approximation_is_not_a_recovery() -> None:
    samples = sampled(lambda x: torch.stack([torch.sin(3 * x[0] * x[1]), x[0] ** 2 * x[1]]), cube(100, 2))
    verdict = identify(decouple(Problem(samples, 2, Monomial(3))))
    assert verdict.error > 0.1
    assert not verdict.trusted
    assert "the layer is an approximation" in verdict.advice


def test_a_solution_of_reduced_samples_is_judged_where_it_is_used() -> None:
    inputs = cube(100, 2) @ torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=torch.float64) + 0.3
    samples = samples_of(TWO_NODES, inputs)
    reduced = samples.reduced(Whiten().choose(samples.inputs, samples.outputs))
    verdict = identify(decouple(Problem(reduced, 2, Monomial(3))))
    assert verdict.trusted
    expected = local_rank(TWO_NODES, inputs).conditions
    assert sorted(verdict.local.conditions) == pytest.approx(sorted(expected), rel=1e-6)


def test_functions_that_no_sample_reaches_are_reported_but_leave_the_nodes_unique() -> None:
    verdict = identify(random_layer(3, 3, 2, BSpline(10)), cube(200, 3, 0.3))
    assert verdict.local.exchanges == 0 < verdict.local.defect
    assert verdict.trusted
    assert "functions of the basis that no sample reaches" in str(verdict)


def test_layers_too_large_for_the_local_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenflex.identify.local, "MOST_PARAMETERS", 15)
    exact = identify(TWO_NODES)
    assert exact.uniqueness is Uniqueness.GLOBAL
    assert not exact.trusted
    assert exact.advice.startswith("Trust the nodes if the samples are exact")
    unknown = identify(THREE_NODES)
    assert unknown.uniqueness is Uniqueness.UNKNOWN
    assert unknown.local is unknown.node_errors is None
    assert not unknown.trusted


def test_several_layers_are_not_judged() -> None:
    one, two = random_layer(3, 4, 2, Monomial(2)), random_layer(4, 2, 3, Monomial(2), seed=5)
    between = (one.map(-1) @ two.map(0),)
    both = Factors((one.maps[0], between, two.maps[-1]), (*one.activations, *two.activations), two.bias)
    for judge in (identify, local_rank, live_nodes):
        with pytest.raises(ValueError, match="one layer, got 2 of 2 and 3 nodes"):
            judge(both, cube(20, 3))
    with pytest.raises(ValueError, match="the uniqueness is known of one layer, got 2 of 2 and 3 nodes"):
        identify(
            Solution(
                both,
                Problem(samples_of(both, cube(20, 3)), (2, 3), Monomial(2)),
                Result.EXACT,
                (Record("by hand", 0, 0, None, 0),),
            )
        )


def test_identify_asks_for_inputs_and_draws_none_from_the_global_generator(unchanged_rng: Callable) -> None:
    with pytest.raises(ValueError, match=r"inputs are needed for BSpline\(.*\): pass points \(S, m\)"):
        identify(random_layer(2, 2, 2, BSpline(6)))
    with pytest.raises(TypeError, match=r"expected a tenflex.Factors or a tenflex.Solution, got Tensor"):
        identify(torch.zeros(3))
    with unchanged_rng():
        identify(TWO_NODES)
        largest_rank(2, 2, 3)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_a_node_has_no_more_directions_than_are_expected(degree: int) -> None:
    """The shift of a straight line moves nothing but the constant, which is no direction."""
    f = Polynomial.from_string("a+b" if degree == 1 else f"(a+b)^{degree}+a")
    samples = sample(f, torch.rand(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    local = identify(decouple(Problem(samples, rank=min(degree, 2), basis=Monomial(degree)))).local
    assert local.rank <= local.expected
    assert degree > 1 or (local.rank, local.alone) == (2, 2)
