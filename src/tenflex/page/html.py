"""The page itself: what was asked, what came out, and what it looks like inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from tenflex.evaluate.planned import Planned, Tried
from tenflex.evaluate.tuned import Tuned
from tenflex.page.figures import line_chart, node_panel
from tenflex.page.style import STYLE
from tenflex.storage.files import MARK, REPORT_MARK, report_mark

COSTS = {"parameters": "parameters", "macs": "MACs", "activation_operations": "activation operations"}
"""Names of costs in a report, and what the page calls them."""


MEANINGS = {
    "relative_error": "of all outputs, of how much the original's vary",
    "agreement": "the share of inputs with the same decision as the original's",
    "balanced_agreement": "the same, averaged over its classes: rare ones count as much as frequent ones",
    "accuracy": "the share of inputs with the right decision",
    "tail_error": "the error where the original's score is highest or lowest, a tenth each",
    "each": "the error of each output, of how much that output varies",
}
"""What measures of closeness say."""


@dataclass(frozen=True)
class Page:
    """What a page shows, all of it in values that JSON knows.

    Args:
        report: The report of a compression, `report.to_dict()`.
        plan: Its settings, `plan.to_dict()`.
        details: What `details_of` gave; empty where it was not kept.
        versions: The programs that made it.
        command: The command, or the call, that makes it again.
        comparison: The rows of a comparison with other methods, where one was run.
        latencies: The rows of a measurement of time, where one was run.
    """

    report: Mapping[str, Any]
    plan: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    comparison: Sequence[Mapping[str, Any]] = ()
    latencies: Sequence[Mapping[str, Any]] = ()

    def html(self) -> str:
        """One file without scripts: it asks for nothing from a network."""
        body = "\n".join(self._sections())
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"{MARK}{REPORT_MARK.format(report_mark(self.report))}"
            f"<title>tenflex report</title><style>{STYLE}</style></head>"
            f"<body><main>\n{body}\n</main></body></html>\n"
        )

    def _sections(self) -> Iterator[str]:
        yield f"<h1>{self._headline()}</h1>"
        yield self._warnings()
        yield _section(
            "What came out", _cost_table(self.report), *_part_tables(self.report), self._fidelity(), self._tunings()
        )
        if self.report.get("planned"):
            yield _plan_section(self.report["planned"])
        if self.comparison:
            yield _section("Beside other methods", _rows_table(self.comparison), _comparison_chart(self.comparison))
        if self.latencies:
            yield _section("Time", _rows_table(self.latencies))
        for name, block in self.details.get("blocks", {}).items():
            yield _block_section(name, block)
        yield _section("How it was made", self._settings())

    def _headline(self) -> str:
        counts = self.report["model"]["parameters"]
        before, after = counts["before"], counts["after"]
        if not before or after >= before:
            return f"{after:,} parameters, where there were {before:,}"
        return f"{100 * after / before:.3g} % of the parameters kept ({before / after:.3g}x smaller)"

    def _warnings(self) -> str:
        found = self.report.get("warnings", ())
        items = "".join(f"<li>{escape(one)}</li>" for one in found)
        return f'<ul class="warnings" aria-label="Warnings">{items}</ul>' if found else ""

    def _fidelity(self) -> str:
        close = self.report.get("fidelity")
        if not close:
            return ""
        rows = [
            (name.replace("_", " "), _numbers(value), MEANINGS.get(name, ""))
            for name, value in close.items()
            if value is not None
        ]
        made = "fine-tuned" if self.report.get("tunings") else "compressed"
        where = f"on the inputs it was {made} with, which flatters"
        head = ("", "value", "what it is")
        return f"<p>How close the compressed network is to the original {where}:</p>" + _table(head, rows, "told")

    def _tunings(self) -> str:
        told = (str(Tuned.from_dict(one)) for one in self.report.get("tunings", ()))
        return "".join(f"<p>{escape(one)}</p>" for one in told)

    def _settings(self) -> str:
        rows = [(name, _plain(value)) for name, value in self.plan.items() if name != "blocks" and value is not None]
        blocks = [(name or "(network)", _plain(value)) for name, value in self.plan.get("blocks", {}).items()]
        made = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        region = 'tabindex="0" role="region" aria-label="How to make it again"'
        code = f"<pre {region}><code>{escape(self.command)}</code></pre>"
        command = f"<p>To make it again:</p>{code}" if self.command else ""
        tables = _table(("block", "layer"), blocks, "words") + _table(("setting", "value"), rows, "words")
        return command + tables + (f"<p>Made with {escape(made)}.</p>" if made else "")


def _part_tables(report: Mapping[str, Any]) -> Iterator[str]:
    """The errors of each output, of blocks that have several."""
    for block in report["blocks"]:
        if block.get("parts"):
            rows = [(one["name"], _number(one["output_error"]), _number(one["share"])) for one in block["parts"]]
            name = escape(block["name"] or "the whole network")
            yield f"<p>Each output of {name} counts alike, by its own spread:</p>"
            yield _table(("output", "output error", "share of the variance in their own units"), rows, "numbers")


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "numbers") -> str:
    if not rows:
        return ""
    top = "".join(f'<th scope="col">{escape(one) or "<span class=hidden>name</span>"}</th>' for one in head)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(one)}</td>" for one in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="Table of {escape(", ".join(filter(None, head)))}">'
        f'<table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _cost_table(report: Mapping[str, Any]) -> str:
    head = ["block", *COSTS.values(), "output error", "Jacobian error", "time"]
    rows = [
        [
            one["name"] or "(network)",
            *_changes(one),
            _number(one["output_error"]),
            _number(one["jacobian_error"]),
            f"{one['seconds']:.1f} s",
        ]
        for one in report["blocks"]
    ]
    whole = report["model"]
    rows.append(["in all", *_changes(whole), _number(whole.get("output_error")), "", f"{report['seconds']:.1f} s"])
    return _table(head, rows)


def _changes(costs: Mapping[str, Any]) -> list[str]:
    return [f"{costs[name]['before']:,} → {costs[name]['after']:,}" for name in COSTS]


def _plan_section(planned: Mapping[str, Any]) -> str:
    """What a budget was spent on, and the curves that it was chosen from."""
    words = "".join(f"<p>{escape(one)}</p>" for one in Planned.from_dict(planned).lines())
    lines = {
        f"{curve['block'] or '(network)'}: {method}": sorted(
            (float(one["parameters"]), float(one["error"]) ** 0.5)
            for one in curve["tried"]
            if one["method"] == method and one["error"] is not None
        )
        for curve in planned["curves"]
        for method in dict.fromkeys(one["method"] for one in curve["tried"])
    }
    rows = [
        {"block": curve["block"] or "(network)", "method": one["method"], "size": Tried(**one).size}
        | {"parameters": one["parameters"], "MACs": one["macs"], "squared error": one["error"]}
        | {"lost_agreement": one["lost_agreement"]}
        for curve in planned["curves"]
        for one in curve["tried"]
    ]
    chart = line_chart(lines, "parameters of the network", "relative error", ("x", "y"))
    return _section("How the plan was chosen", words, chart, _rows_table(rows))


def _rows_table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name, value in row.items() if value is not None))
    return _table(
        [one.replace("_", " ") for one in names], [[_number(row.get(name)) for name in names] for row in rows]
    )


def _comparison_chart(rows: Sequence[Mapping[str, Any]]) -> str:
    value = next((name for name in ("accuracy", "agreement") if any(row.get(name) is not None for row in rows)), None)
    if value is None:
        return ""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row.get(value) is not None and row.get("parameters"):
            lines.setdefault(str(row.get("method")), []).append((float(row["parameters"]), 100 * float(row[value])))
    return line_chart({name: sorted(points) for name, points in lines.items()}, "parameters", f"{value} in %", ("x",))


def _block_section(name: str, block: Mapping[str, Any]) -> str:
    history = block["history"]
    errors = {
        "held-out outputs": "held_out_error",
        "fitted outputs": "output_error",
        "fitted Jacobians": "jacobian_error",
    }
    lines = {
        title: [(float(k), one[entry]) for k, one in enumerate(history) if one[entry] is not None]
        for title, entry in errors.items()
    }
    parts = [line_chart(lines, "step", "relative error", ("y",))]
    for depth, layer in enumerate(block["layers"], 1):
        shown = len(layer["nodes"])
        which = f"all {shown} nodes" if shown == layer["rank"] else f"the {shown} largest of {layer['rank']} nodes"
        of = f" of layer {depth}" if len(block["layers"]) > 1 else ""
        parts.append(
            f"<p>The activations of {which}{of}, each over the density of its arguments at the samples "
            f"({escape(layer['basis'])}):</p>"
        )
        parts.append(f'<div class="nodes">{"".join(map(node_panel, layer["nodes"]))}</div>')
    return _section(f"Inside {name or 'the network'}", *parts)


def _number(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _numbers(value: Any) -> str:
    return ", ".join(map(_number, value)) if isinstance(value, (list, tuple)) else _number(value)


def _plain(value: Any) -> str:
    """A setting in words."""
    if isinstance(value, Mapping):
        given = {name: one for name, one in value.items() if one is not None}
        family = given.pop("family", None)
        text = ", ".join(f"{name}={_plain(one)}" for name, one in given.items())
        return text if family is None else f"{family}({text})"
    return _number(value)
