"""The Jacobians' term with the covariance of their errors: generalized least squares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from tenflex.objective.coefficients import CoefficientSystem
from tenflex.objective.linear import solve_positive
from tenflex.objective.tensor import Contracted, khatri_rao
from tenflex.objective.term import JacobianTerm
from tenflex.objective.weights import Weights
from tenflex.sums import over_samples, squared_norm


class WeightedTerm(JacobianTerm):
    r"""The error in the metric of the inverse covariance.

    .. math:: \mathrm{vec}(J - [[H, W, V]])^\top \, \Sigma^{-1} \, \mathrm{vec}(J - [[H, W, V]])

    The entries no longer share one Gram matrix, so the steps in V and W are `m r` and `n r` unknowns together, and the
    error itself is always formed from residuals, a chunk at a time.

    References:
        Hollander, Dreesen, Ishteva, Schoukens, "Approximate decoupling of multivariate polynomials using weighted
        tensor decomposition", 2018, https://arxiv.org/abs/1601.07800

    Args:
        entries: J, `(S, n, m)`.
        weights: The whitener of its errors.
    """

    def __init__(self, entries: Float[Tensor, "S n m"], weights: Weights) -> None:
        self.entries, self.weights = entries, weights
        self.whitened = weights.whiten(entries.flatten(1).unsqueeze(-1), slice(0, len(entries)))
        self.energy = squared_norm(self.whitened)

    def misfit(
        self, inner: tuple[Tensor, ...], W: Float[Tensor, "n r"], H: Float[Tensor, "S r"], exact: bool
    ) -> Float[Tensor, ""]:
        return WeightedMisfit.apply(self, reduce(torch.matmul, inner), W, H)

    def metric(self, left: Float[Tensor, "s n m"], part: slice) -> Float[Tensor, "s n m"]:
        whitened = self.weights.whiten(left.flatten(1).unsqueeze(-1), part)
        return self.weights.adjoint(whitened, part).view_as(left)

    def input_map(
        self, V: Float[Tensor, "m r"], W: Float[Tensor, "n r"], H: Float[Tensor, "S r"]
    ) -> Float[Tensor, "m r"]:
        eye = torch.eye(len(V), dtype=V.dtype, device=V.device)
        gram, right = self._normal_equations(lambda part: torch.einsum("sr,nr,ij->snijr", H[part], W, eye), V.numel())
        return solve_positive(gram, right).view_as(V)

    def slopes(self, V: Float[Tensor, "m r"], W: Float[Tensor, "n r"]) -> Float[Tensor, "S r"]:
        gram, right = self.onto(V, W)
        size = gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=torch.finfo(gram.dtype).tiny)
        ridge = 1e-13 * size[:, None, None] * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
        return torch.linalg.solve(gram + ridge, right).view(len(self.entries), -1)

    def onto(self, V: Float[Tensor, "m r"], W: Float[Tensor, "n r"]) -> tuple[Tensor, Tensor]:
        """The error as a quadratic form in H, `h^T gram h - 2 h^T right`, `(groups, g r, g r)` and `(groups, g r, 1)`.

        The samples of a group stand one after another.
        """
        design = self.weights.spread(khatri_rao(W, V))
        return design.mT @ design, design.mT @ self.whitened.reshape(len(design), -1, 1)

    def output_map(
        self,
        V: Float[Tensor, "m r"],
        W: Float[Tensor, "n r"],
        H: Float[Tensor, "S r"],
        weight: Float[Tensor, ""],
        gram: Float[Tensor, "r r"],
        right: Float[Tensor, "n r"],
        sums: Contracted | None = None,
    ) -> Float[Tensor, "n r"]:
        eye = torch.eye(len(W), dtype=W.dtype, device=W.device)
        own, to_own = self._normal_equations(lambda part: torch.einsum("sr,mr,io->simor", H[part], V, eye), W.numel())
        total = weight * own + torch.kron(eye, gram)
        return solve_positive(total, weight * to_own + right.reshape(-1, 1)).view_as(W)

    def joined(
        self, system: CoefficientSystem, V: Float[Tensor, "m r"], W: Float[Tensor, "n r"], weight: Float[Tensor, ""]
    ) -> CoefficientSystem:
        gram, right = self.onto(V, W)
        slope = system.activated.slope
        count, r, d = slope.shape
        groups = len(gram)
        grouped = slope.view(groups, -1, r, d)
        joint = gram.view(groups, -1, r, gram.shape[-1] // r, r)
        acted = torch.einsum("bsktl,btle->bskle", joint, grouped)
        dense = over_samples(torch.einsum("bskd,bskle->kdle", grouped, acted)).reshape(r * d, r * d)
        to_c = over_samples(torch.einsum("skd,sk->kd", slope, right.view(count, r)))
        return WeightedSystem(**system.settings(), gram=weight * dense, to_c=weight * to_c)

    def parts(self, width: int) -> Iterator[slice]:
        return self.weights.parts(width)

    def whiten(self, rows: Float[Tensor, "rows q"], part: slice) -> Float[Tensor, "rows q"]:
        return self.weights.whiten(rows.view(-1, self.weights.size, rows.shape[1]), part).flatten(0, 1)

    def _normal_equations(self, design: Callable[[slice], Tensor], unknowns: int) -> tuple[Tensor, Tensor]:
        """`A^T Sigma^-1 A` and `A^T Sigma^-1 vec(J)`, where `design` gives the rows of A in a range of samples."""
        gram = self.entries.new_zeros(unknowns, unknowns)
        right = self.entries.new_zeros(unknowns, 1)
        for part in self.weights.parts(unknowns):
            rows = self.whiten(design(part).reshape(-1, unknowns), part)
            gram += rows.mT @ rows
            right += rows.mT @ self.whitened[part].flatten(0, 1)
        return over_samples(gram), over_samples(right)


class WeightedMisfit(torch.autograd.Function):
    """The weighted squared error by residuals, a chunk of samples at a time."""

    @staticmethod
    def forward(ctx: Any, term: WeightedTerm, V: Tensor, W: Tensor, H: Tensor) -> Tensor:
        value = H.new_zeros(())
        to_v, to_w, to_h = torch.zeros_like(V), torch.zeros_like(W), torch.empty_like(H)
        for part in term.weights.parts(1):
            h = H[part]
            left = term.entries[part] - (W * h[:, None]) @ V.mT
            whitened = term.weights.whiten(left.flatten(1).unsqueeze(-1), part)
            value += whitened.square().sum()
            towards = term.weights.adjoint(whitened, part).view_as(left)
            along = towards @ V
            to_h[part] = (along * W).sum(1)
            to_w += (along * h[:, None]).sum(0)
            to_v += torch.einsum("snm,nr,sr->mr", towards, W, h)
        ctx.save_for_backward(to_v, to_w, to_h)
        return over_samples(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_value: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *(-2 * to_value * one for one in ctx.saved_tensors))


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightedSystem(CoefficientSystem):
    """The normal equations in C, where the slopes of the nodes are mixed differently in every sample.

    Args:
        gram: What the Jacobians add to the matrix, `(r d, r d)`.
        to_c: What they add to the right-hand side, `(r, d)`.
    """

    gram: Float[Tensor, "rd rd"]
    to_c: Float[Tensor, "r d"]

    def right(self) -> Float[Tensor, "r d"]:
        return super().right() + self.to_c

    def apply(self, coefficients: Float[Tensor, "r d"]) -> Float[Tensor, "r d"]:
        return super().apply(coefficients) + (self.gram @ coefficients.flatten()).view_as(coefficients)

    def dense(self) -> Float[Tensor, "rd rd"]:
        return super().dense() + self.gram

    def among(self, nodes: Int[Tensor, " some"], coefficients: Float[Tensor, "r d"]) -> WeightedSystem:
        r, d = self.to_c.shape
        rest = coefficients.index_fill(0, nodes, 0.0)
        left = self.to_c - (self.gram @ rest.flatten()).view_as(rest)
        some = self.gram.view(r, d, r, d)[nodes][:, :, nodes].reshape(len(nodes) * d, -1)
        outputs = super().among(nodes, coefficients).settings()
        return WeightedSystem(**{**outputs, "gram": some, "to_c": left[nodes]})

    def diagonal_blocks(self) -> Float[Tensor, "r d d"]:
        r, d = self.to_c.shape
        return super().diagonal_blocks() + self.gram.view(r, d, r, d).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
