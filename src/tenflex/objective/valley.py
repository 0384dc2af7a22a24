"""The objective of a problem as a function of the tensors of its layers, for a descent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tenflex.factors import Factors
from tenflex.objective.curvature import Scaling
from tenflex.objective.prepared import Prepared
from tenflex.objective.roughness import roughness
from tenflex.objective.walls import Walls

LARGE = 1e8
"""What L-BFGS sees in place of the objective's first value."""


@dataclass(frozen=True, eq=False)
class Valley:
    """What L-BFGS goes down.

    The objective is made large: torch forgets curvature where a step and its change of gradient have a product below an
    absolute 1e-10, and would stall (https://github.com/pytorch/pytorch/blob/v2.6.0/torch/optim/lbfgs.py).

    Args:
        problem: The problem.
        factors: Where the descent begins.
        smoothing: The weight of the roughness penalty.
        size: The objective there, with the penalty.
        exact: Whether the errors are formed by residuals.
        walls: The inequalities, where there are any.
        dtype: In which products over the samples are taken.
        scalings: Coordinates of each tensor about where it begins; None for the tensors as they are.
    """

    problem: Prepared
    factors: Factors
    smoothing: float
    size: float
    exact: bool
    walls: Walls | None = None
    dtype: torch.dtype = torch.float64
    scalings: Sequence[Scaling] | None = None

    def start(self) -> Sequence[Tensor]:
        """The parameters with which a descent begins."""
        tensors = self.factors.tensors()
        return tensors if self.scalings is None else [torch.zeros_like(one) for one in tensors]

    def layer(self, parameters: Sequence[Tensor]) -> Factors:
        """The layers with these parameters."""
        if self.scalings is None:
            return self.factors.with_tensors(parameters)
        steps = zip(self.scalings, self.factors.tensors(), parameters, strict=True)
        return self.factors.with_tensors([one.moved(before, step) for one, before, step in steps])

    @torch.enable_grad()
    def loss(self, parameters: Sequence[Tensor]) -> Tensor:
        """The loss, its gradient being left in the parameters."""
        for one in parameters:
            one.grad = None
        objective, factors = self.problem.fitted, self.layer(parameters)
        loss = objective.loss(factors, self.exact, self.dtype)
        if self.problem.penalty is not None:
            loss = loss + roughness(self.problem, factors, self.smoothing)
        if self.walls is not None:
            loss = loss + self.walls.price(factors)
        loss = loss * (LARGE / max(self.size, 1e-200))
        loss.backward()
        return loss.detach()
