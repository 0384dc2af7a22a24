"""What a unit is: rows in, a layer out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tenflex.factors import Factors
from tenflex.modes import Modes, Multilinear
from tenflex.nn import FlexibleConv, FlexibleLayer

Shape = tuple[int, ...]

Chosen = tuple[Modes, Multilinear]
"""Modes, with the directions that samples chose for them."""


class Unit(ABC):
    """What one sample of a block is.

    What arrives at a block for one example, and what leaves it, is divided into rows that the block maps alike.
    """

    name: ClassVar[str]
    plural: ClassVar[str]
    places: Shape
    """How many rows one example of the block has, along each axis; `()` if it is one row."""

    @classmethod
    @abstractmethod
    def find(cls, block: nn.Module, arriving: Float[Tensor, "s *in"]) -> Unit:
        """The unit of this kind that a block has, for some of its inputs.

        Raises:
            ValueError: if it has none, with the reason.
        """

    @abstractmethod
    def inputs(
        self, arriving: Float[Tensor, "s *in"], which: Int[Tensor, " rows"], where: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows *row"]:
        """Rows of what arrives, each by its example and its place in that, counted over all axes."""

    @abstractmethod
    def outputs(
        self, leaving: Float[Tensor, "s *out"], which: Int[Tensor, " rows"], where: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows *row"]:
        """The same rows of what leaves."""

    def arrived(self, arriving: Float[Tensor, "s *in"]) -> Float[Tensor, "rows *row"]:
        """All rows of what arrives."""
        return self.inputs(arriving, *self._all(arriving))

    def every(self, leaving: Float[Tensor, "s *out"]) -> Float[Tensor, "rows *row"]:
        """All rows of what leaves."""
        return self.outputs(leaving, *self._all(leaving))

    def _all(self, examples: Tensor) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]:
        """The example and the place of every row."""
        count, inside = len(examples), torch.Size(self.places).numel()
        which = torch.arange(count, device=examples.device).repeat_interleave(inside)
        return which, torch.arange(inside, device=examples.device).repeat(count)

    def function(self, block: nn.Module) -> nn.Module:
        """What the block makes of rows, as a map of a batch; the block itself unless a unit says otherwise."""
        return block

    @abstractmethod
    def layer(
        self, factors: Factors, in_shape: Shape, out_shape: Shape, dtype: torch.dtype, modes: Chosen | None = None
    ) -> FlexibleLayer | FlexibleConv:
        """The layer in the place of the block, of factors that map a row of one shape to one of another.

        Where V sees a row through modes, they come with the directions that were chosen.
        """

    def __str__(self) -> str:
        """In words, for reports."""
        return f"an {self.name}" if self.name[0] in "aeiou" else f"a {self.name}"
