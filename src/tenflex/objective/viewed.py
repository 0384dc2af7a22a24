"""The Jacobians' term where only products with the Jacobians are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.factors import Factors
from tenflex.objective.coefficients import CoefficientSystem
from tenflex.objective.linear import conjugate_gradients, solve_positive
from tenflex.objective.passing import NothingPassing, Passing, ViewPassing
from tenflex.objective.tensor import Contracted
from tenflex.objective.term import JacobianTerm
from tenflex.objective.weighted import WeightedSystem
from tenflex.sums import chunks, gram_matrix, inner_product, over_samples, squared_norm


class ViewTerm(JacobianTerm):
    r"""The squared error of k views :math:`p = J_s^\top u` of every Jacobian, with :math:`E[u u^\top] = I`.

    .. math:: \frac1k \sum_{s, j} \| p_{sj} - V (W^\top u_{sj} \odot h_s) \|^2

    Its mean over the u is the error of the Jacobians, for `S k (n + m) r` multiply-adds and `S k (n + m)` numbers in
    place of `S n m r` and `S n m`. With as many orthogonal u as outputs it is that error. Without any it is zero.

    Args:
        directions: u, `(S, k, n)`.
        views: p, `(S, k, m)`.
    """

    def __init__(self, directions: Float[Tensor, "S k n"], views: Float[Tensor, "S k m"]) -> None:
        self.directions, self.entries = directions.contiguous(), views.contiguous()
        self.share = 1 / max(1, directions.shape[1])
        self.energy = self.share * squared_norm(self.entries)

    def passing(self, inner: tuple[Tensor, ...], W: Float[Tensor, "n r"], learns: bool, dtype: torch.dtype) -> Passing:
        if self.directions.shape[1] == 0:
            return NothingPassing(inner, W, dtype)
        return ViewPassing(self.directions, self.entries, inner, W, dtype)

    def misfit(
        self, inner: tuple[Tensor, ...], W: Float[Tensor, "n r"], H: Float[Tensor, "S r"], exact: bool
    ) -> Float[Tensor, ""]:
        return self._misfit(inner, (self.directions @ W) * H[:, None], exact)

    def product_misfit(
        self, factors: Factors, slopes: Sequence[Float[Tensor, "S r"]], exact: bool
    ) -> Float[Tensor, ""]:
        return self._misfit(factors.maps[0], factors.along(slopes, self.directions), exact)

    def _misfit(self, inner: tuple[Tensor, ...], A: Float[Tensor, "S k r"], exact: bool) -> Float[Tensor, ""]:
        """The error of the model `A_s V^T` of the views."""
        V = reduce(torch.matmul, inner)
        if exact:
            return self.share * squared_norm(self.entries - A @ V.mT)
        along = reduce(torch.matmul, inner, self.entries)
        return self.energy + self.share * inner_product(A @ (V.mT @ V) - 2 * along, A)

    def metric(self, left: Float[Tensor, "s k m"], part: slice) -> Float[Tensor, "s k m"]:
        return self.share * left

    def input_map(
        self, V: Float[Tensor, "m r"], W: Float[Tensor, "n r"], H: Float[Tensor, "S r"]
    ) -> Float[Tensor, "m r"]:
        A = ((self.directions @ W) * H[:, None]).flatten(0, 1)
        return solve_positive(gram_matrix(A), gram_matrix(A, self.entries.flatten(0, 1))).mT

    def slopes(self, V: Float[Tensor, "m r"], W: Float[Tensor, "n r"]) -> Float[Tensor, "S r"]:
        A = self.directions @ W
        gram, right = (A.mT @ A) * (V.mT @ V), (A * (self.entries @ V)).sum(1)
        size = gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=torch.finfo(gram.dtype).tiny)
        ridge = 1e-9 * size[:, None, None] * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
        return torch.linalg.solve(gram + ridge, right)

    def output_map(
        self,
        V: Float[Tensor, "m r"],
        W: Float[Tensor, "n r"],
        H: Float[Tensor, "S r"],
        weight: Float[Tensor, ""],
        gram: Float[Tensor, "r r"],
        right: Float[Tensor, "n r"],
        sums: Contracted | None = None,
    ) -> Float[Tensor, "n r"]:
        """By conjugate gradients, preconditioned by what the equations are in the mean."""
        weight, inner, rows = weight * self.share, V.mT @ V, self.directions.flatten(0, 1)

        def back(A: Float[Tensor, "S k r"]) -> Float[Tensor, "n r"]:
            return weight * gram_matrix(rows, (A * H[:, None]).flatten(0, 1))

        def apply(X: Float[Tensor, "n r"]) -> Float[Tensor, "n r"]:
            return back(((self.directions @ X) * H[:, None]) @ inner) + X @ gram

        views = self.directions.shape[1]
        mean = weight * views * gram_matrix(H) * inner + gram
        return conjugate_gradients(
            apply, back(self.entries @ V) + right, W, lambda X: solve_positive(mean, X.mT).mT, steps=STEPS
        )

    def joined(
        self, system: CoefficientSystem, V: Float[Tensor, "m r"], W: Float[Tensor, "n r"], weight: Float[Tensor, ""]
    ) -> CoefficientSystem:
        slope = system.activated.slope
        count, r, d = slope.shape
        mix, weight, A = V.mT @ V, weight * self.share, self.directions @ W
        gram = slope.new_zeros(r, d, r, d)
        for part in chunks(count, r * r * d):
            a = A[part]
            acted = torch.einsum("skl,sle->skle", mix * (a.mT @ a), slope[part])
            gram += torch.einsum("skd,skle->kdle", slope[part], acted)
        right = torch.einsum("sr,srd->rd", (A * (self.entries @ V)).sum(1), slope)
        gram, right = over_samples(gram).view(r * d, r * d), over_samples(right)
        return WeightedSystem(**system.settings(), gram=weight * gram, to_c=weight * right)

    def parts(self, width: int) -> Iterator[slice]:
        count, k, m = self.entries.shape
        yield from chunks(count, k * m * width)

    def whiten(self, rows: Float[Tensor, "rows q"], part: slice) -> Float[Tensor, "rows q"]:
        return self.share**0.5 * rows


STEPS = 30
"""Of conjugate gradients for the output map; from the one before few are needed."""
