"""Everything a solver needs, validated once."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases import Basis, BSpline, Smooth
from tenflex.checks import require_number, require_rank, require_share, require_whole
from tenflex.coordinates.base import Coordinates, require_varying
from tenflex.coordinates.standardize import Standardize
from tenflex.reduction import Reduction
from tenflex.samples import Samples
from tenflex.shown import Shown
from tenflex.split import SHARE, Split, keeps_groups
from tenflex.sums import alike, largest, smallest, total_of

MOST = 1e150
"""Larger numbers, and smaller ones than its inverse, have squares that no longer are numbers."""


@dataclass(frozen=True, repr=False)
class Problem(Shown):
    r"""Find a flexible layer of a given size for samples of a map.

    .. math:: E = \frac{\|J - [[H, W, V]]\|^2}{\|J\|^2} + \lambda \frac{\|F - G W^\top - b\|^2}{\|F - \bar F\|^2}

    Args:
        samples: Inputs, outputs and Jacobians of the map.
        rank: The number of nodes, r; or those of each layer, `(r1, ..., rL)`, from the inputs to the
            outputs.
        basis: The functions that every activation combines. The default are B-splines with a price on roughness, as
            much of it as cross-validation finds: without one the ends, where few samples lie, may go anywhere.
        coupling: The weight of the outputs' relative error beside the Jacobians', lambda; at least 0. Where the
            Jacobians have a covariance and the outputs come from the same estimate, take 0: outputs are not weighted.
        factor: Store `V = B A` with B `(m, factor)`; None for a full V.
        output_factor: Store `W = D E` with D `(n, output_factor)`; None for a full W.
        coordinates: The affine change of variables in which to solve; skipped for samples that are already reduced.
        held_out: The share of the samples that are never fitted, in whole groups: on half of them starts and steps
            are chosen, and the other half tells the error. Samples that were split while they were sampled stay
            split as they are, whatever the share. 0 to fit all of them in any case.

    Raises:
        TypeError: if `samples` is not a `Samples`, `basis` not a `Basis` or `coordinates` not `Coordinates`.
        ValueError: if a size is out of range, the outputs never change, numbers are so large or so small that their
            squares are none, or too few samples are left to fit.

    Example:
        >>> problem = Problem(sample(f, torch.rand(40, 2)), rank=2, basis=Monomial(3), factor=1)
        >>> problem.ranks, problem.largest_rank
        ((2,), 67)
    """

    samples: Samples
    rank: int | tuple[int, ...]
    basis: Basis = field(default_factory=lambda: Smooth(BSpline()))
    coupling: float = 3.0
    factor: int | None = None
    output_factor: int | None = None
    coordinates: Coordinates = field(default_factory=Standardize)
    held_out: float = SHARE

    def __post_init__(self) -> None:
        if not isinstance(self.samples, Samples):
            raise TypeError(
                f"samples must be a tenflex.Samples, got {type(self.samples).__name__}: use tenflex.sample(f, points)"
            )
        if not isinstance(self.basis, Basis):
            raise TypeError(f"basis must be a basis such as BSpline(10), got {self.basis!r}")
        if not isinstance(self.coordinates, Coordinates):
            raise TypeError(f"coordinates must be Standardize() or Whiten(), got {self.coordinates!r}")
        require_rank(self.rank)
        require_number("coupling", self.coupling, at_least=0)
        require_share("held_out", self.held_out, at_most=0.5)
        _, n, m = self.samples.sizes
        shape = total_of(len(self.split.fitted)), n, m
        require_sizes(self.ranks, self.factor, self.output_factor, shape, self.samples.views)
        self._check_signal()
        self._check_groups()

    @property
    def ranks(self) -> tuple[int, ...]:
        """The number of nodes of each layer, from the inputs to the outputs."""
        return self.rank if isinstance(self.rank, tuple) else (self.rank,)

    def _check_groups(self) -> None:
        groups = self.samples.groups
        if groups is not None and self.samples.aside is None and not keeps_groups(groups, self.split):
            warnings.warn(
                f"the {len(groups.unique())} groups of the samples are too few or too large to hold out a share of "
                f"{self.held_out:g} in whole ones: samples are held out one by one, and errors on them flatter; pass "
                f"more groups, or a larger held_out",
                stacklevel=4,
            )

    def _check_signal(self) -> None:
        x, F, J = self.samples.inputs, self.samples.outputs, self.samples.jacobians
        require_varying(x)
        if J.numel() and not J.any():
            raise ValueError(
                "all Jacobians are zero: the outputs do not depend on the inputs at these samples "
                "(dead inputs, or saturated or dead units); pass inputs that excite the block"
            )
        if alike(F):
            raise ValueError("all outputs are the same: expected a map whose outputs vary over the samples")
        require_scale("inputs", x)
        require_scale("outputs", F)
        if J.numel():
            require_scale("jacobians", J, centred=False)

    @cached_property
    def split(self) -> Split:
        """Which samples are fitted, which are for validation and which for the test."""
        return self.samples.split(self.held_out)

    @cached_property
    def reduction(self) -> Reduction:
        """The coordinates of the samples, or those that the rule chooses from the fitted ones."""
        samples, fitted = self.samples, self.split.fitted
        if samples.reduction is not None:
            return samples.reduction
        return self.coordinates.choose(samples.inputs[fitted], samples.outputs[fitted], samples.jacobians[fitted])

    @property
    def largest_rank(self) -> int:
        """The largest rank that the fitted samples determine."""
        _, n, m = self.samples.sizes
        return determined((total_of(len(self.split.fitted)), n, m), self.samples.views, self.factor, self.output_factor)


def determined(
    shape: tuple[int, int, int], views: int | None = None, factor: int | None = None, output_factor: int | None = None
) -> int:
    """The largest rank that so many fitted samples determine: a node has at least m + n numbers to find.

    Whole Jacobians tell as much as a view for each of n outputs. Of a map that is stored as a product a node has as
    many numbers as the product is wide, and the other matrix is found once for all nodes.

    Args:
        shape: The numbers of fitted samples, outputs and inputs.
        views: How many products with each Jacobian there are; None for whole ones.
        factor: The width of `V = B A`; None for a full V.
        output_factor: The width of `W = D E`; None for a full W.
    """
    fitted, n, m = shape
    told = fitted * (n + m * (n if views is None else min(views, n)))
    once = sum(size * (width or 0) for size, width in ((m, factor), (n, output_factor)))
    return max(1, told // (m + n), (told - once) // ((factor or m) + (output_factor or n)))


def require_sizes(
    ranks: tuple[int, ...],
    factor: int | None,
    output_factor: int | None,
    shape: tuple[int, int, int],
    views: int | None = None,
) -> None:
    """Raise ValueError unless layers of these sizes can be found from fitted Jacobians of the shape `(S, n, m)`.

    No layer that is refused for so many inputs could be found if fewer of them were active.
    """
    fitted, n, m = shape
    for name, value, rank, size, what in (
        ("factor", factor, ranks[0], m, "inputs"),
        ("output_factor", output_factor, ranks[-1], n, "outputs"),
    ):
        if value is None:
            continue
        require_whole(name, value, at_least=1)
        if value > min(size, rank):
            raise ValueError(
                f"{name} must be at most the rank ({rank}) and the number of {what} that vary ({size}), "
                f"got {value}: a larger one stores more than a full matrix; lower it or leave it out"
            )
    most = determined(shape, views, factor, output_factor)
    if max(ranks) > most:
        raise ValueError(
            f"rank must be at most {most} for {fitted} fitted samples of a map from {m} to {n} numbers, "
            f"got {ranks if len(ranks) > 1 else ranks[0]}: lower the rank or pass more inputs"
        )


def require_scale(name: str, numbers: Float[Tensor, "S *rest"], centred: bool = True) -> None:
    """Raise ValueError if numbers are so large or so small that their squares over- or underflow.

    Args:
        name: What they are called.
        numbers: One or more to a sample.
        centred: Whether only their differences count.
    """
    low, high = smallest(numbers.detach()), largest(numbers.detach())
    size = float(torch.maximum(high, -low).max())
    change = float((high - low).max()) if centred else size
    if size > MOST or 0 < change < 1 / MOST:
        found = size if size > MOST else change
        raise ValueError(
            f"{name} must have a size from {1 / MOST:g} to {MOST:g}, so that their squares are numbers, got "
            f"{found:.2g}: measure them in other units"
        )
