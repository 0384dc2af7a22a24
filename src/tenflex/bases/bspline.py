"""B-splines: local, smooth, well conditioned; the default activation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenflex.bases.base import HAIR, Basis, positive
from tenflex.bases.piecewise import PiecewiseBasis
from tenflex.checks import require_whole
from tenflex.sums import largest, mean_of, over_samples, sample_count, smallest

DEVIATIONS = 3.0
"""The knots span this many standard deviations on either side of the mean; rarer inputs meet the linear tails."""


@dataclass(frozen=True)
class BSpline(PiecewiseBasis):
    r"""B-splines on [-1, 1] with linear extrapolation beyond.

    .. math:: \phi_j = B_{j,p}, \quad j = 1, \dots, d, \quad p = \text{degree}, \quad d - p \text{ pieces}

    A node's mean goes to 0 and three of its standard deviations (or its range, if that is narrower) to 1.

    References:
        de Boor, "A practical guide to splines", 1978.
        De Jonghe, Ishteva, "A B-spline approach to decoupling multivariate functions", 2025, https://arxiv.org/abs/2504.03263

    Args:
        count: The number of functions :math:`d`, at least `degree + 1`.
        degree: 1, 2 or 3.
        spacing: "even" knots, the same for all nodes, or knots at the "quantile" of each node's inputs. The latter are
            stored: `count - degree - 1` numbers a node.
        knots: The interior knots of each node on (-1, 1); set by `fit` for quantile spacing, not by users.

    Raises:
        ValueError: if `count`, `degree` or `spacing` is out of its range.

    Example:
        >>> BSpline(4, degree=1).value(torch.tensor(-1 / 3)).round(decimals=4)
        tensor([0., 1., 0., 0.])
    """

    count: int = 10
    degree: int = 3
    spacing: Literal["even", "quantile"] = "even"
    knots: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.degree, bool) or not isinstance(self.degree, int) or self.degree not in (1, 2, 3):
            raise ValueError(f"degree must be 1, 2 or 3, got {self.degree!r}")
        require_whole("count", self.count, at_least=self.degree + 1)
        if self.spacing not in ("even", "quantile"):
            raise ValueError(f"spacing must be 'even' or 'quantile', got {self.spacing!r}")
        if self.knots is not None:
            self._check_knots(self.knots)
        super().__post_init__()

    def _check_knots(self, knots: object) -> None:
        if self.spacing != "quantile":
            raise ValueError("even knots are not set: leave knots out, or choose spacing='quantile'")
        count = self.count - self.degree - 1
        rows = knots if isinstance(knots, tuple) else ()
        if not rows or not all(isinstance(row, tuple) and len(row) == count and ascending(row) for row in rows):
            raise ValueError(f"knots must be {count} ascending numbers between -1 and 1 for every node, got {knots!r}")

    @property
    def size(self) -> int:
        return self.count

    @property
    def even(self) -> bool:
        return self.knots is None

    @property
    def nodes(self) -> int | None:
        return None if self.knots is None else len(self.knots)

    @property
    def stored_per_node(self) -> int:
        return self.count - self.degree - 1 if self.spacing == "quantile" else 0

    def place(self, t: Float[Tensor, "S r"]) -> tuple[Float[Tensor, " r"], Float[Tensor, " r"]]:
        count = sample_count(t)
        mean = mean_of(t, count)
        off = (t - mean).abs()
        reach = torch.minimum(DEVIATIONS * mean_of(off.square(), count).sqrt(), (1 + HAIR) * largest(off))
        scale = 1 / positive(reach)
        return scale, -mean * scale

    def fit(self, t: Float[Tensor, "S r"]) -> Basis:
        """Freeze quantile knots at the distribution of each column of `t`, which is already placed."""
        if self.spacing == "even":
            return self
        levels = torch.linspace(0, 1, self.count - self.degree + 1, dtype=t.dtype, device=t.device)[1:-1]
        inner = quantiles(t.clamp(-1, 1), levels)
        return replace(self, knots=tuple(map(tuple, spread(inner, 0.25 / max(len(levels), 1)).tolist())))

    def fitted_from(self, basis: Basis) -> bool:
        """Whether only knots were frozen."""
        return replace(self, knots=None) == basis

    def breaks(self) -> Float[Tensor, "r_or_1 K"]:
        if self.knots is None:
            return torch.linspace(-1, 1, self.count - self.degree + 1, dtype=torch.float64, device="cpu")[None]
        inner = torch.tensor(self.knots, dtype=torch.float64, device="cpu")
        ends = torch.ones(len(inner), 1, dtype=torch.float64, device="cpu")
        return torch.cat([-ends, inner, ends], 1)

    def table(self) -> Float[Tensor, "r_or_1 pieces powers d"]:
        breaks = self.breaks()
        knots = self._with_outer_knots(breaks)
        starts, ends = breaks[:, :-1], breaks[:, -1:]
        middle = taylor(knots, starts, torch.arange(starts.shape[1], device=starts.device), self.degree)
        last = taylor(knots, ends, torch.tensor([starts.shape[1] - 1], device=starts.device), self.degree)
        first, last = middle[:, :1].clone(), last.clone()
        first[:, :, 2:], last[:, :, 2:] = 0, 0  # the tails keep value and slope only
        return torch.cat([first, middle, last], 1)

    def _with_outer_knots(self, breaks: Tensor) -> Tensor:
        """Even knots go on evenly beyond the interval; quantile knots are clamped to its ends."""
        p = self.degree
        step = breaks[:, 1:2] - breaks[:, :1] if self.knots is None else torch.zeros_like(breaks[:, :1])
        left = breaks[:, :1] - step * torch.arange(p, 0, -1, device=step.device)
        right = breaks[:, -1:] + step * torch.arange(1, p + 1, device=step.device)
        return torch.cat([left, breaks, right], 1)

    def roughness(self) -> Float[Tensor, "d d"]:
        """The penalty of P-splines (Eilers, Marx 1996): squared second differences of the coefficients."""
        second = torch.diff(torch.eye(self.count, dtype=torch.float64, device="cpu"), n=2, dim=0)
        return second.mT @ second

    @property
    def operations(self) -> int:
        find = 5 if self.spacing == "even" else self.count - self.degree + 1
        return find + 1 + 2 * self.degree


def ascending(knots: tuple[Any, ...]) -> bool:
    """Whether these are numbers between -1 and 1, each above the one before."""
    numbers = all(isinstance(knot, (int, float)) for knot in knots)
    return numbers and all(low < high for low, high in pairwise((-1.0, *knots, 1.0)))


def quantiles(t: Float[Tensor, "S r"], levels: Float[Tensor, " K"]) -> Float[Tensor, "r K"]:
    """The quantiles of each column over all samples; `torch.quantile` takes at most 2^24 numbers."""
    count = sample_count(t)
    place = levels * (count - 1)
    below = place.floor().long()
    above = (below + 1).clamp(max=count - 1)
    if count > len(t):
        low, high = ordered_among_all(t, below), ordered_among_all(t, above)
    else:
        ordered = t.sort(0).values
        low, high = ordered[below].mT, ordered[above].mT
    return torch.lerp(low, high, place - below)


def ordered_among_all(t: Float[Tensor, "S r"], places: Int[Tensor, " K"]) -> Float[Tensor, "r K"]:
    """The numbers at some places of each column in ascending order, of samples that several processes hold.

    By bisection on how many are smaller, up to rounding, and then by the least number above.
    """
    least, most = smallest(t), largest(t)
    low = (least - 1 - least.abs())[:, None].expand(-1, len(places))
    high = most[:, None].expand(-1, len(places))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        enough = over_samples((t[:, :, None] <= middle).sum(0)) > places
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return smallest(torch.where(t[:, :, None] > low, t[:, :, None], most[:, None]))


BISECTIONS = 70
"""More than a number in double precision has digits."""


def spread(knots: Float[Tensor, "r K"], gap: float) -> Float[Tensor, "r K"]:
    """Ascending knots inside (-1, 1) pushed at least `gap` apart, so that no piece is empty."""
    steps = gap * torch.arange(1, knots.shape[1] + 1, dtype=knots.dtype, device=knots.device)
    if not knots.shape[1]:
        return knots
    up = (torch.maximum(knots, -1 + steps) - steps).cummax(1).values + steps
    return torch.minimum(up, 1 - steps.flip(0))


def taylor(
    knots: Float[Tensor, "r knots"], at: Float[Tensor, "r P"], piece: Tensor, degree: int
) -> Float[Tensor, "r P powers d"]:
    """The B-splines of `degree` as polynomials around the points `at`, on the pieces they are taken to lie in."""
    nodes, points = at.shape
    inside = torch.zeros(nodes, points, knots.shape[1] - 1, dtype=knots.dtype, device=knots.device)
    inside[:, torch.arange(points, device=knots.device), piece + degree] = 1
    polynomials = inside.unsqueeze(-2)  # degree 0: one where the piece is, as polynomials in (t - at)
    for p in range(1, degree + 1):
        lower, upper = polynomials[..., :-1], polynomials[..., 1:]
        rise = ratio(lower, (knots[:, p:-1] - knots[:, : -p - 1])[:, None, None])
        fall = ratio(upper, (knots[:, p + 1 :] - knots[:, 1:-p])[:, None, None])
        from_left = at[:, :, None, None] - knots[:, None, None, : -p - 1]
        to_right = knots[:, None, None, p + 1 :] - at[:, :, None, None]
        constant = from_left * rise + to_right * fall
        linear = rise - fall
        pad = torch.zeros_like(constant[..., :1, :])
        polynomials = torch.cat([constant, pad], -2) + torch.cat([pad, linear], -2)
    return polynomials


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Division with 0 / 0 = 0, the convention of the B-spline recurrence at repeated knots."""
    return torch.where(denominator > 0, numerator / positive(denominator), torch.zeros_like(numerator))
