"""The least-squares steps that solvers share: one factor by itself, the others held fixed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases import Basis
from tenflex.factors import Factors
from tenflex.objective.coefficients import Activated, CoefficientSystem
from tenflex.objective.linear import solve_positive
from tenflex.objective.objective import Objective
from tenflex.objective.prepared import Prepared
from tenflex.objective.tensor import Contracted
from tenflex.sums import centred, chunks, gram_matrix, over_samples


def normalized(V: Float[Tensor, "m r"]) -> Float[Tensor, "m r"]:
    """The columns at unit norm; a column of zeros stays."""
    return V / V.norm(dim=0).clamp(min=torch.finfo(V.dtype).tiny)


def activate(basis: Basis, objective: Objective, V: Tensor, shift: Tensor) -> Activated:
    """The basis at the fitted samples, centred."""
    u = objective.inputs @ V + shift
    return Activated(centred(basis.value(u), objective.count), basis.derivative(u))


def coefficient_system(problem: Prepared, activated: Activated, V: Tensor, W: Tensor) -> CoefficientSystem:
    """The normal equations of the objective in the coefficients."""
    objective = problem.fitted
    mix, to_g = objective.weight_f * W.mT @ W, objective.weight_f * objective.centred @ W
    outputs = CoefficientSystem(
        activated, mix, torch.zeros_like(mix), to_g, torch.zeros_like(to_g), penalty=problem.penalty
    )
    return objective.term.joined(outputs, V, W, objective.weight_j)


def best_coefficients(
    problem: Prepared, basis: Basis, system: CoefficientSystem, start: Float[Tensor, "r d"], smoothing: float
) -> Float[Tensor, "r d"]:
    """The coefficients with the least error among those that the problem allows."""
    cone = problem.cone(basis)
    return system.solve(start, smoothing) if cone is None else system.solve_within(cone, start, smoothing)[0]


def likely_signs(
    problem: Prepared, activated: Activated, basis: Basis, V: Tensor, W: Tensor
) -> float | Float[Tensor, " r"]:
    """The signs of the columns of W with which free activations come nearest to those that are allowed.

    The sign of a node is free, but a first W with the wrong one would leave it with nothing that it may do.
    """
    cone = problem.cone(basis)
    if cone is None:
        return 1.0
    free = coefficient_system(problem, activated, V, W).solve(V.new_zeros(problem.rank, basis.size))
    return cone.leaning(free)


@dataclass(frozen=True, eq=False)
class OutputStep:
    """The output map by least squares, and what was made for it.

    Args:
        W: The output map.
        G: The activations, centred.
        H: Their slopes.
        sums: J summed over the samples with the weights H; None where its entries have weights of their own.
    """

    W: Float[Tensor, "n r"]
    G: Float[Tensor, "S r"]
    H: Float[Tensor, "S r"]
    sums: Contracted | None


def output_step(
    problem: Prepared, activated: Activated, V: Tensor, W: Tensor, coefficients: Tensor, smoothing: float = 0.0
) -> OutputStep:
    """W by coupled least squares; a node pays for its roughness with the size of its column."""
    objective = problem.fitted
    G, H = activated.curves(coefficients)
    gram = objective.weight_f * gram_matrix(G)
    if problem.penalty is not None:
        price = torch.einsum("rd,de,re->r", coefficients, problem.penalty, coefficients)
        gram = gram + torch.diag(smoothing * objective.weight_f * price)
    right, sums = objective.weight_f * gram_matrix(objective.centred, G), objective.term.contracted(H)
    return OutputStep(objective.term.output_map(V, W, H, objective.weight_j, gram, right, sums), G, H, sums)


def output_moments(objective: Objective, factors: Factors) -> tuple[Float[Tensor, "r r"], Float[Tensor, "r n"]]:
    """The Gram matrix of the last activations, less their mean, and their products with the outputs."""
    of, rank = objective.measure, factors.ranks[-1]
    gram, mean = of.outputs.new_zeros(rank, rank), of.outputs.new_zeros(rank)
    right = of.outputs.new_zeros(rank, of.outputs.shape[1])
    for part in chunks(len(of.inputs), 16 * max(factors.W.shape)):
        G = factors.activations[-1].values(factors.arguments(of.inputs[part])[-1])
        mean += G.sum(0)
        gram.addmm_(G.mT, G)
        right.addmm_(G.mT, of.outputs[part] - of.mean)
    mean = over_samples(mean) / of.count
    return over_samples(gram) - of.count * mean[:, None] * mean, over_samples(right)


def coupled_directions(
    objective: Objective,
    V: Tensor,
    G: Float[Tensor, "S r"],
    H: Float[Tensor, "S r"],
    weight_f: float | Tensor,
    prices: Float[Tensor, " r"],
) -> tuple[Float[Tensor, "m r"], Float[Tensor, "n r"]]:
    """W and then V, with columns of unit norm, by least squares for these curves; a node pays for its column of W."""
    sums = objective.jacobians.contracted(H)
    gram = objective.weight_j * sums.gram * (V.mT @ V) + weight_f * gram_matrix(G) + torch.diag(prices)
    right = objective.weight_j * sums.along_inputs(V) + weight_f * gram_matrix(objective.centred, G)
    W = solve_positive(gram, right.mT).mT
    return normalized(solve_positive(sums.gram * (W.mT @ W), sums.along_outputs(W).mT).mT), W


def project(
    activated: Activated, G: Float[Tensor, "S r"], H: Float[Tensor, "S r"], coupling: float
) -> Float[Tensor, "r d"]:
    """The coefficients nearest to G and H, one small least-squares problem a node, G weighted by the coupling.

    The values are centred over the samples, which is the same as a column of ones for the constant.
    """
    gram, right = activated.grams(coupling, 1.0), activated.pull(coupling * G, H)
    size = gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=torch.finfo(gram.dtype).tiny)
    ridge = 1e-12 * size[:, None, None] * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + ridge, right.unsqueeze(-1)).squeeze(-1)
