"""The exact derivatives of a layer's outputs and Jacobians in everything that is solved for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.factors import Factors
from tenflex.layered import Layer, LayeredFactors
from tenflex.solvers.objective import Objective


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


def rows_of(objective: Objective, factors: Factors | LayeredFactors) -> OneLayer | TwoLayers:
    """The rows of D at a layer with full maps."""
    return TwoLayers(objective, factors) if isinstance(factors, LayeredFactors) else OneLayer(objective, factors)


class OneLayer:
    """The derivatives of one layer, in closed form, in the order V, W, shifts, coefficients."""

    def __init__(self, objective: Objective, factors: Factors) -> None:
        self.objective, self.V, self.W = objective, factors.V, factors.W
        t = factors.project(objective.inputs)
        self.value, self.slope = factors.basis.value(t), factors.basis.derivative(t)
        self.value = self.value - self.value.mean(0)
        self.G, self.H, self.K = factors.basis.curves(t, factors.coefficients)
        self.G = self.G - self.G.mean(0)
        moved = self.H[:, None, :] * objective.inputs[:, :, None]
        self.by_v = moved - moved.mean(0)  # dG / dV, centred
        self.by_shift = self.H - self.H.mean(0)

    def of_jacobians(self, part: slice) -> tuple[Float[Tensor, "rows p"], Float[Tensor, " rows"]]:
        """Derivatives of `W diag(h) V^T`, and what is left of J, both weighted."""
        V, W, H, K = self.V, self.W, self.H[part], self.K[part]
        z, J = self.objective.inputs[part], self.objective.jacobians.entries[part]
        _, n, m = J.shape
        eye_m, eye_n = torch.eye(m).to(V), torch.eye(n).to(V)
        by_v = torch.einsum("nr,sr,jm->snjmr", W, H, eye_m) + torch.einsum("nr,jr,sr,sm->snjmr", W, V, K, z)
        by_shift = torch.einsum("nr,jr,sr->snjr", W, V, K)
        by_c = torch.einsum("nr,jr,srd->snjrd", W, V, self.slope[part])
        by_w = torch.einsum("sr,jr,no->snjor", H, V, eye_n)
        left = J - torch.einsum("nr,sr,jr->snj", W, H, V)
        derivative, error = weighted((by_v, by_w, by_shift, by_c), left, 3, self.objective.weight_j)
        term = self.objective.term
        return term.whiten(derivative, part), term.whiten(error[:, None], part)[:, 0]

    def of_outputs(self, part: slice) -> tuple[Float[Tensor, "rows p"], Float[Tensor, " rows"]]:
        """Derivatives of `G W^T`, centred over the samples, and what is left of F, both weighted."""
        W, G = self.W, self.G[part]
        eye_n = torch.eye(len(W)).to(W)
        by_v = torch.einsum("nr,smr->snmr", W, self.by_v[part])
        by_shift = torch.einsum("nr,sr->snr", W, self.by_shift[part])
        by_c = torch.einsum("nr,srd->snrd", W, self.value[part])
        by_w = torch.einsum("sr,no->snor", G, eye_n)
        left = self.objective.centred[part] - G @ W.mT
        return weighted((by_v, by_w, by_shift, by_c), left, 2, self.objective.weight_f)


class TwoLayers:
    """The derivatives of two layers, by forward differentiation, in the order of `LayeredFactors.tensors`."""

    def __init__(self, objective: Objective, factors: LayeredFactors) -> None:
        self.objective, self.factors, self.flat = objective, factors, flat(factors)
        self.outputs = factors.outputs(objective.inputs) - factors.bias
        self.mean = torch.zeros_like(objective.mean[:, None] * self.flat)
        for part in objective.term.parts(len(self.flat)):
            self.mean += self._by_outputs(part).sum(0) / len(self.outputs)

    def of_jacobians(self, part: slice) -> tuple[Float[Tensor, "rows p"], Float[Tensor, " rows"]]:
        """Derivatives of `W D' U D V^T`, and what is left of J, both weighted."""
        z, J = self.objective.inputs[part], self.objective.jacobians.entries[part]
        derivative = self._derivative(lambda factors: factors.jacobians(z))
        derivative, error = weighted((derivative,), J - self.factors.jacobians(z), 3, self.objective.weight_j)
        term = self.objective.term
        return term.whiten(derivative, part), term.whiten(error[:, None], part)[:, 0]

    def of_outputs(self, part: slice) -> tuple[Float[Tensor, "rows p"], Float[Tensor, " rows"]]:
        """Derivatives of the outputs, centred over the samples, and what is left of F, both weighted."""
        left = self.objective.centred[part] - (self.outputs[part] - self.outputs.mean(0))
        return weighted((self._by_outputs(part) - self.mean,), left, 2, self.objective.weight_f)

    def _by_outputs(self, part: slice) -> Float[Tensor, "s n p"]:
        return self._derivative(lambda factors: factors.outputs(self.objective.inputs[part]))

    def _derivative(self, of: Callable[[LayeredFactors], Tensor]) -> Float[Tensor, "*shape p"]:
        derivative: Tensor = torch.func.jacfwd(lambda vector: of(with_flat(self.factors, vector)))(self.flat)
        return derivative


def weighted(
    parts: tuple[Tensor, ...], left: Tensor, rows: int, weight: Float[Tensor, ""]
) -> tuple[Float[Tensor, "rows p"], Float[Tensor, " rows"]]:
    """Derivatives joined into rows, the first dimensions being those of the equations, and what is left of them."""
    root = weight.sqrt()
    derivative = torch.cat([one.flatten(0, rows - 1).flatten(1) for one in parts], 1)
    return root * derivative, root * left.flatten()
