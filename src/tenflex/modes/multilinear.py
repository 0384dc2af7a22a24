"""Products with one matrix an axis: what they do, in which order, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
from jaxtyping import Float
from torch import Tensor

MOST_ORDERS = 6
"""Of up to so many axes all orders are compared; of more, they come in the order of how much they shrink."""


@dataclass(frozen=True, eq=False)
class Multilinear:
    r"""The map :math:`P^\top x` with :math:`P = P_1 \otimes P_2 \otimes \cdots`, whose columns are orthonormal.

    Args:
        shape: The axes of x, `(n1, n2, ...)`.
        frames: Along each axis the directions, `(ni, pi)`; None for an axis that is kept whole.

    Example:
        >>> rows = tenflex.modes.Multilinear((2, 3), (None, torch.eye(3)[:, :1]))  # of each row the first entry
        >>> rows.narrow(torch.arange(6.0)[None]).tolist()
        [[0.0, 3.0]]
    """

    shape: tuple[int, ...]
    frames: tuple[Float[Tensor, "n p"] | None, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers along each axis of what is left."""
        return tuple(axis if one is None else one.shape[1] for axis, one in zip(self.shape, self.frames, strict=True))

    def narrow(self, x: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch k"]:
        """`P^T x`, in the dtype and on the device of x."""
        return products(x, self.shape, [None if one is None else one.to(x) for one in self.frames])

    def widen(self, z: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch m"]:
        """`P z`."""
        return products(z, self.sizes, [None if one is None else one.mT.to(z) for one in self.frames])

    @property
    def widening(self) -> Multilinear:
        """The map `P z`, as one of this kind: its columns are not orthonormal."""
        return Multilinear(self.sizes, tuple(None if one is None else one.mT for one in self.frames))

    def matrix(self) -> Float[Tensor, "m k"]:
        """P itself."""
        device = next((one.device for one in self.frames if one is not None), torch.device("cpu"))
        eye = torch.eye(math.prod(self.sizes), dtype=torch.float64, device=device)
        return self.widen(eye).mT


def products(
    x: Float[Tensor, "*batch m"], shape: tuple[int, ...], matrices: Sequence[Float[Tensor, "n p"] | None]
) -> Float[Tensor, "*batch k"]:
    """The last dimension as a tensor, each of its axes multiplied by a matrix, flat again."""
    used = {axis: one for axis, one in enumerate(matrices) if one is not None}
    x = x.unflatten(-1, shape)
    for axis in cheapest_order(shape, {axis: one.shape[1] for axis, one in used.items()}):
        place = axis - len(shape)
        x = (x.transpose(place, -1) @ used[axis]).transpose(place, -1)
    return x.flatten(-len(shape))


def cheapest_order(shape: tuple[int, ...], sizes: Mapping[int, int]) -> tuple[int, ...]:
    """The order of axes with the fewest multiply-adds, for so many columns of the matrix along each."""
    if len(sizes) > MOST_ORDERS:
        return tuple(sorted(sizes, key=lambda axis: sizes[axis] / shape[axis]))
    return min(permutations(sizes), key=lambda order: multiply_adds(shape, sizes, order))


def multiply_adds(shape: tuple[int, ...], sizes: Mapping[int, int], order: Sequence[int]) -> int:
    """Those of products with a matrix an axis, in this order."""
    left, total = list(shape), 0
    for axis in order:
        total += math.prod(left) * sizes[axis]
        left[axis] = sizes[axis]
    return total
