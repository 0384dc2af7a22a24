"""Functions known by their values at scattered points, and their slopes by three-point finite differences.

What is a neighbour of what is known in the order of all points only: nothing here can be split over the samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenflex.bases.base import positive

SAME = 1e-3
"""Points closer than this share of the mean gap count as one, with one value and one slope."""


@dataclass(frozen=True, eq=False)
class Differences:
    r"""One function for every column of points, by the slopes p of its chords between neighbouring distinct points.

    .. math:: G_i = \sum_{j < i} (\tau_{j+1} - \tau_j) \, p_j, \qquad
        H_i = \frac{h_i \, p_{i-1} + h_{i-1} \, p_i}{h_{i-1} + h_i}, \quad h_i = \tau_{i+1} - \tau_i

    H is the derivative of the parabola through the values at three neighbours, at the ends through the last three:
    exact for quadratic functions at any distances. The unknowns are chords and not values, since a difference of values
    at close points would amplify their errors. Every operation takes O(S r).

    Args:
        place: Which of its column's distinct points each sample is, `(S, r)`.
        gaps: Between distinct points, zero behind the last one, `(S - 1, r)`.
        lean: The share of the right chord in the slope at each distinct point, `(S, r)`.
        chord: The left of the two chords at each distinct point, `(S, r)`.
        stiffness: What a squared change of chord costs at each inner point: one over the distance of their middles,
            zero behind the last one, `(S - 2, r)`.
    """

    place: Int[Tensor, "S r"]
    gaps: Float[Tensor, "S-1 r"]
    lean: Float[Tensor, "S r"]
    chord: Int[Tensor, "S r"]
    stiffness: Float[Tensor, "S-2 r"]

    def values(self, p: Float[Tensor, "S-1 r"]) -> Float[Tensor, "S r"]:
        """G, centred over the samples."""
        at_points = torch.cat([torch.zeros_like(p[:1]), (self.gaps * p).cumsum(0)])
        G = at_points.gather(0, self.place)
        return G - G.mean(0)

    def slopes(self, p: Float[Tensor, "S-1 r"]) -> Float[Tensor, "S r"]:
        """H."""
        at_points = torch.lerp(p.gather(0, self.chord), p.gather(0, self._next()), self.lean)
        return at_points.gather(0, self.place)

    def pull(self, to_g: Float[Tensor, "S r"], to_h: Float[Tensor, "S r"]) -> Float[Tensor, "S-1 r"]:
        """The adjoint of `values` and `slopes` together."""
        at_points = torch.zeros_like(to_g).scatter_add(0, self.place, to_g - to_g.mean(0))
        beyond = at_points.sum(0) - at_points.cumsum(0)
        at_points = torch.zeros_like(to_h).scatter_add(0, self.place, to_h)
        total = self.gaps * beyond[:-1]
        total = total.scatter_add(0, self.chord, (1 - self.lean) * at_points)
        return total.scatter_add(0, self._next(), self.lean * at_points)

    def roughen(self, p: Float[Tensor, "S-1 r"]) -> Float[Tensor, "S-1 r"]:
        r"""The gradient of half the roughness :math:`\int g''^2`, the second divided differences taken as g''."""
        force = self.stiffness * p.diff(dim=0)
        still = torch.zeros_like(p[:1])
        return torch.cat([still, force]) - torch.cat([force, still])

    def chords(self, H: Float[Tensor, "S r"]) -> Float[Tensor, "S-1 r"]:
        """Chords near given slopes: where a solver may begin."""
        at_points = torch.zeros_like(H).scatter_reduce(0, self.place, H, "mean", include_self=False)
        return torch.where(self.gaps > 0, (at_points[1:] + at_points[:-1]) / 2, 0.0)

    def diagonals(self) -> tuple[Float[Tensor, "S-1 r"], Float[Tensor, "S-1 r"], Float[Tensor, "S-1 r"]]:
        """The diagonals of `values` and `slopes`, each with its adjoint behind it, and of `roughen`."""
        many = torch.zeros_like(self.lean).scatter_add(0, self.place, torch.ones_like(self.lean))
        before = many.cumsum(0)[:-1]
        of_values = self.gaps.square() * before * (len(many) - before) / len(many)
        of_slopes = torch.zeros_like(self.gaps).scatter_add(0, self.chord, (1 - self.lean).square() * many)
        of_slopes = of_slopes.scatter_add(0, self._next(), self.lean.square() * many)
        still = torch.zeros_like(self.gaps[:1])
        return of_values, of_slopes, torch.cat([still, self.stiffness]) + torch.cat([self.stiffness, still])

    def _next(self) -> Tensor:
        return (self.chord + 1).clamp(max=len(self.gaps) - 1)


def differences(t: Float[Tensor, "S r"]) -> Differences:
    """The filter along the sorted points of every column; points that coincide are one."""
    ordered, order = t.sort(0)
    apart = ordered.diff(dim=0) > SAME * (ordered[-1] - ordered[0]) / len(t)
    rank = torch.cat([torch.zeros_like(order[:1]), apart.cumsum(0)])
    place = torch.empty_like(rank).scatter(0, order, rank)
    points = ordered[-1:].expand_as(t).scatter_reduce(0, rank, ordered, "amin")
    gaps = points.diff(dim=0)
    middles = points[:-1] + gaps / 2
    last = (apart.sum(0) - 2).clamp(min=0)  # the left of the last two chords
    chord = torch.minimum((torch.arange(len(t), device=t.device) - 1).clamp(min=0)[:, None], last)
    right = (chord + 1).clamp(max=len(gaps) - 1)
    distance = middles.gather(0, right) - middles.gather(0, chord)
    distance = torch.where(gaps.gather(0, right) > 0, distance, torch.zeros_like(distance))
    lean = torch.where(distance > 0, (points - middles.gather(0, chord)) / positive(distance), 0.0)
    both = (gaps[1:] > 0) & (gaps[:-1] > 0)
    stiffness = torch.where(both, 1 / positive(middles.diff(dim=0)), 0.0)
    return Differences(place, gaps, lean, chord, stiffness)
