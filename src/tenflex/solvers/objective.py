r"""The objective of the coupled factorization, and the two products with the Jacobian tensor that everything costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from tenflex.bases import Basis
from tenflex.bases.base import positive
from tenflex.factors import Factors
from tenflex.layered import LayeredFactors, downstream
from tenflex.samples import Samples
from tenflex.solvers.coefficients import CoefficientSystem
from tenflex.solvers.linear import solve_positive
from tenflex.solvers.tensor import CHUNK, Contracted, JacobianTensor
from tenflex.solvers.term import JacobianTerm
from tenflex.solvers.weighted import WeightedTerm
from tenflex.solvers.weights import weights_of

CANCELLATION = 1e-5
"""Below this relative error the Gram identities lose digits by cancellation, and residuals are formed instead."""


class Objective:
    r"""The relative error of a flexible layer on samples.

    .. math:: E = \frac{\|J - [[H, W, V]]\|^2}{\|J\|^2} + \lambda \frac{\|F - G W^\top - b\|^2}{\|F - \bar F\|^2}

    The bias is always the best one, the mean of what is left. Samples with a covariance have both norms of the first
    term weighted by its inverse.

    Args:
        samples: The samples to fit, in the coordinates of the problem.
        coupling: lambda.
    """

    def __init__(self, samples: Samples, coupling: float) -> None:
        self.samples = samples
        self.coupling = coupling
        self.inputs = samples.inputs
        self.jacobians = JacobianTensor(samples.jacobians)
        self.mean = samples.outputs.mean(0)
        self.centred = samples.outputs - self.mean
        weighted = samples.covariance is not None
        self.term = WeightedTerm(samples.jacobians, weights_of(samples)) if weighted else EqualTerm(self.jacobians)
        self.energy = self.term.energy
        self.size_j = positive(self.energy)
        # A few held-out samples may be alike up to rounding: then their errors are absolute.
        varied = self.centred.square().sum()
        self.size_f = torch.where(varied > 1e-28 * samples.outputs.square().sum(), varied, 1.0)
        self.weight_j = 1 / self.size_j
        self.weight_f = coupling / self.size_f

    def value(self, factors: Factors | LayeredFactors, exact: bool = False) -> tuple[Tensor, Tensor]:
        """Relative squared errors of the Jacobians and of the outputs, differentiable once in `factors.tensors()`.

        The bias is the best one, whatever that of the factors; `exact` asks for residuals in place of Gram identities.
        """
        if isinstance(factors, LayeredFactors):
            G, misfit = self._two_layers(factors, exact)
        else:
            G, misfit = self._one_layer(factors, exact)
        left = self.centred - (G - G.mean(0)) @ factors.W.mT
        return misfit / self.size_j, left.square().sum() / self.size_f

    def _one_layer(self, factors: Factors, exact: bool) -> tuple[Float[Tensor, "S r"], Float[Tensor, ""]]:
        """The activations, and the squared error of the Jacobians."""
        G, H = Curve.apply(factors.project(self.inputs), factors.coefficients, factors.basis)
        return G, self.term.misfit(factors.inner, factors.W, H, exact)

    def _two_layers(self, factors: LayeredFactors, exact: bool) -> tuple[Float[Tensor, "S r2"], Float[Tensor, ""]]:
        """The same, the activations being those of the last layer."""
        (first, second), bases = factors.coefficients, factors.bases
        G, H = Curve.apply(factors.project(self.inputs), first, bases[0])
        G, slopes = Curve.apply(G @ factors.hidden.mT + factors.shifts[1], second, bases[1])
        A = downstream(factors.W, slopes, factors.hidden, H)
        return G, self.term.product_misfit(factors.inner, A, exact)

    def errors(self, factors: Factors | LayeredFactors) -> tuple[float, float]:
        """Relative squared errors of the Jacobians and of the outputs, the bias being the factors' own."""
        jacobian_error, output_error = self.value(factors)
        if jacobian_error < CANCELLATION:
            jacobian_error, output_error = self.value(factors, exact=True)
        off = self.mean - factors.outputs(self.inputs).mean(0)
        return jacobian_error.item(), (output_error + len(self.inputs) * off.square().sum() / self.size_f).item()


