"""An affine change of coordinates and its exact inverse."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenflex.factors import Factors
from tenflex.shown import Shown
from tenflex.sums import chunks


@dataclass(frozen=True, eq=False, repr=False)
class Reduction(Shown):
    r"""An affine change of variables, :math:`z = D^\top (x - \mu)` and :math:`y = P^\top (f - \nu)`.

    Points that the data reach satisfy :math:`x = \mu + U z`, where y has the Jacobian :math:`P^\top J U`. Outputs are
    never dropped, :math:`f = \nu + Q y`. A layer found in (z, y) is carried back exactly: :math:`V = D V_z`,
    :math:`W = Q W_y`, and the means move into the shift and the bias.

    Args:
        mean: mu, `(m,)`.
        down: D, `(m, k)`, from centred inputs to z.
        up: U, `(m, k)`, back to centred inputs; `D^T U = I`.
        output_mean: nu, `(n,)`.
        output_down: P, `(n, n)`, from centred outputs to y; or its diagonal, `(n,)`, where all else is zero.
        output_up: Q, in the same form, back to centred outputs; `P^T Q = I`.
    """

    mean: Float[Tensor, " m"]
    down: Float[Tensor, "m k"]
    up: Float[Tensor, "m k"]
    output_mean: Float[Tensor, " n"]
    output_down: Float[Tensor, "n *n"]
    output_up: Float[Tensor, "n *n"]

    @cached_property
    def output_scale(self) -> Float[Tensor, ""] | None:
        """The number by which P multiplies the outputs, where it does nothing else; None where it does."""
        if self.output_down.ndim == 1:
            first = self.output_down[0]
            return first if bool((self.output_down == first).all()) else None
        first = self.output_down[0, 0]
        eye = torch.eye(len(self.output_down), dtype=first.dtype, device=first.device)
        alike = torch.equal(self.output_down, first * eye)
        return first if alike else None

    @property
    def output_matrix(self) -> Float[Tensor, "n n"]:
        """P as a matrix."""
        return matrix_of(self.output_down)

    @property
    def output_back(self) -> Float[Tensor, "n *n"]:
        """The transpose of Q, which acts on rows: a matrix or a diagonal."""
        return mirrored(self.output_up)

    def inputs(self, x: Float[Tensor, "S m"]) -> Float[Tensor, "S k"]:
        """Inputs in the reduced coordinates."""
        return (x.to(self.mean) - self.mean) @ self.down

    def outputs(self, f: Float[Tensor, "S n"]) -> Float[Tensor, "S n"]:
        """Outputs in the reduced coordinates."""
        return times(f.to(self.output_mean) - self.output_mean, self.output_down)

    def original_outputs(self, y: Float[Tensor, "S n"]) -> Float[Tensor, "S n"]:
        """Outputs in the original coordinates, from those in the reduced ones."""
        return self.output_mean + times(y, self.output_back)

    def jacobians(
        self,
        jacobians: Float[Tensor, "S n m"],
        index: Int[Tensor, " some"] | None = None,
        into: Float[Tensor, "some n k"] | None = None,
    ) -> Float[Tensor, "some n k"]:
        """Jacobians in the reduced coordinates, of all samples or those at `index`.

        Where they are many, some at a time, straight `into` where they shall stand: nothing else of their size is made.
        """
        (_, n, m), k = jacobians.shape, self.up.shape[1]
        count = len(jacobians if index is None else index)
        parts = list(chunks(count, 4 * n * m))
        if index is None and into is None and len(parts) == 1:
            return self._reduced(jacobians)
        if into is None:
            into = self.up.new_empty(count, n, k)
        for part in parts:
            into[part] = self._reduced(jacobians[part if index is None else index[part]])
        return into

    def _reduced(self, jacobians: Float[Tensor, "S n m"]) -> Float[Tensor, "S n k"]:
        """The inputs, usually the larger side, are reduced first."""
        count, n, m = jacobians.shape
        thin = (jacobians.to(self.up).reshape(-1, m) @ self.up).view(count, n, -1)
        return times(thin.mT, self.output_down).mT if self.output_scale is None else self.output_scale * thin

    def hessians(self, hessians: Float[Tensor, "S n m m"]) -> Float[Tensor, "S n k k"]:
        """Hessians in the reduced coordinates."""
        return turned(hessians.to(self.up), self.up, self.output_matrix)

    def expand(self, factors: Factors) -> Factors:
        """Layers that were found in the reduced coordinates, in the original ones."""
        shifted = factors.shifted(-self.mean @ self.down @ factors.V)
        bias = self.original_outputs(factors.bias[None])[0]
        return replace(between(self.down, shifted, self.output_back), bias=bias)

    def narrow(self, factors: Factors) -> Factors:
        """Layers in the original coordinates, in the reduced ones: what `expand` leads back from."""
        shifted = factors.shifted(self.mean @ factors.V)
        bias = times(factors.bias[None] - self.output_mean, self.output_down)[0]
        return replace(between(self.up.mT, shifted, self.output_down), bias=bias)


def turned(
    hessians: Float[Tensor, "S n m m"], inner: Float[Tensor, "m k"], outer: Float[Tensor, "n p"]
) -> Float[Tensor, "S p k k"]:
    """Second derivatives along the columns of `inner`, of the combinations `outer` of the outputs."""
    return torch.einsum("snij,ia,jb,np->spab", hessians, inner, inner, outer)


def matrix_of(form: Float[Tensor, "n *n"]) -> Float[Tensor, "n n"]:
    """A matrix, which may be given by its diagonal."""
    return form if form.ndim == 2 else torch.diag(form)


def mirrored(form: Float[Tensor, "n *n"]) -> Float[Tensor, "n *n"]:
    """The transpose of a matrix, which may be given by its diagonal."""
    return form.mT if form.ndim == 2 else form


def times(rows: Float[Tensor, "*rows n"], matrix: Float[Tensor, "n *q"]) -> Float[Tensor, "*rows n"]:
    """Rows times a matrix, or times the diagonal of one."""
    return rows * matrix if matrix.ndim == 1 else rows @ matrix


def between(left: Float[Tensor, "p m"], factors: Factors, right: Float[Tensor, "n *q"]) -> Factors:
    """The layers with a matrix before their first linear map and one behind their last; or the diagonal of one."""
    (first, *inner), (*outer, last) = factors.maps[0], factors.maps[-1]
    return factors.with_map(0, left @ first, *inner).with_map(-1, *outer, times(last, right))
