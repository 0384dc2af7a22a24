"""What might stand in the place of a block: each way of making it smaller is a function from what is known of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product

from tenflex.kept import Own
from tenflex.modes import Cosine, Modes, Tucker
from tenflex.planning.facts import Facts
from tenflex.planning.kernels import FORMS
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

THINNER = (0.8, 0.56, 0.4, 0.28, 0.2, 0.14, 0.1, 0.07)
"""Sizes of a convolution, relative to what it stores."""

LEADING, FOLLOWING, CHANNELS_LEFT = (0.3, 0.2), (0.8, 0.7, 0.6), 0.4
"""Sizes of a flexible convolution without its last map, and of the layer behind it that takes this in, relative to what
the budget leaves for both; of the channels between them about so many are left, as all of them cost the latter much."""

LARGEST = 2
"""So many other sizes of such a convolution are tried."""

WAVES = (0.43, 0.36, 0.5)
"""Cosines along an axis, relative to its length, that are tried for one size."""

FEWER = 0.3
"""Computed directions of outputs along an axis, relative to its length: they keep more than as many cosines."""

LONG = 6
"""Axes that are shorter are kept whole."""


WIDEST_PATCH = 2000
"""Numbers of a patch."""


Method = Callable[[Facts], Sequence[Placed]]


def flexible(facts: Facts) -> Sequence[Placed]:
    """Flexible layers of several sizes; where inputs are many with V as a product, of several widths at the largest.

    Not in place of convolutions whose channels can be kept: one of all that they see loses far more at equal size.
    """
    if facts.layers < 2 or is_for_others(facts) or is_too_wide(facts):
        return []
    narrowing = facts.inputs >= NARROWING * facts.outputs
    splits: Sequence[float | None] = SPLITS if narrowing else (None,)
    if facts.alone:
        sizes = facts.sizes(SMALLER)
        wanted = [(sizes[0], split) for split in splits] + [(size, splits[0]) for size in sizes[1:]]
    else:
        wanted = [(size, splits[0]) for size in facts.sizes(AROUND)[: LARGEST if facts.leads else None]]
    found = [*following(facts, splits[0]), *(largest_block(facts, size, split) for size, split in wanted)]
    return [one for one in dict.fromkeys(found) if one is not None][: facts.steps]


def cosines(facts: Facts) -> Sequence[Placed]:
    """Flexible layers that see images, signals or patches through few cosines, more and fewer at the largest size."""
    return through(facts, seen_through(facts.shape))[: 2 * facts.steps]


def directions(facts: Facts) -> Sequence[Placed]:
    """The same through directions that come from the data, fewer channels among them; these are stored."""
    return through(facts, directions_of(facts.shape))[: facts.steps]


def through(facts: Facts, modes: Sequence[Modes]) -> list[Placed]:
    """Flexible layers that see their inputs through modes: the first ones at all sizes, all of them at the largest."""
    if facts.layers < 2 or is_for_others(facts) or not modes:
        return []
    sizes = facts.sizes(SMALLER if facts.alone else AROUND)
    splits = SPLITS[:2] if facts.alone else SPLITS[:1]
    wanted = [(size, splits[-1], modes[0]) for size in sizes[: LARGEST if facts.leads else None]]
    if facts.alone:
        wanted += [(sizes[0], split, one) for one, split in product(modes, splits)]
    found = [*leading(facts, modes), *(largest_block(facts, size, split, one) for size, split, one in wanted)]
    return [one for one in dict.fromkeys(found) if one is not None]


def output_modes(facts: Facts) -> Sequence[Placed]:
    """Flexible layers that give images or signals as few directions along their axes: computed ones, and cosines."""
    shape = facts.output_shape
    given = [*directions_of(shape, FEWER), *directions_of(shape), *seen_through(shape)[:1]]
    if facts.layers < 2 or facts.patches or facts.channels or not given:
        return []
    seen = next(iter(seen_through(facts.shape)), None)
    split = None if seen is None else SPLITS[0]
    sizes = facts.sizes(SMALLER if facts.alone else AROUND)
    wanted = [(size, given[0]) for size in sizes] + [(sizes[0], one) for one in given[1:]]
    found = [largest_block(facts, size, split, seen, one) for size, one in wanted]
    return [one for one in dict.fromkeys(found) if one is not None][: facts.steps]


def leading(facts: Facts, modes: Sequence[Modes]) -> list[Block | None]:
    """Flexible convolutions of sizes that are right where their last map becomes part of what follows them."""
    ways = list(product(LEADING, dict.fromkeys((modes[0], modes[-1])))) if facts.leads else []
    bare = replace(facts, outputs=0)
    return [largest_block(bare, int(share * facts.most), SPLITS[1], one) for share, one in ways]


def following(facts: Facts, split: float | None) -> list[Block | None]:
    """Layers of sizes that are right where they take in the last map of a flexible convolution."""
    few = replace(facts, inputs=max(1, int(CHANNELS_LEFT * facts.inputs)))
    return [largest_block(few, int(share * facts.most), split) for share in FOLLOWING if facts.channels_before]


def is_for_others(facts: Facts) -> bool:
    """Whether a block is of convolutions for which others are better, or which see so much that it takes minutes."""
    return facts.channels or (facts.patches and facts.inputs > WIDEST_PATCH)


def is_too_wide(facts: Facts) -> bool:
    """Whether the widest layer that is solved for is smaller than all sizes that are wanted, and a bottleneck.

    Such are the feed-forward parts of transformers: fewer directions pass than the block has, and what is saved beyond
    its share does not pay for that.
    """
    if facts.alone or min(facts.inputs, facts.outputs) <= MOST_NODES:
        return False
    widest = Block(MOST_NODES, basis=facts.basis)
    return block_size(widest, facts.inputs, facts.outputs) < min(facts.sizes(AROUND))


def seen_through(shape: tuple[int, ...]) -> list[Cosine]:
    """Cosines along the axes of an input of a shape that are long; the channels of an image are kept whole."""
    if len(shape) < 2 or max(shape[-2:]) < LONG:
        return []
    whole = len(shape) > 2

    def along(share: float) -> tuple[int, ...]:
        return tuple(
            n if n < LONG or (whole and axis == 0) else max(1, round(share * n)) for axis, n in enumerate(shape)
        )

    return list(dict.fromkeys(Cosine(along(share), shape) for share in WAVES))


def directions_of(shape: tuple[int, ...], share: float = WAVES[0]) -> list[Tucker]:
    """Directions along the axes of a shape that are long, channels too."""
    if not seen_through(shape):
        return []
    return [Tucker(tuple(n if n < LONG else round(share * n) for n in shape), shape)]


def largest_block(
    facts: Facts, numbers: int, split: float | None, modes: Modes | None = None, given: Modes | None = None
) -> Block | None:
    """The layer with most nodes that stores so many numbers at most; None if there is none with two."""
    seen = facts.inputs if modes is None else modes.core_size(facts.shape)
    shape = facts.inputs if modes is None else facts.shape

    def of(rank: int) -> Block:
        factor = 0 if split is None else max(1, min(round(split * rank), seen))
        smaller = 0 < factor * (seen + rank) < seen * rank  # than V as it is
        return Block(rank, factor if smaller else None, modes=modes, output_modes=given)

    outputs = facts.outputs if given is None else facts.output_shape

    def fits(rank: int) -> bool:
        return block_size(replace(of(rank), basis=facts.basis), shape, outputs) <= numbers

    found = largest(fits, MOST_NODES)
    return of(found) if found > 1 else None


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to the most one that fits, where all smaller ones do; 1 if none does."""
    low, high = 1, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def own_nodes(facts: Facts) -> Sequence[Placed]:
    """The best of a block's own nodes or channels, refined."""
    return [Block(ranks, basis=Own()) for ranks in ranks_of(facts)][: facts.steps]


