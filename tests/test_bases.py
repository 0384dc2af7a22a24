"""Families of scalar functions against autograd, scipy and the formulas they are named for."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pytest
import scipy.interpolate
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import jacfwd, vmap

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
from tenflex.bases.base import quadrature
from tenflex.bases.bspline import spread
from tenflex.bases.orthonormal import Orthonormal
from tenflex.bases.piecewise import PiecewiseBasis

# torch itself scripts functions when forward mode is used for the first time.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")

NODES = 3


def fitted(count: int, degree: int) -> Basis:
    """Quantile knots of three nodes: even, crowded in the middle, and crowded at the right end."""
    t = torch.linspace(-1, 1, 201, dtype=torch.float64)
    return BSpline(count, degree, "quantile").fit(torch.stack([t, t**3, 1 - 2 * t.abs() ** 3], 1))


# A new basis is one row.
SHARED = [
    BSpline(),
    BSpline(4),
    BSpline(5, degree=1),
    BSpline(2, degree=1),
    BSpline(6, degree=2),
    BSpline(6, spacing="quantile"),
    Chebyshev(1),
    Chebyshev(5),
    Hinge(1),
    Hinge(6),
    Monomial(1),
    Monomial(4),
    PositiveHinge(1),
    PositiveHinge(5),
    TwoSidedHinge(2),
    TwoSidedHinge(6),
    Smooth(BSpline(7), 0.1),
    Smooth(Hinge(3)),
    Monotone(BSpline(7)),
    NonNegative(Smooth(Monomial(4))),
]
PER_NODE = [fitted(4, 3), fitted(9, 3), fitted(7, 2), fitted(6, 1), Smooth(fitted(8, 3), 1.0), Monotone(fitted(7, 3))]
RECOMBINED = [
    Orthonormal(BSpline(8)),
    Orthonormal(Monomial(5)),
    Orthonormal(TwoSidedHinge(4)),
    Orthonormal(fitted(7, 3), template=BSpline(7)),
]
BASES = [*SHARED, *PER_NODE, *RECOMBINED]
PIECEWISE = [basis for basis in BASES if isinstance(basis, PiecewiseBasis)]


def name(basis: Basis) -> str:
    """The settings, with the many knots left out."""
    inside = getattr(basis, "basis", None)
    if inside is not None:
        return f"{type(basis).__name__}({name(inside)})"
    text = ",".join(str(getattr(basis, one.name)) for one in dataclasses.fields(basis) if one.name != "knots")
    return f"{type(basis).__name__}({text}{',fitted' if basis.nodes else ''})"


all_bases = pytest.mark.parametrize("basis", BASES, ids=name)


@pytest.fixture
def t(generator) -> Tensor:
    """Inputs of three nodes, inside and outside of the interval."""
    return 4 * torch.rand(40, NODES, generator=generator, dtype=torch.float64) - 2


@pytest.fixture
def coefficients(generator) -> Callable[[Basis], Tensor]:
    return lambda basis: torch.randn(NODES, basis.size, generator=generator, dtype=torch.float64)


# ---- values and derivatives ----


@all_bases
def test_derivatives_are_those_of_value(basis, t):
    def slopes(function):
        """Node k's functions depend on t_k only: the diagonal in the nodes."""
        return vmap(jacfwd(function))(t).diagonal(dim1=1, dim2=3).mT

    torch.testing.assert_close(basis.derivative(t), slopes(basis.value))
    torch.testing.assert_close(basis.second_derivative(t), slopes(basis.derivative))


@pytest.mark.parametrize("basis", SHARED, ids=name)
def test_shared_functions_take_inputs_of_any_shape(basis, t):
    for method in (basis.value, basis.derivative, basis.second_derivative):
        flat = method(t.flatten())
        assert flat.shape == (t.numel(), basis.size)
        torch.testing.assert_close(method(t.view(2, 4, 5, NODES)), flat.view(2, 4, 5, NODES, basis.size))
        torch.testing.assert_close(method(t[0, 0]), flat[0])
        torch.testing.assert_close(vmap(method)(t.flatten()), flat)


