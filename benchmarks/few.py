"""What is reached from few samples, and whether reported errors are those of fresh inputs; five draws.

The blocks are those of `benchmarks/reductions.py`, with the default coordinates beside whitening. What is asked for
stands in `CLAIMS`; where whitening is the measure, it is given the same draws.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.data import fashion
from benchmarks.record import write
from benchmarks.reductions import behind_convolutions, digits_lenet300, fashion_perceptron
from tenflex import Block, compress
from tenflex.coordinates import Coordinates, Sensitivity, Whiten
from tenflex.demo.digits import load_digits
from tenflex.evaluate.fidelity import fidelity

DRAWS = range(5)


@dataclass(frozen=True)
class Case:
    """A block to replace.

    Args:
        name: What it is called.
        make: The block, inputs to draw from, and test inputs.
        labels: Those of the test inputs.
        layer: Its layer.
    """

    name: str
    make: Callable[[], tuple[nn.Module, Tensor, Tensor]]
    labels: Callable[[], Tensor]
    layer: Block


LENET = Case("LeNet-300-100", digits_lenet300, lambda: load_digits().test_labels, Block(40, factor=15))
FASHION = Case("784-512-512-10, fashion", fashion_perceptron, lambda: fashion().test_labels, Block(60, factor=20))
HEAD = Case("head of LeNet-5", behind_convolutions, lambda: load_digits().test_labels, Block(24, factor=9))

Judge = Callable[[dict[str, Any], dict[str, Any]], bool]
"""Of medians with the default coordinates and with whitening."""

CLAIMS: tuple[tuple[Case, int, str, Judge], ...] = (
    (LENET, 64, "accuracy at least 92.4", lambda ours, before: ours["accuracy"] >= 92.4),
    (LENET, 128, "accuracy at least 93.2", lambda ours, before: ours["accuracy"] >= 93.2),
    (LENET, 128, "fresh over reported at most 1.1", lambda ours, before: ours["fresh_over_reported"] <= 1.1),
    (LENET, 512, "accuracy at least 93.5", lambda ours, before: ours["accuracy"] >= 93.5),
    (LENET, 2000, "error not above that of whitening", lambda ours, before: ours["fresh"] <= before["fresh"]),
    (LENET, 2000, "accuracy not below that of whitening", lambda ours, before: ours["accuracy"] >= before["accuracy"]),
    (FASHION, 128, "accuracy at least 84.2", lambda ours, before: ours["accuracy"] >= 84.2),
    (FASHION, 512, "accuracy at least 85.9", lambda ours, before: ours["accuracy"] >= 85.9),
    (FASHION, 2000, "error at most 0.10", lambda ours, before: ours["fresh"] <= 0.1),
    (HEAD, 100, "error at most half that of whitening", lambda ours, before: ours["fresh"] <= before["fresh"] / 2),
)


def main() -> bool:
    """Measure all claims; true if all hold."""
    rows = []
    for case, count, claim, judge in CLAIMS:
        ours, before = (measured(case, count, rule) for rule in (Sensitivity(), Whiten()))
        row = {"network": case.name, "samples": count, **ours, "whitened_fresh": before["fresh"]}
        rows.append({**row, "whitened_accuracy": before["accuracy"], "claim": claim, "holds": judge(ours, before)})
    write("few", rows)
    return all(row["holds"] for row in rows)


@cache
def made(case: Case) -> tuple[nn.Module, Tensor, Tensor]:
    """Its block and data, made once."""
    return case.make()


@cache
def measured(case: Case, count: int, rule: Coordinates) -> dict[str, Any]:
    """Medians over the draws."""
    model, train, test = made(case)
    found: dict[str, list[float]] = {"fresh": [], "fresh_over_reported": [], "accuracy": []}
    for seed in DRAWS:
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:count]
        result = compress(model, train[order], {"": case.layer}, coordinates=rule, seed=seed)
        close = fidelity(result.model, model, test, case.labels())
        found["fresh"].append(close.relative_error)
        found["fresh_over_reported"].append(close.relative_error / result.report.blocks[0].output_error)
        found["accuracy"].append(100 * (close.accuracy or 0.0))
    return {name: round(statistics.median(values), 4) for name, values in found.items()}
