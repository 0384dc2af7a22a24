"""What was gained and what was lost, as a table."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tenflex.evaluate.cost import Cost, describe_kept
from tenflex.evaluate.fidelity import Fidelity
from tenflex.evaluate.planned import Planned
from tenflex.evaluate.tuned import Tuned
from tenflex.result import Judged, Result
from tenflex.storage.network import CHANGED

if TYPE_CHECKING:
    from rich.table import Table

LARGE, USELESS = 0.3, 0.9
"""Errors of outputs above which a layer loses much of its block, and nearly all."""


NOTICEABLE = 0.0005
"""An error of a projection that is told of: it is not 0.000."""


@dataclass(frozen=True)
class Sampled:
    """What was sampled of a block.

    Args:
        unit: What one sample is, in words.
        plural: What many are called.
        rows: How many were sampled.
        total: How many there are in the inputs that were used.
        padding: How many of those are padding, and were left out.
        border_error: How far zeros outside of patches are from what the block does at its borders, relative.
        mixed: Whether samples are held out whose example is fitted, too: there are too few examples to hold out whole
            ones.
    """

    unit: str
    plural: str
    rows: int
    total: int
    padding: int = 0
    border_error: float = 0.0
    mixed: bool = False


@dataclass(frozen=True)
class PartReport:
    """One of several outputs of a block.

    Args:
        name: Its place, its key, or the module that it leaves.
        output_error: Its relative error, on the samples that the block's was measured on.
        share: Its share of the variance of all outputs in their own units, in [0, 1]; in the block's error, and for
            what is fitted, all count the same.
    """

    name: str
    output_error: float
    share: float

    @property
    def label(self) -> str:
        """The name as it is shown: a place in brackets."""
        return f"[{self.name}]" if self.name.isdecimal() else self.name


@dataclass(frozen=True)
class BlockReport:
    """One block, before and after.

    Args:
        name: The block; "" is the whole network.
        before: Its cost for one example.
        after: The cost of the flexible layer.
        output_error: Relative error of the block's outputs, on the samples that `judged` tells.
        jacobian_error: Relative error of its Jacobians, on fitted samples, in the coordinates of the plan.
        result: Why the solver stopped.
        seconds: Time for sampling and solving.
        judged: The samples of the output error.
        projection_error: The relative error of the block itself, when its inputs are projected on the directions that
            were kept; of a layer of any rank it is a part.
        input_macs: With modes, the multiply-adds of the linear map behind them for one example: axis by axis, and
            multiplied out. The layer takes the cheaper way.
        sampled: What was sampled.
        folded: Whether the last map of a convolution became part of the layer that follows, and is counted there.
        linear: Whether the block is a single linear map, though it was to become a flexible layer.
        chosen: The settings that were chosen on validation samples, by name.
        parts: Each of its outputs, where there are several; then the output error is the root of the mean of the
            squares of theirs.
        output_projection: With modes of the outputs, the relative error of the block's own outputs when they are
            projected on these: no layer with such modes does better.
    """

    name: str
    before: Cost
    after: Cost
    output_error: float
    jacobian_error: float
    result: Result
    seconds: float
    judged: Judged = Judged.TEST
    projection_error: float = 0.0
    input_macs: tuple[int, int] | None = None
    sampled: Sampled | None = None
    folded: bool = False
    linear: bool = False

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> BlockReport:
        """The block in what `Report.to_dict` gave."""
        return cls(
            saved["name"],
            *_read_costs(saved),
            output_error=_infinite(saved["output_error"]),
            jacobian_error=_infinite(saved["jacobian_error"]),
            result=Result[saved["result"]],
            seconds=saved["seconds"],
            judged=Judged[saved["judged"].upper()],
            projection_error=saved["projection_error"],
            linear=saved["linear"],
            input_macs=None if saved.get("input_macs") is None else tuple(saved["input_macs"]),
            sampled=None if saved.get("sampled") is None else Sampled(**saved["sampled"]),
            folded=saved["folded"],
            chosen=saved["chosen"],
            parts=tuple(
                PartReport(one["name"], _infinite(one["output_error"]), one["share"]) for one in saved.get("parts", ())
            ),
            output_projection=saved.get("output_projection"),
        )

    chosen: Mapping[str, float] = field(default_factory=dict)
    parts: tuple[PartReport, ...] = ()
    output_projection: float | None = None


@dataclass(frozen=True)
class Report:
    """A compression in numbers; `print(report)` shows the table.

    Args:
        blocks: The blocks that were replaced.
        before: The cost of the whole network for one example.
        after: The cost of the compressed one.
        seconds: Time in all.
        fidelity: How close the compressed network stays to the original on the inputs it was compressed with, or last
            fine-tuned with, which flatters; None if the networks' outputs cannot be compared: whole numbers alone, or
            the same for all inputs.
        hooked: The modules whose hooks are gone, as they were replaced.
        tunings: What was trained afterwards; the errors of the blocks are those before.
        planned: How the blocks were chosen, where a budget did.
        changed: Whether weights changed after all this was measured, in a training loop of the user's own.
    """

    blocks: tuple[BlockReport, ...]
    before: Cost
    after: Cost
    seconds: float
    fidelity: Fidelity | None = None
    hooked: tuple[str, ...] = ()
    tunings: tuple[Tuned, ...] = ()
    planned: Planned | None = None
    changed: bool = False

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Report:
        """The report that `to_dict` described.

        Raises:
            KeyError, TypeError, ValueError: if something is missing, or of another kind.
        """
        close = saved["fidelity"]
        return cls(
            tuple(map(BlockReport.from_dict, saved["blocks"])),
            *_read_costs(saved["model"]),
            saved["seconds"],
            None if close is None else _read_fidelity(close),
            tuple(saved["hooks_gone"]),
            tuple(map(Tuned.from_dict, saved.get("tunings", ()))),
            None if saved.get("planned") is None else Planned.from_dict(saved["planned"]),
            bool(saved.get("changed")),
        )

    @property
    def output_error(self) -> float | None:
        """The relative error of the whole network's outputs, on the inputs it was compressed or last tuned with."""
        return None if self.fidelity is None else self.fidelity.relative_error

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; infinite errors are None."""
        return {
            "blocks": [
                {
                    "name": block.name,
                    **_costs(block.before, block.after),
                    "output_error": _finite(block.output_error),
                    "jacobian_error": _finite(block.jacobian_error),
                    "judged": block.judged.name.lower(),
                    "projection_error": block.projection_error,
                    "folded": block.folded,
                    "sampled": None if block.sampled is None else asdict(block.sampled),
                    "linear": block.linear,
                    "chosen": dict(block.chosen),
                    "result": block.result.name,
                    "seconds": block.seconds,
                    **({"parts": [_part(one) for one in block.parts]} if block.parts else {}),
                    **({} if block.input_macs is None else {"input_macs": list(block.input_macs)}),
                    **({} if block.output_projection is None else {"output_projection": block.output_projection}),
                }
                for block in self.blocks
            ],
            "model": {**_costs(self.before, self.after), "output_error": _finite(self.output_error)},
            "fidelity": None if self.fidelity is None else _fidelity(self.fidelity),
            "warnings": list(self.warnings),
            "seconds": self.seconds,
            "hooks_gone": list(self.hooked),
            "tunings": [one.to_dict() for one in self.tunings],
            "planned": None if self.planned is None else self.planned.to_dict(),
            **({"changed": True} if self.changed else {}),
        }

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know besides: solvers that failed, blocks that grew, large errors, hooks that are gone, training."""
        found = [one for block in self.blocks for one in _warnings(block)]
        error = self.output_error
        told = any(not block.output_error <= LARGE for block in self.blocks)
        alone = told and any(not block.name for block in self.blocks)
        if error is not None and not error <= (USELESS if told else LARGE) and not alone:
            found.append(f"the network as a whole has {_in_words(error)}")
        if self.hooked:
            gone = ", ".join(name or "network" for name in self.hooked)
            found.append(f"hooks are gone with the modules that were replaced: {gone}")
        return (*found, CHANGED) if self.changed else tuple(found)

    @property
    def remarks(self) -> tuple[str, ...]:
        """How the table is to be read, and how close the compressed network is to the original."""
        errors = f"Errors are relative: a block's of the outputs on {self._judged}, and of the Jacobians on fitted ones"
        dropped = [
            f"{block.name or 'the whole network'} {block.projection_error:.3f}"
            for block in self.blocks
            if block.projection_error >= NOTICEABLE
        ]
        if dropped:
            errors += f"; dropped directions of a block's inputs alone cost {', '.join(dropped)}"
        ways = [line for block in self.blocks for line in _ways(block)]
        units = tuple(line for block in self.blocks for line in (*_units(block), *_parts(block)))
        settings = [f"Chosen on held-out inputs: {', '.join(found)}." for found in [self._chosen] if found]
        if self.tunings:
            errors += "; those of blocks are from before it was fine-tuned"
        tunings = (*(self.planned.lines() if self.planned else ()), *map(str, self.tunings))
        if self.fidelity is None:
            return (f"{errors}.", *ways, *units, *tunings, *settings)
        made = "fine-tuned" if self.tunings else "compressed"
        close = [f"{name} {value}" for name, value in self.fidelity.rows().items() if name != "relative output error"]
        return (
            f"{errors}, that in all of the network's outputs on the inputs it was {made} with, which flatters.",
            *([f"On these inputs: {', '.join(close)}."] if close else []),
            *ways,
            *units,
            *tunings,
            *settings,
        )

    @property
    def _chosen(self) -> list[str]:
        """The settings that were chosen for the blocks."""
        return [
            f"{block.name or 'the whole network'} {name} {value:.3g}"
            for block in self.blocks
            for name, value in block.chosen.items()
        ]

    @property
    def _judged(self) -> str:
        """What the output errors of the blocks were measured on."""
        kinds = {kind: [one.name or "the network" for one in self.blocks if one.judged is kind] for kind in Judged}
        used = {kind: names for kind, names in kinds.items() if names}
        if len(used) == 1:
            return next(iter(used)).value
        return "; ".join(f"{kind.value} ({', '.join(names)})" for kind, names in used.items())

    def __rich__(self) -> Table:
        """The table, for rich consoles: what was above what is, so that it fits 80 columns."""
        from rich import box  # rich is slow to import, and only this needs it
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        table.add_column("block", overflow="fold", min_width=8)
        for name in (
            "parameters",
            "kept",
            "MACs",
            "activation\noperations",
            "output\nerror",
            "Jacobian\nerror",
            "time",
        ):
            table.add_column(name, justify="right", no_wrap=name not in ("kept", "time"))
        for block in self.blocks:
            lost = f"{block.output_error:.3f}", f"{block.jacobian_error:.3f}"
            name = escape(block.name) or "(network)"
            table.add_row(name, *_cells(block.before, block.after), *lost, f"{block.seconds:.1f} s")
        table.add_section()
        error = "" if self.output_error is None else f"{self.output_error:.3f}"
        table.add_row("in all", *_cells(self.before, self.after), error, "", f"{self.seconds:.1f} s")
        return table

    def __str__(self) -> str:
        """The table as text, followed by how to read it, and by what went wrong."""
        from rich.console import Console

        text = io.StringIO()
        console = Console(file=text, width=100, color_system=None)
        console.print(self)
        for line in (*self.remarks, *self.warnings):
            console.print(line, markup=False, emoji=False)
        return text.getvalue().rstrip()