@all_bases
def test_sums_are_those_of_the_dense_functions(basis, t, coefficients):
    c = coefficients(basis)
    dense = [torch.einsum("srd,rd->sr", one(t), c) for one in (basis.value, basis.derivative, basis.second_derivative)]
    torch.testing.assert_close(basis.combine(t, c), dense[0])
    for one, other in zip(basis.curves(t, c), dense, strict=True):
        torch.testing.assert_close(one, other)


@all_bases
def test_pull_is_the_adjoint_of_curves(basis, t, coefficients, generator):
    c = coefficients(basis)
    to_g, to_h = torch.randn(2, *t.shape, generator=generator, dtype=t.dtype)
    G, H, _ = basis.curves(t, c)
    pulled = basis.pull(t, to_g, to_h)
    assert pulled.shape == c.shape
    torch.testing.assert_close((pulled * c).sum(), (to_g * G + to_h * H).sum())


@all_bases
def test_combine_acts_on_the_last_dimension_of_any_batch(basis, t, coefficients):
    c = coefficients(basis)
    rows = basis.combine(t, c)
    torch.testing.assert_close(basis.combine(t.view(2, 4, 5, NODES), c), rows.view(2, 4, 5, NODES))
    torch.testing.assert_close(basis.combine(t[0], c), rows[0])
    torch.testing.assert_close(vmap(lambda one: basis.combine(one, c))(t), rows)


@all_bases
def test_combine_is_differentiable_in_both_arguments(basis, t, coefficients):
    t, c = t[:5].requires_grad_(), coefficients(basis).requires_grad_()
    assert torch.autograd.gradcheck(basis.combine, (t, c))
    assert torch.autograd.gradcheck(basis.combine, (t, c), check_forward_ad=True, check_backward_ad=False)


@all_bases
def test_float32_is_float64_rounded(basis, t, coefficients):
    c = coefficients(basis)
    for method in (basis.value, basis.derivative, basis.second_derivative):
        single, double = method(t.float()), method(t)
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-5 * double.abs().max().item() + 1e-30)
    single, double = basis.combine(t.float(), c.float()), basis.combine(t, c)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-5 * double.abs().max().item())


@all_bases
def test_nan_stays_where_it_is(basis, t, coefficients):
    c = coefficients(basis)
    expected = basis.combine(t, c)
    t[3, 1] = torch.nan
    out = basis.combine(t, c)
    assert out[3, 1].isnan()
    out[3, 1] = expected[3, 1]
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


@pytest.mark.parametrize("basis", PIECEWISE, ids=name)
def test_far_inputs_meet_the_tails(basis, coefficients):
    c = coefficients(basis)
    for far in (-1e12, 1e12):
        t = torch.full((1, NODES), far, dtype=torch.float64)
        torch.testing.assert_close(basis.combine(t, c) / far, basis.combine(2 * t, c) / (2 * far))


# ---- pieces ----


def around_breaks(basis: PiecewiseBasis, distance: float) -> tuple[Tensor, Tensor]:
    """Points just left and just right of every break of every node."""
    breaks = basis.breaks().expand(NODES, -1).mT
    return breaks - distance, breaks + distance


@pytest.mark.parametrize("basis", PIECEWISE, ids=name)
def test_functions_are_continuous_at_breaks(basis):
    distance = 1e-9
    left, right = around_breaks(basis, distance)
    steepest = basis.derivative(torch.cat([left, right])).abs().max()
    assert (basis.value(right) - basis.value(left)).abs().max() <= 2.1 * distance * steepest


@pytest.mark.parametrize("basis", [one for one in PIECEWISE if getattr(one, "degree", 1) > 1], ids=name)
def test_splines_are_smooth_at_breaks(basis):
    distance = 1e-9
    left, right = around_breaks(basis, distance)
    sharpest = basis.second_derivative(torch.cat([left, right])).abs().max()
    assert (basis.derivative(right) - basis.derivative(left)).abs().max() <= 2.1 * distance * sharpest
    if basis.degree == 3:
        inner = slice(1, -1)  # the curvature is cut off at the ends, where the tails begin
        jumps = basis.second_derivative(right)[inner] - basis.second_derivative(left)[inner]
        narrowest = basis.breaks().diff().min()
        # The third derivative of a cubic B-spline is at most 6 / h^3 times a binomial coefficient.
        assert (jumps.abs() <= 2.1 * distance * 18 / narrowest**3).all()


