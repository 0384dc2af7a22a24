"""Directions along each axis that are computed from the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.modes.base import Modes
from tenflex.modes.multilinear import Multilinear, products
from tenflex.sums import gram_matrix, mean_of

SHRINKAGE = 0.1
"""What is added to the variances along an axis, as a share of their mean: directions that samples hardly show."""

SWEEPS = 3
"""So many rounds over the axes are as good as many."""


@dataclass(frozen=True)
class Tucker(Modes):
    r"""The directions along each axis in which the block's answers to its inputs change most; they are stored.

    With :math:`\Sigma_i` the shrunk covariance of the inputs along axis i, the Jacobians are brought to
    :math:`J \times_1 \Sigma_1^{1/2} \times_2 \Sigma_2^{1/2} \cdots`, where moves of all directions are alike. Of a
    Tucker decomposition of these, started from the higher-order SVD and improved axis by axis, come the directions
    :math:`U_i`, and the layer sees its inputs through :math:`P_i`, an orthonormal frame of
    :math:`\Sigma_i^{-1/2} U_i`.

    References:
        Tucker, "Some mathematical notes on three-mode factor analysis", 1966, https://doi.org/10.1007/BF02289464
        De Lathauwer, De Moor, Vandewalle, "On the best rank-1 and rank-(R1, R2, ..., RN) approximation of higher-order
        tensors", 2000, https://doi.org/10.1137/S0895479898346995

    Args:
        size: The directions along every axis, or one number for all of them: axes that are no longer than it, such as
            the channels of an image, are kept whole.
        shape: The axes, where inputs arrive flat, such as `(28, 28)`; None for the shape of the block's inputs.

    Raises:
        TypeError: if `size` or `shape` is something else than whole numbers.
        ValueError: if a size is not at least 1 or longer than its axis, or there are other sizes than axes.

    Example:
        >>> Tucker((2, 12, 10)).stored_numbers((3, 28, 28))
        622
    """

    stored: ClassVar[bool] = True
    from_jacobians: ClassVar[bool] = True

    def choose(self, inputs: Float[Tensor, "S *m"], jacobians: Float[Tensor, "some n m"] | None = None) -> Multilinear:
        """Raises ValueError without Jacobians."""
        if jacobians is None:
            raise ValueError("Tucker needs Jacobians of some of the samples, got none")
        known = self.of(tuple(inputs.shape[1:]))
        shape = known.shape or ()
        roots = [root_along(inputs.double().flatten(1), shape, axis) for axis in range(len(shape))]
        rows = products(jacobians.to(inputs.device).double().flatten(0, 1), shape, [root for root, _ in roots])
        found = axes_of(rows, shape, known.sizes(shape))
        frames = (
            None if one is None else torch.linalg.qr(inverse @ one)[0].contiguous()
            for one, (_, inverse) in zip(found, roots, strict=True)
        )
        return Multilinear(shape, tuple(frames))

    def choose_outputs(self, outputs: Float[Tensor, "S *n"]) -> Multilinear:
        """Those that keep most of the outputs, their mean among it: a Tucker decomposition of these."""
        known = self.of(tuple(outputs.shape[1:]))
        shape = known.shape or ()
        return Multilinear(shape, tuple(axes_of(outputs.double().flatten(1), shape, known.sizes(shape))))


def unfolded(rows: Float[Tensor, "S m"], shape: tuple[int, ...], axis: int) -> Float[Tensor, "rest n"]:
    """What stands along an axis, one a row."""
    return rows.unflatten(-1, shape).transpose(axis + 1, -1).flatten(0, -2)


def root_along(
    inputs: Float[Tensor, "S m"], shape: tuple[int, ...], axis: int
) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n n"]]:
    """The root of the shrunk covariance along an axis, and its inverse."""
    gram = gram_matrix(unfolded(inputs - mean_of(inputs), shape, axis))
    values, vectors = torch.linalg.eigh(gram)
    roots = (values.clamp(min=0) + SHRINKAGE * values.mean()).sqrt()
    return (vectors * roots) @ vectors.mT, (vectors / roots) @ vectors.mT


def axes_of(
    rows: Float[Tensor, "S m"], shape: tuple[int, ...], sizes: tuple[int, ...]
) -> list[Float[Tensor, "n p"] | None]:
    """The directions along each axis that keep most of all rows together, by alternating over the axes."""
    cut = [axis for axis in range(len(shape)) if sizes[axis] < shape[axis]]
    found: list[Tensor | None] = [None for _ in shape]
    for axis in cut:
        found[axis] = leading(unfolded(rows, shape, axis), sizes[axis])
    for _ in range(SWEEPS if len(cut) > 1 else 0):
        for axis in cut:
            others = [None if place == axis else one for place, one in enumerate(found)]
            left = tuple(n if one is None else one.shape[1] for n, one in zip(shape, others, strict=True))
            found[axis] = leading(unfolded(products(rows, shape, others), left, axis), sizes[axis])
    return found


def leading(rows: Float[Tensor, "S n"], count: int) -> Float[Tensor, "n p"]:
    """The directions of most energy, of settled sign."""
    vectors = torch.linalg.eigh(gram_matrix(rows))[1].flip(1)[:, :count]
    return vectors * vectors.sum(0).sign().where(vectors.sum(0) != 0, torch.ones_like(vectors[0]))
