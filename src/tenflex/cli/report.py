"""`tenflex report`: a compression as one page for people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenflex.cli.console import show, show_json
from tenflex.cli.errors import InputError, reading
from tenflex.cli.folders import require_writable
from tenflex.cli.options import argument, command, option
from tenflex.cli.settings import Settings
from tenflex.page.records import compared, timed
from tenflex.page.write import require_page, write_page
from tenflex.storage.files import DETAILS, PAGE, REPORT, SETTINGS, WEIGHTS
from tenflex.storage.network import Made, read, read_beside


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Settings):
    """What `tenflex report` shows."""

    result: Path = argument("A folder that `tenflex compress` wrote.", "RESULT")
    comparison: Path | None = option("The compare.json of `tenflex compare`, to be shown too.", "FILE")
    timings: Path | None = option("What `tenflex bench --json` printed, in a file, to be shown too.", "FILE")
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
    path = Path(settings.out or folder / PAGE)
    require_page(path)
    require_writable(path.parent)
    write_page(
        path,
        Made((), config.get("plan", {}), found, None, read_beside(folder / DETAILS)),
        command=_command(folder),
        versions=config.get("versions", {}),
        comparison=_rows(settings.comparison, compared),
        latencies=_rows(settings.timings, timed),
    )
    if json:
        show_json({"out": str(path)})
    else:
        show(f"Saved as {path} ({path.stat().st_size / 1000:,.0f} kB): open it in a browser.")


def _command(folder: Path) -> str:
    """The command that makes the result again, as far as the settings beside it tell."""
    path = folder / SETTINGS
    return f"tenflex compress --config {path}" if path.is_file() else ""


def _rows(path: Path | None, read: Callable[[Any], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What the file of another command has to show."""
    if path is None:
        return []
    try:
        return read(read_beside(path))
    except ValueError as error:
        raise InputError(f"{path} cannot be shown: {error}") from None
