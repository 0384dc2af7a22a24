"""What was found in a network, and its table."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tenflex.planning.plan import Block
from tenflex.planning.sizes import block_size
from tenflex.sampling.memory import in_units
from tenflex.shown import Reported, in_words

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table

MOST_OBSTACLES = 8
"""More reasons than this are counted, and given in full by --json."""

READING = (
    "Nonlinear: the share of the variance of a block's outputs that no affine map of its inputs explains, on inputs "
    "that were held out. Near 0 % a thinner linear map (SVD) is the better tool; near 100 % there is nothing else to "
    "gain than by nonlinear nodes. Time: what compressing the block by the layer beside it takes here, from one timed "
    "piece, within a factor of about three. Memory: what it takes at most, 190 MiB of it for what is at work at a "
    "time, of which small blocks use little."
)
"""How what was measured is to be read."""


@dataclass(frozen=True)
class Measured:
    """What a few hundred inputs tell of a block; of several that are alike, the mean over some of them.

    Args:
        nonlinearity: The share of the variance of its outputs that the best affine map does not explain, in [0, 1];
            None where there are too few inputs to hold some out.
        layer: The layer that it might be compressed by; None where none would be smaller.
        seconds: About what that would take, by the default settings; None without a layer.
        memory: The bytes at the peak, beside the network and its inputs; None without a layer.
    """

    nonlinearity: float | None
    layer: Block | None
    seconds: float | None
    memory: int | None


@dataclass(frozen=True)
class Candidate:
    """A block, or several that are alike.

    Args:
        name: The name of the block, or wildcards for all that are alike.
        count: How many blocks the name stands for.
        kind: The type of its module, or how many modules it spans.
        layers: The linear layers in one block.
        parameters: The numbers that one block stores.
        share: What all of them store of the network's numbers, in [0, 1].
        sizes: How many numbers go into the block and come out; None if unknown.
        macs: The multiply-adds of one block for one example; None without inputs.
        obstacle: Why it cannot be replaced; None if it can or was not tried.
        suggestion: A layer to begin with, for the outermost blocks of at least two layers that can be replaced.
        measured: What a few hundred inputs tell of it; None without them, or if it cannot be replaced.
    """

    name: str
    count: int
    kind: str
    layers: int
    parameters: int
    share: float
    sizes: tuple[int, int] | None
    macs: int | None = None
    obstacle: str | None = None
    suggestion: Block | None = None
    measured: Measured | None = None

    @property
    def kept(self) -> float:
        """The share of the block's numbers that the suggested layer stores."""
        if self.suggestion is None or self.sizes is None:
            return 1.0
        return block_size(self.suggestion, *self.sizes) / self.parameters


@dataclass(frozen=True, repr=False)
class Survey(Reported):
    """What can be done with a network; at the prompt it shows a table.

    Args:
        network: The type of the network.
        parameters: Its stored numbers.
        tried: Whether inputs were there to try the candidates.
        candidates: The blocks of linear layers, outer ones first.
        others: For each type of module with parameters that is no linear layer and in no block, how many it has.
    """

    network: str
    parameters: int
    tried: bool
    candidates: tuple[Candidate, ...]
    others: dict[str, int]

    @property
    def suggestions(self) -> tuple[Candidate, ...]:
        """The candidates to begin with."""
        return tuple(one for one in self.candidates if one.suggestion is not None)

    def __rich__(self) -> Group:
        """The table and what is to be said of it, for rich consoles."""
        from rich.console import Group  # rich is slow to import, and only this needs it

        return Group(*_parts(self))

    def __str__(self) -> str:
        """The same as text, 80 columns wide."""
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=80, color_system=None, highlight=False, markup=False, emoji=False).print(self)
        return text.getvalue().rstrip()


def _parts(found: Survey) -> Iterator[RenderableType]:
    """What is shown, one below the other."""
    yield f"{found.network}: {found.parameters:,} parameters"
    if found.candidates:
        yield _blocks(found)
    if found.others:
        others = ", ".join(f"{kind} {number:,}" for kind, number in found.others.items())
        yield f"\nParameters that are not in linear layers, and so in no block: {others}."
        if any(kind.startswith("Conv") for kind in found.others):
            yield "Convolutions are replaced by a budget (--budget 50%), one by one or in rows."
    measured = [one for one in found.candidates if one.measured is not None]
    if measured:
        yield "\nWhat a few hundred inputs tell of blocks that can be replaced:"
        yield _measures(measured)
        yield READING
    yield from _obstacles([one for one in found.candidates if one.obstacle is not None])


def _table(right: tuple[str, ...]) -> Table:
    """An empty table: names of blocks, which may be folded, and columns of numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("block", overflow="fold")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _blocks(found: Survey) -> Table:
    """All blocks with their sizes."""
    names = ("layers", "in", "out", "parameters", "share", "MACs")
    table = _table(names if found.tried else names[:5])
    table.add_column("possible" if found.tried else "type", no_wrap=True)
    for one in found.candidates:
        table.add_row(*_cells(one, found.tried))
    return table


def _cells(one: Candidate, tried: bool) -> list[str]:
    sizes = ("", "") if one.sizes is None else tuple(f"{size:,}" for size in one.sizes)
    cells = [_name(one), str(one.layers), *sizes, f"{one.parameters:,}", f"{100 * one.share:.1f} %"]
    if not tried:
        return [*cells, one.kind]
    return [*cells, "" if one.macs is None else f"{one.macs:,}", "yes" if one.obstacle is None else "no"]


def _name(one: Candidate) -> str:
    name = one.name or '"" (whole network)'
    return name if one.count == 1 else f"{name} (x{one.count})"


def _measures(candidates: list[Candidate]) -> Table:
    """What was measured of blocks."""
    table = _table(("nonlinear", "rank", "factor", "time", "memory"))
    for one in candidates:
        if one.measured is not None:
            table.add_row(_name(one), *_measured(one.measured, " each" if one.count > 1 else ""))
    return table


def _measured(one: Measured, each: str) -> list[str]:
    share = "" if one.nonlinearity is None else f"{100 * one.nonlinearity:.1f} %"
    if one.layer is None or one.seconds is None or one.memory is None:
        return [share, "", "", "", ""]
    factor = "" if one.layer.factor is None else str(one.layer.factor)
    return [share, str(one.layer.rank), factor, in_words(one.seconds) + each, in_units(one.memory)]


def _obstacles(refused: list[Candidate]) -> Iterator[RenderableType]:
    from rich.padding import Padding

    if refused:
        yield "\nWhy some cannot be replaced:"
    for one in refused[:MOST_OBSTACLES]:
        yield f"  {one.name or 'the whole network'}"
        yield Padding(one.obstacle or "", (0, 0, 0, 6))
    if len(refused) > MOST_OBSTACLES:
        yield f"  and {len(refused) - MOST_OBSTACLES} more, with --json"
