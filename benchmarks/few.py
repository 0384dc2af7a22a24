"""What is reached from few samples, and whether reported errors are those of fresh inputs; five draws.

The blocks are those of `benchmarks/reductions.py`, with the defaults. What is asked for stands in `CLAIMS`; where
whitening is the measure, as it was the default once, it is given the same draws.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.data import fashion
from benchmarks.record import DOCS, insert, markdown, write
from benchmarks.reductions import behind_convolutions, digits_lenet300, fashion_perceptron
from tenflex import Block, compress
from tenflex.coordinates import Whiten
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
        distinct: Of how many inputs the samples are drawn, again and again; None where each is drawn once.
    """

    name: str
    make: Callable[[], tuple[nn.Module, Tensor, Tensor]]
    labels: Callable[[], Tensor]
    layer: Block
    distinct: int | None = None


LENET = Case("LeNet-300-100", digits_lenet300, lambda: load_digits().test_labels, Block(40, factor=15))
FASHION = Case("784-512-512-10, fashion", fashion_perceptron, lambda: fashion().test_labels, Block(60, factor=20))
HEAD = Case("head of LeNet-5", behind_convolutions, lambda: load_digits().test_labels, Block(24, factor=9))
REPEATED = replace(LENET, name="LeNet-300-100, 96 digits again and again", distinct=96)

Judge = Callable[[dict[str, Any], dict[str, Any]], bool]
"""Of medians with the default coordinates and with whitening."""

CLAIMS: tuple[tuple[Case, int, str, Judge], ...] = (
    (LENET, 64, "accuracy at least 92.4", lambda ours, before: ours["accuracy"] >= 92.4),
    (LENET, 128, "accuracy at least 93.2", lambda ours, before: ours["accuracy"] >= 93.2),
    (LENET, 128, "fresh over reported at most 1.1", lambda ours, before: ours["fresh_over_reported"] <= 1.1),
    (LENET, 512, "accuracy at least 93.5", lambda ours, before: ours["accuracy"] >= 93.5),
    (LENET, 2000, "error not above that of whitening", lambda ours, before: ours["fresh"] <= before["fresh"]),
    (LENET, 2000, "accuracy not below that of whitening", lambda ours, before: ours["accuracy"] >= before["accuracy"]),
    (LENET, 2000, "at most twice the time of whitening", lambda ours, before: ours["seconds"] <= 2 * before["seconds"]),
    (FASHION, 128, "accuracy at least 84.2", lambda ours, before: ours["accuracy"] >= 84.2),
    (FASHION, 512, "accuracy at least 85.9", lambda ours, before: ours["accuracy"] >= 85.9),
    (FASHION, 2000, "error at most 0.10", lambda ours, before: ours["fresh"] <= 0.1),
    (HEAD, 100, "error at most half that of whitening", lambda ours, before: ours["fresh"] <= before["fresh"] / 2),
    (REPEATED, 256, "fresh over reported at most 1.1", lambda ours, before: ours["fresh_over_reported"] <= 1.1),
)

OURS: dict[str, Any] = {}
BEFORE: dict[str, Any] = {"coordinates": Whiten(), "coupling": 3.0, "lost_energy": 3e-4}


def main() -> bool:
    """Measure all claims; true if all hold."""
    rows = []
    for case, count, claim, judge in CLAIMS:
        ours = measured(case, count, False)
        before = measured(case, count, True) if "whitening" in claim else {}
        whitened = {f"whitened_{name}": before.get(name) for name in ("fresh", "accuracy", "seconds")}
        rows.append(
            {"network": case.name, "samples": count, **ours, **whitened, "claim": claim, "holds": judge(ours, before)}
        )
    write("few", rows)
    insert("few", table(rows), DOCS / "coordinates.md")
    return all(row["holds"] for row in rows)


def table(rows: list[dict[str, Any]]) -> str:
    """The claims with what was measured."""
    heads = ["network, samples", "claim", "accuracy", "error", "error over reported", "seconds", "whitened", "holds"]
    return markdown(heads, [_line(row) for row in rows])


def _line(row: dict[str, Any]) -> list[str]:
    whitened = "" if row["whitened_fresh"] is None else f"{row['whitened_accuracy']:.2f}, {row['whitened_fresh']:.3f}"
    if whitened:
        whitened += f", {row['whitened_seconds']:.0f} s"
    numbers = f"{row['accuracy']:.2f}", f"{row['fresh']:.3f}", f"{row['fresh_over_reported']:.2f}"
    holds = "yes" if row["holds"] else "no"
    name = f"{row['network']}, {row['samples']:,}"
    return [name, row["claim"], *numbers, f"{row['seconds']:.0f}", whitened, holds]


@cache
def made(case: Case) -> tuple[nn.Module, Tensor, Tensor]:
    """Its block and data, made once."""
    return case.make()


@cache
def measured(case: Case, count: int, whitened: bool) -> dict[str, Any]:
    """Medians over the draws."""
    draws = [one_draw(case, count, seed, BEFORE if whitened else OURS) for seed in DRAWS]
    return {name: round(statistics.median(one[name] for one in draws), 4) for name in draws[0]}


def one_draw(case: Case, count: int, seed: int, settings: dict[str, Any]) -> dict[str, float]:
    """What is reached from the samples of a draw."""
    model, train, test = made(case)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train), generator=generator)[: case.distinct or count]
    if case.distinct is not None:
        order = order[torch.randint(case.distinct, (count,), generator=generator)]
    began = time.process_time()
    result = compress(model, train[order], {"": case.layer}, seed=seed, **settings)
    seconds = time.process_time() - began
    close = fidelity(result.model, model, test, case.labels())
    found = {
        "fresh": close.relative_error,
        "fresh_over_reported": close.relative_error / result.report.blocks[0].output_error,
        "accuracy": 100 * (close.accuracy or 0.0),
        "seconds": seconds,
    }
    print(case.name, count, seed, settings, dict(result.report.blocks[0].chosen), found, flush=True)
    return found
