"""Made-up inputs of the form of those that a network was compressed with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tenflex.storage.fingerprint import spread
from tenflex.surgery.batch import Batch, arguments, few, take
from tenflex.surgery.facts import require_form

SAMPLES = 2
"""Samples in a made-up batch."""

LARGEST = 2**26
"""Numbers of a made-up batch: a larger one is not made."""


@dataclass(frozen=True)
class Probe:
    """Inputs of the form of those that a network was compressed with: the numbers are made up, and no data are kept.

    Args:
        args: The shape, dtype, and smallest and largest number of every positional argument.
        kwargs: The same of keyword arguments.
    """

    args: tuple[Form, ...]
    kwargs: Mapping[str, Form]

    @classmethod
    def of(cls, batch: Batch) -> Probe | None:
        """The form of a batch; None if it cannot be made up."""
        try:
            args, kwargs = arguments(take(few(batch), slice(SAMPLES)))
        except (TypeError, ValueError):
            return None
        whole = [*args, *kwargs.values()]
        if any(one.is_complex() or not one.numel() for one in whole) or sum(one.numel() for one in whole) > LARGEST:
            return None
        return cls(tuple(map(Form.of, args)), {name: Form.of(one) for name, one in kwargs.items()})

    def batch(self, device: torch.device) -> Batch:
        """The made-up inputs."""
        made = {name: one.tensor(device) for name, one in self.kwargs.items()}
        return made or tuple(one.tensor(device) for one in self.args)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "args": [one.to_list() for one in self.args],
            "kwargs": {name: one.to_list() for name, one in self.kwargs.items()},
        }

    @classmethod
    def from_dict(cls, saved: Any) -> Probe:
        """The form that `to_dict` described.

        Raises:
            ValueError: if it has another form, or is larger than any that is made.
        """
        good = isinstance(saved, Mapping) and isinstance(saved.get("args"), list)
        require_form("the inputs", saved, good and isinstance(saved.get("kwargs"), Mapping), "args and kwargs")
        args = tuple(map(Form.from_list, saved["args"]))
        kwargs = {str(name): Form.from_list(one) for name, one in saved["kwargs"].items()}
        size = sum(math.prod(one.shape) for one in (*args, *kwargs.values()))
        require_form("the size of the inputs", size, size <= LARGEST, f"at most {LARGEST}")
        return cls(args, kwargs)


@dataclass(frozen=True)
class Form:
    """Shape, dtype and range of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    low: float
    high: float

    @classmethod
    def of(cls, tensor: Tensor) -> Form:
        """That of a tensor."""
        numbers = tensor.int() if tensor.dtype == torch.bool else tensor
        return cls(tuple(tensor.shape), tensor.dtype, numbers.min().item(), numbers.max().item())

    def tensor(self, device: torch.device) -> Tensor:
        """A tensor of this form."""
        share = spread(math.prod(self.shape)).view(self.shape)
        if not self.dtype.is_floating_point:
            return (self.low + (share * (self.high - self.low + 1)).floor()).to(device, self.dtype)
        return (self.low + share * (self.high - self.low)).to(device, self.dtype)

    def to_list(self) -> list[Any]:
        """Plain values."""
        return [list(self.shape), str(self.dtype).removeprefix("torch."), self.low, self.high]

    @classmethod
    def from_list(cls, saved: Any) -> Form:
        """The form that `to_list` described; ValueError if there is none."""
        good = isinstance(saved, list) and len(saved) == 4 and isinstance(saved[0], list)
        good = good and all(type(one) is int and one > 0 for one in saved[0])
        good = good and all(isinstance(one, (int, float)) for one in saved[2:])
        require_form("an input", saved, good, "a shape, a dtype and a range")
        return cls(tuple(saved[0]), dtype_called(saved[1]), *saved[2:])


def dtype_called(name: object) -> torch.dtype:
    """The dtype with a name; ValueError if there is none."""
    found = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(found, torch.dtype):
        raise ValueError(f"expected a dtype, got {name!r}: was the file changed?")
    return found
