"""What solvers ask of the Jacobians' term of the objective, however its errors are weighted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from tenflex.factors import Factors
from tenflex.objective.coefficients import CoefficientSystem
from tenflex.objective.passing import Passing
from tenflex.objective.tensor import Contracted
from tenflex.sums import over_samples


class JacobianTerm(ABC):
    r"""The squared error of the Jacobians, :math:`\|J - [[H, W, V]]\|^2` in some norm, and its least-squares steps.

    Attributes:
        entries: J, `(S, n, m)`, or views of it, `(S, k, m)`.
        energy: The squared norm of J, a scalar.
    """

    entries: Float[Tensor, "S k m"]
    energy: Float[Tensor, ""]

    def passing(
        self, inner: tuple[Tensor, ...], W: Float[Tensor, "n r"], learns: bool, dtype: torch.dtype
    ) -> Passing | None:
        """A pass over the samples that gives this error of one layer; None where there is none.

        Its products, and those of the outputs beside it, are taken in `dtype`, and added up in that of W.
        """
        return None

    @abstractmethod
    def misfit(
        self, inner: tuple[Tensor, ...], W: Float[Tensor, "n r"], H: Float[Tensor, "S r"], exact: bool
    ) -> Float[Tensor, ""]:
        """The squared error, differentiable once, for V as one matrix or the product of two.

        The gradients are those of the samples at hand: `shared` sums them up.

        `exact` asks for residuals where there is a faster form that cancels.
        """

    def product_misfit(
        self, factors: Factors, slopes: Sequence[Float[Tensor, "S r"]], exact: bool
    ) -> Float[Tensor, ""]:
        """The same for Jacobians `A_s V^T`, those of several layers; by residuals unless there is a faster form."""
        return ProductMisfit.apply(self, factors.upstream(slopes), factors.V)

    @abstractmethod
    def metric(self, left: Float[Tensor, "s n m"], part: slice) -> Float[Tensor, "s n m"]:
        """The symmetric matrix of the norm, applied to residuals in a range of samples."""

    @abstractmethod
    def input_map(
        self, V: Float[Tensor, "m r"], W: Float[Tensor, "n r"], H: Float[Tensor, "S r"]
    ) -> Float[Tensor, "m r"]:
        """The V with the least error for these W and H; V is where a search would begin."""

    @abstractmethod
    def slopes(self, V: Float[Tensor, "m r"], W: Float[Tensor, "n r"]) -> Float[Tensor, "S r"]:
        """The H with the least error for these V and W, free in every sample."""

    @abstractmethod
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
        """The W with the least `weight` times this error and a form with the normal equations `W gram = right`.

        `sums` are those of `contracted`, where they are known.
        """

    def contracted(self, H: Float[Tensor, "S r"]) -> Contracted | None:
        """J summed over the samples with the weights H; None where its entries have weights of their own."""
        return None

    @abstractmethod
    def joined(
        self, system: CoefficientSystem, V: Float[Tensor, "m r"], W: Float[Tensor, "n r"], weight: Float[Tensor, ""]
    ) -> CoefficientSystem:
        """The normal equations in C of the outputs, with those of `weight` times this error added."""

    @abstractmethod
    def parts(self, width: int) -> Iterator[slice]:
        """Ranges of samples, with a bounded size for `width` numbers to an entry of J."""

    @abstractmethod
    def whiten(self, rows: Float[Tensor, "rows q"], part: slice) -> Float[Tensor, "rows q"]:
        """Rows, one for an entry of J in a range of samples, such that plain least squares in them is this error."""


class ProductMisfit(torch.autograd.Function):
    """The squared error of Jacobians `A_s V^T` by residuals, a chunk of samples at a time."""

    @staticmethod
    def forward(ctx: Any, term: JacobianTerm, A: Tensor, V: Tensor) -> Tensor:
        value = A.new_zeros(())
        to_a, to_v = torch.empty_like(A), torch.zeros_like(V)
        for part in term.parts(1):
            left = term.entries[part] - A[part] @ V.mT
            towards = term.metric(left, part)
            value += (left * towards).sum()
            to_a[part] = towards @ V
            to_v += towards.flatten(0, 1).mT @ A[part].flatten(0, 1)
        ctx.save_for_backward(to_a, to_v)
        return over_samples(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_value: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *(-2 * to_value * one for one in ctx.saved_tensors))