@pytest.mark.parametrize("basis", PIECEWISE, ids=name)
def test_tails_are_tangents(basis):
    breaks = basis.breaks().expand(NODES, -1)
    ends = [breaks[:, 0] - 1e-12, breaks[:, -1] + 1e-12]
    for end, beyond in zip(ends, (-0.7, 0.7), strict=True):
        assert not basis.second_derivative(end + beyond).any()
        tangent = basis.value(end) + beyond * basis.derivative(end)
        torch.testing.assert_close(basis.value(end + beyond), tangent)


def full_knots(basis: BSpline, node: int) -> np.ndarray:
    """The knots of the literature: even ones go on evenly, the others are repeated at the ends."""
    p = basis.degree
    if basis.knots is None:
        step = 2 / (basis.count - p)
        return -1 + step * np.arange(-p, basis.count + 1)
    return np.concatenate([-np.ones(p + 1), basis.knots[node], np.ones(p + 1)])


@pytest.mark.parametrize("basis", [one for one in PIECEWISE if isinstance(one, BSpline)], ids=name)
def test_splines_are_those_of_scipy(basis, generator):
    t = 2 * torch.rand(100, generator=generator, dtype=torch.float64) - 1
    tables = [one(t[:, None].expand(-1, NODES)) for one in (basis.value, basis.derivative, basis.second_derivative)]
    for node in range(NODES):
        reference = scipy.interpolate.BSpline(full_knots(basis, node), np.eye(basis.size), basis.degree)
        for order, table in enumerate(tables[: basis.degree + 1]):
            expected = torch.from_numpy(reference(t.numpy(), nu=order))
            torch.testing.assert_close(table[:, node], expected, rtol=1e-9, atol=1e-9 * 10**order)


@pytest.mark.parametrize("basis", [one for one in PIECEWISE if isinstance(one, BSpline)], ids=name)
def test_splines_sum_to_one_everywhere(basis, t):
    torch.testing.assert_close(basis.value(t).sum(-1), torch.ones_like(t))
    inside = t.clamp(-1, 1)
    assert (basis.value(inside) >= -1e-12).all()


# ---- hinges, as the paper writes them ----


def hinge_on_positive(t: Tensor, d: int) -> Tensor:
    return torch.stack([torch.relu(t - (j - 1) / d * t.amax(0)) for j in range(1, d + 1)], -1)


def hinge_on_range(t: Tensor, d: int) -> Tensor:
    low, high = t.amin(0), t.amax(0)
    return torch.stack([torch.relu(t - (low + (j - 1) / d * (high - low))) for j in range(1, d + 1)], -1)


def hinge_two_sided(t: Tensor, d: int) -> Tensor:
    rights = [torch.relu(t - (j - 2) / (d - 1) * t.amax(0)) for j in range(2, d + 1)]
    return torch.stack([torch.relu(-t), *rights], -1)


@pytest.mark.parametrize(
    ("basis", "formula"),
    [
        (PositiveHinge(1), hinge_on_positive),
        (PositiveHinge(7), hinge_on_positive),
        (Hinge(1), hinge_on_range),
        (Hinge(7), hinge_on_range),
        (TwoSidedHinge(2), hinge_two_sided),
        (TwoSidedHinge(7), hinge_two_sided),
    ],
    ids=lambda one: name(one) if isinstance(one, Basis) else one.__name__,
)
def test_hinges_are_the_formulas_in_the_scale_of_the_node(basis, formula, generator):
    t = torch.randn(60, NODES, generator=generator, dtype=torch.float64) * torch.tensor([0.1, 1.0, 30.0])
    scale, shift = basis.place(t)
    torch.testing.assert_close(basis.value(scale * t + shift), scale[:, None] * formula(t, basis.size))


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_hinges_span_the_piecewise_linear_splines(count):
    t = torch.linspace(0, 1, 400, dtype=torch.float64)
    hinges = torch.cat([torch.ones(400, 1, dtype=torch.float64), Hinge(count).value(t)], 1)
    splines = BSpline(count + 1, degree=1).value(2 * t - 1)
    for one, other in ((hinges, splines), (splines, hinges)):
        torch.testing.assert_close(one @ torch.linalg.pinv(one) @ other, other)


