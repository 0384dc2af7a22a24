"""Input maps along modes: what is kept of networks of images, whole, in one layer; three draws, no labels, no training.

Both singular value decompositions get the same modes, the same inputs and as many numbers. Sizes are those of first
trials; between cosines and computed directions the errors on held-out inputs decided.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.data import fashion
from benchmarks.record import DOCS, insert, markdown, write
from benchmarks.reductions import digits_lenet300, fashion_perceptron
from tenflex import Block, Compression, Cosine, FlexibleLayer, Tucker, compress
from tenflex.baselines import asymmetric_svd, data_aware_svd, through_modes
from tenflex.coordinates import Fisher
from tenflex.demo.digits import load_digits
from tenflex.evaluate.cost import stored_numbers
from tenflex.evaluate.fidelity import fidelity

DRAWS = range(3)

RIVALS = {"data_aware_svd": data_aware_svd, "asymmetric_svd": asymmetric_svd}


@dataclass(frozen=True)
class Network:
    """A network of images, replaced as a whole.

    Args:
        name: What it is called.
        make: The network, inputs to draw from, and test inputs.
        labels: Those of the test inputs.
        first: The name of its first linear layer.
    """

    name: str
    make: Callable[[], tuple[nn.Module, Tensor, Tensor]]
    labels: Callable[[], Tensor]
    first: str


LENET = Network("LeNet-300-100", digits_lenet300, lambda: load_digits().test_labels, "fc1")
FASHION = Network("784-512-512-10, fashion", fashion_perceptron, lambda: fashion().test_labels, "0")


@dataclass(frozen=True)
class Case:
    """What is asked for.

    Args:
        network: The network.
        samples: How many inputs are used.
        layer: In its place.
        most: The most numbers.
        accuracy: The least accuracy in percent; None where a drop is asked for.
        drop: The largest loss of accuracy in points.
        settings: Of the compression, where they are not the usual ones.
    """

    network: Network
    samples: int
    layer: Block
    most: int
    accuracy: float | None = None
    drop: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def claim(self) -> str:
        """In words."""
        return f"at least {self.accuracy} %" if self.drop is None else f"drop at most {self.drop}"

    def holds(self, row: dict[str, Any]) -> bool:
        """Whether it was reached within the numbers."""
        enough = row["accuracy"] >= self.accuracy if self.drop is None else row["drop"] <= self.drop
        return bool(enough and row["numbers"] <= self.most)


def cosines(size: int, rank: int, factor: int) -> Block:
    """A layer that sees images through cosines."""
    return Block(rank, factor, modes=Cosine(size, shape=(28, 28)))


def computed(size: int, rank: int, factor: int) -> Block:
    """A layer that sees images through directions from the data, which are among its numbers."""
    return Block(rank, factor, modes=Tucker(size, shape=(28, 28)))


CASES = (
    Case(LENET, 2000, cosines(10, 40, 16), 3_100, accuracy=94.0),
    Case(LENET, 2000, computed(11, 40, 21), 5_000, accuracy=94.7),
    Case(LENET, 2000, computed(12, 60, 36), 9_500, accuracy=95.2),
    Case(LENET, 128, cosines(12, 40, 22), 5_000, accuracy=94.0),
    Case(LENET, 64, cosines(12, 40, 22), 5_000, accuracy=93.8),
    Case(LENET, 32, cosines(12, 24, 16), 3_300, accuracy=91.5),
    Case(FASHION, 2000, cosines(14, 80, 30), 10_000, drop=1.8, settings={"metric": Fisher()}),
    Case(FASHION, 2000, cosines(14, 100, 60), 20_000, drop=1.4, settings={"metric": Fisher()}),
)


def main() -> bool:
    """Measure all claims; true if all hold."""
    return recorded([measured(case) for case in CASES])


def recorded(rows: list[dict[str, Any]]) -> bool:
    """Write rows, and the table of the page; true if all claims hold."""
    write("modes", rows)
    heads = ("network, inputs", "modes", "numbers", "asked", "accuracy", "SVD", "asymmetric SVD", "MACs")
    insert("modes", markdown(heads, map(_cells, rows)), DOCS / "modes.md")
    return all(row["holds"] for row in rows)


def _cells(row: dict[str, Any]) -> Sequence[str]:
    name = f"{row['network']} ({row['original']:.2f} %), {row['samples']:,}"
    ours, svd, asymmetric = (f"{row[one]:.2f}" for one in ("accuracy", *RIVALS))
    asked = f"{row['claim']} in {row['most']:,}{'' if row['holds'] else ' (missed)'}"
    return (
        name,
        row["modes"],
        f"{row['numbers']:,}",
        asked,
        f"{ours} ({row['draws']})",
        svd,
        asymmetric,
        f"{row['macs']:,}",
    )


@cache
def made(network: Network) -> tuple[nn.Module, Tensor, Tensor]:
    """A network and its data, made once."""
    return network.make()


def measured(case: Case, draws: Sequence[dict[str, float]] | None = None) -> dict[str, Any]:
    """Medians over the draws, which are made unless they are there."""
    draws = draws or [drawn(case, seed) for seed in DRAWS]
    (model, _, test), labels = made(case.network), case.network.labels()
    median = {name: round(statistics.median(one[name] for one in draws), 4) for name in draws[0]}
    original = 100 * (fidelity(model, model, test, labels).accuracy or 0.0)
    modes = case.layer.modes
    row = {
        "network": case.network.name,
        "original": round(original, 2),
        "samples": case.samples,
        "modes": f"{type(modes).__name__.lower()} {modes.size if modes else ''}",
        "rank": case.layer.rank,
        "factor": case.layer.factor,
        **{name: int(value) if name in ("numbers", "macs") else value for name, value in median.items()},
        "draws": ", ".join(f"{one['accuracy']:.2f}" for one in draws),
        "drop": round(original - median["accuracy"], 2),
        "most": case.most,
        "claim": case.claim,
    }
    return {**row, "holds": case.holds(row)}


def drawn(case: Case, seed: int) -> dict[str, float]:
    """What one draw gives."""
    model, train, test = made(case.network)
    judge = test, case.network.labels()
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[: case.samples]
    began = time.process_time()
    result = compress(model, train[order], {"": case.layer}, seed=seed, **case.settings)
    seconds = time.process_time() - began
    close, block = fidelity(result.model, model, *judge), result.report.blocks[0]
    return {
        "numbers": block.after.parameters,
        "macs": block.after.macs,
        "accuracy": 100 * (close.accuracy or 0.0),
        "fresh": close.relative_error,
        "reported": block.output_error,
        "validation": result.solutions[""].validation_error,
        "cpu_seconds": seconds,
        **_rivals(case, result, train[order], judge),
    }


def _rivals(case: Case, result: Compression, inputs: Tensor, judge: tuple[Tensor, Tensor]) -> dict[str, float]:
    """The accuracy of the others with the same modes and as many numbers."""
    layer = next(one for one in result.model.modules() if isinstance(one, FlexibleLayer))
    if layer.modes is None or case.layer.modes is None:
        raise ValueError(f"expected a layer with modes, got {layer}")
    model = result.original
    seeing = through_modes(model, inputs, case.network.first, case.layer.modes, layer.modes.multilinear)
    numbers = stored_numbers(layer) - stored_numbers(layer.modes)
    smaller = {name: make(seeing, inputs, numbers) for name, make in RIVALS.items()}
    return {name: 100 * (fidelity(one, model, *judge).accuracy or 0.0) for name, one in smaller.items()}
