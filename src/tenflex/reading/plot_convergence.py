"""The errors of all steps of a solver."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from tenflex.reading.figures import GREY, OURS, RIVAL, blank_figure, write_figure
from tenflex.result import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes


MOST_STAGES = 4
"""More names do not fit side by side above the curves."""


def plot_convergence(history: Sequence[Record], path: str | Path, title: str = "Convergence") -> None:
    """Draw the relative errors of Jacobians and outputs against the steps of the solver, stage by stage.

    Args:
        history: A record for every step, as a solution has.
        path: The file to write; its ending chooses the format (png, pdf, svg).
        title: What stands above, before the time.

    Raises:
        PlotsUnavailableError: if matplotlib is not installed.
    """
    figure = blank_figure(6.0, 3.8)
    axes = figure.subplots()
    _curve(axes, [one.jacobian_error for one in history], OURS, "-", "Jacobians, fitted samples")
    _curve(axes, [one.output_error for one in history], RIVAL, "-", "outputs, fitted samples")
    held_out = [one.held_out_error for one in history if one.held_out_error is not None]
    _curve(axes, held_out, RIVAL, "--", "outputs, held-out samples")
    _logarithmic(axes)
    note = _mark_stages(axes, [one.stage for one in history])
    axes.set_xlabel(f"step of the solver{note}")
    axes.set_ylabel("relative error")
    axes.set_title(f"{title}, {history[-1].seconds:.1f} s", pad=20)
    axes.grid(True, which="both", color="#e6e6e6", linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    write_figure(figure, path)


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
