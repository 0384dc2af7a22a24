"""Everything a solver needs, validated once."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from tenflex.bases import Basis, BSpline
from tenflex.checks import require_number, require_rank, require_whole
from tenflex.coordinates.base import Coordinates
from tenflex.coordinates.standardize import Standardize
from tenflex.samples import Samples
from tenflex.sums import alike


@dataclass(frozen=True)
class Problem:
    r"""Find a flexible layer of a given size for samples of a map.

    .. math:: E = \frac{\|J - [[H, W, V]]\|^2}{\|J\|^2} + \lambda \frac{\|F - G W^\top - b\|^2}{\|F - \bar F\|^2}

    Args:
        samples: Inputs, outputs and Jacobians of the map.
        rank: The number of nodes, r; or those of each layer, `(r1, ..., rL)`, from the inputs to the
            outputs.
        basis: The functions that every activation combines.
        coupling: The weight of the outputs' relative error beside the Jacobians', lambda; at least 0. Where the
            Jacobians have a covariance and the outputs come from the same estimate, take 0: outputs are not weighted.
        factor: Store `V = B A` with B `(m, factor)`; None for a full V.
        output_factor: Store `W = D E` with D `(n, output_factor)`; None for a full W.
        coordinates: The affine change of variables in which to solve; skipped for samples that are already reduced.
        held_out: The share of the samples that are never fitted, on which starts and steps are chosen; 0 to fit all.

    Raises:
        TypeError: if `samples` is not a `Samples`, `basis` not a `Basis` or `coordinates` not `Coordinates`.
        ValueError: if a size is out of range, the outputs never change, or too few samples are left to fit.
    """

    samples: Samples
    rank: int | tuple[int, ...]
    basis: Basis = field(default_factory=BSpline)
    coupling: float = 3.0
    factor: int | None = None
    output_factor: int | None = None
    coordinates: Coordinates = field(default_factory=Standardize)
    held_out: float = 0.15

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
        require_number("held_out", self.held_out, at_least=0)
        if self.held_out > 0.5:
            raise ValueError(f"held_out must be a share of at most 0.5, got {self.held_out}")
        require_sizes(self.ranks, self.factor, self.output_factor, self.samples.jacobians.shape, self.held_out)
        self._check_signal()

    @property
    def ranks(self) -> tuple[int, ...]:
        """The number of nodes of each layer, from the inputs to the outputs."""
        return self.rank if isinstance(self.rank, tuple) else (self.rank,)

    def _check_signal(self) -> None:
        x, F, J = self.samples.inputs, self.samples.outputs, self.samples.jacobians
        if alike(x):
            raise ValueError("all inputs are the same: expected samples that vary; pass different inputs")
        if not J.any():
            raise ValueError(
                "all Jacobians are zero: the outputs do not depend on the inputs at these samples "
                "(dead inputs, or saturated or dead units); pass inputs that excite the block"
            )
        if alike(F):
            raise ValueError("all outputs are the same: expected a map whose outputs vary over the samples")

    @property
    def held_out_count(self) -> int:
        """The number of samples that are never fitted."""
        return aside(len(self.samples), self.held_out)

    def split(self) -> tuple[Int[Tensor, " fitted"], Int[Tensor, " held_out"]]:
        """Which samples are fitted, and which never are: always the same ones for as many samples."""
        count, aside = len(self.samples), self.held_out_count
        order = torch.randperm(count, generator=torch.Generator().manual_seed(count)).to(self.samples.inputs.device)
        return order[aside:].sort().values, order[:aside]

    @property
    def largest_rank(self) -> int:
        """The largest rank that the fitted samples determine."""
        count, n, m = self.samples.jacobians.shape
        return determined(count - self.held_out_count, n, m)


def aside(count: int, held_out: float) -> int:
    """How many of `count` samples are never fitted."""
    return min(max(round(held_out * count), 2), count - 2) if held_out > 0 and count >= 8 else 0


def determined(fitted: int, n: int, m: int) -> int:
    """The largest rank that so many fitted samples determine."""
    unknowns = fitted * (m + 1) * n // (m + n)  # a node has at least m + n numbers to find
    return max(1, min(fitted, unknowns))


def require_sizes(
    ranks: tuple[int, ...],
    factor: int | None,
    output_factor: int | None,
    shape: tuple[int, ...],
    held_out: float,
) -> None:
    """Raise ValueError unless layers of these sizes can be found from Jacobians of the shape `(S, n, m)`.

    No layer that is refused for so many inputs could be found if fewer of them were active.
    """
    count, n, m = shape
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
    fitted = count - aside(count, held_out)
    most = determined(fitted, n, m)
    if max(ranks) > most:
        raise ValueError(
            f"rank must be at most {most} for {fitted} fitted samples of a map from {m} to {n} numbers, "
            f"got {ranks if len(ranks) > 1 else ranks[0]}: lower the rank or pass more inputs"
        )
