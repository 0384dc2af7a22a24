"""Canonical polyadic decomposition of a small tensor of any order, by damped Gauss-Newton steps from several starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

LETTERS = "abcdefgh"
"""One index of the tensor each; `z` counts the components."""

SWEEPS = 15
"""Alternating least-squares sweeps before the first Gauss-Newton step."""

INNER = 15
"""Most conjugate-gradient iterations of one step."""

WORTH, PATIENCE = 1e-5, 4
"""So many steps in a row must gain less than this share of the error before they end: in between there are swamps."""

RIDGE = 1e-12
"""Of the least-squares steps, relative to the largest entry of the Gram matrix."""

Factors = tuple[Tensor, ...]
Operator = Callable[[Factors], Factors]


@dataclass(frozen=True, eq=False)
class Fit:
    """A sum of outer products, `sum_z a_z o b_z o ...`.

    Args:
        factors: One matrix for each index of the tensor, with a column for each component.
        error: The squared residual, relative to the tensor.
    """

    factors: Factors
    error: float


def decompose(tensor: Float[Tensor, "*sizes"], rank: int, *, starts: int = 3, steps: int = 60, seed: int = 0) -> Fit:
    r"""The best of several decompositions into a number of components.

    .. math:: \min \| T - \sum_{z=1}^R a^{(1)}_z \circ \dots \circ a^{(N)}_z \|^2

    Sweeps of alternating least squares lead into Levenberg-Marquardt steps, whose linear systems are solved by
    conjugate gradients on the Gram matrices of the factors, so that no Jacobian is formed.

    References:
        Tomasi, Bro, "A comparison of algorithms for fitting the PARAFAC model", 2006,
        https://doi.org/10.1016/j.csda.2004.11.013
        Sorber, Van Barel, De Lathauwer, "Optimization-based algorithms for tensor decompositions", 2013,
        https://doi.org/10.1137/120868323

    Args:
        tensor: In float64.
        rank: The number of components R.
        starts: How many random starts; the one with the least error after a few sweeps goes on.
        steps: The most Gauss-Newton steps.
        seed: Of the starts.
    """
    if not bool(tensor.any()):
        return Fit(tuple(tensor.new_zeros(size, rank) for size in tensor.shape), 0.0)
    generator = torch.Generator().manual_seed(seed)
    best: Fit | None = None
    for _ in range(starts):
        shapes = [(size, rank) for size in tensor.shape]
        drawn = [torch.randn(one, generator=generator, dtype=tensor.dtype, device="cpu") for one in shapes]
        found = swept(tensor, tuple(one.to(tensor.device) for one in drawn))
        best = found if best is None or found.error < best.error else best
    if best is None:
        raise ValueError(f"starts must be a whole number of at least 1, got {starts}")
    return damped_newton(tensor, best, steps)


def swept(tensor: Tensor, factors: Factors) -> Fit:
    """The factors after some sweeps of alternating least squares."""
    for _ in range(SWEEPS):
        for mode in range(tensor.ndim):
            gram = others(factors, mode)
            ridge = RIDGE * gram.diagonal().max() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
            solved = torch.linalg.solve(gram + ridge, contracted(tensor, factors, mode).mT).mT
            factors = (*factors[:mode], solved, *factors[mode + 1 :])
        factors = balanced(factors)
    return Fit(factors, error_of(tensor, factors))


def damped_newton(tensor: Tensor, start: Fit, steps: int) -> Fit:
    """Levenberg-Marquardt steps, as long as they are worth it."""
    fit, damping, vain = start, 1e-2, 0
    for _ in range(steps):
        tried = balanced(newton_step(tensor, fit.factors, damping))
        error = error_of(tensor, tried)
        if error < fit.error:
            gained = fit.error - error
            fit, damping = Fit(tried, error), max(damping / 4, 1e-12)
            vain = vain + 1 if gained < WORTH * error else 0
            if vain == PATIENCE or error < 1e-24:
                break
        else:
            damping *= 8
            if damping > 1e4:
                break
    return fit


def newton_step(tensor: Tensor, factors: Factors, damping: float) -> Factors:
    """Factors after one damped step, its system solved by preconditioned conjugate gradients."""
    grams = [one.mT @ one for one in factors]
    own = [others(factors, mode) for mode in range(len(factors))]
    scale = damping * max(one.diagonal().max().item() for one in own)
    eye = torch.eye(len(own[0]), dtype=own[0].dtype, device=own[0].device)
    roots = [torch.linalg.cholesky(one + (scale + 1e-14 * one.trace()) * eye) for one in own]

    def curved(v: Factors) -> Factors:
        return tuple(scale * one + two for one, two in zip(v, gauss_newton(factors, grams, own, v), strict=True))

    def preconditioned(v: Factors) -> Factors:
        return tuple(torch.cholesky_solve(one.mT, root).mT for one, root in zip(v, roots, strict=True))

    downhill = tuple(contracted(tensor, factors, mode) - one @ own[mode] for mode, one in enumerate(factors))
    moves = conjugate_gradients(curved, preconditioned, downhill)
    return tuple(one + move for one, move in zip(factors, moves, strict=True))


def gauss_newton(factors: Factors, grams: list[Tensor], own: list[Tensor], v: Factors) -> Factors:
    """`J^T J v` from Gram matrices alone."""
    found = []
    for mode, factor in enumerate(factors):
        total = v[mode] @ own[mode]
        for other in range(len(factors)):
            if other != mode:
                rest = [gram for place, gram in enumerate(grams) if place not in (mode, other)]
                total = total + factor @ reduce(torch.mul, rest, v[other].mT @ factors[other])
        found.append(total)
    return tuple(found)


def conjugate_gradients(curved: Operator, preconditioned: Operator, target: Factors) -> Factors:
    """An approximate solution of `curved(x) = target`."""
    x, residual = tuple(torch.zeros_like(one) for one in target), target
    z = preconditioned(residual)
    direction, slope = z, inner(residual, z)
    first = slope
    for _ in range(INNER):
        bent = curved(direction)
        length = slope / max(inner(direction, bent), 1e-300)
        x, residual = added(x, length, direction), added(residual, -length, bent)
        z = preconditioned(residual)
        slope, before = inner(residual, z), slope
        if slope <= 1e-4 * first:
            break
        direction = added(z, slope / before, direction)
    return x


def inner(v: Factors, w: Factors) -> float:
    """The inner product of all entries."""
    return float(sum((one * two).sum() for one, two in zip(v, w, strict=True)))


def added(v: Factors, length: float, w: Factors) -> Factors:
    """`v + length w`."""
    return tuple(one + length * two for one, two in zip(v, w, strict=True))


def others(factors: Factors, mode: int) -> Float[Tensor, "R R"]:
    """The product, entry by entry, of the Gram matrices of all factors but one."""
    return reduce(torch.mul, [one.mT @ one for place, one in enumerate(factors) if place != mode])


def contracted(tensor: Tensor, factors: Factors, mode: int) -> Float[Tensor, "size R"]:
    """The tensor times all factors but one."""
    indices = LETTERS[: tensor.ndim]
    rest = [place for place in range(tensor.ndim) if place != mode]
    form = f"{indices},{','.join(f'{indices[place]}z' for place in rest)}->{indices[mode]}z"
    return torch.einsum(form, tensor, *(factors[place] for place in rest))


def composed(factors: Factors) -> Tensor:
    """The tensor that factors stand for."""
    indices = LETTERS[: len(factors)]
    return torch.einsum(f"{','.join(f'{one}z' for one in indices)}->{indices}", *factors)


def error_of(tensor: Tensor, factors: Factors) -> float:
    """The squared residual, relative to the tensor."""
    return float((tensor - composed(factors)).square().sum() / tensor.square().sum().clamp_min(1e-300))


def balanced(factors: Factors) -> Factors:
    """The same components, each with columns of equal norm."""
    norms = [one.norm(dim=0).clamp_min(1e-150) for one in factors]
    mean = torch.stack([one.log() for one in norms]).mean(0).exp()
    return tuple(one * (mean / norm) for one, norm in zip(factors, norms, strict=True))
