"""`tenflex inspect`: the blocks of a network that can be replaced."""

from __future__ import annotations

import math
import shlex
from dataclasses import asdict, dataclass
from typing import Any

from tenflex.cli.blocks import format_block
from tenflex.cli.console import show, show_json, show_line
from tenflex.cli.errors import InputError
from tenflex.cli.network import load_network
from tenflex.cli.options import DEVICE, INPUTS, MODEL, STATE, argument, command, option
from tenflex.cli.settings import Settings
from tenflex.cli.tensors import load_inputs
from tenflex.evaluate.cost import describe_kept
from tenflex.inspect import inspect as look
from tenflex.planning.surveyed import Candidate, Survey


@dataclass(frozen=True, kw_only=True)
class InspectSettings(Settings):
    """What `tenflex inspect` looks at."""

    model: str = argument(*MODEL)
    weights: str | None = option(*STATE)
    device: str | None = option(*DEVICE)
    inputs: str | None = option(*INPUTS)


@command(InspectSettings)
def inspect(settings: InspectSettings, json: bool) -> None:
    """List the blocks of a network that a flexible layer can replace.

    With --inputs each block is taken out of the network once, to see whether it can be; of those that can, it is told
    how nonlinear they are, and how long a compression takes.
    """
    network = load_network(settings.model, settings.weights, settings.device)
    found = look(network, None if settings.inputs is None else load_inputs(settings.inputs))
    if json:
        show_json(_to_dict(found))
    else:
        show(found)
        _show_suggestions(found, settings)


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
