"""Blocks so wide that whole Jacobians of a few samples fill the memory: random weights, for time and memory only."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks.record import write
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


def main() -> bool:
    """Measure; true if times and memory are within what is asked for."""
    rows = [measured(one) for one in (HEAD, transformer(8_000), transformer(64_000))]
    write("wide", rows)
    head = rows[0]["minutes"] <= HEAD_MINUTES and rows[0]["peak_gibibytes"] <= HEAD_GIBIBYTES
    return bool(head and rows[-1]["peak_gibibytes"] <= BLOCK_GIBIBYTES)


def measured(case: Case) -> dict[str, float | str | int | None]:
    """Time, the peak of this process so far, and the error that is reported."""
    model, x = case.make(), case.inputs()
    began = time.perf_counter()
    result = compress(model, x, {"": case.layer}, samples=len(x), memory=case.memory)
    minutes = (time.perf_counter() - began) / 60
    samples = result.solutions[""].problem.samples
    return {
        "block": case.name,
        "views": samples.views,
        "active": samples.sizes[2],
        "error": round(result.report.blocks[0].output_error, 4),
        "minutes": round(minutes, 2),
        "peak_gibibytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
