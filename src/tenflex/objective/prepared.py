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
from tenflex.split import Split
from tenflex.sums import alike, largest

NO_LOSS = 1e-26
"""The share of the Jacobians' energy that may be lost where every direction counts: rounding, and nothing else."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A problem in the coordinates in which it is solved.

    Inputs are standardized and along their active axes (unless every entry of J has a variance of its own), outputs
    centred and of unit size, the basis is orthonormal, and some samples are set aside.

    Args:
        fitted: The objective on the samples that are fitted.
        validation: The objective on those on which starts and steps are chosen; None when all are fitted.
        test: The objective on those that choose nothing; None when there are none.
        ranks: The number of nodes of each layer.
        basis: The basis, recombined.
        factor: The width of the first factor of V, or None.
        output_factor: The width of the first factor of W, or None.
        penalty: The roughness form of a smooth basis, or None.
        smoothing: Its weight, or None to choose it by generalized cross-validation.
        nonnegative: The orders of the derivatives of every activation that must not be negative: 0 for the activation
            itself, 1 for its slope.

    Example:
        >>> prepared, _ = tenflex.solvers.prepare(problem)
        >>> prepared.ranks, prepared.basis.size
        ((2,), 3)
    """

    fitted: Objective
    validation: Objective | None
    test: Objective | None
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
    """The problem as solvers see it, and the reduction that leads back from its coordinates.

    Raises:
        ValueError: if the samples cannot be brought to these coordinates.

    Example:
        >>> prepared, reduction = tenflex.solvers.prepare(problem)
        >>> isinstance(prepared, Prepared), reduction.mean.shape
        (True, torch.Size([2]))
    """
    samples, reduction, split = problem.samples, problem.samples.reduction, problem.split
    if reduction is None:
        reduction = problem.reduction
        # A copy has to be made here: in the order in which its parts are taken out without another one.
        samples = samples.reduced(reduction, torch.cat(split))
        split = Split(*torch.arange(len(samples), device=split.fitted.device).split([len(one) for one in split]))
        if not has_variances(samples):
            samples, reduction = to_active_axes_(samples, reduction, NO_LOSS, slice(len(split.fitted)))
    fitted = samples.select(split.fitted)
    require_signal(fitted)
    validation, test = (
        Objective(samples.select(one), problem.coupling, held_out=True) if len(one) else None for one in split[1:]
    )
    smooth = next((one for one in demands(problem.basis) if isinstance(one, Smooth)), None)
    basis = Orthonormal(plain(problem.basis))
    m, n = samples.inputs.shape[1], samples.outputs.shape[1]
    return Prepared(
        Objective(fitted, problem.coupling),
        validation,
        test,
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
    return samples.covariance is not None and is_diagonal(samples.covariance, *samples.sizes[1:])


def require_signal(fitted: Samples) -> None:
    """Raise ValueError if all that varies was set aside."""
    dead = fitted.views != 0 and not largest(fitted.jacobians.flatten(1).any(1))
    if dead or alike(fitted.outputs):
        raise ValueError(
            f"the outputs vary at held-out samples only, and are constant or have zero Jacobians at the {len(fitted)} "
            f"fitted ones: pass more inputs, or hold none out with held_out=0"
        )
