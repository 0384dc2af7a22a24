"""The decomposition of a tensor by the eigenvectors of two of its slices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.objective.steps import normalized
from tenflex.objective.tensor import JacobianTensor
from tenflex.solvers.cpd import Decomposition, free_slopes, improved_directions

NOTHING = 1e-7
"""Singular values below this share of the largest are rounding: they come from Gram matrices, in half the digits."""

MODES = ("samples", "outputs", "inputs")
"""The modes of the tensor in their order."""


@dataclass(frozen=True)
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


def compressed(tensor: JacobianTensor, rank: int) -> Core:
    """The multilinear SVD cut to `rank`, by Gram matrices: nothing as large as the tensor is formed.

    References:
        De Lathauwer, De Moor, Vandewalle, "A multilinear singular value decomposition", 2000,
        https://doi.org/10.1137/S0895479896305696
    """
    J = tensor.entries
    count, n, m = J.shape
    rows = J.view(count * n, m)
    right, right_values = leading(rows.mT @ rows, rank)
    thin = (rows @ right).view(count, n, -1)
    left, left_values = leading(torch.einsum("snb,sob->no", thin, thin), rank)
    small = torch.einsum("snb,na->sab", thin, left)
    flat = small.flatten(1)
    if count <= flat.shape[1]:
        samples, sample_values = leading(flat @ flat.mT, rank)
        entries = samples.mT @ flat
    else:
        across, sample_values = leading(flat.mT @ flat, rank)
        entries = torch.linalg.qr(flat @ across)[0].mT @ flat
    return Core(entries.view(-1, *small.shape[1:]), (left, right), (sample_values, left_values, right_values))


def leading(gram: Float[Tensor, "p p"], rank: int) -> tuple[Float[Tensor, "p k"], Float[Tensor, " k"]]:
    """The leading eigenvectors of a Gram matrix, and the singular values relative to the largest."""
    energies, vectors = torch.linalg.eigh(gram)
    energies = energies.flip(0)[:rank].clamp(min=0)
    return vectors.flip(1)[:, :rank], (energies / energies[0]).sqrt()


def sliced_mode(core: Core, rank: int) -> int | None:
    """The mode along which slices are taken: the one with the least r-th singular value, if the other two have one."""
    reach = core.reach(rank)
    sliced = min(range(3), key=lambda mode: (reach[mode], mode))
    full = all(value > NOTHING for mode, value in enumerate(reach) if mode != sliced)
    varied = core.ranks()[sliced] >= min(2, rank)
    return sliced if full and varied else None


def decomposed(tensor: JacobianTensor, core: Core, rank: int, sliced: int, generator: torch.Generator) -> Decomposition:
    r"""The factors from two random combinations of the slices, one sweep of least squares behind them.

    Slices along one mode are :math:`X_i = A D_i B^\top` with square A and B, so the eigenvectors of
    :math:`X_1 X_2^{-1} = A D_1 D_2^{-1} A^{-1}` are the columns of A.
    """
    slices = core.entries.movedim(sliced, 0)
    # Slices of equal size, or the small ones, which tell the nodes apart, would hardly be seen.
    sizes = slices.flatten(1).norm(dim=1).clamp(min=NOTHING * slices.norm())
    weights = torch.randn(2, len(slices), generator=generator, dtype=slices.dtype).to(slices) / sizes
    first, second = torch.einsum("ci,iab->cab", weights, slices)
    A = eigenvectors(first @ torch.linalg.pinv(second))
    inverse = torch.linalg.pinv(A)
    B = normalized((inverse @ second).mT)
    along = normalized(torch.einsum("ka,iab,bk->ik", inverse, slices, torch.linalg.pinv(B).mT))
    left, right = core.axes
    if sliced == 0:
        W, V = left @ A, right @ B
    else:
        W, V = (left @ along, right @ B) if sliced == 1 else (left @ B, right @ along)
    W, V = normalized(W), normalized(V)
    V, W = improved_directions(tensor, Decomposition(V, W, free_slopes(tensor, V, W)))
    return Decomposition(V, W, free_slopes(tensor, V, W))


def eigenvectors(matrix: Float[Tensor, "r r"]) -> Float[Tensor, "r r"]:
    """Real eigenvectors; of a complex pair, which noise makes of two near ones, the real and imaginary parts."""
    values, vectors = torch.linalg.eig(matrix)
    return normalized(torch.where(values.imag < 0, vectors.imag, vectors.real))
