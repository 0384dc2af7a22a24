"""Whether the rows that arrive at a block are those of one input after another."""

from __future__ import annotations

from torch import Tensor

MOVED = 0.01
"""Rows that differ by more than this share of what they vary are not the same."""


def require_rows_of_all(arriving: Tensor, count: int) -> None:
    """Raise ValueError unless what arrives at a block for so many inputs has as many rows of each."""
    if len(arriving) == 0 or len(arriving) % count:
        raise ValueError(
            f"expected rows of each of {count} inputs to arrive, as many of each, got {len(arriving)}: where positions "
            f"and inputs are on one axis, keep them apart, as (inputs, positions, features) or (positions, inputs, "
            f"features), or name a module around the block in which they are; where inputs are sent different ways, as "
            f"to experts, name the module around them"
        )


def require_rows_in_order(arriving: Tensor, turned: Tensor, count: int) -> None:
    """Raise ValueError unless the rows of an input arrive one after another.

    Only then are they held out together. Rows that come position by position on one axis, or of two towers at once, as
    of joined inputs, move in another way when the inputs are turned round.

    Args:
        arriving: What arrives for some inputs.
        turned: What arrives for the same inputs, the last one first.
        count: How many inputs these are.
    """
    expected = arriving.unflatten(0, (count, -1)).flip(0).flatten(0, 1).double()
    size = (expected - expected.mean(0)).norm()
    if turned.shape != arriving.shape or bool((turned.double() - expected).norm() > MOVED * size):
        raise ValueError(
            "expected the rows of an input to arrive one after another, as those of (inputs, positions, features) do, "
            "but they come in another order on one axis, position by position or of inputs that are joined: samples "
            "could not be held out by inputs. Keep the axes apart, as (positions, inputs, features), bring the inputs "
            "to the front before the block, or name a module around it in which they are"
        )
