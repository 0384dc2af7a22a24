"""A page as a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from tenflex._version import __version__
from tenflex.page.html import Page
from tenflex.storage.files import MARK, beside
from tenflex.storage.network import Made


@runtime_checkable
class Recorded(Protocol):
    """What can be told in values that JSON knows."""

    def to_dict(self) -> dict[str, Any]:
        """These values."""
        ...


VERSIONS = {"tenflex": __version__, "torch": torch.__version__}


def write_page(
    path: str | Path,
    made: Made,
    *,
    command: str = "",
    versions: Mapping[str, str] | None = None,
    comparison: Sequence[Mapping[str, Any]] = (),
    latencies: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write the page of a compression, as a whole or not at all; see `Page` for what else it may show.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if it does not end in `.html`, or is a file of another program.
    """
    path = Path(path)
    require_page(path)
    page = Page(made.report, made.plan, made.details, versions or VERSIONS, command, comparison, latencies)
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as temporary:
        temporary.write_text(page.html(), encoding="utf-8")


def require_page(path: Path) -> None:
    """Raise ValueError unless a page can be written there without the loss of something else."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"expected a page whose name ends in .html, got {str(path)!r}")
    if path.is_dir() or (path.exists() and MARK.encode() not in path.read_bytes()):
        raise ValueError(f"{path} was not written by tenflex and would be overwritten: choose another name")
