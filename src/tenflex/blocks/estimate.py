"""About how long the layer of a block will take: told before its first sample."""

from __future__ import annotations

import time
import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.coordinates.sensitivity import WIDEST
from tenflex.planning.effort import EVALUATIONS, speed
from tenflex.planning.plan import Block
from tenflex.sampling.jacobian import MOST_TOLD, BatchMap
from tenflex.sampling.views import FEWEST_TOGETHER, PILOT_OUTPUTS, ROWS, products

BENT = 50
"""Multiply-adds that an activation, its slopes and their gradients are worth."""

HOURS = 3600.0
"""Seconds from which on a user is warned, whoever listens to progress or not."""


def expected_seconds(
    f: BatchMap, inputs: Float[Tensor, "S *m"], n: int, asked: Block, views: int | None, fitted: int
) -> float:
    """About how long sampling a block and solving for its layer take: within a factor of three, as a rule.

    From the time of one backward pass of some samples, and of one product of matrices.

    Args:
        f: The block, as a map of a batch.
        inputs: What arrives at it.
        n: The number of outputs.
        asked: Its layer.
        views: The views of each Jacobian; None for whole ones.
        fitted: The samples that are fitted.
    """
    count, m = len(inputs), inputs[0].numel()
    k, active = n if views is None else min(views, n), min(m, WIDEST)
    told = min(MOST_TOLD, count) * n if views is None else ROWS * active + min(MOST_TOLD, count) * PILOT_OUTPUTS
    some = inputs[:FEWEST_TOGETHER]
    for _ in range(2):  # the first call of all takes longer
        began = time.perf_counter()
        products(f, some, torch.ones(1, n, dtype=torch.float64, device=inputs.device))
    passes = (time.perf_counter() - began) / len(some) * (count * k + told + count)
    r = max(asked.ranks)
    jacobians = 2 * n * active * r if views is None else 2 * k * (n + active + r) * r
    evaluation = fitted * (jacobians + 4 * (n + active) * r + BENT * r)
    return passes + EVALUATIONS * len(asked.ranks) * evaluation / speed(inputs.device)


def warn_of(name: str, seconds: float) -> None:
    """Warn of a block that takes hours."""
    if seconds > HOURS:
        warnings.warn(
            f"block {name!r} will take about {in_words(seconds)}: fewer samples, a lower rank or views=0 take less",
            stacklevel=2,
        )


def in_words(seconds: float) -> str:
    """A time in the largest unit of which there is one."""
    for size, unit in ((3600.0, "hours"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(1, round(seconds))} s"
