"""The folded form: the same function in all that PyTorch does with modules, and faster ones within their bounds."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
import torch
from planted import random
from test_convolution import WINDOWS
from test_nn import BASES, M, N, layer_of
from torch import nn

import tenflex
from tenflex.bases import Basis, BSpline, Chebyshev, Hinge, Monomial
from tenflex.export.columns import Columns, by_columns
from tenflex.export.increments import MOST_PIECES, Increments, by_increments
from tenflex.factors import Activations
from tenflex.modes import Cosine
from tenflex.nn import FlexibleActivation, FlexibleConv, FlexibleLayer, FoldedLayer, fold
from tenflex.nn.curves import ROOM, Curves, exact, smooth, straight
from tenflex.nn.fold import Accuracy, fold_layer
from tenflex.nn.folded import FEW, PYTORCH, SEVERAL, Along, Pace, Pieces, Polynomial, time_of
from tenflex.nn.polygons import PARTS, Allowed, Seen, bent, hinges

WIDE = torch.linspace(-4, 4, 801, dtype=torch.float64)
UNIT = Seen(-torch.ones(5).double(), torch.ones(5).double())


def activations_of(basis, generator, r=5) -> Activations:
    return Activations(random(generator, r, basis.size), random(generator, r) / 5, basis)


def evaluated(curves: Curves, t):
    return curves.module(t * curves.scale + curves.offset)


def folded_in_single(layer: FlexibleLayer) -> FoldedLayer:
    return fold_layer(layer.float()).eval()


@pytest.mark.parametrize("basis", BASES.values(), ids=BASES)
@pytest.mark.parametrize("widths", [(None, None), (2, None), (None, 3)], ids=str)
def test_folded_is_the_same_function(basis, widths, generator):
    layer = layer_of(generator, basis, widths)
    x = 2 * random(generator, 200, M)  # many of them beyond the interval
    torch.testing.assert_close(fold_layer(layer)(x), layer(x), rtol=1e-9, atol=1e-9)
    expected, found = layer.float()(x.float()), folded_in_single(layer)(x.float())
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_folded_layers_are_the_same_function(generator):
    maps = ((random(generator, M, 4) / 3,), (random(generator, 4, 3) / 2,), (random(generator, 3, N),))
    parts = tuple(activations_of(basis, generator, r) for basis, r in ((BSpline(6), 4), (Hinge(4), 3)))
    layer = FlexibleLayer.from_factors(tenflex.Factors(maps, parts, random(generator, N)), (2, 3), (2, 2))
    x = random(generator, 7, 2, 3)
    torch.testing.assert_close(fold_layer(layer)(x), layer(x), rtol=1e-9, atol=1e-9)


@dataclass(frozen=True)
class Sine(Basis):
    """A line and a sine, of which nothing says that they are polynomials."""

    size = 2
    operations = 12

    def value(self, t):
        return torch.stack([t, torch.sin(3 * t)], -1)

    def derivative(self, t):
        return torch.stack([torch.ones_like(t), 3 * torch.cos(3 * t)], -1)

    def second_derivative(self, t):
        return torch.stack([torch.zeros_like(t), -9 * torch.sin(3 * t)], -1)


class Tent(Sine):
    """Hats, which are polynomials between several breaks."""

    def value(self, t):
        return torch.stack([torch.relu(1 - (t - centre).abs()) for centre in (0.0, 0.5)], -1)

    def pieces(self):
        return torch.tensor([[-1.0, -0.5, 0.0, 0.5, 1.0]], dtype=torch.float64), 1


class Clamped(Sine):
    """Powers inside of the interval, and constant beyond it."""

    def value(self, t):
        return torch.stack([t.clamp(-1, 1), t.clamp(-1, 1) ** 2], -1)

    def pieces(self):
        return torch.tensor([self.interval], dtype=torch.float64), 2


class Legendre(Clamped):
    """Polynomials everywhere."""

    def value(self, t):
        return torch.stack([t, (3 * t * t - 1) / 2], -1)


@pytest.mark.parametrize("basis", [Sine(), Tent(), Clamped(), Legendre()], ids=lambda one: type(one).__name__)
def test_a_basis_of_ones_own_folds_to_the_same_function(basis, generator):
    """To a polynomial only where it is one everywhere; else to the sum of functions that it is."""
    layer = layer_of(generator, basis)
    x = 2 * random(generator, 200, M)
    folded = fold_layer(layer)
    torch.testing.assert_close(folded(x), layer(x), rtol=1e-9, atol=1e-9)
    assert type(folded.steps[1]) is (Polynomial if type(basis) is Legendre else FlexibleActivation)
    program = torch.export.export(folded, (x,))
    torch.testing.assert_close(program.module()(x), folded(x))


@pytest.mark.parametrize("basis", [Monomial(7), Chebyshev(7)], ids=repr)
def test_lines_among_polynomials_stay_polynomials(basis, generator):
    coefficients = torch.zeros(5, 7, dtype=torch.float64)
    coefficients[:, 0] = random(generator, 5)
    assert type(exact(Activations(coefficients, random(generator, 5), basis)).module) is Polynomial


def test_what_is_stored_is_what_is_used(generator):
    layer = folded_in_single(layer_of(generator, BSpline(10)))
    assert [type(one) for one in layer.steps] == [nn.Linear, Pieces, nn.Linear]
    stored = sum(one.numel() for one in layer.state_dict().values())
    assert stored == 5 * M + 5 + 5 * 9 * 4 + 5 * N + N
    assert layer.steps[1].offsets.dtype == torch.int32
    assert not any(one.requires_grad for one in layer.parameters())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e38, -1e38])
@pytest.mark.parametrize("name", ["B-spline", "quantile", "hinge", "monomial"])
def test_any_input_ends_in_an_output(name, bad, generator):
    layer = folded_in_single(layer_of(generator, BASES[name]))
    x = torch.full((3, M), 0.5)
    x[1, 2] = bad
    y = layer(x)
    assert y.isfinite().all(1).tolist() == [True, layer(x[1:2]).isfinite().all().item(), True]
    torch.testing.assert_close(y[0], layer(x[:1])[0])
    if bad != bad:
        assert y[1].isnan().all()


# ---- what PyTorch does with modules ----


@pytest.fixture
def layer(generator) -> FoldedLayer:
    return folded_in_single(layer_of(generator, BSpline(8), (3, None)))


@pytest.fixture
def x(generator):
    return random(generator, 9, M).float()


@pytest.mark.parametrize("strict", [False, True])
def test_exported_with_any_batch(layer, x, strict):
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(layer, (x,), dynamic_shapes=shapes, strict=strict)
    for batch in (1, 5, 9):
        torch.testing.assert_close(program.module()(x[:batch]), layer(x[:batch]))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("trained", [False, True])
def test_traced_twice_is_one_graph(layer, x, trained, generator):
    """A trained layer keeps tables that it converted, of which a graph must know nothing."""
    layer = layer_of(generator, BSpline(9), (3, None)).float().eval().requires_grad_(False) if trained else layer
    before = torch.jit.trace(layer, x)
    layer(x)
    graphs = [re.sub(r"___torch_mangle_\d+\.", "", str(one.graph)) for one in (before, torch.jit.trace(layer, x))]
    assert graphs[0] == graphs[1]
    torch.testing.assert_close(before(x[:3]), layer(x[:3]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled(layer, x):
    torch.testing.assert_close(torch.compile(layer)(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision(generator, x, dtype):
    """The error is that of the numbers themselves: a few roundings of what arrives at a node, times its slope."""
    trained = layer_of(generator, BSpline(8), (3, None)).float()
    layer = fold_layer(trained)
    exactly = layer(x)
    with torch.autocast("cpu", dtype):
        mixed = layer(x)
    halves = fold_layer(trained).to(dtype)(x.to(dtype))
    bound = 40 * torch.finfo(dtype).eps * exactly.abs().max()
    assert halves.dtype == dtype
    assert (mixed.float() - exactly).abs().max() < bound
    assert (halves.float() - exactly).abs().max() < bound


# ---- within a tolerance ----


def at_quantiles(degree: int) -> BSpline:
    """Splines whose knots lie close together, of some nodes within one piece of a polygon."""
    t = torch.linspace(-1, 1, 101).double()
    return BSpline(8, degree, spacing="quantile").fit(torch.stack([t.sign() * t.abs() ** k for k in range(1, 6)], 1))


STRAIGHT_BEYOND = [BSpline(7), Hinge(4), *(BSpline(7, degree) for degree in (1, 2)), *map(at_quantiles, (1, 2, 3))]


@pytest.mark.parametrize("basis", STRAIGHT_BEYOND, ids=lambda one: f"{type(one).__name__} {one.even} {one.size}")
@pytest.mark.parametrize("cells", [7, 28])
@pytest.mark.parametrize("seen", [1.0, 0.3])
def test_a_polygon_keeps_its_bound_everywhere(basis, cells, seen, generator):
    """Wherever the samples lay."""
    one = activations_of(basis, generator)
    t = torch.cat([WIDE, WIDE / 50, 1e3 * WIDE])[:, None].expand(-1, 5)
    curves = straight(one, Seen(seen * UNIT.low, seen * UNIT.high), cells).curves()
    error = (evaluated(curves, t) - one.values(t)).abs().amax(0)
    assert (error <= curves.error + 1e-9 * one.values(t).abs().amax(0)).all()
    even = getattr(basis, "even", True)  # with other knots the bound may be larger than the error
    assert (error >= 0.9 * curves.error).all() or curves.error.max() < 1e-9 or not even


@pytest.mark.parametrize("basis", [BSpline(7), Chebyshev(5), Monomial(3), BASES["quantile"]], ids=repr)
def test_forms_keep_their_bound_on_the_seen_range(basis, generator):
    one = activations_of(basis, generator)
    low, high = -0.5 - torch.rand(5, generator=generator).double(), torch.rand(5, generator=generator).double() + 0.1
    t = low + torch.linspace(0, 1, 1777).double()[:, None] * (high - low)
    for curves in (smooth(one, Seen(low, high), 5), straight(one, Seen(low, high), 14).curves()):
        assert ((evaluated(curves, t) - one.values(t)).abs().amax(0) <= curves.error + 1e-12).all()
    beyond, room = smooth(one, Seen(low, high), 5), ROOM * (high - low)
    ends = evaluated(beyond, torch.stack([low - room, high + room]))
    torch.testing.assert_close(evaluated(beyond, torch.stack([low - 100, high + 100])), ends)


@pytest.mark.parametrize("basis", [BSpline(7), Hinge(4), BASES["quantile"], Chebyshev(5)], ids=repr)
@pytest.mark.parametrize("parts", [1, 4, 28])
def test_bent_polygons_keep_their_bound(basis, parts, generator):
    """Everywhere where an activation is linear beyond its breaks, on the seen range elsewhere."""
    one = activations_of(basis, generator)
    made = bent(one, UNIT, parts)
    assert (made.breaks.diff(dim=1) > 0).all()
    t = torch.linspace(-1, 1, 1777).double() if isinstance(basis, Chebyshev) else torch.cat([WIDE, 1e3 * WIDE])
    t = t[:, None].expand(-1, 5)
    weights = torch.ones(5, 1).double()
    found = hinges(one, UNIT, Allowed(weights, 1.01 * made.error.sum()))
    assert found.error.sum() <= 1.01 * made.error.sum()
    assert len(found.owner) <= 5 * (parts + 2) + 5
    error = (found.values(t) - one.values(t)).abs().amax(0)
    assert (error <= found.error + 1e-9 * one.values(t).abs().amax(0)).all()


def test_more_parts_are_nearer(generator):
    """As the square of their number, for functions that bend smoothly."""
    one = activations_of(BSpline(7), generator)
    errors = [bent(one, UNIT, parts).error.sum() for parts in PARTS]
    assert errors[-1] < errors[PARTS.index(16)] / 8 < errors[PARTS.index(4)] / 64


@pytest.mark.parametrize("tolerance", [0.3, 1e-2, 1e-7])
def test_the_tolerance_holds_on_what_was_seen(tolerance, generator):
    layer = layer_of(generator, BSpline(10), (3, None))
    x = 0.4 * random(generator, 300, M)
    folded = fold_layer(layer, Accuracy(tolerance, x))
    expected = layer(x)
    assert (folded(x) - expected).abs().max() <= tolerance * expected.abs().max()
    kinds = {type(one) for one in folded.steps}
    assert kinds == {nn.Linear, {0.3: nn.ReLU, 1e-2: nn.ReLU, 1e-7: Pieces}[tolerance]}
    if tolerance == 1e-7:
        torch.testing.assert_close(folded(x), expected)


def test_the_fastest_form_depends_on_what_calls_take(generator):
    """Hinges are two maps more, a table is many calls."""
    layer, x = layer_of(generator, BSpline(10), (3, None)), 0.4 * random(generator, 300, M)
    called, alone = (fold_layer(layer, Accuracy(1e-2, x), pace).steps for pace in (PYTORCH, Pace(0)))
    assert time_of(called, PYTORCH) < time_of(alone, PYTORCH)
    assert time_of(called, Pace(0)) > time_of(alone, Pace(0))


def test_the_fastest_form_depends_on_the_batch(generator):
    """Of few samples the calls count, of many the multiply-adds."""
    layer, x = layer_of(generator, BSpline(10), (3, None)), 0.4 * random(generator, 300, M)
    few, many = (fold_layer(layer, Accuracy(1e-2, x), PYTORCH.at(batch)).steps for batch in (1, 100_000))
    assert any(isinstance(one, nn.ReLU) for one in few)
    assert any(isinstance(one, Pieces) for one in many)
    for batch, best, other in ((1, few, many), (100_000, many, few)):
        assert time_of(best, PYTORCH.at(batch)) < time_of(other, PYTORCH.at(batch))
    with pytest.raises(ValueError, match="batch must be a whole number of at least 1, got 0"):
        PYTORCH.at(0)


@pytest.mark.parametrize("samples", [1, SEVERAL, FEW])
@pytest.mark.parametrize("widths", [(3, None), (None, None)], ids=str)
def test_few_and_many_samples_give_the_same(samples, widths, generator):
    """They take other ways through a layer."""
    layer = fold_layer(layer_of(generator, BSpline(8), widths))
    x = 2 * random(generator, samples, M)
    x[0, 0] = float("nan")
    expected = torch.stack([layer(one) for one in x])
    torch.testing.assert_close(layer(x), expected, equal_nan=True)
    assert layer(x).is_contiguous()


@pytest.mark.parametrize("basis", ["B-spline", "quantile", "degree 1"])
def test_a_table_read_by_columns_is_the_same_function(basis, generator):
    one = activations_of({**BASES, "degree 1": BSpline(6, degree=1)}[basis], generator)
    pieces = exact(one).module
    columns = Columns(pieces)
    assert columns.straight == (basis == "degree 1")
    u = 9 * random(generator, 40, 3, len(one.coefficients))
    u[0, 0] = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e6, -1e6])[: u.shape[2]]
    torch.testing.assert_close(columns(u), pieces(u), rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("basis", ["B-spline", "quantile", "degree 1"])
def test_what_each_piece_adds_is_the_same_function(basis, generator):
    """Far outside of the breaks, too."""
    one = activations_of({**BASES, "degree 1": BSpline(6, degree=1)}[basis], generator)
    pieces = exact(one).module
    u = 9 * random(generator, 40, 3, len(one.coefficients))
    u[0, 0] = torch.tensor([float("nan"), 1e6, -1e6, 1e3, -1e3])
    for given in (u, u[0]):
        torch.testing.assert_close(Increments(pieces)(given), pieces(given), rtol=1e-8, atol=1e-8, equal_nan=True)


def test_pieces_become_increments_where_these_are_the_same_and_few(generator):
    layer, x = layer_of(generator, BSpline(8)), random(generator, 7, M)
    folded = fold(nn.Sequential(layer)).eval()
    plain = nn.Sequential(nn.Linear(3, 2))
    assert by_increments(plain) is plain
    increments = by_increments(folded)
    assert [type(one) for one in increments[0].steps] == [nn.Linear, Increments, nn.Linear]
    assert increments[0].steps[1].constant is None  # it went into the last map
    assert [type(one) for one in folded[0].steps] == [nn.Linear, Pieces, nn.Linear]
    torch.testing.assert_close(increments(x), folded(x), rtol=1e-9, atol=1e-9)
    many = fold(nn.Sequential(layer_of(generator, BSpline(MOST_PIECES + 2))))
    assert type(by_increments(many)[0].steps[1]) is Pieces
    for shape in ((5, 4, 2), (5, 1, 2), (5, 4, 1)):  # they jump, or have no breaks, or no slopes
        other = nn.Sequential(Pieces(random(generator, *shape)))
        assert type(by_increments(other)[0]) is Pieces


def test_only_tables_are_read_by_columns(generator):
    plain, folded = nn.Sequential(nn.Linear(3, 2)), fold(nn.Sequential(layer_of(generator, BSpline(8)))).eval()
    assert by_columns(plain) is plain
    x = random(generator, 7, M)
    torch.testing.assert_close(by_columns(folded)(x), folded(x), rtol=1e-9, atol=1e-9)
    assert [type(one) for one in by_columns(folded)[0].steps] == [nn.Linear, Columns, nn.Linear]
    assert [type(one) for one in folded[0].steps] == [nn.Linear, Pieces, nn.Linear]


def test_a_polynomial_of_low_degree_is_found(generator):
    layer = layer_of(generator, BASES["Chebyshev"])
    x = 0.4 * random(generator, 300, M)
    folded = fold_layer(layer, Accuracy(1e-6, x))
    assert isinstance(folded.steps[1], Polynomial)
    assert folded.steps[1].degree in (4, 5)
    torch.testing.assert_close(folded(x), layer(x))


def test_the_tolerance_holds_through_two_layers(generator):
    maps = ((random(generator, M, 4) / 5,), (random(generator, 4, 3) / 5,), (random(generator, 3, N),))
    parts = tuple(activations_of(BSpline(8), generator, r) for r in (4, 3))
    layer = FlexibleLayer.from_factors(tenflex.Factors(maps, parts, random(generator, N)))
    x = random(generator, 200, M)
    folded = fold_layer(layer, Accuracy(0.5, x))
    expected = layer(x)
    assert 1e-6 < (folded(x) - expected).abs().max() <= 0.5 * expected.abs().max()


# ---- convolutions, and maps along modes ----


@pytest.mark.parametrize("modes", [None, Cosine(2)], ids=str)
@pytest.mark.parametrize("widths", [(None, None), (3, None), (None, 3)], ids=str)
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_convolutions_are_the_same_function(window, widths, modes, generator):
    layer = FlexibleConv(2, 4, window, 5, BSpline(7), *widths, modes).double().eval()
    with torch.no_grad():
        layer.activations[0].coefficients.normal_(generator=generator)
    x = 2 * random(generator, 3, 2, *[9] * window.dims)
    torch.testing.assert_close(fold(layer)(x), layer(x), rtol=1e-9, atol=1e-9)
    layer.maps[-1] = nn.Identity()  # its last map became part of what follows
    torch.testing.assert_close(fold(layer)(x), layer(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pace", [PYTORCH, Pace(0)], ids=["multiplied out", "kept"])
def test_modes_are_the_same_function(pace, generator):
    layer = FlexibleLayer((12, 12), (3,), 30, BSpline(7), modes=Cosine(3)).double().eval()
    x = random(generator, 50, 12, 12)
    folded = fold_layer(layer, pace=pace)
    torch.testing.assert_close(folded(x), layer(x), rtol=1e-9, atol=1e-9)
    assert isinstance(folded.steps[0], Along) == (pace.call == 0)
    torch.testing.assert_close(folded(x.view(5, 10, 12, 12)), layer(x).view(5, 10, -1), rtol=1e-9, atol=1e-9)


# ---- in a network ----


def small_network() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 9), nn.Identity(), nn.Linear(9, 2)).eval()


def test_a_map_between_is_multiplied_out(generator):
    network = nn.Sequential(layer_of(generator).float(), nn.Identity(), nn.Linear(N, 2)).eval()
    folded = fold(network)
    x = random(generator, 5, M).float()
    assert [type(one) for one in folded] == [FoldedLayer, nn.Identity, nn.Identity]
    torch.testing.assert_close(folded(x), network(x))
    watched = nn.Sequential(layer_of(generator).float(), nn.ReLU(), nn.Linear(N, 2)).eval()
    assert [type(one) for one in fold(watched)] == [FoldedLayer, nn.ReLU, nn.Linear]


class Row(nn.Module):
    """A flexible layer and a linear one in a row, which is not all that is read of them.

    Args:
        first: The layer.
        way: How.
    """

    def __init__(self, first: nn.Module, way: str) -> None:
        super().__init__()
        self.net, self.way = nn.Sequential(first, nn.Linear(N, N)), way

    def forward(self, x):
        if self.way == "a skip":
            inner = self.net[0](x)
            return self.net[1](inner) + inner
        if self.way == "a slice":
            return torch.cat([self.net(x), self.net[:-1](x)], 1)
        if self.way == "a little":
            return self.net(x) + 1e-5 * self.net[0](x)
        return self.net(x) @ self.net[1].weight if self.way == "the weight" else self.net(x)


@pytest.mark.parametrize("way", ["a skip", "a slice", "a little", "the weight", "whole"])
def test_a_row_of_which_parts_are_read_is_the_same(way, generator):
    """Nothing tells how a forward pass will go on other inputs; of a graph, trying tells it."""
    network, x = Row(layer_of(generator), way).double().eval(), random(generator, 9, M)
    apart, graph = fold(network), fold(network, graph=(x,))
    torch.testing.assert_close(apart(x), network(x))
    torch.testing.assert_close(graph(x), network(x))
    assert type(apart.net[1]) is nn.Linear
    assert (type(graph.net[1]) is nn.Identity) == (way == "whole")


def test_a_row_that_others_hold_is_the_same(generator):
    """In a list of their own, too, and by a hook of a row around it."""

    class Reading(nn.Module):
        def __init__(self, row: nn.Module) -> None:
            super().__init__()
            self.rows = [row]

        def forward(self, x):
            return self.rows[0][0](x)

    x = random(generator, 9, M)
    row = nn.Sequential(layer_of(generator), nn.Linear(N, M)).double()
    hooked = nn.Sequential(nn.Sequential(layer_of(generator), nn.Linear(N, N)).double())
    hooked.register_forward_hook(lambda module, args, output: output + module[0][0](*args))
    for network in (nn.Sequential(row, Reading(row)), hooked):
        torch.testing.assert_close(fold(network.eval())(x), network(x))


def test_modules_that_stand_in_a_row_twice(generator):
    """What stands between two of them may stand before them, too."""
    first, between = layer_of(generator), nn.Tanh()
    rows = [
        nn.Sequential(between, first, between, nn.Linear(N, 2)),
        nn.Sequential(first, nn.Linear(N, M), first, nn.Linear(N, 2)),
        nn.Sequential(nn.Sequential(first, nn.Linear(N, M)), nn.Sequential(first, nn.Linear(N, 2))),
    ]
    x = random(generator, 9, M)
    for row in rows:
        torch.testing.assert_close(fold(row.double().eval())(x), row(x))


def test_a_compression_folds(lenet, digits):
    """Functions stand between the modules of this block, so that its layer carries a hook."""
    blocks = {"fc1:fc2": tenflex.Block(rank=6, factor=4)}
    result = tenflex.compress(lenet, digits.train_images[:150], blocks, solver=tenflex.solvers.ConstrainedALS(2))
    x = digits.test_images[:50]
    expected = result.model(x)
    folded = result.folded()
    assert isinstance(folded.fc1, FoldedLayer)
    assert [name for name, _ in folded.named_children()] == ["fc1", "fc3"]  # nothing is left of what stood between
    torch.testing.assert_close(folded(x), expected, rtol=1e-5, atol=1e-5)
    assert isinstance(result.model.fc1, FlexibleLayer)
    near = result.folded(tolerance=0.05)(x)
    assert 1e-5 < (near - expected).abs().max() < 0.1 * expected.abs().max()
    program = torch.export.export(folded, (x[:2],))
    torch.testing.assert_close(program.module()(x[:2]), expected[:2], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="tolerance must be a finite number above 0, got -1"):
        result.folded(tolerance=-1)
    with pytest.raises(ValueError, match="batch must be a whole number of at least 1, got 0"):
        result.folded(batch=0)


def test_exact_forms_of_each_kind(generator):
    kinds = {name: type(exact(activations_of(basis, generator)).module).__name__ for name, basis in BASES.items()}
    assert kinds["monomial"] == kinds["Chebyshev"] == "Polynomial"
    assert kinds["B-spline"] == kinds["quantile"] == "Pieces"
    assert type(exact(activations_of(Chebyshev(30), generator)).module).__name__ == "FlexibleActivation"


class Twice(nn.Identity):
    def forward(self, x):
        return 2 * x


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda module, args, output: 2 * output)
    return module


def patched(module: nn.Module) -> nn.Module:
    before = module.forward
    module.forward = lambda x: 2 * before(x)
    return module


@pytest.mark.parametrize(
    "between", [Twice(), hooked(nn.Identity()), hooked(nn.Dropout()), patched(nn.Identity())], ids=str
)
def test_what_stands_between_is_not_taken_for_nothing(between, generator):
    network = nn.Sequential(
        layer_of(generator, BASES["B-spline"], (None, None)).float(), between, nn.Linear(N, 2)
    ).eval()
    x = random(generator, 30, M).float()
    with torch.no_grad():
        assert torch.allclose(fold(network)(x), network(x), atol=1e-5)
