"""The whole of LeNet-5, its convolutions as one flexible convolution; no labels, no fine-tuning, three draws.

The convolutions with their poolings become one of patches of 16 x 16 pixels, stride 4, seen through cosines, and the
dense part one flexible layer, into whose first map the last of the convolution is folded. Errors of the convolution
count as the dense part uses them. Beside them stand SVDs of all four layers, the convolutions as linear maps of their
patches, at equal stored size. `python -m benchmarks.convolutions 24,12,24,9` tells the agreement of other sizes on
training images that were not drawn, by which sizes and settings were chosen. What is asked for stands in `CLAIMS`.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.compression import DRAWS, draw
from benchmarks.networks import lenet5
from benchmarks.record import DOCS, insert, markdown, write
from tenflex import Block, Compression, Cosine, compress
from tenflex.baselines import asymmetric_svd, data_aware_svd
from tenflex.coordinates import Downstream
from tenflex.demo.digits import Digits, load_digits
from tenflex.demo.train import accuracy
from tenflex.evaluate.cost import cost
from tenflex.evaluate.fidelity import fidelity

IMAGES = 2000

FEATURES, HEAD = "features", "fc1:fc2"


@dataclass(frozen=True)
class Claim:
    """A size and the accuracy that it must keep.

    Args:
        convolution: The layer in the place of the convolutions.
        head: The layer in the place of the dense part.
        most_parameters: The most numbers that the whole network may store.
        most_drop: The most points of test accuracy lost, median over the draws.
    """

    convolution: Block
    head: Block
    most_parameters: int
    most_drop: float


SEEN, SETTINGS = Cosine(8), {"metric": Downstream(), "coupling": 30.0}

CLAIMS = (
    Claim(Block(24, factor=12, modes=SEEN), Block(24, factor=9), 5_600, 1.5),
    Claim(Block(40, factor=20, modes=SEEN), Block(23, factor=12), 11_000, 0.8),
)


class Images(nn.Module):
    """Rows of pixels as images of one channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, 1, 28, 28)


class Whole(nn.Module):
    """LeNet-5 with its convolutions and poolings as one module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        pools = nn.MaxPool2d(2), nn.MaxPool2d(2)
        self.features = nn.Sequential(model.conv1, nn.ReLU(), pools[0], model.conv2, nn.ReLU(), pools[1])
        self.images, self.fc1, self.fc2 = Images(), model.fc1, model.fc2
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(self.features(self.images(x)).flatten(1))))


class Unfolded(nn.Module):
    """A convolution as a linear map of patches, as SVDs take it."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.kernel = convolution.kernel_size
        weight = convolution.weight.detach().flatten(1)
        self.linear = nn.Linear(weight.shape[1], weight.shape[0])
        self.linear.weight, self.linear.bias = (
            nn.Parameter(weight.clone()),
            nn.Parameter(convolution.bias.detach().clone()),
        )

    def forward(self, x: Tensor) -> Tensor:
        height, width = (size - kernel + 1 for size, kernel in zip(x.shape[2:], self.kernel, strict=True))
        return self.linear(F.unfold(x, self.kernel).mT).mT.unflatten(2, (height, width))


def unfolded(model: Whole) -> Whole:
    """The network with linear maps of patches."""
    other = Whole(lenet5(load_digits()))
    for name in ("0", "3"):
        setattr(other.features, name, Unfolded(getattr(model.features, name)))
    return other.eval()


def compressed(model: Whole, images: Tensor, convolution: Block, head: Block, seed: int) -> Compression:
    """The network with both layers, and the last map of the first in the second."""
    return compress(model, images, {FEATURES: convolution, HEAD: head}, seed=seed, **SETTINGS)


def measure(claim: Claim, model: Whole, digits: Digits) -> list[dict[str, Any]]:
    """Our row and those of the baselines at the same stored size."""
    before = accuracy(model, digits.test_images, digits.test_labels)
    found: dict[str, list[float]] = {}
    seconds, stored, macs = [], 0, 0
    for seed in DRAWS:
        images = draw(digits, IMAGES, seed)
        began = time.perf_counter()
        result = compressed(model, images, claim.convolution, claim.head, seed)
        seconds.append(time.perf_counter() - began)
        stored, macs = result.report.after.parameters, result.report.after.macs
        rivals = {"flexible": result.model}
        for name, rival in (("data-aware SVD", data_aware_svd), ("asymmetric SVD", asymmetric_svd)):
            rivals[name] = rival(unfolded(model), images, stored)
        for name, one in rivals.items():
            found.setdefault(name, []).append(accuracy(one, digits.test_images, digits.test_labels))
    rows: list[dict[str, Any]] = []
    for name, values in found.items():
        drops = [100 * (before - value) for value in values]
        rows.append(
            {
                "method": name,
                "parameters": stored,
                "accuracies": [round(100 * value, 2) for value in values],
                "drops": [round(drop, 2) for drop in drops],
                "median_drop": round(statistics.median(drops), 2),
            }
        )
    holds = stored <= claim.most_parameters and rows[0]["median_drop"] <= claim.most_drop
    layers = {"convolution": str(claim.convolution), "head": str(claim.head)}
    rows[0].update(**layers, macs=macs, seconds=[round(one, 1) for one in seconds], holds=holds)
    return rows


def chosen(sizes: Sequence[tuple[int, int, int, int]], seed: int = 0) -> None:
    """Print the agreement with the original of layers of several sizes, on training images that were not drawn."""
    digits = load_digits()
    model, images = Whole(lenet5(digits)), draw(digits, IMAGES, seed)
    rest = draw(digits, len(digits.train_images), seed)[IMAGES:]
    for r, q, r2, q2 in sizes:
        result = compressed(model, images, Block(r, factor=q, modes=SEEN), Block(r2, factor=q2), seed)
        close = fidelity(result.model, model, rest)
        print((r, q, r2, q2), result.report.after.parameters, f"{close.relative_error:.4f}", close.rows(), flush=True)


def main() -> bool:
    """Measure all claims; true if all hold."""
    digits = load_digits()
    model = Whole(lenet5(digits))
    whole = cost(model, digits.test_images[:1])
    rows = [row for claim in CLAIMS for row in measure(claim, model, digits)]
    accurate = round(100 * accuracy(model, digits.test_images, digits.test_labels), 2)
    write("convolutions", rows, original={"parameters": whole.parameters, "macs": whole.macs, "accuracy": accurate})
    heads = ["method", "numbers", "accuracy, three draws", "median drop"]
    cells = [
        [row["method"], f"{row['parameters']:,}", ", ".join(map(str, row["accuracies"])), f"{row['median_drop']:.2f}"]
        for row in rows
    ]
    insert("convolutions", markdown(heads, cells), DOCS / "convolutions.md")
    return all(row.get("holds", True) for row in rows)


if __name__ == "__main__":
    chosen([tuple(map(int, one.split(","))) for one in sys.argv[1:]])
