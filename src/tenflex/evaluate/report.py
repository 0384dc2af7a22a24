"""What was gained and what was lost, as a table."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tenflex.evaluate.cost import Cost, describe_kept
from tenflex.result import Result

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class BlockReport:
    """One block, before and after.

    Args:
        name: The block; "" is the whole network.
        before: Its cost for one example.
        after: The cost of the flexible layer.
        output_error: Relative error of the block's outputs, on held-out samples.
        jacobian_error: Relative error of its Jacobians, on fitted samples, in whitened coordinates.
        result: Why the solver stopped.
        seconds: Time for sampling and solving.
    """

    name: str
    before: Cost
    after: Cost
    output_error: float
    jacobian_error: float
    result: Result
    seconds: float


@dataclass(frozen=True)
class Report:
    """A compression in numbers; `print(report)` shows the table.

    Args:
        blocks: The blocks that were replaced.
        before: The cost of the whole network for one example.
        after: The cost of the compressed one.
        seconds: Time in all.
        hooked: The modules whose hooks are gone, as they were replaced.
    """

    blocks: tuple[BlockReport, ...]
    before: Cost
    after: Cost
    seconds: float
    hooked: tuple[str, ...] = ()

    @property
    def advice(self) -> list[str]:
        """What to know besides the numbers: solvers that did not end well, and hooks that are gone."""
        ends = [
            f"{block.name or 'network'}: {block.result.value}"
            for block in self.blocks
            if block.result in (Result.DIVERGED, Result.SINGULAR)
        ]
        gone = ", ".join(name or "network" for name in self.hooked)
        return ends + ([f"hooks are gone with the modules that were replaced: {gone}"] if gone else [])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "blocks": [
                {
                    "name": block.name,
                    **_costs(block.before, block.after),
                    "output_error": block.output_error,
                    "jacobian_error": block.jacobian_error,
                    "result": block.result.name,
                    "seconds": block.seconds,
                }
                for block in self.blocks
            ],
            "model": _costs(self.before, self.after),
            "seconds": self.seconds,
            "hooks_gone": list(self.hooked),
        }

    def __rich__(self) -> Table:
        """The table, for rich consoles: what was above what is, so that it fits 80 columns."""
        from rich import box  # rich is slow to import, and only this needs it
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        table.add_column("block", overflow="fold")
        for name in (
            "parameters",
            "kept",
            "MACs",
            "activation\noperations",
            "output\nerror",
            "Jacobian\nerror",
            "time",
        ):
            table.add_column(name, justify="right")
        for block in self.blocks:
            lost = f"{block.output_error:.3f}", f"{block.jacobian_error:.3f}"
            name = escape(block.name) or "(network)"
            table.add_row(name, *_cells(block.before, block.after), *lost, f"{block.seconds:.1f} s")
        table.add_section()
        table.add_row("in all", *_cells(self.before, self.after), "", "", f"{self.seconds:.1f} s")
        return table

    def __str__(self) -> str:
        """The table as text, followed by advice where there is some."""
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=100, color_system=None).print(self)
        return text.getvalue() + "\n".join(self.advice)


def _costs(before: Cost, after: Cost) -> dict[str, Any]:
    names = ("parameters", "macs", "activation_operations")
    return {name: {"before": getattr(before, name), "after": getattr(after, name)} for name in names}


def _cells(before: Cost, after: Cost) -> tuple[str, str, str, str]:
    return (
        f"{before.parameters:,}\n-> {after.parameters:,}",
        describe_kept(before.parameters, after.parameters).replace(" kept", ""),
        f"{before.macs:,}\n-> {after.macs:,}",
        f"{before.activation_operations:,}\n-> {after.activation_operations:,}",
    )
