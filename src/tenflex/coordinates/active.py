"""The directions along which a map changes."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenflex.covariance import transformed
from tenflex.reduction import Reduction, turned
from tenflex.samples import Samples
from tenflex.sums import at_once, gram_matrix, over_samples

ALL = slice(None)


def to_active_axes(
    samples: Samples, reduction: Reduction, tolerance: float, fitted: slice | Int[Tensor, " fitted"] = ALL
) -> tuple[Samples, Reduction]:
    r"""Rotate reduced samples to their active subspace: the directions along which the map changes, most active first.

    The axes are the eigenvectors of :math:`\sum_s J_s^\top J_s` (inputs) and :math:`\sum_s J_s J_s^\top` (outputs).
    Input axes that together carry at most `tolerance` of :math:`\|J\|^2` are dropped, which bounds the error and
    shrinks every later product. Only `fitted` samples tell which these are.

    References:
        Constantine, "Active subspaces", 2015, https://doi.org/10.1137/1.9781611973860
    """
    inner, outer = active_axes(samples.jacobians[fitted], tolerance)
    rotated = replace(
        reduction,
        down=reduction.down @ inner,
        up=reduction.up @ inner,
        output_down=reduction.output_down @ outer,
        output_up=reduction.output_up @ outer,
    )
    jacobians = outer.mT @ (samples.jacobians @ inner)
    hessians = None if samples.hessians is None else turned(samples.hessians, inner, outer)
    covariance = None if samples.covariance is None else transformed(samples.covariance, outer, inner)
    x, F = samples.inputs @ inner, samples.outputs @ outer
    return Samples(x, F, jacobians, rotated, hessians, covariance, samples.groups, samples.aside), rotated


UNRELIABLE = 1e-12
"""Eigenvalues that are a smaller share of the largest are rounding; what lies along their axes has to be measured."""


def active_axes(
    jacobians: Float[Tensor, "S n m"], tolerance: float
) -> tuple[Float[Tensor, "m k"], Float[Tensor, "n n"]]:
    """The leading directions of the inputs and all directions of the outputs, by their share of the energy."""
    rows = jacobians.flatten(0, 1)
    energies, inner = torch.linalg.eigh(gram_matrix(rows))
    energies, inner = energies.flip(0).clamp(min=0), inner.flip(1)
    if tolerance < UNRELIABLE:
        energies = over_samples(sum((part @ inner).square().sum(0) for part in rows.split(at_once(rows.shape[1]))))
    left = energies.flip(0).cumsum(0).flip(0)  # what the axes from each one on carry, summed from the least
    keep = max(1, int((left > tolerance * left[0]).sum()))
    _, outer = torch.linalg.eigh(over_samples(torch.einsum("snm,som->no", jacobians, jacobians)))
    return inner[:, :keep], outer.flip(1)
