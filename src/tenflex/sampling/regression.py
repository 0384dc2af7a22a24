"""Samples of a map that is known by a table only: its derivatives are estimated where they were not measured."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import combinations_with_replacement
from math import ceil, comb

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenflex.checks import require_finite, require_floating, require_whole
from tenflex.problem import require_scale
from tenflex.samples import Samples
from tenflex.sums import at_once

MOST_MEMORY = 4 * 2**30
"""Bytes that the covariance may take."""

FEWEST = 1.5
"""The fewest neighbours, as a multiple of the local coefficients: the far ones hardly count."""

GROWTH = 1.5
"""The ratio of one size of neighbourhoods that is tried to the one before."""

JUDGES = 500
"""The points at which sizes of neighbourhoods are compared."""

UNSEEN = 1e-10
"""Local directions whose weight in the normal equations is a smaller share of the largest are not determined."""

DEGENERATE = 1e-12
"""The same for the directions in which all inputs vary; and what is constant varies by a smaller share."""

FLOOR = 1e-9
"""Added to variances as a share of them, so that no covariance is singular; the noise is at least this share."""

PRIOR = 1.0
"""The degrees of freedom with which the noise around a point is held to be that of all points."""


def sample_table(
    inputs: Float[Tensor, "S m"],
    outputs: Float[Tensor, "S n"],
    jacobians: Float[Tensor, "S n m"] | None = None,
    *,
    degree: int = 2,
    neighbours: int | None = None,
) -> Samples:
    r"""The samples of a map of which only a table is known, with its derivatives or without.

    Derivatives that are not given are estimated at every point :math:`x_s` by a polynomial through its neighbours, the
    nearer ones counting more:

    .. math:: \min_{q_s} \sum_{i \in N_s} \Big(1 - \frac{\|x_i - x_s\|^3}{h_s^3}\Big)^3 \|y_i - q_s(x_i - x_s)\|^2,
        \quad J_s = D q_s(0)

    in standardized inputs. They are a linear function of the outputs, :math:`J_s = \sum_i y_i l_{si}^\top`, so noise of
    covariance :math:`\Omega_s` between the outputs gives them the covariance
    :math:`\Omega_s \otimes \sum_i l_{si} l_{si}^\top`, which becomes the covariance of the samples. :math:`\Omega_s` is
    that of the residuals of all local fits, with their degrees of freedom, scaled to the size of those around
    :math:`x_s`: where the map bends more than a local polynomial, the estimate counts less. The bias itself is not in
    the covariance, nor is that neighbouring estimates share their noise: without noise it is too small, and right only
    in what it says of one sample against another. Directions that no neighbour tells of have the estimate zero, and the
    outputs' own variance in addition.

    The outputs are kept as they are in the table, noise included.

    References:
        Cleveland, Devlin, "Locally weighted regression: an approach to regression analysis by local fitting", 1988,
        https://doi.org/10.1080/01621459.1988.10478639
        Fan, Gijbels, "Local polynomial modelling and its applications", 1996.
        Loader, "Local regression and likelihood", 1999, https://doi.org/10.1007/b98858

    Args:
        inputs: The points, `(S, m)`.
        outputs: The values there, `(S, n)`.
        jacobians: The derivatives there, if they were measured: then nothing is estimated.
        degree: That of the local polynomials, at least 1; they have `binom(m + degree, degree)` coefficients.
        neighbours: How many samples each of them is fitted to; None to choose by leave-one-out cross-validation.

    Returns:
        The samples, in float64.

    Raises:
        TypeError: if something is not a floating-point tensor.
        ValueError: if shapes disagree, a number is not finite, there are too few samples, inputs do not vary in all
            directions, too many samples are at one point, or derivatives were given and are to be estimated as well.

    Example:
        >>> x = torch.rand(200, 2, dtype=torch.float64)
        >>> samples = sample_table(x, x.prod(1, keepdim=True))
        >>> torch.allclose(samples.jacobians[:, 0], x.flip(1))
        True
    """
    if jacobians is not None:
        if neighbours is not None or degree != 2:
            raise ValueError("degree and neighbours are for tables without derivatives: leave them or jacobians out")
        x, y, J = (_double(name, one) for name, one in _named(inputs, outputs, jacobians).items())
        return Samples(x, y, J)
    table = Table.of(inputs, outputs, degree)
    if neighbours is None:
        neighbours = choose_neighbours(table)
    else:
        _require_neighbours(neighbours, table)
    fits = fit_locally(table, torch.arange(len(table.outputs), device=table.outputs.device), neighbours)
    covariance = slope_covariance(table, fits, noise_covariances(table, fits))
    return Samples(table.inputs, table.outputs, fits.slopes / table.scale, covariance=covariance)


@dataclass(frozen=True, eq=False)
class Table:
    """A table in float64, and its inputs in the units in which distances are measured."""

    inputs: Float[Tensor, "S m"]
    outputs: Float[Tensor, "S n"]
    scale: Float[Tensor, " m"]
    degree: int

    @staticmethod
    def of(inputs: Tensor, outputs: Tensor, degree: int) -> Table:
        x, y = (_double(name, one) for name, one in _named(inputs, outputs).items())
        if x.ndim != 2 or y.ndim != 2 or not x.numel() or not y.numel() or len(x) != len(y):
            raise ValueError(f"expected inputs (S, m) and outputs (S, n), got {tuple(x.shape)} and {tuple(y.shape)}")
        require_whole("degree", degree, at_least=1)
        for name, tensor in _named(x, y).items():
            require_finite(name, tensor)
            require_scale(name, tensor)
        table = Table(x, y, x.std(0, correction=0), degree)
        _require_enough(table)
        _require_all_directions(table)
        _require_room(table)
        return table

    @property
    def points(self) -> Float[Tensor, "S m"]:
        """The inputs in units of their standard deviations."""
        return (self.inputs - self.inputs.mean(0)) / self.scale

    @property
    def variances(self) -> Float[Tensor, " n"]:
        """Those of the outputs; 1 for constant ones."""
        variances = self.outputs.var(0, correction=0)
        return torch.where(variances > (DEGENERATE * self.outputs.abs().amax(0)) ** 2, variances, 1.0)

    @property
    def size(self) -> int:
        """The number of coefficients of a local polynomial."""
        return comb(self.inputs.shape[1] + self.degree, self.degree)

    @property
    def fewest(self) -> int:
        """The fewest neighbours that determine a local polynomial and leave residuals."""
        return ceil(FEWEST * self.size)


@dataclass(frozen=True, eq=False)
class LocalFits:
    """Local polynomials at some points, as linear functions of the outputs around.

    Args:
        values: Those of the polynomials, `(P, n)`.
        slopes: Their gradients in standardized inputs, `(P, n, m)`.
        spread: The covariance of a gradient per unit of noise, `(P, m, m)`.
        unseen: The part of its directions that the neighbours do not determine, `(P, m, m)`.
        left_out: The values when every output at the same point is left out of the fit, `(P, n)`.
        scatter: The weighted sum of products of the residuals around it, `(P, n, n)`.
        freedom: What that is on average for noise of unit variance, `(P,)`.
    """

    values: Float[Tensor, "P n"]
    slopes: Float[Tensor, "P n m"]
    spread: Float[Tensor, "P m m"]
    unseen: Float[Tensor, "P m m"]
    left_out: Float[Tensor, "P n"]
    scatter: Float[Tensor, "P n n"]
    freedom: Float[Tensor, " P"]


def choose_neighbours(table: Table) -> int:
    """The size of neighbourhoods with the least leave-one-out error of the outputs.

    Sizes grow by a constant ratio until two in a row are worse.
    """
    count = len(table.outputs)
    at = torch.arange(0, count, ceil(count / JUDGES), device=table.outputs.device)
    best, least, worse, size = table.fewest, float("inf"), 0, table.fewest
    while worse < 2:
        error = left_out_error(table, fit_locally(table, at, size), at)
        best, least, worse = (size, error, 0) if error < least else (best, least, worse + 1)
        if size == count:
            break
        size = min(ceil(GROWTH * size), count)
    return best


def left_out_error(table: Table, fits: LocalFits, at: Int[Tensor, " P"]) -> float:
    """The geometric mean over points of the squared error, relative to the variances, when the point is left out.

    A plain mean would let the few points at the rim, which every fit extrapolates to, choose for all others.
    """
    errors = (table.outputs[at] - fits.left_out).square() / table.variances
    return float(errors.mean(1).clamp(min=1e-32).log().mean().exp())


def fit_locally(table: Table, at: Int[Tensor, " P"], neighbours: int) -> LocalFits:
    """Local polynomials at the samples `at`, a chunk of them at a time."""
    count, n = table.outputs.shape
    widest = max(count, 2 * neighbours * (table.size + n), n**2)
    parts = [_fit(table, part, neighbours) for part in at.split(at_once(widest))]
    return LocalFits(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(LocalFits)))


def _fit(table: Table, at: Int[Tensor, " p"], neighbours: int) -> LocalFits:
    """Weighted least squares by the normal equations in the span that they determine, refined once."""
    m = table.inputs.shape[1]
    near, steps, radius = nearest(table.points, at, neighbours)
    weights = tricube(steps.norm(dim=2))
    design = local_monomials(steps, table.degree)
    weighted = design * weights[..., None]
    inverse, null = pseudo_inverse(weighted.mT @ design)
    smoother = inverse @ weighted.mT  # (p, coefficients, neighbours)
    around = table.outputs[near]
    coefficients = smoother @ around
    coefficients = coefficients + smoother @ (around - design @ coefficients)
    residuals = around - design @ coefficients
    slopes = smoother[:, 1 : m + 1] / radius[:, None, None]
    return LocalFits(
        coefficients[:, 0],
        coefficients[:, 1 : m + 1].mT / radius[:, None, None],
        slopes @ slopes.mT,
        null[:, 1 : m + 1, 1 : m + 1],
        without(coefficients[:, 0], smoother[:, 0] * (steps == 0).all(2), around),
        residuals.mT @ (residuals * weights[..., None]),
        weights.sum(1) - (smoother.mT * weighted).sum((1, 2)),
    )


def without(
    values: Float[Tensor, "p n"], weights: Float[Tensor, "p k"], outputs: Float[Tensor, "p k n"]
) -> Float[Tensor, "p n"]:
    """The values of local fits without the outputs that have these weights in them.

    A fit without an output is the fit to the value that it then predicts there, so none is repeated.
    """
    own = (weights[..., None] * outputs).sum(1)
    return (values - own) / (1 - weights.sum(1)).clamp(min=1e-8)[:, None]


def nearest(
    points: Float[Tensor, "S m"], at: Int[Tensor, " p"], neighbours: int
) -> tuple[Int[Tensor, "p k"], Float[Tensor, "p k m"], Float[Tensor, " p"]]:
    """The nearest samples, the steps to them in units of the radius of the neighbourhood, and that radius."""
    centres = points[at]
    distances = torch.cdist(centres, points, compute_mode="donot_use_mm_for_euclid_dist")
    largest, near = distances.topk(neighbours, largest=False)
    radius = largest[:, -1] * (1 + 1 / neighbours) ** (1 / points.shape[1])  # where the next one is expected
    if not radius.all():
        where = int(at[radius == 0][0])
        raise ValueError(
            f"at least {neighbours} samples are at the same point as sample {where}, and tell nothing of its "
            f"surroundings: keep one of them, with their mean output, or raise neighbours"
        )
    return near, (points[near] - centres[:, None]) / radius[:, None, None], radius


def tricube(distances: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Weights that fall smoothly from 1 to 0 at distance 1."""
    return (1 - distances.clamp(max=1) ** 3) ** 3


