"""How far a solution is from its samples, output by output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenflex.bases.base import positive
from tenflex.factors import Factors
from tenflex.problem import Problem
from tenflex.reduction import mirrored, times
from tenflex.samples import Samples
from tenflex.sums import chunks


@dataclass(frozen=True)
class RelativeErrors:
    r"""Relative errors over some samples, in all and for every output.

    Those in all are in the coordinates of the problem, as in a solution's history, unless others were asked for: by
    default each input is measured in units of its standard deviation, and every output in the same unit. Estimated
    Jacobians count alike in all directions, however little is known along some; in a history they count by their
    covariance.

    Args:
        count: The number of samples.
        outputs: :math:`\|F - \hat F\| / \|F - \bar F\|`, with the mean of the fitted ones.
        jacobians: :math:`\|J - \hat J\| / \|J\|`.
        each_output: The first for every output alone; absolute for outputs that do not vary.
        each_jacobian: The second for the gradient of every output alone; absolute for gradients that are zero. Empty
            where there are views in place of whole Jacobians: then all that is known is the second, estimated from
            them; it is NaN where there are outputs only.
    """

    count: int
    outputs: float
    jacobians: float
    each_output: tuple[float, ...]
    each_jacobian: tuple[float, ...]


@dataclass(frozen=True)
class Errors:
    """Relative errors over the samples that were fitted, and over those that were not.

    Args:
        fitted: Over the samples that were fitted.
        held_out: Over those that chose nothing, or, without any, over those that only chose; None when all were fitted.
    """

    fitted: RelativeErrors
    held_out: RelativeErrors | None


def relative_errors(factors: Factors, problem: Problem) -> Errors:
    """The relative errors of a layer on the samples of a problem, which are visited once."""
    fitted, validation, test = problem.split
    held_out = test if len(test) else validation
    frame = mean_output(factors, problem), problem.reduction.output_down
    seen = errors_at(factors, problem, fitted, frame)
    return Errors(seen, errors_at(factors, problem, held_out, frame) if len(held_out) else None)


def mean_output(factors: Factors, problem: Problem) -> Float[Tensor, " n"]:
    """That of the fitted samples."""
    return problem.samples.original_outputs[problem.split.fitted].to(factors.bias).mean(0)


@torch.no_grad()
def errors_at(
    factors: Factors,
    problem: Problem,
    index: Int[Tensor, " some"],
    frame: tuple[Float[Tensor, " n"], Float[Tensor, "n *n"]],
) -> RelativeErrors:
    """The relative errors of a layer on some samples of a problem.

    Args:
        factors: The layer.
        problem: The problem.
        index: The samples.
        frame: The mean from which outputs vary, and the map to the coordinates in which they are counted together.
    """
    samples, reduction = problem.samples.select(index), problem.reduction
    outputs = output_misfit(factors, problem, index, frame)
    if samples.directions is not None:
        seen = _error_of_views(factors, samples, samples.directions, reduction.up)
        return RelativeErrors(len(index), outputs.total, seen, outputs.each, ())
    jacobians = Misfit(frame[1])
    for J, J_hat in _jacobians(factors, samples, reduction.up):
        jacobians.add_(J.mT.flatten(0, 1), (J - J_hat).mT.flatten(0, 1))
    return RelativeErrors(len(index), outputs.total, jacobians.total, outputs.each, jacobians.each)


@torch.no_grad()
def output_misfit(
    factors: Factors,
    problem: Problem,
    index: Int[Tensor, " some"],
    frame: tuple[Float[Tensor, " n"], Float[Tensor, "n *n"]],
) -> Misfit:
    """What is left of the outputs of some samples; the arguments are those of `errors_at`."""
    (mean, down), samples = frame, problem.samples
    F, x = (one[index].to(factors.bias) for one in (samples.original_outputs, samples.original_inputs))
    found = Misfit(down)
    found.add_(F - mean, F - factors.outputs(x))
    return found


class Misfit:
    """Squared sizes of numbers and of what is left of them, summed over many rows.

    Args:
        down: From outputs to the coordinates in which they are counted together.
    """

    def __init__(self, down: Float[Tensor, "n *n"]) -> None:
        self.down = down
        self.sizes, self.left = (down.new_zeros(2, len(down)) for _ in range(2))

    def add_(self, rows: Float[Tensor, "rows n"], left: Float[Tensor, "rows n"]) -> None:
        """Count these rows, and what is left of them."""
        for sums, one in ((self.sizes, rows), (self.left, left)):
            one = one.to(self.down)
            sums += torch.stack([one.square().sum(0), times(one, self.down).square().sum(0)])

    @property
    def each(self) -> tuple[float, ...]:
        """The relative error of every output alone."""
        return tuple((self.left[0] / positive(self.sizes[0])).sqrt().tolist())

    @property
    def total(self) -> float:
        """The relative error of all outputs together."""
        return (self.left[1].sum() / positive(self.sizes[1].sum())).sqrt().item()


def _error_of_views(
    factors: Factors, samples: Samples, directions: Float[Tensor, "some k n"], up: Float[Tensor, "m k"]
) -> float:
    """The relative error of products with the Jacobians, along the coordinates of the inputs."""
    if not directions.numel():
        return float("nan")
    left, size = up.new_zeros(()), up.new_zeros(())
    x, reduction = samples.original_inputs.to(factors.bias), samples.reduction
    for part in chunks(len(samples), directions[0].numel() + directions.shape[1] * len(up)):
        u, rows = directions[part].to(factors.bias), samples.jacobians[part].to(up)
        u, rows = (u, rows @ up) if reduction is None else (times(u, mirrored(reduction.output_down)), rows)
        found = factors.views(x[part], u).to(up) @ up
        left, size = left + (rows - found).square().sum(), size + rows.square().sum()
    return (left / positive(size)).sqrt().item()


def _jacobians(
    factors: Factors, samples: Samples, up: Float[Tensor, "m k"]
) -> Iterator[tuple[Float[Tensor, "some n k"], Float[Tensor, "some n k"]]]:
    """Jacobians of the samples and of the layer: those of the original outputs, along the coordinates of the inputs."""
    x, reduction = samples.original_inputs.to(factors.bias), samples.reduction
    for part in chunks(len(samples), len(factors.bias) * len(up)):
        J = samples.jacobians[part].to(up)
        J = _along(J, up) if reduction is None else times(J.mT, reduction.output_back).mT
        yield J, _along(factors.jacobians(x[part]).to(up), up)


def _along(J: Float[Tensor, "some n m"], up: Float[Tensor, "m k"]) -> Float[Tensor, "some n k"]:
    """Jacobians along the columns of `up`; where these only scale the inputs, as is usual, without a matrix product."""
    scale = up.diagonal()
    return J * scale if up.shape[0] == up.shape[1] and torch.equal(up, torch.diag(scale)) else J @ up
