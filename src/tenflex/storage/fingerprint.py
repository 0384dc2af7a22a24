"""A few numbers that tell tensors apart, and survive the rounding of another machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tenflex.surgery.facts import require_form

GOLDEN = 2654435761
"""`2^32` over the golden ratio: its multiples, modulo `2^32`, are spread evenly, and are the same on every machine."""

CHUNK = 2**20
"""Numbers that are looked at together."""

HUGE = 1e30
"""Numbers from here on are compared by where they stand: infinities, and what masks use in their place."""


def spread(count: int, start: int = 0) -> Tensor:
    """Numbers in [0, 1) that look random and are always the same."""
    return (torch.arange(1 + start, 1 + start + count, device="cpu") * GOLDEN % 2**32).double() / 2**32


def fingerprint(*tensors: Tensor) -> list[float]:
    """The size, the norm and some projections of tensors, and a projection of the places of huge numbers."""
    count, sums = 0, torch.zeros(5, dtype=torch.float64, device="cpu")
    for tensor in tensors:
        for part in _numbers(tensor).split(CHUNK):
            x = part.to("cpu", torch.float64)
            huge = ~(x.abs() < HUGE)
            places = torch.where(huge, x.sign().nan_to_num(2.0), 0.0)
            x = torch.where(huge, 0.0, x)
            weights = [2 * spread(len(x), count + start) - 1 for start in (0, 987, 46368)]
            sums += torch.stack([x @ x, *(x @ one for one in weights), places @ (weights[0] + 1.5)])
            count += len(x)
    found = [sums[0].sqrt(), *sums[1:]]
    return [count, *(float(f"{one.item():.9g}") for one in found)]


def _numbers(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().resolve_conj()
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).flatten()


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """How far two fingerprints are apart, relative to the larger norm; infinite for other sizes."""
    if one[0] != other[0] or abs(one[-1] - other[-1]) > 1e-6 * (1 + abs(one[-1])):
        return float("inf")
    size = max(one[1], other[1])
    return max(abs(a - b) for a, b in zip(one[1:-1], other[1:-1], strict=True)) / size if size > 0 else 0.0


Sums = tuple[tuple[float, float], ...]
"""The sum and the norm of every tensor of a network."""

SAME = 1e-9
"""Of the norm: sums in double precision differ by less, whatever the number of threads, and by more after training."""


def sums_of(model: nn.Module) -> Sums:
    """What tells quickly, and within a process, whether weights have changed: whole numbers, such as counts, are left.

    No other precision and no other device changes the sums, as long as it holds the same numbers.
    """
    state = model.state_dict(keep_vars=True).values()
    real = (one for one in state if isinstance(one, Tensor) and (one.is_floating_point() or one.is_complex()))
    return tuple(map(_sum_and_norm, real))


def _sum_and_norm(tensor: Tensor) -> tuple[float, float]:
    sums = torch.zeros(2, dtype=torch.float64, device="cpu")
    for part in _numbers(tensor).split(CHUNK):
        x = part.to("cpu", torch.float64).nan_to_num(0.0, 0.0, 0.0)
        sums += torch.stack([x.sum(), x @ x])
    return sums[0].item(), sums[1].sqrt().item()


def same_sums(one: Sums, other: Sums) -> bool:
    """Whether these are the sums of the same numbers."""
    near = (
        abs(a - b) <= SAME * max(pair[1], far[1])
        for pair, far in zip(one, other, strict=True)
        for a, b in zip(pair, far, strict=True)
    )
    return one == other or (len(one) == len(other) and all(near))


def read_fingerprint(name: str, value: Any) -> list[float]:
    """The fingerprint that was written.

    Raises:
        ValueError: if it is none.
    """
    good = isinstance(value, list) and len(value) == 6 and all(isinstance(one, (int, float)) for one in value)
    require_form(name, value, good, "six numbers")
    return list(value)


def rounding(dtype: torch.dtype) -> float:
    """The relative difference that the rounding of another machine may make in the outputs of a network."""
    return 3 * torch.finfo(dtype).eps ** 0.5


def slack(dtype: torch.dtype) -> float:
    """The same in a tensor that another machine, or another version of a library, has made."""
    if not (dtype.is_floating_point or dtype.is_complex):
        return 1e-9
    return 1e-5 if torch.finfo(dtype).eps < 1e-6 else 1e-2