def dropping(facts: Facts) -> Sequence[Placed]:
    """The same as they are, the map behind them fitted anew: quick."""
    return [Block(ranks, basis=Own(refine=False)) for ranks in ranks_of(facts)]


def ranks_of(facts: Facts) -> list[int | tuple[int, ...]]:
    """How many of a block's own nodes to keep, in each of its layers the same share, at several sizes."""
    own = facts.own
    if own is None:
        return []

    def of(first: int) -> tuple[int, ...]:
        return tuple(max(1, round(first * width / own.widths[0])) for width in own.widths)

    def first_of(size: int) -> int:
        return largest(lambda one: own.numbers(of(one)) <= size, own.widths[0] - 1)

    pairs = [(size, of(first_of(size))) for size in facts.sizes(SMALLER if facts.alone else AROUND)]
    found = dict.fromkeys(ranks for size, ranks in pairs if own.numbers(ranks) <= size)
    return [ranks if len(ranks) > 1 else ranks[0] for ranks in found]


def low_rank(facts: Facts) -> Sequence[Placed]:
    """Two thin layers in the place of a linear one, as data-aware SVD finds them, at ranks in proportion."""
    if facts.kernel:
        return of_kernel(facts, "svd")
    if facts.layers != 1:
        return []
    per_rank = facts.inputs + facts.outputs
    rank = min((facts.parameters - 1 - facts.outputs) // per_rank, facts.inputs, facts.outputs)
    ranks = []
    while rank >= 1:
        ranks.append(rank)
        rank = min(rank - 1, int(RANKS * rank))
    return [LowRank(one) for one in ranks]


def polyadic(facts: Facts) -> Sequence[Placed]:
    """Convolutions along one axis each in the place of one."""
    return of_kernel(facts, "cpd") if math.prod(facts.kernel[2:]) > 1 else []


def tucker(facts: Facts) -> Sequence[Placed]:
    """A convolution between fewer channels in the place of one."""
    return of_kernel(facts, "tucker2") if math.prod(facts.kernel[2:]) > 1 else []


def of_kernel(facts: Facts, name: str) -> list[Placed]:
    """A form of the kernel of a convolution, at sizes in proportion."""
    form = FORMS[name]
    found = [form.largest(facts.kernel, int(share * facts.parameters)) for share in THINNER]
    return [LowRank(rank, name) for rank in dict.fromkeys(found) if rank is not None]


METHODS: Mapping[str, Method] = {
    "flexible": flexible,
    "cosines": cosines,
    "Tucker modes": directions,
    "output modes": output_modes,
    "own nodes": own_nodes,
    "node dropping": dropping,
    "low rank": low_rank,
    "CPD": polyadic,
    "Tucker-2": tucker,
}
"""Each gives what to try for a block, nothing if it is not for such a block; leaving it as it is needs no entry."""
