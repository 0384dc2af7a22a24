"""How far to go along the direction of a sweep of alternating least squares."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from tenflex.solvers.tensor import JacobianTensor

FARTHEST = 100.0
"""No step is longer than this many sweeps."""

TRIED = 200
"""Steps that are tried, on a geometric grid; one costs a polynomial of degree 6."""


def longest_step(
    tensor: JacobianTensor, start: tuple[Tensor, Tensor, Tensor], end: tuple[Tensor, Tensor, Tensor]
) -> float:
    r"""The best step :math:`\rho \ge 1` from the factors before a sweep through those after it.

    .. math:: \min_\rho \|J - [[H + \rho \, \delta H, \; W + \rho \, \delta W, \; V + \rho \, \delta V]]\|^2

    is a polynomial of degree 6, of which the coefficients take two products with the tensor. Its constant is left out:
    beside it the changes near a solution would be lost in rounding.

    References:
        Rajih, Comon, Harshman, "Enhanced line search: a novel method to accelerate PARAFAC", 2008,
        https://doi.org/10.1137/06065577

    Args:
        tensor: J.
        start: `(V, W, H)` before.
        end: `(V, W, H)` after.

    Returns:
        rho; 1 where going farther does not lower the error.
    """
    moves = tuple(after - before for before, after in zip(start, end, strict=True))
    coefficients = squared_norm(start, moves) - 2 * overlap(tensor, start, moves)
    rho = torch.logspace(0, 2, TRIED, base=FARTHEST**0.5, dtype=coefficients.dtype, device=coefficients.device)
    values = (coefficients[1:] * rho[:, None] ** torch.arange(1, 7).to(rho)).sum(1)
    return rho[values.argmin()].item()


def overlap(tensor: JacobianTensor, start: tuple[Tensor, ...], moves: tuple[Tensor, ...]) -> Tensor:
    """`<J, .>` of the moving factors, as coefficients of the powers 0 to 6 of the step."""
    V, W, H = start
    to_v, to_w, to_h = moves
    total = H.new_zeros(7)
    for power, slopes in enumerate((H, to_h)):
        sums = tensor.contracted(slopes)
        along, moved = sums.along_inputs(V), sums.along_inputs(to_v)
        total[power] += (along * W).sum()
        total[power + 1] += (along * to_w).sum() + (moved * W).sum()
        total[power + 2] += (moved * to_w).sum()
    return total


def squared_norm(start: tuple[Tensor, ...], moves: tuple[Tensor, ...]) -> Tensor:
    """The squared norm of the moving factors, as coefficients of the powers 0 to 6 of the step."""
    total = start[0].new_zeros(7)
    grams = []
    for part, move in zip(start, moves, strict=True):
        mixed = part.mT @ move
        grams.append((part.mT @ part, mixed + mixed.mT, move.mT @ move))
    for i, j, k in product(range(3), repeat=3):
        total[i + j + k] += (grams[0][i] * grams[1][j] * grams[2][k]).sum()
    return total
