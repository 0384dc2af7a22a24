"""Linear forms in the coefficients that bound the sign of a piecewise polynomial everywhere between its breaks."""

from __future__ import annotations

from math import ceil, comb

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases.base import Basis

CELLS = 64
"""The least number of cells that the interval of a basis is cut into."""


def bernstein_rows(basis: Basis, order: int) -> Float[Tensor, "r_or_1 q d"]:
    r"""The Bernstein coefficients of `g` (order 0) or `g'` (order 1) on a fine partition, as linear forms in `c`.

    .. math:: g^{(o)}(a + h u) = \sum_{i=0}^p \beta_i \binom{p}{i} u^i (1 - u)^{p - i}, \quad u \in [0, 1],
        \quad \beta = A c

    Where all of them are non-negative, so is the function, at every point and not only on a grid, since it is a convex
    combination of them. The converse holds up to the square of the width `h` of a cell: what is lost are functions that
    come within about :math:`h^2 |g^{(o+2)}| / 4` of zero, less than a thousandth of the range unless it is as rough as
    random coefficients make it. For pieces of degree 0 and 1 nothing is lost, and their cells are the pieces
    themselves.

    References:
        Farouki, "The Bernstein polynomial basis: a centennial retrospective", 2012,
        https://doi.org/10.1016/j.cagd.2012.03.001
    """
    with torch.device("cpu"), torch.inference_mode(False), torch.no_grad():
        breaks, degree = basis.pieces()
        power = degree - order
        cells = 1 if power < 2 else ceil(CELLS / (breaks.shape[1] - 1))
        starts, widths = divided(breaks, cells)
        counted = torch.arange(power + 1, dtype=torch.float64, device="cpu")
        inside = (counted + 0.5) / (power + 1)  # off the breaks, where slopes jump
        t = starts[..., None] + widths[..., None] * inside
        functions = (basis.value, basis.derivative)[order]
        values = functions(t.flatten(1).mT).unflatten(0, t.shape[1:]).movedim(2, 0)
        return joined(torch.linalg.solve(bernstein(inside), values))


def divided(breaks: Float[Tensor, "r K"], cells: int) -> tuple[Float[Tensor, "r n"], Float[Tensor, "r n"]]:
    """The starts and the widths of the cells that every piece is cut into."""
    widths = breaks.diff(dim=1)[..., None] / cells * torch.ones(cells, dtype=breaks.dtype, device=breaks.device)
    starts = breaks[:, :-1, None] + widths * torch.arange(cells, device=widths.device)
    return starts.flatten(1), widths.flatten(1)


def bernstein(u: Float[Tensor, " p"]) -> Float[Tensor, "p p"]:
    """The `p` Bernstein polynomials of degree `p - 1` at as many points, one point a row."""
    power = len(u) - 1
    return torch.stack([comb(power, i) * u**i * (1 - u) ** (power - i) for i in range(power + 1)], 1)


def joined(cells: Float[Tensor, "r n p d"]) -> Float[Tensor, "r q d"]:
    """The rows of all cells; one cell's last and the next one's first are the same where the function is continuous."""
    if cells.shape[2] == 1:
        return cells.flatten(1, 2)
    return torch.cat([cells[:, :, :-1].flatten(1, 2), cells[:, -1, -1:]], 1)