# ---- the place of the data ----


@pytest.mark.parametrize("basis", [BSpline(), Chebyshev(3), Hinge(4), Monomial(3), PositiveHinge(4), TwoSidedHinge(4)])
@pytest.mark.parametrize("recombined", [False, True])
def test_place_brings_the_data_to_the_interval(basis, recombined, generator):
    spread_out = torch.tensor([1e-3, 1.0, 500.0])
    t = torch.rand(200, NODES, generator=generator, dtype=torch.float64) * spread_out + torch.tensor([5.0, -0.3, -100])
    scale, shift = (Orthonormal(basis) if recombined else basis).place(t)
    placed = scale * t + shift
    assert (scale > 0).all()
    low, high = basis.interval
    assert placed.max() <= high + 1e-12
    torch.testing.assert_close(placed.amax(0), torch.full((NODES,), high, dtype=t.dtype), rtol=0.1, atol=0)
    if isinstance(basis, (PositiveHinge, TwoSidedHinge)):
        assert not shift.any()
    else:
        torch.testing.assert_close(placed.amin(0), torch.full((NODES,), low, dtype=t.dtype), rtol=0.1, atol=1e-8)
        # A hair inside: at the ends slopes jump, and rounding would choose the side.
        assert (placed > low).all()
        assert (placed < high).all()


def test_splines_are_placed_by_mean_and_deviation(generator):
    t = torch.randn(4000, 1, generator=generator, dtype=torch.float64).exp()
    scale, shift = BSpline().place(t)
    torch.testing.assert_close(shift, -scale * t.mean(0))
    torch.testing.assert_close(scale, 1 / (3 * t.std(0, correction=0)))


@pytest.mark.parametrize("basis", [one for one in SHARED if isinstance(one, PiecewiseBasis)] + [Monomial(3)], ids=name)
@pytest.mark.parametrize("constant", [0.0, -7.0, 1e-3])
def test_a_node_that_never_moves_has_a_finite_place(basis, constant):
    scale, shift = basis.place(torch.full((50, 1), constant, dtype=torch.float64))
    assert scale.isfinite().all()
    assert shift.isfinite().all()
    assert (scale > 0).all()


# ---- quantile knots ----


def test_quantile_knots_lie_at_the_quantiles_of_each_node(generator):
    t = (2 * torch.rand(500, NODES, generator=generator, dtype=torch.float64) - 1) * torch.tensor([1.0, 0.9, 0.8])
    knots = torch.tensor(BSpline(8, spacing="quantile").fit(t).knots, dtype=torch.float64)
    torch.testing.assert_close(knots, torch.quantile(t, torch.linspace(0, 1, 6, dtype=t.dtype)[1:-1], dim=0).mT)


def test_even_knots_are_not_fitted(t):
    assert BSpline(8).fit(t) == BSpline(8)
    assert BSpline(8, spacing="quantile").stored_per_node == 4
    assert BSpline(8).stored_per_node == 0


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0, 5.0])
def test_knots_of_a_node_that_never_moves_are_apart(value, generator):
    basis = BSpline(10, spacing="quantile").fit(torch.full((30, 1), value, dtype=torch.float64))
    breaks = basis.breaks()
    assert (breaks.diff() > 0.03).all()
    out = basis.combine(torch.linspace(-2, 2, 50, dtype=torch.float64)[:, None], torch.ones(1, 10, dtype=torch.float64))
    torch.testing.assert_close(out, torch.ones_like(out))


@given(st.lists(st.floats(-1.5, 1.5), min_size=1, max_size=12), st.floats(0.001, 0.15))
def test_spread_keeps_knots_apart_and_moves_no_others(knots, gap):
    ordered = torch.tensor([sorted(knots)], dtype=torch.float64)
    apart = spread(ordered, gap)
    edges = torch.tensor([[1.0]], dtype=torch.float64)
    assert torch.cat([-edges, apart, edges], 1).diff().min() >= gap - 1e-12
    torch.testing.assert_close(spread(apart, gap), apart)
    if torch.cat([-edges, ordered, edges], 1).diff().min() >= gap:
        torch.testing.assert_close(apart, ordered)


