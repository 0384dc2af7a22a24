"""Blocks, ranks and bases as texts: `fc1:fc3,rank=40,factor=10`, `20,20` and `Smooth(BSpline(10), 0.1)`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from tenflex.bases.saved import BASES
from tenflex.checks import near_names
from tenflex.cli.errors import InputError
from tenflex.families import Families
from tenflex.modes import MODES
from tenflex.planning.plan import BLOCK_BASES, LOW_RANK, Block, LowRank, Placed

FORM = "NAME,rank=40, FIRST:LAST,rank=40,factor=10, LINEAR,low_rank=20 or CONVOLUTION,low_rank=20,form=cpd"
"""How a block is written; settings are those of `tenflex.Block`, with `rank=20-20` for two layers and so on."""

SETTINGS = tuple(field.name for field in fields(Block))

THIN = (LOW_RANK, "form")
"""The settings of a `LowRank`."""


def parse_blocks(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Blocks with their settings, as plain values that `Plan.from_dict` checks.

    Raises:
        InputError: if a text has another form, or names a block or a setting twice.
    """
    blocks: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, settings = _parse_block(text)
        if name in blocks:
            raise InputError(f"--block names {name!r} twice: leave one out")
        blocks[name] = settings
    return blocks


def _parse_block(text: str) -> tuple[str, dict[str, Any]]:
    """The name of one block, and its settings."""
    name, *parts = _split(text)
    settings: dict[str, Any] = {}
    for part in parts:
        key, equals, value = (one.strip() for one in part.partition("="))
        if not equals or key not in (*SETTINGS, *THIN):
            raise InputError(f"expected a block as {FORM}, got {part!r} in {text!r}{near_names(key, SETTINGS)}")
        if key in settings:
            raise InputError(f"{key} is given twice in {text!r}: leave one out")
        settings[key] = _setting(key, value, text)
    if "rank" not in settings and not (LOW_RANK in settings and set(settings) <= set(THIN)):
        raise InputError(f"expected a block as {FORM}, got {text!r} without a rank")
    return name.strip(), settings


def _split(text: str) -> list[str]:
    """The parts between the commas that are not in brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _whole(key: str, value: str, text: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise InputError(f"{key} must be a whole number, got {value!r} in {text!r}") from None


def _rank(key: str, value: str, text: str) -> int | list[int]:
    """One number of nodes a layer, written `20-20`; that of a single layer is an int."""
    ranks = [_whole(key, one, text) for one in value.split("-")]
    return ranks if len(ranks) > 1 else ranks[0]


def _setting(key: str, value: str, text: str) -> Any:
    """The plain value of a setting."""
    if key in ("unit", "start", "form"):
        return value
    if key in FAMILIES:
        return FAMILIES[key](value)
    return (_rank if key in ("rank", LOW_RANK) else _whole)(key, value, text)


def format_block(name: str, block: Placed) -> str:
    """The option that asks for a block, quoted for a shell: `--block fc1:fc3,rank=40,factor=10`."""
    if isinstance(block, LowRank):
        settings = [
            f"{LOW_RANK}={format_rank(block.rank, '-')}",
            *([] if block.form == "svd" else [f"form={block.form}"]),
        ]
        return f"--block {shlex.quote(','.join([name, *settings]))}"
    given = {key: getattr(block, key) for key in SETTINGS[1:] if getattr(block, key) is not None}
    others = [f"{key}={one if isinstance(one, str) else repr(one)}" for key, one in given.items()]
    settings = [f"rank={format_rank(block.rank, '-')}", *others]
    return f"--block {shlex.quote(','.join([name, *settings]))}"


def _written(value: Any) -> str:
    """A setting as it is written on the command line: texts without quotes."""
    return value if isinstance(value, str) else repr(value)


def format_rank(rank: int | tuple[int, ...] | str, between: str = ",") -> str:
    """A rank as it is written on the command line; in a block a comma would end it."""
    return between.join(map(str, rank)) if isinstance(rank, tuple) else str(rank)


def parse_family(text: str, families: Families, expected: str) -> dict[str, Any]:
    """A value as Python writes it, in the plain values that its families read; nothing is evaluated.

    Args:
        text: What the user wrote.
        families: What it may be.
        expected: The same in words.

    Raises:
        InputError: if it is no call of a family with numbers, texts and families.
    """
    try:
        return families.from_text(text)
    except (SyntaxError, ValueError) as error:
        why = "" if isinstance(error, SyntaxError) else f": {error}"
        raise InputError(f"expected {expected}, got {text!r}{why}") from None


def parse_basis(text: str) -> dict[str, Any]:
    """A basis as Python writes it, in the plain values that `basis_from_dict` reads.

    Raises:
        InputError: if it is no call of a family of functions with numbers, texts and bases.
    """
    return parse_family(text, BASES, "a basis such as BSpline(10) or Smooth(BSpline(10), 0.1)")


def parse_block_basis(text: str) -> dict[str, Any]:
    """What the activations of a block shall be: a basis, or `Own()`.

    Raises:
        InputError: if it is neither.
    """
    return parse_family(text, BLOCK_BASES, "a basis such as BSpline(10) or Smooth(BSpline(10), 0.1)")


def parse_modes(text: str) -> dict[str, Any]:
    """Modes as Python writes them, in the plain values that `MODES` reads.

    Raises:
        InputError: if it is no call of a family of modes with numbers.
    """
    return parse_family(text, MODES, "modes such as Cosine(12) or Tucker(12, shape=(28, 28))")


FAMILIES = {"basis": parse_block_basis, "modes": parse_modes, "output_modes": parse_modes}
"""The settings of a block that are values of families, and how they are read."""
