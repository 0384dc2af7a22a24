"""The Gauss-Newton matrix of the objective over everything together, and its gradient."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from tenflex.factors import Factors
from tenflex.objective.derivatives import Derivatives, all_entries, all_outputs
from tenflex.objective.prepared import Prepared
from tenflex.objective.roughness import roughness_forms


def normal_equations(
    problem: Prepared, factors: Factors, smoothing: float
) -> tuple[Float[Tensor, "p p"], Float[Tensor, " p"]]:
    """`D^T D` and `D^T e` of layers with full maps, a chunk of samples at a time, with the roughness penalty."""
    objective = problem.fitted
    term, z, n = objective.term, objective.inputs, len(factors.W)
    size, derivatives = factors.flat().numel(), Derivatives(objective.inputs, factors)
    gram, slope = factors.bias.new_zeros(size, size), factors.bias.new_zeros(size)
    outputs = factors.outputs(z)
    left, mean = objective.centred - (outputs - outputs.mean(0)), factors.bias.new_zeros(n, size)
    for part in term.parts(size):
        mean += derivatives.of_outputs(all_outputs(part, z, n)).view(-1, n, size).sum(0) / len(z)
    for part in term.parts(size):
        rows = term.whiten(derivatives.of_jacobians(all_entries(part, z, n)), part)
        missing = term.entries[part] - factors.jacobians(z[part])
        add_rows_(gram, slope, rows, term.whiten(missing.reshape(-1, 1), part)[:, 0], objective.weight_j)
        rows = derivatives.of_outputs(all_outputs(part, z, n)).view(-1, n, size) - mean
        add_rows_(gram, slope, rows.flatten(0, 1), left[part].flatten(), objective.weight_f)
    for part, form in roughness_forms(problem, factors, smoothing):
        gram[part, part] += form
        slope[part] -= form @ factors.flat()[part]
    return gram, slope


def add_rows_(gram: Tensor, slope: Tensor, rows: Tensor, left: Tensor, weight: Tensor) -> None:
    """Rows of D, with what is left of their equations."""
    gram += weight * (rows.mT @ rows)
    slope += weight * (rows.mT @ left)
