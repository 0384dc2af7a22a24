"""What a rule of coordinates is: from the data, a reduction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from tenflex.bases.base import positive
from tenflex.reduction import Reduction
from tenflex.sums import alike, mean_of


class Coordinates(ABC):
    """A rule that chooses the reduced coordinates from the data.

    Example:
        >>> from tenflex.coordinates import *
        >>> again = Problem(problem.samples, 2, Monomial(3), coordinates=Whiten())
        >>> decouple(again).validation_error < 1e-6
        True
    """

    from_jacobians: ClassVar[bool] = False
    """Whether it needs the Jacobians of some samples, as they are before they are reduced."""

    from_views: ClassVar[bool] = True
    """Whether products `J^T u` with random combinations of the outputs will do in their place."""

    @abstractmethod
    def choose(
        self,
        inputs: Float[Tensor, "S m"],
        outputs: Float[Tensor, "S n"],
        jacobians: Float[Tensor, "S n m"] | None = None,
    ) -> Reduction:
        """The reduction for these samples; the outputs are centred and brought to unit size.

        The Jacobians are None where they are only sampled in the coordinates that are chosen here.
        """


def varying(inputs: Float[Tensor, "S m"]) -> Float[Tensor, "S m"]:
    """The inputs in float64; ValueError if they are all the same."""
    require_varying(inputs)
    return inputs.double()


def require_varying(*inputs: Shaped[Tensor, "S *m"]) -> None:
    """Raise ValueError if all samples are the same, in each of several inputs."""
    if all(map(alike, inputs)):
        raise ValueError("all inputs are the same: expected samples that vary; pass different inputs")


WIDEST_OUTPUTS = 2048
"""Of more outputs the map to their coordinates is kept as its diagonal: no matrix is n by n then."""


def output_frame(
    outputs: Float[Tensor, "S n"],
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n *n"], Float[Tensor, "n *n"]]:
    """Mean of the outputs, and the maps to unit size (along the original axes) and back; of many, their diagonals."""
    f = outputs.double()
    mean = mean_of(f)
    size = positive(mean_of((f - mean).square().sum(1)).sqrt())
    n = f.shape[1]
    wide = n > WIDEST_OUTPUTS
    eye = f.new_ones(n) if wide else torch.eye(n, dtype=f.dtype, device=f.device)
    return mean, eye / size, eye * size
