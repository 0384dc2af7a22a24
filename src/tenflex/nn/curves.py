"""Activations as modules that only evaluate: exact ones, and faster ones with a known error."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.bases import Basis
from tenflex.bases.base import positive
from tenflex.bases.piecewise import PiecewiseBasis
from tenflex.bases.wrapped import plain
from tenflex.factors import Activations
from tenflex.nn.activation import FlexibleActivation
from tenflex.nn.folded import Pieces, Polynomial
from tenflex.nn.polygons import Seen, ends

FINE = 32
"""Points in each piece at which an error is looked for; `MARGIN` covers what lies between them."""

MARGIN = 1.02

ROOM = 0.25
"""The share of the seen range that a polynomial, which is constant beyond it, is given more on either side."""

DEGREES, CELLS = (3, 5, 7), (7, 14, 28, 42, 56)
"""What is tried instead of an exact form: polynomials, and polygons of a table."""

HORNER = 5e-6
"""The largest rounding error, of the largest value, at which a polynomial is written in powers."""

BEYOND = (3.0, 30.0)
"""How far beyond the interval, in its widths, a function is looked at that is to be one polynomial everywhere."""

SAME = 1e-9
"""How much polynomials with the same coefficients may differ by rounding, of all powers with the largest of these."""


@dataclass(frozen=True, eq=False)
class Curves:
    """The activations of one layer as a module that takes `u = scale t + offset`.

    Args:
        scale: Of each node, to be folded into the linear map before.
        offset: Of each node, to be folded into the shift.
        module: What evaluates them.
        error: The largest error of each node: everywhere, or on the seen range if the module is clamped.
    """

    scale: Float[Tensor, " r"]
    offset: Float[Tensor, " r"]
    module: nn.Module
    error: Float[Tensor, " r"]


def exact(one: Activations) -> Curves:
    """The same function: a table of local polynomials, a polynomial, or the sum of functions that it is."""
    basis, nodes, none = plain(one.basis), len(one.coefficients), torch.zeros_like(one.shift)
    same = torch.ones_like(one.shift)
    if isinstance(basis, PiecewiseBasis):
        table = local_table(basis, one.coefficients)
        if not basis.even:
            breaks = basis.made[0].to(table).expand(nodes, -1)
            starts = torch.cat([breaks[:, :1], breaks], 1)
            return Curves(same, none, Pieces(torch.cat([starts[..., None], table], -1), breaks.contiguous()), none)
        return Curves(same / basis.step, none + 1 - basis.start / basis.step, Pieces(whole_steps(table, basis)), none)
    powers = power_table(replace(one, basis=basis))
    if powers is None:
        return Curves(same, none, FlexibleActivation(nodes, one.basis, one.coefficients), none)
    return Curves(same, none, Polynomial(powers), none)


def local_table(basis: PiecewiseBasis, coefficients: Float[Tensor, "r d"]) -> Float[Tensor, "r P powers"]:
    """The polynomial of every node on every piece."""
    table = basis.made[1].to(coefficients)
    return torch.einsum("rpad,rd->rpa", table.expand(len(coefficients), -1, -1, -1), coefficients)


def whole_steps(table: Float[Tensor, "r P powers"], basis: PiecewiseBasis) -> Float[Tensor, "r P powers"]:
    """The table for steps of 1, with the left tail, which is linear, told from one step before its end."""
    scaled = table * basis.step ** torch.arange(table.shape[2], dtype=table.dtype, device=table.device)
    scaled[:, 0, 0] -= scaled[:, 0, 1]
    return scaled


def power_table(one: Activations) -> Float[Tensor, "powers r"] | None:
    """The coefficients of polynomials in powers; None where rounding would tell, or that is not what they are."""
    degree = degree_of(one.basis)
    if degree is None:
        return None
    t = nodes_of_chebyshev(one.basis, degree + 1, one.coefficients)
    values = at(one, t)
    powers = torch.linalg.solve(t[:, None] ** torch.arange(degree + 1, device=t.device), values)
    rounding = torch.finfo(torch.float32).eps / 2 * powers.abs().sum(0)
    fits = bool((rounding <= HORNER * positive(values.abs().amax(0))).all())
    return powers if fits and goes_on(one, powers) else None


def degree_of(basis: Basis) -> int | None:
    """The degree of functions that are polynomials on the whole interval; None if they are not, or do not say."""
    try:
        ends, degree = basis.pieces()
    except TypeError:
        return None
    return degree if ends.shape[1] == 2 else None


def goes_on(one: Activations, powers: Float[Tensor, "powers r"]) -> bool:
    """Whether activations are these polynomials beyond the interval too, which a basis need not say."""
    low, high = one.basis.interval
    near = torch.linspace(0, 1, FINE, dtype=powers.dtype, device=powers.device)
    beyond = torch.cat([near, near.new_tensor(BEYOND)]) * (high - low)
    t = torch.cat([low - beyond, low + near * (high - low), high + beyond])
    table = t[:, None] ** torch.arange(len(powers), device=t.device)
    size = table.abs().sum(1, keepdim=True) * positive(powers.abs().amax(0))  # a power that is nearly 0 is rounding
    return bool(((at(one, t) - table @ powers).abs() <= SAME * size).all())


def at(one: Activations, t: Float[Tensor, " count"]) -> Float[Tensor, "count r"]:
    """All activations at the same points."""
    return one.basis.combine(t[:, None].expand(-1, len(one.coefficients)), one.coefficients)


def nodes_of_chebyshev(basis: Basis, count: int, like: Tensor) -> Float[Tensor, " count"]:
    """Points on the interval of a basis at which interpolation is well conditioned."""
    low, high = basis.interval
    angle = torch.pi * (torch.arange(count, dtype=like.dtype, device=like.device) + 0.5) / count
    return (low + high) / 2 + (high - low) / 2 * angle.cos()


@dataclass(frozen=True, eq=False)
class Straight:
    """Every activation as a polygon of a table: values at even breaks from `low`, `step` apart, and two tails.

    Args:
        values: At the breaks, `(r, N + 1)`.
        tails: The slopes left of the first and right of the last, `(r, 2)`.
        low: The first break of each node.
        step: The distance of the breaks of each node.
        error: The largest error of each node.
    """

    values: Float[Tensor, "r N_1"]
    tails: Float[Tensor, "r 2"]
    low: Float[Tensor, " r"]
    step: Float[Tensor, " r"]
    error: Float[Tensor, " r"]

    def curves(self) -> Curves:
        """As a look-up of one piece."""
        rise = self.values.diff(dim=1)
        left, right = (self.tails * self.step[:, None]).unbind(1)
        start = torch.cat([(self.values[:, 0] - left)[:, None], self.values], 1)
        slope = torch.cat([left[:, None], rise, right[:, None]], 1)
        return Curves(1 / self.step, 1 - self.low / self.step, Pieces(torch.stack([start, slope], -1)), self.error)


def straight(one: Activations, seen: Seen, cells: int) -> Straight:
    """Polygons of about `cells` pieces a node.

    Activations that are linear beyond their breaks are told between these, with the same tails: the error holds
    everywhere. Of others it holds on the seen range, beyond which the polygon goes on linearly.
    """
    basis, (low, high, tails) = plain(one.basis), ends(one, seen)
    if isinstance(basis, PiecewiseBasis) and basis.even:
        cells = basis.last * max(1, round(cells / basis.last))
    width = high - low
    share = torch.arange(FINE * cells + 1, dtype=low.dtype, device=low.device) / (FINE * cells)
    values = one.values(low + share[:, None] * width).mT
    kept = values[:, ::FINE]
    if tails is None:
        tails = kept[:, [1, -1]].sub(kept[:, [0, -2]]) * cells / width[:, None]
    made = Straight(kept, tails, low, width / cells, MARGIN * (values - between(kept)).abs().amax(1))
    return _at_own_breaks(made, one, basis) if isinstance(basis, PiecewiseBasis) and not basis.even else made


def _at_own_breaks(made: Straight, one: Activations, basis: PiecewiseBasis) -> Straight:
    """With an error that is looked for in each piece of the activations, too: several may lie in one of the polygon."""
    share = torch.arange(FINE + 1, dtype=made.low.dtype, device=made.low.device) / FINE
    breaks = basis.made[0].to(made.low).expand(len(made.low), -1)
    t = torch.lerp(breaks[:, :-1, None], breaks[:, 1:, None], share).flatten(1).mT
    curves = made.curves()
    off = (curves.module(t * curves.scale + curves.offset) - one.values(t)).abs().amax(0)
    return replace(made, error=torch.maximum(made.error, MARGIN * off))


def tabled(one: Activations, seen: Seen, cells: int) -> Curves:
    """Polygons as a look-up of one piece."""
    return straight(one, seen, cells).curves()


def between(values: Float[Tensor, "r N_1"]) -> Float[Tensor, "r fine"]:
    """Values at even breaks, and on the straight lines between them."""
    share = torch.arange(FINE, dtype=values.dtype, device=values.device) / FINE
    inner = values[:, :-1, None] + share * values.diff(dim=1)[..., None]
    return torch.cat([inner.flatten(1), values[:, -1:]], 1)


def smooth(one: Activations, seen: Seen, degree: int) -> Curves:
    """A polynomial of each node, the best at Chebyshev's points of the seen range and some `ROOM`; constant beyond."""
    middle, half = (seen.high + seen.low) / 2, (0.5 + ROOM) * positive(seen.high - seen.low)
    count = torch.arange(degree + 1, dtype=half.dtype, device=half.device)
    angles = torch.pi * (torch.arange(8 * FINE, dtype=half.dtype, device=half.device) + 0.5) / (8 * FINE)
    dense, fine = angles.cos()[:, None], torch.linspace(-1, 1, 64 * FINE, dtype=half.dtype, device=half.device)[:, None]
    powers = torch.linalg.lstsq(dense**count, one.values(middle + dense * half)).solution
    error = (one.values(middle + fine * half) - fine**count @ powers).abs().amax(0)
    return Curves(1 / half, -middle / half, Polynomial(powers, clamped=True), MARGIN * error)


def steepest(one: Activations, seen: Seen) -> Float[Tensor, " r"]:
    """The largest slope of each activation, on the seen range and on the interval of the basis."""
    start, end = one.basis.interval
    low, high = seen.low.clamp(max=start), seen.high.clamp(min=end)
    share = torch.linspace(0, 1, 64 * FINE, dtype=low.dtype, device=low.device)
    return MARGIN * one.curves(low + share[:, None] * (high - low))[1].abs().amax(0)
