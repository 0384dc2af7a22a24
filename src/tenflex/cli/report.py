"""`tenflex report`: a compression as one page for people."""

from __future__ import annotations

from collections.abc import Mapping
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
    path = Path(settings.out or folder / "report.html")
    require_page(path)
    require_writable(path.parent)
    write_page(
        path,
        Made((), config.get("plan", {}), found, None, read_beside(folder / DETAILS)),
        command=_command(folder),
        versions=config.get("versions", {}),
        comparison=[_compared(one) for one in _listed(settings.comparison, "entries")],
        latencies=[{name: one.get(name) for name in TIMED} for one in _listed(settings.timings, "timings")],
    )
    if json:
        show_json({"out": str(path)})
    else:
        show(f"Saved as {path} ({path.stat().st_size / 1000:,.0f} kB): open it in a browser.")


def _command(folder: Path) -> str:
    """The command that makes the result again, as far as the settings beside it tell."""
    path = folder / RESOLVED
    return f"tenflex compress --config {path}" if path.is_file() else ""


TIMED = ("network", "runtime", "batch", "seconds", "fastest", "throughput", "ratio")
"""What is shown of a measured time."""


def _listed(path: Path | None, name: str) -> list[Mapping[str, Any]]:
    """What a file of another command lists."""
    if path is None:
        return []
    found = read_beside(path).get(name)
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise InputError(f"{path} has no {name}: expected what `tenflex compare` or `tenflex bench --json` wrote")
    return found


def _compared(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One method at one size, in a row; what was fine-tuned counts where there is it."""
    close = entry.get("finetuned") or entry.get("fidelity") or {}
    costs = entry.get("cost") or {}
    return {
        "method": entry.get("method"),
        "parameters": costs.get("parameters"),
        "MACs": costs.get("macs"),
        "accuracy": close.get("accuracy"),
        "agreement": close.get("agreement"),
        "relative_error": close.get("relative_error"),
        "seconds": entry.get("seconds"),
        "remark": entry.get("error"),
    }
