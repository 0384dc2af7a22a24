"""What one sample of a block is: as asked, or found out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tenflex.units.base import Unit
from tenflex.units.example import Example
from tenflex.units.patch import Patch, find_patch
from tenflex.units.position import Position

UNITS: dict[str, type[Unit]] = {one.name: one for one in (Example, Position, Patch)}
"""What can be asked for; one of one's own is known, and can be asked for, once it is here."""


def find_unit(block: nn.Module, arriving: Tensor, asked: str | None = None) -> Unit:
    """What one sample of a block is.

    Positions if the block acts on the last dimension alone; patches if it acts alike at all places of an image or
    signal, and one place does not see all of it; else the whole example.

    Args:
        block: The block, `(S, *in) -> (S, *out)`.
        arriving: Some of its inputs.
        asked: One of `UNITS`, where it is not to be found out.

    Raises:
        ValueError: if the block has not what is asked for, with the reason.
    """
    if asked is not None:
        try:
            return UNITS[asked].find(block, arriving)
        except ValueError as error:
            raise ValueError(f"unit={asked!r} is not for it: {error}") from None
    for kind in (Position, Patch):
        try:
            unit = kind.find(block, arriving)
        except ValueError:
            continue
        if kind is Position or max(unit.places) > 1:
            return unit
    return Example()


def patches_of_kernel(convolution: nn.Module, arriving: Tensor) -> Unit:
    """The patches on which the kernel of a convolution is fitted.

    Raises:
        ValueError: if it has none, with the reason.
    """
    try:
        return find_patch(convolution, arriving)
    except ValueError as error:
        raise ValueError(f"a thin kernel is fitted on the patches that it sees: {error}") from None


def sample_of(unit: Unit, arriving: Tensor, leaving: Tensor) -> tuple[tuple[int, ...], int]:
    """The shape of one sample of a block, such as an example or a patch, and how many outputs it has."""
    first = torch.zeros(1, dtype=torch.int64, device=arriving.device)
    row = unit.inputs(arriving[:1], first, first)
    return tuple(row.shape[1:]), unit.outputs(leaving[:1], first, first).numel()
