"""Time and memory against the number of samples, which stand in a file: up to a million, from 100 to 10 numbers.

Each number of samples is measured in a process of its own: a compression from a memory-mapped file with outputs alone,
some sweeps on the pilot and ten iterations on all samples, `memory` being 256 MiB. Memory is what the process has
besides files, whose pages the system keeps or gives up as it likes, at its peak and beyond what it had before.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.record import DOCS, insert, markdown, write
from benchmarks.scaling import slope
from tenflex import Block, compress
from tenflex.solvers import Chain, JacobianCPD, Lifted, Refine

SAMPLES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
INPUTS, OUTPUTS, RANK = 100, 10, 20
FROM = 30_000
"""Times of fewer samples are those of what does not depend on them."""

MOST_GROWTH, MOST_EXPONENT = 1.5, 1.05

MEMORY = 2**28
"""What is allowed: tensors of more than a sixteenth of it stand in files."""


def main() -> bool:
    """Measure; true if time grows no faster than samples, and memory hardly at all."""
    return told([in_process(count) for count in SAMPLES])


def in_process(count: int) -> dict[str, Any]:
    """A number of samples, measured in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.streaming", str(count)], check=True, capture_output=True, text=True
    )
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def told(rows: list[dict[str, Any]]) -> bool:
    """Write the rows and a table of them, and whether what is claimed holds."""
    large = [row for row in rows if row["samples"] >= FROM]
    exponent = round(slope([row["samples"] for row in large], [row["seconds"] for row in large]), 2)
    growth = round(rows[-1]["megabytes"] / rows[-3]["megabytes"], 2)
    write("streaming", rows, exponent=exponent, growth_of_memory=growth)
    heads = ["samples", "on disk, MB", "seconds", "seconds an evaluation", "memory, MB"]
    lines = [
        [
            f"{row['samples']:,}",
            f"{row['file']:,}",
            f"{row['seconds']:.1f}",
            f"{row['evaluation']:.3f}",
            f"{row['megabytes']:,}",
        ]
        for row in rows
    ]
    insert("streaming", markdown(heads, lines), DOCS / "scaling.md")
    return exponent <= MOST_EXPONENT and growth <= MOST_GROWTH


def measured(count: int) -> dict[str, Any]:
    """Seconds, and the most memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inputs.npy"
        written(path, count)
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(INPUTS, 64), nn.Tanh(), nn.Linear(64, OUTPUTS)).eval()
        solver = Chain((Lifted(JacobianCPD(10, stride=10)), Refine(10)))
        compress(network, torch.randn(500, INPUTS), {"": Block(RANK)}, samples=500, views=0, solver=solver)
        with Watch() as watch:
            began = time.perf_counter()
            inputs = np.load(path, mmap_mode="r")
            result = compress(network, inputs, {"": Block(RANK)}, samples=count, views=0, solver=solver, memory=MEMORY)
            seconds = time.perf_counter() - began
        return {
            "samples": len(result.solutions[""].problem.samples),
            "file": path.stat().st_size // 10**6,
            "seconds": round(seconds, 2),
            "evaluation": round(evaluation(result), 4),
            "megabytes": watch.grown // 10**6,
        }


def written(path: Path, count: int) -> None:
    """Inputs in a file, which are never in memory together."""
    whole = np.lib.format.open_memmap(path, "w+", np.float32, (count, INPUTS))
    generator = np.random.default_rng(0)
    for start in range(0, count, 10_000):
        part = whole[start : start + 10_000]
        part[:] = generator.standard_normal(part.shape)
    whole.flush()


def evaluation(result: Any) -> float:
    """Seconds of the objective and its gradient, the shortest of three."""
    from tenflex.decouple import inside
    from tenflex.objective.prepared import prepare

    solution = result.solutions[""]
    prepared, reduction = prepare(solution.problem)
    factors, times = inside(prepared, reduction, solution.factors), []
    for _ in range(3):
        tensors = [one.detach().clone().requires_grad_() for one in factors.tensors()]
        began = time.perf_counter()
        prepared.fitted.loss(factors.with_tensors(tensors)).backward()
        times.append(time.perf_counter() - began)
    return min(times)


class Watch:
    """The most memory of a process besides files, looked at again and again (Linux)."""

    def __enter__(self) -> Watch:
        self.before = self.most = anonymous()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        return self

    def _look(self) -> None:
        while not self.over.wait(0.02):
            self.most = max(self.most, anonymous())

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join()

    @property
    def grown(self) -> int:
        """Bytes beyond those at the beginning."""
        return self.most - self.before


def anonymous() -> int:
    """Bytes of memory that are no pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


if __name__ == "__main__":
    print(json.dumps(measured(int(sys.argv[1]))))
