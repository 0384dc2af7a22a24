"""Rectifiers with trainable slopes, scales and hinges, and Swish."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.checks import require_whole
from tenflex.nn.activations.base import TrainableActivation, of_each

LEAST_SCALE = 0.1
"""PELU's parameters stay above it, as its paper asks."""


class PReLU(TrainableActivation):
    r"""A rectifier with a trainable slope below zero.

    .. math:: g(t) = \max(0, t) + a \min(0, t)

    At a = 0 it is ReLU, at a = 1 the identity.

    References:
        He, Zhang, Ren, Sun, "Delving deep into rectifiers", 2015, https://arxiv.org/abs/1502.01852

    Args:
        nodes: The number of functions.

    Example:
        >>> from tenflex.nn.activations import PReLU
        >>> PReLU(3)(torch.randn(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(self, nodes: int) -> None:
        super().__init__(nodes)
        self.slope = of_each(nodes, torch.tensor(0.25))

    def activated(self, t: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch r"]:
        return t.clamp(min=0) + self.slope * t.clamp(max=0)

    @property
    def operations(self) -> int:
        return 2


class PELU(TrainableActivation):
    r"""An exponential linear unit with a trainable scale and range.

    .. math:: g(t) = \frac{a}{b} t \;\text{ for } t \ge 0, \qquad g(t) = a (e^{t / b} - 1) \;\text{ for } t < 0

    with a, b above 0.1. At a = b = 1 it is ELU.

    References:
        Trottier, Giguere, Chaib-draa, "Parametric exponential linear unit for deep convolutional neural networks",
        2017, https://arxiv.org/abs/1605.09332

    Args:
        nodes: The number of functions.

    Example:
        >>> from tenflex.nn.activations import PELU
        >>> PELU(3)(torch.randn(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(self, nodes: int) -> None:
        super().__init__(nodes)
        self.scale = of_each(nodes, torch.tensor(1.0))
        self.range = of_each(nodes, torch.tensor(1.0))

    def activated(self, t: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch r"]:
        a, b = self.scale.clamp(min=LEAST_SCALE), self.range.clamp(min=LEAST_SCALE)
        return a / b * t.clamp(min=0) + a * torch.expm1(t.clamp(max=0) / b)

    @property
    def operations(self) -> int:
        return 8


class Swish(TrainableActivation):
    r"""A gate by the input itself, with a trainable sharpness.

    .. math:: g(t) = \frac{t}{1 + e^{-\beta t}}

    At beta = 1 it is SiLU, at beta = 0 it is t / 2, and ReLU in the limit.

    References:
        Ramachandran, Zoph, Le, "Searching for activation functions", 2017, https://arxiv.org/abs/1710.05941

    Args:
        nodes: The number of functions.

    Example:
        >>> from tenflex.nn.activations import Swish
        >>> Swish(3)(torch.randn(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(self, nodes: int) -> None:
        super().__init__(nodes)
        self.sharpness = of_each(nodes, torch.tensor(1.0))

    def activated(self, t: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch r"]:
        return t * torch.sigmoid(self.sharpness * t)

    @property
    def operations(self) -> int:
        return 8


class SReLU(TrainableActivation):
    r"""Three lines: a middle one of slope 1, and one on either side, each with a trainable hinge and slope.

    .. math:: g(t) = t + (a_r - 1) \max(0, t - t_r) + (1 - a_l) \max(0, t_l - t)

    for hinges in their order, :math:`t_l \le t_r`. At t_l = 0, a_l = 0, a_r = 1 it is ReLU.

    References:
        Jin, Xu, Feng, Wei, Xiong, Yan, "Deep learning with S-shaped rectified linear activation units", 2016,
        https://arxiv.org/abs/1512.07030

    Args:
        nodes: The number of functions.

    Example:
        >>> from tenflex.nn.activations import SReLU
        >>> SReLU(3)(torch.randn(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(self, nodes: int) -> None:
        super().__init__(nodes)
        self.hinges = of_each(nodes, torch.tensor([0.0, 1.0]))
        self.slopes = of_each(nodes, torch.tensor([0.1, 1.0]))

    def activated(self, t: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch r"]:
        (low, high), (left, right) = self.hinges.unbind(1), self.slopes.unbind(1)
        return t + (right - 1) * (t - high).clamp(min=0) + (1 - left) * (low - t).clamp(min=0)

    @property
    def operations(self) -> int:
        return 8


class APL(TrainableActivation):
    r"""ReLU and a sum of hinges that open to the left: piecewise linear, of slope 1 on the right.

    .. math:: g(t) = \max(0, t) + \sum_{j=1}^{k} a_j \max(0, b_j - t)

    Without hinges it is ReLU.

    References:
        Agostinelli, Hoffman, Sadowski, Baldi, "Learning activation functions to improve deep neural networks", 2015,
        https://arxiv.org/abs/1412.6830

    Args:
        nodes: The number of functions.
        hinges: How many each has, k; 0 is allowed.

    Raises:
        ValueError: if `hinges` is not a whole number of at least 0.

    Example:
        >>> from tenflex.nn.activations import APL
        >>> APL(3, hinges=2)(torch.randn(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(self, nodes: int, hinges: int = 3) -> None:
        super().__init__(nodes)
        require_whole("hinges", hinges, at_least=0)
        self.slopes = of_each(nodes, torch.zeros(hinges))
        self.places = of_each(nodes, torch.linspace(-1, 1, hinges))

    def activated(self, t: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch r"]:
        open_left = (self.places - t[..., None]).clamp(min=0)
        return t.clamp(min=0) + (self.slopes * open_left).sum(-1)

    @property
    def operations(self) -> int:
        return 1 + 4 * self.slopes.shape[1]
