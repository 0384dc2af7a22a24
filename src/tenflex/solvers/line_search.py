"""How far to go along the direction of a sweep of alternating least squares."""

from __future__ import annotations

import torch
from torch import Tensor

from tenflex.objective.tensor import JacobianTensor

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
    grams = []
    for part, move in zip(start, moves, strict=True):
        mixed = part.mT @ move
        grams.append(torch.stack((part.mT @ part, mixed + mixed.mT, move.mT @ move)).flatten(1))
    each = (grams[0][:, None] * grams[1]).flatten(0, 1) @ grams[2].mT
    power = torch.arange(3, device=each.device)
    places = (power[:, None, None] + power[:, None] + power).flatten()
    return each.flatten() @ torch.nn.functional.one_hot(places, 7).to(each)
