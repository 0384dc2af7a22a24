"""Powers of t, the basis of polynomial decoupling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases.base import Basis
from tenflex.checks import require_whole


@dataclass(frozen=True)
class Monomial(Basis):
    r"""Powers of `t`, without the constant (which is the bias of the layer).

    .. math:: \phi_j(t) = t^j, \quad j = 1, \dots, d, \quad t \in [-1, 1]

    Args:
        degree: The largest power :math:`d`, at least 1.

    Raises:
        ValueError: if `degree` is not a whole number of at least 1.

    Example:
        >>> Monomial(3).value(torch.tensor(2.0))
        tensor([2., 4., 8.])
    """

    degree: int

    def __post_init__(self) -> None:
        require_whole("degree", self.degree, at_least=1)

    @property
    def size(self) -> int:
        return self.degree

    def value(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        powers = [t]
        for _ in range(1, self.degree):
            powers.append(powers[-1] * t)
        return torch.stack(powers, -1)

    def derivative(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        terms, power = [], torch.ones_like(t)
        for j in range(1, self.degree + 1):
            terms.append(j * power)
            power = power * t
        return torch.stack(terms, -1)

    def second_derivative(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        terms, power = [torch.zeros_like(t)], torch.ones_like(t)
        for j in range(2, self.degree + 1):
            terms.append(j * (j - 1) * power)
            power = power * t
        return torch.stack(terms, -1)

    def combine(self, t: Float[Tensor, "*batch r"], coefficients: Float[Tensor, "r d"]) -> Float[Tensor, "*batch r"]:
        total = coefficients[:, -1] * t
        for j in range(self.degree - 2, -1, -1):  # Horner
            total = (total + coefficients[:, j]) * t
        return total

    def pieces(self) -> tuple[Float[Tensor, "1 2"], int]:
        return torch.tensor([self.interval], dtype=torch.float64, device="cpu"), self.degree

    @property
    def operations(self) -> int:
        return 2 * self.degree - 1
