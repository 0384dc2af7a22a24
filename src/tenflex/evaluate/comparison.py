"""A network and a smaller one on the same inputs: cost, errors, accuracy and time."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from tenflex.evaluate.cost import Cost, cost
from tenflex.evaluate.fidelity import Fidelity, accuracy, fidelity, predict
from tenflex.evaluate.latency import Latency, latency

BATCH = 256
"""Samples of the larger batch that is timed; the smaller one is a single sample."""


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
    original: nn.Module, smaller: nn.Module, inputs: Tensor, labels: Int[Tensor, " S"] | None = None
) -> Comparison:
    """Measure all there is to measure.

    Args:
        original: The network before, in eval mode.
        smaller: The compressed network, in eval mode.
        inputs: A batch, samples first.
        labels: The classes, for the accuracy.

    Raises:
        TypeError: if inputs, outputs or labels are no tensors of the right kind.
        ValueError: if they do not fit each other.
    """
    outputs = predict(original, inputs)
    return Comparison(
        samples=len(inputs),
        before=cost(original, inputs),
        after=cost(smaller, inputs),
        fidelity=fidelity(smaller, outputs, inputs, labels),
        accuracy=None if labels is None else accuracy(outputs, labels),
        latencies=tuple(latency(original, smaller, inputs[:size]) for size in sorted({1, min(BATCH, len(inputs))})),
    )
