"""How long two networks take for the same inputs, measured side by side."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

from tenflex.checks import require_eval, require_number
from tenflex.surgery.batch import Batch, arguments, clone, tensors_in
from tenflex.surgery.quiet import kept

LEAST_RUNS = 5
"""Fewer runs have no meaningful median; the first of them, which allocate memory, do not count."""


@dataclass(frozen=True)
class Latency:
    """The time of one forward pass, before and after a compression.

    Args:
        samples: How many samples a pass computed.
        threads: How many threads torch was allowed.
        before: Seconds of the original, the median of the runs.
        after: The same of the compressed network.
    """

    samples: int
    threads: int
    before: float
    after: float

    @property
    def slower(self) -> bool:
        """Whether the compressed network takes longer than the original."""
        return self.after > self.before


def latency(before: nn.Module, after: nn.Module, inputs: Batch, *, seconds: float = 0.5) -> Latency:
    """Measure two networks in turn, so that whatever else the machine does disturbs both alike.

    Args:
        before: The original, in eval mode.
        after: The compressed network, in eval mode.
        inputs: One batch, which both compute at once.
        seconds: How long to go on measuring; a few passes are made however long they take.

    Raises:
        ValueError: if there are no inputs, a network is in train mode, or `seconds` is not positive.
    """
    require_number("seconds", seconds, above=0)
    first = next(tensors_in(inputs))
    if first.ndim == 0 or len(first) == 0:
        raise ValueError(f"inputs must hold at least one sample, samples first, got shape {tuple(first.shape)}")
    for name, network in (("the original", before), ("the compressed network", after)):
        require_eval(name, network)
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    with kept(before), kept(after), torch.inference_mode():
        while len(times) <= LEAST_RUNS or time.perf_counter() < end:
            times.append((_time(before, inputs), _time(after, inputs)))
    originals, compressed = zip(*times[1:], strict=True)
    return Latency(len(first), torch.get_num_threads(), median(originals), median(compressed))


def _time(network: nn.Module, inputs: Batch) -> float:
    """Seconds of one pass; work that a GPU has not finished is waited for."""
    inputs = clone(inputs)  # which the network may change
    args, kwargs = arguments(inputs)
    finish(inputs)
    began = time.perf_counter()
    network(*args, **kwargs)
    finish(inputs)
    return time.perf_counter() - began


def finish(inputs: Batch) -> None:
    """Wait for what graphics cards that hold inputs have not finished."""
    for device in {one.device for one in tensors_in(inputs) if one.is_cuda}:
        torch.cuda.synchronize(device)
