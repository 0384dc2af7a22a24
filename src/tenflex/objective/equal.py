"""The Jacobians' term with all entries alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from tenflex.factors import Factors
from tenflex.objective.coefficients import CoefficientSystem
from tenflex.objective.linear import solve_positive
from tenflex.objective.passing import EqualPassing
from tenflex.objective.tensor import Contracted, JacobianTensor
from tenflex.objective.term import JacobianTerm
from tenflex.sums import chunks, inner_product, over_samples


class EqualTerm(JacobianTerm):
    r"""The squared error of the Jacobians with all entries alike, by Gram identities.

    .. math:: \|J\|^2 - 2 \langle J, [[H, W, V]] \rangle + \sum_s h_s^\top [(W^\top W) \odot (V^\top V)] h_s

    So the dense model tensor is never formed; near an exact fit, where they cancel, residuals are, a chunk at a time.

    Args:
        jacobians: J.
    """

    def __init__(self, jacobians: JacobianTensor) -> None:
        self.jacobians, self.entries = jacobians, jacobians.entries
        self.energy = jacobians.energy

    def passing(
        self, inner: tuple[Tensor, ...], W: Float[Tensor, "n r"], learns: bool, dtype: torch.dtype
    ) -> EqualPassing | None:
        return EqualPassing(self.entries, inner, W, learns, dtype) if EqualPassing.small(inner, W) else None

    def misfit(
        self, inner: tuple[Tensor, ...], W: Float[Tensor, "n r"], H: Float[Tensor, "S r"], exact: bool
    ) -> Float[Tensor, ""]:
        V = reduce(torch.matmul, inner)
        if exact:
            return Misfit.apply(self.jacobians, V, W, H)
        gram = (W.mT @ W) * (V.mT @ V)
        return self.energy - 2 * Overlap.apply(self.jacobians, W, H, *inner) + inner_product(H @ gram, H)

    def product_misfit(
        self, factors: Factors, slopes: Sequence[Float[Tensor, "S r"]], exact: bool
    ) -> Float[Tensor, ""]:
        if exact:
            return super().product_misfit(factors, slopes, exact)
        A, V, along = factors.upstream(slopes), factors.V, reduce(torch.matmul, factors.maps[0], self.entries)
        return self.energy - 2 * inner_product(along, A) + inner_product(A @ (V.mT @ V), A)

    def metric(self, left: Float[Tensor, "s n m"], part: slice) -> Float[Tensor, "s n m"]:
        return left

    def input_map(
        self, V: Float[Tensor, "m r"], W: Float[Tensor, "n r"], H: Float[Tensor, "S r"]
    ) -> Float[Tensor, "m r"]:
        sums = self.jacobians.contracted(H)
        return solve_positive(sums.gram * (W.mT @ W), sums.along_outputs(W).mT).mT

    def slopes(self, V: Float[Tensor, "m r"], W: Float[Tensor, "n r"]) -> Float[Tensor, "S r"]:
        return self.jacobians.slopes(V, W)

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
        sums = sums or self.jacobians.contracted(H)
        own = weight * sums.gram * (V.mT @ V)
        return solve_positive(own + gram, (weight * sums.along_inputs(V) + right).mT).mT

    def contracted(self, H: Float[Tensor, "S r"]) -> Contracted:
        return self.jacobians.contracted(H)

    def joined(
        self, system: CoefficientSystem, V: Float[Tensor, "m r"], W: Float[Tensor, "n r"], weight: Float[Tensor, ""]
    ) -> CoefficientSystem:
        mix = weight * (W.mT @ W) * (V.mT @ V)
        return replace(system, mix_j=mix, to_h=weight * self.jacobians.onto(V, W))

    def parts(self, width: int) -> Iterator[slice]:
        count, n, m = self.jacobians.entries.shape
        yield from chunks(count, n * m * width)

    def whiten(self, rows: Float[Tensor, "rows q"], part: slice) -> Float[Tensor, "rows q"]:
        return rows


class Overlap(torch.autograd.Function):
    """`<J, [[H, W, V]]>` with V full or a product; a scalar, so its gradient is made on the way."""

    @staticmethod
    def forward(ctx: Any, jacobians: JacobianTensor, W: Tensor, H: Tensor, *inner: Tensor) -> Tensor:
        thin = jacobians if len(inner) == 1 else jacobians.through(inner[0])
        to_h = thin.onto(inner[-1], W)
        if any(ctx.needs_input_grad):
            to_inner, to_w = thin.unfold(inner[-1], W, H)
            to_first = [jacobians.to_first(inner[1], W, H)] if len(inner) == 2 else []
            ctx.save_for_backward(to_w, to_h, *to_first, to_inner)
        return inner_product(to_h, H)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_value: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *(to_value * one for one in ctx.saved_tensors))


class Misfit(torch.autograd.Function):
    """`||J - [[H, W, V]]||^2` by residuals: exact where the Gram identities cancel, at half as much again."""

    @staticmethod
    def forward(ctx: Any, jacobians: JacobianTensor, V: Tensor, W: Tensor, H: Tensor) -> Tensor:
        J = jacobians.entries
        count, n, m = J.shape
        value = H.new_zeros(())
        to_v, to_w, to_h = torch.zeros_like(V), torch.zeros_like(W), torch.empty_like(H)
        for part in chunks(count, n * max(m, V.shape[1])):
            weighted = W * H[part, None]
            left = J[part] - weighted @ V.mT
            value += left.square().sum()
            along = left @ V
            to_h[part] = (along * W).sum(1)
            to_w += (along * H[part, None]).sum(0)
            to_v += left.flatten(0, 1).mT @ weighted.flatten(0, 1)
        ctx.save_for_backward(to_v, to_w, to_h)
        return over_samples(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_value: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *(-2 * to_value * one for one in ctx.saved_tensors))
