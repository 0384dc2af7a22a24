"""`tenflex report`: a compression as one page for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenflex.cli.console import show, show_json
from tenflex.cli.errors import InputError, reading
from tenflex.cli.folders import require_writable
from tenflex.cli.options import argument, command, option
from tenflex.cli.settings import RESOLVED, Settings
from tenflex.page.write import require_page, write_page
from tenflex.storage.files import DETAILS, REPORT, WEIGHTS
from tenflex.storage.network import Made, read, read_beside

COMPARISON, LATENCIES = "compare.json", "bench.json"
"""What `tenflex compare` and `tenflex bench` leave beside a result: their rows are on the page too."""


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Settings):
    """What `tenflex report` shows."""

    result: Path = argument("A folder that `tenflex compress` wrote.", "RESULT")
    out: str | None = option("The page; report.html in the folder if not given.", "FILE")


@command(ReportSettings)
def report(settings: ReportSettings, json: bool) -> None:
    """Write what was asked, what came out and what it looks like inside as one HTML page that needs nothing else."""
    folder = settings.result
    with reading(folder / WEIGHTS):
        config, _ = read(folder / WEIGHTS)
    found = read_beside(folder / REPORT)
    if not found:
        raise InputError(f"{folder / REPORT} is gone or damaged: compress the network again")
    path = Path(settings.out or folder / "report.html")
    require_page(path)
    require_writable(path.parent)
    write_page(
        path,
        Made((), config.get("plan", {}), found, None, read_beside(folder / DETAILS)),
        command=_command(folder),
        versions=config.get("versions", {}),
        comparison=_rows(folder / COMPARISON),
        latencies=_rows(folder / LATENCIES),
    )
    if json:
        show_json({"out": str(path)})
    else:
        show(f"Saved as {path} ({path.stat().st_size / 1000:,.0f} kB): open it in a browser.")


def _command(folder: Path) -> str:
    """The command that makes the result again, as far as the settings beside it tell."""
    path = folder / RESOLVED
    return f"tenflex compress --config {path}" if path.is_file() else ""


def _rows(path: Path) -> Sequence[Mapping[str, Any]]:
    rows = read_beside(path).get("rows", ())
    return [one for one in rows if isinstance(one, Mapping)] if isinstance(rows, list) else ()
