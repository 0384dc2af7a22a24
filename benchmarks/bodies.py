"""Residual bodies of ResNet-8 and feed-forward parts of a small vision transformer, on Fashion-MNIST; no labels.

Of the bodies half and a quarter of the parameters are kept, of the feed-forward parts a quarter and an eighth. Ours:
what `budget=` plans, and own channels or nodes, refined, with the same share everywhere. Beside them the same without
refinement, which is dropping with refit, and data-aware SVD and CPD of the layers, whose normalisations are folded in
first, as they are in ours; CPD is of convolutions alone. Every draw of the calibration images that is measured stands
in the record; what is there is not measured anew.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks.data import Images, fashion
from benchmarks.networks import ResidualBody, resnet8, vision_transformer
from benchmarks.record import DOCS, insert, markdown, recorded, write
from tenflex import Block, compress
from tenflex.baselines import allocation, data_aware_svd, polyadic
from tenflex.coordinates import Fisher
from tenflex.demo.train import accuracy
from tenflex.evaluate.cost import stored_numbers
from tenflex.evaluate.fidelity import fidelity
from tenflex.kept import Own

IMAGES = 2000

SEARCH = 10
"""Evaluations of a local search over ranks of SVD: more of them take minutes."""


@dataclass(frozen=True, eq=False)
class Case:
    """A network with blocks of one kind.

    Args:
        name: What it is called.
        make: The network.
        blocks: The wildcard of its blocks.
        layers: The layers in one of them.
        settings: Of the compression: the most samples of a block, and what had the better agreement on images that were
            not drawn.
        drops: The most points of accuracy lost, for each share of the blocks' parameters.
    """

    name: str
    make: Callable[[], nn.Module]
    blocks: str
    layers: tuple[str, ...]
    settings: dict[str, Any]
    drops: dict[float, float]

    @property
    def names(self) -> list[str]:
        """The blocks by name."""
        first, last = self.blocks.split("*")
        return [name for name, _ in folded(self).named_modules() if name.startswith(first) and name.endswith(last)]


CASES = (
    Case("ResNet-8, bodies", resnet8, "blocks.*.body", ("conv1", "conv2"), {}, {0.5: 0.5, 0.25: 2.5}),
    Case(
        "vision transformer, feed-forward parts",
        vision_transformer,
        "layers.*.feed_forward",
        ("0", "2"),
        {"samples": 32_000, "metric": Fisher()},
        {0.25: 0.4, 0.12: 1.0},
    ),
)

UNIFORM = "own, refined, same share"
PLANNED = "planned"
CPD = "CPD"


@cache
def data() -> Images:
    """The images."""
    return fashion()


@cache
def folded(case: Case) -> nn.Module:
    """The network with its normalisations in the convolutions before them."""
    model = copy.deepcopy(case.make()).eval()
    for body in [one for one in model.modules() if isinstance(one, ResidualBody)]:
        body.conv1, body.conv2 = (
            fuse_conv_bn_eval(*pair) for pair in ((body.conv1, body.norm1), (body.conv2, body.norm2))
        )
        body.norm1, body.norm2 = nn.Identity(), nn.Identity()
    return model.eval().requires_grad_(False)


def kept_at(block: nn.Module, layers: tuple[str, ...], share: float) -> int:
    """The nodes or channels of a block that store a share of its parameters."""
    first, last = (block.get_submodule(name) for name in layers)
    width = len(first.weight)
    per_node = first.weight[0].numel() + 1 + last.weight.numel() // width
    return max(1, int((share * stored_numbers(block) - len(last.weight)) / per_node))


def uniform(case: Case, share: float, inputs: Tensor, seed: int, refine: bool = True) -> nn.Module:
    """The same share of every block."""
    model = folded(case)
    blocks = {
        name: Block(kept_at(model.get_submodule(name), case.layers, share), basis=Own(refine)) for name in case.names
    }
    return compress(model, inputs, blocks, seed=seed, **case.settings).model


def planned(case: Case, share: float, inputs: Tensor, seed: int) -> nn.Module:
    """As a budget chooses."""
    return compress(folded(case), inputs, budget=allowed(case, share), seed=seed, **case.settings).model


def allowed(case: Case, share: float) -> int:
    """The numbers that the whole network may store."""
    whole = stored_numbers(folded(case))
    return int(whole - (1 - share) * sum(stored_numbers(folded(case).get_submodule(name)) for name in case.names))


def factored(case: Case, share: float, inputs: Tensor, seed: int) -> nn.Module:
    """Each of the layers as two thin ones."""
    allocation.EVALUATIONS = SEARCH
    names, numbers = inner_layers(case, share)
    return data_aware_svd(folded(case), inputs[:500], numbers, layers=names)


def polyadic_kernels(case: Case, share: float, inputs: Tensor, seed: int) -> nn.Module:
    """Each of the convolutions as four."""
    names, numbers = inner_layers(case, share)
    return polyadic(folded(case), inputs, numbers, layers=names)


def inner_layers(case: Case, share: float) -> tuple[list[str], int]:
    """The layers of all blocks, and what they may store."""
    names = [f"{name}.{layer}" for name in case.names for layer in case.layers]
    return names, int(share * sum(stored_numbers(folded(case).get_submodule(name)) for name in names))


METHODS: dict[str, Callable[[Case, float, Tensor, int], nn.Module]] = {
    UNIFORM: uniform,
    "dropping with refit, same share": lambda *given: uniform(*given, refine=False),
    "data-aware SVD": factored,
    CPD: polyadic_kernels,
    PLANNED: planned,
}


def measured(case: Case, share: float, method: str, seed: int) -> dict[str, Any]:
    """One draw."""
    images = data()
    order = torch.randperm(len(images.train_images), generator=torch.Generator().manual_seed(seed))
    inputs, fresh = images.train_images[order[:IMAGES]], images.train_images[order[IMAGES : 2 * IMAGES]]
    began = time.process_time()
    smaller = METHODS[method](case, share, inputs, seed)
    seconds = time.process_time() - began
    before, after = (accuracy(one, images.test_images, images.test_labels) for one in (folded(case), smaller))
    close = fidelity(smaller, folded(case), fresh)
    return {
        "network": case.name,
        "kept": share,
        "method": method,
        "seed": seed,
        "original": round(100 * before, 2),
        "numbers": stored_numbers(smaller),
        "allowed": allowed(case, share),
        "accuracy": round(100 * after, 2),
        "drop": round(100 * (before - after), 2),
        "fresh_error": round(close.relative_error, 4),
        "cpu_seconds": round(seconds, 1),
    }


def measure(draws: tuple[int, ...], methods: tuple[str, ...] = tuple(METHODS)) -> list[dict[str, Any]]:
    """All that is not recorded yet, recorded one by one."""
    for seed in draws:
        for case in CASES:
            for share in case.drops:
                for method in methods:
                    if method == CPD and case is not CASES[0]:
                        continue
                    key = case.name, share, method, seed
                    known = {(row["network"], row["kept"], row["method"], row["seed"]) for row in recorded("bodies")}
                    if key not in known:
                        row = measured(case, share, method, seed)
                        write("bodies", [*recorded("bodies"), row])
    return recorded("bodies")


def summary(rows: list[dict[str, Any]]) -> list[tuple[Case, float, str, list[float], int]]:
    """The drops of each method over its draws, and the numbers that it stores."""
    found = []
    for case in CASES:
        for share in case.drops:
            for method in METHODS:
                mine = [
                    row for row in rows if (row["network"], row["kept"], row["method"]) == (case.name, share, method)
                ]
                if mine:
                    numbers = int(statistics.median(row["numbers"] for row in mine))
                    found.append((case, share, method, [row["drop"] for row in mine], numbers))
    return found


def verdict(rows: list[dict[str, Any]]) -> bool:
    """Write the table of the page; true if what is asked for is reached by one of ours."""
    heads = ("network, kept", "method", "numbers", "drop of accuracy, each draw", "median", "asked")
    cells, holds = [], True
    for case, share, method, drops, numbers in summary(rows):
        asked = f"at most {case.drops[share]}" if method in (UNIFORM, PLANNED) else ""
        median = statistics.median(drops)
        cells.append(
            (
                f"{case.name}, {share:.0%}",
                method,
                f"{numbers:,}",
                ", ".join(f"{one:.2f}" for one in drops),
                f"{median:.2f}",
                asked,
            )
        )
    insert("bodies", markdown(heads, cells), DOCS / "own-nodes.md")
    for case in CASES:
        for share, most in case.drops.items():
            ours = [
                statistics.median(drops)
                for one, part, method, drops, _ in summary(rows)
                if one is case and part == share and method in (UNIFORM, PLANNED)
            ]
            holds &= bool(ours) and min(ours) <= most
    return holds


def main() -> bool:
    """Measure three draws; true if what is asked for is reached."""
    return verdict(measure((0, 1, 2)))


if __name__ == "__main__":
    only = tuple(name for name in METHODS if any(part in name for part in sys.argv[2:])) or tuple(METHODS)
    print(verdict(measure(tuple(map(int, sys.argv[1].split(","))), only)))
