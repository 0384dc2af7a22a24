"""The lowest cosines along each axis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.modes.base import Modes
from tenflex.modes.multilinear import Multilinear


@dataclass(frozen=True)
class Cosine(Modes):
    r"""The lowest frequencies of the discrete cosine transform along each axis, of which nothing is stored.

    .. math:: P_{jk} = \sqrt{\tfrac{2 - \delta_{k0}}{n}} \cos \tfrac{\pi k (2 j + 1)}{2 n},
        \quad j = 0, \dots, n - 1, \quad k = 0, \dots, p - 1

    For images, signals and what else is smooth along its axes.

    References:
        Ahmed, Natarajan, Rao, "Discrete cosine transform", 1974, https://doi.org/10.1109/T-C.1974.223784

    Args:
        size: p, along every axis, or one number for all of them: axes that are no longer than it, such as the channels
            of an image, are kept whole.
        shape: The axes, where inputs arrive flat, such as `(28, 28)`; None for the shape of the block's inputs.

    Raises:
        TypeError: if `size` or `shape` is something else than whole numbers.
        ValueError: if a size is not at least 1 or longer than its axis, or there are other sizes than axes.

    Example:
        >>> Cosine(12).of((3, 28, 28))
        Cosine(size=(3, 12, 12), shape=(3, 28, 28))
    """

    stored: ClassVar[bool] = False

    def choose(self, inputs: Float[Tensor, "S *m"], jacobians: Float[Tensor, "some n m"] | None = None) -> Multilinear:
        """The cosines, whatever the data."""
        return self.of(tuple(inputs.shape[1:])).generate(inputs.device)

    def generate(self, device: torch.device) -> Multilinear:
        """The cosines along every axis that is not kept whole."""
        return cosines(self, device)


def cosines(modes: Modes, device: torch.device) -> Multilinear:
    """The lowest cosines along every axis that is not kept whole, for modes that know their axes."""
    shape = modes.shape or ()
    frames = (lowest(n, p, device) if p < n else None for n, p in zip(shape, modes.sizes(shape), strict=True))
    return Multilinear(shape, tuple(frames))


def lowest(n: int, p: int, device: torch.device) -> Float[Tensor, "n p"]:
    """The p lowest cosines at n points, orthonormal."""
    points = torch.arange(n, dtype=torch.float64, device=device)[:, None] + 0.5
    waves = torch.cos(math.pi / n * points * torch.arange(p, dtype=torch.float64, device=device))
    waves[:, 0] /= math.sqrt(2)
    return waves * math.sqrt(2 / n)