def _ways(block: BlockReport) -> Iterator[str]:
    """What the two ways through the modes of a block cost, and what modes of its outputs lose."""
    if block.output_projection is not None:
        yield (
            f"The outputs of {block.name or 'the whole network'} on their modes alone have an error of "
            f"{block.output_projection:.3f}: no layer with these modes does better."
        )
    if block.input_macs is not None:
        by_axis, at_once = block.input_macs
        name = block.name or "the whole network"
        yield (
            f"The modes of {name} and what follows them take {by_axis:,} MACs axis by axis and {at_once:,} multiplied "
            f"out: the layer {'goes axis by axis' if by_axis <= at_once else 'is multiplied out'}."
        )


def _parts(block: BlockReport) -> Iterator[str]:
    """The errors of several outputs."""
    if block.parts:
        each = [f"{one.label} {one.output_error:.3f} ({100 * one.share:.3g} %)" for one in block.parts]
        yield (
            f"The outputs of {block.name or 'the whole network'} count alike, each by its own spread (in brackets its "
            f"share of the variance in their own units). Their errors: {', '.join(each)}."
        )


def _units(block: BlockReport) -> Iterator[str]:
    """What was sampled of a block, where that is not simply its examples."""
    one, name = block.sampled, block.name or "the whole network"
    if one is None or one.plural == "examples":
        return
    padding = f"; {one.padding:,} more are padding" if one.padding else ""
    yield f"One sample of {name} is {one.unit}: {one.rows:,} of {one.total - one.padding:,} {one.plural}{padding}."
    if block.folded:
        yield f"The last map of {name} is folded into the block that follows."
    if one.border_error >= NOTICEABLE:
        yield f"{name} pads in its inside; zeros around its inputs change its outputs by {one.border_error:.3f}."


