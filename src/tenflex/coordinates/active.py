"""The directions along which a map changes."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenflex.coordinates.base import WIDEST_OUTPUTS
from tenflex.covariance import transformed
from tenflex.reduction import Reduction, matrix_of, turned
from tenflex.samples import Samples
from tenflex.sums import at_once, chunks, gram_matrix, over_samples, sample_count

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
    inner, outer = _axes(samples, tolerance, fitted)
    count, n, _ = samples.jacobians.shape
    room = samples.jacobians.new_empty(count, n, inner.shape[1])
    return _rotated(samples, reduction, inner, outer, room)


def to_active_axes_(
    samples: Samples, reduction: Reduction, tolerance: float, fitted: slice | Int[Tensor, " fitted"] = ALL
) -> tuple[Samples, Reduction]:
    """The same in the memory of the samples' Jacobians, which are then lost.

    What follows is moved forward: the Jacobians of a sample along fewer axes take less room than they had. Where less
    than half of it is left in use, they move out, and the rest is free again.
    """
    inner, outer = _axes(samples, tolerance, fitted)
    count, n, m = samples.jacobians.shape
    k = inner.shape[1]
    room = samples.jacobians.flatten()[: count * n * k].view(count, n, k)
    rotated, reduction = _rotated(samples, reduction, inner, outer, room)
    if 2 * k < m:
        rotated = replace(rotated, jacobians=room.clone())
    return rotated, reduction


def _axes(
    samples: Samples, tolerance: float, fitted: slice | Int[Tensor, " fitted"]
) -> tuple[Float[Tensor, "m k"], Float[Tensor, "n n"] | None]:
    """The active axes of inputs and outputs; None for outputs that are too many, or seen through views.

    Views tell of the inputs alike, unless they are so few that some directions may have been missed.
    """
    rows, n = samples.jacobians[fitted], samples.outputs.shape[1]
    if samples.directions is None and n <= WIDEST_OUTPUTS:
        return active_axes(rows, tolerance)
    energies, inner = by_energy(gram_matrix(rows.flatten(0, 1)))
    enough = sample_count(rows) * rows.shape[1] > ENOUGH * len(inner)
    return inner[:, : needed(energies, max(tolerance, UNRELIABLE)) if enough else None], None


def _rotated(
    samples: Samples, reduction: Reduction, inner: Tensor, outer: Tensor | None, room: Float[Tensor, "S n k"]
) -> tuple[Samples, Reduction]:
    """Samples along other axes, with the Jacobians in `room`."""
    rotated = replace(reduction, down=reduction.down @ inner, up=reduction.up @ inner)
    if outer is None:
        for part in chunks(*_sizes(samples.jacobians)):
            room[part] = samples.jacobians[part] @ inner
        pilot = samples.pilot
        pilot = pilot and replace(pilot, inputs=pilot.inputs @ inner, jacobians=pilot.jacobians @ inner)
        x = samples.inputs @ inner
        return replace(samples, inputs=x, jacobians=room, reduction=rotated, pilot=pilot), rotated
    rotated = replace(
        rotated, output_down=reduction.output_matrix @ outer, output_up=matrix_of(reduction.output_up) @ outer
    )
    for part in chunks(*_sizes(samples.jacobians)):
        room[part] = outer.mT @ (samples.jacobians[part] @ inner)
    hessians = None if samples.hessians is None else turned(samples.hessians, inner, outer)
    covariance = None if samples.covariance is None else transformed(samples.covariance, outer, inner)
    x, F = samples.inputs @ inner, samples.outputs @ outer
    return Samples(x, F, room, rotated, hessians, covariance, samples.groups, samples.aside), rotated


ENOUGH = 4
"""So many views for every direction of the inputs tell which are needed."""

UNRELIABLE = 1e-12
"""Eigenvalues that are a smaller share of the largest are rounding; what lies along their axes has to be measured."""


def active_axes(
    jacobians: Float[Tensor, "S n m"], tolerance: float
) -> tuple[Float[Tensor, "m k"], Float[Tensor, "n n"]]:
    """The leading directions of the inputs and all directions of the outputs, by their share of the energy."""
    rows = jacobians.flatten(0, 1)
    energies, inner = by_energy(gram_matrix(rows))
    if tolerance < UNRELIABLE:
        energies = over_samples(sum((part @ inner).square().sum(0) for part in rows.split(at_once(4 * rows.shape[1]))))
    keep = needed(energies, tolerance)
    gram = jacobians.new_zeros(jacobians.shape[1], jacobians.shape[1])
    for part in chunks(*_sizes(jacobians)):
        some = jacobians[part].transpose(0, 1).flatten(1)
        gram += some @ some.mT
    _, outer = torch.linalg.eigh(over_samples(gram))
    return inner[:, :keep], outer.flip(1)


def by_energy(gram: Float[Tensor, "m m"]) -> tuple[Float[Tensor, " m"], Float[Tensor, "m m"]]:
    """The directions of the inputs and their energies, from `J^T J` of all rows, the most active first."""
    energies, inner = torch.linalg.eigh(gram)
    return energies.flip(0).clamp(min=0), inner.flip(1)


def needed(energies: Float[Tensor, " m"], tolerance: float) -> int:
    """How many of the most active directions leave at most a share of the energy out."""
    left = energies.flip(0).cumsum(0).flip(0)  # what the axes from each one on carry, summed from the least
    return max(1, int((left > tolerance * left[0]).sum()))


def _sizes(jacobians: Float[Tensor, "S n m"]) -> tuple[int, int]:
    """The number of samples, and the numbers that are at work for each: four of its size."""
    return len(jacobians), 4 * jacobians[0].numel()
