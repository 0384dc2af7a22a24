"""The objective of one layer and its gradient, from passes over the samples that hold some of them at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from tenflex.bases import Basis
from tenflex.objective.passing import Passing, add_product_
from tenflex.sums import chunks, fits, over_samples


@dataclass(frozen=True, eq=False)
class Measure:
    """How errors at some samples count.

    Args:
        inputs: The samples at hand.
        outputs: Theirs.
        mean: That of the outputs of all samples.
        count: The number of all samples.
        energy: The squared norm of all Jacobians.
        weight_j: Of a squared error of the Jacobians.
        weight_f: Of one of the outputs.
    """

    inputs: Float[Tensor, "S m"]
    outputs: Float[Tensor, "S n"]
    mean: Float[Tensor, " n"]
    count: int
    energy: Float[Tensor, ""]
    weight_j: Float[Tensor, ""]
    weight_f: Float[Tensor, ""]


class Bent(NamedTuple):
    """What the nodes make of a range of samples: arguments, activations, slopes, second derivatives."""

    part: slice
    t: Float[Tensor, "s r"]
    G: Float[Tensor, "s r"]
    H: Float[Tensor, "s r"]
    K: Float[Tensor, "s r"]


@dataclass(eq=False)
class Evaluation:
    """Passes over the samples at hand: one for the mean of the activations, then one for everything else.

    What the nodes make of the samples is kept between them where it is small, else made twice: so the memory that an
    evaluation takes does not grow with the samples.

    Args:
        of: How errors count.
        passing: The Jacobians' term.
        basis: Of the activations.
        inner: V, or the two matrices whose product it is.
        W: The output map.
        shift: Of the activations.
        coefficients: Of the activations.
    """

    of: Measure
    passing: Passing
    basis: Basis
    inner: tuple[Tensor, ...]
    W: Float[Tensor, "n r"]
    shift: Float[Tensor, " r"]
    coefficients: Float[Tensor, "r d"]

    def parts(self) -> Iterator[slice]:
        """Ranges of samples that are at work together."""
        count, m = self.of.inputs.shape
        yield from chunks(count, 16 * max(m, *self.W.shape))

    def bent(self, part: slice) -> Bent:
        """What the nodes make of a range of samples."""
        columns = self.of.inputs[part].to(self.passing.dtype).mT
        for one in self.inner:
            columns = one.to(columns).mT @ columns  # with the thin matrix on the left products are twice as fast
        t = columns.mT.contiguous().to(self.shift).add_(self.shift)
        return Bent(part, t, *self.basis.curves(t, self.coefficients))

    def errors(self, learns: bool) -> tuple[Float[Tensor, " 2"], Float[Tensor, " r"]]:
        """The squared errors of Jacobians and outputs of all samples, and the mean of the activations."""
        small = fits(4 * len(self.of.inputs) * len(self.shift))
        kept = [self.bent(part) for part in self.parts()] if small else []
        passed = kept or (self.bent(part) for part in self.parts())
        total = sum((one.G.sum(0) for one in passed), torch.zeros_like(self.shift))
        mean = over_samples(total) / self.of.count
        self.sums = Sums.like(self)
        outputs = self.W.new_zeros(())
        for one in kept or (self.bent(part) for part in self.parts()):
            outputs += self._add(one, mean, learns)
        found = over_samples(torch.stack([self.passing.value, outputs]))
        return found + torch.stack([self.of.energy, torch.zeros_like(outputs)]), mean

    def _add(self, one: Bent, mean: Float[Tensor, " r"], learns: bool) -> Float[Tensor, ""]:
        """The squared error of the outputs at a range of samples, its gradient being added up."""
        dtype = self.passing.dtype
        G, W = (one.G - mean).to(dtype), self.W.to(dtype)
        left = (self.of.outputs[one.part] - self.of.mean).to(dtype) - G @ W.mT
        to_h = self.of.weight_j * self.passing.add(one.part, one.H)
        if learns:
            left_f = -2 * self.of.weight_f * left
            to_g = (left_f @ W).to(one.G)
            to_t = torch.addcmul(to_g * one.H, to_h, one.K)
            add_product_(self.sums.to_w, left_f.mT, G)
            self.sums.to_shift += to_t.sum(0)
            self.sums.to_coefficients += self.basis.pull(one.t, to_g, to_h)
            self._to_inner(self.of.inputs[one.part].to(dtype), to_t.to(dtype))
        return left.square().sum(dtype=mean.dtype)

    def _to_inner(self, x: Float[Tensor, "s m"], to_t: Float[Tensor, "s r"]) -> None:
        if len(self.inner) == 1:
            add_product_(self.sums.to_inner[0], to_t.mT, x)
            return
        first, last = (one.to(x) for one in self.inner)
        add_product_(self.sums.to_inner[0], last @ to_t.mT, x)
        add_product_(self.sums.to_inner[1], to_t.mT, x @ first)

    def gradient(self) -> tuple[Tensor, ...]:
        """The gradient of the objective in W, the shifts, the coefficients and the matrices of V."""
        to_w, to_inner = self.passing.gradients()
        sums, weight = self.sums, self.of.weight_j
        inner = (own.mT + weight * other for own, other in zip(sums.to_inner, to_inner, strict=True))
        return sums.to_w + weight * to_w, sums.to_shift, sums.to_coefficients, *inner


@dataclass(eq=False)
class Sums:
    """The gradient of the outputs' error and what comes through the arguments, so far; in V transposed."""

    to_w: Tensor
    to_shift: Tensor
    to_coefficients: Tensor
    to_inner: tuple[Tensor, ...]

    @classmethod
    def like(cls, one: Evaluation) -> Sums:
        """Zeros."""
        to_inner = tuple(inner.new_zeros(inner.shape[::-1]) for inner in one.inner)
        to_w, to_shift, to_coefficients = map(torch.zeros_like, (one.W, one.shift, one.coefficients))
        return cls(to_w, to_shift, to_coefficients, to_inner)


class Loss(torch.autograd.Function):
    """The objective, whose gradient is made with it."""

    @staticmethod
    def forward(ctx: Any, of: Measure, passing: Passing, basis: Basis, *tensors: Tensor) -> Tensor:
        W, shift, coefficients, *inner = tensors
        learns = any(ctx.needs_input_grad)
        one = Evaluation(of, passing, basis, tuple(inner), W, shift, coefficients)
        jacobians, outputs = one.errors(learns)[0]
        ctx.save_for_backward(*(one.gradient() if learns else ()))
        return of.weight_j * jacobians + of.weight_f * outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_value: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, None, *(to_value * one for one in ctx.saved_tensors))
