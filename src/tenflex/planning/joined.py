"""Two blocks that store less together than apart: of a flexible convolution the last map goes into what follows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tenflex.nn import FlexibleConv, FlexibleLayer
from tenflex.units.fold import saved_by_folding


@dataclass(frozen=True)
class Joined:
    """Two blocks of which the second is given what the first gives, and nothing else is.

    Args:
        first: A block whose layers may be flexible convolutions.
        second: One whose layers may be flexible.
        given: The shape of the outputs of the first for one example.
    """

    first: str
    second: str
    given: torch.Size

    def saved(self, first: nn.Module, second: nn.Module) -> dict[str, int]:
        """What layers in their places save together, by the names of a budget; nothing where they are not folded."""
        if not isinstance(first, FlexibleConv) or first.folded:
            return {}
        if not isinstance(second, FlexibleLayer) or second.modes is not None:
            return {}
        numbers, macs = saved_by_folding(first, second, self.given)
        each = next(first.parameters()).element_size()
        return {"parameters": numbers, "macs": macs, "bytes": each * numbers} if numbers > 0 else {}


def in_a_row(ends: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[Joined]:
    """The blocks that give images or signals which arrive at another block, as they are or flat.

    Args:
        ends: What arrives at each block and what leaves it, samples first.
    """
    for first, (_, leaving) in ends.items():
        for second, (arriving, _) in ends.items():
            alike = len(leaving) == len(arriving) and leaving.numel() == arriving.numel()
            if first != second and alike and leaving.ndim > 2 and torch.equal(leaving.flatten(1), arriving.flatten(1)):
                yield Joined(first, second, leaving.shape[1:])
