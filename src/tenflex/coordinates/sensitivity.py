"""Inputs measured by what the map makes of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.checks import require_number
from tenflex.coordinates.active import to_active_axes_
from tenflex.coordinates.base import Coordinates, output_frame, varying
from tenflex.coordinates.whiten import Whiten
from tenflex.reduction import Reduction
from tenflex.samples import Samples
from tenflex.sums import (
    any_of,
    chunks,
    gram_matrix,
    mean_of,
    over_samples,
    own_number,
    sample_count,
    squared_norm,
    total_of,
)

TYPICAL, MOST = 600, 3.0
"""So many samples are worth as much as a shrinkage of one variance: with more, less of it, and three at most."""

FLOOR = 1e-9
"""What an input does is never less than this share of the most that one does: what is dead at the samples may wake."""

WIDEST = 2048
"""Among more inputs only so many directions are kept: those in which inputs vary or the map changes most."""


@dataclass(frozen=True)
class Sensitivity(Coordinates):
    r"""Inputs of unit shrunk covariance in the metric of the Jacobians: nothing is dropped for varying little.

    .. math:: G = \frac1S \sum_s J_s^\top J_s, \quad R^\top R = G + \mathrm{diag}(G), \quad
        R \Sigma R^\top = A \, \mathrm{diag}(l) A^\top, \quad
        z = \mathrm{diag}(l + \lambda \bar l)^{-1/2} A^\top R (x - \mu)

    To first order :math:`E |f(x + \epsilon) - \hat f(x + \epsilon)|^2 = |f - \hat f|^2 + \mathrm{tr}\,(J - \hat J)
    \mathrm{Cov}(\epsilon) (J - \hat J)^\top`: in these coordinates the error of the Jacobians is that of the outputs
    beside the samples, for inputs that vary as the samples do, and in all other directions by a share
    :math:`\lambda` of the mean. So a layer is not free where few samples happen not to vary, and it is the same
    whatever the units of the inputs.

    References:
        Ledoit, Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004,
        https://doi.org/10.1016/S0047-259X(03)00096-4 (shrunk covariances)
        Constantine, "Active subspaces", 2015, https://doi.org/10.1137/1.9781611973860 (the metric G)

    Args:
        shrinkage: lambda; None for 3 up to 200 samples, and less in proportion beyond.

    Raises:
        ValueError: if `shrinkage` is not a number above 0.

    Example:
        >>> from tenflex.coordinates import *
        >>> again = Problem(problem.samples, 2, Monomial(3), coordinates=Sensitivity())
        >>> decouple(again).validation_error < 1e-6
        True
    """

    from_jacobians: ClassVar[bool] = True
    shrinkage: float | None = None

    def __post_init__(self) -> None:
        if self.shrinkage is not None:
            require_number("shrinkage", self.shrinkage, above=0)

    def choose(
        self,
        inputs: Float[Tensor, "S m"],
        outputs: Float[Tensor, "S n"],
        jacobians: Float[Tensor, "some n m"] | None = None,
    ) -> Reduction:
        """The Jacobians may be those of some of the samples; ValueError without any."""
        if jacobians is None:
            raise ValueError("Sensitivity needs Jacobians of some of the samples, got none")
        if not any_of(bool(jacobians.any())):  # what acts on nothing has no metric: if all do so is told later
            return Whiten().choose(inputs, outputs)
        x = varying(inputs)
        count, rows = sample_count(x), jacobians.to(x).flatten(0, 1)
        mean = mean_of(x, count)
        unit = sensitivities(x - mean, rows)
        centred, rows = (x - mean) * unit, rows / unit
        frame = leading_frame(centred, rows) if x.shape[1] > WIDEST else None
        if frame is not None:
            centred, rows = centred @ frame, rows @ frame
        root, inverse = metric_roots(rows)
        energies, axes = torch.linalg.eigh(root @ (gram_matrix(centred) / count) @ root)
        energies, axes = energies.clamp(min=0).flip(0), axes.flip(1)
        shrinkage = typical_shrinkage(count) if self.shrinkage is None else self.shrinkage
        deviations = (energies + shrinkage * energies.mean()).sqrt()
        down, up = root @ axes / deviations, inverse @ axes * deviations
        if frame is not None:
            down, up = frame @ down, frame @ up
        return Reduction(mean, unit[:, None] * down, up / unit[:, None], *output_frame(outputs))


def typical_shrinkage(count: int) -> float:
    """The shrinkage for so many samples where none is given."""
    return min(MOST, TYPICAL / count)


def reshrunk(samples: Samples, fitted: slice, factor: float) -> Samples:
    r"""Samples in the coordinates of `Sensitivity`, in those of a shrinkage that is a multiple of theirs.

    In them the covariance of the fitted inputs, C, is one less what the shrinkage added, so the new coordinates have
    the covariance :math:`C + c (I - C)` in the old ones: nothing has to be sampled again. The directions are those that
    were kept.
    """
    x, reduction = samples.inputs, samples.reduction
    if reduction is None:
        raise ValueError("samples that were never reduced have no shrinkage")
    shares, axes = torch.linalg.eigh(gram_matrix(x[fitted]) / sample_count(x[fitted]))
    deviations = (shares + factor * (1 - shares).clamp(min=0)).clamp(min=0).sqrt()
    there, back = axes / deviations, axes * deviations
    jacobians = samples.jacobians.new_empty(samples.jacobians.shape)
    for part in chunks(len(jacobians), 4 * jacobians[0].numel()):
        jacobians[part] = samples.jacobians[part] @ back
    reduction = replace(reduction, down=reduction.down @ there, up=reduction.up @ back)
    again = replace(samples, inputs=x @ there, jacobians=jacobians, reduction=reduction)
    return to_active_axes_(again, reduction, 0.0, fitted)[0]


def sensitivities(centred: Float[Tensor, "S m"], rows: Float[Tensor, "rows m"]) -> Float[Tensor, " m"]:
    """How much the map does with each input, `sqrt(2 G_ii)`: in its units the metric has a diagonal of one."""
    energies, variances = 2 * mean_of(rows.square()), mean_of(centred.square())
    least = FLOOR * (energies * variances).amax()
    floor = torch.where(variances > 0, least / variances.clamp(min=torch.finfo(variances.dtype).tiny), 0.0)
    energies = torch.maximum(energies, floor)
    return torch.where(energies > 0, energies, energies.amax()).sqrt()  # what neither varies nor acts: any unit will do


def metric_roots(rows: Float[Tensor, "rows k"]) -> tuple[Float[Tensor, "k k"], Float[Tensor, "k k"]]:
    """The root of `G + diag(G)` and its inverse; the diagonal keeps it far from singular."""
    metric = gram_matrix(rows) / sample_count(rows)
    values, vectors = torch.linalg.eigh(metric + torch.diag(metric.diagonal()))
    values = values.clamp(min=1e-12 * values.amax()).sqrt()
    return (vectors * values) @ vectors.mT, (vectors / values) @ vectors.mT


def leading_frame(centred: Float[Tensor, "S m"], rows: Float[Tensor, "rows m"]) -> Float[Tensor, "m k"]:
    """An orthonormal frame of the directions in which inputs vary or the map changes most; no matrix is m by m."""
    both = torch.cat([one / squared_norm(one).sqrt() for one in (centred, rows)])
    generator = torch.Generator().manual_seed(own_number())  # other combinations of other rows
    width = min(WIDEST, total_of(len(both)))  # fewer rows span no more
    drawn = torch.randn(width, len(both), generator=generator, dtype=both.dtype, device="cpu").to(both)
    frame = torch.linalg.qr(over_samples(drawn @ both).mT)[0]
    return torch.linalg.qr(gram_matrix(both, both @ frame))[0]
