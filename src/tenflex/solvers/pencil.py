"""The decomposition of a tensor by the eigenvectors of two of its slices."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.objective.decomposition import Decomposition, freed, improved_directions
from tenflex.objective.multilinear import NOTHING, Core
from tenflex.objective.steps import normalized
from tenflex.objective.tensor import JacobianTensor


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
    weights = torch.randn(2, len(slices), generator=generator, dtype=slices.dtype, device="cpu").to(slices) / sizes
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
    return freed(tensor, *improved_directions(tensor, freed(tensor, V, W)))


def eigenvectors(matrix: Float[Tensor, "r r"]) -> Float[Tensor, "r r"]:
    """Real eigenvectors; of a complex pair, which noise makes of two near ones, the real and imaginary parts."""
    values, vectors = torch.linalg.eig(matrix)
    return normalized(torch.where(values.imag < 0, vectors.imag, vectors.real))
