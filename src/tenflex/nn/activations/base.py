"""What every trainable activation is: one function of its own for each node of the last dimension."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.checks import require_whole

REACH = 3.0
"""Families that live on an interval take it from minus this to this: where inputs of unit variance are."""


class TrainableActivation(nn.Module, ABC):
    """A module of `nodes` scalar functions with trainable parameters, applied to the last dimension.

    Args:
        nodes: The number of functions, r.

    Raises:
        ValueError: if `nodes` is not a whole number of at least 1.

    Example:
        >>> from tenflex.nn.activations import Swish, TrainableActivation
        >>> isinstance(Swish(3), TrainableActivation)
        True
    """

    def __init__(self, nodes: int) -> None:
        super().__init__()
        require_whole("nodes", nodes, at_least=1)
        self.nodes = nodes

    def forward(self, t: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch r"]:
        """The functions of the last dimension.

        Raises:
            ValueError: if it has another number of entries than there are nodes.
        """
        if t.ndim == 0 or t.shape[-1] != self.nodes:
            raise ValueError(
                f"expected {self.nodes} numbers along the last dimension, one a node, got {tuple(t.shape)}"
            )
        return self.activated(t)

    @abstractmethod
    def activated(self, t: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch r"]:
        """The functions of the last dimension, which has an entry for each node."""

    @property
    @abstractmethod
    def operations(self) -> int:
        """Operations of one function: additions, multiplications, comparisons; 4 for an elementary function."""

    def operations_per_example(self) -> int:
        """Operations to evaluate all functions once."""
        return self.nodes * self.operations

    def extra_repr(self) -> str:
        """What is printed between the brackets."""
        return f"{self.nodes} nodes"


class Channelwise(nn.Module):
    """An activation of the last dimension, applied to channels, as they stand after a convolution.

    Args:
        activation: The activation, with a node for each channel.
        dim: Where the channels are.

    Example:
        >>> from tenflex.nn.activations import Channelwise, PReLU
        >>> block = nn.Sequential(nn.Conv2d(3, 8, 3), Channelwise(PReLU(8)))
        >>> block(torch.zeros(2, 3, 9, 9)).shape
        torch.Size([2, 8, 7, 7])
    """

    def __init__(self, activation: nn.Module, dim: int = 1) -> None:
        super().__init__()
        self.activation = activation
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """The same shape, or with as many channels as the activation gives."""
        outputs: Tensor = self.activation(x.movedim(self.dim, -1))
        return outputs.movedim(-1, self.dim)


def of_each(nodes: int, values: Tensor) -> nn.Parameter:
    """A trainable copy of the same values for each node."""
    return nn.Parameter(values.expand(nodes, *values.shape).clone())


def nearest(
    functions: Callable[[Tensor], Float[Tensor, "P d"]], target: Callable[[Tensor], Tensor] = torch.relu
) -> Float[Tensor, " d"]:
    """The coefficients of a sum of functions that is nearest to another function between minus and plus `REACH`."""
    t = torch.linspace(-REACH, REACH, 301, dtype=torch.float64)
    A = functions(t)
    gram = A.mT @ A
    ridge = 1e-5 * gram.diagonal().max() * torch.eye(len(gram), dtype=t.dtype)
    return torch.linalg.solve(gram + ridge, A.mT @ target(t)).to(torch.get_default_dtype())
