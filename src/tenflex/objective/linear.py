"""Positive definite systems, solved the way this library trusts: Cholesky with a ridge that grows only if it must."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def solve_positive(
    gram: Float[Tensor, "p p"], right: Float[Tensor, "p q"], ridge: float = 1e-13
) -> Float[Tensor, "p q"]:
    """`gram^-1 right`, by a ridge (relative to the mean diagonal) and one step of refinement that takes its bias out.

    What the matrix maps to nothing stays zero. The ridge is raised a hundredfold until the factorization succeeds.
    `torch.linalg.lstsq` is not used: its `gels` driver is silently wrong on rank-deficient systems
    (https://github.com/pytorch/pytorch/issues/180157).
    """
    size = gram.diagonal().mean().clamp(min=torch.finfo(gram.dtype).tiny)
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    while True:
        lower, failed = torch.linalg.cholesky_ex(gram + ridge * size * eye)
        if not failed or ridge >= 1:
            first = torch.cholesky_solve(right, lower)
            return first + torch.cholesky_solve(right - gram @ first, lower)
        ridge *= 100


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    right: Tensor,
    start: Tensor,
    precondition: Callable[[Tensor], Tensor],
    *,
    tolerance: float = 1e-8,
    steps: int = 200,
) -> Tensor:
    """Solve `apply(x) = right` for a positive definite operator on tensors of any shape (Hestenes, Stiefel 1952)."""
    x = start
    left = right - apply(x)
    towards = precondition(left)
    direction, energy = towards, (left * towards).sum()
    goal = tolerance**2 * (right * precondition(right)).sum()
    for _ in range(steps):
        if energy <= goal:
            break
        image = apply(direction)
        length = energy / (direction * image).sum()
        x = x + length * direction
        left = left - length * image
        towards = precondition(left)
        before, energy = energy, (left * towards).sum()
        direction = towards + (energy / before) * direction
    return x
