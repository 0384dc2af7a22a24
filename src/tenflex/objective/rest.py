"""What a layer leaves of outputs and Jacobians, and where a further node would take most of it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.factors import Factors, transposed
from tenflex.objective.linear import solve_positive
from tenflex.objective.objective import Objective
from tenflex.objective.prepared import Prepared
from tenflex.objective.steps import activate, normalized
from tenflex.sums import centred, chunks, gram_matrix, over_samples

ROUNDS = 4
"""Rounds of alternation that turn drawn gradients into leading directions of what is left."""


class Rest:
    """What a layer leaves of outputs and Jacobians, as products; the tensor is the Jacobians' less the model's."""

    def __init__(self, objective: Objective, factors: Factors) -> None:
        self.objective, self.V, self.W = objective, factors.V, factors.W
        G, self.H, _ = factors.only.curves(factors.arguments(objective.inputs)[0])
        self.outputs = objective.centred - centred(G, objective.count) @ self.W.mT
        self.inner_axes, self.outer_axes = axes_of(factors.maps[0]), axes_of(transposed(factors.maps[1]))

    def leading_pairs(
        self, count: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "m count"], Float[Tensor, "n count"]]:
        """Unit directions v and w along which most is left, each from a gradient that was drawn."""
        V, W = self._drawn(count, generator)
        for _ in range(ROUNDS):
            V, W = within(self.inner_axes, V), within(self.outer_axes, W)
            V, W = self._unfold(V, W, self._onto(V, W))
        return within(self.inner_axes, V), within(self.outer_axes, W)

    def gains(
        self, problem: Prepared, V: Float[Tensor, "m count"], W: Float[Tensor, "n count"], shift: Tensor
    ) -> Float[Tensor, " count"]:
        """By how much each of these nodes, alone and with its best coefficients, lowers the objective."""
        objective = self.objective
        activated = activate(problem.basis.fit(objective.inputs @ V + shift), objective, V, shift)
        weight_j, weight_f = objective.weight_j, objective.weight_f
        gram = activated.grams(weight_f, weight_j * V.square().sum(0)[:, None, None])
        right = activated.pull(weight_f * (self.outputs @ W), weight_j * self._onto(V, W))
        best = torch.stack([solve_positive(one, to[:, None], 1e-9)[:, 0] for one, to in zip(gram, right, strict=True)])
        return (best * right).sum(1)

    def _onto(self, V: Tensor, W: Tensor) -> Float[Tensor, "S count"]:
        return self.objective.jacobians.onto(V, W) - self.H @ ((self.W.mT @ W) * (self.V.mT @ V))

    def _unfold(self, V: Tensor, W: Tensor, H: Tensor) -> tuple[Float[Tensor, "m count"], Float[Tensor, "n count"]]:
        to_v, to_w = map(over_samples, self.objective.jacobians.unfold(V, W, H))
        both = gram_matrix(self.H, H)
        return to_v - self.V @ (both * (self.W.mT @ W)), to_w - self.W @ (both * (self.V.mT @ V))

    def _drawn(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Gradients of outputs in what is left, large ones more often, and what is left along them at that sample."""
        J = self.objective.jacobians.entries
        _, n, m = J.shape
        parts = chunks(len(J), n * max(m, self.H.shape[1]))
        energies = torch.cat([self._part(part).square().sum(2) for part in parts]).flatten()
        chances = energies + torch.finfo(energies.dtype).tiny
        drawn = torch.multinomial(chances.cpu(), count, replacement=True, generator=generator).to(J.device)
        left = self._part(drawn // n)
        V = left[torch.arange(count, device=left.device), drawn % n].mT
        return V, torch.einsum("cnm,mc->nc", left, V)

    def _part(self, samples: slice | Tensor) -> Float[Tensor, "s n m"]:
        """What is left of the Jacobians of a few samples."""
        return self.objective.jacobians.entries[samples] - (self.W * self.H[samples, None]) @ self.V.mT


def axes_of(maps: tuple[Tensor, ...]) -> Tensor | None:
    """Orthonormal axes of the columns of the first of two factors, where a new node must lie; None for a full map."""
    return None if len(maps) == 1 else torch.linalg.qr(maps[0])[0]


def within(axes: Tensor | None, directions: Tensor) -> Tensor:
    """Columns at unit norm, on the axes where there are any."""
    return normalized(directions if axes is None else axes @ (axes.mT @ directions))
