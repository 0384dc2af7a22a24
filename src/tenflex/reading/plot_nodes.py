"""The activations of a solution with the data points that they go through."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenflex.bases.base import positive
from tenflex.checks import require_whole
from tenflex.factors import Factors
from tenflex.problem import Problem
from tenflex.reading.figures import CURVE_POINTS, GREY, OURS, RIVAL, blank_figure, write_figure
from tenflex.reading.nodes import Nodes, canonical_layers
from tenflex.reading.summary import argument_text
from tenflex.samples import Samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


COLUMNS = 4
"""The most panels side by side that leave room for what is on their axes."""


DOT, LARGEST, SMALLEST = 140.0, 16.0, 1.0
"""The area of a dot times the root of their number, and the bounds of this area, in square points."""


Letters: TypeAlias = tuple[str, str | Sequence[str]]
"""The letter of the activations of a layer, and what its inputs are called: with a place for their number, or each."""


def letters_of(depth: int, names: Sequence[str] | None = None) -> list[Letters]:
    """The letters of so many layers; the inputs of the first may have names."""
    hidden = ["h"] if depth == 2 else [f"h^{{({k + 1})}}" for k in range(depth - 1)]
    first = "x_{{{0}}}" if names is None else [rf"\mathrm{{{_plain(one)}}}" for one in names]
    inputs = [first, *(one.replace("{", "{{").replace("}", "}}") + "_{{{0}}}" for one in hidden)]
    return list(zip([*hidden, "g"], inputs, strict=True))


def _plain(name: str) -> str:
    """A name as it may stand in a formula of matplotlib."""
    return re.sub(r"([#$%&_{}^~\\])", lambda one: rf"\{one[0]}" if one[0] in "#$%&_{}" else " ", name)


def plot_nodes(factors: Factors, problem: Problem, path: str | Path | None = None, *, most: int = 20) -> Figure:
    r"""Draw the activations of a solution and what the data say about them, a panel for each node.

    A curve is :math:`g_k(t)` in canonical form, the same as in the texts and formulas of a solution, over the
    range of its argument :math:`t = v_k \cdot x`. The dots are partial residuals, the activation that would leave no
    error along :math:`w_k` if all other nodes stay as they are:

    .. math:: g_k(t_s) + \frac{w_k \cdot (F_s - \hat F_s)}{\|w_k\|^2}

    Where the nodes reproduce the samples, dots are on the curves; noise scatters them evenly around; a trend that a
    curve misses shows as a bend of the dots. Nodes come in the order of their sizes. Of several layers the last
    comes first; before it the outputs imply no activations, and panels have ticks at the samples.

    References:
        Larsen, McCleary, "The use of partial residual plots in regression analysis", 1972,
        https://doi.org/10.1080/00401706.1972.10488966

    Args:
        factors: The layers, in the coordinates of the samples as they were sampled.
        problem: The problem that they solve.
        path: The file to write; its ending chooses the format (png, pdf, svg). None to write none.
        most: The most nodes that are drawn.

    Returns:
        The figure, which a notebook shows.

    Raises:
        PlotsUnavailableError: if matplotlib is not installed.
        ValueError: if `most` is not at least 1.
    """
    require_whole("most", most, at_least=1)
    total = sum(factors.ranks)
    curves = list(islice(_curves(factors, problem.samples), most))
    columns = min(COLUMNS, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = blank_figure(max(2.6 * columns, 5.0), max(2.1 * rows + 0.9, 3.4))
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, curve in zip(panels, curves, strict=False):
        _draw(panel, curve, problem)
    for panel in panels[len(curves) :]:
        panel.set_visible(False)
    some = "all nodes" if len(curves) == total else f"{len(curves)} of {total} nodes"
    figure.suptitle(f"Activations and partial residuals of {some}", fontsize=11)
    _add_legend(figure, panels[0])
    if path is not None:
        write_figure(figure, path)
    return figure


@dataclass(frozen=True, eq=False)
class _Curve:
    """An activation to draw.

    Args:
        title: Its name and size.
        argument: The formula of its argument.
        line: Points of the curve, arguments and activations.
        arguments: The arguments at the samples.
        observed: The activations that the samples imply; None if they imply none.
    """

    title: str
    argument: str
    line: tuple[Float[Tensor, " P"], Float[Tensor, " P"]]
    arguments: Float[Tensor, " S"]
    observed: Float[Tensor, " S"] | None


def _curves(factors: Factors, samples: Samples) -> Iterator[_Curve]:
    """All activations: of the last layer first, and in a layer by size."""
    arriving = [samples.original_inputs.cpu()]
    layers = canonical_layers(factors, arriving[0])
    for nodes in layers[:-1]:
        arriving.append(nodes.outputs(arriving[-1]))
    observed: Tensor | None = partial_residuals(layers[-1], arriving[-1], samples.original_outputs)
    letters = letters_of(len(layers), None if samples.names is None else samples.names[0])
    for nodes, inputs, called in reversed(list(zip(layers, arriving, letters, strict=True))):
        yield from _of_layer(nodes, inputs, called, observed)
        observed = None


def _of_layer(
    nodes: Nodes, inputs: Float[Tensor, "S m"], letters: Letters, observed: Float[Tensor, "S r"] | None
) -> Iterator[_Curve]:
    t = nodes.arguments(inputs)
    low, high = t.amin(0), t.amax(0)
    grid = low + torch.linspace(0, 1, CURVE_POINTS, dtype=low.dtype, device=low.device)[:, None] * (high - low)
    heights = nodes.activations(grid)
    for k in nodes.order:
        title = f"${letters[0]}_{{{k + 1}}}(t)$, size {nodes.sizes[k]:.2g}"
        argument = f"$t = {argument_text(nodes, k, letters[1], most=3)}$"
        line, seen = (grid[:, k], heights[:, k]), None if observed is None else observed[:, k]
        yield _Curve(title, argument, line, t[:, k], seen)


@torch.no_grad()
def partial_residuals(
    nodes: Nodes, inputs: Float[Tensor, "S m"], outputs: Float[Tensor, "S n"]
) -> Float[Tensor, "S r"]:
    """The activations that the outputs imply: see `plot_nodes`."""
    left = outputs.to(nodes.W) - nodes.outputs(inputs)
    return nodes.activations(nodes.arguments(inputs)) + left @ nodes.W / positive(nodes.W.square().sum(0))


def _draw(panel: Axes, curve: _Curve, problem: Problem) -> None:
    names = ("fitted samples", "held-out samples")
    fitted, validation, test = problem.split
    for index, colour, name in zip((fitted, torch.cat([validation, test])), (GREY, RIVAL), names, strict=True):
        if len(index):
            _draw_samples(panel, curve, index.cpu(), colour, name)
    panel.plot(*curve.line, color=OURS, linewidth=1.4, label="activation")
    panel.set_title(curve.title, fontsize=9, pad=4)
    panel.set_xlabel(curve.argument, fontsize=7.5)
    panel.tick_params(labelsize=7)
    panel.locator_params(nbins=5)


def _draw_samples(panel: Axes, curve: _Curve, index: Int[Tensor, " some"], colour: str, name: str) -> None:
    """A dot for every sample, or a tick at the foot of the panel."""
    t = curve.arguments[index]
    if curve.observed is None:
        panel.plot(t, torch.full_like(t, 0.02), "|", color=colour, markersize=5, transform=panel.get_xaxis_transform())
        return
    size = min(LARGEST, max(SMALLEST, DOT / math.sqrt(len(t))))
    panel.scatter(t, curve.observed[index], s=size, color=colour, alpha=0.55, linewidths=0, label=name, rasterized=True)


def _add_legend(figure: Figure, panel: Axes) -> None:
    """A legend below all panels, with dots that can be seen however many there are."""
    from matplotlib.collections import PathCollection

    handles, labels = panel.get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    for dot in legend.findobj(PathCollection):
        if isinstance(dot, PathCollection):
            dot.set_sizes([LARGEST])
