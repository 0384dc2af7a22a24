"""What a plan need not look at: samples beyond those that tell sizes apart, and methods that lost in a block alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from tenflex.evaluate.planned import Tried
from tenflex.kept import Own
from tenflex.planning.facts import Facts
from tenflex.planning.plan import Block, Placed

EQUATIONS = 20
"""An output of a sample for each number of the largest layer, so many times. What is chosen is made of all samples."""

LEAST_ROWS = 2000
"""Fewer samples are never left out."""

LOST = 2
"""Flexible layers that were outdone in as many blocks of patches, and in none were not, are tried in no other."""

Kind = Facts
"""What is known of a block but for its name."""


def enough_rows(facts: Facts, most: int, numbers: Iterable[int]) -> int:
    """So many samples of a block tell the sizes of its layers apart.

    Args:
        facts: The block.
        most: The samples that there are.
        numbers: What the layers store that are tried.
    """
    largest = max(numbers, default=0)
    return min(most, max(LEAST_ROWS, -(-EQUATIONS * largest // facts.outputs)))


def kind_of(facts: Facts) -> Kind:
    """Blocks of one kind differ in name alone: the layers of a transformer, say."""
    return replace(facts, name="")


def solved_for(asked: Placed) -> bool:
    """Whether it is flexible layers, which take long."""
    return isinstance(asked, Block) and not isinstance(asked.basis, Own)


def beaten(method: str, tried: Sequence[Tried], beside: Callable[[int], Iterable[float]] = lambda numbers: ()) -> bool:
    """Whether at every size of a method another one that stores no more did better; not if none was tried.

    Args:
        method: The method.
        tried: All that was tried in the place of a block.
        beside: The errors of what else stores no more than so many numbers.
    """
    ours = [one for one in tried if one.method == method]
    others = [one for one in tried if one.method != method]

    def rivals(numbers: int) -> Iterator[float]:
        yield from (one.error for one in others if one.parameters <= numbers)
        yield from beside(numbers)

    return bool(ours) and all(any(error < one.error for error in rivals(one.parameters)) for one in ours)
