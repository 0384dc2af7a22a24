"""About how long the layers that a plan chooses from will take, told before the first of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from tenflex.kept import Own
from tenflex.kept.descent import ITERATIONS
from tenflex.planning.facts import Facts
from tenflex.planning.kernels import FORMS, QUICK
from tenflex.planning.plan import LowRank, Placed
from tenflex.planning.thrift import LOST, Kind, kind_of, solved_for
from tenflex.sampling.views import views_for

PLACES = 30_000
"""The places of images at which channels are fitted to compare: fewer than to keep them."""

EVALUATIONS = 300
"""Of an objective and its gradient, for one flexible layer."""

PASSES = 3
"""A value and its gradient take so many times what a value takes."""

TRY = 0.4
"""Seconds to put a layer in its place and to measure it."""

ANY = 2**62
"""Memory that bounds nothing: what fits changes little of how long it takes."""

LIKELY = 1 / 3
"""The share of further sizes, or blocks of a kind, that is tried in the end, where the first may rule them out."""


def expected_plan_seconds(
    wanted: Sequence[tuple[Facts, str, Placed]], rows: Callable[[Facts, Placed], int], places: int, speed: float
) -> float:
    """About how long it takes to try layers: within a factor of three, as a rule.

    Args:
        wanted: Blocks, each with a method and its layer, in order.
        rows: How many samples of a block a layer is fitted to.
        places: The places of images at which channels are fitted.
        speed: Multiply-adds a second.
    """
    total, begun, kinds = 0.0, set[tuple[str, str]](), dict[tuple[Kind, str], str]()
    patched: dict[str, set[str]] = {}
    for facts, method, asked in wanted:
        first = kinds.setdefault((kind_of(facts), method), facts.name)
        if facts.patches:
            patched.setdefault(method, set()).add(facts.name)
        later = facts.patches and len(patched[method]) > LOST
        elsewhere = solved_for(asked) and (first != facts.name or later)
        likely = LIKELY if elsewhere or (facts.patches and (facts.name, method) in begun) else 1.0
        begun.add((facts.name, method))
        total += likely * (TRY + effort(facts, asked, places if facts.channels else rows(facts, asked)) / speed)
    return total


def effort(facts: Facts, asked: Placed, rows: int) -> float:
    """Multiply-adds that go into one layer."""
    if isinstance(asked, LowRank):
        if not facts.kernel:
            return rows * (facts.inputs + facts.outputs) ** 2
        maps = FORMS[asked.form].maps(asked.rank)
        return PASSES * QUICK[2] * maps * facts.inputs * (facts.inputs + facts.outputs)
    if isinstance(asked.basis, Own):
        numbers = 0 if facts.own is None else facts.own.numbers(asked.ranks)
        return PASSES * rows * numbers * (ITERATIONS if asked.basis.refine else 1)
    seen = facts.inputs if asked.modes is None else asked.modes.core_size(facts.shape)
    given = facts.outputs if asked.output_modes is None else asked.output_modes.core_size(facts.output_shape)
    views = None if asked.modes is not None else views_for(rows, given, seen, max(asked.ranks), ANY, len(asked.ranks))
    each = given * seen if views is None else (1 + views) * (given + seen)
    return EVALUATIONS * rows * 2 * each * sum(asked.ranks)


def speed(device: torch.device, size: int = 384) -> float:
    """Multiply-adds a second of a product in double precision."""
    matrix = torch.ones(size, size, dtype=torch.float64, device=device)
    matrix @ matrix
    began = time.perf_counter()
    matrix @ matrix
    return size**3 / max(time.perf_counter() - began, 1e-9)
