"""Passing over samples, some at a time."""

from __future__ import annotations

from collections.abc import Iterator

CHUNK = 2**22
"""Numbers of an intermediate held at a time: 32 MiB in float64."""


def at_once(width: int) -> int:
    """How many samples, at least one, are held at a time for `width` numbers to a sample."""
    return max(1, CHUNK // max(width, 1))


def chunks(count: int, width: int) -> Iterator[slice]:
    """Ranges of `count` samples, of about `CHUNK` numbers each for `width` numbers to a sample."""
    step = at_once(width)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def fits(numbers: int) -> bool:
    """Whether an intermediate may be formed as a whole."""
    return numbers <= CHUNK
