"""What the user sees: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import typer
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

from tenflex.distributed import is_first


def show(*lines: RenderableType) -> None:
    """Print results on stdout; of several processes only the first does."""
    if not is_first():
        return
    console = Console(highlight=False, markup=False, emoji=False)  # names of blocks hold colons and brackets
    for line in lines:
        console.print(line)


def show_line(text: str) -> None:
    """Print a line that is to be copied: it is never broken."""
    if is_first():
        typer.echo(text)


def table_of(*left: str, right: Sequence[str] = ()) -> Table:
    """An empty table in the manner of all: columns of names that may be folded, then columns of numbers."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right")
    return table


def width() -> int:
    """The columns of the terminal that results are shown in."""
    return Console().width


def note(text: str) -> None:
    """Say something on stderr, where it does not mix with results."""
    if is_first():
        typer.echo(text, err=True)


def show_json(value: Any) -> None:
    """Print JSON on stdout; infinity and NaN, which JSON lacks, become null."""
    if is_first():
        typer.echo(json.dumps(finite(value), indent=2, allow_nan=False))


def finite(value: Any) -> Any:
    """Plain values for JSON, with None in the place of infinity and NaN."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
