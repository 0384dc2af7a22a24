"""Every output by its own size."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases.base import positive
from tenflex.coordinates.base import Coordinates
from tenflex.coordinates.standardize import Standardize
from tenflex.reduction import Reduction
from tenflex.sums import mean_of, over_samples


@dataclass(frozen=True)
class PerOutput(Coordinates):
    r"""Every output counts the same, however small: each is scaled by the root mean square of its Jacobian.

    .. math:: y_i = \frac{f_i - \nu_i}{\sigma_i}, \quad \sigma_i^2 \propto \sum_s \|\nabla_z f_i(x_s)\|^2

    For maps whose outputs are in different units; with `PerOutput(Sensitivity())` the units of no input and of no
    output matter. An output that never changes keeps the scale of the largest.

    Args:
        coordinates: The rule for the inputs, in whose coordinates z the Jacobians are measured.

    Raises:
        TypeError: if `coordinates` is something else.

    Example:
        >>> from tenflex.coordinates import *
        >>> again = Problem(problem.samples, 2, Monomial(3), coordinates=PerOutput(Sensitivity()))
        >>> decouple(again).validation_error < 1e-6
        True
    """

    from_jacobians: ClassVar[bool] = True
    from_views: ClassVar[bool] = False
    coordinates: Coordinates = field(default_factory=Standardize)

    def __post_init__(self) -> None:
        if not isinstance(self.coordinates, Coordinates):
            raise TypeError(f"coordinates must be Standardize() or Whiten(), got {self.coordinates!r}")

    def choose(
        self,
        inputs: Float[Tensor, "S m"],
        outputs: Float[Tensor, "S n"],
        jacobians: Float[Tensor, "S n m"] | None = None,
    ) -> Reduction:
        """Raises ValueError without Jacobians."""
        if jacobians is None:
            raise ValueError("PerOutput needs Jacobians of some of the samples, got none")
        mean = mean_of(outputs.double())
        own = filled(
            mean_of((outputs.double() - mean).square()).sqrt()
        )  # so that the rule for the inputs meets no units of outputs
        jacobians = jacobians.double() / own[:, None]
        reduction = self.coordinates.choose(inputs, outputs / own, jacobians)
        size = filled(over_samples(reduction.jacobians(jacobians).square().sum((0, 2))).sqrt())
        whole = mean_of((reduction.outputs(outputs / own) / size).square().sum(1)).sqrt()
        scale = positive(own * size * whole)
        return replace(
            reduction,
            output_mean=mean,
            output_down=reduction.output_down / (scale if reduction.output_down.ndim == 1 else scale[:, None]),
            output_up=reduction.output_up * (scale if reduction.output_up.ndim == 1 else scale[:, None]),
        )


def filled(sizes: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The sizes, the largest in place of zeros."""
    return positive(torch.where(sizes > 0, sizes, sizes.amax()))
