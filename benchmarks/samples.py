"""Accuracy against the number of calibration images, 32 to 8,192, of all methods at one size; LeNet-300-100 on digits.

All are given the same images and the same 12 x 12 cosines, and have 5,000 numbers; there are no labels. Every number of
images that is measured stands in the record; what is there is not measured anew.
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.record import RESULTS, recorded, write
from tenflex import Cosine, compare
from tenflex.demo.digits import load_digits
from tenflex.demo.networks import lenet300
from tenflex.reading.figures import blank_figure, write_figure

COUNTS = (32, 128, 512, 2048, 8192)
METHODS = ("flexible", "svd-shrunk", "asymmetric-svd", "student", "student-augmented")
SIZE = 5_000


def measured(count: int, seed: int) -> list[dict[str, Any]]:
    """All methods from so many images."""
    digits = load_digits()
    contest = compare(
        lenet300(),
        digits.train_images,
        test=(digits.test_images, digits.test_labels),
        sizes=[SIZE],
        methods=METHODS,
        blocks=[""],
        samples=min(count, len(digits.train_images)),
        held_out=0.0,
        modes=Cosine(12, shape=(28, 28)),
        seed=seed,
    )
    return [
        {
            "samples": count,
            "seed": seed,
            "method": entry.method,
            "numbers": None if entry.cost is None else entry.cost.parameters,
            "accuracy": None if entry.fidelity is None else round(100 * (entry.fidelity.accuracy or 0.0), 2),
            "error": entry.error,
        }
        for entry in contest.entries
    ]


def measure(draws: tuple[int, ...], counts: tuple[int, ...] = COUNTS) -> list[dict[str, Any]]:
    """All that is not recorded yet."""
    for seed in draws:
        for count in counts:
            if (count, seed) not in {(row["samples"], row["seed"]) for row in recorded("samples")}:
                found = measured(count, seed)
                write("samples", [*recorded("samples"), *found])
    return recorded("samples")


def plot(rows: list[dict[str, Any]]) -> None:
    """Accuracy against the number of images, a line for each method: the mean over draws."""
    figure = blank_figure(6, 4)
    axes = figure.subplots()
    for method in METHODS:
        found: dict[int, list[float]] = {}
        for row in rows:
            if row["method"] == method and row["accuracy"] is not None:
                found.setdefault(row["samples"], []).append(row["accuracy"])
        points = [(count, sum(values) / len(values)) for count, values in sorted(found.items())]
        if points:
            axes.semilogx(*zip(*points, strict=True), "o-", label=method, linewidth=2 if method == "flexible" else 1)
    axes.set_xlabel("calibration images")
    axes.set_ylabel("accuracy, %")
    axes.set_ylim(bottom=40)
    axes.grid(True, which="both", color="#e6e6e6", linewidth=0.5)
    axes.legend(frameon=False, fontsize=8)
    write_figure(figure, RESULTS / "samples.svg")


def main() -> bool:
    """Measure three draws; true if ours is best from every number of images but the largest two."""
    rows = measure((0, 1, 2))
    plot(rows)
    return ahead(rows)


def ahead(rows: list[dict[str, Any]]) -> bool:
    """Whether no other method is better from few images."""
    best: dict[tuple[int, str], list[float]] = {}
    for row in rows:
        best.setdefault((row["samples"], row["method"]), []).append(row["accuracy"] or 0.0)
    means = {key: sum(values) / len(values) for key, values in best.items()}
    return all(means[count, "flexible"] >= value for (count, _), value in means.items() if count <= COUNTS[2])


if __name__ == "__main__":
    plot(measure(tuple(map(int, sys.argv[1].split(","))), tuple(map(int, sys.argv[2:])) or COUNTS))
