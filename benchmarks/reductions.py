"""Coordinates of the inputs: whitening with three cut-offs, and the sensitivity metric with a shrunk covariance.

Five blocks of different kinds, from few samples to many, three draws. Fresh is the relative error of the outputs on
inputs that took no part; reported is that on held-out samples, which chose starts and steps. The rule is compared cell
by cell with the best of all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.compression import draw
from benchmarks.networks import caffe_lenet5, elu_network, lenet5
from benchmarks.record import RESULTS, markdown, write
from tenflex import Block, compress
from tenflex.coordinates import Coordinates, Sensitivity, Whiten
from tenflex.demo.digits import Digits, load_digits
from tenflex.demo.networks import lenet300
from tenflex.evaluate.fidelity import fidelity
from tenflex.reading.figures import blank_figure, write_figure

DRAWS = (0, 1, 2)
COUNTS = (32, 128, 512)

RULES: dict[str, Coordinates] = {
    "whitened, 1e-3": Whiten(),
    "whitened, 1e-5": Whiten(1e-5),
    "sensitivity, 0.1": Sensitivity(0.1),
    "sensitivity, 1": Sensitivity(1.0),
    "sensitivity, by samples": Sensitivity(),
}


class Rescaled(nn.Module):
    """A network in other units of its inputs: exactly the same function of what they mean.

    Args:
        network: The network; its first layer is linear.
        scales: What each input is multiplied by.
    """

    def __init__(self, network: nn.Module, scales: Tensor) -> None:
        super().__init__()
        self.first, self.rest = (
            nn.Linear(len(scales), network.fc1.out_features),
            nn.Sequential(network.fc2, network.fc3),
        )
        self.first.weight.data = network.fc1.weight.detach() / scales
        self.first.bias.data = network.fc1.bias.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        first, last = self.rest
        return last(torch.relu(first(torch.relu(self.first(x)))))


@dataclass(frozen=True)
class Case:
    """A block to replace.

    Args:
        network: What it is called.
        make: The network.
        block: The name of the block.
        layer: Its layer.
        scales: What each input is multiplied by, or None.
    """

    network: str
    make: Callable[[Digits], nn.Module]
    block: str
    layer: Block
    scales: Tensor | None = None


def units() -> Tensor:
    """Scales from 0.01 to 100, in no order."""
    exponents = 4 * torch.rand(784, generator=torch.Generator().manual_seed(0)) - 2
    return 10**exponents


CASES = (
    Case("LeNet-300-100", lambda digits: lenet300(), "fc1:fc3", Block(40, factor=15)),
    Case(
        "the same, unequal units",
        lambda digits: Rescaled(lenet300(), units()).eval(),
        "",
        Block(40, factor=15),
        units(),
    ),
    Case("head of LeNet-5", lenet5, "fc1:fc2", Block(24, factor=9)),
    Case("head of Caffe's LeNet-5", caffe_lenet5, "fc1:fc2", Block(24, factor=9)),
    Case("tail of an ELU network", elu_network, "fc2:fc4", Block(20)),
)


def main() -> bool:
    """Measure; true if the rule by samples is the best or within 3 % of it in nine of ten cells."""
    digits = load_digits()
    rows = [row for case in CASES for row in measured(case, digits)]
    write("reductions", rows)
    (RESULTS / "reductions.md").write_text(table(rows))
    plot(rows)
    return share_near_best(rows, "sensitivity, by samples") >= 0.9


def measured(case: Case, digits: Digits) -> Iterator[dict[str, Any]]:
    """All rules on one block, from all numbers of samples."""
    model = case.make(digits)
    scales = torch.ones(784) if case.scales is None else case.scales
    for count in COUNTS:
        for name, rule in RULES.items():
            fresh, ratio, seconds = [], [], []
            for seed in DRAWS:
                began = time.process_time()
                images = draw(digits, count, seed) * scales
                blocks = {case.block: sized(case.layer, count)}
                result = compress(model, images, blocks, coordinates=rule, seed=seed)
                seconds.append(time.process_time() - began)
                error = fidelity(result.model, model, digits.test_images * scales).relative_error
                fresh.append(error)
                ratio.append(error / result.report.blocks[0].output_error)
            yield {
                "network": case.network,
                "samples": count,
                "rule": name,
                "fresh": statistics.median(fresh),
                "all_fresh": fresh,
                "fresh_over_reported": statistics.median(ratio),
                "cpu_seconds": statistics.median(seconds),
            }


def sized(layer: Block, count: int) -> Block:
    """The layer with no more nodes than three quarters of the samples."""
    rank = min(layer.ranks[0], 3 * count // 4)
    return replace(layer, rank=rank, factor=None if layer.factor is None else min(layer.factor, rank))


def share_near_best(rows: list[dict[str, Any]], rule: str, within: float = 1.03) -> float:
    """The share of cells in which a rule is the best or near it."""
    cells: dict[tuple[str, int], dict[str, float]] = {}
    for row in rows:
        cells.setdefault((row["network"], row["samples"]), {})[row["rule"]] = row["fresh"]
    return statistics.mean(one[rule] <= within * min(one.values()) for one in cells.values())


def table(rows: list[dict[str, Any]]) -> str:
    """Fresh errors, with fresh over reported in brackets."""
    cells = {(row["network"], row["samples"], row["rule"]): row for row in rows}
    lines = [
        [f"{network}, {count:,}"]
        + [
            f"{one['fresh']:.3f} ({one['fresh_over_reported']:.2f})"
            for rule in RULES
            for one in [cells[network, count, rule]]
        ]
        for network, count in dict.fromkeys((row["network"], row["samples"]) for row in rows)
    ]
    return markdown(["block, samples", *RULES], lines)


def plot(rows: list[dict[str, Any]]) -> None:
    """Fresh error against the number of samples, a panel for each block."""
    figure = blank_figure(11, 3.2)
    panels = figure.subplots(1, len(CASES), sharey=True)
    for panel, case in zip(panels, CASES, strict=True):
        for rule in RULES:
            points = [
                (row["samples"], row["fresh"]) for row in rows if (row["network"], row["rule"]) == (case.network, rule)
            ]
            panel.loglog(*zip(*points, strict=True), "o-", label=rule, markersize=3)
        panel.set_title(case.network, fontsize=8)
        panel.set_xlabel("samples", fontsize=8)
        panel.tick_params(labelsize=7, which="both")
        panel.grid(True, which="both", color="#e6e6e6", linewidth=0.5)
    panels[0].set_ylabel("error of the outputs on fresh inputs", fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(RULES), frameon=False, fontsize=8)
    write_figure(figure, RESULTS / "reductions.svg")
