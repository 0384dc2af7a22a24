"""Nodes that another one makes needless, or that do nothing."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.factors import Factors
from tenflex.objective.objective import Objective
from tenflex.sums import centred, mean_of

ALIKE = 0.999
"""Cosines above this, an angle below three degrees, are those of directions that are the same."""

DEAD = 1e-9
"""A node that gives less than this share of what the largest of its layer gives does nothing."""


def redundant(objective: Objective, factors: Factors, exact: bool) -> bool:
    """Whether in some layer a node is dead, or two are one: with the same inputs and the same effect.

    Two such nodes can be merged, or cancel each other ever more closely, as where a map has no best layer of a rank.
    Of layers with one input all nodes have the same direction, which says nothing unless the layers are exact: then one
    node would do as well.
    """
    for k, (one, t) in enumerate(zip(factors.activations, factors.arguments(objective.inputs), strict=True)):
        before, after = factors.map(k), factors.map(k + 1).mT
        sizes = mean_of(centred(one.values(t)).square()).sqrt() * after.norm(dim=0)
        if (sizes <= DEAD * sizes.amax()).any() or ((exact or len(before) > 1) and _twins(before, after)):
            return True
    return False


def _twins(before: Float[Tensor, "m r"], after: Float[Tensor, "n r"]) -> bool:
    """Whether two columns are alike in both matrices."""
    both = torch.minimum(_cosines(before), _cosines(after))
    return bool((both.triu(1) > ALIKE).any())


def _cosines(columns: Float[Tensor, "m r"]) -> Float[Tensor, "r r"]:
    unit = columns / columns.norm(dim=0).clamp(min=torch.finfo(columns.dtype).tiny)
    return (unit.mT @ unit).abs()
