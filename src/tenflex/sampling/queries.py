"""Inputs beside the given ones, at which the original network is asked too."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tenflex.checks import require_finite
from tenflex.surgery.batch import Batch, clone, count_samples, describe, each, rows_of, tensors_in

Augment = Callable[[Any], Any]
"""Changed copies of inputs: a batch as the network is called with it, to one of the same form."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of torch, NumPy and Python follow from a seed inside, and go on as before afterwards."""
    drawn, plain = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(drawn)
            random.setstate(plain)


def changed(augment: Augment, batch: Batch, seed: int) -> Batch:
    """What an `augment` makes of a copy of a batch.

    Raises:
        TypeError: if it is no function, or gives no tensors.
        ValueError: if what it gives has other shapes or dtypes than the batch, or is not finite.
    """
    with seeded(seed):
        return altered(augment, batch)


def altered(augment: Augment, batch: Any) -> Any:
    """The same with the random numbers that come next, as inside of a training that is seeded as a whole.

    Raises:
        TypeError: if it is no function, or gives no tensors.
        ValueError: if what it gives has other shapes or dtypes than the batch, or is not finite.
    """
    if not callable(augment):
        raise TypeError(f"augment must be a function from inputs to changed inputs, got {augment!r}")
    with torch.no_grad():
        found = augment(clone(batch))
    if _forms(found) != _forms(batch):
        raise ValueError(
            f"augment must give inputs of the same shapes and dtypes, got {describe(found)} for {describe(batch)}"
        )
    for one in tensors_in(found):
        require_finite("what augment gives", one)
    return found


def _forms(batch: Any) -> Any:
    names = sorted(batch) if isinstance(batch, dict) else type(batch).__name__
    return names, [(tuple(one.shape), one.dtype) for one in tensors_in(batch)]


@dataclass(frozen=True, eq=False)
class Padding:
    """What is known of padding.

    Args:
        mask: The tensor among the inputs that tells it, which is neither mixed nor has noise.
        there: Where there is something, `(S, positions)`.
    """

    mask: Tensor
    there: Bool[Tensor, "S positions"]

    def of(self, one: Tensor) -> Bool[Tensor, "S *in"] | None:
        """Where there is something, for a tensor that has these positions; None for others."""
        alike = one.ndim >= 2 and one.shape[:2] == self.there.shape
        return self.there.to(one.device).view(*self.there.shape, *[1] * (one.ndim - 2)) if alike else None


def mixed(batch: Batch, share: float, generator: torch.Generator, padding: Padding | None = None) -> Batch:
    """A batch of which a share of the rows became mixes of two of them, each with weights drawn evenly.

    A row stays as it is where the other one is padding.
    """
    count = count_samples(batch)
    other = torch.randperm(count, generator=generator, device="cpu")
    weight = torch.rand(count, generator=generator, device="cpu")
    chosen = torch.rand(count, generator=generator, device="cpu") < share
    weight = torch.where(chosen, weight, torch.ones_like(weight))

    def with_another(one: Tensor) -> Tensor:
        there, order = None if padding is None else padding.of(one), other.to(one.device)
        found = torch.lerp(one[order], one, _column(weight, one))
        return found if there is None else torch.where(there[order], found, one)

    return _rows(batch, with_another, padding)


def noisy(
    batch: Batch,
    spreads: Sequence[Tensor],
    size: float,
    generator: torch.Generator,
    padding: Padding | None = None,
) -> Batch:
    """A batch with normal noise, of a share of how much each number varies among all inputs.

    Args:
        batch: The inputs.
        spreads: The standard deviation of each of their numbers, from `spreads_of`.
        size: The share.
        generator: Of the noise.
        padding: What is known of it.
    """
    deviations = iter(spreads)

    def with_noise(one: Tensor) -> Tensor:
        noise = torch.randn(one.shape, generator=generator, dtype=torch.float32, device="cpu")
        return one + size * next(deviations) * noise.to(one)

    return _rows(batch, with_noise, padding)


def spreads_of(batch: Batch, padding: Padding | None = None) -> list[Tensor]:
    """The standard deviation of every number of the inputs that can have noise, one row for each such tensor."""
    return [deviation_of(one, None if padding is None else padding.of(one)) for one in mixable(batch, padding)]


def deviation_of(one: Float[Tensor, "S *in"], there: Bool[Tensor, "S *in"] | None) -> Float[Tensor, "1 *in"]:
    """The standard deviation of every number, of the samples where there is something."""
    if there is None:
        return one.std(0, correction=0, keepdim=True)
    wide, count = one.float() if one.dtype.itemsize < 4 else one, there.sum(0, keepdim=True).clamp(min=1)
    mean = torch.where(there, wide, 0).sum(0, keepdim=True) / count
    return (torch.where(there, wide - mean, 0).square().sum(0, keepdim=True) / count).sqrt().to(one)


def mixable(batch: Batch, padding: Padding | None = None) -> list[Tensor]:
    """The tensors of real numbers with a row for each sample, without the mask."""
    mask = None if padding is None else padding.mask
    return [one for one in rows_of(batch) if one.is_floating_point() and one is not mask]


def _rows(batch: Batch, change: Callable[[Tensor], Tensor], padding: Padding | None) -> Batch:
    """The batch, whose tensors that can be mixed are changed."""
    known = {id(one) for one in mixable(batch, padding)}
    return each(batch, lambda one: change(one) if id(one) in known else one)


def _column(weight: Tensor, like: Tensor) -> Tensor:
    return weight.to(like).view(-1, *[1] * (like.ndim - 1))


def require_mixable(batch: Batch, padding: Padding | None = None) -> None:
    """Raise ValueError unless a batch has real numbers, of which mixes and noise can be made, beside a mask."""
    if not mixable(batch, padding):
        raise ValueError(
            f"mixes and noise need inputs of real numbers, got {describe(batch)}: leave mix and noise out, or pass an "
            f"augment"
        )


def joined(groups: Int[Tensor, " rows"], count: int) -> Int[Tensor, " rows"]:
    """Groups of inputs and of changed copies, where a copy and its origin are one group.

    Args:
        groups: Of the inputs and, behind them, of their copies in the same order, once or several times.
        count: The number of inputs.
    """
    parents = list(range(int(groups.max()) + 1))

    def root(one: int) -> int:
        while parents[one] != one:
            one = parents[one]
        return one

    numbers = groups.tolist()
    for place, one in enumerate(numbers):
        low, high = sorted((root(one), root(numbers[place % count])))
        parents[high] = low
    renumbered: dict[int, int] = {}
    return groups.new_tensor([renumbered.setdefault(root(one), len(renumbered)) for one in numbers])
