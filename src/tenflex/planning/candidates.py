"""What might stand in the place of a block: each way of making it smaller is a function from what is known of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tenflex.bases import Basis
from tenflex.planning.plan import Block, LowRank, Placed
from tenflex.planning.sizes import FACTOR_TO_RANK, NARROWING, block_size

SPLITS = (FACTOR_TO_RANK, 5 / 8, 1 / 4)
"""Widths of a factored V, relative to the number of nodes, that are tried for one size."""

MOST_NODES = 128
"""Solving for more of them takes minutes."""

SMALLER = (1.0, 0.6, 0.36)
"""Sizes of a block that is replaced alone, relative to the largest that is allowed."""

AROUND = (2.0, 1.4, 1.0, 0.7, 0.5)
"""Sizes of one block of several, relative to the same share for all."""

RANKS = 0.7
"""From one rank of thin layers to the next."""


@dataclass(frozen=True)
class Facts:
    """What is known of a block before anything is solved.

    Args:
        name: The block.
        inputs: The numbers that go in, m.
        outputs: The numbers that come out, n.
        parameters: What it stores.
        layers: The linear layers in it.
        most: The most numbers that the budget leaves for it, if all other blocks were gone.
        share: The share of the parameters of all blocks that the budget leaves.
        alone: Whether there is no other block.
        basis: The functions of activations.
        steps: The most flexible layers to solve for.
    """

    name: str
    inputs: int
    outputs: int
    parameters: int
    layers: int
    most: int
    share: float
    alone: bool
    basis: Basis
    steps: int

    @property
    def largest(self) -> int:
        """The most numbers that are worth trying."""
        return min(self.most, int(0.9 * self.parameters))


Method = Callable[[Facts], Sequence[Placed]]


def flexible(facts: Facts) -> Sequence[Placed]:
    """Flexible layers of several sizes; where inputs are many with V as a product, of several widths at the largest."""
    if facts.layers < 2:
        return []
    narrowing = facts.inputs >= NARROWING * facts.outputs
    splits: Sequence[float | None] = SPLITS if narrowing else (None,)
    if facts.alone:
        sizes = [int(one * facts.largest) for one in SMALLER]
        wanted = [(sizes[0], split) for split in splits] + [(size, splits[0]) for size in sizes[1:]]
    else:
        sizes = [int(one * facts.share * facts.parameters) for one in AROUND]
        wanted = [(min(size, facts.largest), splits[0]) for size in sizes]
    found = [largest_block(facts, size, split) for size, split in wanted]
    return [one for one in dict.fromkeys(found) if one is not None][: facts.steps]


def largest_block(facts: Facts, numbers: int, split: float | None) -> Block | None:
    """The layer with most nodes that stores so many numbers at most; None if there is none with two."""

    def of(rank: int) -> Block:
        factor = None if split is None else max(1, min(round(split * rank), facts.inputs))
        return Block(rank, factor)

    def fits(rank: int) -> bool:
        return block_size(replace(of(rank), basis=facts.basis), facts.inputs, facts.outputs) <= numbers

    low, high = 1, MOST_NODES + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return of(low) if low > 1 else None


def low_rank(facts: Facts) -> Sequence[Placed]:
    """Two thin layers in the place of a linear one, as data-aware SVD finds them, at ranks in proportion."""
    if facts.layers != 1:
        return []
    per_rank = facts.inputs + facts.outputs
    rank = min((facts.parameters - 1 - facts.outputs) // per_rank, facts.inputs, facts.outputs)
    ranks = []
    while rank >= 1:
        ranks.append(rank)
        rank = min(rank - 1, int(RANKS * rank))
    return [LowRank(one) for one in ranks]


METHODS: Mapping[str, Method] = {"flexible": flexible, "low rank": low_rank}
"""Each gives what to try for a block, nothing if it is not for such a block; leaving it as it is needs no entry."""
