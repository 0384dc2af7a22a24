"""The whole job on the shipped network and digits, in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.baselines import data_aware_svd
from tenflex.compress import Compression, compress
from tenflex.demo.digits import Digits
from tenflex.evaluate.cost import describe_kept, stored_numbers
from tenflex.evaluate.fidelity import fidelity
from tenflex.planning.plan import Block
from tenflex.progress import OnProgress, Progress, silent

BLOCK = "fc1:fc3"
"""All three layers of LeNet-300-100, with the functions between them, become one flexible layer."""

GOOD_AGREEMENT = 0.95
"""A compressed network is good when it decides as the original does on this share of held-out training images."""

MOST_HELD_OUT = 2000
"""At most so many training images, none of which is calibrated on, say which network is good; test images never do."""


@dataclass(frozen=True)
class Size:
    """One compression of the demo: how many unlabelled images it may see, and the layer it makes.

    Args:
        images: The number of calibration images.
        block: The flexible layer.
    """

    images: int
    block: Block

    def __str__(self) -> str:
        return f"{self.images:,} images, {self.layer}"

    @property
    def layer(self) -> str:
        """Rank and factor in the letters of the method: "r = 40, q = 10"."""
        return f"r = {self.block.rank}" + (f", q = {self.block.factor}" if self.block.factor else "")


SIZES = (
    Size(2000, Block(rank=40, factor=10)),
    Size(2000, Block(rank=40, factor=15)),
    Size(2000, Block(rank=60, factor=15)),
    Size(128, Block(rank=40, factor=15)),
    Size(128, Block(rank=20)),
)


BUDGET, BUDGET_IMAGES = "5%", 128
"""The share of the network's numbers within which curves choose blocks and sizes, and from how many images."""


@dataclass(frozen=True)
class Score:
    """A network on the test images.

    Args:
        parameters: Stored numbers.
        accuracy: The share of images it decides rightly, in [0, 1].
        relative_error: The error of its outputs relative to the spread of the original's; 0 for the original.
    """

    parameters: int
    accuracy: float
    relative_error: float


@dataclass(frozen=True)
class Row:
    """One size: the original, the flexible layer, and data-aware SVD with as many stored numbers and the same images.

    Args:
        size: What was asked.
        original: The network before.
        ours: The network with the flexible layer.
        svd: The network with every linear layer replaced by two thin ones.
        agreement: The share of held-out training images on which ours decides as the original does.
        seconds: The time that the compression took.
    """

    size: Size
    original: Score
    ours: Score
    svd: Score
    agreement: float
    seconds: float

    def drop(self, score: Score) -> float:
        """The accuracy that a network lost, in points of a percent; below 0 when it gained."""
        return 100 * (self.original.accuracy - score.accuracy)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "images": self.size.images,
            "rank": self.size.block.rank,
            "factor": self.size.block.factor,
            "kept": self.ours.parameters / self.original.parameters,
            **{name: self._score_to_dict(name) for name in ("original", "ours", "svd")},
            "agreement": self.agreement,
            "seconds": self.seconds,
        }

    def _score_to_dict(self, name: str) -> dict[str, Any]:
        score: Score = getattr(self, name)
        return {
            "parameters": score.parameters,
            "accuracy": score.accuracy,
            "drop": self.drop(score),
            "relative_error": score.relative_error,
        }


@dataclass(frozen=True)
class Attempt:
    """A row with the compression that it tells of."""

    row: Row
    compression: Compression


@dataclass(frozen=True)
class Within:
    """What a budget chose.

    Args:
        budget: What was asked.
        images: How many calibration images there were.
        score: The network that came of it.
        compression: How it came about.
    """

    budget: str
    images: int
    score: Score
    compression: Compression

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        plan = self.compression.plan.to_dict()["blocks"]
        seconds = self.compression.report.seconds
        return {"budget": self.budget, "images": self.images, "blocks": plan, **asdict(self.score), "seconds": seconds}


