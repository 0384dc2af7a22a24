"""A layer made of a block's own nodes, and how close it is to the block."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.kept.choose import RIDGE, held_back
from tenflex.kept.descent import ITERATIONS, Frame, Rows, error_of, refined
from tenflex.kept.recognise import own_nodes
from tenflex.nn.feed_forward import Nodes
from tenflex.result import Judged
from tenflex.split import Split

RIDGES = (RIDGE, 1e-3, 1e-2, 1e-1)
"""How much the fitted map may be held back to the original one: the fewer the samples, the more."""

DIRECTIONS = 256
"""So many samples, each along one direction, tell the error of the slopes."""


def require_own(name: str, function: nn.Module, x: Float[Tensor, "S *m"], ranks: tuple[int, ...]) -> Nodes:
    """The layers of nodes of a block, if as many can be kept of them as are asked for.

    Raises:
        ValueError: if the block is something else, or has fewer nodes.
    """
    nodes = own_nodes(function, x)
    if nodes is None:
        raise ValueError(
            f"block {name!r}: basis=Own() needs a block of linear maps with known activation functions between them, "
            "gated or not, from its input to its output, and this one does more: name a narrower block, or take a "
            "basis such as BSpline(10)"
        )
    if len(ranks) > len(nodes.widths) or any(r > w for r, w in zip(ranks, nodes.widths, strict=False)):
        widths = " and ".join(map(str, nodes.widths))
        raise ValueError(
            f"block {name!r}: rank must be at most the block's own nodes, {widths}, got "
            f"{' and '.join(map(str, ranks))}: lower it, or take a basis such as BSpline(10)"
        )
    return nodes


def fitted_nodes(
    nodes: Nodes,
    ranks: tuple[int, ...],
    rows: Rows,
    split: Split,
    metric: Float[Tensor, "n n"] | None = None,
    iterations: int = ITERATIONS,
    on_step: Callable[[int, float], None] | None = None,
) -> Nodes:
    """The best of a block's nodes, refitted and refined on the fitted samples; the validation samples say when to stop.

    Args:
        nodes: The block's.
        ranks: How many to keep in each layer.
        rows: All samples.
        split: Their use.
        metric: The root of the matrix that measures errors of the outputs; None for the identity.
        iterations: The most iterations of the refinement.
        on_step: Told after every few of them how many are done, and the error.
    """
    fitted, held_out = (Rows(rows.x[one], rows.y[one]) for one in split[:2])
    validation = held_out if len(held_out) else None
    ridges = RIDGES if validation else (RIDGE,)
    frame = Frame.of(fitted, metric)
    judge = frame.rows(validation or fitted)
    starts = held_back(nodes, ranks, fitted.x, fitted.y, metric, ridges)
    errors = [error_of(frame.narrow(one), judge) for one in starts]
    best = min(range(len(starts)), key=errors.__getitem__)
    return refined(starts[best], fitted, validation, metric, ridges[best], iterations, on_step)


def judged_nodes(
    function: Callable[[Tensor], Tensor], nodes: Nodes, rows: Rows, split: Split
) -> tuple[float, float, Judged]:
    """The relative errors of layers of nodes, of their outputs and of their slopes, and the samples of the first.

    These are the ones that chose the least.
    """
    kind, index = next(
        (kind, one)
        for kind, one in (
            (Judged.TEST, split.test),
            (Judged.VALIDATION, split.validation),
            (Judged.FITTED, split.fitted),
        )
        if len(one)
    )
    x, y = rows.x[index], rows.y[index].double()
    with torch.no_grad():
        found = torch.cat([nodes.outputs(part) for part in x.split(4096)]).double()
    spread = y - rows.y[split.fitted].double().mean(0)
    error = float((found - y).norm() / spread.norm())
    return error, slope_error(function, nodes, rows.x[split.fitted]), kind


def slope_error(function: Callable[[Tensor], Tensor], nodes: Nodes, x: Float[Tensor, "S m"]) -> float:
    """The relative error of the slopes of layers, each along the way from one sample to another."""
    x = x[:DIRECTIONS]
    ways = x.roll(1, 0) - x
    with torch.enable_grad():
        maps = (lambda one: function(one).flatten(1)), nodes.outputs
        wanted, found = (torch.autograd.functional.jvp(f, x, ways)[1].double() for f in maps)
    return float((found - wanted).norm() / wanted.norm())
