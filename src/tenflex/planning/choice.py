"""A choice over all blocks: what to take for each, when errors and costs of single blocks add up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

MOST = 300
"""So many ways to treat some blocks are kept at most, evenly over their sizes."""


@dataclass(frozen=True)
class Option:
    """One way to treat some blocks.

    Args:
        choice: The blocks that are replaced, each with the number of what is taken.
        costs: What the network then costs beyond the original, one number a cost: negative ones save.
        error: What is added to the squared error.
        lost_agreement: What is added to the share of other decisions.
    """

    choice: tuple[tuple[str, int], ...] = ()
    costs: tuple[int, ...] = ()
    error: float = 0.0
    lost_agreement: float = 0.0

    def __add__(self, other: Option) -> Option:
        costs = tuple(map(sum, zip(self.costs, other.costs, strict=True)))
        lost = self.lost_agreement + other.lost_agreement
        return Option(self.choice + other.choice, costs, self.error + other.error, lost)


@dataclass(frozen=True)
class Region:
    """A block with the ways to treat it, and the blocks inside it, which can be treated instead.

    Args:
        options: Ways to replace the block as a whole.
        inside: Regions in it.
    """

    options: Sequence[Option]
    inside: Sequence[Region] = ()


def frontier(regions: Iterable[Region], costs: int, agreement: bool = False) -> list[Option]:
    """The ways to treat regions that are best at some size, leaving all as it is among them.

    Args:
        regions: Regions that do not overlap.
        costs: How many costs count.
        agreement: Whether the agreement counts besides.
    """
    found = [Option(costs=(0,) * costs)]
    for region in regions:
        each = [*frontier(region.inside, costs, agreement), *region.options]
        found = undominated([one + other for one in found for other in each], agreement)
    return found


def undominated(options: Sequence[Option], agreement: bool) -> list[Option]:
    """The options than which none is as good in all and better in something, by their first cost; of equals the first.

    Of very many some are left out, evenly.
    """
    options = sorted(options, key=lambda one: (*one.costs, one.error))
    rows = [(*one.costs, one.error, *([one.lost_agreement] if agreement else [])) for one in options]
    values = torch.tensor(rows, dtype=torch.float64, device="cpu")
    kept: list[int] = []
    for index in range(len(options)):
        best = values[kept]
        if not len(kept) or not bool((best <= values[index]).all(1).any()):
            kept.append(index)
    if len(kept) > MOST:
        places = torch.linspace(0, len(kept) - 1, MOST, device="cpu").round().long().unique().tolist()
        kept = [kept[place] for place in places]
    return [options[index] for index in kept]