def _warnings(block: BlockReport) -> Iterator[str]:
    """What went wrong with a block."""
    name = block.name or "the whole network"
    if block.result in (Result.DIVERGED, Result.SINGULAR):
        yield f"{name}: {block.result.value}"
    if block.after.parameters > block.before.parameters > 0:
        grown = 100 * block.after.parameters / block.before.parameters
        yield f"{name} grew to {grown:.0f} % of its parameters: lower rank or factor, or leave this block out"
    if block.sampled is not None and block.sampled.mixed:
        yield (
            f"{name}: the {block.sampled.plural} are of too few inputs to hold out whole ones: errors are measured on "
            f"inputs that were fitted, too, which flatters: pass more inputs"
        )
    if block.linear:
        yield f"{name} is a single linear map, for which SVD is the better tool: ask for LowRank(rank) in its place"
    if block.output_projection is not None and not block.output_projection <= LARGE:
        yield f"{name}: the modes of its outputs alone cost {block.output_projection:.2f}: take more of them, or none"
    elif not block.output_error <= LARGE:
        yield f"{name}: the layer has {_in_words(block.output_error)}"


def _in_words(error: float) -> str:
    """An error above `LARGE`, and what to do about it."""
    worth = "loses much of the original" if error < USELESS else "is hardly better than a constant"
    worth = worth if error < 1 else "is no better than a constant"
    return f"an output error of {error:.2f} and {worth}: raise rank or factor, or pass more inputs"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _part(one: PartReport) -> dict[str, Any]:
    return {**asdict(one), "output_error": _finite(one.output_error)}


