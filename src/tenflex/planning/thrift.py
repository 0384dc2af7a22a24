"""What a plan need not look at: samples beyond those that tell sizes apart, and methods that lost in a block alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from tenflex.evaluate.planned import Tried
from tenflex.kept import Own
from tenflex.planning.facts import Facts
from tenflex.planning.plan import Block, LowRank, Placed
from tenflex.planning.sizes import block_size
from tenflex.surgery import Cut

EQUATIONS = 20
"""An output of a sample for each number of the largest layer, so many times. What is chosen is made of all samples."""

REFITTED = 5
"""The same for a block's own nodes, which begin near to where they end: errors are larger then, at all sizes alike."""

LEAST_ROWS = 2000
"""Fewer samples are never left out."""

LOST = 2
"""Flexible layers that were outdone in as many blocks of patches, and in none were not, are tried in no other."""

AS_GOOD = 1.1
"""What takes long does not pay where something quick has so many times its squared error, or less."""

Kind = Facts
"""What is known of a block but for its name."""


def enough_rows(facts: Facts, most: int, numbers: Iterable[int], equations: int = EQUATIONS) -> int:
    """So many samples of a block tell the sizes of its layers apart.

    Args:
        facts: The block.
        most: The samples that there are.
        numbers: What the layers store that are tried.
        equations: For each of these numbers.
    """
    largest = max(numbers, default=0)
    return min(most, max(LEAST_ROWS, -(-equations * largest // facts.outputs)))


@dataclass(frozen=True)
class Enough:
    """So many samples of a block are enough to fit layers to that are compared.

    Args:
        rows: For any of them, held-out ones included.
        own: For the block's own nodes.
        flexible: For flexible layers.
    """

    rows: int
    own: int
    flexible: int

    @staticmethod
    def among(facts: Facts, most: int, largest: int, wanted: Sequence[Placed]) -> Enough:
        """Those for a block of which there are so many samples.

        Args:
            facts: The block.
            most: The samples that there are.
            largest: The numbers of the largest layer.
            wanted: The layers.
        """
        inputs, outputs = facts.shape or facts.inputs, facts.output_shape or facts.outputs
        asked = [one for one in wanted if isinstance(one, Block)]
        flexible = [block_size(replace(one, basis=facts.basis), inputs, outputs) for one in asked if solved_for(one)]
        own = [] if facts.own is None else [facts.own.numbers(one.ranks) for one in asked if not solved_for(one)]
        return Enough(
            enough_rows(facts, most, [largest]),
            enough_rows(facts, most, own, REFITTED),
            enough_rows(facts, most, flexible),
        )

    def of(self, asked: Placed) -> int:
        """Those for a layer."""
        if isinstance(asked, LowRank):
            return self.rows
        return min(self.rows, self.flexible if solved_for(asked) else self.own)


class Coming(NamedTuple):
    """A block of which layers will be made.

    Args:
        cut: How it is taken out.
        samples: The most samples of it.
        row: The numbers that arrive at it and leave it for one of them.
    """

    cut: Cut
    samples: int
    row: int


def kind_of(facts: Facts) -> Kind:
    """Blocks of one kind differ in name alone: the layers of a transformer, say."""
    return replace(facts, name="")


def solved_for(asked: Placed) -> bool:
    """Whether it is flexible layers, which take long."""
    return isinstance(asked, Block) and not isinstance(asked.basis, Own)


def beaten(
    method: str,
    tried: Sequence[Tried],
    beside: Callable[[int], Iterable[float]] = lambda numbers: (),
    as_good: float = 1.0,
) -> bool:
    """Whether at every size of a method another one that stores no more did better; not if none was tried.

    Args:
        method: The method.
        tried: All that was tried in the place of a block.
        beside: The errors of what else stores no more than so many numbers.
        as_good: A squared error that is below so many times that of the method counts as better.
    """
    ours = [one for one in tried if one.method == method]
    others = [one for one in tried if one.method != method]

    def rivals(numbers: int) -> Iterator[float]:
        yield from (one.error for one in others if one.parameters <= numbers)
        yield from beside(numbers)

    def is_beaten(one: Tried) -> bool:
        return any(error < as_good * one.error for error in rivals(one.parameters))

    return bool(ours) and all(map(is_beaten, ours))
