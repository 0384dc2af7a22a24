"""Activations that are sums of fixed functions with trainable weights, or of a small hidden layer."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases import BSpline
from tenflex.checks import require_whole
from tenflex.nn.activations.base import REACH, TrainableActivation, nearest, of_each


class WeightedSum(TrainableActivation):
    r"""A sum of functions that all nodes share, :math:`g(t) = \sum_j c_j \phi_j(t)`, nearest to ReLU at first.

    Args:
        nodes: The number of functions g.
        count: How many functions each adds up.
    """

    def __init__(self, nodes: int, count: int) -> None:
        super().__init__(nodes)
        self.count = count

    def start_(self) -> None:
        """Make the coefficients, once the functions are there."""
        self.coefficients = of_each(self.nodes, nearest(self.functions))

    @abstractmethod
    def functions(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        """The functions that are added up."""

    def activated(self, t: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch r"]:
        return (self.functions(t) * self.coefficients).sum(-1)

    def extra_repr(self) -> str:
        """What is printed between the brackets."""
        return f"{self.nodes} nodes of {self.count} functions"


class PolynomialActivation(WeightedSum):
    r"""A polynomial.

    .. math:: g(t) = \sum_{j=0}^{p} c_j t^j

    At c = (0, 1, 0, ...) it is the identity. Beyond the data it grows fast: keep degree and learning rate low.

    References:
        Piazza, Uncini, Zenobi, "Artificial neural networks with adaptive polynomial activation function", 1992.

    Args:
        nodes: The number of functions.
        degree: p.

    Raises:
        ValueError: if `degree` is not a whole number of at least 1.

    Example:
        >>> from tenflex.nn.activations import PolynomialActivation
        >>> PolynomialActivation(3, degree=3)(torch.randn(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(self, nodes: int, degree: int = 4) -> None:
        require_whole("degree", degree, at_least=1)
        super().__init__(nodes, degree + 1)
        self.start_()

    def functions(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        powers = [torch.ones_like(t)]
        for _ in range(self.count - 1):
            powers.append(powers[-1] * t)
        return torch.stack(powers, -1)

    @property
    def operations(self) -> int:
        return 2 * (self.count - 1)


class FourierActivation(WeightedSum):
    r"""A line and a Fourier series, with a trainable frequency.

    .. math:: g(t) = c_0 + c_1 t + \sum_{j=1}^{k} a_j \cos(j \omega t) + b_j \sin(j \omega t)

    At first the period is four times the interval on which inputs of unit variance lie. Without series it is a line.

    References:
        Liao, "Trainable activation function in image classification", 2020, https://arxiv.org/abs/2004.13271

    Args:
        nodes: The number of functions.
        terms: k.

    Raises:
        ValueError: if `terms` is not a whole number of at least 1.

    Example:
        >>> from tenflex.nn.activations import FourierActivation
        >>> FourierActivation(3)(torch.randn(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(self, nodes: int, terms: int = 3) -> None:
        require_whole("terms", terms, at_least=1)
        super().__init__(nodes, 2 * terms + 2)
        self.frequency = of_each(nodes, torch.tensor(math.pi / (2 * REACH)))
        self.start_()

    def functions(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        frequency = self.frequency if t.shape[-1:] == self.frequency.shape else self.frequency[0]
        orders = torch.arange(1, self.count // 2, device=t.device, dtype=t.dtype)
        angles = (frequency * t)[..., None] * orders
        return torch.cat([torch.ones_like(t)[..., None], t[..., None], angles.cos(), angles.sin()], -1)

    @property
    def operations(self) -> int:
        return 1 + 2 + (self.count // 2 - 1) * (1 + 2 * 4 + 4)


class HermiteActivation(WeightedSum):
    r"""A sum of Hermite polynomials, orthonormal for inputs of the normal distribution.

    .. math:: g(t) = \sum_{j=0}^{p} c_j \frac{He_j(t)}{\sqrt{j!}}, \qquad He_{j+1} = t He_j - j He_{j-1}

    It begins with the coefficients of ReLU, :math:`c_j = E[\max(0, t) He_j(t)] / \sqrt{j!}` for normal t.

    References:
        Lokhande, Tasneeyapant, Venkatesh, Ravi, Singh, "Generating accurate pseudo-labels in semi-supervised learning
        and avoiding overconfident predictions via Hermite polynomial activations", 2020,
        https://arxiv.org/abs/1909.05479

    Args:
        nodes: The number of functions.
        degree: p.

    Raises:
        ValueError: if `degree` is not a whole number of at least 1.

    Example:
        >>> from tenflex.nn.activations import HermiteActivation
        >>> HermiteActivation(3)(torch.randn(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(self, nodes: int, degree: int = 4) -> None:
        require_whole("degree", degree, at_least=1)
        super().__init__(nodes, degree + 1)
        self.coefficients = of_each(nodes, torch.tensor([rectified_moment(j) for j in range(degree + 1)]))

    def functions(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        found = [torch.ones_like(t), t]
        for j in range(1, self.count - 1):  # normalised as it goes: the numbers stay small
            found.append((t * found[-1] - math.sqrt(j) * found[-2]) / math.sqrt(j + 1))
        return torch.stack(found[: self.count], -1)

    @property
    def operations(self) -> int:
        return 2 * self.count - 1 + 4 * (self.count - 2)


def rectified_moment(order: int) -> float:
    """The coefficient of ReLU in orthonormal Hermite polynomials, in closed form."""
    if order < 2:
        return (1 / math.sqrt(2 * math.pi), 0.5)[order]
    if order % 2:
        return 0.0
    odd = math.prod(range(order - 3, 0, -2))
    return (-1) ** (order // 2 - 1) * odd / math.sqrt(2 * math.pi * math.factorial(order))


class SplineActivation(WeightedSum):
    r"""A cubic spline with even knots from -3 to 3, and lines beyond.

    .. math:: g(t) = \sum_{j=1}^{d} c_j B_j(t / 3)

    References:
        Guarnieri, Piazza, Uncini, "Multilayer feedforward networks with adaptive spline activation function", 1999,
        https://doi.org/10.1109/72.761726
        Bohra et al., "Learning activation functions in deep (spline) neural networks", 2020,
        https://doi.org/10.1109/OJSP.2020.3039379

    Args:
        nodes: The number of functions.
        count: The number of B-splines d.

    Raises:
        ValueError: if `count` is not a whole number of at least 4.

    Example:
        >>> from tenflex.nn.activations import SplineActivation
        >>> SplineActivation(3)(torch.randn(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(self, nodes: int, count: int = 10) -> None:
        super().__init__(nodes, count)
        self.basis = BSpline(count)
        self.start_()

    def functions(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        return self.basis.value(t / REACH)

    def activated(self, t: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch r"]:
        return self.basis.combine(t / REACH, self.coefficients)

    @property
    def operations(self) -> int:
        return 1 + self.basis.operations


class KAF(WeightedSum):
    r"""A sum of Gaussian kernels around even points from -3 to 3.

    .. math:: g(t) = \sum_{j=1}^{D} c_j e^{-\gamma (t - d_j)^2}, \qquad \gamma = \frac{1}{6 \Delta^2}

    where Delta is the distance of the points, which are not stored.

    References:
        Scardapane, Van Vaerenbergh, Totaro, Uncini, "Kafnets: kernel-based non-parametric activation functions for
        neural networks", 2019, https://arxiv.org/abs/1707.04035

    Args:
        nodes: The number of functions.
        count: The number of kernels D.

    Raises:
        ValueError: if `count` is not a whole number of at least 2.

    Example:
        >>> from tenflex.nn.activations import KAF
        >>> KAF(3)(torch.randn(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(self, nodes: int, count: int = 12) -> None:
        require_whole("count", count, at_least=2)
        super().__init__(nodes, count)
        self.start_()

    def functions(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        points = torch.linspace(-REACH, REACH, self.count, device=t.device, dtype=t.dtype)
        gamma = ((self.count - 1) / (2 * REACH)) ** 2 / 6
        return torch.exp(-gamma * (t[..., None] - points).square())

    @property
    def operations(self) -> int:
        return 9 * self.count - 1


class VAF(TrainableActivation):
    r"""A small network of its own for each node: a hidden layer of k rectifiers, and a weighted sum.

    .. math:: g(t) = \beta_0 + \sum_{j=1}^{k} \beta_j \max(0, \alpha_j t + \alpha_{0j})

    With one rectifier, alpha = beta = 1 and no offsets it is ReLU. It begins as ReLU.

    References:
        Apicella, Isgro, Prevete, "A simple and efficient architecture for trainable activation functions", 2019,
        https://doi.org/10.1016/j.neucom.2019.08.065

    Args:
        nodes: The number of functions.
        hidden: k.

    Raises:
        ValueError: if `hidden` is not a whole number of at least 1.

    Example:
        >>> from tenflex.nn.activations import VAF
        >>> VAF(3)(torch.randn(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(self, nodes: int, hidden: int = 4) -> None:
        super().__init__(nodes)
        require_whole("hidden", hidden, at_least=1)
        signs = torch.tensor([(-1.0) ** j for j in range(hidden)])
        offsets = torch.linspace(0, 1, hidden) if hidden > 1 else torch.zeros(1)
        self.slopes, self.offsets = of_each(nodes, signs), of_each(nodes, offsets)
        self.weights = of_each(nodes, (torch.arange(hidden) == 0).to(signs))
        self.constant = of_each(nodes, torch.tensor(0.0))

    def activated(self, t: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch r"]:
        hidden = torch.relu(self.slopes * t[..., None] + self.offsets)
        return self.constant + (self.weights * hidden).sum(-1)

    @property
    def operations(self) -> int:
        return 5 * self.slopes.shape[1]
