"""CPD of a convolution with and without a price on the size of its terms: errors, sizes, whole numbers of 8 bits.

The price was chosen on LeNet-5 and ResNet-8 (and on a small random network); CREPE tiny, whose kernels are of signals,
was kept aside. Errors are those of the network's outputs on inputs that took no part; agreement is that of the int8
file with the network that it was made of.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import Tensor, nn

from benchmarks.data import fashion
from benchmarks.networks import lenet5, resnet8
from benchmarks.record import DOCS, insert, markdown, write
from benchmarks.tones import pitch_tracker, tones
from tenflex import LowRank, compress, export
from tenflex.demo.digits import load_digits
from tenflex.evaluate.fidelity import fidelity
from tenflex.nn.chained import Chained
from tenflex.planning.kernels import CPD

DRAWS = (0, 1, 2)
SAMPLES, FRESH = 400, 1000
PRICES = {"without": 0.0, "with": CPD.penalty}


@dataclass(frozen=True)
class Case:
    """A network, and convolutions of it with the ranks to try.

    Args:
        name: What it is called.
        make: Makes it.
        inputs: Those to draw from, and others.
        ranks: For the name of a convolution.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, Tensor]]
    ranks: dict[str, tuple[int, ...]]


def of_digits() -> tuple[Tensor, Tensor]:
    """Digits."""
    data = load_digits()
    return data.train_images, data.test_images


def of_fashion() -> tuple[Tensor, Tensor]:
    """Images of clothes."""
    return fashion().train_images, fashion().test_images


def of_tones() -> tuple[Tensor, Tensor]:
    """Frames of tones."""
    return tones().train_images, tones().test_images


CASES = (
    Case("LeNet-5", lambda: lenet5(load_digits()), of_digits, {"conv2": (8, 16, 30)}),
    Case("ResNet-8", resnet8, of_fashion, {"blocks.1.body.conv1": (8, 24), "blocks.2.body.conv2": (16, 64)}),
    Case("CREPE tiny", pitch_tracker, of_tones, {"stages.1.1": (16, 32), "stages.5.1": (16, 48)}),
)


def main() -> bool:
    """Measure; true if the price costs no accuracy in the mean, and whole numbers lose less with it everywhere."""
    rows = [row for case in CASES for row in measured(case)]
    write("terms", rows)
    heads = ["convolution, rank", "price on terms", "error", "size of terms", "int8 difference", "int8 agreement"]
    insert("terms", markdown(heads, [line(row) for row in rows]), DOCS / "device.md")
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    ratio = math.exp(statistics.fmean(math.log(priced["error"] / free["error"]) for free, priced in pairs))
    print(f"errors with the price over those without it, geometric mean: {ratio:.3f}")
    return ratio <= 1 and all(priced["difference"] <= free["difference"] for free, priced in pairs)


def line(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table."""
    name = f"{row['network']}, {row['convolution']}, {row['rank']}"
    agreement = f"{100 * row['agreement']:.1f} %"
    return name, row["price"], f"{row['error']:.4f}", f"{row['terms']:.3g}", f"{row['difference']:.3f}", agreement


def measured(case: Case) -> Iterator[dict[str, Any]]:
    """Medians over the draws, without and with the price."""
    model, (inputs, fresh) = case.make(), case.inputs()
    for name, ranks in case.ranks.items():
        for rank in ranks:
            for price, size in PRICES.items():
                draws = [one_draw(model, (inputs, fresh[:FRESH]), (name, rank), size, seed) for seed in DRAWS]
                medians = {key: round(statistics.median(one[key] for one in draws), 5) for key in draws[0]}
                about = {"network": case.name, "convolution": name, "rank": rank, "price": price}
                print(about, medians, flush=True)
                yield {**about, **medians}


def one_draw(
    model: nn.Module, data: tuple[Tensor, Tensor], block: tuple[str, int], penalty: float, seed: int
) -> dict[str, float]:
    """What comes of a draw."""
    (inputs, fresh), (name, rank) = data, block
    drawn = inputs[seed * SAMPLES : (seed + 1) * SAMPLES]
    with patch.object(CPD, "penalty", penalty):
        result = compress(model, drawn, {name: LowRank(rank, "cpd")}, seed=seed)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = export(result, Path(folder) / "small.onnx", drawn, int8=True)
    found = {"error": fidelity(result.model, model, fresh).relative_error, "terms": terms_of(result.model, name, drawn)}
    return {**found, "difference": made.difference, "agreement": made.agreement or 0.0}


def terms_of(network: nn.Module, name: str, inputs: Tensor) -> float:
    """How much the terms of a convolution vary, all together, relative to what they add up to: squared."""
    chain = network.get_submodule(name)
    if not isinstance(chain, Chained):
        raise TypeError(f"expected convolutions one after another, got {type(chain).__name__}")
    kept: list[Tensor] = []
    handle = chain.outer.register_forward_pre_hook(lambda _, args: kept.append(args[0].detach()))
    network(inputs)
    handle.remove()
    [maps] = kept
    varied = (maps.double() - maps.double().mean((0, 2, 3), keepdim=True)).square().mean((0, 2, 3))
    outputs = chain.outer(maps).detach().double()
    whole = (outputs - outputs.mean((0, 2, 3), keepdim=True)).square().mean((0, 2, 3)).sum()
    weight = chain.outer.weight.detach().double().flatten(1)
    return float((weight.square().sum(0) * varied).sum() / whole)


if __name__ == "__main__":
    main()
