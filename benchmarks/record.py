"""Results as small JSON files with the environment they were measured in, and tables drawn from them."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tenflex import __version__

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"


def environment() -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    return {
        "tenflex": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def write(name: str, rows: Iterable[Mapping[str, Any]], **more: Any) -> None:
    """Write a result, and show it."""
    rows = list(rows)
    RESULTS.mkdir(exist_ok=True)
    content = {"environment": environment(), **more, "rows": rows}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    show(name, rows)


def recorded(name: str) -> list[dict[str, Any]]:
    """The rows of a result that was measured before; none if there is none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def insert(name: str, table: str, page: Path) -> None:
    """Write a table beside the results, and between its marks: in its page or that of the long tables.

    Or where it is to stand in time.
    """
    (RESULTS / f"{name}.md").write_text(table)
    marks = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    for one in (page, DOCS / "results.md"):
        text = one.read_text().replace(f"<!-- later: {name} -->", f"<!-- table: {name} -->\n<!-- end -->")
        one.write_text(marks.sub(lambda found: f"{found[1]}\n{table}\n{found[2]}", text))


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts, the first column to the left and the others to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def show(name: str, rows: list[Mapping[str, Any]]) -> None:
    """A table of rows on the terminal."""
    table = Table(title=name)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        table.add_column(column.replace("_", " "))
    for row in rows:
        table.add_row(*(cell(row.get(column, "")) for column in columns))
    Console().print(table)


def cell(value: Any) -> str:
    """One number, legibly."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return " ".join(map(cell, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
