"""The activation functions of a layer, with where their inputs lie."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases import Basis
from tenflex.bases.base import positive
from tenflex.bases.piecewise import PiecewiseBasis
from tenflex.bases.wrapped import plain
from tenflex.checks import require_finite, require_floating, require_whole
from tenflex.factors import Factors, one_layer
from tenflex.nn import FlexibleLayer
from tenflex.reading.figures import CURVE_POINTS, GREY, OURS, RIVAL, blank_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


FAR = 1e4
"""Far beyond the inputs of a node, which a layer brings to an interval of length 2 or so."""


def plot_activations(
    layer: Factors | FlexibleLayer, path: str | Path, inputs: Float[Tensor, "S *in"] | None = None, *, most: int = 20
) -> None:
    r"""Draw the activation functions of a flexible layer, a small panel for each node.

    A panel shows :math:`\|w_k\| \, (g_k(t) - \bar g_k)`, because the scale of an activation can move into W and a
    constant into b, and the line nearest to it where its inputs lie. The nodes come in the order of how much they bend
    the outputs: of how far their curves are from these lines. Where the basis goes on linearly, the panel is shaded.

    Args:
        layer: The layer, or its matrices.
        path: The file to write; its ending chooses the format (png, pdf, svg).
        inputs: Inputs of the layer: curves span the range of what arrives at each node, with its histogram below.
            Without them the curves span the reference interval of the basis.
        most: The most nodes that are drawn.

    Raises:
        PlotsUnavailableError: if matplotlib is not installed.
        TypeError: if `layer` is neither of the two, or the inputs are not a tensor of real numbers.
        ValueError: if the inputs do not fit the layer, or `most` is not at least 1.
    """
    require_whole("most", most, at_least=1)
    factors = _factors(layer)
    curves = _Curves.of(factors, _arriving(factors, inputs))
    nodes = curves.bends.argsort(descending=True)[:most].tolist()
    columns = min(5, len(nodes))
    rows = math.ceil(len(nodes) / columns)
    figure = blank_figure(max(1.75 * columns, 5.0), max(1.4 * rows + 1.1, 3.0))
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False).flatten()
    for panel, node in zip(panels, nodes, strict=False):
        _shade_tails(panel, factors.only.basis, node)
        _draw_activation(panel, curves, node, histogram=inputs is not None)
    low, high = curves.grid[0, nodes].min().item(), curves.grid[-1, nodes].max().item()
    margin = 0.02 * (high - low) or 1.0
    panels[0].set_xlim(low - margin, high + margin)
    for panel in panels[len(nodes) :]:
        panel.set_visible(False)
    _label_activations(figure, factors, len(nodes), inputs is not None)
    write_figure(figure, path)


def _factors(layer: object) -> Factors:
    """The matrices of a layer in float64 on the CPU."""
    if not isinstance(layer, (Factors, FlexibleLayer)):
        raise TypeError(f"layer must be a FlexibleLayer or its Factors, got {type(layer).__name__}")
    factors = one_layer(layer.factors() if isinstance(layer, FlexibleLayer) else layer, "the plot shows")
    doubled = factors.with_tensors([_double(one) for one in factors.tensors()])
    return replace(doubled, bias=_double(factors.bias))


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double().cpu()


def _arriving(factors: Factors, inputs: Tensor | None) -> Float[Tensor, "S r"]:
    """What arrives at the nodes; without inputs, the reference interval of the basis."""
    if inputs is None:
        t = torch.linspace(*factors.only.basis.interval, CURVE_POINTS, dtype=torch.float64, device="cpu")
        return t[:, None].expand(-1, *factors.ranks)
    require_floating("inputs", inputs)
    width = len(factors.V)
    flat = inputs if inputs.ndim < 2 or inputs.shape[-1] == width else inputs.flatten(1)
    if flat.ndim < 2 or flat.shape[-1] != width or len(flat) == 0:
        raise ValueError(f"inputs must hold {width} numbers for each sample, samples first, got {tuple(inputs.shape)}")
    require_finite("inputs", flat)
    return factors.arguments(_double(flat).reshape(-1, width))[0]


@dataclass(frozen=True, eq=False)
class _Curves:
    r"""What nodes add to the outputs along their directions, :math:`\|w_k\| \, g_k(t)`, less its mean over the samples.

    Args:
        arriving: The inputs of the nodes at the samples.
        grid: Points from the smallest to the largest of them.
        heights: The curves on the grid.
        lines: The lines nearest to the curves at the samples, on the grid.
        bends: How far the curves are from these lines at the samples.
    """

    arriving: Float[Tensor, "S r"]
    grid: Float[Tensor, "P r"]
    heights: Float[Tensor, "P r"]
    lines: Float[Tensor, "P r"]
    bends: Float[Tensor, " r"]

    @classmethod
    def of(cls, factors: Factors, arriving: Float[Tensor, "S r"]) -> _Curves:
        """The curves of a layer."""
        one = factors.only
        weighted = factors.W.norm(dim=0)[:, None] * one.coefficients
        low, high, middle = arriving.amin(0), arriving.amax(0), arriving.mean(0)
        grid = low + torch.linspace(0, 1, CURVE_POINTS, dtype=low.dtype, device=low.device)[:, None] * (high - low)
        at_samples, heights = (one.basis.combine(t.contiguous(), weighted) for t in (arriving, grid))
        mean = at_samples.mean(0)
        centred = arriving - middle
        slopes = (centred * at_samples).sum(0) / positive((centred**2).sum(0))
        bends = (at_samples - mean - slopes * centred).norm(dim=0)
        return cls(arriving, grid, heights - mean, slopes * (grid - middle), bends)


def _draw_activation(panel: Axes, curves: _Curves, node: int, histogram: bool) -> None:
    """One activation function, with its nearest line and where its inputs lie."""
    t = curves.grid[:, node]
    panel.plot(t, curves.lines[:, node], color=GREY, linewidth=0.8, linestyle="--")
    panel.plot(t, curves.heights[:, node], color=OURS, linewidth=1.6)
    panel.set_title(f"node {node + 1}", fontsize=8, pad=3)
    panel.tick_params(labelsize=7)
    panel.locator_params(axis="y", nbins=4)
    if histogram:
        low, high = panel.get_ylim()
        panel.set_ylim(low - 0.25 * (high - low), high)
        _draw_histogram(panel, curves.arriving[:, node])


def _draw_histogram(panel: Axes, t: Float[Tensor, " S"]) -> None:
    """Where the inputs of a node lie, at the foot of its panel."""
    floor = panel.twinx()
    counts, _, _ = floor.hist(t, bins=40, color=RIVAL, alpha=0.45)
    floor.set_ylim(0, 5 * float(np.max(counts)))
    floor.set_yticks([])


def _shade_tails(panel: Axes, basis: Basis, node: int) -> None:
    """Shade where an activation goes on linearly beyond the outermost breaks of its basis."""
    inside = plain(basis)
    if isinstance(inside, PiecewiseBasis):
        breaks = inside.breaks()
        first, *_, last = breaks[node if len(breaks) > 1 else 0].tolist()
        for start, end in ((first - FAR, first), (last, last + FAR)):
            panel.axvspan(start, end, color="#ececec", linewidth=0)


def _label_activations(figure: Figure, factors: Factors, drawn: int, histogram: bool) -> None:
    (rank,) = factors.ranks
    some = f"the {drawn} of {rank} nodes that bend the outputs most"
    nodes = some if drawn < rank else f"all {drawn} nodes"
    figure.suptitle(f"Activation functions of {nodes}", fontsize=11)
    legend = ["blue: the activation function", "dashed: its nearest line"]
    if histogram:
        legend.append("orange: where its inputs lie")
    if isinstance(plain(factors.only.basis), PiecewiseBasis):
        legend.append("grey: linear by construction")
    wrapped = fill("; ".join(legend) + ".", width=int(14 * figure.get_figwidth()))
    figure.supxlabel(f"input of the node, $t = v_k^T x + a_k$\n{wrapped}", fontsize=9)
    figure.supylabel("$\\|w_k\\| \\, g_k(t)$, in units of the outputs", fontsize=9)
