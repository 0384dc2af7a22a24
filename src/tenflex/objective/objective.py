"""The relative error of a layer on samples: what everything here minimises."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from tenflex.bases import Basis
from tenflex.bases.base import positive
from tenflex.factors import Factors
from tenflex.layered import LayeredFactors, downstream
from tenflex.objective.cancellation import CANCELLATION
from tenflex.objective.equal import EqualTerm
from tenflex.objective.tensor import JacobianTensor
from tenflex.objective.weighted import WeightedTerm
from tenflex.objective.weights import weights_of
from tenflex.samples import Samples


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
