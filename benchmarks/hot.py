"""How near an evaluation of the objective with its gradient comes to what the processor can do.

The share of the peak: floating-point operations of the two products with J alone, by the speed of a large product of
square matrices in the same run, one thread, the shortest of many. And the start of a CPD at rank 400 beside rank 200.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.record import write
from benchmarks.scaling import problem
from tenflex.objective.tensor import khatri_rao
from tenflex.solvers import ConstrainedALS, JacobianCPD, prepare

SIZES = {"S": 2000, "n": 10, "m": 100, "r": 20}
SHARE, RANKS = 0.4, (200, 400)
MOST_RATIO = 7.0
"""Of the times of the two ranks: Gram matrices of the coefficients are counted four times, their factors eight."""


def main() -> bool:
    """Measure; true if the share of the peak is reached, and the CPD grows as counted."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [evaluation(), *map(decomposition, RANKS)]
    finally:
        torch.set_num_threads(threads)
    ratio = round(rows[2]["seconds"] / rows[1]["seconds"], 2)
    write("hot", rows, ratio_of_ranks=ratio)
    return rows[0]["share"] >= SHARE and ratio <= MOST_RATIO


def shortest(run: Callable[[], object], repeats: int = 100) -> float:
    """Seconds, the least of several."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def peak() -> float:
    """Floating-point operations a second of a product of square matrices."""
    square = torch.randn(768, 768, dtype=torch.float64)
    return 2 * 768**3 / shortest(lambda: square @ square, 30)


def evaluation() -> dict[str, Any]:
    """The objective with its gradient, and its two products alone."""
    prepared, _ = prepare(problem(**SIZES))
    with torch.no_grad():
        factors = ConstrainedALS(1).init(prepared, torch.Generator().manual_seed(0)).factors
    tensors = [one.clone().requires_grad_() for one in factors.tensors()]
    S, n, m, r = SIZES.values()
    J, across = prepared.fitted.jacobians.entries.flatten(1), khatri_rao(factors.W, factors.V).mT.contiguous()
    H = torch.randn(r, S, dtype=torch.float64)

    def evaluate() -> None:
        torch.autograd.grad(prepared.fitted.loss(factors.with_tensors(tensors)), tensors)

    operations, best = 4 * S * n * m * r, peak()
    whole, bare = shortest(evaluate), shortest(lambda: (across @ J.mT, H @ J))
    return {
        "work": "evaluation",
        **SIZES,
        "seconds": whole,
        "share": round(operations / whole / best, 3),
        "two_products": round(operations / bare / best, 3),
        "peak_gigaflops": round(best / 1e9, 1),
    }


def decomposition(rank: int) -> dict[str, Any]:
    """Ten sweeps of the CPD of J alone."""
    sizes = {**SIZES, "S": 1000, "r": rank}
    prepared, _ = prepare(problem(**sizes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        began = time.perf_counter()
        JacobianCPD(10, stride=10).init(prepared, generator)
        return {"work": "JacobianCPD", **sizes, "seconds": time.perf_counter() - began}