def test_every_node_has_its_own_knots(t, coefficients):
    basis = fitted(8, 3)
    c = coefficients(basis)
    together = basis.combine(t, c)
    for node in range(NODES):
        alone = dataclasses.replace(basis, knots=basis.knots[node : node + 1])
        torch.testing.assert_close(together[:, node], alone.combine(t[:, node : node + 1], c[node : node + 1])[:, 0])


# ---- roughness ----


def gauss(low: float, high: float) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights: exact for polynomials to degree 39."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    half = (high - low) / 2
    return torch.from_numpy(low + half * (nodes + 1)), torch.from_numpy(half * weights)


@pytest.mark.parametrize("basis", [Monomial(1), Monomial(5), Chebyshev(4)], ids=name)
def test_roughness_of_polynomials_is_the_integral_of_the_squared_curvature(basis):
    nodes, weights = gauss(*basis.interval)
    curvature = basis.second_derivative(nodes)
    exact = torch.einsum("s,sd,se->de", weights, curvature, curvature)
    # The midpoint rule of 512 points: h^2 / 24 of the second derivative.
    torch.testing.assert_close(basis.roughness(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("basis", [BSpline(), BSpline(6, degree=1), BSpline(6, spacing="quantile")], ids=name)
def test_roughness_of_splines_is_the_squared_second_difference(basis, generator):
    c = torch.randn(basis.size, generator=generator, dtype=torch.float64)
    expected = (c[2:] - 2 * c[1:-1] + c[:-2]).square().sum()
    torch.testing.assert_close(c @ basis.roughness() @ c, expected)


@pytest.mark.parametrize("basis", [Hinge(1), Hinge(6), PositiveHinge(5), TwoSidedHinge(2), TwoSidedHinge(6)], ids=name)
def test_roughness_of_hinges_is_the_squared_jumps_of_slope_inside(basis, generator):
    c = torch.randn(basis.size, generator=generator, dtype=torch.float64)
    low, high = basis.interval
    inside = torch.tensor([one for one in basis.kinks().tolist() if low < one < high], dtype=torch.float64)
    jumps = (basis.derivative(inside + 1e-9) - basis.derivative(inside - 1e-9)) @ c
    torch.testing.assert_close(c @ basis.roughness() @ c, len(basis.kinks()) * jumps.square().sum())


@pytest.mark.parametrize("basis", [one for one in SHARED if one.size > 1], ids=name)
def test_straight_lines_are_not_rough(basis):
    t = torch.linspace(*basis.interval, 300, dtype=torch.float64)
    functions = torch.cat([basis.value(t), torch.ones(300, 1, dtype=t.dtype)], 1)
    line = torch.linalg.pinv(functions) @ t
    torch.testing.assert_close(functions @ line, t)
    c, roughness = line[:-1], basis.roughness()
    torch.testing.assert_close(c @ roughness @ c, torch.zeros_like(t[0]), rtol=0, atol=1e-12)
    assert torch.linalg.eigvalsh(roughness).min() >= -1e-9
    torch.testing.assert_close(roughness, roughness.mT)


# ---- orthonormal coordinates ----


@pytest.mark.parametrize("basis", [one for one in SHARED if not isinstance(one, Smooth)], ids=name)
def test_recombined_functions_are_orthonormal(basis):
    nodes, weights = quadrature(basis.interval)
    functions = Orthonormal(basis).value(nodes)
    eye = torch.eye(basis.size, dtype=torch.float64)
    torch.testing.assert_close(torch.einsum("s,sd,se->de", weights, functions, functions), eye)
    nodes, weights = quadrature(basis.interval, 100_000)
    functions = Orthonormal(basis).value(nodes)
    torch.testing.assert_close(torch.einsum("s,sd,se->de", weights, functions, functions), eye, rtol=0, atol=2e-3)


@pytest.mark.parametrize("basis", RECOMBINED, ids=name)
def test_recombined_coefficients_give_the_same_activations(basis, t, coefficients):
    c = coefficients(basis)
    plain = c @ basis.matrix(c).mT
    torch.testing.assert_close(basis.combine(t, c), basis.basis.combine(t, plain))
    assert torch.linalg.cond(basis.matrix(c)).isfinite()
    price = c[0] @ basis.roughness() @ c[0]
    torch.testing.assert_close(price, plain[0] @ basis.basis.roughness() @ plain[0])


def test_recombination_stays_when_the_knots_move(generator):
    basis = Orthonormal(BSpline(8, spacing="quantile"))
    t = 2 * torch.rand(100, NODES, generator=generator, dtype=torch.float64) - 1
    moved = basis.fit(t)
    assert moved.basis == basis.basis.fit(t)
    assert moved.nodes == NODES
    torch.testing.assert_close(moved.matrix(t), basis.matrix(t), rtol=0, atol=0)
    assert moved.fit(t) == moved
    torch.testing.assert_close(moved.value(t), moved.basis.value(t) @ basis.matrix(t))


# ---- values that are saved ----


@pytest.mark.parametrize("basis", [*SHARED, *PER_NODE], ids=name)
def test_json_brings_back_the_same_basis(basis, t):
    again = basis_from_dict(json.loads(json.dumps(basis_to_dict(basis))))
    assert again == basis
    assert hash(again) == hash(basis)
    torch.testing.assert_close(again.value(t), basis.value(t), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ("BSpline", r"expected a basis such as .* got 'BSpline'"),
        ({"count": 10}, r"expected a basis such as"),
        ({"family": 3}, r"expected a basis such as"),
        ({"family": "Bspline"}, r"no basis is called 'Bspline'; did you mean 'BSpline'"),
        ({"family": "zzz"}, r"no basis is called 'zzz'; known names: 'BSpline'"),
        ({"family": "BSpline", "counts": 10}, r"BSpline has no setting 'counts'; did you mean 'count'"),
        ({"family": "BSpline", "count": "10"}, r"count must be a whole number of at least 4, got '10'"),
        ({"family": "BSpline", "count": 3}, r"count must be a whole number of at least 4, got 3"),
        ({"family": "BSpline", "degree": 3.0}, r"degree must be 1, 2 or 3, got 3.0"),
        ({"family": "BSpline", "degree": [3]}, r"degree must be 1, 2 or 3, got \(3,\)"),
        ({"family": "Monomial"}, r"Monomial cannot be made from .* missing"),
        ({"family": "Smooth", "basis": 3}, r"Smooth cannot be made from .* basis must be a plain basis"),
        ({"family": "Smooth", "basis": {"family": "Hinge", "count": 0}}, r"count must be a whole number of at least 1"),
        ({"family": "BSpline", "spacing": "quantile", "knots": [[0.1]]}, r"knots must be 6 ascending numbers"),
        ({"family": "BSpline", "spacing": "quantile", "count": 5, "knots": []}, r"knots must be 1 ascending numbers"),
        ({"family": "BSpline", "spacing": "quantile", "count": 5, "knots": [[1.0]]}, r"between -1 and 1"),
        ({"family": "BSpline", "spacing": "quantile", "count": 6, "knots": [[0.2, 0.1]]}, r"2 ascending numbers"),
        ({"family": "BSpline", "spacing": "quantile", "count": 6, "knots": [[0.1, "a"]]}, r"2 ascending numbers"),
        ({"family": "BSpline", "spacing": "quantile", "count": 5, "knots": [[float("nan")]]}, r"1 ascending numbers"),
        ({"family": "BSpline", "spacing": "quantile", "count": 5, "knots": "abc"}, r"1 ascending numbers"),
        ({"family": "BSpline", "count": 5, "knots": [[0.0]]}, r"leave knots out, or choose spacing='quantile'"),
    ],
)
def test_what_is_no_saved_basis_is_refused(saved, message):
    with pytest.raises(ValueError, match=message):
        basis_from_dict(saved)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: BSpline(3), ValueError, r"count must be a whole number of at least 4, got 3"),
        (lambda: BSpline(1, degree=1), ValueError, r"count must be a whole number of at least 2, got 1"),
        (lambda: BSpline(10.0), ValueError, r"count must be a whole number of at least 4, got 10.0"),
        (lambda: BSpline(10, degree=4), ValueError, r"degree must be 1, 2 or 3, got 4"),
        (lambda: BSpline(10, degree=True), ValueError, r"degree must be 1, 2 or 3, got True"),
        (lambda: BSpline(10, spacing="odd"), ValueError, r"spacing must be 'even' or 'quantile', got 'odd'"),
        (lambda: Chebyshev(0), ValueError, r"degree must be a whole number of at least 1, got 0"),
        (lambda: Monomial(True), ValueError, r"degree must be a whole number of at least 1, got True"),
        (lambda: Hinge(0), ValueError, r"count must be a whole number of at least 1, got 0"),
        (lambda: PositiveHinge(-1), ValueError, r"count must be a whole number of at least 1, got -1"),
        (lambda: TwoSidedHinge(1), ValueError, r"count must be a whole number of at least 2, got 1"),
        (lambda: Smooth("BSpline"), TypeError, r"basis must be a plain basis such as BSpline\(10\), got 'BSpline'"),
        (lambda: Smooth(Smooth(BSpline())), TypeError, r"basis must be a plain basis"),
        (lambda: Smooth(BSpline(), -1), ValueError, r"weight must be a finite number of at least 0, got -1"),
        (lambda: Smooth(BSpline(), float("nan")), ValueError, r"weight must be a finite number of at least 0, got nan"),
    ],
)
def test_bad_settings_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@all_bases
def test_bases_are_values(basis):
    first = dataclasses.fields(basis)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(basis, first, getattr(basis, first))
    same = dataclasses.replace(basis)
    assert same == basis
    assert same in {basis}
    assert len({Hinge(4), PositiveHinge(4), TwoSidedHinge(4), BSpline(4), BSpline(4, degree=2)}) == 5


