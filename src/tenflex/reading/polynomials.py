"""Activations as plain polynomials, whole or piece by piece."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases import Basis, Chebyshev, Monomial
from tenflex.bases.piecewise import PiecewiseBasis
from tenflex.bases.wrapped import plain


def powers(basis: Basis) -> Float[Tensor, "d p"] | None:
    """The functions of a polynomial basis as coefficients of `1, t, t^2, ...`; None for other bases."""
    basis = plain(basis)
    if isinstance(basis, Monomial):
        return torch.eye(basis.degree + 1, dtype=torch.float64, device="cpu")[1:]
    if isinstance(basis, Chebyshev):
        table = torch.eye(basis.degree + 1, dtype=torch.float64, device="cpu")
        for j in range(2, basis.degree + 1):
            table[j] = 2 * table[j - 1].roll(1) - table[j - 2]  # the last entry that comes round is zero
        return table[1:]
    return None


def polynomials(
    scales: Float[Tensor, " r"], shifts: Float[Tensor, " r"], coefficients: Float[Tensor, "r d"], basis: Basis
) -> Float[Tensor, "r p"] | None:
    r"""The activations as coefficients of `1, t, t^2, ...`, scale and shift folded in; None for other bases.

    .. math:: \sum_j c_{kj} \phi_j(\alpha_k t + a_k)
        = \sum_i t^i \, \alpha_k^i \sum_{p \ge i} \binom{p}{i} a_k^{p-i} q_{kp}

    The binomial sums are those of exact arithmetic but for rounding in float64. A shift much larger than the range of
    :math:`\alpha_k t`, inputs far from zero, and degrees above ten or so make large coefficients of either sign, and
    :math:`t` loses digits where they cancel: about as many as :math:`\max_i |\text{coefficient}_i t^i|` is larger than
    the activation. Then center the inputs before sampling, or evaluate the layer itself.
    """
    table = powers(basis)
    if table is None:
        return None
    unfolded = coefficients @ table
    total = torch.zeros_like(unfolded)
    for power in unfolded.flip(1).unbind(1):  # Horner in (alpha t + a); the last entry that comes round is zero
        total = shifts[:, None] * total + scales[:, None] * total.roll(1, 1)
        total[:, 0] += power
    return total


def pieces(basis: PiecewiseBasis, coefficients: Float[Tensor, "r d"]) -> tuple[Tensor, Tensor]:
    """The breaks `(r, K)` of each activation, and its polynomials `(r, K + 1, p)` in `t - start` of each piece.

    The first piece starts, like the second, at the first break.
    """
    nodes = len(coefficients)
    table = torch.einsum("rpad,rd->rpa", basis.table().expand(nodes, -1, -1, -1), coefficients)
    return basis.breaks().expand(nodes, -1), table
