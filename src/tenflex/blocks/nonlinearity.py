"""How nonlinear a block is where inputs really arrive: what the best affine map leaves."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.baselines.affine import ridge_regression
from tenflex.bases.base import positive
from tenflex.sampling.jacobian import BatchMap, evenly, whole_jacobians
from tenflex.split import Split

SOME = 16
"""The mean slope of so many samples tells of directions in which there are too few samples for a regression."""

NUMBERS = 2**24
"""The most numbers of their Jacobians together."""

PASSES = 4096
"""No more passes than these are taken for Jacobians."""


def nonlinearity(
    f: BatchMap, inputs: Float[Tensor, "S *m"], outputs: Float[Tensor, "S *n"], split: Split
) -> float | None:
    r"""The share of the outputs' variance that the best affine map does not explain, on samples that it did not see.

    .. math:: \nu = \frac{\sum_s \|f(x_s) - A x_s - b\|^2}{\sum_s \|f(x_s) - \bar f\|^2}

    0 for an affine map, 1 for one of which no affine map tells anything, such as an even function of symmetric inputs.
    The affine maps in question are a ridge regression, the same around the mean Jacobian of some samples, and that
    Jacobian alone: the first is the best with many samples, the second is exact for an affine map with any number.

    Args:
        f: The block, as a map of a batch.
        inputs: What arrives at it.
        outputs: What leaves it.
        split: The samples that are fitted, those that choose among the affine maps, and those that tell the share.

    Returns:
        The share, in [0, 1]; None where no samples are held out.
    """
    if not len(split.validation) or not len(split.test):
        return None
    x, y = inputs.flatten(1).double(), outputs.flatten(1).double()
    rests = [one for slope in _slopes(f, inputs[split.fitted], y.shape[1]) for one in _rests(x, y, slope, split.fitted)]
    best = min(rests, key=lambda rest: float(rest[split.validation].square().sum()))
    spread = y[split.test] - y[split.fitted].mean(0)
    share = best[split.test].square().sum() / positive(spread.square().sum())
    return min(1.0, float(share))


def _slopes(f: BatchMap, inputs: Float[Tensor, "S *m"], n: int) -> list[Float[Tensor, "n m"]]:
    """The slopes around which a regression is tried: none, and the mean of some Jacobians."""
    m = inputs[0].numel()
    nothing = torch.zeros(n, m, dtype=torch.float64, device=inputs.device)
    if min(n, m) > PASSES or n * m > NUMBERS:
        return [nothing]
    some = evenly(inputs, max(1, min(SOME, NUMBERS // (n * m))))
    return [nothing, whole_jacobians(f, some, n).double().mean(0)]


def _rests(
    x: Float[Tensor, "S m"], y: Float[Tensor, "S n"], slope: Float[Tensor, "n m"], fitted: Tensor
) -> list[Float[Tensor, "S n"]]:
    """What is left of the outputs beside a slope and a constant, and beside a regression around that slope."""
    rest = y - x @ slope.mT
    weight, bias = ridge_regression(x[fitted], rest[fitted])
    return [rest - rest[fitted].mean(0), rest - x @ weight.mT - bias]
