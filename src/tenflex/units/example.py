"""The whole example as one sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tenflex.factors import Factors
from tenflex.nn import FlexibleLayer
from tenflex.units.base import Chosen, Shape, Unit


@dataclass(frozen=True)
class Example(Unit):
    """The block maps whole examples."""

    name: ClassVar[str] = "example"
    plural: ClassVar[str] = "examples"
    places: Shape = ()

    @classmethod
    def find(cls, block: nn.Module, arriving: Tensor) -> Example:
        return cls()

    def inputs(self, arriving: Tensor, which: Tensor, where: Tensor) -> Tensor:
        return arriving[which]

    def outputs(self, leaving: Tensor, which: Tensor, where: Tensor) -> Tensor:
        return leaving[which]

    def layer(
        self, factors: Factors, in_shape: Shape, out_shape: Shape, dtype: torch.dtype, modes: Chosen | None = None
    ) -> FlexibleLayer:
        return FlexibleLayer.from_factors(factors, in_shape, out_shape, dtype, modes)