def _infinite(value: float | None) -> float:
    return math.inf if value is None else value


def _fidelity(close: Fidelity) -> dict[str, Any]:
    each = None if close.each is None else [_finite(one) for one in close.each]
    return {**{name: _finite(value) for name, value in asdict(replace(close, each=None)).items()}, "each": each}


def _read_fidelity(saved: Mapping[str, Any]) -> Fidelity:
    each = None if saved.get("each") is None else tuple(map(_infinite, saved["each"]))
    return Fidelity(**{**saved, "relative_error": _infinite(saved["relative_error"]), "each": each})


def _costs(before: Cost, after: Cost) -> dict[str, Any]:
    names = ("parameters", "macs", "activation_operations")
    return {name: {"before": getattr(before, name), "after": getattr(after, name)} for name in names}


def _read_costs(saved: Mapping[str, Any]) -> tuple[Cost, Cost]:
    names = ("parameters", "macs", "activation_operations")
    before, after = (Cost(*(saved[name][when] for name in names)) for when in ("before", "after"))
    return before, after


def _short(number: int) -> str:
    """A number in full; millions in millions, as more digits do not fit side by side."""
    return f"{number:,}" if number < 1_000_000 else f"{number / 1e6:,.1f}M"


def _cells(before: Cost, after: Cost) -> tuple[str, str, str, str]:
    return (
        f"{_short(before.parameters)}\n-> {_short(after.parameters)}",
        describe_kept(before.parameters, after.parameters).replace(" kept", ""),
        f"{_short(before.macs)}\n-> {_short(after.macs)}",
        f"{_short(before.activation_operations)}\n-> {_short(after.activation_operations)}",
    )
