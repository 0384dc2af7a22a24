"""What `budget=` alone chooses, beside plans made by hand at the same size and data-aware SVD; three draws, no labels.

The claim: no network that a budget chooses loses more than `MOST` points of test accuracy against that made by hand.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.data import fashion
from benchmarks.networks import lenet5
from benchmarks.record import write
from benchmarks.reductions import fashion_perceptron
from tenflex import Block, compress
from tenflex.baselines import data_aware_svd
from tenflex.demo.digits import load_digits
from tenflex.demo.networks import lenet300
from tenflex.demo.train import accuracy
from tenflex.evaluate.cost import stored_numbers

DRAWS = (0, 1, 2)
IMAGES = 2000
MOST = 0.3
"""Points of accuracy."""

Data = tuple[nn.Module, Tensor, Tensor, Tensor]
"""A network, images to draw from, test images and their labels."""


@dataclass(frozen=True)
class Case:
    """A network whose dense layers are to shrink.

    Args:
        name: What it is called.
        make: The network with its data.
        block: All its dense layers.
        layers: The same by name, for SVD.
        by_hand: For each share of their parameters a layer that stores no more.
    """

    name: str
    make: Callable[[], Data]
    block: str
    layers: tuple[str, ...]
    by_hand: dict[float, Block]


@cache
def digits() -> Data:
    """LeNet-300-100 on digits."""
    data = load_digits()
    return lenet300(), data.train_images, data.test_images, data.test_labels


@cache
def images() -> Data:
    """LeNet-5 on digits."""
    data = load_digits()
    return lenet5(data), data.train_images, data.test_images, data.test_labels


@cache
def clothes() -> Data:
    """784-512-512-10 on Fashion-MNIST."""
    model, drawn, test = fashion_perceptron()
    return model, drawn, test, fashion().test_labels


CASES = (
    Case(
        "LeNet-300-100",
        digits,
        "fc1:fc3",
        ("fc1", "fc2", "fc3"),
        {0.02: Block(22, factor=6), 0.05: Block(40, factor=15), 0.1: Block(70, factor=28)},
    ),
    Case(
        "dense part of LeNet-5",
        images,
        "fc1:fc2",
        ("fc1", "fc2"),
        {0.02: Block(24, factor=9), 0.05: Block(50, factor=21), 0.1: Block(80, factor=42)},
    ),
    Case(
        "784-512-512-10, fashion",
        clothes,
        "",
        ("0", "2", "4"),
        {0.02: Block(40, factor=15), 0.05: Block(60, factor=38), 0.1: Block(100, factor=70)},
    ),
)


def measured(case: Case, share: float) -> list[dict[str, Any]]:
    """One row for each way, at one share of the dense layers' parameters."""
    model, drawn, test, labels = case.make()
    dense = sum(one.numel() for name in case.layers for one in model.get_submodule(name).parameters())
    allowed = stored_numbers(model) - dense + int(share * dense)
    before = accuracy(model, test, labels)
    found: dict[str, list[tuple[float, int, float, str]]] = {}
    for seed in DRAWS:
        order = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(seed))
        inputs = drawn[order[:IMAGES]]
        for name, run in ways(case, share, allowed).items():
            began = time.perf_counter()
            smaller, plan = run(inputs, seed)
            seconds = time.perf_counter() - began
            drop = 100 * (before - accuracy(smaller, test, labels))
            found.setdefault(name, []).append((drop, stored_numbers(smaller), seconds, plan))
    return [
        {
            "network": case.name,
            "share": share,
            "way": name,
            "allowed": allowed,
            "parameters": [stored for _, stored, _, _ in draws],
            "drops": [round(drop, 2) for drop, _, _, _ in draws],
            "median_drop": round(statistics.median(drop for drop, _, _, _ in draws), 2),
            "seconds": [round(seconds, 1) for _, _, seconds, _ in draws],
            "plans": [plan for _, _, _, plan in draws],
        }
        for name, draws in found.items()
    ]


Way = Callable[[Tensor, int], tuple[nn.Module, str]]


def ways(case: Case, share: float, allowed: int) -> dict[str, Way]:
    """Each from inputs and a seed to a smaller network, with what was chosen."""
    model = case.make()[0]
    dense = allowed - stored_numbers(model)
    dense += sum(one.numel() for name in case.layers for one in model.get_submodule(name).parameters())

    def planned(inputs: Tensor, seed: int) -> tuple[nn.Module, str]:
        result = compress(model, inputs, budget=allowed, seed=seed)
        return result.model, str(result.plan.blocks)

    def by_hand(inputs: Tensor, seed: int) -> tuple[nn.Module, str]:
        result = compress(model, inputs, {case.block: case.by_hand[share]}, seed=seed)
        return result.model, str(result.plan.blocks)

    def svd(inputs: Tensor, seed: int) -> tuple[nn.Module, str]:
        return data_aware_svd(model, inputs, dense, layers=case.layers), ""

    return {"budget": planned, "by hand": by_hand, "data-aware SVD": svd}


def main() -> bool:
    """Measure all; true if the claim holds everywhere."""
    rows = [row for case in CASES for share in case.by_hand for row in measured(case, share)]
    for ours, hand, _ in zip(*[iter(rows)] * 3, strict=True):
        ours["holds"] = ours["median_drop"] <= hand["median_drop"] + MOST
    write("budget", rows)
    return all(row.get("holds", True) for row in rows)
