"""Of what size a flexible layer might be, to begin with."""

from __future__ import annotations

import math

from tenflex.bases import Basis
from tenflex.factors import layer_size
from tenflex.planning.plan import DEFAULT_BASIS, Block

NARROWING = 4
"""A block with so many times more inputs than outputs, such as a classifier's tail, can give up most of its numbers."""


KEPT_NARROWING, KEPT_OTHER = 0.05, 0.25
"""The shares of a block's parameters to begin with: what cost little accuracy on the networks of the benchmarks."""


FACTOR_TO_RANK = 3 / 8
"""The width of a factored V, relative to the number of nodes, to begin with."""


MOST_NODES = 100
"""A first try takes seconds with so many nodes."""


def block_size(block: Block, inputs: int | tuple[int, ...], outputs: int | tuple[int, ...]) -> int:
    """The numbers that the layers of a block store, for so many inputs and outputs, or those of a shape."""
    around = (block.modes, inputs), (block.output_modes, outputs)
    shapes = [(modes, one if isinstance(one, tuple) else (one,)) for modes, one in around]
    seen, given = (math.prod(shape) if modes is None else modes.core_size(shape) for modes, shape in shapes)
    bases = [block.basis if isinstance(block.basis, Basis) else DEFAULT_BASIS] * len(block.ranks)
    size = layer_size(seen, given, block.ranks, bases, block.factor, block.output_factor)
    return size + sum(modes.stored_numbers(shape) for modes, shape in shapes if modes is not None)


def first_try(inputs: int, outputs: int, parameters: int) -> Block | None:
    """A layer to begin with, or None if it would have fewer than two nodes, or saves nothing.

    A block that narrows to few outputs, such as scores of classes, gets as many directions and nodes as it has outputs
    at least: with fewer, some outputs could not be told from each other.
    """
    narrowing = inputs >= NARROWING * outputs
    budget = (KEPT_NARROWING if narrowing else KEPT_OTHER) * parameters - outputs
    per_node = 1 + DEFAULT_BASIS.size + outputs
    if narrowing:  # solve q (m + r) + r (1 + d + n) = budget with q in proportion to r
        half = (FACTOR_TO_RANK * inputs + per_node) / 2
        nodes = (math.sqrt(max(0.0, half**2 + FACTOR_TO_RANK * budget)) - half) / FACTOR_TO_RANK
    else:
        nodes = budget / (inputs + per_node)
    rank = min(MOST_NODES, int(nodes))
    if narrowing:
        needed = min(outputs, MOST_NODES)
        rank = max(rank, needed)
        block = Block(rank, max(int(FACTOR_TO_RANK * rank), needed))
    elif rank >= 2:
        block = Block(rank)
    else:
        return None
    return block if block_size(block, inputs, outputs) < parameters else None
