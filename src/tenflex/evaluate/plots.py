"""Figures of activation functions, of convergence, and of accuracy against size. They need the extra `plot`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
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
from tenflex.factors import Factors
from tenflex.nn import FlexibleLayer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tenflex.demo.run import Row, Score
    from tenflex.solution import Solution

OURS, RIVAL, THIRD, GREY = "#0072b2", "#d55e00", "#009e73", "#767676"
"""Colours that all readers tell apart (Okabe and Ito), in print too."""

RESOLUTION = 200
"""Dots per inch of bitmaps."""

SERIES = ("o-", "s--", "^:", "D-.")
"""Markers and lines of the numbers of calibration images, the most first."""

MOST_STAGES = 4
"""More names do not fit side by side above the curves."""

FAR = 1e4
"""Far beyond the inputs of a node, which a layer brings to an interval of length 2 or so."""

CURVE_POINTS = 401
"""Points of a curve, many more than it has pieces."""


class PlotsUnavailableError(ImportError):
    """Raised where a figure is asked for and matplotlib is missing."""


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
        _shade_tails(panel, factors.basis, node)
        _draw_activation(panel, curves, node, histogram=inputs is not None)
    low, high = curves.grid[0, nodes].min().item(), curves.grid[-1, nodes].max().item()
    margin = 0.02 * (high - low) or 1.0
    panels[0].set_xlim(low - margin, high + margin)
    for panel in panels[len(nodes) :]:
        panel.set_visible(False)
    _label_activations(figure, factors, len(nodes), inputs is not None)
    write_figure(figure, path)


def plot_convergence(solution: Solution, path: str | Path) -> None:
    """Draw the relative errors of Jacobians and outputs against the steps of the solver, stage by stage.

    Args:
        solution: What `decouple` or `compress` found.
        path: The file to write; its ending chooses the format (png, pdf, svg).

    Raises:
        PlotsUnavailableError: if matplotlib is not installed.
    """
    figure = blank_figure(6.0, 3.8)
    axes = figure.subplots()
    history = solution.history
    _curve(axes, [one.jacobian_error for one in history], OURS, "-", "Jacobians, fitted samples")
    _curve(axes, [one.output_error for one in history], RIVAL, "-", "outputs, fitted samples")
    held_out = [one.held_out_error for one in history if one.held_out_error is not None]
    _curve(axes, held_out, RIVAL, "--", "outputs, held-out samples")
    _logarithmic(axes)
    note = _mark_stages(axes, [one.stage for one in history])
    axes.set_xlabel(f"step of the solver{note}")
    axes.set_ylabel("relative error")
    axes.set_title(f"Convergence: {solution.factors.rank} nodes, {history[-1].seconds:.1f} s", pad=20)
    axes.grid(True, which="both", color="#e6e6e6", linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    write_figure(figure, path)


def plot_accuracy_against_size(rows: Sequence[Row], path: str | Path) -> None:
    """Draw the accuracy of flexible layers and of data-aware SVD against the numbers they store.

    Args:
        rows: What the demo measured, at least one.
        path: The file to write; its ending chooses the format (png, pdf, svg).

    Raises:
        PlotsUnavailableError: if matplotlib is not installed.
        ValueError: if there are no rows.
    """
    if not rows:
        raise ValueError("expected at least one row to draw, got none")
    figure = blank_figure(6.4, 4.2)
    axes = figure.subplots()
    original = rows[0].original
    axes.axhline(100 * original.accuracy, color=GREY, linewidth=1)
    text = f"original network: {original.parameters:,} numbers, {100 * original.accuracy:.2f} %"
    axes.annotate(text, (0.01, 100 * original.accuracy), (0, 3), ("axes fraction", "data"), "offset points", color=GREY)
    for images, style in zip(sorted({row.size.images for row in rows}, reverse=True), SERIES, strict=False):
        for name, colour in (("ours", OURS), ("svd", RIVAL)):
            label = f"{'flexible layer' if name == 'ours' else 'data-aware SVD'}, {images:,} images"
            scores: list[Score] = [getattr(row, name) for row in rows if row.size.images == images]
            points = sorted((one.parameters, 100 * one.accuracy) for one in scores)
            axes.plot(*zip(*points, strict=True), style, color=colour, label=label, markerfacecolor="white")
    axes.set_xlabel("stored numbers (parameters)")
    axes.set_ylabel("accuracy on test images (%)")
    axes.set_title("Accuracy against size, without labels and without fine-tuning")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.margins(y=0.12)
    axes.grid(True, color="#e6e6e6", linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    write_figure(figure, path)


def blank_figure(width: float, height: float) -> Figure:
    """A figure of its own, in inches; pyplot, which keeps global state and may open windows, is left alone."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotsUnavailableError(
            f"plots need matplotlib, which cannot be imported ({error}): pip install 'tenflex[plot]'"
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def write_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure; the ending of the path chooses the format."""
    figure.savefig(path, dpi=RESOLUTION)


def _factors(layer: object) -> Factors:
    """The matrices of a layer in float64 on the CPU."""
    if not isinstance(layer, (Factors, FlexibleLayer)):
        raise TypeError(f"layer must be a FlexibleLayer or its Factors, got {type(layer).__name__}")
    factors = layer.factors() if isinstance(layer, FlexibleLayer) else layer
    inner, outer = (tuple(map(_double, maps)) for maps in (factors.inner, factors.outer))
    coefficients, shift, bias = map(_double, (factors.coefficients, factors.shift, factors.bias))
    return Factors(inner, outer, coefficients, shift, bias, factors.basis)


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double().cpu()


def _arriving(factors: Factors, inputs: Tensor | None) -> Float[Tensor, "S r"]:
    """What arrives at the nodes; without inputs, the reference interval of the basis."""
    if inputs is None:
        t = torch.linspace(*factors.basis.interval, CURVE_POINTS, dtype=torch.float64)
        return t[:, None].expand(-1, factors.rank)
    require_floating("inputs", inputs)
    width = len(factors.inner[0])
    flat = inputs if inputs.ndim < 2 or inputs.shape[-1] == width else inputs.flatten(1)
    if flat.ndim < 2 or flat.shape[-1] != width or len(flat) == 0:
        raise ValueError(f"inputs must hold {width} numbers for each sample, samples first, got {tuple(inputs.shape)}")
    require_finite("inputs", flat)
    return factors.project(_double(flat).reshape(-1, width))


@dataclass(frozen=True)
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
        weighted = factors.W.norm(dim=0)[:, None] * factors.coefficients
        low, high, middle = arriving.amin(0), arriving.amax(0), arriving.mean(0)
        grid = low + torch.linspace(0, 1, CURVE_POINTS, dtype=low.dtype)[:, None] * (high - low)
        at_samples, heights = (factors.basis.combine(t.contiguous(), weighted) for t in (arriving, grid))
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
    some = f"the {drawn} of {factors.rank} nodes that bend the outputs most"
    nodes = some if drawn < factors.rank else f"all {drawn} nodes"
    figure.suptitle(f"Activation functions of {nodes}", fontsize=11)
    legend = ["blue: the activation function", "dashed: its nearest line"]
    if histogram:
        legend.append("orange: where its inputs lie")
    if isinstance(plain(factors.basis), PiecewiseBasis):
        legend.append("grey: linear by construction")
    wrapped = fill("; ".join(legend) + ".", width=int(14 * figure.get_figwidth()))
    figure.supxlabel(f"input of the node, $t = v_k^T x + a_k$\n{wrapped}", fontsize=9)
    figure.supylabel("$\\|w_k\\| \\, g_k(t)$, in units of the outputs", fontsize=9)


def _curve(axes: Axes, squared: Sequence[float], colour: str, line: str, label: str) -> None:
    """Relative errors of all steps, which the history holds squared; nothing if there are none."""
    if squared:
        axes.plot([one**0.5 for one in squared], line, color=colour, linewidth=1.6, label=label)


def _logarithmic(axes: Axes) -> None:
    """A logarithmic axis of errors, with plain numbers where it is short."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 50 * low:
        some = "12345" if high < 8 * low else "125"
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:.1g}" if f"{value:.0e}"[0] in some else "")


def _mark_stages(axes: Axes, stages: Sequence[str]) -> str:
    """A line where an algorithm takes over, and its name above; or a note, if they take turns in many starts."""
    runs = [(stage, len(list(steps))) for stage, steps in groupby(stages)]
    start = 0
    for stage, length in runs:
        if start:
            axes.axvline(start - 0.5, color=GREY, linewidth=0.8, linestyle=":")
        if len(runs) <= MOST_STAGES:
            middle = start + (length - 1) / 2
            place = axes.get_xaxis_transform()
            axes.annotate(stage, (middle, 1), (0, 4), place, "offset points", ha="center", color=GREY)
        start += length
    names = " and ".join(dict.fromkeys(stages))
    return "" if len(runs) <= MOST_STAGES else f"\ndotted lines: {names} take turns, {len(runs)} in all"
