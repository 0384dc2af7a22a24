"""Coordinates in which the data have unit variance, with the exact way back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.checks import require_number
from tenflex.factors import Factors
from tenflex.samples import Samples


@dataclass(frozen=True)
class Reduction:
    r"""An affine change of variables, :math:`z = D^\top (x - \mu)` and :math:`y = R^\top (f - \nu) / \sigma`.

    Points that the data reach satisfy :math:`x = \mu + U z`, where y has the Jacobian :math:`R^\top J U / \sigma`. A
    layer found in (z, y) is carried back exactly: :math:`V = D V_z`, :math:`W = \sigma R W_y`, and the means move into
    the shift and the bias.

    Args:
        mean: mu, `(m,)`.
        down: D, `(m, k)`, from centred inputs to z.
        up: U, `(m, k)`, back to centred inputs; `D^T U = I`.
        output_mean: nu, `(n,)`.
        output_axes: R, `(n, n)`, orthonormal.
        output_scale: sigma, the root mean square of the centred outputs.
    """

    mean: Float[Tensor, " m"]
    down: Float[Tensor, "m k"]
    up: Float[Tensor, "m k"]
    output_mean: Float[Tensor, " n"]
    output_axes: Float[Tensor, "n n"]
    output_scale: float

    def inputs(self, x: Float[Tensor, "S m"]) -> Float[Tensor, "S k"]:
        """Inputs in the reduced coordinates."""
        return (x.to(self.mean) - self.mean) @ self.down

    def outputs(self, f: Float[Tensor, "S n"]) -> Float[Tensor, "S n"]:
        """Outputs in the reduced coordinates."""
        return (f.to(self.output_mean) - self.output_mean) @ self.output_axes / self.output_scale

    def jacobians(self, jacobians: Float[Tensor, "S n m"]) -> Float[Tensor, "S n k"]:
        """Jacobians in the reduced coordinates; the inputs, usually the larger side, are reduced first."""
        count, n, m = jacobians.shape
        thin = (jacobians.to(self.up).reshape(-1, m) @ self.up).view(count, n, -1)
        return self.output_axes.mT @ thin / self.output_scale

    def apply(self, samples: Samples) -> Samples:
        """Samples in the reduced coordinates, in float64."""
        return Samples(
            self.inputs(samples.inputs),
            self.outputs(samples.outputs),
            self.jacobians(samples.jacobians),
            self,
            None if samples.hessians is None else self.hessians(samples.hessians),
        )

    def hessians(self, hessians: Float[Tensor, "S n m m"]) -> Float[Tensor, "S n k k"]:
        """Hessians in the reduced coordinates."""
        return turned(hessians.to(self.up), self.up, self.output_axes) / self.output_scale

    def expand(self, factors: Factors) -> Factors:
        """A layer found in the reduced coordinates, in the original ones."""
        inner = (self.down @ factors.inner[0], *factors.inner[1:])
        outer = (self.output_scale * self.output_axes @ factors.outer[0], *factors.outer[1:])
        shift = factors.shift - self.mean @ self.down @ factors.V
        bias = self.output_mean + self.output_scale * self.output_axes @ factors.bias
        return replace(factors, inner=inner, outer=outer, shift=shift, bias=bias)


class Coordinates(ABC):
    """A rule that chooses the reduced coordinates from the data."""

    @abstractmethod
    def choose(self, inputs: Float[Tensor, "S m"], outputs: Float[Tensor, "S n"]) -> Reduction:
        """The reduction for these samples; the outputs are centred and brought to unit size."""


@dataclass(frozen=True)
class Standardize(Coordinates):
    """Every input has mean zero and variance one, and none is dropped: for maps whose every input matters."""

    def choose(self, inputs: Float[Tensor, "S m"], outputs: Float[Tensor, "S n"]) -> Reduction:
        x = varying(inputs)
        deviation = x.std(0, correction=0)
        deviation = torch.where(deviation > 1e-12 * deviation.amax(), deviation, deviation.amax())
        return Reduction(x.mean(0), torch.diag(1 / deviation), torch.diag(deviation), *output_frame(outputs))


@dataclass(frozen=True)
class Whiten(Coordinates):
    """The inputs have mean zero and unit covariance: for the inputs of a network, which are many and correlated.

    Directions that the data never excite carry no information, and plain Frobenius error on the Jacobians would spend
    nodes on them. At most `min(m, S - 1)` directions remain, whatever the size of the block.

    Args:
        tolerance: Directions whose variance is at most this share of the largest are dropped.

    Raises:
        ValueError: if `tolerance` is not a number from 0 to below 1.
    """

    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        require_number("tolerance", self.tolerance, at_least=0)
        if self.tolerance >= 1:
            raise ValueError(f"tolerance must be a share below 1, got {self.tolerance}: no direction would be left")

    def choose(self, inputs: Float[Tensor, "S m"], outputs: Float[Tensor, "S n"]) -> Reduction:
        x = varying(inputs)
        mean = x.mean(0)
        axes, deviations = principal_axes(x - mean, self.tolerance)
        return Reduction(mean, axes / deviations, axes * deviations, *output_frame(outputs))


def varying(inputs: Float[Tensor, "S m"]) -> Float[Tensor, "S m"]:
    """The inputs in float64; ValueError if they are all the same."""
    if (inputs - inputs[0]).abs().max() == 0:
        raise ValueError("all inputs are the same: expected samples that vary; pass different inputs")
    return inputs.double()


def output_frame(outputs: Float[Tensor, "S n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n n"], float]:
    """Mean, axes (still the original ones) and size of the outputs."""
    f = outputs.double()
    mean = f.mean(0)
    size = (f - mean).square().sum(1).mean().sqrt().item()
    return mean, torch.eye(f.shape[1], dtype=f.dtype, device=f.device), size or 1.0


def principal_axes(centred: Float[Tensor, "S m"], tolerance: float) -> tuple[Float[Tensor, "m k"], Float[Tensor, " k"]]:
    """Orthonormal axes of the covariance and the standard deviations along them, largest first.

    The smaller of the two Gram matrices is decomposed, so the cost is bounded by `min(S, m)`.
    """
    count, size = centred.shape
    few = size <= count
    gram = centred.mT @ centred if few else centred @ centred.mT
    variances, axes = torch.linalg.eigh(gram / count)
    keep = variances > max(tolerance, 1e-13) * variances[-1]
    axes, deviations = axes[:, keep].flip(1), variances[keep].sqrt().flip(0)
    return (axes if few else centred.mT @ axes / (deviations * count**0.5)), deviations


def to_active_axes(samples: Samples, reduction: Reduction, tolerance: float) -> tuple[Samples, Reduction]:
    r"""Rotate reduced samples to their active subspace: the directions along which the map changes, most active first.

    The axes are the eigenvectors of :math:`\sum_s J_s^\top J_s` (inputs) and :math:`\sum_s J_s J_s^\top` (outputs).
    Input axes that together carry at most `tolerance` of :math:`\|J\|^2` are dropped, which bounds the error and
    shrinks every later product.

    References:
        Constantine, "Active subspaces", 2015, https://doi.org/10.1137/1.9781611973860
    """
    inner, outer = active_axes(samples.jacobians, tolerance)
    rotated = replace(
        reduction,
        down=reduction.down @ inner,
        up=reduction.up @ inner,
        output_axes=reduction.output_axes @ outer,
    )
    jacobians = outer.mT @ (samples.jacobians @ inner)
    hessians = None if samples.hessians is None else turned(samples.hessians, inner, outer)
    return Samples(samples.inputs @ inner, samples.outputs @ outer, jacobians, rotated, hessians), rotated


def turned(
    hessians: Float[Tensor, "S n m m"], inner: Float[Tensor, "m k"], outer: Float[Tensor, "n p"]
) -> Float[Tensor, "S p k k"]:
    """Second derivatives along the columns of `inner`, of the combinations `outer` of the outputs."""
    return torch.einsum("snij,ia,jb,np->spab", hessians, inner, inner, outer)


def active_axes(
    jacobians: Float[Tensor, "S n m"], tolerance: float
) -> tuple[Float[Tensor, "m k"], Float[Tensor, "n n"]]:
    """The leading directions of the inputs and all directions of the outputs, by their share of the energy."""
    rows = jacobians.flatten(0, 1)
    energies, inner = torch.linalg.eigh(rows.mT @ rows)
    energies, inner = energies.flip(0).clamp(min=0), inner.flip(1)
    left = energies.flip(0).cumsum(0).flip(0)  # what the axes from each one on carry, summed from the least
    keep = max(1, int((left > tolerance * left[0]).sum()))
    _, outer = torch.linalg.eigh(torch.einsum("snm,som->no", jacobians, jacobians))
    return inner[:, :keep], outer.flip(1)
