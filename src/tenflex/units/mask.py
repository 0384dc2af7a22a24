"""Which positions of the inputs hold something, and which are padding."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter, signature

import torch
from torch import Tensor, nn

from tenflex.checks import near_names
from tenflex.surgery.batch import Batch, describe
from tenflex.units.base import Unit
from tenflex.units.patch import Patch

USUAL = "attention_mask"
"""What a mask is called unless the user says otherwise."""

INVERTED = "padding_mask"
"""Masks whose names end so are true at padding, as `key_padding_mask` of PyTorch; all others where something is."""


def mask_in(model: nn.Module, batch: Batch, name: str | None) -> Tensor | None:
    """The input of a network that tells which positions are padding, as it is passed; None where there is none.

    Args:
        model: The network.
        batch: What it is called with.
        name: The name of the argument; None for `attention_mask`, if there is one.

    Raises:
        ValueError: if there is no input of that name, or it has not two dimensions.
    """
    named = by_name(model, batch)
    if name is not None and name not in named:
        raise ValueError(f"mask={name!r} is none of the inputs {sorted(named)}{near_names(name, named)}")
    mask = named.get(name or USUAL)
    if mask is not None and mask.ndim != 2 and name is not None:
        raise ValueError(f"expected mask={name!r} to be of shape (examples, positions), got {describe(mask)}")
    return None if mask is None or mask.ndim != 2 else mask


def find_mask(model: nn.Module, batch: Batch, name: str | None) -> Tensor | None:
    """The mask among the inputs of a network: true where there is something, `(S, positions)`.

    Args:
        model: The network.
        batch: What it is called with.
        name: The name of the argument; None for `attention_mask`, if there is one.

    Returns:
        The mask; None if no name was given and there is none of two dimensions.

    Raises:
        ValueError: if there is no input of that name, or it has not two dimensions.
    """
    mask = mask_in(model, batch, name)
    return None if mask is None else somewhere(mask, (name or USUAL).endswith(INVERTED))


def by_name(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The tensors of a batch by the names of the arguments that they are passed as."""
    if isinstance(batch, Mapping):
        return dict(batch)
    given = [batch] if isinstance(batch, Tensor) else list(batch)
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    try:
        names = [one.name for one in signature(model.forward).parameters.values() if one.kind in positional]
    except (TypeError, ValueError):
        return {}
    return dict(zip(names, given, strict=False))


def somewhere(mask: Tensor, inverted: bool) -> Tensor:
    """Where there is something; in masks that are added, with negative numbers at padding, that is where zeros are."""
    added = mask.is_floating_point() and not bool((mask > 0).any())  # nor is all of some inputs padding
    return mask == 0 if added or inverted else mask != 0


def mask_for(unit: Unit, each: int, mask: Tensor | None, name: str | None, calls: int = 1) -> Tensor | None:
    """The mask, where it is one of the rows of a block.

    Args:
        unit: What a row is.
        each: How many examples of the block one example of the network becomes.
        mask: The mask among the network's inputs.
        name: The name by which it was asked for.
        calls: How many of these are of different calls of the block; the mask is the same for all of them.

    Raises:
        ValueError: if it was asked for, and the block has other positions.
    """
    once = each // calls
    inside = (once, *unit.places) if once > 1 else unit.places
    if mask is None or not inside or isinstance(unit, Patch):
        return None
    if torch.Size(inside).numel() == mask.shape[1] and len(inside) == 1:
        return mask.repeat_interleave(calls, 0 if unit.places else 1)
    if name is not None:
        raise ValueError(f"expected positions as in mask={name!r}, {mask.shape[1]}, got {inside}: leave it out")
    return None
