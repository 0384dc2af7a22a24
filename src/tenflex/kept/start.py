"""Flexible layers to start from: the best of a block's own nodes, their functions fitted in a basis."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases import Basis
from tenflex.bases.wrapped import plain
from tenflex.factors import Activations, Factors
from tenflex.kept.choose import kept_nodes
from tenflex.nn.feed_forward import Nodes, Stage
from tenflex.sums import largest, smallest

POINTS = 256
"""So many points of a node's range tell its function."""

RIDGE = 1e-9
"""For functions of the basis that are alike on the range."""


def kept_factors(
    nodes: Nodes,
    ranks: tuple[int, ...],
    basis: Basis,
    x: Float[Tensor, "S m"],
    y: Float[Tensor, "S n"],
    metric: Float[Tensor, "n n"] | None = None,
) -> Factors:
    """Flexible layers made of a block's nodes that are kept, whose activations follow the original's function.

    Args:
        nodes: The block's, none of them gated.
        ranks: How many to keep in each layer; at most as many layers as the block has.
        basis: The functions to fit.
        x: What arrives at the block, in float64.
        y: What should leave it.
        metric: From errors of the outputs to what is measured.

    Raises:
        ValueError: if a layer is gated.
    """
    if any(len(one.V) > 1 for one in nodes.stages):
        raise ValueError(
            "the nodes of a gated block have two directions each, and those of a flexible layer one: take basis=Own(), "
            "or start='cpd'"
        )
    kept = kept_nodes(nodes, ranks, x, y, metric)
    maps, activations, arriving = [], [], x
    missing = x.new_zeros(x.shape[1])
    for stage in kept.stages:
        (V,) = stage.V
        scale, one, constants = fitted_activations(stage, arriving, plain(basis))
        maps.append(V * scale)
        activations.append(replace(one, shift=one.shift + scale * (missing @ V)))
        arriving, missing = stage.values(arriving), constants
    bias = kept.bias + missing @ kept.W
    return Factors(tuple((one,) for one in (*maps, kept.W)), tuple(activations), bias)


def fitted_activations(
    stage: Stage, x: Float[Tensor, "S m"], basis: Basis
) -> tuple[Float[Tensor, " r"], Activations, Float[Tensor, " r"]]:
    """The factors of the columns of V, the activations nearest to a layer's function on its range, and what they lack.

    That is a constant for each node: where the basis has none, what follows adds it.
    """
    t = x @ stage.V[0] + stage.shift[0]
    scale, shift = basis.place(t)
    placed = basis.fit(scale * t + shift)
    low, high = smallest(t), largest(t)
    share = torch.linspace(0, 1, POINTS, dtype=t.dtype, device=t.device)[:, None]
    points = low + share * (high - low)
    fitted = fitted_coefficients(placed, scale * points + shift, stage.function(points))
    return scale, Activations(fitted[:, :-1], scale * stage.shift[0] + shift, placed), fitted[:, -1]


def fitted_coefficients(basis: Basis, t: Float[Tensor, "P r"], wanted: Float[Tensor, "P r"]) -> Float[Tensor, "r d_1"]:
    """Least squares of values at points of each node, in the functions of a basis and a constant, which comes last."""
    values = basis.value(t)
    ones = torch.ones_like(values[..., :1])
    columns = torch.cat([values, ones], 2).transpose(0, 1)
    gram = columns.mT @ columns
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    ridge = RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * eye
    solved = torch.linalg.solve(gram + ridge, columns.mT @ wanted.mT[..., None])
    return solved[:, :, 0]
