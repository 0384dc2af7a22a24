"""Where solvers begin: directions in which the map really changes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.objective.objective import Objective

MOST_DRAWN = 2**24
"""`torch.multinomial` draws from at most so many (https://github.com/pytorch/pytorch/issues/2576)."""


def gradient_directions(
    objective: Objective, rank: int, generator: torch.Generator
) -> tuple[Float[Tensor, "m r"], Float[Tensor, "n r"]]:
    """Unit columns for V and W: randomly drawn rows of the Jacobians, and what the map does along them.

    Large gradients are drawn more often, from the samples at hand; where there are views of the Jacobians, a view is a
    gradient. This is the start that a randomly initialised
    student lacks.
    """
    J = objective.samples.jacobians
    _, n, m = J.shape
    every = -(-J.shape[0] * n // MOST_DRAWN)
    rows = J.reshape(-1, m)[::every]
    energies = torch.linalg.vector_norm(rows, dim=1).square()  # a reduction: nothing of the size of J is made
    few = int((energies > 0).sum()) < rank
    drawn = torch.multinomial(energies.cpu(), rank, replacement=few, generator=generator).to(J.device)
    V = rows[drawn].mT.contiguous()
    V = V + 1e-3 * V.norm(dim=0) / m**0.5 * torch.randn(V.shape, generator=generator, dtype=V.dtype, device="cpu").to(V)
    V = V / V.norm(dim=0)
    directions = objective.samples.directions
    if directions is None:
        W = torch.stack([J[row * every // n] @ v for row, v in zip(drawn.tolist(), V.mT, strict=True)], 1)
    else:  # all that is known of what the map does there: a combination of outputs that it changes
        W = directions.flatten(0, 1)[::every][drawn].mT
    return V, W / W.norm(dim=0)
