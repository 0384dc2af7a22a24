"""What a page shows of the records of other verbs: a comparison of methods, and measured times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TIMED = ("network", "runtime", "batch", "seconds", "fastest", "throughput", "ratio")
"""What is shown of a measured time."""


def compared(saved: Any) -> list[dict[str, Any]]:
    """The methods of a comparison at their sizes, a row for each; what was fine-tuned counts where there is it.

    Args:
        saved: What `Contest.to_dict` gave, as `tenflex compare` writes it.

    Raises:
        ValueError: if it is something else.
    """
    return [_compared(one) for one in _listed(saved, "entries", "compare")]


def timed(saved: Any) -> list[dict[str, Any]]:
    """The times of networks in runtimes, a row for each.

    Args:
        saved: What `Bench.to_dict` gave, as `tenflex bench --json` prints it.

    Raises:
        ValueError: if it is something else.
    """
    return [{name: one.get(name) for name in TIMED} for one in _listed(saved, "timings", "bench --json")]


def _listed(saved: Any, name: str, command: str) -> list[Mapping[str, Any]]:
    found = saved.get(name) if isinstance(saved, Mapping) else None
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise ValueError(f"it has no {name}: expected what `tenflex {command}` wrote")
    return found


def _compared(entry: Mapping[str, Any]) -> dict[str, Any]:
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
