r"""The inverse covariance of the Jacobians' errors, as a map that makes these errors independent and of unit variance.

With :math:`\Sigma = L L^\top` and the whitener :math:`R = L^{-1}`, the weighted norm
:math:`e^\top \Sigma^{-1} e` is :math:`\|R e\|^2`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.covariance import is_diagonal
from tenflex.samples import Samples
from tenflex.sums import chunks


class Weights(ABC):
    """The whitener R of the vectors of the Jacobians' entries, `p = n m` numbers a sample.

    Args:
        group: The samples whose errors belong together: 1, or all.
        count: The number of samples, S.
        size: The numbers of a sample, p.
    """

    def __init__(self, group: int, count: int, size: int) -> None:
        self.group, self.count, self.size = group, count, size

    def parts(self, width: int) -> Iterator[slice]:
        """Ranges of samples, with about a chunk of numbers each for `width` numbers to an entry; whole groups only."""
        for groups in chunks(self.count // self.group, self.group * self.size * width):
            yield slice(self.group * groups.start, self.group * groups.stop)

    @abstractmethod
    def whiten(self, columns: Float[Tensor, "s p q"], part: slice) -> Float[Tensor, "s p q"]:
        """`R x` for the columns of a range of samples."""

    @abstractmethod
    def adjoint(self, columns: Float[Tensor, "s p q"], part: slice) -> Float[Tensor, "s p q"]:
        """`R^T x`."""

    @abstractmethod
    def spread(self, design: Float[Tensor, "p r"]) -> Float[Tensor, "groups gp gr"]:
        """R times a block-diagonal matrix with the same block for every sample, group by group."""


class Variances(Weights):
    """Independent errors.

    Args:
        variances: `(S, p)`.
    """

    def __init__(self, variances: Float[Tensor, "S p"]) -> None:
        super().__init__(1, *variances.shape)
        self.root = variances.rsqrt()

    def whiten(self, columns: Float[Tensor, "s p q"], part: slice) -> Float[Tensor, "s p q"]:
        return self.root[part].unsqueeze(-1) * columns

    def adjoint(self, columns: Float[Tensor, "s p q"], part: slice) -> Float[Tensor, "s p q"]:
        return self.whiten(columns, part)

    def spread(self, design: Float[Tensor, "p r"]) -> Float[Tensor, "groups gp gr"]:
        return self.root.unsqueeze(-1) * design


class Blocks(Weights):
    """Errors that belong together within groups of samples; a group is one sample, or all of them.

    Args:
        covariance: `(groups, g p, g p)`, one matrix a group of g samples.
        count: The number of samples.
    """

    def __init__(self, covariance: Float[Tensor, "groups gp gp"], count: int) -> None:
        group = count // len(covariance)
        super().__init__(group, count, covariance.shape[-1] // group)
        eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
        lower = torch.linalg.cholesky(covariance)
        self.root = torch.linalg.solve_triangular(lower, eye, upper=False)

    def whiten(self, columns: Float[Tensor, "s p q"], part: slice) -> Float[Tensor, "s p q"]:
        return self._apply(self.root, columns, part)

    def adjoint(self, columns: Float[Tensor, "s p q"], part: slice) -> Float[Tensor, "s p q"]:
        return self._apply(self.root.mT, columns, part)

    def spread(self, design: Float[Tensor, "p r"]) -> Float[Tensor, "groups gp gr"]:
        groups, length, _ = self.root.shape
        return (self.root.view(groups, length, self.group, self.size) @ design).flatten(2)

    def _apply(self, root: Tensor, columns: Tensor, part: slice) -> Tensor:
        groups = slice(part.start // self.group, part.stop // self.group)
        together = columns.reshape(-1, self.group * self.size, columns.shape[-1])
        return (root[groups] @ together).view_as(columns)


def weights_of(samples: Samples) -> Weights:
    """The weights of samples with a covariance, in their form.

    Raises:
        ValueError: if the samples have none.
    """
    covariance, (count, n, m) = samples.covariance, samples.jacobians.shape
    if covariance is None:
        raise ValueError("expected samples with a covariance of their Jacobians, got samples without one")
    covariance = covariance.to(samples.jacobians)
    if is_diagonal(covariance, n, m):
        return Variances(covariance.flatten(1))
    return Blocks(covariance if covariance.ndim == 3 else covariance[None], count)
