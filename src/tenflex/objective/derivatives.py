"""The exact derivatives of outputs and Jacobians of flexible layers in everything that is solved for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenflex.factors import Factors


@dataclass(frozen=True, eq=False)
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
    a = torch.eye(n, dtype=like.dtype, device=like.device).repeat(part.stop - part.start, 1)
    return Views(samples, a, like.new_zeros(len(a), like.shape[1]))


def all_entries(part: slice, like: Float[Tensor, "S m"], n: int) -> Views:
    """Every entry of the Jacobians of the samples in a range."""
    m, count = like.shape[1], part.stop - part.start
    samples = torch.arange(part.start, part.stop, device=like.device).repeat_interleave(n * m)
    a = torch.eye(n, dtype=like.dtype, device=like.device).repeat_interleave(m, 0).repeat(count, 1)
    return Views(samples, a, torch.eye(m, dtype=like.dtype, device=like.device).repeat(count * n, 1))


@dataclass(frozen=True, eq=False)
class Passing:
    """What passes one layer at all samples.

    Args:
        inputs: What arrives at its linear map, `(S, p)`.
        value: Its basis, `(S, r, d)`.
        slope: The derivative of its basis, `(S, r, d)`.
        curves: Its activations and their first two derivatives, each `(S, r)`.
    """

    inputs: Float[Tensor, "S p"]
    value: Float[Tensor, "S r d"]
    slope: Float[Tensor, "S r d"]
    curves: tuple[Tensor, Tensor, Tensor]


class Derivatives:
    """The derivatives in all that `Factors.tensors` holds, in its order, for layers with full maps.

    A value `a . f` is carried back from layer to layer; a slope `a . J b` is carried forward with its direction b and
    then back twice: what a layer gives moves it, and how much a layer moves along b.

    Args:
        inputs: The samples' inputs.
        factors: The layers.
    """

    def __init__(self, inputs: Float[Tensor, "S m"], factors: Factors) -> None:
        self.maps = [factors.map(k) for k in range(len(factors.maps))]
        self.layers: list[Passing] = []
        for one, t in zip(factors.activations, factors.arguments(inputs), strict=True):
            curves = one.curves(t)
            self.layers.append(Passing(inputs, one.basis.value(t), one.basis.derivative(t), curves))
            inputs = curves[0]
        self.last = inputs

    def upstream(self, factors: Factors, part: slice) -> Float[Tensor, "s n r1"]:
        """How the outputs move with what arrives at the first activations, in a range of samples."""
        return factors.upstream([layer.curves[1][part] for layer in self.layers])

    def of_outputs(self, views: Views) -> Float[Tensor, "q p"]:
        """The derivatives of `a . f(x_s)`."""
        s, a = views.samples, views.along_outputs
        maps, shifts, coefficients = [outer(self.last[s], a)], [], []
        to_g = a @ self.maps[-1].mT
        for layer, following in self._backwards():
            to_t = to_g * layer.curves[1][s]
            coefficients.append(outer(to_g, layer.value[s]))
            shifts.append(to_t)
            maps.append(outer(layer.inputs[s], to_t))
            to_g = to_t @ following.mT
        return joined(*reversed(maps), *reversed(shifts), *reversed(coefficients))

    def of_jacobians(self, views: Views) -> Float[Tensor, "q p"]:
        """The derivatives of `a . J_s b`."""
        s, a = views.samples, views.along_outputs
        directions, moves = self._along(views)
        maps, shifts, coefficients = [outer(directions[-1], a)], [], []
        to_move, to_g = a @ self.maps[-1].mT, None  # what counts is how much the last layer moves, not what it gives
        for k, (layer, following) in zip(range(len(moves) - 1, -1, -1), self._backwards(), strict=True):
            H, K = layer.curves[1][s], layer.curves[2][s]
            to_moving, to_t = to_move * H, to_move * moves[k] * K
            of_coefficients = outer(to_move * moves[k], layer.slope[s])
            if to_g is not None:
                to_t = to_t + to_g * H
                of_coefficients = of_coefficients + outer(to_g, layer.value[s])
            coefficients.append(of_coefficients)
            shifts.append(to_t)
            maps.append(outer(layer.inputs[s], to_t) + outer(directions[k], to_moving))
            to_move, to_g = to_moving @ following.mT, to_t @ following.mT
        return joined(*reversed(maps), *reversed(shifts), *reversed(coefficients))

    def _backwards(self) -> Iterator[tuple[Passing, Tensor]]:
        """The layers with the linear maps before them, from the last to the first."""
        return zip(reversed(self.layers), reversed(self.maps[:-1]), strict=True)

    def _along(self, views: Views) -> tuple[list[Tensor], list[Tensor]]:
        """How what each linear map is given moves along b, and how what arrives at each layer's activations does."""
        directions, moves = [views.along_inputs], []
        for layer, before in zip(self.layers, self.maps, strict=False):
            moves.append(directions[-1] @ before)
            directions.append(moves[-1] * layer.curves[1][views.samples])
        return directions, moves


def outer(left: Float[Tensor, "q i"], right: Float[Tensor, "q *j"]) -> Float[Tensor, "q i *j"]:
    """Row by row the product of every entry of the left with the right, or of entry i with row i of the right."""
    return left[:, :, None] * (right[:, None] if right.ndim == 2 else right)


def joined(*parts: Tensor) -> Float[Tensor, "q p"]:
    """Derivatives in one matrix after the other, as rows."""
    return torch.cat([one.flatten(1) for one in parts], 1)
