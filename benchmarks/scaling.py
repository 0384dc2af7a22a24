"""Time and memory of one evaluation of the objective with its gradient and of one ALS sweep, against S, r, m and n.

The floor of an evaluation is counted: `2 S n m q` multiply-adds, and J read twice. Times are medians; slopes are fitted
on the logarithms, so a slope of 1 in S is linear.
"""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from benchmarks.record import write
from tenflex import BSpline, ConstrainedALS, Problem, Samples
from tenflex.solvers.base import prepare

BASE = {"S": 1000, "n": 10, "m": 100, "r": 20}
SWEEPS = {"S": (500, 1000, 2000, 4000, 8000), "m": (50, 100, 200, 400), "r": (10, 20, 40, 80), "n": (5, 10, 20, 40)}


def problem(S: int, n: int, m: int, r: int) -> Problem:
    """A planted layer with noise, of given sizes."""
    generator = torch.Generator().manual_seed(0)
    V, W = (torch.randn(size, r, generator=generator, dtype=torch.float64) for size in (m, n))
    x = torch.randn(S, m, generator=generator, dtype=torch.float64)
    t = x @ V / m**0.5
    outputs = torch.tanh(t) @ W.mT
    jacobians = torch.einsum("nr,sr,mr->snm", W, 1 - torch.tanh(t) ** 2, V / m**0.5)
    jacobians = jacobians + 0.1 * torch.randn(jacobians.shape, generator=generator, dtype=torch.float64)
    return Problem(Samples(x, outputs, jacobians), r, BSpline(10), held_out=0)


def median_time(run: Callable[[], object], repeats: int = 5) -> float:
    """Seconds, after one run that does not count."""
    run()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def measure(sizes: dict[str, int]) -> dict[str, float]:
    """Times for one set of sizes, with the time of the two matrix products alone as the floor."""
    prepared, _ = prepare(problem(**sizes))
    solver = ConstrainedALS(1)
    state = solver.init(prepared, torch.Generator().manual_seed(0))
    factors = state.factors
    tensors = [one.clone().requires_grad_() for one in factors.tensors()]

    def evaluate() -> None:
        errors = prepared.fitted.value(factors.with_tensors(tensors))
        torch.autograd.grad(sum(errors), tensors)

    J = prepared.fitted.jacobians.entries.flatten(1)
    right, left = torch.randn(J.shape[1], sizes["r"]).to(J), torch.randn(len(J), sizes["r"]).to(J)
    floor = median_time(lambda: (J @ right, J.mT @ left))
    evaluation = median_time(evaluate)
    with torch.no_grad():
        sweep = median_time(lambda: solver.step(prepared, state))
    return {**sizes, "evaluation": evaluation, "floor": floor, "ratio": evaluation / floor, "sweep": sweep}


SOLVE = """
import sys
from benchmarks.scaling import BASE, problem
from tenflex import Chain, ConstrainedALS, Refine, decouple

if S := int(sys.argv[1]):
    decouple(problem(**{**BASE, "S": S}), Chain((ConstrainedALS(3), Refine(10))))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) / 1024)
"""


def peak_memory(S: int) -> float:
    """Peak resident MiB of a process that makes and solves a problem of S samples (Linux)."""
    done = subprocess.run([sys.executable, "-c", SOLVE, str(S)], check=True, capture_output=True, text=True)
    return float(done.stdout)


def slope(xs: list[float], ys: list[float]) -> float:
    """The exponent of a power law through points, by least squares on the logarithms."""
    x, y = [math.log(one) for one in xs], [math.log(one) for one in ys]
    middle_x, middle_y = statistics.mean(x), statistics.mean(y)
    rise = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True))
    return rise / sum((a - middle_x) ** 2 for a in x)


def main() -> bool:
    """Measure, and fit the slopes."""
    rows = []
    slopes = {}
    for name, values in SWEEPS.items():
        part = [measure({**BASE, name: value}) for value in values]
        rows += part
        slopes[name] = {
            what: round(slope(list(values), [row[what] for row in part]), 2)
            for what in ("evaluation", "sweep", "floor")
        }
    idle = peak_memory(0)
    memory = {S: round(peak_memory(S) - idle, 1) for S in (8000, 16000, 32000)}
    slopes["S"]["memory"] = round(slope(list(memory), list(memory.values())), 2)
    write("scaling", rows, slopes=slopes, memory_mib=memory)
    print("exponents:", slopes)
    print("peak memory in MiB by S:", memory, "of which J:", {S: round(S * 1000 * 8 / 2**20, 1) for S in memory})
    return slopes["S"]["evaluation"] < 1.2 and slopes["S"]["sweep"] < 1.2 and slopes["S"]["memory"] < 1.2
