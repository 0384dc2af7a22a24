"""Fresh points behind the ends: B-splines with and without a price on roughness, from few samples and from noisy ones.

Planted nodes of smooth functions, normal inputs; errors are of the outputs without noise at points that took no part,
and the reported ones of held-out samples, noise included. What rules do in the worst of the draws is what is asked.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch
from torch import Tensor

from benchmarks.problems import seeded
from benchmarks.record import DOCS, insert, markdown, write
from tenflex import BSpline, Problem, Samples, Smooth, decouple, sample
from tenflex.bases import Basis

DRAWS, POINTS = 8, 3000

SIZES = ((3, 2, 3), (6, 1, 4), (8, 4, 6))
"""Inputs, outputs and nodes of the maps; the layer has as many nodes."""

COUNTS = (40, 120, 400)

NOISE = {"none": (0.0, 0.0), "10 %, 20 %": (0.1, 0.2)}
"""Of the outputs and of the Jacobians' entries, as shares of their deviations."""

RULES: dict[str, Basis] = {"BSpline(10)": BSpline(10), "Smooth(BSpline(10)), the default": Smooth(BSpline(10))}


def main() -> bool:
    """Measure; true if the default is never far off, and in no cell much worse in the median than without a price."""
    rows = [cell(sizes, count, noise, rule) for sizes in SIZES for noise in NOISE for count in COUNTS for rule in RULES]
    write("ends", rows)
    heads = ("map, noise, samples", "basis", "error, median", "error, worst", "reported, median")
    lines = [
        (f"{one['map']}, {one['noise']}, {one['samples']}", one["basis"], *(f"{one[key]:.3g}" for key in KEYS))
        for one in rows
    ]
    insert("ends", markdown(heads, lines), DOCS / "solvers.md")
    plain, smooth = (
        [one for one in rows if one["basis"].startswith("Smooth") == with_price] for with_price in (False, True)
    )
    never_off = all(one["worst"] < 1.0 for one in smooth)
    return never_off and all(b["median"] <= 1.1 * a["median"] + 0.01 for a, b in zip(plain, smooth, strict=True))


KEYS = "median", "worst", "reported"


def cell(sizes: tuple[int, int, int], count: int, noise: str, rule: str) -> dict[str, Any]:
    """All draws of one map, number of samples, noise and basis."""
    pairs = [one_draw(sizes, count, NOISE[noise], RULES[rule], seed) for seed in range(DRAWS)]
    errors, reported = zip(*pairs, strict=True)
    found = {"median": statistics.median(errors), "worst": max(errors), "reported": statistics.median(reported)}
    m, n, r = sizes
    return {
        "map": f"{m}-{r}-{n}",
        "noise": noise,
        "samples": count,
        "basis": rule,
        **{key: float(f"{one:.4g}") for key, one in found.items()},
        "all": [float(f"{one:.4g}") for one in errors],
    }


def one_draw(
    sizes: tuple[int, int, int], count: int, noise: tuple[float, float], basis: Basis, seed: int
) -> tuple[float, float]:
    """The error at fresh points, and the reported one."""
    m, n, r = sizes
    generator = seeded(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    V, W, c = drawn(m, r) / math.sqrt(m), drawn(n, r), drawn(3, r)

    def f(x: Tensor) -> Tensor:
        t = x @ V
        return (c[0] * t + c[1] * torch.tanh(2 * t) + c[2] * torch.sin(1.5 * t)) @ W.mT

    exact, fresh = sample(f, drawn(count, m)), drawn(POINTS, m)
    F, J = exact.outputs, exact.jacobians
    F, J = F + noise[0] * F.std(0) * drawn(*F.shape), J + noise[1] * J.std() * drawn(*J.shape)
    solution = decouple(Problem(Samples(exact.inputs, F, J), r, basis), seed=seed)
    truth = f(fresh)
    error = (solution(fresh) - truth).norm() / (truth - truth.mean(0)).norm()
    return float(error), solution.output_error
