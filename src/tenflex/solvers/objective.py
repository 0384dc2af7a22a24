r"""The objective of the coupled factorization, and the two products with the Jacobian tensor that everything costs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tenflex.bases import Basis
from tenflex.bases.base import positive
from tenflex.factors import Factors
from tenflex.samples import Samples
from tenflex.solvers.tensor import CHUNK, JacobianTensor

CANCELLATION = 1e-5
"""Below this relative error the Gram identities lose digits by cancellation, and residuals are formed instead."""


class Objective:
    r"""The relative error of a flexible layer on samples.

    .. math:: E = \frac{\|J - [[H, W, V]]\|^2}{\|J\|^2} + \lambda \frac{\|F - G W^\top - b\|^2}{\|F - \bar F\|^2}

    The bias is always the best one, the mean of what is left. The first term is computed by Gram identities,

    .. math:: \|J\|^2 - 2 \langle J, [[H, W, V]] \rangle + \sum_s h_s^\top [(W^\top W) \odot (V^\top V)] h_s

    so the dense model tensor is never formed; near an exact fit, where they cancel, by residuals, a chunk at a time.

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
        self.energy = samples.jacobians.square().sum()
        self.size_j = positive(self.energy)
        # A few held-out samples may be alike up to rounding: then their errors are absolute.
        varied = self.centred.square().sum()
        self.size_f = torch.where(varied > 1e-28 * samples.outputs.square().sum(), varied, 1.0)
        self.weight_j = 1 / self.size_j
        self.weight_f = coupling / self.size_f

    def value(self, factors: Factors, exact: bool = False) -> tuple[Tensor, Tensor]:
        """Relative squared errors of the Jacobians and of the outputs, differentiable once in `factors.tensors()`.

        The bias is the best one, whatever that of the factors; `exact` asks for residuals in place of Gram identities.
        """
        G, H = Curve.apply(factors.project(self.inputs), factors.coefficients, factors.basis)
        V, W = factors.V, factors.W
        left = self.centred - (G - G.mean(0)) @ W.mT
        if exact:
            misfit = Misfit.apply(self.jacobians, V, W, H)
        else:
            gram = (W.mT @ W) * (V.mT @ V)
            misfit = self.energy - 2 * Overlap.apply(self.jacobians, W, H, *factors.inner) + ((H @ gram) * H).sum()
        return misfit / self.size_j, left.square().sum() / self.size_f

    def errors(self, factors: Factors) -> tuple[float, float]:
        """Relative squared errors of the Jacobians and of the outputs, the bias being the factors' own."""
        jacobian_error, output_error = self.value(factors)
        if jacobian_error < CANCELLATION:
            jacobian_error, output_error = self.value(factors, exact=True)
        off = self.mean - factors.outputs(self.inputs).mean(0)
        return jacobian_error.item(), (output_error + len(self.inputs) * off.square().sum() / self.size_f).item()


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
