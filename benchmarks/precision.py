"""Products over samples in single precision beside double precision: the same layers, from what time?

The same recipe twice on the same samples of several blocks, with views, outputs alone and whole Jacobians. Errors are
those of fresh inputs, seconds those of the processor for the whole compression, sampling and starts included. Claim:
where single precision is the default, which is beside views, errors are the same within 1 % and less time is taken.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import views
from benchmarks.record import DOCS, insert, markdown, recorded, write
from benchmarks.reductions import digits_lenet300, fashion_perceptron
from benchmarks.rule import feed_forward
from tenflex import Block, compress
from tenflex.evaluate.fidelity import fidelity
from tenflex.solvers import BestSoFar, Chain, JacobianCPD, Leading, Lifted, MultiStart, Refine

DRAWS = (0, 1, 2)
MOST = 1.01


@dataclass(frozen=True)
class Case:
    """A block to replace.

    Args:
        name: What it is called.
        make: The block, inputs to draw from, and inputs that never take part.
        layer: Its layer.
        samples: How many there are.
        views: What is kept of their Jacobians.
    """

    name: str
    make: Callable[[], tuple[nn.Module, Tensor, Tensor]]
    layer: Block
    samples: int
    views: int | str


CASES = (
    Case("MiniLM, feed-forward", views.data, Block(64), 9_600, 0),
    Case("MiniLM, feed-forward", views.data, Block(64), 9_600, 1),
    Case("MiniLM, feed-forward", views.data, Block(64), 2_400, 16),
    Case("vision transformer, feed-forward", feed_forward, Block(24), 9_600, 0),
    Case("vision transformer, feed-forward", feed_forward, Block(24), 2_400, 4),
    Case("784-512-512-10, fashion", fashion_perceptron, Block(60, factor=20), 8_000, 4),
    Case("784-512-512-10, fashion", fashion_perceptron, Block(60, factor=20), 2_000, "whole"),
    Case("LeNet-300-100", digits_lenet300, Block(40, factor=15), 2_000, "whole"),
)

made = cache(lambda make: make())


def solver(case: Case, single: bool) -> Chain:
    """The default recipe with a precision that is told."""
    start = JacobianCPD(30) if case.views == "whole" else Lifted(JacobianCPD(30))
    if case.layer.factor is None:
        return Chain((MultiStart(start, 3), BestSoFar(Refine(150, single=single))))
    inner = Chain((MultiStart(start, 3), Refine(60, single=single)))
    return Chain((Leading(inner), BestSoFar(Refine(200, single=single))))


def measured(case: Case, seed: int, single: bool) -> dict[str, Any]:
    """One draw."""
    model, train, test = made(case.make)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[: case.samples]
    settings = {"samples": case.samples, "views": case.views, "memory": views.MEMORY, "seed": seed}
    began = time.process_time()
    result = compress(model, train[order], {"": case.layer}, solver=solver(case, single), **settings)
    seconds = time.process_time() - began
    fresh = fidelity(result.model, model, test).relative_error
    return {
        "block": case.name,
        "samples": case.samples,
        "views": case.views,
        "seed": seed,
        "single": single,
        "fresh": round(fresh, 5),
        "cpu_seconds": round(seconds, 1),
    }


def measure(draws: tuple[int, ...]) -> list[dict[str, Any]]:
    """All that is not recorded yet, recorded one by one."""
    for seed in draws:
        for case in CASES:
            for single in (False, True):
                known = {tuple(row[name] for name in NAMES) for row in recorded("precision")}
                if (case.name, case.samples, case.views, seed, single) not in known:
                    write("precision", [*recorded("precision"), measured(case, seed, single)])
    return recorded("precision")


NAMES = ("block", "samples", "views", "seed", "single")


def told(rows: list[dict[str, Any]]) -> bool:
    """Write the table; true if the claim holds."""
    lines, holds = [], True
    for case in CASES:
        mine = [row for row in rows if (row["block"], row["samples"], row["views"]) == key(case)]
        double, single = (by_seed(mine, one) for one in (False, True))
        seeds = sorted(double.keys() & single.keys())
        if not seeds:
            continue
        errors = [single[one]["fresh"] / double[one]["fresh"] for one in seeds]
        times = [single[one]["cpu_seconds"] / double[one]["cpu_seconds"] for one in seeds]
        holds &= case.views == "whole" or (max(errors) <= MOST and statistics.median(times) < 1)
        kept = {"whole": "whole Jacobians", 0: "outputs only", 1: "1 view"}.get(case.views, f"{case.views} views")
        cells = [[each[one] for one in seeds] for each in (double, single)]
        lines.append(
            [
                f"{case.name}, {case.samples:,}, {kept}",
                *(", ".join(f"{row['fresh']:.4f}" for row in each) for each in cells),
                *(", ".join(f"{row['cpu_seconds']:.0f}" for row in each) for each in cells),
            ]
        )
    heads = ["block, samples, kept", "fresh error, double", "single", "seconds, double", "single"]
    insert("precision", markdown(heads, lines), DOCS / "scaling.md")
    return holds


def key(case: Case) -> tuple[str, int, int | str]:
    """What tells it from the others."""
    return case.name, case.samples, case.views


def by_seed(rows: list[dict[str, Any]], single: bool) -> dict[int, dict[str, Any]]:
    """The draws of one precision."""
    return {row["seed"]: row for row in rows if row["single"] == single}


def main() -> bool:
    """Measure three draws; true if the claim holds."""
    return told(measure(DRAWS))


if __name__ == "__main__":
    print(told(measure(tuple(map(int, sys.argv[1].split(","))))))