# ---- what torch may do with them ----


def test_tables_made_in_inference_mode_do_not_spoil_training():
    basis = BSpline(9)
    c, t = torch.ones(1, 9, requires_grad=True), torch.zeros(4, 1, requires_grad=True)
    with torch.inference_mode():
        basis.combine(t, c)
        basis.value(t)
    basis.combine(t, c).sum().backward()
    torch.testing.assert_close(c.grad, 4 * basis.value(torch.zeros(1)))


def test_tables_are_numbers_whatever_device_is_the_default():
    with torch.device("meta"):
        basis = BSpline(9)
    t = torch.linspace(-1, 1, 5)
    torch.testing.assert_close(basis.value(t), BSpline(9).value(t), rtol=0, atol=0)


def test_exported_activations_hold_tables_as_constants_and_leave_the_basis_usable(t):
    class Activation(torch.nn.Module):
        def __init__(self, basis):
            super().__init__()
            self.basis = basis

        def forward(self, t):
            return self.basis.combine(t, torch.ones(NODES, self.basis.size, dtype=t.dtype))

    for basis in (BSpline(9), fitted(9, 3), Hinge(5)):
        fresh = dataclasses.replace(basis)  # with nothing evaluated yet
        exported = torch.export.export(Activation(fresh), (t,))
        assert len(exported.graph.nodes) < 60
        expected = basis.combine(t, torch.ones(NODES, basis.size, dtype=t.dtype))
        torch.testing.assert_close(exported.module()(t), expected)
        torch.testing.assert_close(Activation(fresh)(t), expected)


def test_operations_are_counted():
    """By hand: Horner, Clenshaw; a look-up of the piece and Horner on it."""
    assert Monomial(3).operations == 5
    assert Chebyshev(3).operations == 12
    assert Hinge(100).operations == Hinge(3).operations
    assert BSpline(100).operations == BSpline(5).operations
    assert BSpline(10, spacing="quantile").operations > BSpline(10).operations
    assert Smooth(BSpline(10)).operations == BSpline(10).operations == Orthonormal(BSpline(10)).operations
