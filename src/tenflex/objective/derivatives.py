"""The exact derivatives of a layer's outputs and Jacobians in everything that is solved for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenflex.factors import Factors
from tenflex.layered import Layer, LayeredFactors
from tenflex.objective.objective import Objective


def full(factors: Layer) -> Layer:
    """The layer with the products of two matrices multiplied out."""
    return replace(factors, inner=(factors.V,), outer=(factors.W,))


def flat(factors: Factors | LayeredFactors) -> Float[Tensor, " p"]:
    """All unknowns in one vector."""
    return torch.cat([one.flatten() for one in factors.tensors()])


def with_flat(factors: Layer, vector: Float[Tensor, " p"]) -> Layer:
    """The layer with these unknowns."""
    shapes = factors.tensors()
    pieces = vector.split([one.numel() for one in shapes])
    return factors.with_tensors([piece.view(one.shape) for piece, one in zip(pieces, shapes, strict=True)])


def moved(factors: Layer, step: Float[Tensor, " p"]) -> Layer:
    """The layer moved by a step."""
    return with_flat(factors, flat(factors) + step)


@dataclass(frozen=True)
class Views:
    """From where samples are looked at: combinations `a . f(x_s)` of outputs, and slopes `a . J_s b` of them along b.

    Args:
        samples: s, `(q,)`.
        along_outputs: a, `(q, n)`.
        along_inputs: b, `(q, m)`.
    """

    samples: Int[Tensor, " q"]
    along_outputs: Float[Tensor, "q n"]
    along_inputs: Float[Tensor, "q m"]


def all_outputs(part: slice, like: Float[Tensor, "S m"], n: int) -> Views:
    """Every output of the samples in a range; nothing along the inputs."""
    samples = torch.arange(part.start, part.stop, device=like.device).repeat_interleave(n)
    a = torch.eye(n).to(like).repeat(part.stop - part.start, 1)
    return Views(samples, a, like.new_zeros(len(a), like.shape[1]))


def all_entries(part: slice, like: Float[Tensor, "S m"], n: int) -> Views:
    """Every entry of the Jacobians of the samples in a range."""
    m, count = like.shape[1], part.stop - part.start
    samples = torch.arange(part.start, part.stop, device=like.device).repeat_interleave(n * m)
    a = torch.eye(n).to(like).repeat_interleave(m, 0).repeat(count, 1)
    return Views(samples, a, torch.eye(m).to(like).repeat(count * n, 1))


def derivatives_of(objective: Objective, factors: Factors | LayeredFactors) -> OneLayer | TwoLayers:
    """The derivatives at a layer with full maps."""
    inputs = objective.inputs
    return TwoLayers(inputs, factors) if isinstance(factors, LayeredFactors) else OneLayer(inputs, factors)


class OneLayer:
    """The derivatives of `W g(V^T x + a)` in V, W, a and C, in this order."""

    def __init__(self, inputs: Float[Tensor, "S m"], factors: Factors) -> None:
        self.inputs, self.V, self.W = inputs, factors.V, factors.W
        t = factors.project(inputs)
        self.value, self.slope = factors.basis.value(t), factors.basis.derivative(t)
        self.G, self.H, self.K = factors.basis.curves(t, factors.coefficients)

    def of_outputs(self, views: Views) -> Float[Tensor, "q p"]:
        """The derivatives of `a . f(x_s)`."""
        s, a = views.samples, views.along_outputs
        to_g = a @ self.W
        to_t = to_g * self.H[s]
        return joined(
            outer(self.inputs[s], to_t),
            outer(a, self.G[s]),
            to_t,
            outer(to_g, self.value[s]),
        )

    def of_jacobians(self, views: Views) -> Float[Tensor, "q p"]:
        """The derivatives of `a . J_s b`."""
        s, a, b = views.samples, views.along_outputs, views.along_inputs
        to_g, moving = a @ self.W, b @ self.V
        to_t = to_g * self.K[s] * moving
        return joined(
            outer(self.inputs[s], to_t) + outer(b, to_g * self.H[s]),
            outer(a, self.H[s] * moving),
            to_t,
            outer(to_g * moving, self.slope[s]),
        )


class TwoLayers:
    """The derivatives of `W g(U h(V^T x + a) + a')` in V, U, W, a, a', C and C', in this order."""

    def __init__(self, inputs: Float[Tensor, "S m"], factors: LayeredFactors) -> None:
        self.inputs, self.V, self.U, self.W = inputs, factors.V, factors.U, factors.W
        t, (first, second) = factors.project(inputs), factors.bases
        self.first_value, self.first_slope = first.value(t), first.derivative(t)
        self.first = first.curves(t, factors.coefficients[0])
        t = self.first[0] @ self.U.mT + factors.shifts[1]
        self.second_value, self.second_slope = second.value(t), second.derivative(t)
        self.second = second.curves(t, factors.coefficients[1])

    def of_outputs(self, views: Views) -> Float[Tensor, "q p"]:
        """The derivatives of `a . f(x_s)`."""
        s, a = views.samples, views.along_outputs
        (first, first_slope, _), (second, second_slope, _) = (self._at(one, s) for one in (self.first, self.second))
        to_g = a @ self.W
        to_between = to_g * second_slope
        to_h = to_between @ self.U
        to_t = to_h * first_slope
        return joined(
            outer(self.inputs[s], to_t),
            outer(to_between, first),
            outer(a, second),
            to_t,
            to_between,
            outer(to_h, self.first_value[s]),
            outer(to_g, self.second_value[s]),
        )

    def of_jacobians(self, views: Views) -> Float[Tensor, "q p"]:
        """The derivatives of `a . J_s b`."""
        s, a, b = views.samples, views.along_outputs, views.along_inputs
        (first, first_slope, first_bend), (_, second_slope, second_bend) = (
            self._at(one, s) for one in (self.first, self.second)
        )
        moving = b @ self.V  # how what arrives at the first layer moves along b, and then what leaves it
        leaving = first_slope * moving
        between = leaving @ self.U.mT
        to_g = a @ self.W
        to_between, to_moving_between = to_g * second_bend * between, to_g * second_slope
        to_h, to_leaving = to_between @ self.U, to_moving_between @ self.U
        to_t = to_h * first_slope + to_leaving * first_bend * moving
        return joined(
            outer(self.inputs[s], to_t) + outer(b, to_leaving * first_slope),
            outer(to_between, first) + outer(to_moving_between, leaving),
            outer(a, second_slope * between),
            to_t,
            to_between,
            outer(to_h, self.first_value[s]) + outer(to_leaving * moving, self.first_slope[s]),
            outer(to_g * between, self.second_slope[s]),
        )

    @staticmethod
    def _at(curves: tuple[Tensor, Tensor, Tensor], samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value, slope, bend = curves
        return value[samples], slope[samples], bend[samples]


def outer(left: Float[Tensor, "q i"], right: Float[Tensor, "q *j"]) -> Float[Tensor, "q i *j"]:
    """Row by row the product of every entry of the left with the right, or of entry i with row i of the right."""
    return left[:, :, None] * (right[:, None] if right.ndim == 2 else right)


def joined(*parts: Tensor) -> Float[Tensor, "q p"]:
    """Derivatives in one matrix after the other, as rows."""
    return torch.cat([one.flatten(1) for one in parts], 1)
