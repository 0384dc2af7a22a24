"""Coordinates in which the data have unit variance, with the exact way back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases.base import positive
from tenflex.checks import require_number
from tenflex.covariance import transformed
from tenflex.layered import Layer
from tenflex.samples import Samples


@dataclass(frozen=True)
class Reduction:
    r"""An affine change of variables, :math:`z = D^\top (x - \mu)` and :math:`y = P^\top (f - \nu)`.

    Points that the data reach satisfy :math:`x = \mu + U z`, where y has the Jacobian :math:`P^\top J U`. Outputs are
    never dropped, :math:`f = \nu + Q y`. A layer found in (z, y) is carried back exactly: :math:`V = D V_z`,
    :math:`W = Q W_y`, and the means move into the shift and the bias.

    Args:
        mean: mu, `(m,)`.
        down: D, `(m, k)`, from centred inputs to z.
        up: U, `(m, k)`, back to centred inputs; `D^T U = I`.
        output_mean: nu, `(n,)`.
        output_down: P, `(n, n)`, from centred outputs to y.
        output_up: Q, `(n, n)`, back to centred outputs; `P^T Q = I`.
    """

    mean: Float[Tensor, " m"]
    down: Float[Tensor, "m k"]
    up: Float[Tensor, "m k"]
    output_mean: Float[Tensor, " n"]
    output_down: Float[Tensor, "n n"]
    output_up: Float[Tensor, "n n"]

    def inputs(self, x: Float[Tensor, "S m"]) -> Float[Tensor, "S k"]:
        """Inputs in the reduced coordinates."""
        return (x.to(self.mean) - self.mean) @ self.down

    def outputs(self, f: Float[Tensor, "S n"]) -> Float[Tensor, "S n"]:
        """Outputs in the reduced coordinates."""
        return (f.to(self.output_mean) - self.output_mean) @ self.output_down

    def jacobians(self, jacobians: Float[Tensor, "S n m"]) -> Float[Tensor, "S n k"]:
        """Jacobians in the reduced coordinates; the inputs, usually the larger side, are reduced first."""
        count, n, m = jacobians.shape
        thin = (jacobians.to(self.up).reshape(-1, m) @ self.up).view(count, n, -1)
        return self.output_down.mT @ thin

    def apply(self, samples: Samples) -> Samples:
        """Samples in the reduced coordinates, in float64."""
        return Samples(
            self.inputs(samples.inputs),
            self.outputs(samples.outputs),
            self.jacobians(samples.jacobians),
            self,
            None if samples.hessians is None else self.hessians(samples.hessians),
            None if samples.covariance is None else transformed(samples.covariance, self.output_down, self.up),
        )

    def hessians(self, hessians: Float[Tensor, "S n m m"]) -> Float[Tensor, "S n k k"]:
        """Hessians in the reduced coordinates."""
        return turned(hessians.to(self.up), self.up, self.output_down)

    def expand(self, factors: Layer) -> Layer:
        """A layer, or two, found in the reduced coordinates, in the original ones."""
        inner = (self.down @ factors.inner[0], *factors.inner[1:])
        outer = (self.output_up @ factors.outer[0], *factors.outer[1:])
        bias = self.output_mean + self.output_up @ factors.bias
        shifted = factors.shifted(-self.mean @ self.down @ factors.V)
        return replace(shifted, inner=inner, outer=outer, bias=bias)


class Coordinates(ABC):
    """A rule that chooses the reduced coordinates from the data."""

    @abstractmethod
    def choose(
        self,
        inputs: Float[Tensor, "S m"],
        outputs: Float[Tensor, "S n"],
        jacobians: Float[Tensor, "S n m"] | None = None,
    ) -> Reduction:
        """The reduction for these samples; the outputs are centred and brought to unit size.

        The Jacobians are None where they are only sampled in the coordinates that are chosen here.
        """


@dataclass(frozen=True)
class Standardize(Coordinates):
    """Every input has mean zero and variance one, and none is dropped: for maps whose every input matters."""

    def choose(
        self,
        inputs: Float[Tensor, "S m"],
        outputs: Float[Tensor, "S n"],
        jacobians: Float[Tensor, "S n m"] | None = None,
    ) -> Reduction:
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

    def choose(
        self,
        inputs: Float[Tensor, "S m"],
        outputs: Float[Tensor, "S n"],
        jacobians: Float[Tensor, "S n m"] | None = None,
    ) -> Reduction:
        x = varying(inputs)
        mean = x.mean(0)
        axes, deviations = principal_axes(x - mean, self.tolerance)
        return Reduction(mean, axes / deviations, axes * deviations, *output_frame(outputs))


@dataclass(frozen=True)
class PerOutput(Coordinates):
    r"""Every output counts the same, however small: each is scaled by the root mean square of its Jacobian.

    .. math:: y_i = \frac{f_i - \nu_i}{\sigma_i}, \quad \sigma_i^2 \propto \sum_s \|\nabla_z f_i(x_s)\|^2

    For maps whose outputs are in different units. An output that never changes keeps the scale of the largest.

    Args:
        coordinates: The rule for the inputs, in whose coordinates z the Jacobians are measured.

    Raises:
        TypeError: if `coordinates` is something else.
    """

    coordinates: Coordinates = field(default_factory=Standardize)

    def __post_init__(self) -> None:
        if not isinstance(self.coordinates, Coordinates):
            raise TypeError(f"coordinates must be Standardize() or Whiten(), got {self.coordinates!r}")

    def choose(
        self,
        inputs: Float[Tensor, "S m"],
        outputs: Float[Tensor, "S n"],
        jacobians: Float[Tensor, "S n m"] | None = None,
    ) -> Reduction:
        """Raises ValueError without Jacobians."""
        if jacobians is None:
            raise ValueError(
                "PerOutput needs the Jacobians, which are not known before they are sampled in these coordinates: use "
                "Whiten() here"
            )
        reduction = self.coordinates.choose(inputs, outputs, jacobians)
        size = reduction.jacobians(jacobians).square().sum((0, 2)).sqrt()
        size = torch.where(size > 0, size, size.amax())
        size = positive(size * (reduction.outputs(outputs) / positive(size)).square().sum(1).mean().sqrt())
        return replace(reduction, output_down=reduction.output_down / size, output_up=reduction.output_up * size)


def varying(inputs: Float[Tensor, "S m"]) -> Float[Tensor, "S m"]:
    """The inputs in float64; ValueError if they are all the same."""
    if (inputs - inputs[0]).abs().max() == 0:
        raise ValueError("all inputs are the same: expected samples that vary; pass different inputs")
    return inputs.double()


def output_frame(
    outputs: Float[Tensor, "S n"],
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n n"], Float[Tensor, "n n"]]:
    """Mean of the outputs, and the maps to unit size (along the original axes) and back."""
    f = outputs.double()
    mean = f.mean(0)
    size = positive((f - mean).square().sum(1).mean().sqrt())
    eye = torch.eye(f.shape[1], dtype=f.dtype, device=f.device)
    return mean, eye / size, eye * size


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
        output_down=reduction.output_down @ outer,
        output_up=reduction.output_up @ outer,
    )
    jacobians = outer.mT @ (samples.jacobians @ inner)
    hessians = None if samples.hessians is None else turned(samples.hessians, inner, outer)
    covariance = None if samples.covariance is None else transformed(samples.covariance, outer, inner)
    return Samples(samples.inputs @ inner, samples.outputs @ outer, jacobians, rotated, hessians, covariance), rotated


def turned(
    hessians: Float[Tensor, "S n m m"], inner: Float[Tensor, "m k"], outer: Float[Tensor, "n p"]
) -> Float[Tensor, "S p k k"]:
    """Second derivatives along the columns of `inner`, of the combinations `outer` of the outputs."""
    return torch.einsum("snij,ia,jb,np->spab", hessians, inner, inner, outer)


UNRELIABLE = 1e-12
"""Eigenvalues that are a smaller share of the largest are rounding; what lies along their axes has to be measured."""

CHUNK = 2**22
"""Numbers of an intermediate held at a time."""


def active_axes(
    jacobians: Float[Tensor, "S n m"], tolerance: float
) -> tuple[Float[Tensor, "m k"], Float[Tensor, "n n"]]:
    """The leading directions of the inputs and all directions of the outputs, by their share of the energy."""
    rows = jacobians.flatten(0, 1)
    energies, inner = torch.linalg.eigh(rows.mT @ rows)
    energies, inner = energies.flip(0).clamp(min=0), inner.flip(1)
    if tolerance < UNRELIABLE:
        energies = sum((part @ inner).square().sum(0) for part in rows.split(CHUNK // rows.shape[1] + 1))
    left = energies.flip(0).cumsum(0).flip(0)  # what the axes from each one on carry, summed from the least
    keep = max(1, int((left > tolerance * left[0]).sum()))
    _, outer = torch.linalg.eigh(torch.einsum("snm,som->no", jacobians, jacobians))
    return inner[:, :keep], outer.flip(1)
