"""Chebyshev polynomials: the span of the monomials, well conditioned."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases.base import Basis
from tenflex.checks import require_whole


@dataclass(frozen=True)
class Chebyshev(Basis):
    r"""Chebyshev polynomials of the first kind, without the constant.

    .. math:: \phi_j(t) = T_j(t), \quad T_{j+1}(t) = 2 t T_j(t) - T_{j-1}(t), \quad j = 1, \dots, d

    Args:
        degree: The largest degree :math:`d`, at least 1.

    Raises:
        ValueError: if `degree` is not a whole number of at least 1.

    Example:
        >>> Chebyshev(3).value(torch.tensor(0.5))
        tensor([ 0.5000, -0.5000, -1.0000])
    """

    degree: int

    def __post_init__(self) -> None:
        require_whole("degree", self.degree, at_least=1)

    @property
    def size(self) -> int:
        return self.degree

    def value(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        return self._recur(t, 0)

    def derivative(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        return self._recur(t, 1)

    def second_derivative(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        return self._recur(t, 2)

    def _recur(self, t: Tensor, order: int) -> Tensor:
        """The recurrence, differentiated `order` times: all derivatives of T_j up to it go along together."""
        zero, one = torch.zeros_like(t), torch.ones_like(t)
        before = [one, zero, zero][: order + 1]
        now = [t, one, zero][: order + 1]
        terms = [now[order]]
        for _ in range(1, self.degree):
            after = [2 * t * now[i] + (2 * i * now[i - 1] if i else 0) - before[i] for i in range(order + 1)]
            before, now = now, after
            terms.append(now[order])
        return torch.stack(terms, -1)

    def combine(self, t: Float[Tensor, "*batch r"], coefficients: Float[Tensor, "r d"]) -> Float[Tensor, "*batch r"]:
        later = latest = torch.zeros_like(t)
        for j in range(self.degree - 1, 0, -1):  # Clenshaw
            later, latest = latest, coefficients[:, j] + 2 * t * latest - later
        return t * (coefficients[:, 0] + 2 * t * latest - later) - latest

    def pieces(self) -> tuple[Float[Tensor, "1 2"], int]:
        return torch.tensor([self.interval], dtype=torch.float64, device="cpu"), self.degree

    @property
    def operations(self) -> int:
        return 4 * self.degree
