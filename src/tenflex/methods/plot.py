"""Methods against their stored numbers. It needs the extra `plot`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tenflex.evaluate.fidelity import Fidelity
from tenflex.reading.figures import GREY, OURS, blank_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", GREY)
"""Colours of the rivals, after Okabe and Ito; with every round through them another marker and line."""

MARKS = (("s", "--"), ("^", ":"), ("D", "-."), ("v", "--"))

TICKS = (0, 30, 50, 60, 70, 75, 80, 85, 88, 90, 92, 94, 95, 96, 97, 98, 99, 99.5, 100)
"""Shares in percent."""

ROUND = ((3, (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)), (12, (1, 2, 3, 5, 7)), (60, (1, 2, 5)), (float("inf"), (1,)))
"""What is written on the scale across, in every decade: for so large a ratio of its ends, and below."""

FLEXIBLE, PLANNED = "flexible", "planned"
"""The names of ours."""


Curve = Sequence[tuple[float, Fidelity, Fidelity | None]]
"""The points of a method: what it costs, before and after fine-tuning."""


def plot_methods(
    curves: Mapping[str, Curve], across: str, accuracy: float | None, path: str | Path, finetune: int = 0
) -> None:
    """Draw the accuracy of each method, or its agreement or error where there is none, against what it costs.

    Args:
        curves: For each method its points.
        across: What is drawn across, in words.
        accuracy: That of the original, for a line; None without labels.
        path: The file to write; its ending chooses the format (png, pdf, svg).
        finetune: The steps of fine-tuning, for a second panel; 0 for none.

    Raises:
        PlotsUnavailableError: if matplotlib is not installed.
        ValueError: if there is nothing to draw.
    """
    if not curves:
        raise ValueError("expected at least one method with a result to draw, got none")
    figure = blank_figure(10.4 if finetune else 6.6, 4.6)
    panels = figure.subplots(1, 2 if finetune else 1, squeeze=False, sharey=True)[0]
    ours = [name for name in (FLEXIBLE, PLANNED) if name in curves]
    rivals = [name for name in curves if name not in ours]
    for index, axes in enumerate(panels):
        for name in (*ours, *rivals):
            _curve(axes, name, curves[name], _style(name, rivals), after=index == 1)
        if accuracy is not None:
            axes.axhline(100 * accuracy, color=GREY, linewidth=1)
        _scale_across(axes)
        axes.set_xlabel(across)
        axes.set_title(f"after {finetune:,} steps of fine-tuning" if index else "without fine-tuning")
        axes.grid(True, which="both", color="#e6e6e6", linewidth=0.6)
    panels[0].set_ylabel(_label(curves))
    if next(iter(curves.values()))[0][1].agreement is not None:
        panels[0].set_yscale("function", functions=(stretched, unstretched))
        lowest, highest = sorted(panels[0].dataLim.intervaly)
        ends = unstretched(stretched(np.array([lowest, highest])) + np.array([-0.15, 0.15]))
        panels[0].set_yticks([one for one in TICKS if ends[0] <= one <= ends[1]], minor=False)
        panels[0].set_ylim(*ends)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    write_figure(figure, path)


def _scale_across(axes: Axes) -> None:
    """Logarithms, with plain numbers on the scale."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = sorted(axes.dataLim.intervalx)
    axes.set_xscale("log")
    subs = next(places for ratio, places in ROUND if high <= ratio * low)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
    axes.xaxis.set_major_formatter(lambda number, _: f"{number:,.10g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def stretched(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logarithm of what is missing to 101 %: between 90 and 100 %, where networks differ, is most of the room."""
    return -np.log(np.maximum(101 - np.asarray(share), 1e-9))


def unstretched(height: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share at a height."""
    return 101 - np.exp(-np.asarray(height))


def _curve(axes: Axes, name: str, points: Curve, style: dict[str, Any], after: bool) -> None:
    """One method."""
    ordered = sorted(points, key=lambda one: one[0])
    drawn = [(cost, _height(tuned if after and tuned else found)) for cost, found, tuned in ordered]
    across, up = zip(*drawn, strict=True)
    axes.plot(across, up, label=name, markerfacecolor="white", **style)


def _style(name: str, rivals: Sequence[str]) -> dict[str, Any]:
    """Marker, line and colour of a method; ours stand out."""
    if name in (FLEXIBLE, PLANNED):
        line = {"marker": "o", "linestyle": "-"} if name == FLEXIBLE else {"marker": "P", "linestyle": "--"}
        return {**line, "color": OURS, "linewidth": 2.2, "markersize": 7, "zorder": 5}
    turn, place = divmod(rivals.index(name), len(COLOURS))
    marker, linestyle = MARKS[turn % len(MARKS)]
    return {"marker": marker, "linestyle": linestyle, "color": COLOURS[place], "linewidth": 1.2, "markersize": 4}


def _height(found: Fidelity) -> float:
    share = found.accuracy if found.accuracy is not None else found.agreement
    return found.relative_error if share is None else 100 * share


def _label(curves: Mapping[str, Curve]) -> str:
    """What the height is."""
    found = next(iter(curves.values()))[0][1]
    if found.accuracy is not None:
        return "accuracy (%)"
    return "relative output error" if found.agreement is None else "same decision as the original (%)"
