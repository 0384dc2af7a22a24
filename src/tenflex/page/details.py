"""What a page shows of the solutions, in values that JSON knows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.reading.nodes import Nodes, canonical_layers
from tenflex.solution import Solution

FORMAT = "tenflex-details/1"

MOST_NODES = 12
"""The most nodes of a layer that are drawn, the largest ones."""

SHOWN = 4096
"""The most samples that tell of the activations: a drawing gains nothing from more."""

CURVE_POINTS, BINS = 64, 24
"""The points of a curve, and the bins of the density of its inputs."""


def details_of(solutions: Mapping[str, Solution]) -> dict[str, Any]:
    """How each block's error fell, and the activations of its largest nodes over the density of what arrives there."""
    return {"format": FORMAT, "blocks": {name: _block(one) for name, one in solutions.items()}}


@torch.no_grad()
def _block(solution: Solution) -> dict[str, Any]:
    samples = solution.problem.samples
    if len(samples) > SHOWN:
        samples = samples.select(torch.linspace(0, len(samples) - 1, SHOWN, device=samples.inputs.device).long())
    x = samples.original_inputs.cpu().double()
    layers = []
    for nodes in canonical_layers(solution.factors, x):
        t = nodes.arguments(x)
        layers.append(_layer(nodes, t))
        x = nodes.activations(t)
    return {"layers": layers, "history": [_step(one) for one in solution.history]}


def _step(record: Any) -> dict[str, Any]:
    errors = {name: getattr(record, name) for name in ("jacobian_error", "output_error", "held_out_error")}
    return {"stage": record.stage, "seconds": record.seconds, **{name: _root(one) for name, one in errors.items()}}


def _root(squared: float | None) -> float | None:
    return None if squared is None or not math.isfinite(squared) else squared**0.5


def _layer(nodes: Nodes, t: Float[Tensor, "S r"]) -> dict[str, Any]:
    """A layer's largest nodes: the curve of each over the range of its arguments, and their histogram."""
    low, high = t.min(0).values, t.max(0).values
    high = torch.where(high > low, high, low + 1)
    steps = torch.linspace(0, 1, CURVE_POINTS, dtype=t.dtype, device=t.device)
    grid = low + steps[:, None] * (high - low)
    curves, shown = nodes.activations(grid), nodes.order[:MOST_NODES]
    return {
        "rank": len(nodes.sizes),
        "basis": repr(nodes.basis),
        "nodes": [
            {
                "node": k + 1,
                "size": float(nodes.sizes[k]),
                "low": float(low[k]),
                "high": float(high[k]),
                "curve": _rounded(curves[:, k]),
                "density": torch.histc(t[:, k], BINS, float(low[k]), float(high[k])).int().tolist(),
            }
            for k in shown
        ],
    }


def _rounded(values: Float[Tensor, " S"]) -> list[float | None]:
    """To four digits: more are not seen."""
    return [float(f"{one:.4g}") if math.isfinite(one) else None for one in values.tolist()]
