"""Whole Jacobians, views of them, or outputs alone: what each reaches and costs by the number of samples.

A feed-forward block of a trained transformer, one flexible layer with 64 nodes in its place, tokens of news texts; the
errors are those of tokens of other texts. Each way is measured in a process of its own, as `compress` does it, its
coupling chosen by held-out tokens. Whole Jacobians are taken where they fit in the memory that is allowed by default.
Every cell that is measured stands in the record; what is there is not measured anew.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from functools import cache
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.data import CACHE
from benchmarks.record import DOCS, insert, markdown, recorded, write
from benchmarks.texts import feed_forward
from tenflex import Block, Problem, Samples, compress, decouple
from tenflex.objective.objective import Objective
from tenflex.planning.plan import DEFAULT_BASIS
from tenflex.sampling.memory import MOST_MEMORY, Budget
from tenflex.sampling.views import sample_views
from tenflex.solvers import prepare
from tenflex.split import split_samples

RANK, TOKENS, FRESH = 64, (600, 2_400, 9_600, 38_400), 2_000
LAYER = 4
"""Of whose outputs no handful of tokens makes up most."""

WAYS = ("whole", "16", "4", "1", "0", "auto")
"""Whole Jacobians, so many views, outputs only, and what is chosen when nothing is asked for."""

MEMORY = 8 * 2**30
"""What views may take; whole Jacobians are taken where `MOST_MEMORY` is enough."""


def main() -> bool:
    """Measure; true if the automatic choice is within 2 % of the best everywhere and a view is 20 times cheaper."""
    for count in TOKENS:
        for way in WAYS:
            if (count, way) not in {(row["tokens"], row["way"]) for row in recorded("views")}:
                write("views", [*recorded("views"), in_process(count, way)])
    return told(recorded("views"))


def in_process(count: int, way: str) -> dict[str, Any]:
    """A cell, measured in a process of its own, whose peak is that of nothing else."""
    command = [sys.executable, "-m", "benchmarks.views", str(count), way]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def told(cells: list[dict[str, Any]]) -> bool:
    """Write the cells, a table of them, and whether what is claimed holds."""
    whole, one = (evaluation_seconds(views) for views in (None, 1))
    evaluation = {"whole": whole, "one view": one, "ratio": round(whole / one, 1)}
    write("views", cells, evaluation=evaluation)
    insert("views", table(cells), DOCS / "scaling.md")
    best = {
        row["tokens"]: min(one["fresh"] for one in cells if one["tokens"] == row["tokens"] and one["fresh"])
        for row in cells
    }
    chosen = [row for row in cells if row["way"] == "auto"]
    return all(row["fresh"] <= 1.02 * best[row["tokens"]] for row in chosen) and whole >= 20 * one


def table(cells: list[dict[str, Any]]) -> str:
    """Fresh errors, with seconds and megabytes, a row for each way."""
    rows = []
    for way in WAYS:
        found = {row["tokens"]: row for row in cells if row["way"] == way}
        rows.append([NAMES.get(way, f"{way} views"), *(cell(found.get(count)) for count in TOKENS)])
    return markdown(["fresh error (s, MB beyond loading)", *(f"{count:,} tokens" for count in TOKENS)], rows)


NAMES = {"whole": "whole Jacobians", "0": "outputs only", "1": "1 view", "auto": "**automatic**"}


def cell(row: dict[str, Any] | None) -> str:
    """One cell of the table."""
    if row is None:
        return ""
    if row["fresh"] is None:
        return "does not fit"
    return f"{row['fresh']:.4f} ({row['seconds']:.0f}, {row['megabytes']:,.0f})"


@cache
def data() -> tuple[nn.Module, Tensor, Tensor]:
    """The block, its tokens in random order, and fresh ones of other texts."""
    path = CACHE / f"minilm-tokens-{LAYER}.safetensors"
    if not path.exists():
        network, tokens, origins = feed_forward(LAYER, 300)
        parts = {f"network.{name}": one.contiguous() for name, one in network.state_dict().items()}
        save_file({**parts, "tokens": tokens.contiguous(), "origins": origins}, path)
    kept = load_file(path)
    network = nn.Sequential(nn.Linear(384, 1536), nn.GELU(), nn.Linear(1536, 384)).requires_grad_(False).eval()
    network.load_state_dict({name: kept[f"network.{name}"] for name in network.state_dict()})
    fresh = kept["origins"] % 6 == 5
    seeded = torch.Generator().manual_seed(0)
    sides = (kept["tokens"][~fresh], kept["tokens"][fresh])
    known, others = (one[torch.randperm(len(one), generator=seeded)] for one in sides)
    return network, known, others[:FRESH]


def measured(count: int, way: str, device: str = "cpu", memory: int = MEMORY) -> dict[str, Any]:
    """What is reached in one way, in what time, with how much memory; errors are None where it does not fit."""
    network, known, fresh = (one.to(device) for one in data())
    if count > len(known):
        raise ValueError(f"there are {len(known)} tokens, fewer than {count}: take more texts")
    views = None if way == "auto" else "whole" if way == "whole" else int(way)
    memory = MOST_MEMORY if (way, device) == ("whole", "cpu") else memory
    before, began = resident(device), time.perf_counter()
    row: dict[str, Any] = {"tokens": count, "way": way}
    layer = {"": Block(RANK, start="cpd")}
    try:
        found = compress(network, known[:count], layer, samples=count, views=views, memory=memory)
    except ValueError as error:
        if "at the peak" not in str(error):
            raise
        return {**row, "fresh": None, "why": str(error)}
    seconds, solution = time.perf_counter() - began, found.solutions[""]
    with torch.no_grad():
        expected, reached = network(fresh).double(), found.model(fresh).double()
    error = float((reached - expected).norm() / (expected - expected.mean(0)).norm())
    kept = solution.problem.samples
    return {
        **row,
        "views": "whole" if kept.views is None else kept.views,
        "fresh": round(error, 4),
        "validation": round(solution.validation_error, 4),
        "test": round(solution.output_error, 4),
        "coupling": round(solution.problem.coupling, 2),
        "active": kept.sizes[2],
        "pilot": None if kept.pilot is None else kept.pilot.sizes[1],
        "seconds": round(seconds, 1),
        "megabytes": round((resident(device) - before) / 1e6),
    }


def resident(device: str = "cpu") -> int:
    """The most bytes that this process has had in memory, or on a graphics card."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def sampled(network: nn.Module, x: Tensor, views: int | None) -> Samples:
    """The samples of a block, single tokens being set aside."""
    m = x.shape[1]
    split = split_samples(torch.arange(len(x)))
    return sample_views(network, x, network(x), Budget(2**33, m, m, views), split=split)


def evaluation_seconds(views: int | None, count: int = 300) -> float:
    """The shortest time of a value and its gradient."""
    network, known, _ = data()
    problem, _ = prepare(Problem(sampled(network, known[:count], views), RANK, DEFAULT_BASIS, held_out=0))
    objective: Objective = problem.fitted
    factors = decouple(Problem(sampled(network, known[:count], 0), RANK, DEFAULT_BASIS, held_out=0)).factors
    narrowed = problem.fitted.samples.reduction
    if narrowed is None:
        raise ValueError("the samples of a block are in reduced coordinates")
    inside = narrowed.narrow(factors)
    times = []
    for _ in range(10):
        tensors = [one.detach().clone().requires_grad_() for one in inside.tensors()]
        began = time.perf_counter()
        objective.loss(inside.with_tensors(tensors)).backward()
        times.append(time.perf_counter() - began)
    return min(times)


if __name__ == "__main__":
    print(json.dumps(measured(int(sys.argv[1]), sys.argv[2])))
