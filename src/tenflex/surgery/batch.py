"""A batch of network input: a tensor, a tuple of positional tensors, or a mapping of keyword tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Batch: TypeAlias = Tensor | tuple[Tensor, ...] | list[Tensor] | Mapping[str, Tensor]
"""What a network is called with. The first dimension of its first tensor counts the samples."""

FEW = 16
"""Samples with which a network is tried."""


def call(model: nn.Module, batch: Batch) -> Any:
    """The network's output for one batch.

    Raises:
        TypeError: if the batch is not made of tensors.
        ValueError: if the forward pass fails, with the shapes and dtypes that it was given. Lack of memory is raised as
            it is.
    """
    args, kwargs = arguments(batch)
    try:
        return model(*args, **kwargs)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a network may raise
        raise ValueError(
            f"{type(model).__name__} fails on the input {describe(batch)}: {type(error).__name__}: {error}"
        ) from None


def arguments(batch: Batch) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """The positional and the keyword arguments that a batch stands for."""
    args = (batch,) if isinstance(batch, Tensor) else tuple(batch) if isinstance(batch, (tuple, list)) else ()
    kwargs = dict(batch) if isinstance(batch, Mapping) else {}
    values = [*args, *kwargs.values()]
    named = all(isinstance(name, str) for name in kwargs)
    if not values or not named or not all(isinstance(value, Tensor) for value in values):
        raise TypeError(
            f"expected a batch of network input (a tensor, a tuple of tensors, or a mapping from argument names to "
            f"tensors), got {describe(batch)}"
        )
    return args, kwargs


def each(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with every tensor changed."""
    args, kwargs = arguments(batch)
    if kwargs:
        return {name: change(tensor) for name, tensor in kwargs.items()}
    return change(args[0]) if isinstance(batch, Tensor) else tuple(map(change, args))


def clone(batch: Batch) -> Batch:
    """A batch that a network may change in place."""
    return each(batch, lambda tensor: tensor.detach().clone())


def count_samples(batch: Batch) -> int:
    """The number of samples in a batch."""
    args, kwargs = arguments(batch)
    first = next(iter((*args, *kwargs.values())))
    if first.ndim == 0:
        raise ValueError("expected tensors whose first dimension counts the samples, got a tensor without dimensions")
    return len(first)


def rows_of(batch: Batch) -> list[Tensor]:
    """Its tensors whose first dimension counts the samples."""
    args, kwargs = arguments(batch)
    size = count_samples(batch)
    return [tensor for tensor in (*args, *kwargs.values()) if tensor.ndim and len(tensor) == size]


def take(batch: Batch, chosen: slice | Tensor) -> Batch:
    """Some of the samples; tensors with another first dimension, such as a shared mask, are passed on as they are."""
    size = count_samples(batch)
    return each(batch, lambda tensor: tensor[chosen] if tensor.ndim and len(tensor) == size else tensor)


def few(batch: Batch) -> Batch:
    """The first samples of a batch: enough to see what a network does with them, whatever it costs."""
    return take(batch, slice(FEW))


def backwards(batch: Batch) -> Batch:
    """The same samples, the last one first."""
    device = next(tensors_in(batch)).device
    return take(batch, torch.arange(count_samples(batch) - 1, -1, -1, device=device))


def tensors_in(value: Any, kind: type[Any] = Tensor) -> Iterator[Any]:
    """All tensors, or what stands for them, in nested tuples, lists, mappings and dataclasses."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from tensors_in(one, kind)
    elif isinstance(value, (tuple, list, set)):
        for one in value:
            yield from tensors_in(one, kind)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name, None), kind)


def describe(value: Any) -> str:
    """Shapes and dtypes, for messages: `(float32 (4, 1, 28, 28), int64 (4,))`."""
    if isinstance(value, Tensor):
        device = "" if value.device.type == "cpu" else f" on {value.device}"
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}{device}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name!r}: {describe(one)}" for name, one in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of ({', '.join(map(describe, value))})"
    return f"{value!r}" if value is None or isinstance(value, (bool, int, float, str)) else type(value).__name__


def nearly_equal(first: Any, second: Any, eps: float = 0.0) -> bool:
    """Whether all tensors agree up to rounding: within the root of the machine precision of the largest number.

    That is the precision of the tensors, or `eps` where they were computed in a coarser one.
    """
    pairs = list(tensors_in(first)), list(tensors_in(second))
    if len(pairs[0]) != len(pairs[1]):
        return False
    return all(_nearly(one, other, eps) for one, other in zip(*pairs, strict=True))


def _nearly(one: Tensor, other: Tensor, eps: float) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point() or one.numel() == 0:
        return torch.equal(one, other)
    same = one == other  # infinities too, whose difference is NaN
    share = max(torch.finfo(one.dtype).eps, eps) ** 0.5
    bound = share * one[one.isfinite()].abs().amax(0) if one.isfinite().any() else 0
    return bool((same | ((one - other).abs() <= bound)).all())
