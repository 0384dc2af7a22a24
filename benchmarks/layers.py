"""Three flexible layers: a planted composition found from nothing, and the tail of a network beside one and two.

The composition has two inputs, three layers of two quadratics each, and two outputs. What is found is compared factor
by factor: the directions of every layer, up to the order of its nodes, scales, and constants, which nothing determines.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any

import torch
from torch import Tensor

from benchmarks.networks import elu_network
from benchmarks.problems import matrix, sines, uniform
from benchmarks.record import DOCS, insert, markdown, write
from benchmarks.two_layers import SETTINGS, Rival, one_row
from tenflex import Monomial, Problem, Samples, decouple
from tenflex.demo.digits import load_digits
from tenflex.demo.train import accuracy
from tenflex.factors import Activations, Factors

RUNS = 30
"""Runs of the default recipe on the composition, each with another seed of all its random choices."""

FOUND = 1e-8
"""The error of the factors below which they are found."""

DRAWS = (0, 1, 2)
TAIL: dict[str, Rival] = {"20": (20, None), "20-20": ((20, 20), None), "20-20-20": ((20, 20, 20), None)}


@dataclass(frozen=True, eq=False)
class Composition:
    """Layers of quadratics.

    Args:
        factors: The layers.
        samples: What is seen of them.
    """

    factors: Factors
    samples: Samples

    def error(self, found: Factors) -> float:
        """The largest sine between directions found and true, in the best order of the nodes of each layer."""
        ours, theirs = directions(self.factors), directions(found)
        orders = product(*([list(order) for order in permutations(range(r))] for r in self.factors.ranks))
        return min(self._apart(ours, theirs, several) for several in orders)

    def _apart(self, ours: list[Tensor], theirs: list[Tensor], orders: tuple[list[int], ...]) -> float:
        """The same in one order of the nodes."""
        outputs = list(range(len(self.factors.W)))
        ends = zip(([*range(len(self.factors.V))], *orders), (*orders, outputs), strict=True)
        pairs = zip(ours, theirs, ends, strict=True)
        columns = [(one[rows][:, places], other) for other, one, (rows, places) in pairs]
        *hidden, (last, true) = columns
        return max(*(sines(one, other) for one, other in hidden), sines(last.mT, true.mT))


def directions(factors: Factors) -> list[Tensor]:
    """The linear maps, with scales such that every activation has curvature one along a unit direction."""
    found, size = [], torch.ones(len(factors.V), dtype=torch.float64)
    for k, one in enumerate(factors.activations):
        found.append(size[:, None] * factors.map(k))
        size = one.coefficients[:, 1] * found[-1].norm(dim=0).square()
    return [*found, size[:, None] * factors.map(-1)]


def composition() -> Composition:
    """Three layers of two quadratics, whose nodes bend about as much as they slope, at 150 points."""
    maps = (
        matrix([0.9, 0.3], [-0.4, 0.8]),
        matrix([0.5, -0.3], [0.4, 0.6]),
        matrix([0.6, 0.5], [-0.5, 0.7]),
        matrix([1.0, 0.4], [-0.6, 1.0]),
    )
    coefficients = (matrix([1.0, 0.8], [0.9, -0.7]), matrix([1.0, -0.9], [0.8, 0.7]), matrix([0.9, 0.7], [1.0, -0.8]))
    nothing = torch.zeros(2, dtype=torch.float64)
    layers = tuple(Activations(C, nothing, Monomial(2)) for C in coefficients)
    factors = Factors(tuple((one,) for one in maps), layers, nothing)
    points = uniform(150, 2, -1, 1)
    return Composition(factors, Samples(points, factors.outputs(points), factors.jacobians(points)))


def main() -> bool:
    """Measure; true if the composition is found in most runs, and three layers follow the network closer than two."""
    planted, tail = recovery(), tails()
    write("layers", tail, recovery=planted)
    insert("layers-recovery", recovered(planted), DOCS / "solvers.md")
    insert("layers-tail", table(tail), DOCS / "solvers.md")
    by_layers = {(row["images"], row["basis"], row["layers"]): row["median_output_error"] for row in tail}
    closer = all(
        by_layers[images, basis, "20-20-20"] < by_layers[images, basis, "20"] for images, basis, _ in by_layers
    )
    return planted["found"] > RUNS / 2 and closer


def recovery() -> dict[str, Any]:
    """How often the default recipe finds the composition."""
    planted, errors, seconds = composition(), [], []
    for seed in range(RUNS):
        began = time.process_time()
        solution = decouple(Problem(planted.samples, planted.factors.ranks, Monomial(2)), seed=seed)
        seconds.append(time.process_time() - began)
        errors.append(planted.error(solution.factors))
    return {
        "runs": RUNS,
        "found": sum(error < FOUND for error in errors),
        "errors": sorted(errors),
        "median_seconds": statistics.median(seconds),
        "most_seconds": max(seconds),
    }


def tails() -> list[dict[str, Any]]:
    """The tail of the ELU network by one, two and three layers, from few images, with smooth splines."""
    digits = load_digits()
    model = elu_network(digits)
    before = accuracy(model, digits.test_images, digits.test_labels)
    setting = next(one for one in SETTINGS if one.images == 360)
    rows = [one_row(setting, *rival, model, digits, DRAWS) for rival in TAIL.items()]
    return [{**row, "accuracy_before": before} for row in rows]


def recovered(planted: dict[str, Any]) -> str:
    """The recovery as a table."""
    heads = ["runs", "found to 1e-8", "median error", "CPU seconds a run, median", "most"]
    median = statistics.median(planted["errors"])
    seconds = (f"{planted[name]:.0f}" for name in ("median_seconds", "most_seconds"))
    return markdown(heads, [[str(planted["runs"]), str(planted["found"]), f"{median:.0e}", *seconds]])


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for the page about solvers."""
    heads = ["images, basis", "nodes", "parameters", "drop in points", "decisions changed", "output error", "seconds"]
    texts = [
        [
            f"{row['images']:,}, {row['basis']}",
            row["layers"],
            f"{row['parameters']:,}",
            " ".join(f"{one:.2f}" for one in row["drops"]),
            f"{row['median_changed']:.2f} %",
            f"{row['median_output_error']:.3f}",
            f"{row['median_seconds']:.0f}",
        ]
        for row in rows
    ]
    return markdown(heads, texts)
