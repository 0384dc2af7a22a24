"""The Gauss-Newton matrix of the objective over everything together, and its gradient."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from tenflex.factors import Factors
from tenflex.objective.derivatives import Derivatives, all_entries, all_outputs
from tenflex.objective.prepared import Prepared
from tenflex.objective.roughness import add_roughness_
from tenflex.sums import centred, over_samples


def normal_equations(
    problem: Prepared, factors: Factors, smoothing: float
) -> tuple[Float[Tensor, "p p"], Float[Tensor, " p"]]:
    """`D^T D` and `D^T e` of layers with full maps, a chunk of samples at a time, with the roughness penalty."""
    objective = problem.fitted
    term, z, n = objective.term, objective.inputs, len(factors.W)
    size, derivatives = factors.flat().numel(), Derivatives(z, factors)
    gram, slope = factors.bias.new_zeros(size, size), factors.bias.new_zeros(size)
    parts = list(term.parts(size))

    def moves(part: slice) -> Float[Tensor, "s n p"]:
        return derivatives.of_outputs(all_outputs(part, z, n)).view(-1, n, size)

    first = moves(parts[0])
    mean = over_samples(sum((moves(part).sum(0) for part in parts[1:]), first.sum(0))) / objective.count
    left = objective.centred - centred(derivatives.last @ factors.map(-1), objective.count)
    for number, part in enumerate(parts):
        rows = term.whiten(derivatives.of_jacobians(all_entries(part, z, n)), part)
        missing = term.entries[part] - derivatives.upstream(factors, part) @ factors.V.mT
        add_rows_(gram, slope, rows, term.whiten(missing.reshape(-1, 1), part)[:, 0], objective.weight_j)
        rows = (first if number == 0 else moves(part)) - mean
        add_rows_(gram, slope, rows.flatten(0, 1), left[part].flatten(), objective.weight_f)
    gram, slope = over_samples(gram), over_samples(slope)
    add_roughness_(problem, factors, smoothing, gram, slope)
    return gram, slope


def add_rows_(gram: Tensor, slope: Tensor, rows: Tensor, left: Tensor, weight: Tensor) -> None:
    """Rows of D, with what is left of their equations."""
    gram += weight * (rows.mT @ rows)
    slope += weight * (rows.mT @ left)
