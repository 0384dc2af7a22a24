"""Rational activations whose denominator never vanishes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.nn.activations.base import TrainableActivation, of_each

NUMERATOR = (0.02996348, 0.61690165, 2.37539147, 3.06608078, 1.52474449, 0.25281987)
DENOMINATOR = (1.19160814, 4.40811795, 0.91111034, 0.34885983)
"""Near to ReLU from -3 to 3, where the terms of the denominator are added up without their signs or with them."""


class RationalActivation(TrainableActivation):
    r"""A safe Pade unit: the ratio of a polynomial of degree 5 and a positive one of degree 4.

    .. math:: g(t) = \frac{\sum_{j=0}^{5} a_j t^j}{1 + | \sum_{j=1}^{4} b_j t^j |}

    With b = 0 it is a polynomial. It begins near ReLU.

    References:
        Molina, Schramowski, Kersting, "Pade activation units: end-to-end learning of flexible activation functions in
        deep networks", 2020, https://arxiv.org/abs/1907.06732

    Args:
        nodes: The number of functions.

    Example:
        >>> from tenflex.nn.activations import RationalActivation
        >>> RationalActivation(3)(torch.randn(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(self, nodes: int) -> None:
        super().__init__(nodes)
        self.numerator = of_each(nodes, torch.tensor(NUMERATOR))
        self.denominator = of_each(nodes, torch.tensor(DENOMINATOR))

    def activated(self, t: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch r"]:
        above = self.numerator[:, -1].expand_as(t)
        for column in self.numerator[:, :-1].flip(1).unbind(1):
            above = above * t + column
        below = torch.zeros_like(t)
        for column in self.denominator.flip(1).unbind(1):
            below = (below + column) * t
        return above / (1 + below.abs())

    @property
    def operations(self) -> int:
        return 10 + 8 + 3
