"""Which rows are sampled: drawn before a network runs, so that only they are kept."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tenflex.split import Split, split_samples
from tenflex.units.base import Unit

MOST_SHUFFLED = 2**22
"""Of more rows than these some are drawn first, so that no permutation of all of them is made."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """Rows of a block by example and place, in ascending order.

    Args:
        unit: What a row is.
        examples: For each row its example, as the block counts them.
        places: Its place in that.
        groups: Its group, in which it is held out or fitted.
        total: How many rows there are in all.
        left_out: How many of those are padding.
        uses: Which rows are fitted and which are held out; None to decide by the groups.
    """

    unit: Unit
    examples: Int[Tensor, " rows"]
    places: Int[Tensor, " rows"]
    groups: Int[Tensor, " rows"]
    total: int
    left_out: int = 0
    uses: Split | None = None

    def split(self, share: float) -> Split:
        """Which rows are fitted and which are held out."""
        return split_samples(self.groups, share) if self.uses is None else self.uses

    def among(self, own: Int[Tensor, " some"], each: int, share: float) -> Drawn:
        """The rows of some examples of the network, as if there were no others; used as among all of them.

        Args:
            own: The examples, in ascending order.
            each: How many examples of the block one example of the network becomes.
            share: The share of all rows that is held out.
        """
        whose = self.examples // each
        here = torch.isin(whose, own.cpu())
        place = torch.searchsorted(own.cpu(), whose[here])
        rows = self.some(here.nonzero().squeeze(1).to(self.groups.device), share)
        return replace(rows, examples=place * each + rows.examples % each)

    def kept(self, most: int, share: float, seed: int) -> Int[Tensor, " some"]:
        """The held-out rows and as many fitted ones at most, drawn from the seed, in ascending order."""
        fitted, *others = self.split(share)
        return torch.cat([fitted[some_of(len(fitted), most, seed).to(fitted.device)], *others]).sort().values

    def some(self, kept: Int[Tensor, " some"], share: float) -> Drawn:
        """These rows, used as among all of them; the share is that which is held out then."""
        number = torch.full((len(self),), -1, dtype=torch.int64, device=kept.device)
        number[kept] = torch.arange(len(kept), device=kept.device)
        uses = Split(*(number[one][number[one] >= 0] for one in self.split(share)))
        here = kept.cpu()
        groups = self.groups[kept.to(self.groups.device)]
        return replace(self, examples=self.examples[here], places=self.places[here], groups=groups, uses=uses)

    def __len__(self) -> int:
        return len(self.examples)

    def arriving(self, chunk: Tensor, start: int) -> Tensor:
        """The rows of a chunk of what arrives, whose first example is number `start`."""
        return self.unit.inputs(chunk, *self._within(chunk, start))

    def leaving(self, chunk: Tensor, start: int) -> Tensor:
        """The rows of a chunk of what leaves."""
        return self.unit.outputs(chunk, *self._within(chunk, start))

    def _within(self, chunk: Tensor, start: int) -> tuple[Tensor, Tensor]:
        first, last = torch.searchsorted(
            self.examples, torch.tensor([start, start + len(chunk)], device="cpu")
        ).tolist()
        return (self.examples[first:last] - start).to(chunk.device), self.places[first:last].to(chunk.device)


def draw(
    unit: Unit,
    each: int,
    groups: Int[Tensor, " S"],
    most: int,
    seed: int,
    mask: Bool[Tensor, "S positions"] | None = None,
) -> Drawn:
    """Draw rows of a block, each as likely as any other but those of padding.

    Args:
        unit: What a row is.
        each: How many examples of the block one example of the network becomes.
        groups: The group of each example of the network.
        most: The most rows.
        seed: Of the draw.
        mask: Where there is something; None if everywhere.

    Raises:
        ValueError: if the mask leaves fewer than two rows.
    """
    inside = torch.Size(unit.places).numel()
    total = len(groups) * each * inside
    allowed = None if mask is None else mask.flatten().nonzero().squeeze(1).cpu()
    count = total if allowed is None else len(allowed)
    if count < 2:
        raise ValueError(f"expected at least 2 {unit.plural} that are no padding, got {count}: look at the mask")
    chosen = some_of(count, most, seed)
    chosen = chosen if allowed is None else allowed[chosen]
    examples = chosen // inside
    of_rows = groups[(examples // each).to(groups.device)]
    return Drawn(unit, examples, chosen % inside, of_rows, total, total - count)


def some_of(count: int, most: int, seed: int) -> Int[Tensor, " some"]:
    """At most so many of as many numbers from 0, at random, in ascending order."""
    if count <= most:
        return torch.arange(count, device="cpu")
    generator = torch.Generator().manual_seed(seed)
    if count <= MOST_SHUFFLED:
        return torch.randperm(count, generator=generator, device="cpu")[:most].sort().values
    drawn = torch.randint(count, (2 * most,), generator=generator, device="cpu").unique()
    while len(drawn) < most:  # of nearly all numbers many come twice
        more = torch.randint(count, (2 * most,), generator=generator, device="cpu")
        drawn = torch.cat([drawn, more]).unique()
    return drawn[torch.randperm(len(drawn), generator=generator, device="cpu")[:most]].sort().values
