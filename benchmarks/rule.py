"""How much of the Jacobians to keep: whole ones, views, outputs alone, or what the rule chooses, on several blocks.

Beside `benchmarks/views.py`, which measures one wide block of a transformer at length: LeNet-300-100 and a perceptron
for Fashion-MNIST with ten outputs, whose whole Jacobians are few numbers, the head of LeNet-5, and a feed-forward block
of a small vision transformer. Errors are those of fresh inputs; medians over the draws. Claim: the automatic choice is
within 2 % of the best everywhere.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.data import fashion
from benchmarks.networks import vision_transformer
from benchmarks.record import DOCS, insert, markdown, recorded, write
from benchmarks.reductions import Case, behind_convolutions, digits_lenet300, fashion_perceptron
from tenflex import Block, compress
from tenflex.evaluate.fidelity import fidelity

WAYS: dict[str, Any] = {"whole Jacobians": "whole", "4 views": 4, "outputs only": 0, "automatic": None}
AUTOMATIC = "automatic"
DRAWS = (0, 1, 2)
MOST = 1.02


def feed_forward() -> tuple[nn.Module, Tensor, Tensor]:
    """The second feed-forward part of the vision transformer, with tokens of 4,000 images and of others."""
    network, images = vision_transformer(), fashion()
    block, arriving = network.layers[1].feed_forward, []
    handle = block.register_forward_pre_hook(lambda _, given: arriving.append(given[0].flatten(0, -2)))
    with torch.no_grad():
        for some in (images.train_images[:4000], images.test_images[:500]):
            network(some)
    handle.remove()
    order = torch.randperm(len(arriving[0]), generator=torch.Generator().manual_seed(0))
    return block, arriving[0][order], arriving[1]


CASES = (
    Case("LeNet-300-100", digits_lenet300, Block(40, factor=15), (128, 512, 2000, 8000)),
    Case("784-512-512-10, fashion", fashion_perceptron, Block(60, factor=20), (512, 8000)),
    Case("head of LeNet-5", behind_convolutions, Block(24, factor=9), (512,)),
    Case("vision transformer, feed-forward", feed_forward, Block(24), (600, 2400, 9600)),
)


@cache
def made(case: Case) -> tuple[nn.Module, Tensor, Tensor]:
    """Its block and data, made once."""
    return case.make()


def measured(case: Case, count: int, way: str, seed: int) -> dict[str, Any]:
    """One draw; no error where so few samples do not determine the layer in this way."""
    model, train, test = made(case)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:count]
    row = {"network": case.name, "samples": count, "way": way, "seed": seed}
    began = time.process_time()
    try:
        result = compress(model, train[order], {"": case.layer}, samples=count, seed=seed, views=WAYS[way])
    except ValueError as error:
        if "fitted samples" not in str(error):
            raise
        return {**row, "kept": None, "fresh": None, "why": str(error)}
    kept = result.solutions[""].problem.samples.views
    return {
        **row,
        "kept": "whole" if kept is None else kept,
        "fresh": round(fidelity(result.model, model, test).relative_error, 4),
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def measure(draws: tuple[int, ...]) -> list[dict[str, Any]]:
    """All that is not recorded yet, recorded one by one."""
    for seed in draws:
        for case in CASES:
            for count in case.counts:
                for way in WAYS:
                    known = {(row["network"], row["samples"], row["way"], row["seed"]) for row in recorded("rule")}
                    if (case.name, count, way, seed) not in known:
                        write("rule", [*recorded("rule"), measured(case, count, way, seed)])
    return recorded("rule")


def told(rows: list[dict[str, Any]]) -> bool:
    """Write the table; true if the claim holds."""
    lines, holds = [], True
    for case in CASES:
        for count in case.counts:
            mine = [row for row in rows if (row["network"], row["samples"]) == (case.name, count)]
            found = {way: [row["fresh"] for row in mine if row["way"] == way] for way in WAYS}
            if not all(found.values()):
                continue
            middle = {
                way: statistics.median(math.inf if one is None else one for one in each) for way, each in found.items()
            }
            chosen = next(row["kept"] for row in mine if row["way"] == AUTOMATIC)
            holds &= middle[AUTOMATIC] <= MOST * min(middle.values())
            cells = (f"{middle[way]:.4f}" if middle[way] < math.inf else "too few" for way in WAYS)
            lines.append([f"{case.name}, {count:,}", *cells, "whole" if chosen == "whole" else f"{chosen} views"])
    insert("rule", markdown(["block, samples", *WAYS, "chosen"], lines), DOCS / "scaling.md")
    return holds


def main() -> bool:
    """Measure three draws; true if the claim holds."""
    return told(measure(DRAWS))


if __name__ == "__main__":
    print(told(measure(tuple(map(int, sys.argv[1].split(","))))))
