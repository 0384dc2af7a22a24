"""Activations as polygons, with breaks where they bend, as few as a bound on the outputs allows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases.piecewise import PiecewiseBasis
from tenflex.bases.wrapped import plain
from tenflex.factors import Activations

GRID = 2048
"""Points at which an activation is looked at; `MARGIN` covers what lies between them."""

MARGIN = 1.02

PARTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64)
"""The numbers of straight parts between the tails that are tried."""

EVEN = 0.02
"""The share of the mean curvature that is added everywhere, so that no part grows without end."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What was seen of a layer of activations.

    Args:
        low: The least that arrived at each node.
        high: The most.
    """

    low: Float[Tensor, " r"]
    high: Float[Tensor, " r"]


@dataclass(frozen=True, eq=False)
class Allowed:
    """What errors of activations may do to the outputs.

    Args:
        weight: By how much an error of a node counts at each output, at most.
        most: The most at any output.
    """

    weight: Float[Tensor, "r n"]
    most: Float[Tensor, ""]


@dataclass(frozen=True, eq=False)
class Hinges:
    r"""Activations as sums of hinges, :math:`g_k(t) = c_k + \sum_{j: o_j = k} a_j \max(0, s_j (t - \tau_j))`.

    Args:
        owner: o, the node of each hinge.
        signs: s.
        kinks: tau.
        weights: a.
        constant: c.
        error: The largest error of each node.
    """

    owner: Float[Tensor, " H"]
    signs: Float[Tensor, " H"]
    kinks: Float[Tensor, " H"]
    weights: Float[Tensor, " H"]
    constant: Float[Tensor, " r"]
    error: Float[Tensor, " r"]

    def values(self, t: Float[Tensor, "S r"]) -> Float[Tensor, "S r"]:
        """The sums."""
        each = self.weights * (self.signs * (t[:, self.owner] - self.kinks)).relu()
        return self.constant + t.new_zeros(t.shape).index_add(1, self.owner, each)


@dataclass(frozen=True, eq=False)
class Bent:
    """Every activation as a polygon of as many parts between two tails.

    Args:
        breaks: Ascending, from the first to the last.
        values: There.
        tails: The slopes left of the first and right of the last.
        error: The largest error of each node.
    """

    breaks: Float[Tensor, "r N_1"]
    values: Float[Tensor, "r N_1"]
    tails: Float[Tensor, "r 2"]
    error: Float[Tensor, " r"]

    def node(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Signs, kinks and weights of the hinges of a node."""
        breaks, (left, right) = self.breaks[k], self.tails[k]
        slopes = torch.cat([self.values[k].diff() / breaks.diff(), right[None]])
        weights = torch.cat([-left[None], slopes[:1], slopes.diff()])
        signs = torch.ones_like(weights)
        signs[0] = -1
        return signs, torch.cat([breaks[:1], breaks]), weights


def hinges(one: Activations, seen: Seen, allowed: Allowed) -> Hinges:
    """As few hinges as keep what is allowed; the most that are tried if none do.

    Of activations that are linear beyond their breaks the error holds everywhere, of others on the seen range.
    """
    tried = [bent(one, seen, parts) for parts in PARTS]
    error = torch.stack([each.error for each in tried], 1)
    count = _counts(error, allowed)
    nodes = [tried[int(at)].node(k) for k, at in enumerate(count)]
    signs, kinks, weights = (torch.cat(each) for each in zip(*nodes, strict=True))
    owner = torch.tensor([k for k, (each, *_) in enumerate(nodes) for _ in each], device=signs.device)
    constant = torch.stack([tried[int(at)].values[k, 0] for k, at in enumerate(count)])
    found = torch.stack([tried[int(at)].error[k] for k, at in enumerate(count)])
    return Hinges(owner, signs, kinks, weights, constant, found)


def _counts(error: Float[Tensor, "r tried"], allowed: Allowed) -> Float[Tensor, " r"]:
    """Which of `PARTS` each node gets: one more part brings as much everywhere, as little as still keeps the bound."""
    each = error * allowed.weight.amax(1, keepdim=True) / torch.tensor(PARTS).to(error)
    low, high = torch.zeros(()).to(error), each.max()
    best = torch.full((len(error),), len(PARTS) - 1, device=error.device)
    for _ in range(40):
        middle = (low + high) / 2
        enough = each <= middle
        count = torch.where(enough.any(1), enough.int().argmax(1), len(PARTS) - 1)
        if bool((error.gather(1, count[:, None])[:, 0] @ allowed.weight).max() <= allowed.most):
            low, best = middle, count
        else:
            high = middle
    return best


