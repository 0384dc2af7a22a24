"""A tensor of derivatives in the coordinates of its leading singular vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.objective.tensor import JacobianTensor
from tenflex.sums import gram_matrix, over_samples

NOTHING = 1e-7
"""Singular values below this share of the largest are rounding: they come from Gram matrices, in half the digits."""

MODES = ("samples", "outputs", "inputs")
"""The modes of the tensor in their order."""


@dataclass(frozen=True, eq=False)
class Core:
    """A tensor in the coordinates of its leading singular vectors along each mode.

    Args:
        entries: The small tensor, modes in the order of `MODES`, at most r numbers along each.
        axes: The orthonormal vectors that lead back from each mode; those of the samples are never needed.
        values: The leading singular values of the unfoldings along each mode, relative to the largest.
    """

    entries: Float[Tensor, "c a b"]
    axes: tuple[Float[Tensor, "n a"], Float[Tensor, "m b"]]
    values: tuple[Float[Tensor, " c"], Float[Tensor, " a"], Float[Tensor, " b"]]

    def reach(self, rank: int) -> list[float]:
        """The r-th relative singular value along each mode; zero where there are fewer."""
        return [float(one[rank - 1]) if len(one) >= rank else 0.0 for one in self.values]

    def ranks(self) -> list[int]:
        """The numerical rank of the unfolding along each mode."""
        return [int((one > NOTHING).sum()) for one in self.values]


def multilinear_svd(tensor: JacobianTensor, rank: int) -> Core:
    """The multilinear SVD cut to `rank`, by Gram matrices: nothing as large as the tensor is formed.

    Along the samples it takes those at hand as all.

    References:
        De Lathauwer, De Moor, Vandewalle, "A multilinear singular value decomposition", 2000,
        https://doi.org/10.1137/S0895479896305696
    """
    J = tensor.entries
    count, n, m = J.shape
    rows = J.view(count * n, m)
    right, right_values = leading(gram_matrix(rows), rank)
    thin = (rows @ right).view(count, n, -1)
    left, left_values = leading(over_samples(torch.einsum("snb,sob->no", thin, thin)), rank)
    small = torch.einsum("snb,na->sab", thin, left)
    flat = small.flatten(1)
    if count <= flat.shape[1]:
        samples, sample_values = leading(flat @ flat.mT, rank)
        entries = samples.mT @ flat
    else:
        across, sample_values = leading(gram_matrix(flat), rank)
        entries = torch.linalg.qr(flat @ across)[0].mT @ flat
    return Core(entries.view(-1, *small.shape[1:]), (left, right), (sample_values, left_values, right_values))


def leading(gram: Float[Tensor, "p p"], rank: int) -> tuple[Float[Tensor, "p k"], Float[Tensor, " k"]]:
    """The leading eigenvectors of a Gram matrix, and the singular values relative to the largest."""
    energies, vectors = torch.linalg.eigh(gram)
    energies = energies.flip(0)[:rank].clamp(min=0)
    return vectors.flip(1)[:, :rank], (energies / energies[0]).sqrt()
