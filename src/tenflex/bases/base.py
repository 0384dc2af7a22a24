"""What every family of scalar functions answers."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.sums import largest, smallest

HAIR = 1e-9
"""The share of the interval that is left free at its ends: there slopes jump, and rounding would choose the side."""


class Basis(ABC):
    r"""A family of scalar functions :math:`\phi_1, \dots, \phi_d` on a reference interval.

    .. math:: g_k(t) = \sum_{j=1}^d c_{kj} \phi_j(t)

    The functions are the same for every node: a layer brings each node to the reference interval by the scale of a
    column of `V` and by a shift, so a basis stores nothing per node (quantile knots are the exception, and are
    counted). Every method is differentiable by autograd. Bases are values: frozen, compared by their settings.

    Example:
        >>> t = torch.linspace(-1, 1, 3, dtype=torch.float64)
        >>> Monomial(2).derivative(t).tolist()
        [[1.0, -2.0], [1.0, 0.0], [1.0, 2.0]]
    """

    @property
    @abstractmethod
    def size(self) -> int:
        """The number of functions, `d`."""

    @property
    def interval(self) -> tuple[float, float]:
        """The reference interval on which the functions are meant to be used."""
        return (-1.0, 1.0)

    @abstractmethod
    def value(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        """The functions at `t`."""

    @abstractmethod
    def derivative(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        """The first derivatives at `t`."""

    @abstractmethod
    def second_derivative(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        """The second derivatives at `t` (zero where they are impulses)."""

    def combine(self, t: Float[Tensor, "*batch r"], coefficients: Float[Tensor, "r d"]) -> Float[Tensor, "*batch r"]:
        """The activations `g_k(t_k)`. Families override it where the sum has a faster form."""
        return torch.einsum("...rd,rd->...r", self.value(t), coefficients)

    def curves(
        self, t: Float[Tensor, "S r"], coefficients: Float[Tensor, "r d"]
    ) -> tuple[Float[Tensor, "S r"], Float[Tensor, "S r"], Float[Tensor, "S r"]]:
        """The activations with their first and second derivatives, `(g, g', g'')`."""
        values = (self.value(t), self.derivative(t), self.second_derivative(t))
        g, h, k = (torch.einsum("srd,rd->sr", one, coefficients) for one in values)
        return g, h, k

    def pull(
        self, t: Float[Tensor, "S r"], to_g: Float[Tensor, "S r"], to_h: Float[Tensor, "S r"]
    ) -> Float[Tensor, "r d"]:
        """The adjoint of `curves` in the coefficients: `sum_s to_g phi(t) + to_h phi'(t)`, for exact gradients.

        Of the samples at hand only, as any gradient is.
        """
        at_g = torch.einsum("sr,srd->rd", to_g, self.value(t))
        return at_g + torch.einsum("sr,srd->rd", to_h, self.derivative(t))

    def place(self, t: Float[Tensor, "S r"]) -> tuple[Float[Tensor, " r"], Float[Tensor, " r"]]:
        """The `(scale, shift)` of each node such that `scale * t + shift` fills the reference interval.

        Families that are scaled to the range of `t` use this form; others override it.
        """
        low, high = smallest(t), largest(t)
        width = positive(high - low)
        start, end = self.interval
        scale = (1 - 2 * HAIR) * (end - start) / width
        return scale, start + HAIR * (end - start) - scale * low

    def fit(self, t: Float[Tensor, "S r"]) -> Basis:
        """The basis with what depends on the data frozen; most families have nothing to freeze."""
        return self

    def fitted_from(self, basis: Basis) -> bool:
        """Whether this is a basis, or what its `fit` makes of it for some nodes.

        Families whose `fit` freezes settings override it, where they know which these are: here another of the same
        family and size passes for it.
        """
        if type(self).fit is Basis.fit:
            return self == basis
        return type(self) is type(basis) and self.size == basis.size

    def roughness(self) -> Float[Tensor, "d d"]:
        r"""The matrix of the penalty :math:`\int g''(t)^2 dt` over the reference interval, as a form in `c`."""
        nodes, weights = quadrature(self.interval)
        curvature = self.second_derivative(nodes)
        return curvature.mT @ (weights[:, None] * curvature)

    def pieces(self) -> tuple[Float[Tensor, "r_or_1 K"], int]:
        """The ascending ends, in float64, of the pieces of the interval on which all functions are polynomials.

        With them the largest degree. One row when all nodes share them.

        Raises:
            TypeError: if the family does not say.
        """
        raise TypeError(f"expected functions made of polynomials, got {self!r}: take one such as BSpline(10)")

    @property
    def nodes(self) -> int | None:
        """The number of nodes it was fitted to, or None: most families are the same for any node."""
        return None

    @property
    def stored_per_node(self) -> int:
        """The numbers a node stores besides its coefficients, such as its own knots."""
        return 0

    @property
    @abstractmethod
    def operations(self) -> int:
        """Multiplications, additions and comparisons to evaluate one activation, as `combine` does it."""


def positive(width: Tensor) -> Tensor:
    """`width`, with 1 in the place of zeros: a node that never moves keeps its scale."""
    return torch.where(width > 0, width, torch.ones_like(width))


def quadrature(interval: tuple[float, float], points: int = 512) -> tuple[Tensor, Tensor]:
    """Midpoint rule on an interval: exact enough for piecewise functions wherever their knots are."""
    low, high = interval
    width = (high - low) / points
    nodes = low + width * (torch.arange(points, dtype=torch.float64, device="cpu") + 0.5)
    return nodes, torch.full_like(nodes, width)
