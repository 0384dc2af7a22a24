"""What estimated Jacobians tell of moves of the nodes: each direction of a sample as far as its covariance knows it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases.base import positive
from tenflex.coordinates.standardize import deviations
from tenflex.covariance import transformed
from tenflex.factors import Factors
from tenflex.identify.tangents import Moves, used

NUMBERS = 2**25
"""Derivatives that are formed at most: of fewer samples where there would be more."""


@dataclass(frozen=True, eq=False)
class Told:
    """How well the Jacobians of samples are known, inputs being of unit variance, and outputs in their units.

    Args:
        lower: The Cholesky factors of the covariance of each, `(S, n m, n m)`.
    """

    lower: Float[Tensor, "S nm nm"]

    @staticmethod
    def of(
        factors: Factors, inputs: Float[Tensor, "S m"], covariance: Float[Tensor, "..."], units: Float[Tensor, " n"]
    ) -> Told:
        """That of Jacobians at inputs, as they are there."""
        (m, n), count = (len(factors.V), len(factors.W)), len(inputs)
        x = inputs.detach().to(factors.bias).double()[used(count)]
        if covariance.ndim == 2:  # of each sample its own block
            covariance = covariance.view(count, n * m, count, n * m).diagonal(dim1=0, dim2=2).movedim(-1, 0)
        covariance = covariance[used(count)].to(x)
        blocks = transformed(covariance, torch.diag(1 / units.to(x)), torch.diag(deviations(x)[1]))
        if blocks.shape[1:] == (n, m):
            blocks = torch.diag_embed(blocks.flatten(1))
        return Told(torch.linalg.cholesky(blocks))

    def seen(self, found: Moves) -> tuple[Float[Tensor, "equations parameters"], Float[Tensor, "equations parameters"]]:
        """The derivatives of outputs and Jacobians in all parameters, and the same in units of what is known.

        Outputs and Jacobians of the whole layer are both of size 1 in both.
        """
        factors = found.compact.factors
        V, W = factors.V, factors.W
        (m, n), count = (len(V), len(W)), len(self.lower)
        each = n * (1 + m) * found.compact.parameters
        some = slice(None, None, -(-count * each // NUMBERS))
        lower = self.lower[some]
        ranges = (torch.arange(size, device=W.device) for size in (n, 1 + m))
        outputs, components = torch.cartesian_prod(*ranges).T
        units = (
            torch.eye(size, dtype=W.dtype, device=W.device)[index].expand(len(lower), -1, -1)
            for size, index in ((n, outputs), (1 + m, components))
        )
        plain = found.at(some).observed(*units).unflatten(0, (len(lower), n, 1 + m))
        values, slopes = plain[:, :, 0], plain[:, :, 1:].flatten(1, 2)
        whitened = torch.linalg.solve_triangular(lower, slopes, upper=False)
        jacobians = torch.einsum("ik,sk,jk->sij", W, found.slopes[some], V).flatten(1)[..., None]
        size = torch.linalg.solve_triangular(lower, jacobians, upper=False).norm()
        known = torch.cat([values, whitened * (jacobians.norm() / positive(size))], 1)
        return plain.flatten(0, 2), known.flatten(0, 1)
