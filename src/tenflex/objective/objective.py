r"""The objective of the coupled factorization: what everything here minimises."""

from __future__ import annotations

from functools import reduce
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tenflex.bases import Basis
from tenflex.bases.base import positive
from tenflex.factors import Factors
from tenflex.objective.cancellation import CANCELLATION
from tenflex.objective.equal import EqualTerm
from tenflex.objective.tensor import JacobianTensor
from tenflex.objective.weighted import WeightedTerm
from tenflex.objective.weights import weights_of
from tenflex.samples import Samples


class Objective:
    r"""The relative error of flexible layers on samples.

    .. math:: E = \frac{\|J - [[H, W, V]]\|^2}{\|J\|^2} + \lambda \frac{\|F - G W^\top - b\|^2}{\|F - \bar F\|^2}

    The bias is always the best one, the mean of what is left. Samples with a covariance have both norms of the first
    term weighted by its inverse. Of several layers the model of J is :math:`W D_L \cdots D_1 V^\top`.

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
        self._known: WeakKeyDictionary[Factors, tuple[float, float]] = WeakKeyDictionary()

    def value(self, factors: Factors, exact: bool = False) -> tuple[Tensor, Tensor]:
        """Relative squared errors of the Jacobians and of the outputs, differentiable once in `factors.tensors()`.

        The bias is the best one, whatever that of the factors; `exact` asks for residuals in place of Gram identities.
        """
        G, slopes = self.inputs, []
        for maps, one in zip(factors.maps, factors.activations, strict=False):
            G, H = Curve.apply(reduce(torch.matmul, maps, G) + one.shift, one.coefficients, one.basis)
            slopes.append(H)
        if len(slopes) == 1:
            misfit = self.term.misfit(factors.maps[0], factors.W, slopes[0], exact)
        else:
            misfit = self.term.product_misfit(factors.maps[0], factors.upstream(slopes), exact)
        left = self.centred - (G - G.mean(0)) @ factors.map(-1)
        return misfit / self.size_j, left.square().sum() / self.size_f

    def total(self, jacobian_error: Any, output_error: Any) -> Any:
        """E, from the two errors."""
        return jacobian_error + self.coupling * output_error

    def errors(self, factors: Factors) -> tuple[float, float]:
        """Relative squared errors of the Jacobians and of the outputs, the bias being the factors' own."""
        if factors not in self._known:  # solvers and the history ask for the same
            jacobian_error, output_error = self.value(factors)
            if jacobian_error < CANCELLATION:
                jacobian_error, output_error = self.value(factors, exact=True)
            off = self.mean - factors.outputs(self.inputs).mean(0)
            output_error = output_error + len(self.inputs) * off.square().sum() / self.size_f
            self._known[factors] = jacobian_error.item(), output_error.item()
        return self._known[factors]


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
