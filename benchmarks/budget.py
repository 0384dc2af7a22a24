"""What `budget=` alone chooses, beside plans made by hand at the same size; no labels, no fine-tuning.

The claim: no network that a budget chooses loses more than `MOST` points of test accuracy against that made by hand.
The hand-made plans are those of the benchmarks `modes` and `convolutions`, with SVDs beside them there. As some
thousand test inputs tell plans that lose about a point only roughly apart, it is told as well how often a network
agrees with the original on the inputs of the training data that were not drawn. Every draw that is measured stands in
the record; what is there is not measured anew.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.convolutions import CLAIMS, FEATURES, HEAD, SETTINGS, Whole
from benchmarks.data import fashion
from benchmarks.modes import cosines
from benchmarks.networks import lenet5
from benchmarks.record import DOCS, insert, markdown, recorded, write
from benchmarks.reductions import fashion_perceptron
from tenflex import Block, Compression, compress
from tenflex.coordinates import Fisher
from tenflex.demo.digits import load_digits
from tenflex.demo.networks import lenet300
from tenflex.demo.train import accuracy
from tenflex.evaluate.cost import stored_numbers
from tenflex.evaluate.fidelity import fidelity
from tenflex.evaluate.planned import Curve

DRAWS = (0, 1, 2)
IMAGES = 2000
MOST = 0.3
"""Points of accuracy."""

Data = tuple[nn.Module, Tensor, Tensor, Tensor]
"""A network, images to draw from, test images and their labels."""


@dataclass(frozen=True, eq=False)
class Case:
    """A network and sizes of it.

    Args:
        name: What it is called.
        make: The network with its data.
        by_hand: For each size, the most numbers of the whole network, a plan that stores no more.
        settings: What both are told besides.
        hand: What the plans by hand are told besides that.
    """

    name: str
    make: Callable[[], Data]
    by_hand: Mapping[int, Mapping[str, Block]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    hand: Mapping[str, Any] = field(default_factory=dict)


@cache
def digits() -> Data:
    """LeNet-300-100 on digits."""
    data = load_digits()
    return lenet300(), data.train_images, data.test_images, data.test_labels


@cache
def images() -> Data:
    """LeNet-5 on digits, its convolutions as one module."""
    data = load_digits()
    return Whole(lenet5(data)), data.train_images, data.test_images, data.test_labels


@cache
def clothes() -> Data:
    """784-512-512-10 on Fashion-MNIST."""
    model, drawn, test = fashion_perceptron()
    return model, drawn, test, fashion().test_labels


CASES = (
    Case(
        "LeNet-300-100",
        digits,
        {3_100: {"": cosines(10, 40, 16)}, 5_000: {"": cosines(12, 40, 22)}, 9_500: {"": cosines(12, 60, 40)}},
        {"shape": (28, 28)},
    ),
    Case(
        "784-512-512-10, fashion",
        clothes,
        {10_000: {"": cosines(14, 80, 30)}, 20_000: {"": cosines(14, 100, 60)}},
        {"shape": (28, 28), "metric": Fisher()},
    ),
    Case(
        "LeNet-5, convolutions too",
        images,
        {claim.most_parameters: {FEATURES: claim.convolution, HEAD: claim.head} for claim in CLAIMS},
        hand=SETTINGS,
    ),
)

WAYS = ("budget", "by hand")


def measured(case: Case, most: int, way: str, seed: int) -> dict[str, Any]:
    """One draw."""
    model, drawn, test, labels = case.make()
    order = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(seed))
    began = time.process_time()
    result = made(case, most, way, drawn[order[:IMAGES]], seed)
    before, after = (accuracy(one, test, labels) for one in (model, result.model))
    agreement = fidelity(result.model, model, drawn[order[IMAGES:]]).agreement
    planned = result.report.planned
    return {
        "network": case.name,
        "most": most,
        "way": way,
        "seed": seed,
        "numbers": stored_numbers(result.model),
        "original": round(100 * before, 2),
        "accuracy": round(100 * after, 2),
        "drop": round(100 * (before - after), 2),
        "agreement": round(100 * (agreement or 0.0), 2),
        "cpu_seconds": round(time.process_time() - began, 1),
        "plan": {name: str(one) for name, one in result.plan.blocks.items()},
        "chosen": None if planned is None else dict(planned.chosen),
        "tried": None if planned is None else {curve.block: tried_in(curve) for curve in planned.curves},
    }


def tried_in(curve: Curve) -> list[str]:
    """What was tried, with the numbers of the network and its error."""
    return [f"{one.method}, {one.size}: {one.parameters:,}, {one.error**0.5:.4f}" for one in curve.tried]


def made(case: Case, most: int, way: str, inputs: Tensor, seed: int) -> Compression:
    """A compressed network."""
    model = case.make()[0]
    if way == "budget":
        return compress(model, inputs, budget=most, seed=seed, **case.settings)
    return compress(model, inputs, case.by_hand[most], seed=seed, **case.settings, **case.hand)


def measure(draws: tuple[int, ...], cases: tuple[Case, ...] = CASES) -> list[dict[str, Any]]:
    """All that is not recorded yet, recorded one by one."""
    for seed in draws:
        for case in cases:
            for most in case.by_hand:
                for way in WAYS:
                    known = {(row["network"], row["most"], row["way"], row["seed"]) for row in recorded("budget")}
                    if (case.name, most, way, seed) not in known:
                        row = measured(case, most, way, seed)
                        write("budget", [*recorded("budget"), row])
    return recorded("budget")


def verdict(rows: list[dict[str, Any]]) -> bool:
    """Write the table of the page; true if the claim holds for all that is recorded."""
    each = ("median", "agree elsewhere, %", "numbers")
    heads = ("network, numbers", "budget alone", *each, "by hand", *each, "CPU seconds")
    cells, holds = [], True
    for case in CASES:
        for most in case.by_hand:
            found = {
                way: [row for row in rows if (row["network"], row["most"], row["way"]) == (case.name, most, way)]
                for way in WAYS
            }
            if not all(found.values()):
                continue
            drops = {way: [row["drop"] for row in mine] for way, mine in found.items()}
            medians = {way: statistics.median(drops[way]) for way in WAYS}
            holds &= medians["budget"] <= medians["by hand"] + MOST
            line = [f"{case.name} ({found['budget'][0]['original']:.2f} %), {most:,}"]
            for way in WAYS:
                stored = statistics.median(row["numbers"] for row in found[way])
                same = [row["agreement"] for row in found[way] if "agreement" in row]  # it is not told of older rows
                line += [", ".join(f"{one:.2f}" for one in drops[way]), f"{medians[way]:.2f}"]
                line += [f"{statistics.median(same):.2f}" if same else "", f"{stored:,.0f}"]
            seconds = [statistics.median(row["cpu_seconds"] for row in found[way]) for way in WAYS]
            cells.append([*line, f"{seconds[0]:.0f} / {seconds[1]:.0f}"])
    insert("budget", markdown(heads, cells), DOCS / "budget.md")
    return holds and bool(cells)


def main() -> bool:
    """Measure three draws; true if the claim holds everywhere."""
    return verdict(measure(DRAWS))


if __name__ == "__main__":
    only = tuple(one for one in CASES if any(part in one.name for part in sys.argv[2:])) or CASES
    print(verdict(measure(tuple(map(int, sys.argv[1].split(","))), only)))