def compress_within(
    model: nn.Module,
    digits: Digits,
    budget: str = BUDGET,
    *,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> Within:
    """Compress a network to a budget from a few of the images that `compress_sizes` begins with.

    Args:
        model: A network such as `lenet300()`; it is left as it is.
        digits: Where the images for calibration and test come from.
        budget: What the network may store.
        seed: Of the choice of images and of the compression.
        on_progress: Called after every step.
        **settings: Further ones of `compress`.
    """
    order = torch.randperm(len(digits.train_images), generator=torch.Generator().manual_seed(seed))
    images = digits.train_images[order[:BUDGET_IMAGES]]
    found = compress(model, images, budget=budget, seed=seed, on_progress=on_progress, **settings)
    return Within(budget, len(images), _score(found.model, model, digits), found)


def compress_sizes(
    model: nn.Module,
    digits: Digits,
    sizes: Sequence[Size] = SIZES,
    *,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> tuple[Attempt, ...]:
    """Compress a network to several sizes, each from unlabelled training images, without fine-tuning.

    Args:
        model: A network with layers `fc1` to `fc3`, such as `lenet300()`; it is left as it is.
        digits: Where the images for calibration and test come from.
        sizes: What to try.
        seed: Of the choice of images and of the compressions.
        on_progress: Called after every step, with the size as the first part of the stage.

    Raises:
        ValueError: if a size asks for so many images that none is held out.
    """
    order = torch.randperm(len(digits.train_images), generator=torch.Generator().manual_seed(seed))
    most = max(size.images for size in sizes)
    if most >= len(order):
        raise ValueError(f"sizes must leave some of {len(order)} training images held out, got {most} images")
    held_out = digits.train_images[order[most:][:MOST_HELD_OUT]]
    report = on_progress or silent
    return tuple(
        _attempt(model, digits, size, digits.train_images[order[: size.images]], held_out, seed, report)
        for size in sizes
    )


def _attempt(
    model: nn.Module,
    digits: Digits,
    size: Size,
    images: Float[Tensor, "S 784"],
    held_out: Float[Tensor, "H 784"],
    seed: int,
    report: OnProgress,
) -> Attempt:
    """Compress to one size, and compare."""

    def tell(progress: Progress) -> None:
        report(replace(progress, task=str(size)))

    compression = compress(model, images, {BLOCK: size.block}, samples=size.images, seed=seed, on_progress=tell)
    rival = data_aware_svd(model, images, stored_numbers(compression.model))
    original, ours, svd = (_score(one, model, digits) for one in (model, compression.model, rival))
    agreement = fidelity(compression.model, model, held_out).agreement or 0.0
    return Attempt(Row(size, original, ours, svd, agreement, compression.report.seconds), compression)


def _score(network: nn.Module, original: nn.Module, digits: Digits) -> Score:
    measured = fidelity(network, original, digits.test_images, digits.test_labels)
    return Score(stored_numbers(network), measured.accuracy or 0.0, measured.relative_error)


def smallest_good(attempts: Sequence[Attempt], least_agreement: float = GOOD_AGREEMENT) -> Attempt:
    """The smallest network that agrees with the original well enough; of two as small, the one that agrees more.

    If none does, the one that agrees most.
    """
    good = [one for one in attempts if one.row.agreement >= least_agreement]
    if good:
        return min(good, key=lambda one: (one.row.ours.parameters, -one.row.agreement))
    return max(attempts, key=lambda one: one.row.agreement)


def markdown_table(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown, the original network first."""
    columns = {
        "calibration images": lambda row: f"{row.size.images:,}",
        "flexible layer": lambda row: row.size.layer,
        "parameters": lambda row: f"{row.ours.parameters:,}",
        "kept": lambda row: describe_kept(row.original.parameters, row.ours.parameters).replace(" kept", ""),
        "accuracy": lambda row: f"**{100 * row.ours.accuracy:.2f} %**",
        "drop": lambda row: f"{row.drop(row.ours):.2f}",
        "output error": lambda row: f"{row.ours.relative_error:.3f}",
        "time": lambda row: f"{row.seconds:.1f} s",
        "SVD: accuracy": lambda row: f"{100 * row.svd.accuracy:.2f} %",
        "SVD: drop": lambda row: f"{row.drop(row.svd):.2f}",
        "SVD: output error": lambda row: f"{row.svd.relative_error:.3f}",
    }
    original = rows[0].original
    first = ["", "original network", f"{original.parameters:,}", "", f"{100 * original.accuracy:.2f} %"]
    cells = [
        list(columns),
        ["---", "---", *["---:"] * (len(columns) - 2)],
        first + [""] * (len(columns) - len(first)),
        *([column(row) for column in columns.values()] for row in rows),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)
