"""Sums over samples, and passing over samples some at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK = 2**22
"""Numbers of an intermediate held at a time: 32 MiB in float64."""


Operation = Literal["sum", "smallest", "largest"]

Exchange = Callable[[Tensor, Operation], Tensor]
"""From what this process has, what all processes have together."""

_exchange: ContextVar[Exchange | None] = ContextVar("exchange", default=None)
_number: ContextVar[int] = ContextVar("number", default=0)


@contextmanager
def meeting(exchange: Exchange | None, number: int = 0) -> Iterator[None]:
    """Within, this process holds some of the samples, and sums over all of them are formed with the others'.

    Args:
        exchange: How; None where all samples are at hand.
        number: That of this process, from 0.
    """
    tokens = _exchange.set(exchange), _number.set(number)
    try:
        yield
    finally:
        _exchange.reset(tokens[0])
        _number.reset(tokens[1])


def divided() -> bool:
    """Whether this process holds some of the samples only."""
    return _exchange.get() is not None


def own_number() -> int:
    """The number of this process, for random choices that each makes of its own samples."""
    return _number.get()


def total_of(count: int) -> int:
    """The sum of a whole number over all processes."""
    return int(over_samples(torch.tensor(count, device="cpu")))


def any_of(holds: bool) -> bool:
    """Whether something holds in one of the processes, so that all of them do the same."""
    return bool(over_samples(torch.tensor(float(holds), device="cpu"), "largest"))


def over_samples(partial: Tensor, operation: Operation = "sum") -> Tensor:
    """What the samples at hand give, as what all samples give: the one place where several processes meet.

    Outside of `meeting` all samples are at hand, and there is nothing to add. A process that holds some of them gets
    the same numbers as all others; its own gradient passes through unchanged, as one in `partial`.
    """
    exchange = _exchange.get()
    if exchange is None:
        return partial
    met: Tensor = Met.apply(partial, exchange, operation)
    return met


class Met(torch.autograd.Function):
    """What all processes have, whose gradient passes through."""

    @staticmethod
    def forward(ctx: Any, partial: Tensor, exchange: Exchange, operation: Operation) -> Tensor:
        return exchange(partial.detach(), operation)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None


def sum_of(x: Float[Tensor, "S *rest"]) -> Float[Tensor, "*rest"]:
    """The sum over all samples."""
    return over_samples(x.sum(0))


def gram_matrix(A: Float[Tensor, "S p"], B: Float[Tensor, "S q"] | None = None) -> Float[Tensor, "p q"]:
    """`A^T B`, or `A^T A`, summed over all samples."""
    return over_samples(A.mT @ (A if B is None else B))


def inner_product(A: Float[Tensor, "S *rest"], B: Float[Tensor, "S *rest"]) -> Float[Tensor, ""]:
    """The sum of all products of entries."""
    return over_samples((A * B).sum())


def squared_norm(x: Float[Tensor, "S *rest"]) -> Float[Tensor, ""]:
    """The sum of all squares of entries."""
    return over_samples(torch.linalg.vector_norm(x).square())


def sample_count(x: Float[Tensor, "S *rest"]) -> int:
    """The number of all samples."""
    return int(over_samples(torch.tensor(len(x), device=x.device)))


def mean_of(x: Float[Tensor, "S *rest"], count: int | None = None) -> Float[Tensor, "*rest"]:
    """The mean over all samples; they are counted unless it is told how many there are."""
    return sum_of(x) / (count or sample_count(x))


def centred(x: Float[Tensor, "S *rest"], count: int | None = None) -> Float[Tensor, "S *rest"]:
    """The samples less their mean."""
    return x - mean_of(x, count)


def flattened(x: Float[Tensor, "S *n"]) -> Float[Tensor, "S n"]:
    """One row a sample; of a single number for each sample a row of one."""
    return x.flatten(1) if x.ndim > 1 else x[:, None]


def smallest(x: Float[Tensor, "S *rest"]) -> Float[Tensor, "*rest"]:
    """The least number among all samples; of complex ones the least parts."""
    return over_samples(in_parts(x).amin(0), "smallest")


def largest(x: Float[Tensor, "S *rest"]) -> Float[Tensor, "*rest"]:
    """The greatest number among all samples; of complex ones the greatest parts."""
    return over_samples(in_parts(x).amax(0), "largest")


def in_parts(x: Tensor) -> Tensor:
    """Complex numbers, which have no order, as their two parts; others as they are."""
    return torch.view_as_real(x) if x.is_complex() else x


def alike(x: Float[Tensor, "S *rest"]) -> bool:
    """Whether all samples are the same."""
    return not bool((largest(x) > smallest(x)).any())


def shared(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The same tensors, whose gradients are then sums over all samples: for what every sample is computed from."""
    return Shared.apply(*tensors)


class Shared(torch.autograd.Function):
    """The identity, with gradients that are summed over the samples: all of them at once."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.exchange = _exchange.get()  # on accelerators the backward pass has a thread of its own
        return tensors

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        with meeting(ctx.exchange):
            total = over_samples(torch.cat([one.flatten() for one in gradients]))
        parts = total.split([one.numel() for one in gradients])
        return tuple(part.view_as(one) for part, one in zip(parts, gradients, strict=True))


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
