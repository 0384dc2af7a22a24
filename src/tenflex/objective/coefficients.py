r"""The coefficients of all activations at once: with W and V fixed the objective is quadratic in C."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenflex.bases.cone import Cone
from tenflex.objective.inequalities import QuadraticProgramme
from tenflex.objective.linear import conjugate_gradients, solve_positive
from tenflex.sums import over_samples

FORMED = 4096
"""Up to this many unknowns the system is formed, 128 MiB, and factorized; above, conjugate gradients use products."""

DENSE = 2000
"""Up to this many unknowns with inequalities are solved for together."""


GROUP = 500
"""The unknowns that are solved together when there are inequalities and more than `DENSE` unknowns."""


ROUNDS = 3
"""How often every group of nodes is solved then; each time the objective falls."""


RIDGE = 1e-9
"""Relative to the mean diagonal, in orthonormal coordinates: functions that meet no sample stay at zero."""


@dataclass(frozen=True, eq=False)
class Activated:
    """The basis at the projected samples.

    Args:
        value: Phi, centred over the samples (the constants go to the bias), `(S, r, d)`.
        slope: Phi', `(S, r, d)`.
    """

    value: Float[Tensor, "S r d"]
    slope: Float[Tensor, "S r d"]

    def curves(self, coefficients: Float[Tensor, "r d"]) -> tuple[Float[Tensor, "S r"], Float[Tensor, "S r"]]:
        """G (centred) and H."""
        return (
            torch.einsum("srd,rd->sr", self.value, coefficients),
            torch.einsum("srd,rd->sr", self.slope, coefficients),
        )

    def pull(self, to_g: Float[Tensor, "S r"], to_h: Float[Tensor, "S r"]) -> Float[Tensor, "r d"]:
        """The adjoint of `curves`: `sum_s to_g phi + to_h phi'`, a right-hand side."""
        at_g = torch.einsum("srd,sr->rd", self.value, to_g)
        return over_samples(at_g + torch.einsum("srd,sr->rd", self.slope, to_h))

    def grams(self, weight_g: float | Tensor, weight_h: float | Tensor) -> Float[Tensor, "r d d"]:
        """`weight_g Phi_k^T Phi_k + weight_h Phi'_k^T Phi'_k`, one matrix a node."""
        of_values = weight_g * torch.einsum("srd,sre->rde", self.value, self.value)
        return over_samples(of_values + weight_h * torch.einsum("srd,sre->rde", self.slope, self.slope))


@dataclass(frozen=True, eq=False)
class CoefficientSystem:
    r"""The normal equations in C.

    Block (k, l) is :math:`(w_k \cdot w_l) [ c_F \Phi_k^\top \Phi_l + c_J (v_k \cdot v_l) \Phi_k'^\top \Phi_l' ]`, the
    right-hand side :math:`c_F \Phi_k^\top (F w_k) + c_J \Phi_k'^\top (J v_k \cdot w_k)`.

    Args:
        activated: The basis at the samples.
        mix_f: `c_F W^T W`, `(r, r)`.
        mix_j: `c_J (W^T W) * (V^T V)`, `(r, r)`.
        to_g: `c_F F W`, `(S, r)`.
        to_h: `c_J` times `w_k . J_s v_k`, `(S, r)`.
        penalty: The roughness form of one activation, `(d, d)`, or None.
    """

    activated: Activated
    mix_f: Float[Tensor, "r r"]
    mix_j: Float[Tensor, "r r"]
    to_g: Float[Tensor, "S r"]
    to_h: Float[Tensor, "S r"]
    penalty: Float[Tensor, "d d"] | None = None

    def solve(self, start: Float[Tensor, "r d"], smoothing: float = 0.0) -> Float[Tensor, "r d"]:
        """The coefficients; `start` is where conjugate gradients begin."""
        right = self._right
        if right.numel() <= FORMED:
            gram = self._formed + smoothing * self.dense_penalty()
            return solve_positive(gram, right.reshape(-1, 1), RIDGE).view_as(right)
        return self._iterate(right, start, smoothing)

    def solve_within(
        self, cone: Cone, start: Float[Tensor, "r d"], smoothing: float = 0.0
    ) -> tuple[Float[Tensor, "r d"], Float[Tensor, "r q"]]:
        """The best coefficients in a cone, and the multipliers of its inequalities.

        Above `DENSE` unknowns the nodes are solved in groups, one after another, from `start`, which is in the cone:
        the objective then falls, but not as far as it could.
        """
        if start.numel() <= DENSE:
            return self._programme(cone, smoothing)
        coefficients = start
        multipliers = cone.slack(torch.zeros_like(start))
        groups = torch.arange(len(start), device=start.device).split(max(1, GROUP // start.shape[1]))
        for _ in range(ROUNDS):
            for nodes in groups:
                some = self.among(nodes, coefficients)
                found, pressing = some._programme(cone.among(nodes), smoothing)
                coefficients = coefficients.index_copy(0, nodes, found)
                multipliers = multipliers.index_copy(0, nodes, pressing)
        return coefficients, multipliers

    def _programme(self, cone: Cone, smoothing: float) -> tuple[Tensor, Tensor]:
        """The quadratic programme in the coordinates in which the cone has an interior."""
        right, span = self._right, cone.span
        r, d = right.shape
        gram = self._formed + smoothing * self.dense_penalty()
        gram = gram + RIDGE * gram.diagonal().mean() * torch.eye(r * d, dtype=gram.dtype, device=gram.device)
        gram = torch.einsum("kdle,df,eg->kflg", gram.view(r, d, r, d), span, span).reshape(r * span.shape[1], -1)
        y, multipliers = QuadraticProgramme(gram, right @ span, cone.rows).solve()
        return y @ span.mT, multipliers

    def among(self, nodes: Int[Tensor, " some"], coefficients: Float[Tensor, "r d"]) -> CoefficientSystem:
        """The normal equations of some nodes when the others keep their coefficients."""
        G, H = self.activated.curves(coefficients.index_fill(0, nodes, 0.0))
        return replace(
            self,
            activated=Activated(self.activated.value[:, nodes], self.activated.slope[:, nodes]),
            mix_f=self.mix_f[nodes][:, nodes],
            mix_j=self.mix_j[nodes][:, nodes],
            to_g=self.to_g[:, nodes] - G @ self.mix_f[:, nodes],
            to_h=self.to_h[:, nodes] - H @ self.mix_j[:, nodes],
        )

    def right(self) -> Float[Tensor, "r d"]:
        """The right-hand side."""
        return self.activated.pull(self.to_g, self.to_h)

    def apply(self, coefficients: Float[Tensor, "r d"]) -> Float[Tensor, "r d"]:
        """The matrix times coefficients, without forming it and without the penalty."""
        G, H = self.activated.curves(coefficients)
        return self.activated.pull(G @ self.mix_f, H @ self.mix_j)

    def freedom(self, smoothing: float) -> Float[Tensor, ""]:
        """The effective number of coefficients at a smoothing weight: the trace of the hat matrix's diagonal blocks."""
        blocks = self._blocks
        eye = torch.eye(blocks.shape[1], dtype=blocks.dtype, device=blocks.device)
        tiny = RIDGE * blocks.diagonal(dim1=1, dim2=2).mean() * eye
        return torch.linalg.solve(self._penalized(smoothing) + tiny, blocks).diagonal(dim1=1, dim2=2).sum()

    def diagonal(self) -> Float[Tensor, "r d"]:
        """The diagonal of the matrix, without the penalty."""
        return self._blocks.diagonal(dim1=1, dim2=2)

    def dense(self) -> Float[Tensor, "rd rd"]:
        """The matrix, formed: `(r d)^2` numbers."""
        _, r, d = self.activated.value.shape
        total = self.mix_f.new_zeros(r, d, r, d)
        for part, mix in ((self.activated.value, self.mix_f), (self.activated.slope, self.mix_j)):
            flat = part.flatten(1)
            total += (flat.mT @ flat).view(r, d, r, d) * mix[:, None, :, None]
        return over_samples(total).view(r * d, r * d)

    def dense_penalty(self) -> Float[Tensor, "rd rd"]:
        """The roughness of all activations, weighted by the size of their output columns."""
        r, d = self.mix_f.shape[0], self.activated.value.shape[2]
        if self.penalty is None:
            return self.mix_f.new_zeros(r * d, r * d)
        return torch.block_diag(*(weight * self.penalty for weight in self.mix_f.diagonal()))

    def _iterate(self, right: Tensor, start: Tensor, smoothing: float) -> Tensor:
        blocks = self._penalized(smoothing)
        size = blocks.diagonal(dim1=1, dim2=2).mean()
        ridge = RIDGE * size * torch.eye(blocks.shape[1], dtype=blocks.dtype, device=blocks.device)
        lower = torch.linalg.cholesky(blocks + ridge)

        def regularized(coefficients: Tensor) -> Tensor:
            total = self.apply(coefficients) + RIDGE * size * coefficients
            if self.penalty is not None:
                total += smoothing * self.mix_f.diagonal()[:, None] * (coefficients @ self.penalty)
            return total

        def precondition(left: Tensor) -> Tensor:
            return torch.cholesky_solve(left.unsqueeze(-1), lower).squeeze(-1)

        return conjugate_gradients(regularized, right, start, precondition)

    @cached_property
    def _formed(self) -> Float[Tensor, "rd rd"]:
        """The matrix, formed once for all weights of the penalty that are tried."""
        return self.dense()

    @cached_property
    def _right(self) -> Float[Tensor, "r d"]:
        """The right-hand side, made once."""
        return self.right()

    @cached_property
    def _blocks(self) -> Float[Tensor, "r d d"]:
        """The diagonal blocks, formed once."""
        return self.diagonal_blocks()

    def _penalized(self, smoothing: float) -> Float[Tensor, "r d d"]:
        """The diagonal blocks with the penalty."""
        if self.penalty is None:
            return self._blocks
        return self._blocks + smoothing * self.mix_f.diagonal()[:, None, None] * self.penalty

    def settings(self) -> dict[str, Any]:
        """The arguments that it was made of."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def diagonal_blocks(self) -> Float[Tensor, "r d d"]:
        """The diagonal blocks of the matrix, one a node, without the penalty."""
        return self.activated.grams(self.mix_f.diagonal()[:, None, None], self.mix_j.diagonal()[:, None, None])
