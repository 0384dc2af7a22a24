"""Nodes that another one makes needless, or that do nothing."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.factors import Factors
from tenflex.objective.objective import Objective
from tenflex.sums import chunks, over_samples

SAME, ALIKE = 1 - 1e-8, 0.999
"""Cosines above these are those of directions that are the same, and of directions that may be about to become so."""

CANCELLED = 0.1
"""Alike nodes cancel each other if less than this share of the larger one is left of their sum."""

DEAD = 1e-9
"""A node that gives less than this share of what the largest of its layer gives does nothing."""


def redundant(objective: Objective, factors: Factors, exact: bool) -> bool:
    """Whether in some layer a node is dead, or two have the same inputs and effects, or nearly so and cancel.

    The last happens where a map has no best layer of a rank: two nodes come ever closer, and ever larger. Of layers
    with one input all nodes have the same direction, which says nothing unless the layers are exact.
    """
    for k, given in enumerate(_variations(objective, factors)):
        before, after = factors.map(k), factors.map(k + 1).mT
        gram = given * (after.mT @ after)
        sizes = gram.diagonal().sqrt()
        if (sizes <= DEAD * sizes.amax()).any() or ((exact or len(before) > 1) and _twins(before, after, gram)):
            return True
    return False


def _variations(objective: Objective, factors: Factors) -> list[Float[Tensor, "r r"]]:
    """The inner products of what the nodes of each layer give, less their means, over all samples."""
    width = 16 * max(len(objective.inputs[0]), *factors.ranks)
    sums = [torch.zeros(rank, dtype=factors.bias.dtype, device=factors.bias.device) for rank in factors.ranks]
    grams = [torch.diag(one) for one in sums]
    for again in (False, True):
        for part in chunks(len(objective.inputs), width):
            for k, t in enumerate(factors.arguments(objective.inputs[part])):
                G = factors.activations[k].values(t)
                if again:
                    G = G - sums[k] / objective.count
                    grams[k] = grams[k] + G.mT @ G
                else:
                    sums[k] = sums[k] + G.sum(0)
        sums = sums if again else [over_samples(one) for one in sums]
    return [over_samples(one) for one in grams]


def _twins(before: Float[Tensor, "m r"], after: Float[Tensor, "n r"], gram: Float[Tensor, "r r"]) -> bool:
    """Whether two nodes are one; `gram` has the inner products of what the nodes give."""
    cosines = torch.minimum(_cosines(before), _cosines(after))
    energies = gram.diagonal()
    together = energies[:, None] + energies + 2 * gram
    cancelled = together < CANCELLED**2 * torch.maximum(energies[:, None], energies)
    return bool(((cosines > SAME) | ((cosines > ALIKE) & cancelled)).triu(1).any())


def _cosines(columns: Float[Tensor, "m r"]) -> Float[Tensor, "r r"]:
    unit = columns / columns.norm(dim=0).clamp(min=torch.finfo(columns.dtype).tiny)
    return (unit.mT @ unit).abs()
