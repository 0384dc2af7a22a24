"""`tenflex inspect`: the blocks of a network that can be replaced."""

from __future__ import annotations

import math
import shlex
from dataclasses import asdict, dataclass
from typing import Any

from rich.padding import Padding
from rich.table import Table
from torch import nn

from tenflex.cli.blocks import format_block
from tenflex.cli.console import show, show_json, show_line, table_of
from tenflex.cli.errors import InputError
from tenflex.cli.network import load_network
from tenflex.cli.options import INPUTS, MODEL, STATE, argument, command, option
from tenflex.cli.settings import Settings
from tenflex.cli.tensors import load_inputs
from tenflex.evaluate.cost import describe_kept
from tenflex.planning.survey import Candidate, Survey, survey
from tenflex.sampling.inputs import read
from tenflex.surgery.batch import Batch, take

EXAMPLES = 4
"""So many inputs say how tensors flow."""

MOST_OBSTACLES = 8
"""More reasons than this are counted, and given in full by --json."""


@dataclass(frozen=True, kw_only=True)
class InspectSettings(Settings):
    """What `tenflex inspect` looks at."""

    model: str = argument(*MODEL)
    weights: str | None = option(*STATE)
    inputs: str | None = option(*INPUTS)


@command(InspectSettings)
def inspect(settings: InspectSettings, json: bool) -> None:
    """List the blocks of a network that a flexible layer can replace.

    With --inputs each block is taken out of the network once, to see whether it can be.
    """
    network = load_network(settings.model, settings.weights)
    found = survey(network, None if settings.inputs is None else _example(settings.inputs, network))
    if json:
        show_json(_to_dict(found))
    else:
        _show(found, settings)


def _example(inputs: str, network: nn.Module) -> Batch:
    """The first few inputs."""
    return take(next(read(network, load_inputs(inputs), EXAMPLES)), slice(EXAMPLES))


def _show(found: Survey, settings: InspectSettings) -> None:
    show(f"{found.network}: {found.parameters:,} parameters")
    if found.candidates:
        show(_table(found))
    if found.others:
        others = ", ".join(f"{kind} {number:,}" for kind, number in found.others.items())
        show("", f"Parameters that are not in linear layers, and so in no block: {others}.")
    _show_obstacles([one for one in found.candidates if one.obstacle is not None])
    _show_suggestions(found, settings)


def _table(found: Survey) -> Table:
    table = table_of("block")
    for name in ("layers", "in", "out", "parameters", "share", "MACs")[: 6 if found.tried else 5]:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("possible" if found.tried else "type", no_wrap=True)
    for one in found.candidates:
        table.add_row(*_cells(one, found.tried))
    return table


def _cells(one: Candidate, tried: bool) -> list[str]:
    name = one.name or '"" (whole network)'
    sizes = ("", "") if one.sizes is None else tuple(f"{size:,}" for size in one.sizes)
    cells = [name if one.count == 1 else f"{name} (x{one.count})", str(one.layers), *sizes, f"{one.parameters:,}"]
    cells.append(f"{100 * one.share:.1f} %")
    if not tried:
        return [*cells, one.kind]
    return [*cells, "" if one.macs is None else f"{one.macs:,}", "yes" if one.obstacle is None else "no"]


def _show_obstacles(refused: list[Candidate]) -> None:
    if refused:
        show("", "Why some cannot be replaced:")
    for one in refused[:MOST_OBSTACLES]:
        show(f"  {one.name or 'the whole network'}", Padding(one.obstacle or "", (0, 0, 0, 6)))
    if len(refused) > MOST_OBSTACLES:
        show(f"  and {len(refused) - MOST_OBSTACLES} more, with --json")


def _command(found: Survey, settings: InspectSettings) -> str:
    """A command that lets measured curves choose."""
    kept = sum(one.count * (1 - one.kept) * one.parameters for one in found.suggestions)
    share = max(5, math.ceil(100 * (1 - kept / found.parameters)))
    given = ["tenflex", "compress", settings.model]
    given += [] if settings.weights is None else ["--weights", settings.weights]
    return shlex.join([*given, "--inputs", settings.inputs or "FILE", "--budget", f"{share}%", "--out", "small"])


def _show_suggestions(found: Survey, settings: InspectSettings) -> None:
    if not found.suggestions:
        show("", "Nothing to suggest: no linear layers that follow each other, or too small ones.")
        return
    show("", "To begin with, so that measured curves choose the blocks and their sizes:")
    show_line(f"  {_command(found, settings)}")
    show("", "Or by hand, in the place of --budget:")
    for one in found.suggestions:
        after = round(one.kept * one.parameters)
        numbers = describe_kept(one.parameters, after)
        show(
            f"  {_option(one)}",
            f"      {numbers}: {one.parameters:,} -> {after:,} parameters{' each' * (one.count > 1)}",
        )
    if not found.tried:
        show("Give --inputs to see whether these blocks can be taken out of the network.")


def _option(one: Candidate) -> str:
    if one.suggestion is None:
        raise InputError(f"there is no suggestion for {one.name!r}")
    return format_block(one.name, one.suggestion)


def _to_dict(found: Survey) -> dict[str, Any]:
    suggested = [{"block": one.name, "option": _option(one), "kept": one.kept} for one in found.suggestions]
    candidates = [asdict(one) for one in found.candidates]
    return {**asdict(found), "candidates": candidates, "suggestions": suggested}
