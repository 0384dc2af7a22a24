"""Three factors of a tensor of derivatives: their error, and their least-squares steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases.base import positive
from tenflex.objective.cancellation import CANCELLATION
from tenflex.objective.equal import EqualTerm
from tenflex.objective.linear import solve_positive
from tenflex.objective.steps import normalized
from tenflex.objective.tensor import JacobianTensor
from tenflex.sums import over_samples


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Three factors of a tensor; the columns of V and W have unit norm.

    Args:
        V: `(m, r)`.
        W: `(n, r)`.
        H: `(S, r)`.
    """

    V: Float[Tensor, "m r"]
    W: Float[Tensor, "n r"]
    H: Float[Tensor, "S r"]

    def error(self, tensor: JacobianTensor) -> float:
        """The relative squared error, by residuals where the Gram identities would cancel."""
        V, W, H, term = self.V, self.W, self.H, EqualTerm(tensor)
        error = (term.misfit((V,), W, H, exact=False) / positive(term.energy)).item()
        if error < CANCELLATION:
            error = (term.misfit((V,), W, H, exact=True) / positive(term.energy)).item()
        return error


def freed(tensor: JacobianTensor, V: Float[Tensor, "m r"], W: Float[Tensor, "n r"]) -> Decomposition:
    """The decomposition with these directions and the best third factor."""
    return Decomposition(V, W, tensor.slopes(V, W))


def improved_directions(
    tensor: JacobianTensor, parts: Decomposition
) -> tuple[Float[Tensor, "m r"], Float[Tensor, "n r"]]:
    """V and then W by least squares, with columns of unit norm."""
    W, sums = parts.W, tensor.contracted(parts.H)
    V = normalized(solve_positive(sums.gram * (W.mT @ W), sums.along_outputs(W).mT).mT)
    W = normalized(solve_positive(sums.gram * (V.mT @ V), sums.along_inputs(V).mT).mT)
    return V, W


def leading_rows(bends: Float[Tensor, "S n r"]) -> Float[Tensor, "n r"]:
    """The direction in which the vectors of each node lie, over the samples: their leading singular vector."""
    grams = over_samples(torch.einsum("snr,sor->rno", bends, bends))
    return torch.linalg.eigh(grams)[1][:, :, -1].mT.contiguous()
