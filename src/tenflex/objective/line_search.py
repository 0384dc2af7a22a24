"""How far to go along the direction of a sweep of alternating least squares."""

from __future__ import annotations

from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.objective.decomposition import Decomposition
from tenflex.objective.objective import Objective
from tenflex.objective.tensor import JacobianTensor
from tenflex.sums import over_samples

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
    values = (coefficients[1:] * rho[:, None] ** torch.arange(1, 7, dtype=rho.dtype, device=rho.device)).sum(1)
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
    of_v, of_w, of_h = (moving_gram(part, move) for part, move in zip(start, moves, strict=True))
    each = (of_v[:, None] * of_w).flatten(0, 1) @ over_samples(of_h).mT
    power = torch.arange(3, device=each.device)
    places = (power[:, None, None] + power[:, None] + power).flatten()
    return each.flatten() @ torch.nn.functional.one_hot(places, 7).to(each)


def moving_gram(part: Float[Tensor, "p r"], move: Float[Tensor, "p r"]) -> Float[Tensor, "3 rr"]:
    """The Gram matrix of a moving factor, as coefficients of the powers 0 to 2 of the step."""
    mixed = part.mT @ move
    return torch.stack((part.mT @ part, mixed + mixed.mT, move.mT @ move)).flatten(1)


def longest_weighted_step(objective: Objective, before: Decomposition, after: Decomposition) -> float:
    r"""The best step :math:`\rho \ge 1` from the factors before a sweep through those after it, in the weighted norm.

    What is left of J is a polynomial of degree 3 in the step, so the error is one of degree 6, of which the
    coefficients follow from the weighted Gram matrix of the four tensors. As in `longest_step` its constant is left
    out: beside it the changes near a solution would be lost in rounding.
    """
    gram = before.V.new_zeros(4, 4)
    for part in objective.term.parts(4):
        rows = objective.term.whiten(left_along(objective.jacobians.entries[part], before, after, part), part)
        gram += rows.mT @ rows
    gram = over_samples(gram)
    rho = torch.logspace(0, 2, TRIED, base=FARTHEST**0.5, dtype=gram.dtype, device=gram.device)
    powers = rho[:, None] ** torch.arange(4, dtype=rho.dtype, device=rho.device)
    gram[0, 0] = 0
    return rho[torch.einsum("pi,ij,pj->p", powers, gram, powers).argmin()].item()


def left_along(
    J: Float[Tensor, "s n m"], before: Decomposition, after: Decomposition, part: slice
) -> Float[Tensor, "snm 4"]:
    """What is left of J along the direction of a sweep, as coefficients of the powers 0 to 3 of the step."""
    pairs = [
        (before.H[part], after.H[part] - before.H[part]),
        (before.W, after.W - before.W),
        (before.V, after.V - before.V),
    ]
    left = J.new_zeros(*J.shape, 4)
    left[..., 0] = J
    for i, j, k in product(range(2), repeat=3):
        left[..., i + j + k] -= torch.einsum("sr,nr,mr->snm", pairs[0][i], pairs[1][j], pairs[2][k])
    return left.flatten(0, 2)
