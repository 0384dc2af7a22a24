"""One process beside two, each with half of the samples and one thread: time of a refinement, and what is exchanged.

Whole Jacobians of a planted layer with noise; the time is that of the iterations alone, from a start that all have. Run
it where two processors are free. Beside them two processes that refine a half each and exchange nothing: what two take
of the time of one on this machine, whose processors share caches and memory, if meeting costs nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from benchmarks.record import DOCS, insert, markdown, write
from benchmarks.scaling import problem
from tenflex import Problem, distributed
from tenflex.decouple import inside
from tenflex.factors import Factors
from tenflex.objective.prepared import Prepared
from tenflex.solvers import ConstrainedALS, Refine, prepare
from tenflex.solvers.base import State
from tenflex.sums import Operation, meeting

SIZES = {"S": 20_000, "n": 10, "m": 100, "r": 20}
STEPS, MOST_RATIO = 5, 0.65


def main() -> bool:
    """Measure; true if two processes take at most 0.65 of the time, reach the same, and exchange what is counted."""
    (one,), two, apart = run(1), run(2), run(2, apart=True)
    ratio = round(max(row["seconds"] for row in two) / one["seconds"], 3)
    counted = 8 * (one["unknowns"] + SIZES["r"] + 8)
    same = max(abs(row["objective"] / one["objective"] - 1) for row in two)
    rows = [{"processes": 1, **one}, {"processes": 2, **two[0]}]
    floor = round(max(row["seconds"] for row in apart) / one["seconds"], 3)
    write("processes", rows, ratio=ratio, nothing_exchanged=floor, bytes_allowed=counted, difference=same, sizes=SIZES)
    heads = ["processes", "seconds", "objective", "bytes an evaluation"]
    lines = [
        [str(row["processes"]), f"{row['seconds']:.2f}", f"{row['objective']:.12g}", f"{row['bytes']:.0f}"]
        for row in rows
    ]
    insert("processes", markdown(heads, lines), DOCS / "scaling.md")
    alike = len({row["print"] for row in two}) == 1
    return ratio <= MOST_RATIO and same <= 1e-10 and alike and all(row["bytes"] <= counted for row in two)


def run(world: int, apart: bool = False) -> list[dict[str, Any]]:
    """What each of some processes tells, which may know nothing of each other."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.processes", folder, str(world), str(int(apart))]
        started = [
            subprocess.Popen([*command, str(rank)], env=environment, stdout=subprocess.PIPE, text=True)
            for rank in range(world)
        ]
        return [json.loads(one.communicate()[0].splitlines()[-1]) for one in started]


def measured(folder: str, world: int, apart: bool, rank: int) -> dict[str, Any]:
    """A share of the samples, refined together with the others."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    whole = problem(**SIZES)
    some = torch.arange(0, SIZES["S"], SIZES["S"] // 500)
    alone, reduction = prepare(few(whole, some))
    with torch.no_grad():
        begun = ConstrainedALS(3).init(alone, torch.Generator().manual_seed(0)).factors
    own = few(whole, torch.arange(rank, SIZES["S"], world))
    exchanged = {"bytes": 0}

    def counting(partial: Tensor, operation: Operation) -> Tensor:
        exchanged["bytes"] += partial.nbytes
        return distributed.exchanged(partial, operation)

    with nullcontext() if apart else meeting(counting, rank), torch.no_grad():
        prepared, there = prepare(own)
        factors = inside(prepared, there, reduction.expand(begun))
        parameters = [one.clone().requires_grad_() for one in factors.tensors()]
        objective = float(evaluated(prepared, factors, parameters))
        exchanged["bytes"] = 0
        evaluated(prepared, factors, parameters)
        sent, solver = exchanged["bytes"], Refine(10 * STEPS)
        state: State[Any] = solver.resume(prepared, State(factors, None))
        dist.barrier()
        began = time.perf_counter()
        for _ in range(STEPS):
            state = solver.step(prepared, state)
        seconds = time.perf_counter() - began
    dist.destroy_process_group()
    return {
        "seconds": round(seconds, 3),
        "objective": objective,
        "bytes": sent,
        "unknowns": sum(one.numel() for one in parameters),
        "print": distributed.fingerprint(state.factors),
    }


def few(whole: Problem, index: Tensor) -> Problem:
    """The problem with some of its samples."""
    return replace(whole, samples=whole.samples.select(index))


def evaluated(prepared: Prepared, factors: Factors, parameters: list[Tensor]) -> Tensor:
    """The objective, its gradient being made too."""
    with torch.enable_grad():
        loss = prepared.fitted.loss(factors.with_tensors(parameters))
        torch.autograd.grad(loss, parameters)
    return loss.detach()


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "1", int(sys.argv[4]))))
