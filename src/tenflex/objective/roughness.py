"""The price of roughness of all activations, and its weight by generalized cross-validation."""

from __future__ import annotations

from itertools import accumulate

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


def add_roughness_(
    problem: Prepared, factors: Factors, smoothing: float, gram: Float[Tensor, "p p"], slope: Tensor | None = None
) -> None:
    r"""Add the price of roughness to `D^T D` and `D^T e` of layers with full maps.

    As squares of the residuals :math:`\sqrt{\mu} \, w_{kj} L c_k`, with :math:`P = L^\top L`: a node's coefficients and
    the numbers that carry it on go together, as a rough activation is cheap where little of it is carried on.
    """
    if problem.penalty is None:
        return
    flat, weight = factors.flat(), smoothing * problem.fitted.weight_f
    sizes = [one.numel() for one in factors.tensors()]
    places = [slice(end - size, end) for end, size in zip(accumulate(sizes), sizes, strict=True)]
    layers = len(factors.activations)
    for k, one in enumerate(factors.activations):
        W, C = factors.map(k + 1), one.coefficients
        prices, rough = node_prices(problem, C), C @ problem.penalty
        for node in range(len(W)):
            carried = _row(places[k + 1], W, node)
            own = _row(places[k - layers], C, node)  # the coefficients of all layers come last
            gram[carried, carried].diagonal().add_(weight * prices[node])
            gram[own, own] += weight * W[node].square().sum() * problem.penalty
            both = weight * torch.outer(W[node], rough[node])
            gram[carried, own] += both
            gram[own, carried] += both.mT
            if slope is not None:
                slope[carried] -= weight * prices[node] * flat[carried]
                slope[own] -= weight * W[node].square().sum() * rough[node]


def _row(place: slice, matrix: Float[Tensor, "r c"], row: int) -> slice:
    """Where a row of a matrix is among all unknowns."""
    size = matrix.shape[1]
    return slice(place.start + row * size, place.start + (row + 1) * size)
