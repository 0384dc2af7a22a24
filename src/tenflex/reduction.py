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
        output_down: P, `(n, n)`, from centred outputs to y.
        output_up: Q, `(n, n)`, back to centred outputs; `P^T Q = I`.
    """

    mean: Float[Tensor, " m"]
    down: Float[Tensor, "m k"]
    up: Float[Tensor, "m k"]
    output_mean: Float[Tensor, " n"]
    output_down: Float[Tensor, "n n"]
    output_up: Float[Tensor, "n n"]

    @cached_property
    def output_scale(self) -> Float[Tensor, ""] | None:
        """The number by which P multiplies the outputs, where it does nothing else; None where it does."""
        first = self.output_down[0, 0]
        eye = torch.eye(len(self.output_down), dtype=first.dtype, device=first.device)
        alike = torch.equal(self.output_down, first * eye)
        return first if alike else None

    def inputs(self, x: Float[Tensor, "S m"]) -> Float[Tensor, "S k"]:
        """Inputs in the reduced coordinates."""
        return (x.to(self.mean) - self.mean) @ self.down

    def outputs(self, f: Float[Tensor, "S n"]) -> Float[Tensor, "S n"]:
        """Outputs in the reduced coordinates."""
        return (f.to(self.output_mean) - self.output_mean) @ self.output_down

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
        return self.output_down.mT @ thin if self.output_scale is None else self.output_scale * thin

    def hessians(self, hessians: Float[Tensor, "S n m m"]) -> Float[Tensor, "S n k k"]:
        """Hessians in the reduced coordinates."""
        return turned(hessians.to(self.up), self.up, self.output_down)

    def expand(self, factors: Factors) -> Factors:
        """Layers that were found in the reduced coordinates, in the original ones."""
        shifted = factors.shifted(-self.mean @ self.down @ factors.V)
        bias = self.output_mean + self.output_up @ factors.bias
        return replace(between(self.down, shifted, self.output_up.mT), bias=bias)

    def narrow(self, factors: Factors) -> Factors:
        """Layers in the original coordinates, in the reduced ones: what `expand` leads back from."""
        shifted = factors.shifted(self.mean @ factors.V)
        bias = self.output_down.mT @ (factors.bias - self.output_mean)
        return replace(between(self.up.mT, shifted, self.output_down), bias=bias)


def turned(
    hessians: Float[Tensor, "S n m m"], inner: Float[Tensor, "m k"], outer: Float[Tensor, "n p"]
) -> Float[Tensor, "S p k k"]:
    """Second derivatives along the columns of `inner`, of the combinations `outer` of the outputs."""
    return torch.einsum("snij,ia,jb,np->spab", hessians, inner, inner, outer)


def between(left: Float[Tensor, "p m"], factors: Factors, right: Float[Tensor, "n q"]) -> Factors:
    """The layers with a matrix before their first linear map and one behind their last."""
    (first, *inner), (*outer, last) = factors.maps[0], factors.maps[-1]
    return factors.with_map(0, left @ first, *inner).with_map(-1, *outer, last @ right)
