"""A position of a sequence as one sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.factors import Factors
from tenflex.nn import FlexibleLayer
from tenflex.surgery.batch import nearly_equal
from tenflex.units.base import Chosen, Shape, Unit


@dataclass(frozen=True)
class Position(Unit):
    """The block maps the last dimension alone, at every position alike.

    Args:
        places: The sizes of the dimensions between the first and the last.
    """

    name: ClassVar[str] = "position"
    plural: ClassVar[str] = "positions"
    places: Shape = ()

    @classmethod
    def find(cls, block: nn.Module, arriving: Tensor) -> Position:
        if not positions(block, arriving):
            raise ValueError("it does not act on the last dimension of its inputs alone")
        return cls(tuple(arriving.shape[1:-1]))

    def inputs(self, arriving: Tensor, which: Tensor, where: Tensor) -> Tensor:
        return arriving.flatten(1, -2)[which, where]

    def outputs(self, leaving: Tensor, which: Tensor, where: Tensor) -> Tensor:
        return leaving.flatten(1, -2)[which, where]

    def layer(
        self, factors: Factors, in_shape: Shape, out_shape: Shape, dtype: torch.dtype, modes: Chosen | None = None
    ) -> FlexibleLayer:
        return FlexibleLayer.from_factors(factors, in_shape, out_shape, dtype, modes)


def positions(function: Callable[[Tensor], Tensor], inputs: Float[Tensor, "S *in"]) -> bool:
    """Whether a block acts on the last dimension alone, so that every position (a token) is a sample of its own.

    Args:
        function: The block, `(S, *in) -> (S, *out)`.
        inputs: Some of its inputs; the first few are tried, with noise of their size, so that zeros hide nothing.

    Returns:
        True if there are positions and the block gives the same for each of them in a batch of rows, up to rounding.
    """
    if inputs.ndim < 3 or not inputs.is_floating_point() or inputs.numel() == 0:
        return False
    few = noisy(inputs)
    try:
        with torch.no_grad():
            together, apart = function(few.clone()), function(few.reshape(-1, few.shape[-1]))
            return nearly_equal(together, apart.reshape(*few.shape[:-1], -1))
    except Exception:  # whatever a block may raise when it is given another shape: then it acts on more
        return False


def noisy(inputs: Float[Tensor, "S *in"]) -> Float[Tensor, "few *in"]:
    """The first few inputs with noise of their size, so that zeros hide nothing; infinite ones are taken as zeros."""
    few = inputs[:4].detach().nan_to_num(0, 0, 0)
    noise = torch.randn(few.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")
    return few + (few.double().std(correction=0) or 1.0) * noise.to(few)
