"""Time and memory of the solvers against S, m, n and r, measured and as predicted by counting.

A sweep reads J three times, once for each of V, the coefficients or H, and W: `3 S n m r` multiply-adds, besides what
the activations cost. Those of JacobianCPD are on a core of J where that pays; the fit of the activations behind ten of
them is on J. Counts are turned into seconds by the speed of one product with J on the same machine. Times are
medians; exponents are fitted on the logarithms, so an exponent of 1 in S is linear.
"""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.record import write
from tenflex import BSpline, Problem, Samples
from tenflex.objective.compressed import compressed, core_shape, counted, pays, swept, triangular
from tenflex.objective.sketch import sketched_gauss_newton
from tenflex.solvers import ConstrainedALS, JacobianCPD, LayeredALS, Solver, StructuredCPD, prepare

BASIS = BSpline(10)
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
    return Problem(Samples(x, outputs, jacobians), r, BASIS, held_out=0)


def median_time(run: Callable[[], object], repeats: int = 5) -> float:
    """Seconds, after one run that does not count."""
    run()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def counted_sweep(S: int, n: int, m: int, r: int) -> float:
    """Multiply-adds of a sweep of constrained ALS: three products with J, and the Gram matrices of the coefficients."""
    d = BASIS.size
    return 3 * S * n * m * r + 2 * S * (r * d) ** 2 + (r * d) ** 3 / 3 + 20 * S * r * d


def counted_cpd(S: int, n: int, m: int, r: int) -> float:
    """Multiply-adds of a sweep of the CPD alone."""
    return 3 * S * n * m * r + 3 * S * r * r


def counted_fit(S: int, n: int, m: int, r: int) -> float:
    """Multiply-adds of one fit of the activations to given directions: what a sweep of constrained ALS has but V."""
    return counted_sweep(S, n, m, r) - S * n * m * r


def counted_on_core(S: int, n: int, m: int, r: int) -> float:
    """Multiply-adds of ten sweeps of the CPD alone, on a core where that pays, and of leading them there and back."""
    if not pays((S, n, m), r, 10):
        return 10 * swept((S, n, m), r)
    core = core_shape((S, n, m), r)
    there = S * n * m * r if triangular((S, n, m), r) else 2 * S * core[0] * r
    return 10 * swept(core, r) + there


def compression(sizes: dict[str, int]) -> Callable[[], object]:
    """What JacobianCPD does once."""
    prepared, _ = prepare(problem(**sizes))
    return lambda: compressed(prepared.fitted.jacobians, sizes["r"], torch.Generator().manual_seed(0))


def counted_layered(S: int, n: int, m: int, r: int) -> float:
    """Multiply-adds of a sweep over two layers of r nodes each: J along V four times, and Gram matrices a sample."""
    d = BASIS.size
    return 5 * S * n * m * r + 9 * S * n * r * r + 4 * S * r**3 + 2 * S * (r * d) ** 2 + S * r**4 + r**6 / 3


def counted_evaluation(S: int, n: int, m: int, r: int) -> float:
    """Multiply-adds of the objective with its gradient: two products with J."""
    return 2 * S * n * m * r + 40 * S * r * BASIS.size


def evaluation(sizes: dict[str, int]) -> Callable[[], object]:
    """The objective with its gradient."""
    prepared, _ = prepare(problem(**sizes))
    factors = ConstrainedALS(1).init(prepared, torch.Generator().manual_seed(0)).factors
    tensors = [one.clone().requires_grad_() for one in factors.tensors()]

    def evaluate() -> None:
        torch.autograd.grad(prepared.fitted.loss(factors.with_tensors(tensors)), tensors)

    return evaluate


def counted_sketch(S: int, n: int, m: int, r: int) -> float:
    """Multiply-adds of an estimate for two layers of r nodes each, with four rows of each kind to an unknown."""
    d = BASIS.size
    unknowns = r * (m + d + 1) + r * (r + n + d + 1)
    return 8 * unknowns**3


def sketch(sizes: dict[str, int]) -> Callable[[], object]:
    """What a step of SketchedNewton does once, before it evaluates the objective."""
    whole = problem(**sizes)
    prepared, _ = prepare(replace(whole, rank=(sizes["r"], sizes["r"])))
    generator = torch.Generator().manual_seed(0)
    factors = LayeredALS(1).init(prepared, generator).factors.full()
    rows = 4 * factors.flat().numel()
    return lambda: sketched_gauss_newton(prepared, factors, 0.0, rows, generator)


