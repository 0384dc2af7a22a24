r"""The covariance of the errors of sampled Jacobians, in three forms that are told apart by their shapes.

It is that of the vector of a Jacobian's entries, row by row: entry `(i, j)` of a Jacobian `(n, m)` is number `i m + j`.

- diagonal, `(S, n, m)`: the variance of every entry;
- block, `(S, n m, n m)`: one matrix a sample, the samples being independent of each other;
- full, `(S n m, S n m)`: one matrix for all, sample after sample.

With one input and one output the first two are the same numbers, so no shape is ambiguous.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenflex.checks import require_finite, require_floating

ASYMMETRY = 1e-5
"""The largest difference of an entry from its mirror image, relative to the two standard deviations: rounding."""


def require_covariance(covariance: Float[Tensor, "..."], count: int, n: int, m: int) -> None:
    """Raise TypeError or ValueError unless it is one of `count` Jacobians `(n, m)`."""
    require_floating("covariance", covariance)
    size = n * m
    forms = {"diagonal": (count, n, m), "block": (count, size, size), "full": (count * size, count * size)}
    if tuple(covariance.shape) not in forms.values():
        expected = ", ".join(f"{name} {shape}" for name, shape in forms.items())
        raise ValueError(
            f"covariance must have one of the shapes {expected} for {count} Jacobians {(n, m)}, "
            f"got {tuple(covariance.shape)}"
        )
    require_finite("covariance", covariance)
    if is_diagonal(covariance, n, m):
        _require_positive(covariance)
    else:
        _require_positive_definite(covariance)


def is_diagonal(covariance: Float[Tensor, "..."], n: int, m: int) -> bool:
    """Whether it holds variances only."""
    return covariance.ndim == 3 and tuple(covariance.shape[1:]) == (n, m)


def _require_positive(variances: Float[Tensor, "S n m"]) -> None:
    if not (variances > 0).all():
        first = (variances <= 0).nonzero()[0].tolist()
        raise ValueError(
            f"the variances in covariance must be above 0, but that at {first} is {variances[tuple(first)].item():g}: "
            f"give entries that are known exactly a small variance"
        )


def _require_positive_definite(covariance: Float[Tensor, "*blocks p p"]) -> None:
    deviations = covariance.diagonal(dim1=-2, dim2=-1).abs().sqrt()
    limit = ASYMMETRY * deviations.unsqueeze(-1) * deviations.unsqueeze(-2)
    if ((covariance - covariance.mT).abs() > limit).any():
        raise ValueError("covariance must be symmetric: pass (C + C.mT) / 2 if C is one up to rounding")
    failed = torch.linalg.cholesky_ex(covariance.double())[1]
    if failed.any():
        where = f"its block of sample {int(failed.nonzero()[0])}" if covariance.ndim == 3 else "it"
        raise ValueError(
            f"covariance must be positive definite, but {where} is not: add a small variance to its diagonal, as it is "
            f"needed where it was estimated from few draws or a sample stands in it twice"
        )


def selected(covariance: Float[Tensor, "..."], index: Int[Tensor, " some"], count: int) -> Float[Tensor, "..."]:
    """That of the samples at `index` out of `count`; of a full one the rows and columns that belong to them."""
    if covariance.ndim == 3:
        return covariance[as_range(index, count)]
    size = len(covariance) // count
    entries = (index[:, None] * size + torch.arange(size, device=index.device)).flatten()
    return covariance[entries[:, None], entries]


def as_range(index: Int[Tensor, " some"], count: int) -> slice | Int[Tensor, " some"]:
    """An index into `count` samples as a range where it is one, since a range of a tensor is no copy."""
    size = len(index)
    first = int(index[0]) if size else 0
    if first < 0 or first + size > count or not torch.equal(index, first + torch.arange(size, device=index.device)):
        return index
    return slice(first, first + size)


def transformed(
    covariance: Float[Tensor, "..."], left: Float[Tensor, "n p"], right: Float[Tensor, "m k"]
) -> Float[Tensor, "..."]:
    r"""The covariance of :math:`L^\top J_s R`, in float64.

    Variances stay variances where no entry of the new Jacobians shares one of the old with another, as when L and R
    only scale, choose or exchange; otherwise they become blocks, `S (p k)^2` numbers.
    """
    left, right = left.double(), right.double()
    covariance = covariance.to(left)
    if is_diagonal(covariance, len(left), len(right)):
        if _apart(left) and _apart(right):
            return left.square().mT @ covariance @ right.square()
        covariance = torch.diag_embed(covariance.flatten(1))
    both = torch.kron(left, right)  # (n m, p k)
    if covariance.ndim == 3:
        return _symmetric(both.mT @ covariance @ both)
    count = len(covariance) // len(both)
    blocks = covariance.view(count, len(both), count, len(both))
    total = torch.einsum("satb,ap,bq->sptq", blocks, both, both)
    return _symmetric(total.reshape(count * both.shape[1], -1))


def _apart(matrix: Float[Tensor, "n p"]) -> bool:
    """Whether no row is used by two columns."""
    return bool(((matrix != 0).sum(1) <= 1).all())


def _symmetric(covariance: Float[Tensor, "*blocks p p"]) -> Float[Tensor, "*blocks p p"]:
    """Without the asymmetry of rounding."""
    return (covariance + covariance.mT) / 2
