"""What flexible layers have in common: they map flat numbers, between tensors of any shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.checks import require_whole
from tenflex.factors import Factors
from tenflex.layered import LayeredFactors
from tenflex.nn.maps import fill_, numbers, shape_of, width_of

if TYPE_CHECKING:
    from typing_extensions import Self


class FlatModule(nn.Module):
    """A map of m numbers to n, applied to inputs of one shape and giving outputs of another.

    Args:
        in_shape: The shape of one input, without the batch; m numbers.
        out_shape: The shape of one output; n numbers.
        sizes: Other sizes by name, None where there is none; they are checked.

    Raises:
        TypeError: if a shape is not a tuple.
        ValueError: if a size is not a whole number of at least 1.
    """

    inner: nn.Module
    outer: nn.Module

    def __init__(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...], **sizes: int | None) -> None:
        super().__init__()
        for name, size in sizes.items():
            if size is not None:
                require_whole(name, size, at_least=1)
        self.in_shape, self.out_shape = shape_of("in_shape", in_shape), shape_of("out_shape", out_shape)

    def forward(self, x: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch n"]:
        """The outputs; all dimensions before `in_shape` are batch dimensions."""
        if len(self.in_shape) > 1:
            x = x.flatten(-len(self.in_shape))
        y = self.outer(self.between(self.inner(x)))
        return y.unflatten(-1, self.out_shape) if len(self.out_shape) > 1 else y

    def between(self, t: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch r"]:
        """What stands between the first linear map and the last."""
        raise NotImplementedError

    @classmethod
    def sized_as(
        cls,
        factors: Factors | LayeredFactors,
        shift: Float[Tensor, " r"],
        in_shape: tuple[int, ...] | None,
        out_shape: tuple[int, ...] | None,
        dtype: torch.dtype | None,
        *settings: object,
    ) -> Self:
        """A module with the first and the last linear map of the factors; what stands between is not filled yet.

        Raises:
            ValueError: if a shape has another number of entries than the factors.
        """
        m, n = len(factors.inner[0]), len(factors.outer[0])
        in_shape, out_shape = in_shape or (m,), out_shape or (n,)
        if (numbers(in_shape), numbers(out_shape)) != (m, n):
            raise ValueError(
                f"the factors map {m} numbers to {n}: expected shapes of as many, got {in_shape} and {out_shape}"
            )
        make: Callable[..., Self] = cls
        with torch.device("meta"):  # all is overwritten: draw no random numbers for it
            module = make(in_shape, out_shape, *settings, width_of(factors.inner), width_of(factors.outer))
        module.to(dtype or factors.bias.dtype).to_empty(device=factors.bias.device)
        fill_(module.inner, [one.mT for one in factors.inner], shift)
        fill_(module.outer, list(reversed(factors.outer)), factors.bias)
        return module
