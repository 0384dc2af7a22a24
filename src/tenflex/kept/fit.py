"""A layer made of a block's own nodes, and how close it is to the block."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.bases.base import positive
from tenflex.kept.channels import Channels, own_channels
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


def require_own(name: str, function: nn.Module, x: Float[Tensor, "S *m"], ranks: tuple[int, ...]) -> Nodes | Channels:
    """The layers of nodes of a block, or its channels, if as many can be kept of them as are asked for.

    Raises:
        ValueError: if the block is something else, or has fewer nodes.
    """
    found = own_nodes(function, x) or own_channels(function, x)
    if found is None:
        raise ValueError(
            f"block {name!r}: basis=Own() needs a block of linear maps with known activation functions between them, "
            "gated or not, or of two convolutions with one between, from its input to its output, and this one is "
            "something else: name a narrower block, or take a basis such as BSpline(10)"
        )
    own = found.nodes.widths if isinstance(found, Channels) else found.widths
    if len(ranks) > len(own) or any(r > w for r, w in zip(ranks, own, strict=False)):
        raise ValueError(
            f"block {name!r}: rank must be at most the block's own nodes, {' and '.join(map(str, own))}, got "
            f"{' and '.join(map(str, ranks))}: lower it, or take a basis such as BSpline(10)"
        )
    return found


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
    if torch.finfo(rows.x.dtype).bits < 32:  # in which there are no factorizations
        wide = Rows(rows.x.float(), rows.y.float())
        return fitted_nodes(nodes.to(wide.x), ranks, wide, split, metric, iterations, on_step).to(rows.x)
    fitted, held_out = (Rows(rows.x[one], rows.y[one]) for one in split[:2])
    validation = held_out if len(held_out) else None
    ridges = RIDGES if validation else (RIDGE,)
    frame = Frame.of(fitted, metric)
    judge = frame.rows(validation or fitted)
    starts = held_back(nodes, ranks, fitted.x, fitted.y, metric, ridges)
    errors = [error_of(frame.narrow(one), judge) for one in starts]
    best = min(range(len(starts)), key=errors.__getitem__)
    return refined(starts[best], fitted, validation, metric, ridges[best], iterations, on_step)


def judged_layer(
    function: Callable[[Tensor], Tensor],
    layer: Callable[[Tensor], Tensor],
    passed: tuple[Float[Tensor, "S *m"], Float[Tensor, "S *n"]],
    split: Split,
) -> tuple[float, float, Judged]:
    """The relative errors of a layer, of its outputs and of its slopes, and the samples of the first."""
    error, kind = output_error(layer, passed, split)
    return error, slope_error(function, layer, passed[0][split.fitted]), kind


def output_error(
    layer: Callable[[Tensor], Tensor], passed: tuple[Float[Tensor, "S *m"], Float[Tensor, "S *n"]], split: Split
) -> tuple[float, Judged]:
    """The relative error of a layer's outputs on the samples that chose the least, and which these are."""
    kind, index = split.judging
    x, y = passed[0][index], passed[1][index].double()
    with torch.no_grad():
        found = torch.cat([layer(part) for part in x.split(1024)]).double()
    spread = y - passed[1][split.fitted].double().mean(0)
    return float((found - y).norm() / positive(spread.norm())), kind


def slope_error(
    function: Callable[[Tensor], Tensor], layer: Callable[[Tensor], Tensor], x: Float[Tensor, "S *m"]
) -> float:
    """The relative error of the slopes of a layer, each along the way from one sample to another."""
    x = x[:DIRECTIONS]
    ways = x.roll(1, 0) - x
    with torch.enable_grad():
        wanted, found = (
            torch.autograd.functional.jvp(lambda one, map_=map_: map_(one).flatten(1), x, ways)[1].double()
            for map_ in (function, layer)
        )
    return float((found - wanted).norm() / wanted.norm())