class EqualTerm(JacobianTerm):
    r"""The squared error of the Jacobians with all entries alike, by Gram identities.

    .. math:: \|J\|^2 - 2 \langle J, [[H, W, V]] \rangle + \sum_s h_s^\top [(W^\top W) \odot (V^\top V)] h_s

    So the dense model tensor is never formed; near an exact fit, where they cancel, residuals are, a chunk at a time.

    Args:
        jacobians: J.
    """

    def __init__(self, jacobians: JacobianTensor) -> None:
        self.jacobians, self.entries = jacobians, jacobians.entries
        self.energy = torch.linalg.vector_norm(jacobians.entries).square()

    def misfit(
        self, inner: tuple[Tensor, ...], W: Float[Tensor, "n r"], H: Float[Tensor, "S r"], exact: bool
    ) -> Float[Tensor, ""]:
        V = reduce(torch.matmul, inner)
        if exact:
            return Misfit.apply(self.jacobians, V, W, H)
        gram = (W.mT @ W) * (V.mT @ V)
        return self.energy - 2 * Overlap.apply(self.jacobians, W, H, *inner) + ((H @ gram) * H).sum()

    def product_misfit(self, inner: tuple[Tensor, ...], A: Float[Tensor, "S n r"], exact: bool) -> Float[Tensor, ""]:
        if exact:
            return super().product_misfit(inner, A, exact)
        V, along = reduce(torch.matmul, inner), reduce(torch.matmul, inner, self.entries)
        return self.energy - 2 * (along * A).sum() + ((A @ (V.mT @ V)) * A).sum()

    def metric(self, left: Float[Tensor, "s n m"], part: slice) -> Float[Tensor, "s n m"]:
        return left

    def input_map(
        self, V: Float[Tensor, "m r"], W: Float[Tensor, "n r"], H: Float[Tensor, "S r"]
    ) -> Float[Tensor, "m r"]:
        return solve_positive((H.mT @ H) * (W.mT @ W), self.jacobians.contracted(H).along_outputs(W).mT).mT

    def slopes(self, V: Float[Tensor, "m r"], W: Float[Tensor, "n r"]) -> Float[Tensor, "S r"]:
        return solve_positive((W.mT @ W) * (V.mT @ V), self.jacobians.onto(V, W).mT).mT

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
        own = weight * (H.mT @ H) * (V.mT @ V)
        to_w = (sums or self.jacobians.contracted(H)).along_inputs(V)
        return solve_positive(own + gram, (weight * to_w + right).mT).mT

    def contracted(self, H: Float[Tensor, "S r"]) -> Contracted:
        return self.jacobians.contracted(H)

    def joined(
        self, system: CoefficientSystem, V: Float[Tensor, "m r"], W: Float[Tensor, "n r"], weight: Float[Tensor, ""]
    ) -> CoefficientSystem:
        mix = weight * (W.mT @ W) * (V.mT @ V)
        return replace(system, mix_j=mix, to_h=weight * self.jacobians.onto(V, W))

    def parts(self, width: int) -> Iterator[slice]:
        count, n, m = self.jacobians.entries.shape
        step = max(1, CHUNK // (n * m * width))
        for start in range(0, count, step):
            yield slice(start, min(start + step, count))

    def whiten(self, rows: Float[Tensor, "rows q"], part: slice) -> Float[Tensor, "rows q"]:
        return rows


class Curve(torch.autograd.Function):
    """Activations and their slopes, with the exact gradient through the second derivative."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, coefficients: Tensor, basis: Basis) -> tuple[Tensor, Tensor]:
        G, H, K = basis.curves(t, coefficients)
        ctx.save_for_backward(t, H, K)
        ctx.basis = basis
        return G, H

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_g: Tensor, to_h: Tensor) -> tuple[Tensor, Tensor, None]:
        t, H, K = ctx.saved_tensors
        return to_g * H + to_h * K, ctx.basis.pull(t, to_g, to_h), None


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
        return (to_h * H).sum()

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
        step = max(1, CHUNK // (n * max(m, V.shape[1])))
        for start in range(0, count, step):
            part = slice(start, start + step)
            weighted = W * H[part, None]
            left = J[part] - weighted @ V.mT
            value += left.square().sum()
            along = left @ V
            to_h[part] = (along * W).sum(1)
            to_w += (along * H[part, None]).sum(0)
            to_v += left.flatten(0, 1).mT @ weighted.flatten(0, 1)
        ctx.save_for_backward(to_v, to_w, to_h)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_value: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *(-2 * to_value * one for one in ctx.saved_tensors))
