"""Whether errors of blocks are better measured by what follows them: a few layers, made both ways, tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from tenflex.planning.facts import Facts
from tenflex.planning.plan import Placed

Offered = Sequence[tuple[str, Placed]]
"""What is tried for a block, each with the method that it is of."""

Probe = tuple[Facts, str, Placed]
"""A layer in the place of a block, with the method that it is of."""

PROBED = {"low rank": 3, "own nodes": 2}
"""Methods that heed a metric and are quick, and in how many blocks a layer of each is made both ways."""


BETTER = 0.99
"""Errors are measured by what follows, which costs time, if the network's are less than so many times those without."""


class Followed(NamedTuple):
    """Layers that were made with errors measured by what follows, and with all outputs alike.

    Args:
        layers: How many, each both ways.
        ratio: The network's error with the former over that with the latter: the geometric mean.
    """

    layers: int
    ratio: float

    @staticmethod
    def of(errors: Iterable[tuple[float, float]]) -> Followed | None:
        """Of squared errors, by what follows and alike; None where there are none that can be compared."""
        known = [(one, other) for one, other in errors if 0 < one < math.inf and 0 < other < math.inf]
        if not known:
            return None
        logs = [math.log(one / other) / 2 for one, other in known]
        return Followed(len(logs), math.exp(sum(logs) / len(logs)))


def probes(wanted: Mapping[Facts, Offered]) -> list[Probe]:
    """The layers that tell: of each method one of middle size in a few blocks, spread over the network.

    Kernels of convolutions are none of them: the map behind a thinner one is best in any metric.
    """
    found = list[Probe]()
    for method, most in PROBED.items():
        each = [(facts, [one for name, one in asked if name == method]) for facts, asked in wanted.items()]
        able = [(facts, method, sizes[len(sizes) // 2]) for facts, sizes in each if sizes and not facts.kernel]
        found += spread(able, most)
    return found


def spread(several: Sequence[Probe], most: int) -> list[Probe]:
    """So many of a sequence, in equal distances; the first and the middle ones rather than the last."""
    count = min(most, len(several))
    return [several[place * len(several) // count] for place in range(count)]


def compared(both: Callable[[Facts, Placed], tuple[float, float]], probed: Iterable[Probe]) -> Followed | None:
    """What layers tell; those that cannot be made tell nothing.

    Args:
        both: The squared errors of the network with a layer in the place of a block, by what follows and alike.
        probed: The layers.
    """
    errors = []
    for facts, _, asked in probed:
        try:
            errors.append(both(facts, asked))
        except (ValueError, RuntimeError):  # such as a function that has no derivative, or too little memory
            continue
    return Followed.of(errors)
