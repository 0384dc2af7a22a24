"""Inputs of unit covariance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.checks import require_number
from tenflex.coordinates.base import Coordinates, output_frame, varying
from tenflex.reduction import Reduction
from tenflex.sums import gram_matrix, mean_of, sample_count


@dataclass(frozen=True)
class Whiten(Coordinates):
    """The inputs have mean zero and unit covariance: for the inputs of a network, which are many and correlated.

    Directions that the data never excite carry no information, and plain Frobenius error on the Jacobians would spend
    nodes on them. At most `min(m, S - 1)` directions remain, whatever the size of the block.

    Args:
        tolerance: Directions whose variance is at most this share of the largest are dropped.

    Raises:
        ValueError: if `tolerance` is not a number from 0 to below 1.

    Example:
        >>> from tenflex.coordinates import *
        >>> again = Problem(problem.samples, 2, Monomial(3), coordinates=Whiten())
        >>> decouple(again).validation_error < 1e-6
        True
    """

    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        require_number("tolerance", self.tolerance, at_least=0)
        if self.tolerance >= 1:
            raise ValueError(f"tolerance must be a share below 1, got {self.tolerance}: no direction would be left")

    def choose(
        self,
        inputs: Float[Tensor, "S m"],
        outputs: Float[Tensor, "S n"],
        jacobians: Float[Tensor, "S n m"] | None = None,
    ) -> Reduction:
        x = varying(inputs)
        mean = mean_of(x)
        axes, deviations = principal_axes(x - mean, self.tolerance)
        return Reduction(mean, axes / deviations, axes * deviations, *output_frame(outputs))


def principal_axes(centred: Float[Tensor, "S m"], tolerance: float) -> tuple[Float[Tensor, "m k"], Float[Tensor, " k"]]:
    """Orthonormal axes of the covariance and the standard deviations along them, largest first.

    The smaller of the two Gram matrices is decomposed, so the cost is bounded by `min(S, m)`. That of the samples
    needs all of them at hand, which are fewer than inputs then.
    """
    count, size = sample_count(centred), centred.shape[1]
    few = size <= count
    gram = gram_matrix(centred) if few else centred @ centred.mT
    variances, axes = torch.linalg.eigh(gram / count)
    keep = variances > max(tolerance, 1e-13) * variances[-1]
    axes, deviations = axes[:, keep].flip(1), variances[keep].sqrt().flip(0)
    return (axes if few else centred.mT @ axes / (deviations * count**0.5)), deviations