def bent(one: Activations, seen: Seen, parts: int) -> Bent:
    """Polygons with their breaks where the curvature, to the power of a half, is shared out evenly."""
    low, high, tails = ends(one, seen)
    share = torch.linspace(0, 1, GRID + 1, dtype=low.dtype, device=low.device)
    t = low[:, None] + share * (high - low)[:, None]
    values = one.values(t.mT).mT
    place = _breaks(values, parts)
    breaks, level = t.gather(1, place), values.gather(1, place)
    if tails is None:
        rise = level.diff(dim=1) / breaks.diff(dim=1)
        tails = rise[:, [0, -1]]
    off = _along(level, place) - values
    return _levelled(Bent(breaks, level, tails, off.abs().amax(1)), values, place, off)


def ends(one: Activations, seen: Seen) -> tuple[Tensor, Tensor, Tensor | None]:
    """The first and the last break of each node, and the slopes beyond where the activations are straight there."""
    basis = plain(one.basis)
    if not isinstance(basis, PiecewiseBasis):
        return seen.low, seen.low + (seen.high - seen.low).clamp(min=1e-12), None
    breaks, table = (each.to(one.shift) for each in basis.made)
    count = len(one.shift)
    slopes = torch.einsum("rpd,rd->rp", table[:, [0, -1], 1].expand(count, -1, -1), one.coefficients)
    return breaks[:, 0].expand(count), breaks[:, -1].expand(count), slopes


def _breaks(values: Float[Tensor, "r G"], parts: int) -> Float[Tensor, "r N_1"]:
    """The places on the grid at which a polygon has its breaks."""
    curvature = values.diff(n=2, dim=1).abs()
    density = (curvature + EVEN * curvature.mean(1, keepdim=True) + 1e-30).sqrt()
    total = torch.nn.functional.pad(density.cumsum(1), (1, 1))
    total[:, -1] = total[:, -2]
    wanted = torch.linspace(0, 1, parts + 1).to(values) * total[:, -1:]
    place = torch.searchsorted(total.contiguous(), wanted.contiguous()).clamp(max=GRID)
    counted = torch.arange(parts + 1, device=values.device)
    apart = (place - counted).clamp(min=0).cummax(1).values.clamp(max=GRID - parts) + counted  # no two in one place
    apart[:, 0], apart[:, -1] = 0, GRID
    return apart


def _along(level: Float[Tensor, "r N_1"], place: Float[Tensor, "r N_1"]) -> Float[Tensor, "r G"]:
    """The polygon on the grid."""
    grid = torch.arange(GRID + 1, device=level.device).expand(len(level), -1).contiguous()
    at = (torch.searchsorted(place, grid, right=True) - 1).clamp(0, place.shape[1] - 2)
    start, end = place.gather(1, at), place.gather(1, at + 1)
    share = (grid - start) / (end - start).clamp(min=1)
    return torch.lerp(level.gather(1, at), level.gather(1, at + 1), share.to(level.dtype))


def _levelled(made: Bent, values: Tensor, place: Tensor, off: Tensor) -> Bent:
    """The polygon moved, at each break, by half of what it is off on either side: its error is about half as large."""
    at = torch.searchsorted(place, torch.arange(GRID + 1, device=off.device).expand_as(off).contiguous(), right=True)
    at = (at - 1).clamp(0, place.shape[1] - 2)
    none = off.new_zeros(len(off), place.shape[1] - 1)
    most, least = (none.scatter_reduce(1, at, off, kind) for kind in ("amax", "amin"))
    worst = torch.where(most > -least, most, least)
    sides = torch.cat([worst[:, :1], worst], 1) + torch.cat([worst, worst[:, -1:]], 1)
    level = made.values - sides / 4
    error = (_along(level, place) - values).abs().amax(1)
    better = error < made.error
    chosen = torch.where(better[:, None], level, made.values)
    return Bent(made.breaks, chosen, made.tails, MARGIN * torch.where(better, error, made.error))
