"""Every input by its own deviation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.coordinates.base import Coordinates, output_frame, varying
from tenflex.reduction import Reduction
from tenflex.sums import largest, mean_of

CONSTANT = 1e-12
"""An input that varies by a smaller share of its size is constant but for rounding."""


def deviations(x: Float[Tensor, "S m"]) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Means and standard deviations of inputs; for one that is constant the largest one."""
    mean = mean_of(x)
    found = mean_of((x - mean).square()).sqrt()
    varies = found > CONSTANT * largest(x.abs())  # by its own size: other inputs have units of their own
    return mean, torch.where(varies, found, found.amax())


@dataclass(frozen=True)
class Standardize(Coordinates):
    """Every input has mean zero and variance one, and none is dropped: for maps whose every input matters.

    Example:
        >>> from tenflex.coordinates import *
        >>> again = Problem(problem.samples, 2, Monomial(3), coordinates=Standardize())
        >>> decouple(again).validation_error < 1e-6
        True
    """

    def choose(
        self,
        inputs: Float[Tensor, "S m"],
        outputs: Float[Tensor, "S n"],
        jacobians: Float[Tensor, "S n m"] | None = None,
    ) -> Reduction:
        x = varying(inputs)
        mean, deviation = deviations(x)
        return Reduction(mean, torch.diag(1 / deviation), torch.diag(deviation), *output_frame(outputs))
