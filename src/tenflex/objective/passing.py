"""The Jacobians' error and its gradient in one pass over the samples, some at a time.

Products over samples may be taken in single precision, which is much faster; none of them adds up more than some of the
samples, and all that is added up is in double precision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.objective.tensor import khatri_rao
from tenflex.sums import at_once, fits

FEWEST = 64
"""Samples whose Jacobians are multiplied together, if they are not too large: products with fewer are slow."""


class Passing(ABC):
    """A pass over the samples at hand, for one layer whose linear maps stand.

    Attributes:
        value: The squared error so far, less the energy of the Jacobians.
        dtype: In which products are taken.
    """

    value: Float[Tensor, ""]
    dtype: torch.dtype

    @abstractmethod
    def add(self, part: slice, H: Float[Tensor, "s r"]) -> Float[Tensor, "s r"]:
        """Add what a range of samples gives; the gradient in their slopes H."""

    @abstractmethod
    def gradients(self) -> tuple[Float[Tensor, "n r"], tuple[Tensor, ...]]:
        """The gradients in W and in V, or in the two matrices whose product V is, of all that was added."""


class NothingPassing(Passing):
    """Without any views the error is zero."""

    def __init__(self, inner: tuple[Tensor, ...], W: Float[Tensor, "n r"], dtype: torch.dtype) -> None:
        self.inner, self.W, self.value, self.dtype = inner, W, W.new_zeros(()), dtype

    def add(self, part: slice, H: Float[Tensor, "s r"]) -> Float[Tensor, "s r"]:
        return torch.zeros_like(H)

    def gradients(self) -> tuple[Float[Tensor, "n r"], tuple[Tensor, ...]]:
        return torch.zeros_like(self.W), tuple(map(torch.zeros_like, self.inner))


class EqualPassing(Passing):
    """Whole Jacobians, by Gram identities: each is read once, for both products that a value and its gradient take.

    Args:
        entries: J, `(S, n, m)`, contiguous.
        inner: V, or the two matrices whose product it is.
        W: The output map.
        learns: Whether there is to be a gradient.
        dtype: In which products are taken.
    """

    def __init__(
        self,
        entries: Float[Tensor, "S n m"],
        inner: tuple[Tensor, ...],
        W: Float[Tensor, "n r"],
        learns: bool,
        dtype: torch.dtype,
    ) -> None:
        self.entries, self.inner, self.W, self.learns, self.dtype = entries, inner, W, learns, dtype
        self.V, (*self.first, self.last) = reduce(torch.matmul, inner), inner
        self.across = khatri_rao(W, self.last).mT.contiguous().to(dtype)
        self.mix = (W.mT @ W) * (self.V.mT @ self.V)
        self.value, self.gram = W.new_zeros(()), torch.zeros_like(self.mix)
        self.sums, self.to_first = W.new_zeros(self.across.shape), [torch.zeros_like(one) for one in self.first]

    @staticmethod
    def small(inner: tuple[Tensor, ...], W: Float[Tensor, "n r"]) -> bool:
        """Whether the Khatri-Rao product of the maps may be formed."""
        return fits(inner[-1].numel() * len(W))

    def _together(self, part: slice) -> Iterator[slice]:
        """Ranges of samples whose Jacobians stay near the processor between the two products."""
        _, n, m = self.entries.shape
        step = max(at_once(16 * n * m), min(FEWEST, at_once(n * len(self.last))))
        for start in range(part.start, part.stop, step):
            yield slice(start, min(start + step, part.stop))

    def add(self, part: slice, H: Float[Tensor, "s r"]) -> Float[Tensor, "s r"]:
        columns = H.mT.contiguous()  # with the thin matrix on the left products are twice as fast
        onto, rough = torch.empty_like(columns), columns.to(self.dtype)
        for some in self._together(part):
            place = slice(some.start - part.start, some.stop - part.start)
            entries = self.entries[some].to(self.dtype)
            thin = self._thin(entries)
            onto[:, place] = self.across @ thin.mT
            if self.learns:
                add_product_(self.sums, rough[:, place], thin)
                self._to_first(entries, rough[:, place])
        mixed = self.mix @ columns  # it is symmetric
        self.value += ((mixed - 2 * onto) * columns).sum()
        self.gram.addmm_(columns, columns.mT)
        return (2 * (mixed - onto)).mT.contiguous()

    def _thin(self, J: Float[Tensor, "s n m"]) -> Float[Tensor, "s nq"]:
        """The Jacobians behind a first factor, unfolded."""
        return (J @ self.first[0].to(J) if self.first else J).reshape(len(J), -1)

    def _to_first(self, J: Float[Tensor, "s n m"], columns: Float[Tensor, "r s"]) -> None:
        for total in self.to_first:
            towards = (columns.mT @ self.across).view(-1, total.shape[1])
            add_product_(total, J.reshape(-1, J.shape[2]).mT, towards)

    def gradients(self) -> tuple[Float[Tensor, "n r"], tuple[Tensor, ...]]:
        sums = self.sums.view(len(self.sums), len(self.W), -1)
        to_w = 2 * (self.W @ (self.gram * (self.V.mT @ self.V)) - torch.einsum("rnq,qr->nr", sums, self.last))
        from_gram = self.V @ (self.gram * (self.W.mT @ self.W))
        along = torch.einsum("rnq,nr->qr", sums, self.W)
        if not self.first:
            return to_w, (2 * (from_gram - along),)
        to_first = from_gram @ self.last.mT - self.to_first[0]
        return to_w, (2 * to_first, 2 * (self.first[0].mT @ from_gram - along))


class ViewPassing(Passing):
    """Views of the Jacobians, by Gram identities.

    Args:
        directions: u, `(S, k, n)`.
        views: p, `(S, k, m)`.
        inner: V, or the two matrices whose product it is.
        W: The output map.
        dtype: In which products are taken.
    """

    def __init__(
        self,
        directions: Float[Tensor, "S k n"],
        views: Float[Tensor, "S k m"],
        inner: tuple[Tensor, ...],
        W: Float[Tensor, "n r"],
        dtype: torch.dtype,
    ) -> None:
        self.directions, self.views, self.inner, self.W, self.dtype = directions, views, inner, W, dtype
        self.V, self.share = reduce(torch.matmul, inner), 1 / directions.shape[1]
        self.mix = self.V.mT @ self.V
        self.rough = tuple(one.to(dtype) for one in (self.V, W, self.mix))
        self.value, self.gram = W.new_zeros(()), torch.zeros_like(self.mix)
        self.to_v, self.to_w = torch.zeros_like(self.V), torch.zeros_like(W)

    def add(self, part: slice, H: Float[Tensor, "s r"]) -> Float[Tensor, "s r"]:
        _, k, n = self.directions.shape
        step = at_once(16 * k * max(n, self.views.shape[2]))
        starts = range(0, len(H), max(step, 1))
        return torch.cat([self._added(part.start + at, H[at : at + step]) for at in starts])

    def _added(self, start: int, H: Float[Tensor, "s r"]) -> Float[Tensor, "s r"]:
        _, k, n = self.directions.shape
        V, W, mix = self.rough
        u = self.directions[start : start + len(H)].view(-1, n).to(self.dtype)
        p = self.views[start : start + len(H)].view(len(u), -1).to(self.dtype)
        slopes = H.to(self.dtype)[:, None]
        aimed = u @ W
        A = (aimed.view(len(H), k, -1) * slopes).flatten(0, 1)
        mixed, along = A @ mix, p @ V
        self.value += self.share * ((mixed - 2 * along) * A).sum(dtype=self.value.dtype)
        towards = 2 * self.share * (mixed - along)
        add_product_(self.gram, A.mT, A)
        add_product_(self.to_v, p.mT, A)
        rows = towards.view(len(H), k, -1)
        add_product_(self.to_w, u.mT, (rows * slopes).flatten(0, 1))
        return (rows * aimed.view(rows.shape)).sum(1).to(H)

    def gradients(self) -> tuple[Float[Tensor, "n r"], tuple[Tensor, ...]]:
        to_v = 2 * self.share * (self.V @ self.gram - self.to_v)
        if len(self.inner) == 1:
            return self.to_w, (to_v,)
        first, last = self.inner
        return self.to_w, (to_v @ last.mT, first.mT @ to_v)


def add_product_(total: Float[Tensor, "p q"], left: Float[Tensor, "p s"], right: Float[Tensor, "s q"]) -> None:
    """Add a product, which may be of lower precision."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
