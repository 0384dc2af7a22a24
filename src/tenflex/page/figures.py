"""Small figures as SVG in the text of a page: they follow its colours, light or dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT = 440, 240
"""Of a figure with axes, in its own units; it is as wide as there is room."""

LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 34
"""The margins within."""


def node_panel(node: Mapping[str, Any]) -> str:
    """An activation over its argument, and below it where the arguments of the samples lie."""
    width, height, base = 150, 96, 26
    curve = [one for one in node["curve"] if one is not None]
    low, high = min(curve, default=0.0), max(curve, default=1.0)
    span, most = (high - low) or 1.0, max(node["density"]) or 1
    step = width / max(1, len(node["curve"]) - 1)
    points = [
        f"{k * step:.1f},{(height - base - 6) * (1 - (one - low) / span) + 3:.1f}"
        for k, one in enumerate(node["curve"])
        if one is not None
    ]
    bar = width / len(node["density"])
    bars = "".join(
        f'<rect x="{k * bar:.1f}" y="{height - base * count / most:.1f}" width="{bar - 0.6:.1f}" '
        f'height="{base * count / most:.1f}"/>'
        for k, count in enumerate(node["density"])
    )
    label = f"node {node['node']}, size {node['size']:.2g}, argument from {node['low']:.3g} to {node['high']:.3g}"
    return (
        f'<figure class="node"><svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Activation of {escape(label)}">'
        f'<g class="density">{bars}</g><polyline class="line one" points="{" ".join(points)}"/></svg>'
        f"<figcaption>{escape(label)}</figcaption></figure>"
    )


def line_chart(
    lines: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str, logarithmic: Iterable[str] = ()
) -> str:
    """Lines over a common axis, each with its name in the legend; axes named in `logarithmic` ("x", "y") are so."""
    scales = {"x": "x" in logarithmic, "y": "y" in logarithmic}
    shown = {name: _placeable(points, scales) for name, points in lines.items()}
    shown = {name: points for name, points in shown.items() if points}
    if not shown:
        return ""
    xs = [x for points in shown.values() for x, _ in points]
    ys = [y for points in shown.values() for _, y in points]
    across, up = _Axis.of(xs, scales["x"]), _Axis.of(ys, scales["y"])
    parts = [_grid(across, up)]
    legend = []
    for k, (name, points) in enumerate(shown.items()):
        style = f"line c{k % 8}"
        placed = [f"{_left(across.place(x)):.1f},{_top(up.place(y)):.1f}" for x, y in points]
        parts.append(f'<polyline class="{style}" points="{" ".join(placed)}"/>')
        dots = (one.split(",") for one in placed)
        parts += [f'<circle class="dot c{k % 8}" cx="{x}" cy="{y}" r="2.5"/>' for x, y in dots] * (len(placed) < 16)
        legend.append(f'<li><span class="key c{k % 8}"></span>{escape(name)}</li>')
    names = f"{y_label} against {x_label}: {', '.join(shown)}"
    return (
        f'<figure class="chart"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(names)}">'
        f'{"".join(parts)}<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 4}" '
        f'text-anchor="middle">{escape(x_label)}</text><text class="label" '
        f'transform="translate(12 {(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text></svg><ul class="legend">{"".join(legend)}</ul></figure>'
    )


def _placeable(points: Sequence[tuple[float, float]], scales: Mapping[str, bool]) -> list[tuple[float, float]]:
    """The points that have a place: finite, and above 0 where the axis is logarithmic."""
    return [
        (x, y)
        for x, y in points
        if math.isfinite(x) and math.isfinite(y) and (x > 0 or not scales["x"]) and (y > 0 or not scales["y"])
    ]


class _Axis:
    """From numbers to [0, 1], with ticks."""

    def __init__(self, low: float, high: float, logarithmic: bool) -> None:
        self.low, self.high, self.logarithmic = low, high, logarithmic

    @classmethod
    def of(cls, values: Sequence[float], logarithmic: bool) -> _Axis:
        low, high = min(values), max(values)
        if logarithmic:
            return cls(low / 1.1, high * 1.1, True)
        margin = 0.05 * (high - low) or 0.5
        return cls(low - margin, high + margin, False)

    def place(self, value: float) -> float:
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """A handful of round numbers."""
        if self.logarithmic:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            span = self.high / self.low
            within = (1,) if span > 100 else (1, 2, 5) if span > 10 else (1, 2, 3, 5, 7)
            found = [k * 10.0**d for d in decades for k in within]
        else:
            raw = (self.high - self.low) / 5
            unit = 10.0 ** math.floor(math.log10(raw))
            step = next(k * unit for k in (1, 2, 5, 10) if k * unit >= raw)
            first = math.ceil(self.low / step)
            found = [step * k for k in range(first, math.floor(self.high / step) + 1)]
        return [one for one in found if self.low <= one <= self.high]


def _left(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _top(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _grid(across: _Axis, up: _Axis) -> str:
    upright = "".join(
        f'<line class="grid" x1="{_left(across.place(one)):.1f}" x2="{_left(across.place(one)):.1f}" y1="{TOP}" '
        f'y2="{HEIGHT - BOTTOM}"/><text class="tick" x="{_left(across.place(one)):.1f}" y="{HEIGHT - BOTTOM + 13}" '
        f'text-anchor="middle">{one:,.4g}</text>'
        for one in across.ticks()
    )
    level = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_top(up.place(one)):.1f}" '
        f'y2="{_top(up.place(one)):.1f}"/><text class="tick" x="{LEFT - 5}" y="{_top(up.place(one)) + 3:.1f}" '
        f'text-anchor="end">{one:,.4g}</text>'
        for one in up.ticks()
    )
    return upright + level
