"""What one sample of a block is: as asked, or found out."""

from __future__ import annotations

from torch import Tensor, nn

from tenflex.units.base import Unit
from tenflex.units.example import Example
from tenflex.units.patch import Patch, find_patch
from tenflex.units.position import Position, positions

UNITS = tuple(one.name for one in (Example, Position, Patch))
"""What can be asked for."""


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
    if asked == "example":
        return Example()
    if asked != "patch" and positions(block, arriving):
        return Position(tuple(arriving.shape[1:-1]))
    if asked == "position":
        raise ValueError("it does not act on the last dimension of its inputs alone: unit='position' is not for it")
    try:
        patch = find_patch(block, arriving)
    except ValueError as error:
        if asked == "patch":
            raise ValueError(f"unit='patch' is not for it: {error}") from None
        return Example()
    return patch if asked == "patch" or max(patch.places) > 1 else Example()


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
    """The shape of one sample of a block, an example, a position or a patch, and how many outputs it has."""
    if isinstance(unit, Patch):
        return (arriving.shape[1], *unit.window.kernel), leaving.shape[1]
    if isinstance(unit, Position):
        return (arriving.shape[-1],), leaving.shape[-1]
    return tuple(arriving.shape[1:]), leaving[0].numel()
