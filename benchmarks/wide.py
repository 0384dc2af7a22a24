"""Blocks so wide that whole Jacobians of a few samples fill the memory: random weights, for time and memory only.

Each in a process of its own, whose peak is that of everything: the network, its inputs, and the compression.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.record import DOCS, insert, markdown, write
from benchmarks.views import resident
from tenflex import Block, compress

HEAD_MINUTES, HEAD_GIBIBYTES, BLOCK_GIBIBYTES = 15, 8, 24


@dataclass(frozen=True)
class Case:
    """A block to replace.

    Args:
        name: What it is called.
        make: The network.
        inputs: What arrives at it.
        layer: Its layer.
        memory: What the block's samples may take.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    layer: Block
    memory: int


def chain(*sizes: int) -> nn.Module:
    """Linear maps with ReLU between them."""
    torch.manual_seed(0)
    maps = [nn.Linear(before, after) for before, after in pairwise(sizes)]
    return nn.Sequential(*[part for one in maps for part in (one, nn.ReLU())][:-1]).eval()


def correlated(count: int, width: int) -> Tensor:
    """Inputs whose variances fall as one over the number of a direction."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(count, width, generator=generator) / torch.arange(1, width + 1) ** 0.5
    mixed = torch.randn(512, width, generator=generator) / 512**0.5
    return drawn[:, :512] @ mixed + 0.05 * drawn


HEAD = Case(
    "25088-4096-4096-1000, 256 images",
    lambda: chain(25088, 4096, 4096, 1000),
    lambda: correlated(256, 25088).relu(),
    Block(60),
    4 * 2**30,
)


def transformer(count: int) -> Case:
    """A feed-forward block 1024-4096-1024 and so many tokens."""
    name = f"1024-4096-1024, {count:,} tokens"
    return Case(name, lambda: chain(1024, 4096, 1024), lambda: correlated(count, 1024), Block(128), 20 * 2**30)


CASES = (lambda: HEAD, lambda: transformer(8_000), lambda: transformer(64_000))


def main() -> bool:
    """Measure; true if times and memory are within what is asked for."""
    return told([in_process(number) for number in range(len(CASES))])


def in_process(number: int) -> dict[str, Any]:
    """A case, measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.wide", str(number)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def told(rows: list[dict[str, Any]]) -> bool:
    """Write the rows and a table of them, and whether they are within what is asked for."""
    write("wide", rows)
    heads = ["block", "kept of the Jacobians", "active inputs", "output error", "minutes", "peak, GiB"]
    lines = [
        [
            *(row["block"], row["kept"], str(row["active"]), f"{row['error']:.2f}"),
            *(f"{row['minutes']:.1f}", f"{row['peak_gibibytes']:.1f}"),
        ]
        for row in rows
    ]
    insert("wide", markdown(heads, lines), DOCS / "scaling.md")
    head = rows[0]["minutes"] <= HEAD_MINUTES and rows[0]["peak_gibibytes"] <= HEAD_GIBIBYTES
    return bool(head and rows[-1]["peak_gibibytes"] <= BLOCK_GIBIBYTES)


def measured(case: Case, device: str = "cpu") -> dict[str, Any]:
    """Time, the peak of this process so far, or of the graphics card, and the error that is reported."""
    model, x = case.make().to(device), case.inputs().to(device)
    began = time.perf_counter()
    result = compress(model, x, {"": case.layer}, samples=len(x), memory=case.memory)
    minutes = (time.perf_counter() - began) / 60
    samples = result.solutions[""].problem.samples
    return {
        "block": case.name,
        "kept": "whole" if samples.views is None else "outputs" if samples.views == 0 else f"{samples.views} views",
        "active": samples.sizes[2],
        "error": round(result.report.blocks[0].output_error, 4),
        "minutes": round(minutes, 2),
        "peak_gibibytes": round(resident(device) / 2**30, 2),
    }


if __name__ == "__main__":
    print(json.dumps(measured(CASES[int(sys.argv[1])]())))
