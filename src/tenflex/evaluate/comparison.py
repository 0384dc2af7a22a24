"""A network and a smaller one on the same inputs: cost, errors, accuracy and time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from tenflex.evaluate.cost import Cost, cost
from tenflex.evaluate.fidelity import MOST, Fidelity, Unpadded, accuracy, class_numbers, judged, outputs_of
from tenflex.evaluate.latency import Latency, latency
from tenflex.progress import OnProgress, silent
from tenflex.sampling.inputs import read
from tenflex.surgery.batch import Batch, count_samples, take

BATCH = 256
"""Samples of the larger batch that is timed, at most those of the first batch; the smaller one is a single sample."""


@dataclass(frozen=True)
class Comparison:
    """Two networks on the same inputs.

    Args:
        samples: How many inputs.
        before: What the original costs for one of them.
        after: What the compressed network costs.
        fidelity: How close the compressed network stays, with its accuracy.
        accuracy: That of the original; None without labels.
        latencies: The time for one sample, and for a batch.
    """

    samples: int
    before: Cost
    after: Cost
    fidelity: Fidelity
    accuracy: float | None
    latencies: tuple[Latency, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "latencies": [{**asdict(one), "slower": one.slower} for one in self.latencies]}


def compare_networks(
    original: nn.Module,
    smaller: nn.Module,
    inputs: Any,
    labels: Int[Tensor, " S"] | None = None,
    on_progress: OnProgress = silent,
    *,
    mask: str | None = None,
) -> Comparison:
    """Measure all there is to measure.

    Args:
        original: The network before, in eval mode.
        smaller: The compressed network, in eval mode.
        inputs: Whatever `tenflex.compress` takes; see `fidelity`.
        labels: The classes, for the accuracy.
        on_progress: Called after every batch of an iterable.
        mask: As for `fidelity`: what stands at padding is not compared.

    Raises:
        TypeError: if inputs, outputs or labels are no tensors of the right kind.
        ValueError: if they do not fit each other.
    """
    labels = None if labels is None else class_numbers(labels)
    batches = read(original, inputs, MOST, on_progress)
    first, counts = next(batches), list[int]()

    def counted() -> Iterator[Batch]:
        for one in chain([first], batches):
            counts.append(count_samples(one))
            yield one

    theirs, ours = outputs_of((original, smaller), counted(), unpadded=Unpadded(mask))
    sizes = sorted({1, min(BATCH, count_samples(first))})
    return Comparison(
        samples=sum(counts),
        before=cost(original, first),
        after=cost(smaller, first),
        fidelity=judged(ours, theirs, labels),
        accuracy=None if labels is None else accuracy(theirs[0], labels),
        latencies=tuple(latency(original, smaller, take(first, slice(size))) for size in sizes),
    )