def sweep_of(solver: Solver, layers: int = 1) -> Callable[[dict[str, int]], Callable[[], object]]:
    """One sweep of a solver."""

    def ready(sizes: dict[str, int]) -> Callable[[], object]:
        whole = problem(**sizes)
        if layers == 2:
            whole = replace(whole, rank=(whole.ranks[0], whole.ranks[0]))
        prepared, _ = prepare(whole)
        with torch.no_grad():
            state = solver.init(prepared, torch.Generator().manual_seed(0))

        def step() -> None:
            with torch.no_grad():
                solver.step(prepared, state)

        return step

    return ready


WORK: dict[str, tuple[Callable[[dict[str, int]], Callable[[], object]], Callable[..., float], dict[str, int]]] = {
    "objective and gradient": (evaluation, counted_evaluation, BASE),
    "ConstrainedALS": (sweep_of(ConstrainedALS(1)), counted_sweep, BASE),
    "compression for JacobianCPD": (compression, lambda S, n, m, r: counted((S, n, m), r), BASE),
    "JacobianCPD": (
        sweep_of(JacobianCPD(10, stride=10)),
        lambda **sizes: counted_on_core(**sizes) + counted_fit(**sizes),
        BASE,
    ),
    "StructuredCPD": (sweep_of(StructuredCPD(10, stride=10)), lambda **sizes: 10 * counted_cpd(**sizes), BASE),
    "LayeredALS": (sweep_of(LayeredALS(1), layers=2), counted_layered, {**BASE, "r": 10}),
    "sketch for SketchedNewton": (sketch, counted_sketch, {**BASE, "r": 4}),
}
"""What is timed, the multiply-adds that it is counted to take (ten sweeps of a CPD), and about which sizes."""


def rate() -> float:
    """Multiply-adds a second of a product with J."""
    S, n, m, r = BASE.values()
    J, right = torch.randn(S, n * m, dtype=torch.float64), torch.randn(n * m, r, dtype=torch.float64)
    return S * n * m * r / median_time(lambda: J @ right, 20)


def measure(name: str, speed: float) -> tuple[list[dict[str, object]], dict[str, dict[str, float]]]:
    """The rows of one kind of work, and its exponents in every size, measured and predicted."""
    ready, count, base = WORK[name]
    rows: list[dict[str, object]] = []
    exponents: dict[str, dict[str, float]] = {}
    for size, values in SWEEPS.items():
        values = [value * base[size] // BASE[size] for value in values]
        seconds, predicted = [], []
        for value in values:
            sizes = {**base, size: value}
            seconds.append(median_time(ready(sizes)))
            predicted.append(count(**sizes) / speed)
            rows.append({"work": name, **sizes, "seconds": seconds[-1], "predicted": predicted[-1]})
        exponents[size] = {
            "measured": round(slope(values, seconds), 2),
            "predicted": round(slope(values, predicted), 2),
        }
    return rows, exponents


SOLVE = """
import sys
from benchmarks.scaling import BASE, problem
from tenflex.solvers import Chain, ConstrainedALS, Refine
from tenflex import decouple

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
    """Measure, and fit the exponents; linear in S in time and memory is claimed."""
    speed = rate()
    rows, exponents = [], {}
    for name in WORK:
        part, exponents[name] = measure(name, speed)
        rows += part
    idle = peak_memory(0)
    memory = {S: round(peak_memory(S) - idle, 1) for S in (8000, 16000, 32000)}
    in_memory = round(slope(list(memory), list(memory.values())), 2)
    write("scaling", rows, exponents=exponents, memory_mib=memory, memory_exponent=in_memory)
    for name, found in exponents.items():
        print(f"{name}: exponents", {size: f"{one['measured']} ({one['predicted']})" for size, one in found.items()})
    print("measured, and predicted by counting in brackets")
    print("peak memory in MiB by S:", memory, "of which J:", {S: round(S * 1000 * 8 / 2**20, 1) for S in memory})
    return in_memory < 1.2 and all(one["S"]["measured"] < 1.2 for one in exponents.values())
