r"""How an objective curves in the maps of one layer, map by map, and coordinates in which it curves alike everywhere.

The Gauss-Newton matrix of a linear map is about a Kronecker product: of the second moment of what arrives at the map,
and of that of how what leaves it moves the residuals. For V and W these are

.. math:: (c_F Z^\top Z / S + c_J I) \otimes (W^\top W) * (H^\top H), \qquad
    I \otimes (c_F G^\top G + c_J (H^\top H) * (V^\top V))

so that no more is needed than Gram matrices of the activations and of their slopes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases.base import positive
from tenflex.factors import Factors
from tenflex.objective.objective import Objective
from tenflex.sums import chunks, over_samples, squared_norm

DAMPING = 0.1
"""Added to the diagonal, relative to it: directions of which samples tell little are not taken for flat ones."""

FEW = 32.0
"""So many samples add the whole diagonal once more, eight times as many next to nothing.

Along directions that few take for flat a layer would meet what is peculiar to them.
"""

STIFFER = 16.0
"""How much more the objective curves along other combinations of a node's functions than along the one it has.

Without this, coefficients that few samples tell of move first, and what fits better is met less closely by new inputs.
"""

FLOOR = 1e-6
"""The least diagonal, relative to the largest."""


@dataclass(frozen=True, eq=False)
class Scaling:
    """Coordinates Y of a matrix or a vector `X = X_0 + left Y right^T`.

    Args:
        left: `(a, a)`; None for the identity.
        right: `(b, b)`; None for the identity.
    """

    left: Float[Tensor, "a a"] | None = None
    right: Float[Tensor, "b b"] | None = None

    def moved(self, X: Float[Tensor, "a *b"], Y: Float[Tensor, "a *b"]) -> Float[Tensor, "a *b"]:
        """X moved by Y in these coordinates."""
        step = Y if self.left is None else self.left @ Y
        return X + (step if self.right is None else step @ self.right.mT)


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over all samples at a layer.

    Args:
        inputs: Of products of what arrives, `(m, m)`.
        values: Of products of activations, less their means, `(r, r)`.
        slopes: Of products of their slopes.
        bends: Of products of their second derivatives.
    """

    inputs: Float[Tensor, "m m"]
    values: Float[Tensor, "r r"]
    slopes: Float[Tensor, "r r"]
    bends: Float[Tensor, "r r"]


def moments_of(objective: Objective, factors: Factors) -> Moments:
    """The Gram matrices of one layer, some samples at a time."""
    (m, r), like = factors.V.shape, factors.W
    inputs, total, mean = like.new_zeros(m, m), like.new_zeros(3, r, r), like.new_zeros(r)
    for part in chunks(len(objective.inputs), 16 * max(m, r)):
        x = objective.inputs[part]
        inputs.addmm_(x.mT, x)
        (t,) = factors.arguments(x)
        curves = torch.stack(factors.only.curves(t))  # (3, s, r)
        total += curves.mT @ curves
        mean += curves[0].sum(0)
    summed = over_samples(torch.cat([inputs.flatten(), total.flatten(), mean]))
    inputs, total, mean = summed.split([m * m, 3 * r * r, r])
    values, slopes, bends = total.view(3, r, r)
    return Moments(inputs.view(m, m), values - torch.outer(mean, mean) / objective.count, slopes, bends)


def scalings(objective: Objective, factors: Factors) -> list[Scaling]:
    """Coordinates for each of `factors.tensors()` of one layer, in which the objective curves about alike.

    For the coefficients of a node that is told by those that it has. A covariance of the Jacobians counts on average.

    References:
        Martens, Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", 2015,
        https://arxiv.org/abs/1503.05671
    """
    seen, weight_f, weight_j = moments_of(objective, factors), objective.weight_f, objective.weight_j
    if objective.samples.views == 0:
        weight_j = torch.zeros_like(weight_f)
    elif objective.samples.covariance is not None:
        weight_j = 1 / positive(squared_norm(objective.samples.jacobians))
    V, W = factors.V, factors.W
    across, along = W.mT @ W, V.mT @ V
    arriving = weight_f / objective.count * seen.inputs
    arriving = arriving + weight_j * torch.eye(len(V), dtype=V.dtype, device=V.device)
    of_nodes = across * seen.slopes
    leaving = weight_f * seen.values + weight_j * seen.slopes * along
    coefficients = factors.only.coefficients
    curved = STIFFER * leaving.diagonal() * across.diagonal()
    size = coefficients.square().sum(1).clamp(min=torch.finfo(V.dtype).tiny)
    shift = weight_f * of_nodes + weight_j * across * along * seen.bends
    damping = DAMPING + (FEW / objective.count) ** 3
    return [
        *of_product(factors.maps[0], arriving, of_nodes, damping),
        *of_product(factors.maps[1], leaving, None, damping),
        Scaling(root(shift, damping)),
        Scaling(root(torch.diag(curved / size), damping)),
    ]


def of_product(
    maps: tuple[Tensor, ...], left: Float[Tensor, "a a"], right: Float[Tensor, "b b"] | None, damping: float
) -> list[Scaling]:
    """Coordinates of a map, or of the two matrices whose product it is."""
    if len(maps) == 1:
        return [Scaling(root(left, damping), None if right is None else root(right, damping))]
    first, last = maps
    behind = last @ last.mT if right is None else last @ right @ last.mT
    return [
        Scaling(root(left, damping), root(behind, damping)),
        Scaling(root(first.mT @ left @ first, damping), None if right is None else root(right, damping)),
    ]


def root(gram: Float[Tensor, "p p"], damping: float) -> Float[Tensor, "p p"]:
    """P with `P P^T` the inverse of a matrix whose diagonal is raised by a share; the identity where there is none."""
    diagonal = gram.diagonal()
    largest = diagonal.amax()
    damped = gram + torch.diag(damping * torch.maximum(diagonal, FLOOR * largest))
    lower, failed = torch.linalg.cholesky_ex(damped)
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    sound = not failed and bool(largest > 0)
    return torch.linalg.solve_triangular(lower.mT, eye, upper=True) if sound else eye