def local_monomials(steps: Float[Tensor, "p k m"], degree: int) -> Float[Tensor, "p k c"]:
    """1, then the steps, then their products of two to `degree`."""
    columns = [torch.ones_like(steps[..., 0])]
    for total in range(1, degree + 1):
        picks = combinations_with_replacement(range(steps.shape[2]), total)
        columns += [steps[..., pick].prod(-1) for pick in picks]
    return torch.stack(columns, -1)


def pseudo_inverse(gram: Float[Tensor, "p c c"]) -> tuple[Float[Tensor, "p c c"], Float[Tensor, "p c c"]]:
    """The inverse of symmetric matrices on the span that they determine, and the projection on the rest."""
    values, axes = torch.linalg.eigh(gram)
    seen = values > UNSEEN * values[:, -1:]
    inverse = torch.where(seen, 1 / values, 0.0)
    return (axes * inverse[:, None]) @ axes.mT, (axes * (~seen)[:, None]) @ axes.mT


def noise_covariances(table: Table, fits: LocalFits) -> Float[Tensor, "S n n"]:
    """The covariance of the outputs' noise: that of all residuals, times the size of those around each point."""
    pooled = fits.scatter.sum(0) / fits.freedom.sum().clamp(min=PRIOR)
    pooled = pooled + torch.diag(FLOOR**2 * table.variances)
    n = len(pooled)
    relative = (fits.scatter.diagonal(dim1=1, dim2=2) / pooled.diagonal()).sum(1)
    sizes = (relative + PRIOR) / (n * fits.freedom.clamp(min=0) + PRIOR)
    return sizes[:, None, None] * pooled


