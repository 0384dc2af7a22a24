"""A problem in the coordinates in which it is solved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases import Basis, Smooth
from tenflex.bases.cone import Cone, cone_of
from tenflex.bases.orthonormal import Orthonormal
from tenflex.bases.shaped import orders
from tenflex.bases.wrapped import demands, plain
from tenflex.coordinates.active import to_active_axes_
from tenflex.covariance import is_diagonal
from tenflex.objective.objective import Objective
from tenflex.problem import Problem
from tenflex.reduction import Reduction
from tenflex.samples import Samples
from tenflex.sums import alike, largest

NO_LOSS = 1e-26
"""The share of the Jacobians' energy that may be lost where every direction counts: rounding, and nothing else."""


@dataclass(frozen=True)
class Prepared:
    """A problem in the coordinates in which it is solved.

    Inputs are standardized and along their active axes (unless every entry of J has a variance of its own), outputs
    centred and of unit size, the basis is orthonormal, and some samples are set aside.

    Args:
        fitted: The objective on the samples that are fitted.
        held_out: The objective on those that never are; None when all are fitted.
        ranks: The number of nodes of each layer.
        basis: The basis, recombined.
        factor: The width of the first factor of V, or None.
        output_factor: The width of the first factor of W, or None.
        penalty: The roughness form of a smooth basis, or None.
        smoothing: Its weight, or None to choose it by generalized cross-validation.
        nonnegative: The orders of the derivatives of every activation that must not be negative: 0 for the activation
            itself, 1 for its slope.
    """

    fitted: Objective
    held_out: Objective | None
    ranks: tuple[int, ...]
    basis: Orthonormal
    factor: int | None = None
    output_factor: int | None = None
    penalty: Float[Tensor, "d d"] | None = None
    smoothing: float | None = None
    nonnegative: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        """The number of nodes of the only layer."""
        (rank,) = self.ranks
        return rank

    def cone(self, basis: Basis) -> Cone | None:
        """The coefficients of a basis, which is this problem's fitted to some nodes, that are allowed; None for all."""
        if not self.nonnegative:
            return None
        if not isinstance(basis, Orthonormal):
            raise TypeError(f"expected the recombined basis of a prepared problem, got {basis!r}")
        return cone_of(basis, self.nonnegative).to(self.fitted.inputs)


def prepare(problem: Problem) -> tuple[Prepared, Reduction]:
    """The problem as solvers see it, and the reduction that leads back from its coordinates."""
    samples, reduction = problem.samples, problem.samples.reduction
    kept, aside = problem.split()
    if reduction is None:
        whole = problem.coordinates.choose(samples.inputs, samples.outputs, samples.jacobians)
        # A copy has to be made here: in the order in which its parts are taken out without another one.
        samples, reduction = samples.reduced(whole, torch.cat([kept, aside])), whole
        kept, aside = torch.arange(len(samples)).to(kept).split([len(kept), len(aside)])
        if not has_variances(samples):
            samples, reduction = to_active_axes_(samples, reduction, NO_LOSS)
    fitted = samples.select(kept)
    require_signal(fitted)
    held_out = Objective(samples.select(aside), problem.coupling) if len(aside) else None
    smooth = next((one for one in demands(problem.basis) if isinstance(one, Smooth)), None)
    basis = Orthonormal(plain(problem.basis))
    m, n = samples.inputs.shape[1], samples.outputs.shape[1]
    return Prepared(
        Objective(fitted, problem.coupling),
        held_out,
        problem.ranks,
        basis,
        None if problem.factor is None else min(problem.factor, m),
        None if problem.output_factor is None else min(problem.output_factor, n),
        None if smooth is None else basis.roughness().to(samples.inputs),
        None if smooth is None else smooth.weight,
        orders(problem.basis),
    ), reduction


def has_variances(samples: Samples) -> bool:
    """Whether every entry of the Jacobians has a variance of its own, which a rotation would turn into blocks."""
    return samples.covariance is not None and is_diagonal(samples.covariance, *samples.jacobians.shape[1:])


def require_signal(fitted: Samples) -> None:
    """Raise ValueError if all that varies was set aside."""
    if not largest(fitted.jacobians.flatten(1).any(1)) or alike(fitted.outputs):
        raise ValueError(
            f"the outputs vary at held-out samples only, and are constant or have zero Jacobians at the {len(fitted)} "
            f"fitted ones: pass more inputs, or hold none out with held_out=0"
        )
