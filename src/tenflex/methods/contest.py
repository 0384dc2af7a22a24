"""Methods at sizes beside each other: as a table, as JSON, as a figure."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenflex.evaluate.cost import Cost
from tenflex.evaluate.fidelity import Fidelity
from tenflex.methods.conditions import Conditions
from tenflex.methods.plot import plot_methods

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Entry:
    """One method at one size.

    Args:
        method: Its name.
        source: Its paper.
        size: The most numbers that it was to store.
        error: Why it gave nothing; None if all went well.
        cost: What the smaller network stores and computes for one example.
        fidelity: How close it stays to the original, on inputs that no method was given.
        finetuned: The same after fine-tuning; None if there was none.
        seconds: Time to make it.
        latency: Seconds for a batch of the judged inputs.
    """

    method: str
    source: str
    size: int
    error: str | None = None
    cost: Cost | None = None
    fidelity: Fidelity | None = None
    finetuned: Fidelity | None = None
    seconds: float = 0.0
    latency: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_dict(saved: Mapping[str, Any]) -> Entry:
        """The entry that `to_dict` gave."""
        kinds = {"cost": Cost, "fidelity": Fidelity, "finetuned": Fidelity}
        made = {name: kind(**saved[name]) for name, kind in kinds.items() if saved.get(name) is not None}
        return Entry(**{**saved, **made})


@dataclass(frozen=True)
class Contest:
    """A comparison: `print(contest)` shows the table.

    Args:
        conditions: What was the same for all.
        compared: Fingerprints of the network, the inputs, the judged ones, the original's answers to these, and the
            labels of both: what the entries belong to.
        original: The cost of the network, and its accuracy on the judged inputs (None without labels).
        entries: One for each method and size.

    Example:
        >>> contest = compare(model, inputs, sizes=["60%"], methods=["svd", "affine"])
        >>> [entry.method for entry in contest.entries]
        ['svd', 'affine']
    """

    conditions: Conditions
    compared: tuple[tuple[float, ...], ...]
    original: tuple[Cost, float | None]
    entries: tuple[Entry, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        before, accuracy = self.original
        return {
            "conditions": self.conditions.to_dict(),
            "compared": [list(one) for one in self.compared],
            "original": {"cost": asdict(before), "accuracy": accuracy},
            "entries": [one.to_dict() for one in self.entries],
        }

    def plot(self, path: str | Path, against: str = "size") -> None:
        """Draw accuracy, or agreement, or error, against what networks cost.

        Args:
            path: The file to write; its ending chooses the format (png, pdf, svg).
            against: "size", the stored numbers, or "time", that of a batch.

        Raises:
            PlotsUnavailableError: if matplotlib is not installed.
            ValueError: if no method gave anything, or `against` is something else.
        """
        names = {
            "size": f"stored numbers (original: {self.original[0].parameters:,})",
            "time": "milliseconds for a batch, measured on this machine",
        }
        if against not in names:
            raise ValueError(f"against must be 'size' or 'time', got {against!r}")
        curves: dict[str, list[tuple[float, Fidelity, Fidelity | None]]] = {}
        for one in self.entries:
            if one.cost is not None and one.fidelity is not None:
                across = one.cost.parameters if against == "size" else 1e3 * (one.latency or 0.0)
                curves.setdefault(one.method, []).append((across, one.fidelity, one.finetuned))
        plot_methods(curves, names[against], self.original[1], path, self.conditions.finetune)

    def __rich__(self) -> Table:
        """The table, for rich consoles."""
        from rich import box  # rich is slow to import, and only this needs it
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        for index, name in enumerate(self._heads()):
            table.add_column(name, justify="right" if index else "left", overflow="fold")
        last = None
        for one in self.entries:
            if last not in (None, one.size):
                table.add_section()
            last = one.size
            table.add_row(*self._cells(one))
        return table

    def _heads(self) -> list[str]:
        tuned = [f"after\n{self.conditions.finetune} steps"] if self.conditions.finetune else []
        return [
            "method",
            "stored",
            "MACs",
            "activation\noperations",
            "error",
            "agree",
            "accuracy",
            *tuned,
            "batch",
            "time",
        ]

    def _cells(self, one: Entry) -> list[str]:
        if one.cost is None or one.fidelity is None:
            return [one.method, f"{one.size:,}", f"failed: {one.error}"]
        tuned = [_share(one.finetuned)] if self.conditions.finetune else []
        numbers = [f"{one.cost.parameters:,}", f"{one.cost.macs:,}", f"{one.cost.activation_operations:,}"]
        error, shares = one.fidelity.relative_error, (one.fidelity.agreement, one.fidelity.accuracy)
        batch = "" if one.latency is None else f"{1e3 * one.latency:.1f} ms"
        return [one.method, *numbers, f"{error:.3f}", *map(_percent, shares), *tuned, batch, f"{one.seconds:.1f} s"]

    def __str__(self) -> str:
        """The table as text, with the original above."""
        from rich.console import Console

        text = io.StringIO()
        console = Console(file=text, width=130, color_system=None)
        before, accuracy = self.original
        kept = f", accuracy {100 * accuracy:.2f} %" if accuracy is not None else ""
        console.print(f"original: {before.parameters:,} numbers, {before.macs:,} MACs{kept}")
        console.print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


def _share(found: Fidelity | None) -> str:
    """The best that is known of how close it is: accuracy, agreement or error."""
    if found is None:
        return ""
    best = found.accuracy if found.accuracy is not None else found.agreement
    return f"{found.relative_error:.3f}" if best is None else _percent(best)
