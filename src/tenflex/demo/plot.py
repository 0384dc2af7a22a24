"""Accuracy against size. It needs the extra `plot`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tenflex.reading.figures import GREY, OURS, RIVAL, blank_figure, write_figure

if TYPE_CHECKING:
    from tenflex.demo.run import Row, Score


SERIES = ("o-", "s--", "^:", "D-.")
"""Markers and lines of the numbers of calibration images, the most first."""


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
