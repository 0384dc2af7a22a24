"""The Jacobians of all samples as a tensor, and the products with it that every algorithm is made of."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.objective.linear import solve_positive
from tenflex.sums import chunks, fits, gram_matrix, over_samples


class JacobianTensor:
    """The tensor J, used as its unfolding `(S, n m)`.

    A value and its gradient take `onto` and `unfold`: with V of width q, `2 S n m q` multiply-adds and J read twice,
    which is the floor. The Khatri-Rao product of W and V is formed for a block of outputs at a time, at most a chunk of
    numbers. Products with J are written with the thin matrix on the left: the other way round they take MKL, the usual
    library behind torch on processors, twice as long.

    Args:
        entries: J, `(S, n, m)`.
    """

    def __init__(self, entries: Float[Tensor, "S n m"]) -> None:
        self.entries = entries.contiguous()

    @cached_property
    def energy(self) -> Float[Tensor, ""]:
        """The squared norm."""
        return over_samples(torch.linalg.vector_norm(self.entries).square())

    def blocks(self, width: int) -> Iterator[tuple[slice, Float[Tensor, "S bm"]]]:
        """Ranges of outputs with the Jacobians' columns there, `width` numbers to an entry of these columns."""
        count, n, m = self.entries.shape
        unfolded = self.entries.view(count, n * m)
        for part in chunks(n, m * width):
            yield part, unfolded[:, part.start * m : part.stop * m]

    def onto(self, V: Float[Tensor, "m r"], W: Float[Tensor, "n r"]) -> Float[Tensor, "S r"]:
        """`w_k . J_s v_k`: the Jacobians onto every node."""
        total = V.new_zeros(len(self.entries), V.shape[1])
        for part, block in self.blocks(V.shape[1]):
            total += (khatri_rao(W[part], V).mT @ block.mT).mT
        return total

    def slopes(self, V: Float[Tensor, "m r"], W: Float[Tensor, "n r"]) -> Float[Tensor, "S r"]:
        """The H with the least error for these V and W, free in every sample."""
        return solve_positive((W.mT @ W) * (V.mT @ V), self.onto(V, W).mT).mT

    def contracted(self, H: Float[Tensor, "S r"]) -> Contracted:
        """`sum_s h_s J_s` for every node: from one product, the right-hand sides for any V and W."""
        return Contracted(self, H)

    def unfold(
        self, V: Float[Tensor, "m r"], W: Float[Tensor, "n r"], H: Float[Tensor, "S r"]
    ) -> tuple[Float[Tensor, "m r"], Float[Tensor, "n r"]]:
        """`sum_s J_s^T (W * h_s)` and `sum_s (J_s V) * h_s`: the right-hand sides of V and of W, from one product.

        Only of the samples at hand, as a gradient is.
        """
        to_v, to_w = torch.zeros_like(V), torch.empty_like(W)
        for part, block in self.blocks(V.shape[1]):
            sums = (H.mT @ block).view(V.shape[1], -1, len(V))
            to_v += torch.einsum("rnm,nr->mr", sums, W[part])
            to_w[part] = torch.einsum("rnm,mr->nr", sums, V)
        return to_v, to_w

    def through(self, B: Float[Tensor, "m q"]) -> JacobianTensor:
        """The Jacobians behind a first factor B, `(S, n, q)`."""
        return JacobianTensor(self.entries @ B)

    def to_first(
        self, A: Float[Tensor, "q r"], W: Float[Tensor, "n r"], H: Float[Tensor, "S r"]
    ) -> Float[Tensor, "m q"]:
        """`sum_s J_s^T (W * h_s) A^T`: the gradient of a first factor, of the samples at hand."""
        count, n, m = self.entries.shape
        total = A.new_zeros(m, len(A))
        for part in chunks(count, n * len(A)):
            whole = fits(n * len(A))
            thin = H[part] @ khatri_rao(W, A).mT if whole else torch.einsum("sr,nr,qr->snq", H[part], W, A)
            total += self.entries[part].reshape(-1, m).mT @ thin.reshape(-1, len(A))
        return total


class Contracted:
    """The Jacobians, summed over the samples with the weights H, one matrix `(n, m)` a node.

    They are formed once if they are at most a chunk of numbers, else a block of outputs at a time where they are used;
    those of the samples at hand, since what is made of them, for all samples, is smaller.

    Args:
        tensor: J.
        H: The weights, `(S, r)`.
    """

    def __init__(self, tensor: JacobianTensor, H: Float[Tensor, "S r"]) -> None:
        self.tensor, self.H = tensor, H
        few = fits(tensor.entries[0].numel() * H.shape[1])
        self.formed = list(self._sums()) if few else None

    @cached_property
    def gram(self) -> Float[Tensor, "r r"]:
        """`H^T H`."""
        return gram_matrix(self.H)

    def _sums(self) -> Iterator[tuple[slice, Float[Tensor, "r b m"]]]:
        rank, m = self.H.shape[1], self.tensor.entries.shape[2]
        for part, block in self.tensor.blocks(rank):
            yield part, (self.H.mT @ block).view(rank, -1, m)

    def along_outputs(self, W: Float[Tensor, "n r"]) -> Float[Tensor, "m r"]:
        """`sum_s J_s^T (W * h_s)`: the right-hand side of V."""
        total = W.new_zeros(self.tensor.entries.shape[2], W.shape[1])
        for part, sums in self.formed or self._sums():
            total += torch.einsum("rnm,nr->mr", sums, W[part])
        return over_samples(total)

    def along_inputs(self, V: Float[Tensor, "m r"]) -> Float[Tensor, "n r"]:
        """`sum_s (J_s V) * h_s`: the right-hand side of W."""
        parts = [torch.einsum("rnm,mr->nr", sums, V) for _, sums in self.formed or self._sums()]
        return over_samples(torch.cat(parts))


def khatri_rao(W: Float[Tensor, "n r"], V: Float[Tensor, "m r"]) -> Float[Tensor, "nm r"]:
    """The column-wise Kronecker product of a block of W with V."""
    return (W[:, None] * V[None]).flatten(0, 1)
