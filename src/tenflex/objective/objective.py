r"""The objective of the coupled factorization: what everything here minimises."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, reduce
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from tenflex.bases import Basis
from tenflex.bases.base import positive
from tenflex.factors import Factors
from tenflex.objective.cancellation import CANCELLATION
from tenflex.objective.equal import EqualTerm
from tenflex.objective.evaluation import Evaluation, Loss, Measure
from tenflex.objective.passing import Passing
from tenflex.objective.tensor import JacobianTensor
from tenflex.objective.term import JacobianTerm
from tenflex.objective.viewed import ViewTerm
from tenflex.objective.weighted import WeightedTerm
from tenflex.objective.weights import weights_of
from tenflex.samples import Samples
from tenflex.sums import chunks, mean_of, over_samples, sample_count, shared, squared_norm


class Objective:
    r"""The relative error of flexible layers on samples.

    .. math:: E = \frac{\|J - [[H, W, V]]\|^2}{\|J\|^2} + \lambda \frac{\|F - G W^\top - b\|^2}{\|F - \bar F\|^2}

    The bias is always the best one, the mean of what is left. Samples with a covariance have both norms of the first
    term weighted by its inverse; with views in place of whole Jacobians both are estimated from them. Of several layers
    the model of J is :math:`W D_L \cdots D_1 V^\top`.

    Args:
        samples: The samples to fit, in the coordinates of the problem.
        coupling: lambda.
        held_out: Whether these are held-out samples, of which there may be few: then the size of the outputs is that
            about zero, which is the mean of the fitted ones, and not about a mean of their own.
    """

    def __init__(self, samples: Samples, coupling: float, held_out: bool = False) -> None:
        self.samples = samples
        self.coupling, self.held_out = coupling, held_out
        self.inputs = samples.inputs
        self.count = sample_count(samples.inputs)
        self.mean = mean_of(samples.outputs, self.count)
        self.term = self._term(samples)
        self.energy = self.term.energy
        self.size_j = positive(self.energy)
        # A few held-out samples may be alike up to rounding: then their errors are absolute.
        varied = squared_norm(samples.outputs) if held_out else self._variation()
        self.size_f = torch.where(varied > 1e-28 * squared_norm(samples.outputs), varied, 1.0)
        self.weight_j = 1 / self.size_j
        self.weight_f = coupling / self.size_f
        self._known: WeakKeyDictionary[Factors, tuple[float, float]] = WeakKeyDictionary()

    @cached_property
    def centred(self) -> Float[Tensor, "S n"]:
        """The outputs less their mean."""
        return self.samples.outputs - self.mean

    def _variation(self) -> Float[Tensor, ""]:
        """The sum of the squares of the outputs less their mean."""
        outputs, total = self.samples.outputs, self.mean.new_zeros(())
        for part in chunks(len(outputs), 16 * outputs.shape[1]):
            total += (outputs[part] - self.mean).square().sum()
        return over_samples(total)

    @cached_property
    def measure(self) -> Measure:
        """What an evaluation needs of it."""
        of = self.samples
        return Measure(of.inputs, of.outputs, self.mean, self.count, self.energy, self.weight_j, self.weight_f)

    def _term(self, samples: Samples) -> JacobianTerm:
        if samples.directions is not None:
            return ViewTerm(samples.directions, samples.jacobians)
        if samples.covariance is not None:
            return WeightedTerm(samples.jacobians, weights_of(samples))
        return EqualTerm(self.jacobians)

    @cached_property
    def jacobians(self) -> JacobianTensor:
        """The whole Jacobians; ValueError if there are none."""
        if self.samples.directions is not None:
            raise ValueError("expected samples with whole Jacobians, got views of them")
        return JacobianTensor(self.samples.jacobians)

    @cached_property
    def pilot(self) -> Objective | None:
        """The objective on the pilot of the samples, for starts; None where there is none."""
        return None if self.samples.pilot is None else Objective(self.samples.pilot, self.coupling)

    def on(self, samples: Samples) -> Objective:
        """The same objective on other samples, or on others of their numbers."""
        return Objective(samples, self.coupling, self.held_out)

    def value(self, factors: Factors, exact: bool = False) -> tuple[Tensor, Tensor]:
        """Relative squared errors of the Jacobians and of the outputs, differentiable once in `factors.tensors()`.

        The bias is the best one, whatever that of the factors; `exact` asks for residuals in place of Gram identities.
        """
        factors = factors.with_tensors(shared(*factors.tensors()))
        misfit, G = self._passed(factors, exact)
        mean = mean_of(G.detach(), self.count)  # with the best bias nothing moves with it
        return misfit / self.size_j, self.output_error(G - mean, factors.W)

    def loss(self, factors: Factors, exact: bool = False, dtype: torch.dtype | None = None) -> Tensor:
        """The objective itself, differentiable once in `factors.tensors()`; see `value`.

        Where it passes over the samples, products are taken in `dtype`, by default that of the factors, and added up in
        theirs.
        """
        plain = exact and self.samples.views != 0  # of outputs alone nothing cancels
        passing = None if plain else self._passing(factors, True, dtype or factors.W.dtype)
        if passing is None:
            value: Tensor = self.total(*self.value(factors, exact))
            return value
        factors = factors.with_tensors(shared(*factors.tensors()))
        only = factors.only
        tensors = factors.W, only.shift, only.coefficients, *factors.maps[0]
        loss: Tensor = Loss.apply(self.measure, passing, only.basis, *tensors)
        return loss

    @torch.no_grad()
    def _passing(self, factors: Factors, learns: bool, dtype: torch.dtype) -> Passing | None:
        """What passes over the samples for the Jacobians' term of one layer; None where nothing does."""
        if len(factors.activations) > 1:
            return None
        return self.term.passing(factors.maps[0], factors.W, learns, dtype)

    def output_error(self, G: Float[Tensor, "S r"], W: Float[Tensor, "n r"]) -> Float[Tensor, ""]:
        """The relative squared error of the outputs, G being the last activations, centred."""
        return OutputMisfit.apply(self.centred, G, W) / self.size_f

    def _passed(self, factors: Factors, exact: bool) -> tuple[Float[Tensor, ""], Float[Tensor, "S r"]]:
        """The squared error of the Jacobians, and the activations of the last layer."""
        G, slopes = self.inputs, []
        for maps, one in zip(factors.maps, factors.activations, strict=False):
            G, H = Curve.apply(reduce(torch.matmul, maps, G) + one.shift, one.coefficients, one.basis)
            slopes.append(H)
        if len(slopes) == 1:
            return self.term.misfit(factors.maps[0], factors.W, slopes[0], exact), G
        return self.term.product_misfit(factors, slopes, exact), G

    def total(self, jacobian_error: Any, output_error: Any) -> Any:
        """E, from the two errors."""
        return jacobian_error + self.coupling * output_error

    def errors(self, factors: Factors) -> tuple[float, float]:
        """Relative squared errors of the Jacobians and of the outputs, the bias being the factors' own."""
        if factors not in self._known:  # solvers and the history ask for the same
            jacobian_error, mean, output_error = self._measured(factors)
            off = mean - factors.bias
            output_error = output_error + self.count * off.square().sum() / self.size_f
            self._known[factors] = jacobian_error.item(), output_error.item()
        return self._known[factors]

    def with_best_bias(self, factors: Factors) -> Factors:
        """The layers with the bias that fits the outputs' mean exactly."""
        return replace(factors, bias=factors.bias + self.mean - mean_of(factors.outputs(self.inputs), self.count))

    def measured(self, factors: Factors) -> tuple[Factors, float, float]:
        """The layers with their best bias, and their errors."""
        jacobian_error, bias, output_error = self._measured(factors)
        best = replace(factors, bias=bias)
        self._known[best] = jacobian_error.item(), output_error.item()
        return best, *self._known[best]

    def _measured(self, factors: Factors) -> tuple[Tensor, Float[Tensor, " n"], Tensor]:
        """The error of the Jacobians, the best bias, and the error of the outputs with it."""
        misfit, mean, outputs = self._passed_over(factors) or self._passed_whole(factors, exact=False)
        if misfit < CANCELLATION * self.size_j and self.samples.views != 0:
            misfit, mean, outputs = self._passed_whole(factors, exact=True)
        return misfit / self.size_j, self.mean - mean @ factors.map(-1), outputs

    def _passed_whole(self, factors: Factors, exact: bool) -> tuple[Tensor, Float[Tensor, " r"], Tensor]:
        """The squared error of the Jacobians, the mean of the last activations, the relative error of the outputs."""
        misfit, G = self._passed(factors, exact)
        mean = mean_of(G, self.count)
        return misfit, mean, self.output_error(G - mean, factors.W)

    def _passed_over(self, factors: Factors) -> tuple[Tensor, Float[Tensor, " r"], Tensor] | None:
        """The same, some samples at a time; None where that cannot be."""
        passing = self._passing(factors, False, factors.W.dtype)
        if passing is None:
            return None
        only = factors.only
        one = Evaluation(self.measure, passing, only.basis, factors.maps[0], factors.W, only.shift, only.coefficients)
        (misfit, outputs), mean = one.errors(learns=False)
        return misfit, mean, outputs / self.size_f


class OutputMisfit(torch.autograd.Function):
    """`||F - G W^T||^2` by residuals, some samples at a time: nothing of the size of F is made, and most stays near."""

    @staticmethod
    def forward(ctx: Any, F: Tensor, G: Tensor, W: Tensor) -> Tensor:
        value, learns = G.new_zeros(()), any(ctx.needs_input_grad)
        to_g, to_w = (torch.empty_like(G), torch.zeros_like(W)) if learns else (G, W)
        for part in chunks(len(F), 16 * F.shape[1]):
            left = F[part] - G[part] @ W.mT
            value += left.square().sum()
            if learns:
                to_g[part] = left @ W
                to_w += left.mT @ G[part]
        ctx.save_for_backward(to_g, to_w)
        return over_samples(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_value: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *(-2 * to_value * one for one in ctx.saved_tensors))


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