def slope_covariance(table: Table, fits: LocalFits, noise: Float[Tensor, "S n n"]) -> Float[Tensor, "S nm nm"]:
    """The covariance of every estimated Jacobian, row by row."""
    spread, unseen = (one / table.scale / table.scale[:, None] for one in (fits.spread, fits.unseen))
    blocks = torch.einsum("sab,sij->saibj", noise, spread)
    blocks = blocks + torch.einsum("ab,sij->saibj", torch.diag(table.variances), unseen)
    covariance = blocks.flatten(3).flatten(1, 2)
    return covariance + torch.diag_embed(FLOOR * covariance.diagonal(dim1=1, dim2=2))


def _named(*tensors: Tensor) -> dict[str, Tensor]:
    return dict(zip(("inputs", "outputs", "jacobians"), tensors, strict=False))


def _double(name: str, tensor: Tensor) -> Tensor:
    require_floating(name, tensor)
    return tensor.detach().double()


def _require_neighbours(neighbours: int, table: Table) -> None:
    require_whole("neighbours", neighbours, at_least=1)
    if not table.fewest <= neighbours <= len(table.outputs):
        raise ValueError(
            f"neighbours must be from {table.fewest} (local polynomials of degree {table.degree} in "
            f"{table.inputs.shape[1]} inputs have {table.size} coefficients) to the {len(table.outputs)} samples, "
            f"got {neighbours}"
        )


