"""The figures of the NARX example."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.electricity import DAY, NAMES, TEST, TRAIN, Narx
from benchmarks.system import Beside

INK, BLUE, ORANGE, GREEN, GREY = "#1f2933", "#0072b2", "#d55e00", "#009e73", "#9aa5b1"
COLOURS = (ORANGE, BLUE, GREEN)
WEEK = 3
"""The week of the test span that is drawn, counted from 0."""


def figure_of(width: float, height: float) -> Figure:
    """An empty figure."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write it, without the date."""
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)


def draw_week(narx: Narx, models: Mapping[str, Beside], path: Path) -> None:
    """One week of the test span, measured and simulated from the first of its half hours on, and its temperature."""
    series = narx.series
    week = slice(7 * DAY * WEEK, 7 * DAY * (WEEK + 1))
    days = torch.arange(7 * DAY) / DAY
    figure = figure_of(9.0, 4.2)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    above.plot(days, series.gigawatts(series.demand[slice(*TEST)][week]), color=INK, lw=1.4, label="measured")
    for (name, model), colour in zip(models.items(), COLOURS, strict=False):
        simulated = series.gigawatts(narx.simulate(model, TEST)[week])
        above.plot(days, simulated, color=colour, lw=1.2, label=f"simulated: {name}")
    below.plot(days, series.degrees(series.temperature[slice(*TEST)][week]), color=GREY, lw=1.2)
    above.set_ylabel("demand (GW)")
    below.set_ylabel("°C")
    below.set_xlabel(f"days; {7 * WEEK} days of simulation went before")
    for axes in (above, below):
        axes.grid(True, color="#e6e6e6", lw=0.6)
    below.set_xlim(0, 7)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    save(figure, path)


def draw_nodes(narx: Narx, model: Beside, path: Path, points: int = 600) -> None:
    """The activations of a decoupled model, in GW, with what the data leave for each at some training samples.

    What is drawn is how they bend: the nearest line is taken off each, for it belongs to the linear map beside them.
    """
    inputs, left, grid, curves = bends(narx, model, points)
    order = curves.std(0).argsort(descending=True).tolist()
    columns = min(4, len(order))
    rows = -(-len(order) // columns)
    figure = figure_of(max(2.5 * columns, 6.0), 2.6 * rows + 0.5)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for panel, node in zip(panels, order, strict=False):
        panel.plot(inputs[:, node], left[:, node], ".", color=ORANGE, ms=2.5, alpha=0.5, rasterized=True)
        panel.plot(grid[:, node], curves[:, node], color=BLUE, lw=1.8)
        panel.set_title(direction(narx, model, node), fontsize=8)
        panel.grid(True, color="#e6e6e6", lw=0.6)
        panel.tick_params(labelsize=7)
    for panel in panels[len(order) :]:
        panel.set_visible(False)
    figure.supxlabel("$v_k^T x$, in its standard deviations", fontsize=9)
    figure.supylabel("$\\|w_k\\| \\, g_k / \\sqrt{n}$ less its nearest line (GW)", fontsize=9)
    save(figure, path)


@torch.no_grad()
def bends(narx: Narx, model: Beside, points: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What arrives at each node, and how it bends the demand, with what the model leaves; then the curves alone."""
    x, y = narx.regressors(TRAIN), narx.targets(TRAIN)
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))[:points]
    x, y = x[chosen], y[chosen]
    factors = model.nonlinear.factors()
    sizes = factors.W.norm(dim=0)
    (t,), activations = factors.arguments(x), factors.only
    G = activations.values(t)
    mean, scale = t.mean(0), t.std(0)
    u = (t - mean) / scale
    slope = (u * G).mean(0) / u.square().mean(0)
    grid = u.amin(0) + torch.linspace(0, 1, 201, dtype=u.dtype)[:, None] * (u.amax(0) - u.amin(0))
    curves = activations.values(grid * scale + mean) - G.mean(0) - slope * grid
    left = (y - model(x)) @ (factors.W / sizes)
    unit = narx.series.demand_frame[1] / narx.ahead**0.5
    return u, unit * (sizes * (G - G.mean(0) - slope * u) + left), grid, unit * sizes * curves


def direction(narx: Narx, model: Beside, node: int, most: int = 3) -> str:
    """The regressors that a node weighs most, with their shares; each in its standard deviations."""
    v = model.nonlinear.factors().V[:, node] * narx.regressors(TRAIN).std(0)
    v = v / v.norm()
    strongest = v.abs().argsort(descending=True)[:most].tolist()
    return "\n".join(f"{v[i].item():+.2f} {NAMES[i]}" for i in strongest)


def draw_temperature(narx: Narx, models: Mapping[str, Beside], path: Path) -> None:
    """What one step of each model answers to other temperatures than the measured ones, on workdays and on days off."""
    degrees = torch.arange(4.0, 41.0, dtype=torch.float64)
    figure = figure_of(7.0, 3.2)
    panels = figure.subplots(1, 2, sharey=True)
    for panel, (name, workday) in zip(panels, {"workdays": 1, "days off": -1}.items(), strict=True):
        for (label, model), colour in zip(models.items(), COLOURS, strict=False):
            panel.plot(degrees, response(narx, model, degrees, workday), color=colour, lw=1.6, label=label)
        panel.set(title=name, xlabel="temperature (°C)")
        panel.grid(True, color="#e6e6e6", lw=0.6)
    panels[0].set_ylabel("change of demand (GW)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    save(figure, path)


@torch.no_grad()
def response(narx: Narx, model: Beside, degrees: Tensor, workday: int) -> Tensor:
    """The mean change of the demand, in GW, when the temperature and its means become so many degrees."""
    x = narx.regressors(TRAIN)
    x = x[x[:, NAMES.index("workday")] == workday]
    mean, scale = narx.series.temperature_frame
    warm = [i for i, name in enumerate(NAMES) if name.startswith("temperature")]
    changes = []
    for one in (degrees - mean) / scale:
        other = x.clone()
        other[:, warm] = one
        changes.append((model(other) - model(x)).mean())
    return narx.series.demand_frame[1] * torch.stack(changes)


def draw_path(paths: Mapping[str, tuple[list[dict[str, Any]], dict[str, Any]]], path: Path) -> None:
    """Errors in free run on the validation span against the number of parameters, beside those of the originals."""
    figure = figure_of(6.4, 3.6)
    axes = figure.subplots()
    for (name, (tried, original)), colour in zip(paths.items(), COLOURS, strict=False):
        sizes = sorted({one["parameters"] for one in tried})
        errors = [min(one["free_run"] for one in tried if one["parameters"] == size) for size in sizes]
        axes.plot(sizes, errors, "o-", color=colour, lw=1.4, ms=4, mfc="white", label=f"decoupled: {name}")
        axes.plot(original["parameters"], original["validation_free_run"], "s", color=colour, label=f"original: {name}")
    axes.set(xscale="log", ylim=(0, 1.1), xlabel="parameters", ylabel="relative error in free run (validation)")
    axes.grid(True, which="both", color="#e6e6e6", lw=0.6)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    save(figure, path)
