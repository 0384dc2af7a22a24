"""The price of roughness of all activations, and its weight by generalized cross-validation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.factors import Factors
from tenflex.objective.coefficients import CoefficientSystem
from tenflex.objective.prepared import Prepared

GRID = tuple(10.0**exponent for exponent in range(-6, 3))
"""Weights that are tried, relative to the outputs' own scale."""


def choose_smoothing(problem: Prepared, system: CoefficientSystem) -> float:
    r"""The penalty's weight for one least-squares step in the coefficients.

    .. math:: \mathrm{GCV}(\mu) = \frac{E(\mu)}{(1 - \mathrm{tr}\, A(\mu) / N)^2}, \quad N = S n

    The Jacobians are derivatives of the same S outputs, not further draws, so they do not count in N; the trace is that
    of the diagonal blocks, one a node.

    References:
        Golub, Heath, Wahba, "Generalized cross-validation", 1979, https://doi.org/10.1080/00401706.1979.10489751
    """
    if problem.penalty is None:
        return 0.0
    if problem.smoothing is not None:
        return problem.smoothing
    objective = problem.fitted
    count = objective.count * objective.centred.shape[1]
    right = system.right()
    start = torch.zeros_like(right)
    scores = []
    for weight in GRID:
        start = system.solve(start, weight)
        error = objective.total(1.0, 1.0) - 2 * (start * right).sum() + (start * system.apply(start)).sum()
        freedom = min(float(system.freedom(weight)) / count, 0.99)
        scores.append(float(error) / (1 - freedom) ** 2)
    return GRID[scores.index(min(scores))]


def roughness(problem: Prepared, factors: Factors, smoothing: float) -> Tensor:
    """The price of roughness of all activations, each by the size with which it is carried on."""
    total = problem.fitted.centred.new_zeros(())
    for k, one in enumerate(factors.activations):
        total = total + (factors.map(k + 1).square().sum(1) * node_prices(problem, one.coefficients)).sum()
    return smoothing * problem.fitted.weight_f * total


def node_prices(problem: Prepared, coefficients: Float[Tensor, "r d"]) -> Float[Tensor, " r"]:
    """How rough each activation is, `c_k^T P c_k`."""
    return torch.einsum("rd,de,re->r", coefficients, problem.penalty, coefficients)


def roughness_forms(
    problem: Prepared, factors: Factors, smoothing: float
) -> Iterator[tuple[slice, Float[Tensor, "c c"]]]:
    """Where the coefficients of each layer are among the unknowns, and the roughness penalty as a form in them.

    The sizes of the maps that carry them on are taken as they stand.
    """
    if problem.penalty is None:
        return
    end = factors.flat().numel()
    for k in range(len(factors.activations) - 1, -1, -1):  # coefficients come last in the flat vector
        weights = smoothing * problem.fitted.weight_f * factors.map(k + 1).square().sum(1)
        part = slice(end - factors.activations[k].coefficients.numel(), end)
        yield part, torch.block_diag(*(weight * problem.penalty for weight in weights))
        end = part.start