def _require_enough(table: Table) -> None:
    count, m = table.inputs.shape
    if count < table.fewest:
        lower = f", or lower degree to 1, for which {ceil(FEWEST * (m + 1))} are enough" if table.degree > 1 else ""
        raise ValueError(
            f"at least {table.fewest} samples are needed to estimate derivatives in {m} inputs by local polynomials of "
            f"degree {table.degree} ({table.size} coefficients), got {count}: pass more samples{lower}"
        )


def _require_all_directions(table: Table) -> None:
    m = table.inputs.shape[1]
    for j in range(m):
        if table.scale[j] <= DEGENERATE * table.inputs[:, j].abs().amax():
            raise ValueError(f"input x{j + 1} is constant, so nothing tells its derivative: leave it out")
    points = table.points
    variances = torch.linalg.eigvalsh(points.mT @ points)
    seen = int((variances > DEGENERATE * variances[-1]).sum())
    if seen < m:
        raise ValueError(
            f"the inputs vary in only {seen} of {m} directions, so nothing tells the derivatives in the others: "
            f"leave out inputs that are sums of others, or pass {seen} combinations of them"
        )


def _require_room(table: Table) -> None:
    size = 8 * (table.outputs.shape[1] * table.inputs.shape[1]) ** 2
    if size * len(table.outputs) > MOST_MEMORY:
        raise ValueError(
            f"the covariance of {len(table.outputs)} Jacobians {(table.outputs.shape[1], table.inputs.shape[1])} takes "
            f"{size * len(table.outputs) / 2**30:.1f} GiB, more than {MOST_MEMORY / 2**30:.1f}: pass at most "
            f"{MOST_MEMORY // size} samples, or fewer outputs at a time"
        )
